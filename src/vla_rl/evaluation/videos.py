"""Videos of evaluated episodes: played again, action by action, with the full meshes and a larger image.

Simulators are deterministic, so the recorded tokens give the very same episode; the policy never sees these
images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_rl.config import EnvConfig
from vla_rl.envs.env import require_beginnings
from vla_rl.envs.registry import as_played, benchmark, settings_of
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.policies.policy import Policy, decoded
from vla_rl.runtime.files import write_json
from vla_rl.runtime.video import write_video
from vla_rl.types import EpisodeSpec

Begin = Callable[[Any, EpisodeSpec], None]
"""Starts an episode in an environment."""
VIDEO_SIZE = 256
FRAMES_PER_SECOND = 20.0
"""Half of real time for Meta-World (a frame every 25 ms), real time for LIBERO (every 50 ms)."""


def record_videos(
    records: Sequence[EpisodeRecord],
    policy: Policy | None,
    env: EnvConfig,
    per_task: int,
    folder: Path,
    same_as: Path | None = None,
    begin: Begin | None = None,
) -> list[dict[str, Any]]:
    """Write up to `per_task` videos per task, successes and failures alternating, and an index.json.

    begin: for episodes that start at a state of a demonstration (`StartStates.begin`).

    `same_as` is a folder written earlier: the episodes shown there are shown again, so that before and after can be
    compared. An episode whose replay does not end as recorded is an error: it would show something that did not happen.
    """
    shown = same_as / "index.json" if same_as is not None else None
    if shown is not None and shown.is_file():
        specs = {EpisodeSpec(v["task"], v["initial_state"]) for v in json.loads(shown.read_text())}
        chosen = [record for record in records if record.spec in specs]
    else:
        chosen = choose_episodes(records, per_task)
    folder.mkdir(parents=True, exist_ok=True)
    studio = benchmark(env.suite).make_video_env(as_played(replace(env, image_size=VIDEO_SIZE)))
    index = []
    try:
        for record in chosen:
            played = benchmark(settings_of(env, record.spec.task).suite)
            frames = replay(studio, record, policy, played.frame_every, begin or _at_the_start)
            outcome = "success" if record.success else "failure"
            task = record.spec.task.replace(":", "-")  # of a union, with its suite in front
            start = record.spec.start
            where = "" if start is None else f"-from-{start.demonstration}.{start.frame}"
            name = f"{task}-{record.spec.initial_state}{where}-{outcome}.mp4"
            write_video(folder / name, frames, FRAMES_PER_SECOND)
            index.append(
                {
                    "file": name,
                    "task": record.spec.task,
                    "initial_state": record.spec.initial_state,
                    "success": record.success,
                    "turns": record.turns,
                }
            )
    finally:
        studio.close()
    write_json(folder / "index.json", index)
    return index


def choose_episodes(records: Sequence[EpisodeRecord], per_task: int) -> list[EpisodeRecord]:
    """For each task the first episodes, taking successes and failures in turn while there are both."""
    chosen = []
    for task in dict.fromkeys(r.spec.task for r in records):
        kinds = [
            [r for r in records if r.spec.task == task and r.success is s] for s in (True, False)
        ]
        mixed = [r for pair in _alternate(*kinds) for r in pair]
        chosen += mixed[:per_task]
    return chosen


def _alternate(first: list[Any], second: list[Any]) -> list[list[Any]]:
    longest = max(len(first), len(second))
    return [first[i : i + 1] + second[i : i + 1] for i in range(longest)]


def _at_the_start(studio: Any, spec: EpisodeSpec) -> None:
    require_beginnings([spec])
    studio.reset(spec)


def replay(
    studio: Any,
    record: EpisodeRecord,
    policy: Policy | None,
    frame_every: int,
    begin: Begin = _at_the_start,
) -> list[np.ndarray]:
    """Play the recorded tokens again, one image every `frame_every` simulator steps."""
    begin(studio, record.spec)
    frames, steps, success = [studio.render()], 0, False

    def on_frame() -> None:
        nonlocal steps
        steps += 1
        if steps % frame_every == 0:
            frames.append(studio.render())

    turns = record.actions
    if policy is not None:
        told = [studio.instruction]
        turns = [decoded(policy, torch.tensor([tokens]), told)[0] for tokens in record.tokens]
    for actions in turns:
        _, success, _, _ = studio.step(actions, on_frame=on_frame)
    frames += [studio.render()] * 8  # hold the end for a moment
    require_same_end(record, success, steps)
    return frames


def require_same_end(record: EpisodeRecord, success: bool, steps: int) -> None:
    """RuntimeError unless an episode that was played again ended as recorded."""
    if success != record.success or steps != record.simulator_steps:
        raise RuntimeError(
            f"the replay of {record.spec} ended otherwise (success {success}, {steps} steps) than recorded "
            f"(success {record.success}, {record.simulator_steps} steps): the simulator is not deterministic here"
        )
