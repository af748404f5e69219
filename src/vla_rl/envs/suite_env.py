"""A suite as a Gymnasium environment: a step is a turn, an episode one of the suite's tasks from a training state."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from jaxtyping import UInt8

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, nearest
from vla_rl.envs.defaults import laptop_env
from vla_rl.envs.env import DenselyRewarded, split_initial_states
from vla_rl.envs.registry import as_played, benchmark, make_envs, no_dense_reward
from vla_rl.types import EpisodeSpec

_STEERED = ("num_envs", "num_workers", "step_timeout", "start_timeout", "max_restarts")
"""Fields of `EnvConfig` that are about simulator processes, of which there are none here."""


class SuiteEnv(gymnasium.Env[Any, np.ndarray]):
    """One environment of a suite.

    Observation: a Dict of `image`, uint8 (H, W, 3), and `proprio`, float32 (P,); or the image alone, and with
    `observation="text"` the `instruction` beside both. Action: `action_chunk` times the robot's numbers, each in
    [-1, 1]. Reward: 1 with success, which terminates; with `reward="dense"` the simulator's own as a share of what a
    solved task gives. The horizon truncates. `info` holds `is_success`, `instruction`, `task`, `initial_state` and
    `simulator_steps`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}  # type: ignore[misc]

    def __init__(
        self,
        suite: str,
        *,
        observation: Literal["dict", "image", "text"] = "dict",
        reward: Literal["success", "dense"] = "success",
        split: Literal["train", "held-out"] = "train",
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        """split: which initial states are played; the held-out ones are for evaluation. settings: of `EnvConfig`.

        ConfigError for a suite or a setting that there is not, UserError where the simulator is missing.
        """
        known = {field.name for field in fields(EnvConfig)} - {"suite", *_STEERED}
        for name in settings:
            if name not in known:
                raise ConfigError(f"there is no setting {name!r}.{nearest(name, known)}")
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"render_mode {render_mode!r}: expected 'rgb_array' or None")
        _require_one_of("observation", observation, ("dict", "image", "text"))
        _require_one_of("reward", reward, ("success", "dense"))
        _require_one_of("split", split, ("train", "held-out"))
        config = as_played(replace(laptop_env(suite), **{"num_envs": 1, **settings}))
        self.render_mode, self._observed, self._config = render_mode, observation, config
        played = benchmark(suite)
        self._most = played.dense_reward_max if reward == "dense" else None
        if reward == "dense" and self._most is None:
            raise no_dense_reward(suite)
        self._env = make_envs(config, 1)[0]
        train, kept = split_initial_states(config.initial_states, config.held_out)
        self._states = kept if split == "held-out" else train
        self._spec = EpisodeSpec(self._env.tasks[0], 0)
        size = config.image_size
        image = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        proprio = gymnasium.spaces.Box(-np.inf, np.inf, (self._env.proprio_dim,), np.float32)
        parts: dict[str, gymnasium.Space[Any]] = {"image": image, "proprio": proprio}
        if observation == "text":
            characters = frozenset("".join(self._env.instructions))
            longest = max(map(len, self._env.instructions))
            parts["instruction"] = gymnasium.spaces.Text(longest, charset=characters)
        self.observation_space = image if observation == "image" else gymnasium.spaces.Dict(parts)
        chunk, numbers = config.action_chunk, self._env.action_dim
        shape = (numbers,) if chunk == 1 else (chunk, numbers)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, shape, np.float32)

    @property
    def instruction(self) -> str:
        """What is to be done in the episode being played."""
        return self._env.instruction

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode. options: `task` and `initial_state`, which are drawn where they are not given."""
        super().reset(seed=seed)
        asked = options or {}
        tasks = self._env.tasks
        task = asked.get("task", tasks[int(self.np_random.integers(len(tasks)))])
        state = asked.get(
            "initial_state", self._states[int(self.np_random.integers(len(self._states)))]
        )
        if not isinstance(state, int | np.integer) or not 0 <= state < self._config.initial_states:
            raise ConfigError(
                f"initial_state: expected a whole number from 0 to {self._config.initial_states - 1}, got {state!r}"
            )
        self._spec = EpisodeSpec(str(task), int(state))
        self._env.reset(self._spec)
        return self._observation(), self._info(False, 0)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Play one turn."""
        numbers = np.asarray(action, np.float32).reshape(-1, self._env.action_dim)
        if numbers.shape[0] != self._config.action_chunk:
            raise ConfigError(
                f"an action has the shape {self.action_space.shape}, got {np.shape(action)}"
            )
        reward, terminated, truncated, steps = self._env.step(numbers)
        if self._most is not None and isinstance(self._env, DenselyRewarded):
            reward = self._env.dense_reward() / self._most
        info = self._info(terminated, steps)
        return self._observation(), float(reward), terminated, truncated, info

    def _observation(self) -> Any:
        image = self._env.render().copy()
        if self._observed == "image":
            return image
        seen: dict[str, Any] = {"image": image, "proprio": self._env.proprio().copy()}
        return {**seen, "instruction": self.instruction} if self._observed == "text" else seen

    def _info(self, success: bool, steps: int) -> dict[str, Any]:
        return {
            "is_success": success,
            "instruction": self.instruction,
            "task": self._spec.task,
            "initial_state": self._spec.initial_state,
            "simulator_steps": steps,
        }

    def render(self) -> UInt8[np.ndarray, "H W 3"] | None:  # type: ignore[override]
        """The policy's image, where `render_mode` is rgb_array."""
        return self._env.render().copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self._env.close()


def _require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} {value!r}: expected one of {', '.join(known)}")
