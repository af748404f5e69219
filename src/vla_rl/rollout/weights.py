"""Weights on their way from those who learn to those who play: what has changed, with a version and a checksum."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from vla_rl.policies.policy import Policy, has_critic

Bytes = UInt8[np.ndarray, "..."]


@dataclass(frozen=True)
class WeightsSent:
    """Some of a policy's trained tensors, by their places among all of them."""

    version: int
    """Windows of learning that these weights have behind them."""
    base: int | None
    """The version that has all the others; None: all are here."""
    parts: dict[int, Bytes]
    checksums: tuple[int, ...]
    """Of every trained tensor after these have been put in, here or not."""

    @property
    def checksum(self) -> int:
        return checksum_of(self.checksums)


class WeightsDamagedError(RuntimeError):
    """Weights did not arrive as they were sent, or do not fit. Nothing was changed."""


def trained_tensors(policy: Policy) -> list[Tensor]:
    """What learning changes, in a fixed order: adapters alone where there are some, and the critic."""
    found = list(policy.policy_parameters())
    if has_critic(policy):
        known = {id(tensor) for tensor in found}
        found += [tensor for tensor in policy.critic_parameters() if id(tensor) not in known]
    return [tensor.detach() for tensor in found]


def bytes_of(tensor: Tensor) -> Bytes:
    """A copy of the tensor's bytes, in this process's memory."""
    flat = tensor.detach().to("cpu", copy=True).contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()


def checksums_of(parts: Sequence[Bytes]) -> tuple[int, ...]:
    """CRC-32 of each tensor's bytes."""
    return tuple(_crc(part) for part in parts)


def _crc(part: Bytes) -> int:
    return zlib.crc32(part.data)


def checksum_of(checksums: Sequence[int]) -> int:
    """One CRC-32 over those of all tensors."""
    return zlib.crc32(np.array(checksums, np.uint32).tobytes())


class SentWeights:
    """The learner's side: a copy of what was last sent, from which any actor can be told again."""

    def __init__(self) -> None:
        self.version: int | None = None
        self._parts: list[Bytes] = []
        self._checksums: tuple[int, ...] = ()

    def take(self, policy: Policy, version: int) -> WeightsSent:
        """Copy the policy's weights; returns what differs from those before."""
        parts = [bytes_of(tensor) for tensor in trained_tensors(policy)]
        checksums = checksums_of(parts)
        base, before = self.version, self._checksums
        changed = {
            place: part
            for place, part in enumerate(parts)
            if base is None or checksums[place] != before[place]
        }
        self.version, self._parts, self._checksums = version, parts, checksums
        return WeightsSent(version, base, changed, checksums)

    def whole(self) -> WeightsSent:
        """All of them, for an actor that has others."""
        assert self.version is not None
        return WeightsSent(self.version, None, dict(enumerate(self._parts)), self._checksums)


def put_in(policy: Policy, sent: WeightsSent) -> tuple[int, int]:
    """Give a policy these weights, all or none; returns their version and the checksum of what it has then.

    Raises WeightsDamagedError before anything is changed.
    """
    tensors = trained_tensors(policy)
    if len(sent.checksums) != len(tensors):
        raise WeightsDamagedError(
            f"weights of {len(sent.checksums)} tensors came for a policy with {len(tensors)}"
        )
    for place, part in sent.parts.items():
        expected = tensors[place].numel() * tensors[place].element_size()
        if len(part) != expected or _crc(part) != sent.checksums[place]:
            raise WeightsDamagedError(
                f"tensor {place} of version {sent.version} came with {len(part)} bytes of {expected}, or with others "
                "than were sent"
            )
    with torch.no_grad():
        for place, part in sent.parts.items():
            tensor = tensors[place]
            fresh = torch.from_numpy(part.copy()).view(tensor.dtype).view(tensor.shape)
            tensor.copy_(fresh)
    found = checksums_of([bytes_of(tensor) for tensor in trained_tensors(policy)])
    return sent.version, checksum_of(found)
