"""From the name of a checkpoint to the parts of a policy: official folder, hub id, adapter, or one of our own.

official or ours, whole       config.json and weights
ours, with adapters           config.json and adapters, which stay adapters; the base is named in config.json
adapter in PEFT's format      adapter_config.json; merged into its base, see `adapters`
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from vla_rl.config.errors import ConfigError, UserError
from vla_rl.config.openvla import IMAGE_PREPROCESSING, ModelConfig
from vla_rl.config.policy import Conventions, CriticConfig, LoraConfig, PolicyConfig
from vla_rl.policies.action_tokens import select_statistics
from vla_rl.policies.openvla import checkpoint as files
from vla_rl.policies.openvla import lora
from vla_rl.policies.openvla.config_files import (
    Checkpoint,
    read_checkpoint_config,
    with_adapter_files,
)
from vla_rl.policies.openvla.model import OpenVLA
from vla_rl.policies.openvla.processing import Processor, with_protocol
from vla_rl.policies.openvla.tokenizer import load_tokenizer
from vla_rl.policies.peft_files import (
    ADAPTER_FILE,
    StoredAdapter,
    adapter_entries,
    read_adapter,
    strip_prefix,
)
from vla_rl.policies.safetensors_files import TensorEntry, has_weights, read_tensors, sample_digest
from vla_rl.policies.shapes import shapes_alone
from vla_rl.runtime.bases import (
    ADAPTER_CONFIG_FILE,
    MOST_BASES,
    find_base,
    is_adapter_folder,
    named_base,
)
from vla_rl.runtime.external import path_inside, shown
from vla_rl.runtime.hub import checkpoint_folder, files_on_hub, hidden_id, hub_id
from vla_rl.runtime.locate import OFT_ADAPTER, refuse_oft

LOG = logging.getLogger(__name__)

LARGE_MODEL = 1_000_000_000
"""Weights from which on `auto` computes in bfloat16 on a GPU."""
OFT_KIND = "openvla-oft"
PROBE = "put the red block on the shelf"
"""An instruction by which a tokenizer is tried."""


@dataclass(frozen=True)
class Weights:
    """Where a whole model's weights lie: one folder, and the adapters to merge on the way, innermost first."""

    folder: Path
    adapters: list[StoredAdapter] = field(default_factory=list)

    def entries(self) -> dict[str, TensorEntry]:
        return files.weights_of(self.folder)

    def digest(self) -> str:
        """Tells these weights from others, by their files; adapters to be merged count by theirs."""
        parts = [sample_digest(self.entries())]
        parts += [sample_digest(adapter_entries(adapter.folder)) for adapter in self.adapters]
        return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


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


def find_source(reference: str | Path, base: str = "", depth: int = 0, kind: str = "") -> Source:
    """Find and describe a checkpoint. `base` replaces what adapters call their base, the innermost ones.

    kind: what class of policy the user says it is.

    Raises UserError for what is missing, damaged or contradictory.
    """
    folder = checkpoint_folder(reference)
    if depth > MOST_BASES:
        raise UserError(
            f"{reference}: adapters name each other as their base in a circle: give policy.base"
        )
    if not os.path.isdir(folder):
        raise UserError(
            f"No checkpoint folder at {folder}: expected a folder with config.json, or the id of a hub repository "
            f"such as openvla/openvla-7b{hidden_id(reference)}"
        )
    # of plain OpenVLA nobody expects such parts, and a hub that is asked takes time
    refuse_oft(folder, kind, files_on_hub(reference) if kind == OFT_KIND else ())
    if is_adapter_folder(folder):
        return _adapter_source(str(reference), folder, base, depth, kind)
    description = read_checkpoint_config(folder)
    weights = Weights(folder)
    if description.base:
        found, weights = _base_of(folder, description, base, depth)
        description = replace(description, base=found)
        _require_same_base(description, weights, folder, base)
    return Source(str(reference), folder, description, weights, folder / files.TOKENIZER_FILE)


def _base_of(folder: Path, description: Checkpoint, base: str, depth: int) -> tuple[str, Weights]:
    """The base of adapters of our own format, in the place they name or where the user says it is."""
    kind = description.kind
    named = _present(description.base or "", folder)
    if hub_id(named) is None and os.path.isdir(named) and is_adapter_folder(Path(named)):
        return named, find_source(
            named, base, depth + 1, kind
        ).weights  # the merged kind: base is theirs
    found = base or named
    if hub_id(found) is None and not has_weights(Path(found)):
        raise UserError(
            f"No model weights in {shown(found)}, the base of the adapters in {folder}: if it has moved, give "
            "policy.base"
        )
    if hub_id(found) is None:
        found = str(Path(found).resolve())
    return found, find_source(found, "", depth + 1, kind).weights


def _require_same_base(description: Checkpoint, weights: Weights, folder: Path, given: str) -> None:
    """Raise UserError where other weights lie in the base's place; of a base that the user gave, say so alone."""
    wanted = description.base_digest
    if wanted is None or weights.digest() == wanted:
        return
    found = f"the weights in {weights.folder} are not those that the adapters in {folder} were trained on"
    if not given:
        raise UserError(f"{found}: give the right ones as policy.base")
    LOG.warning("%s", found)


def _present(named: str, folder: Path) -> str:
    """`named` if it is there, else where adapter_config.json says, by a path that moved along with the folder."""
    named = find_base(named, folder)
    if hub_id(named) is None and not os.path.isdir(named):
        beside = named_base(folder) if (folder / ADAPTER_CONFIG_FILE).is_file() else ""
        return beside if os.path.isdir(beside) else named
    return named


def _adapter_source(reference: str, folder: Path, base: str, depth: int, kind: str) -> Source:
    adapter = read_adapter(folder)
    if folder.name == OFT_ADAPTER and not kind:
        LOG.warning(
            "%s belongs to OpenVLA-OFT, and is read as an adapter of plain OpenVLA: give --policy.kind openvla-oft if "
            "it was trained on action tokens; without its action head it will not play well until it is fine-tuned",
            folder,
        )  # fmt: skip
    named = base or adapter.base
    if not named:
        raise UserError(
            f"{folder} holds adapters and does not say of which model (base_model_name_or_path): give policy.base"
        )
    if not os.path.isdir(named) and hub_id(named) is None:
        raise UserError(
            f"{folder} holds adapters of {shown(named)}, which is no folder here: give the model's folder as "
            "policy.base"
        )
    inner = find_source(named, "", depth + 1, kind)
    if inner.description.lora is not None:
        raise UserError(
            f"{inner.folder}, the base of the adapters in {folder}, is a checkpoint with adapters of its own: export "
            "it as a whole first (vla-rl export ... --merged)"
        )
    description = with_adapter_files(inner.description, folder)
    _require_same_base(description, inner.weights, folder, base)
    tokenizer = folder / files.TOKENIZER_FILE
    return Source(
        reference,
        folder,
        replace(description, base_digest=None),
        Weights(inner.weights.folder, [*inner.weights.adapters, adapter]),
        tokenizer if tokenizer.is_file() else inner.tokenizer,
    )


def choose_statistics(description: Checkpoint, key: str | None, likely: str = "") -> Checkpoint:
    """The description with the action statistics that are meant, and the size of action they are of.

    key: the user's choice; names of suites may be spelled with dashes. likely: the benchmark's, for checkpoints that
    do not say: passed over, with a warning, if there is one dataset and it has another name. Raises UserError if the
    choice is unknown, or is left open by several datasets.
    """
    known = description.norm_stats
    chosen = _spelled(key, known) if key else description.unnorm_key
    if not key and description.unnorm_keys and _spelled(likely, known) in description.unnorm_keys:
        chosen = _spelled(likely, known)
    if not chosen and likely:
        guess = _spelled(likely, known)
        if guess in known or f"{guess}_no_noops" in known or len(known) != 1:
            chosen = guess
        else:
            LOG.warning(
                "actions are un-normalised by the statistics of %r, the only dataset of the checkpoint; there are none "
                "of %r", next(iter(known)), likely,
            )  # fmt: skip
    names = [chosen or None, *description.unnorm_keys]
    size = max(select_statistics(known, name)[1].q01.size for name in names)
    return replace(description, unnorm_key=chosen or None, action_dim=size)


def _spelled(key: str, known: Iterable[str]) -> str:
    spelled = key.replace("-", "_")
    if key not in known and (spelled in known or f"{spelled}_no_noops" in known):
        return spelled
    return key


def with_conventions(description: Checkpoint, conventions: Conventions) -> Checkpoint:
    """The description with the benchmark's conventions, if the checkpoint does not say its own."""
    if description.own:
        return description
    model = replace(
        description.model,
        images=IMAGE_PREPROCESSING[conventions.images],
        gripper=conventions.gripper,
    )
    return replace(description, model=model)


def of_kind(
    description: Checkpoint, network: type[OpenVLA], asked: str, source: Source
) -> Checkpoint:
    """The description of the checkpoint as a policy of class `network`.

    asked: the user's own word. UserError where a checkpoint of ours says another class, and the user none; one may
    start from another class by saying so.
    """
    if not description.own:
        return replace(description, kind=network.kind, action_chunk=network.published_chunk)
    if description.fast is not None and network is not OpenVLA:
        raise UserError(
            f"{source.folder} writes actions as FAST tokens, each of which depends on those before it: a policy of "
            f"type {network.kind!r} decides all at once. Leave policy.kind empty"
        )
    if description.kind == network.kind:
        return description
    if asked != network.kind:
        raise UserError(
            f"{source.folder} is a policy of type {shown(description.kind)}, expected {network.kind!r}: load it with "
            "load_policy, or give policy.kind to begin another type from its weights"
        )
    LOG.warning(
        "%s was saved as %s and is read as %s, as policy.kind asks: it will not play well until it is fine-tuned",
        source.folder, description.kind, network.kind,
    )  # fmt: skip
    return replace(description, kind=network.kind)


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
    source: Source,
    config: PolicyConfig,
    device: torch.device,
    dtype: torch.dtype,
    network: type[OpenVLA] = OpenVLA,
) -> Network:
    """The model with its adapters, and the description of what `save` will write."""
    description, folder = source.description, source.folder
    stored = description.lora
    if stored is not None and config.lora is not None and not lora.same_shape(config.lora, stored):
        raise UserError(
            f"{folder} holds adapters of {stored}, the configuration asks for {config.lora}: use the stored settings"
        )
    weights = source.weights
    model = files.load_model(
        weights.folder, description.model, device, dtype, weights.adapters, network
    )
    kinds = {name: entry.dtype for name, entry in weights.entries().items()}
    wanted = config.lora or stored
    if wanted is None:
        return Network(model, description, kinds)
    # checked before memory is taken for adapters of that size
    tensors = own_adapters(source)
    lora.add_adapters(model, wanted)
    if tensors is not None:
        lora.load_adapter_state(model, tensors)
        return Network(model, replace(description, lora=wanted), kinds)
    named = source.reference if hub_id(source.reference) else str(folder.resolve())
    description = replace(description, lora=wanted, base=named, base_digest=weights.digest())
    return Network(model, description, kinds)


def read_own_adapters(folder: Path, model: ModelConfig, settings: LoraConfig) -> dict[str, Tensor]:
    """The adapters of a checkpoint of ours. Raises UserError unless they fit the model and the settings."""
    file = path_inside(folder, ADAPTER_FILE, source=folder)
    tensors = strip_prefix(read_tensors([file], torch.float32))
    with shapes_alone():
        wanted = {
            name: torch.empty(shape)
            for name, shape in lora.adapter_shapes(OpenVLA(model), settings).items()
        }
    files.check_fit(tensors, wanted, file, "these adapters")
    return tensors


def own_adapters(source: Source) -> dict[str, Tensor] | None:
    """The adapters that a checkpoint of ours keeps apart from its base; None where it has none."""
    settings = source.description.lora
    if settings is None:
        return None
    return read_own_adapters(source.folder, source.description.model, settings)


def critic_file(source: Source) -> Path:
    return path_inside(source.folder, files.CRITIC_FILE, source=source.folder)


def open_tokenizer(source: Source) -> Tokenizer:
    """The checkpoint's tokenizer. Raises UserError if it is missing, damaged, or belongs to another model."""
    tokenizer = load_tokenizer(source.tokenizer)
    try:
        Processor(source.description.model, tokenizer).prompt_ids(PROBE)
    except UserError as error:
        raise UserError(f"{source.tokenizer}: {error}") from error
    return tokenizer


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
    conventions: Conventions | None = None,
    network: type[OpenVLA] = OpenVLA,
) -> Parts:
    """Find, check and read a checkpoint, as the class of model `network`.

    Raises UserError for missing, truncated or ill-fitting files.
    """
    # whoever loads plain OpenVLA may not know that there is another class of the same files
    asked = config.kind or (network.kind if network is not OpenVLA else "")
    source = find_source(reference, config.base, kind=asked)
    whole = source.weights == Weights(source.folder)
    # a run's own checkpoint may be whole although it began with an adapter: only the user's own words are checked
    if config.base and whole and str(reference) == config.checkpoint:
        raise ConfigError(
            f"policy.base is {config.base!r}, but {reference} is a whole model and no adapter: leave it empty"
        )
    conventions = conventions or Conventions()
    try:
        description = choose_statistics(
            source.description, unnorm_key or config.unnorm_key, conventions.unnorm_key
        )
    except UserError as error:
        raise UserError(f"{source.folder}: {error}") from error
    description = of_kind(with_conventions(description, conventions), network, asked, source)
    description = replace(description, model=with_protocol(description.model, config))
    source = replace(source, description=description)
    tokenizer = open_tokenizer(source)
    if dtype is None:
        dtype = choose_dtype(config.dtype, source.weights.entries().values(), device)
    loaded = load_network(source, config, device, dtype, network)
    loaded = replace(loaded, description=replace(loaded.description, critic=config.critic))
    stored = description.critic if config.critic.kind != "none" else None
    return Parts(loaded, tokenizer, critic_file(source), stored)
