"""Lighter pictures of LIBERO: visual meshes with fewer faces and smaller textures, made once and kept on disk.

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
from jaxtyping import Float32, Int32

from vla_rl.envs.gl import load_mujoco
from vla_rl.envs.libero_package import cache_folder
from vla_rl.envs.meshes import simplify_mesh

_VERSION = "2"  # part of every file name in the cache: raise it when the result changes
_NEIGHBOURS = 8
_VISUAL = "1"
"""Group of the geoms that are only drawn. robosuite's models take masses and inertias from group 0 alone."""


def lighten(xml: str, max_faces: int, max_texture: int) -> str:
    """A model's XML with its visual meshes cut to `max_faces` faces and its textures to `max_texture` pixels a side."""
    root = ElementTree.fromstring(xml)
    physical = {geom.get("mesh") for geom in root.iter("geom") if not _only_drawn(geom)}
    for mesh in root.iter("mesh"):
        file = mesh.get("file", "")
        if os.path.isabs(file) and mesh.get("name") not in physical:
            mesh.set("file", str(_light_mesh(Path(file), max_faces)))
            # a coarse shell may enclose no volume, which would be refused; its mass is not used
            mesh.set("inertia", "shell")
    for texture in root.iter("texture"):
        file = texture.get("file", "")
        if os.path.isabs(file):
            texture.set("file", str(_light_texture(Path(file), max_texture)))
    return ElementTree.tostring(root, encoding="unicode")


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

    picture = cv2.imread(str(source), cv2.IMREAD_COLOR)
    share = 1.0 if picture is None else limit / min(picture.shape[:2])
    if picture is None or share >= 1:
        return None
    height, width = picture.shape[:2]
    size = max(1, round(width * share)), max(1, round(height * share))
    encoded, contents = cv2.imencode(
        ".png", cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    )
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
    Float32[np.ndarray, "f 3 3"], Float32[np.ndarray, "f 3 3"], Float32[np.ndarray, "f 3 2"] | None
]:
    """Corners, normals and texture coordinates of a mesh of at most `max_faces` faces."""
    points, faces = simplify_mesh(surface.vertices, surface.faces, max_faces)
    corners = points[faces]
    facing = _unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    charts = _charts(surface)
    source = _nearest_agreeing(
        corners.mean(1), facing, surface.vertices[surface.faces].mean(1), surface.normals.mean(1)
    )
    # each corner takes its texture from the chart its face lies in: beyond the chart's edge the texture image
    # shows something else
    normals = np.empty_like(corners)
    texture = None if surface.texture is None else np.empty((*corners.shape[:2], 2), np.float32)
    for chart in np.unique(charts[source]):
        of_source, of_new = charts == chart, charts[source] == chart
        places = surface.vertices[surface.faces[of_source]].reshape(-1, 3)
        found = _nearest_agreeing(
            corners[of_new].reshape(-1, 3),
            np.repeat(facing[of_new], 3, axis=0),
            places,
            surface.normals[of_source].reshape(-1, 3),
        )
        normals[of_new] = surface.normals[of_source].reshape(-1, 3)[found].reshape(-1, 3, 3)
        if texture is not None and surface.texture is not None:
            coordinates = surface.texture[of_source].reshape(-1, 2)
            texture[of_new] = coordinates[found].reshape(-1, 3, 2)
    return corners, normals, texture


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


def _nearest_agreeing(
    points: Float32[np.ndarray, "n 3"],
    facing: Float32[np.ndarray, "n 3"],
    places: Float32[np.ndarray, "N 3"],
    normals: Float32[np.ndarray, "N 3"],
) -> Int32[np.ndarray, " n"]:
    """For each point the index of a near place, of several the one whose normal agrees best with `facing`.

    The nearest alone may lie on the inner side of a thin wall.
    """
    from scipy.spatial import KDTree

    near = KDTree(places).query(points, k=min(_NEIGHBOURS, len(places)))[1].reshape(len(points), -1)
    agreement = np.einsum("nkd,nd->nk", _unit(normals)[near], facing)
    nearest_good = np.argmax(
        agreement > 0.5, axis=1
    )  # the first, and so the nearest, that agrees well
    best = np.where((agreement > 0.5).any(1), nearest_good, agreement.argmax(1))
    return np.take_along_axis(near, best[:, None], 1)[:, 0].astype(np.int32)


def _unit(vectors: Float32[np.ndarray, "n 3"]) -> Float32[np.ndarray, "n 3"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _msh(
    corners: Float32[np.ndarray, "f 3 3"],
    normals: Float32[np.ndarray, "f 3 3"],
    texture: Float32[np.ndarray, "f 3 2"] | None,
) -> bytes:
    """MuJoCo's binary mesh format: counts, vertices, normals, texture coordinates, faces."""
    count = 3 * len(corners)
    parts = [struct.pack("4i", count, count, 0 if texture is None else count, len(corners))]
    for array in (corners, normals, texture):
        if array is not None:
            parts.append(np.ascontiguousarray(array, np.float32).tobytes())
    parts.append(np.arange(count, dtype=np.int32).tobytes())
    return b"".join(parts)
