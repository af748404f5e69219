"""The sections that show training over time: learning curves, curriculum, dynamics, fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vla_rl.report.page.charts import (
    Axis,
    Guide,
    Line,
    Values,
    color_of,
    heat_chart,
    line_chart,
    number,
    percent,
    stacked_chart,
)
from vla_rl.report.page.summary import (
    TIME_PARTS,
    counted,
    duration,
    smooth_window,
    smoothed,
    training_seconds,
)
from vla_rl.report.run_data import Run

_WEIGHTED = (
    "Among the episodes a task weighs as much as the curriculum plays it; in the mean over tasks all that have been "
    "played weigh alike."
)
_MOST_STACKED = 10  # tasks that can still be told apart by colour


class _Plot(NamedTuple):
    title: str
    curves: Sequence[tuple[str, str]]  # (metric, label)
    unit: str = ""
    zero: bool = True
    note: str = ""
    warmup: bool = False  # shade the iterations in which the policy cannot move


_DYNAMICS = (
    _Plot(
        "Episode length", [("rollout/episode_length", "turns")], "turns",
        note="Shorter is better once tasks are solved.",
    ),
    _Plot(
        "Return",
        [("rollout/return_sparse", "sparse (success)"), ("rollout/return_dense", "dense (shaping)")],
        note="Only the sparse return is the goal.",
    ),
    _Plot(
        "Entropy of action tokens", [("losses/entropy", "nats per token")], "nats",
        note="How much the policy still tries out.",
    ),
    _Plot(
        "Entropy of play", [("rollout/entropy", "nats per token")], "nats",
        note="At the temperature of practice; 0.4 to 0.6 was best where it was measured.",
    ),
    _Plot(
        "KL of one update", [("losses/approx_kl_k1", "k1"), ("losses/approx_kl_k3", "k3")],
        note="How far each iteration moved the policy; estimators after Schulman.", warmup=True,
    ),
    _Plot(
        "KL to the initial policy", [("losses/kl_reference", "k3")],
        note="How far it has moved in all.", warmup=True,
    ),
    _Plot("Clip fraction", [("losses/clip_fraction", "share of clipped ratios")], warmup=True),
    _Plot(
        "Importance ratio", [("losses/ratio_mean", "mean"), ("losses/ratio_max", "largest")],
        zero=False,
    ),
    _Plot(
        "Critic: explained variance", [("losses/explained_variance", "explained variance")],
        note="1 is a perfect critic, 0 one that knows no more than the mean.",
    ),
    _Plot("Critic: value loss", [("losses/value", "value loss")]),
    _Plot("Policy loss", [("losses/policy", "policy loss")], zero=False),
    _Plot(
        "Gradient norms",
        [("losses/grad_norm_policy", "policy"), ("losses/grad_norm_critic", "critic")],
        note="Before clipping.",
    ),
    _Plot("Policy learning rate", [("losses/learning_rate", "learning rate")]),
    _Plot(
        "Sampler against learner", [("losses/logprob_max_difference", "largest log-prob difference")],
        note="At the first minibatch of every iteration; must stay near zero.",
    ),
    _Plot("Speed", [("speed/turns_per_second", "turns per second")], "turns/s"),
    _Plot("Memory", [("memory/main_mb", "main process"), ("memory/workers_mb", "simulators")], "MB"),
)  # fmt: skip


def learning_curves(run: Run) -> str:
    """Training success of all episodes, then of every task."""
    success, smooth = run.metrics.get("rollout/success_rate"), smoothed(run, "rollout/success_rate")
    parts: list[str] = []
    if success is not None and smooth is not None:
        window = smooth_window(len(run.metrics))
        parts.append(
            line_chart(
                "Success while practising, all tasks",
                run.metrics.index,
                [
                    Line("episodes of one iteration", success, "after", "faint"),
                    Line(f"episodes, mean of the last {window} iterations", smooth, "after"),
                    *_mean_over_tasks(run),
                    *_evaluated_during(run),
                ],
                Axis(percent=True, height=260),
                guides=_evaluated(run),
                band=_warmup(run),
                reading=percent(_last(smooth)),
                note=f"{_WEIGHTED} {_pace(run)}"
                if len(run.metrics.under("success/")) > 1
                else _pace(run),
            )
        )
    tasks = run.metrics.under("success/")
    if len(tasks) > 1:
        charts = [_task_curve(run, task, values) for task, values in tasks.items()]
        parts.append(f'<h3>Task by task</h3><div class="charts small">{"".join(charts)}</div>')
    return "".join(parts)


def _mean_over_tasks(run: Run) -> list[Line]:
    """Each task's recent success with the same weight; of one task it would be the same line again."""
    values = run.metrics.get("curriculum/success_mean")
    if values is None or len(run.metrics.under("success/")) < 2:
        return []
    return [Line("mean over tasks", values, "c2")]


def curriculum(run: Run) -> str:
    """Which tasks were practised when."""
    shares = run.metrics.under("curriculum/p/")
    if not shares:
        return ""
    x = run.metrics.index
    lines = [Line(task, values, color_of(i)) for i, (task, values) in enumerate(shares.items())]
    axis = Axis(percent=True, height=220)
    title = "Probability of each task"
    if len(lines) > _MOST_STACKED:
        parts = [
            heat_chart(
                title, x, lines, note="Each row is a task, a stronger colour means more practice."
            )
        ]
    else:
        parts = [stacked_chart(title, x, lines, axis)]
    small: list[str] = []
    entropy = run.metrics.get("curriculum/entropy")
    if entropy is not None:
        uniform = math.log(len(shares))
        small.append(
            line_chart(
                "Entropy of the choice of tasks", x, [Line("entropy", entropy, "c0")],
                guides=[Guide("all tasks alike", uniform, "quiet")] if uniform else [],
                reading=f"{number(_last(entropy))} nats",
            )
        )  # fmt: skip
    known = run.metrics.under("curriculum/success/")
    if known and len(known) <= _MOST_STACKED:
        colors = {line.label: line.color for line in lines}
        seen = [Line(t, v, colors.get(t, "quiet")) for t, v in known.items()]
        small.append(
            line_chart("Success the curriculum saw", x, seen, Axis(percent=True), legend=False)
        )
    small += _starts(run)
    if small:
        parts.append(f'<div class="charts two">{"".join(small)}</div>')
    return "".join(parts)


def _starts(run: Run) -> list[str]:
    """Episodes that began at a state of a demonstration: where, and how many of them succeeded."""
    charts: list[str] = []
    for prefix, title, note in (
        (
            "starts/success/",
            "Success from demonstrations' states",
            "Never counted as the task's own success.",
        ),
        (
            "starts/fraction/",
            "Where they start",
            "Share of the demonstration that is done beforehand; 0 is the task itself.",
        ),
    ):
        found = run.metrics.under(prefix)
        if found:
            lines = [
                Line(task, values, color_of(i)) for i, (task, values) in enumerate(found.items())
            ]
            charts.append(
                line_chart(title, run.metrics.index, lines, Axis(percent=True), note=note)
            )
    return charts


def ranks(run: Run) -> str:
    """For each of several ranks where its seconds went, and how much it played."""
    numbers = sorted(
        {int(name.split("/")[0]) for name in run.ranks.columns if name.split("/")[0].isdigit()}
    )
    charts: list[str] = []
    for rank in numbers:
        own = run.ranks.under(f"{rank}/")
        parts = [
            Line(part, own[part], color_of(i)) for i, part in enumerate(TIME_PARTS) if part in own
        ]
        if not parts:
            continue
        turns = own.get("turns")
        played = f"{np.nansum(turns):,.0f} turns played" if turns is not None else ""
        whole = sum(float(np.nansum(line.values)) for line in parts)
        charts.append(
            stacked_chart(
                f"Rank {rank}, seconds per iteration", run.ranks.index, parts, Axis(unit="s", height=140),
                reading=duration(whole), note=played,
            )
        )  # fmt: skip
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def dynamics(run: Run) -> str:
    """What PPO did inside, and where the time went."""
    charts = [chart for plot in _DYNAMICS if (chart := _dynamics_chart(run, plot))]
    split = _time_split(run)
    errors = run.metrics.get("rollout/infrastructure_errors")
    if errors is not None and counted(errors):
        charts.append(
            line_chart(
                "Simulator failures so far", run.metrics.index, [Line("failures", errors, "c1")],
                reading=number(_last(errors)), note="Restarted and retried, never counted as failed episodes.",
            )
        )  # fmt: skip
    grid = f'<div class="charts">{"".join(charts)}</div>' if charts else ""
    return split + grid


def fine_tuning(run: Run) -> str:
    """Loss of the supervised fine-tuning that came first."""
    kinds = (("sft/loss", "training", "c0"), ("sft/validation_loss", "validation", "c1"))
    lines = [
        Line(label, values, color)
        for key, label, color in kinds
        if (values := run.sft.get(key)) is not None
    ]
    if not lines:
        return ""
    axis = Axis(height=200, index="epoch")
    title = "Cross-entropy on the expert's action tokens, by epoch"
    return line_chart(title, run.sft.index, lines, axis, reading=_readings(lines, ""))


def _dynamics_chart(run: Run, plot: _Plot) -> str:
    lines = [
        Line(label, values, color_of(i))
        for i, (key, label) in enumerate(plot.curves)
        if (values := run.metrics.get(key)) is not None
    ]
    if not lines:
        return ""
    axis = Axis(zero=plot.zero, unit=plot.unit)
    return line_chart(
        plot.title, run.metrics.index, lines, axis,
        band=_warmup(run) if plot.warmup else None,
        reading=_readings(lines, plot.unit), note=plot.note,
    )  # fmt: skip


def _time_split(run: Run) -> str:
    parts = [
        Line(part, values, color_of(i))
        for i, part in enumerate(TIME_PARTS)
        if (values := run.metrics.get(f"time/{part}")) is not None and np.nansum(values) > 0
    ]
    if not parts:
        return ""
    totals = {line.label: float(np.nansum(line.values)) for line in parts}
    whole = sum(totals.values()) or 1.0
    shares = ", ".join(f"{name} {percent(spent / whole, 0)}" for name, spent in totals.items())
    return stacked_chart(
        "Where the time went, seconds per iteration", run.metrics.index, parts,
        Axis(unit="s", height=180), reading=duration(whole), note=f"In all: {shares}.",
    )  # fmt: skip


def _task_curve(run: Run, task: str, values: Values) -> str:
    smooth = smoothed(run, f"success/{task}")
    assert smooth is not None, "under() returns columns that hold numbers"
    lines = [
        Line("one iteration", values, "after", "faint"),
        Line("moving average", smooth, "after"),
    ]
    return line_chart(
        task, run.metrics.index, lines, Axis(percent=True, height=110),
        guides=_evaluated(run, task), reading=percent(_last(smooth), 0), legend=False,
    )  # fmt: skip


def _evaluated(run: Run, task: str | None = None) -> list[Guide]:
    """Evaluated success as reference lines: sampled where known, since training samples its actions."""
    guides: list[Guide] = []
    for stage in ("before", "after"):
        evaluation = run.evaluations.get((stage, "sampled")) or run.evaluations.get(
            (stage, "greedy")
        )
        if evaluation is None:
            continue
        rate = evaluation.overall if task is None else evaluation.tasks.get(task)
        if rate is not None and rate.episodes:
            label = f"evaluated {stage} ({evaluation.mode})"
            guides.append(Guide(label, rate.rate, "before" if stage == "before" else "c0"))
    return guides


def _evaluated_during(run: Run) -> list[Line]:
    """Evaluations between iterations as dots, each at the last iteration that it follows."""
    values = np.full(len(run.metrics), np.nan)
    for iteration, rate in run.during.items():
        place = int(np.searchsorted(run.metrics.index, iteration, side="right")) - 1
        if place >= 0:
            values[place] = rate.rate
    known = bool(np.isfinite(values).any())
    return [Line("evaluated meanwhile (greedy)", values, "c3", "dots")] if known else []


def _warmup(run: Run) -> tuple[float, float, str] | None:
    """Iterations in which only the critic learned, by config; not known if it waited for the critic."""
    length = run.setting("ppo.critic_warmup")
    if (
        not isinstance(length, int)
        or length < 1
        or run.setting("ppo.critic_warmup_until_explained")
    ):
        return None
    first = float(run.metrics.index[0])
    if first > 1 or len(run.metrics) <= length:
        return None
    return first, first + length, "critic warm-up"


def _pace(run: Run) -> str:
    seconds, count = training_seconds(run), len(run.metrics)
    if not math.isfinite(seconds):
        return "Horizontal axis: iterations."
    return f"Horizontal axis: iterations; {count} of them took {duration(seconds)}, {number(seconds / count)} s each."


def _last(values: Values) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else math.nan


def _readings(lines: Sequence[Line], unit: str) -> str:
    """The last values, as the corner of a chart shows them."""
    return " · ".join(number(_last(line.values)) for line in lines) + (f" {unit}" if unit else "")
