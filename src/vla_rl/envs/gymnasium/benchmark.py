"""A Gymnasium environment as a benchmark.

benchmark("gym:slider:Slider-v0,success=reward,instruction=move to the mark")   # by its id, anywhere a suite goes

BENCHMARKS["slider"] = gymnasium_benchmark("slider", make_slider, success="is_success", instruction="move on")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError
from vla_rl.envs.benchmark import Benchmark, EvalDefaults, Installation, RobotLayout
from vla_rl.envs.gymnasium.env import GymMaker
from vla_rl.envs.gymnasium.expert import GymExpert
from vla_rl.envs.gymnasium.looking import looked_at
from vla_rl.envs.gymnasium.options import SUITE, GymOptions, gym_options

ROBOT = "gymnasium"
"""`robot_type` of demonstrations; their actions span [-1, 1]."""
HORIZON = 100
"""Steps of an episode where the environment sets no limit."""


def gymnasium_benchmark(
    name: str,
    make: str | Callable[..., Any],
    *,
    image: str = "",
    wrist: str = "",
    proprio: str | Sequence[str] = (),
    instruction: str = "",
    instruction_from: str = "",
    success: str = "",
    dense: float | None = None,
    bounds: tuple[float, float] | None = None,
    expert: str | Callable[[Any], Any] = "",
    snapshots: Any = "auto",
    keywords: dict[str, Any] | None = None,
    reset: dict[str, Any] | None = None,
) -> Benchmark:
    """The benchmark of one environment, to be put in `BENCHMARKS`.

    name: the suite, and its task. make: an id, or a function of a module that makes the environment; `keywords` are
    given to it, `reset` as the options of its resets. The rest as in `GymOptions`. ConfigError and UserError for what
    options leave open and for what fails in the environment.
    """
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"a suite's name has letters, digits and dashes, got {name!r}")
    return _benchmark(
        GymOptions(
            make,
            name,
            name,
            image=image,
            wrist=wrist,
            proprio=(proprio,) if isinstance(proprio, str) else tuple(proprio),
            instruction=instruction,
            instruction_from=instruction_from,
            success=success,
            dense=dense,
            bounds=bounds,
            expert=expert,
            snapshots=snapshots,
            make=tuple((keywords or {}).items()),
            reset=tuple((reset or {}).items()),
        ),
        name,
    )


@cache
def gymnasium_suite(suite: str) -> Benchmark:
    """The benchmark of `gym:<id>,<options>`. ConfigError and UserError as `gymnasium_benchmark`'s."""
    return _benchmark(gym_options(suite), SUITE)


def _benchmark(options: GymOptions, word: str) -> Benchmark:
    layout = looked_at(options)
    maker = GymMaker(options, layout)
    size = len(layout.actions.low)

    def env(suite: str) -> EnvConfig:
        """As many steps as the environment allows, an action held for one of them; the rest as for Meta-World."""
        config = EnvConfig(suite=suite, action_repeat=1)
        steps = layout.step_limit or HORIZON
        return replace(config, horizon=-(-steps // config.action_chunk))

    return Benchmark(
        title=options.suite,
        suites=(word,),
        suites_in_words=options.suite,
        task_names=lambda suite: (options.task,),
        instructions=lambda suite: (layout.instruction,),
        make_envs=maker,
        make_video_env=lambda config: maker.one(config, video=True),
        make_expert=GymExpert(options, layout),
        robot=ROBOT,
        action_dim=size,
        proprio_dim=layout.proprio_dim,
        noise_scale=(1.0,) * size,
        robot_layout=RobotLayout(position=(), opening=(), stroke=1.0, speed=1.0, moves=0),
        simulator_rate=layout.rate,
        frame_every=1,
        env_defaults=env,
        laptop_defaults=env,
        eval_defaults=EvalDefaults(split="held-out", episodes_per_task=30),
        horizon=lambda suite: layout.step_limit,
        wrist_camera=options.wrist,
        dense_reward_max=options.dense,
        ignores=("mesh_faces", "effects", "settle_steps", "camera"),
        task_of_instruction=lambda text: options.task if text == layout.instruction else text,
        installation=Installation(
            module="gymnasium",
            packages=("gymnasium",),
            extra="gymnasium",
            probe="import gymnasium; print('environments of Gymnasium')",
        ),
        tasks_by_name=False,
    )
