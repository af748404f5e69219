"""Activations made again in the backward pass: the same gradients to the bit, and less that is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from builders.policies import make_observation, make_policy, sharpen
from vla_rl.config import LoraConfig
from vla_rl.policies import OpenVLAPolicy

OBSERVATION = make_observation(6)
TOKENS = torch.randint(0, 32, (6, 8), generator=torch.Generator().manual_seed(1))


@contextmanager
def kept_bytes(policy: OpenVLAPolicy) -> Iterator[dict[str, int]]:
    """Bytes of what autograd keeps in this block, weights aside, each piece of memory counted once."""
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    seen: dict[int, torch.Tensor] = {}
    found = {"bytes": 0}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and storage.data_ptr() not in seen:
            seen[storage.data_ptr()] = tensor  # held, so that its memory is not given away again
            found["bytes"] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def gradients(policy: OpenVLAPolicy) -> tuple[list[torch.Tensor], int]:
    with kept_bytes(policy) as kept:
        evaluation = policy.evaluate(OBSERVATION, TOKENS, 1.3)
    (evaluation.log_probs.sum() + evaluation.values.sum()).backward()
    grads = [p.grad for p in policy.parameters() if p.grad is not None]
    return grads, kept["bytes"]


@pytest.mark.parametrize(
    "lora", [None, LoraConfig(4), LoraConfig(4, vision=True)], ids=["all", "lora", "lora+vision"]
)
def test_gradients_are_the_same_to_the_bit_and_less_is_kept(lora: LoraConfig | None) -> None:
    if lora is not None:
        pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")
    plain, again = (sharpen(make_policy("shared", lora)) for _ in range(2))
    again.model.checkpoint_activations(True)
    want, much = gradients(plain)
    got, little = gradients(again)
    assert len(want) == len(got) > 20
    assert all(torch.equal(one, two) for one, two in zip(want, got, strict=True))
    assert any(grad.abs().max() > 0 for grad in want)
    assert little < 0.6 * much


def test_the_setting_reaches_the_model_and_playing_does_not_change() -> None:
    plain = make_policy()
    policy = OpenVLAPolicy(
        plain.model,
        plain.processor.tokenizer,
        plain.description,
        type(plain.config)(device="cpu", activation_checkpointing=True),
        torch.device("cpu"),
    )
    towers = policy.model.vision_backbone
    stacks = (towers.featurizer, towers.fused_featurizer, policy.model.language_model.model)
    assert all(stack.recompute for stack in stacks)
    torch.manual_seed(0)
    one = policy.act(OBSERVATION)
    policy.model.checkpoint_activations(False)
    torch.manual_seed(0)
    two = policy.act(OBSERVATION)
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.log_probs, two.log_probs)
