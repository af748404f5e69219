"""The environments to test algorithms on must themselves be right."""

from __future__ import annotations

import numpy as np
import pytest

from vla_rl.config import ConfigError, EnvConfig
from vla_rl.envs.known_answers import BanditEnv, ChainEnv, make_bandit_envs
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.types import EpisodeSpec

CONFIG = EnvConfig(image_size=16, action_repeat=1, horizon=3, num_envs=2)


def chunk(first: float) -> np.ndarray:
    return np.array([[first, 0, 0, 0], [-first, 9, 9, 9]], dtype=np.float32)


@pytest.mark.parametrize(
    ("state", "action", "success"),
    [(0, -0.5, True), (0, 0.5, False), (1, 0.5, True), (1, -0.5, False), (7, 0.1, True)],
)
def test_bandit_pays_on_the_bright_side(state: int, action: float, success: bool):
    env = BanditEnv(CONFIG)
    env.reset(EpisodeSpec("bandit", state))
    image = env.render()
    bright_right = image[:, 8:].mean() > image[:, :8].mean()
    assert bright_right == (state % 2 == 1)
    assert env.step(chunk(action)) == (float(success), success, False, 2)


def test_bandit_time_limit():
    env = BanditEnv(CONFIG)
    env.reset(EpisodeSpec("bandit", 0))
    assert [env.step(chunk(1.0))[1:3] for _ in range(3)] == [(False, False)] * 2 + [(False, True)]


def test_chain_walks_to_the_end_and_shows_where_it_is():
    env = ChainEnv(EnvConfig(image_size=33, horizon=20))
    env.reset(EpisodeSpec("chain", 5))  # 5 mod 5
    brightness = [env.render().mean()]
    results = []
    for action in (1, -1, 1, 1, 1, 1):
        results.append(env.step(chunk(action)))
        brightness.append(env.render().mean())
    assert [r[1] for r in results] == [False] * 5 + [True]
    assert brightness[1] == brightness[2]
    assert all(np.diff(np.delete(brightness, 2)) > 0)


@pytest.mark.parametrize(("probability", "gamma"), [(1.0, 0.9), (0.5, 0.95), (0.25, 1.0)])
def test_chain_value_is_the_mean_discounted_return(probability: float, gamma: float):
    """Against simulation of the environment itself, at 4 standard errors."""
    env = ChainEnv(EnvConfig(image_size=1, horizon=10_000))
    rng = np.random.default_rng(0)
    returns = []
    for _ in range(1500):
        env.reset(EpisodeSpec("chain", 2))
        discount = 1.0
        while not env.step(chunk(1.0 if rng.random() < probability else -1.0))[1]:
            discount *= gamma
        returns.append(discount)
    error = 4 * np.std(returns) / np.sqrt(len(returns)) + 1e-9
    assert abs(np.mean(returns) - ChainEnv.value(2, probability, gamma)) < error


def test_chain_value_literal():
    assert ChainEnv.value(4, 1.0, 0.5) == 1.0
    assert ChainEnv.value(2, 1.0, 0.5) == 0.25
    assert ChainEnv.value(4, 0.5, 0.5) == pytest.approx(2 / 3)


def test_snapshot_and_restore():
    env, other = ChainEnv(CONFIG), ChainEnv(CONFIG)
    env.reset(EpisodeSpec("chain", 1))
    env.step(chunk(1))
    other.restore(env.snapshot())
    assert other.turns == 1
    np.testing.assert_array_equal(env.render(), other.render())
    assert env.step(chunk(1)) == other.step(chunk(1))
    with pytest.raises(ConfigError):
        other.reset(EpisodeSpec("bandit", 0))


def test_serial_vector_env_checks_its_use():
    with SerialVectorEnv(CONFIG, make_bandit_envs) as envs:
        envs.post_reset([0], [EpisodeSpec("bandit", 1)])
        with pytest.raises(RuntimeError, match="wait for slots"):
            envs.post_reset([0], [EpisodeSpec("bandit", 1)])
        with pytest.raises(RuntimeError, match="nothing was posted"):
            envs.wait([1])
        result = envs.wait([0])
        assert result.observation.instructions == ("choose the bright side",)
        assert result.rewards.tolist() == [0.0]
        state = envs.snapshot([0])
        envs.post_step([0], np.ones((1, 2, 4), dtype=np.float32))
        assert envs.wait([0]).terminated.all()
        assert envs.restore([1], state).time_fraction.tolist() == [0.0]
        envs.post_step([1], np.ones((1, 2, 4), dtype=np.float32))
        assert envs.wait([1]).rewards.tolist() == [1.0]
