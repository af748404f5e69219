"""Choosers: what each of them looks at."""

from __future__ import annotations

import numpy as np
import pytest

from vla_rl.config import UserError
from vla_rl.evaluation.search.choosers import Moment, RewardModelChooser, make_chooser
from vla_rl.rewards.process.model import RewardModelDescription


class Records:
    """A reward model that notes what it is shown and says the mean brightness."""

    def __init__(self, history: int = 1, sees_actions: bool = False) -> None:
        self.description = RewardModelDescription(
            "records", "?", "1", "0", 0, history, 2 if sees_actions else 0, 4 if sees_actions else 0
        )
        self.sees_actions = sees_actions
        self.shown: list[tuple[np.ndarray, list[str], np.ndarray | None]] = []

    def log_odds(self, images, instructions, actions=None):
        self.shown.append((images, list(instructions), actions))
        return images.reshape(len(images), -1).mean(1).astype(np.float32)

    def save(self, folder) -> None:
        raise NotImplementedError


def image(value: int) -> np.ndarray:
    return np.full((4, 4, 3), value, np.uint8)


def moment(j: int, before: tuple[int, ...], after: tuple[int, ...] = (), turn: int = 0) -> Moment:
    return Moment(
        ("chain", 7, turn, j),
        "walk",
        tuple(map(image, before)),
        np.full((2, 4), j, np.float32),
        tuple(map(image, after)),
        dense_reward=float(10 - j),
    )


def test_a_reward_model_without_actions_sees_what_the_turn_led_to() -> None:
    reward_model = Records()
    chooser = RewardModelChooser(reward_model)
    assert chooser.needs_outcome
    scores = chooser.score([moment(0, (1,), (50,)), moment(1, (1,), (9, 200))])
    assert scores.tolist() == [50, 200]
    images, instructions, actions = reward_model.shown[0]
    assert images.shape == (2, 4, 4, 3)
    assert instructions == ["walk", "walk"]
    assert actions is None
    assert len(reward_model.shown) == 1


def test_a_reward_model_of_actions_sees_the_image_before_and_the_action() -> None:
    reward_model = Records(sees_actions=True)
    chooser = RewardModelChooser(reward_model)
    assert not chooser.needs_outcome
    scores = chooser.score([moment(0, (1,), (50,)), moment(3, (2,))])
    assert scores.tolist() == [1, 2]
    actions = reward_model.shown[0][2]
    assert actions is not None
    assert actions[:, 0, 0].tolist() == [0, 3]


def test_a_reward_model_with_a_history_sees_the_last_images_with_the_first_repeated() -> None:
    reward_model = Records(history=3)
    RewardModelChooser(reward_model).score(
        [moment(0, (1,), (5,)), moment(1, (1,), (5, 6)), moment(2, (1,), (5, 6, 7, 8))]
    )
    shown = reward_model.shown[0][0][..., 0, 0, 0]
    assert shown.tolist() == [[5, 5, 5], [5, 5, 6], [6, 7, 8]]


def test_the_simulators_reward_is_taken_as_it_is() -> None:
    chooser = make_chooser("simulator", None, 0)
    assert chooser.needs_dense_reward
    assert chooser.score([moment(3, (1,)), moment(0, (1,))]).tolist() == [7, 10]


def test_chance_is_fair_and_fixed_by_seed_and_candidate() -> None:
    moments = [moment(j, (1,), turn=t) for t in range(500) for j in range(4)]
    scores = make_chooser("random", None, 5).score(moments)
    again = make_chooser("success", None, 5).score(moments[::-1])[::-1]
    np.testing.assert_array_equal(scores, again)
    assert (make_chooser("random", None, 6).score(moments) != scores).mean() > 0.99
    picks = np.bincount(scores.reshape(500, 4).argmax(1), minlength=4)
    assert (abs(picks - 125) < 4 * np.sqrt(500 * 3 / 16)).all()


def test_a_reward_model_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="vla-rl reward train"):
        make_chooser("reward-model", None, 0)
