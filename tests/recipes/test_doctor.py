"""The doctor: right about this machine, and still talking where torch or mujoco are gone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vla_rl.diagnostics import machine as doctor
from vla_rl.diagnostics.machine import Check

GPU = ["NVIDIA H100, 81559 MiB, 570.86"]


def fake_torch(monkeypatch: pytest.MonkeyPatch, cuda: str | None, devices: int = 0) -> None:
    """Stand in for a torch build that this machine does not have."""
    torch = SimpleNamespace(
        __version__="2.13.0",
        version=SimpleNamespace(cuda=cuda),
        ones=lambda *shape: SimpleNamespace(sum=lambda: 4.0),
        get_num_threads=lambda: 2,
        cuda=SimpleNamespace(is_available=lambda: devices > 0, device_count=lambda: devices),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)


# --- torch and the GPU


@pytest.mark.parametrize(
    ("cuda", "gpus", "status"),
    [(None, [], "ok"), ("13.0", GPU, "ok"), (None, GPU, "warn"), ("13.0", [], "warn")],
    ids=["cpu-on-cpu", "cuda-on-gpu", "cpu-build-wastes-gpu", "cuda-build-without-gpu"],
)
def test_torch_build_is_compared_with_the_machine(monkeypatch, cuda, gpus, status):
    fake_torch(monkeypatch, cuda)
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    check = doctor.check_torch(gpus)
    assert check.status == status
    assert ("make setup" in check.mend) == (status == "warn")


def test_gpu_that_torch_cannot_use_is_a_warning(monkeypatch):
    fake_torch(monkeypatch, "13.0", devices=0)
    assert doctor.check_gpu(GPU).status == "warn"
    fake_torch(monkeypatch, "13.0", devices=1)
    assert doctor.check_gpu(GPU).status == "ok"


def test_missing_torch_fails_and_says_what_to_type(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "torch", None
    )  # what Python does for a module that is not there
    check = doctor.check_torch([])
    assert check.status == "fail"
    assert "make setup" in check.mend


def test_whole_examination_without_torch_and_simulators():
    """In a Python that sees neither torch nor mujoco nor metaworld, every check still answers."""
    code = """
import importlib.abc, json, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "mujoco", "metaworld"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
    None if name in ("torch", "mujoco", "metaworld") else real(name, *rest))
from vla_rl.diagnostics import machine as doctor
checks = doctor.doctor()
print(json.dumps({check.name: [check.status, check.mend] for check in checks}))
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    checks = json.loads(answer.stdout)
    assert checks["torch"][0] == checks["rendering"][0] == "fail"
    assert "metaworld" in checks["rendering"][1]
    assert checks["python"][0] == "ok"
    assert {"disk", "memory", "cores", "shared memory", "extras"} <= set(checks)


# --- rendering


@pytest.mark.sim
def test_a_backend_that_works_shows_the_right_pixels(sim):
    works, found = doctor.render_probe(sim)
    assert works, found
    assert found.endswith(" s")


def answer(monkeypatch: pytest.MonkeyPatch, code: str) -> tuple[bool, str]:
    monkeypatch.setattr(doctor, "_RENDER_PROBE", code)
    return doctor.render_probe("egl")


@pytest.mark.parametrize(
    ("centre", "corner"),
    [([0, 0, 0], [0, 0, 0]), ([255, 0, 0], [255, 0, 0]), ([0, 0, 255], [255, 0, 0])],
    ids=["black", "uniform", "swapped"],
)
def test_wrong_images_do_not_pass(monkeypatch, centre, corner):
    result = {"centre": centre, "corner": corner, "driver": "x", "seconds": 0.1}
    works, found = answer(monkeypatch, f"print({json.dumps(json.dumps(result))})")
    assert not works
    assert "wrong image" in found


def test_probe_that_dies_or_hangs_is_reported(monkeypatch):
    assert answer(monkeypatch, "import os; os.kill(os.getpid(), 11)") == (
        False,
        "killed by signal 11",
    )
    works, found = answer(monkeypatch, "raise ImportError('libEGL.so.1 is missing')")
    assert not works
    assert found == "ImportError: libEGL.so.1 is missing"
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT", 0.2)
    works, found = answer(monkeypatch, "import time; time.sleep(60)")
    assert not works
    assert "no answer" in found


def test_osmesa_is_taken_where_egl_fails(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor, "render_probe", lambda name: (name == "osmesa", f"<{name}>"))
    assert doctor.check_rendering() == Check("rendering", "ok", "osmesa: <osmesa>")
    assert doctor.find_renderer() == "osmesa"
    monkeypatch.setattr(doctor, "render_probe", lambda name: (False, f"<{name}>"))
    check = doctor.check_rendering()
    assert check.status == "fail"
    assert "<egl>" in check.found
    assert "<osmesa>" in check.found
    assert check.mend
    assert doctor.find_renderer() == ""


def test_the_users_choice_of_backend_is_the_one_examined(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "OSMesa")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor, "render_probe", lambda name: (name == "egl", f"<{name}>"))
    check = doctor.check_rendering()
    assert (check.status, check.found) == ("fail", "osmesa: <osmesa>")
    assert "unset MUJOCO_GL" in check.mend


# --- the machine


def with_free_disk(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    usage = SimpleNamespace(free=int(gib * doctor.GIB))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage)


@pytest.mark.parametrize(("gib", "status"), [(0.1, "fail"), (1.0, "warn"), (50.0, "ok")])
def test_disk_levels(monkeypatch, tmp_path, gib, status):
    with_free_disk(monkeypatch, gib)
    check = doctor.check_disk(tmp_path / "runs" / "not" / "yet")
    assert check.status == status
    assert bool(check.mend) == (status != "ok")
    assert not (tmp_path / "runs").exists(), "the doctor only looks"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_runs_folder_fails(tmp_path):
    tmp_path.chmod(0o555)
    assert doctor.check_disk(tmp_path / "runs").status == "fail"


def test_full_disk_fails(monkeypatch, tmp_path):
    def full(*, dir: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", full)
    check = doctor.check_disk(tmp_path)
    assert check.status == "fail"
    assert "No space left" in check.found


@pytest.mark.parametrize(("gib", "status"), [(1.0, "fail"), (2.0, "warn"), (16.0, "ok")])
def test_a_containers_memory_limit_counts(monkeypatch, gib, status):
    psutil = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=64 * doctor.GIB))
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    limits = {"memory.max": int(gib * doctor.GIB) + 1000, "memory.current": 1000}
    monkeypatch.setattr(doctor, "_cgroup_number", limits.get)
    check = doctor.check_memory()
    assert (check.status, check.found) == (status, f"{gib:.1f} GiB available")


@pytest.mark.parametrize(("mib", "status"), [(4, "fail"), (30, "warn"), (1000, "ok")])
def test_shared_memory_levels(monkeypatch, tmp_path, mib, status):
    with_free_disk(monkeypatch, mib / 1024)
    assert doctor.check_shared_memory(tmp_path).status == status


# --- the table


def test_table_names_every_check_once_and_what_to_mend():
    checks = [
        Check("torch", "ok", "2.13.0"),
        Check("rendering", "fail", "egl: no", "install Mesa"),
        Check("disk", "warn", "1 GiB", "free some space"),
    ]
    table = doctor.format_checks(checks)
    assert [line.split()[:2] for line in table.splitlines()[:2]] == [
        ["ok", "torch"],
        ["fail", "rendering"],
    ]
    assert "-> install Mesa" in table
    assert table.splitlines()[-1] == "Not ready: mend rendering."
    assert not doctor.healthy(checks)
    assert doctor.healthy([checks[0], checks[2]])
    assert doctor.format_checks([checks[0], checks[2]]).endswith("remark on disk.")
    assert doctor.format_checks([checks[0]]).endswith("Ready.")


def test_a_check_that_breaks_is_a_finding_and_stops_nothing(monkeypatch):
    def broken() -> Check:
        raise KeyError("oops")

    monkeypatch.setattr(doctor, "check_cores", broken)
    monkeypatch.setattr(doctor, "check_rendering", lambda: Check("rendering", "ok", ""))
    monkeypatch.setattr(doctor, "simulator_checks", lambda: [])
    checks = {check.name: check for check in doctor.doctor()}
    assert checks["cores"].status == "fail"
    assert "oops" in checks["cores"].found
    assert checks["shared memory"].status == "ok"
