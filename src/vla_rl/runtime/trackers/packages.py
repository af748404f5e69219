"""Which packages the trackers of a run need: asked before anything heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vla_rl.config.run import AUTO


def packages_of(names: Sequence[str]) -> tuple[str, ...]:
    """The modules that these trackers must have; `auto` needs none. MLflow's own database is there without a server."""
    server = os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http")
    database = ("sqlalchemy", "alembic") if "mlflow" in names and not server else ()
    return (*(name for name in names if name != AUTO), *database)
