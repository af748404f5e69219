"""The protocol a checkpoint's figure was measured by, and the checkpoint as it is played here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from vla_rl.config import Conventions, EnvConfig, PolicyConfig, UserError
from vla_rl.config.openvla import IMAGE_PREPROCESSING
from vla_rl.config.reproduce import ReproduceConfig
from vla_rl.diagnostics.reproduction.card import CARD, PUBLISHED, Card, Figure, read_card
from vla_rl.diagnostics.reproduction.settings import Settings, as_loaded
from vla_rl.envs.defaults import benchmark_env, conventions, evaluation_env
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.registry import load_policy
from vla_rl.rollout.playable import ready_for
from vla_rl.runtime.hub import checkpoint_folder
from vla_rl.runtime.locate import locate_policy

SOURCE = "arXiv 2406.09246; the baseline of arXiv 2505.18719"
OPENVLA = "openvla/openvla-7b-finetuned-{suite}"


@dataclass(frozen=True)
class Protocol:
    """A checkpoint, the protocol of its figure, and how it is played here."""

    policy: OpenVLAPolicy
    folder: Path
    """Where its files lie on this machine."""
    env: EnvConfig
    settings: Settings
    """The protocol's."""
    played: Settings
    figure: Figure | None
    card: Card | None


def checkpoint_of(config: ReproduceConfig) -> str:
    """The checkpoint that is asked for. UserError for a suite that none was published for."""
    if config.checkpoint:
        return config.checkpoint
    if config.suite in PUBLISHED:
        return OPENVLA.format(suite=config.suite)
    raise UserError(
        f"no checkpoint is published for {config.suite!r}, only for {', '.join(PUBLISHED)}: give one with --checkpoint"
    )


def protocol_of(config: ReproduceConfig) -> Protocol:
    """Load the checkpoint and find out by which protocol, and against which figure, it is played.

    A card beside the checkpoint says both; for LIBERO's four suites OpenVLA's protocol and figures are known.
    UserError where nothing says what is to be reproduced, and for policies of other classes.
    """
    where, trained_in = locate_policy(Path(checkpoint_of(config)))
    folder = checkpoint_folder(where)
    card = read_card(folder)
    if card is not None and card.env.suite != config.suite:
        raise UserError(
            f"{folder / CARD} is of {card.env.suite!r}, got the suite {config.suite!r}: give the card's"
        )
    figure = _figure(config, card, folder)
    policy = _loaded(where, config, card)
    ready_for(policy, config.suite)
    env = _env(config, card, policy, trained_in)
    if config.workers:
        env = replace(env, num_workers=config.workers)
    loaded = as_loaded(policy, env, 0.0)
    settings = card.settings if card is not None else _published(config.suite, loaded, policy)
    return Protocol(policy, folder, env, settings, _played(loaded, config), figure, card)


def _env(
    config: ReproduceConfig, card: Card | None, policy: OpenVLAPolicy, trained_in: EnvConfig | None
) -> EnvConfig:
    """Where the figure was measured: the card's, OpenVLA's for its checkpoints, else where it was trained."""
    if card is not None:
        return card.env
    if config.suite in PUBLISHED and not policy.description.own:
        return benchmark_env(config.suite)
    return evaluation_env(
        config.suite, trained_in, policy.image_size, policy.resizes_images, policy.action_chunk
    )


def _figure(config: ReproduceConfig, card: Card | None, folder: Path) -> Figure | None:
    if config.publish:
        return None
    if config.published:
        return Figure(config.published / 100, "given by --published")
    if card is not None:
        return card.figure
    if config.suite in PUBLISHED:
        return Figure(PUBLISHED[config.suite], SOURCE)
    raise UserError(
        f"nothing says what is to be reproduced: {folder} has no {CARD}, and no figure is published for "
        f"{config.suite!r}. Give one with --published, or measure it with --publish"
    )


def _loaded(where: Path, config: ReproduceConfig, card: Card | None) -> OpenVLAPolicy:
    """The checkpoint as it says itself; the protocol's conventions where it says nothing; and what is asked for."""
    asked, conv = config.played, conventions(config.suite)
    if card is not None:
        own = card.settings
        known = own.images in IMAGE_PREPROCESSING
        conv = Conventions(
            images=cast(Any, own.images) if known else "as-is",
            gripper=cast(Literal["as-is", "openvla"], own.gripper),
            unnorm_key=own.statistics,
        )
    policy = load_policy(
        where,
        PolicyConfig(
            checkpoint=str(where),
            kind="" if asked.kind == "protocol" else asked.kind,
            base=config.base,
            unnorm_key=asked.unnorm_key,
            dtype=config.dtype,
            images="checkpoint" if asked.images == "protocol" else asked.images,
            gripper="checkpoint" if asked.gripper == "protocol" else asked.gripper,
        ),
        conventions=conv,
    )
    if not isinstance(policy, OpenVLAPolicy):
        raise UserError(
            f"{where} is a policy of type {policy.kind!r}, expected one of OpenVLA's class: use vla-rl eval for it"
        )
    return policy


def _published(suite: str, loaded: Settings, policy: OpenVLAPolicy) -> Settings:
    """OpenVLA's protocol for its checkpoints. What says itself how it is meant, is meant so."""
    if policy.description.own or suite not in PUBLISHED:
        return loaded
    known, conv = policy.description.norm_stats, conventions(suite)
    names = [name for name in (conv.unnorm_key, f"{conv.unnorm_key}_no_noops") if name in known]
    return replace(
        loaded,
        kind="openvla",
        images=conv.images,
        gripper=conv.gripper,
        statistics=names[0] if names else loaded.statistics,
    )


def _played(loaded: Settings, config: ReproduceConfig) -> Settings:
    asked = config.played
    return replace(
        loaded,
        turned=asked.turned,
        temperature=asked.temperature or 0.0,
        horizon=asked.horizon or loaded.horizon,
        settle_steps=loaded.settle_steps if asked.settle_steps is None else asked.settle_steps,
    )
