"""Draw meshes with fewer faces, without touching what the physics sees.

Software OpenGL is bound by vertices: the Sawyer arm alone has 65,000 faces, drawn one by one. Collisions use
`mesh_vert` and the convex hulls (`mesh_graph`); the face list is read by the renderer only. So the simplified faces
are written over the head of each mesh's face list, as indices of vertices that are there already.
"""

from __future__ import annotations

import hashlib
import importlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int32

Vertices = Float32[np.ndarray, "_ 3"]
Faces = Int32[np.ndarray, "_ 3"]

_WELD_GRIDS = (1000, 96, 64, 48, 32, 24, 20, 16, 12, 10, 8, 6, 5, 4, 3, 2)
"""Cells along the longest side, finest first. CAD meshes are hundreds of separate screws and shells, which no
edge collapse can merge; snapping vertices to a grid does."""

_CACHE: dict[tuple[str, int], _Simplified] = {}
"""The arm's meshes are the same in all fifty models: simplified once per process."""


class _Simplified(NamedTuple):
    faces: Faces  # indices of the mesh's own vertices
    normals: Faces  # indices of the mesh's own vertices whose normal is used at each corner


def decimate_model(model: Any, max_faces: int) -> None:
    """Make every mesh of a `mujoco.MjModel` draw with at most `max_faces` faces; 0 changes nothing.

    Must run before the rendering context uploads the meshes. Physics is bit-identical before and after.
    """
    if max_faces == 0:
        return
    for mesh in range(model.nmesh):
        if model.mesh_facenum[mesh] > max_faces:
            _decimate_mesh(model, mesh, max_faces)


def _decimate_mesh(model: Any, mesh: int, max_faces: int) -> None:
    first_face, first_vertex = model.mesh_faceadr[mesh], model.mesh_vertadr[mesh]
    rows = slice(first_face, first_face + model.mesh_facenum[mesh])
    vertices = model.mesh_vert[first_vertex : first_vertex + model.mesh_vertnum[mesh]]
    faces, normals = model.mesh_face[rows].copy(), model.mesh_facenormal[rows].copy()
    texture = model.mesh_facetexcoord[rows].copy()

    key = (hashlib.sha256(vertices.tobytes() + faces.tobytes()).hexdigest(), max_faces)
    if key not in _CACHE:
        normal_of = _attribute_of_vertex(faces, normals, len(vertices))
        first_normal = model.mesh_normaladr[mesh]
        _CACHE[key] = _simplify(
            vertices, faces, model.mesh_normal[first_normal + normal_of], max_faces
        )
    simplified = _CACHE[key]

    rows = slice(first_face, first_face + len(simplified.faces))
    model.mesh_face[rows] = simplified.faces
    model.mesh_facenormal[rows] = _attribute_of_vertex(faces, normals, len(vertices))[
        simplified.normals
    ]
    model.mesh_facetexcoord[rows] = _attribute_of_vertex(faces, texture, len(vertices))[
        simplified.faces
    ]
    model.mesh_facenum[mesh] = len(simplified.faces)


def _attribute_of_vertex(
    faces: Faces, attribute: Faces, num_vertices: int
) -> Int32[np.ndarray, " V"]:
    """For each vertex the attribute index (normal, texture) that some face gives it."""
    table = np.zeros(num_vertices, dtype=np.int32)
    table[faces.reshape(-1)] = attribute.reshape(-1)
    return table


def _simplify(vertices: Vertices, faces: Faces, normals: Vertices, max_faces: int) -> _Simplified:
    from scipy.spatial import KDTree

    points, few = simplify_mesh(vertices, faces, max_faces)
    neighbours = KDTree(vertices).query(points, k=min(8, len(vertices)))[1]
    near = np.asarray(neighbours).reshape(len(points), -1)
    corners = points[few]
    facing = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    # of the original vertices around a corner, the one whose normal agrees best with the new face:
    # the nearest alone may lie on the inner side of a thin wall, and the face would be drawn black
    agreement = np.einsum("fckd,fd->fck", normals[near[few]], facing)
    best = np.take_along_axis(near[few], agreement.argmax(2)[..., None], 2)[..., 0]
    return _Simplified(near[:, 0][few].astype(np.int32), best.astype(np.int32))


def simplify_mesh(
    vertices: Vertices, faces: Faces, max_faces: int
) -> tuple[Float[np.ndarray, "_ 3"], Faces]:
    """A mesh of at most `max_faces` faces with the same outline.

    Quadric edge collapse (`fast_simplification`) after welding on the finest grid that lets it reach the number.
    """
    fast_simplification: Any = importlib.import_module("fast_simplification")
    for cells in _WELD_GRIDS:
        points, triangles = _weld(vertices, faces, cells)
        if len(triangles) > max_faces:
            points, triangles = fast_simplification.simplify(
                points, triangles, target_count=max_faces
            )
        if len(triangles) <= max_faces:
            break
    return points, triangles[:max_faces].astype(np.int32)  # cut only if max_faces is absurdly small


def _weld(vertices: Vertices, faces: Faces, cells: int) -> tuple[Vertices, Faces]:
    """Merge the vertices of each grid cell into their mean; drop faces that vanish or repeat."""
    low = vertices.min(0)
    cell = max(float((vertices.max(0) - low).max()), 1e-9) / cells
    key = np.floor((vertices - low) / cell + 0.5).astype(np.int64)
    _, group, count = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    sums = [np.bincount(group, vertices[:, axis]) for axis in range(3)]
    triangles = group[faces]
    a, b, c = triangles.T
    triangles = triangles[(a != b) & (b != c) & (a != c)]
    triangles = triangles[np.unique(np.sort(triangles, 1), axis=0, return_index=True)[1]]
    used, compact = np.unique(triangles, return_inverse=True)
    points = (np.stack(sums, 1) / count[:, None])[used].astype(np.float32)
    return points, compact.reshape(triangles.shape).astype(np.int32)
