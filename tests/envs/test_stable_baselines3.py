"""stable-baselines3 learns on our suites as on any Gymnasium environment, where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gymnasium")
pytest.importorskip("stable_baselines3", reason="pip install stable-baselines3")
import gymnasium
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env

SUITE = "vla_rl.gymnasium_envs:vla_rl/suite-v0"
TOY = {"suite": "toy:reach-red", "image_size": 36}


@pytest.mark.parametrize("observation", ["image", "dict"])
@pytest.mark.filterwarnings("ignore:.*observation .* is an image but")
def test_its_own_checker_passes(observation: str):
    check_env(gymnasium.make(SUITE, observation=observation, **TOY))


def test_its_ppo_plays_and_learns_from_pixels():
    env = gymnasium.make(SUITE, observation="image", reward="dense", **TOY)
    model = PPO("CnnPolicy", env, n_steps=64, batch_size=32, n_epochs=1, seed=0, device="cpu")
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(64)
    after = model.policy.state_dict()
    assert any((after[name] != value).any() for name, value in before.items())
    action, _ = model.predict(env.reset(seed=0)[0])
    assert np.shape(action) == env.action_space.shape
    assert env.step(action)[4]["simulator_steps"] > 0
