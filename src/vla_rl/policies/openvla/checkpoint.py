"""The model of a policy on disk, in the layout of official OpenVLA checkpoints.

    config.json, dataset_statistics.json, preprocessor_config.json   see config_files.py
    tokenizer.json                                                    the text tokenizer
    model.safetensors, or model.safetensors.index.json and shards     the weights
    adapter_config.json, adapter_model.safetensors                    LoRA adapters, if any, in PEFT's format
    critic.safetensors                                                the value function

Nothing here writes atomically: the caller saves into a temporary folder and renames it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vla_rl.config.errors import UserError
from vla_rl.config.openvla import ModelConfig
from vla_rl.policies.openvla.model import OpenVLA
from vla_rl.policies.peft_files import StoredAdapter
from vla_rl.policies.safetensors_files import (
    SHARD_BYTES,
    Stored,
    TensorEntry,
    model_entries,
    read_tensors,
    save_sharded,
    stream_tensors,
    tensor_name,
)
from vla_rl.policies.shapes import shapes_alone

CRITIC_FILE = "critic.safetensors"
TOKENIZER_FILE = "tokenizer.json"


@runtime_checkable
class Shaped(Protocol):
    """A tensor, or what a file's header says about one."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def check_fit(
    found: Mapping[str, Shaped], wanted: Mapping[str, Tensor], source: Path, what: str
) -> None:
    """Raise UserError unless names and shapes are the wanted ones; the message says which are not."""
    problems = []
    missing = [name for name in wanted if name not in found]
    unknown = [tensor_name(name) for name in found if name not in wanted]
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and tuple(found[name].shape) != tuple(tensor.shape)
    ]
    for title, names in (("missing", missing), ("unknown", unknown), ("wrong shape", shapes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{title}: {', '.join(names[:3])}{more}")
    if problems:
        raise UserError(
            f"{source} does not hold {what}: {'; '.join(problems)}. It belongs to another configuration"
        )


def weights_of(folder: Path) -> dict[str, TensorEntry]:
    """What the checkpoint's files say about its weights, see `model_entries`."""
    # files written by old versions of transformers carry these derived tables
    entries = model_entries(folder)
    return {k: entry for k, entry in entries.items() if not k.endswith("rotary_emb.inv_freq")}


def check_weights(
    folder: Path,
    config: ModelConfig,
    adapters: Iterable[StoredAdapter] = (),
    network: type[OpenVLA] = OpenVLA,
) -> tuple[OpenVLA, dict[str, TensorEntry]]:
    """The model without memory for its weights, and the files' entries, which fit it and the adapters.

    Reads headers alone. Raises UserError for what `load_model` refuses before it reads any weight.
    """
    entries = weights_of(folder)
    with shapes_alone():
        model = network(config)
    check_fit(entries, model.state_dict(), folder, f"a model {config.name!r}")
    for adapter in adapters:
        adapter.check(entries)
    return model, entries


def load_model(
    folder: Path,
    config: ModelConfig,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    adapters: Iterable[StoredAdapter] = (),
    network: type[OpenVLA] = OpenVLA,
) -> OpenVLA:
    """Build the model from a checkpoint's weights, one tensor at a time, without ever holding random ones.

    On the host there is never more than the finished model and one tensor; for a model on a GPU one tensor alone.
    `adapters` are merged on the way, in float32. network: the class of model to build. Raises UserError for a missing
    or truncated file, and for weights that do not fit `config`, before any is read.
    """
    adapters = list(adapters)
    model, entries = check_weights(folder, config, adapters, network)
    for name, tensor in stream_tensors(entries):
        weight = tensor.to(device)
        for adapter in adapters:
            weight = adapter.merge(name, weight)
        _assign(model, name, weight.to(dtype))
        del tensor, weight  # else they would live on while the next one is read
    model.freeze_unused()
    return model


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor))


def load_into(module: nn.Module, file: Path, what: str) -> None:
    """Load a small module (a critic) in place. Raises UserError as `load_model` does."""
    tensors = read_tensors([file])
    check_fit(tensors, module.state_dict(), file, what)
    module.load_state_dict(tensors)


def save_model(
    state: Mapping[str, Tensor],
    folder: Path,
    stored: Mapping[str, torch.dtype],
    limit: int = SHARD_BYTES,
    whole: Callable[[Tensor], Tensor] = Tensor.detach,
) -> list[Path]:
    """Write a model's tensors, each in the precision it was stored in where that holds it exactly.

    A model that was stored in bfloat16 and computed with in float32 thus gives the same bytes again, and a weight
    that has been trained keeps its float32. whole: makes a tensor whole, of which this process holds a part. Returns
    the files.
    """
    plan = {
        name: Stored(_exact_dtype(tensor, stored.get(name), whole), tuple(tensor.shape))
        for name, tensor in state.items()
    }
    return save_sharded(plan, lambda name: whole(state[name]), folder, limit)


def _exact_dtype(
    tensor: Tensor, stored: torch.dtype | None, whole: Callable[[Tensor], Tensor]
) -> torch.dtype:
    if stored is None or stored == tensor.dtype:
        return tensor.dtype
    tensor = whole(tensor)
    # an exact float32 copy of bfloat16 values is stored as those; a bfloat16 copy of others stays what it is
    same = torch.equal(tensor.to(stored).to(tensor.dtype), tensor)
    return stored if same and stored.itemsize <= tensor.dtype.itemsize else tensor.dtype
