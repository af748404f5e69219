"""The door for what comes from outside: JSON into schemas, paths, arrays; every fault names file, key and remedy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from annotated_types import Ge, Gt, MinLen

from vla_rl.config import UserError
from vla_rl.runtime.external import (
    check_array,
    fault,
    files_inside,
    parse_json,
    path_inside,
    read_json,
)


@dataclass(frozen=True)
class Feature:
    dtype: str
    shape: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)]
    names: list[str] | dict[str, Any] | None = None


@dataclass(frozen=True)
class Info:
    fps: Annotated[float, Gt(0)]
    features: dict[str, Feature]
    robot: str | None = None


FEATURES = {"action": {"dtype": "float32", "shape": [7]}}


def text(**changes: Any) -> str:
    return json.dumps({"fps": 20, "features": FEATURES, **changes})


def test_a_valid_file_becomes_the_schema(tmp_path: Path):
    path = tmp_path / "info.json"
    path.write_bytes(b"\xef\xbb\xbf" + text(unknown=[1], robot="arm").encode())
    info = read_json(path, Info)
    assert info == Info(20.0, {"action": Feature("float32", (7,))}, "arm")
    assert read_json(path)["unknown"] == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (text(fps=None), "f.json: fps: expected a number, got null. Fix the file"),
        (text(fps="20"), 'fps: expected a number, got "20"'),
        (text(fps=True), "fps: expected a number, got true"),
        (text(fps=0), "fps: expected a number above 0, got 0"),
        (text(fps=float("nan")), "fps: expected a finite number, got nan"),
        ('{"fps": 1e999, "features": {}}', "fps: expected a finite number, got inf"),
        (text(unknown=[{"a.b": float("-inf")}]), 'unknown[0]["a.b"]: expected a finite number'),
        ('{"fps": 2}', 'f.json: expected the key "features", got an object with "fps"'),
        (text(features=[]), "features: expected an object, got an empty list"),
        (text(features={"x.y": {"dtype": "u", "shape": [3, 0]}}),
         'features["x.y"].shape[1]: expected a number of at least 1, got 0'),
        (text(features={"a": {"dtype": "u", "shape": []}}),
         "features.a.shape: expected at least 1 entries, got an empty list"),
        (text(features={"a": {"dtype": "u", "shape": [1], "names": 5}}),
         "features.a.names: expected a list or an object, got 5"),
        (text(features={"a": {"dtype": "u", "shape": [1], "names": ["x", 5]}}),
         "features.a.names[1]: expected a text, got 5"),
        (text(fps=-1, robot=3), "got -1. Also wrong: robot. Fix"),
        (text(robot="\x1b[31m\udc80" + "x" * 100), "expected text without half a surrogate pair"),
        ("[1]", "expected an object, got [1]"),
        ("3", "expected an object, got 3"),
        ("null", "expected an object, got null"),
        ("", "expected JSON, got an empty file"),
        ("  \n", "expected JSON, got an empty file"),
        (text()[:30], "expected valid JSON, got damaged text"),
        (b'{"fps": "\xff"}', "expected JSON in UTF-8, got the byte 0xff at position 9"),
        ("[" * 100_000, "expected at most 64 levels of nesting, got more"),
        (text(unknown=0).replace("0}", "[" * 500 + "]" * 500 + "}"), "at most 64 levels"),
        ('{"fps": ' + "9" * 5000 + "}", "expected valid JSON"),
        (text(robot=10**50), "robot: expected a text, got an integer of more than 40 digits"),
    ],
)  # fmt: skip
def test_each_fault_names_key_expectation_and_finding(
    tmp_path: Path, content: str | bytes, message: str
):
    path = tmp_path / "f.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as raised:
        read_json(path, Info)
    said = str(raised.value)
    assert message in said
    assert str(path) in said
    assert "Fix the file or fetch it again." in said
    assert len(said) - len(str(path)) < 320
    assert said.isprintable()


def test_nesting_up_to_the_limit_is_read():
    assert parse_json('{"a": ' + "[" * 63 + "]" * 63 + "}", source="x")
    with pytest.raises(UserError, match="levels of nesting"):
        parse_json('{"a": ' + "[" * 64 + "]" * 64 + "}", source="x")


def test_what_may_be_infinite_is_read_on_request():
    assert parse_json('{"a": Infinity}', source="x", finite=False) == {"a": float("inf")}


def test_hostile_text_is_shown_in_one_printable_line():
    with pytest.raises(UserError) as raised:
        parse_json(text(fps="\x1b[31m\x9b\n" + "x" * 10_000), Info, source="x")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 200
    with pytest.raises(UserError) as raised:
        raise fault("x", "key", "words", {"k" * 10_000: 1, "\udc80": 2, "c": 10**5000})
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 200


def test_what_is_no_file_of_bounded_size_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.json, which is missing"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="expected a file, got a folder"):
        read_json(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="got a pipe"):
        read_json(tmp_path / "pipe")
    (tmp_path / "large.json").write_text('{"a": "' + "x" * 100 + '"}')
    with pytest.raises(UserError, match="expected at most 50 bytes"):
        read_json(tmp_path / "large.json", max_bytes=50)
    with pytest.raises(UserError, match="cannot read"):
        read_json(tmp_path / ("n" * 300))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.json").write_text("{}")
    inside = tmp_path / "folder"
    (inside / "deep").mkdir(parents=True)
    (inside / "a.json").write_text("{}")
    (inside / "link.json").symlink_to("a.json")
    (inside / "out.json").symlink_to("../secret.json")
    (inside / "up").symlink_to("..")
    (inside / "circle").symlink_to("circle")
    return inside


@pytest.mark.parametrize("name", ["a.json", "link.json", "deep/new.json", "./a.json", "..a.json"])
def test_paths_inside_are_taken(folder: Path, name: str):
    assert path_inside(folder, name, source="index") == folder / name


@pytest.mark.parametrize(
    "name",
    ["../secret.json", "/etc/passwd", "deep/../../secret.json", "..", "", None, 3, ["a.json"],
     "out.json", "up/secret.json", "circle/x", "a\0b", "C:\\x", "..\\secret.json", "\\x",
     "n/" * 2000, "n" * 300, "\udc80"],
)  # fmt: skip
def test_paths_that_leave_the_folder_are_refused(folder: Path, name: object):
    with pytest.raises(UserError, match=r"index: (weight_map: expected|cannot follow)") as raised:
        path_inside(folder, name, source="index", key="weight_map")
    assert str(raised.value).isprintable()


def test_links_out_are_not_read(folder: Path):
    with pytest.raises(UserError, match="a link that leads out of it"):
        read_json(folder / "out.json", inside=folder)
    with pytest.raises(UserError, match="a link that leads out of it"):
        files_inside(folder, "*.json")
    (folder / "out.json").unlink()
    assert files_inside(folder, "*.json") == [folder / "a.json", folder / "link.json"]


def test_a_folder_reached_by_a_link_is_inside_itself(folder: Path):
    alias = folder.parent / "alias"
    alias.symlink_to(folder)
    assert read_json(alias / "a.json", inside=alias) == {}


def test_the_links_of_a_hugging_face_cache_lead_to_its_blobs_alone(tmp_path: Path):
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "abc"
    (snapshot / "adapter").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "adapter" / "config.json").symlink_to("../../../blobs/1")
    assert read_json(snapshot / "config.json", inside=snapshot) == {}
    assert read_json(snapshot / "adapter" / "config.json", inside=snapshot / "adapter") == {}
    other = tmp_path / "models--owner--other" / "blobs"
    other.mkdir(parents=True)
    (other / "1").write_text("{}")
    (snapshot / "bad.json").symlink_to("../../../models--owner--other/blobs/1")
    with pytest.raises(UserError, match="leads out"):
        path_inside(snapshot, "bad.json", source="x")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e38, -1e38])
def test_the_first_bad_number_of_an_array_is_named(bad: float):
    values = np.zeros((5, 3), np.float32)
    assert check_array(values, source="d", key="action", shape=(None, 3)) is values
    values[[2, 4], [1, 0]] = bad
    with pytest.raises(
        UserError, match=r"d: action: expected finite .* at frame 2, dimension 1\. Fix"
    ):
        check_array(values, source="d", key="action", axes=("frame", "dimension"))
    with pytest.raises(UserError, match=r"at episode 1\."):
        check_array(values, source="d", key="a", locate=lambda index: f"episode {index[0] // 2}")


def test_arrays_of_another_shape_or_type_are_refused():
    with pytest.raises(
        UserError, match=r"expected an array of shape \(\*, 3\), got shape \(2, 4\)"
    ):
        check_array(np.zeros((2, 4)), source="d", key="a", shape=(None, 3))
    for values in (np.array(["x"]), np.array([None]), np.zeros(1, complex), np.zeros(1, bool)):
        with pytest.raises(UserError, match=r"expected numbers \(float or integer or unsigned"):
            check_array(values, source="d", key="a")
    assert check_array(np.zeros(0), source="d", key="a").shape == (0,)


def test_schemas_and_our_own_files_do_not_load_the_validating_library():
    """`--help` and every simulator process import the door; only what comes from outside pays for the check."""
    code = "import sys, vla_rl.cli, vla_rl.runtime.files; print('pydantic' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "False", answer.stderr
