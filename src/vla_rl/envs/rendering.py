"""Pictures of one MuJoCo model, as fast as software OpenGL allows.

With MuJoCo's defaults a 64-pixel picture of a Meta-World task takes some 100 ms on one core: shadows and reflections
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
from vla_rl.envs.gl import load_mujoco, shared_context
from vla_rl.envs.meshes import decimate_model

CORNER2_POSITION = (0.75, 0.075, 0.7)
"""Where `corner2` stands in the literature (its place in Meta-World's files is far away); it is also upside down."""

_PRETTY_SHADOW_MAP = 2048
_TEXELS_PER_PIXEL = (
    4  # textures are kept at so many times the picture's size; OpenGL averages further
)
_FAR = 100.0  # metres: a plane drawn as one tile instead of a grid of a thousand


@dataclass(frozen=True)
class CameraSettings:
    """How pictures are taken; environments with equal settings share simulators."""

    camera: str
    size: int  # pixels, height and width
    mesh_faces: int  # 0 draws meshes whole
    pretty: bool  # shadows, reflections, sky, smooth edges: for videos

    @staticmethod
    def of(config: EnvConfig, pretty: bool) -> CameraSettings:
        return CameraSettings(config.camera, config.image_size, config.mesh_faces, pretty)


class Camera:
    """Takes pictures of one model. Owns OpenGL buffers; `close` frees them."""

    def __init__(self, model: Any, settings: CameraSettings) -> None:
        self._mujoco = mujoco = load_mujoco()
        self._size = settings.size
        self._model = model
        self._mirrored = settings.camera == "corner2"
        camera_id = _camera_id(model, settings.camera)
        if self._mirrored:
            model.cam_pos[camera_id] = CORNER2_POSITION
        decimate_model(model, settings.mesh_faces)

        shared_context()
        self._context = _upload(model, settings)
        self._scene = mujoco.MjvScene(model, maxgeom=max(200, 2 * (model.ngeom + model.nsite)))
        if not settings.pretty:
            for name in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE"):
                self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{name}")] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = camera_id
        self._options, self._perturbation = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._area = mujoco.MjrRect(0, 0, settings.size, settings.size)
        self._pixels = np.empty((settings.size, settings.size, 3), dtype=np.uint8)

    def picture(self, data: Any) -> UInt8[np.ndarray, "H W 3"]:
        """What the camera sees of `data` (whose positions must be up to date), upright RGB, a fresh array."""
        mujoco = self._mujoco
        shared_context()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        mujoco.mjv_updateScene(
            self._model, data, self._options, self._perturbation, self._camera,
            mujoco.mjtCatBit.mjCAT_ALL, self._scene,
        )  # fmt: skip
        mujoco.mjr_render(self._area, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._area, self._context)
        # OpenGL's rows run upwards. corner2 hangs upside down: turned by 180 degrees, only its columns swap
        return (self._pixels[:, ::-1] if self._mirrored else self._pixels[::-1]).copy()

    def close(self) -> None:
        shared_context()
        self._context.free()


def _camera_id(model: Any, name: str) -> int:
    names = [model.camera(i).name for i in range(model.ncam)]
    if name not in names:
        raise ConfigError(f"the simulator has no camera {name!r}.{nearest(name, names)}")
    return names.index(name)


def _upload(model: Any, settings: CameraSettings) -> Any:
    """Make the model's OpenGL context. Drawing settings live in the model; those that physics shares are put back."""
    mujoco = load_mujoco()
    model.vis.global_.offwidth = model.vis.global_.offheight = settings.size
    quality = model.vis.quality
    quality.shadowsize = _PRETTY_SHADOW_MAP if settings.pretty else 0
    quality.offsamples = 4 if settings.pretty else 0
    if settings.pretty or settings.mesh_faces == 0:
        return mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
    quality.numslices, quality.numstacks, quality.numquads = 12, 6, 2
    _shrink_textures(model, _TEXELS_PER_PIXEL * settings.size)
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
        picture = texels.reshape(height, width, channels).astype(np.float32)
        while min(width, height) > limit and width % 2 == height % 2 == 0:
            height, width = height // 2, width // 2
            picture = picture.reshape(height, 2, width, 2, channels).mean((1, 3))
        model.tex_data[first : first + picture.size] = np.rint(picture).astype(np.uint8).reshape(-1)
        model.tex_width[texture], model.tex_height[texture] = width, height
