"""Tensors in safetensors files, read one at a time and written in shards.

Headers say everything but the values, so a checkpoint is checked in full before the first tensor is read. Values
are read into fresh memory, not mapped: pages of a mapped file count as the process's own while they are touched,
and a checkpoint would take twice its size while it is loaded.

What is read here are weights, and files come from anywhere: only floating-point types are taken, every value must be
finite (looked at while it is read, 17 GB a second), headers are bounded, and shards lie in their folder.

Format: https://github.com/huggingface/safetensors (8 bytes of header length, JSON header, data).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import torch
from annotated_types import MinLen
from safetensors.torch import save_file
from torch import Tensor

from vla_rl.config.errors import UserError
from vla_rl.runtime.external import parse_json, path_inside, printable, read_json, shown

MODEL_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
"""Largest shard that is written: Hugging Face's default, 5 GB."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
MOST_HEADER_BYTES = 16 * 2**20
"""The header of OpenVLA-7B, 982 tensors in all, takes 0.1 MB."""
MOST_AXES = 8
SHOWN_NAME = 120
SAMPLED = 16
"""Values of a tensor by which it is told from another."""
FETCH_AGAIN = "Copy or download the checkpoint again."
COPY_AGAIN = "it is truncated or no safetensors file; copy it again"

# exponents of all ones are infinity and NaN
_EXPONENT = {
    torch.float32: (np.uint32, 0x7F80_0000),
    torch.float16: (np.uint16, 0x7C00),
    torch.bfloat16: (np.uint16, 0x7F80),
}
_CHUNK = 2**19  # bytes; what is looked at stays in the cache


@dataclass(frozen=True)
class _ShardIndex:
    weight_map: Annotated[dict[str, str], MinLen(1)]


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
    """What a safetensors file holds, by name. Raises UserError if it is missing, truncated or something else.

    Integers are refused: they are quantised weights, which would have to be scaled, or no weights at all.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing: the checkpoint is incomplete")
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= size - 8:
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            if length > MOST_HEADER_BYTES:
                raise ValueError(
                    f"a header of {length} bytes, expected {MOST_HEADER_BYTES} at most"
                )
            header = parse_json(stream.read(length), source=file, remedy=COPY_AGAIN)
            header.pop("__metadata__", None)
            entries = {
                name: _entry(name, fields, file, 8 + length) for name, fields in header.items()
            }
        _check_layout(entries, 8 + length, size)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): {COPY_AGAIN}") from None
    return entries


def _entry(name: str, fields: Any, file: Path, start: int) -> TensorEntry:
    """One entry of a header whose data begin at byte `start`."""
    fields = fields if isinstance(fields, dict) else {}
    kind, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (_naturals(shape) and len(shape) <= MOST_AXES and all(shape)):
        raise ValueError(f"{tensor_name(name)} has the shape {shown(shape)}")
    if not (_naturals(offsets) and len(offsets) == 2):
        raise ValueError(f"{tensor_name(name)} has the offsets {shown(offsets)}")
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise UserError(
            f"{file}: {tensor_name(name)} is of type {shown(kind)}, expected weights of type {', '.join(DTYPES)}: "
            "quantised weights are not supported, take the checkpoint in bfloat16 or float32"
        )
    entry = TensorEntry(file, dtype, tuple(shape), start + offsets[0])
    if offsets[1] - offsets[0] != entry.bytes:
        raise ValueError(
            f"{tensor_name(name)} has {offsets[1] - offsets[0]} bytes, its shape needs {entry.bytes}"
        )
    return entry


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**62 for v in values)


def _check_layout(entries: Mapping[str, TensorEntry], start: int, size: int) -> None:
    """Tensors lie one behind the other and fill the file, as the format demands."""
    at, before = start, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].bytes)):
        if entry.offset != at:
            raise ValueError(f"{tensor_name(name)} does not begin where {before} ends")
        at, before = at + entry.bytes, tensor_name(name)
        if at > size:
            raise ValueError(f"{before} ends at byte {at} of {size}")
    if at != size:
        raise ValueError(f"{size - at} bytes behind the last tensor")


def tensor_name(name: str) -> str:
    """A tensor's name from a file, fit for a line of text."""
    return printable(name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}...")


def has_weights(folder: Path) -> bool:
    # not Path.is_file, which raises for names that are too long
    return any(os.path.isfile(folder / name) for name in (MODEL_FILE, INDEX_FILE))


def model_entries(folder: Path) -> dict[str, TensorEntry]:
    """The model's tensors in one file or in shards with an index; nothing but headers is read.

    Raises UserError if there are none, a shard is missing or damaged, or the index names a tensor that its shard
    does not hold. Weights as pickle (`.bin`) are refused: reading them can run any code.
    """
    if not has_weights(folder):
        raise UserError(_no_weights(folder))
    if not (folder / INDEX_FILE).is_file():
        return read_header(path_inside(folder, MODEL_FILE, source=folder))
    index_file = folder / INDEX_FILE
    index = read_json(index_file, _ShardIndex, inside=folder, remedy=FETCH_AGAIN).weight_map
    shards = sorted(set(index.values()))
    if (folder / MODEL_FILE).is_file() and shards != [MODEL_FILE]:
        raise UserError(
            f"{folder} holds two sets of weights, {MODEL_FILE} and the shards of {INDEX_FILE} ({shards[0]}, ...): "
            "remove the one that is not meant"
        )
    paths = {
        name: path_inside(folder, name, source=index_file, key="weight_map") for name in shards
    }
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        raise UserError(
            f"{folder / missing[0]} is missing ({len(missing)} of {len(shards)} shards are): the checkpoint in "
            f"{folder} is incomplete; download it again, finished files are kept"
        )
    headers = {name: read_header(path) for name, path in paths.items()}
    for name, shard in index.items():
        if name not in headers[shard]:
            raise UserError(
                f"{index_file} says that {tensor_name(name)} is in {shard}, which does not hold it: index and "
                "shards are of different checkpoints; copy all of one again"
            )
    for shard, header in headers.items():
        unnamed = [name for name in header if index.get(name) != shard]
        if unnamed:
            raise UserError(
                f"{paths[shard]} holds {tensor_name(unnamed[0])}, which {INDEX_FILE} does not place there: "
                "index and shards are of different checkpoints; copy all of one again"
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

    Raises UserError if a file ends early or cannot be read, and for a weight that is NaN or infinite.
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
            tensor = _read(stream, entry)
            if not all_finite(tensor):
                raise UserError(
                    f"{entry.file}: {tensor_name(name)} holds NaN or infinite weights: the run that wrote it "
                    "diverged, or the file is damaged; take an earlier checkpoint or copy it again"
                )
            yield name, tensor
    except OSError as error:
        raise UserError(f"{opened} cannot be read ({error.strerror or error})") from error
    finally:
        if stream is not None:
            stream.close()


def all_finite(tensor: Tensor) -> bool:
    """Whether no number of a contiguous tensor on the host is NaN or infinite, by its exponent's bits."""
    if tensor.dtype == torch.float64:
        tensor = tensor.float()  # what it becomes in any model
    kind, ones = _EXPONENT[tensor.dtype]
    bits = tensor.detach().reshape(-1).view(torch.uint8).numpy().view(kind)
    step = _CHUNK // bits.itemsize
    return all((bits[i : i + step] & kind(ones)).max() < ones for i in range(0, len(bits), step))


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


def sample_digest(entries: Mapping[str, TensorEntry]) -> str:
    """Tells one set of weights from another: a hash of names, shapes and the first values of each tensor.

    Values count as float32, so that copies in another precision that holds them exactly are the same. Reads a few bytes
    of each tensor; raises UserError as `stream_tensors` does.
    """
    first = {
        name: replace(entry, shape=(min(SAMPLED, math.prod(entry.shape)),))
        for name, entry in entries.items()
    }
    digest = hashlib.sha256()
    for name, values in sorted(stream_tensors(first), key=lambda item: item[0]):
        digest.update(f"{name} {entries[name].shape}".encode())
        digest.update(values.float().numpy().tobytes())
    return digest.hexdigest()


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
