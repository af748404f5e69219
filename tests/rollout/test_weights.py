"""Weights that travel from learners to actors: whole, or not at all."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from builders.policies import INSTRUCTIONS, narrow_policy, tiny_policy
from vla_rl.config import LoraConfig, PolicyConfig
from vla_rl.policies import OpenVLAPolicy
from vla_rl.rollout.weights import (
    SentWeights,
    WeightsDamagedError,
    put_in,
    trained_tensors,
)


def moved(policy: OpenVLAPolicy, only: int | None = None) -> None:
    """Change all trained tensors, or one."""
    with torch.no_grad():
        for place, tensor in enumerate(trained_tensors(policy)):
            if only in (None, place):
                tensor.add_(0.25)


def test_an_actor_has_the_learners_weights_to_the_bit_and_says_so():
    learner, actor = narrow_policy(INSTRUCTIONS, seed=0), narrow_policy(INSTRUCTIONS, seed=1)
    sender = SentWeights()
    assert actor.fingerprint() != learner.fingerprint()
    sent = sender.take(learner, 7)
    assert put_in(actor, sent) == (7, sent.checksum)
    pairs = zip(trained_tensors(actor), trained_tensors(learner), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_only_what_has_changed_travels_and_all_where_an_actor_begins_anew():
    learner = narrow_policy(INSTRUCTIONS)
    sender = SentWeights()
    assert sorted(sender.take(learner, 0).parts) == list(range(len(trained_tensors(learner))))
    assert sender.take(learner, 1).parts == {}
    moved(learner, only=3)
    sent = sender.take(learner, 2)
    assert (sent.base, list(sent.parts)) == (1, [3])
    fresh = narrow_policy(INSTRUCTIONS, seed=5)
    assert put_in(fresh, sender.whole()) == (2, sent.checksum)
    # what is not there already is noticed: this one never had version 1
    assert put_in(narrow_policy(INSTRUCTIONS, seed=6), sent) != (2, sent.checksum)


def test_of_a_policy_with_adapters_they_and_the_critic_travel_alone():
    policy = tiny_policy(config=PolicyConfig(device="cpu", lora=LoraConfig(rank=2)))
    sent = SentWeights().take(policy, 0)
    travelling = sum(len(part) for part in sent.parts.values())
    whole = sum(t.numel() * t.element_size() for t in policy.parameters())
    assert travelling < whole / 2


@pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
def test_damaged_weights_change_nothing(damage: str):
    learner, actor = narrow_policy(INSTRUCTIONS, seed=0), narrow_policy(INSTRUCTIONS, seed=1)
    sent = SentWeights().take(learner, 0)
    last = max(sent.parts)
    if damage == "flipped":
        sent.parts[last] = np.bitwise_xor(sent.parts[last], 1)
    elif damage == "short":
        sent.parts[last] = sent.parts[last][:-4]
    else:
        sent = replace(sent, checksums=sent.checksums[:-1])
    before = [tensor.clone() for tensor in trained_tensors(actor)]
    with pytest.raises(WeightsDamagedError):
        put_in(actor, sent)
    pairs = zip(trained_tensors(actor), before, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
