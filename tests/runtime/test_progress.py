"""Progress: plain lines in a pipe, a bar on a terminal, a log that knows its place."""

from __future__ import annotations

import io
import logging
import re
import sys

import pytest
from rich.console import Console

from vla_rl.runtime import progress as module
from vla_rl.runtime.progress import progress, set_up_logging, share_progress


def test_in_a_pipe_it_prints_a_line_each_time_it_is_due(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("SFT", total=4, every=0.0) as bar:
        for step in range(4):
            bar.advance(1, loss=1 / (step + 1), task="door")
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == ""
    assert len(lines) == 4
    assert lines[1].startswith("SFT 2/4 (50%)  ")
    assert lines[1].endswith("loss 0.5  task door")
    assert " left" in lines[1]
    assert " left" not in lines[3]


def test_between_due_times_it_is_silent_and_the_last_state_is_always_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress("PPO", total=100, every=3600.0, start=40) as bar:
        for _ in range(30):
            bar.advance(2, success=0.5)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("PPO 100/100 (100%)")


def test_nothing_done_prints_nothing_and_unknown_totals_have_no_share(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress("idle", total=3):
        pass
    with progress("count") as bar:
        bar.advance(5)
    assert re.fullmatch(r"count 5  0:00 elapsed\n", capsys.readouterr().err)


def test_on_a_terminal_it_draws_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(module, "console", lambda: terminal)
    with progress("SFT", total=4) as bar:
        bar.advance(3, loss=0.25)
        bar.note("epoch 1 is over")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "epoch 1 is over" in text
    assert "3/4" in text
    assert "left" in text
    assert "loss 0.25" in text


def test_a_known_share_gives_percent_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with share_progress("PPO", 0.5, every=1.0) as bar:
        now[0] += 60
        bar.reach(0.75, iteration=7)
    assert capsys.readouterr().err == "PPO 75%  1:00 elapsed  1:00 left  iteration 7\n"


def test_hours_are_written_as_hours() -> None:
    assert [module._clock(s) for s in (5, 65, 3661)] == ["0:05", "1:05", "1:01:01"]


def test_the_log_goes_to_standard_error_and_not_to_the_root_logger(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    package = logging.getLogger("vla_rl")
    before, root_before = (package.handlers[:], package.level, package.propagate), root.handlers[:]
    try:
        set_up_logging()
        set_up_logging()  # twice is once
        logging.getLogger("vla_rl.something").info("hello")
        logging.getLogger("vla_rl.something").debug("too much")
        printed = capsys.readouterr()
        assert printed.err == "INFO: hello\n"
        assert printed.out == ""
        assert root.handlers == root_before
    finally:
        package.handlers[:], package.level, package.propagate = before
    assert sys.stderr is not None
