"""The test-time study as table, JSON and picture: success against N, and what each part of the choice contributes.

Plain play with one candidate is no point of the curves. It is shown greedy and sampled: the candidates of a choice are
sampled, so a choice has to make up for what sampling loses before it gains anything over greedy play.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.config.search import ScalingConfig
from vla_rl.config.serialize import to_json
from vla_rl.functional import paired_difference
from vla_rl.functional.scaling import fit_log
from vla_rl.report.figures.scaling import ScalingCurve, draw_scaling
from vla_rl.report.run_data import Rate
from vla_rl.runtime.files import write_json, write_text

PLAIN = ("greedy", "sampled")
LABELS = {
    "greedy": "no choice, greedy",
    "sampled": "no choice, sampled",
    "reward-model-alone": "reward model alone",
    "success": "success seen ahead alone, else chance",
    "reward-model": "reward model and success seen ahead",
    "simulator": "the simulator's dense reward (privileged)",
    "random": "chance",
    "trajectories": "reward model, among whole trajectories, at equal turns",
}
CONTRIBUTIONS = (
    ("greedy", "sampled", "sampling, without a choice"),
    ("greedy", "random", "chance"),
    ("greedy", "reward-model-alone", "the reward model alone"),
    ("greedy", "success", "success seen ahead alone"),
    ("greedy", "reward-model", "both"),
    ("success", "reward-model", "the reward model beside success seen ahead"),
    ("reward-model-alone", "reward-model", "success seen ahead beside the reward model"),
    ("trajectories", "reward-model-alone", "refinement, at as many simulated turns"),
)
"""(over which, what, its name), with the most candidates."""

Results = Mapping[tuple[str, int], Mapping[str, Any]]
"""Evaluations by (chooser or kind of plain play, N)."""


def write_study(config: ScalingConfig, results: Results) -> Path:
    """scaling.json, scaling.md and scaling.png in the study's folder; returns the path of scaling.md."""
    out, search = Path(config.out), config.search
    outcomes = {key: outcomes_of(result) for key, result in results.items()}
    rates = {key: _rate(result) for key, result in results.items()}
    sizes = sorted({size for name, size in results if name not in PLAIN})
    choosers = list(dict.fromkeys(name for name, _ in results if name not in PLAIN))
    curves: list[ScalingCurve] = []
    for chooser in choosers:
        of_sizes = np.array([outcomes[chooser, size] for size in sizes])
        fit = (
            fit_log(sizes, of_sizes, resamplings=config.bootstrap, seed=config.protocol.seed)
            if len(sizes) > 1
            else None
        )
        own = {size: rates[chooser, size] for size in sizes}
        curves.append(ScalingCurve(chooser, LABELS[chooser], own, fit))
    keys = [(name, 1) for name in PLAIN] + [(name, size) for name in choosers for size in sizes]
    rows = [
        _row(*key, rates[key], results[key], outcomes[key], outcomes["greedy", 1]) for key in keys
    ]
    parts = contributions(outcomes, sizes)
    about = f"{'/'.join(Path(config.checkpoint).parts[-2:])}, mode {search.mode}"
    if search.mode == "lookahead":
        about += f", {search.lookahead} turns ahead, {search.execute} kept"
    if search.mode == "trajectory":
        about += f", {search.trajectory_turns} turns at most"
    if search.mode == "refine":
        about += f", from the {search.refine_from} turn on"
    if search.turn_budget:
        about += f", {search.turn_budget} simulated turns an episode"
    degrees = search.temperatures or (search.temperature,)
    about += f", temperature {', '.join(f'{degree:g}' for degree in degrees)}"
    if search.temperatures:
        about += f" (whole trajectories: {search.temperature:g})"
    fits = {curve.chooser: None if curve.fit is None else curve.fit._asdict() for curve in curves}
    write_json(
        out / "scaling.json",
        {"config": to_json(config), "fits": fits, "rows": rows, "contributions": parts},
    )
    plain = {LABELS[name]: rates[name, 1] for name in PLAIN}
    draw_scaling(curves, plain, f"Best of N: {about}", out / "scaling.png")
    return _write_table(out / "scaling.md", about, curves, rows, parts, search.greedy_first)


def contributions(
    outcomes: Mapping[tuple[str, int], Sequence[bool]], sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """What each part adds, paired by episode, with the most candidates; parts that were not evaluated are left out."""
    size = {name: 1 if name in PLAIN else max(sizes, default=1) for name in LABELS}
    found: list[dict[str, Any]] = []
    for over, what, name in CONTRIBUTIONS:
        before, after = (over, size[over]), (what, size[what])
        if before in outcomes and after in outcomes:
            gain = paired_difference(outcomes[before], outcomes[after])
            found.append(
                {"part": name, "what": what, "over": over, "candidates": size[what],
                 "gain": gain.mean, "interval": [gain.low, gain.high]}
            )  # fmt: skip
    return found


def outcomes_of(result: Mapping[str, Any]) -> list[bool]:
    """Success of each episode, in an order that every evaluation of a study shares."""
    episodes = sorted(result["episodes"], key=lambda e: (e["task"], e["initial_state"]))
    return [bool(episode["success"]) for episode in episodes]


def _rate(result: Mapping[str, Any]) -> Rate:
    overall = result["overall"]
    low, high = overall["interval"]
    return Rate(overall["successes"], overall["episodes"], low, high, overall["mean_turns"])


def _row(
    chooser: str,
    size: int,
    rate: Rate,
    result: Mapping[str, Any],
    outcomes: Sequence[bool],
    greedy: Sequence[bool],
) -> dict[str, Any]:
    gain = None if chooser == "greedy" else paired_difference(greedy, outcomes)
    return {
        "chooser": chooser,
        "best_of": size,
        "success": rate.rate,
        "interval": [rate.low, rate.high],
        "gain": None if gain is None else [gain.mean, gain.low, gain.high],
        "cost_per_turn": result["cost"]["per_turn"],
        "simulated_turns": _spent(rate, result["cost"]),
    }


def _spent(rate: Rate, cost: Mapping[str, Any]) -> dict[str, Any]:
    """Simulated turns of an episode: mean, least and most; of an earlier version the mean alone."""
    found = cost.get("simulated_turns")
    if found is None:
        return {"mean": cost["per_turn"]["simulator_turns"] * (rate.mean_turns or 0.0)}
    return {name: found[name] for name in ("mean", "least", "most", "total")}


def _spent_in_words(spent: Mapping[str, Any]) -> str:
    """Mean, and the range where episodes differ."""
    if spent.get("least", 0) == spent.get("most", 0):
        return f"{spent['mean']:.1f}"
    return f"{spent['mean']:.1f} ({spent['least']} to {spent['most']})"


def headline(rows: Sequence[Mapping[str, Any]], parts: Sequence[Mapping[str, Any]]) -> str:
    """In words: plain play, and what each part adds to it."""
    plain = {row["chooser"]: 100 * row["success"] for row in rows if row["chooser"] in PLAIN}
    lines = [
        f"Plain play succeeds in {plain['greedy']:.1f} % of the episodes greedily and in {plain['sampled']:.1f} % when "
        "its actions are sampled."
    ]
    choices = [part for part in parts if part["what"] not in PLAIN]
    if choices:
        lines.append(f"With N = {max(part['candidates'] for part in choices)} candidates:\n")
        for part in choices:
            beside = part["over"] != "greedy"
            over = LABELS[part["over"]] if beside else "greedy play"
            lines.append(f"- {part['part']}: {_points(part['gain'], part['interval'])} over {over}")
    return "\n".join(lines)


def _points(gain: float, interval: Sequence[float]) -> str:
    return f"{100 * gain:+.1f} [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}] points"


def _write_table(
    path: Path,
    about: str,
    curves: Sequence[ScalingCurve],
    rows: Sequence[dict[str, Any]],
    parts: Sequence[dict[str, Any]],
    greedy_first: bool,
) -> Path:
    """The study as Markdown."""
    first = (
        "the first candidate is greedy, the others are sampled"
        if greedy_first
        else "all candidates are sampled"
    )
    lines = [
        f"# Best of N: {about}\n",
        headline(rows, parts) + "\n",
        f"In a choice {first}. Success with Wilson 95 % intervals; gain over greedy play, paired by episode. Cost is "
        "for each turn that was kept; turns simulated for an episode, discarded ones included, beside it.\n",
        "| chosen by | N | success | gain | policy: prefills, chunks | simulated turns | of an episode | scored "
        "| seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = (100 * end for end in row["interval"])
        gain = "" if row["gain"] is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(
            *(100 * value for value in row["gain"])
        )  # fmt: skip
        cost = row["cost_per_turn"]
        lines.append(
            f"| {LABELS[row['chooser']]} | {row['best_of']} | {100 * row['success']:.1f} % [{low:.1f}, {high:.1f}] "
            f"| {gain} | {cost['prefills']:.1f}, {cost['action_chunks']:.1f} | {cost['simulator_turns']:.1f} "
            f"| {_spent_in_words(row['simulated_turns'])} | {cost['scored']:.1f} | {cost['seconds']:.3f} |"
        )
    lines += _fits(curves)
    lines.append("\n![success against the number of candidates](scaling.png)")
    write_text(path, "\n".join(lines) + "\n")
    return path


def _fits(curves: Sequence[ScalingCurve]) -> list[str]:
    lines = [
        f"| {curve.label} | {100 * curve.fit.intercept:.1f} ± {100 * curve.fit.intercept_error:.1f} "
        f"| {100 * curve.fit.slope:+.2f} ± {100 * curve.fit.slope_error:.2f} "
        f"[{100 * curve.fit.slope_low:+.2f}, {100 * curve.fit.slope_high:+.2f}] |"
        for curve in curves
        if curve.fit is not None
    ]
    title = (
        "\nsuccess = a + b log2 N for N of 2 and more, in points; weighted by binomial variance, errors from a "
        "bootstrap over episodes (95 %)\n"
    )
    head = [title, "| chosen by | a | b, per doubling of N |", "|---|---|---|"]
    return [*head, *lines] if lines else []
