"""Collect demonstrations from a benchmark's scripted experts, as a LeRobotDataset v3.

    vla-rl demos --env.suite mt5 --episodes-per-task 5 --out runs/demos
    vla-rl demos --env.suite libero-object --episodes-per-task 10 --out runs/libero-demos

The expert is asked once per action, and that action is held for `action_repeat` simulator steps: just as the
policy's actions will be. One frame is one action: image and proprioception before it, and the expert's clean action,
which is what is executed unless noise is asked for. Only initial states of the training split are played.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl.config import DemosConfig, EnvConfig, UserError
from vla_rl.config.serialize import to_json
from vla_rl.data.demonstrations import (
    ACTION,
    ENVIRONMENT_FILE,
    IMAGE,
    STATE,
    demonstration_features,
)
from vla_rl.data.lerobot import LeRobotWriter
from vla_rl.data.snapshots import SnapshotWriter
from vla_rl.envs.benchmark import Expert
from vla_rl.envs.env import Env, Snapshot, split_initial_states
from vla_rl.envs.registry import as_played, benchmark, playable, settings_of, suites_of, task_names
from vla_rl.runtime.child_pool import ChildPool
from vla_rl.runtime.children import ChildLostError
from vla_rl.runtime.cpus import available_cpus
from vla_rl.runtime.progress import Reporter, progress
from vla_rl.runtime.provenance import package_versions
from vla_rl.runtime.seeding import generator
from vla_rl.types import EpisodeSpec


def collect_demos(config: DemosConfig) -> Path:
    """Play until every task has its successful episodes, write them to `config.out`, and return that folder.

    The dataset depends on the configuration alone, not on the number of processes. Raises UserError if the folder
    exists, or if an expert fails too often.
    """
    tasks = task_names(config.env.suite)
    workers = config.env.num_workers or available_cpus()
    packages = package_versions(benchmark(config.env.suite).packages)
    with (
        _open_writer(config) as writer,
        ChildPool(workers) as pool,
        progress("demonstrations", total=len(tasks) * config.episodes_per_task) as bar,
    ):
        snapshots = SnapshotWriter(writer, packages) if config.snapshots else None
        try:
            written = 0
            for played in _play_tasks(config, tasks, pool, workers):
                for episode in played.kept:
                    writer.add_episode(_columns(episode), task=episode.instruction)
                if snapshots is not None:
                    numbered = enumerate(played.kept, start=written)
                    snapshots.add_task(played.name, {i: one.snapshots for i, one in numbered})
                written += len(played.kept)
                _report(bar, played)
        except ChildLostError as error:
            raise UserError(
                f"a simulator process died while playing demonstrations, see `vla-rl doctor`: {error}"
            ) from error
        if snapshots is not None:
            snapshots.finish()
        # what was played does not depend on the number of processes, and its record must not either
        writer.add_json(ENVIRONMENT_FILE, to_json(replace(config.env, num_workers=0)))
    return Path(config.out)


@dataclass(frozen=True)
class DemoEpisode:
    """One episode of expert play, L actions long."""

    task: str
    instruction: str
    initial_state: int
    success: bool
    simulator_steps: int
    images: UInt8[np.ndarray, "L H W 3"]  # before each action
    proprio: Float32[np.ndarray, "L P"]
    actions: Float32[np.ndarray, "L A"]  # the expert's, without noise
    snapshots: tuple[Snapshot, ...] = ()  # L of them, before each action, where they are kept


@dataclass
class _Task:
    """A task's demonstrations as they come in."""

    name: str
    states: list[int]  # of the training split, in the order they are played
    futures: list[Future[list[DemoEpisode]]] = field(default_factory=list)
    kept: list[DemoEpisode] = field(default_factory=list)
    played: int = 0


def _play_tasks(
    config: DemosConfig, names: tuple[str, ...], pool: ChildPool, workers: int
) -> Iterator[_Task]:
    """Yield the tasks in order, each with its successful episodes; others are played meanwhile.

    Only a few tasks are played ahead, so that not all images are in memory at once.
    """
    played = playable(config.env)
    player = Player(played.make_envs, played.make_expert, played.noise_scale)
    tasks = [_Task(name, _training_states(config, name)) for name in names]
    pieces = -(
        -workers // len(tasks)
    )  # several processes share a task only if there are too few tasks

    def submit(task: _Task, count: int) -> None:
        states = task.states[task.played : task.played + count]
        task.played += len(states)
        parts = [part.tolist() for part in np.array_split(states, pieces) if len(part)]
        task.futures = [
            pool.submit(_play_episodes, config, player, task.name, part) for part in parts
        ]

    for task in tasks[:workers]:
        submit(task, config.episodes_per_task)
    for index, task in enumerate(tasks):
        while True:
            episodes = [episode for future in task.futures for episode in future.result()]
            task.kept += [episode for episode in episodes if episode.success]
            missing = config.episodes_per_task - len(task.kept)
            if missing == 0:
                break
            _require_hope(task, config)
            submit(task, missing)  # a failed episode is replaced by the next initial state
        if index + workers < len(tasks):
            submit(tasks[index + workers], config.episodes_per_task)
        task.futures = []
        yield task
        task.kept = []


def _training_states(config: DemosConfig, task: str) -> list[int]:
    """The training split's initial states in the order in which this seed plays them."""
    states, _ = split_initial_states(config.env.initial_states, config.env.held_out)
    if config.episodes_per_task > len(states):
        raise UserError(
            f"{config.episodes_per_task} episodes a task were asked for, but the training split has "
            f"{len(states)} initial states. Ask for fewer, or raise env.initial_states."
        )
    return generator(config.seed, "demos", "order", task).permutation(states).tolist()


def _require_hope(task: _Task, config: DemosConfig) -> None:
    """Give up on a task whose expert fails most of the time, or that has no initial states left."""
    patience = 4 * config.episodes_per_task + 8
    if task.played < min(patience, len(task.states)):
        return
    env = settings_of(config.env, task.name)
    actions = env.horizon * env.action_chunk
    raise UserError(
        f"the expert of {task.name!r} succeeded in only {len(task.kept)} of {task.played} episodes; expected "
        f"{config.episodes_per_task}. An episode has {actions} actions of {env.action_repeat} simulator "
        f"steps{' and noise ' + format(config.noise, 'g') if config.noise else ''}: raise env.horizon, or lower "
        "env.action_repeat or the noise."
    )


class Player(NamedTuple):
    """What a simulator process needs of the benchmark: functions that travel by name, so that it need not know it."""

    make_envs: Callable[[EnvConfig, int], Sequence[Env]]
    make_expert: Callable[[Any], Expert]
    noise_scale: tuple[float, ...]


@cache
def _environment(make_envs: Callable[[EnvConfig, int], Sequence[Env]], config: EnvConfig) -> Any:
    """This process's simulator: models and the renderer are kept from one job to the next."""
    return make_envs(config, 1)[0]


def _play_episodes(
    config: DemosConfig, player: Player, task: str, states: list[int]
) -> list[DemoEpisode]:
    """Play one task from the given initial states; runs in a simulator process."""
    # one action a turn, and as many of them as an episode of longer turns would have
    actions = config.env.horizon * config.env.action_chunk  # 0: each suite's own
    played = as_played(replace(config.env, action_chunk=1, horizon=actions))
    env = _environment(player.make_envs, played)
    return [_play_episode(env, EpisodeSpec(task, state), config, player) for state in states]


def _play_episode(env: Any, spec: EpisodeSpec, config: DemosConfig, player: Player) -> DemoEpisode:
    rng = generator(config.seed, "demos", "noise", spec.task, spec.initial_state)
    images, proprio, actions, snapshots, steps = [], [], [], [], 0
    env.reset(spec)
    expert = player.make_expert(env)
    terminated = truncated = False
    while not (terminated or truncated):
        action = expert.action()
        # it has given up; a success ends the episode before it is asked again
        if expert.done and images:
            break
        images.append(env.render().copy())
        proprio.append(env.proprio().copy())
        actions.append(action)
        if config.snapshots:
            snapshots.append(env.snapshot())
        scale = np.array(getattr(env, "noise_scale", player.noise_scale))  # of a union by task
        noise = config.noise * scale * rng.standard_normal(action.shape)
        executed = np.clip(action + noise, -1.0, 1.0).astype(np.float32)
        _, terminated, truncated, taken = env.step(executed[None])
        steps += taken
    return DemoEpisode(
        spec.task, env.instruction, spec.initial_state, terminated, steps,
        np.stack(images), np.stack(proprio), _as_wide(np.stack(actions), env.action_dim),
        tuple(snapshots),
    )  # fmt: skip


def _as_wide(actions: Float32[np.ndarray, "L a"], width: int) -> Float32[np.ndarray, "L A"]:
    """Of several robots the one with the shorter action has zeros where it has no number."""
    return np.pad(actions, ((0, 0), (0, width - actions.shape[1])))


def _open_writer(config: DemosConfig) -> LeRobotWriter:
    played = benchmark(config.env.suite)
    features = demonstration_features(
        config.env.image_size,
        played.proprio_dim,
        played.action_dim,
        video=config.image_format == "mp4",
    )
    # frames are as far apart as actions; the format wants a whole number
    paces = [
        benchmark(own.suite).simulator_rate / own.action_repeat
        for own in suites_of(config.env).values()
    ]
    fps = max(1, round(min(paces)))  # of several suites the slowest's
    return LeRobotWriter(config.out, fps=fps, features=features, robot_type=played.robot)


def _columns(episode: DemoEpisode) -> dict[str, np.ndarray]:
    last = np.arange(len(episode.actions)) == len(episode.actions) - 1
    return {
        IMAGE: episode.images,
        STATE: episode.proprio,
        ACTION: episode.actions,
        "next.reward": last.astype(np.float32),
        "next.done": last,
        "next.success": last,
        "initial_state": np.full(len(last), episode.initial_state),
    }


def _report(bar: Reporter, task: _Task) -> None:
    kept, failed = len(task.kept), task.played - len(task.kept)
    steps = np.mean([episode.simulator_steps for episode in task.kept])
    actions = np.mean([len(episode.actions) for episode in task.kept])
    bar.advance(kept)
    bar.note(
        f"  {task.name:<24} expert {kept}/{task.played}{', failures replaced' if failed else ''}, "
        f"{actions:.1f} actions ({steps:.0f} steps)"
    )
