"""OpenVLA-OFT as a policy: tokens that do not wait for each other, and files that do not say what they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.checkpoints import CPU, LORA, save_official, save_own
from builders.policies import (
    INSTRUCTIONS,
    UNKNOWN,
    make_observation,
    make_oft_policy,
    make_policy,
    sharpen,
)
from vla_rl.config import ConfigError, PolicyConfig, UserError, mini_model
from vla_rl.config.policy import SuiteActions
from vla_rl.policies import OpenVLAPolicy, identity_statistics
from vla_rl.policies.openvla.exporting import export_adapter, export_merged
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policies.registry import load_policy, named_family
from vla_rl.runtime.bases import checkpoint_kind

OFT = replace(CPU, kind="openvla-oft")
TEXTS = (*INSTRUCTIONS, UNKNOWN)


def uniforms(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder that may be either class: nothing in it says which."""
    save_official(tmp_path / "published", layers=2)
    return tmp_path / "published"


# --- tokens


def test_tokens_do_not_depend_on_each_other() -> None:
    """What the other tokens are changes no log-prob; in the token loop's model it does."""
    for policy, alike in (make_oft_policy(), True), (make_policy(), False):
        sharpen(policy)
        seen = make_observation(3, texts=TEXTS)
        tokens = policy.act(seen, 1.0, uniforms(3, 8)).tokens
        others = tokens.clone()
        others[:, 1] = (others[:, 1] + 16) % 32
        with torch.no_grad():
            before = policy.evaluate(seen, tokens).log_probs
            after = policy.evaluate(seen, others).log_probs
        assert not torch.equal(before[:, 1], after[:, 1])
        assert torch.equal(before[:, 2:], after[:, 2:]) is alike


def test_tokens_of_a_turn_have_distributions_of_their_own() -> None:
    """Placeholders are zeros and differ by position alone: that must be enough to tell them apart."""
    policy = sharpen(make_oft_policy(), 50.0)
    seen = make_observation(1)
    with torch.no_grad():
        raw, prompts, _ = policy._inputs(seen)
        logits, _ = policy._logits(policy.model, raw, prompts, torch.zeros(1, 8, dtype=torch.int64))
    between = torch.cdist(logits[0], logits[0])
    assert between[~torch.eye(8, dtype=torch.bool)].min() > 1e-3


def test_candidates_come_from_one_pass_and_equal_separate_calls() -> None:
    policy = sharpen(make_oft_policy())
    seen, draws = make_observation(4, 1, TEXTS), uniforms(4, 3, 8)
    draws[:, 2] = np.nan
    rows: list[int] = []
    hook = policy.model.projector.register_forward_hook(lambda m, i, out: rows.append(len(out)))
    proposed = policy.propose(seen, 1.3, draws)
    hook.remove()
    assert rows == [4]
    for j in range(3):
        alone = policy.act(seen, 1.3, draws[:, j])
        assert torch.equal(proposed.tokens[:, j], alone.tokens)
        torch.testing.assert_close(proposed.log_probs[:, j], alone.log_probs, atol=1e-5, rtol=0)
        with torch.no_grad():
            learned = policy.evaluate(seen, proposed.tokens[:, j], 1.3).log_probs
        torch.testing.assert_close(proposed.log_probs[:, j], learned, atol=1e-5, rtol=0)
    assert torch.equal(proposed.tokens[:, 2], policy.act(seen, 0.0).tokens)
    assert not torch.equal(proposed.tokens[:, 0], proposed.tokens[:, 1])


def test_robots_with_shorter_actions_have_fixed_tokens() -> None:
    statistics = identity_statistics("long", 4) | identity_statistics("short", 2)
    policy = OpenVLAOFTPolicy.create(mini_oft(), INSTRUCTIONS, statistics, 4, 2, CPU)
    names = frozenset({"long", "short"})
    policy.play_suites(
        {
            INSTRUCTIONS[0]: SuiteActions("long", "long", 4, names),
            INSTRUCTIONS[1]: SuiteActions("short", "short", 2, names),
        }
    )
    seen = make_observation(2, texts=INSTRUCTIONS[:2], size=32)
    played = policy.act(seen, 1.0, uniforms(2, 8))
    fixed = torch.tensor([[False] * 8, [False, False, True, True] * 2])
    assert (played.tokens[fixed] == policy.turn_actions.fixed_token).all()
    assert torch.equal(played.log_probs == 0, fixed)
    again = policy.evaluate(seen, played.tokens)
    torch.testing.assert_close(again.log_probs, played.log_probs, atol=1e-5, rtol=0)


def mini_oft():
    model = mini_model()
    return replace(model, language=replace(model.language, layers=2))


def test_one_language_layer_is_too_few() -> None:
    with pytest.raises(UserError, match="needs 2 to tell the action tokens"):
        OpenVLAOFTPolicy.create(mini_model(), INSTRUCTIONS, identity_statistics("x", 4), 4, 2, CPU)
    made = named_family("openvla-oft").create(
        32, INSTRUCTIONS, identity_statistics("x", 4), 4, 2, replace(OFT, scratch="mini"), 0
    )
    assert isinstance(made, OpenVLAOFTPolicy)
    assert made.description.model.language.layers == 2


# --- files


def same(one: OpenVLAPolicy, two: OpenVLAPolicy, size: int = 64) -> None:
    seen, draws = make_observation(2, size=size), uniforms(2, one.num_tokens)
    first, second = one.act(seen, 1.0, draws), two.act(seen, 1.0, draws)
    assert torch.equal(first.tokens, second.tokens)
    torch.testing.assert_close(first.log_probs, second.log_probs, atol=1e-5, rtol=0)


def test_a_saved_policy_says_what_it_is(tmp_path: Path) -> None:
    policy = sharpen(make_oft_policy("separate", seed=3))
    policy.save(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "openvla"  # what the official code reads
    assert checkpoint_kind(tmp_path) == "openvla-oft"
    loaded = load_policy(tmp_path, CPU)
    assert isinstance(loaded, OpenVLAOFTPolicy)
    assert loaded.fingerprint() == policy.fingerprint()
    assert loaded.critic_restored
    same(policy, loaded)
    with pytest.raises(UserError, match="of type \"openvla-oft\", expected 'openvla'"):
        OpenVLAPolicy.from_checkpoint(tmp_path, CPU)


def test_adapters_say_what_they_are(tmp_path: Path) -> None:
    make_oft_policy(seed=3).save(tmp_path / "base")
    policy = load_policy(tmp_path / "base", replace(CPU, lora=LORA))
    assert isinstance(policy, OpenVLAOFTPolicy)
    with torch.no_grad():
        for parameter in policy.policy_parameters():
            parameter.add_(0.05)
    policy.save(tmp_path / "run")
    export_adapter(policy, tmp_path / "adapter")
    export_merged(policy, tmp_path / "merged")
    for name in ("run", "adapter", "merged"):
        loaded = load_policy(tmp_path / name, CPU)
        assert isinstance(loaded, OpenVLAOFTPolicy), name
        same(policy, loaded)


def test_the_reference_is_of_the_same_class(tmp_path: Path) -> None:
    policy = sharpen(make_oft_policy())
    policy.save(tmp_path)
    seen = make_observation(3, texts=TEXTS)
    tokens = policy.act(seen).tokens
    with torch.no_grad():
        before = policy.evaluate(seen, tokens, 1.3).log_probs
        policy.model.projector.fc1.weight.add_(0.1)
        assert not torch.allclose(policy.evaluate(seen, tokens, 1.3).log_probs, before)
    policy.keep_reference(tmp_path)
    reference = policy.reference_log_probs(seen, tokens, 1.3)
    torch.testing.assert_close(reference, before, atol=1e-5, rtol=0)


def test_the_users_word_decides_what_a_published_folder_is(published: Path) -> None:
    plain = load_policy(published, replace(CPU, unnorm_key="kitchen"))
    assert (type(plain), plain.action_chunk) == (OpenVLAPolicy, 1)
    policy = load_policy(published, replace(OFT, unnorm_key="kitchen"))
    assert (type(policy), policy.action_chunk, policy.kind) == (OpenVLAOFTPolicy, 8, "openvla-oft")
    with pytest.raises(ConfigError, match=r'policy.kind is "oft".* Known: openvla, openvla-oft'):
        load_policy(published, replace(CPU, kind="oft"))


def test_statistics_of_a_suite_without_its_no_ops_are_found(published: Path) -> None:
    statistics = identity_statistics("libero_spatial_no_noops", 7) | identity_statistics("x", 7)
    statistics["libero_spatial_no_noops"]["action"]["q99"] = [0.5] * 7
    (published / "dataset_statistics.json").write_text(json.dumps(statistics))
    policy = load_policy(published, replace(OFT, unnorm_key="libero_spatial"))
    assert isinstance(policy, OpenVLAOFTPolicy)
    assert policy.unnorm_key == "libero_spatial_no_noops"
    actions = policy.decode_actions(torch.full((1, 56), 7))
    assert actions.shape == (1, 8, 7)
    top = policy.action_tokenizer.values[-1]
    want = 0.5 * (top + 1) * (1.5 + 1e-8) - 1
    np.testing.assert_allclose(actions, want, rtol=1e-6)


def test_a_folder_with_its_adapter_beside_it_is_played_if_the_user_says_so(
    published: Path,
) -> None:
    (published / "lora_adapter").mkdir()
    (published / "lora_adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"lora_adapter/.*give --policy.kind openvla-oft"):
        load_policy(published, replace(CPU, unnorm_key="kitchen"))
    policy = load_policy(published, replace(OFT, unnorm_key="kitchen", lora=LORA))
    policy.save(published.parent / "run")  # whose base is that folder
    assert isinstance(load_policy(published.parent / "run", CPU), OpenVLAOFTPolicy)


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("action_head--50000_checkpoint.pt", "L1 or diffusion head"),
        ("noisy_action_projector--50000_checkpoint.pt", "diffusion head"),
        ("proprio_projector--50000_checkpoint.pt", "reads proprioception"),
        ("vision_backbone--50000_checkpoint.pt", "FiLM"),
    ],
)
@pytest.mark.parametrize("config", [CPU, OFT], ids=["openvla", "openvla-oft"])
def test_what_is_not_discrete_is_refused_by_name(
    published: Path, config: PolicyConfig, file: str, why: str
) -> None:
    (published / file).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"{file}.*{why}.*trained on action tokens"):
        load_policy(published, replace(config, unnorm_key="kitchen"))


def test_proprioception_in_the_configuration_is_refused(published: Path) -> None:
    content = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps(content | {"use_proprio": True}))
    with pytest.raises(UserError, match=r"use_proprio in config\.json"):
        load_policy(published, replace(OFT, unnorm_key="kitchen"))
    (published / "config.json").write_text(json.dumps(content | {"use_proprio": False}))
    load_policy(published, replace(OFT, unnorm_key="kitchen"))


def test_another_class_begins_from_a_checkpoint_that_says_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_own(tmp_path / "plain", layers=2)
    begun = load_policy(tmp_path / "plain", OFT)
    assert isinstance(begun, OpenVLAOFTPolicy)
    assert "was saved as openvla and is read as openvla-oft" in caplog.text
    begun.save(tmp_path / "begun")
    caplog.clear()
    assert isinstance(load_policy(tmp_path / "begun", CPU), OpenVLAOFTPolicy)
    assert not caplog.text
