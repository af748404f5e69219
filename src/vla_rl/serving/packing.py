"""Arrays in msgpack, as openpi and vla-evaluation-harness write them. Nothing that is read can run code.

    openpi      {b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [2, 3]}; b"__npgeneric__" for numbers
    vla-eval    the same with keys of text; pictures as {"__image__": True, "format": "png", "data": bytes, "shape": []}

Sources: openpi-client 0.1.2, msgpack_numpy.py; vla-eval 0.8.0, protocol/numpy_codec.py and image_codec.py. This module
needs numpy and msgpack alone (and Pillow, for pictures that come compressed), so that programs of other environments
can use it too.
"""

from __future__ import annotations

import io
import math
import re
from typing import Any, Literal

import msgpack
import numpy as np

MOST_BYTES = 64 * 2**20
"""Of one frame. Two pictures of 1024 x 1024 take 6 MB."""
MOST_PIXELS = 4096
"""Along the side of a picture; a small file can claim to be a huge one."""
_MOST_AXES = 8
_DTYPE = re.compile(r"[<>|=]?([biufUS])[0-9]{1,9}")
_REFUSED = "VOc"  # structures, objects (which only pickle could write) and complex numbers

KeyKind = Literal["bytes", "text"]


class WireError(ValueError):
    """What came through a door is not what belongs there."""


def pack(message: Any, keys: KeyKind = "bytes") -> bytes:
    """One frame. `keys`: of the dictionaries that stand for arrays, bytes for openpi and text for vla-eval.

    Raises WireError for an array of structures, objects or complex numbers, and for what msgpack does not know.
    """

    def named(name: str) -> bytes | str:
        return name.encode() if keys == "bytes" else name

    def as_map(value: Any) -> Any:
        if not isinstance(value, (np.ndarray, np.generic)):
            raise WireError(f"cannot send a {type(value).__name__}")
        if value.dtype.kind in _REFUSED:
            raise WireError(f"cannot send an array of type {value.dtype}")
        if isinstance(value, np.generic):
            if keys == "text":  # vla-eval sends plain numbers
                return value.item()
            head = {"__npgeneric__": True, "data": value.item(), "dtype": value.dtype.str}
        else:
            head = {
                "__ndarray__": True,
                "data": value.tobytes(),
                "dtype": value.dtype.str,
                "shape": list(value.shape),
            }
        return {named(name): part for name, part in head.items()}

    try:
        return bytes(msgpack.packb(message, default=as_map) or b"")
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise WireError(f"cannot be sent: {error}") from error


def unpack(frame: bytes) -> Any:
    """What one frame says, arrays as arrays. WireError for anything that is damaged or does not belong there."""
    try:
        return msgpack.unpackb(frame, object_hook=_from_map, max_ext_len=64)
    except WireError:
        raise
    except Exception as error:  # the unpacker has a dozen kinds for damage
        reason = str(error) or type(error).__name__
        raise WireError(f"not msgpack ({len(frame)} bytes): {reason}") from error


def in_words(value: Any) -> str:
    """A short phrase for what came, for error messages."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and shape {value.shape}"
    if isinstance(value, dict):
        names = ", ".join(repr(name)[:40] for name in list(value)[:12])
        return f"a map with the keys {names}" if names else "an empty map"
    shown = repr(value)
    return f"{type(value).__name__} {shown[:60]}{'...' if len(shown) > 60 else ''}"


def _from_map(found: dict[Any, Any]) -> Any:
    for name, read in (
        ("__ndarray__", _array),
        ("__npgeneric__", _scalar),
        ("__image__", _picture),
    ):
        for key in (name, name.encode()):
            if key in found:
                return read({_text(k): value for k, value in found.items()})
    return found


def _text(key: Any) -> Any:
    return key.decode(errors="replace") if isinstance(key, bytes) else key


def _dtype(found: dict[str, Any]) -> np.dtype[Any]:
    name = found.get("dtype")
    if isinstance(name, bytes):
        name = name.decode(errors="replace")
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise WireError(f"an array has the type {in_words(name)}: expected numbers, as '<f4'")
    try:
        return np.dtype(name)
    except TypeError as error:
        raise WireError(f"an array has the type {name!r}, which there is not") from error


def _shape(found: dict[str, Any]) -> tuple[int, ...]:
    shape = found.get("shape")
    good = isinstance(shape, (list, tuple)) and len(shape) <= _MOST_AXES
    if not good or any(type(n) is not int or not 0 <= n <= MOST_BYTES for n in shape or ()):
        raise WireError(f"an array has the shape {in_words(shape)}")
    return tuple(shape or ())


def _array(found: dict[str, Any]) -> np.ndarray:
    dtype, shape, data = _dtype(found), _shape(found), found.get("data")
    wanted = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != wanted:
        length = len(data) if isinstance(data, bytes) else "no"
        raise WireError(
            f"an array of {dtype} and shape {shape} takes {wanted} bytes, {length} bytes came"
        )
    if not wanted:
        return np.zeros(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _scalar(found: dict[str, Any]) -> Any:
    dtype, value = _dtype(found), found.get("data")
    if not isinstance(value, (bool, int, float, str, bytes)):
        raise WireError(f"a number of type {dtype} came as {in_words(value)}")
    try:
        return dtype.type(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"{in_words(value)} is no {dtype}") from error


def _picture(found: dict[str, Any]) -> np.ndarray:
    kind, data = found.get("format"), found.get("data")
    if kind == "raw":
        return _array(found)
    if kind not in ("png", "jpeg") or not isinstance(data, bytes):
        raise WireError(f"a picture came as {in_words(kind)}: expected png, jpeg or raw")
    try:
        from PIL import Image
    except ImportError as error:
        raise WireError("pictures came compressed, and Pillow is not installed here") from error
    try:
        with Image.open(io.BytesIO(data), formats=(kind.upper(),)) as picture:
            if max(picture.size) > MOST_PIXELS:
                raise WireError(f"a picture has {picture.size[0]} x {picture.size[1]} pixels")
            return np.array(picture)
    except WireError:
        raise
    except Exception as error:  # Pillow has many kinds for damage
        raise WireError(f"a picture is no {kind}: {error}") from error
