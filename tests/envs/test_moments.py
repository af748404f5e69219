"""Snapshots within one episode, and the simulator's own reward: what choosing among continuations relies on."""

from __future__ import annotations

import numpy as np
import pytest
from official_metaworld import official_env
from test_metaworld import (
    AWKWARD,
    SUITE,
    assert_same,
    assert_same_trajectory,
    everything,
    random_actions,
    trajectory,
)

from builders.policies import tiny_policy
from vla_rl.config import EnvConfig, UserError, tiny_model
from vla_rl.config.search import BestOfConfig
from vla_rl.envs.known_answers import ChainEnv, make_bandit_envs, make_chain_envs
from vla_rl.envs.metaworld.env import MetaWorldEnv, make_metaworld_envs
from vla_rl.envs.metaworld.tasks import INSTRUCTIONS
from vla_rl.envs.vector.process import ProcessVectorEnv
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.evaluation.search.best_of import play_best_of
from vla_rl.evaluation.search.choosers import make_chooser
from vla_rl.evaluation.videos import replay
from vla_rl.types import EpisodeSpec

TINY = EnvConfig(image_size=16, num_envs=3, num_workers=2, horizon=6, action_chunk=1)


@pytest.fixture(scope="module")
def envs():
    pytest.importorskip("metaworld")
    made = make_metaworld_envs(SUITE, 2)
    yield made
    for env in made:
        env.close()


@pytest.mark.sim
@pytest.mark.parametrize("task", ["drawer-open", *AWKWARD])
def test_going_back_within_an_episode_is_exact(envs: list[MetaWorldEnv], task: str) -> None:
    """Another way played on from the same moment, in the same slot, leaves no trace."""
    env = envs[0]
    env.reset(EpisodeSpec(task, 4))
    trajectory(env, random_actions(1, 3))
    state, before = env.snapshot(), everything(env)
    future = trajectory(env, random_actions(2, 3))
    env.restore(state)
    trajectory(env, random_actions(3, 5))
    envs[1].reset(EpisodeSpec(task, 9))  # somebody else's turn in the same simulator
    env.restore(state)
    assert_same(before, everything(env))
    again = env.snapshot()
    assert again.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(value, again[key], err_msg=key)
    assert_same_trajectory(future, trajectory(env, random_actions(2, 3)))


@pytest.mark.sim
@pytest.mark.parametrize("task", ["drawer-open", "window-close", "bin-picking", "pick-place"])
def test_dense_reward_is_meta_worlds_and_asking_changes_nothing(
    envs: list[MetaWorldEnv], task: str
) -> None:
    env, other = envs
    official, _ = official_env(task, 5)
    for each in (env, other):
        each.reset(EpisodeSpec(task, 5))
    with pytest.raises(RuntimeError, match="play one"):
        env.dense_reward()
    rewards = []
    for chunk in np.clip(random_actions(1, 4), -1, 1):
        assert env.step(chunk) == other.step(chunk)
        for action in chunk:
            for _ in range(SUITE.action_repeat):
                reward = official.step(action)[1]
        assert env.dense_reward() == pytest.approx(float(reward), abs=1e-9)
        assert env.dense_reward() == env.dense_reward()
        rewards.append(float(reward))
        assert_same(everything(env), everything(other))
        assert env.snapshot().keys() == other.snapshot().keys()
    assert len(set(rewards)) == 4
    assert all(0 <= reward <= 10 for reward in rewards)


@pytest.mark.sim
def test_what_the_reward_writes_is_taken_back(
    envs: list[MetaWorldEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of Meta-World's rewards keep notes; they must not reach the episode or its snapshots."""
    env = envs[0]
    env.reset(EpisodeSpec("drawer-open", 5))
    env.step(random_actions(1, 1)[0])
    kind = type(env._own()._env)
    official = kind.evaluate_state

    def notes(self, obs, action):
        self.obj_init_pos = self.obj_init_pos + 1
        self.noted = True
        return official(self, obs, action)

    before = env.snapshot()
    monkeypatch.setattr(kind, "evaluate_state", notes)
    env.dense_reward()
    after = env.snapshot()
    assert after.keys() == before.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(value, after[key], err_msg=key)
    assert "noted" not in env._own().attributes


@pytest.mark.sim
def test_kept_continuations_replay_as_recorded() -> None:
    """Episodes put together from snapshots, of any number of workers, are what their actions give when just played."""
    pytest.importorskip("metaworld")
    config = EnvConfig(suite="mt5", image_size=32, num_envs=8, horizon=4)
    policy = tiny_policy(list(INSTRUCTIONS.values()), tiny_model(32))
    search = BestOfConfig(3, "lookahead", "simulator", lookahead=2, greedy_first=False)
    specs = [EpisodeSpec(task, i) for i in (3, 4) for task in ("drawer-close", "window-open")]
    results = []
    for workers, num_envs in ((1, 8), (2, 5)):
        env = EnvConfig(
            suite="mt5", image_size=32, num_envs=num_envs, num_workers=workers, horizon=4
        )
        with ProcessVectorEnv(env) as envs:
            chooser = make_chooser("simulator", None, 0)
            records, _ = play_best_of(policy, envs, specs, search, chooser)
            results.append([(r.success, r.turns, r.simulator_steps, r.tokens) for r in records])
    assert results[0] == results[1]
    studio = MetaWorldEnv(config)
    for record in records:
        replay(studio, record, policy, frame_every=100)  # raises if it ends otherwise
        assert record.turns == 4 or record.success
    studio.close()


def test_dense_rewards_through_workers() -> None:
    forward = np.ones((2, 1, 4), np.float32)
    for make in (SerialVectorEnv, ProcessVectorEnv):
        with make(TINY, make_chain_envs) as envs:
            envs.post_reset(range(3), [EpisodeSpec("chain", i) for i in (0, 1, 2)])
            envs.wait(range(3))
            envs.post_step([0, 2], forward)
            envs.wait([0, 2])
            found = envs.dense_rewards([2, 1, 0])
            assert found.dtype == np.float32
            assert found.tolist() == pytest.approx([10 * 3 / 5, 10 * 1 / 5, 10 * 1 / 5])
        with make(TINY, make_bandit_envs) as envs:
            envs.post_reset([0], [EpisodeSpec("bandit", 0)])
            envs.wait([0])
            with pytest.raises(UserError, match=r"no dense reward.*Take a process reward model"):
                envs.dense_rewards([0])


def test_restores_of_all_workers_are_posted_at_once() -> None:
    with ProcessVectorEnv(TINY, make_chain_envs) as envs:
        envs.post_reset(range(3), [EpisodeSpec("chain", i) for i in (0, 1, 2)])
        envs.wait(range(3))
        states = envs.snapshot([0, 1, 2])
        envs.post_restore([1, 2, 0], states)
        with pytest.raises(RuntimeError, match="wait for slots"):
            envs.post_restore([2], states[:1])
        result = envs.wait([1, 2, 0])
        assert not (result.terminated | result.truncated | result.lost).any()
        bright = (result.observation.images[:, 0, :, 0] > 0).mean(1)
        shown = ChainEnv(TINY)
        for row in range(3):
            shown.restore(states[row])
            assert bright[row] == pytest.approx((shown.render()[0, :, 0] > 0).mean())
