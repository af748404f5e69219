"""What the process reward model learns from: whole trajectories, and labels for them.

    vla-rl reward collect runs/sft/policy --out runs/play          # the policy's own episodes, failures among them
    vla-rl reward label runs/play --plot                           # runs/play/labels, with an image of each
    vla-rl reward label runs/demos --labels.scheme segments --out runs/demo-labels

Collecting plays initial states of the training split alone, each (task, initial state) once. Labels are made from the
trajectories whenever they are needed. On disk they are for people and for other programs
(`rewards/process/label_files.py` describes them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vla_rl.config import (
    EnvConfig,
    PolicyConfig,
    RewardCollectConfig,
    RewardLabelConfig,
    UserError,
)
from vla_rl.envs import make_vector_env, split_initial_states
from vla_rl.envs.defaults import evaluation_env
from vla_rl.envs.env import VectorEnv
from vla_rl.envs.registry import task_names
from vla_rl.evaluation.episodes import play_each_once
from vla_rl.policies.policy import Policy
from vla_rl.recipes.loading import load_with_env
from vla_rl.report.figures.labels import draw_labels
from vla_rl.rewards.process.label_files import require_no_labels, save_labels
from vla_rl.rewards.process.labels import Labels, label
from vla_rl.rewards.process.robot_signals import robot_signals
from vla_rl.rewards.trajectories import Trajectory
from vla_rl.rewards.trajectory_files import TrajectoryWriter, load_trajectories
from vla_rl.rollout.recording import RecordingVectorEnv
from vla_rl.runtime.devices import use_threads
from vla_rl.runtime.memory import keep_freed_memory
from vla_rl.runtime.progress import note, progress
from vla_rl.runtime.seeding import generator
from vla_rl.types import EpisodeSpec


def collect_trajectories(config: RewardCollectConfig) -> Path:
    """Play the policy on the training split and write every episode to `config.out`; returns that folder.

    The dataset depends on the configuration alone. Raises UserError if the folder exists, if there is no such policy,
    or if the split has fewer initial states than asked for.
    """
    writer = TrajectoryWriter(config.out, config.image_format)
    keep_freed_memory()
    policy, suite, trained_in = load_with_env(config.checkpoint, PolicyConfig(), config.suite)
    env = evaluation_env(
        suite, trained_in, policy.image_size, policy.resizes_images, policy.action_chunk
    )
    env = replace(env, num_workers=config.workers or env.num_workers)
    specs = training_specs(env, config.episodes_per_task, config.seed)
    with (
        writer,
        use_threads(1),
        make_vector_env(env) as envs,
        progress("trajectories", total=len(specs)) as bar,
    ):
        successes: list[bool] = []

        def keep(trajectory: Trajectory) -> None:
            writer.add(trajectory)
            successes.append(trajectory.success)
            bar.advance(1, success=sum(successes) / len(successes))

        play_and_keep(
            policy, envs, env, specs, keep, temperature=config.temperature, seed=config.seed
        )
    note(f"{sum(successes)} successes, {len(successes) - sum(successes)} failures")
    return Path(config.out)


def training_specs(env: EnvConfig, episodes_per_task: int, seed: int) -> list[EpisodeSpec]:
    """`episodes_per_task` initial states of the training split for every task, which ones depends on the seed."""
    states, _ = split_initial_states(env.initial_states, env.held_out)
    if episodes_per_task > len(states):
        raise UserError(
            f"--episodes-per-task {episodes_per_task} asks for more than the {len(states)} initial states of the "
            "training split, each of which is played once: ask for fewer"
        )
    tasks = task_names(env.suite)
    drawn = {
        task: generator(seed, "reward collect", task).permutation(states)[:episodes_per_task]
        for task in tasks
    }
    return [
        EpisodeSpec(task, int(drawn[task][i])) for i in range(episodes_per_task) for task in tasks
    ]


def play_and_keep(
    policy: Policy,
    envs: VectorEnv,
    env: EnvConfig,
    specs: Sequence[EpisodeSpec],
    keep: Callable[[Trajectory], None],
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> None:
    """Play every spec once, images kept, and hand the episodes to `keep` in the order of `specs`.

    Those that end early wait for their turn, so that the order does not depend on who was faster.
    """
    waiting: dict[EpisodeSpec, Trajectory] = {}
    due = list(specs)[::-1]

    def finished(trajectory: Trajectory) -> None:
        waiting[EpisodeSpec(trajectory.task, trajectory.initial_state)] = trajectory
        while due and due[-1] in waiting:
            keep(waiting.pop(due.pop()))

    recording = RecordingVectorEnv(envs, env, finished)
    play_each_once(policy, recording, specs, temperature=temperature, seed=seed)


def label_dataset(config: RewardLabelConfig) -> Path:
    """Label every episode of `config.dataset`; returns the folder of the labels.

    Raises UserError for a dataset that cannot be read or labelled, and if the folder exists.
    """
    folder = Path(config.out) if config.out else Path(config.dataset) / "labels"
    require_no_labels(folder)
    trajectories = load_trajectories(
        config.dataset,
        action_chunk=config.action_chunk,
        camera=config.camera,
        image_fit=config.image_fit,
    )
    labels = [label(t, config.labels, robot_signals(t.robot)) for t in trajectories]

    def draw(partial: Path) -> None:
        _draw(partial / "plots", trajectories, labels, config)

    plots = draw if config.plot else None
    save_labels(folder, trajectories, labels, config.labels, config.dataset, plots)
    note(counts(trajectories, labels))
    return folder


def counts(trajectories: Sequence[Trajectory], labels: Sequence[Labels]) -> str:
    """A table: episodes, successes, milestones, key frames and labels of each task."""
    width = max(len(trajectory.task) for trajectory in trajectories)
    lines = [
        f"{'task':<{width}}  episodes  successes  milestones  key frames  positive  negative  left out"
    ]
    for task in dict.fromkeys(trajectory.task for trajectory in trajectories):
        rows = [i for i, trajectory in enumerate(trajectories) if trajectory.task == task]
        own = [labels[i] for i in rows]
        numbers = (
            len(rows), sum(trajectories[i].success for i in rows), sum(len(g.milestones) for g in own),
            sum(len(g.key_frames) for g in own), sum(int(g.positive.sum()) for g in own),
            sum(int(g.negative.sum()) for g in own), sum(int((~g.known).sum()) for g in own),
        )  # fmt: skip
        sizes = (8, 9, 10, 10, 8, 8, 8)
        lines.append(
            f"{task:<{width}}  "
            + "  ".join(f"{n:>{s}}" for n, s in zip(numbers, sizes, strict=True))
        )
    return "\n".join(lines)


def _draw(
    folder: Path,
    trajectories: Sequence[Trajectory],
    labels: Sequence[Labels],
    config: RewardLabelConfig,
) -> None:
    chosen = choose_to_draw(trajectories, config.max_plots)
    folder.mkdir()
    with progress("images", total=len(chosen)) as bar:
        for index in chosen:
            trajectory = trajectories[index]
            outcome = "success" if trajectory.success else "failure"
            task = trajectory.task.replace(" ", "_").replace("/", "_")[:80]
            path = folder / f"{index:04d}-{task}-{trajectory.initial_state}-{outcome}.png"
            robot = robot_signals(trajectory.robot)
            draw_labels(path, trajectory, labels[index], config.labels, robot)
            bar.advance(1)


def choose_to_draw(trajectories: Sequence[Trajectory], most: int) -> list[int]:
    """At most `most` indices, ascending: the kinds (task, outcome) take turns, so that each is seen."""
    kinds: dict[tuple[str, bool], list[int]] = {}
    for index, trajectory in enumerate(trajectories):
        kinds.setdefault((trajectory.task, trajectory.success), []).append(index)
    longest = max(map(len, kinds.values()))
    turns = [own[i] for i in range(longest) for own in kinds.values() if i < len(own)]
    return sorted(turns[:most])
