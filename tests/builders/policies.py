"""Small policies and observations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vla_rl.config import CriticConfig, LoraConfig, ModelConfig, PolicyConfig, tiny_model
from vla_rl.policies import OpenVLAPolicy, identity_statistics
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.types import Observation

GOLDEN = Path(__file__).parents[1] / "fixtures" / "openvla_a"
# prompts of 6, 6, 9 and (through bytes) many more tokens
INSTRUCTIONS = ("open the drawer", "close the drawer", "press the button from the top")
UNKNOWN = "Zap the Drawer, twice!"


def tiny_policy(
    instructions: Sequence[str] = INSTRUCTIONS,
    model: ModelConfig | None = None,
    config: PolicyConfig | None = None,
    *,
    action_dim: int = 4,
    action_chunk: int = 2,
    dataset: str = "metaworld",
    seed: int = 0,
    kind: type[OpenVLAPolicy] = OpenVLAPolicy,
) -> OpenVLAPolicy:
    """A fresh policy on the CPU: the laptop's model unless another is given, actions in [-1, 1]."""
    return kind.create(
        model or tiny_model(),
        instructions,
        identity_statistics(dataset, action_dim),
        action_dim,
        action_chunk,
        config or PolicyConfig(device="cpu"),
        seed,
    )


def saved_policy(folder: Path, instructions: Sequence[str] = INSTRUCTIONS, **changes) -> Path:
    """The folder of a `tiny_policy`."""
    tiny_policy(instructions, **changes).save(folder)
    return folder


def narrow_model() -> ModelConfig:
    """For environments whose answers are known: 32 px, 8 action values, a few thousand weights."""
    model = tiny_model(32)
    tower = {
        "width": 16, "depth": 1, "heads": 2, "mlp_width": 32, "stem_channels": (8, 8, 8),
    }  # fmt: skip
    return replace(
        model,
        dino=replace(model.dino, **tower),
        siglip=replace(model.siglip, **tower),
        language=replace(model.language, hidden=32, layers=1, heads=2, mlp_width=64),
        action_bins=8,
    )


def narrow_policy(
    instructions: Sequence[str], critic: CriticConfig | None = None, seed: int = 0
) -> OpenVLAPolicy:
    """A policy for `vla_rl.envs.known_answers`, which play one action a turn."""
    config = PolicyConfig(critic=critic or CriticConfig(), device="cpu")
    return tiny_policy(instructions, narrow_model(), config, action_chunk=1, seed=seed)


def make_policy(
    kind: str = "separate", lora: LoraConfig | None = None, seed: int = 0, **critic: object
) -> OpenVLAPolicy:
    """A `tiny_policy` with this critic, and with adapters."""
    config = PolicyConfig(
        lora=lora,
        critic=CriticConfig(kind=kind, **critic),  # type: ignore[arg-type]
        device="cpu",
    )
    return tiny_policy(config=config, dataset="mt5", seed=seed)


def make_oft_policy(
    critic: str = "shared", lora: LoraConfig | None = None, seed: int = 0
) -> OpenVLAPolicy:
    """The same with all tokens of a turn decided in one parallel pass."""
    config = PolicyConfig(
        lora=lora,
        critic=CriticConfig(kind=critic),  # type: ignore[arg-type]
        device="cpu",
    )
    return tiny_policy(config=config, dataset="mt5", seed=seed, kind=OpenVLAOFTPolicy)


def sharpen(policy: OpenVLAPolicy, factor: float = 5.0) -> OpenVLAPolicy:
    """Make the fresh policy's distributions far from uniform, so that mistakes show."""
    policy.model.language_model.lm_head.weight.data.mul_(factor)
    return policy


def make_observation(
    count: int, seed: int = 0, texts: tuple[str, ...] = (*INSTRUCTIONS, UNKNOWN), size: int = 64
) -> Observation:
    """Pictures of noise; the instructions go round."""
    rng = np.random.default_rng(seed)
    return Observation(
        rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
        tuple(texts[i % len(texts)] for i in range(count)),
        np.zeros((count, 4), np.float32),
        rng.random(count, dtype=np.float32),
    )
