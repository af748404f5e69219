"""Whether a policy knows demonstrations: how a checkpoint that is read as the wrong class of policy is noticed.

Nothing in the files of OpenVLA-OFT tells them from plain OpenVLA's. Read as the wrong class, a model predicts with
confidence and at random, so that what an expert did is less likely than if all action values were as likely:

    mean log pi(demonstrated token)  <  - log(bins)
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch

from vla_rl.data.demonstrations import Demonstrations, action_chunks
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.policy import Policy

LOG = logging.getLogger(__name__)

SAMPLES = 64
"""Frames of the demonstrations that are looked at, evenly spread over them."""
BATCH = 16


@dataclass(frozen=True)
class Likelihood:
    """Mean log-likelihood of demonstrated action tokens, nats a token."""

    policy: float
    uniform: float
    """If all values of a token were equally likely."""

    @property
    def better_than_chance(self) -> bool:
        return self.policy > self.uniform

    def __str__(self) -> str:
        return f"{self.policy:.2f} nats a token, where chance has {self.uniform:.2f}"


def likelihood_of(policy: OpenVLAPolicy, demos: Demonstrations) -> Likelihood:
    """How likely the demonstrations' tokens are to the policy, by its own statistics and its own chunk of actions.

    Raises UserError for demonstrations of another action size, or with images of another size.
    """
    rows = np.unique(np.linspace(0, len(demos) - 1, SAMPLES).astype(np.int64))
    chunks = action_chunks(demos.actions, demos.episode_ids, policy.action_chunk)[rows]
    tokens = policy.encode_actions(chunks)
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(rows), BATCH):
            part = slice(start, start + BATCH)
            seen = demos.observation(rows[part])
            total += float(policy.evaluate(seen, tokens[part]).log_probs.sum())
    return Likelihood(total / tokens.numel(), -math.log(policy.action_tokenizer.bins))


def warn_if_unlikely(policy: Policy, demos: Demonstrations, source: str) -> Likelihood | None:
    """Say so where demonstrations are less likely than chance to a policy that may be of another class.

    source: where the policy was loaded from. None for policies whose class cannot be mistaken.
    """
    if not isinstance(policy, OpenVLAPolicy):
        return None
    found = likelihood_of(policy, demos)
    if not found.better_than_chance:
        LOG.warning("%s", unlikely(policy.kind, source, found))
    return found


def unlikely(kind: str, source: str, found: Likelihood) -> str:
    """What a likelihood below chance may mean."""
    other = "openvla" if kind == "openvla-oft" else "openvla-oft"
    return (
        f"{source} does not know these demonstrations: as {kind} their tokens have {found}. It may be of the other "
        f"class (--policy.kind {other}), or have learned actions with other statistics or another gripper "
        "(policy.unnorm_key, policy.gripper). Where another class or another robot begins from its weights, this is "
        "expected"
    )
