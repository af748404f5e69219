"""Two environments whose answers are known on paper, to test algorithms on: a bandit and a chain.

They look like any other environment (images, chunks of actions in [-1, 1]), need no simulator, and take microseconds.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError
from vla_rl.envs.env import Snapshot
from vla_rl.types import EpisodeSpec


class _KnownAnswerEnv:
    """What both share: one task, a turn counter, a number as state, time limit after `config.horizon` turns."""

    tasks: tuple[str, ...]
    instructions: tuple[str, ...]
    action_dim = 4
    proprio_dim = 4

    def __init__(self, config: EnvConfig) -> None:
        self.instruction = self.instructions[0]
        self.turns = 0
        self._config = config
        self._state = 0
        self._initial_state = 0

    def _first_state(self, initial_state: int) -> int:
        raise NotImplementedError

    def _play(self, action: float) -> bool:
        """One turn with the first number of the first action; returns success."""
        raise NotImplementedError

    def reset(self, spec: EpisodeSpec) -> None:
        if spec.task not in self.tasks:
            raise ConfigError(f"expected task {self.tasks[0]!r}, got {spec.task!r}")
        self._initial_state = spec.initial_state
        self._state = self._first_state(spec.initial_state)
        self.turns = 0

    def step(self, actions: Float32[np.ndarray, "C 4"]) -> tuple[float, bool, bool, int]:
        """Only the sign of the turn's first number matters. Returns (reward, terminated, truncated, steps)."""
        success = self._play(float(actions[0, 0]))
        self.turns += 1
        truncated = not success and self.turns >= self._config.horizon
        return float(success), success, truncated, len(actions) * self._config.action_repeat

    def proprio(self) -> Float32[np.ndarray, " 4"]:
        """Zeros: the answer is in the image alone."""
        return np.zeros(4, dtype=np.float32)

    def _blank(self) -> UInt8[np.ndarray, "H W 3"]:
        size = self._config.image_size
        return np.zeros((size, size, 3), dtype=np.uint8)

    def snapshot(self) -> Snapshot:
        return {
            "task": self.tasks[0],
            "initial_state": self._initial_state,
            "state": self._state,
            "turns": self.turns,
        }

    def restore(self, snapshot: Snapshot) -> None:
        self.reset(EpisodeSpec(str(snapshot["task"]), int(snapshot["initial_state"])))
        self._state, self.turns = int(snapshot["state"]), int(snapshot["turns"])

    def close(self) -> None:
        """Nothing to free."""


class BanditEnv(_KnownAnswerEnv):
    """Two arms; the image shows which one pays.

    Odd initial states: the right half of the image is bright, and a turn whose first number is positive succeeds.
    Even ones: the left half, and negative. With `horizon=1` this is a contextual bandit: a random policy
    succeeds half the time, the best one always.
    """

    tasks = ("bandit",)
    instructions = ("choose the bright side",)

    def _first_state(self, initial_state: int) -> int:
        return initial_state % 2

    def _play(self, action: float) -> bool:
        return (action > 0) == bool(self._state)

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        image = self._blank()
        half = image.shape[1] // 2
        image[:, half:] = 255 * self._state
        image[:, :half] = 255 * (1 - self._state)
        return image


class ChainEnv(_KnownAnswerEnv):
    """A corridor of `LENGTH` cells: a positive first number moves one on, anything else stays; the end succeeds.

    The image is bright up to the current cell. Initial state i starts in cell i mod LENGTH.
    """

    LENGTH = 5
    DENSE_REWARD_MAX = 10.0
    tasks = ("chain",)
    instructions = ("walk to the end",)

    def _first_state(self, initial_state: int) -> int:
        return initial_state % self.LENGTH

    def _play(self, action: float) -> bool:
        self._state += action > 0
        return self._state >= self.LENGTH

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        image = self._blank()
        image[:, : round(image.shape[1] * (self._state + 0.5) / (self.LENGTH + 0.5))] = 255
        return image

    def dense_reward(self) -> float:
        """The share of the corridor walked, times `DENSE_REWARD_MAX`."""
        return self.DENSE_REWARD_MAX * self._state / self.LENGTH

    @classmethod
    def value(cls, cell: int, move_probability: float, gamma: float) -> float:
        """V(cell) of the policy that moves with probability p in every turn, time limits bootstrapped:

            V(m cells to go) = (γ p / (1 - γ (1 - p)))^(m-1) · p / (1 - γ (1 - p))

        from V(m) = p γ V(m-1) + (1 - p) γ V(m), with the reward 1 on arrival.
        """  # fmt: skip
        per_cell = move_probability / (1 - gamma * (1 - move_probability))
        return per_cell * (gamma * per_cell) ** (cls.LENGTH - cell - 1)


def make_bandit_envs(config: EnvConfig, count: int) -> list[BanditEnv]:
    return [BanditEnv(config) for _ in range(count)]


def make_chain_envs(config: EnvConfig, count: int) -> list[ChainEnv]:
    return [ChainEnv(config) for _ in range(count)]
