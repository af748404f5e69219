"""Tensors in safetensors files, read one at a time and written in shards.

Headers say everything but the values, so a checkpoint is checked in full before the first tensor is read. Values
are read into fresh memory, not mapped: pages of a mapped file count as the process's own while they are touched,
and a checkpoint would take twice its size while it is loaded.

Format: https://github.com/huggingface/safetensors (8 bytes of header length, JSON header, data).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save_file
from torch import Tensor

from vla_rl.config.errors import UserError
from vla_rl.runtime.files import read_json

MODEL_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
"""Largest shard that is written: Hugging Face's default, 5 GB."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies, and what it is."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: Path) -> dict[str, TensorEntry]:
    """What a safetensors file holds, by name. Raises UserError if it is missing, truncated or something else."""
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
            entries = _entries(header, file, 8 + length, size)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: the checkpoint is incomplete") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): it is truncated or no safetensors file; copy it again"
        ) from None
    return entries


def _entries(header: Any, file: Path, start: int, size: int) -> dict[str, TensorEntry]:
    entries = {}
    for name, fields in header.items():
        if name == "__metadata__":
            continue
        if fields["dtype"] not in DTYPES:
            raise ValueError(f"{name} has the unknown type {fields['dtype']!r}")
        first, end = fields["data_offsets"]
        entry = TensorEntry(
            file, DTYPES[fields["dtype"]], tuple(map(int, fields["shape"])), start + first
        )
        if end - first != entry.bytes or first < 0:
            raise ValueError(f"{name} has {end - first} bytes, its shape needs {entry.bytes}")
        if start + end > size:
            raise ValueError(f"{name} ends at byte {start + end} of {size}")
        entries[name] = entry
    return entries


def has_weights(folder: Path) -> bool:
    return (folder / MODEL_FILE).is_file() or (folder / INDEX_FILE).is_file()


def model_entries(folder: Path) -> dict[str, TensorEntry]:
    """The model's tensors in one file or in shards with an index; nothing but headers is read.

    Raises UserError if there are none, a shard is missing or damaged, or the index names a tensor that its shard
    does not hold. Weights as pickle (`.bin`) are refused: reading them can run any code.
    """
    if not has_weights(folder):
        raise UserError(_no_weights(folder))
    if not (folder / INDEX_FILE).is_file():
        return read_header(folder / MODEL_FILE)
    index = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        raise UserError(f"{folder / INDEX_FILE} has no 'weight_map': the index is damaged")
    shards = sorted(set(index.values()))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder / missing[0]} is missing ({len(missing)} of {len(shards)} shards are): the checkpoint in "
            f"{folder} is incomplete; download it again, finished files are kept"
        )
    headers = {name: read_header(folder / name) for name in shards}
    for name, shard in index.items():
        if name not in headers[shard]:
            raise UserError(
                f"{folder / INDEX_FILE} says that {name} is in {shard}, which does not hold it: index and shards are "
                "of different checkpoints; copy all of one again"
            )
    return {name: headers[shard][name] for name, shard in index.items()}


def _no_weights(folder: Path) -> str:
    expected = f"No model weights ({MODEL_FILE} or {INDEX_FILE}) in {folder}"
    pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if pickled:
        return (
            f"{expected}, only {pickled[0].name}: pickle files can run any code and are not read. Convert them to "
            "safetensors, or take a checkpoint that has them"
        )
    return f"{expected}: it is no checkpoint, or an incomplete one"


def stream_tensors(entries: Mapping[str, TensorEntry]) -> Iterator[tuple[str, Tensor]]:
    """The tensors one after the other, in the order of the files, as stored and on the host.

    Raises UserError if a file ends early or cannot be read.
    """
    ordered = sorted(entries, key=lambda name: (entries[name].file, entries[name].offset))
    stream: BinaryIO | None = None
    opened: Path | None = None
    try:
        for name in ordered:
            entry = entries[name]
            if opened != entry.file:
                if stream is not None:
                    stream.close()
                stream, opened = entry.file.open("rb", buffering=0), entry.file
            assert stream is not None
            yield name, _read(stream, entry)
    except OSError as error:
        raise UserError(f"{opened} cannot be read ({error.strerror or error})") from error
    finally:
        if stream is not None:
            stream.close()


def _read(stream: BinaryIO, entry: TensorEntry) -> Tensor:
    flat = torch.empty(entry.bytes, dtype=torch.uint8)
    view = flat.numpy().data
    stream.seek(entry.offset)
    done = 0
    while done < entry.bytes:  # one read returns 2 GB at most
        got = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            raise UserError(f"{entry.file} ended early: it was truncated while it was read")
        done += got
    return flat.view(entry.dtype).view(entry.shape)


def read_tensors(files: Iterable[Path], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """All tensors of some small files, converted. Raises UserError as `read_header` does."""
    return {
        name: tensor.to(dtype)
        for file in files
        for name, tensor in stream_tensors(read_header(file))
    }


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors of any device into one file."""
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        file,
        metadata={"format": "pt"},
    )


@dataclass(frozen=True)
class Stored:
    """A tensor as it will be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def save_sharded(
    plan: Mapping[str, Stored],
    tensor_of: Callable[[str], Tensor],
    folder: Path,
    limit: int = SHARD_BYTES,
) -> list[Path]:
    """Write the tensors of `plan` in shards of at most `limit` bytes, with an index if there are several.

    `tensor_of` gives each one when its shard is written, so that no more than a shard is held at a time. A tensor
    larger than the limit gets a shard of its own. Returns the files of tensors.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, stored in plan.items():
        if shards[-1] and filled + stored.bytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += stored.bytes
    count = len(shards)
    files = [folder / f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    files = [folder / MODEL_FILE] if count == 1 else files
    for file, names in zip(files, shards, strict=True):
        save_tensors({name: tensor_of(name).to(plan[name].dtype) for name in names}, file)
    if count > 1:
        index = {
            name: file.name for file, names in zip(files, shards, strict=True) for name in names
        }
        total = sum(stored.bytes for stored in plan.values())
        content = {"metadata": {"total_size": total}, "weight_map": index}
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / INDEX_FILE).write_text(text, encoding="utf-8")
    return files
