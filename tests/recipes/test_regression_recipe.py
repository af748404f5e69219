"""Head regression through every recipe: trained, measured, drawn, in practice, and choosing among trajectories."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.same_runs import lines, require_same
from builders.trajectories import episodes
from vla_rl.config import (
    ConfigError,
    EnvConfig,
    EvalConfig,
    LabelConfig,
    PolicyConfig,
    ProcessRewardConfig,
    RewardEvalConfig,
    RewardModelConfig,
    RewardScoreConfig,
    TrainConfig,
    UserError,
    tiny_model,
)
from vla_rl.config.parallel import ParallelConfig
from vla_rl.config.search import BestOfConfig, ScalingConfig
from vla_rl.envs.toy.tasks import INSTRUCTIONS
from vla_rl.policies import OpenVLAPolicy, identity_statistics
from vla_rl.recipes.evaluate_reward import evaluate_reward, progress_measures, score_reward
from vla_rl.recipes.presets import preset
from vla_rl.recipes.ranks import train_on_ranks
from vla_rl.recipes.test_time_scaling import (
    available_choosers,
    evaluate_best_of,
    reward_model_of,
    scaling_study,
)
from vla_rl.recipes.train_ppo import train
from vla_rl.recipes.train_reward import train_reward
from vla_rl.rewards.process.examples import build_examples
from vla_rl.rewards.process.loading import load_reward_model
from vla_rl.rewards.trajectory_files import save_trajectories


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("regression")


@pytest.fixture(scope="module")
def settings(folder: Path) -> RewardModelConfig:
    data = save_trajectories(folder / "play", episodes(8))
    return RewardModelConfig(
        datasets=(str(data),), out=str(folder / "reward"), head="regression", history=3, epochs=6,
        batch_size=16, threads=1, learning_rate=2e-3, warmup_steps=5, validation_fraction=0.3,
        device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def reward_model(settings: RewardModelConfig) -> str:
    train_reward(settings)
    return settings.out


@pytest.fixture(scope="module")
def policy(folder: Path) -> Path:
    words = tuple(INSTRUCTIONS.values())
    statistics, config = identity_statistics("toy", 4), PolicyConfig(device="cpu")
    OpenVLAPolicy.create(tiny_model(32), words, statistics, 4, 1, config, 0).save(folder / "policy")
    return folder / "policy"


def test_it_learns_progress_and_says_how_well(reward_model: str, tmp_path: Path) -> None:
    logged = lines(Path(reward_model))
    assert logged[-1]["reward/loss"] < logged[0]["reward/loss"]
    assert logged[-1]["reward/validation_absolute_error"] < 0.2
    result = evaluate_reward(RewardEvalConfig(reward_model=reward_model, resamples=0))
    progress = result["seen_tasks"]["progress"]
    assert progress["mean_absolute_error"] < 0.2
    assert progress["rank_correlation"] > 0.4  # of failures nothing is to be seen
    assert (Path(reward_model) / "evaluation" / "reliability.png").is_file()
    out = score_reward(
        RewardScoreConfig(reward_model, str(Path(reward_model).parent / "play"), out=str(tmp_path / "s.png"))
    )  # fmt: skip
    assert out.stat().st_size > 5000
    description = load_reward_model(reward_model, "cpu").description
    assert (description.head, description.history, description.action_size) == ("regression", 3, 4)


def test_progress_measures_of_known_scores() -> None:
    examples = build_examples(episodes(2), LabelConfig())
    rows = np.arange(len(examples))
    truth = build_examples(episodes(2), LabelConfig(scheme="segments")).progress
    exact = progress_measures(examples, rows, truth, 10)
    assert exact["mean_absolute_error"] == exact["calibration_error"] == 0
    assert exact["rank_correlation"] == pytest.approx(1.0)
    off = progress_measures(examples, rows, 1 - truth, 10)
    assert off["rank_correlation"] == pytest.approx(-1.0)
    assert off["mean_absolute_error"] == pytest.approx(float(np.abs(1 - 2 * truth).mean()))


def test_it_can_be_trained_further_by_its_own_kind_alone(
    settings: RewardModelConfig, reward_model: str, tmp_path: Path
) -> None:
    further = replace(settings, start=reward_model, out=str(tmp_path / "more"), epochs=1)
    train_reward(further)
    assert load_reward_model(tmp_path / "more", "cpu").description.reads_past
    other = replace(further, out=str(tmp_path / "other"), head="next-token", history=0)
    with pytest.raises(UserError, match="trained with head 'regression'"):
        train_reward(other)
    longer = replace(further, out=str(tmp_path / "longer"), history=4)
    with pytest.raises(UserError, match="trained with history 3"):
        train_reward(longer)


def test_a_history_longer_than_the_episodes_is_no_error(
    settings: RewardModelConfig, tmp_path: Path
) -> None:
    train_reward(replace(settings, history=9, epochs=1, out=str(tmp_path / "long")))
    assert load_reward_model(tmp_path / "long", "cpu").description.history == 9


def practice(root: Path, reward_model: str, **parts: object) -> TrainConfig:
    base = preset("toy")
    return replace(
        base,
        env=replace(base.env, num_envs=8, num_workers=1),
        schedule=replace(base.schedule, iterations=2, episodes=0),
        rollout=replace(base.rollout, turns=4),
        ppo=replace(base.ppo, minibatch=16),
        reward=ProcessRewardConfig(model=reward_model, form="progress", weight=0.5),
        eval=replace(base.eval, episodes_per_task=1),
        run=replace(base.run, root=str(root), name="run", save_every=1),
        **parts,
    )


def test_practice_by_it_goes_on_to_the_bit(reward_model: str, tmp_path: Path) -> None:
    """Windows of four turns cut episodes: without the steps in the checkpoint the second would be paid otherwise."""
    whole = train(practice(tmp_path / "whole", reward_model))
    config = practice(tmp_path / "parts", reward_model)
    first = train(replace(config, schedule=replace(config.schedule, iterations=1)))
    second = train(config, resume=first)
    paid = [[line["rollout/return_dense"] for line in lines(run)] for run in (whole, second)]
    assert paid[0] == paid[1]
    assert all(value != 0 for value in paid[0])
    weights = "checkpoints/iteration-000002/policy/model.safetensors"
    assert (whole / weights).read_bytes() == (second / weights).read_bytes()


def test_ranks_are_paid_alike(reward_model: str, tmp_path: Path) -> None:
    runs = [
        train_on_ranks(
            practice(
                tmp_path / str(ranks),
                reward_model,
                parallel=ParallelConfig(ranks=ranks, timeout=120.0),
            )
        )
        for ranks in (1, 2)
    ]
    require_same(runs[1], runs[0])
    for alone, shared in zip(*map(lines, runs), strict=True):
        for name in alone:
            if name.startswith("reward/"):
                assert shared[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-6), name


# -- choosing among trajectories -------------------------------------------------------------------

TOY = EnvConfig(
    suite="toy:reach-red", image_size=32, action_repeat=20, action_chunk=1, horizon=4, num_envs=4,
    initial_states=6, held_out=3,
)  # fmt: skip
PROTOCOL = EvalConfig(episodes_per_task=3)


@pytest.mark.parametrize("mode", ["lookahead", "trajectory", "refine"])
def test_it_chooses_in_every_mode_that_plays_ahead(
    mode: str, reward_model: str, policy: Path
) -> None:
    search = BestOfConfig(3, mode, reward_model=reward_model, success_ahead=False)
    result = evaluate_best_of(policy, PROTOCOL, search, TOY, workers=1)
    spent = result["cost"]["simulated_turns"]
    assert (
        spent["total"]
        == result["cost"]["total"]["simulator_turns"]
        == sum(turns for *_, turns in spent["episodes"])
    )
    assert len(spent["episodes"]) == 3
    assert spent["least"] <= spent["mean"] <= spent["most"]
    assert result["search"]["mode"] == mode


def test_it_cannot_choose_among_actions_that_are_only_proposed(reward_model: str) -> None:
    with pytest.raises(UserError, match="mode action needs a reward model that sees actions"):
        reward_model_of(BestOfConfig(2, "action", reward_model=reward_model), "toy")


def test_a_study_compares_refinement_at_equal_simulated_turns(
    reward_model: str, policy: Path, tmp_path: Path
) -> None:
    search = BestOfConfig(
        mode="refine", reward_model=reward_model, temperature=0.8, temperatures=(0.3, 0.5),
        greedy_first=False, turn_budget=11,
    )  # fmt: skip
    study = ScalingConfig(
        str(policy), search, PROTOCOL, sizes=(40,), choosers=("reward-model-alone", "trajectories"),
        out=str(tmp_path / "study"), bootstrap=100, workers=1,
    )  # fmt: skip
    table = scaling_study(study, TOY).read_text()
    stored = {f.stem: json.loads(f.read_text()) for f in (tmp_path / "study/evaluations").iterdir()}
    refined, whole = stored["reward-model-alone-40"], stored["trajectories-40"]
    assert (refined["search"]["mode"], whole["search"]["mode"]) == ("refine", "trajectory")
    for result in (refined, whole):
        spent = result["cost"]["simulated_turns"]
        assert (spent["total"], spent["least"], spent["most"]) == (33, 11, 11)
    assert table.count("| 11.0 |") == 2
    assert "refinement, at as many simulated turns" in table
    assert "temperature 0.3, 0.5 (whole trajectories: 0.8)" in table
    # without a budget of its own: as many as refinement took, at least one episode
    free = replace(
        study, search=replace(search, turn_budget=0), sizes=(3,), out=str(tmp_path / "free")
    )
    scaling_study(free, TOY)
    stored = {f.stem: json.loads(f.read_text()) for f in (tmp_path / "free/evaluations").iterdir()}
    took = stored["reward-model-alone-3"]["cost"]["simulated_turns"]["mean"]
    given = stored["trajectories-3"]["search"]["turn_budget"]
    assert given == max(round(took), TOY.horizon)
    assert stored["trajectories-3"]["cost"]["simulated_turns"]["mean"] == given
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "free/evaluations").iterdir()}
    scaling_study(free, TOY)  # nothing is played again
    assert before == {f: f.stat().st_mtime_ns for f in (tmp_path / "free/evaluations").iterdir()}


def test_refinement_of_an_earlier_version_is_not_mixed_in(
    reward_model: str, policy: Path, tmp_path: Path
) -> None:
    search = BestOfConfig(mode="refine", reward_model=reward_model)
    study = ScalingConfig(
        str(policy), search, PROTOCOL, sizes=(2,), choosers=("reward-model-alone",),
        out=str(tmp_path), bootstrap=100, workers=1,
    )  # fmt: skip
    scaling_study(study, TOY)
    for name in ("greedy-1", "reward-model-alone-2"):
        file = tmp_path / "evaluations" / f"{name}.json"
        old = json.loads(file.read_text())
        del old["cost"]["simulated_turns"]
        for key in ("trajectory_turns", "refine_from", "temperatures", "turn_budget"):
            del old["search"][key]
        if name == "greedy-1":
            file.write_text(json.dumps(old))
            scaling_study(study, TOY)  # an old evaluation is read
        else:
            file.write_text(json.dumps(old))
            with pytest.raises(UserError, match="by the mean of log-odds, not of probabilities"):
                scaling_study(study, TOY)


def test_trajectories_are_compared_with_refinement_alone(reward_model: str) -> None:
    study = ScalingConfig("x", BestOfConfig(reward_model=reward_model), choosers=("trajectories",))
    with pytest.raises(ConfigError, match=r"needs search.mode refine \(now lookahead\)"):
        available_choosers(study, "toy")
