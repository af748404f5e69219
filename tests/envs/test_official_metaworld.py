"""Our stepping against Meta-World's own `reset` and `step`, bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from official_metaworld import official_env

from vla_rl.config import EnvConfig
from vla_rl.envs.metaworld.env import MetaWorldEnv, expert_action
from vla_rl.envs.metaworld.success import SUCCESS
from vla_rl.envs.metaworld.tasks import INSTRUCTIONS, SUITES
from vla_rl.types import EpisodeSpec

pytest.importorskip("metaworld")
pytestmark = pytest.mark.sim

ONE_STEP_TURNS = {"action_repeat": 1, "horizon": 10_000, "image_size": 16}
DRAWN_ONLY = {
    "mesh_face", "mesh_facenormal", "mesh_facetexcoord", "mesh_facenum",
    "tex_data", "tex_width", "tex_height", "cam_pos",
}  # fmt: skip


def integration_state(env: Any) -> np.ndarray:
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(env.model, kind))
    mujoco.mj_getState(env.model, env.data, state, kind)
    return state


def play_both(task: str, index: int, steps: int, noise: float, *, stop: bool) -> tuple[int, bool]:
    """The expert with noise in ours and in the official one; every step must agree. Returns (steps, success)."""
    ours = MetaWorldEnv(EnvConfig(suite=f"mt1:{task}", **ONE_STEP_TURNS))
    ours.reset(EpisodeSpec(task, index + 1))
    ours.step(np.ones((5, 4), dtype=np.float32))
    ours.reset(EpisodeSpec(task, index))
    theirs, observation = official_env(task, index)
    np.testing.assert_array_equal(ours.state_observation(), observation)
    np.testing.assert_array_equal(ours._own().integration_state(), integration_state(theirs))
    ours.render()  # looking must not change anything, here nor below
    rng = np.random.default_rng(index)
    succeeded = False
    for step in range(steps):
        wanted = expert_action(ours) + noise * rng.standard_normal(4)
        action = np.clip(wanted, -1, 1).astype(np.float32)
        observation, _, _, _, info = theirs.step(action)
        ours._ended = False
        _, terminated, _, _ = ours.step(action[None])
        assert terminated == bool(info["success"]), step
        np.testing.assert_array_equal(ours.state_observation(), observation)
        if step % 7 == 0:
            ours.render()
        succeeded |= terminated
        if succeeded and stop:
            break
    simulator = ours._own()
    np.testing.assert_array_equal(simulator.integration_state(), integration_state(theirs))
    assert_models_differ_in_looks_only(simulator.model, theirs.model)
    ours.close()
    return step, succeeded


def assert_models_differ_in_looks_only(ours: Any, theirs: Any) -> None:
    for name in dir(theirs):
        array = None if name.startswith("_") else getattr(theirs, name)
        if isinstance(array, np.ndarray) and name not in DRAWN_ONLY:
            np.testing.assert_array_equal(getattr(ours, name), array, err_msg=name)


def test_mt10_is_metaworlds():
    from metaworld.env_dict import MT10_V3, MT50_V3

    assert [f"{task}-v3" for task in SUITES["mt10"]] == list(MT10_V3)
    assert {f"{task}-v3" for task in INSTRUCTIONS} == set(MT50_V3)
    assert set(SUCCESS) == set(SUITES["mt10"])


@pytest.mark.parametrize("task", SUITES["mt10"])
def test_expert_episodes_are_bit_identical(task: str):
    """Beyond success too: conditions that come and go must come and go together."""
    _, succeeded = play_both(task, 0, 110, 0.3, stop=False)
    assert succeeded or task in ("peg-insert-side", "push", "pick-place")


def test_chunked_turns_equal_the_same_single_steps():
    """action_repeat, the stop at success and the fast success check change nothing of the physics."""
    ours = MetaWorldEnv(EnvConfig(suite="mt1:drawer-close", image_size=16))
    ours.reset(EpisodeSpec("drawer-close", 2))
    theirs, _ = official_env("drawer-close", 2)
    done = False
    while not done:
        chunk = np.stack([expert_action(ours)] * 2)
        _, terminated, truncated, steps = ours.step(chunk)
        for step in range(steps):
            observation, _, _, _, info = theirs.step(chunk[step // 5])
            assert bool(info["success"]) == (terminated and step == steps - 1)
        np.testing.assert_array_equal(ours._own().integration_state(), integration_state(theirs))
        np.testing.assert_array_equal(ours.state_observation()[:18], observation[:18])
        if not terminated:
            np.testing.assert_array_equal(ours.state_observation(), observation)
        done = terminated or truncated
    assert terminated


@pytest.mark.slow
@pytest.mark.parametrize("task", [task for task in INSTRUCTIONS if task not in SUITES["mt10"]])
def test_all_other_tasks_are_bit_identical(task: str):
    play_both(task, 5, 30, 0.5, stop=False)
