"""Does a simulator of yours keep what `Env` and `Benchmark` promise? Plays its first task and says what does not hold.

from vla_rl import BENCHMARKS, check_env

print(check_env(BENCHMARKS["toy"]))        # what it is like, or raises with a line for each broken promise
check_env("gym:slider:Slider-v0,instruction=move to the mark")
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, UserError
from vla_rl.envs.benchmark import Benchmark
from vla_rl.envs.check_report import CheckReport, report_of
from vla_rl.envs.env import DenselyRewarded, Env, Snapshot
from vla_rl.envs.faults import told
from vla_rl.envs.registry import benchmark
from vla_rl.envs.union import with_own_clock
from vla_rl.types import EpisodeSpec

_HORIZON = 3
"""Turns of an episode that is played to its time limit."""


def check_env(played: Benchmark | str, suite: str = "", episodes: int = 3) -> CheckReport:
    """Create, reset, step, snapshot and restore the first task of `suite` (by default the benchmark's first).

    played: a benchmark, or a suite by its name, `gym:<id>` among them. episodes: of random play, in which success may
    be seen. Returns what the simulator is like and what it costs; raises UserError with every promise that does not
    hold, and with what the simulator raises itself.
    """
    if isinstance(played, str):
        suite, played = suite or played, benchmark(played)
    suite = suite or played.suites[0]
    faults = list(_statements(played, suite))
    if not faults:
        own = with_own_clock(played.laptop_defaults(suite), played)
        config = replace(own, num_envs=2, horizon=_HORIZON)
        with told(played.title, "make_envs()"):
            envs = played.make_envs(config, 2)
        try:
            for look in (_faces, _episodes, _turns, _again, _snapshots, _extras):
                with told(played.title, _LOOKS[look.__name__]):
                    faults += look(played, config, envs[0], envs[1])
        finally:
            for env in envs:
                env.close()
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise UserError(
            f"{played.title} does not keep {len(faults)} promise(s) of a benchmark:\n{lines}"
        )
    with told(played.title, "an episode of random play"):
        return report_of(played, replace(own, num_envs=1), episodes)


_LOOKS = {
    "_faces": "reset()",
    "_episodes": "reset(), render() or proprio()",
    "_turns": "step()",
    "_again": "step()",
    "_snapshots": "snapshot() or restore()",
    "_extras": "its expert, dense_reward() or the environment of videos",
}
"""What a look is about, for an error in it."""


def _statements(played: Benchmark, suite: str) -> Iterator[str]:
    """What the `Benchmark` says, before anything is played."""
    tasks = played.task_names(suite)
    if not tasks or len(set(tasks)) != len(tasks):
        yield f"task_names({suite!r}) should name each task once, got {tasks}"
    if len(played.instructions(suite)) != len(tasks):
        yield f"instructions({suite!r}) should hold one text per task, {len(tasks)} in all"
    for name in ("env_defaults", "laptop_defaults"):
        asked = getattr(played, name)(suite)
        if asked.suite != suite:
            yield f"{name}({suite!r}) is for another suite, {asked.suite!r}"
        if played.stored_states is not None and asked.initial_states > played.stored_states:
            yield f"{name}({suite!r}) counts on more initial states than the {played.stored_states} stored"
    if len(played.noise_scale) != played.action_dim:
        yield f"noise_scale should hold {played.action_dim} numbers, got {len(played.noise_scale)}"
    layout = played.robot_layout
    columns = [*layout.position, *(column for column, _ in layout.opening)]
    if any(not 0 <= column < played.proprio_dim for column in columns):
        yield f"robot_layout names a column outside the {played.proprio_dim} of proprioception: {columns}"
    for name in ("make_envs", "make_expert"):
        try:
            pickle.dumps(getattr(played, name))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            yield f"{name} should be a function of a module, since simulator processes get its name: {error}"


def _faces(played: Benchmark, config: EnvConfig, env: Env, other: Env) -> Iterator[str]:
    """What an environment says of itself."""
    said: dict[str, tuple[Any, Any]] = {
        "tasks": (env.tasks, played.task_names(config.suite)),
        "instructions": (env.instructions, played.instructions(config.suite)),
        "action_dim": (env.action_dim, played.action_dim),
        "proprio_dim": (env.proprio_dim, played.proprio_dim),
    }
    for name, (found, expected) in said.items():
        if found != expected:
            yield f"env.{name} is {found!r}, the benchmark says {expected!r}"
    try:
        env.reset(EpisodeSpec("no such task", 0))
        yield "reset accepts a task that is not in the suite: raise ConfigError"
    except ConfigError:
        pass


def _episodes(played: Benchmark, config: EnvConfig, env: Env, other: Env) -> Iterator[str]:
    """Numbered initial states: the same wherever they are played, and different from each other."""
    first, second = EpisodeSpec(env.tasks[0], 0), EpisodeSpec(env.tasks[0], 1)
    env.reset(first)
    image, proprio = env.render().copy(), env.proprio().copy()
    size = config.image_size
    if image.shape != (size, size, 3) or image.dtype != np.uint8:
        yield f"render should give uint8 ({size}, {size}, 3), got {image.dtype} {image.shape}"
    if proprio.shape != (played.proprio_dim,) or proprio.dtype != np.float32:
        yield f"proprio should give float32 ({played.proprio_dim},), got {proprio.dtype} {proprio.shape}"
    if not np.isfinite(proprio).all():
        yield f"proprio should be finite, got {proprio}"
    if (env.turns, env.instruction) != (0, env.instructions[0]):
        yield f"after a reset turns is {env.turns} and instruction {env.instruction!r}"
    if not np.array_equal(env.render(), image):
        yield "render should change nothing: a second one differs"
    other.reset(second)
    if np.array_equal(other.render(), image):
        yield "initial states 0 and 1 look the same"
    other.step(_action(played, 1))
    other.reset(first)
    if not (np.array_equal(other.render(), image) and np.array_equal(other.proprio(), proprio)):
        yield "a numbered initial state depends on what was played before it"


def _turns(played: Benchmark, config: EnvConfig, env: Env, other: Env) -> Iterator[str]:
    """One turn's outcome, the time limit, and actions out of range."""
    chunk, steps = config.action_chunk, config.action_chunk * config.action_repeat
    env.reset(EpisodeSpec(env.tasks[0], 0))
    for turn in range(1, _HORIZON + 1):
        reward, terminated, truncated, taken = env.step(_action(played, chunk, seed=turn))
        if not (isinstance(terminated, bool) and isinstance(truncated, bool)):
            yield "step should give (reward, terminated, truncated, steps), the middle two of them bool"
        if reward != float(terminated):
            yield f"the reward is sparse, 1 with success and else 0; got {reward} with terminated {terminated}"
        if not 0 < taken <= steps:
            yield f"a turn takes 1 to {steps} simulator steps, got {taken}"
        if env.turns != turn:
            yield f"turns should be {turn}, got {env.turns}"
        if terminated and truncated:
            yield "an episode ends by success (terminated) or without (truncated), got both"
        if turn >= _HORIZON and not (terminated or truncated):
            yield f"truncated should be true at the end of the horizon of {_HORIZON} turns"
        if terminated or truncated:
            break
    for asked, slot in ((5.0, env), (1.0, other)):
        slot.reset(EpisodeSpec(env.tasks[0], 0))
        slot.step(np.full((chunk, played.action_dim), asked, dtype=np.float32))
    if not np.array_equal(env.proprio(), other.proprio()):
        yield "actions should be clipped to [-1, 1]: 5 does something else than 1"


def _again(played: Benchmark, config: EnvConfig, env: Env, other: Env) -> Iterator[str]:
    """The same actions from the same initial state: the same episode, in another environment as well."""
    chunk, start = config.action_chunk, EpisodeSpec(env.tasks[0], 1)
    for slot in (env, other):
        slot.reset(start)
    for seed in range(_HORIZON):
        action = _action(played, chunk, seed)
        one, two = env.step(action), other.step(action)
        alike = np.array_equal(env.render(), other.render())
        if one != two or not alike or not np.array_equal(env.proprio(), other.proprio()):
            yield (
                f"the same actions from the same initial state are another episode after turn {seed + 1}: draw "
                "whatever is random from the initial state's own stream"
            )
            break
        if one[1] or one[2]:
            break


def _snapshots(played: Benchmark, config: EnvConfig, env: Env, other: Env) -> Iterator[str]:
    """A snapshot is plain data, and another environment continues it exactly."""
    before, after = (_action(played, config.action_chunk, seed) for seed in (7, 8))
    env.reset(EpisodeSpec(env.tasks[0], 2))
    if any(env.step(before)[1:3]):
        return  # ended by chance: there is nothing to continue
    try:
        state: Snapshot = env.snapshot()
    except UserError:
        return  # it says itself that it has none; so does the report
    strange = [
        k
        for k, v in state.items()
        if not isinstance(v, np.ndarray | np.generic | bool | int | float | str | None)
    ]
    if strange:
        yield f"a snapshot holds arrays, numbers and strings; {strange} are something else"
        return
    kept = pickle.loads(pickle.dumps(state))
    expected = env.step(after), env.render().copy(), env.proprio().copy()
    other.restore(kept)
    if other.turns != 1:
        yield f"a snapshot of turn 1 is restored as turn {other.turns}"
    found = other.step(after), other.render(), other.proprio()
    if expected[0] != found[0] or not all(map(np.array_equal, expected[1:], found[1:])):
        yield "an episode continued from its snapshot goes on differently"


def _extras(played: Benchmark, config: EnvConfig, env: Env, other: Env) -> Iterator[str]:
    """The expert, the dense reward, and the environment that videos are drawn with."""
    env.reset(EpisodeSpec(env.tasks[0], 0))
    try:
        action = played.make_expert(env).action()
    except UserError:
        action = _action(played, 1)[0]  # there is none, and the report says so
    if action.shape != (played.action_dim,) or not np.abs(action).max() <= 1:
        yield f"the expert should give {played.action_dim} numbers in [-1, 1], got {action}"
    env.step(action[None])
    if isinstance(env, DenselyRewarded) != (played.dense_reward_max is not None):
        yield "dense_reward_max should be a number where the environment has dense_reward(), and else None"
    elif isinstance(env, DenselyRewarded) and not np.isfinite(env.dense_reward()):
        yield f"dense_reward should be finite, got {env.dense_reward()}"
    video = played.make_video_env(replace(config, image_size=2 * config.image_size))
    frames: list[Any] = []
    try:
        video.reset(EpisodeSpec(env.tasks[0], 0))
        _, _, _, taken = video.step(
            _action(played, 1), on_frame=lambda: frames.append(video.render())
        )
    finally:
        video.close()
    if len(frames) != taken:
        yield f"a video's step should call on_frame after each of {taken} simulator steps, got {len(frames)} calls"


def _action(played: Benchmark, chunk: int, seed: int = 0) -> Float32[np.ndarray, "C A"]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (chunk, played.action_dim)).astype(np.float32)
