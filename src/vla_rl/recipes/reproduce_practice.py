"""The end of a reproduction: an iteration of PPO on the checkpoint, and how long the whole recipe would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from vla_rl.config import EnvConfig, TrainConfig, UserError
from vla_rl.config.openvla import IMAGE_PREPROCESSING
from vla_rl.config.reproduce import ReproduceConfig
from vla_rl.diagnostics.reproduction.settings import Settings
from vla_rl.recipes.plan import machine_of, make_plan
from vla_rl.recipes.presets import PRESETS, preset
from vla_rl.recipes.train import train
from vla_rl.rollout.metrics import PHASES
from vla_rl.runtime.metrics import read_metrics

RUN = "practice"
CALIBRATING = 4
"""Iterations of a run that a plan can take costs from."""
GPU_KINDS = ("h200", "h100-pcie", "h100", "a100", "l40s", "rtx4090")
"""As `vla-rl plan` calls them, the longer of two names first."""


def preset_of(config: ReproduceConfig, of_card: str) -> str:
    """The recipe that is practised; empty where nothing says which. ConfigError for one that there is not."""
    own = f"{config.suite}-openvla-7b"
    name = config.preset or of_card or (own if own in PRESETS else "")
    if name:
        preset(name)
    return name


@dataclass(frozen=True)
class Ready:
    """A checkpoint as it is practised."""

    preset: str
    """The recipe; empty where nothing says which."""
    checkpoint: str
    env: EnvConfig
    """Where it is evaluated."""
    settings: Settings
    """How it is played, put right where that was needed."""
    unnorm_key: str
    """Its action statistics; empty where the checkpoint does not have the right ones."""


def practise(config: ReproduceConfig, ready: Ready, out: Path) -> dict[str, Any]:
    """Play and learn `config.practice_iterations` of a recipe: what was measured and predicted, as JSON values."""
    name = ready.preset
    if config.practice_iterations == 0:
        return {"skipped": "none was asked for (--practice-iterations 0)."}
    if not name:
        return {"skipped": f"no preset is for {config.suite!r}: give one with --preset."}
    if ready.settings.turned:
        return {"skipped": "practice does not turn frames, as this checkpoint needs it."}
    if not ready.unnorm_key:
        return {"skipped": "the checkpoint does not have the action statistics that it needs."}
    recipe = recipe_of(config, ready)
    short = replace(
        recipe,
        schedule=replace(
            recipe.schedule, iterations=config.practice_iterations, minutes=0.0, episodes=0
        ),
        ppo=replace(recipe.ppo, critic_warmup=0),  # the policy is to learn, not the critic alone
        eval=replace(recipe.eval, episodes_per_task=1),
        run=replace(
            recipe.run, name=RUN, root=str(out), seed=config.seed, eval_every=0, trackers="none"
        ),
    )
    folder = out / RUN
    if not (folder / "eval" / "after-sampled.json").is_file():
        train(short, folder if (folder / "config.json").is_file() else None)
    rows = read_metrics(folder / "metrics.jsonl")
    found = _measured(rows, recipe)
    return {
        "preset": name,
        "iterations": len(rows),
        **found,
        "plan": _plan(recipe, name, folder if len(rows) >= CALIBRATING else None),
    }


def recipe_of(config: ReproduceConfig, ready: Ready) -> TrainConfig:
    """The preset on this checkpoint and suite."""
    base, settings = preset(ready.preset), ready.settings
    named = settings.images in IMAGE_PREPROCESSING
    policy = replace(
        base.policy,
        checkpoint=ready.checkpoint,
        scratch="",
        kind=settings.kind,
        base=config.base,
        dtype=config.dtype,
        unnorm_key=ready.unnorm_key,
        images=cast(Any, settings.images) if named else "checkpoint",
        gripper=cast(Any, settings.gripper),
    )
    # as many environments as the recipe has, played as the evaluation is
    return replace(base, env=replace(ready.env, num_envs=base.env.num_envs), policy=policy)


def _measured(rows: Sequence[dict[str, Any]], recipe: TrainConfig) -> dict[str, Any]:
    """Seconds of an iteration by phase, and hours of the whole recipe at that pace."""
    seconds = {
        phase: sum(row[f"time/{phase}"] for row in rows) / len(rows)
        for phase in PHASES
        if any(row[f"time/{phase}"] for row in rows)
    }
    each = sum(seconds.values())
    episodes = sum(row["rollout/episodes"] for row in rows) / len(rows)
    iterations = recipe.schedule.iterations
    if recipe.schedule.episodes and episodes:
        needed = -(-recipe.schedule.episodes // max(1, round(episodes)))
        iterations = min(iterations or needed, needed)
    return {
        "seconds": seconds,
        "seconds_an_iteration": each,
        "turns": sum(row["rollout/turns"] for row in rows) / len(rows),
        "episodes": episodes,
        "recipe_iterations": iterations,
        "hours": iterations * each / 3600,
    }


def _plan(recipe: TrainConfig, name: str, run: Path | None) -> str:
    """`vla-rl plan` for this machine, calibrated by `run` where that is long enough."""
    gpus, kind, memory = here()
    machine = machine_of(1, gpus, memory, kind or GPU_KINDS[0])
    unknown = gpus > 0 and not kind
    try:
        text = make_plan(recipe, machine, [run] if run is not None else [], preset=name)
    except UserError as error:
        return f"vla-rl plan says nothing of it: {error}"
    return (
        f"{text}\nThis GPU is none that the plan knows; it is planned as {GPU_KINDS[0]}."
        if unknown
        else text
    )


def here() -> tuple[int, str, float]:
    """This machine's GPUs: how many, their kind as `vla-rl plan` calls it (empty if it does not), and memory in GB."""
    if not torch.cuda.is_available():
        return 0, "", 80.0
    properties = torch.cuda.get_device_properties(0)
    words = properties.name.lower().replace(" ", "").replace("geforce", "")
    kind = next((one for one in GPU_KINDS if one.replace("-", "") in words.replace("-", "")), "")
    return torch.cuda.device_count(), kind, properties.total_memory / 1e9
