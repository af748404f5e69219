"""The simulator's states beside a dataset: what is written comes back, and nothing else is taken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_rl.config import EnvConfig, UserError
from vla_rl.config.serialize import to_json
from vla_rl.data.demonstrations import ACTION, ENVIRONMENT_FILE, STATE
from vla_rl.data.lerobot import LeRobotReader, LeRobotWriter, vector
from vla_rl.data.snapshots import ABOUT_FILE, DemonstrationSnapshots, SnapshotWriter

VERSIONS = {"physics": "3.1"}
TASKS = {"open": (0, 2), "close": (1,)}
LENGTH = 4
FILE = "snapshots/task-000.parquet"


def state(task: str, number: int, frame: int) -> dict[str, Any]:
    rng = np.random.default_rng([number, frame])
    return {
        "task": task, "initial_state": 10 + number, "turns": frame, "ended": False,
        "integration": rng.normal(size=3 if task == "open" else 5),
        "colours": rng.random((2, 4)).astype(np.float32),
        "share": float(rng.random()), "steps": int(frame * 5), "done": np.bool_(frame % 2), "heat": np.float32(0.1),
        **({"late": np.array([frame])} if frame > 2 else {}),  # changed on the way
    }  # fmt: skip


def write(folder: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Path:
    features = {STATE: vector(2), ACTION: vector(1), "initial_state": vector(1, dtype="int64")}
    with LeRobotWriter(folder, fps=10, features=features) as writer:
        snapshots = SnapshotWriter(writer, VERSIONS)
        for task in ("open", "close", "open"):
            number = len(writer._episode_rows)
            frames = {
                STATE: np.full((LENGTH, 2), number) + np.arange(LENGTH)[:, None] / 8,
                ACTION: np.zeros(LENGTH),
                "initial_state": np.full(LENGTH, 10 + number),
            }
            writer.add_episode(frames, task=task)
        for task, numbers in TASKS.items():
            states = {n: [state(task, n, f) for f in range(LENGTH)] for n in numbers}
            for own in states.values():
                for one in own:
                    change(one)
            snapshots.add_task(task, states)
        snapshots.finish()
        writer.add_json(ENVIRONMENT_FILE, to_json(EnvConfig()))
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("snapshots") / "d")


def test_what_is_written_comes_back_to_the_bit_and_of_the_same_kinds(dataset: Path) -> None:
    read = DemonstrationSnapshots(dataset, VERSIONS)
    assert {(d.number, d.task, d.initial_state, d.length) for d in read.demonstrations.values()} == {
        (n, task, 10 + n, LENGTH) for task, numbers in TASKS.items() for n in numbers
    }  # fmt: skip
    for task, numbers in TASKS.items():
        for number in numbers:
            for frame in range(1, LENGTH):
                found, expected = read.snapshot(number, frame), state(task, number, frame)
                assert found.keys() == expected.keys()
                for name, value in expected.items():
                    assert type(found[name]) is type(value), name
                    np.testing.assert_array_equal(found[name], value)
                    assert np.asarray(found[name]).dtype == np.asarray(value).dtype
                np.testing.assert_allclose(read.proprio(number, frame), number + frame / 8)
    for number, frame in ((0, 0), (0, LENGTH)):
        with pytest.raises(IndexError):
            read.snapshot(number, frame)
    read.snapshot(0, 1)["integration"][:] = 0  # a copy
    assert read.snapshot(0, 1)["integration"].any()


def test_a_dataset_says_which_one_it_is(dataset: Path, tmp_path: Path) -> None:
    def moved(one: dict[str, Any]) -> None:
        one["integration"] = one["integration"] + 1e-9

    same, other = write(tmp_path / "same"), write(tmp_path / "other", moved)
    digests = [DemonstrationSnapshots(d, VERSIONS).digest for d in (dataset, same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_other_readers_do_not_mind(dataset: Path) -> None:
    assert len(LeRobotReader(dataset)) == 3 * LENGTH


def shrink(one: dict[str, Any]) -> None:
    one["integration"] = one["integration"][: one["turns"]]


# None is not the same as nothing, which comes back as what a reset leaves
@pytest.mark.parametrize(
    "spoil",
    [
        shrink,
        lambda one: one.pop("turns"),
        *(lambda one, v=v: one.update(odd=v) for v in (None, object(), {1: 2}, np.array(["a"]))),
    ],
)
def test_what_no_file_can_hold_is_said_before_anything_is_written(spoil, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be kept in a file"):
        write(tmp_path / "d", spoil)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_without_them_says_what_to_do(dataset: Path, tmp_path: Path) -> None:
    old = shutil.copytree(dataset, tmp_path / "old")
    shutil.rmtree(old / "snapshots")
    with pytest.raises(UserError, match=r"without the simulator's snapshots.*--snapshots"):
        DemonstrationSnapshots(old, VERSIONS)


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        ({"physics": "3.2"}, "physics 3.1, here is 3.2"),
        ({"other": "1"}, "simulator other, got those of physics"),
    ],
)
def test_states_of_another_simulator_are_refused(installed, said, dataset: Path) -> None:
    with pytest.raises(UserError, match=said):
        DemonstrationSnapshots(dataset, installed)


def edit_table(change: Callable[[dict[str, list[Any]]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        table = pq.read_table(folder / FILE)
        columns = table.to_pydict()
        change(columns)
        schema = pa.schema([table.schema.field(n) for n in columns if n in table.schema.names])
        pq.write_table(pa.table(columns, schema=schema), folder / FILE)

    return edit


def edit_about(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        about = json.loads((folder / ABOUT_FILE).read_text())
        change(about)
        (folder / ABOUT_FILE).write_text(json.dumps(about))

    return edit


def part(about: dict[str, Any], name: str) -> dict[str, Any]:
    return about["tasks"][0]["parts"][name]


def put(name: str, row: int, value: Any) -> Callable[[Path], None]:
    return edit_table(lambda columns: columns[name].__setitem__(row, value))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (put("integration", 1, [0.0, float("nan"), 0.0]), "finite numbers"),
        (put("integration", 1, [0.0, 1.0]), r"a list of 2"),
        (put("turns", 2, 7), r"turns: expected 3, as the dataset has it, got 7 in row 2"),
        (put("initial_state", 0, 3), r"initial_state: expected 10"),
        (put("task", 0, "close"), r"task: expected open"),
        (put("ended", 0, True), r"ended: expected False"),
        (put("ended", 0, None), r"ended: expected a value in every row, got null"),
        (put("frame_index", 1, 3), r"expected all states of each episode.*episode 0, frame 1"),
        (put("episode_index", 0, 99), r"got episode 99, frame 1"),
        (put("episode_index", 3, 0), r"all states of each episode"),
        (edit_table(lambda c: [v.pop() for v in c.values()]), r"all states of each episode"),
        (edit_table(lambda c: c.pop("share")), r"expected the column 'share'"),
        (edit_about(lambda a: a.update(format=9)), r"format: expected 1, got 9"),
        (edit_about(lambda a: a.pop("packages")), r"expected the key .packages"),
        (edit_about(lambda a: a["tasks"][0].update(file="../../secret.parquet")), r"secret"),
        (edit_about(lambda a: a["tasks"][0].update(file="snapshots/none.parquet")), r"missing"),
        (edit_about(lambda a: part(a, "integration").update(kind="object")), r"kind"),
        (edit_about(lambda a: part(a, "integration").update(dtype="object")), r"expected one of"),
        (edit_about(lambda a: part(a, "integration").update(shape=[-1])), r"expected one of|shape"),
        (edit_about(lambda a: part(a, "colours").update(shape=[2**62, 8])), r"colours"),
        (edit_about(lambda a: part(a, "turns").update(kind="number")), r"turns"),
        (edit_about(lambda a: a["tasks"][0]["parts"].pop("turns")), r"turns: expected a part"),
        (edit_about(lambda a: a["tasks"].append(a["tasks"][0])), r"all states of each episode"),
        (lambda f: (f / FILE).write_bytes(b"PAR1 no"), "a parquet file"),
        (lambda f: (f / ABOUT_FILE).write_text("{"), "valid JSON"),
        (lambda f: (f / ENVIRONMENT_FILE).unlink(), "missing"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_refused_with_the_file_and_the_place(
    damage: Callable[[Path], Any], said: str, dataset: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(dataset, tmp_path / "d")
    damage(folder)
    with pytest.raises(UserError, match=said):
        DemonstrationSnapshots(folder, VERSIONS)
