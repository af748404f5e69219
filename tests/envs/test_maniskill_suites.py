"""ManiSkill's suites without ManiSkill: names, settings, and what is said where something is missing."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vla_rl.config import ConfigError, UserError
from vla_rl.envs.maniskill import package
from vla_rl.envs.maniskill.benchmark import MANISKILL
from vla_rl.envs.maniskill.tasks import TASKS, suite_tasks, task_of
from vla_rl.envs.registry import benchmark, make_envs, suites_of
from vla_rl.runtime import extras

PUSH, PEG = "maniskill:PushCube-v1", "maniskill:PegInsertionSide-v1"


def test_a_suite_names_its_tasks() -> None:
    assert suite_tasks("maniskill") == tuple(TASKS)
    assert suite_tasks("maniskill:PickCube-v1, PushCube-v1") == ("PickCube-v1", "PushCube-v1")
    assert benchmark(PUSH) is MANISKILL
    texts = [task.instruction for task in TASKS.values()]
    assert len(set(texts)) == len(texts)
    assert [task_of(text) for text in texts] == list(TASKS)
    assert task_of("something else") == "something else"


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        ("maniskill:PushCub-v1", "Did you mean 'PushCube-v1'"),
        ("maniskill:PushCube-v1,", "has no task ''"),
        ("maniskill:PushCube-v1,PushCube-v1", "twice"),
        ("maniskil:PushCube-v1", "Did you mean 'maniskill'"),
        ("maniskill2:PushCube-v1", "Did you mean 'maniskill'"),
    ],
)
def test_unknown_tasks_are_refused_in_one_line(suite: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        benchmark(suite).task_names(suite)
    assert "\n" not in str(caught.value)


def test_an_episode_is_as_long_as_maniskill_lets_it_be() -> None:
    protocol = MANISKILL.env_defaults(PUSH)
    assert (protocol.horizon, protocol.action_chunk, protocol.action_repeat) == (50, 1, 1)
    laptop = MANISKILL.laptop_defaults(PUSH)
    assert 50 <= laptop.horizon * laptop.action_chunk * laptop.action_repeat < 54
    assert MANISKILL.horizon("maniskill:PushCube-v1,PegInsertionSide-v1") == 100


def test_nobody_plays_demonstrations() -> None:
    with pytest.raises(UserError, match="no expert"):
        MANISKILL.make_expert(None)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "installed", lambda module: False)
    package.load_maniskill.cache_clear()
    with pytest.raises(
        UserError, match=r"ManiSkill needs .*mani-skill.*'vla-rl\[maniskill\]'"
    ) as caught:
        make_envs(MANISKILL.laptop_defaults(PUSH), 1)
    assert "\n" not in str(caught.value)


def test_a_package_that_does_not_load_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mani_skill").mkdir()
    (tmp_path / "mani_skill" / "__init__.py").write_text(
        "raise OSError('libfoo.so:\\n not found')\n"
    )
    (tmp_path / "sapien.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in [name for name in sys.modules if name.split(".")[0] in ("mani_skill", "sapien")]:
        monkeypatch.delitem(sys.modules, module)
    package.load_maniskill.cache_clear()
    with pytest.raises(UserError, match=r"does not load \(OSError: libfoo.so: not found\)"):
        package.load_maniskill()


def test_the_drivers_that_there_are_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(package, "_FOLDERS", (str(tmp_path / "icd.d"),))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    assert package.drivers_in_words() == "no Vulkan driver is installed"
    (tmp_path / "icd.d").mkdir()
    manifest = tmp_path / "icd.d" / "lvp_icd.json"
    manifest.write_text(json.dumps({"ICD": {"api_version": "1.1.230"}}))
    (tmp_path / "icd.d" / "torn.json").write_text("{")
    said = package.drivers_in_words()
    assert said == "there is lvp_icd.json (Vulkan 1.1.230), torn.json (unreadable)"
    monkeypatch.setenv("VK_ICD_FILENAMES", str(manifest))
    assert package.drivers_in_words() == "VK_ICD_FILENAMES names lvp_icd.json (Vulkan 1.1.230)"
    monkeypatch.setenv("VK_ICD_FILENAMES", f"{manifest}:{tmp_path / 'lost.json'}")
    assert "lost.json, which is no file" in package.drivers_in_words()


def test_each_task_of_a_union_has_its_own_limit() -> None:
    config = replace(MANISKILL.laptop_defaults(PUSH), suite=f"{PUSH}+{PEG}", horizon=0)
    assert {suite: part.horizon for suite, part in suites_of(config).items()} == {PUSH: 13, PEG: 25}
