"""Boxes, directions and rotations: the geometry under the scripted LIBERO expert. Metres and radians."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

Vector = Float64[np.ndarray, " 3"]
Matrix = Float64[np.ndarray, "3 3"]
Points = Float64[np.ndarray, "N 3"]

UP = np.array([0.0, 0.0, 1.0])
DOWN = -UP


@dataclass(frozen=True)
class Boxes:
    """Oriented boxes. LIBERO's collision shapes are nearly all boxes; others are taken as their bounding boxes."""

    centres: Float64[np.ndarray, "B 3"]
    rotations: Float64[np.ndarray, "B 3 3"]  # box axes as columns
    half_sizes: Float64[np.ndarray, "B 3"]

    def where(self, mask: Bool[np.ndarray, " B"]) -> Boxes:
        """Those of the boxes."""
        return Boxes(self.centres[mask], self.rotations[mask], self.half_sizes[mask])

    def bounds(self) -> tuple[Float64[np.ndarray, "B 3"], Float64[np.ndarray, "B 3"]]:
        """Lowest and highest corner of each box along the world's axes."""
        reach = np.einsum("bij,bj->bi", np.abs(self.rotations), self.half_sizes)
        return self.centres - reach, self.centres + reach

    def hull(self) -> tuple[Vector, Vector]:
        """Lowest and highest corner of all of them."""
        lows, highs = self.bounds()
        return lows.min(axis=0), highs.max(axis=0)

    def points(self, per_axis: int = 5) -> Points:
        """A regular grid of points in each box, its corners among them."""
        axis = np.linspace(-1.0, 1.0, per_axis)
        grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        local = grid[None] * self.half_sizes[:, None]
        spread = np.einsum("bni,bji->bnj", local, self.rotations)
        return (spread + self.centres[:, None]).reshape(-1, 3)

    def near(self, point: Vector, radius: float) -> Boxes:
        """Those that might reach into a ball."""
        distance = np.linalg.norm(self.centres - point, axis=1)
        return self.where(distance < radius + np.linalg.norm(self.half_sizes, axis=1))

    def distances(self, points: Points) -> Float64[np.ndarray, " N"]:
        """Distance of each point to the nearest surface, negative inside; inf if there are no boxes."""
        offsets = points[:, None] - self.centres[None]
        beyond = np.abs(np.einsum("nbi,bij->nbj", offsets, self.rotations)) - self.half_sizes
        outside = np.linalg.norm(np.maximum(beyond, 0.0), axis=-1)
        return (outside + np.minimum(beyond.max(axis=-1), 0.0)).min(axis=1, initial=np.inf)


def unit(vector: Vector) -> Vector:
    """The same direction, length 1."""
    return vector / np.linalg.norm(vector)


def wrap_half_turn(angle: float) -> float:
    """The same angle modulo pi, in [-pi/2, pi/2): all that matters of a line's direction."""
    return (angle + np.pi / 2) % np.pi - np.pi / 2


def rotation_about(axis: Vector, angle: float) -> Matrix:
    """Rotation by an angle about a unit axis (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def rotation_vector(rotation: Matrix) -> Vector:
    """Axis times angle of a rotation; the angle lies in [0, pi]."""
    doubled = rotation - rotation.T
    skew = np.array([doubled[2, 1], doubled[0, 2], doubled[1, 0]]) / 2
    sine, cosine = np.linalg.norm(skew), (np.trace(rotation) - 1) / 2
    angle = np.arctan2(sine, cosine)
    if sine > 1e-6:
        return skew / sine * angle
    if cosine > 0:
        return skew
    # half a turn: any column of R + 1 that is not zero points along the axis
    return unit((rotation + np.eye(3))[:, int(np.argmax(np.diag(rotation)))]) * angle
