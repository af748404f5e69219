"""The report in a real browser, as a desktop and as a phone show it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from builders.example_run import MT5, make_run
from vla_rl.report.page.write import write_report

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium found: the report is not opened in a browser"
)

# Runs in the copy of the page that is tested: waits for images and videos, then tells its parent.
PROBE = """
const began = Date.now();
function tell() {
  const videos = [...document.querySelectorAll("video")], images = [...document.querySelectorAll("img")];
  const ready = videos.every((v) => v.readyState >= 2) && images.every((i) => i.complete);
  if (!ready && Date.now() - began < 20000) return setTimeout(tell, 100);
  const closed = document.documentElement.scrollWidth;
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  const plot = document.querySelector(".plot"), box = plot && plot.getBoundingClientRect();
  if (plot) plot.dispatchEvent(new PointerEvent("pointermove", {clientX: box.right - 1, clientY: box.top + 5}));
  const tip = document.querySelector(".tip:not([hidden])");
  parent.postMessage({
    width: innerWidth, closed, opened: document.documentElement.scrollWidth,
    sticking: [...document.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1
      && !e.closest(".scroll, pre")).map((e) => e.tagName + "." + e.getAttribute("class")),
    videos: videos.map((v) => [v.readyState, v.videoWidth, v.duration]),
    images: images.map((i) => i.naturalWidth),
    fetched: performance.getEntriesByType("resource").map((e) => e.name).filter((n) => !n.startsWith("data:")),
    tip: tip ? tip.innerText : "", button: document.querySelector("#play-all")?.innerText ?? "",
    ink: getComputedStyle(document.body).color, text: document.body.innerText,
  }, "*");
}
addEventListener("load", tell);
"""


def browse(
    page: Path, folder: Path, widths: tuple[int, ...] = (1280, 390)
) -> dict[int, dict[str, Any]]:
    """Open the page in frames of these widths and return what the probe found in each."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"script-src 'sha256-[^']+'", "script-src 'unsafe-inline'", text, count=1)
    copy = folder / "copy.html"
    copy.write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    frames = "".join(
        f'<iframe src="copy.html" style="width:{w}px;height:900px;border:0"></iframe>'
        for w in widths
    )
    listen = (
        "const found = []; addEventListener('message', (e) => { found.push(e.data);"
        "document.querySelector('#found').textContent = JSON.stringify(found); });"
    )
    outer = folder / "outer.html"
    outer.write_text(
        f'<meta charset="utf-8"><script>{listen}</script><pre id="found"></pre>{frames}'
    )
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=30000", "--dump-dom", outer.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match is not None
    assert match[1], f"the page told nothing: {done.stderr[-2000:]}"
    return {probe["width"]: probe for probe in json.loads(html.unescape(match[1]))}


@pytest.fixture(scope="module")
def seen(example: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("browser")
    return browse(write_report(example, folder / "report.html"), folder)


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out_sideways(seen: dict[int, dict[str, Any]], width: int):
    assert seen[width]["closed"] <= width
    assert seen[width]["opened"] <= width, "with all folds open"
    assert seen[width]["sticking"] == []


@pytest.mark.parametrize("width", [1280, 390])
def test_videos_and_images_decode(seen: dict[int, dict[str, Any]], width: int):
    videos = seen[width]["videos"]
    assert len(videos) == 4 * len(MT5)
    for ready, pixels, seconds in videos:
        assert ready >= 2
        assert pixels == 64
        assert seconds >= 6 / 5
    assert len(seen[width]["images"]) == 4 * len(MT5)
    assert all(pixels == 6 * 64 + 5 * 2 for pixels in seen[width]["images"])


@pytest.mark.parametrize("width", [1280, 390])
def test_key_numbers_are_visible_and_nothing_is_fetched(
    seen: dict[int, dict[str, Any]], width: int
):
    text = re.sub(r"\s+", " ", seen[width]["text"])
    for words in (
        "36.0% → 80.0%", "+44.0 points [+36.0, +52.0]", "8,851", "10 min 5 s", "drawer-open-v3",
        "54 of 150 [28.8%, 43.9%]", "Training dynamics", "Configuration",
    ):  # fmt: skip
        assert words in text
    assert seen[width]["fetched"] == []


def test_the_script_runs_under_its_policy(example: Path, tmp_path: Path):
    """The page's own script is allowed by its hash: a changed one would not run."""
    page = write_report(example, tmp_path / "report.html")
    found = browse(page, tmp_path, (800,))[800]
    assert found["tip"].startswith("iteration 68")
    assert "mean of the last 6 iterations" in found["tip"]
    assert found["button"] == "Play all"
    digest = re.search(r"script-src '(sha256-[^']+)'", page.read_text(encoding="utf-8"))
    assert digest is not None
    script = re.search(r"<script>(.*?)</script>", page.read_text(encoding="utf-8"), re.DOTALL)
    assert script is not None
    expected = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert digest[1] == f"sha256-{expected}"


def test_long_names_do_not_break_the_page(tmp_path: Path):
    tasks = ["a" * 90, "a-long-name-" * 8, "peg-unplug-side-v3"]
    folder = make_run(
        tmp_path / ("run" * 30),
        tasks=tasks,
        iterations=3,
        videos_per_task=1,
        initial_states=range(3),
    )
    seen = browse(write_report(folder, tmp_path / "report.html"), tmp_path)
    for width, found in seen.items():
        assert found["opened"] <= width
        assert found["sticking"] == []
