"""Head regression: progress from the images and the actions of the steps so far."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_vlm import write_vlm

from builders.trajectories import trajectory
from vla_rl.algorithms.reward_model import RewardModelBatch, RewardModelLearner
from vla_rl.config import LabelConfig, LoraConfig, RewardModelConfig, UserError
from vla_rl.rewards.process.examples import build_examples
from vla_rl.rewards.process.loading import load_reward_model
from vla_rl.rewards.process.model import PastSteps, TrainableRewardModel, probability
from vla_rl.rewards.process.regression import HEAD_FILE, progress_parts
from vla_rl.rewards.process.tiny import TinyProcessRewardModel
from vla_rl.rewards.process.vlm import VlmProcessRewardModel

WORDS = ["open the drawer", "push a button", "open the drawer now please"]
SHAPE = (2, 4)  # actions a turn, numbers an action
TINY = RewardModelConfig(head="regression", history=3, device="cpu")


def tiny(config: RewardModelConfig = TINY) -> TinyProcessRewardModel:
    made = TinyProcessRewardModel.create(config, WORDS, 32, SHAPE)
    # larger than a fresh model's: differences between inputs are then far above rounding
    with torch.no_grad():
        for parameter in made.model.language_model.parameters():
            parameter.mul_(3)
    return made


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> VlmProcessRewardModel:
    backbone = write_vlm(tmp_path_factory.mktemp("vlm"))
    return VlmProcessRewardModel.create(vlm_config(str(backbone)), SHAPE)


def vlm_config(backbone: str) -> RewardModelConfig:
    return RewardModelConfig(
        backbone=backbone, head="regression", history=3, lora=LoraConfig(rank=4), device="cpu",
        learning_rate=0.01, warmup_steps=0,
    ).resolved()  # fmt: skip


@pytest.fixture(params=["tiny", "vlm"])
def reward_model(
    request: pytest.FixtureRequest, vlm: VlmProcessRewardModel
) -> TrainableRewardModel:
    return vlm if request.param == "vlm" else tiny()


def pictures(count: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32, 3), dtype=np.uint8)


def steps(*count: int, seed: int = 0) -> PastSteps:
    shape = (len(count), 2, *SHAPE)
    return PastSteps(
        np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32), np.array(count)
    )


# -- what is read ----------------------------------------------------------------------------------


def test_the_question_is_the_articles(vlm: VlmProcessRewardModel) -> None:
    past = [np.array([[0.1, -0.25]], np.float32), np.array([[1, 0]], np.float32)]
    parts = progress_parts("open the drawer", past)
    text = "".join(part.get("text", "[IMAGE]") for part in parts)
    assert text == (
        "Task: open the drawer\n"
        "Progress so far:\n"
        "Step 1: [IMAGE] -> Action: (10, -25)\n"
        "Step 2: [IMAGE] -> Action: (100, 0)\n"
        "Current observation: [IMAGE]\n"
        "Rate the progress toward completing the task (0-1):"
    )
    inputs = vlm.conversations([list(pictures(1)[0])], [parts])
    said = vlm.processor.tokenizer.decode(inputs["input_ids"][0])
    assert said.count("<|vision_start|>") == 3
    assert "Rate the progress toward completing the task (0-1):<|im_end|>" in said


def test_the_first_turn_has_no_steps_before_it() -> None:
    texts = [part.get("text") for part in progress_parts("{x}", [])]
    assert texts[0] == "Task: {x}\nProgress so far:\nCurrent observation: "


def test_a_batch_of_unequal_histories_equals_its_rows(reward_model: TrainableRewardModel) -> None:
    past = steps(0, 2, 1)
    together = reward_model.log_odds(pictures(), WORDS, None, past)
    for row in range(3):
        part = slice(row, row + 1)
        alone = reward_model.log_odds(pictures()[part], WORDS[part], None, past.select(part))
        np.testing.assert_allclose(alone, together[part], atol=1e-4)


def test_images_actions_and_instruction_count(reward_model: TrainableRewardModel) -> None:
    past = steps(2, 2, 2)
    odds = reward_model.log_odds(pictures(), WORDS, None, past)
    seen = pictures()
    seen[:, 0] = 255 - seen[:, 0]
    for other in (
        reward_model.log_odds(seen, WORDS, None, past),
        reward_model.log_odds(pictures(), WORDS, None, steps(2, 2, 2, seed=1)),
        reward_model.log_odds(
            pictures(), WORDS, None, replace(past, actions=past.actions[:, ::-1])
        ),
    ):
        assert np.abs(other - odds).min() > 1e-6
    swapped = reward_model.log_odds(pictures(), WORDS[::-1], None, past)
    assert np.abs(swapped - odds)[[0, 2]].min() > 1e-6


def test_what_was_before_the_episode_does_not_count(reward_model: TrainableRewardModel) -> None:
    past = steps(1, 0, 1)
    odds = reward_model.log_odds(pictures(), WORDS, None, past)
    actions, seen = past.actions.copy(), pictures()
    actions[:, 0], actions[1] = 0.5, -0.5
    seen[:, 0], seen[1, :2] = 0, 9
    same = reward_model.log_odds(seen, WORDS, None, replace(past, actions=actions))
    np.testing.assert_allclose(same, odds, atol=1e-6)


def test_a_turn_is_shown_what_was_done_at_each_of_the_images_before_it() -> None:
    examples = build_examples(
        [trajectory(0, True, chunk=2), trajectory(1, False, chunk=2)], LabelConfig(), 3, True
    )
    rows = np.array([6, 7, 9])  # turns 0, 1 and 3 of the second episode
    past = examples.past_of(rows)
    assert past.count.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(past.actions[0], 0)
    np.testing.assert_array_equal(past.actions[1], [0 * examples.actions[6], examples.actions[6]])
    np.testing.assert_array_equal(past.actions[2], examples.actions[[7, 8]])


# -- learning and the disk -------------------------------------------------------------------------


def test_training_teaches_it_and_the_disk_keeps_it(
    reward_model: TrainableRewardModel, tmp_path
) -> None:
    is_tiny = isinstance(reward_model, TinyProcessRewardModel)
    settings = (
        replace(TINY, learning_rate=0.003, warmup_steps=0).resolved()
        if is_tiny
        else vlm_config(reward_model.description.backbone)
    )
    progress = np.array([0.2, 0.9, 0.5], np.float32)
    batch = RewardModelBatch(
        pictures(), WORDS, steps(0, 0, 0).actions[:, 0], progress > 0.5, np.ones(3, bool), progress,
        steps(0, 2, 1),
    )  # fmt: skip
    learner = RewardModelLearner(reward_model, settings, total_steps=40)
    errors = [learner.update(batch)["absolute_error"] for _ in range(40)]
    odds = reward_model.log_odds(pictures(), WORDS, None, steps(0, 2, 1))
    assert errors[-1] < 0.5 * errors[0]
    np.testing.assert_allclose(probability(odds), progress, atol=0.15)
    reward_model.save(tmp_path / "reward_model")
    kinds = {path.suffix for path in (tmp_path / "reward_model").iterdir()}
    assert kinds <= {".json", ".safetensors"}
    back = load_reward_model(tmp_path, "cpu")
    assert back.description == reward_model.description
    np.testing.assert_allclose(
        back.log_odds(pictures(), WORDS, None, steps(0, 2, 1)), odds, atol=1e-5
    )


def test_defaults_follow_the_head() -> None:
    tiny, large = TINY.resolved(), RewardModelConfig(backbone="a/b", head="regression").resolved()
    assert (large.history, large.learning_rate, large.weight_decay) == (5, 1e-5, 0.01)
    assert (tiny.history, tiny.learning_rate, tiny.weight_decay) == (3, 1e-3, 0.01)
    assert large.labels.scheme == "segments"
    before = RewardModelConfig().resolved()
    assert (before.history, before.weight_decay, before.labels.scheme) == (1, 0.05, "keyframe")
    assert large.resolved() == large


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": 1}, "set history to 2 or more"),
        ({"sees_actions": True}, "leave out one of the two"),
        ({"weight_decay": -0.5}, "weight_decay must be 0 to 1, or -1"),
        ({"history": 65}, "history"),
    ],
)
def test_settings_that_do_not_fit_the_head_are_refused(change, message) -> None:
    with pytest.raises(UserError, match=message):
        replace(TINY, **change)


def test_a_history_that_does_not_fit_is_refused() -> None:
    model = tiny()
    for wrong in (None, PastSteps(np.zeros((3, 1, *SHAPE), np.float32), np.zeros(3, np.int64))):
        with pytest.raises(UserError, match=r"expected actions of shape \(3, 2, 2, 4\), got"):
            model.log_odds(pictures(), WORDS, None, wrong)
    with pytest.raises(UserError, match="0 to 2 earlier steps at every turn, got 0 to 3"):
        model.log_odds(pictures(), WORDS, None, steps(0, 3, 1))
    past = steps(0, 2, 1)
    past.actions[1, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="not finite"):
        model.log_odds(pictures(), WORDS, None, past)
    plain = TinyProcessRewardModel.create(RewardModelConfig(device="cpu"), WORDS, 32)
    with pytest.raises(UserError, match="train one with head regression, or leave them out"):
        plain.log_odds(pictures()[:, 0], WORDS, None, steps(0, 2, 1))


def test_damaged_folders_are_refused(tmp_path) -> None:
    tiny().save(tmp_path)
    head = load_file(tmp_path / HEAD_FILE)
    for tensors, message in (
        ({"hidden.weight": torch.zeros(256, 7)}, "belongs to another backbone"),
        ({"hidden.bias": torch.full((256,), torch.nan)}, "NaN or infinite"),
        ({"other": torch.zeros(1)}, "expected the weights hidden.bias"),
    ):
        save_file(head | tensors, tmp_path / HEAD_FILE)
        with pytest.raises(UserError, match=message):
            load_reward_model(tmp_path, "cpu")
    (tmp_path / HEAD_FILE).unlink()
    with pytest.raises(UserError, match=f"no {HEAD_FILE}"):
        load_reward_model(tmp_path, "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": 1}, "history: expected 2 or more"),
        ({"action_chunk": 0, "action_size": 0}, "history: expected 2 or more, and action_chunk"),
        ({"head": "classifier"}, "head: expected"),
        ({"prompt": "Is {instruction} done?"}, "prompt: expected"),
    ],
)
def test_descriptions_that_contradict_themselves_are_refused(tmp_path, change, message) -> None:
    tiny().save(tmp_path)
    file = tmp_path / "reward_model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_reward_model(tmp_path, "cpu")


def test_heads_are_not_mistaken_for_each_other() -> None:
    with pytest.raises(
        UserError, match="trained with head 'regression', asked for is 'next-token'"
    ):
        tiny().description.require(RewardModelConfig(), "runs/reward")
    tiny().description.require(TINY, "runs/reward")
