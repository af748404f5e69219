"""The report of a run that is still training, served on this machine and kept up to date.

vla-rl report runs/mine --live

a browser asks -> has the run's folder changed? -> the page, written anew at most every few seconds
"""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path

from vla_rl.config.errors import UserError
from vla_rl.report.page.write import render
from vla_rl.report.run_data import read_run
from vla_rl.runtime.progress import note
from vla_rl.runtime.run_folder import training_run

LOOPBACK = "127.0.0.1"
_WATCHED = ("*.json", "*.jsonl", "eval/*.json", "eval/videos/*/index.json", "analysis/*")
_CSP = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "


class LivePage:
    """The page of one run, written anew where its folder has changed and the last page is `pause` seconds old."""

    def __init__(
        self, run: Path, pause: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.run = run
        self._pause, self._clock = pause, clock
        self._lock = threading.Lock()
        self._mark, self._page, self._written = "", "", -float("inf")

    def mark(self) -> str:
        """A name of the folder's present state: another one where any file that the page tells of is another."""
        seen = hashlib.sha256()
        for pattern in _WATCHED:
            for file in sorted(self.run.glob(pattern)):
                try:
                    found = file.stat()
                except OSError:  # replaced while we looked
                    continue
                seen.update(f"{file.name} {found.st_size} {found.st_mtime_ns}\n".encode())
        return seen.hexdigest()[:16]

    def current(self) -> tuple[str, str]:
        """(mark, page), as new as `pause` allows. A folder that cannot be read says so on the page."""
        with self._lock:
            mark = self.mark()
            if mark != self._mark and self._clock() - self._written >= self._pause:
                try:
                    self._page = _live(render(read_run(self.run)), mark)
                except UserError as error:
                    self._page = _live(_waiting(str(error)), mark)
                self._mark, self._written = mark, self._clock()
            return self._mark, self._page


def _live(page: str, mark: str) -> str:
    """The page with a line that says how new it is, and the script that looks for a newer one."""
    script = (resources.files("vla_rl.report.page") / "live.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    page = page.replace("script-src ", f"connect-src 'self'; script-src 'sha256-{digest}' ", 1)
    line = f'<p class="live" role="status" data-mark="{mark}">live</p>'
    page = page.replace("<main>", f"<main>{line}", 1)
    return page.replace("</body>", f"<script>{script}</script></body>", 1)


def _waiting(sentence: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>VLA-RL report</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_CSP}script-src "></head>'
        f"<body><main><h1>Waiting for the run</h1><p>{escape(sentence)}</p></main></body></html>"
    )


def _handler(live: LivePage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Two addresses: the page, and the mark of its newest state."""

        def do_GET(self) -> None:
            host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
            if host not in (LOOPBACK, "localhost"):  # a web page elsewhere whose name leads here
                self.send_error(HTTPStatus.FORBIDDEN, "this page is for this machine alone")
                return
            if self.path not in ("/", "/mark"):
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            mark, page = live.current()
            whole, kind = (page, "text/html") if self.path == "/" else (mark, "text/plain")
            content = whole.encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """A line for every look of a browser would bury what else is said."""

    return Handler


@contextmanager
def serving(run: Path, port: int, pause: float) -> Iterator[ThreadingHTTPServer]:
    """A server for the live page of `run` on loopback; port 0 takes a free one.

    Raises UserError for what is no run folder, and where the port is taken.
    """
    folder = training_run(run)
    read_run(folder)
    try:
        server = ThreadingHTTPServer((LOOPBACK, port), _handler(LivePage(folder, pause)))
    except OSError as error:
        raise UserError(
            f"port {port} of this machine cannot be used ({error.strerror}). Give another --port; 0 takes a free one"
        ) from error
    server.daemon_threads = True
    try:
        yield server
    finally:
        server.server_close()


def serve_report(run: Path, port: int = 8123, pause: float = 5.0) -> None:
    """Serve the live page of `run` until Ctrl-C. pause: seconds at least between two writings of the page."""
    with serving(run, port, pause) as server:
        address = f"http://{LOOPBACK}:{server.server_port}/"
        note(f"live report of {run}: {address}  (Ctrl-C ends it; the training does not mind)")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            note("live report ended")
