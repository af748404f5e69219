"""GRPO and TPO from a preset to a run folder: stopped and resumed, on several ranks, and what they refuse."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from builders.same_runs import lines, require_same
from builders.thread_ranks import on_ranks
from vla_rl.config import ConfigError, LoraConfig, TrainConfig, UserError
from vla_rl.config.parallel import ParallelConfig
from vla_rl.config.serialize import from_json, to_json
from vla_rl.policies.policy import Policy, has_critic
from vla_rl.policies.registry import load_policy
from vla_rl.recipes import train_ppo
from vla_rl.recipes.presets import preset
from vla_rl.recipes.train import train
from vla_rl.training.scratch import scratch_policy

ALGORITHMS = ("grpo", "tpo")


def toy(root: Path, algorithm: str, name: str = "run", **parts: Any) -> TrainConfig:
    base = preset(f"toy-{algorithm}")
    small = {"group_size": 4, "groups": 3, "extra_groups": 2}
    config = replace(
        base,
        env=replace(base.env, num_envs=8),
        schedule=replace(base.schedule, iterations=4, episodes=0),
        grpo=replace(base.grpo, **small, minibatch=16, epochs=2),
        tpo=replace(base.tpo, **small, minibatch=3),
        eval=replace(base.eval, episodes_per_task=1, videos=0),
        run=replace(base.run, root=str(root), name=name, save_every=2),
        parallel=ParallelConfig(timeout=120.0),
    )
    return replace(config, **parts)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("alone")
    return {name: train(toy(root, name, name)) for name in ALGORITHMS}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_has_no_critic_and_says_what_became_of_its_groups(
    algorithm: str, alone: dict[str, Path]
) -> None:
    run = alone[algorithm]
    newest = max((run / "checkpoints").glob("iteration-*"))
    assert not list(run.rglob("critic*"))
    assert has_critic(load_policy(newest / "policy")), "PPO can go on from it with a fresh one"
    for file in newest.glob("*.safetensors"):
        assert not any("critic" in name for name in load_file(file)), file
    for line in lines(run):
        counted = [line[f"groups/{what}"] for what in ("mixed", "all_succeeded", "all_failed")]
        assert sum(counted) == line["groups/played"] <= 5
        assert line["rollout/episodes"] == 4 * line["groups/played"]
        losses = [name for name in line if name.startswith("losses/")]
        assert not any("critic" in name or "value" in name for name in losses)
    assert sum(line["losses/policy_steps"] for line in lines(run)) > 0
    assert (run / "eval" / "after-greedy.json").is_file()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_ranks_run_the_run_of_one(
    algorithm: str, alone: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_at_a_time = threading.Lock()

    def made_alone(config: TrainConfig) -> Policy:
        with one_at_a_time:  # torch's generator is that of all threads
            return scratch_policy(config)

    monkeypatch.setattr("vla_rl.training.state.scratch_policy", made_alone)
    monkeypatch.setattr("vla_rl.training.scratch.scratch_policy", made_alone)
    config = toy(tmp_path, algorithm, parallel=ParallelConfig(ranks=2, timeout=120.0))
    run, _ = on_ranks(2, lambda world: train(config, None, world))
    require_same(run, alone[algorithm])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_in_two_halves_is_the_same_run(
    algorithm: str, alone: dict[str, Path], tmp_path: Path
) -> None:
    config = toy(tmp_path, algorithm)
    run = train(replace(config, schedule=replace(config.schedule, iterations=2)))
    for file in (run / "eval").glob("after-*"):
        file.unlink()
    train(config, run)
    one, other = (max((r / "checkpoints").glob("iteration-*")) for r in (run, alone[algorithm]))
    files = [file.relative_to(other) for file in other.rglob("*.safetensors")]
    assert len(files) >= 2
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


def test_a_run_in_the_place_of_its_policy_is_refused_with_the_policys_folder(
    alone: dict[str, Path],
) -> None:
    newest = max((alone["grpo"] / "checkpoints").glob("iteration-*"))
    for folder in (alone["grpo"], newest):
        with pytest.raises(UserError, match=rf"expected the policy in it: {newest / 'policy'}$"):
            load_policy(folder)


def test_a_critic_in_the_configuration_is_not_built(tmp_path: Path, alone: dict[str, Path]) -> None:
    """A configuration of PPO has one; on the command line asking for one is refused."""
    assert toy(tmp_path, "grpo").policy.critic.kind == "separate"
    saved = from_json(TrainConfig, json.loads((alone["grpo"] / "config.json").read_text()))
    assert saved.policy.critic.kind == "none"
    with pytest.raises(ConfigError, match=r"policy\.critic\.kind"):
        train_ppo.train(
            replace(preset("toy"), policy=saved.policy, run=replace(saved.run, name="ppo"))
        )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_potentials_and_playing_ahead_are_refused(algorithm: str, tmp_path: Path) -> None:
    config = toy(tmp_path, algorithm)
    potential = replace(config.reward, kind="simulator", form="potential")
    with pytest.raises(
        ConfigError, match=f"reward.form potential changes nothing in {algorithm.upper()}"
    ):
        replace(config, reward=potential)
    ahead = ParallelConfig(arrangement="pools", actors=1, staleness=1)
    with pytest.raises(ConfigError, match=r"set parallel\.staleness 0"):
        replace(config, parallel=ahead)


@pytest.mark.parametrize(
    ("group", "settings", "said"),
    [
        ("grpo", {"group_size": 1}, r"grpo\.group_size: expected a whole number from 2"),
        ("tpo", {"group_size": 1}, r"tpo\.group_size: expected a whole number from 2"),
        ("grpo", {"kl_coef": 0.1, "kl_estimator": "k1"}, r"grpo\.kl_estimator k1"),
        ("tpo", {"success_weight": 0.0, "reward_weight": 0.0}, "nothing ranks the episodes"),
        ("tpo", {"beta": 0.0}, r"tpo\.beta: expected a number"),
    ],
)
def test_settings_that_make_no_sense(group: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(getattr(TrainConfig(), group), **settings)


def test_a_weight_of_rewards_that_there_are_not_ranks_nothing() -> None:
    config = preset("toy-tpo")
    config = replace(config, reward=replace(config.reward, kind="success"))
    dense_alone = replace(config.tpo, success_weight=0.0)
    with pytest.raises(ConfigError, match=r"tpo\.reward_weight alone ranks nothing"):
        replace(config, tpo=dense_alone)
    dense = replace(config.reward, kind="process", model="runs/reward")
    assert replace(config, tpo=dense_alone, reward=dense).tpo.success_weight == 0
    replace(config, tpo=replace(dense_alone, likelihood_weight=0.01))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_that_learns_nothing_says_so(
    algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy(tmp_path, algorithm)
    one = {"group_size": 2, "groups": 1, "extra_groups": 0}
    config = replace(
        config,
        grpo=replace(config.grpo, **one),
        tpo=replace(config.tpo, **one, reward_weight=0.0),
        reward=replace(config.reward, kind="success"),
        schedule=replace(config.schedule, iterations=2),
    )
    run = train(config)
    steps = [line["losses/policy_steps"] for line in lines(run)]
    assert steps == [0, 0], "the test needs groups that all fail"
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.count("nothing to learn from") == 1
    assert f"{algorithm}.group_size" in said


def test_ranks_without_an_episode_are_refused(tmp_path: Path) -> None:
    config = toy(tmp_path, "grpo")
    config = replace(
        config,
        grpo=replace(config.grpo, group_size=2, groups=1),
        parallel=ParallelConfig(ranks=2, timeout=20.0),
    )
    with pytest.raises(ConfigError, match="2 episodes an iteration"):
        on_ranks(2, lambda world: train(config, None, world))


def test_tpo_with_adapters_takes_the_policy_without_them_as_reference(tmp_path: Path) -> None:
    config = toy(tmp_path, "tpo")
    config = replace(
        config,
        policy=replace(config.policy, lora=LoraConfig(rank=2)),
        schedule=replace(config.schedule, iterations=2),
        tpo=replace(config.tpo, minibatch=100, reference="start"),
    )
    first, second = lines(train(config))
    assert first["tpo/margin"] == pytest.approx(0, abs=1e-3)
    assert abs(second["tpo/chosen_log_ratio"]) > 1e-3


def test_configurations_of_before_say_nothing_of_groups_and_load() -> None:
    saved = to_json(preset("metaworld-mt5"))
    for name in ("grpo", "tpo"):
        del saved[name]
    assert from_json(TrainConfig, saved) == preset("metaworld-mt5")
