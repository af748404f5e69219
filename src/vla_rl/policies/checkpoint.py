"""Weights of a policy as safetensors, in the layout of official OpenVLA checkpoints.

    config.json, dataset_statistics.json, preprocessor_config.json   see hf_config.py
    tokenizer.json                                                    the text tokenizer
    model.safetensors, or model.safetensors.index.json and shards     the weights (only sharded files are read)
    adapter_model.safetensors                                         LoRA adapters, if any
    critic.safetensors                                                the value function

Nothing here writes atomically: the caller saves into a temporary folder and renames it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_rl.config.errors import UserError
from vla_rl.config.model import ModelConfig
from vla_rl.policies.hf_config import read_json
from vla_rl.policies.openvla import OpenVLA

MODEL_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CRITIC_FILE = "critic.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
TOKENIZER_FILE = "tokenizer.json"


def has_weights(folder: Path) -> bool:
    return (folder / MODEL_FILE).is_file() or (folder / INDEX_FILE).is_file()


def weight_files(folder: Path) -> list[Path]:
    """The file, or the shards, that hold the model's weights. Raises UserError if any is missing."""
    if (folder / INDEX_FILE).is_file():
        index = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(index, dict):
            raise UserError(f"{folder / INDEX_FILE} has no 'weight_map': the index is damaged")
        files = [folder / name for name in sorted(set(index.values()))]
    else:
        files = [folder / MODEL_FILE]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing: the checkpoint in {folder} is incomplete")
    return files


def read_tensors(
    files: Iterable[Path], dtype: torch.dtype | None = None, device: torch.device | None = None
) -> dict[str, Tensor]:
    """Read all tensors of some files, converted. Raises UserError if a file is truncated or not safetensors."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (no mapping: only `keys` is there)
                    tensors[name] = opened.get_tensor(name).to(device=device, dtype=dtype)
        except FileNotFoundError:
            raise UserError(f"{file} is missing: the checkpoint is incomplete") from None
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file} cannot be read ({error}): it is truncated or no safetensors file; copy it again"
            ) from None
    return tensors


def check_fit(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: Path, what: str
) -> None:
    """Raise UserError unless names and shapes are the wanted ones; the message says which are not."""
    problems = []
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    for title, names in (("missing", missing), ("unknown", unknown), ("wrong shape", shapes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{title}: {', '.join(names[:3])}{more}")
    if problems:
        raise UserError(
            f"{source} does not hold {what}: {'; '.join(problems)}. It belongs to another configuration"
        )


def load_model(
    folder: Path,
    config: ModelConfig,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> OpenVLA:
    """Build the model from a checkpoint's weights, without ever holding random ones.

    Raises UserError for a missing or truncated file, and for weights that do not fit `config`.
    """
    with torch.device("meta"):
        model = OpenVLA(config)
    tensors = read_tensors(weight_files(folder), dtype, torch.device(device))
    # files written by old versions of transformers carry these derived tables
    tensors = {k: v for k, v in tensors.items() if not k.endswith("rotary_emb.inv_freq")}
    check_fit(tensors, model.state_dict(), folder, f"a model {config.name!r}")
    model.load_state_dict(tensors, assign=True)
    model.freeze_unused()
    return model


def load_into(module: nn.Module, file: Path, what: str) -> None:
    """Load a small module (a critic) in place. Raises UserError as `load_model` does."""
    tensors = read_tensors([file])
    check_fit(tensors, module.state_dict(), file, what)
    module.load_state_dict(tensors)


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        file,
        metadata={"format": "pt"},
    )
