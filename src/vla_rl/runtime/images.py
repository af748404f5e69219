"""Camera frames that are not square, for models that take square pictures."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import UInt8

ImageFit = Literal["pad", "crop", "stretch"]
"""pad: black bars above and below, or left and right, as openpi and lerobot do; everything stays in view and in
proportion. crop: the middle square. stretch: the whole frame, out of proportion, as OpenVLA and Octo do."""


def square_side(height: int, width: int, fit: ImageFit) -> int:
    """Side of the square that `fit` makes of a frame without resampling; a stretched one takes the shorter side."""
    return max(height, width) if fit == "pad" else min(height, width)


def make_square(
    images: UInt8[np.ndarray, "N H W 3"], fit: ImageFit
) -> UInt8[np.ndarray, "N A B 3"]:
    """Frames padded or cropped around their centre to squares; as they are to be stretched, or square already.

    Where the difference is odd, the extra row or column lies below or to the right.
    """
    height, width = images.shape[1:3]
    if height == width or fit == "stretch":
        return images
    side = square_side(height, width, fit)
    top, left = abs(side - height) // 2, abs(side - width) // 2
    if fit == "crop":
        return images[:, top : top + side, left : left + side]
    result = np.zeros((len(images), side, side, 3), dtype=np.uint8)
    result[:, top : top + height, left : left + width] = images
    return result
