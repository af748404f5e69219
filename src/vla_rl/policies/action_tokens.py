"""Continuous actions to action bins and vocabulary ids, and back; normalisation by a dataset's quantiles.

Three numberings, converted here and nowhere else:

    bin b         0..bins-1, rising with the action: what the Policy protocol, PPO and datasets speak
    vocabulary id text_vocab - 1 - b, falling with the action: what the embedding and the output head use
    d             b + 1: what the OpenVLA paper's code calls the discretised action

OpenVLA (256 bins, vocabulary 32000): -1 -> b 0, id 31999; 0 -> b 127, id 31872; +1 -> b 255, id 31744.
Source: openvla/openvla@c8f03f4, prismatic/vla/action_tokenizer.py and modeling_prismatic.py `predict_action`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from vla_rl.config.errors import UserError, nearest
from vla_rl.runtime.external.arrays import LARGEST
from vla_rl.runtime.external.faults import printable

SHOWN_NAME = 60


class ActionTokenizer:
    """Normalised actions in [-1, 1] to bins and back.

    centers: `bins` edges on linspace(-1, 1) and bins - 1 centres, so -1 and 1 themselves are not reachable and the
    last two bins decode alike (OpenVLA's). grid: `bins` values on linspace(-1, 1), nearest value, ends exact.
    """

    def __init__(
        self, bins: int, style: Literal["centers", "grid"] = "centers", text_vocab: int = 32000
    ) -> None:
        self.bins = bins
        self.style = style
        self.text_vocab = text_vocab
        edges = np.linspace(-1.0, 1.0, bins)
        self._edges = edges
        if style == "centers":
            centres = (edges[:-1] + edges[1:]) / 2.0
            self.values: Float64[np.ndarray, " bins"] = np.append(centres, centres[-1])
        else:
            self.values = edges

    def encode(self, actions: Float[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape"]:
        """Bins of normalised actions; values outside [-1, 1] are clipped."""
        clipped = np.clip(actions, -1.0, 1.0)
        if self.style == "centers":
            return np.asarray(np.digitize(clipped, self._edges), dtype=np.int64) - 1
        return np.rint((clipped + 1.0) / 2.0 * (self.bins - 1)).astype(np.int64)

    def decode(self, bins: Int64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
        """Normalised actions of bins; a bin outside 0..bins-1 decodes as the nearest end."""
        return self.values[np.clip(bins, 0, self.bins - 1)]

    def to_vocabulary(self, bins: Int64[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape"]:
        return self.text_vocab - 1 - bins

    def from_vocabulary(self, ids: Int64[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape"]:
        return self.text_vocab - 1 - ids


@dataclass(frozen=True)
class ActionStatistics:
    """Quantiles of a dataset's actions; dimensions where `mask` is false are not rescaled."""

    q01: Float64[np.ndarray, " A"]
    q99: Float64[np.ndarray, " A"]
    mask: Bool[np.ndarray, " A"]

    def normalize(self, actions: Float[np.ndarray, "*n A"]) -> Float64[np.ndarray, "*n A"]:
        """q01..q99 to -1..1, not clipped. A dimension that never moves (q01 = q99) becomes -1."""
        span = np.where(self.q99 > self.q01, self.q99 - self.q01, 1.0)
        return np.where(self.mask, 2.0 * (actions - self.q01) / span - 1.0, actions)

    def unnormalize(
        self, actions: Float[np.ndarray, "*n A"], margin: float = 0.0
    ) -> Float64[np.ndarray, "*n A"]:
        """-1..1 to q01..q99: a = 0.5 (x + 1)(q99 - q01 + margin) + q01. OpenVLA-OFT has a margin of 1e-8."""
        scaled = 0.5 * (actions + 1.0) * (self.q99 - self.q01 + margin) + self.q01
        return np.where(self.mask, scaled, actions)


def select_statistics(
    norm_stats: Mapping[str, Any], key: str | None = None
) -> tuple[str, ActionStatistics]:
    """Choose the action statistics to un-normalise with.

    norm_stats: the official format, {dataset: {"action": {"q01", "q99", "mask"}}}; without a mask all
    dimensions are rescaled. key: the dataset; `<key>_no_noops` is tried after it; None if there is only one.

    Raises UserError if the key is unknown, or missing where several datasets are there, and for quantiles that are
    not finite or in the wrong order.
    """
    if key is None:
        if not norm_stats:
            raise UserError(
                "The checkpoint has no action statistics: put the dataset_statistics.json of the data it was "
                "fine-tuned on beside its config.json"
            )
        if len(norm_stats) != 1:
            raise UserError(
                f"The checkpoint has action statistics of {len(norm_stats)} datasets: say which one to use "
                f"(unnorm_key).{nearest('', map(dataset_name, norm_stats))}"
            )
        key = next(iter(norm_stats))
    found = next((k for k in (key, f"{key}_no_noops") if k in norm_stats), None)
    if found is None:
        raise UserError(
            f"No action statistics for dataset {dataset_name(key)!r}.{nearest(key, map(dataset_name, norm_stats))}"
        )
    try:
        action = norm_stats[found]["action"]
        q01 = np.asarray(action["q01"], dtype=np.float64)
        q99 = np.asarray(action["q99"], dtype=np.float64)
        mask = action.get("mask")
        mask = np.asarray(np.ones(q01.shape) if mask is None else mask, dtype=bool)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"Action statistics of {dataset_name(found)!r} must hold lists q01 and q99 under 'action' ({error!r})"
        ) from None
    if not q01.shape == q99.shape == mask.shape or q01.ndim != 1 or q01.size == 0:
        raise UserError(
            f"Action statistics of {dataset_name(found)!r}: q01, q99 and mask must be lists of one length, "
            f"got {q01.shape}, {q99.shape}, {mask.shape}"
        )
    # NaN compares false with everything
    wrong = ~((q01 <= q99) & (np.abs(q01) <= LARGEST) & (np.abs(q99) <= LARGEST)) & mask
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"Action statistics of {dataset_name(found)!r}: expected finite numbers, q01 at most q99, "
            f"got q01 {q01[row]:g} and q99 {q99[row]:g} in dimension {row}"
        )
    return found, ActionStatistics(q01, q99, mask)


def dataset_name(name: str) -> str:
    """A dataset's name from a file, fit for a line of text."""
    return printable(name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}...")


def identity_statistics(name: str, action_dim: int) -> dict[str, Any]:
    """Official-format statistics that leave actions as they are: for simulators whose actions lie in [-1, 1]."""
    action = {
        "q01": [-1.0] * action_dim,
        "q99": [1.0] * action_dim,
        "mask": [True] * action_dim,
    }
    return {name: {"action": action}}


def gripper_to_libero(actions: Float[np.ndarray, "*n A"]) -> Float[np.ndarray, "*n A"]:
    """The gripper of OpenVLA's data (0 closed .. 1 open, last dimension) as LIBERO's command: -1 open, +1 close.

        g -> -sign(2 g - 1)

    0.5 becomes 0, which moves nothing. A copy: callers keep the policy's own values. Source: openvla/openvla@c8f03f4,
    experiments/robot/robot_utils.py `normalize_gripper_action` and `invert_gripper_action`.
    """
    turned = actions.copy()
    turned[..., -1] = -np.sign(2 * actions[..., -1] - 1)
    return turned


def gripper_from_libero(actions: Float[np.ndarray, "*n A"]) -> Float[np.ndarray, "*n A"]:
    """LIBERO's gripper command as OpenVLA's data has it, the inverse of `gripper_to_libero` for -1 and +1."""
    turned = actions.copy()
    turned[..., -1] = (1 - actions[..., -1]) / 2
    return turned
