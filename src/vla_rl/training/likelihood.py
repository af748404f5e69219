"""Whether a policy knows demonstrations: how a checkpoint that is read as the wrong class of policy is noticed.

Nothing in the files of OpenVLA-OFT tells them from plain OpenVLA's. So the mean log-likelihood of what an expert did,

    mean log pi(demonstrated token)  in nats a token,

is compared with that of all values being equally likely, - log(bins), and with that of the same weights read as the
other class. The first alone is not enough: however a model is read, its output head knows which values are frequent.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch

from vla_rl.data.demonstrations import Demonstrations, action_chunks
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.openvla_oft.twin import other_class
from vla_rl.policies.policy import Policy

LOG = logging.getLogger(__name__)

SAMPLES = 64
"""Frames of the demonstrations that are looked at, evenly spread over them."""
BATCH = 16
MARGIN = 0.02
"""Nats a token by which the other class must be better before that is said."""


@dataclass(frozen=True)
class Likelihood:
    """Mean log-likelihood of demonstrated action tokens, nats a token."""

    by_kind: dict[str, float]
    """As each class of policy that the weights can be, the chosen one first."""
    chance: float
    """If all values of a token were equally likely."""

    @property
    def chosen(self) -> str:
        return next(iter(self.by_kind))

    @property
    def best(self) -> str:
        return max(self.by_kind, key=lambda kind: self.by_kind[kind])

    @property
    def is_known(self) -> bool:
        """Whether some class makes the demonstrations likelier than chance."""
        return self.by_kind[self.best] > self.chance

    @property
    def doubt(self) -> str:
        """What speaks against the chosen class, a sentence; empty if nothing does."""
        chosen, best = self.by_kind[self.chosen], self.by_kind[self.best]
        if best > chosen + MARGIN:
            return f"as {self.chosen} it knows the demonstrations less well than as {self.best}"
        return "" if chosen > self.chance else "it does not know the demonstrations"

    def __str__(self) -> str:
        each = [f"{value:.2f} as {kind}" for kind, value in self.by_kind.items()]
        return f"their tokens have {', '.join(each)} and {self.chance:.2f} by chance (nats a token)"


def likelihood_of(policy: OpenVLAPolicy, demos: Demonstrations) -> Likelihood:
    """How likely the demonstrations' tokens are to the weights of the policy, by its own statistics.

    Raises UserError for demonstrations of another action size, or with images of another size.
    """
    found = {policy.kind: _mean(policy, demos)}
    other = other_class(policy)
    if other is not None:
        found[other.kind] = _mean(other, demos)
    return Likelihood(found, -math.log(policy.action_tokenizer.bins))


def _mean(policy: OpenVLAPolicy, demos: Demonstrations) -> float:
    rows = np.unique(np.linspace(0, len(demos) - 1, SAMPLES).astype(np.int64))
    chunks = action_chunks(demos.actions, demos.episode_ids, policy.action_chunk)[rows]
    tokens = policy.encode_actions(chunks)
    decisions = policy.decided(tokens)
    count = tokens.numel() if decisions is None else int(decisions.sum())
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(rows), BATCH):
            part = slice(start, start + BATCH)
            seen = demos.observation(rows[part])
            total += float(policy.evaluate(seen, tokens[part]).log_probs.sum())
    return total / count


def warn_if_unlikely(policy: Policy, demos: Demonstrations, source: str) -> None:
    """Say so where demonstrations speak against the class that a policy was read as.

    source: where it was loaded from. Nothing is asked of policies whose class cannot be mistaken.
    """
    if not isinstance(policy, OpenVLAPolicy) or policy.description.fast is not None:
        return  # a checkpoint of FAST tokens says what it is
    found = likelihood_of(policy, demos)
    if not found.doubt:
        return
    remedy = f"give --policy.kind {found.best} if that is what it was trained as"
    if found.best == found.chosen:
        remedy = "look at policy.unnorm_key, policy.images and policy.gripper"
    LOG.warning(
        "%s: %s: %s. Where this is no fresh start from another class's weights, or on another robot, %s",
        source, found.doubt, found, remedy,
    )  # fmt: skip
