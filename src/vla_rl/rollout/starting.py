"""Environments whose episodes may start at states of demonstrations.

    states = StartStates(DemonstrationSnapshots(folder, versions), env)
    envs = StartingVectorEnv(envs, states)
    envs.post_reset([0], [EpisodeSpec("push", 7, Start(demonstration=3, frame=12))])

The episode goes on with the turns that have passed by then: its time limit and its time fraction are those of an
episode that came there by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from vla_rl.config import ConfigError, EnvConfig, UserError
from vla_rl.curriculum.starts import Way
from vla_rl.data.snapshots import Demonstration, DemonstrationSnapshots
from vla_rl.envs.env import EpisodesLostError, Snapshot, VectorEnv, split_initial_states
from vla_rl.envs.registry import benchmark, settings_of, task_names
from vla_rl.envs.vector.work_times import TimesItsWork
from vla_rl.runtime.call_times import CallTimes
from vla_rl.runtime.provenance import package_versions
from vla_rl.types import EpisodeSpec, Observation, StepResult

PROPRIO_TOLERANCE = 1e-4
"""Metres and radians by which a restored robot may be elsewhere than the dataset says; another processor rounds."""


class StartStates:
    """The states of a dataset's demonstrations as starts of episodes in `env`."""

    def __init__(self, folder: str, env: EnvConfig) -> None:
        """Read and check `folder`.

        UserError for what `DemonstrationSnapshots` refuses, for a dataset without a demonstration of any task of
        `env.suite`, and for demonstrations from initial states that `env` holds out.
        """
        self.snapshots = DemonstrationSnapshots(
            folder, package_versions(benchmark(env.suite).packages)
        )
        self.env = env
        self.tasks = task_names(env.suite)
        self._clocks = {task: self._clock(task) for task in self._played_tasks()}
        self._require_training_states()

    def _played_tasks(self) -> tuple[str, ...]:
        there = dict.fromkeys(d.task for d in self.snapshots.demonstrations.values())
        common = tuple(task for task in self.tasks if task in there)
        if not common:
            raise UserError(
                f"{self.snapshots.folder}: expected demonstrations of {', '.join(self.tasks[:4])} or another task of "
                f"{self.env.suite}, got those of {', '.join([*there][:4]) or 'none with two actions'}. Collect them "
                f"with `vla-rl demos --snapshots --env.suite {self.env.suite}`"
            )
        return common

    def _clock(self, task: str) -> tuple[int, int, int]:
        """Simulator steps of an action of the demonstration, of a turn, and turns of an episode."""
        own = settings_of(self.env, task)
        demo = settings_of(self.snapshots.env, task)
        return demo.action_repeat, own.action_repeat * own.action_chunk, own.horizon

    def _require_training_states(self) -> None:
        train, _ = split_initial_states(self.env.initial_states, self.env.held_out)
        for one in self.snapshots.demonstrations.values():
            if one.task in self._clocks and not 0 <= one.initial_state < len(train):
                raise UserError(
                    f"{self.snapshots.folder}: demonstration {one.number} of {one.task!r} begins in initial state "
                    f"{one.initial_state}, which is not for training (env.initial_states {self.env.initial_states}, "
                    f"env.held_out {self.env.held_out}): take the demonstrations' own settings, or others"
                )

    def turns_at(self, task: str, frame: int) -> int:
        """Turns of an episode in `env` that have passed when so many actions of a demonstration have."""
        of_action, of_turn, _ = self._clocks[task]
        return frame * of_action // of_turn

    def ways(self) -> dict[str, list[Way]]:
        """By task, the demonstrations with a state from which at least one turn is left."""
        ways: dict[str, list[Way]] = {task: [] for task in self._clocks}
        for one in self.snapshots.demonstrations.values():
            if one.task in ways and (last := self._last(one)) > 0:
                ways[one.task].append(Way(one.number, one.initial_state, one.length, last))
        return ways

    def _last(self, one: Demonstration) -> int:
        of_action, of_turn, horizon = self._clocks[one.task]
        # the latest frame with turns_at < horizon
        return min(one.length - 1, (horizon * of_turn - 1) // of_action)

    def snapshot(self, spec: EpisodeSpec) -> Snapshot:
        """The state in which the episode `spec` starts, which has a `start`."""
        assert spec.start is not None
        number, frame, _ = spec.start
        one = self.snapshots.demonstrations.get(number)
        if one is None or (one.task, one.initial_state) != spec[:2] or not 1 <= frame < one.length:
            raise UserError(
                f"{self.snapshots.folder} has no state {frame} of a demonstration {number} of {spec.task!r} from "
                f"initial state {spec.initial_state}: take the dataset that the episode was drawn from"
            )
        return {**self.snapshots.snapshot(number, frame), "turns": self.turns_at(spec.task, frame)}

    def begin(self, env: Any, spec: EpisodeSpec) -> None:
        """Start an episode in a single environment."""
        if spec.start is None:
            env.reset(spec)
        else:
            env.restore(self.snapshot(spec))

    def require_restorable(self, envs: VectorEnv) -> None:
        """Put the simulators into one state of each task, and compare the robot with what the dataset says.

        UserError where they cannot take it, or the robot is elsewhere. No episode may be running in `envs`.
        """
        for turn, (task, ways) in enumerate(self.ways().items()):
            if not ways:
                continue
            number, frame = ways[0].demonstration, ways[0].last
            state = self.snapshots.snapshot(number, frame)
            # as far in its episode as the simulator allows it to be asked anything
            state["turns"] = self.turns_at(task, frame)
            try:
                seen = envs.restore([turn % envs.num_envs], [state])
            except EpisodesLostError as error:
                raise UserError(
                    f"{self.snapshots.folder}: the simulator of {task!r} ended when it was put into a state of "
                    f"demonstration {number}. Collect the demonstrations again"
                ) from error
            stored = self.snapshots.proprio(number, frame)
            width = min(len(stored), seen.proprio.shape[1])
            gap = float(np.abs(seen.proprio[0, :width] - stored[:width]).max())
            if not gap <= PROPRIO_TOLERANCE:
                raise UserError(
                    f"{self.snapshots.folder}: action {frame} of demonstration {number} of {task!r} restores a robot "
                    f"that is {gap:.3g} away from where the dataset has it: its snapshots are of another simulation. "
                    "Collect the demonstrations again"
                )


def require_same_everywhere(digests: Sequence[str], folder: str) -> None:
    """ConfigError unless all processes read the same dataset."""
    if len({*digests}) > 1:
        raise ConfigError(
            f"starts.dataset {folder} is not the same on every machine ({', '.join(dict.fromkeys(digests))}): copy one "
            "of them to all"
        )


class StartingVectorEnv:
    """`envs`, where an episode with a `start` begins in that state; the `VectorEnv` protocol."""

    def __init__(self, envs: VectorEnv, states: StartStates) -> None:
        self.num_envs, self.action_dim, self.horizon = envs.num_envs, envs.action_dim, envs.horizon
        self.tasks, self.instructions = envs.tasks, envs.instructions
        self.infrastructure_errors = envs.infrastructure_errors
        self._envs, self._states = envs, states

    def post_reset(self, slots: Sequence[int], specs: Sequence[EpisodeSpec]) -> None:
        """As `envs`; a slot whose episode has a `start` is put there."""
        at_start = [row for row, spec in enumerate(specs) if spec.start is None]
        on_way = [row for row, spec in enumerate(specs) if spec.start is not None]
        snapshots = [self._states.snapshot(specs[row]) for row in on_way]
        if at_start:
            self._envs.post_reset([slots[r] for r in at_start], [specs[r] for r in at_start])
        if on_way:
            self._envs.post_restore([slots[r] for r in on_way], snapshots)

    def post_step(self, slots: Sequence[int], actions: Float32[np.ndarray, "S C A"]) -> None:
        self._envs.post_step(slots, actions)

    def wait(self, slots: Sequence[int]) -> StepResult:
        result = self._envs.wait(slots)
        self.infrastructure_errors = self._envs.infrastructure_errors
        return result

    def snapshot(self, slots: Sequence[int]) -> list[Snapshot]:
        return self._envs.snapshot(slots)

    def post_restore(self, slots: Sequence[int], snapshots: Sequence[Snapshot]) -> None:
        self._envs.post_restore(slots, snapshots)

    def restore(self, slots: Sequence[int], snapshots: Sequence[Snapshot]) -> Observation:
        return self._envs.restore(slots, snapshots)

    def dense_rewards(self, slots: Sequence[int]) -> Float32[np.ndarray, " S"]:
        return self._envs.dense_rewards(slots)

    def work_times(self) -> dict[str, CallTimes]:
        """As `envs`, where it counts."""
        return self._envs.work_times() if isinstance(self._envs, TimesItsWork) else {}

    def memory_bytes(self) -> int:
        return self._envs.memory_bytes()

    def close(self) -> None:
        self._envs.close()
