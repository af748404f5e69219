"""How a checkpoint is played, as far as it can be played wrongly; and a policy as other settings have it.

No weight is copied or read again: what differs is how images, gripper, statistics and class are understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import torch

from vla_rl.config import EnvConfig, UserError
from vla_rl.config.openvla import IMAGE_PREPROCESSING
from vla_rl.policies.openvla.config_files import Checkpoint
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.openvla_oft.twin import other_class

STORED = "checkpoint"
"""Image preprocessing that has no name: what stands in the checkpoint."""


@dataclass(frozen=True)
class Settings:
    """One way of playing a checkpoint, every choice made."""

    kind: str
    """Class of the policy, see `PolicyConfig.kind`."""
    statistics: str
    """Dataset whose action statistics un-normalise actions."""
    images: str
    """Preprocessing of a frame, by its name in `PolicyConfig.images`."""
    turned: bool
    """Frames are turned by 180 degrees before the policy sees them."""
    gripper: str
    """Meaning of the gripper's dimension, see `ModelConfig.gripper`."""
    temperature: float
    """0 is greedy."""
    horizon: int
    """Turns after which an episode is cut, of as many actions as the protocol's have."""
    settle_steps: int
    """Control steps without motion after a reset."""

    def changed_from(self, other: Settings) -> dict[str, tuple[Any, Any]]:
        """The fields in which they differ: (other's value, own)."""
        own, others = asdict(self), asdict(other)
        return {name: (others[name], own[name]) for name in own if own[name] != others[name]}


def image_name(policy: OpenVLAPolicy) -> str:
    """What the policy's image preprocessing is called, `STORED` where it has no name."""
    found = replace(policy.description.model.images, fit="stretch")
    names = [name for name, one in IMAGE_PREPROCESSING.items() if one == found]
    return names[0] if names else STORED


def as_loaded(policy: OpenVLAPolicy, env: EnvConfig, temperature: float) -> Settings:
    """The settings of a policy as it was loaded, in this environment."""
    return Settings(
        kind=policy.kind,
        statistics=policy.unnorm_key,
        images=image_name(policy),
        turned=False,
        gripper=policy.description.model.gripper,
        temperature=temperature,
        horizon=env.horizon,
        settle_steps=env.settle_steps,
    )


def understood(
    policy: OpenVLAPolicy, settings: Settings, statistics: Mapping[str, Any] | None = None
) -> OpenVLAPolicy:
    """The same weights, played as `settings` say. statistics: further datasets', in the official format.

    UserError where the weights cannot be of the class, or there are no such statistics.
    """
    if settings.kind != policy.kind:
        other = other_class(policy)
        if other is None or other.kind != settings.kind:
            raise UserError(f"these weights cannot be played as {settings.kind}")
        policy = other
    description = policy.description
    model = replace(description.model, gripper=cast(Literal["as-is", "openvla"], settings.gripper))
    if settings.images != STORED:
        images = replace(IMAGE_PREPROCESSING[settings.images], fit=model.images.fit)
        model = replace(model, images=images)
    description = replace(
        description,
        model=model,
        norm_stats={**description.norm_stats, **(statistics or {})},
        unnorm_key=settings.statistics,
        unnorm_keys=(),
    )
    config = replace(policy.config, images="checkpoint", gripper="checkpoint")
    with torch.random.fork_rng(devices=[]):  # the critic is a fresh one, and nobody asks it
        return type(policy)(
            policy.model, policy.processor.tokenizer, description, config, policy.device
        )


def other_statistics(description: Checkpoint) -> dict[str, Any]:
    """Statistics that stand in config.json and are not those in use, as in OpenVLA's fine-tuned checkpoints.

    Those of a dataset that dataset_statistics.json has with other numbers get a name of their own.
    """
    found: dict[str, Any] = {}
    for name, one in (description.extra.get("norm_stats") or {}).items():
        own = description.norm_stats.get(name)
        if own is None:
            found[name] = one
        elif own.get("action") != one.get("action"):
            found[f"{name} in config.json"] = one
    return found


def env_of(env: EnvConfig, settings: Settings, policy: OpenVLAPolicy) -> EnvConfig:
    """Where a policy is played with these settings. env: the protocol's."""
    size = env.image_size if policy.resizes_images else policy.image_size
    return replace(
        env,
        image_size=size,
        action_chunk=policy.action_chunk,
        # the same number of actions, however many are decided in a turn
        horizon=-(-settings.horizon * env.action_chunk // policy.action_chunk),
        settle_steps=settings.settle_steps,
    )
