"""The second source's presets hold its numbers, and the paper's where it gives none."""

from __future__ import annotations

import pytest

from vla_rl.recipes.presets import PRESETS, SUMMARIES

ARTICLE = [name for name in PRESETS if name.endswith("-article")]


@pytest.mark.parametrize("name", ARTICLE)
def test_the_articles_numbers(name: str) -> None:
    config, paper = (
        PRESETS[name],
        PRESETS[name.removesuffix("-article").replace("mt5", "mt5-paper")],
    )
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-5, 0.01)
    assert (config.ppo.clip_low, config.ppo.clip_high, config.ppo.kl_coef) == (0.2, 0.2, 0.01)
    assert (config.ppo.gamma, config.ppo.gae_lambda, config.ppo.minibatch) == (0.99, 0.95, 32)
    assert config.optimizer.max_grad_norm == 1.0
    assert config.curriculum.mode == "levels"
    env = config.env
    assert env.horizon * env.action_chunk * env.action_repeat == 200
    # episodes of full length in an iteration
    assert env.num_envs * config.rollout.turns / env.horizon == 64
    assert config.rollout.temperature == paper.rollout.temperature
    assert config.ppo.critic_warmup == paper.ppo.critic_warmup
    assert name in SUMMARIES


def test_four_suites_of_libero_are_played_by_two_actors_for_two_learners() -> None:
    libero = [PRESETS[name] for name in ARTICLE if name.startswith("libero")]
    assert len(libero) == 4
    for config in libero:
        assert config.env.num_envs == 64
        assert (config.parallel.arrangement, config.parallel.actors) == ("pools", 2)
        assert config.parallel.learners == 2
