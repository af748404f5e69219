"""From a camera's frame to the image a model sees: OpenVLA's protocol for LIBERO, without TensorFlow.

    rotate by 180 degrees -> pad or crop to a square -> JPEG -> lanczos3 resize -> centre crop -> normalisation

Images are float32 planes [N, 3, H, W] that hold integers 0..255 between the stages. Each stage gives the bits that
OpenVLA's evaluation gives with TensorFlow 2.15 (openvla/openvla@c8f03f4, experiments/robot/libero/libero_utils.py
`get_libero_image`, experiments/robot/openvla_utils.py `get_vla_action`), which needs its order of float32 additions:
sums are written out tap by tap, and a product is rounded before it is added. On the CPU a compiled version of the same
arithmetic is used where numba is installed (LIBERO's simulator brings it).

Normalisation is `processing.pixel_values`. Our LIBERO environment returns frames already upright, so `rotate_180` is
for frames straight from the simulator.
"""

from __future__ import annotations

import functools
import importlib.util

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from vla_rl.config.errors import UserError
from vla_rl.config.openvla import ImagePreprocessing
from vla_rl.policies.openvla.images.jpeg import jpeg_round_trip
from vla_rl.policies.openvla.images.resampling import center_crop, resize_lanczos3
from vla_rl.runtime.images import make_square

SMALLEST = 16
CHUNK_CPU = 2
"""Images at a time, so that a stage's output is still in the processor's cache when the next one reads it."""
CHUNK_GPU = 64


def rotate_180(images: UInt8[np.ndarray, "*N H W 3"]) -> UInt8[np.ndarray, "*N H W 3"]:
    """Turn images by 180 degrees (its own inverse): MuJoCo's frames come upside down, training data mirrored too."""
    turned = torch.from_numpy(np.require(images, requirements=["C", "W"])).flip(-3, -2)
    return turned.numpy()  # numpy itself takes thirty times as long


def prepare(
    images: UInt8[np.ndarray, "N H W 3"],
    config: ImagePreprocessing,
    size: int,
    device: torch.device,
) -> Float32[Tensor, "N 3 size size"]:
    """The stages that `config` asks for, as integer values 0..255 on the device.

    size: height and width the model takes. Raises UserError if the images do not have it and are not resized.
    """
    images = make_square(images, config.fit)
    _check(images, config, size)
    # neither torch nor numba takes arrays that are mirrored or must not be written to as they are
    images = np.require(images, requirements=["C", "W"])
    if device.type == "cpu" and has_numba():
        from vla_rl.policies.openvla.images.compiled import prepare_compiled

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


def _check(images: UInt8[np.ndarray, "N H W 3"], config: ImagePreprocessing, size: int) -> None:
    height, width = images.shape[1:3]
    if config.resize == "none" and (height, width) != (size, size):
        raise UserError(
            f"The model takes images of {size} x {size}, got {height} x {width}: set env.image_size to {size}, or "
            "images.resize to lanczos3"
        )
    if min(height, width) < SMALLEST:
        raise UserError(
            f"Images must have at least {SMALLEST} x {SMALLEST} pixels, got {height} x {width}"
        )


@functools.cache
def has_numba() -> bool:
    """Whether the compiled stages can be used."""
    return importlib.util.find_spec("numba") is not None
