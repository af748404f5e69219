"""Presets after a second source on VLA-RL, "the article": VLA-RL: Scaling RL to Improve VLA Manipulation.

It differs from the paper (arXiv 2505.18719) in many numbers. What it does not give is the paper's, or the released
script's, as in the presets that these are made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vla_rl.config import CurriculumConfig, RolloutConfig, TrainConfig
from vla_rl.config.parallel import ParallelConfig

_EPISODE_STEPS = 200  # article: at most so many steps an episode
_EPISODES = 64  # article: episodes an iteration
_CURRICULUM = CurriculumConfig(
    mode="levels",  # article
    levels=3,  # ours: it does not say how many
    level_threshold=0.7,  # article: mean success that opens the next level
    level_window=10,  # article: of the last 10 rates
    level_share=0.7,  # article: share of draws from the current level
    floor=0.0,  # it has none
)


def _article(base: TrainConfig) -> TrainConfig:
    """What the article says of learning, whatever is played."""
    return replace(
        base,
        optimizer=replace(
            base.optimizer,
            learning_rate=1e-5,  # article; the paper: 2e-5
            weight_decay=0.01,  # article; the released script: 0
            max_grad_norm=1.0,  # article
        ),
        ppo=replace(
            base.ppo,
            minibatch=32,  # article
            clip_low=0.2,  # article
            clip_high=0.2,  # article
            gamma=0.99,  # article
            gae_lambda=0.95,  # article
            value_lambda=0.95,  # as gae_lambda: it names one lambda
            kl_coef=0.01,  # article; the paper has no such term
            critic_max_grad_norm=1.0,  # article: the same clip for all
        ),
        curriculum=_CURRICULUM,
    )


def _metaworld(paper: TrainConfig) -> TrainConfig:
    """On Meta-World, for two CPU cores: a policy of a million weights, in turns of two held actions."""
    env = replace(paper.env, num_envs=32)  # article: 64; ours, for a laptop's memory
    steps_a_turn = env.action_repeat * env.action_chunk  # ours: 5 x 2
    horizon = _EPISODE_STEPS // steps_a_turn
    return replace(
        _article(paper),
        env=replace(env, horizon=horizon),
        # so many turns of 32 environments are 64 episodes of full length, and more where some succeed
        rollout=RolloutConfig(
            turns=_EPISODES * horizon // env.num_envs,
            temperature=paper.rollout.temperature,  # paper; the article names none for training
        ),
    )


def _libero(paper: TrainConfig) -> TrainConfig:
    """On LIBERO with OpenVLA-7B, on four GPUs: two actors and two learners."""
    return replace(
        _article(paper),
        env=replace(
            paper.env,
            num_envs=64,  # article
            horizon=_EPISODE_STEPS,  # article; LIBERO's own: 220 to 520, so evaluate with --horizon
        ),
        # every environment plays one episode of full length or several shorter ones
        rollout=RolloutConfig(
            turns=_EPISODE_STEPS,
            temperature=paper.rollout.temperature,  # paper; the article names none for training
        ),
        # article: actors on GPUs 0 and 1, learners on GPUs 2 and 3; which GPU is whose is Ray's to say
        parallel=ParallelConfig(arrangement="pools", learners=2, actors=2, shards=8),
    )


_LIBERO_SUITES = ("spatial", "object", "goal", "10")


def article_presets(presets: Mapping[str, TrainConfig]) -> dict[str, TrainConfig]:
    """The article's presets, made from the paper's."""
    libero = {
        f"libero-{suite}-openvla-7b-article": _libero(presets[f"libero-{suite}-openvla-7b"])
        for suite in _LIBERO_SUITES
    }
    return {"metaworld-mt5-article": _metaworld(presets["metaworld-mt5-paper"])} | libero


ARTICLE_SUMMARIES: dict[str, str] = {
    "metaworld-mt5-article": "the second source's; environments and 10-step turns are scaled (32, 20)",
    "libero-spatial-openvla-7b-article": "a second source's numbers; 64 environments, four GPUs",
    "libero-object-openvla-7b-article": "the same on LIBERO-Object",
    "libero-goal-openvla-7b-article": "the same on LIBERO-Goal",
    "libero-10-openvla-7b-article": "the same on LIBERO-10 (Long)",
}
