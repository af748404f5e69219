"""LIBERO's HDF5 files from elsewhere: in use is not damaged, no other file is opened, and numbers are checked."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from damage import ByteDamage, changed, load_or_user_error

h5py = pytest.importorskip("h5py", reason="needs the extra vla-rl[libero]")

from libero_files import TASK, recording, write_file  # noqa: E402

from vla_rl.config import UserError  # noqa: E402
from vla_rl.data.libero_hdf5 import (  # noqa: E402
    convert_libero_hdf5,
    libero_files,
    read_libero_demos,
    stored_size,
)

IMAGES = "data/demo_0/obs/agentview_rgb"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    return write_file(
        tmp_path / "libero" / f"{TASK}_demo.hdf5", [recording(rng, 5, 8) for _ in range(2)]
    )


def read(path: Path) -> int:
    stored_size(path)
    return sum(len(demo.actions) for demo in read_libero_demos(path, wrist=True))


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read(path)
    assert str(path) in str(raised.value)


def test_a_file_that_another_program_writes_is_in_use_and_not_damaged(path: Path):
    code = f"import h5py; f = h5py.File({str(path)!r}, 'r+'); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        try:
            refused(path, "is in use: another program has it open for writing")
        finally:
            writer.communicate("\n")
    assert read(path) == 8


@pytest.mark.parametrize("key", ["data", "data/demo_0", "data/demo_0/obs", IMAGES])
def test_a_link_to_another_file_is_not_opened(path: Path, key: str):
    other = path.parent.parent / "other.hdf5"
    other.write_bytes(path.read_bytes())
    with h5py.File(path, "r+") as file:
        del file[key]
        file[key] = h5py.ExternalLink(str(other), f"/{key}")
    refused(path, "in the file itself, got a link to another file")


def test_data_in_other_files_are_not_read(path: Path):
    with h5py.File(path, "r+") as file:
        actions = file["data/demo_0/actions"][()]
        del file["data/demo_0/actions"]
        (path.parent / "raw").write_bytes(actions.tobytes())
        file.create_dataset(
            "data/demo_0/actions", actions.shape, actions.dtype,
            external=[(str(path.parent / "raw"), 0, h5py.h5f.UNLIMITED)],
        )  # fmt: skip
    refused(path, "in the file itself, got data of another file")
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/actions"]
        layout = h5py.VirtualLayout(actions.shape, actions.dtype)
        layout[:] = h5py.VirtualSource(str(path.parent / "other.hdf5"), "actions", actions.shape)
        file["data/demo_0"].create_virtual_dataset("actions", layout)
    refused(path, "in the file itself, got data of another file")


def test_links_out_of_a_folder_of_files_are_not_followed(path: Path, tmp_path: Path):
    (tmp_path / "elsewhere.hdf5").write_bytes(path.read_bytes())
    (path.parent / "x_demo.hdf5").symlink_to(tmp_path / "elsewhere.hdf5")
    with pytest.raises(UserError, match="a link that leads out of it"):
        libero_files(path.parent)


def test_what_unfolds_beyond_measure_is_refused(path: Path):
    """Rows that were never written take no room in the file, and all of it in memory."""
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/actions"]
        file.create_dataset("data/demo_0/actions", (20_000_000, 7), "f8", chunks=(1000, 7))
    refused(path, r"actions: expected data that unfold to at most 1000 times .* unfold to 1,120 MB")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("actions", np.nan, r"actions: expected finite numbers .* at frame 3, dimension 2"),
        ("actions", 1e38, r"actions: expected finite numbers .* at frame 3, dimension 2"),
        ("obs/ee_states", np.inf, r"obs/ee_states: expected finite numbers .* at frame 3, dimension 2"),
    ],
)  # fmt: skip
def test_numbers_out_of_reach_are_named(path: Path, key: str, value: float, message: str):
    with h5py.File(path, "r+") as file:
        file[f"data/demo_0/{key}"][3, 2] = value
    refused(path, message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("actions", np.full((5, 7), b"x"), "expected numbers in 'actions', got .S1"),
        ("actions", h5py.Empty("f4"), "expected numbers in 'actions', got nothing"),
        ("actions", np.zeros((0, 7)), r"expected T rows of 7 numbers in 'actions', got shape \(0, 7\)"),
        ("obs/agentview_rgb", np.zeros((5, 0, 0, 3), np.uint8), "expected pictures of demo_0 of shape"),
        ("obs/agentview_rgb", np.zeros(5, np.uint8), "expected pictures of demo_0 of shape"),
        ("obs", np.zeros(3), "expected the dataset 'obs/agentview_rgb', got none"),
    ],
)  # fmt: skip
def test_parts_of_another_kind_are_named(path: Path, key: str, value: object, message: str):
    with h5py.File(path, "r+") as file:
        del file[f"data/demo_0/{key}"]
        file[f"data/demo_0/{key}"] = value
    refused(path, message)


@pytest.mark.parametrize("convention", [3, np.zeros(2), b"opengl ", "x" * 1000])
def test_an_unknown_convention_of_pictures_is_refused(path: Path, convention: object):
    with h5py.File(path, "r+") as file:
        file["data"].attrs["macros_image_convention"] = convention
    refused(path, "expected pictures in the convention 'opengl' or 'opencv'")


def test_a_demonstration_that_is_none_is_refused(path: Path):
    with h5py.File(path, "r+") as file:
        file["data/demo_00000"] = np.zeros(3)
        file[f"data/demo_{'9' * 5000}"] = np.zeros(3)  # no number of a demonstration
        del file["data/demo_0"]
    refused(path, "expected a demonstration in 'demo_00000'")


def test_damaged_bytes_are_a_user_error_or_are_read(path: Path):
    """The same damage every time, as HDF5 files differ from run to run in nothing else."""
    rng, whole = random.Random(0), path.read_bytes()
    kinds = ["flip", "zero", "drop", "insert", "truncate", "append"]
    refusals = 0
    for _ in range(60):
        lengths = rng.choice([1, 8, 200])
        damage = ByteDamage(rng.choice(kinds), rng.random(), lengths, rng.randrange(8))
        with changed(path, damage.of(whole)):
            refusals += load_or_user_error(lambda: read(path), path) is None
    assert 10 < refusals < 60


def test_a_fault_leaves_no_half_dataset(path: Path, tmp_path: Path):
    with h5py.File(path, "r+") as file:
        file["data/demo_1/actions"][3, 2] = np.nan
    with pytest.raises(UserError, match="demo_1: actions: expected finite"):
        convert_libero_hdf5(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["libero"]
