"""The reward model: what it reads, what it refuses, and that nothing of it changes on the way to the disk and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vla_rl.config import RewardModelConfig, UserError
from vla_rl.rewards.process.loading import load_reward_model
from vla_rl.rewards.process.model import history_rows, log_odds_in_parts, probability, with_history
from vla_rl.rewards.process.tiny import TinyProcessRewardModel

WORDS = ["open the drawer", "push a button", "open the drawer now please"]


def reward_model(image_size: int = 32, action_shape=(2, 4), **changes) -> TinyProcessRewardModel:
    made = TinyProcessRewardModel.create(
        RewardModelConfig(**changes), WORDS, image_size, action_shape
    )
    # larger than a fresh model's: differences between inputs are then far above rounding
    with torch.no_grad():
        for parameter in made.model.language_model.parameters():
            parameter.mul_(3)
    return made


def pictures(count: int = 3, size: int = 32, history: int = 0, seed: int = 0) -> np.ndarray:
    shape = (count, history, size, size, 3) if history else (count, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def actions(count: int = 3, chunk: int = 2, size: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, chunk, size)).astype(np.float32)


# -- what is read ----------------------------------------------------------------------------------


def test_log_odds_are_the_difference_of_two_tokens_of_one_softmax():
    model = reward_model()
    log_probs = model.answer_log_probs(pictures(), WORDS).detach().numpy()
    assert (np.exp(log_probs).sum(1) < 1).all()  # among all tokens
    odds = model.log_odds(pictures(), WORDS)
    np.testing.assert_allclose(odds, log_probs[:, 1] - log_probs[:, 0], atol=1e-5)
    # the sigmoid is the share of the positive answer in both
    share = np.exp(log_probs[:, 1]) / np.exp(log_probs).sum(1)
    np.testing.assert_allclose(probability(odds), share, atol=1e-6)


def test_probability_does_not_overflow():
    assert probability(np.array([-1e4, 0, 1e4], np.float32)).tolist() == [0, 0.5, 1]


def test_swapped_answers_turn_the_sign():
    model = reward_model()
    swapped = replace(model.description, positive_answer="0", negative_answer="1")
    other = TinyProcessRewardModel(model.model, model.processor.tokenizer, swapped, model.device)
    odds = model.log_odds(pictures(), WORDS)
    assert np.abs(odds).min() > 1e-3
    np.testing.assert_allclose(other.log_odds(pictures(), WORDS), -odds, atol=1e-5)


def test_picture_and_instruction_both_count():
    model = reward_model()
    odds = model.log_odds(pictures(), WORDS)
    assert np.abs(odds - model.log_odds(pictures(seed=1), WORDS)).min() > 1e-4
    assert np.abs(odds - model.log_odds(pictures(), WORDS[::-1]))[[0, 2]].min() > 1e-4


@pytest.mark.parametrize("sees_actions", [False, True])
def test_a_batch_of_unequal_prompts_equals_its_rows(sees_actions):
    model = reward_model(sees_actions=sees_actions)
    given_actions = actions() if sees_actions else None
    together = model.log_odds(pictures(), WORDS, given_actions)
    for row in range(3):
        part = slice(row, row + 1)
        one = None if given_actions is None else given_actions[part]
        alone = model.log_odds(pictures()[part], WORDS[part], one)
        np.testing.assert_allclose(alone, together[part], atol=1e-4)


def test_parts_and_threads_change_nothing():
    model = reward_model()
    images, words = pictures(7), (WORDS * 3)[:7]
    whole = log_odds_in_parts(model, images, words, None, part=7, threads=1)
    for part, threads in ((1, 1), (2, 2), (3, 3)):
        parts = log_odds_in_parts(model, images, words, None, part, threads)
        np.testing.assert_allclose(parts, whole, atol=1e-4)
    assert model.log_odds(images[:0], []).shape == (0,)


def test_the_proposed_action_counts_where_it_is_seen():
    model = reward_model(sees_actions=True)
    odds = model.log_odds(pictures(), WORDS, actions())
    changed = actions()
    changed[:, 1, 3] = -np.sign(changed[:, 1, 3])  # the last number of the last action
    assert np.abs(odds - model.log_odds(pictures(), WORDS, changed)).min() > 1e-5


def test_earlier_pictures_count_and_so_does_their_order():
    model = reward_model(history=3)
    seen = pictures(history=3)
    odds = model.log_odds(seen, WORDS)
    first = seen.copy()
    first[:, 0] = 0
    assert np.abs(odds - model.log_odds(first, WORDS)).min() > 1e-5
    turned = seen[:, [1, 0, 2]]
    assert np.abs(odds - model.log_odds(turned, WORDS)).min() > 1e-6


def test_history_repeats_the_first_picture():
    assert history_rows(4, 3).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]
    assert history_rows(4, 2, stride=2).tolist() == [[0, 0], [0, 1], [0, 2], [1, 3]]
    images = pictures(4)
    seen = with_history(images, 2)
    np.testing.assert_array_equal(seen[:, 1], images)
    np.testing.assert_array_equal(seen[1:, 0], images[:-1])


# -- the second task -------------------------------------------------------------------------------


@pytest.mark.parametrize("sees_actions", [False, True])
def test_naming_the_action_does_not_give_the_answer_away(sees_actions):
    """The answer's log-probabilities are those without the second task, whichever answer and action are given."""
    model = reward_model(sees_actions=sees_actions)
    taken = actions() if sees_actions else actions(chunk=1)
    alone = model.answer_log_probs(pictures(), WORDS, taken if sees_actions else None)
    for answers in (torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long)):
        answer, action = model.joint_log_probs(pictures(), WORDS, taken, answers)
        np.testing.assert_allclose(answer.detach(), alone.detach(), atol=1e-4)
        assert action.shape == (3,)
        assert (action < 0).all()


def test_the_action_that_is_named_is_the_one_that_was_taken():
    """Probabilities of the first number's values add up to one over its bins."""
    model = reward_model()
    total = 0.0
    for value in model.action_tokenizer.values:
        # K = 1: a dataset whose action is a single number
        taken = np.full((1, 1, 1), value, np.float32)
        _, action = model.joint_log_probs(pictures(1), WORDS[:1], taken, torch.zeros(1).long())
        total += float(action.detach().exp())
    assert total == pytest.approx(1, abs=1e-4)


# -- on disk ---------------------------------------------------------------------------------------


def test_a_reward_model_comes_back_from_disk_to_the_bit(tmp_path):
    model = reward_model(sees_actions=True, history=2, prompt="Is {instruction} under way?")
    odds = model.log_odds(pictures(history=2), WORDS, actions())
    model.save(tmp_path / "reward_model")
    assert sorted(p.name for p in (tmp_path / "reward_model").iterdir()) == [
        "model.json", "model.safetensors", "reward_model.json", "tokenizer.json",
    ]  # fmt: skip
    back = load_reward_model(tmp_path)  # the run folder around it will do
    assert back.description == model.description
    np.testing.assert_array_equal(back.log_odds(pictures(history=2), WORDS, actions()), odds)


# -- refusals --------------------------------------------------------------------------------------


def test_pictures_of_another_size_are_refused():
    with pytest.raises(UserError, match=r"trained on images of 32 x 32, got 64 x 64"):
        reward_model().log_odds(pictures(size=64), WORDS)
    with pytest.raises(UserError, match="sees 2 image"):
        reward_model(history=2).log_odds(pictures(), WORDS)
    with pytest.raises(UserError, match="for 2 instructions"):
        reward_model().log_odds(pictures(), WORDS[:2])


def test_actions_of_another_size_are_refused():
    model = reward_model(sees_actions=True)
    with pytest.raises(UserError, match="got none"):
        model.log_odds(pictures(), WORDS)
    with pytest.raises(
        UserError, match=r"2 action\(s\) of size 4 .* got some of shape \(3, 2, 7\)"
    ):
        model.log_odds(pictures(), WORDS, actions(size=7))
    with pytest.raises(UserError, match="trained without actions"):
        reward_model().log_odds(pictures(), WORDS, actions())


def test_a_reward_model_of_another_question_is_refused():
    description = reward_model().description
    config = RewardModelConfig()
    description.require(config, "runs/reward")
    for change in ({"prompt": "Is {instruction} done?"}, {"history": 2}, {"sees_actions": True}):
        with pytest.raises(UserError, match=f"trained with {next(iter(change))}"):
            description.require(replace(config, **change), "runs/reward")


def test_answers_must_be_one_token_each():
    with pytest.raises(UserError, match="expected one: choose a single word"):
        reward_model(positive_answer="yes it is")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "done?"}, "must contain"),
        ({"positive_answer": "0"}, "two different words"),
        ({"history": -1}, "history"),
        ({"mismatched_share": 1.0}, "of at least 0 and below 1"),
        ({"all_weights": True}, "always trained whole"),
        ({"datasets": ()}, "at least one folder"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        RewardModelConfig(**change)


def test_defaults_follow_the_backbone():
    tiny, large = RewardModelConfig().resolved(), RewardModelConfig(backbone="a/b").resolved()
    assert tiny.lora is None
    assert large.lora is not None
    # the authors'
    assert (large.epochs, large.learning_rate) == (10, 1e-4)
    assert RewardModelConfig(epochs=3).resolved().epochs == 3
    assert RewardModelConfig(backbone="a/b", all_weights=True).resolved().lora is None
