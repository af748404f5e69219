"""Evaluations before, during and after practice."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

from vla_rl.config import TrainConfig
from vla_rl.distributed.world import SingleProcess, World
from vla_rl.envs.env import VectorEnv
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.evaluation.practised import apart
from vla_rl.evaluation.result import evaluate_policy, summary
from vla_rl.evaluation.videos import record_videos
from vla_rl.policies.policy import Policy
from vla_rl.runtime.files import write_json
from vla_rl.runtime.run_folder import Run
from vla_rl.training.state import FollowedRun, TrainState


def evaluate_before_or_after(
    label: str,
    run: Run | FollowedRun,
    policy: Policy,
    envs: VectorEnv,
    config: TrainConfig,
    world: World = SingleProcess(),
) -> None:
    """Evaluate greedily and sampled, with videos, into <run>/eval/<label>-{greedy,sampled}.json."""
    for mode, temperature in (("greedy", 0.0), ("sampled", config.rollout.temperature)):
        protocol = replace(config.eval, temperature=temperature)
        result, records = evaluate_policy(
            policy, envs, config.env, protocol, f"evaluate {label} {mode}", world=world
        )
        result["checkpoint"] = label
        result["practice"] = apart(records, config.env, summary)
        if not isinstance(run, Run):
            continue
        file, videos = run.eval_folder / f"{label}-{mode}.json", []
        write_json(file, result)
        if mode == "greedy" and config.eval.videos > 0:
            folder = run.eval_folder / "videos"
            videos = record_videos(
                records,
                policy,
                config.env,
                config.eval.videos,
                folder / label,
                same_as=folder / "before",
            )
        run.log_evaluation(file, [run.eval_folder / "videos" / label / v["file"] for v in videos])


def evaluate_during(
    state: TrainState, envs: VectorEnv, config: TrainConfig, *, unless_done: bool = False
) -> None:
    """Every `run.eval_every` iterations: evaluate greedily, then put every running episode back where it was.

    unless_done: not where the result of this iteration is there already.
    """
    iteration = state.iteration
    if config.run.eval_every == 0 or iteration == 0 or iteration % config.run.eval_every != 0:
        return
    file = state.run.folder / "eval" / f"iteration-{iteration:06d}.json"
    if unless_done and state.world.any(file.is_file()):
        return
    running = state.collector.state_dict()
    label = f"evaluate iteration {iteration}"
    result, records = evaluate_policy(
        state.policy, envs, config.env, config.eval, label, world=state.world
    )
    result["practice"] = apart(records, config.env, summary)
    if isinstance(state.run, Run):
        write_json(state.run.eval_folder / file.name, result)
        if config.eval.videos > 0:
            _film_this_one(records, state, state.run, config)
        state.run.log_evaluation(file)
    state.collector.load_state_dict(running)


def _film_this_one(
    records: Sequence[EpisodeRecord], state: TrainState, run: Run, config: TrainConfig
) -> None:
    """Videos of the evaluation after this iteration, in place of those of the one before: a live page shows them."""
    folder = run.eval_folder / "videos"
    mine = folder / f"iteration-{state.iteration:06d}"
    if mine.exists():
        shutil.rmtree(mine)
    videos = config.eval.videos
    record_videos(records, state.policy, config.env, videos, mine, same_as=folder / "before")
    for other in folder.glob("iteration-*"):
        if other != mine:
            shutil.rmtree(other)
