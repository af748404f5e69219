"""Pictures to another size, with numpy alone."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float32, UInt8

LOBES = 3


def resize(pictures: UInt8[np.ndarray, "L H W 3"], size: int) -> UInt8[np.ndarray, "L S S 3"]:
    """Lanczos-3 resampling, antialiased where it shrinks; what overshoots 0..255 is clipped."""
    length, height, width, _ = pictures.shape
    if (height, width) == (size, size):
        return pictures
    across, down = _weights(width, size), _weights(height, size)
    result = np.empty((length, size, size, 3), dtype=np.uint8)
    for target, picture in zip(result, pictures, strict=True):
        rows = down @ picture.reshape(height, width * 3).astype(np.float32)
        wide = rows.reshape(size, width, 3).transpose(1, 0, 2).reshape(width, size * 3)
        pixels = (across @ wide).reshape(size, size, 3).transpose(1, 0, 2)
        target[:] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return result


@functools.lru_cache(maxsize=16)
def _weights(before: int, after: int) -> Float32[np.ndarray, "after before"]:
    """Row i holds the shares of the old pixels in new pixel i; each row sums to 1."""
    scale = max(before / after, 1.0)
    centres = (np.arange(after) + 0.5) * before / after
    x = (np.arange(before) + 0.5 - centres[:, None]) / scale
    kernel = np.where(np.abs(x) < LOBES, np.sinc(x) * np.sinc(x / LOBES), 0.0)
    return (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)
