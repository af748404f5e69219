"""Small policies and observations that the tests of this room share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vla_rl.config import CriticConfig, LoraConfig, PolicyConfig, tiny_model
from vla_rl.policies import OpenVLAPolicy, identity_statistics
from vla_rl.types import Observation

GOLDEN = Path(__file__).parents[1] / "data" / "openvla_a"
# prompts of 6, 6, 9 and (through bytes) many more tokens
INSTRUCTIONS = ("open the drawer", "close the drawer", "press the button from the top")
UNKNOWN = "Zap the Drawer, twice!"


def make_observation(
    count: int, seed: int = 0, texts: tuple[str, ...] = (*INSTRUCTIONS, UNKNOWN), size: int = 64
) -> Observation:
    rng = np.random.default_rng(seed)
    return Observation(
        rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
        tuple(texts[i % len(texts)] for i in range(count)),
        np.zeros((count, 4), np.float32),
        rng.random(count, dtype=np.float32),
    )


def make_policy(
    kind: str = "separate", lora: LoraConfig | None = None, seed: int = 0, **critic: object
) -> OpenVLAPolicy:
    config = PolicyConfig(
        lora=lora,
        critic=CriticConfig(kind=kind, **critic),  # type: ignore[arg-type]
        device="cpu",
    )
    return OpenVLAPolicy.create(
        tiny_model(), INSTRUCTIONS, identity_statistics("mt5", 4), 4, 2, config, seed
    )


def sharpen(policy: OpenVLAPolicy, factor: float = 5.0) -> OpenVLAPolicy:
    """Make the fresh policy's distributions far from uniform, so that mistakes show."""
    policy.model.language_model.lm_head.weight.data.mul_(factor)
    return policy
