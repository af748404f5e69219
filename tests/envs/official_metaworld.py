"""Meta-World played through its own `reset` and `step`, from our numbered initial states."""

from __future__ import annotations

from typing import Any

from vla_rl.envs.metaworld.tasks import initial_state_generator
from vla_rl.envs.rendering.gl import load_metaworld_classes


def official_env(task: str, initial_state: int) -> tuple[Any, Any]:
    """A fresh environment of Meta-World after its own reset; returns (env, observation)."""
    env = load_metaworld_classes()[f"{task}-v3"]()
    env._partially_observable = False
    env.__dict__.pop("sawyer_observation_space", None)
    env._set_task_called = True
    env.max_path_length = 10**6
    original = env.reset_model

    def reset_model() -> Any:
        generator, space = initial_state_generator(task, initial_state), env._random_reset_space
        env._get_state_rand_vec = lambda: generator.uniform(
            space.low, space.high, size=space.low.size
        )
        return original()

    env.reset_model = reset_model
    observation, _ = env.reset()
    return env, observation
