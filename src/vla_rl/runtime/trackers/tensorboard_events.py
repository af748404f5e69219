"""Metrics as TensorBoard's event files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_rl.runtime.files import read_json


class TensorBoardEvents:
    """Event files in <run>/tensorboard; after a rewind TensorBoard hides the steps that came later.

    The configuration and the evaluations go along as text. TensorBoard takes no video files and no pages.
    """

    forgets = True

    def __init__(self, folder: Path) -> None:
        self._run, self._folder = folder, folder / "tensorboard"
        self.begun = self._folder.is_dir()
        self._writer: Any = None

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        writer = self._writer or self._open(None)
        for name, value in metrics.items():
            writer.add_scalar(name, float(value), iteration)
        writer.flush()

    def attach(self, iteration: int, name: str, files: Sequence[Path]) -> None:
        for file in files:
            if file.suffix == ".json":
                result = read_json(file)
                shown = {key: result.get(key) for key in ("suite", "split", "overall", "tasks")}
                self._text(name, shown, iteration)

    def rewind(self, iteration: int) -> None:
        self.close()
        self._open(iteration + 1)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, purge_step: int | None) -> Any:
        # imported at the first log: it costs seconds, and needs torch
        from torch.utils.tensorboard.writer import SummaryWriter

        new = not self._folder.is_dir()
        self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)
        if new:
            self._text("config", read_json(self._run / "config.json"), 0)
        return self._writer

    def _text(self, name: str, value: Any, step: int) -> None:
        writer = self._writer or self._open(None)
        lines = json.dumps(value, indent=2).splitlines()
        writer.add_text(
            name, "\n".join(f"    {line}" for line in lines), step
        )  # as Markdown's code
