"""From a camera's frame to the picture a model sees: OpenVLA's protocol for LIBERO, without TensorFlow.

    rotate by 180 degrees -> JPEG round trip -> lanczos3 resize -> centre crop -> normalisation

Pictures are float32 planes [N, 3, H, W] that hold integers 0..255 between the stages. Each stage gives the bits that
OpenVLA's evaluation gives with TensorFlow 2.15 (openvla/openvla@c8f03f4, experiments/robot/libero/libero_utils.py
`get_libero_image`, experiments/robot/openvla_utils.py `get_vla_action`), which needs its order of float32 additions:
sums are written out tap by tap, and a product is rounded before it is added. On the CPU a compiled version of the same
arithmetic is used where numba is installed (LIBERO's simulator brings it).

Normalisation is `processing.pixel_values`. Our LIBERO environment returns frames already upright, so `rotate_180` is
for frames straight from the simulator.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from vla_rl.config.errors import UserError
from vla_rl.config.openvla import PictureConfig
from vla_rl.policies.jpeg import jpeg_round_trip

SMALLEST = 16
CHUNK_CPU = 2
"""Pictures at a time, so that a stage's output is still in the processor's cache when the next one reads it."""
CHUNK_GPU = 64
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


def rotate_180(images: UInt8[np.ndarray, "*N H W 3"]) -> UInt8[np.ndarray, "*N H W 3"]:
    """Turn pictures by 180 degrees (its own inverse): MuJoCo's frames come upside down, training data mirrored too."""
    turned = torch.from_numpy(np.require(images, requirements=["C", "W"])).flip(-3, -2)
    return turned.numpy()  # numpy itself takes thirty times as long


def prepare(
    images: UInt8[np.ndarray, "N H W 3"],
    config: PictureConfig,
    size: int,
    device: torch.device,
) -> Float32[Tensor, "N 3 size size"]:
    """The stages that `config` asks for, as integer values 0..255 on the device.

    size: height and width the model takes. Raises UserError if the pictures do not have it and are not resized.
    """
    _check(images, config, size)
    # neither torch nor numba takes arrays that are mirrored or must not be written to as they are
    images = np.require(images, requirements=["C", "W"])
    if device.type == "cpu" and has_numba():
        from vla_rl.policies.compiled_pictures import prepare_compiled

        return torch.from_numpy(prepare_compiled(images, config, size))
    chunk = CHUNK_CPU if device.type == "cpu" else CHUNK_GPU
    out = torch.empty(len(images), 3, size, size, device=device)
    for start in range(0, len(images), chunk):
        part = torch.from_numpy(images[start : start + chunk]).to(device)
        x = part.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        if config.jpeg:
            x = jpeg_round_trip(x)
        if config.resize == "lanczos3":
            x = resize_lanczos3(x, size)
        if config.center_crop < 1:
            x = center_crop(x, config.center_crop)
        out[start : start + chunk] = x
    return out


def _check(images: UInt8[np.ndarray, "N H W 3"], config: PictureConfig, size: int) -> None:
    height, width = images.shape[1:3]
    if config.resize == "none" and (height, width) != (size, size):
        raise UserError(
            f"The model takes pictures of {size} x {size}, got {height} x {width}: set env.image_size to {size}, or "
            "pictures.resize to lanczos3"
        )
    if min(height, width) < SMALLEST:
        raise UserError(
            f"Pictures must have at least {SMALLEST} x {SMALLEST} pixels, got {height} x {width}"
        )


@functools.cache
def has_numba() -> bool:
    """Whether the compiled stages can be used."""
    return importlib.util.find_spec("numba") is not None


# --- resize


def resize_lanczos3(
    pictures: Float32[Tensor, "N 3 H W"], size: int
) -> Float32[Tensor, "N 3 size size"]:
    """Resize as tf.image.resize(lanczos3, antialias=True), then round half to even and clip to 0..255."""
    return resize_lanczos3_unrounded(pictures, size).round_().clamp_(0, 255)


def resize_lanczos3_unrounded(
    pictures: Float32[Tensor, "N 3 H W"], size: int
) -> Float32[Tensor, "N 3 size size"]:
    """Rows first, then columns, as TensorFlow."""
    height, width = pictures.shape[-2:]
    tall = _filter_rows(pictures, lanczos3_taps(height, size))
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

    Where there is no such library the nearest float32 is taken, and about one value in 10^5 of a resized picture
    then differs by one grey level.
    """
    try:
        sinf = ctypes.CDLL(None).sinf
    except (OSError, TypeError, AttributeError):
        return np.sin(x.astype(np.float64)).astype(np.float32)
    sinf.restype, sinf.argtypes = ctypes.c_float, [ctypes.c_float]
    return np.array([sinf(value) for value in x.ravel().tolist()], np.float32).reshape(x.shape)


# --- centre crop


def center_crop(pictures: Float32[Tensor, "N 3 H W"], area: float) -> Float32[Tensor, "N 3 H W"]:
    """Cut out the middle `area` of the picture and stretch it bilinearly to the full size, as integers 0..255.

    tf.image.crop_and_resize on values in [0, 1], then convert_image_dtype to uint8, which is floor(255.5 x).
    """
    return center_crop_unrounded(pictures, area).clamp_(0, 1).mul_(255.5).floor_()


def center_crop_unrounded(
    pictures: Float32[Tensor, "N 3 H W"], area: float
) -> Float32[Tensor, "N 3 H W"]:
    """Values in [0, 1], up to rounding."""
    height, width = pictures.shape[-2:]
    turned = (pictures * (1 / 255)).transpose(-1, -2).contiguous()
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
