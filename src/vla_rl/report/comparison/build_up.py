"""The recipe built up, part by part: a table, a JSON file and a picture, beside the article's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vla_rl.config.errors import UserError
from vla_rl.report.comparison.held_out import (
    Difference,
    Outcome,
    Success,
    difference,
    success_of,
)
from vla_rl.report.comparison.table import difference_text, success_text, table
from vla_rl.report.figures.saving import save_figure
from vla_rl.report.run_data import MODES, Mode
from vla_rl.runtime.extras import need
from vla_rl.runtime.files import write_json, write_text

TABLE, VALUES, FIGURE = "build-up.md", "build-up.json", "build-up.png"


class Part(NamedTuple):
    """A row's name, what it is, and the article's number (success, %) where it has one."""

    title: str
    meaning: str
    article: float | None


PARTS = {
    "sft": Part("fine-tuning", "the policy that everything starts from, played plainly", 68.2),
    "reward": Part(
        "+ reward model, no practice",
        "the same policy; of {best_of} continuations from a snapshot of the simulator {chooser} chooses",
        72.1,
    ),
    "ppo": Part(
        "+ {algorithm} for success alone",
        "practice paid for success alone, every task played alike, no reward model",
        None,
    ),
    "process-reward": Part(
        "+ process reward",
        "the same practice, also paid by the {reward} reward for each turn",
        75.8,
    ),
    "curriculum": Part(
        "+ curriculum", "the same with the curriculum `{curriculum}`: the whole recipe", 79.4
    ),
    "test-time": Part(
        "+ best of {best_of} at test time",
        "the policies of the last practice, and of {best_of} continuations {chooser} chooses",
        82.3,
    ),
}
_CHOOSERS = {
    "reward-model-alone": "the reward model alone",
    "simulator": "the simulator's dense reward (privileged, and success seen ahead)",
}


class Row(NamedTuple):
    """One row: its evaluations, one for each seed."""

    name: str
    stands_on: str
    outcomes: Mapping[Mode, tuple[Outcome, ...]]
    diverged: int


class Result(NamedTuple):
    """What a row came to; a search has no sampled play of its own."""

    row: Row
    title: str
    success: Mapping[Mode, Success]
    to_below: Mapping[Mode, Difference]
    to_start: Mapping[Mode, Difference]


def write_build_up(rows: Sequence[Row], out: Path, notes: Mapping[str, Any]) -> Path:
    """Write build-up.md, build-up.json and build-up.png into `out`; returns the path of the table.

    notes: preset, algorithm, best_of, chooser, curriculum, reward, temperature. Raises UserError where rows were
    evaluated on different initial states.
    """
    _require_same_states(rows, out)
    words = {**notes, "chooser": _CHOOSERS.get(notes["chooser"], "")}
    by_name = {row.name: row for row in rows}
    results = [_result(row, by_name, words) for row in rows]
    write_text(out / TABLE, _markdown(results, words))
    write_json(out / VALUES, {"format": 1, **notes, "rows": [_values(r) for r in results]})
    _draw(results, out / FIGURE)
    return out / TABLE


def _require_same_states(rows: Sequence[Row], out: Path) -> None:
    states = {
        frozenset(outcome.success)
        for row in rows
        for outcomes in row.outcomes.values()
        for outcome in outcomes
    }
    if len(states) > 1:
        sizes = ", ".join(str(size) for size in sorted(map(len, states)))
        raise UserError(
            f"{out}: the rows were evaluated on different initial states ({sizes} episodes). Choose another --out"
        )


def _result(row: Row, rows: Mapping[str, Row], words: Mapping[str, Any]) -> Result:
    title = PARTS[row.name].title.format(**words)
    if row.diverged:
        title += f" ({row.diverged} of {len(row.outcomes['greedy'])} runs diverged)"
    success: dict[Mode, Success] = {}
    for mode, outcomes in row.outcomes.items():
        # greedy play of one policy is the same for every seed: its episodes count once
        distinct = outcomes[:1] if row.name == "sft" and mode == "greedy" else outcomes
        found = success_of(distinct)
        assert found is not None, "there is a seed at least"
        success[mode] = found
    return Result(row, title, success, _to(rows.get(row.stands_on), row), _to(rows.get("sft"), row))


def _to(below: Row | None, row: Row) -> dict[Mode, Difference]:
    if below is None or below is row:
        return {}
    found: dict[Mode, Difference] = {}
    for mode, outcomes in row.outcomes.items():
        states = list(outcomes[0].success)
        one = difference(below.outcomes.get(mode, ()), outcomes, states)
        if one is not None:
            found[mode] = one
    return found


def _markdown(results: Sequence[Result], words: Mapping[str, Any]) -> str:
    lines = [
        ["", "article", "greedy, or best of N", "to the row it stands on", "to fine-tuning", "sampled",
         "to the row it stands on"]
    ]  # fmt: skip
    titles = {result.row.name: result.title for result in results}
    for result in results:
        article = PARTS[result.row.name].article
        below = result.to_below.get("greedy")
        on = f" ({titles[result.row.stands_on]})" if below is not None else ""
        lines.append(
            [
                result.title,
                "" if article is None else f"{article:.1f}",
                success_text(result.success.get("greedy")),
                f"{difference_text(below)}{on}",
                difference_text(result.to_start.get("greedy")),
                success_text(result.success.get("sampled")),
                difference_text(result.to_below.get("sampled")),
            ]
        )
    meanings = [f"- {r.title}: {PARTS[r.row.name].meaning.format(**words)}" for r in results]
    seeds = len(results[0].row.outcomes["sampled"])
    explained = (
        f"{words['preset']}, {seeds} seed{'s' if seeds > 1 else ''}. Success in % on held-out initial states; the "
        f"first "
        "interval counts episodes (Wilson, 95 %), the one after `seeds` is Student's over the runs. Differences are "
        "paired "
        "over seeds and initial states, 95 %, and in brackets for each seed. Everything starts from one policy, so "
        "that "
        f"nothing here says what another would have given. Sampled play is at temperature {words['temperature']:g}. "
        f"The "
        "article has one number a row, from another benchmark and a policy of seven billion weights, and says nothing "
        "of "
        "how its rows were measured: what to compare is the order of the rows, not their height."
    )
    if seeds == 1:
        explained += " One seed alone: there is no interval over seeds."
    title = f"# {words['preset']} built up"
    return (
        "\n".join([title, "", table(lines), "", "What the rows are:", "", *meanings, "", explained])
        + "\n"
    )


def _values(result: Result) -> dict[str, Any]:
    def listed(found: Mapping[Mode, Difference]) -> dict[str, Any]:
        return {
            mode: {**one.paired._asdict(), "over_seeds": one.over_seeds, "each": one.each}
            for mode, one in found.items()
        }

    return {
        "row": result.row.name,
        "title": result.title,
        "stands_on": result.row.stands_on,
        "article": PARTS[result.row.name].article,
        "diverged": result.row.diverged,
        "success": {mode: one._asdict() for mode, one in result.success.items()},
        "to_row_below": listed(result.to_below),
        "to_fine_tuning": listed(result.to_start),
    }


def _draw(results: Sequence[Result], path: Path) -> None:
    need("matplotlib", purpose="a plot")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 1.4 + 0.6 * len(results)), layout="constrained")
    places = np.arange(len(results))[::-1]
    for mode, shift, color in zip(MODES, (0.14, -0.14), ("C0", "C1"), strict=True):
        known = [
            (y + shift, r.success[mode])
            for y, r in zip(places, results, strict=True)
            if mode in r.success
        ]
        means = np.array([100 * success.mean for _, success in known])
        ends = 100 * np.array([success.over_episodes for _, success in known]).T
        error = np.clip([means - ends[0], ends[1] - means], 0, None)
        label = "greedy, or best of N" if mode == "greedy" else "sampled"
        axes.errorbar(
            means, [y for y, _ in known], xerr=error, fmt="o", color=color, capsize=3, label=label
        )
    article = np.array([PARTS[r.row.name].article for r in results], dtype=np.float64)
    axes.plot(article, places, "|", color="0.5", markersize=14, label="article")
    axes.set(
        yticks=places, yticklabels=[r.title for r in results], xlim=(0, 100), xlabel="held-out success, %"
    )  # fmt: skip
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    save_figure(figure, path, dpi=130)
    plt.close(figure)
