"""Pictures of success that grows: with the candidates at test time, and with the steps of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.functional.scaling import LogFit
from vla_rl.report.figures.saving import save_figure
from vla_rl.report.run_data import Rate, Run
from vla_rl.runtime.extras import need

COLORS = {
    "reward-model": "C0", "reward-model-alone": "C9", "simulator": "C2", "success": "C1", "random": "C7",
    "trajectories": "C4",
}  # fmt: skip
PLAIN_STYLES = ("--", ":")


@dataclass(frozen=True)
class ScalingCurve:
    """One chooser: success with each number of candidates, and the line through it."""

    chooser: str
    label: str
    rates: dict[int, Rate]  # by N
    fit: LogFit | None


def draw_scaling(
    curves: Sequence[ScalingCurve], plain: Mapping[str, Rate], title: str, path: Path
) -> None:
    """Success against N, logarithmic, with 95 % intervals and fitted lines; plain play as level lines. A PNG."""
    sizes = sorted({size for curve in curves for size in curve.rates})

    def draw(axes: Any) -> None:
        axes.set_xscale("log", base=2)
        for style, (label, rate) in zip(PLAIN_STYLES, plain.items(), strict=False):
            axes.axhline(100 * rate.rate, color="0.4", linestyle=style, linewidth=1.2, label=label)
        for place, curve in enumerate(curves):
            color = COLORS.get(curve.chooser, f"C{place}")
            # so that intervals do not hide each other
            shift = 1.03 ** (place - (len(curves) - 1) / 2)
            xs = np.array(sorted(curve.rates), dtype=np.float64) * shift
            _points(axes, xs, [curve.rates[n] for n in sorted(curve.rates)], color, curve.label)
            if curve.fit is not None:
                ends = np.array([min(curve.rates), max(curve.rates)], dtype=np.float64)
                heights = [100 * curve.fit.at(n) for n in ends]
                axes.plot(ends, heights, color=color, alpha=0.6, linewidth=1.2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("candidates N")

    _figure(draw, title, path)


def draw_training(run: Run, path: Path) -> bool:
    """Success against the steps of training, in the same style; false if the run was evaluated only once or never."""
    steps = training_rates(run)
    if len(steps) < 2:
        return False
    turns = run.metrics.get("rollout/turns")
    practised = f", {np.nansum(turns):,.0f} turns of practice in all" if turns is not None else ""

    def draw(axes: Any) -> None:
        xs = np.array(sorted(steps), dtype=np.float64)
        rates = [steps[int(x)] for x in xs]
        axes.plot(xs, [100 * rate.rate for rate in rates], color="C0", alpha=0.6, linewidth=1.2)
        _points(axes, xs, rates, "C0", "greedy")
        axes.set_xlabel(f"PPO updates{practised}")

    _figure(draw, f"Success against RL steps: {run.folder.name}", path)
    return True


def training_rates(run: Run) -> dict[int, Rate]:
    """Greedy success by the number of PPO updates: before training, in between, after."""
    rates = dict(run.during)
    before, after = (
        run.evaluations.get(("before", "greedy")),
        run.evaluations.get(("after", "greedy")),
    )
    if before is not None:
        rates[0] = before.overall
    if after is not None and len(run.metrics):
        rates[int(run.metrics.index[-1])] = after.overall
    return rates


def _points(axes: Any, xs: Any, rates: Sequence[Rate], color: str, label: str) -> None:
    heights = np.array([100 * rate.rate for rate in rates])
    below = heights - [100 * rate.low for rate in rates]
    above = np.array([100 * rate.high for rate in rates]) - heights
    axes.errorbar(
        xs, heights, yerr=np.clip([below, above], 0, None), fmt="o", color=color, capsize=3,
        markersize=5, linewidth=1.2, label=label,
    )  # fmt: skip


def _figure(draw: Callable[[Any], None], title: str, path: Path) -> None:
    need("matplotlib", purpose="a plot")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    draw(axes)
    axes.set(ylim=(0, 103), ylabel="success, % (95 % intervals)")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    save_figure(figure, path, dpi=130)
    plt.close(figure)
