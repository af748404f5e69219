"""The stages of `images` and `jpeg` compiled by numba for one image at a time on one core: the same bits, sooner.

Where a torch operation passes over a whole batch, the loops here keep one image in the nearest cache. Compiled
without fast-math, so a product is rounded before it is added. The first call compiles (ten seconds); the result is
kept beside this file, or where NUMBA_CACHE_DIR says. The tables of `jpeg` are compiled in: a change there must be
followed by one here, or numba goes on with what it kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl.config.openvla import ImagePreprocessing
from vla_rl.policies.openvla.images import jpeg
from vla_rl.policies.openvla.images.resampling import Blend, Taps, crop_blend, lanczos3_taps

single, double = np.float32, np.float64
LANES = 16
"""Blocks that the innermost loops of the transforms run over."""
FOUR = 4
"""Rows that a filter adds in one pass."""
ZERO, HALF, ONE, THREE = single(0), single(0.5), single(1), single(3)
SEVEN, EIGHT, SIXTEENTH, QUARTER = single(7), single(8), single(1 / 16), single(0.25)
CENTRE, TOP, BOTTOM, WHITE = single(128), single(127), single(-128), single(255)
TO_UNIT, FROM_UNIT = single(1 / 255), single(255.5)
# folding the shift into the constants is exact: it is a power of two
YCC = (np.array(jpeg.TO_YCC) / 65536).astype(np.float32)
YCC_ROUNDING = (np.array(jpeg.TO_YCC_ROUNDING) / 65536).astype(np.float32)
RGB = (np.array(jpeg.TO_RGB) / 65536).astype(np.float32)
ROWS = (jpeg.forward_matrix()[:, :4] / 2 ** jpeg.DCT_SHIFTS[0]).astype(np.float32)
COLUMNS = jpeg.forward_matrix()[:, :4] / 2 ** jpeg.DCT_SHIFTS[1]
RECIPROCALS = jpeg.reciprocals()
SCALES = jpeg.inverse_scales().astype(np.float32)
C1_082, C1_414, C1_848, C2_613 = (
    single(c / 256) for c in (jpeg.C1_082, jpeg.C1_414, jpeg.C1_848, jpeg.C2_613)
)
LAST_SCALE = single(2.0**-jpeg.IDCT_SHIFT)
NO_TAPS = Taps(np.empty(0, np.int64), np.empty((0, 0), np.float32))
NO_BLEND = Blend(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


def compiled(function: Callable[..., Any]) -> Any:
    """Compile without the wrapper that checks shapes while tests run, and keep the result where that is possible."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(inspect.unwrap(function), cache=True, **options)
    except RuntimeError:  # numba finds no folder that it may write to
        return numba.njit(inspect.unwrap(function), **options)


def inlined(function: Callable[..., Any]) -> Any:
    return numba.njit(inspect.unwrap(function), inline="always", error_model="numpy")


def prepare_compiled(
    images: UInt8[np.ndarray, "N H W 3"], config: ImagePreprocessing, size: int
) -> Float32[np.ndarray, "N 3 size size"]:
    """See `images.prepare`, which has checked the images. They are contiguous: another layout is compiled anew."""
    height, width = images.shape[1:3]
    resized, cropped = config.resize == "lanczos3", config.center_crop < 1
    rows = _padded(lanczos3_taps(height, size)) if resized else NO_TAPS
    columns = _padded(lanczos3_taps(width, size)) if resized else NO_TAPS
    blend = crop_blend(size, config.center_crop) if cropped else NO_BLEND
    out = np.empty((len(images), 3, size, size), np.float32)
    _prepare(images, config.jpeg, *rows, *columns, *blend, out)
    return out


def _padded(taps: Taps) -> Taps:
    """Taps of weight 0, which change no sum, up to a multiple of FOUR."""
    return Taps(taps.first, np.pad(taps.weights, ((0, 0), (0, -taps.weights.shape[1] % FOUR))))


@compiled
def _prepare(images, lossy, first_y, weights_y, first_x, weights_x, low, high, fraction, out):
    count, height, width, _ = images.shape
    planes = np.empty((3, height, width), np.float32)
    for n in range(count):
        _take_apart(images[n], planes)
        if lossy:
            _jpeg(planes)
        for c in range(3):
            _resample(
                planes[c], first_y, weights_y, first_x, weights_x, low, high, fraction, out[n, c]
            )


@compiled
def _take_apart(image, planes):
    """RGB bytes to three float32 planes."""
    values, out = image.reshape(-1), planes.reshape(-1)
    count = values.size // 3
    for i in range(count):
        out[i], out[count + i], out[2 * count + i] = (
            values[3 * i],
            values[3 * i + 1],
            values[3 * i + 2],
        )


# --- JPEG


@compiled
def _jpeg(planes):
    """One RGB image through the loss of a JPEG file, in place."""
    _, height, width = planes.shape
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    luma = np.empty((-(-height // 8) * 8, -(-width // 8) * 8), np.float32)
    chroma = np.empty((2, -(-height // 16) * 8, -(-width // 16) * 8), np.float32)
    _to_ycc(planes, luma, chroma)
    _through_blocks(luma, RECIPROCALS[0], SCALES[0])
    for c in range(2):
        _through_blocks(chroma[c], RECIPROCALS[1], SCALES[1])
    _to_rgb(luma, chroma[:, :half_height, :half_width], planes)


@compiled
def _to_ycc(planes, luma, chroma):
    """Luminance, and the 2x2 means of chrominance, with edges repeated to whole blocks."""
    height = planes.shape[1]
    whole = np.empty((2, 2, 2 * chroma.shape[2]), np.float32)  # two rows of chrominance
    for y in range(0, height, 2):
        for i in range(2):
            row = min(y + i, height - 1)
            red, green, blue = planes[0, row], planes[1, row], planes[2, row]
            _weigh(red, green, blue, YCC[0], YCC_ROUNDING[0] - CENTRE, luma[row])
            for c in range(2):
                _weigh(red, green, blue, YCC[c + 1], YCC_ROUNDING[c + 1], whole[c, i])
        for c in range(2):
            above, below, out = whole[c, 0], whole[c, 1], chroma[c, y // 2]
            for x in range(out.size):
                total = above[2 * x] + above[2 * x + 1] + below[2 * x] + below[2 * x + 1]
                out[x] = np.floor((total + single(1 + x % 2)) * QUARTER)
    luma[height:] = luma[height - 1]
    half = (height + 1) // 2
    for c in range(2):
        chroma[c, half:] = chroma[c, half - 1]


@compiled
def _weigh(red, green, blue, weights, offset, out):
    """A weighted sum of three rows, rounded down, its last value repeated to the end of `out`."""
    r, g, b = weights[0], weights[1], weights[2]
    for x in range(red.size):
        out[x] = np.floor(r * red[x] + g * green[x] + b * blue[x] + offset)
    out[red.size :] = out[red.size - 1]


@compiled
def _through_blocks(plane, reciprocals, scales):
    """Transform, quantise and transform back each 8x8 block of a plane, in place."""
    blocks = plane.shape[1] // 8
    x = np.zeros(64 * LANES, np.float32)  # row in the block, column in the block, block
    for top in range(0, plane.shape[0], 8):
        for start in range(0, blocks, LANES):
            lanes = min(LANES, blocks - start)
            for v in range(8):
                for k in range(lanes):
                    for u in range(8):
                        x[(8 * v + u) * LANES + k] = plane[top + v, 8 * (start + k) + u]
            _transform_rows(x)
            _quantised_columns(x, reciprocals, scales)
            _invert(x, 1, 8, ONE)
            _invert(x, 8, 1, LAST_SCALE)
            for v in range(8):
                for k in range(lanes):
                    for u in range(8):
                        value = np.floor(x[(8 * v + u) * LANES + k])
                        plane[top + v, 8 * (start + k) + u] = min(max(value, BOTTOM), TOP)


@inlined
def _forward(m, x0, x1, x2, x3, x4, x5, x6, x7):
    s0, s1, s2, s3 = x0 + x7, x1 + x6, x2 + x5, x3 + x4
    d0, d1, d2, d3 = x0 - x7, x1 - x6, x2 - x5, x3 - x4
    return (
        m[0, 0] * s0 + m[0, 1] * s1 + m[0, 2] * s2 + m[0, 3] * s3,
        m[1, 0] * d0 + m[1, 1] * d1 + m[1, 2] * d2 + m[1, 3] * d3,
        m[2, 0] * s0 + m[2, 1] * s1 + m[2, 2] * s2 + m[2, 3] * s3,
        m[3, 0] * d0 + m[3, 1] * d1 + m[3, 2] * d2 + m[3, 3] * d3,
        m[4, 0] * s0 + m[4, 1] * s1 + m[4, 2] * s2 + m[4, 3] * s3,
        m[5, 0] * d0 + m[5, 1] * d1 + m[5, 2] * d2 + m[5, 3] * d3,
        m[6, 0] * s0 + m[6, 1] * s1 + m[6, 2] * s2 + m[6, 3] * s3,
        m[7, 0] * d0 + m[7, 1] * d1 + m[7, 2] * d2 + m[7, 3] * d3,
    )


@compiled
def _transform_rows(x):
    for v in range(8):
        for k in range(LANES):
            at = 8 * v * LANES + k
            y0, y1, y2, y3, y4, y5, y6, y7 = _forward(
                ROWS,
                x[at], x[at + LANES], x[at + 2 * LANES], x[at + 3 * LANES],
                x[at + 4 * LANES], x[at + 5 * LANES], x[at + 6 * LANES], x[at + 7 * LANES],
            )  # fmt: skip
            x[at] = np.floor(y0 + HALF)
            x[at + LANES] = np.floor(y1 + HALF)
            x[at + 2 * LANES] = np.floor(y2 + HALF)
            x[at + 3 * LANES] = np.floor(y3 + HALF)
            x[at + 4 * LANES] = np.floor(y4 + HALF)
            x[at + 5 * LANES] = np.floor(y5 + HALF)
            x[at + 6 * LANES] = np.floor(y6 + HALF)
            x[at + 7 * LANES] = np.floor(y7 + HALF)


@inlined
def _quantised(value, reciprocal, scale):
    """From a coefficient to its quantised value, and on to the inverse transform's input."""
    return single(np.rint(np.floor(value + 0.5) * reciprocal)) * scale


@compiled
def _quantised_columns(x, reciprocals, scales):
    """In float64: sums reach 2**28."""
    row = 8 * LANES
    for u in range(8):
        for k in range(LANES):
            at = u * LANES + k
            y0, y1, y2, y3, y4, y5, y6, y7 = _forward(
                COLUMNS,
                double(x[at]), double(x[at + row]), double(x[at + 2 * row]), double(x[at + 3 * row]),
                double(x[at + 4 * row]), double(x[at + 5 * row]), double(x[at + 6 * row]), double(x[at + 7 * row]),
            )  # fmt: skip
            x[at] = _quantised(y0, reciprocals[0, u], scales[0, u])
            x[at + row] = _quantised(y1, reciprocals[1, u], scales[1, u])
            x[at + 2 * row] = _quantised(y2, reciprocals[2, u], scales[2, u])
            x[at + 3 * row] = _quantised(y3, reciprocals[3, u], scales[3, u])
            x[at + 4 * row] = _quantised(y4, reciprocals[4, u], scales[4, u])
            x[at + 5 * row] = _quantised(y5, reciprocals[5, u], scales[5, u])
            x[at + 6 * row] = _quantised(y6, reciprocals[6, u], scales[6, u])
            x[at + 7 * row] = _quantised(y7, reciprocals[7, u], scales[7, u])


@inlined
def _invert(x, across, along, scale):
    """The fast inverse transform, see `jpeg._inverse`. Places in the block: `along` lie the eight coefficients."""
    step = along * LANES
    for line in range(8):
        for k in range(LANES):
            at = line * across * LANES + k
            x0, x1, x2, x3 = x[at], x[at + step], x[at + 2 * step], x[at + 3 * step]
            x4, x5, x6, x7 = x[at + 4 * step], x[at + 5 * step], x[at + 6 * step], x[at + 7 * step]
            s04, d04, s26 = x0 + x4, x0 - x4, x2 + x6
            rotated = np.floor((x2 - x6) * C1_414) - s26
            e0, e1, e2, e3 = s04 + s26, d04 + rotated, d04 - rotated, s04 - s26
            s53, d53, s17, d17 = x5 + x3, x5 - x3, x1 + x7, x1 - x7
            common = np.floor((d53 + d17) * C1_848)
            o0 = s17 + s53
            o1 = np.floor(d53 * -C2_613) + common - o0
            o2 = np.floor((s17 - s53) * C1_414) - o1
            o3 = common - np.floor(d17 * C1_082) - o2
            x[at] = (e0 + o0) * scale
            x[at + step] = (e1 + o1) * scale
            x[at + 2 * step] = (e2 + o2) * scale
            x[at + 3 * step] = (e3 + o3) * scale
            x[at + 4 * step] = (e3 - o3) * scale
            x[at + 5 * step] = (e2 - o2) * scale
            x[at + 6 * step] = (e1 - o1) * scale
            x[at + 7 * step] = (e0 - o0) * scale


@compiled
def _to_rgb(luma, chroma, planes):
    """Chrominance to twice its size by a triangle filter, see `jpeg._double`, and to RGB."""
    _, height, width = planes.shape
    half_height, half_width = chroma.shape[1:]
    near = np.empty((2, half_width + 2), np.float32)  # one column repeated on either side
    full = np.empty((2, 2 * half_width), np.float32)
    for y in range(height):
        row = y // 2
        next_row = max(row - 1, 0) if y % 2 == 0 else min(row + 1, half_height - 1)
        for c in range(2):
            for x in range(half_width):
                near[c, x + 1] = THREE * chroma[c, row, x] + chroma[c, next_row, x]
            near[c, 0], near[c, half_width + 1] = near[c, 1], near[c, half_width]
            for x in range(half_width):
                centre = THREE * near[c, x + 1]
                full[c, 2 * x] = np.floor((centre + near[c, x] + EIGHT) * SIXTEENTH)
                full[c, 2 * x + 1] = np.floor((centre + near[c, x + 2] + SEVEN) * SIXTEENTH)
        for c in range(3):
            for x in range(width):
                shift = np.floor(RGB[c, 0] * full[0, x] + RGB[c, 1] * full[1, x] + HALF)
                planes[c, y, x] = min(max(luma[y, x] + shift + CENTRE, ZERO), WHITE)


# --- resize and crop


@compiled
def _resample(plane, first_y, weights_y, first_x, weights_x, low, high, fraction, out):
    """Resize and centre crop one plane, each where its tables are not empty.

    What runs along a row is done on the turned plane: the innermost loops then go over neighbouring values.
    """
    size, resized, cropped = out.shape[0], first_y.size > 0, low.size > 0
    if not resized and not cropped:
        out[:] = plane
        return
    unit = TO_UNIT if cropped else ONE  # values in [0, 1] are what the crop blends
    if resized:
        tall = np.empty((size, plane.shape[1]), np.float32)
        for y in range(size):
            _filter(plane, first_y[y], weights_y[y], tall[y])
        turned = np.empty((plane.shape[1], size), np.float32)
        _turn(tall, turned)
        plane = np.empty((size, size), np.float32)
        for x in range(size):
            _filter(turned, first_x[x], weights_x[x], plane[x])
            for y in range(size):
                plane[x, y] = min(max(np.rint(plane[x, y]), ZERO), WHITE) * unit
    else:
        turned = np.empty((size, size), np.float32)
        _turn(plane, turned)
        plane = turned * unit
    if cropped:
        blended = np.empty((size, size), np.float32)
        for x in range(size):
            _blend(plane[low[x]], plane[high[x]], fraction[x], blended[x])
        _turn(blended, plane)
        for y in range(size):
            _blend(plane[low[y]], plane[high[y]], fraction[y], out[y])
            for x in range(size):
                out[y, x] = np.floor(min(max(out[y, x], ZERO), ONE) * FROM_UNIT)
    else:
        _turn(plane, out)


@compiled
def _filter(rows, first, weights, out):
    """Sum of weighted rows, tap by tap as TensorFlow adds them; the number of taps is a multiple of FOUR."""
    last = rows.shape[0] - 1
    for x in range(out.size):
        out[x] = ZERO
    for k in range(first, first + weights.size, FOUR):
        row0, row1 = rows[min(k, last)], rows[min(k + 1, last)]
        row2, row3 = rows[min(k + 2, last)], rows[min(k + 3, last)]
        w0, w1 = weights[k - first], weights[k - first + 1]
        w2, w3 = weights[k - first + 2], weights[k - first + 3]
        for x in range(out.size):
            out[x] = out[x] + row0[x] * w0 + row1[x] * w1 + row2[x] * w2 + row3[x] * w3


@compiled
def _blend(near, far, fraction, out):
    for x in range(out.size):
        out[x] = near[x] + (far[x] - near[x]) * fraction


@compiled
def _turn(plane, out):
    """Transpose, eight rows at a time: their values lie side by side in `out`."""
    height, width = plane.shape
    whole = height - height % 8
    for y in range(0, whole, 8):
        for x in range(width):
            for i in range(8):
                out[x, y + i] = plane[y + i, x]
    for y in range(whole, height):
        for x in range(width):
            out[x, y] = plane[y, x]
