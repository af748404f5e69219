"""Fine-tuning and reward models stopped or killed after any batch: the same command goes on, to the bit.

In this process, at every batch in turn. Random moments, from outside: test_interruptions.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_sft import write_dataset

from vla_rl.algorithms.reward_model import RewardModelLearner
from vla_rl.algorithms.sft import SFT
from vla_rl.config import (
    LabelConfig,
    LoraConfig,
    PolicyConfig,
    RewardModelConfig,
    SFTConfig,
    UserError,
    tiny_model,
)
from vla_rl.config.openvla import LanguageConfig, VisionTowerConfig
from vla_rl.policies import identity_statistics
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.recipes import sft as recipe
from vla_rl.recipes.sft import fine_tune
from vla_rl.recipes.train_reward import train_reward
from vla_rl.runtime.metrics import read_metrics
from vla_rl.runtime.signals import Stopped

EPOCHS, BATCHES = 2, 3  # a batch holds 8 of 24 frames


class Killed(BaseException):
    """Stands for kill -9: nothing of the training's own is done any more."""


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 24 frames, and a policy of a few thousand weights."""
    folder = tmp_path_factory.mktemp("course")
    write_dataset(folder / "demos", size=16)
    tower = VisionTowerConfig(4, 2, 2, 4, patch_size=8, stem_channels=(2, 2))
    language = LanguageConfig(8, 1, 2, 8, 320, 328, max_positions=64, pad_token=320)
    model = tiny_model(16, dino=tower, siglip=tower, action_bins=8, language=language)
    OpenVLAPolicy.create(
        model, ["open the drawer", "close the window"], identity_statistics("demos", 4), 4, 1,
        PolicyConfig(device="cpu"),
    ).save(folder / "policy")  # fmt: skip
    return folder


def settings(course: Path, out: Path, **changes: Any) -> SFTConfig:
    policy = PolicyConfig(checkpoint=str(course / "policy"), device="cpu")
    config = SFTConfig(
        dataset=str(course / "demos"), out=str(out), epochs=EPOCHS, batch_size=8, action_chunk=1,
        policy=policy, warmup_steps=2,
    )  # fmt: skip
    return replace(config, **changes)


def outcome(out: Path, result: str = "policy") -> Any:
    lines = read_metrics(out / "metrics.jsonl")
    metrics = [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]
    files = sorted(path for path in (out / result).rglob("*") if path.is_file())
    return {path.name: path.read_bytes() for path in files}, metrics


def after_batch(
    monkeypatch: pytest.MonkeyPatch, learner: type, number: int, act: Callable[[], object]
) -> None:
    """Do `act` when `number` batches have been learned from in this sitting."""
    update = learner.update
    done = 0

    def counted(*arguments: Any) -> Any:
        nonlocal done
        reported = update(*arguments)
        done += 1
        if done == number:
            act()
        return reported

    monkeypatch.setattr(learner, "update", counted)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def kill() -> None:
    raise Killed


@pytest.fixture(scope="module")
def whole(course: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("whole") / "sft"
    fine_tune(settings(course, out))
    return outcome(out)


@pytest.mark.parametrize("number", range(1, EPOCHS * BATCHES + 1))
def test_fine_tuning_stopped_after_any_batch_goes_on_with_the_next(
    number: int, course: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sft"
    with monkeypatch.context() as patch:
        after_batch(patch, SFT, number, terminate)
        with pytest.raises(Stopped, match=rf"after {number} steps; everything is saved"):
            fine_tune(settings(course, out))
    assert not (out / "policy").exists()
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    with monkeypatch.context() as patch:
        update = SFT.update
        patch.setattr(SFT, "update", lambda *args: (count(), update(*args))[1])
        fine_tune(settings(course, out))
    assert steps == EPOCHS * BATCHES - number  # nothing is learned twice
    assert outcome(out) == whole
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize("number", [1, BATCHES, BATCHES + 1])
def test_fine_tuning_killed_after_any_batch_goes_on_from_the_last_epoch(
    number: int, course: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sft"
    with monkeypatch.context() as patch:
        after_batch(patch, SFT, number, kill)
        with pytest.raises(Killed):
            fine_tune(settings(course, out))
    fine_tune(settings(course, out))
    assert outcome(out) == whole


def test_killed_while_the_policy_is_written_nothing_is_learned_again(
    course: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sft"
    with monkeypatch.context() as patch:
        patch.setattr(OpenVLAPolicy, "save", lambda *_: kill())
        with pytest.raises(Killed):
            fine_tune(settings(course, out))
    with monkeypatch.context() as patch:
        patch.setattr(SFT, "update", None)
        fine_tune(settings(course, out))
    assert outcome(out) == whole


def test_a_signal_gives_up_what_is_measured_and_it_is_measured_again(
    course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"validation_fraction": 0.34}
    fine_tune(settings(course, tmp_path / "whole", **changes))
    out = tmp_path / "sft"
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "validation_loss", lambda *_: terminate())
        with pytest.raises(Stopped, match="in epoch 1"):
            fine_tune(settings(course, out, **changes))
    fine_tune(settings(course, out, **changes))
    assert outcome(out) == outcome(tmp_path / "whole")


def test_adapters_with_dropout_go_on_to_the_bit(
    course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout draws from torch's own generator."""
    without = replace(settings(course, tmp_path).policy, lora=LoraConfig(rank=2, alpha=4))
    policy = replace(without, lora=LoraConfig(rank=2, alpha=4, dropout=0.3))
    fine_tune(settings(course, tmp_path / "without", policy=without))
    fine_tune(settings(course, tmp_path / "whole", policy=policy))
    weights = [
        (tmp_path / name / "policy" / "adapter_model.safetensors").read_bytes()
        for name in ("without", "whole")
    ]
    assert weights[0] != weights[1]
    out = tmp_path / "sft"
    with monkeypatch.context() as patch:
        after_batch(patch, SFT, 4, terminate)
        with pytest.raises(Stopped):
            fine_tune(settings(course, out, policy=policy))
    torch.manual_seed(99)  # another process begins with another state
    fine_tune(settings(course, out, policy=policy))
    assert outcome(out) == outcome(tmp_path / "whole")


def test_other_settings_or_other_data_do_not_go_on(
    course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demos = shutil.copytree(course / "demos", tmp_path / "demos")
    out = tmp_path / "sft"
    config = settings(course, out, dataset=str(demos))
    with monkeypatch.context() as patch:
        after_batch(patch, SFT, 2, terminate)
        with pytest.raises(Stopped):
            fine_tune(config)
    saved = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    with pytest.raises(UserError, match=r"was stopped, with learning_rate .* \(now 0\.5\)"):
        fine_tune(replace(config, learning_rate=0.5))
    shutil.rmtree(demos)
    write_dataset(demos, episodes=5, size=16)
    with pytest.raises(UserError, match="the data have changed"):
        fine_tune(config)
    assert {path: path.read_bytes() for path in out.rglob("*.safetensors")} == saved


def test_what_is_no_training_of_ours_is_left_alone(course: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("notes", "file"):
        with pytest.raises(UserError, match=r"exists and is not empty|it is a file"):
            fine_tune(settings(course, tmp_path / name))
    out = tmp_path / "sft"
    fine_tune(settings(course, out))
    before = outcome(out)
    with pytest.raises(UserError, match="exists and is not empty"):
        fine_tune(settings(course, out))
    assert outcome(out) == before
    assert json.loads((out / "config.json").read_text())["epochs"] == EPOCHS


@pytest.mark.parametrize("number", [1, 4])
def test_a_reward_model_stopped_after_any_batch_goes_on_with_the_next(
    number: int, course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(out: str) -> RewardModelConfig:
        return RewardModelConfig(
            datasets=(str(course / "demos"),), out=str(tmp_path / out), epochs=2, batch_size=8,
            labels=LabelConfig(scheme="segments"), validation_fraction=0.34, threads=1, device="cpu",
        )  # fmt: skip

    train_reward(config("whole"))
    with monkeypatch.context() as patch:
        after_batch(patch, RewardModelLearner, number, terminate)
        with pytest.raises(Stopped, match=rf"after {number} steps"):
            train_reward(config("stopped"))
    train_reward(config("stopped"))
    result = outcome(tmp_path / "stopped", "reward_model")
    assert result == outcome(tmp_path / "whole", "reward_model")
