"""Metrics to MLflow: a server, or a database or folder of files on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_rl.runtime.files import read_json
from vla_rl.runtime.provenance import git_revision
from vla_rl.runtime.trackers.tracker import PROJECT, flat, recall, remember

_LONGEST_PARAMETER = 500
"""Characters that every version and store of MLflow takes."""
_PARAMETERS_AT_ONCE = 100
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""A server that is away is noticed within a minute; by its own settings the library waits for many."""


class MlflowRun:
    """An MLflow run that goes on under the same id when the run folder is resumed.

    It lies where MLflow itself would put it: MLFLOW_TRACKING_URI, else mlflow.db in the current folder. A resumed run
    goes back to where it began, whatever the folder is then.
    """

    forgets = False

    def __init__(self, folder: Path) -> None:
        """Begin or go on with the run of `folder`. Raises what the library raises."""
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        import mlflow  # pyright: ignore[reportMissingImports]

        for speaker in ("alembic", "mlflow.store.db.utils"):  # they tell of every table
            logging.getLogger(speaker).setLevel(logging.WARNING)
        noted = recall(folder, "mlflow")
        where = os.environ.get("MLFLOW_TRACKING_URI") or noted.get("uri")
        self._client: Any = mlflow.MlflowClient(tracking_uri=where or mlflow.get_tracking_uri())
        self.begun = "run" in noted
        self._id = noted.get("run") or self._create(folder)
        remember(folder, "mlflow", run=self._id, uri=self._client.tracking_uri)
        self._client.update_run(self._id, status="RUNNING")

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]
        from mlflow.utils.time import get_current_time_millis  # pyright: ignore

        now = get_current_time_millis()
        several = [Metric(name, float(v), now, iteration) for name, v in metrics.items()]
        for first in range(0, len(several), 1000):  # more are refused
            self._client.log_batch(self._id, metrics=several[first : first + 1000])

    def attach(self, iteration: int, name: str, files: Sequence[Path]) -> None:
        for file in files:
            self._client.log_artifact(self._id, str(file), name if file.suffix == ".mp4" else None)

    def rewind(self, iteration: int) -> None:
        """A step's value cannot be taken back."""

    def close(self) -> None:
        self._client.set_terminated(self._id, "FINISHED")

    def _create(self, folder: Path) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        revision = (git_revision() or {}).get("revision")
        tags = {"mlflow.source.git.commit": revision} if revision else {}
        run = self._client.create_run(experiment, run_name=folder.name, tags=tags)
        config = folder / "config.json"
        self._log_parameters(run.info.run_id, flat(read_json(config)))
        self._client.log_artifact(run.info.run_id, str(config))
        return run.info.run_id

    def _log_parameters(self, run: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

        several = [Param(name, str(value)[:_LONGEST_PARAMETER]) for name, value in values.items()]
        for first in range(0, len(several), _PARAMETERS_AT_ONCE):
            self._client.log_batch(run, params=several[first : first + _PARAMETERS_AT_ONCE])
