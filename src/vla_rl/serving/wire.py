"""Frames: how an engine and its clients talk. Nothing that runs code is ever read from a socket.

    4 bytes   VLAE
    2 bytes   number of the protocol
    2 bytes   zero
    4 bytes   length of the header
    8 bytes   length of the arrays
    header    JSON: {"kind": ..., "arrays": [{"name", "dtype", "shape"}, ...], and what the kind says}
    arrays    their bytes, one behind the other, little-endian, rows first

All numbers of the first 20 bytes are big-endian. A peer of another protocol is known by them, before a header of
unknown content is read. Lengths are checked before memory is taken.
"""

from __future__ import annotations

import hashlib
import json
import math
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le, MaxLen
from torch import Tensor

from vla_rl.config.errors import UserError
from vla_rl.runtime.external import parse_json

PROTOCOL = 1
"""Counts the changes after which programs of before and after do not understand each other."""
MAGIC = b"VLAE"
MOST_HEADER_BYTES = 4 * 2**20
DTYPES = {
    "uint8": torch.uint8,
    "int64": torch.int64,
    "float16": torch.float16,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PREAMBLE = struct.Struct(">4sHHIQ")
_PIECE = 2**24  # bytes handed to the kernel at a time

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("engines talk in little-endian numbers, which this machine does not have")


class EngineError(UserError):
    """An engine could not do what it was asked to."""


class ConnectionLostError(EngineError):
    """The other end has gone, or was silent for too long."""


class ProtocolError(EngineError):
    """The other end does not speak this protocol."""


@dataclass(frozen=True)
class ArrayHead:
    """What the header says about one array."""

    name: Annotated[str, MaxLen(512)]
    dtype: Literal["uint8", "int64", "float16", "float32", "bfloat16"]
    shape: Annotated[tuple[Annotated[int, Ge(0), Le(2**40)], ...], MaxLen(8)]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Head:
    """What every header has."""

    kind: Annotated[str, MaxLen(32)]
    arrays: Annotated[tuple[ArrayHead, ...], MaxLen(100_000)] = ()


@dataclass(frozen=True)
class Message:
    """One frame. `fields` and `arrays` are not checked beyond what `Head` says: see `messages`."""

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The fields as JSON, for a schema."""
        return json.dumps(dict(self.fields))


def send(connection: socket.socket, message: Message) -> None:
    """Write one frame. ConnectionLostError where nobody takes it."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in message.arrays.items()}
    heads = [
        {"name": name, "dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape)}
        for name, tensor in tensors.items()
    ]
    header = json.dumps({**message.fields, "kind": message.kind, "arrays": heads}).encode()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    preamble = _PREAMBLE.pack(MAGIC, PROTOCOL, 0, len(header), size)
    try:
        connection.sendall(preamble + header)
        for tensor in tensors.values():
            data = raw_bytes(tensor)
            for start in range(0, len(data), _PIECE):
                connection.sendall(data[start : start + _PIECE])
    except OSError as error:
        raise _lost(error) from error


def receive(
    connection: socket.socket,
    source: str,
    most_bytes: Callable[[str], int],
) -> Message:
    """Read one frame.

    source: what errors call the other end. most_bytes: how many bytes of arrays a message of a kind may have. Raises
    ConnectionLostError at the end of the stream, ProtocolError and UserError for what does not belong there.
    """
    magic, protocol, zero, header_bytes, array_bytes = _PREAMBLE.unpack(
        _exactly(connection, _PREAMBLE.size)
    )
    if magic != MAGIC:
        raise ProtocolError(f"{source} does not speak as an engine of VLA-RL does")
    if protocol != PROTOCOL or zero:
        raise ProtocolError(
            f"{source} speaks protocol {protocol}, this program {PROTOCOL}: run the same version of VLA-RL at both ends"
        )
    if header_bytes > MOST_HEADER_BYTES:
        raise ProtocolError(f"{source} sent a header of {header_bytes} bytes")
    text = bytes(_exactly(connection, header_bytes))
    head = parse_json(text, Head, source=source, remedy="")
    size = sum(array.bytes for array in head.arrays)
    allowed = most_bytes(head.kind)
    if (
        size != array_bytes
        or size > allowed
        or len({a.name for a in head.arrays}) < len(head.arrays)
    ):
        raise ProtocolError(
            f"{source} sent {head.kind!r} with arrays of {size} bytes, announced {array_bytes}, allowed {allowed}"
        )
    fields = json.loads(text)
    for name in ("kind", "arrays"):
        fields.pop(name, None)
    arrays = {array.name: _array(connection, array) for array in head.arrays}
    return Message(head.kind, fields, arrays)


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Digest of names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {_NAMES[tensor.dtype]} {tuple(tensor.shape)}".encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes where they lie, rows first; of a tensor elsewhere than in memory a copy."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _array(connection: socket.socket, head: ArrayHead) -> Tensor:
    if not head.bytes:
        return torch.empty(head.shape, dtype=DTYPES[head.dtype])
    data = _exactly(connection, head.bytes)
    return torch.frombuffer(data, dtype=DTYPES[head.dtype]).view(head.shape)


def _exactly(connection: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view, got = memoryview(data), 0
    while got < count:
        try:
            some = connection.recv_into(view[got:], min(count - got, _PIECE))
        except OSError as error:
            raise _lost(error) from error
        if not some:
            raise ConnectionLostError("the connection was closed at the other end")
        got += some
    return data


def _lost(error: OSError) -> ConnectionLostError:
    if isinstance(error, TimeoutError):
        return ConnectionLostError("the other end was silent for too long")
    return ConnectionLostError(f"the connection is lost ({error.strerror or error})")
