"""Images of one MuJoCo model, as fast as software OpenGL allows.

With MuJoCo's defaults a 64-pixel image of a Meta-World task takes some 100 ms on one core: shadows and reflections
70, multisampling 10, and 68,000 mesh faces most of the rest. All that is off or simplified here unless `pretty` is
asked for, and planes and round shapes are built of fewer pieces: half a millisecond is left. Only how things are drawn
changes, never the physics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, nearest
from vla_rl.envs.rendering.gl import load_mujoco, shared_context
from vla_rl.envs.rendering.meshes import decimate_model

CORNER2_POSITION = (0.75, 0.075, 0.7)
"""Where `corner2` stands in the literature (its place in Meta-World's files is far away); it is also upside down."""

_PRETTY_SHADOW_MAP = 2048
TEXELS_PER_PIXEL = 4
"""Textures are kept at so many times the image's size; OpenGL averages further."""

_FAR = 100.0  # metres: a plane drawn as one tile instead of a grid of a thousand


@dataclass(frozen=True)
class CameraSettings:
    """How images are taken; environments with equal settings share simulators."""

    camera: str
    size: int  # pixels, height and width
    mesh_faces: int  # 0 draws meshes whole
    pretty: bool  # shadows, reflections, sky, smooth edges: for videos
    second: str = (
        ""  # another camera of the same model, drawn as large and as well; none where empty
    )

    @staticmethod
    def of(config: EnvConfig, pretty: bool, default_camera: str = "corner2") -> CameraSettings:
        """What `config` asks for; where it names no camera, the benchmark's own."""
        camera = config.camera or default_camera
        return CameraSettings(
            camera,
            config.image_size,
            config.mesh_faces,
            pretty or config.effects,
            config.wrist_camera,
        )


@dataclass(frozen=True)
class Drawing:
    """What is drawn, and how well. The fields that a benchmark's images depend on."""

    effects: bool  # shadows, reflections, sky, haze
    multisamples: int  # smooth edges
    shadow_map: int  # pixels along its side
    simplified: bool  # smaller textures, coarser planes and round shapes
    hidden_group: int | None = None  # geoms of this group are not drawn
    upside_down: bool = False  # the camera hangs so: rows are swapped
    mirrored: bool = False  # columns are swapped
    second_turned: tuple[bool, bool] | None = None
    """The last two for the second camera, where they are not the first's."""

    @staticmethod
    def of_metaworld(settings: CameraSettings) -> Drawing:
        """Fast by default, everything on for videos. corner2 hangs upside down."""
        pretty = settings.pretty
        return Drawing(
            effects=pretty,
            multisamples=4 if pretty else 0,
            shadow_map=_PRETTY_SHADOW_MAP if pretty else 0,
            simplified=not pretty and settings.mesh_faces > 0,
            upside_down=settings.camera == "corner2",
            mirrored=settings.camera == "corner2",
            second_turned=(settings.second == "corner2", settings.second == "corner2"),
        )


class Camera:
    """Takes images of one model. Owns OpenGL buffers; `close` frees them."""

    def __init__(self, model: Any, settings: CameraSettings, drawing: Drawing) -> None:
        self._mujoco = mujoco = load_mujoco()
        self._model = model
        self._arrange = _arranged(drawing.upside_down, drawing.mirrored)
        camera_id = camera_index(model, settings.camera)
        self._second_id = camera_index(model, settings.second) if settings.second else None
        second_turned = (drawing.upside_down, drawing.mirrored)
        self._second_arrange = _arranged(*(drawing.second_turned or second_turned))
        decimate_model(model, settings.mesh_faces)

        shared_context()
        self._context = _upload(model, settings.size, drawing)
        self._scene = mujoco.MjvScene(model, maxgeom=max(200, 2 * (model.ngeom + model.nsite)))
        if not drawing.effects:
            for name in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE"):
                self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{name}")] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = camera_id
        self._options, self._perturbation = mujoco.MjvOption(), mujoco.MjvPerturb()
        if drawing.hidden_group is not None:
            self._options.geomgroup[drawing.hidden_group] = 0
        self._area = mujoco.MjrRect(0, 0, settings.size, settings.size)
        self._pixels = np.empty((settings.size, settings.size, 3), dtype=np.uint8)

    def image(self, data: Any) -> UInt8[np.ndarray, "H W 3"]:
        """What the camera sees of `data` (whose positions must be up to date), upright RGB, a fresh array."""
        return self._draw(data)[self._arrange].copy()

    def second_image(self, data: Any) -> UInt8[np.ndarray, "H W 3"]:
        """The same of the second camera."""
        assert self._second_id is not None
        first, self._camera.fixedcamid = self._camera.fixedcamid, self._second_id
        try:
            return self._draw(data)[self._second_arrange].copy()
        finally:
            self._camera.fixedcamid = first

    def _draw(self, data: Any) -> UInt8[np.ndarray, "H W 3"]:
        mujoco = self._mujoco
        shared_context()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        mujoco.mjv_updateScene(
            self._model, data, self._options, self._perturbation, self._camera,
            mujoco.mjtCatBit.mjCAT_ALL, self._scene,
        )  # fmt: skip
        mujoco.mjr_render(self._area, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._area, self._context)
        return self._pixels

    def close(self) -> None:
        shared_context()
        self._context.free()


def _arranged(upside_down: bool, mirrored: bool) -> tuple[slice, slice]:
    """How to read OpenGL's rows, which run upwards."""
    return slice(None, None, 1 if upside_down else -1), slice(None, None, -1 if mirrored else 1)


def camera_index(model: Any, name: str) -> int:
    """Which of the model's cameras is called `name`. ConfigError with the nearest name if none is."""
    names = [model.camera(i).name for i in range(model.ncam)]
    if name not in names:
        raise ConfigError(f"the simulator has no camera {name!r}.{nearest(name, names)}")
    return names.index(name)


def _upload(model: Any, size: int, drawing: Drawing) -> Any:
    """Make the model's OpenGL context. Drawing settings live in the model; those that physics shares are put back."""
    mujoco = load_mujoco()
    model.vis.global_.offwidth = model.vis.global_.offheight = size
    quality = model.vis.quality
    quality.shadowsize, quality.offsamples = drawing.shadow_map, drawing.multisamples
    if not drawing.simplified:
        return mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
    quality.numslices, quality.numstacks, quality.numquads = 12, 6, 2
    _shrink_textures(model, TEXELS_PER_PIXEL * size)
    sizes: Float64[np.ndarray, "G 3"] = model.geom_size.copy()
    # a plane's third size is the spacing of the grid it is drawn with
    model.geom_size[model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE, 2] = _FAR
    context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
    model.geom_size[:] = sizes
    return context


def _shrink_textures(model: Any, limit: int) -> None:
    """Halve textures until no side of a face exceeds `limit`: they take more memory than the rest of a context."""
    for texture in range(model.ntex):
        width, height = int(model.tex_width[texture]), int(model.tex_height[texture])
        channels, first = int(model.tex_nchannel[texture]), int(model.tex_adr[texture])
        texels = model.tex_data[first : first + width * height * channels]
        image = texels.reshape(height, width, channels).astype(np.float32)
        while min(width, height) > limit and width % 2 == height % 2 == 0:
            height, width = height // 2, width // 2
            image = image.reshape(height, 2, width, 2, channels).mean((1, 3))
        model.tex_data[first : first + image.size] = np.rint(image).astype(np.uint8).reshape(-1)
        model.tex_width[texture], model.tex_height[texture] = width, height
