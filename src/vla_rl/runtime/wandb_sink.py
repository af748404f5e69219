"""Metrics to Weights & Biases: logged in at the start of a run or not at all, and never a question in the middle."""

from __future__ import annotations

import inspect
import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_rl.runtime.files import read_json, write_text

logger = logging.getLogger(__name__)
_ID_FILE = "wandb_id.txt"


class WandbSink:
    """A Weights & Biases run that goes on under the same id when the run folder is resumed.

    It logs in when it is made. Without a key, or where the server cannot be reached, it keeps everything in
    <run>/wandb and says how to upload it; WANDB_MODE, where it is set, decides instead.
    """

    def __init__(self, folder: Path) -> None:
        """Begin or go on with the run of `folder`, whose config.json goes along. Raises what the library raises."""
        import wandb  # pyright: ignore[reportMissingImports]

        id_file = folder / _ID_FILE
        run_id = id_file.read_text().strip() if id_file.exists() else secrets.token_hex(8)
        write_text(id_file, run_id + "\n")
        self._arguments = {
            "project": "vla-rl",
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
