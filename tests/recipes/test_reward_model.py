"""Training, measuring and drawing a process reward model, on episodes that a tiny reward model learns in seconds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from builders.trajectories import TASKS, episodes, trajectory
from vla_rl.algorithms.reward_model import RewardModelBatch, RewardModelLearner, shift_sequences
from vla_rl.algorithms.sft import shift_images
from vla_rl.config import (
    LabelConfig,
    ProcessRewardConfig,
    RewardEvalConfig,
    RewardModelConfig,
    RewardScoreConfig,
    TrainConfig,
    UserError,
)
from vla_rl.functional import area_under_roc
from vla_rl.recipes.evaluate_reward import (
    bootstrap_interval,
    evaluate_reward,
    measure,
    mismatched,
    score_reward,
)
from vla_rl.recipes.refresh_reward import refresh_reward_model
from vla_rl.recipes.train_reward import epoch_of, read_trajectories, reward_model_rows, train_reward
from vla_rl.rewards import RewardModelScorer
from vla_rl.rewards.process.examples import build_examples
from vla_rl.rewards.process.loading import load_reward_model
from vla_rl.rewards.process.mismatched import Mismatches
from vla_rl.rewards.process.model import RewardModelDescription
from vla_rl.rewards.process.splits import split_of
from vla_rl.rewards.process.tiny import TinyProcessRewardModel
from vla_rl.rewards.shaping import shaped
from vla_rl.rewards.trajectory_files import save_trajectories
from vla_rl.runtime.video import read_video


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return save_trajectories(tmp_path_factory.mktemp("data") / "play", episodes(10))


def config(dataset, out, **changes) -> RewardModelConfig:
    settings = {
        "labels": LabelConfig(scheme="segments"), "epochs": 8, "batch_size": 16, "threads": 1,
        "learning_rate": 2e-3, "warmup_steps": 5, "validation_fraction": 0.3, **changes,
    }  # fmt: skip
    return RewardModelConfig(datasets=(str(dataset),), out=str(out), **settings)


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "reward"
    assert train_reward(config(dataset, out)) == out / "reward_model"
    return out


# -- training --------------------------------------------------------------------------------------


def test_training_leaves_a_reward_model_its_split_and_a_line_an_epoch(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 9))
    assert lines[-1]["reward/loss"] < 0.5 * lines[0]["reward/loss"]
    assert lines[-1]["reward/validation_auroc"] > 0.9
    split = json.loads((run / "split.json").read_text())
    assert len(split["training"]) == 14
    assert len(split["validation"]) == 6
    assert not split["held_out"]


def test_the_same_configuration_gives_the_same_reward_model_to_the_bit(dataset, tmp_path):
    reward_models = []
    for name in ("a", "b"):
        settings = config(dataset, tmp_path / name, epochs=1, threads=2)
        reward_models.append(load_reward_model(train_reward(settings)))
    for one, other in zip(*(j.model.state_dict().values() for j in reward_models), strict=True):
        assert torch.equal(one, other)


def test_an_epoch_is_every_labelled_turn_and_the_share_of_mismatched_ones(dataset):
    settings = config(dataset, "unused", mismatched_share=0.25).resolved()
    examples = build_examples(read_trajectories(settings), settings.labels)
    rows = np.concatenate([np.arange(30), np.arange(60, 90)])  # five episodes of each task
    mismatches = Mismatches(examples, rows, examples.instructions)
    batches = list(epoch_of(settings, examples, mismatches, epoch=1))
    matched = np.concatenate([b.matched for b in batches])
    positive = np.concatenate([b.positive for b in batches])
    assert (matched.sum(), (~matched).sum()) == (60, 20)
    assert not positive[~matched].any()
    assert positive.sum() == examples.positive[rows].sum()
    # the same actions come back once each under their own instruction
    seen = np.concatenate([b.actions[b.matched] for b in batches])
    assert len(np.unique(seen, axis=0)) == 60
    own = {examples.actions[row].tobytes(): examples.instructions_of(rows[i : i + 1])[0]
           for i, row in enumerate(rows)}  # fmt: skip
    for batch in batches:
        same = [
            own[a.tobytes()] == w for a, w in zip(batch.actions, batch.instructions, strict=True)
        ]
        np.testing.assert_array_equal(same, batch.matched)
    # lamps have something in common: the burning one alone is certainly not the other
    lent = np.concatenate([b.actions[~b.matched] for b in batches])
    final = {examples.actions[row].tobytes() for row in rows if examples.final[row]}
    assert {action.tobytes() for action in lent} <= final
    again = next(epoch_of(settings, examples, mismatches, epoch=2))
    assert not np.array_equal(again.actions, batches[0].actions)


def test_images_of_one_example_are_shifted_alike():
    rng = np.random.default_rng(0)
    images = np.repeat(rng.integers(0, 256, (5, 1, 9, 9, 3), dtype=np.uint8), 2, axis=1)
    moved = shift_sequences(images, 2, np.random.default_rng(1))
    np.testing.assert_array_equal(moved[:, 0], moved[:, 1])
    shifts = np.random.default_rng(1).integers(-2, 3, size=(5, 2))
    np.testing.assert_array_equal(moved[:, 0], shift_images(images[:, 0], shifts, 2))
    assert len(np.unique(shifts, axis=0)) > 1


def test_shares_in_threads_learn_what_one_learns(dataset):
    numbers = []
    for threads, micro in ((1, 0), (2, 0), (1, 3)):
        settings = config(dataset, "x", threads=threads, micro_batch=micro).resolved()
        reward_model = TinyProcessRewardModel.create(settings, list(TASKS.values()), 32)
        made = trajectory(0, True)
        batch = RewardModelBatch(
            made.images[:, None], [made.instruction] * 6, made.actions,
            np.arange(6) > 2, np.ones(6, bool),
        )  # fmt: skip
        learner = RewardModelLearner(reward_model, settings, 10)
        numbers.append([learner.update(batch)["loss"] for _ in range(3)])
        learner.close()
    first, *others = np.array(numbers)
    for other in others:
        assert other[0] == pytest.approx(first[0], rel=1e-5)
        # Adam divides by a gradient's size: where that is rounding alone, so is the step
        np.testing.assert_allclose(other, first, rtol=1e-2)


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_last_step_that_breaks_the_reward_model_is_noticed(dataset, spoilt):
    rate = 1e-3 if spoilt else 1e30
    settings = config(dataset, "x", learning_rate=rate, warmup_steps=0).resolved()
    reward_model = TinyProcessRewardModel.create(settings, list(TASKS.values()), 32)
    made = trajectory(0, True)
    batch = RewardModelBatch(made.images[:, None], [made.instruction] * 6, made.actions, np.arange(6) > 2,
                       np.ones(6, bool))  # fmt: skip
    learner = RewardModelLearner(reward_model, settings, 1)

    def spoil(*_):
        with torch.no_grad():
            learner.parameters[-1].view(-1)[0] = float("inf")

    if spoilt:
        learner.optimizer.register_step_post_hook(spoil)
    how = "a weight is not finite" if spoilt else "loss nan after the last step"
    with pytest.raises(UserError, match=f"diverged: {how}"):
        learner.update(batch)
    learner.close()


def test_a_reward_model_that_diverges_is_said_to(dataset):
    settings = config(dataset, "x", learning_rate=1.0).resolved()
    reward_model = TinyProcessRewardModel.create(settings, list(TASKS.values()), 32)
    with torch.no_grad():
        reward_model.model.language_model.lm_head.weight[0, 0] = float("nan")
    made = trajectory(0, True)
    batch = RewardModelBatch(made.images[:, None], [made.instruction] * 6, made.actions, np.arange(6) > 2,
                       np.ones(6, bool))  # fmt: skip
    before = reward_model.model.projector.fc1.weight.clone()
    with pytest.raises(UserError, match="diverged: loss nan"):
        RewardModelLearner(reward_model, settings, 10).update(batch)
    assert torch.equal(reward_model.model.projector.fc1.weight, before)


def test_training_goes_on_from_a_reward_model(run, dataset, tmp_path):
    settings = config(dataset, tmp_path / "more", start=str(run), epochs=1)
    more = load_reward_model(train_reward(settings))
    line = json.loads((tmp_path / "more" / "metrics.jsonl").read_text().splitlines()[0])
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert line["reward/loss"] < 0.5 * first["reward/loss"]
    assert more.description == load_reward_model(run).description
    # whatever its seed, what the first one learned from does not measure it
    other_seed = replace(settings, seed=7, out=str(tmp_path / "seed"))
    train_reward(other_seed)
    played = read_trajectories(other_seed)
    first, second = split_of(run, played), split_of(tmp_path / "seed", played)
    np.testing.assert_array_equal(first.validation, second.validation)
    with pytest.raises(UserError, match="trained with prompt"):
        train_reward(replace(settings, prompt="Is {instruction} done?", out=str(tmp_path / "no")))
    other = save_trajectories(tmp_path / "larger", episodes(2, size=48))
    with pytest.raises(UserError, match="32 x 32, got 48 x 48"):
        train_reward(replace(settings, datasets=(str(other),), out=str(tmp_path / "no")))


def test_where_no_instruction_can_be_denied_it_is_said_and_training_goes_on(tmp_path, capsys):
    lamps = [replace(t, instruction=f"{verb} the lamp", task=verb) for verb in ("light", "dim")
             for t in (trajectory(1, True), trajectory(2, False))]  # fmt: skip
    folder = save_trajectories(tmp_path / "lamps", lamps)
    train_reward(config(folder, tmp_path / "out", epochs=1, validation_fraction=0.0))
    told = "".join(capsys.readouterr())
    assert "no other task's image is certainly wrong under 'dim the lamp', 'light the lamp'" in (
        " ".join(told.split())
    )


def test_one_class_only_is_refused(tmp_path):
    failures = [t for t in episodes(4) if not t.success]
    folder = save_trajectories(tmp_path / "failures", failures)
    with pytest.raises(UserError, match="turns, all 24 are negative"):
        train_reward(config(folder, tmp_path / "out", validation_fraction=0.0))


def test_a_folder_in_use_and_a_missing_dataset_are_refused(run, dataset, tmp_path):
    with pytest.raises(UserError, match="exists and is not empty"):
        train_reward(config(dataset, run))
    with pytest.raises(UserError):
        train_reward(config(tmp_path / "nothing", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# -- measuring -------------------------------------------------------------------------------------


def test_evaluation_of_held_out_episodes(run):
    result = evaluate_reward(RewardEvalConfig(reward_model=str(run), resamples=20))
    assert json.loads((run / "evaluation" / "evaluation.json").read_text()) == result
    assert (run / "evaluation" / "reliability.png").stat().st_size > 5000
    seen = result["seen_tasks"]
    assert result["held_out_of_training"]
    assert seen["episodes"] == 6
    assert seen["auroc"] > 0.9
    low, high = seen["auroc_interval"]
    assert low <= seen["auroc"] <= high
    assert seen["average_precision"] > seen["chance"]
    assert 0 <= seen["calibration_error"] < 0.4
    assert sum(seen["reliability"]["counts"]) == seen["turns"] == 36
    # a lamp that lights up: every success above every failure, and rising in time
    assert seen["ranking"]["last"] == {"accuracy": 1.0, "pairs": seen["ranking"]["last"]["pairs"]}
    assert seen["progress_correlation"]["episodes"] > 0
    # of each success the last two of six turns show the goal reached
    pairs = result["mismatched"]["pairs"]
    assert result["mismatched"]["turns"] == pairs == seen["positives"] / 2
    assert result["held_out_tasks"] is None


def test_measures_of_a_reward_model_whose_answers_are_known():
    """It says +t in successes and -1 in failures, but for one failure that it takes for the best of all."""
    made = [trajectory(0, True), trajectory(1, False), trajectory(2, True), trajectory(3, False)]
    examples = build_examples(made, LabelConfig(scheme="segments"))
    odds = np.concatenate([np.arange(6), np.full(6, -1), np.arange(6), np.full(6, 9)])
    odds = odds.astype(np.float32)
    settings = RewardEvalConfig(reward_model="unused", resamples=0)
    found = measure(examples, np.arange(24), odds, settings)
    assert (found["episodes"], found["successes"], found["turns"]) == (4, 2, 24)
    assert found["auroc"] == area_under_roc(odds, examples.positive)
    # two successes against two failures: right about one of them
    assert found["ranking"]["mean"] == {"accuracy": 0.5, "pairs": 4}
    assert found["progress_correlation"] == {"mean": 1.0, "share_above_0.5": 1.0, "episodes": 2}
    assert found["tasks"][TASKS["red-task"]]["positives"] == examples.positive.sum()
    only_failures = measure(examples, np.arange(6, 12), odds[6:12], settings)
    assert only_failures["auroc"] is None
    assert only_failures["ranking"]["mean"] == {"accuracy": None, "pairs": 0}


class ChannelRewardModel:
    """Known answers: how bright the colour is that the instruction names; a blind one looks at red alone."""

    sees_actions = False
    description = RewardModelDescription("known", "{instruction}?", "1", "0", 0)

    def __init__(self, blind: bool) -> None:
        self.blind = blind

    def log_odds(self, images, instructions, actions=None):
        colours = [0 if self.blind or "red" in text else 1 for text in instructions]
        return images[np.arange(len(images)), -1, ..., colours].mean((1, 2)).astype(np.float32)


def test_mismatched_instructions_with_reward_models_whose_answers_are_known():
    made = [trajectory(0, True), trajectory(1, True, "green-task")]
    examples = build_examples(made, LabelConfig(scheme="segments"))
    rows, settings = np.arange(12), RewardEvalConfig(reward_model="unused", resamples=10)
    reward_model = ChannelRewardModel(blind=False)
    found = mismatched(
        reward_model, examples, rows, reward_model_rows(reward_model, examples, rows), settings
    )
    assert (found["auroc"], found["paired"]) == (1.0, 1.0)
    assert found["pairs"] == found["turns"] == examples.final.sum()
    blind = ChannelRewardModel(blind=True)
    found = mismatched(blind, examples, rows, reward_model_rows(blind, examples, rows), settings)
    assert (found["auroc"], found["paired"]) == (0.5, 0.5)
    one = build_examples(made[:1], LabelConfig(scheme="segments"))
    assert mismatched(reward_model, one, rows[:6], np.zeros(6, np.float32), settings) is None


def test_evaluation_of_held_out_tasks_and_of_other_datasets(dataset, tmp_path):
    settings = config(dataset, tmp_path / "run", epochs=1, held_out_tasks=(TASKS["green-task"],),
                      mismatched_share=0.0)  # fmt: skip
    train_reward(settings)
    result = evaluate_reward(RewardEvalConfig(reward_model=str(tmp_path / "run"), resamples=0))
    assert result["held_out_tasks"]["episodes"] == 10
    assert list(result["held_out_tasks"]["tasks"]) == [TASKS["green-task"]]
    assert list(result["seen_tasks"]["tasks"]) == [TASKS["red-task"]]
    assert result["seen_tasks"]["auroc_interval"] is None
    other = save_trajectories(tmp_path / "other", episodes(2))
    given = RewardEvalConfig(
        reward_model=str(tmp_path / "run"), datasets=(str(other),), out=str(tmp_path / "result")
    )
    result = evaluate_reward(given)
    assert result["seen_tasks"]["episodes"] == 4
    assert not result["held_out_of_training"]
    assert (tmp_path / "result" / "evaluation.json").is_file()


def test_a_changed_dataset_is_not_mistaken_for_held_out_episodes(tmp_path):
    folder = save_trajectories(tmp_path / "data", episodes(4))
    train_reward(config(folder, tmp_path / "run", epochs=1))
    folder.rename(tmp_path / "old")
    save_trajectories(folder, episodes(5))
    with pytest.raises(UserError, match="have changed since the reward model was trained"):
        evaluate_reward(RewardEvalConfig(reward_model=str(tmp_path / "run")))


def test_a_reward_model_without_its_run_needs_datasets(run, dataset, tmp_path):
    load_reward_model(run).save(tmp_path / "alone")
    with pytest.raises(UserError, match="name --datasets"):
        evaluate_reward(RewardEvalConfig(reward_model=str(tmp_path / "alone")))
    one = save_trajectories(tmp_path / "failures", [trajectory(0, False), trajectory(1, False)])
    with pytest.raises(UserError, match="all 12 are negative"):
        evaluate_reward(
            RewardEvalConfig(reward_model=str(tmp_path / "alone"), datasets=(str(one),))
        )


def test_the_bootstrap_resamples_whole_episodes():
    """Copies of a turn within its episode say nothing new: the interval does not shrink."""
    rng = np.random.default_rng(0)
    odds = rng.normal(size=40).astype(np.float32)
    positive = odds + rng.normal(size=40) > 0
    episode = np.arange(40) // 4
    settings = RewardEvalConfig(reward_model="unused", resamples=300)
    low, high = bootstrap_interval(odds, positive, episode, settings)
    assert low < area_under_roc(odds, positive) < high
    copied = [np.repeat(x, 10) for x in (odds, positive, episode)]
    assert bootstrap_interval(*copied, settings) == pytest.approx([low, high], abs=1e-6)


# -- drawing ---------------------------------------------------------------------------------------


def test_an_episode_is_drawn_and_filmed(run, dataset, tmp_path):
    drawn = score_reward(
        RewardScoreConfig(
            reward_model=str(run), dataset=str(dataset), out=str(tmp_path / "a" / "x.png")
        )
    )
    assert drawn.read_bytes().startswith(b"\x89PNG")
    film = score_reward(
        RewardScoreConfig(
            reward_model=str(run), dataset=str(dataset), episode=3, out=str(tmp_path / "x.mp4")
        )
    )
    assert len(read_video(film)) == 6 + 4
    with pytest.raises(UserError, match="20 episodes, numbered from 0"):
        score_reward(RewardScoreConfig(reward_model=str(run), dataset=str(dataset), episode=20))
    with pytest.raises(UserError, match=r"\.png or \.mp4"):
        RewardScoreConfig(reward_model="a", dataset="b", out="x.gif")


# -- refreshed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("reward_models", "reward_model"), ("judges", "judge")])
def test_a_resumed_run_takes_the_refreshed_reward_model_that_it_finds(run, tmp_path, names):
    """Also where it lies under its former name; nothing is played or trained for it."""
    refreshed, inside = names
    folder = tmp_path / refreshed / "iteration-000004" / "model"
    shutil.copytree(run, folder)
    (folder / "reward_model").rename(folder / inside)
    (folder / inside / "reward_model.json").rename(folder / inside / f"{inside}.json")
    config = TrainConfig(reward=ProcessRewardConfig(model=str(run), refresh_every=2))
    config = replace(config, policy=replace(config.policy, device="cpu"))
    scorer = RewardModelScorer(load_reward_model(run), str(run), lambda tokens: tokens)
    reward = shaped(scorer, config)
    needed = (SimpleNamespace(folder=tmp_path), None, None, None)
    for iteration in (0, 3):
        refresh_reward_model(iteration, *needed, reward, config)
        assert scorer.folder == str(run)
    refresh_reward_model(4, *needed, reward, config)
    assert scorer.folder == str(folder)
    again = RewardModelScorer(load_reward_model(run), str(run), lambda tokens: tokens)
    again.load_state_dict({"judge": str(folder)})
    assert again.folder == str(folder)
