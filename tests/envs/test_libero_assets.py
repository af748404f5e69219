"""Light meshes and textures: what may change, how well it keeps its looks, and the cache on disk."""

from __future__ import annotations

import struct
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_rl.envs.libero import assets as libero_assets
from vla_rl.envs.libero.assets import lighten

pytest.importorskip("mujoco")
pytest.importorskip("fast_simplification")
pytest.importorskip("scipy")
cv2 = pytest.importorskip("cv2")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(libero_assets, "cache_folder", lambda name: folder)
    libero_assets._digest.cache_clear()
    return folder


def wavy_sheet(cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A gently curved square, its texture coordinates, its faces."""
    x, y = np.meshgrid(np.linspace(0, 1, cells + 1), np.linspace(0, 1, cells + 1), indexing="ij")
    points = np.stack([x, y, 0.1 * np.sin(3 * x) * np.cos(2 * y)], -1).reshape(-1, 3)
    corner = np.arange((cells + 1) ** 2).reshape(cells + 1, cells + 1)
    a, b, c, d = corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:]
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)
    return points.astype(np.float32), points[:, :2].astype(np.float32), faces.astype(np.int32)


def write_msh(path: Path, cells: int = 30) -> Path:
    points, texture, faces = wavy_sheet(cells)
    header = struct.pack("4i", len(points), 0, len(points), len(faces))
    path.write_bytes(header + points.tobytes() + texture.tobytes() + faces.tobytes())
    return path


def model_xml(meshes: dict[str, Path], geoms: str, texture: Path | None = None) -> str:
    files = "".join(f'<mesh name="{name}" file="{path}"/>' for name, path in meshes.items())
    image = f'<texture name="t" type="2d" file="{texture}"/>' if texture else ""
    return (
        f'<mujoco><compiler inertiagrouprange="0 0"/><asset>{files}{image}</asset><worldbody>'
        f'<body><freejoint/><geom type="sphere" size=".1" group="0"/>{geoms}</body></worldbody></mujoco>'
    )


def drawn(mesh: str) -> str:
    return f'<geom type="mesh" mesh="{mesh}" contype="0" conaffinity="0" group="1"/>'


def files_of(xml: str) -> dict[str, str]:
    root = ElementTree.fromstring(xml)
    return {
        e.get("name", ""): e.get("file", "") for e in [*root.iter("mesh"), *root.iter("texture")]
    }


def compiled(xml: str) -> Any:
    import mujoco

    return mujoco.MjModel.from_xml_string(xml)


def test_only_what_is_merely_drawn_is_exchanged(cache: Path, tmp_path: Path):
    """Not what collides, in either direction, nor what weighs: group 0 makes up the masses."""
    meshes = {name: write_msh(tmp_path / f"{name}.msh") for name in "abcde"}
    geoms = (
        drawn("a")
        + '<geom type="mesh" mesh="b" contype="0" conaffinity="1" group="1"/>'
        + '<geom type="mesh" mesh="c" contype="0" conaffinity="0" group="0"/>'
        + '<geom type="mesh" mesh="d"/>'
        + drawn("e")
        + '<geom type="mesh" mesh="e" group="1"/>'  # drawn here, hit there
    )
    # flat meshes that collide cannot be compiled with exact inertia
    exchanged = files_of(lighten(model_xml(meshes, geoms), 100, 64))
    assert Path(exchanged["a"]).parent == cache
    for name in "bcde":
        assert exchanged[name] == str(meshes[name])


def test_physics_of_the_body_is_untouched(cache: Path, tmp_path: Path):
    xml = model_xml({"a": write_msh(tmp_path / "a.msh")}, drawn("a"))
    whole = compiled(xml.replace('<mesh name="a"', '<mesh name="a" inertia="shell"'))
    light = compiled(lighten(xml, 100, 64))
    assert light.nmeshface <= 100 < whole.nmeshface
    for name in ("body_mass", "body_inertia", "body_ipos", "body_iquat", "dof_invweight0"):
        np.testing.assert_array_equal(getattr(light, name), getattr(whole, name), err_msg=name)


def test_a_model_without_looks_has_the_same_names_and_physics(cache: Path, tmp_path: Path):
    image = tmp_path / "big.png"
    cv2.imwrite(str(image), np.zeros((100, 300, 3), np.uint8))
    meshes = {"a": write_msh(tmp_path / "a.msh"), "b": write_msh(tmp_path / "b.msh")}
    xml = model_xml(meshes, drawn("a") + drawn("b"), image)
    whole = compiled(xml.replace('<mesh name="a"', '<mesh name="a" inertia="shell"')
                     .replace('<mesh name="b"', '<mesh name="b" inertia="shell"'))  # fmt: skip
    bare = compiled(libero_assets.without_looks(xml))
    assert bare.nmeshface <= 8
    assert bare.tex_data.size <= 6 * 6 * 3
    assert bare.mesh("b").id == whole.mesh("b").id
    np.testing.assert_array_equal(bare.body_inertia, whole.body_inertia)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("max_faces", [60, 200])
def test_shape_texture_and_normals_stay_in_place(cache: Path, tmp_path: Path, max_faces: int):
    source = write_msh(tmp_path / "a.msh")
    light = libero_assets._read_mesh(libero_assets._light_mesh(source, max_faces))
    assert max_faces // 3 < len(light.faces) <= max_faces
    corners = light.vertices[light.faces].reshape(-1, 3)
    np.testing.assert_allclose(corners.min(0)[:2], 0, atol=0.06)
    np.testing.assert_allclose(corners.max(0)[:2], 1, atol=0.06)
    height = 0.1 * np.sin(3 * corners[:, 0]) * np.cos(2 * corners[:, 1])
    np.testing.assert_allclose(corners[:, 2], height, atol=0.02)
    # on this sheet a point's texture coordinates are its place
    assert light.texture is not None
    np.testing.assert_allclose(light.texture.reshape(-1, 2), corners[:, :2], atol=0.06)
    upwards = light.normals.reshape(-1, 3)[:, 2]
    assert upwards.min() > 0.3
    assert np.median(upwards) > 0.9


def test_a_texture_is_never_taken_from_another_piece(cache: Path):
    """Two sheets lie close above each other; their texture coordinates are far apart."""
    points, texture, faces = wavy_sheet(20)
    lower = points - np.array([0, 0, 0.01], np.float32)
    surface = libero_assets._Surface(
        np.concatenate([points, lower]),
        np.concatenate([faces, faces[:, ::-1] + len(points)]),
        np.repeat(np.array([[0, 0, 1], [0, 0, -1]], np.float32), len(faces), 0)[:, None].repeat(
            3, 1
        ),
        np.concatenate([texture[faces], texture[faces[:, ::-1]] + 5]),
    )
    assert len(np.unique(libero_assets._charts(surface))) == 2
    corners, normals, coordinates = libero_assets._simplify(surface, 120)
    assert coordinates is not None
    piece = coordinates.min((1, 2)) > 3
    assert 20 < piece.sum() < len(corners) - 20
    np.testing.assert_array_equal(coordinates.max((1, 2)) > 3, piece)  # no face lies in both
    np.testing.assert_array_equal(normals[:, 0, 2] < 0, piece)


def test_a_face_across_a_cut_shows_its_middle_instead_of_everything_between(cache: Path):
    """A tube whose texture begins where it ends: no face may run once around the image."""
    around, along = 60, 20
    turn, height = np.meshgrid(
        np.linspace(0, 1, around + 1), np.linspace(0, 1, along + 1), indexing="ij"
    )
    angle = 2 * np.pi * turn
    points = np.stack([0.2 * np.cos(angle), 0.2 * np.sin(angle), height], -1)
    corner = np.arange((around + 1) * (along + 1)).reshape(around + 1, along + 1)
    a, b, c, d = corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:]
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)
    texture = np.stack([turn, height], -1).reshape(-1, 2).astype(np.float32)
    points = points.reshape(-1, 3).astype(np.float32)
    surface = libero_assets._Surface(
        points, faces.astype(np.int32), np.zeros((len(faces), 3, 3), np.float32), texture[faces]
    )
    corners, normals, coordinates = libero_assets._simplify(surface, 100)
    assert coordinates is not None
    spans = np.ptp(coordinates[..., 0], axis=1)
    assert spans.max() < 0.5
    assert (spans == 0).sum() < len(spans) / 3
    outwards = normals[..., :2] / np.linalg.norm(normals[..., :2], axis=-1, keepdims=True)
    place = corners[..., :2] / np.linalg.norm(corners[..., :2], axis=-1, keepdims=True)
    assert np.einsum("fkd,fkd->fk", outwards, place).min() > 0.7


def test_what_is_light_already_stays_the_file_it_is(cache: Path, tmp_path: Path):
    small = write_msh(tmp_path / "small.msh", cells=4)
    image = tmp_path / "small.png"
    cv2.imwrite(str(image), np.zeros((32, 64, 3), np.uint8))
    xml = lighten(model_xml({"a": small}, drawn("a"), image), 100, 32)
    assert files_of(xml) == {"a": str(small), "t": str(image)}
    assert compiled(xml).nmeshface == 32


def test_textures_shrink_to_the_limit_and_keep_their_colours(cache: Path, tmp_path: Path):
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, :150] = (10, 200, 30)
    path = tmp_path / "big.png"
    cv2.imwrite(str(path), image)
    small = cv2.imread(str(libero_assets._light_texture(path, 20)))
    assert small.shape == (20, 60, 3)
    np.testing.assert_array_equal(small[:, :29], np.broadcast_to((10, 200, 30), (20, 29, 3)))
    np.testing.assert_array_equal(small[:, 31:], 0)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    assert (
        libero_assets._light_texture(broken, 20) == broken
    )  # MuJoCo will say what is wrong with it


def test_the_cache_is_used_and_knows_contents_and_settings(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made: list[Path] = []
    simplify = libero_assets._coarser_mesh

    def counted(path: Path, max_faces: int) -> bytes | None:
        made.append(path)
        return simplify(path, max_faces)

    monkeypatch.setattr(libero_assets, "_coarser_mesh", counted)
    source = write_msh(tmp_path / "a.msh")
    first = libero_assets._light_mesh(source, 100)
    assert libero_assets._light_mesh(source, 100) == first
    assert len(made) == 1
    assert libero_assets._light_mesh(source, 120) != first
    same = tmp_path / "copy.msh"
    same.write_bytes(source.read_bytes())
    assert libero_assets._light_mesh(same, 100) == first
    assert len(made) == 2
    write_msh(same, cells=31)
    libero_assets._digest.cache_clear()  # as in the next process
    assert libero_assets._light_mesh(same, 100) != first
    write_msh(same, cells=3)
    libero_assets._digest.cache_clear()
    assert libero_assets._light_mesh(same, 100) == libero_assets._light_mesh(same, 100) == same
    assert len(made) == 4


def test_several_processes_may_make_the_same_file_at_once(cache: Path, tmp_path: Path):
    source = write_msh(tmp_path / "a.msh")
    barrier, results = threading.Barrier(4), []

    def make() -> None:
        barrier.wait()
        results.append(libero_assets._light_mesh(source, 100).read_bytes())

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1
    assert len(results[0]) > 1000
    assert len(list(cache.iterdir())) == 1  # and nothing half-written is left


def test_a_name_with_special_characters(cache: Path, tmp_path: Path):
    folder = tmp_path / "a & b 'c'"
    folder.mkdir()
    source = write_msh(folder / "sheet.msh")
    assert libero_assets._light_mesh(source, 100).parent == cache


@pytest.mark.sim
def test_a_scene_gets_light():
    """All meshes that are drawn, with memory and files to match; LIBERO-object, where the groceries are."""
    pytest.importorskip("libero")
    from vla_rl.config import EnvConfig
    from vla_rl.envs.libero.env import LiberoEnv
    from vla_rl.types import EpisodeSpec

    config = EnvConfig(
        suite="libero-object:0",
        image_size=64,
        mesh_faces=120,
        settle_steps=0,
        initial_states=50,
        held_out=10,
    )
    env = LiberoEnv(config)
    env.reset(EpisodeSpec(env.tasks[0], 0))
    model = env._own().model
    visible = np.flatnonzero((model.geom_group == 1) & (model.geom_dataid >= 0))
    faces = model.mesh_facenum[model.geom_dataid[visible]]
    assert len(faces) > 20
    assert faces.max() <= 120
    assert np.minimum(model.tex_width, model.tex_height).max() <= 256
    assert model.tex_data.nbytes < 40e6
    env.close()
