"""A reward model in the training loop: where it fits, what it adds, and that a refreshed one is found again on
resumption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from builders.policies import saved_policy
from vla_rl.config import (
    DemosConfig,
    EnvConfig,
    PolicyConfig,
    ProcessRewardConfig,
    RewardModelConfig,
    TrainConfig,
    UserError,
)
from vla_rl.envs.metaworld.tasks import INSTRUCTIONS
from vla_rl.policies import OpenVLAPolicy
from vla_rl.recipes.demos import collect_demos
from vla_rl.recipes.train_ppo import train
from vla_rl.recipes.train_reward import train_reward
from vla_rl.rewards import ShapedReward, SuccessReward
from vla_rl.rewards.registry import build_reward

TASK = "drawer-close"
pytestmark = [pytest.mark.sim, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rewarding")


@pytest.fixture(scope="module")
def policy(folder: Path) -> Path:
    return saved_policy(folder / "policy", (INSTRUCTIONS[TASK],))


@pytest.fixture(scope="module")
def reward_model(folder: Path) -> Path:
    env = EnvConfig(suite=f"mt1:{TASK}", num_workers=1)
    demos = collect_demos(DemosConfig(env=env, out=str(folder / "demos"), episodes_per_task=3))
    config = RewardModelConfig(
        datasets=(str(demos),), out=str(folder / "reward"), epochs=1, mismatched_share=0.0
    )
    return train_reward(config)


def training(policy: Path, root: Path, reward_model: Path | None, **reward: object) -> TrainConfig:
    config = TrainConfig()
    return replace(
        config,
        env=replace(config.env, suite=f"mt1:{TASK}", num_envs=2, num_workers=1, horizon=4),
        policy=replace(config.policy, checkpoint=str(policy), device="cpu"),
        schedule=replace(config.schedule, iterations=3),
        rollout=replace(config.rollout, turns=6),
        ppo=replace(config.ppo, minibatch=12, critic_warmup=1),
        reward=ProcessRewardConfig(
            model="" if reward_model is None else str(reward_model), **reward
        ),  # type: ignore[arg-type]
        eval=replace(config.eval, episodes_per_task=1),
        run=replace(config.run, name="run", root=str(root), save_every=1, trackers="none"),
    )


def final_tensors(run: Path) -> dict[str, np.ndarray]:
    newest = sorted((run / "checkpoints").glob("iteration-*"))[-1]
    return {
        f"{file.name}:{name}": values
        for file in sorted(newest.rglob("*.safetensors"))
        for name, values in load_file(file).items()
    }


def test_a_reward_model_that_does_not_fit_is_refused(
    policy: Path, reward_model: Path, tmp_path: Path
) -> None:
    loaded = OpenVLAPolicy.from_checkpoint(policy, PolicyConfig(checkpoint=str(policy)))
    config = training(policy, tmp_path, reward_model)
    assert isinstance(build_reward(config, loaded), ShapedReward)
    alone = replace(config, reward=ProcessRewardConfig())
    assert isinstance(build_reward(alone, loaded), SuccessReward)
    larger = replace(config, env=replace(config.env, image_size=96))
    with pytest.raises(UserError, match="looks at 64 px, the environment draws 96 px"):
        build_reward(larger, loaded)
    with pytest.raises(UserError, match="is no process reward model"):
        build_reward(training(policy, tmp_path, tmp_path / "nowhere"), loaded)


def test_the_simulator_in_place_of_a_reward_model(policy: Path, tmp_path: Path) -> None:
    """Its reward is paid, and a stopped run goes on as if it had not been."""
    settings = training(policy, tmp_path / "whole", None, kind="simulator")
    settings = replace(settings, schedule=replace(settings.schedule, iterations=2))
    whole = train(settings)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert any(line["rollout/return_dense"] > 0 for line in lines)
    begun = replace(settings, run=replace(settings.run, root=str(tmp_path / "parts")))
    parts = train(replace(begun, schedule=replace(begun.schedule, iterations=1)))
    train(begun, parts)
    expected, found = final_tensors(whole), final_tensors(parts)
    assert expected.keys() == found.keys()
    assert not [name for name in expected if not np.array_equal(expected[name], found[name])]

    libero = replace(
        begun, env=replace(begun.env, suite="libero-goal", initial_states=50, held_out=10)
    )
    with pytest.raises(UserError, match="libero-goal has no dense reward of its own"):
        build_reward(libero, OpenVLAPolicy.from_checkpoint(policy, begun.policy))


def test_a_refreshed_reward_model_is_found_again(
    policy: Path, reward_model: Path, tmp_path: Path
) -> None:
    """Three iterations at a go equal two, a stop, and one more, to the bit; the reward model is new from the second
    one on."""
    settings = {"refresh_every": 1, "refresh_episodes": 2, "refresh_epochs": 1, "weight": 0.4}
    whole = train(training(policy, tmp_path / "whole", reward_model, **settings))
    begun = training(policy, tmp_path / "parts", reward_model, **settings)
    parts = train(replace(begun, schedule=replace(begun.schedule, iterations=2)))
    train(begun, parts)
    expected, found = final_tensors(whole), final_tensors(parts)
    assert expected.keys() == found.keys()
    different = [name for name in expected if not np.array_equal(expected[name], found[name])]
    assert not different

    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all(line["rollout/return_dense"] != 0 for line in lines)
    assert all(line["rollout/success_rate"] <= 1 for line in lines)
    # two refreshes, the second on the first's episodes too, and each reward model another one
    runs = sorted((whole / "reward_models").iterdir())
    assert [run.name for run in runs] == ["iteration-000001", "iteration-000002"]
    second = json.loads((runs[1] / "model" / "config.json").read_text())
    assert [Path(name).parent.name for name in second["datasets"][1:]] == [run.name for run in runs]
    assert second["start"] == str(runs[0] / "model")
    reward_models = [
        load_file(next((run / "model" / "reward_model").glob("*.safetensors"))) for run in runs
    ]
    assert any(
        not np.array_equal(reward_models[0][name], reward_models[1][name])
        for name in reward_models[0]
    )
