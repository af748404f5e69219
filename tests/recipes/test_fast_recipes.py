"""FAST tokens through the recipes, on the toy: demonstrations, fine-tuning, practice, report, export, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.same_runs import lines
from vla_rl.config import (
    ConfigError,
    DemosConfig,
    EvalConfig,
    ExportConfig,
    PolicyConfig,
    SFTConfig,
    TrainConfig,
    UserError,
)
from vla_rl.config.demonstrations import FastConfig
from vla_rl.policies import OpenVLAPolicy
from vla_rl.recipes import train_grpo
from vla_rl.recipes.demos import collect_demos
from vla_rl.recipes.evaluate import evaluate
from vla_rl.recipes.export import export
from vla_rl.recipes.loading import load_policy
from vla_rl.recipes.presets import preset
from vla_rl.recipes.sft import fine_tune
from vla_rl.recipes.train_ppo import train
from vla_rl.report.page.write import write_report

CHUNK = 4
ENV = replace(preset("toy").env, num_envs=8, action_chunk=CHUNK)
MINI = PolicyConfig(scratch="mini", device="cpu")
FAST = FastConfig(vocabulary=64, scale=4.0)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fast") / "demos"
    return collect_demos(DemosConfig(env=ENV, out=str(out), episodes_per_task=4))


def tuning(demos: Path, out: Path, **changes: object) -> SFTConfig:
    config = SFTConfig(
        dataset=str(demos), out=str(out), policy=MINI, action_chunk=CHUNK, epochs=6, actions="fast", fast=FAST,
    )  # fmt: skip
    return replace(config, **changes)


@pytest.fixture(scope="module")
def tuned(demos: Path) -> Path:
    return fine_tune(tuning(demos, demos.parent / "sft"))


def short(root: Path, policy: Path, **parts: object) -> TrainConfig:
    base = preset("toy-grpo") if parts.get("algorithm") == "grpo" else preset("toy")
    config = replace(
        base,
        env=ENV,
        policy=PolicyConfig(checkpoint=str(policy), device="cpu"),
        schedule=replace(base.schedule, iterations=2, episodes=0),
        rollout=replace(base.rollout, turns=4),
        ppo=replace(base.ppo, minibatch=16, kl_coef=0.1, critic_warmup=0),
        grpo=replace(base.grpo, group_size=4, groups=3, minibatch=16),
        eval=replace(base.eval, episodes_per_task=1),
        run=replace(base.run, root=str(root), name="run", save_every=1),
    )
    return replace(config, **parts)


def test_demonstrations_to_a_policy_that_plays(tuned: Path) -> None:
    loaded = load_policy(tuned)
    assert isinstance(loaded, OpenVLAPolicy)
    fast = loaded.description.fast
    assert fast is not None
    assert loaded.num_tokens == fast.most
    assert loaded.description.model.action_bins == fast.tokenizer.vocabulary + 1
    losses = [line["sft/loss"] for line in lines(tuned.parent) if "sft/loss" in line]
    assert losses[-1] < losses[0]
    result = evaluate(tuned, EvalConfig(episodes_per_task=1))
    assert len(result["episodes"]) == 4
    assert 0 <= result["overall"]["invalid_actions"] <= 1


def test_ppo_goes_on_to_the_bit_and_says_how_long_turns_are(tuned: Path, tmp_path: Path) -> None:
    base = short(tmp_path / "parts", tuned)
    first = train(replace(base, schedule=replace(base.schedule, iterations=1)))
    second = train(base, resume=first)
    whole = train(replace(base, run=replace(base.run, root=str(tmp_path / "whole"))))
    policy = "checkpoints/iteration-000002/policy"
    for name in ("model.safetensors", "action_tokenizer/tokenizer.json", "config.json"):
        assert (whole / policy / name).read_bytes() == (second / policy / name).read_bytes()
    weights = (whole / policy / "model.safetensors").read_bytes()
    assert weights != (tuned / "model.safetensors").read_bytes()
    most = json.loads((tuned / "config.json").read_text())["vla_rl"]["fast"]["max_tokens"]
    for line in lines(whole):
        assert 1 <= line["rollout/action_tokens"] <= most
        assert 0 <= line["rollout/invalid_actions"] <= 1
        assert line["losses/logprob_max_difference"] < 1e-4
    assert "before" in write_report(whole).read_text()
    out = export(ExportConfig(checkpoint=str(whole), out=str(tmp_path / "export")))
    one, other = load_policy(out), load_policy(whole)
    tokens = other.encode_actions(np.zeros((1, CHUNK, other.action_dim), np.float32))
    np.testing.assert_array_equal(one.decode_actions(tokens), other.decode_actions(tokens))


def test_groups_are_practised_too(tuned: Path, tmp_path: Path) -> None:
    config = short(tmp_path, tuned, algorithm="grpo")
    run = train_grpo.train(replace(config, schedule=replace(config.schedule, iterations=1)))
    assert "rollout/invalid_actions" in lines(run)[0]


def test_a_tokenizer_of_before_is_taken(tuned: Path, demos: Path, tmp_path: Path) -> None:
    """By the next fine-tuning as it is, or from its folder; and another chunk is refused."""
    again = tuning(demos, tmp_path / "again", epochs=1, actions="", fast=FastConfig())
    again = replace(again, policy=PolicyConfig(checkpoint=str(tuned), device="cpu"))
    given = tuning(
        demos,
        tmp_path / "given",
        epochs=1,
        fast=FastConfig(tokenizer=str(tuned / "action_tokenizer")),
    )
    stored = (tuned / "action_tokenizer" / "tokenizer.json").read_bytes()
    for config in (again, given):
        assert (fine_tune(config) / "action_tokenizer" / "tokenizer.json").read_bytes() == stored
    with pytest.raises(UserError, match="write 4 actions a turn"):
        fine_tune(replace(again, out=str(tmp_path / "no"), action_chunk=2))


@pytest.mark.parametrize(
    ("changes", "fault", "words"),
    [
        ({"policy": replace(MINI, kind="openvla-oft")}, ConfigError, "one token after the other"),
        ({"fast": FastConfig(vocabulary=3)}, UserError, "vocabulary needs at least"),
        (
            {"fast": FastConfig(vocabulary=64, scale=4.0, max_tokens=2)},
            UserError,
            "raise fast.max_tokens",
        ),
        ({"fast": FastConfig(tokenizer="nowhere")}, UserError, "nowhere"),
    ],
)
def test_what_cannot_be_fine_tuned_is_refused(
    demos: Path, tmp_path: Path, changes: dict, fault: type[Exception], words: str
) -> None:
    with pytest.raises(fault, match=words):
        fine_tune(tuning(demos, tmp_path / "out", **changes))
    assert not (tmp_path / "out" / "policy").exists()
