"""Our suites as Gymnasium environments, for programs that speak Gymnasium."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium")
import gymnasium
from gymnasium.utils.env_checker import check_env

import vla_rl.gymnasium_envs  # registers them
from vla_rl.config import ConfigError, UserError
from vla_rl.envs.registry import benchmark
from vla_rl.envs.toy.env import ToyExpert


def made(**keywords: Any) -> Any:
    return gymnasium.make("vla_rl/toy-v0", **keywords)


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"observation": "image", "render_mode": "rgb_array"},
        {"observation": "text"},
        {"action_chunk": 2, "image_size": 20},
        {"reward": "dense", "split": "held-out"},
    ],
)
@pytest.mark.filterwarnings("ignore:.*Box observation space (min|max)imum value is")
def test_gymnasiums_own_checker_passes(keywords: dict[str, Any]) -> None:
    check_env(made(**keywords).unwrapped)


@pytest.mark.sim
@pytest.mark.filterwarnings("ignore:.*Box observation space (min|max)imum value is")
def test_gymnasiums_own_checker_passes_on_meta_world() -> None:
    pytest.importorskip("metaworld")
    env = gymnasium.make("vla_rl/suite-v0", suite="mt1:drawer-open", image_size=32)
    check_env(env.unwrapped, skip_render_check=True, skip_close_check=True)
    env.close()


def test_an_episode_is_one_of_the_suites() -> None:
    env = made(action_repeat=1)
    seen, info = env.reset(seed=3, options={"task": "reach-red", "initial_state": 5})
    assert seen["image"].dtype == np.uint8
    assert (info["task"], info["initial_state"]) == ("reach-red", 5)
    assert (info["instruction"], info["is_success"]) == ("reach the red disc", False)
    steps = 0
    env = made(horizon=40, action_repeat=1)
    env.reset(options={"task": "reach-red", "initial_state": 5})
    expert = ToyExpert(env.unwrapped._env)
    terminated = truncated = False
    while not (terminated or truncated):
        _, reward, terminated, truncated, info = env.step(expert.action())
        steps += info["simulator_steps"]
    assert terminated
    assert not truncated
    assert (reward, info["is_success"]) == (1.0, True)
    assert steps > 1


def test_training_states_are_drawn_and_held_out_ones_only_when_asked_for() -> None:
    for split in ("train", "held-out"):
        env = made(split=split, initial_states=10, held_out=4)
        states = {env.reset(seed=seed)[1]["initial_state"] for seed in range(20)}
        assert len(states) > 2
        assert all((state >= 6) is (split == "held-out") for state in states)


def test_the_same_seed_is_the_same_episode() -> None:
    one, two = made(), made()
    for _ in range(2):
        first, again = one.reset(seed=9), two.reset(seed=9)
        np.testing.assert_array_equal(first[0]["image"], again[0]["image"])
        assert first[1] == again[1]


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"imagesize": 3}, "no setting 'imagesize'. Did you mean 'image_size'"),
        ({"num_envs": 3}, "no setting 'num_envs'"),
        ({"observation": "picture"}, "expected one of dict, image, text"),
        ({"split": "test"}, "split 'test': expected one of train, held-out"),
        ({"render_mode": "ansi"}, "expected 'rgb_array'"),
    ],
)
def test_what_does_not_fit_is_said(keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made(**keywords)


def test_what_an_episode_cannot_be_is_said() -> None:
    env = made()
    with pytest.raises(ConfigError, match="initial_state: expected a whole number from 0 to"):
        env.reset(options={"initial_state": -1})
    with pytest.raises(ConfigError, match="Did you mean 'reach-red'"):
        env.reset(options={"task": "reach-rd"})
    with pytest.raises(UserError, match="no dense reward"):
        gymnasium.make("vla_rl/libero-goal-v0", reward="dense")


def test_every_name_is_a_suite() -> None:
    for name, suite in vla_rl.gymnasium_envs.SUITES.items():
        assert f"vla_rl/{name}-v0" in gymnasium.registry
        if suite:
            assert benchmark(suite).task_names is not None


@pytest.mark.parametrize(
    "program",
    [
        "import gymnasium, vla_rl; gymnasium.make('vla_rl/toy-v0')",
        "import gymnasium; gymnasium.make('vla_rl.gymnasium_envs:vla_rl/toy-v0')",
    ],
)
def test_they_are_there_in_a_new_program(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; import sys; print('torch' in sys.modules)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_ours_and_theirs_meet() -> None:
    """A suite of ours, registered, is one of Gymnasium's that can be practised."""
    suite = "gym:vla_rl.gymnasium_envs:vla_rl/suite-v0,make.suite=toy:reach-red,make.image_size=16"
    played = benchmark(suite)
    assert played.instructions(suite) == ("reach the red disc",)
    assert (played.action_dim, played.proprio_dim) == (4, 4)
