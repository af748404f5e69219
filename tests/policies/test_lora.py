"""Adapters: float32 on any base, off means base, and they travel without it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.policies import make_observation, make_policy, sharpen
from vla_rl.config import LoraConfig, PolicyConfig, UserError
from vla_rl.policies import OpenVLAPolicy

pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")

LORA = LoraConfig(rank=4, alpha=8)
OBSERVATION = make_observation(8)


def config(lora: LoraConfig | None = LORA) -> PolicyConfig:
    return PolicyConfig(lora=lora, device="cpu")


def train(policy: OpenVLAPolicy, steps: int = 2, rate: float = 0.01) -> None:
    optimizer = torch.optim.Adam(policy.policy_parameters(), lr=rate)
    tokens = torch.zeros((8, 8), dtype=torch.int64)
    for _ in range(steps):
        optimizer.zero_grad()
        (-policy.evaluate(OBSERVATION, tokens).log_probs.mean()).backward()
        optimizer.step()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    sharpen(make_policy(seed=1)).save(tmp_path / "base")
    return tmp_path / "base"


def test_only_adapters_train_and_they_start_as_the_base(base: Path) -> None:
    plain = OpenVLAPolicy.from_checkpoint(base, config(None))
    adapted = OpenVLAPolicy.from_checkpoint(base, config())
    names = {n for n, p in adapted.model.named_parameters() if p.requires_grad}
    assert len(names) == 2 * 2 * 7  # A and B, two layers, seven linear layers each
    assert all(".lora_A." in n or ".lora_B." in n for n in names)
    draws = np.random.default_rng(0).random((8, 8), dtype=np.float32)
    one, two = plain.act(OBSERVATION, 1.0, draws), adapted.act(OBSERVATION, 1.0, draws)
    assert torch.equal(one.tokens, two.tokens)
    torch.testing.assert_close(one.log_probs, two.log_probs, atol=1e-5, rtol=0)


def test_act_and_evaluate_agree_with_adapters(base: Path) -> None:
    policy = OpenVLAPolicy.from_checkpoint(base, config())
    train(policy)
    out = policy.act(OBSERVATION, 1.3)
    again = policy.evaluate(OBSERVATION, out.tokens, 1.3).log_probs
    torch.testing.assert_close(out.log_probs, again, atol=1e-5, rtol=0)


def test_the_reference_of_fresh_adapters_is_their_base(base: Path) -> None:
    plain = OpenVLAPolicy.from_checkpoint(base, config(None))
    policy = OpenVLAPolicy.from_checkpoint(base, config())
    policy.keep_reference()
    train(policy)
    tokens = plain.act(OBSERVATION).tokens
    trained = policy.evaluate(OBSERVATION, tokens).log_probs
    reference = policy.reference_log_probs(OBSERVATION, tokens)
    want = plain.evaluate(OBSERVATION, tokens).log_probs
    torch.testing.assert_close(reference, want, atol=1e-5, rtol=0)
    assert (trained - want).abs().max() > 1e-2
    assert torch.equal(policy.evaluate(OBSERVATION, tokens).log_probs, trained)
    train(policy, 1)
    assert all(p.grad is not None for p in policy.policy_parameters())


def test_adapters_are_float32_on_a_bfloat16_base_and_take_tiny_steps(base: Path) -> None:
    policy = OpenVLAPolicy.from_checkpoint(base, config(), dtype=torch.bfloat16)
    assert policy.model.language_model.lm_head.weight.dtype == torch.bfloat16
    assert {p.dtype for p in policy.policy_parameters()} == {torch.float32}
    parameter = policy.policy_parameters()[0]
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter.add_(5e-6)
    assert (parameter != before).float().mean() > 0.99
    assert policy.act(OBSERVATION).log_probs.dtype == torch.float32


def test_vision_adapters_skip_what_takes_no_part() -> None:
    policy = make_policy(lora=LoraConfig(rank=2, alpha=2, vision=True))
    names = [n for n, p in policy.model.named_parameters() if p.requires_grad]
    assert any("featurizer.blocks.0.attn.qkv" in n for n in names)
    assert not any("blocks.1" in n for n in names)
    policy.evaluate(OBSERVATION, policy.act(OBSERVATION).tokens).log_probs.sum().backward()
    assert all(p.grad is not None for p in policy.policy_parameters())


def test_adapters_travel_without_the_base(base: Path, tmp_path: Path) -> None:
    policy = OpenVLAPolicy.from_checkpoint(base, config())
    train(policy)
    policy.save(tmp_path / "adapted")
    assert not (tmp_path / "adapted" / "model.safetensors").exists()
    draws = np.random.default_rng(0).random((8, 8), dtype=np.float32)
    want = policy.act(OBSERVATION, 1.0, draws)
    for settings in (config(), config(None)):
        back = OpenVLAPolicy.from_checkpoint(tmp_path / "adapted", settings)
        got = back.act(OBSERVATION, 1.0, draws)
        assert torch.equal(got.tokens, want.tokens)
        assert torch.equal(got.log_probs, want.log_probs)
    with pytest.raises(UserError, match="rank=4"):
        OpenVLAPolicy.from_checkpoint(tmp_path / "adapted", config(LoraConfig(rank=8, alpha=8)))
    (base / "model.safetensors").unlink()
    with pytest.raises(UserError, match="the base of the adapters"):
        OpenVLAPolicy.from_checkpoint(tmp_path / "adapted", config())


def test_adapters_on_a_base_without_a_folder_save_it_too(tmp_path: Path) -> None:
    policy = make_policy(lora=LORA)
    train(policy)
    policy.save(tmp_path / "whole")
    back = OpenVLAPolicy.from_checkpoint(tmp_path / "whole", config())
    tokens = torch.ones((8, 8), dtype=torch.int64)
    assert torch.equal(
        back.evaluate(OBSERVATION, tokens).log_probs, policy.evaluate(OBSERVATION, tokens).log_probs
    )


def test_the_reference_of_a_start_with_adapters_is_that_start(base: Path, tmp_path: Path) -> None:
    """Fine-tuning trained the adapters: KL is 0 before practice, and towards the fine-tuned policy ever after."""
    tuned = OpenVLAPolicy.from_checkpoint(base, config())
    train(tuned)
    tuned.save(tmp_path / "sft")
    plain = OpenVLAPolicy.from_checkpoint(base, config(None))
    tokens = plain.act(OBSERVATION).tokens
    start = OpenVLAPolicy.from_checkpoint(tmp_path / "sft", config())
    weights = sum(p.numel() for p in start.model.parameters())
    start.keep_reference()
    before = start.evaluate(OBSERVATION, tokens).log_probs.detach()
    assert torch.equal(start.reference_log_probs(OBSERVATION, tokens), before)
    assert (before - plain.evaluate(OBSERVATION, tokens).log_probs).abs().max() > 1e-2
    train(start)
    assert (start.evaluate(OBSERVATION, tokens).log_probs - before).abs().max() > 1e-3
    assert torch.equal(start.reference_log_probs(OBSERVATION, tokens), before)
    # a run that is resumed has moved on, its reference is still what it began with
    start.save(tmp_path / "run")
    resumed = OpenVLAPolicy.from_checkpoint(tmp_path / "run", config())
    resumed.keep_reference(tmp_path / "sft")
    assert torch.equal(resumed.reference_log_probs(OBSERVATION, tokens), before)
    # the base is shared, and what is saved and trained is the policy's own
    assert start._reference is not None
    reference = start._reference.model
    shared = {id(p) for p in start.model.parameters()}
    copied = sum(p.numel() for p in reference.parameters() if id(p) not in shared)
    assert copied == sum(p.numel() for p in start.policy_parameters())
    assert sum(p.numel() for p in start.model.parameters()) == weights
    assert not any(p.requires_grad for p in reference.parameters())


def test_a_resumed_run_with_fresh_adapters_refers_to_their_base(base: Path, tmp_path: Path) -> None:
    plain = OpenVLAPolicy.from_checkpoint(base, config(None))
    policy = OpenVLAPolicy.from_checkpoint(base, config())
    train(policy)
    policy.save(tmp_path / "run")
    resumed = OpenVLAPolicy.from_checkpoint(tmp_path / "run", config())
    resumed.keep_reference(base)
    tokens = plain.act(OBSERVATION).tokens
    torch.testing.assert_close(
        resumed.reference_log_probs(OBSERVATION, tokens),
        plain.evaluate(OBSERVATION, tokens).log_probs,
        atol=1e-5, rtol=0,
    )  # fmt: skip


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapters", "all-weights"])
def test_a_thread_that_asks_the_reference_changes_nothing_for_another(
    base: Path, monkeypatch: pytest.MonkeyPatch, lora: LoraConfig | None
) -> None:
    """Learner threads ask the reference in the middle of each other's passes."""
    policy = OpenVLAPolicy.from_checkpoint(base, config(lora))
    policy.keep_reference()
    train(policy)
    tokens = policy.act(OBSERVATION).tokens
    alone = policy.evaluate(OBSERVATION, tokens).log_probs
    asking, go_on = threading.Event(), threading.Event()
    pass_of = OpenVLAPolicy._logits

    def slow(self, model, raw, prompts, tokens):
        if threading.current_thread().name == "asking":
            asking.set()
            assert go_on.wait(60)
        return pass_of(self, model, raw, prompts, tokens)

    monkeypatch.setattr(OpenVLAPolicy, "_logits", slow)
    thread = threading.Thread(
        target=policy.reference_log_probs, args=(OBSERVATION, tokens), name="asking"
    )
    thread.start()
    assert asking.wait(60)
    try:
        meanwhile = policy.evaluate(OBSERVATION, tokens).log_probs
        trained = [p.requires_grad for p in policy.policy_parameters()]
    finally:
        go_on.set()
        thread.join()
    assert torch.equal(meanwhile, alone)
    assert meanwhile.requires_grad
    assert all(trained)


def test_low_rank_product_in_bfloat16_is_the_float32_one_rounded() -> None:
    """What a GPU computes for adapters on a bfloat16 base, here on the CPU: values and float32 gradients."""
    policy = make_policy(lora=LORA)
    layer = policy.model.language_model.model.layers[0].mlp.up_proj
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(0, 0.3, generator=generator)
    x = torch.randn(3, 5, 128, generator=generator)
    direction = torch.randn(3, 5, 344, generator=generator)
    weights = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    want = layer(x)
    exact = torch.autograd.grad((want * direction).sum(), weights)
    torch.testing.assert_close(layer.adapt(x), want, atol=1e-5, rtol=1e-5)
    layer.base_layer.bfloat16()
    got = layer.adapt(x.bfloat16())
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).norm() < 0.01 * want.norm()
    rounded = torch.autograd.grad((got.float() * direction).sum(), weights)
    for one, two in zip(rounded, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - two).norm() < 0.02 * two.norm()
