"""One Gymnasium environment, driven by actions in [-1, 1] and read as its layout says. Raises what it raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl.config.errors import UserError
from vla_rl.envs.gymnasium.opening import open_environment
from vla_rl.envs.gymnasium.options import GymOptions, Path
from vla_rl.envs.gymnasium.spaces import Actions, as_picture, name_of, value_at

INSTRUCTIONS = ("instruction", "mission", "language_instruction", "task_description")
"""Usual names of what the policy is told."""

Keeps = Literal["state", "replay", "none"]
"""How an episode can be gone back to: the environment gives its state, its actions are played again, or not at all."""


@dataclass(frozen=True)
class Layout:
    """What was found in an environment, once (`looking.py`): plain values, which simulator processes are given."""

    image: Path | None
    """None: `render()` gives it."""
    wrist: Path | None
    proprio: tuple[Path, ...]
    proprio_dim: int
    actions: Actions
    success: tuple[Literal["info", "terminated", "reward"], str]
    """The rule, and the key of info."""
    instruction: str
    reads_instruction: bool
    """The environment says it in each episode; else it is the options'."""
    renders: bool
    """It can draw itself as an array, for videos if not for the policy."""
    keeps: Keeps
    step_limit: int | None
    rate: int
    """Its steps of a second."""


class GymSimulator:
    """The environment, with what its last reset or step gave."""

    observation: Any = None
    info: dict[str, Any]
    reward = 0.0
    terminated = truncated = False

    def __init__(self, options: GymOptions, layout: Layout, *, rendered: bool = False) -> None:
        """`rendered`: `render()` is wanted although the image is in the observation."""
        self._options, self._layout, self.info = options, layout, {}
        self.env = open_environment(options, rendered=rendered or layout.image is None)
        low, high = np.array(layout.actions.low), np.array(layout.actions.high)
        self._low, self._span = low, high - low

    def reset(self, seed: int) -> None:
        """Start the episode of a seed."""
        extra = dict(self._options.reset)
        answer = self.env.reset(seed=int(seed), **({"options": extra} if extra else {}))
        whole = isinstance(answer, tuple) and len(answer) == 2
        if not (whole and isinstance(answer[1], Mapping)):
            raise UserError(
                f"{self._options.suite}: reset gave {type(answer).__name__}: expected (observation, info), info a "
                "dict, as Gymnasium has it"
            )
        self.observation, self.info = answer[0], dict(answer[1])
        self.reward, self.terminated, self.truncated = 0.0, False, False

    def step(self, action: Float32[np.ndarray, " A"]) -> None:
        """Play one step with an action in [-1, 1], stretched to the environment's bounds."""
        bounds = self._layout.actions
        number = np.dtype(bounds.dtype).type
        scaled = (self._low + (action.astype(np.float64) + 1) / 2 * self._span).astype(number)
        inside = np.clip(scaled, self._low.astype(number), (self._low + self._span).astype(number))
        answer = self.env.step(inside.reshape(bounds.shape))
        whole = isinstance(answer, tuple) and len(answer) == 5
        if not (whole and isinstance(answer[4], Mapping)):
            raise UserError(
                f"{self._options.suite}: step gave {type(answer).__name__} of "
                f"{len(answer) if isinstance(answer, tuple) else 1}: expected (observation, reward, terminated, "
                "truncated, info), info a dict, as Gymnasium has it"
            )
        self.observation, reward, terminated, truncated, info = answer
        value = np.asarray(reward)
        if value.size != 1 or value.dtype.kind not in "biuf" or not np.isfinite(value).all():
            raise UserError(
                f"{self._options.suite}: step gave the reward {reward!r}: expected one finite number"
            )
        self.reward, self.info = float(value.reshape(-1)[0]), dict(info)
        self.terminated, self.truncated = bool(terminated), bool(truncated)

    def observe_state(self, reward: float) -> None:
        """Look at a state that has been written into the environment, and that a step with `reward` led to."""
        self.observation, self.reward = self.env.unwrapped._get_obs(), reward

    @property
    def succeeded(self) -> bool:
        """Whether the episode has succeeded, by the layout's rule."""
        rule, key = self._layout.success
        if rule == "terminated":
            return self.terminated
        if rule == "reward":
            return self.terminated and self.reward > 0
        said = np.asarray(self.info.get(key, False))
        if said.size != 1 or said.dtype.kind not in "biuf" or not np.isfinite(said).all():
            raise UserError(
                f"{self._options.suite}: info[{key!r}] is {self.info[key]!r}: expected true or false"
            )
        return bool(said.reshape(-1)[0])

    @property
    def over(self) -> bool:
        """Whether the environment has ended the episode."""
        return self.terminated or self.truncated

    def picture(self, *, drawn: bool = False) -> UInt8[np.ndarray, "H W 3"]:
        """The image in its own size. `drawn`: `render()`'s, whatever the policy sees."""
        path = self._layout.image
        if path is None or drawn:
            return as_picture(self._options.suite, self.env.render(), "render()")
        return self._picture_at(path)

    def wrist(self) -> UInt8[np.ndarray, "H W 3"]:
        """The second image in its own size."""
        assert self._layout.wrist is not None
        return self._picture_at(self._layout.wrist)

    def _picture_at(self, path: Path) -> UInt8[np.ndarray, "H W 3"]:
        return as_picture(self._options.suite, self._value(path), f"observation {name_of(path)!r}")

    def proprio(self) -> Float32[np.ndarray, " P"]:
        """Proprioception; one zero where there is none. UserError unless it is finite and as long as at first."""
        if not self._layout.proprio:
            return np.zeros(self._layout.proprio_dim, np.float32)
        parts = [
            np.asarray(self._value(path), np.float32).reshape(-1) for path in self._layout.proprio
        ]
        values = np.concatenate(parts)
        if values.shape != (self._layout.proprio_dim,) or not np.isfinite(values).all():
            names = ", ".join(map(name_of, self._layout.proprio))
            raise UserError(
                f"{self._options.suite}: proprioception ({names}) is {values}: expected {self._layout.proprio_dim} "
                "finite numbers"
            )
        return values

    def _value(self, path: Path) -> Any:
        try:
            return value_at(self.observation, path)
        except (KeyError, IndexError, TypeError):
            raise UserError(
                f"{self._options.suite}: its observation has no {name_of(path)!r}, which its observation space names"
            ) from None

    def instruction(self) -> str | None:
        """What the environment says is to be done, under one of the usual names or the options' one."""
        asked = self._options.instruction_from
        for name in (asked,) if asked else INSTRUCTIONS:
            for found in (
                self.observation.get(name) if isinstance(self.observation, dict) else None,
                self.info.get(name),
                getattr(self.env.unwrapped, name, None),
            ):
                if isinstance(found, str) and found.strip():
                    return " ".join(found.split())
        return None

    def close(self) -> None:
        self.env.close()
