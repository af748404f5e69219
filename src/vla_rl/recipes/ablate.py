"""Take the recipe apart: train it whole and without each part, over several seeds, and compare on the same states.

    vla-rl ablate metaworld-mt5 --checkpoint runs/sft/policy --reward-model runs/reward --seeds 3 --minutes 8

Every cell differs from `full` in one thing. Runs that are complete are not done again, a run that was stopped goes on:
the same command, given again, continues. All runs of a seed are evaluated on the same initial states, so differences to
`full` are paired.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.config import AblationConfig, ProcessRewardConfig, TrainConfig, UserError
from vla_rl.functional import paired_difference, wilson_interval
from vla_rl.recipes.many_runs import MODES, diverged, folder_of, shared_out, train_all
from vla_rl.recipes.presets import preset
from vla_rl.report.figures.saving import save_figure
from vla_rl.runtime.extras import need
from vla_rl.runtime.files import require_writable, write_text
from vla_rl.runtime.progress import note


@dataclass(frozen=True)
class Cell:
    """What a cell is called, and its result in the paper (success on LIBERO-Spatial, %)."""

    title: str
    paper: float


PAPER = {
    "full": Cell("full", 90.2),
    "no-reward": Cell("no dense reward", 85.8),
    "no-curriculum": Cell("no curriculum (every task alike)", 88.0),
    "temperature": Cell("sampling temperature {temperature:g}", 85.8),
    "no-warmup": Cell("no critic warm-up", 80.0),
    "learning-rate": Cell("learning rate x 10", 0.2),
}


SUCCESS_ALONE = "success-alone"
"""Neither a dense reward nor a curriculum: a cell of the build-up alone."""


def cell_config(config: TrainConfig, cell: str) -> TrainConfig:
    """`config` changed in the one thing that `cell` is about."""
    if cell == SUCCESS_ALONE:
        config = replace(config, curriculum=replace(config.curriculum, mode="uniform"))
    if cell in ("no-reward", SUCCESS_ALONE) and config.reward.chosen_kind != "success":
        return replace(config, reward=replace(config.reward, kind="auto", model=""))
    if cell == "no-curriculum":
        return replace(config, curriculum=replace(config.curriculum, mode="uniform"))
    if cell == "temperature":
        # the paper samples at 1.5 and shows that 1.0 is worse; a recipe that samples at 1.0 asks the reverse, and any
        # other whether it is better than what the policy says
        other = 1.0 if config.rollout.temperature != 1.0 else 1.5
        return replace(config, rollout=replace(config.rollout, temperature=other))
    if cell == "no-warmup" and not config.compares_groups:
        ppo = replace(config.ppo, critic_warmup=0, critic_warmup_until_explained=False)
        return replace(config, ppo=ppo)
    if cell == "learning-rate":
        ten_times = 10 * config.optimizer.learning_rate
        return replace(config, optimizer=replace(config.optimizer, learning_rate=ten_times))
    assert cell in ("full", "no-reward", "no-warmup", SUCCESS_ALONE)
    return config


def ablate(config: AblationConfig) -> Path:
    """Do every run that is still to do, and write the table. Returns its path."""
    if not (config.checkpoint or preset(config.preset).policy.scratch):
        raise UserError(
            "ablate: needs a policy to start from: --checkpoint runs/sft/policy (from `vla-rl sft` or a quickstart)"
        )
    require_writable(Path(config.out), "folder")
    whole = planned_run(config, "full", 0)
    cells = [c for c in config.cells if c == "full" or cell_config(whole, c) != whole]
    if len(cells) < len(config.cells):
        missing = ", ".join(cell for cell in config.cells if cell not in cells)
        note(f"left out, as the whole recipe is without it already: {missing}")
    runs = {(c, s): planned_run(config, c, s) for s in range(config.seeds) for c in cells}
    train_all({f"{cell}, seed {seed}": run for (cell, seed), run in runs.items()}, config.parallel)
    return write_results(config, runs)


def planned_run(config: AblationConfig, cell: str, seed: int) -> TrainConfig:
    """The training run of a cell and a seed."""
    base = preset(config.preset)
    base = replace(
        base,
        policy=replace(base.policy, checkpoint=config.checkpoint),
        schedule=replace(
            base.schedule,
            minutes=config.minutes,
            iterations=100_000 if config.minutes > 0 else config.iterations,
        ),
        reward=_reward(base.reward, config),
        eval=replace(base.eval, episodes_per_task=config.episodes_per_task, videos=0),
        run=replace(
            base.run, name=f"{cell}-seed-{seed}", root=config.out, seed=seed, trackers="none"
        ),
    )
    return cell_config(shared_out(base, config.parallel, config.cores), cell)


def _reward(base: ProcessRewardConfig, config: AblationConfig) -> ProcessRewardConfig:
    if not config.reward_kind and not config.reward_model:
        return base
    return replace(base, kind=config.reward_kind or "auto", model=config.reward_model)


# -- results -----------------------------------------------------------------------------------------


def write_results(config: AblationConfig, runs: dict[tuple[str, int], TrainConfig]) -> Path:
    """table.md and ablation.png in the ablation's folder."""
    out = Path(config.out)
    cells = list(dict.fromkeys(cell for cell, _ in runs))
    rows = [
        "| | paper, LIBERO-Spatial | greedy | difference to full | sampled | difference to full |",
        "|---|---|---|---|---|---|",
    ]
    summaries: dict[str, dict[str, Any]] = {}
    for cell in cells:
        title = _title(cell, [runs[cell, seed] for seed in range(config.seeds)])
        found = {mode: compare(runs, cell, config.seeds, mode) for mode in MODES}
        summaries[title] = found
        columns = [text for mode in MODES for text in (found[mode]["rate"], found[mode]["gain"])]
        rows.append(f"| {title} | {PAPER[cell].paper:.1f} % | {' | '.join(columns)} |")
    table = out / "table.md"
    notes = (
        f"\nMeans over {config.seeds} seed{'s' if config.seeds > 1 else ''}, Wilson 95 % intervals over all their "
        "episodes; differences are paired "
        "over the same seed and initial state, 95 %, and in brackets for each seed. The intervals know nothing of "
        "other seeds. Sampled episodes are at the temperature that a run practised at. Of a run that diverged, what it "
        "had last saved is compared.\n"
    )
    write_text(table, "\n".join(rows) + "\n" + notes)
    _draw(summaries, out / "ablation.png")
    return table


def _title(cell: str, runs: Sequence[TrainConfig]) -> str:
    title = PAPER[cell].title.format(temperature=runs[0].rollout.temperature)
    count = diverged(runs)
    return f"{title} ({count} of {len(runs)} runs diverged)" if count else title


def compare(
    runs: dict[tuple[str, int], TrainConfig], cell: str, seeds: int, mode: str
) -> dict[str, Any]:
    """Success of a cell over all seeds, and its paired difference to `full`."""
    own = [_outcomes(folder_of(runs[cell, seed]), mode) for seed in range(seeds)]
    whole = [_outcomes(folder_of(runs["full", seed]), mode) for seed in range(seeds)]
    flat = [success for outcomes in own for success in outcomes]
    low, high = wilson_interval(sum(flat), len(flat))
    mean = float(np.mean(flat))
    result: dict[str, Any] = {
        "mean": mean,
        "low": low,
        "high": high,
        "rate": f"{100 * mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}]",
        "gain": "",
    }
    if cell != "full":
        gain = paired_difference([s for outcomes in whole for s in outcomes], flat)
        each = [100 * (np.mean(a) - np.mean(b)) for a, b in zip(own, whole, strict=True)]
        result["gain"] = (
            f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] "
            f"({', '.join(f'{value:+.0f}' for value in each)})"
        )
    return result


def _outcomes(run: Path, mode: str) -> list[bool]:
    evaluation = json.loads((run / "eval" / f"after-{mode}.json").read_text(encoding="utf-8"))
    return [bool(episode["success"]) for episode in evaluation["episodes"]]


def _draw(summaries: dict[str, dict[str, Any]], path: Path) -> None:
    need("matplotlib", purpose="a plot")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles: Sequence[str] = list(summaries)[::-1]
    figure, axes = plt.subplots(figsize=(7.5, 1.2 + 0.55 * len(titles)), layout="constrained")
    for mode, shift, colour in zip(MODES, (0.17, -0.17), ("C0", "C1"), strict=True):
        means = [100 * summaries[title][mode]["mean"] for title in titles]
        ends = [[100 * summaries[title][mode][end] for title in titles] for end in ("low", "high")]
        errors = np.abs(np.array(ends) - np.array(means))
        places = np.arange(len(titles)) + shift
        axes.errorbar(means, places, xerr=errors, fmt="o", color=colour, capsize=3, label=mode)
    axes.set(
        yticks=range(len(titles)), yticklabels=titles, xlabel="held-out success, %", xlim=(0, 100)
    )
    axes.grid(axis="x", alpha=0.25)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=130)
    plt.close(figure)
