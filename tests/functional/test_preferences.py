"""Pairs of episodes: which are made, and the loss that tells them apart."""

import numpy as np
import pytest
import torch

from vla_rl.functional import preference_loss, preference_pairs, preference_slopes


def made(scores: list[float], groups: list[int], most: int) -> tuple[set[tuple[int, int]], int]:
    pairs = preference_pairs(np.array(scores, np.float64), np.array(groups), most)
    together = list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True))
    assert len(together) == len(set(together))
    return set(together), pairs.ties


def test_better_against_worse_within_a_group_alone() -> None:
    assert made([1, 0, 0, 1], [5, 5, 3, 3], 9) == ({(0, 1), (3, 2)}, 0)


def test_ties_make_no_pair_and_are_counted() -> None:
    assert made([1, 1, 1, 0, 0], [0, 0, 0, 1, 1], 4) == (set(), 4)
    pairs, ties = made([1, 1, 0], [0, 0, 0], 9)
    assert pairs == {(0, 2), (1, 2)}
    assert ties == 1
    assert made([0.1 + 0.2, 0.3], [0, 0], 1) == (set(), 1)  # rounding is no preference


def test_episodes_take_part_evenly() -> None:
    one_failure, _ = made([1, 1, 1, 1, 1, 1, 1, 0], [0] * 8, 4)
    assert len(one_failure) == 4
    assert {worse for _, worse in one_failure} == {7}
    half, _ = made([1, 1, 0, 0], [0] * 4, 2)
    assert half in ({(0, 2), (1, 3)}, {(0, 3), (1, 2)})


def test_the_largest_difference_comes_first() -> None:
    assert made([0.1, 3.0, 2.0, -1.0], [0] * 4, 1)[0] == {(1, 3)}
    assert made([0.1, 3.0, 2.0, -1.0], [0] * 4, 2)[0] == {(1, 3), (2, 0)}


def test_loss_and_slopes() -> None:
    chosen = torch.tensor([0.3, -2.0, 40.0], requires_grad=True)
    rejected = torch.tensor([0.1, 5.0, -900.0])
    loss = preference_loss(chosen, rejected, 0.5)
    by_hand = sum(
        float(np.log1p(np.exp(-0.5 * (c - r))))
        for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)
    )
    assert loss.item() == pytest.approx(by_hand / 3)
    (slopes,) = torch.autograd.grad(loss, chosen)
    torch.testing.assert_close(slopes, preference_slopes(chosen.detach() - rejected, 0.5) / 3)
