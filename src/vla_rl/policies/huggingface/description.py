"""What a folder says of a policy beyond its model and its processor: our file vla_rl.json beside them.

    config.json, model.safetensors, tokenizer.json, ...   the model's own format, as transformers writes it
    vla_rl.json                                           which ids are actions, how the model is asked
    dataset_statistics.json                               which actions they stand for
    critic.safetensors                                    the value function, if there is one

transformers and vLLM read the first line and look at nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MaxLen

from vla_rl.config.errors import UserError
from vla_rl.config.policy import CriticConfig, LoraConfig
from vla_rl.config.serialize import to_json
from vla_rl.policies.statistics_files import STATISTICS_FILE, read_statistics
from vla_rl.runtime.external import read_bytes, read_json
from vla_rl.runtime.files import write_json

SECTION_FILE = "vla_rl.json"
CRITIC_FILE = "critic.safetensors"
FAMILY = "huggingface"
FORMAT = 1
MOST_BYTES = 64 * 2**20
PROCESSOR_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "spiece.model", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "chat_template.json", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
"""Small files of a model that go along unchanged."""

_Id = Annotated[int, Ge(0), Le(2**24)]
_Name = Annotated[str, MaxLen(4096)]


@dataclass(frozen=True)
class Section:
    """The content of vla_rl.json."""

    family: Literal["huggingface"]
    action_dim: Annotated[int, Ge(1), Le(1024)]
    action_chunk: Annotated[int, Ge(1), Le(1024)]
    action_ids: Annotated[tuple[_Id, ...], MaxLen(65536)]
    """Vocabulary id of each bin, rising with the action."""
    prompt: _Name
    history: Annotated[int, Ge(0), Le(1024)] = 0
    gripper: Literal["as-is", "openvla"] = "as-is"
    unnorm_key: _Name | None = None
    unnorm_keys: tuple[_Name, ...] = ()
    critic: CriticConfig | None = None
    lora: LoraConfig | None = None
    base_digest: _Name | None = None
    format: Annotated[int, Ge(1)] = FORMAT


@dataclass(frozen=True)
class Description:
    """What is known of a policy, weights aside. Without `norm_stats` it is a model that has not learned to act."""

    prompt: str
    action_ids: tuple[int, ...]
    action_dim: int = 0
    action_chunk: int = 1
    gripper: Literal["as-is", "openvla"] = "as-is"
    norm_stats: dict[str, Any] = field(default_factory=dict)
    unnorm_key: str | None = None
    unnorm_keys: tuple[str, ...] = ()
    critic: CriticConfig | None = None
    lora: LoraConfig | None = None
    base: str | None = None
    """Folder or hub id of the frozen model that the adapters are for."""
    base_digest: str | None = None
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    """The processor's files, by name."""
    own: bool = True
    """Its statistics are those it was fine-tuned on, see `suite_statistics`."""


def read_section(folder: Path) -> Section | None:
    """The folder's vla_rl.json; None where there is none. Raises UserError for one of another kind or version."""
    path = folder / SECTION_FILE
    if not path.is_file():
        return None
    section = read_json(path, Section, inside=folder)
    if section.format != FORMAT:
        raise UserError(
            f"{path} has format {section.format}, this version reads {FORMAT}: update vla-rl"
        )
    if section.history:
        raise UserError(
            f"{path} asks for a history of {section.history} turns: policies here see the present image alone "
            "(history 0)"
        )
    if len(section.action_ids) < 2 or len(set(section.action_ids)) != len(section.action_ids):
        raise UserError(f"{path}: expected at least two action ids, each once")
    return section


def read_norm_stats(folder: Path) -> dict[str, Any]:
    """The folder's dataset_statistics.json. Raises UserError where it is missing or damaged."""
    return read_statistics(folder / STATISTICS_FILE)


def processor_files(folder: Path) -> dict[str, bytes]:
    """The small files of a model that go along with it."""
    return {
        name: read_bytes(folder / name, inside=folder, max_bytes=MOST_BYTES)
        for name in PROCESSOR_FILES
        if (folder / name).is_file()
    }


def write_description(folder: Path, description: Description) -> None:
    """Write vla_rl.json, dataset_statistics.json and, of a whole model, its processor's files."""
    if description.lora is None:
        for name, content in description.files.items():
            (folder / name).write_bytes(content)
    section = Section(
        "huggingface", description.action_dim, description.action_chunk, description.action_ids, description.prompt,
        0, description.gripper, description.unnorm_key, description.unnorm_keys, description.critic,
        description.lora, description.base_digest,
    )  # fmt: skip
    write_json(folder / SECTION_FILE, to_json(section))
    write_json(folder / STATISTICS_FILE, description.norm_stats)
