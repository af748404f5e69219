"""Success against the updates of PPO, of a run that was evaluated on its way."""

from __future__ import annotations

from pathlib import Path

from vla_rl.config import UserError
from vla_rl.report.figures.saving import require_figure
from vla_rl.report.figures.scaling import draw_training
from vla_rl.report.run_data import read_run
from vla_rl.runtime.run_folder import training_run


def training_curve(run: Path, out: Path | None = None) -> Path:
    """Draw a run's evaluated success against the steps of training, in the same style; returns the PNG's path.

    out: the PNG; by default curve.png in the run folder.

    UserError if the run was evaluated fewer than two times.
    """
    out = require_figure(out or run / "curve.png")
    if not draw_training(read_run(training_run(run)), out):
        raise UserError(
            f"{run} holds fewer than two evaluations: expected eval/iteration-*.json. Train with run.eval_every, "
            "the number of iterations between them"
        )
    return out
