"""Lighter images of LIBERO: visual meshes with fewer faces and smaller textures, made once and kept on disk.

LIBERO's scenes have 240,000 to 400,000 faces, most of them in scanned groceries and the robot's arm, and textures of
up to 4096 pixels. Here files are exchanged in the model's XML before MuJoCo reads it, so that neither memory nor start
pays for the originals. Only meshes that nothing collides with are touched; the physics is bit-identical.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import Float, Float32, Int32

from vla_rl.envs.libero.package import cache_folder
from vla_rl.envs.rendering.gl import load_mujoco
from vla_rl.envs.rendering.meshes import simplify_mesh

_VERSION = "4"  # part of every file name in the cache: raise it when the result changes
_SAMPLES = 40_000
_SMOOTH = 0.8  # cosine between normals of faces that are drawn as one round surface
_TURNED = 0.1  # of the mesh's size
_LEAP = 0.25  # of a face's longest side in the texture
_VISUAL = "1"
"""Group of the geoms that are only drawn. robosuite's models take masses and inertias from group 0 alone."""


def lighten(xml: str, max_faces: int, max_texture: int) -> str:
    """A model's XML with its visual meshes cut to `max_faces` faces and its textures to `max_texture` pixels a side."""
    root = ElementTree.fromstring(xml)
    for mesh in _visual_meshes(root):
        mesh.set("file", str(_light_mesh(Path(mesh.attrib["file"]), max_faces)))
        # a coarse shell may enclose no volume, which would be refused; its mass is not used
        mesh.set("inertia", "shell")
    for texture in _texture_files(root):
        texture.set("file", str(_light_texture(Path(texture.attrib["file"]), max_texture)))
    return ElementTree.tostring(root, encoding="unicode")


def without_looks(xml: str) -> str:
    """The same model with the same names, its visual meshes and textures the smallest there are: never drawn."""
    root = ElementTree.fromstring(xml)
    for mesh in _visual_meshes(root):
        del mesh.attrib["file"]
        mesh.set("vertex", "0 0 0  1 0 0  0 1 0  0 0 1")
    for texture in _texture_files(root):
        del texture.attrib["file"]
        for name, value in {"builtin": "flat", "width": "6", "height": "6"}.items():
            texture.set(name, value)
    return ElementTree.tostring(root, encoding="unicode")


def _visual_meshes(root: ElementTree.Element) -> list[ElementTree.Element]:
    """Mesh files that nothing collides with."""
    physical = {geom.get("mesh") for geom in root.iter("geom") if not _only_drawn(geom)}
    meshes = [mesh for mesh in root.iter("mesh") if mesh.get("name") not in physical]
    return [mesh for mesh in meshes if os.path.isabs(mesh.get("file", ""))]


def _texture_files(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [t for t in root.iter("texture") if os.path.isabs(t.get("file", ""))]


def _only_drawn(geom: ElementTree.Element) -> bool:
    collides = not geom.get("contype") == geom.get("conaffinity") == "0"
    return geom.get("group") == _VISUAL and not collides


# -- the cache on disk -------------------------------------------------------------------------------


def _light(
    source: Path, setting: str, suffix: str, lighter: Callable[[Path], bytes | None]
) -> Path:
    """The light version of `source`, made now or earlier; `source` itself where `lighter` has nothing to gain.

    Its name is made of the contents of `source`, so that another version of the package finds no old one.
    """
    name = hashlib.sha256(f"{_VERSION} {setting} {_digest(source)}".encode()).hexdigest()[:32]
    target = cache_folder("libero-assets") / f"{name}{suffix}"
    if not target.is_file():
        _write(target, lighter(source) or b"")
    return target if target.stat().st_size else source


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(path: Path, contents: bytes) -> None:
    """All or nothing: several simulator processes may be making the same file."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(contents)
    os.replace(file.name, path)


# -- textures ----------------------------------------------------------------------------------------


def _light_texture(source: Path, limit: int) -> Path:
    return _light(source, f"texture {limit}", ".png", lambda path: _smaller_texture(path, limit))


def _smaller_texture(source: Path, limit: int) -> bytes | None:
    import cv2  # comes with robosuite

    image = cv2.imread(str(source), cv2.IMREAD_COLOR)
    share = 1.0 if image is None else limit / min(image.shape[:2])
    if image is None or share >= 1:
        return None
    height, width = image.shape[:2]
    size = max(1, round(width * share)), max(1, round(height * share))
    encoded, contents = cv2.imencode(".png", cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    return contents.tobytes() if encoded else None


# -- meshes ------------------------------------------------------------------------------------------


class _Surface(NamedTuple):
    """A triangle mesh, each corner of each face with its own normal and texture coordinate."""

    vertices: Float32[np.ndarray, "V 3"]
    faces: Int32[np.ndarray, "F 3"]
    normals: Float32[np.ndarray, "F 3 3"]
    texture: Float32[np.ndarray, "F 3 2"] | None


def _light_mesh(source: Path, max_faces: int) -> Path:
    return _light(source, f"mesh {max_faces}", ".msh", lambda path: _coarser_mesh(path, max_faces))


def _coarser_mesh(source: Path, max_faces: int) -> bytes | None:
    surface = _read_mesh(source)
    if len(surface.faces) <= max_faces:
        return None
    return _msh(*_simplify(surface, max_faces))


def _read_mesh(source: Path) -> _Surface:
    """Let MuJoCo read the file, whatever its format, and undo its move to the centre of mass."""
    mujoco = load_mujoco()
    model: Any = mujoco.MjModel.from_xml_string(
        f'<mujoco><asset><mesh name="m" inertia="shell" file={quoteattr(str(source))}/></asset>'
        '<worldbody><geom type="mesh" mesh="m"/></worldbody></mujoco>'
    )
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.mesh_quat[0])
    turn = rotation.reshape(3, 3).T
    vertices = model.mesh_vert.astype(np.float64) @ turn + model.mesh_pos[0]
    normals = model.mesh_normal.astype(np.float64) @ turn
    texture = model.mesh_texcoord[model.mesh_facetexcoord] if model.nmeshtexcoord else None
    return _Surface(
        vertices.astype(np.float32),
        model.mesh_face.copy(),
        normals.astype(np.float32)[model.mesh_facenormal],
        None if texture is None else texture.copy(),
    )


def _simplify(
    surface: _Surface, max_faces: int
) -> tuple[
    Float[np.ndarray, "f 3 3"], Float[np.ndarray, "f 3 3"], Float[np.ndarray, "f 3 2"] | None
]:
    """Corners, normals and texture coordinates of a mesh of at most `max_faces` faces."""
    points, faces = simplify_mesh(surface.vertices, surface.faces, max_faces)
    corners = points[faces]
    return corners, _corner_normals(points, faces), _texture(surface, corners)


def _corner_normals(
    points: Float[np.ndarray, "v 3"], faces: Int32[np.ndarray, "f 3"]
) -> Float[np.ndarray, "f 3 3"]:
    """Smooth over what bends little, with an edge elsewhere; larger faces count for more, so that they look flat."""
    scaled = _scaled_normals(points[faces])
    unit = _unit(scaled)
    normals = np.empty((len(faces), 3, 3), np.float32)
    order = np.argsort(faces, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(faces.reshape(-1)))
    for around in np.split(order, ends[:-1]):
        face, corner = np.divmod(around, 3)
        smooth = unit[face] @ unit[face].T > _SMOOTH
        normals[face, corner] = _unit(smooth @ scaled[face])
    return normals


def _scaled_normals(corners: Float[np.ndarray, "f 3 3"]) -> Float[np.ndarray, "f 3"]:
    """Normals of faces, twice their area long."""
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def _texture(
    surface: _Surface, corners: Float[np.ndarray, "f 3 3"]
) -> Float[np.ndarray, "f 3 2"] | None:
    """Texture coordinates for new faces: those of near points of `surface` that face the same way.

    A face takes all its corners from one chart of the texture: between charts the image shows something else.
    """
    if surface.texture is None:
        return None
    samples = _sampled(surface)
    facing = _unit(_scaled_normals(corners))
    looked_at = _WEIGHTS @ corners
    charts = samples.charts[samples.nearest(looked_at[:, 3:], facing)]
    # of the four charts seen inside the one seen most, on a draw the middle's
    votes = (charts[:, :, None] == charts[:, None]).sum(1)
    chosen = np.take_along_axis(charts, votes.argmax(1)[:, None], 1)[:, 0]
    seen = np.empty((len(corners), 7, 2), np.float32)
    for chart in np.unique(chosen):
        here = chosen == chart
        own = samples.of(chart)
        seen[here] = own.texture[own.nearest(looked_at[here], facing[here])]
    return _without_leaps(seen)


_WEIGHTS = np.array(
    [[6, 0, 0], [0, 6, 0], [0, 0, 6], [2, 2, 2], [4, 1, 1], [1, 4, 1], [1, 1, 4]], np.float32
) / np.float32(6)
"""Where faces are looked at: their corners, their middles, half way between."""


def _without_leaps(seen: Float[np.ndarray, "f 7 2"]) -> Float[np.ndarray, "f 3 2"]:
    """Texture coordinates of corners; where those inside are not between them, the middle's for all three.

    Such a face lies across a cut in its chart, and would show what the image holds beyond.
    """
    corners = seen[:, :3].copy()
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(1)
    leap = np.linalg.norm(_WEIGHTS @ corners - seen, axis=2).max(1)
    across = leap > _LEAP * longest
    corners[across] = seen[across, 3:4]
    return corners


class _Samples(NamedTuple):
    """Points of a surface."""

    points: Float[np.ndarray, "n 3"]
    facing: Float[np.ndarray, "n 3"]
    texture: Float[np.ndarray, "n 2"]
    charts: Int32[np.ndarray, " n"]
    turned: float  # how far away a point counts that faces another way: metres for each unit between the normals

    def of(self, chart: int) -> _Samples:
        """Those of one chart."""
        here = self.charts == chart
        arrays = (array[here] for array in self[:4])
        return _Samples(*arrays, turned=self.turned)

    def nearest(self, points: Float[np.ndarray, "f k 3"], facing: Float[np.ndarray, "f 3"]) -> Any:
        """For each of k points on each face the number of the nearest sample, (f, k).

        One on the other side of a thin wall is far away.
        """
        from scipy.spatial import KDTree

        tree = KDTree(np.concatenate([self.points, self.turned * self.facing], axis=1))
        directions = np.broadcast_to(self.turned * facing[:, None], points.shape)
        return tree.query(np.concatenate([points, directions], axis=2))[1]


def _sampled(surface: _Surface) -> _Samples:
    """The middle of each face, and random points all over the surface."""
    assert surface.texture is not None
    corners = surface.vertices[surface.faces]
    scaled = _scaled_normals(corners)
    area = np.linalg.norm(scaled, axis=1).astype(np.float64) + 1e-20
    rng = np.random.default_rng(0)
    count = len(corners)
    face = np.concatenate([np.arange(count), rng.choice(count, _SAMPLES, p=area / area.sum())])
    weights = rng.dirichlet((1.0, 1.0, 1.0), len(face)).astype(np.float32)
    weights[:count] = 1 / 3
    extent = surface.vertices.max(0) - surface.vertices.min(0)
    return _Samples(
        np.einsum("nk,nkd->nd", weights, corners[face]),
        _unit(scaled)[face],
        np.einsum("nk,nkd->nd", weights, surface.texture[face]),
        _charts(surface)[face],
        turned=_TURNED * float(np.linalg.norm(extent)),
    )


def _charts(surface: _Surface) -> Int32[np.ndarray, " F"]:
    """For each face the number of its texture chart: the faces connected to it in the texture image."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(surface.faces)
    if surface.texture is None:
        return np.zeros(count, dtype=np.int32)
    places = np.round(surface.vertices[surface.faces].reshape(-1, 3), 5)
    keys = np.concatenate([places, np.round(surface.texture.reshape(-1, 2), 5)], axis=1)
    corner = np.unique(keys, axis=0, return_inverse=True)[1].reshape(count, 3)
    pairs = np.concatenate([corner[:, :2], corner[:, 1:]])
    number = int(corner.max()) + 1
    graph = coo_matrix((np.ones(len(pairs)), pairs.T), shape=(number, number))
    return connected_components(graph, directed=False)[1][corner[:, 0]].astype(np.int32)


def _unit(vectors: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _msh(
    corners: Float[np.ndarray, "f 3 3"],
    normals: Float[np.ndarray, "f 3 3"],
    texture: Float[np.ndarray, "f 3 2"] | None,
) -> bytes:
    """MuJoCo's binary mesh format: counts, vertices, normals, texture coordinates, faces."""
    count = 3 * len(corners)
    parts = [struct.pack("4i", count, count, 0 if texture is None else count, len(corners))]
    for array in (corners, normals, texture):
        if array is not None:
            parts.append(np.ascontiguousarray(array, np.float32).tobytes())
    parts.append(np.arange(count, dtype=np.int32).tobytes())
    return b"".join(parts)
