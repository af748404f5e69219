"""What a JPEG round trip does to a image, without making the file: the loss alone, for a batch, on any device.

OpenVLA's LIBERO protocol writes each frame as a JPEG and reads it back, because its training images went through
one. Coding the coefficients loses nothing and is left out here; everything else is the integer arithmetic of
libjpeg as TensorFlow calls it, so the result is the same to the bit:

    encoder  quality 95, 4:2:0: colour conversion, 2x2 mean of chroma, slow integer DCT, quantisation
    decoder  dequantisation, *fast* integer IDCT, upsampling by a triangle filter, colour conversion

Pillow, OpenCV and torchvision decode with the slow IDCT: about one grey level apart on average, up to 14.
Arithmetic: ITU-T T.81 Annex A and K; C. Loeffler et al. 1989 and Y. Arai et al. 1988 for the two transforms; the
word lengths and rounding are those of libjpeg-turbo. All values are integers held in floating point: in float32 they
stay below 2**24, in float64 below 2**53, hence exact whatever the order of summation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Float64, Int32
from torch import Tensor

BLOCK = 8
QUALITY_95 = 10  # percent of the standard's tables
# T.81, tables K.1 and K.2: luminance and chrominance
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * BLOCK,) * 4,
)
# The forward transform in 13-bit fixed point: rows 0, 2, 4, 6 act on x[k] + x[7 - k], rows 1, 3, 5, 7 on
# x[k] - x[7 - k]. Entries that ought to be equal differ by one where sums of rounded constants do.
DCT_SUMS = (
    (8192, 8192, 8192, 8192),
    (10703, 4433, -4433, -10703),
    (8192, -8192, -8192, 8192),
    (4433, -10704, 10704, -4433),
)
DCT_DIFFERENCES = (
    (11363, 9633, 6437, 2260),
    (9633, -2259, -11362, -6436),
    (6437, -11362, 2261, 9633),
    (2260, -6436, 9633, -11363),
)
DCT_SHIFTS = (11, 15)  # of the pass along rows and of the one along columns
# 8-bit fixed-point constants of the fast inverse transform
C1_082, C1_414, C1_848, C2_613 = 277, 362, 473, 669
IDCT_SHIFT = 5
# 16-bit fixed-point colour conversion: RGB to Y, Cb, Cr, and Cb, Cr to what Y lacks of R, G, B
TO_YCC = ((19595, 38470, 7471), (-11059, -21709, 32768), (32768, -27439, -5329))
TO_YCC_ROUNDING = (32768, 32767, 32767)
TO_RGB = ((0, 91881), (-22554, -46802), (116130, 0))


def quantisation_steps() -> Int32[np.ndarray, "2 8 8"]:
    """Steps of luminance and chrominance at quality 95."""
    tables = np.array([LUMINANCE, CHROMINANCE], dtype=np.int32)
    return np.clip((tables * QUALITY_95 + 50) // 100, 1, 255).astype(np.int32)


def inverse_scales() -> Int32[np.ndarray, "2 8 8"]:
    """Steps times the factors that the fast inverse transform leaves to its input, in 2-bit fixed point."""
    factors = np.array([1.0] + [math.sqrt(2) * math.cos(k * math.pi / 16) for k in range(1, BLOCK)])
    fixed = np.rint(16384 * np.outer(factors, factors)).astype(np.int64)
    return ((quantisation_steps() * fixed + 2048) >> 12).astype(np.int32)


def reciprocals() -> Float64[np.ndarray, "2 8 8"]:
    """Factors that turn a coefficient into a number whose nearest integer is the quantised one.

    Coefficients come eight times too large. The second factor moves ties, and nothing else, away from zero.
    """
    return (1 + 2.0**-18) / (8 * quantisation_steps().astype(np.float64))


def forward_matrix() -> Float64[np.ndarray, "8 8"]:
    """The forward transform of eight samples, before the shift."""
    matrix = np.empty((BLOCK, BLOCK))
    matrix[0::2] = np.concatenate([DCT_SUMS, np.flip(DCT_SUMS, 1)], 1)
    matrix[1::2] = np.concatenate([DCT_DIFFERENCES, -np.flip(DCT_DIFFERENCES, 1)], 1)
    return matrix


def jpeg_round_trip(images: Float32[Tensor, "N 3 H W"]) -> Float32[Tensor, "N 3 H W"]:
    """RGB images as they come back from a JPEG file of quality 95 with 4:2:0 chroma.

    Values are integers 0..255 on both sides. Any height and width from 16 on.
    """
    height, width = images.shape[-2:]
    luma, chroma = _ycc(images)
    luma = _through_blocks(_extend(luma, BLOCK, BLOCK), 0)[..., :height, :width]
    chroma = _through_blocks(_halve(chroma), 1)[..., : (height + 1) // 2, : (width + 1) // 2]
    return _rgb(luma, _double(chroma)[..., :height, :width])


def _ycc(
    rgb: Float32[Tensor, "N 3 H W"],
) -> tuple[Float32[Tensor, "N 1 H W"], Float32[Tensor, "N 2 H W"]]:
    """Luminance and chrominance, both moved to be centred at 0."""
    planes = [
        torch.floor((r * rgb[:, 0] + g * rgb[:, 1] + b * rgb[:, 2] + rounding) / 65536)
        for (r, g, b), rounding in zip(TO_YCC, TO_YCC_ROUNDING, strict=True)
    ]
    return (planes[0] - 128)[:, None], torch.stack(planes[1:], 1)


def _rgb(
    luma: Float32[Tensor, "N 1 H W"], chroma: Float32[Tensor, "N 2 H W"]
) -> Float32[Tensor, "N 3 H W"]:
    blue, red = chroma.unbind(1)
    planes = [torch.floor((b * blue + r * red + 32768) / 65536) for b, r in TO_RGB]
    return torch.stack(planes, 1).add_(luma + 128).clamp_(0, 255)


def _extend(
    planes: Float32[Tensor, "N C H W"], rows: int, columns: int
) -> Float32[Tensor, "N C h w"]:
    """Repeat the last row and column up to the next multiple."""
    height, width = planes.shape[-2:]
    if height % rows == 0 and width % columns == 0:
        return planes
    return F.pad(planes, (0, -width % columns, 0, -height % rows), mode="replicate")


def _halve(planes: Float32[Tensor, "N C H W"]) -> Float32[Tensor, "N C h w"]:
    """Mean of 2x2, rounded up and down in turn along the row, in whole blocks.

    Columns are repeated before the mean is taken, rows (beyond an even number) after it, as libjpeg does.
    """
    even = _extend(planes, 2, 2 * BLOCK)
    pairs = even[..., 0::2, :] + even[..., 1::2, :]
    fours = pairs[..., 0::2] + pairs[..., 1::2]
    fours[..., 0::2] += 1
    fours[..., 1::2] += 2
    return _extend(torch.floor(fours / 4), BLOCK, 1)


def _double(planes: Float32[Tensor, "N C H W"]) -> Float32[Tensor, "N C 2*H 2*W"]:
    """Twice the size by a triangle filter: 3/4 of the nearest sample, 1/4 of the next, in each direction."""
    above = torch.cat([planes[..., :1, :], planes[..., :-1, :]], -2)
    below = torch.cat([planes[..., 1:, :], planes[..., -1:, :]], -2)
    rows = torch.stack([3 * planes + above, 3 * planes + below], -2).flatten(-3, -2)
    left = torch.cat([rows[..., :1], rows[..., :-1]], -1)
    right = torch.cat([rows[..., 1:], rows[..., -1:]], -1)
    columns = torch.stack([3 * rows + left + 8, 3 * rows + right + 7], -1).flatten(-2)
    return torch.floor(columns / 16)


@functools.lru_cache(maxsize=8)
def _constants(kind: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Forward matrix [8, 8], reciprocal steps [8, 8, 1] and inverse scales [8, 8, 1] of luminance or chrominance."""
    with torch.inference_mode(False):
        matrix = torch.from_numpy(forward_matrix()).to(device)
        reciprocal = torch.from_numpy(reciprocals()[kind])[..., None].to(device)
        scales = torch.from_numpy(inverse_scales()[kind]).float()[..., None].to(device)
    return matrix, reciprocal, scales


def _through_blocks(planes: Float32[Tensor, "N C H W"], kind: int) -> Float32[Tensor, "N C H W"]:
    """Transform, quantise and transform back each 8x8 block; values are centred at 0 on both sides."""
    count, channels, height, width = planes.shape
    matrix, reciprocal, scales = _constants(kind, planes.device)
    tiles = planes.reshape(count * channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    # row in the block, column in the block, block: every operation below runs over contiguous blocks
    x = tiles.permute(2, 4, 0, 1, 3).reshape(BLOCK, BLOCK, -1).double()
    x = torch.floor(matrix / 2 ** DCT_SHIFTS[0] @ x + 0.5)
    x = (matrix / 2 ** DCT_SHIFTS[1] @ x.flatten(1)).view_as(x).add_(0.5).floor_()
    x = torch.round(x.mul_(reciprocal)).float().mul_(scales)
    x = torch.stack(_inverse(x.unbind(0)), 0)
    x = torch.stack(_inverse(x.unbind(1)), 1)
    x = x.mul_(2.0**-IDCT_SHIFT).floor_().clamp_(-128, 127)
    x = x.view(BLOCK, BLOCK, count * channels, height // BLOCK, width // BLOCK)
    return x.permute(2, 3, 0, 4, 1).reshape(planes.shape)


def _times(x: Tensor, constant: int) -> Tensor:
    """Fixed-point product, rounded down."""
    return torch.floor(x * (constant / 256))


def _inverse(x: Sequence[Tensor]) -> list[Tensor]:
    """Eight samples from eight scaled coefficients by the fast inverse transform (Arai, Agui, Nakajima)."""
    # even coefficients
    sum04, difference04 = x[0] + x[4], x[0] - x[4]
    sum26 = x[2] + x[6]
    rotated = _times(x[2] - x[6], C1_414) - sum26
    even = (sum04 + sum26, difference04 + rotated, difference04 - rotated, sum04 - sum26)
    # odd coefficients
    sum53, difference53 = x[5] + x[3], x[5] - x[3]
    sum17, difference17 = x[1] + x[7], x[1] - x[7]
    common = _times(difference53 + difference17, C1_848)
    odd0 = sum17 + sum53
    odd1 = _times(difference53, -C2_613) + common - odd0
    odd2 = _times(sum17 - sum53, C1_414) - odd1
    odd3 = -(_times(difference17, C1_082) - common + odd2)
    odd = (odd0, odd1, odd2, odd3)
    return [e + o for e, o in zip(even, odd, strict=True)] + [
        e - o for e, o in zip(reversed(even), reversed(odd), strict=True)
    ]
