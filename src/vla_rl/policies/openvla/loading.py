"""From the name of a checkpoint to the parts of a policy: official folder, hub id, adapter, or one of our own.

official or ours, whole       config.json and weights
ours, with adapters           config.json and adapters, which stay adapters; the base is named in config.json
adapter in PEFT's format      adapter_config.json; merged into its base, see `adapters`
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from vla_rl.config.errors import ConfigError, UserError
from vla_rl.config.policy import CriticConfig, PolicyConfig
from vla_rl.policies.openvla import checkpoint as files
from vla_rl.policies.openvla import lora
from vla_rl.policies.openvla.config_files import (
    STATISTICS_FILE,
    Checkpoint,
    read_checkpoint_config,
    read_json,
)
from vla_rl.policies.openvla.model import OpenVLA
from vla_rl.policies.openvla.processing import with_protocol
from vla_rl.policies.openvla.tokenizer import load_tokenizer
from vla_rl.policies.peft_files import (
    ADAPTER_FILE,
    StoredAdapter,
    is_adapter_folder,
    read_adapter,
    strip_prefix,
)
from vla_rl.policies.safetensors_files import TensorEntry, has_weights, read_tensors
from vla_rl.runtime.hub import checkpoint_folder, hub_id

LARGE_MODEL = 1_000_000_000
"""Weights from which on `auto` computes in bfloat16 on a GPU."""
DEEPEST = 4
"""Adapters on merged adapters on ..., more than this is a circle."""


@dataclass(frozen=True)
class Weights:
    """Where a whole model's weights lie: one folder, and the adapters to merge on the way, innermost first."""

    folder: Path
    adapters: list[StoredAdapter] = field(default_factory=list)

    def entries(self) -> dict[str, TensorEntry]:
        return files.weights_of(self.folder)


@dataclass(frozen=True)
class Source:
    """A checkpoint that has been found and described, its weights not yet read."""

    reference: str
    folder: Path
    description: Checkpoint
    weights: Weights
    tokenizer: Path


@dataclass(frozen=True)
class Network:
    """A loaded model, and what saving it again needs to know."""

    model: OpenVLA
    description: Checkpoint
    stored: dict[str, torch.dtype]
    """Precision of the base's tensors in the files they came from, by official name."""


def find_source(reference: str | Path, base: str = "", depth: int = 0) -> Source:
    """Find and describe a checkpoint. `base` replaces what adapters call their base, the innermost ones.

    Raises UserError for what is missing, damaged or contradictory.
    """
    folder = checkpoint_folder(reference)
    if depth > DEEPEST:
        raise UserError(
            f"{reference}: adapters name each other as their base in a circle: give policy.base"
        )
    if is_adapter_folder(folder):
        return _adapter_source(str(reference), folder, base, depth)
    description = read_checkpoint_config(folder)
    weights = Weights(folder)
    if description.base:
        weights = _weights_of_base(folder, description.base, base, depth)
    return Source(str(reference), folder, description, weights, folder / files.TOKENIZER_FILE)


def _weights_of_base(folder: Path, named: str, base: str, depth: int) -> Weights:
    """The weights under adapters of our own format, in the place they name or where the user says they are."""
    if is_adapter_folder(Path(named)):  # the merged kind: what the user gives is the base of those
        return find_source(named, base, depth + 1).weights
    found = base or named
    if hub_id(found) is None and not has_weights(Path(found)):
        raise UserError(
            f"No model weights in {found}, the base of the adapters in {folder}: if it has moved, give policy.base"
        )
    return find_source(found, "", depth + 1).weights


def _adapter_source(reference: str, folder: Path, base: str, depth: int) -> Source:
    adapter = read_adapter(folder)
    named = base or adapter.base
    if not named:
        raise UserError(
            f"{folder} holds adapters and does not say of which model (base_model_name_or_path): give policy.base"
        )
    if not Path(named).is_dir() and hub_id(named) is None:
        raise UserError(
            f"{folder} holds adapters of {named!r}, which is no folder here: give the model's folder as policy.base"
        )
    inner = find_source(named, "", depth + 1)
    description = inner.description
    if description.lora is not None:
        raise UserError(
            f"{inner.folder}, the base of the adapters in {folder}, is a checkpoint with adapters of its own: export "
            "it as a whole first (vla-rl export ... --merged)"
        )
    if (folder / STATISTICS_FILE).is_file():
        description = replace(
            description, norm_stats=read_json(folder / STATISTICS_FILE), unnorm_key=None
        )
    tokenizer = folder / files.TOKENIZER_FILE
    return Source(
        reference,
        folder,
        replace(description, critic=None),
        Weights(inner.weights.folder, [*inner.weights.adapters, adapter]),
        tokenizer if tokenizer.is_file() else inner.tokenizer,
    )


def choose_statistics(description: Checkpoint, key: str | None) -> Checkpoint:
    """The description with the user's choice of action statistics; names of suites may be spelled with dashes."""
    if not key:
        return description
    spelled = key.replace("-", "_")
    known = description.norm_stats
    if key not in known and (spelled in known or f"{spelled}_no_noops" in known):
        key = spelled
    return replace(description, unnorm_key=key)


def choose_dtype(wanted: str, entries: Iterable[TensorEntry], device: torch.device) -> torch.dtype:
    """The precision of the weights, see `PolicyConfig.dtype`."""
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    large = sum(math.prod(entry.shape) for entry in entries) >= LARGE_MODEL
    return torch.bfloat16 if large and device.type == "cuda" else torch.float32


def stored_dtype(source: Source) -> torch.dtype:
    """The precision that holds all of a checkpoint's weights exactly and nothing more."""
    kinds = {entry.dtype for entry in source.weights.entries().values()}
    return kinds.pop() if len(kinds) == 1 else torch.float32


def load_network(
    source: Source, config: PolicyConfig, device: torch.device, dtype: torch.dtype
) -> Network:
    """The model with its adapters, and the description of what `save` will write."""
    description, folder = source.description, source.folder
    stored = description.lora
    if stored is not None and config.lora is not None and not lora.same_shape(config.lora, stored):
        raise UserError(
            f"{folder} holds adapters of {stored}, the configuration asks for {config.lora}: use the stored settings"
        )
    weights = source.weights
    model = files.load_model(weights.folder, description.model, device, dtype, weights.adapters)
    kinds = {name: entry.dtype for name, entry in weights.entries().items()}
    wanted = config.lora or stored
    if wanted is None:
        return Network(model, description, kinds)
    lora.add_adapters(model, wanted)
    if stored is not None:
        _load_adapters(model, folder)
        return Network(model, replace(description, lora=wanted), kinds)
    named = source.reference if hub_id(source.reference) else str(folder.resolve())
    return Network(model, replace(description, lora=wanted, base=named), kinds)


def _load_adapters(model: OpenVLA, folder: Path) -> None:
    file = folder / ADAPTER_FILE
    tensors = strip_prefix(read_tensors([file], torch.float32))
    files.check_fit(tensors, lora.adapter_state(model), file, "these adapters")
    lora.load_adapter_state(model, tensors)


@dataclass(frozen=True)
class Parts:
    """All that a policy is made of, apart from its critic's weights."""

    network: Network
    tokenizer: Tokenizer
    critic_file: Path
    stored_critic: CriticConfig | None


def load_parts(
    reference: str | Path,
    config: PolicyConfig,
    device: torch.device,
    unnorm_key: str | None = None,
    dtype: torch.dtype | None = None,
) -> Parts:
    """Find, check and read a checkpoint. Raises UserError for missing, truncated or ill-fitting files."""
    source = find_source(reference, config.base)
    whole = source.weights == Weights(source.folder)
    # a run's own checkpoint may be whole although it began with an adapter: only the user's own words are checked
    if config.base and whole and str(reference) == config.checkpoint:
        raise ConfigError(
            f"policy.base is {config.base!r}, but {reference} is a whole model and no adapter: leave it empty"
        )
    description = choose_statistics(source.description, unnorm_key or config.unnorm_key)
    description = replace(description, model=with_protocol(description.model, config))
    source = replace(source, description=description)
    tokenizer = load_tokenizer(source.tokenizer)
    if dtype is None:
        dtype = choose_dtype(config.dtype, source.weights.entries().values(), device)
    network = load_network(source, config, device, dtype)
    network = replace(network, description=replace(network.description, critic=config.critic))
    return Parts(network, tokenizer, source.folder / files.CRITIC_FILE, description.critic)
