"""Set-up: which torch it takes, when it does nothing, and what it says when it cannot go on.

The commands it would run (pip, uv, apt-get, nvidia-smi) are replaced by scripts that write down how they
were called; the real installation is what `make test` itself has just done.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
CPU_PLAN = ["torch", "filelock", "sympy"]
CUDA_PLAN = ["torch", "nvidia-cudnn-cu13", "triton", "cuda-toolkit"]


@pytest.fixture(scope="module")
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / "scripts" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recorder(install: ModuleType, root: Path, plan: list[str], fails: tuple[str, ...] = ()):
    """A Setup whose steps are recorded instead of run; those that contain one of `fails` fail."""

    class Recorded(install.Setup):
        calls: list[str]

        def plan(self, requirements):
            return plan

        def ask(self, code):
            if "cuda.is_available" in code:
                return "True"
            return "4.0" if "ones" in code else ""

        def step(self, name, command, *, may_fail=False):
            call = " ".join(command)
            self.calls.append(call)
            failed = any(part in call for part in fails)
            if failed and not may_fail:
                raise install.SetupError(f"{name} failed")
            return not failed

    setup = Recorded(root)
    setup.calls = []
    return setup


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("TORCH_INSTALL_ARGS", "VLA_RL_TORCH"):
        monkeypatch.delenv(name, raising=False)


# --- which torch


def test_cpu_build_that_pip_finds_is_taken(install, tmp_path):
    setup = recorder(install, tmp_path, CPU_PLAN)
    setup.install_torch(wants_cuda=False)
    assert len(setup.calls) == 1
    assert setup.calls[0].endswith(f"torch=={install.TORCH_VERSION}")


def test_cuda_packages_never_reach_a_machine_without_gpu(install, tmp_path):
    setup = recorder(install, tmp_path, CUDA_PLAN)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "uv").touch()
    setup.install_torch(wants_cuda=False)
    assert all("--torch-backend=cpu" in call for call in setup.calls)

    setup = recorder(install, tmp_path, CUDA_PLAN, fails=("--torch-backend",))
    with pytest.raises(install.SetupError, match="TORCH_INSTALL_ARGS"):
        setup.install_torch(wants_cuda=False)
    assert not any("-m pip install" in call and "torch==" in call for call in setup.calls)


def test_gpu_takes_the_drivers_build_then_the_default_one(install, tmp_path):
    setup = recorder(install, tmp_path, CPU_PLAN, fails=("--torch-backend", " uv"))
    setup.install_torch(wants_cuda=True)
    # === does not match a local "+cpu" file, == would
    assert setup.calls[-1].endswith(f"torch==={install.TORCH_VERSION}")


def test_given_arguments_win(install, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_INSTALL_ARGS", "--find-links 'a folder'")
    setup = recorder(install, tmp_path, CUDA_PLAN)
    setup.install_torch(wants_cuda=False)
    assert setup.calls[0].endswith(f"torch=={install.TORCH_VERSION} --find-links a folder")


def test_torch_that_fits_stays(install, tmp_path, monkeypatch):
    setup = recorder(install, tmp_path, CPU_PLAN)
    version = f"{install.TORCH_VERSION}+cpu"
    monkeypatch.setattr(setup, "ask", lambda code: f"{version} False")
    setup.install_torch(wants_cuda=False)
    assert setup.calls == []
    monkeypatch.setattr(setup, "ask", lambda code: "4.0" if "ones" in code else f"{version} True")
    setup.install_torch(wants_cuda=False)
    assert len(setup.calls) == 1, "a CUDA build on a machine without GPU is replaced"


def test_strays_are_refused(install, tmp_path, monkeypatch):
    setup = recorder(install, tmp_path, CPU_PLAN)
    for installed, wants_cuda, refused in [
        ("torch numpy", False, False),
        ("torch nvidia-cublas", False, True),
        ("torch nvidia-cublas", True, False),
        ("torch torchvision", True, True),
    ]:
        monkeypatch.setattr(setup, "ask", lambda code, answer=installed: answer)
        if refused:
            with pytest.raises(install.SetupError, match=r"torchvision|nvidia"):
                setup.refuse_strays(wants_cuda)
        else:
            setup.refuse_strays(wants_cuda)


def test_names_of_cuda_packages(install):
    names = ["nvidia-cublas", "nvidia_nccl_cu13", "cuda-bindings", "Triton", "numpy", "torch"]
    assert install.cuda_packages(names) == names[:4]


def fake_tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_gpu_is_what_the_driver_shows(install, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fake_tool(tmp_path, "nvidia-smi", 'echo "GPU 0: NVIDIA H100"')
    assert install.wants_cuda_build("")
    assert not install.wants_cuda_build("cpu")
    fake_tool(tmp_path, "nvidia-smi", 'echo "No devices were found"; exit 6')
    assert not install.wants_cuda_build("")
    assert install.wants_cuda_build("cuda")
    with pytest.raises(install.SetupError, match="cpu or cuda, got 'gpu'"):
        install.wants_cuda_build("gpu")


# --- when it does nothing


def copy_of_inputs(root: Path) -> None:
    (root / "scripts").mkdir()
    for name in ("pyproject.toml", "scripts/install.py", "scripts/constraints.txt"):
        (root / name).write_bytes((ROOT / name).read_bytes())


def test_stamp_holds_until_an_input_changes(install, tmp_path, monkeypatch):
    copy_of_inputs(tmp_path)
    setup = install.Setup(tmp_path)
    before = setup.fingerprint(False)
    assert setup.fingerprint(False) == before
    assert setup.fingerprint(True) != before
    stamp = tmp_path / "setup.json"
    install.write_stamp(stamp, before, {"extras": ["dev"], "rendering": "egl"})
    assert install.read_stamp(stamp, before) == {"extras": ["dev"], "rendering": "egl"}

    with (tmp_path / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert install.read_stamp(stamp, setup.fingerprint(False)) == {"extras": [], "rendering": ""}
    stamp.write_text("{ half a file")
    assert install.read_stamp(stamp, before)["extras"] == []


@pytest.mark.parametrize(
    ("done", "rendering", "asked", "at_once"),
    [
        (["dev"], "egl", "quickstart", True),
        (["quickstart"], "egl", "dev", False),
        (["quickstart"], "egl", "docs", False),
        (["dev"], "", "dev", True),
        (["dev"], "", "quickstart", False),  # goes back for the rendering that is still missing
    ],
)
def test_second_run_returns_at_once(install, tmp_path, capsys, done, rendering, asked, at_once):
    copy_of_inputs(tmp_path)
    setup = recorder(install, tmp_path, CPU_PLAN)
    setup.python.parent.mkdir(parents=True)
    setup.python.touch(mode=0o755)
    state = {"extras": done, "rendering": rendering}
    install.write_stamp(setup.stamp, setup.fingerprint(install.wants_cuda_build("")), state)
    worked: list[str] = []
    for step in ("create_environment", "install_torch", "install_package", "refuse_strays"):
        setattr(setup, step, lambda *args, step=step: worked.append(step))
    setup.install_rendering = lambda required: worked.append("install_rendering") or "egl"
    setup.run(asked)
    assert (worked == []) == at_once
    assert ("up to date" in capsys.readouterr().out) == at_once
    worked.clear()
    setup.run(asked)
    assert worked == []


# --- when it cannot go on


def test_failed_step_shows_the_end_of_its_output_and_keeps_the_log(install, tmp_path, capsys):
    setup = install.Setup(tmp_path)
    command = [sys.executable, "-c", "import sys; print('the reason'); sys.exit(3)"]
    with pytest.raises(install.SetupError, match="the reason"):
        setup.step("a step", command)
    assert setup.step("a step", command, may_fail=True) is False
    assert "the reason" in setup.log.read_text()
    assert "a step" in capsys.readouterr().out


def test_long_steps_show_signs_of_life_and_their_time(install, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(install, "HEARTBEAT", 0.1)
    with (tmp_path / "log").open("w+") as log:
        seconds, code = install.watch("nap", ["sleep", "0.35"], log)
    assert code == 0
    assert seconds >= 0.35
    assert "nap: still at it" in capsys.readouterr().out


def test_steps_get_no_stdin_and_no_foreign_settings(install, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    setup = install.Setup(tmp_path)
    code = "import os, sys; print(repr(sys.stdin.read()), os.environ.get('PIP_TARGET'))"
    setup.step("look", [sys.executable, "-c", code])
    assert "'' None" in setup.log.read_text()


def test_missing_rendering_stops_the_quickstart_but_not_the_tests(install, tmp_path, monkeypatch):
    setup = recorder(install, tmp_path, CPU_PLAN)
    monkeypatch.setattr(install, "install_system_packages", lambda packages: False)
    monkeypatch.setattr(
        setup, "ask", lambda code: "backend:" if "find_renderer" in code else "sudo get-mesa"
    )
    with pytest.raises(install.SetupError, match="sudo get-mesa"):
        setup.install_rendering(required=True)
    assert setup.install_rendering(required=False) == ""


def test_rendering_is_installed_where_that_is_allowed(install, tmp_path, monkeypatch):
    setup = recorder(install, tmp_path, CPU_PLAN)
    installed: list[str] = []
    monkeypatch.setattr(
        install, "install_system_packages", lambda packages: not installed.extend(packages)
    )
    monkeypatch.setattr(
        setup, "ask", lambda code: "backend:osmesa" if "libosmesa6" in installed else "backend:"
    )
    assert setup.install_rendering(required=True) == "osmesa"
    assert installed[: len(install.EGL_PACKAGES)] == list(install.EGL_PACKAGES)


def test_package_that_does_not_load_is_not_taken_for_missing_rendering(install, tmp_path):
    setup = recorder(install, tmp_path, CPU_PLAN)  # its `ask` answers "" as a broken import does
    with pytest.raises(install.SetupError, match="does not load"):
        setup.install_rendering(required=False)


def test_the_package_answers_what_set_up_asks_it(install):
    setup = install.Setup(ROOT)
    setup.python = Path(sys.executable)
    assert setup.ask(install.FIND_RENDERER).startswith("backend:")
    assert setup.ask(install.HOW_TO_RENDER)


def test_apt_updates_its_lists_only_when_it_must(install, tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(install, "privilege", lambda: [])
    fake_tool(tmp_path, "apt-get", f'echo "$@" >> {calls}')
    assert install.install_system_packages(["libegl1"])
    assert len(calls.read_text().splitlines()) == 1
    assert "--no-install-recommends libegl1" in calls.read_text()

    calls.unlink()
    lists = tmp_path / "lists"  # without them the first install fails
    fake_tool(
        tmp_path,
        "apt-get",
        f'echo "$@" >> {calls}; case "$*" in *update*) touch {lists};; *) test -e {lists};; esac',
    )
    assert install.install_system_packages(["libegl1"])
    assert [("update" in line) for line in calls.read_text().splitlines()] == [False, True, False]

    monkeypatch.setattr(install, "privilege", lambda: None)
    assert not install.install_system_packages(["libegl1"])


def test_unknown_extra_is_refused(install, capsys):
    assert install.main(["quickstar"]) == 2
    assert "quickstart, dev, docs" in capsys.readouterr().out


# --- setup.sh finds a Python


def run_setup_sh(folder: Path) -> subprocess.CompletedProcess[str]:
    """setup.sh with nothing on the path but `folder` and the plain shell tools."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("dirname", "bash"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    environment = {"PATH": f"{folder}:{tools}"}
    return subprocess.run(
        ["/bin/bash", str(ROOT / "scripts" / "setup.sh"), "dev"],
        capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def version_stub(folder: Path, name: str, version: str) -> None:
    """A Python of another version: tells that version when asked, and writes down what it is to run."""
    info = tuple(int(part) for part in version.split("."))
    fake_tool(
        folder,
        name,
        f'[ "$1" = --version ] && {{ echo "Python {version}"; exit 0; }}\n'
        f'[ "$1" = -c ] && exec {sys.executable} -c "import sys; sys.version_info = {info}; $2"\n'
        f'echo "handed over: {name} $@"',
    )


def test_first_python_that_fits_is_handed_the_work(tmp_path):
    fake_tool(tmp_path, "python3.11", "exit 127")  # a version manager's stub without its version
    version_stub(tmp_path, "python3", "3.12.4")
    version_stub(tmp_path, "python3.13", "3.13.0")
    answer = run_setup_sh(tmp_path)
    assert answer.returncode == 0
    assert answer.stdout.strip() == "handed over: python3.13 -u scripts/install.py dev"


@pytest.mark.parametrize("version", ["3.10.14", "3.14.0"])
def test_python_out_of_range_is_named_with_what_to_do(tmp_path, version):
    version_stub(tmp_path, "python3", version)
    answer = run_setup_sh(tmp_path)
    assert answer.returncode == 1
    assert "needs Python 3.11" in answer.stderr
    assert f"python3 ({version})" in answer.stderr
    assert "apt-get install" in answer.stderr


def test_plan_reads_pips_report(install, tmp_path, monkeypatch):
    setup = install.Setup(tmp_path)

    def pip(name, arguments, *, may_fail=False):
        report = Path(arguments[arguments.index("--report") + 1])
        report.write_text(json.dumps({"install": [{"metadata": {"name": "torch"}}]}))
        return True

    monkeypatch.setattr(setup, "pip", pip)
    assert setup.plan(["torch"]) == ["torch"]
    monkeypatch.setattr(setup, "pip", lambda *args, **kwargs: False)
    assert setup.plan(["torch"]) == []


def test_environment_of_children_keeps_the_rest(install, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/x")
    kept = install.clean_environment()
    assert "PYTHONPATH" not in kept
    assert kept["PATH"] == os.environ["PATH"]
