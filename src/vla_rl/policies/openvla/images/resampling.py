"""The filters of OpenVLA's image pipeline in TensorFlow's float32 arithmetic: lanczos3 and the bilinear centre crop."""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

LANCZOS_RADIUS = np.float32(3)


class Taps(NamedTuple):
    """A one-dimensional filter: output o is the sum over k of weights[o, k] * input[first[o] + k]."""

    first: Int64[np.ndarray, " out"]
    weights: Float32[np.ndarray, "out taps"]

    def dense(self, size: int) -> Float32[np.ndarray, "out size"]:
        """The same as a matrix."""
        matrix = np.zeros((len(self.first), size + self.weights.shape[1]), np.float32)
        for row, first, weights in zip(matrix, self.first, self.weights, strict=True):
            row[first : first + len(weights)] = weights
        return matrix[:, :size]


class Blend(NamedTuple):
    """Linear interpolation: output o is a + (b - a) * fraction[o] with a, b = input[low[o]], input[high[o]]."""

    low: Int64[np.ndarray, " out"]
    high: Int64[np.ndarray, " out"]
    fraction: Float32[np.ndarray, " out"]


def resize_lanczos3(
    images: Float32[Tensor, "N 3 H W"], size: int
) -> Float32[Tensor, "N 3 size size"]:
    """Resize as tf.image.resize(lanczos3, antialias=True), then round half to even and clip to 0..255."""
    return resize_lanczos3_unrounded(images, size).round_().clamp_(0, 255)


def resize_lanczos3_unrounded(
    images: Float32[Tensor, "N 3 H W"], size: int
) -> Float32[Tensor, "N 3 size size"]:
    """Rows first, then columns, as TensorFlow."""
    height, width = images.shape[-2:]
    tall = _filter_rows(images, lanczos3_taps(height, size))
    turned = tall.transpose(-1, -2).contiguous()  # so that the second pass, too, reads whole rows
    return _filter_rows(turned, lanczos3_taps(width, size)).transpose(-1, -2).contiguous()


def _filter_rows(x: Float32[Tensor, "N 3 H W"], taps: Taps) -> Float32[Tensor, "N 3 size W"]:
    first = torch.from_numpy(taps.first).to(x.device)
    weights = torch.from_numpy(taps.weights).to(x.device)
    last = x.shape[-2] - 1
    total = x.index_select(-2, first).mul_(weights[:, :1])
    for k in range(1, weights.shape[1]):
        # not addcmul: it rounds once where TensorFlow rounds twice
        total += x.index_select(-2, (first + k).clamp_(max=last)).mul_(weights[:, k, None])
    return total


@functools.cache
def lanczos3_taps(size_in: int, size_out: int) -> Taps:
    """The filter of TensorFlow's ScaleAndTranslate with antialiasing, in its float32 arithmetic.

    The kernel 3 sin(pi x) sin(pi x / 3) / (pi x)^2, stretched by size_in / size_out when that is above 1, sampled at
    pixel centres and divided by its sum.
    """
    single = np.float32
    step = single(1.0 / float(single(size_out) / single(size_in)))
    stretch = max(step, single(1))
    centre = (np.arange(size_out, dtype=np.float32) + single(0.5)) * step
    reach = LANCZOS_RADIUS * stretch
    low = np.ceil(centre - reach - single(0.5)).astype(np.int64).clip(0, size_in - 1)
    high = np.floor(centre + reach - single(0.5)).astype(np.int64).clip(0, size_in - 1)
    position = low[:, None] + np.arange(int((high - low).max()) + 1)
    distance = np.abs(
        (position.astype(np.float32) + single(0.5) - centre[:, None]) * (single(1) / stretch)
    )
    weights = _lanczos3(distance)
    weights[position > high[:, None]] = 0
    total = np.cumsum(weights, 1)[:, -1:]  # one after the other in float32, as np.sum does not
    return Taps(low, weights * (single(1) / total))


def _lanczos3(x: Float32[np.ndarray, "out taps"]) -> Float32[np.ndarray, "out taps"]:
    pi = np.float32(3.14159265359)
    safe = np.maximum(x, np.float32(1e-3))
    kernel = LANCZOS_RADIUS * _sine(pi * safe) * _sine(pi * safe / LANCZOS_RADIUS)
    kernel = kernel / (pi * pi * safe * safe)
    kernel[x <= np.float32(1e-3)] = 1
    kernel[x > LANCZOS_RADIUS] = 0
    return kernel


def _sine(x: Float32[np.ndarray, "out taps"]) -> Float32[np.ndarray, "out taps"]:
    """The C library's sinf, which TensorFlow calls: numpy's float32 sine differs in the last bit here and there.

    Where there is no such library the nearest float32 is taken, and about one value in 10^5 of a resized image
    then differs by one grey level.
    """
    try:
        sinf = ctypes.CDLL(None).sinf
    except (OSError, TypeError, AttributeError):
        return np.sin(x.astype(np.float64)).astype(np.float32)
    sinf.restype, sinf.argtypes = ctypes.c_float, [ctypes.c_float]
    return np.array([sinf(value) for value in x.ravel().tolist()], np.float32).reshape(x.shape)


def center_crop(images: Float32[Tensor, "N 3 H W"], area: float) -> Float32[Tensor, "N 3 H W"]:
    """Cut out the middle `area` of the image and stretch it bilinearly to the full size, as integers 0..255.

    tf.image.crop_and_resize on values in [0, 1], then convert_image_dtype to uint8, which is floor(255.5 x).
    """
    return center_crop_unrounded(images, area).clamp_(0, 1).mul_(255.5).floor_()


def center_crop_unrounded(
    images: Float32[Tensor, "N 3 H W"], area: float
) -> Float32[Tensor, "N 3 H W"]:
    """Values in [0, 1], up to rounding."""
    height, width = images.shape[-2:]
    turned = (images * (1 / 255)).transpose(-1, -2).contiguous()
    blended = _blend_rows(turned, crop_blend(width, area))
    return _blend_rows(blended.transpose(-1, -2).contiguous(), crop_blend(height, area))


def _blend_rows(x: Float32[Tensor, "N 3 H W"], blend: Blend) -> Float32[Tensor, "N 3 H W"]:
    low, high, fraction = (torch.from_numpy(array).to(x.device) for array in blend)
    near = x.index_select(-2, low)
    return x.index_select(-2, high).sub_(near).mul_(fraction[:, None]).add_(near)


@functools.cache
def crop_blend(size: int, area: float) -> Blend:
    """Where each output row (or column) of the centre crop lies in the input, in TensorFlow's float32 arithmetic."""
    single = np.float32
    side = np.sqrt(single(area))
    start = (single(1) - side) / single(2)
    end = start + side
    step = (end - start) * single(size - 1) / single(size - 1)
    position = start * single(size - 1) + np.arange(size, dtype=np.float32) * step
    low = np.floor(position)
    high = np.ceil(position)
    return Blend(low.astype(np.int64), high.astype(np.int64), position - low)
