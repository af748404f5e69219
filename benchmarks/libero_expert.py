"""How often the scripted expert solves LIBERO's tasks, and in how many simulator steps, as a table in Markdown.

    python benchmarks/libero_expert.py --suites libero-object libero-spatial --states 10
    python benchmarks/libero_expert.py --suites libero-goal --states 1 --strips runs/strips

Episodes end at the suite's horizon in OpenVLA's protocol, counted after settling. `--repeat 2` holds each of the
expert's actions for two simulator steps. An idle action is one that hardly moves hand or fingers, such as while the
fingers press on something. Nothing is drawn unless film strips are asked for: then meshes are whole, a row of
images is written for each task (its first initial state), and a sheet of all rows for each suite.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.config import EnvConfig
from vla_rl.envs.env import Snapshot
from vla_rl.envs.libero.env import LiberoEnv
from vla_rl.envs.libero.expert.expert import LiberoExpert
from vla_rl.envs.libero.tasks import STORED_STATES, protocol_horizon, suite_tasks
from vla_rl.types import EpisodeSpec

IDLE = 0.05
"""Largest displacement or rotation of an idle action; 1 asks for 5 cm or 0.5 rad."""
COLOURS = 256
"""Of the palette of a sheet, which takes less than half the space then."""


@dataclass(frozen=True)
class Job:
    """One task and how to play it."""

    suite: str
    task: str
    states: tuple[int, ...]
    repeat: int
    noise: float
    strips: str  # folder for images; "" draws none
    frames: int
    size: int  # of a image, pixels


@dataclass
class Episode:
    """One episode as it was played."""

    state: int
    success: bool
    steps: int
    idle: float  # share of its actions
    moments: list[Snapshot]  # before each action and at the end; empty without film strips


@dataclass
class Played:
    """What became of one task."""

    job: Job
    instruction: str = ""
    episodes: list[Episode] = field(default_factory=list)
    strip: Any = None  # image [H, W, 3] of the first episode


def play(job: Job) -> Played:
    """Play one task from each of the initial states."""
    config = EnvConfig(
        suite=job.suite,
        image_size=job.size,
        action_repeat=job.repeat,
        action_chunk=1,
        horizon=-(-protocol_horizon(job.suite) // job.repeat),
        initial_states=STORED_STATES,
        held_out=10,
        mesh_faces=0 if job.strips else 150,
    )
    env = LiberoEnv(config)
    played = Played(job)
    for state in job.states:
        env.reset(EpisodeSpec(job.task, state))
        episode = play_episode(env, state, job.noise, film=bool(job.strips) and not played.episodes)
        if episode.moments:
            played.strip = film_strip(env, episode.moments, job.frames)
            episode.moments.clear()
        played.episodes.append(episode)
        played.instruction = env.instruction
    env.close()
    return played


def play_episode(env: LiberoEnv, state: int, noise: float, film: bool) -> Episode:
    """One episode with the expert, from the reset to success, the time limit, or the expert's giving up."""
    expert = LiberoExpert(env, noise, state)
    total, terminated, truncated = 0, False, False
    moments, idle = [], []
    gripper = -1.0
    while not (terminated or truncated or expert.done):
        if film:
            moments.append(env.snapshot())
        action = expert.action()
        idle.append(np.abs(action[:6]).max() < IDLE and action[6] == gripper)
        gripper = action[6]
        _, terminated, truncated, steps = env.step(action[None])
        total += steps
    if film:
        moments.append(env.snapshot())
    return Episode(state, terminated, total, float(np.mean(idle)), moments)


def film_strip(env: LiberoEnv, moments: list[Snapshot], frames: int) -> np.ndarray:
    """Images of so many of the moments, evenly spaced and side by side."""
    chosen = np.linspace(0, len(moments) - 1, frames).round().astype(int)
    images = []
    for index in chosen:
        env.restore(moments[index])
        images.append(env.render().copy())
    return np.concatenate(images, axis=1)


def save_strips(results: list[Played], folder: Path, suite: str) -> None:
    """One PNG a task, and one of all of them in few colours."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for played in results:
        Image.fromarray(played.strip).save(folder / f"{played.job.task}.png")
    sheet = Image.fromarray(np.concatenate([played.strip for played in results]))
    # the octree keeps the few colours of small things
    sheet = sheet.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    sheet.save(folder / f"{suite.replace(':', '-')}.png", optimize=True)


def table(suite: str, results: list[Played]) -> list[str]:
    """Markdown lines of one suite."""
    episodes = [episode for played in results for episode in played.episodes]
    solved = f"{sum(episode.success for episode in episodes)}/{len(episodes)}"
    job = results[0].job
    lines = [
        f"{suite}, horizon {protocol_horizon(suite)}, actions held {job.repeat}, noise {job.noise:g}: {solved}",
        "",
        "| task | instruction | success | mean steps | most steps | idle actions | failed initial states |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, played in enumerate(results):
        failed = [str(episode.state) for episode in played.episodes if not episode.success]
        name = f"| {number} | {played.instruction} "
        lines.append(f"{name}{cells(played.episodes)} {', '.join(failed) or '-'} |")
    return [*lines, f"| all | {cells(episodes)} |"]


def cells(episodes: list[Episode]) -> str:
    """Cells of a table: success, mean and largest length of the successful ones, idle actions."""
    steps = [episode.steps for episode in episodes if episode.success]
    lengths = f"{np.mean(steps):.0f} | {max(steps)}" if steps else "- | -"
    idle = np.mean([episode.idle for episode in episodes])
    return f"| {len(steps)}/{len(episodes)} | {lengths} | {idle:.0%} |"


def main(arguments: argparse.Namespace) -> None:
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        for suite in arguments.suites:
            make = partial(
                Job,
                suite,
                states=tuple(range(arguments.states)),
                repeat=arguments.repeat,
                noise=arguments.noise,
                strips=arguments.strips,
                frames=arguments.frames,
                size=arguments.size if arguments.strips else 32,
            )
            results = list(pool.map(play, [make(task=task.name) for task in suite_tasks(suite)]))
            print(*table(suite, results), "", sep="\n", flush=True)
            if arguments.strips:
                save_strips(results, Path(arguments.strips), suite)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    every = ["libero-object", "libero-spatial", "libero-goal", "libero-10"]
    parser.add_argument("--suites", nargs="+", default=every, help="or single tasks: libero-goal:3")
    parser.add_argument("--states", type=int, default=10, help="initial states 0, 1, ... per task")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1, help="simulator steps per action")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation, of actions")
    parser.add_argument("--strips", default="", help="folder for film strips")
    parser.add_argument("--frames", type=int, default=8, help="images per film strip")
    parser.add_argument("--size", type=int, default=224, help="pixels of a film strip's image")
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # for the processes that play
    main(parser.parse_args())
