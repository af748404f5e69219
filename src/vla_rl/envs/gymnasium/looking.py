"""Looks at a Gymnasium environment once, at the door: what is where in it, and what it can be relied on for.

It is made, reset and played for some steps with random actions. Everything a run would stumble over later is a
ConfigError or UserError here, of one line that says what to do.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float32

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError
from vla_rl.envs.faults import told
from vla_rl.envs.gymnasium.env import NO_SNAPSHOTS, GymEnv, other_instruction
from vla_rl.envs.gymnasium.opening import open_environment, step_limit
from vla_rl.envs.gymnasium.options import RENDER, GymOptions
from vla_rl.envs.gymnasium.simulator import GymSimulator, Keeps, Layout
from vla_rl.envs.gymnasium.spaces import (
    as_picture,
    chosen_actions,
    chosen_image,
    chosen_proprio,
    chosen_wrist,
    leaves,
)
from vla_rl.envs.gymnasium.states import gives_state
from vla_rl.types import EpisodeSpec

LOG = logging.getLogger(__name__)

_STEPS = 6
"""Steps of an episode that is played twice."""
_PATIENCE = 1000
"""Steps in which info must have said once whether the episode has succeeded."""
_RATE = 20
"""Steps of a second where the environment does not say."""
_SUCCESS = ("success", "is_success")


@cache
def looked_at(options: GymOptions) -> Layout:
    """What is where in the environment. Once a process.

    Raises ConfigError for what options or the environment leave open, and UserError for what it cannot be played with.
    """
    layout = _from_spaces(options)
    with told(options.suite, "its first episode"):
        simulator = GymSimulator(options, layout)
        try:
            layout = _from_first_episode(options, layout, simulator)
        finally:
            with suppress(Exception):
                simulator.close()
    layout = replace(layout, keeps=_keeps(options, layout))
    if layout.keeps == "none":
        LOG.warning("%s cannot be gone back to: %s", options.suite, NO_SNAPSHOTS)
    return layout


def _from_spaces(options: GymOptions) -> Layout:
    """What the spaces say, without a step."""
    env = open_environment(options, rendered=False)
    try:
        space = env.observation_space
        image, proprio = chosen_image(options, space), chosen_proprio(options, space)
        modes = env.metadata.get("render_modes") or ()
        renders = "rgb_array" in modes or getattr(env, "render_mode", None) == "rgb_array"
        if image is not None:
            renders = renders and _draws(options)
        elif not renders:
            raise ConfigError(_no_image(options, space, modes))
        rate = env.metadata.get("render_fps")
        return Layout(
            image=image,
            wrist=chosen_wrist(options, space),
            proprio=tuple(path for path, _ in proprio),
            proprio_dim=sum(size for _, size in proprio) or 1,
            actions=chosen_actions(options, env.action_space),
            success=("terminated", ""),
            instruction="",
            reads_instruction=False,
            renders=renders,
            keeps="none",
            step_limit=step_limit(options),
            rate=round(rate) if isinstance(rate, int | float) and 1 <= rate <= 1000 else _RATE,
        )
    finally:
        with suppress(Exception):
            env.close()


def _draws(options: GymOptions) -> bool:
    """Whether its `render()` can be had for videos; the policy has its image elsewhere."""
    try:
        env = open_environment(options, rendered=True)
        try:
            env.reset(seed=0, **({"options": dict(options.reset)} if options.reset else {}))
            as_picture(options.suite, env.render(), "render()")
        finally:
            with suppress(Exception):
                env.close()
    except (Exception, SystemExit) as error:
        LOG.info(
            "%s: videos show the policy's image, render() cannot be had: %s", options.suite, error
        )
        return False
    return True


def _no_image(options: GymOptions, space: Any, modes: Sequence[str]) -> str:
    parts = ", ".join(str(part) for _, part in leaves(space))
    return (
        f"{options.suite}: it has no image: its observation is {' '.join(parts.split())[:200]}, and its render modes "
        f"are {list(modes)}. Expected an image of uint8 (H, W, 3) in the observation, or the render mode 'rgb_array' "
        f"(image={RENDER})"
    )


def _from_first_episode(options: GymOptions, layout: Layout, simulator: GymSimulator) -> Layout:
    """What only an episode tells: how success is said, how long proprioception is, the instruction."""
    texts = []
    for seed in (2, 1, 0):
        simulator.reset(seed)
        texts.append(simulator.instruction())
    simulator.picture()
    if layout.wrist is not None:
        simulator.wrist()
    simulator.proprio()
    layout = _with_instruction(options, layout, texts)
    return replace(layout, success=_success(options, layout, simulator))


def _with_instruction(options: GymOptions, layout: Layout, texts: list[str | None]) -> Layout:
    """The options' text, or the environment's, which must be one and the same: the suite is one task."""
    if options.instruction:
        return replace(layout, instruction=" ".join(options.instruction.split()))
    if texts[0] is None:
        raise ConfigError(
            f"{options.suite}: nothing says what is to be done: expected instruction=<text>, or instruction_from=<key "
            "of observation or info, or attribute>"
        )
    for seed, text in zip((2, 1, 0), texts, strict=True):
        if text != texts[0]:
            raise other_instruction(options, texts[0], text, seed)
    return replace(layout, instruction=texts[0], reads_instruction=True)


def _success(options: GymOptions, layout: Layout, simulator: GymSimulator) -> Any:
    """The rule by which an episode succeeds. Only a key of info is taken for granted, and only if it is there."""
    if options.success in ("terminated", "reward"):
        return options.success, ""
    wanted = (options.success,) if options.success else _SUCCESS
    keys: set[str] = set(simulator.info)
    ended = False
    for action in _actions(layout, _PATIENCE if options.success else _STEPS):
        if ended or keys & set(wanted):
            break
        simulator.step(action)
        keys |= set(simulator.info)
        ended = simulator.over
    for key in wanted:
        if key in keys:
            return "info", key
    if options.success and not ended:
        LOG.warning(
            "%s: info has not held %r in %d steps", options.suite, options.success, _PATIENCE
        )
        return "info", options.success
    listed = ", ".join(sorted(map(str, keys))[:12]) or "none"
    raise ConfigError(
        f"{options.suite}: nothing says whether an episode has succeeded: expected info[{wanted[0]!r}], its keys are "
        f"{listed}. Say it with success=<key of info>, success=reward (it ends with a positive reward), or "
        "success=terminated (its end is the success)"
    )


def _keeps(options: GymOptions, layout: Layout) -> Keeps:
    """How an episode can be gone back to; tried out. ConfigError where options promise more than is so."""
    asked = options.snapshots
    if asked == "none":
        return "none"
    repeatable = _same_again(options, replace(layout, keeps="replay"))
    if repeatable and asked != "replay" and _restores(options, replace(layout, keeps="state")):
        return "state"
    if asked == "state" or (asked == "replay" and not repeatable):
        what = (
            "its state does not bring it back" if repeatable else "the same seed and actions do not"
        )
        raise ConfigError(
            f"{options.suite}: snapshots={asked} cannot be: {what} exactly. Leave snapshots= out, or mend the "
            "environment"
        )
    return "replay" if repeatable else "none"


def _same_again(options: GymOptions, layout: Layout) -> bool:
    """Whether an episode is the same in another environment that has played something else before."""
    first, second = _pair(options, layout)
    try:
        actions = _actions(layout, _STEPS)
        first.reset(_spec(options, 0))
        second.reset(_spec(options, 1))
        second.step(actions[-1][None])
        second.reset(_spec(options, 0))
        same = _equal(_seen(first), _seen(second))
        return same and _plays_alike(first, second, actions)
    finally:
        first.close()
        second.close()


def _restores(options: GymOptions, layout: Layout) -> bool:
    """Whether the state that the environment gives brings an episode back exactly, in another environment."""
    first, second = _pair(options, layout)
    try:
        if not gives_state(first.simulator.env):
            return False
        before, after = np.split(_actions(layout, _STEPS), 2)
        first.reset(_spec(options, 0))
        for action in before:
            if any(first.step(action[None])[1:3]):
                return False
        kept = first.snapshot()
        second.restore(kept)
        return _equal(_seen(first), _seen(second)) and _plays_alike(first, second, after)
    except Exception as error:
        LOG.info("%s: its state is no snapshot: %s", options.suite, error)
        return False
    finally:
        first.close()
        second.close()


def _pair(options: GymOptions, layout: Layout) -> tuple[GymEnv, GymEnv]:
    config = EnvConfig(suite=options.suite, image_size=16, action_repeat=1, horizon=1_000_000)
    return GymEnv(options, layout, config), GymEnv(options, layout, config)


def _plays_alike(one: GymEnv, two: GymEnv, actions: Float32[np.ndarray, "L A"]) -> bool:
    for action in actions:
        outcome = one.step(action[None])
        if outcome != two.step(action[None]) or not _equal(_seen(one), _seen(two)):
            return False
        if outcome[1] or outcome[2]:
            break
    return True


def _seen(env: GymEnv) -> Any:
    simulator = env.simulator
    return simulator.observation, simulator.picture(), simulator.reward


def _equal(one: Any, two: Any) -> bool:
    """Whether two observations are the same to the bit, however they are nested."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_equal(one[key], two[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(two, tuple | list):
        return len(one) == len(two) and all(map(_equal, one, two))
    if isinstance(one, np.ndarray) and one.dtype.kind == "f":
        return np.array_equal(one, np.asarray(two), equal_nan=True)
    return bool(np.array_equal(np.asarray(one), np.asarray(two)))


def _spec(options: GymOptions, state: int) -> EpisodeSpec:
    return EpisodeSpec(options.task, state)


def _actions(layout: Layout, count: int) -> Float32[np.ndarray, "L A"]:
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (count, len(layout.actions.low))).astype(np.float32)
