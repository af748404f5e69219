"""Run folders of an earlier revision go on and are read: their formats, their configurations, their names.

tests/fixtures/old_runs was written by revision bd50113 with policies of a few thousand weights: a training run killed
after a checkpoint (on the chain of `vla_rl.envs.known_answers`, paid by the simulator's own reward), a fine-tuning, one
that was killed after its last epoch, and a reward model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_sft import write_dataset

from vla_rl.config import RewardModelConfig, SFTConfig, TrainConfig, UserError
from vla_rl.envs.known_answers import make_chain_envs
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.policies.registry import load_policy
from vla_rl.recipes import train_ppo
from vla_rl.recipes.sft import fine_tune
from vla_rl.rewards.process.loading import load_reward_model, reward_model_folder
from vla_rl.runtime.locate import locate_policy
from vla_rl.runtime.metrics import read_metrics
from vla_rl.runtime.run_folder import read_config
from vla_rl.training import pools

OLD = Path(__file__).parent.parent / "fixtures" / "old_runs"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return shutil.copytree(OLD, tmp_path / "old_runs")


def test_a_configuration_under_the_names_of_before_says_the_same(old: Path) -> None:
    saved = json.loads((old / "train" / "config.json").read_text())
    assert saved["reward"]["judge"] == "simulator"
    assert saved["ppo"]["imitation_coef"] == 0.25
    assert saved["policy"]["pictures"] == "checkpoint"
    config = read_config(old / "train", TrainConfig)
    assert config.reward.asks_simulator
    assert config.ppo.self_imitation_coef == 0.25
    assert (config.env.suite, config.env.horizon, config.run.name) == (
        "mt1:drawer-close",
        8,
        "train",
    )


def test_a_training_run_goes_on_from_its_checkpoint(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = old / "train"
    # a run of before that was killed: three lines of metrics, and the checkpoint of iteration 2
    assert [line["iteration"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2, 3]
    second = read_metrics(run / "metrics.jsonl")[1]
    before = load_policy(run / "checkpoints" / "iteration-000002" / "policy")
    monkeypatch.setattr(
        pools, "make_vector_env", lambda config, *_: SerialVectorEnv(config, make_chain_envs)
    )
    config = read_config(run, TrainConfig)
    train_ppo.train(config, run)
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]
    assert lines[1] == second
    # it counts on, and learns on: the critic's warm-up is over, the simulator's reward is asked
    assert lines[2]["total/turns"] == second["total/turns"] + 8
    assert lines[2]["losses/critic_warmup"] == 0.0
    assert lines[3]["losses/policy_steps"] > 0
    assert any(line.get("rollout/return_dense", 0.0) > 0 for line in lines[2:])
    folder, env = locate_policy(run)
    assert folder == run / "checkpoints" / "iteration-000004" / "policy"
    assert env is not None
    assert env.suite == "mt1:drawer-close"
    after = load_policy(folder)
    moved = [
        not np.array_equal(one.detach(), other.detach())
        for one, other in zip(before.policy_parameters(), after.policy_parameters(), strict=True)
    ]
    assert any(moved)
    assert (run / "eval" / "after-sampled.json").is_file()


def test_a_fine_tuning_that_was_killed_is_done_again(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had saved nothing on its way; then the same command was refused."""
    monkeypatch.chdir(old.parent)  # its paths are relative
    write_dataset(Path("dataset"), size=16)
    run = Path("old_runs/sft-stopped")
    config = read_config(run, SFTConfig)
    folder = fine_tune(config)
    assert load_policy(folder).action_chunk == 1
    assert [line["epoch"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2]


def test_a_finished_fine_tuning_is_read_and_not_written_over(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(old.parent)
    run = Path("old_runs/sft")
    assert locate_policy(run) == (run / "policy", None)
    assert load_policy(run / "policy").action_dim == 4
    with pytest.raises(UserError, match="exists and is not empty"):
        fine_tune(read_config(run, SFTConfig))


def test_a_reward_model_is_found_and_read(old: Path) -> None:
    config = read_config(old / "reward", RewardModelConfig)
    assert config.labels.scheme == "segments"
    reward_model = load_reward_model(reward_model_folder(old / "reward"))
    images = np.zeros((2, 1, 16, 16, 3), np.uint8)
    odds = reward_model.log_odds(images, ["open the drawer", "close the window"], None)
    assert np.isfinite(odds).all()
