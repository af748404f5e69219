"""LIBERO episodes: exact resets, sharing, snapshots, turns, bad input. With light meshes: those change looks only."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from official_libero import integration_state

from vla_rl.config import ConfigError, EnvConfig, UserError
from vla_rl.envs.libero.env import LiberoEnv, make_libero_envs
from vla_rl.envs.libero.tasks import suite_tasks
from vla_rl.envs.vector.process import ProcessVectorEnv
from vla_rl.types import EpisodeSpec

pytest.importorskip("libero")
pytestmark = pytest.mark.sim

GOAL = EnvConfig(
    suite="libero-goal:7,5",
    image_size=32,
    action_repeat=2,
    horizon=5,
    initial_states=50,
    held_out=10,
)
STOVE, PLATE = "turn_on_the_stove", "push_the_plate_to_the_front_of_the_stove"
KNOB = "flat_stove_1_button"


@pytest.fixture(scope="module")
def envs():
    made = make_libero_envs(GOAL, 3)
    yield made
    for env in made:
        env.close()


def chunks(seed: int, turns: int) -> np.ndarray:
    """Actions that go down into the furniture, some of them out of range."""
    actions = np.random.default_rng(seed).uniform(-1.2, 1.2, (turns, 2, 7))
    actions[:, :, 2] -= 0.6
    return actions.astype(np.float32)


def everything(env: LiberoEnv) -> dict[str, np.ndarray]:
    """All that tells two episodes apart."""
    simulator = env._own()
    control = simulator.save().arrays()
    model = simulator.model
    return {
        **{name: np.asarray(value) for name, value in control.items()},
        "body_pos": model.body_pos.copy(),
        "body_quat": model.body_quat.copy(),
        "proprio": env.proprio(),
        "image": env.render(),
    }


def assert_same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert one.keys() == two.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name], err_msg=name)


def trajectory(env: LiberoEnv, actions: np.ndarray) -> list[Any]:
    out = []
    for chunk in actions:
        result = env.step(chunk)
        out.append((result, everything(env)))
    return out


def assert_same_trajectory(one: list[Any], two: list[Any]) -> None:
    assert [result for result, _ in one] == [result for result, _ in two]
    for (_, a), (_, b) in zip(one, two, strict=True):
        assert_same(a, b)


def red(image: np.ndarray) -> int:
    """Pixels of a glowing burner."""
    colours = image.astype(int)
    return int(((colours[..., 0] - colours[..., 1:].max(-1)) > 60).sum())


def turn_knob(env: LiberoEnv, angle: float) -> None:
    simulator = env._own()
    simulator.data.qpos[simulator.model.joint(KNOB).qposadr[0]] = angle


# -- resets ------------------------------------------------------------------------------------------


def test_reset_forgets_what_was_played_before(envs: list[LiberoEnv]):
    """The first reset, a second one that comes from memory, one after vandalism, and a fresh simulator's."""
    used = envs[0]
    used.reset(EpisodeSpec(STOVE, 9))
    first = everything(used)
    used.reset(EpisodeSpec(STOVE, 2))
    turn_knob(used, 1.0)
    used.step(chunks(1, 1)[0])
    used.reset(EpisodeSpec(PLATE, 9))
    trajectory(used, chunks(1, 2))
    used.reset(EpisodeSpec(STOVE, 9))
    assert_same(first, everything(used))
    fresh = LiberoEnv(replace(GOAL, suite="libero-goal:7"))
    fresh.reset(EpisodeSpec(STOVE, 9))
    assert_same(first, everything(fresh))
    assert_same_trajectory(trajectory(fresh, chunks(2, 3)), trajectory(used, chunks(2, 3)))
    fresh.close()


def test_initial_states_differ(envs: list[LiberoEnv]):
    images = []
    for initial_state in range(3):
        envs[0].reset(EpisodeSpec(STOVE, initial_state))
        images.append(envs[0].render().astype(int))
    assert images[0].shape == (32, 32, 3)
    assert images[0].std() > 20
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(images[one] - images[two]).max() > 20


def test_settling_is_steps_without_motion(envs: list[LiberoEnv]):
    bare = LiberoEnv(replace(GOAL, settle_steps=0, action_repeat=5))
    bare.reset(EpisodeSpec(STOVE, 0))
    seen = bare._own().data.time
    bare.step(np.tile(np.array([0, 0, 0, 0, 0, 0, -1], np.float32), (2, 1)))
    envs[0].reset(EpisodeSpec(STOVE, 0))
    assert envs[0]._own().data.time == pytest.approx(seen + 0.5)
    assert_same(everything(bare), everything(envs[0]))
    assert (bare.turns, envs[0].turns) == (1, 0)
    bare.close()


# -- sharing and snapshots ---------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [(STOVE, STOVE, STOVE), (STOVE, PLATE, STOVE)])
def test_slots_that_share_a_simulator_do_not_mix(envs: list[LiberoEnv], tasks: tuple[str, ...]):
    """Three episodes interleaved turn by turn, with looks in between, equal the same three played alone."""
    alone = []
    for seed, task in enumerate(tasks):
        envs[0].reset(EpisodeSpec(task, seed))
        alone.append(trajectory(envs[0], chunks(seed, 4)))
    together: list[list[Any]] = [[], [], []]
    for seed, (env, task) in enumerate(zip(envs, tasks, strict=True)):
        env.reset(EpisodeSpec(task, seed))
    for turn in range(4):
        for seed, env in enumerate(envs):
            envs[(seed + 1) % 3].render()
            assert envs[(seed + 1) % 3].simulator.owner is envs[(seed + 1) % 3]
            together[seed] += trajectory(env, chunks(seed, 4)[turn : turn + 1])
    for a, b in zip(alone, together, strict=True):
        assert_same_trajectory(a, b)


def test_the_expert_sees_the_same_alone_and_interleaved(envs: list[LiberoEnv]):
    """Positions of bodies and contacts, which the state does not hold, follow it."""

    def privileged(env: LiberoEnv) -> list[np.ndarray]:
        data = env.simulator.data
        return [data.xpos.copy(), data.site_xpos.copy(), np.array(data.contact.geom)]

    one, two = envs[:2]
    one.reset(EpisodeSpec(STOVE, 0))
    one.step(chunks(3, 1)[0])
    alone = privileged(one)
    joints = one._own().data.qpos.copy()
    two.reset(EpisodeSpec(STOVE, 1))
    for array, expected in zip(privileged(one), alone, strict=True):
        np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(one._own().data.qpos, joints)


def test_snapshot_continues_identically(envs: list[LiberoEnv]):
    env, other = envs[0], envs[1]
    env.reset(EpisodeSpec(STOVE, 4))
    trajectory(env, chunks(1, 2))
    state, before = env.snapshot(), everything(env)
    frozen = {k: np.copy(v) for k, v in state.items() if isinstance(v, np.ndarray)}
    future = trajectory(env, chunks(2, 2))
    other.reset(EpisodeSpec(PLATE, 0))
    other.restore(state)
    assert other.turns == 2
    assert other.instruction == "turn on the stove"
    assert_same(before, everything(other))
    assert_same_trajectory(future, trajectory(other, chunks(2, 2)))
    for key, value in state.items():
        assert isinstance(key, str)
        assert isinstance(value, np.ndarray | bool | int | float | str | np.generic)
    for key, value in frozen.items():
        np.testing.assert_array_equal(state[key], value, err_msg=key)


@pytest.mark.parametrize("turns", [0, 2])
def test_snapshot_restores_in_another_process(envs: list[LiberoEnv], tmp_path: Path, turns: int):
    """Also before the first step, in which robosuite's controller still knows the arm as it was at the reset."""
    env = envs[0]
    env.reset(EpisodeSpec(STOVE, 6))
    trajectory(env, chunks(1, turns))
    np.savez(tmp_path / "state.npz", **env.snapshot())
    program = f"""
        import numpy as np
        from vla_rl.config import EnvConfig
        from vla_rl.envs.libero.env import LiberoEnv
        stored = np.load({str(tmp_path / "state.npz")!r})
        config = EnvConfig(suite="libero-goal", image_size=32, action_repeat=2, initial_states=50, held_out=10)
        env = LiberoEnv(config)
        env.restore({{k: v.item() if v.ndim == 0 else v for k, v in stored.items()}})
        env.step(np.full((2, 7), 0.3, np.float32))
        np.savez({str(tmp_path / "after.npz")!r}, turns=env.turns, image=env.render(), **env._own().save().arrays())
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
    env.step(np.full((2, 7), 0.3, np.float32))
    with np.load(tmp_path / "after.npz") as after:
        assert int(after["turns"]) == env.turns == turns + 1
        np.testing.assert_array_equal(after["image"], env.render())
        for name, value in env._own().save().arrays().items():
            np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_a_snapshot_can_be_taken_before_the_first_step(envs: list[LiberoEnv]):
    """With no settling, robosuite's controller still holds the arm as it was when it was reset."""
    env = LiberoEnv(replace(GOAL, settle_steps=0))
    env.reset(EpisodeSpec(STOVE, 1))
    state = env.snapshot()
    assert state["first"] is True
    future = trajectory(env, chunks(5, 2))
    env.restore(state)
    assert_same_trajectory(future, trajectory(env, chunks(5, 2)))
    env.close()


def test_closing_one_user_of_shared_simulators_leaves_the_others_alone(envs: list[LiberoEnv]):
    config = replace(GOAL, suite="libero-goal:7", settle_steps=0)
    one, two = make_libero_envs(config, 2)
    one.reset(EpisodeSpec(STOVE, 0))
    two.reset(EpisodeSpec(STOVE, 0))
    seen = two.render()
    one.close()
    one.close()
    np.testing.assert_array_equal(two.render(), seen)
    two.close()


def test_slots_in_worker_processes_play_what_one_alone_plays(envs: list[LiberoEnv]):
    """Four slots in two processes, two of them sharing a simulator in each."""
    specs = [
        EpisodeSpec(STOVE, 0),
        EpisodeSpec(PLATE, 1),
        EpisodeSpec(STOVE, 2),
        EpisodeSpec(STOVE, 3),
    ]
    actions = np.stack([chunks(seed, 2) for seed in range(4)])
    with ProcessVectorEnv(replace(GOAL, num_envs=4, num_workers=2), make_libero_envs) as vector:
        assert vector.action_dim == 7
        vector.post_reset(range(4), specs)
        results = [vector.wait(range(4))]
        for turn in range(2):
            vector.post_step(range(4), actions[:, turn])
            results.append(vector.wait(range(4)))
    assert results[0].observation.instructions[1] == "push the plate to the front of the stove"
    assert results[2].simulator_steps.tolist() == [4] * 4
    for slot, spec in enumerate(specs):
        envs[0].reset(spec)
        for turn, result in enumerate(results):
            if turn:
                envs[0].step(actions[slot, turn - 1])
            np.testing.assert_array_equal(result.observation.images[slot], envs[0].render())
            np.testing.assert_array_equal(result.observation.proprio[slot], envs[0].proprio())


# -- turns -------------------------------------------------------------------------------------------


def test_a_turn_holds_each_action_and_the_time_limit_truncates(envs: list[LiberoEnv]):
    env, single = envs[0], envs[1]
    env.reset(EpisodeSpec(STOVE, 0))
    frames: list[np.ndarray] = []
    chunk = chunks(8, 1)[0]
    assert env.step(chunk, on_frame=lambda: frames.append(env.render())) == (0.0, False, False, 4)
    assert len(frames) == 4
    np.testing.assert_array_equal(frames[-1], env.render())
    single.reset(EpisodeSpec(STOVE, 0))
    for action, frame in zip(chunk[[0, 1]], (frames[1], frames[3]), strict=True):
        single.step(action[None])  # one action, held twice
        np.testing.assert_array_equal(single.render(), frame)
    assert_same(everything(env), everything(single))
    outcomes = [env.step(chunk) for _ in range(4)]
    assert [truncated for _, _, truncated, _ in outcomes] == [False, False, False, True]
    assert not any(terminated for _, terminated, _, _ in outcomes)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(chunk)


def test_success_ends_the_episode_within_a_turn(envs: list[LiberoEnv]):
    env = envs[0]
    env.reset(EpisodeSpec(STOVE, 0))
    still = np.zeros((2, 7), np.float32)
    assert env.step(still)[1:3] == (False, False)
    turn_knob(env, 1.0)
    assert env.step(still) == (1.0, True, False, 1)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(still)
    state = env.snapshot()
    envs[1].restore(state)
    with pytest.raises(RuntimeError, match="reset"):
        envs[1].step(still)


def test_a_burner_glows_and_the_other_slots_stays_dark(envs: list[LiberoEnv]):
    """A colour is no part of MuJoCo's state. In the other task of the same scene the knob is no success."""
    still = np.zeros((2, 7), np.float32)
    for env in envs[:2]:
        env.reset(EpisodeSpec(PLATE, 0))
        env.step(still)
    dark = envs[1].render()
    assert red(dark) == 0
    turn_knob(envs[0], 1.0)
    assert envs[0].step(still) == (0.0, False, False, 4)
    assert red(envs[0].render()) >= 3
    np.testing.assert_array_equal(envs[1].render(), dark)
    shown: list[int] = []
    envs[1].step(still, on_frame=lambda: shown.append(red(envs[1].render())))
    assert shown == [0, 0, 0, 0]
    turn_knob(envs[0], 0.0)
    envs[0].step(still)
    assert red(envs[0].render()) == 0


def test_actions_are_clipped(envs: list[LiberoEnv]):
    one, two = envs[0], envs[1]
    wild = np.array([[3.0, -9.0, 0.5, 7.0, -1.5, 0.2, 4.0]], dtype=np.float32)
    for env, action in ((one, wild), (two, np.clip(wild, -1, 1))):
        env.reset(EpisodeSpec(STOVE, 0))
        env.step(action)
    assert_same(everything(one), everything(two))


def test_proprio_follows_the_hand(envs: list[LiberoEnv]):
    env = envs[0]
    env.reset(EpisodeSpec(STOVE, 0))
    before = env.proprio()
    assert before.dtype == np.float32
    assert before[6] == pytest.approx(-before[7], abs=1e-3)  # the two fingers mirror each other
    action = np.array([[0, 0, 1, 0, 0, 0, 1]], dtype=np.float32)
    for _ in range(4):
        env.step(action)
    after = env.proprio()
    assert after[2] > before[2] + 0.06
    np.testing.assert_allclose(after[:2], before[:2], atol=0.03)
    assert after[6] - after[7] < before[6] - before[7] - 0.02  # they have closed
    np.testing.assert_allclose(after[3:6], before[3:6], atol=0.1)  # the hand has not turned
    assert np.linalg.norm(after[3:6]) == pytest.approx(np.pi, abs=0.2)  # it points down


def test_arrays_differ_from_liberos_own_state_in_nothing(envs: list[LiberoEnv]):
    env = envs[0]
    env.reset(EpisodeSpec(STOVE, 0))
    simulator = env._own()
    state = integration_state(simulator.model, simulator.data)
    np.testing.assert_array_equal(env.snapshot()["integration"], state)


# -- other suites, bad input -------------------------------------------------------------------------


def test_a_perturbed_task_of_libero_pro():
    """Another goal in the same scene, said in its own words."""
    config = replace(GOAL, suite="libero-goal-task:7")
    env = LiberoEnv(config)
    env.reset(EpisodeSpec(STOVE, 0))
    assert env.instruction == "turn off the stove"
    assert env.render().std() > 20
    assert env.step(chunks(0, 1)[0])[3] >= 1
    env.close()


def test_unknown_names_are_config_errors(envs: list[LiberoEnv]):
    with pytest.raises(
        ConfigError, match=r"not in suite 'libero-goal:7,5'\. Did you mean '" + STOVE
    ):
        envs[0].reset(EpisodeSpec("turn_on_the_stoves", 0))
    with pytest.raises(ConfigError, match="Did you mean 'libero-goal'"):
        LiberoEnv(replace(GOAL, suite="libero-gaol"))
    for camera, near in (("wirst", "wrist"), ("agentviwe", "agentview")):
        wrong = LiberoEnv(replace(GOAL, camera=camera, settle_steps=0))
        with pytest.raises(ConfigError, match=f"no camera '{camera}'.*'{near}'"):
            wrong.reset(EpisodeSpec(STOVE, 0))
    with pytest.raises(RuntimeError, match="reset"):
        LiberoEnv(GOAL).render()


def test_initial_states_end_where_liberos_do(envs: list[LiberoEnv]):
    envs[0].reset(EpisodeSpec(STOVE, 49))
    for beyond in (50, -1):
        with pytest.raises(UserError, match=rf"0 to 49, got {beyond}.*initial_states"):
            envs[0].reset(EpisodeSpec(STOVE, beyond))
    envs[0].reset(EpisodeSpec(STOVE, 0))  # and it goes on


def test_states_of_another_model_are_refused(
    envs: list[LiberoEnv], monkeypatch: pytest.MonkeyPatch
):
    import vla_rl.envs.libero.simulator as module

    monkeypatch.setattr(module, "stored_states", lambda path: np.zeros((50, 12)))
    with pytest.raises(UserError, match="12 numbers, its model"):
        envs[0].reset(EpisodeSpec(STOVE, 17))


def test_tasks_come_in_the_order_asked_for():
    assert [task.name for task in suite_tasks(GOAL.suite)] == [STOVE, PLATE]
