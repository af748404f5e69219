"""Set-up of ManiSkill's environment: it sees .venv's packages, and keeps the torch that lies there."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    for other in ("install", "environment_beside"):
        monkeypatch.delitem(sys.modules, other, raising=False)
    path = ROOT / "scripts" / "install_maniskill.py"
    spec = importlib.util.spec_from_file_location("install_maniskill", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    for other in ("install", "environment_beside"):
        monkeypatch.delitem(sys.modules, other, raising=False)
    return loaded


def recorded(module: ModuleType, root: Path, installed: str, works: str = "loaded") -> Any:
    """A set-up whose commands are written down instead of run."""
    packages = root / ".venv-maniskill" / "packages"
    packages.mkdir(parents=True)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (root / ".venv" / "lib" / version / "site-packages").mkdir(parents=True)

    class Recorded(module.ManiSkillSetup):  # type: ignore[name-defined, misc]
        calls: tuple[str, ...] = ()

        def ask(self, code: str) -> str:
            answers = {
                module.KEPT: "torch==2.13.0+cpu numpy==2.4.6",
                module.WORKS: works,
                module.DRAWS: "on the cpu",
            }
            return answers.get(code, installed if "distributions" in code else str(packages))

        def step(self, name: str, command: Any, *, may_fail: bool = False) -> bool:
            self.calls = (*self.calls, " ".join(command))
            return True

    return Recorded(root)


def test_torch_stays_and_the_packages_are_those_of_the_extra(
    module: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = recorded(module, tmp_path, "torch numpy sapien mani-skill")
    setup.install(wants_cuda=False)
    kept = (tmp_path / ".venv-maniskill" / "constraints.txt").read_text().split()
    assert kept == ["torch==2.13.0+cpu", "numpy==2.4.6"]
    assert f"-c {tmp_path / '.venv-maniskill' / 'constraints.txt'}" in setup.calls[0]
    pth = tmp_path / ".venv-maniskill" / "packages" / "product.pth"
    assert pth.read_text().startswith(str(tmp_path / ".venv" / "lib"))
    assert "--no-deps" in setup.calls[1]
    assert "drawing: on the cpu" in capsys.readouterr().out
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert list(module.PACKAGES) == project["optional-dependencies"]["maniskill"]


def test_strays_and_what_does_not_load_are_told(module: ModuleType, tmp_path: Path) -> None:
    error = module.SetupError
    with pytest.raises(error, match="torchvision"):
        recorded(module, tmp_path / "a", "torch torchvision").install(wants_cuda=False)
    with pytest.raises(error, match="does not load"):
        recorded(module, tmp_path / "b", "torch", works="").install(wants_cuda=False)
