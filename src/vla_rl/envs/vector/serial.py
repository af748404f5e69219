"""The vector environment without processes: for debugging, for tests of algorithms, for tiny environments."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import numpy as np
import psutil
from jaxtyping import Float32

from vla_rl.config.env import EnvConfig
from vla_rl.envs.env import DenselyRewarded, Snapshot, require_beginnings
from vla_rl.envs.registry import longest_horizon, no_dense_reward
from vla_rl.envs.registry import make_envs as make_suite_envs
from vla_rl.envs.vector.shared_memory import SlotArrays
from vla_rl.envs.vector.work_times import TimedWork, as_times
from vla_rl.envs.vector.worker import MakeEnvs
from vla_rl.runtime.call_times import CallTimes
from vla_rl.types import EpisodeSpec, Observation, StepResult


class SerialVectorEnv:
    """`config.num_envs` slots in this process, one after another; the `VectorEnv` protocol.

    Work is done when it is posted. Errors of an environment are not caught: they surface in `post_*`.
    """

    def __init__(self, config: EnvConfig, make_envs: MakeEnvs = make_suite_envs) -> None:
        self._envs = list(make_envs(config, config.num_envs))
        first = self._envs[0]
        self.num_envs = config.num_envs
        self.horizon = config.horizon or longest_horizon(config)
        self._suite = config.suite
        self.action_dim, self.proprio_dim = first.action_dim, first.proprio_dim
        self.tasks, self.instructions = first.tasks, first.instructions
        self.infrastructure_errors = 0
        self._arrays = SlotArrays(
            config.num_envs,
            config.image_size,
            first.proprio_dim,
            wrist=bool(config.wrist_camera),
        )
        self._work = TimedWork(self._arrays, self.horizon)
        self._pending: set[int] = set()

    def _claim(self, slots: Sequence[int], count: int) -> None:
        if len(slots) != count:
            raise ValueError(f"{len(slots)} slots but work for {count}")
        busy = self._pending.intersection(slots)
        if busy or len(set(slots)) != len(slots):
            raise RuntimeError(f"wait for slots {sorted(busy)} before posting to them again")
        self._pending.update(slots)

    def post_reset(self, slots: Sequence[int], specs: Sequence[EpisodeSpec]) -> None:
        require_beginnings(specs)
        self._claim(slots, len(specs))
        for slot, spec in zip(slots, specs, strict=True):
            self._work.reset(slot, self._envs[slot], spec)

    def post_step(self, slots: Sequence[int], actions: Float32[np.ndarray, "S C A"]) -> None:
        self._claim(slots, len(actions))
        for slot, chunk in zip(slots, np.asarray(actions, dtype=np.float32), strict=True):
            self._work.step(slot, self._envs[slot], chunk)

    def wait(self, slots: Sequence[int]) -> StepResult:
        idle = [slot for slot in slots if slot not in self._pending]
        if idle:
            raise RuntimeError(f"nothing was posted to slots {idle}")
        self._pending.difference_update(slots)
        rows = np.asarray(slots, dtype=np.int64)
        arrays = self._arrays
        return StepResult(
            slots=rows,
            observation=self._observation(slots),
            rewards=arrays.rewards[rows],
            terminated=arrays.terminated[rows],
            truncated=arrays.truncated[rows],
            simulator_steps=arrays.simulator_steps[rows],
            lost=np.zeros(len(rows), dtype=bool),
        )

    def _observation(self, slots: Sequence[int]) -> Observation:
        rows = np.asarray(slots, dtype=np.int64)
        return Observation(
            images=self._arrays.images[rows],
            instructions=tuple(self._envs[slot].instruction for slot in slots),
            proprio=self._arrays.proprio[rows],
            time_fraction=self._arrays.time_fraction[rows],
            wrist=None if self._arrays.wrist is None else self._arrays.wrist[rows],
        )

    def snapshot(self, slots: Sequence[int]) -> list[Snapshot]:
        return [self._envs[slot].snapshot() for slot in slots]

    def post_restore(self, slots: Sequence[int], snapshots: Sequence[Snapshot]) -> None:
        self._claim(slots, len(snapshots))
        for slot, snapshot in zip(slots, snapshots, strict=True):
            self._envs[slot].restore(snapshot)
            self._arrays.write_reset(slot, self._envs[slot], self.horizon)

    def restore(self, slots: Sequence[int], snapshots: Sequence[Snapshot]) -> Observation:
        self.post_restore(slots, snapshots)
        return self.wait(slots).observation

    def dense_rewards(self, slots: Sequence[int]) -> Float32[np.ndarray, " S"]:
        envs = [self._envs[slot] for slot in slots]
        rewards = [env.dense_reward() for env in envs if isinstance(env, DenselyRewarded)]
        if len(rewards) != len(slots):
            raise no_dense_reward(self._suite)
        return np.array(rewards, dtype=np.float32)

    def work_times(self) -> dict[str, CallTimes]:
        """See `TimesItsWork`."""
        return as_times([self._work.take()])

    def memory_bytes(self) -> int:
        """Resident memory of this process."""
        return psutil.Process().memory_info().rss

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def __enter__(self) -> SerialVectorEnv:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
