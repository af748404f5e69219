"""Draws the toy world from above, with smooth edges at any size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from vla_rl.envs.toy.world import BLOCK_RADIUS, DISC_RADIUS, HAND_RADIUS, MAT_RADIUS, TABLE, World

VIEWS = {"wrist": 0.9, "table": 1.1}
"""Metres that a camera sees: `wrist` hangs over the hand and moves with it, `table` over the middle of the table."""

# the table is as bright as an average image: to a vision model that is nothing at all, and things on it stand out
_FLOOR, _WOOD = (94, 94, 96), (126, 118, 106)
_RED, _BLUE, _GREEN, _YELLOW = (222, 48, 44), (36, 92, 232), (44, 176, 84), (250, 204, 40)
_STEEL, _DARK = (226, 230, 236), (28, 30, 36)
_PLANKS = 5

Colour = tuple[int, int, int]
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def draw(world: World, camera: str, size: int) -> UInt8[np.ndarray, "H W 3"]:
    """What a camera of `VIEWS` sees, `size` pixels wide and high."""
    middle = world.hand if camera == "wrist" else 0j
    canvas = _Canvas(size, middle, VIEWS[camera])
    canvas.square(0j, TABLE, _WOOD)
    canvas.planks(2 * TABLE / _PLANKS)
    if world.mat is not None:
        canvas.square(world.mat, MAT_RADIUS, _GREEN, rim=0.02)
    if world.disc is not None:
        canvas.disc(
            world.disc, DISC_RADIUS, _RED if world.task == "reach-red" else _BLUE, rim=0.025
        )
    if world.block is not None:
        canvas.square(world.block + (0.01 - 0.015j), BLOCK_RADIUS, _DARK, alpha=0.35)
        canvas.square(world.block, BLOCK_RADIUS, _YELLOW, rim=0.02)
    _draw_hand(canvas, world)
    return canvas.pixels.astype(np.uint8)


def _draw_hand(canvas: _Canvas, world: World) -> None:
    fall = 0.01 + 0.35 * world.height  # the higher the hand, the farther its shadow
    canvas.disc(world.hand + fall * (1 - 1j), HAND_RADIUS, _DARK, alpha=0.3)
    spread = 0.016 + 0.03 * world.opening
    for side in (-spread, spread):
        canvas.box(world.hand + complex(side, HAND_RADIUS), 0.013, 0.03, _DARK)
    canvas.disc(world.hand, HAND_RADIUS, _STEEL, rim=0.017, edge=_DARK)


class _Canvas:
    """An image to paint shapes on. Lengths are metres."""

    def __init__(self, size: int, middle: complex, width: float) -> None:
        self.pixels = np.empty((size, size, 3), dtype=np.float32)
        self.pixels[:] = _FLOOR
        self._size, self._middle, self._scale = size, middle, size / width

    def planks(self, width: float) -> None:
        """Thin dark lines from the table's far edge to its near one."""
        right = (np.arange(self._size) + 0.5 - self._size / 2) / self._scale + self._middle.real
        beside = np.abs((right + TABLE + width / 2) % width - width / 2)
        line = _share((0.004 - beside) * self._scale) * (np.abs(right) < TABLE - 0.01)
        shade = 1 - 0.07 * line
        top, bottom = (
            self._size / 2 - (y - self._middle.imag) * self._scale for y in (TABLE, -TABLE)
        )
        self.pixels[max(0, int(top)) : max(0, int(bottom))] *= shade[:, None].astype(np.float32)

    def disc(
        self,
        centre: complex,
        radius: float,
        colour: Colour,
        rim: float = 0.0,
        alpha: float = 1.0,
        edge: Colour | None = None,
    ) -> None:
        def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return np.sqrt(x * x + y * y) - np.float32(radius)

        self._paint(centre, radius, colour, rim, alpha, distance, edge)

    def square(
        self, centre: complex, radius: float, colour: Colour, rim: float = 0.0, alpha: float = 1.0
    ) -> None:
        """An upright square with rounded corners, `2 * radius` wide."""
        corner = np.float32(0.25 * min(radius, 0.12))
        inner = np.float32(radius) - corner

        def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            out_x, out_y = np.maximum(np.abs(x) - inner, 0), np.maximum(np.abs(y) - inner, 0)
            return np.sqrt(out_x * out_x + out_y * out_y) - corner

        self._paint(centre, radius, colour, rim, alpha, distance)

    def box(self, centre: complex, half_width: float, half_height: float, colour: Colour) -> None:
        def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return np.maximum(
                np.abs(x) - np.float32(half_width), np.abs(y) - np.float32(half_height)
            )

        self._paint(centre, max(half_width, half_height), colour, 0.0, 1.0, distance)

    def _paint(
        self,
        centre: complex,
        reach: float,
        colour: Colour,
        rim: float,
        alpha: float,
        distance: Distance,
        edge: Colour | None = None,
    ) -> None:
        """Lay a colour over the pixels whose signed `distance` to the shape's edge is negative.

        Pixels on the edge get their share. A `rim` of that width has the colour `edge`, or what is inside is lighter.
        Nothing of the shape is farther than `reach` from its centre along x or y.
        """
        size, scale, place = self._size, self._scale, centre - self._middle
        column, row = place.real * scale + size / 2, size / 2 - place.imag * scale
        left, right = _span(column, reach * scale, size)
        top, bottom = _span(row, reach * scale, size)
        x = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - column)) / np.float32(
            scale
        )
        y = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - row)) / np.float32(scale)
        inwards = np.float32(-scale) * distance(x[None], y[:, None])[..., None]
        paint = np.array(edge or colour, dtype=np.float32)
        part = self.pixels[top:bottom, left:right]
        part += np.float32(alpha) * _share(inwards) * (paint - part)
        if rim:
            inner = np.array(colour, dtype=np.float32)
            if edge is None:
                inner = np.float32(0.72) * inner + np.float32(0.28 * 255)
            part += _share(inwards - np.float32(rim * scale)) * (inner - part)


def _share(inwards: np.ndarray) -> np.ndarray:
    """How much of a pixel is covered whose middle is so many pixels inside."""
    return np.minimum(np.maximum(inwards + np.float32(0.5), 0), 1)


def _span(middle: float, reach: float, size: int) -> tuple[int, int]:
    """First pixel and the one after the last that a shape can touch along one axis."""
    return max(0, int(middle - reach - 1)), max(0, min(size, int(middle + reach + 2)))
