"""The light install: what is missing is one line that says which extra to install, and no command asks for more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vla_rl.cli.commands import COMMANDS
from vla_rl.cli.needs import NEEDS
from vla_rl.config import UserError
from vla_rl.runtime import extras
from vla_rl.runtime.extras import EXTRAS, explain, install, installed, need, package_of

MODULES = [module for modules in EXTRAS.values() for module in modules]
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

LIGHT = """
import contextlib, importlib.abc, io, json, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
HIDDEN, lines = json.loads(sys.argv[1])
sys.meta_path.insert(0, Hide())
from vla_rl.cli import main
answers = []
for line in lines:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(line)
    answers.append([code, out.getvalue(), err.getvalue()])
print(json.dumps([answers, "torch" in sys.modules]))
"""


def run_light(lines: Sequence[Sequence[str]], hidden: Sequence[str] = MODULES) -> Any:
    """(exit code, output, errors) of each command line, in one Python that finds none of `hidden`; and torch's fate."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, json.dumps([list(hidden), [list(line) for line in lines]])],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


WANTED: dict[str, str] = {
    "quickstart": "data,metaworld,report",
    "quickstart --preset libero-spatial-tiny": "data,libero,report",
    "demos": "data,metaworld",
    "demos --env.suite libero-goal": "data,libero",
    "demos --env.suite toy": "data",
    "convert x": "data,libero",
    "sft": "data",
    "train": "metaworld",
    "train --env.suite toy --eval.videos 2": "data",
    "train --reward.model x --reward.refresh-every 3": "data,metaworld",
    "eval x --videos 1": "data",
    "train --env.suite toy --run.trackers mlflow,trackio": "mlflow,trackio",
    "train --env.suite toy --run.trackers auto,wandb": "wandb",
    "push x me/x": "openvla",
    "reproduce libero-spatial": "libero",
    "rerun x": "data,rerun",
    "reward collect x": "data",
    "reward label x": "data",
    "reward label x --plot": "data,report",
    "reward train": "data",
    "reward train --backbone some/vlm": "data,lora,report",
    "reward eval x": "data,report",
    "reward score x y": "data,report",
    "test-time x": "report",
    "learning-curve x": "report",
    "ablate": "report",
    "compare x": "report",
    "compare data": "data,metaworld,report",
    "compare data toy": "data,report",
    "analyse x": "data,fast,report",
    "analyse x --no-videos": "fast,report",
    "film x": "data,report",
    "eval --policy ws://127.0.0.1:9": "serve",
    "eval --policy ws://127.0.0.1:9 --videos 1": "data,serve",
    "agree x": "data",
    "prefer": "data",
    "serve x": "serve",
    "check-env mt5": "metaworld",
    "check-env gym:Anything-v0": "gymnasium",
}
"""Command line -> the extras that it asks for where none is installed."""


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[int, str, str]]:
    answered, torch_loaded = run_light([line.split() for line in WANTED])
    assert not torch_loaded  # asked before anything heavy is imported
    return dict(zip(WANTED, map(tuple, answered), strict=True))


@pytest.mark.parametrize("line", WANTED)
def test_a_command_says_which_extra_it_needs_before_it_begins(
    answers: dict[str, tuple[int, str, str]], line: str
) -> None:
    code, out, err = answers[line]
    assert (code, out, err.count("\n")) == (2, "", 1)
    command = max((name for name in COMMANDS if f"{line} ".startswith(f"{name} ")), key=len)
    assert err.startswith(f"vla-rl: {command} needs the package")
    assert err.endswith(f": pip install 'vla-rl[{WANTED[line]}]'\n")


def test_every_command_is_looked_at() -> None:
    assert NEEDS.keys() == COMMANDS.keys()
    # what these do without any extra is tested below
    light = {"export", "report", "doctor", "eval", "certify", "engine serve", "plan"}
    assert {
        name for name in COMMANDS if any(f"{line} ".startswith(f"{name} ") for line in WANTED)
    } | light == set(COMMANDS)


def test_what_a_command_does_not_need_it_does_not_ask_for(tmp_path: Path) -> None:
    """Without any extra a policy is exported, and others get as far as the file that is not there."""
    from vla_rl.config import PolicyConfig, tiny_model
    from vla_rl.policies import OpenVLAPolicy, identity_statistics

    policy, gone = tmp_path / "policy", str(tmp_path / "gone")
    settings, statistics = PolicyConfig(device="cpu"), identity_statistics("toy", 3)
    OpenVLAPolicy.create(tiny_model(), ("go",), statistics, 3, 1, settings).save(policy)
    train = ["train", "--policy.checkpoint", gone, "--run.root", str(tmp_path), "--run.name", "x"]
    lines = [
        ["export", str(policy), "--out", str(tmp_path / "out")],
        ["eval", gone],
        ["report", gone],
        ["certify", gone],
        ["engine", "serve", gone, "--socket", str(tmp_path / "socket")],
        [*train, "--env.suite", "toy", "--run.trackers", "none"],
    ]
    (exported, *others), _ = run_light(lines)
    assert exported[::2] == [0, ""]
    assert (tmp_path / "out" / "model.safetensors").is_file()
    for line, (code, _, err) in zip(lines[1:], others, strict=True):
        assert code == 2, line
        assert gone in err
        assert "pip install" not in err


# --- the one mechanism


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_what_it_is_named_for(extra: str) -> None:
    """By the project's own list of packages, the one that pip reads."""
    declared = " ".join(PROJECT["optional-dependencies"][extra])
    for module in EXTRAS[extra]:
        assert package_of(module) in declared, module


def test_need_names_packages_and_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "installed", lambda module: module == "av")
    need("av")
    need()
    with pytest.raises(UserError) as caught:
        need("PIL", "av", "pyarrow", "matplotlib", purpose="this")
    assert str(caught.value) == (
        "this needs the packages pillow, pyarrow and matplotlib: pip install 'vla-rl[data,report]'"
    )


def test_a_module_is_looked_for_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed("this")  # importing it would print a poem
    assert "this" not in sys.modules
    assert not installed("no_such_module_anywhere")
    monkeypatch.setitem(
        sys.modules, "json", None
    )  # what stands there for a module that is not to be found
    assert not installed("json")


def test_an_import_that_fails_elsewhere_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "installed", lambda module: module == "pyarrow")
    missing = explain(ModuleNotFoundError("No module named 'peft.tuners'", name="peft.tuners"))
    assert str(missing) == "this needs the package peft: pip install 'vla-rl[lora]'"
    broken = explain(ImportError("libarrow.so.1:\n cannot open", name="pyarrow.lib"))
    assert str(broken) == (
        "the package pyarrow is installed but does not load (libarrow.so.1: cannot open): "
        "pip install --force-reinstall 'vla-rl[data]'"
    )
    assert explain(ModuleNotFoundError("No module named 'nmpy'", name="nmpy")) is None
    assert explain(ImportError("cannot import name")) is None
    assert install(["peft", "av"]) == "pip install 'vla-rl[data,lora]'"
    assert install(["peft", "a_simulator"]) == "pip install 'vla-rl[lora]' a_simulator"
