"""How benchmarks are played when nobody says otherwise: the published numbers, and what follows from a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vla_rl.config import ConfigError, Conventions, EnvConfig, EvalConfig, UserError
from vla_rl.data.demonstrations import NORMALISED_ROBOTS
from vla_rl.envs.defaults import (
    benchmark_env,
    conventions,
    evaluation_env,
    evaluation_protocol,
    laptop_env,
    require_same_robot,
)
from vla_rl.envs.libero.benchmark import LIBERO
from vla_rl.envs.metaworld.benchmark import METAWORLD
from vla_rl.envs.registry import benchmark, playable, task_names
from vla_rl.evaluation.result import initial_states_of
from vla_rl.recipes.presets import PRESETS, SUMMARIES, preset


@pytest.mark.parametrize(
    ("suite", "horizon"),
    [("spatial", 220), ("object", 280), ("goal", 300), ("10", 520), ("90", 400)],
)
def test_openvlas_protocol(suite: str, horizon: int) -> None:
    """openvla/openvla@c8f03f4, run_libero_eval.py."""
    env = benchmark_env(f"libero-{suite}")
    assert (env.horizon, env.action_repeat, env.action_chunk) == (horizon, 1, 1)
    assert (env.image_size, env.settle_steps, env.mesh_faces) == (256, 10, 0)
    states = initial_states_of(env, EvalConfig())
    assert states == list(range(50))
    perturbed = f"libero-{suite}-swap"
    if suite != "90":
        assert benchmark_env(perturbed).horizon == horizon


def test_a_laptops_episodes_are_as_long_as_the_protocols() -> None:
    for suite in ("libero-spatial", "libero-object", "libero-10"):
        env = laptop_env(suite)
        steps = env.horizon * env.action_chunk * env.action_repeat
        assert 0 <= steps - benchmark_env(suite).horizon < env.action_chunk * env.action_repeat
    assert laptop_env("mt10") == EnvConfig(suite="mt10")


def test_meta_worlds_protocol_is_thirty_held_out_states() -> None:
    states = initial_states_of(EnvConfig(), EvalConfig())
    assert states == list(range(900, 930))
    few = EnvConfig(initial_states=40, held_out=10)
    assert initial_states_of(few, EvalConfig()) == list(range(30, 40))


@pytest.mark.parametrize(
    ("split", "states"),
    [("held-out", range(30, 50)), ("train", range(30)), ("all", range(50)), ("auto", range(50))],
)
def test_liberos_splits_are_played_whole(split, states) -> None:
    env = laptop_env("libero-object")
    assert initial_states_of(env, EvalConfig(split=split)) == list(states)
    resolved = evaluation_protocol(EvalConfig(split=split), env)
    assert resolved.split == ("all" if split == "auto" else split)
    assert resolved.episodes_per_task == len(states)


def test_more_states_than_there_are() -> None:
    env = laptop_env("libero-object")
    with pytest.raises(UserError, match="more than the 20 initial states of the held-out split"):
        initial_states_of(env, EvalConfig(split="held-out", episodes_per_task=21))
    with pytest.raises(ConfigError, match="at most 50 on LIBERO"):
        playable(EnvConfig(suite="libero-object"))


def test_a_policy_of_unknown_origin_is_not_played_on_just_any_suite() -> None:
    with pytest.raises(UserError, match=r"nothing beside this policy says.*--suite"):
        evaluation_env("", None, 64, resizes=False, action_chunk=2)


def test_a_policy_is_evaluated_as_it_was_trained() -> None:
    trained = replace(laptop_env("libero-object"), camera="wrist", mesh_faces=123)
    same = evaluation_env("", trained, 64, resizes=False, action_chunk=2)
    assert same == trained
    # another suite of the benchmark: its own horizon, in the policy's turns
    other = evaluation_env("libero-10", trained, 64, resizes=False, action_chunk=2)
    assert (other.suite, other.camera, other.mesh_faces) == ("libero-10", "wrist", 123)
    assert other.horizon == 520 // 8
    # a policy with other chunks plays as many simulator steps
    longer = evaluation_env("", trained, 64, resizes=False, action_chunk=4)
    assert (longer.horizon, longer.action_chunk) == (18, 4)
    # another benchmark: its protocol
    assert evaluation_env("mt5", trained, 64, resizes=False, action_chunk=2) == EnvConfig()


def test_frames_come_in_the_models_size_unless_it_resizes_them() -> None:
    assert evaluation_env("libero-goal", None, 224, resizes=True, action_chunk=1).image_size == 256
    assert evaluation_env("libero-goal", None, 224, resizes=False, action_chunk=1).image_size == 224


def test_published_checkpoints_have_their_benchmarks_conventions() -> None:
    """How a checkpoint gets them, or says its own: tests/policies/test_conventions.py."""
    goal = Conventions("openvla-libero", "openvla", "libero_goal")
    assert conventions("libero-goal") == conventions("libero-goal:3") == goal
    assert conventions("libero-10-swap").unnorm_key == "libero_10"
    assert conventions("mt5") == Conventions()


def test_a_robot_of_another_benchmark_is_refused() -> None:
    require_same_robot(7, "libero-goal")
    require_same_robot(4, "mt5")
    with pytest.raises(
        UserError, match=r"4 numbers an action, but libero-goal \(LIBERO\).* with 7"
    ):
        require_same_robot(4, "libero-goal")


def test_suites_and_their_benchmarks() -> None:
    assert benchmark("mt1:reach") is benchmark("mt50") is METAWORLD
    assert benchmark("libero-90:12") is benchmark("libero-spatial-lan") is LIBERO
    assert benchmark("libero-10:0,2") is LIBERO
    assert benchmark("mt1:libero-10") is METAWORLD
    assert task_names("mt1:reach") == ("reach",)
    with pytest.raises(ConfigError, match=r"unknown LIBERO suite 'libero-spatail'.*libero-spatial"):
        benchmark("libero-spatail")
    with pytest.raises(ConfigError, match=r"unknown suite 'mt6'.*mt5"):
        benchmark("mt6")


def test_experts_actions_are_known_to_span_the_whole_range() -> None:
    """Readers of demonstrations must not take quantiles of what an expert of ours did."""
    assert {METAWORLD.robot, LIBERO.robot} == set(NORMALISED_ROBOTS)
    for played in (METAWORLD, LIBERO):
        assert len(played.noise_scale) == played.action_dim
    assert LIBERO.noise_scale[-1] == 0  # a gripper that opens by chance drops what it holds


# -- presets -----------------------------------------------------------------------------------------


def test_every_preset_has_a_summary_and_a_suite_that_exists() -> None:
    assert set(PRESETS) == set(SUMMARIES)
    for config in PRESETS.values():
        assert benchmark(config.env.suite)
        assert len(initial_states_of(config.env, config.eval)) >= 20


@pytest.mark.parametrize("suite", ["spatial", "object", "goal", "10"])
def test_the_papers_numbers(suite: str) -> None:
    """arXiv 2505.18719 and, where it is silent, its authors' released script."""
    config = preset(f"libero-{suite}-openvla-7b")
    ppo, policy, optimizer = config.ppo, config.policy, config.optimizer
    assert policy.checkpoint == f"openvla/openvla-7b-finetuned-libero-{suite}"
    assert policy.lora is not None
    assert (policy.lora.rank, policy.lora.alpha, policy.lora.vision) == (32, 16, False)
    assert policy.critic.kind == "shared"
    assert (config.rollout.temperature, optimizer.learning_rate) == (1.5, 2e-5)
    assert ppo.critic_learning_rate == 5e-5
    assert (ppo.critic_warmup, ppo.gamma, ppo.gae_lambda) == (5, 0.99, 0.95)
    assert (ppo.clip_low, ppo.clip_high, ppo.value_clip, ppo.value_coef) == (0.2, 0.2, 0.2, 1.0)
    assert (ppo.epochs, optimizer.max_grad_norm, ppo.normalize_advantages) == (1, 1.0, False)
    assert (optimizer.adam_eps, optimizer.weight_decay) == (1e-5, 0.0)
    assert (ppo.ratio, ppo.kl_coef) == ("action", 0.0)
    assert (config.rollout.turns, config.env.num_envs, config.curriculum.mode) == (128, 10, "paper")
    assert np.isclose(
        config.env.horizon, {"spatial": 220, "object": 280, "goal": 300, "10": 520}[suite]
    )
    assert config.run.eval_every > 0
