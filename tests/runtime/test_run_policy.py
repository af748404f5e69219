"""The policy that `eval` and `export` find in a run: as it was written, or another one, and never in silence."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vla_rl.config import RewardModelConfig, SFTConfig, TrainConfig, UserError
from vla_rl.runtime.locate import locate_policy
from vla_rl.runtime.run_folder import Run


def write_policy(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "model.safetensors").write_bytes(bytes(range(200)))
    (folder / "statistics.json").write_text("{}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints."""
    with Run.create(tmp_path_factory.mktemp("runs"), "first", TrainConfig(), []) as run:
        for iteration in (10, 20):
            run.save(iteration, {"x": torch.zeros(9)}, {"n": iteration}, write_policy)
    return run.folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "first")


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "first byte": lambda path: flip(path, 0),
    "middle byte": lambda path: flip(path, path.stat().st_size // 2),
}
FILES = (
    "policy/config.json", "policy/model.safetensors", "policy/statistics.json", "state.json",
    "tensors.safetensors", "arrays.safetensors", "manifest.json",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_whatever_is_damaged_the_checkpoint_before_it_is_taken_and_named(
    name: str, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = run / "checkpoints" / "iteration-000020"
    assert locate_policy(run)[0] == newest / "policy"
    assert not caplog.records
    for damage, act in DAMAGES.items():
        content = (newest / name).read_bytes()
        act(newest / name)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="vla_rl"):
            found, _ = locate_policy(run)
        # a blank or none after its end says the same
        if name == "manifest.json" and damage in ("cut", "longer"):
            assert found == newest / "policy"
        else:
            assert found == run / "checkpoints" / "iteration-000010" / "policy", damage
            assert "iteration-000020 is damaged" in caplog.text
            assert "takes iteration-000010" in caplog.text
            with pytest.raises(UserError, match="iteration-000020"):
                locate_policy(newest)
        (newest / name).write_bytes(content)


def test_a_checkpoints_policy_alone_is_looked_at_where_that_is_asked_for(run: Path) -> None:
    newest = run / "checkpoints" / "iteration-000020"
    (newest / "state.json").write_text("{}")
    assert locate_policy(newest / "policy")[0] == newest / "policy"
    flip(newest / "policy" / "model.safetensors", 50)
    with pytest.raises(UserError, match=r"policy of checkpoint .*model\.safetensors has changed"):
        locate_policy(newest / "policy")


def test_a_run_of_which_nothing_can_be_read_is_refused(run: Path) -> None:
    for number in (10, 20):
        (run / "checkpoints" / f"iteration-{number:06d}" / "state.json").write_text("{}")
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        locate_policy(run)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (TrainConfig(), "is a run without a checkpoint yet"),
        (SFTConfig(), "is a fine-tuning that is not finished"),
        (RewardModelConfig(), "is the run of a reward model"),
    ],
)
def test_a_run_without_a_policy_yet_says_what_it_is(
    config: TrainConfig | SFTConfig | RewardModelConfig, words: str, tmp_path: Path
) -> None:
    with Run.create(tmp_path, "young", config, []) as run:
        with pytest.raises(UserError, match=words):
            locate_policy(run.folder)
        if isinstance(config, SFTConfig):  # stopped in its first epoch
            run.save(0, {"x": torch.zeros(9)}, {})
            with pytest.raises(UserError, match=words):
                locate_policy(run.folder)


def test_a_finished_fine_tuning_is_its_policy_whatever_was_saved_on_the_way(tmp_path: Path) -> None:
    with Run.create(tmp_path, "sft", SFTConfig(), []) as run:
        run.save(0, {"x": torch.zeros(9)}, {})
        write_policy(run.folder / "policy")
    assert locate_policy(run.folder)[0] == run.folder / "policy"


def test_a_folder_of_another_kind_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "openvla"}))
    assert locate_policy(tmp_path) == (tmp_path, None)
