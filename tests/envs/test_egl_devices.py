"""Which EGL device is which GPU: MUJOCO_EGL_DEVICE_ID is never out of range, and never a GPU that CUDA must not use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from vla_rl.config import UserError
from vla_rl.diagnostics import machine
from vla_rl.envs.rendering import egl, gl
from vla_rl.envs.rendering.egl import (
    EglDevice,
    drawing_devices,
    egl_devices,
    free_memory,
    matching,
    spread,
    visible_gpus,
    worker_devices,
)

GPUS = ["GPU-11aa", "GPU-22bb", "GPU-22cc", "GPU-44dd"]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MUJOCO_EGL_DEVICE_ID", "CUDA_VISIBLE_DEVICES", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)


def fake_machine(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    gpus: Sequence[str],
    devices: Sequence[EglDevice],
    free: Sequence[int] = (),
) -> None:
    """nvidia-smi answers with a line for each GPU, and EGL has these devices. free: MiB of memory, where it is told."""
    tool = folder / "nvidia-smi"
    answers = {"uuid": gpus, "memory.free": free or ["[N/A]"] * len(gpus)}
    cases = "".join(
        f"*{name}*) " + "".join(f"echo '{line}'; " for line in lines) + ";;\n"
        for name, lines in answers.items()
    )
    tool.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(egl, "_devices_apart", lambda: list(devices))


def numbered(*gpus: int | None) -> list[EglDevice]:
    return [EglDevice(True, gpu) for gpu in gpus]


@pytest.mark.parametrize(
    ("gpus", "devices", "visible", "expected"),
    [
        (
            GPUS,
            numbered(None),
            None,
            [],
        ),  # four GPUs that EGL knows nothing of: Mesa's device alone
        (GPUS, numbered(None), "2", []),
        (GPUS, [], None, []),
        (GPUS, numbered(2, 0, 3, 1, None), None, [1, 3, 0, 2]),
        (GPUS, numbered(2, 0, 3, 1, None), "2", [0]),
        (GPUS, numbered(2, 0, 3, 1, None), "3,GPU-11", [2, 1]),
        (
            GPUS,
            numbered(0, 1),
            "1,3",
            [1],
        ),  # the container has not been given all of them for drawing
        (GPUS, numbered(0, 1), "3", []),
        (
            GPUS,
            numbered(None, None, None, None),
            "2,1",
            [2, 1],
        ),  # as many as GPUs: in the same order
        (
            GPUS,
            numbered(None, None, None, None, None),
            "2",
            [],
        ),  # one of them is Mesa's, but which?
        (GPUS, [EglDevice(False, 0), *numbered(1, 2, 3)], None, [1, 2, 3]),
        (GPUS, numbered(0, 1, 2, 3), "", []),
        (GPUS[:1], numbered(0), None, []),  # nothing to choose
        ([], numbered(None), None, []),
    ],
)
def test_workers_draw_on_the_gpus_that_cuda_may_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: Sequence[str], devices: Sequence[EglDevice],
    visible: str | None, expected: list[int],
) -> None:  # fmt: skip
    fake_machine(monkeypatch, tmp_path, gpus, devices)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert drawing_devices() == expected
    assert all(0 <= number < len(devices) for number in drawing_devices())


@pytest.mark.parametrize(
    ("name", "value"), [("MUJOCO_EGL_DEVICE_ID", "1"), ("MUJOCO_GL", "osmesa")]
)
def test_the_users_own_choice_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    fake_machine(monkeypatch, tmp_path, GPUS, numbered(0, 1, 2, 3))
    assert drawing_devices() == [0, 1, 2, 3]
    monkeypatch.setenv(name, value)
    assert drawing_devices() == []


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("-1", []),
        ("0", [0]),
        ("3, 1", [3, 1]),
        ("1,7,0", [1]),  # CUDA stops at the first that is none
        ("1,1,0", [1]),
        ("GPU-44", [3]),
        ("GPU-22bb,0", [1, 0]),
        ("GPU-22", []),  # of two
        ("MIG-1,0", []),
        ("x", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(
    setting: str | None, expected: list[int]
) -> None:
    assert visible_gpus(GPUS, setting) == expected


def test_a_tool_that_fails_knows_of_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_machine(monkeypatch, tmp_path, GPUS, numbered(0, 1, 2, 3))
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho No devices were found\nexit 6\n")
    assert drawing_devices() == []


def test_no_match_is_no_device() -> None:
    assert matching([0, 1], 2, []) == []
    assert matching([5], 6, numbered(0, 1)) == []


def test_egl_asked_here_and_apart_says_the_same() -> None:
    egl._devices_apart.cache_clear()
    assert egl._devices_apart() == egl_devices()


@pytest.mark.parametrize(
    ("chosen", "devices", "said"),
    [
        (
            "2",
            numbered(None),
            "MUJOCO_EGL_DEVICE_ID is '2', but EGL has one device here, 0: unset it",
        ),
        (
            "x",
            numbered(0, 1),
            "MUJOCO_EGL_DEVICE_ID is 'x', but EGL has 2 devices here, 0 to 1: unset it",
        ),
        ("-1", [], "MUJOCO_EGL_DEVICE_ID is '-1', but EGL has no device here: unset it"),
        ("1", numbered(0, 1), ""),
        (None, [], ""),
    ],
)
def test_a_device_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    chosen: str | None,
    devices: Sequence[EglDevice],
    said: str,
) -> None:
    fake_machine(monkeypatch, tmp_path, [], devices)
    if chosen is not None:
        monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", chosen)
    assert egl.wrong_device_id()[: len(said)] == said
    assert bool(said) == bool(egl.wrong_device_id())


def test_it_is_named_instead_of_packages_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(backend: str) -> object:
        raise RuntimeError("must be an integer between 0 and 0 (inclusive), got 2.")

    fake_machine(monkeypatch, tmp_path, [], numbered(None))
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "2")
    monkeypatch.setattr(gl, "choose_backend", lambda: "egl")
    monkeypatch.setattr(gl, "context_class", refuse)
    monkeypatch.setattr(gl, "_SHARED", [])
    with pytest.raises(
        UserError, match=r"^MUJOCO_EGL_DEVICE_ID is '2', but EGL has one device here"
    ):
        gl.shared_context()
    monkeypatch.setattr(machine, "render_probe", lambda backend: (False, "RuntimeError"))
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: object())
    check = machine.check_rendering()
    assert check.status == "fail"
    assert check.mend.startswith("MUJOCO_EGL_DEVICE_ID is '2'")
    assert "apt-get" not in check.mend


def test_the_doctor_sees_that_cuda_hides_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    class Torch:
        class cuda:  # noqa: N801
            @staticmethod
            def is_available() -> bool:
                return False

    monkeypatch.setitem(machine.sys.modules, "torch", Torch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    check = machine.check_gpu(["NVIDIA H200", "NVIDIA H200"])
    assert (check.status, check.mend) == (
        "warn",
        "unset CUDA_VISIBLE_DEVICES, or name GPUs of 0 to 1",
    )


def test_workers_go_where_most_memory_is_free() -> None:
    gigabyte = 2.0**30
    assert spread({3: 0.0, 1: 0.0}, 5) == [3, 1, 3, 1, 3]  # unknown: in turn
    # the second has room for as many as both together have
    assert spread({0: 1 * gigabyte, 1: 2.6 * gigabyte}, 6) == [1, 1, 1, 1, 1, 0]
    assert spread({7: gigabyte}, 2) == [7, 7]


def test_each_rank_draws_on_the_gpus_it_computes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_machine(monkeypatch, tmp_path, GPUS, numbered(0, 1, 2, 3))
    assert [worker_devices(2, rank, 4) for rank in range(4)] == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert [worker_devices(4, rank, 2) for rank in range(2)] == [[0, 2, 0, 2], [1, 3, 1, 3]]
    assert [worker_devices(1, rank, 6) for rank in range(6)] == [[0], [1], [2], [3], [0], [1]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert [worker_devices(2, rank, 2) for rank in range(2)] == [[3, 3], [1, 1]]


def test_free_memory_is_that_of_the_visible_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_machine(monkeypatch, tmp_path, GPUS, numbered(0, 1, 2, 3), free=[100, 200, 300, 40_000])
    assert free_memory(4) == [n * 2**20 for n in (100, 200, 300, 40_000)]
    assert worker_devices(3) == [3, 3, 3]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,0")
    assert free_memory(2) == [40_000 * 2**20, 100 * 2**20]
