"""Meta-World episodes: exact resets, sharing, snapshots, turns, images."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_rl.config import ConfigError, EnvConfig
from vla_rl.envs.metaworld.env import MetaWorldEnv, expert_action, make_metaworld_envs
from vla_rl.envs.metaworld.tasks import INSTRUCTIONS
from vla_rl.types import EpisodeSpec

pytest.importorskip("metaworld")
pytestmark = pytest.mark.sim

# attributes that are live views of the simulator, rejected draws, lazily set attributes: one task of each kind
AWKWARD = ("basketball", "bin-picking", "door-lock", "sweep-into", "pick-place")
SUITE = EnvConfig(suite="mt50", image_size=32)


@pytest.fixture(scope="module")
def envs():
    made = make_metaworld_envs(SUITE, 3)
    yield made
    for env in made:
        env.close()


def random_actions(seed: int, turns: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1.2, 1.2, (turns, 2, 4)).astype(np.float32)


def everything(env: MetaWorldEnv) -> dict[str, np.ndarray]:
    """All that tells two simulators apart, the model included."""
    simulator = env._own()
    model, data = simulator.model, simulator.data
    return {
        "integration": simulator.integration_state(),
        "observation": env.state_observation(),
        "proprio": env.proprio(),
        "body_pos": model.body_pos.copy(),
        "site_pos": model.site_pos.copy(),
        "mocap": data.mocap_pos.copy(),
        "image": env.render(),
    }


def assert_same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name], err_msg=name)


def trajectory(env: MetaWorldEnv, actions: np.ndarray) -> list[Any]:
    out = []
    for chunk in actions:
        result = env.step(chunk)
        out.append((result, everything(env)))
        if result[1] or result[2]:
            break
    return out


def assert_same_trajectory(one: list[Any], two: list[Any]) -> None:
    assert [result for result, _ in one] == [result for result, _ in two]
    for (_, a), (_, b) in zip(one, two, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("task", ["drawer-open", "window-close", *AWKWARD])
def test_reset_forgets_what_was_played_before(envs: list[MetaWorldEnv], task: str):
    fresh = MetaWorldEnv(replace(SUITE, suite=f"mt1:{task}"))
    fresh.reset(EpisodeSpec(task, 5))
    used = envs[0]
    used.reset(EpisodeSpec(task, 3))
    trajectory(used, random_actions(1, 6))
    used._own().model.body_pos[1:] += 0.01  # as a careless caller might
    used._own().attributes["init_tcp"] += 1.0
    used.reset(EpisodeSpec(task, 5))
    assert_same(everything(fresh), everything(used))
    assert_same_trajectory(
        trajectory(fresh, random_actions(2, 4)), trajectory(used, random_actions(2, 4))
    )
    fresh.close()


def test_initial_states_differ_and_stay_in_the_task(envs: list[MetaWorldEnv]):
    env = envs[0]
    drawers = set()
    for index in range(20):
        env.reset(EpisodeSpec("drawer-open", index))
        x, y, z = env._own().model.body("drawer").pos
        assert -0.1 <= x <= 0.1
        assert (y, z) == (0.9, 0.0)
        drawers.add(float(x))
    assert len(drawers) == 20
    assert min(drawers) < -0.05
    assert max(drawers) > 0.05


@pytest.mark.parametrize("task", ["drawer-open", *AWKWARD])
def test_slots_that_share_a_simulator_do_not_mix(envs: list[MetaWorldEnv], task: str):
    """Three episodes interleaved turn by turn, with images in between, equal the same three played alone."""
    seeds = (11, 12, 13)
    alone = []
    for seed in seeds:
        envs[0].reset(EpisodeSpec(task, seed))
        alone.append(trajectory(envs[0], random_actions(seed, 4)))
    together: list[list[Any]] = [[], [], []]
    for env, seed in zip(envs, seeds, strict=True):
        env.reset(EpisodeSpec(task, seed))
    for turn in range(max(map(len, alone))):
        for k, (env, seed) in enumerate(zip(envs, seeds, strict=True)):
            if turn < len(alone[k]):
                envs[(k + 1) % 3].render()
                together[k] += trajectory(env, random_actions(seed, 4)[turn : turn + 1])
    for a, b in zip(alone, together, strict=True):
        assert_same_trajectory(a, b)


@pytest.mark.parametrize("task", ["drawer-open", *AWKWARD])
def test_snapshot_continues_identically(envs: list[MetaWorldEnv], task: str):
    env, other = envs[0], envs[1]
    env.reset(EpisodeSpec(task, 4))
    trajectory(env, random_actions(1, 3))
    state, before = env.snapshot(), everything(env)
    future = trajectory(env, random_actions(2, 3))
    other.reset(EpisodeSpec("reach", 0))
    other.restore(state)
    assert other.turns == 3
    assert other.instruction == INSTRUCTIONS[task]
    assert_same(before, everything(other))
    assert_same_trajectory(future, trajectory(other, random_actions(2, 3)))


def test_snapshot_is_plain_and_its_own_copy(envs: list[MetaWorldEnv]):
    env = envs[0]
    env.reset(EpisodeSpec("bin-picking", 1))
    trajectory(env, random_actions(1, 2))
    state = env.snapshot()
    for key, value in state.items():
        assert isinstance(key, str)
        assert value is None or isinstance(
            value, np.ndarray | bool | int | float | str | np.generic
        )
    frozen = {k: np.copy(v) for k, v in state.items() if isinstance(v, np.ndarray)}
    trajectory(env, random_actions(2, 2))
    for key, value in frozen.items():
        np.testing.assert_array_equal(state[key], value, err_msg=key)


def test_snapshot_restores_in_another_process(envs: list[MetaWorldEnv], tmp_path: Path):
    env = envs[0]
    env.reset(EpisodeSpec("drawer-open", 2))
    trajectory(env, random_actions(1, 2))
    np.savez(tmp_path / "state.npz", **env.snapshot())
    program = f"""
        import numpy as np
        from vla_rl.config import EnvConfig
        from vla_rl.envs.metaworld.env import MetaWorldEnv
        stored = np.load({str(tmp_path / "state.npz")!r})
        env = MetaWorldEnv(EnvConfig(suite="mt50", image_size=32))
        env.restore({{k: v.item() if v.ndim == 0 else v for k, v in stored.items()}})
        actions = np.random.default_rng(2).uniform(-1.2, 1.2, (3, 2, 4)).astype(np.float32)
        for chunk in actions:
            env.step(chunk)
        np.savez({str(tmp_path / "after.npz")!r}, state=env._own().integration_state(),
                 image=env.render(), turns=env.turns)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
    trajectory(env, random_actions(2, 3))
    after = np.load(tmp_path / "after.npz")
    np.testing.assert_array_equal(after["state"], env._own().integration_state())
    np.testing.assert_array_equal(after["image"], env.render())
    assert int(after["turns"]) == env.turns == 5


def test_a_turn_holds_each_action_and_the_time_limit_truncates():
    config = EnvConfig(suite="mt1:drawer-open", action_repeat=3, horizon=2, image_size=16)
    env = MetaWorldEnv(config)
    env.reset(EpisodeSpec("drawer-open", 0))
    frames: list[np.ndarray] = []
    chunk = np.array([[1, 0, 0, 0], [0, 0, 1, 0]], dtype=np.float32)
    target = env._own().data.mocap_pos[0].copy()
    assert env.step(chunk, on_frame=lambda: frames.append(env.render())) == (0.0, False, False, 6)
    assert len(frames) == 6
    np.testing.assert_array_equal(frames[-1], env.render())
    # Meta-World moves the hand's target by a centimetre per unit of action and simulator step
    moved = env._own().data.mocap_pos[0] - target
    np.testing.assert_allclose(moved, [0.03, 0, 0.03], atol=1e-7)
    assert env.step(chunk)[1:3] == (False, True)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(chunk)
    env.close()


def test_actions_are_clipped(envs: list[MetaWorldEnv]):
    one, two = envs[0], envs[1]
    wild = np.array([[3.0, -9.0, 0.5, 7.0]], dtype=np.float32)
    for env, action in ((one, wild), (two, np.clip(wild, -1, 1))):
        env.reset(EpisodeSpec("reach", 0))
        env.step(action)
    assert_same(everything(one), everything(two))


@pytest.mark.parametrize("task", ["drawer-open", "button-press-topdown", "window-close", "reach"])
def test_expert_succeeds_and_success_ends_the_turn_early(envs: list[MetaWorldEnv], task: str):
    env = envs[0]
    outcomes = []
    for index in range(3):
        env.reset(EpisodeSpec(task, index))
        while True:
            reward, terminated, truncated, steps = env.step(np.stack([expert_action(env)] * 2))
            assert reward == float(terminated)
            assert not (terminated and truncated)
            if terminated or truncated:
                break
        outcomes.append((terminated, steps))
    assert all(terminated for terminated, _ in outcomes)
    assert any(steps < 2 * SUITE.action_repeat for _, steps in outcomes)


def test_every_task_has_a_scripted_expert():
    from metaworld.policies import ENV_POLICY_MAP

    assert set(ENV_POLICY_MAP) == {f"{task}-v3" for task in INSTRUCTIONS}


def test_proprio_follows_the_gripper(envs: list[MetaWorldEnv]):
    env = envs[0]
    env.reset(EpisodeSpec("reach", 0))
    hand, opening = env.proprio()[:3], env.proprio()[3]
    env.step(np.tile(np.array([[0, 0, 1, 1]], dtype=np.float32), (2, 1)))
    assert env.proprio()[2] > hand[2] + 0.03
    assert env.proprio()[3] < opening - 0.1
    assert env.proprio().dtype == np.float32


def test_closing_one_user_of_shared_simulators_leaves_the_others_alone():
    one, two = make_metaworld_envs(EnvConfig(suite="mt1:reach", image_size=16), 2)
    one.reset(EpisodeSpec("reach", 0))
    two.reset(EpisodeSpec("reach", 0))
    seen = two.render()
    one.close()
    one.close()
    np.testing.assert_array_equal(two.render(), seen)
    two.close()


def test_unknown_names_are_config_errors(envs: list[MetaWorldEnv]):
    with pytest.raises(ConfigError, match=r"not in suite 'mt50'\. Did you mean 'drawer-open'"):
        envs[0].reset(EpisodeSpec("draweropen", 0))
    wrong = MetaWorldEnv(EnvConfig(suite="mt1:reach", camera="korner2"))
    with pytest.raises(ConfigError, match="corner2"):
        wrong.reset(EpisodeSpec("reach", 0))
    with pytest.raises(RuntimeError, match="reset"):
        MetaWorldEnv(EnvConfig(suite="mt1:reach")).render()


# -- images -----------------------------------------------------------------------------------------


def reference_image(env: MetaWorldEnv, size: int, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The same state through mujoco's own renderer, with everything on and the model read afresh."""
    import mujoco

    from vla_rl.envs.rendering.gl import choose_backend, context_class, load_metaworld_classes

    monkeypatch.setattr(mujoco.gl_context, "GLContext", context_class(choose_backend()))

    clean: Any = load_metaworld_classes()["drawer-open-v3"]().model
    simulator = env._own()
    clean.body_pos[:], clean.site_pos[:] = simulator.model.body_pos, simulator.model.site_pos
    camera = mujoco.mj_name2id(clean, mujoco.mjtObj.mjOBJ_CAMERA, "corner2")
    clean.cam_pos[camera] = (0.75, 0.075, 0.7)
    data = mujoco.MjData(clean)
    mujoco.mj_setState(
        clean, data, simulator.integration_state(), mujoco.mjtState.mjSTATE_INTEGRATION
    )
    mujoco.mj_forward(clean, data)
    with mujoco.Renderer(clean, size, size) as renderer:
        renderer.update_scene(data, camera="corner2")
        return np.rot90(renderer.render(), 2).astype(int)


def test_images_show_what_mujocos_own_renderer_shows(monkeypatch: pytest.MonkeyPatch):
    config = EnvConfig(suite="mt1:drawer-open", image_size=96)
    difference = {}
    for name, changes, pretty in (
        ("pretty", {"mesh_faces": 0}, True),
        ("whole", {"mesh_faces": 0}, False),
        ("effects", {"mesh_faces": 0, "effects": True}, False),
        ("fast", {}, False),
    ):
        env = MetaWorldEnv(replace(config, **changes), pretty=pretty)
        env.reset(EpisodeSpec("drawer-open", 3))
        env.step(np.full((2, 4), 0.5, dtype=np.float32))
        reference = reference_image(env, 96, monkeypatch)
        turned = env.render().astype(int)
        # the sky is a light gradient that the fast images leave black; compare where the fast image shows things
        shown = turned.sum(-1) > 0
        difference[name] = np.abs(turned - reference)[shown].mean()
        upside_down = np.abs(turned[::-1, ::-1] - reference)[shown].mean()
        assert upside_down > 2 * difference[name]
        env.close()
    assert difference["pretty"] == difference["effects"] < 2
    assert difference["whole"] < 20
    assert difference["fast"] < 25


def test_the_image_depends_on_the_initial_state_and_the_task(envs: list[MetaWorldEnv]):
    env = envs[0]
    images = []
    for spec in (("drawer-open", 0), ("drawer-open", 1), ("window-open", 0)):
        env.reset(EpisodeSpec(*spec))
        images.append(env.render())
    assert images[0].shape == (32, 32, 3)
    assert images[0].dtype == np.uint8
    assert np.abs(images[0].astype(int) - images[1]).sum() > 0
    assert np.abs(images[0].astype(int) - images[2]).mean() > 3
    assert images[0].std() > 20
