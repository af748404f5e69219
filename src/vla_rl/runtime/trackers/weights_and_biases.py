"""Metrics to Weights & Biases: logged in at the start of a run or not at all, and never a question in the middle."""

from __future__ import annotations

import inspect
import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_rl.runtime.files import read_json
from vla_rl.runtime.trackers.tracker import PROJECT, recall, remember

logger = logging.getLogger(__name__)
_OLD_ID_FILE = "wandb_id.txt"


class WandbRun:
    """A Weights & Biases run that goes on under the same id when the run folder is resumed.

    It logs in when it is made. Without a key, or where the server cannot be reached, it keeps everything in
    <run>/wandb and says how to upload it; WANDB_MODE, where it is set, decides instead.
    """

    forgets = False

    def __init__(self, folder: Path) -> None:
        """Begin or go on with the run of `folder`, whose config.json goes along. Raises what the library raises."""
        import wandb  # pyright: ignore[reportMissingImports]

        self._library: Any = wandb
        self.begun, run_id = _run_id(folder)
        self._arguments = {
            "project": os.environ.get("WANDB_PROJECT") or PROJECT,
            "name": folder.name,
            "id": run_id,
            "resume": "allow",
            "dir": str(folder),
            "config": read_json(folder / "config.json"),
        }
        with _nobody_to_ask():
            self._run: Any = self._begin(wandb)

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=iteration)

    def attach(self, iteration: int, name: str, files: Sequence[Path]) -> None:
        shown: dict[str, Any] = {}
        for file in files:
            if file.suffix == ".mp4":
                shown[f"{name}/{file.stem}"] = self._library.Video(str(file), format="mp4")
            else:
                self._run.save(str(file), base_path=str(file.parent.parent), policy="now")
        if shown:
            self._run.log(shown, step=iteration)

    def rewind(self, iteration: int) -> None:
        """W&B keeps the first value of a step: the repeated iterations are equal anyway."""

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None

    def _begin(self, wandb: Any) -> Any:
        if os.environ.get("WANDB_MODE"):
            return wandb.init(**self._arguments)
        try:
            if not _log_in(wandb):
                return self._offline(wandb, "there is no API key")
            return wandb.init(**self._arguments)
        except Exception as error:
            return self._offline(wandb, str(error) or type(error).__name__)

    def _offline(self, wandb: Any, why: str) -> Any:
        logger.warning(
            "W&B is offline: %s. The run is kept in %s/wandb; upload it later with `wandb login` and "
            "`wandb sync --sync-all`",
            why, self._arguments["dir"],
        )  # fmt: skip
        return wandb.init(**self._arguments, mode="offline")


def _run_id(folder: Path) -> tuple[bool, str]:
    """Whether the run has an id already, and the id."""
    old = folder / _OLD_ID_FILE
    known = recall(folder, "wandb").get("id") or (old.read_text().strip() if old.is_file() else "")
    run_id = known or secrets.token_hex(8)
    remember(folder, "wandb", id=run_id)
    return bool(known), run_id


def _log_in(wandb: Any) -> bool:
    """Whether there is a key: the environment's, or that of an earlier `wandb login`."""
    knows_prompt = "prompt" in inspect.signature(wandb.login).parameters
    return bool(wandb.login(**({"prompt": False} if knows_prompt else {})))


@contextmanager
def _nobody_to_ask() -> Iterator[None]:
    """The library asks for a key where standard input is a terminal: a run that waits for an answer trains nothing."""
    terminal = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = terminal
