"""The documentation's pictures of the report: of a run that is training and of the same one when it is done.

    python benchmarks/screenshots.py --out runs/screenshots          a short run on the toy, and its report
    python benchmarks/screenshots.py --run runs/mine --out shots     the report of a run that there is

A headless Chromium opens the page in frames as wide as a desktop and as a phone, side by side, and one picture is cut
into `report-1200.png`, `report-420.png` and, while the run trains, `live-1200.png` and `live-420.png`. (A window of
Chromium cannot be as narrow as a phone, a frame can.)
"""

from __future__ import annotations

import argparse
import html
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from PIL import Image

from vla_rl.config.errors import UserError
from vla_rl.report.live import serving
from vla_rl.report.page.write import write_report
from vla_rl.runtime.files import require_writable

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (1200, 420)
HEIGHT = 1000
GAP = 20
COLOURS = 128
"""Of the palette: a page of text and lines needs no more, and takes a third of the space."""
SHORT = (
    "toy", "--env.suite", "toy:reach-red,reach-blue", "--schedule.episodes", "1200", "--eval.episodes-per-task", "10",
    "--eval.videos", "2", "--run.name", "shown",
)  # fmt: skip


def photograph(address: str, name: str, out: Path, browser: str) -> list[Path]:
    """Pictures of the page at `address`, `name`-WIDTH.png in `out`, one for each of WIDTHS."""
    frames = "".join(
        f'<iframe src="{html.escape(address)}" style="position:absolute;top:0;left:{left}px;'
        f'width:{width}px;height:{HEIGHT}px;border:0"></iframe>'
        for width, left in zip(WIDTHS, lefts(), strict=True)
    )
    with tempfile.TemporaryDirectory() as folder:
        page, whole = Path(folder, "frames.html"), Path(folder, "whole.png")
        page.write_text(f'<!doctype html><meta charset="utf-8"><body>{frames}', encoding="utf-8")
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={folder}/profile", f"--window-size={lefts()[-1] + WIDTHS[-1]},{HEIGHT}",
            "--timeout=60000", f"--screenshot={whole}", page.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not whole.exists():
            sys.exit(f"{browser} made no picture of {address}:\n{done.stderr[-2000:]}")
        with Image.open(whole) as opened:
            picture = opened.convert("RGB")
    found = []
    for width, left in zip(WIDTHS, lefts(), strict=True):
        found.append(out / f"{name}-{width}.png")
        cut = picture.crop((left, 0, left + width, min(HEIGHT, picture.height)))
        cut.quantize(COLOURS).save(found[-1], optimize=True)
    return found


def lefts() -> list[int]:
    """Where each frame begins, in pixels."""
    return [sum(WIDTHS[:i]) + GAP * i for i in range(len(WIDTHS))]


def iterations(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def photograph_live(run: Path, out: Path, browser: str) -> list[Path]:
    with serving(run, 0, 0.5) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        found = photograph(f"http://127.0.0.1:{server.server_port}/", "live", out, browser)
        server.shutdown()
        thread.join()
    return found


def train_and_photograph(
    root: Path, out: Path, browser: str, after: int
) -> tuple[Path, list[Path]]:
    """The folder of a short run, and pictures of its live report once it had `after` iterations."""
    run = root / "shown"
    words = [sys.executable, "-m", "vla_rl", "train", *SHORT, "--run.root", str(root)]
    with subprocess.Popen(words) as training:
        while iterations(run) < after and training.poll() is None:
            time.sleep(0.2)
        if training.poll() is not None:
            sys.exit(f"the run ended with {training.returncode} before its iteration {after}")
        found = photograph_live(run, out, browser)
    if training.returncode != 0:
        sys.exit(f"the run ended with {training.returncode}")
    return run, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--run", type=Path, help="a run that there is; without it a short one")
    parser.add_argument("--out", type=Path, default=Path("runs/screenshots"))
    parser.add_argument("--after", type=int, default=8, help="iterations before the live picture")
    parser.add_argument("--browser", default="", help="a Chromium; by default the one on the path")
    asked = parser.parse_args()
    wanted = (asked.browser,) if asked.browser else BROWSERS
    browser = next(filter(None, map(shutil.which, wanted)), "")
    if not browser:
        sys.exit(f"no browser: none of {', '.join(wanted)} is on the path; give --browser")
    try:
        for path in photograph_all(asked.run, asked.out, browser, asked.after):
            print(path)
    except UserError as error:
        sys.exit(str(error))


def photograph_all(run: Path | None, out: Path, browser: str, after: int) -> list[Path]:
    """All pictures of `run`, or of a short one."""
    require_writable(out, "folder")
    out.mkdir(parents=True, exist_ok=True)
    found: list[Path] = []
    with tempfile.TemporaryDirectory() as folder:
        if run is None:
            run, found = train_and_photograph(Path(folder), out, browser, after)
        report = write_report(run, Path(folder) / "report.html")
        return found + photograph(report.as_uri(), "report", out, browser)


if __name__ == "__main__":
    main()
