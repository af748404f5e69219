"""The JSON files of an OpenVLA checkpoint, official or ours, to the project's configuration and back.

Ours carry the official keys and a section `vla_rl` with the sizes in full, so that models of any size load back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from vla_rl.config.errors import ConfigError, UserError, require
from vla_rl.config.openvla import ImagePreprocessing, ModelConfig
from vla_rl.config.policy import CriticConfig, LoraConfig
from vla_rl.config.serialize import from_json, to_json
from vla_rl.policies.action_tokens import select_statistics
from vla_rl.policies.fast.actions import FastTokens
from vla_rl.policies.fast.files import load_fast, save_fast
from vla_rl.policies.openvla.official_config import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    check_preprocessor,
    official_model,
)
from vla_rl.policies.statistics_files import (
    STATISTICS_FILE,
    read_statistics,
    statistics_of_config,
)
from vla_rl.runtime.bases import ADAPTER_SECTION_FILE
from vla_rl.runtime.external import parse_json, printable, read_bytes, read_json, shown
from vla_rl.runtime.files import write_json
from vla_rl.runtime.run_policy import policy_of_run

S = TypeVar("S")

FORMAT = 1
COMPANIONS = (
    PREPROCESSOR_FILE,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
)
"""What else an official folder holds and other software reads; copied, not interpreted."""
MOST_BYTES = 16 * 2**20
LONGEST_FAULT = 500
MOST_ACTIONS = 1024
"""Numbers an action has, and actions of a turn."""
MOST_TOKENS = 2**16
ACTION_TOKENIZER_FOLDER = "action_tokenizer"
"""Beside config.json, where actions are FAST tokens; see `policies.fast.files`."""
FAST_MODEL_TYPE = "openvla-fast"
"""`model_type` of those: other software would read FAST tokens as bins and play something else."""


def _require_action(section: OwnSection | AdapterSection) -> None:
    for name in ("action_dim", "action_chunk"):
        value = getattr(section, name)
        require(1 <= value <= MOST_ACTIONS, f"{name} must lie in 1..{MOST_ACTIONS}, got {value}")


@dataclass(frozen=True)
class FastSection:
    """What of FAST tokens their tokenizer's own files do not say."""

    max_tokens: int
    """Tokens of a turn at most, the end token among them."""

    def __post_init__(self) -> None:
        require(
            2 <= self.max_tokens <= MOST_TOKENS,
            f"max_tokens must lie in 2..{MOST_TOKENS}, got {self.max_tokens}",
        )


@dataclass(frozen=True)
class OwnSection:
    """The section `vla_rl` of our config.json."""

    model: ModelConfig
    action_dim: int
    action_chunk: int = 1
    unnorm_key: str | None = None
    unnorm_keys: tuple[str, ...] = ()
    """The datasets of several suites that the policy plays, each suite with the statistics of its own."""
    critic: CriticConfig | None = None
    lora: LoraConfig | None = None
    base: str | None = None
    """Folder or hub id of the frozen base, for adapters on a base that is not stored along with them."""
    base_digest: str | None = None
    """`sample_digest` of that base's weights; None in checkpoints of earlier versions."""
    kind: str = "openvla"
    """The class of policy, see `PolicyConfig.kind`; the official keys have no place for it."""
    fast: FastSection | None = None
    """Actions are FAST tokens, by the tokenizer in ACTION_TOKENIZER_FOLDER; None: a bin for each number."""

    def __post_init__(self) -> None:
        _require_action(self)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder says about itself, weights aside."""

    model: ModelConfig
    norm_stats: dict[str, Any]
    action_dim: int
    action_chunk: int = 1
    unnorm_key: str | None = None
    unnorm_keys: tuple[str, ...] = ()
    """The datasets of several suites that the policy plays, each suite with the statistics of its own."""
    critic: CriticConfig | None = None
    lora: LoraConfig | None = None
    base: str | None = None
    """Folder or hub id of the frozen base, for adapters on a base that is not stored along with them."""
    base_digest: str | None = None
    """Tells that base from another that lies in its place."""
    kind: str = "openvla"
    """The class of policy that plays it, see `PolicyConfig.kind`."""
    fast: FastTokens | None = None
    """What actions are written in; None: a bin for each number."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Keys of the official file that we keep as they are."""
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    """Small files beside config.json that go along unchanged, by name."""
    own: bool = False
    """Whether the checkpoint was written by this project, and so says how its actions and images are meant."""


@dataclass(frozen=True)
class AdapterSection:
    """What a folder of adapters says of the policy that its base does not: our file vla_rl.json beside them."""

    action_dim: int
    action_chunk: int
    unnorm_key: str | None
    images: ImagePreprocessing
    gripper: Literal["as-is", "openvla"]
    base_digest: str | None = None
    unnorm_keys: tuple[str, ...] = ()
    kind: str = "openvla"
    fast: FastSection | None = None

    def __post_init__(self) -> None:
        _require_action(self)


def write_adapter_section(folder: Path, checkpoint: Checkpoint) -> None:
    """Write vla_rl.json and dataset_statistics.json beside adapters."""
    section = AdapterSection(
        checkpoint.action_dim,
        checkpoint.action_chunk,
        checkpoint.unnorm_key,
        checkpoint.model.images,
        checkpoint.model.gripper,
        checkpoint.base_digest,
        checkpoint.unnorm_keys,
        checkpoint.kind,
        _write_fast(folder, checkpoint),
    )
    write_json(folder / ADAPTER_SECTION_FILE, {"format": FORMAT, **_said(section)})
    write_json(folder / STATISTICS_FILE, checkpoint.norm_stats)


def with_adapter_files(base: Checkpoint, folder: Path) -> Checkpoint:
    """The description of a model under adapters: the base's, with what the adapters' folder says in its place."""
    described = dataclasses.replace(base, critic=None, base_digest=None)
    if (folder / STATISTICS_FILE).is_file():
        statistics = read_statistics(folder / STATISTICS_FILE)
        described = dataclasses.replace(
            described,
            norm_stats=statistics,
            unnorm_key=None,
            unnorm_keys=(),
            action_dim=_dimension(statistics, base.action_dim),
        )
    path = folder / ADAPTER_SECTION_FILE
    if not path.is_file():
        return described
    raw = read_json(path, inside=folder)
    section = _section(AdapterSection, raw, path, "")
    fast = _read_fast(section, folder)
    model = dataclasses.replace(described.model, images=section.images, gripper=section.gripper)
    if fast is not None:
        model = with_action_bins(model, fast)
    described = dataclasses.replace(
        described,
        model=model,
        action_dim=section.action_dim,
        action_chunk=section.action_chunk,
        unnorm_key=section.unnorm_key,
        unnorm_keys=section.unnorm_keys,
        base_digest=section.base_digest,
        kind=section.kind,
        fast=fast,
        own=True,
    )
    _require_dimension(described, path)
    return described


def with_action_bins(model: ModelConfig, fast: FastTokens) -> ModelConfig:
    """The model with an id of its vocabulary for every code, and one for the end token."""
    return dataclasses.replace(model, action_bins=fast.end + 1)


def with_dataset(
    checkpoint: Checkpoint,
    statistics: Mapping[str, Any],
    action_chunk: int,
    fast: FastTokens | None = None,
) -> Checkpoint:
    """The description of the same model for another dataset's actions, or those of several suites.

    fast: what to write them in; None: what the checkpoint does. UserError where that has another chunk.
    """
    fast = fast or checkpoint.fast
    model = checkpoint.model
    if fast is not None:
        if fast.tokenizer.horizon != action_chunk:
            raise UserError(
                f"the checkpoint's FAST tokens write {fast.tokenizer.horizon} actions a turn, and {action_chunk} are "
                "asked for: give --actions fast to fit new ones, or that --action-chunk"
            )
        model = with_action_bins(model, fast)
    return dataclasses.replace(
        checkpoint,
        fast=fast,
        model=model,
        norm_stats={**checkpoint.norm_stats, **statistics},
        unnorm_key=next(iter(statistics)),
        unnorm_keys=tuple(statistics) if len(statistics) > 1 else (),
        action_chunk=action_chunk,
    )


def _refuse_run(folder: Path) -> None:
    """UserError that names the policy, where `folder` is a run or a checkpoint of one."""
    inside = policy_of_run(folder)
    if inside is not None and inside != folder:
        raise UserError(
            f"{folder} is a run or a checkpoint of one, expected the policy in it: {inside}"
        )


def read_checkpoint_config(folder: Path) -> Checkpoint:
    """Read config.json (and what lies beside it). Raises UserError for anything that does not fit together.

    Statistics in dataset_statistics.json take the place of config.json's, as in OpenVLA's evaluation: fine-tuning
    writes the new dataset's there and leaves the pretraining's in config.json.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        _refuse_run(folder)
        raise UserError(f"No {CONFIG_FILE} in {folder}: this is not a policy checkpoint")
    data = read_bytes(path, inside=folder, max_bytes=MOST_BYTES)
    raw = parse_json(data, source=path)
    if "vla_rl" not in raw and raw.get("model_type") != "openvla":
        _refuse_run(folder)
        raise UserError(
            f"{path} describes a model of type {shown(raw.get('model_type'))}, expected 'openvla': "
            "only OpenVLA checkpoints can be loaded"
        )
    norm_stats = statistics_of_config(data, path)
    extra = {key: value for key, value in raw.items() if key not in ("vla_rl", "norm_stats")}
    if (folder / STATISTICS_FILE).is_file():
        if norm_stats:
            extra["norm_stats"] = norm_stats
        norm_stats = read_statistics(folder / STATISTICS_FILE)
    check_preprocessor(folder)
    files = {
        name: read_bytes(folder / name, inside=folder, max_bytes=MOST_BYTES)
        for name in COMPANIONS
        if (folder / name).is_file()
    }
    if "vla_rl" not in raw:
        model = official_model(data, folder)
        return Checkpoint(model, norm_stats, _dimension(norm_stats), extra=extra, files=files)
    own = _section(OwnSection, raw["vla_rl"], path, "vla_rl")
    fields: dict[str, Any] = {**_fields(own), "fast": _read_fast(own, folder)}
    described = Checkpoint(
        **fields,
        norm_stats=norm_stats,
        extra=extra,
        files=files,
        own=True,
    )
    if described.fast is not None and described.model.action_bins != described.fast.end + 1:
        raise UserError(
            f"{path} says that the model has {described.model.action_bins} action tokens, but its action tokenizer has "
            f"{described.fast.end} codes and an end: one of them belongs to another checkpoint"
        )
    _require_dimension(described, path)
    return described


def _fields(own: OwnSection | Checkpoint) -> dict[str, Any]:
    return {f.name: getattr(own, f.name) for f in dataclasses.fields(OwnSection)}


def _said(section: OwnSection | AdapterSection) -> dict[str, Any]:
    """As JSON. Where actions are bins nothing is said of FAST, as versions before did not."""
    said = to_json(section)
    if section.fast is None:
        del said["fast"]
    return said


def _read_fast(section: OwnSection | AdapterSection, folder: Path) -> FastTokens | None:
    """The action tokenizer beside a description. UserError where it is missing, damaged, or for another chunk."""
    if section.fast is None:
        return None
    path = folder / ACTION_TOKENIZER_FOLDER
    tokenizer = load_fast(path, section.action_chunk, section.action_dim)
    return FastTokens(tokenizer, section.fast.max_tokens)


def _write_fast(folder: Path, checkpoint: Checkpoint) -> FastSection | None:
    if checkpoint.fast is None:
        return None
    save_fast(checkpoint.fast.tokenizer, folder / ACTION_TOKENIZER_FOLDER)
    return FastSection(checkpoint.fast.most)


def _section(kind: type[S], section: Any, path: Path, key: str) -> S:
    """A section of ours of this version. Raises UserError naming file and key."""
    if not isinstance(section, dict) or section.get("format") != FORMAT:
        found = section.get("format") if isinstance(section, dict) else section
        where = f"{path}: {key}" if key else f"{path}"
        raise UserError(
            f"{where} has format {shown(found)}, this version reads format {FORMAT}: update vla-rl or the checkpoint"
        )
    values = {name: value for name, value in section.items() if name != "format"}
    try:
        return from_json(kind, values, key)
    except ConfigError as error:
        said = printable(str(error)[:LONGEST_FAULT]).rstrip(".")
        raise UserError(f"{path}: {said}. Fix the file or copy the checkpoint again.") from error


def _dimension(norm_stats: dict[str, Any], otherwise: int = 7) -> int:
    """Action size by the first statistics; 7 (OpenVLA's) if there are none."""
    for name in norm_stats:
        return select_statistics(norm_stats, name)[1].q01.size
    return otherwise


def _require_dimension(described: Checkpoint, path: Path) -> None:
    """Raise UserError where the statistics in use are of another size than the actions."""
    key = described.unnorm_key
    if not described.norm_stats or (key is None and len(described.norm_stats) > 1):
        return
    try:
        found, statistics = select_statistics(described.norm_stats, key)
        others = [
            select_statistics(described.norm_stats, name)[1] for name in described.unnorm_keys
        ]
    except UserError as error:
        raise UserError(f"{path}: unnorm_key: {error}") from error
    if max(one.q01.size for one in (statistics, *others)) != described.action_dim:
        raise UserError(
            f"{path} says that actions have {described.action_dim} numbers, but the statistics of {shown(found)} have "
            f"{statistics.q01.size}: one of them belongs to another checkpoint"
        )


def write_checkpoint_config(folder: Path, checkpoint: Checkpoint) -> None:
    """Write config.json, dataset_statistics.json and preprocessor_config.json in the official layout."""
    model = checkpoint.model
    language = model.language
    official = {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla" if checkpoint.fast is None else FAST_MODEL_TYPE,
        "image_sizes": [model.image_size, model.image_size],
        "n_action_bins": model.action_bins,
        "pad_to_multiple_of": language.padded_vocab - language.text_vocab,
        "pad_token_id": language.pad_token,
        "use_fused_vision_backbone": True,
        "text_config": {
            "model_type": "llama",
            "hidden_size": language.hidden,
            "intermediate_size": language.mlp_width,
            "num_hidden_layers": language.layers,
            "num_attention_heads": language.heads,
            "num_key_value_heads": language.heads,
            "vocab_size": language.padded_vocab,
            "rms_norm_eps": language.rms_norm_eps,
            "rope_theta": language.rope_theta,
            "max_position_embeddings": language.max_positions,
            "pad_token_id": language.pad_token,
        },
    }
    written: dict[str, Any] = {**_fields(checkpoint), "fast": _write_fast(folder, checkpoint)}
    own = OwnSection(**written)
    extra = dict(checkpoint.extra)
    if checkpoint.fast is not None:  # what its official file says of these is not so any more
        extra |= {key: official[key] for key in ("model_type", "n_action_bins")}
    content = {
        **official,
        **extra,
        # datasets of the pretraining stay named here, for readers that look into config.json alone
        "norm_stats": {**checkpoint.extra.get("norm_stats", {}), **checkpoint.norm_stats},
        "vla_rl": {"format": FORMAT, **_said(own)},
    }
    write_json(folder / CONFIG_FILE, content)
    write_json(folder / STATISTICS_FILE, checkpoint.norm_stats)
    for name, companion in checkpoint.files.items():
        (folder / name).write_bytes(companion)
    if PREPROCESSOR_FILE in checkpoint.files:
        return
    size = model.image_size
    write_json(
        folder / PREPROCESSOR_FILE,
        {
            "image_processor_type": "PrismaticImageProcessor",
            "image_resize_strategy": "resize-naive",
            "input_sizes": [[3, size, size]] * 2,
            "interpolations": ["bicubic"] * 2,
            "means": [model.dino.mean, model.siglip.mean],
            "stds": [model.dino.std, model.siglip.std],
            "use_fused_vision_backbone": True,
        },
    )
