"""Our stepping, observations and images against LIBERO's own OffScreenRenderEnv, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from official_libero import Official, integration_state

from vla_rl.config import EnvConfig
from vla_rl.envs.libero.env import LiberoEnv
from vla_rl.envs.libero.tasks import stored_states, suite_tasks
from vla_rl.types import EpisodeSpec

pytest.importorskip("libero")
pytestmark = pytest.mark.sim

SIZE = 64
STEPS = 110
TURNED = 108
"""Here the stove's knob is turned on, as no random action would."""
DRAWN = (0, 1, 26, 60, TURNED, TURNED + 1, STEPS)
STOVE, OBJECT = "libero-goal:7", "libero-object:7"
SUITES = {
    "libero-spatial:4": 3,  # a bowl in the drawer of a cabinet
    OBJECT: 11,
    STOVE: 20,
    "libero-10:3": 42,  # its drawer is open at first
}
"""Suites of one task, and which of its initial states is played."""


def smooth_actions(seed: int, steps: int) -> np.ndarray:
    """Sweeps through the scene, down onto the table, with stretches of no rotation, grasps, and some out of range."""
    rng = np.random.default_rng(seed)
    actions = np.zeros((steps, 7))
    drift = np.zeros(6)
    for step in range(steps):
        drift = 0.9 * drift + 0.3 * rng.standard_normal(6)
        actions[step, :6] = drift
        actions[step, 2] -= 0.5 if step % 60 < 35 else -0.3
        if step % 40 > 25:
            actions[step, 3:6] = 0
        actions[step, 6] = 1 if step % 50 > 30 else -1
    return actions.astype(np.float32)


def plan(suite: str) -> dict[str, Any]:
    task = suite_tasks(suite)[0]
    joints = ["flat_stove_1_button"] if suite == STOVE else []
    return {
        "problem": str(task.problem),
        "initial_state": stored_states(task.states)[SUITES[suite]],
        # the same numbers in LIBERO's own precision
        "actions": smooth_actions(SUITES[suite], STEPS).astype(np.float64),
        "drawn": DRAWN,
        "size": SIZE,
        "cameras": ["agentview", "robot0_eye_in_hand"][: 2 if suite == OBJECT else 1],
        "turned": TURNED,
        "joints": np.array(joints, dtype=str),
        "positions": np.full(len(joints), 1.0),
    }


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Official]:
    plans = {suite: plan(suite) for suite in SUITES}
    folder: Path = tmp_path_factory.mktemp("official")
    playing = Official(folder, plans)
    yield playing
    playing.close()


def started(suite: str, **changes: Any) -> LiberoEnv:
    """An environment in the initial state of the plan, after it has played another one."""
    settings: dict[str, Any] = {
        "action_repeat": 1, "horizon": 10_000, "image_size": SIZE, "mesh_faces": 0,
        "initial_states": 50, "held_out": 10,
    }  # fmt: skip
    env = LiberoEnv(EnvConfig(suite=suite, **settings | changes))
    task = env.tasks[0]
    env.reset(EpisodeSpec(task, SUITES[suite] - 1))
    env.step(smooth_actions(77, 12))
    env.reset(EpisodeSpec(task, SUITES[suite]))
    return env


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Of (x, y, z, w), as published evaluations compute it."""
    w = np.clip(quaternion[3], -1, 1)
    return quaternion[:3] * 2 * np.arccos(w) / np.sqrt(1 - w * w)


def assert_same_episode(env: LiberoEnv, played: dict[str, np.ndarray], plan: dict[str, Any]) -> int:
    """Every step in lockstep with what LIBERO did; returns the number of images compared."""
    simulator, drawn = env._own(), 0
    for step in range(STEPS + 1):
        terminated = False
        if step > 0:
            env._ended = False  # beyond success too: what comes and goes must come and go together
            if step == TURNED:
                for joint, position in zip(plan["joints"], plan["positions"], strict=True):
                    address = simulator.model.joint(str(joint)).qposadr[0]
                    simulator.data.qpos[address] = position
            _, terminated, _, _ = env.step(plan["actions"][step - 1][None].astype(np.float32))
        assert terminated == bool(played["done"][step]), step
        np.testing.assert_array_equal(
            integration_state(simulator.model, simulator.data),
            played["integration"][step],
            str(step),
        )
        np.testing.assert_array_equal(simulator.model.site_rgba, played["colours"][step])
        expected = [
            played["position"][step],
            axis_angle(played["quaternion"][step]),
            played["fingers"][step],
        ]
        np.testing.assert_allclose(env.proprio(), np.concatenate(expected), rtol=0, atol=3e-7)
        np.testing.assert_array_equal(env.proprio()[:3], expected[0].astype(np.float32))
        np.testing.assert_array_equal(env.proprio()[6:], expected[2].astype(np.float32))
        if step in DRAWN:
            image = played["agentview"][DRAWN.index(step)][::-1, ::-1]
            if env._config.mesh_faces == 0:
                np.testing.assert_array_equal(env.render(), image, str(step))
            drawn += 1
        if step % 9 == 0:
            env.render()  # looking must not change anything, nor must the expert's look
            assert env.simulator is simulator
    return drawn


@pytest.mark.parametrize("suite", SUITES)
def test_episodes_are_bit_identical(official: Official, suite: str):
    """State, colours, proprioception and success at every step, images at some; after another episode was played."""
    env = started(suite)
    played = official.played(suite)
    simulator = env._own()
    np.testing.assert_array_equal(simulator.model.body_pos, played["body_pos"])
    np.testing.assert_array_equal(simulator.model.body_quat, played["body_quat"])
    assert assert_same_episode(env, played, official.plans[suite]) == len(DRAWN)
    moved = np.abs(played["integration"][0] - played["integration"][-1])
    assert moved.max() > 0.1
    env.close()


@pytest.mark.parametrize("suite", SUITES)
def test_simplified_meshes_change_nothing_of_the_physics(official: Official, suite: str):
    env = started(suite, mesh_faces=150, image_size=32)
    assert env._own().model.mesh_facenum.max() <= 150
    assert_same_episode(env, official.played(suite), official.plans[suite])
    env.close()


def test_the_stove_was_turned_on(official: Official):
    """The plan above covers a success, and a burner that glows."""
    played = official.played(STOVE)
    assert played["done"].tolist() == [step >= TURNED for step in range(STEPS + 1)]
    assert np.abs(played["colours"][-1] - played["colours"][0]).max() >= 1
    images = played["agentview"].astype(int)
    assert np.abs(images[-1] - images[-2]).max() > 30  # one step later than the success


def test_the_wrist_camera_is_liberos_as_the_first_and_as_the_second(official: Official):
    env = started(OBJECT, camera="wrist", wrist_camera="agentview")
    played = official.played(OBJECT)
    actions = official.plans[OBJECT]["actions"]
    for step in range(27):
        if step:
            env.step(actions[step - 1][None])
        if step in DRAWN:
            image = played["robot0_eye_in_hand"][DRAWN.index(step)]
            np.testing.assert_array_equal(env.render(), image[::-1, ::-1])
            other = played["agentview"][DRAWN.index(step)]
            np.testing.assert_array_equal(env.render_wrist(), other[::-1, ::-1])
            np.testing.assert_array_equal(env.render(), image[::-1, ::-1])
    simulator = env._own()
    now = integration_state(simulator.model, simulator.data)
    np.testing.assert_array_equal(now, played["integration"][26])
    env.close()
