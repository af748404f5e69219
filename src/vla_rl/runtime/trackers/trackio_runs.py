"""Metrics to trackio: on this machine, or in a Space of the Hugging Face hub if its own settings say so."""

from __future__ import annotations

import os
import secrets
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from vla_rl.runtime.files import read_json
from vla_rl.runtime.trackers.tracker import PROJECT, flat, recall, remember


class TrackioRun:
    """A trackio run that goes on under the same name when the run folder is resumed.

    The name is the folder's with four digits: trackio tells runs by it, and two folders may be called alike. It lies
    where `trackio show` looks: TRACKIO_DIR, else trackio's folder in the Hugging Face cache. TRACKIO_SPACE_ID sends it
    to a Space.
    """

    forgets = False

    def __init__(self, folder: Path) -> None:
        """Begin or go on with the run of `folder`. Raises what the library raises."""
        import trackio  # pyright: ignore[reportMissingImports]

        self._library: Any = trackio
        noted = recall(folder, "trackio")
        self.begun = "name" in noted
        name = noted.get("name") or f"{folder.name}-{secrets.token_hex(2)}"
        project = noted.get("project") or os.environ.get("TRACKIO_PROJECT") or PROJECT
        with _to_standard_error():
            self._run: Any = trackio.init(
                project=project,
                name=name,
                config=flat(read_json(folder / "config.json")),
                resume="allow",
                embed=False,
            )
        remember(folder, "trackio", name=name, project=project)

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        with _failing():
            self._run.log({name: float(value) for name, value in metrics.items()}, step=iteration)

    def attach(self, iteration: int, name: str, files: Sequence[Path]) -> None:
        shown: dict[str, Any] = {}
        for file in files:
            if file.suffix == ".mp4":
                shown[f"{name}/{file.stem}"] = self._library.Video(str(file), format="mp4")
        if shown:
            with _failing():
                self._run.log(shown, step=iteration)

    def rewind(self, iteration: int) -> None:
        """A step's value cannot be taken back."""

    def close(self) -> None:
        if self._run is not None:
            with _to_standard_error():
                self._run.finish()
            self._run = None


@contextmanager
def _to_standard_error() -> Iterator[None]:
    """The library prints; standard output is for what the command says."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def _failing() -> Iterator[None]:
    """The library warns where a row is lost, over and over; as an error it is said once."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
