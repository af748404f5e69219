"""Simplified meshes keep their outline and their number of faces in bounds, and physics never sees them."""

from __future__ import annotations

import numpy as np
import pytest

from vla_rl.envs.rendering.meshes import decimate_model, simplify_mesh

pytest.importorskip("fast_simplification")


def sphere(rings: int, sectors: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit sphere: vertices and triangles."""
    latitude, longitude = np.meshgrid(
        np.linspace(0, np.pi, rings),
        np.linspace(0, 2 * np.pi, sectors, endpoint=False),
        indexing="ij",
    )
    points = np.stack(
        [
            np.sin(latitude) * np.cos(longitude),
            np.sin(latitude) * np.sin(longitude),
            np.cos(latitude),
        ],
        -1,
    )
    i, j = np.meshgrid(np.arange(rings - 1), np.arange(sectors), indexing="ij")
    a, b = i * sectors + j, i * sectors + (j + 1) % sectors
    quads = np.stack([a, a + sectors, b, b, a + sectors, b + sectors], -1).reshape(-1, 3)
    return points.reshape(-1, 3).astype(np.float32), quads.astype(np.int32)


@pytest.mark.parametrize("max_faces", [60, 150, 1000])
def test_a_sphere_stays_round(max_faces: int):
    vertices, faces = sphere(40, 60)
    points, few = simplify_mesh(vertices, faces, max_faces)
    assert max_faces // 2 < len(few) <= max_faces
    radii = np.linalg.norm(points, axis=1)
    assert radii.min() > 0.75
    assert radii.max() < 1.25
    np.testing.assert_allclose(points.max(0), 1, atol=0.2)
    np.testing.assert_allclose(points.min(0), -1, atol=0.2)


def test_hundreds_of_separate_pieces_still_reach_the_number():
    """Edge collapse alone cannot go below a few faces per piece; CAD meshes are made of pieces."""
    vertices, faces = sphere(6, 8)
    rng = np.random.default_rng(0)
    centres = rng.uniform(-1, 1, (200, 3)).astype(np.float32)
    many = np.concatenate([0.05 * vertices + centre for centre in centres])
    pieces = np.concatenate([faces + k * len(vertices) for k in range(200)])
    points, few = simplify_mesh(many, pieces, 150)
    assert 0 < len(few) <= 150
    np.testing.assert_allclose(points.max(0), many.max(0), atol=0.5)


def test_indices_are_valid_and_faces_not_degenerate():
    points, few = simplify_mesh(*sphere(30, 30), 100)
    assert few.min() >= 0
    assert few.max() < len(points)
    assert all(len(set(face)) == 3 for face in few.tolist())


@pytest.mark.sim
def test_only_what_is_drawn_changes():
    from vla_rl.envs.rendering.gl import load_metaworld_classes

    model = load_metaworld_classes()["drawer-open-v3"]().model
    before = {
        name: getattr(model, name).copy()
        for name in (
            "mesh_vert",
            "mesh_graph",
            "mesh_normal",
            "geom_size",
            "geom_rbound",
            "body_inertia",
        )
    }
    decimate_model(model, 0)
    assert model.mesh_facenum.max() > 13_000
    decimate_model(model, 150)
    assert model.mesh_facenum.max() <= 150
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(model, name), array, err_msg=name)
    for mesh in range(model.nmesh):
        first, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        faces = model.mesh_face[first : first + count]
        assert faces.min() >= 0
        assert faces.max() < model.mesh_vertnum[mesh]
        assert model.mesh_facenormal[first : first + count].max() < model.mesh_normalnum[mesh]
