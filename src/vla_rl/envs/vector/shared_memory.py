"""The memory in which worker processes leave images and numbers for the learner, one row per slot.

An anonymous file handed down as a descriptor, not a named block: there is nothing to unlink, so nothing stays behind
however the processes end.
"""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from vla_rl.config.errors import ConfigError
from vla_rl.envs.env import Env, SeenFromTheWrist

_ALIGNMENT = 64


def anonymous_file() -> int:
    """A descriptor of an empty file that lives in memory and has no name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vla-rl-slots", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # macOS
        return os.dup(file.fileno())


class SlotArrays:
    """Arrays with a row per slot: in this process's memory, or mapped from a descriptor that processes share."""

    images: UInt8[np.ndarray, "N H W 3"]
    wrist: UInt8[np.ndarray, "N H W 3"] | None = None  # where there is a second camera
    proprio: Float32[np.ndarray, "N P"]
    time_fraction: Float32[np.ndarray, " N"]
    rewards: Float32[np.ndarray, " N"]
    terminated: Bool[np.ndarray, " N"]
    truncated: Bool[np.ndarray, " N"]
    simulator_steps: Int64[np.ndarray, " N"]

    def __init__(
        self,
        num_envs: int,
        image_size: int,
        proprio_dim: int,
        descriptor: int | None = None,
        wrist: bool = False,
    ) -> None:
        shapes: dict[str, tuple[tuple[int, ...], type]] = {
            "images": ((num_envs, image_size, image_size, 3), np.uint8),
            "proprio": ((num_envs, proprio_dim), np.float32),
            "time_fraction": ((num_envs,), np.float32),
            "rewards": ((num_envs,), np.float32),
            "terminated": ((num_envs,), np.bool_),
            "truncated": ((num_envs,), np.bool_),
            "simulator_steps": ((num_envs,), np.int64),
        }
        if wrist:
            shapes["wrist"] = shapes["images"]
        offsets, size = {}, 0
        for name, (shape, kind) in shapes.items():
            offsets[name] = size
            length = int(np.prod(shape)) * np.dtype(kind).itemsize
            size += -(-length // _ALIGNMENT) * _ALIGNMENT
        self._map: mmap.mmap | None = None
        if descriptor is None:
            buffer = bytearray(size)
        else:
            if os.fstat(descriptor).st_size < size:
                os.ftruncate(descriptor, size)
            buffer = self._map = mmap.mmap(descriptor, size)
        for name, (shape, kind) in shapes.items():
            setattr(self, name, np.ndarray(shape, kind, buffer, offsets[name]))

    def write_observation(self, slot: int, env: Env, horizon: int) -> None:
        """Put what `env` shows now into row `slot`."""
        self.images[slot] = env.render()
        if self.wrist is not None:
            if not isinstance(env, SeenFromTheWrist):
                raise ConfigError("this simulator has no second camera: leave env.wrist_camera out")
            self.wrist[slot] = env.render_wrist()
        self.proprio[slot] = env.proprio()
        # an environment of several suites knows the limit of the episode it plays
        self.time_fraction[slot] = env.turns / getattr(env, "turn_limit", horizon)

    def write_reset(self, slot: int, env: Env, horizon: int) -> None:
        """Row `slot` after a reset or a restore: the observation, no reward, nothing ended."""
        self.rewards[slot] = 0.0
        self.terminated[slot] = self.truncated[slot] = False
        self.simulator_steps[slot] = 0
        self.write_observation(slot, env, horizon)

    def write_step(
        self, slot: int, env: Env, horizon: int, outcome: tuple[float, bool, bool, int]
    ) -> None:
        """Row `slot` after a turn that returned `outcome`."""
        self.rewards[slot], self.terminated[slot], self.truncated[slot], _ = outcome
        self.simulator_steps[slot] = outcome[3]
        self.write_observation(slot, env, horizon)
