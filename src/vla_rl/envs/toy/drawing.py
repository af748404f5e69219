"""Draws the toy world from above, with smooth edges at any size."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl.envs.toy.world import BLOCK_RADIUS, DISC_RADIUS, HAND_RADIUS, MAT_RADIUS, TABLE, World

_WIDTH = 2 * TABLE + 0.1  # metres that the image shows: the table and a little of the floor
_FLOOR, _EDGE, _WOOD, _GRAIN = (58, 64, 74), (30, 33, 40), (222, 205, 178), (212, 193, 164)
_RED, _BLUE, _GREEN, _YELLOW = (214, 58, 52), (48, 98, 214), (74, 158, 92), (244, 196, 48)
_STEEL, _DARK = (110, 116, 128), (34, 36, 42)

Canvas = Float32[np.ndarray, "H W 3"]
Colour = tuple[int, int, int]


class Picture:
    """Draws one episode at `size` pixels. What never moves is painted once."""

    def __init__(self, world: World, size: int) -> None:
        self._size = size
        self._still = _table(size).copy()
        _square(self._still, world.mat, MAT_RADIUS, _GREEN)
        _square(self._still, world.mat, MAT_RADIUS - 0.02, _lighter(_GREEN))
        for place, colour in ((world.red, _RED), (world.blue, _BLUE)):
            _disc(self._still, place, DISC_RADIUS, colour)
            _disc(self._still, place, DISC_RADIUS - 0.025, _lighter(colour))

    def draw(self, world: World) -> UInt8[np.ndarray, "H W 3"]:
        canvas = self._still.copy()
        block, hand = world.block, world.hand
        _square(canvas, block + (0.01 - 0.015j), BLOCK_RADIUS, _DARK, 0.35)
        _square(canvas, block, BLOCK_RADIUS, _YELLOW)
        _square(canvas, block, BLOCK_RADIUS - 0.02, _lighter(_YELLOW))
        fall = 0.01 + 0.35 * world.height  # the higher the hand, the farther its shadow
        _disc(canvas, hand + fall * (1 - 1j), HAND_RADIUS, _DARK, 0.3)
        spread = 0.016 + 0.03 * world.opening
        for side in (-spread, spread):
            _box(canvas, hand + complex(side, HAND_RADIUS), 0.013, 0.03, _DARK)
        _disc(canvas, hand, HAND_RADIUS, _DARK)
        _disc(canvas, hand, HAND_RADIUS - 0.017, _STEEL)
        return canvas.astype(np.uint8)


def _lighter(colour: Colour) -> Colour:
    red, green, blue = (round(0.72 * part + 0.28 * 255) for part in colour)
    return red, green, blue


@cache
def _table(size: int) -> Canvas:
    canvas = np.empty((size, size, 3), dtype=np.float32)
    canvas[:] = _FLOOR
    _square(canvas, 0.01 - 0.015j, TABLE, _EDGE)
    _square(canvas, 0j, TABLE, _WOOD)
    for plank in np.linspace(-TABLE, TABLE, 6)[1:-1].tolist():
        _box(canvas, complex(plank, 0), 0.004, TABLE - 0.01, _GRAIN)
    return canvas


def _disc(
    canvas: Canvas, centre: complex, radius: float, colour: Colour, alpha: float = 1.0
) -> None:
    _paint(canvas, centre, radius, colour, alpha, lambda x, y: np.sqrt(x * x + y * y) - radius)


def _square(
    canvas: Canvas, centre: complex, radius: float, colour: Colour, alpha: float = 1.0
) -> None:
    """An upright square with rounded corners, `2 * radius` wide."""
    corner = 0.25 * min(radius, 0.12)
    inner = np.float32(radius - corner)

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        out_x, out_y = np.maximum(np.abs(x) - inner, 0), np.maximum(np.abs(y) - inner, 0)
        return np.sqrt(out_x * out_x + out_y * out_y) - np.float32(corner)

    _paint(canvas, centre, radius, colour, alpha, distance)


def _box(
    canvas: Canvas, centre: complex, half_width: float, half_height: float, colour: Colour
) -> None:
    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.maximum(np.abs(x) - np.float32(half_width), np.abs(y) - np.float32(half_height))

    _paint(canvas, centre, max(half_width, half_height), colour, 1.0, distance)


def _paint(
    canvas: Canvas,
    centre: complex,
    reach: float,
    colour: Colour,
    alpha: float,
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    """Lay a colour over the pixels whose signed `distance` (m) to the shape's edge is negative.

    Pixels on the edge get their share. Nothing of the shape is farther than `reach` from its centre along x or y.
    """
    size = len(canvas)
    scale = size / _WIDTH
    column, row = (centre.real / _WIDTH + 0.5) * size, (0.5 - centre.imag / _WIDTH) * size
    left, right = _span(column, reach * scale, size)
    top, bottom = _span(row, reach * scale, size)
    x = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - column)) / np.float32(scale)
    y = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - row)) / np.float32(scale)
    inside = np.clip(0.5 - distance(x[None], y[:, None]) * np.float32(scale), 0, 1)
    part = canvas[top:bottom, left:right]
    part += np.float32(alpha) * inside[..., None] * (np.array(colour, dtype=np.float32) - part)


def _span(middle: float, reach: float, size: int) -> tuple[int, int]:
    """First pixel and the one after the last that a shape can touch along one axis."""
    return max(0, int(middle - reach - 1)), max(0, min(size, int(middle + reach + 2)))
