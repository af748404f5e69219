"""The gripper between OpenVLA's data (0 closed .. 1 open) and LIBERO's command (-1 open, +1 close)."""

from __future__ import annotations

import numpy as np
import pytest

from builders.policies import GOLDEN
from vla_rl.policies import ActionTokenizer
from vla_rl.policies.action_tokens import gripper_from_libero, gripper_to_libero


@pytest.fixture(scope="module")
def golden_gripper() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "gripper.npz") as file:
        return dict(file)


def test_official_conversion(golden_gripper: dict[str, np.ndarray]) -> None:
    given = golden_gripper["gripper_in"]
    before = given.copy()
    np.testing.assert_array_equal(
        gripper_to_libero(given), golden_gripper["gripper_normalized_binarized_inverted"]
    )
    np.testing.assert_array_equal(given, before)  # on a copy


def test_official_command_for_every_token(golden_gripper: dict[str, np.ndarray]) -> None:
    tokenizer = ActionTokenizer(256)
    bins = tokenizer.from_vocabulary(golden_gripper["gripper_by_token_ids"])
    actions = np.zeros((len(bins), 7))
    actions[:, -1] = tokenizer.decode(bins)
    commands = gripper_to_libero(actions)[:, -1]
    np.testing.assert_array_equal(commands, golden_gripper["gripper_by_token_env"])


def test_ends_and_middle() -> None:
    data = np.array([[0.3, 1.0], [0.3, 0.0], [0.3, 0.5], [0.3, 0.51], [0.3, -0.9]])
    commands = gripper_to_libero(data)
    assert commands[:, 0].tolist() == [0.3] * 5
    assert commands[:, 1].tolist() == [-1, 1, 0, -1, 1]


def test_demonstrations_go_back_and_forth() -> None:
    """LIBERO's commands to the data's convention, through OpenVLA's bins, and back to the same commands."""
    tokenizer = ActionTokenizer(256)
    rng = np.random.default_rng(0)
    commands = rng.uniform(-1, 1, (20, 2, 7))
    commands[..., -1] = rng.choice([-1.0, 1.0], (20, 2))
    before = commands.copy()
    stored = gripper_from_libero(commands)
    assert set(stored[..., -1].ravel().tolist()) == {0.0, 1.0}
    np.testing.assert_array_equal(commands, before)
    np.testing.assert_array_equal(gripper_to_libero(stored), commands)
    played = gripper_to_libero(tokenizer.decode(tokenizer.encode(stored)))
    np.testing.assert_array_equal(played[..., -1], commands[..., -1])


def test_single_precision_stays() -> None:
    assert gripper_to_libero(np.zeros((2, 7), np.float32)).dtype == np.float32
    assert gripper_from_libero(np.zeros((2, 7), np.float32)).dtype == np.float32
