"""One offscreen OpenGL context per process, and which library provides it.

MuJoCo picks its OpenGL library when it is first imported, from MUJOCO_GL, and without it takes one that needs a
screen. Here the library is picked by what works, whether mujoco has been imported before or not.
"""

from __future__ import annotations

import atexit
import ctypes.util
import importlib
import os
import sys
import warnings
from typing import Any

from vla_rl.config.errors import UserError
from vla_rl.envs.rendering.egl import egl_devices, wrong_device_id

INSTALL_METAWORLD = "Meta-World is not installed: pip install 'vla-rl[metaworld]'"
INSTALL_OPENGL = (
    "Offscreen rendering needs EGL or OSMesa. On Debian or Ubuntu: "
    "apt-get install libegl1 libgl1 libgl1-mesa-dri   (or: apt-get install libosmesa6 libgl1)"
)


def egl_works() -> bool:
    """Whether some EGL device of this machine can be initialised (asked of libEGL, without mujoco)."""
    return any(device.works for device in egl_devices())


def choose_backend() -> str:
    """The value for MUJOCO_GL: the user's own, else egl where it works, else osmesa. UserError if none is there."""
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen or sys.platform != "linux":
        return chosen
    if egl_works():
        return "egl"
    if ctypes.util.find_library("OSMesa"):
        return "osmesa"
    raise UserError(f"No offscreen OpenGL was found. {INSTALL_OPENGL}")


def load_mujoco() -> Any:
    """The mujoco module. UserError if it is not installed."""
    # llvmpipe's own threads cost more than they bring at this image size, and take the learner's cores
    os.environ.setdefault("LP_NUM_THREADS", "0")
    try:
        return importlib.import_module("mujoco")
    except ImportError as error:
        raise UserError(f"{INSTALL_METAWORLD} ({error})") from error


def load_metaworld_classes() -> dict[str, Any]:
    """Meta-World's environment classes by their names (`drawer-open-v3`). UserError if it is not installed."""
    load_mujoco()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gymnasium's advice to other users
            return dict(importlib.import_module("metaworld.env_dict").ALL_V3_ENVIRONMENTS)
    except ImportError as error:
        raise UserError(f"{INSTALL_METAWORLD} ({error})") from error


_SHARED: list[Any] = []


def shared_context() -> Any:
    """The OpenGL context of this process, made on the first call and current afterwards.

    All models of a process draw in this one context, each with its own textures and buffers: changing from
    one model to another then costs microseconds. UserError if no context can be made.
    """
    if not _SHARED:
        backend = choose_backend()
        try:
            context = context_class(backend)(8, 8)  # images go into buffers of their own size
            context.make_current()
            mujoco = (
                load_mujoco()
            )  # glfw without a screen makes a context that only fails when it is used
            font = mujoco.mjtFontScale.mjFONTSCALE_50.value
            mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), font).free()
        except UserError:
            raise
        except Exception as error:  # each library fails in its own way; the remedy is the same
            wrong = wrong_device_id() if backend == "egl" else ""
            raise UserError(
                wrong
                or f"OpenGL (MUJOCO_GL={backend!r}) does not work here: {error}. {INSTALL_OPENGL}"
            ) from error
        _SHARED.append(context)
        # before the driver's own clean-up at exit, after which freeing it fails with a traceback
        atexit.register(context.free)
    _SHARED[0].make_current()
    return _SHARED[0]


def context_class(backend: str) -> Any:
    """MuJoCo's context class for a backend, by name rather than by what MUJOCO_GL was at its first import."""
    load_mujoco()
    if backend in ("egl", "osmesa"):
        return importlib.import_module(f"mujoco.{backend}").GLContext
    return importlib.import_module("mujoco.gl_context").GLContext
