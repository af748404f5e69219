"""Checkpoints: everything comes back, damage is named, and a failed write leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vla_rl.config import UserError
from vla_rl.runtime.checkpoint import (
    CheckpointError,
    flatten_optimizer,
    is_whole,
    previous_checkpoint,
    read_checkpoint,
    restore_optimizer,
    verify_checkpoint,
    write_checkpoint,
)
from vla_rl.runtime.trees import join_arrays, split_arrays

TENSORS = {
    "weights": torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7,
    "half": torch.tensor([1.5, -2.25], dtype=torch.bfloat16),
    "flags": torch.tensor([True, False]),
    "step": torch.tensor(3.0),
    "empty": torch.zeros(0, 4),
    "snapshot": np.linspace(0, 1, 5),
    "images": np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3),
    "big": np.array([2**64 - 1], dtype=np.uint64),
    "count": np.array(7),
}


def write_policy(folder: Path) -> None:
    (folder / "inner").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "inner" / "config.json").write_text("{}")


def write(folder: Path, mark: float = 0.0) -> Path:
    write_checkpoint(
        folder, tensors=TENSORS, state={"mark": mark, "list": [1, None]}, write_policy=write_policy
    )
    return folder


def test_everything_comes_back_with_its_type(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write(tmp_path / "iteration-000001", mark=0.1))
    assert checkpoint.state == {"mark": 0.1, "list": [1, None]}
    assert checkpoint.tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        got = checkpoint.tensors[name]
        assert type(got) is type(value)
        assert got.dtype == value.dtype
        assert got.shape == value.shape
        assert bool((got == value).all())
    assert (checkpoint.policy_folder / "model.safetensors").read_bytes() == b"weights"
    assert [p.name for p in tmp_path.iterdir()] == ["iteration-000001"]


def test_views_transposes_and_tensors_that_share_memory_are_saved_by_value(tmp_path: Path) -> None:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    strided = np.arange(12).reshape(3, 4)[:, ::2].T
    tensors = {"base": base, "same": base, "row": base[1], "turned": base.T, "strided": strided}
    write_checkpoint(tmp_path / "c", tensors=tensors, state={})
    back = read_checkpoint(tmp_path / "c").tensors
    for name, value in tensors.items():
        assert back[name].shape == value.shape
        assert bool((back[name] == value).all())


def test_the_manifest_lists_every_file_with_size_and_hash(tmp_path: Path) -> None:
    folder = write(tmp_path / "c")
    manifest = json.loads((folder / "manifest.json").read_text())["files"]
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(manifest) == files - {"manifest.json"}
    # sha256 of b"weights", by sha256sum
    assert manifest["policy/model.safetensors"] == {
        "bytes": 7,
        "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
    }


def damage(folder: Path, how: str, name: str) -> None:
    path = folder / name
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "changed", "missing"])
@pytest.mark.parametrize(
    "name",
    ["state.json", "tensors.safetensors", "arrays.safetensors", "policy/inner/config.json"],
)
def test_damage_is_named_and_the_checkpoint_before_it_proposed(
    tmp_path: Path, how: str, name: str
) -> None:
    write(tmp_path / "iteration-000010")
    damage(write(tmp_path / "iteration-000020"), "missing", "state.json")
    last = write(tmp_path / "iteration-000030")
    damage(last, how, name)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(last)
    message = str(caught.value)
    assert f"{name} " in message
    assert {"truncated": "bytes instead of", "changed": "SHA-256", "missing": "missing"}[
        how
    ] in message
    assert message.endswith(f"use the one before it, {tmp_path / 'iteration-000010'}")
    assert not is_whole(last)


def test_without_manifest_folder_or_earlier_checkpoint_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        read_checkpoint(tmp_path / "iteration-000010")
    folder = write(tmp_path / "iteration-000010")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(
        CheckpointError, match=r"manifest.json: expected valid JSON.*no whole one before it"
    ):
        verify_checkpoint(folder)
    (folder / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(CheckpointError, match="says format 'other'"):
        verify_checkpoint(folder)
    assert previous_checkpoint(folder) is None


def test_writing_again_replaces_the_former_one(tmp_path: Path) -> None:
    write(tmp_path / "c", mark=1.0)
    write(tmp_path / "c", mark=2.0)
    assert read_checkpoint(tmp_path / "c").state["mark"] == 2.0
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_an_error_in_the_middle_leaves_the_former_one_and_no_trace(tmp_path: Path) -> None:
    write(tmp_path / "c", mark=1.0)

    def fail(folder: Path) -> None:
        folder.mkdir()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        write_checkpoint(tmp_path / "c", tensors={}, state={}, write_policy=fail)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_checkpoint(tmp_path / "d", tensors={}, state={"x": {1}})
    assert read_checkpoint(tmp_path / "c").state["mark"] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from vla_rl.config import UserError
from vla_rl.runtime.checkpoint import read_checkpoint, write_checkpoint
folder = Path(sys.argv[1])
write_checkpoint(folder / "iteration-000001", tensors={"x": torch.zeros(9)}, state={"n": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
big = torch.zeros(100_000)
def policy(path):
    path.mkdir()
    (path / "weights").write_bytes(bytes(200_000))
for keywords in (
    {"tensors": {"x": big}, "state": {}},
    {"tensors": {"x": big.numpy()}, "state": {}},
    {"tensors": {}, "state": {"x": "y" * 200_000}},
    {"tensors": {}, "state": {}, "write_policy": policy},
):
    try:
        write_checkpoint(folder / "iteration-000002", **keywords)
    except UserError as error:
        print(error)
assert read_checkpoint(folder / "iteration-000001").state == {"n": 1}
print(sorted(p.name for p in folder.iterdir()))
"""


def test_a_disk_that_takes_no_more_is_one_clear_error_and_costs_nothing(tmp_path: Path) -> None:
    """The limit on file sizes makes the kernel refuse the write, as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    *errors, left = done.stdout.splitlines()
    assert len(errors) == 4
    for line in errors:
        assert "cannot write" in line
        assert "File too large; raise the limit on file sizes" in line
        assert "earlier checkpoints are untouched" in line
    assert left == "['iteration-000001']"


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*Not a directory"):
        write_checkpoint(tmp_path / "file" / "c", tensors={}, state={})


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + step)
        optimizer.step()


def make(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    groups = [
        {"params": list(model[0].parameters()), "lr": 1e-2},
        {"params": list(model[2].parameters()), "lr": 3e-3, "betas": (0.8, 0.95)},
    ]
    if kind == "sgd":
        return model, torch.optim.SGD(groups, momentum=0.9)
    return model, (torch.optim.AdamW if kind == "adamw" else torch.optim.Adam)(groups, amsgrad=True)


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_a_restored_optimizer_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    model, optimizer = make(kind)
    train(model, optimizer, range(5))
    tensors, state = flatten_optimizer(optimizer, "policy_optimizer")
    tensors |= {f"model/{name}": value.clone() for name, value in model.state_dict().items()}
    write_checkpoint(tmp_path / "c", tensors=tensors, state={"optimizer": state})
    train(model, optimizer, range(5, 9))

    other, fresh = make(kind)
    saved = read_checkpoint(tmp_path / "c")
    other.load_state_dict(
        {name: saved.tensors[f"model/{name}"] for name in other.state_dict()}  # type: ignore[misc]
    )
    restore_optimizer(fresh, saved.tensors, saved.state["optimizer"])
    assert [g["lr"] for g in fresh.param_groups] == [1e-2 / 5, 1e-2 / 5]
    train(other, fresh, range(5, 9))

    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert fresh.param_groups[1].get("betas") == optimizer.param_groups[1].get("betas")


def test_an_optimizer_of_another_configuration_is_refused() -> None:
    model, optimizer = make("adam")
    train(model, optimizer, range(1))
    tensors, state = flatten_optimizer(optimizer)
    wider = nn.Linear(4, 5)
    with pytest.raises(CheckpointError, match="trains 4 parameters, this policy has 2"):
        restore_optimizer(torch.optim.Adam(wider.parameters()), tensors, state)
    swapped = [nn.Parameter(torch.zeros(3, 5)), *(p for p in list(model.parameters())[1:])]
    groups = [{"params": swapped[:2]}, {"params": swapped[2:]}]
    with pytest.raises(CheckpointError, match=r"shape \(5, 3\), this policy \(3, 5\)"):
        restore_optimizer(torch.optim.Adam(groups, amsgrad=True), tensors, state)
    with pytest.raises(CheckpointError, match="does not fit"):
        restore_optimizer(torch.optim.Adam(model.parameters(), amsgrad=True), tensors, state)
    del tensors["optimizer/state/0/exp_avg"]
    with pytest.raises(CheckpointError, match="lacks the optimizer's tensor"):
        restore_optimizer(optimizer, tensors, state)


def test_trees_come_back_as_they_were_through_json() -> None:
    tree = {
        "curriculum": {"drawer-open-v3": [1.0, 0.0], 3: (1, "two", None)},
        "snapshots": [{"qpos": np.arange(3.0), "$odd": True}, {}],
        "scalar": np.float32(0.1),
        "tensor": torch.eye(2),
    }
    arrays, skeleton = split_arrays(tree, "state")
    assert set(arrays) == {"state/snapshots/0/qpos", "state/tensor"}
    back = join_arrays(arrays, json.loads(json.dumps(skeleton)))
    assert back["curriculum"] == tree["curriculum"]
    assert isinstance(back["curriculum"][3], tuple)
    assert back["snapshots"][0]["qpos"] is tree["snapshots"][0]["qpos"]
    assert back["snapshots"][0]["$odd"] is True
    assert back["snapshots"][1] == {}
    assert back["scalar"] == float(np.float32(0.1))
    with pytest.raises(TypeError, match="state/x: a checkpoint cannot hold a set"):
        split_arrays({"x": {1}}, "state")
