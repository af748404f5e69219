"""Weights & Biases: logged in at the start or offline, never a question, never the end of a run.

The library is not needed here: what it does at its edge is played by a module of the same name.
"""

from __future__ import annotations

import importlib.machinery
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from vla_rl.config import TrainConfig
from vla_rl.runtime.run_folder import Run


class Library(types.ModuleType):
    """What `wandb` does where there is a key or none, and a server or none."""

    def __init__(self, key: bool, server: bool, prompts: bool) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self._key, self._server = key, server
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, float], int]] = []
        self.asked_a_person = False
        # versions before 0.31 know no such parameter, and ask where standard input is a terminal
        self.login = self._login_now if prompts else self._login_before

    def _login_now(self, key: str | None = None, prompt: bool = True) -> bool:
        self.asked_a_person |= prompt and not self._key and sys.stdin.isatty()
        return self._key

    def _login_before(self, key: str | None = None) -> bool:
        self.asked_a_person |= not self._key and sys.stdin.isatty()
        if not self._key:
            raise RuntimeError("api_key not configured (no-tty)")
        return True

    def init(self, **arguments: Any) -> Any:
        offline = arguments.get("mode") == "offline"
        if not offline and not self._server:
            raise ConnectionError("the server does not answer")
        self.begun.append(arguments)
        return types.SimpleNamespace(
            log=lambda metrics, step: self.logged.append((metrics, step)), finish=lambda: None
        )


class Terminal:
    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.delenv("WANDB_MODE", raising=False)


@pytest.mark.usefixtures("at_a_terminal")
@pytest.mark.parametrize("prompts", [True, False])
@pytest.mark.parametrize(
    ("key", "server", "why"),
    [(True, True, ""), (False, True, "api|key"), (True, False, "the server does not answer")],
)
def test_it_is_decided_at_the_start_and_nobody_is_asked(
    key: bool,
    server: bool,
    prompts: bool,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    library = Library(key, server, prompts)
    monkeypatch.setitem(sys.modules, "wandb", library)
    caplog.set_level(logging.WARNING, logger="vla_rl")
    with Run.create(tmp_path, "first", TrainConfig(), [], trackers=["wandb"]) as run:
        (begun,) = library.begun  # before anything is logged
        assert (begun.get("mode") == "offline") == bool(why)
        assert begun["config"]["env"]["suite"] == TrainConfig().env.suite
        run.log(1, {"loss": 0.5})
    assert library.logged == [({"loss": 0.5}, 1)]
    assert not library.asked_a_person
    assert isinstance(sys.stdin, Terminal)
    assert ("upload it later" in caplog.text) == bool(why)
    with Run.open(tmp_path / "first", [], trackers=["wandb"]):
        assert library.begun[1]["id"] == begun["id"]  # the same run there


def test_the_users_own_choice_of_mode_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(key=False, server=True, prompts=True)
    monkeypatch.setitem(sys.modules, "wandb", library)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    Run.create(tmp_path, "first", TrainConfig(), [], trackers=["wandb"]).close()
    assert "mode" not in library.begun[0]


def test_a_library_that_fails_altogether_costs_its_copy_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = types.ModuleType("wandb")
    broken.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", broken)
    caplog.set_level(logging.WARNING, logger="vla_rl")
    with Run.create(tmp_path, "first", TrainConfig(), [], trackers=["wandb"]) as run:
        run.log(1, {"loss": 0.5})
    assert "W&B cannot be used" in caplog.text
    assert (run.folder / "metrics.jsonl").read_text().count("\n") == 1
