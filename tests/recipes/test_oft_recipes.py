"""Parallel decoding through the recipes, on the toy: demonstrations, fine-tuning, practice, and the wrong class."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from builders.same_runs import lines
from vla_rl.config import (
    ConfigError,
    CriticConfig,
    DemosConfig,
    EvalConfig,
    LoraConfig,
    PolicyConfig,
    SFTConfig,
    TrainConfig,
    UserError,
)
from vla_rl.diagnostics.checkpoint import which_kind
from vla_rl.planning.workload import workload
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.recipes import train_grpo
from vla_rl.recipes.demos import collect_demos
from vla_rl.recipes.evaluate import evaluate
from vla_rl.recipes.loading import load_policy
from vla_rl.recipes.presets import preset
from vla_rl.recipes.sft import fine_tune
from vla_rl.recipes.train_ppo import train
from vla_rl.runtime.bases import checkpoint_kind

ENV = replace(preset("toy").env, num_envs=8, action_chunk=2)
TINY = PolicyConfig(scratch="tiny", device="cpu")
OFT = replace(TINY, kind="openvla-oft")


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("oft") / "demos"
    return collect_demos(DemosConfig(env=ENV, out=str(out), episodes_per_task=4))


def fine_tuned(demos: Path, out: Path, policy: PolicyConfig, epochs: int) -> Path:
    config = SFTConfig(
        dataset=str(demos), out=str(out), policy=policy, action_chunk=2, epochs=epochs
    )
    return fine_tune(config)


@pytest.fixture(scope="module")
def plain(demos: Path) -> Path:
    return fine_tuned(demos, demos.parent / "plain", TINY, 12)


@pytest.fixture(scope="module")
def parallel(demos: Path) -> Path:
    return fine_tuned(demos, demos.parent / "parallel", OFT, 12)


def short(root: Path, policy: PolicyConfig, **parts) -> TrainConfig:
    base = preset("toy-grpo") if parts.get("algorithm") == "grpo" else preset("toy")
    config = replace(
        base,
        env=ENV,
        policy=policy,
        schedule=replace(base.schedule, iterations=2, episodes=0),
        rollout=replace(base.rollout, turns=4),
        ppo=replace(base.ppo, minibatch=16, kl_coef=0.1),
        grpo=replace(base.grpo, group_size=4, groups=3, minibatch=16),
        eval=replace(base.eval, episodes_per_task=1),
        run=replace(base.run, root=str(root), name="run", save_every=1),
    )
    return replace(config, **parts)


def test_demonstrations_to_a_policy_that_plays(parallel: Path) -> None:
    loaded = load_policy(parallel)
    assert isinstance(loaded, OpenVLAOFTPolicy)
    assert loaded.action_chunk == 2
    assert loaded.description.model.name == "tiny"
    result = evaluate(parallel, EvalConfig(episodes_per_task=1))
    assert len(result["episodes"]) == 4


def test_ppo_goes_on_to_the_bit(parallel: Path, tmp_path: Path) -> None:
    """With the policy that it starts from as the reference of the KL term."""
    base = short(tmp_path / "parts", PolicyConfig(checkpoint=str(parallel), device="cpu"))
    first = train(replace(base, schedule=replace(base.schedule, iterations=1)))
    second = train(base, resume=first)
    whole = train(replace(base, run=replace(base.run, root=str(tmp_path / "whole"))))
    weights = "checkpoints/iteration-000002/policy/model.safetensors"
    assert (whole / weights).read_bytes() == (second / weights).read_bytes()
    assert (whole / weights).read_bytes() != (parallel / "model.safetensors").read_bytes()
    assert checkpoint_kind((whole / weights).parent) == "openvla-oft"


def test_adapters_and_a_shared_critic(parallel: Path, tmp_path: Path) -> None:
    policy = PolicyConfig(
        checkpoint=str(parallel),
        lora=LoraConfig(rank=2, alpha=4),
        critic=CriticConfig(kind="shared"),
        device="cpu",
    )
    config = short(tmp_path, policy)
    run = train(replace(config, schedule=replace(config.schedule, iterations=1)))
    saved = load_policy(run)
    assert isinstance(saved, OpenVLAOFTPolicy)
    assert saved.description.base == str(parallel.resolve())


def test_grpo_from_random_weights(tmp_path: Path) -> None:
    config = short(tmp_path, OFT, algorithm="grpo")
    run = train_grpo.train(replace(config, schedule=replace(config.schedule, iterations=1)))
    saved = load_policy(run)
    assert isinstance(saved, OpenVLAOFTPolicy)
    assert len(lines(run)) == 1


def test_an_unknown_class_is_named(tmp_path: Path) -> None:
    unknown = replace(OFT, kind="oft")
    said = r'policy.kind is "oft".*Known: openvla, openvla-oft'
    with pytest.raises(ConfigError, match=said):
        train(short(tmp_path, unknown))
    with pytest.raises(ConfigError, match=said):
        fine_tuned(tmp_path / "nothing", tmp_path / "sft", unknown, 1)
    assert not list(tmp_path.iterdir())


def test_demonstrations_tell_which_class_a_checkpoint_is(
    demos: Path, plain: Path, parallel: Path
) -> None:
    for folder, kind in (plain, "openvla"), (parallel, "openvla-oft"):
        found = which_kind(str(folder), str(demos))
        assert found.status == "ok"
        assert re.match(
            rf"{kind}: of the demonstrations their tokens have -[12]\.\d+ as {kind}", found.found
        )


def test_fine_tuning_as_the_wrong_class_is_warned_of(
    demos: Path, plain: Path, parallel: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, (folder, kind) in enumerate(((plain, "openvla-oft"), (parallel, "openvla"))):
        caplog.clear()
        own = PolicyConfig(checkpoint=str(folder), device="cpu")
        fine_tuned(demos, tmp_path / f"own-{number}", own, 1)
        assert "demonstrations" not in caplog.text
        fine_tuned(demos, tmp_path / f"other-{number}", replace(own, kind=kind), 1)
        assert f"as {kind} it knows the demonstrations less well than as" in caplog.text
        assert "-3.47 by chance" in caplog.text


def test_a_plan_says_that_it_does_not_know_the_costs(parallel: Path) -> None:
    config = replace(preset("toy"), policy=OFT)
    for policy in (OFT, PolicyConfig(checkpoint=str(parallel))):
        with pytest.raises(UserError, match="costs of policies of class openvla alone"):
            workload(replace(config, policy=policy), 0)
