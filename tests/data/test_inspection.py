"""Files that bring their library down bring down a child, and are one error here."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from damage import ByteDamage
from vla_rl.config import UserError
from vla_rl.data import inspection
from vla_rl.data.inspection import Inspector, inspect


@pytest.fixture
def table(tmp_path: Path) -> Path:
    columns = {"number": np.zeros(1000), "text": ["x"] * 1000, "list": [[1, 2]] * 1000}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=600)
    return tmp_path / "t.parquet"


@pytest.fixture(autouse=True)
def inspector(monkeypatch: pytest.MonkeyPatch):
    own = Inspector()
    monkeypatch.setattr(inspection, "_inspector", own)
    yield own
    own.close()


def test_the_size_of_each_column_in_memory_is_known_before_it_is_read(table: Path):
    sizes = inspect("parquet", table)
    assert set(sizes) == {"number", "text", "list.list.element"}
    assert all(len(groups) == 2 for groups in sizes.values())
    assert 600 * 8 <= sizes["number"][0] < 600 * 8 + 200
    assert 400 * 2 * 8 <= sizes["list.list.element"][1] < 400 * 2 * 8 + 1000


@pytest.mark.parametrize(
    "program", ["import os; input(); os.abort()", "import time; time.sleep(900)"]
)
def test_a_file_that_ends_or_stops_the_child_is_an_error_and_the_next_one_is_read(
    table: Path, monkeypatch: pytest.MonkeyPatch, program: str
):
    with monkeypatch.context() as patched:
        patched.setattr(inspection, "PROGRAM", program.replace("{", "{{"))
        patched.setattr(inspection, "TIMEOUT", 0.5)
        with pytest.raises(
            UserError, match=r"t\.parquet: .* reading it crashes or never ends\. Fetch"
        ):
            inspect("parquet", table)
    assert inspect("parquet", table)


def test_a_child_that_had_nothing_to_do_is_replaced(
    table: Path, inspector: Inspector, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(inspection, "PROGRAM", "pass")  # ends at once, and well
    with pytest.raises(UserError, match="crashes or never ends"):
        inspect("parquet", table)
    monkeypatch.undo()
    monkeypatch.setattr(inspection, "_inspector", inspector)
    assert inspect("parquet", table)
    process = inspector._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()  # the child sees its end as if it had waited in vain
    assert process.wait() == 0
    assert inspect("parquet", table)


def test_the_child_ends_with_its_parent(table: Path):
    code = (
        "import os, sys; from pathlib import Path; from vla_rl.data import inspection\n"
        f"inspection.inspect('parquet', Path({str(table)!r}))\n"
        "print(inspection._inspector._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pid = int(answer.stdout)
    # where nobody collects orphans, what has ended stays as a zombie
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)


def test_hdf5_that_its_library_never_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A heap of zeros, found by chance."""
    pytest.importorskip("h5py", reason="needs the extra vla-rl[libero]")
    from libero_files import recording, write_file

    from vla_rl.data.libero_hdf5 import read_libero_demos

    rng = np.random.default_rng(0)
    path = write_file(tmp_path / "x_demo.hdf5", [recording(rng, 5, 8) for _ in range(2)])
    damage = ByteDamage("zero", at=0.07968885311972473, length=200, bit=4)
    path.write_bytes(damage.of(path.read_bytes()))
    monkeypatch.setattr(inspection, "TIMEOUT", 2.0)
    with pytest.raises(UserError, match=r"x_demo\.hdf5"):
        list(read_libero_demos(path))
