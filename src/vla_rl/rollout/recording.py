"""A vector environment that keeps what is seen and done in it: whole episodes, images and all.

    recording = RecordingVectorEnv(envs, config, on_trajectory=writer.add)
    play_each_once(policy, recording, specs)

It stands between the loop and the simulators, so that whoever drives them need not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl.config.env import EnvConfig
from vla_rl.envs.env import Snapshot, VectorEnv
from vla_rl.envs.registry import benchmark, settings_of, turn_seconds
from vla_rl.rewards.trajectories import Origin, Trajectory
from vla_rl.types import EpisodeSpec, Observation, StepResult


@dataclass
class _Running:
    """An episode as far as it has been played: one image more than actions while a turn is due."""

    spec: EpisodeSpec
    instruction: str = ""
    images: list[UInt8[np.ndarray, "H W 3"]] = field(default_factory=list)
    proprio: list[Float32[np.ndarray, " P"]] = field(default_factory=list)
    actions: list[Float32[np.ndarray, "C A"]] = field(default_factory=list)


class RecordingVectorEnv:
    """`envs`, with every episode that ends handed to `on_trajectory`; the `VectorEnv` protocol.

    Episodes lost with their simulator, left unfinished or continued from a snapshot are not kept, nor are those that
    start at a state of a demonstration: what is labelled by its course must be seen from its beginning.
    """

    def __init__(
        self,
        envs: VectorEnv,
        config: EnvConfig,
        on_trajectory: Callable[[Trajectory], None],
        source: Origin = "policy",
    ) -> None:
        self.num_envs, self.action_dim, self.horizon = envs.num_envs, envs.action_dim, envs.horizon
        self.infrastructure_errors = envs.infrastructure_errors
        self.tasks, self.instructions = envs.tasks, envs.instructions
        self._envs, self._on_trajectory = envs, on_trajectory
        self._source: Origin = source
        self._config = config
        self._running: dict[int, _Running] = {}

    def post_reset(self, slots: Sequence[int], specs: Sequence[EpisodeSpec]) -> None:
        """As `envs`; an episode that is under way in a slot is forgotten."""
        self._envs.post_reset(slots, specs)
        self._forget(slots)
        for slot, spec in zip(slots, specs, strict=True):
            if spec.start is None:
                self._running[slot] = _Running(spec)

    def post_step(self, slots: Sequence[int], actions: Float32[np.ndarray, "S C A"]) -> None:
        """As `envs`, and keeps the actions."""
        self._envs.post_step(slots, actions)
        for row, slot in enumerate(slots):
            if slot in self._running:
                self._running[slot].actions.append(np.array(actions[row], dtype=np.float32))

    def wait(self, slots: Sequence[int]) -> StepResult:
        """As `envs`; reports the episodes that ended."""
        result = self._envs.wait(slots)
        self.infrastructure_errors = self._envs.infrastructure_errors
        for row, slot in enumerate(slots):
            running = self._running.get(slot)
            if running is None:
                continue
            seen = result.observation
            if result.lost[row]:
                del self._running[slot]
            elif result.terminated[row] or result.truncated[row]:
                del self._running[slot]
                success = bool(result.terminated[row])
                self._on_trajectory(self._finish(running, success, seen.images[row].copy()))
            else:
                running.instruction = seen.instructions[row]
                running.images.append(seen.images[row].copy())
                running.proprio.append(seen.proprio[row].copy())
        return result

    def _finish(
        self, episode: _Running, success: bool, final_image: UInt8[np.ndarray, "H W 3"]
    ) -> Trajectory:
        played = benchmark(settings_of(self._config, episode.spec.task).suite)
        width = played.action_dim
        actions = np.stack(episode.actions)[:, :, :width]
        return Trajectory(
            images=np.stack(episode.images),
            proprio=np.stack(episode.proprio)[:, : played.proprio_dim],
            actions=actions,
            instruction=episode.instruction,
            task=episode.spec.task,
            initial_state=episode.spec.initial_state,
            success=success,
            source=self._source,
            final_image=final_image,
            turn_seconds=turn_seconds(self._config, episode.spec.task, actions.shape[1]),
            robot=played.robot,
        )

    def snapshot(self, slots: Sequence[int]) -> list[Snapshot]:
        return self._envs.snapshot(slots)

    def post_restore(self, slots: Sequence[int], snapshots: Sequence[Snapshot]) -> None:
        """As `envs`; what is restored has no beginning here, and is not kept."""
        self._forget(slots)
        self._envs.post_restore(slots, snapshots)

    def restore(self, slots: Sequence[int], snapshots: Sequence[Snapshot]) -> Observation:
        """As `post_restore` and `wait`."""
        self._forget(slots)
        return self._envs.restore(slots, snapshots)

    def _forget(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._running.pop(slot, None)

    def dense_rewards(self, slots: Sequence[int]) -> Float32[np.ndarray, " S"]:
        return self._envs.dense_rewards(slots)

    def memory_bytes(self) -> int:
        return self._envs.memory_bytes()

    def close(self) -> None:
        self._envs.close()
