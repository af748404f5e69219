"""The pictures of the report are of the report, at both widths."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import screenshots
from builders.example_run import make_run
from vla_rl.report.page.write import write_report


@pytest.mark.slow
def test_a_report_is_photographed_at_both_widths(chromium: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=["reach"], iterations=4, initial_states=range(3))
    page = write_report(run, tmp_path / "report.html").as_uri()
    finished = screenshots.photograph(page, "report", tmp_path, chromium)
    live = screenshots.photograph_live(run, tmp_path, chromium)
    assert [path.name for path in finished] == ["report-1200.png", "report-420.png"]
    for width, path in zip(screenshots.WIDTHS * 2, finished + live, strict=True):
        with Image.open(path) as picture:
            assert picture.size == (width, screenshots.HEIGHT)
            assert len(picture.convert("RGB").getcolors(10**6) or ()) > 8, "it is blank"
    assert live[0].read_bytes() != finished[0].read_bytes()  # its first line says that it is live
