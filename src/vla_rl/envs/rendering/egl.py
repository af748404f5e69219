"""The devices that EGL can draw on, and which of them are the GPUs that CUDA may use.

MUJOCO_EGL_DEVICE_ID counts EGL's devices: GPUs and Mesa's software device, in an order of EGL's own, whatever
CUDA_VISIBLE_DEVICES says. A driver tells for each device which GPU it is (EGL_NV_device_cuda).

This file runs as a program too, in a Python without site-packages, so it imports the standard library alone.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DEVICE_ID = "MUJOCO_EGL_DEVICE_ID"
_DEVICE_PLATFORM = 0x313F  # EGL_PLATFORM_DEVICE_EXT
_CUDA_DEVICE = 0x323A  # EGL_CUDA_DEVICE_NV
WORKER_BYTES = 400 * 2**20
"""What a worker that draws takes of a GPU, about: context, meshes and textures of a suite."""
_MOST = 64
_TIMEOUT = 30.0  # seconds


class EglDevice(NamedTuple):
    """One of EGL's devices, in its order."""

    works: bool
    """Whether it can be initialised."""
    gpu: int | None
    """The number of the GPU as `nvidia-smi` counts, if the driver tells."""


def egl_devices() -> list[EglDevice]:
    """All of EGL's devices of this machine, asked of libEGL in this process; empty without EGL."""
    try:
        egl: Any = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return []
    pointer, number = ctypes.c_void_p, ctypes.c_int
    egl.eglGetProcAddress.restype = pointer
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    query_at = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    display_at = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    attribute_at = egl.eglGetProcAddress(b"eglQueryDeviceAttribEXT")
    if not query_at or not display_at:
        return []
    query = ctypes.CFUNCTYPE(ctypes.c_uint, number, pointer, pointer)(query_at)
    display_of = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(display_at)
    devices, count = (ctypes.c_void_p * _MOST)(), ctypes.c_int(0)
    if not query(_MOST, ctypes.addressof(devices), ctypes.addressof(count)):
        return []
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]

    def gpu(device: int | None) -> int | None:
        if not attribute_at:
            return None
        ask = ctypes.CFUNCTYPE(ctypes.c_uint, pointer, number, pointer)(attribute_at)
        value = ctypes.c_ssize_t(-1)
        found = ask(device, _CUDA_DEVICE, ctypes.addressof(value))
        return value.value if found and value.value >= 0 else None

    def works(device: int | None) -> bool:
        display = display_of(_DEVICE_PLATFORM, device, None)
        return bool(display and egl.eglInitialize(display, None, None))

    return [EglDevice(works(devices[i]), gpu(devices[i])) for i in range(count.value)]


def drawing_devices() -> list[int]:
    """The values of MUJOCO_EGL_DEVICE_ID for workers to take in turn: the EGL devices of the GPUs that CUDA may use.

    Empty where there is nothing to choose (the user has chosen; one GPU or none) or nothing is known; MuJoCo then takes
    the first device that works. The numbers are always some of those EGL has.
    """
    backend = os.environ.get("MUJOCO_GL", "").strip().lower()
    if DEVICE_ID in os.environ or backend not in ("", "egl"):
        return []
    gpus = nvidia_gpu_ids()
    if len(gpus) < 2:
        return []
    visible = visible_gpus(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not visible:
        return []
    return matching(visible, len(gpus), _devices_apart())


def worker_devices(workers: int, local_rank: int = 0, local_size: int = 1) -> list[int]:
    """For each worker the EGL device that it draws on; empty where there is nothing to choose, see `drawing_devices`.

    Of several ranks on a machine each draws on the GPUs that it computes on. Workers go where most memory is free.
    """
    devices = drawing_devices()
    if not devices:
        return []
    free = dict(zip(devices, free_memory(len(devices)), strict=True))
    first = local_rank % len(devices)
    return spread({device: free[device] for device in devices[first::local_size]}, workers)


def spread(free: Mapping[int, float], workers: int) -> list[int]:
    """The device of each worker: the one with most free memory (bytes), what was given to others taken off."""
    left = dict(free)
    chosen: list[int] = []
    for _ in range(workers):
        device = max(left, key=lambda d: left[d])  # the first of equals
        left[device] -= WORKER_BYTES
        chosen.append(device)
    return chosen


def free_memory(visible: int) -> list[float]:
    """Free memory of each of the `visible` GPUs that CUDA may use, bytes; zeros where it is not known."""
    gpus = nvidia_gpu_ids()
    numbers = visible_gpus(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    megabytes = [line for line in _nvidia_smi("memory.free") if line.isdecimal()]
    if len(megabytes) != len(gpus) or len(numbers) != visible:
        return [0.0] * visible
    return [float(megabytes[number]) * 2**20 for number in numbers]


def matching(visible: Sequence[int], gpus: int, devices: Sequence[EglDevice]) -> list[int]:
    """The numbers of the EGL devices that are the GPUs `visible`, of `gpus` in all, in their order."""
    if any(device.gpu is not None for device in devices):
        of_gpu = {device.gpu: i for i, device in enumerate(devices) if device.works}
        return [of_gpu[gpu] for gpu in visible if gpu in of_gpu]
    # older drivers do not tell: one device for each GPU can only be in the same order
    if len(devices) == gpus and all(device.works for device in devices):
        return list(visible)
    return []


def nvidia_gpu_ids() -> list[str]:
    """The UUIDs of this machine's NVIDIA GPUs by `nvidia-smi`, which counts them as the driver does; else empty."""
    return _nvidia_smi("uuid")


def _nvidia_smi(wanted: str) -> list[str]:
    """One property of each GPU; empty where the tool is not there or fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    question = [tool, f"--query-gpu={wanted}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            question, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if answer.returncode != 0:
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def visible_gpus(gpus: Sequence[str], setting: str | None) -> list[int]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, by their number: all where it is not set.

    gpus: their UUIDs. Like CUDA, it reads numbers and beginnings of UUIDs, up to the first that is neither.
    """
    if setting is None:
        return list(range(len(gpus)))
    visible: list[int] = []
    for word in (part.strip() for part in setting.split(",")):
        if word.isdecimal() and int(word) < len(gpus):
            number = int(word)
        else:
            named = [i for i, uuid in enumerate(gpus) if word and uuid.startswith(word)]
            if len(named) != 1:
                break
            number = named[0]
        if number in visible:
            break
        visible.append(number)
    return visible


def wrong_device_id() -> str:
    """What is wrong with the user's MUJOCO_EGL_DEVICE_ID, and what to do; empty where nothing is."""
    chosen = os.environ.get(DEVICE_ID)
    if chosen is None:
        return ""
    count = len(_devices_apart())
    if chosen.strip().isdecimal() and int(chosen) < count:
        return ""
    there = {0: "EGL has no device here", 1: "EGL has one device here, 0"}
    known = there.get(count, f"EGL has {count} devices here, 0 to {count - 1}")
    return f"{DEVICE_ID} is {chosen!r}, but {known}: unset it, or choose one of these"


@functools.cache
def _devices_apart() -> list[EglDevice]:
    """`egl_devices` asked in another process: a driver that fails takes nothing with it, and CUDA hides no GPU."""
    from vla_rl.runtime.children import run_program

    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    program = f"import runpy; runpy.run_path({str(Path(__file__))!r}, run_name='__main__')"
    try:
        answer = run_program(
            program, timeout=_TIMEOUT, environment=environment, options=("-I", "-S")
        )
        answer.check_returncode()
        return [EglDevice(*device) for device in json.loads(answer.stdout.splitlines()[-1])]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return []


if __name__ == "__main__":
    print(json.dumps(egl_devices()))
