"""Which episodes measure: split by initial state, kept when a reward model is trained further, known again on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.trajectories import TASKS, episodes, renumbered, trajectory
from vla_rl.config import UserError
from vla_rl.rewards.process.splits import (
    SPLIT_FILE,
    Split,
    StoredSplit,
    read_split,
    split_episodes,
    split_of,
    write_split,
)
from vla_rl.rewards.trajectories import Trajectory


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(st.integers(2, 8), st.floats(0.05, 0.9), st.integers(0, 5))
def test_a_split_keeps_episodes_of_one_beginning_together_and_both_sides_filled(
    states, fraction, seed
):
    # every initial state played twice
    made = [replace(t, success=s) for t in episodes(states, size=16) for s in (True, False)]
    split = split_episodes(made, fraction, (), rng(seed))
    sides = [split.training, split.validation]
    assert sorted(np.concatenate(sides).tolist()) == list(range(len(made)))
    for text in TASKS.values():
        seen = [
            {made[i].initial_state for i in side if made[i].instruction == text} for side in sides
        ]
        assert seen[0]
        assert seen[1]
        assert not seen[0] & seen[1]


def test_episodes_of_unknown_beginning_are_split_one_by_one():
    split = split_episodes(renumbered(episodes(10, size=16), -1), 0.3, (), rng())
    assert len(split.validation) == 6


def test_held_out_tasks_stay_out_and_must_exist():
    made = episodes(4, size=16)
    for name in (TASKS["red-task"], made[0].task):
        split = split_episodes(made, 0.25, (name,), rng())
        assert {made[i].instruction for i in split.held_out} == {TASKS["red-task"]}
        rest = np.concatenate([split.training, split.validation])
        assert {made[i].instruction for i in rest} == {TASKS["green-task"]}
    with pytest.raises(UserError, match="Did you mean 'light the red lamp'"):
        split_episodes(made, 0.25, ("light the red lmp",), rng())
    with pytest.raises(UserError, match="nothing is left"):
        split_episodes(made, 0.25, tuple(TASKS.values()), rng())


# -- training further ------------------------------------------------------------------------------


def stored(
    folder: Path, split: Split, made: list[Trajectory], parent: StoredSplit | None = None
) -> StoredSplit:
    folder.mkdir()
    write_split(folder, split, made, parent)
    found = read_split(folder)
    assert found is not None
    return found


def beginnings(made: list[Trajectory], rows: np.ndarray) -> set[tuple[str, int]]:
    return {(made[i].task, made[i].initial_state) for i in rows.tolist()}


def contents(made: list[Trajectory], rows: np.ndarray) -> set[bytes]:
    return {made[i].actions.tobytes() for i in rows.tolist()}


@given(seeds=st.tuples(st.integers(0, 999), st.integers(0, 999)), fraction=st.floats(0.1, 0.6))
def test_what_a_reward_model_learned_from_never_measures_its_successor(
    tmp_path_factory: pytest.TempPathFactory, seeds: tuple[int, int], fraction: float
) -> None:
    """Whatever the seed. The successor has the old episodes, new tries from known states, and new states."""
    old = episodes(6, size=16)
    tries = [replace(t, success=not t.success, actions=-t.actions) for t in old[::3]]
    new = [trajectory(50 + i, i % 2 == 0, size=16) for i in range(4)]
    first = split_episodes(old, fraction, (), rng(seeds[0]))
    parent = stored(tmp_path_factory.mktemp("run") / "a", first, old)
    both = [*new, *tries, *old]  # in another order
    second = split_episodes(both, fraction, (), rng(seeds[1]), parent)
    learned, measured = beginnings(old, first.training), beginnings(old, first.validation)
    assert not beginnings(both, second.validation) & learned
    assert not beginnings(both, second.training) & measured
    assert len(second.training) + len(second.validation) == len(both)


def test_without_the_parent_the_same_episodes_would_change_sides(tmp_path: Path) -> None:
    """Guards the test above: another seed alone makes another split."""
    old = episodes(6, size=16)
    first = split_episodes(old, 0.4, (), rng(0))
    anew = split_episodes(old, 0.4, (), rng(1))
    assert beginnings(old, anew.validation) & beginnings(old, first.training)


def test_episodes_without_a_numbered_state_are_known_by_their_content(tmp_path: Path) -> None:
    old = renumbered(episodes(6, size=16), -1)
    first = split_episodes(old, 0.4, (), rng(0))
    parent = stored(tmp_path / "a", first, old)
    both = [*renumbered([trajectory(50, True, size=16)], -1), *reversed(old)]
    second = split_episodes(both, 0.4, (), rng(1), parent)
    assert not contents(both, second.validation) & contents(old, first.training)
    assert contents(old, first.validation) <= contents(both, second.validation)


def test_new_states_are_split_as_the_fraction_says(tmp_path: Path) -> None:
    old = [t for t in episodes(4, size=16) if t.instruction == TASKS["red-task"]]
    first = split_episodes(old, 0.25, (), rng(0))
    new = [trajectory(50 + i, True, size=16) for i in range(16)]
    second = split_episodes([*old, *new], 0.25, (), rng(1), stored(tmp_path / "a", first, old))
    assert (len(first.validation), len(second.validation)) == (1, 5)


def test_a_grandchild_knows_episodes_that_its_parent_had_not(tmp_path: Path) -> None:
    """The parent was trained on new episodes alone; the grandchild sees the first ones again."""
    old, new = episodes(6, size=16), [trajectory(60 + i, i > 1, size=16) for i in range(4)]
    first = split_episodes(old, 0.4, (), rng(0))
    one = stored(tmp_path / "a", first, old)
    two = stored(tmp_path / "b", split_episodes(new, 0.4, (), rng(1), one), new, one)
    assert len(two.ancestors.training) == len(first.training)
    third = split_episodes(old, 0.4, (), rng(2), two)
    assert beginnings(old, third.validation) == beginnings(old, first.validation)


def test_a_split_of_an_earlier_version_is_kept_too(tmp_path: Path) -> None:
    """Without ids: by initial state, or where that is not known by the place in the datasets."""
    for name, old in (
        ("known", episodes(6, size=16)),
        ("unknown", renumbered(episodes(6, size=16), -1)),
    ):
        first = split_episodes(old, 0.4, (), rng(0))
        stored(tmp_path / name, first, old)
        path = tmp_path / name / SPLIT_FILE
        record = json.loads(path.read_text())
        del record["ancestors"]
        path.write_text(json.dumps({side: [e[:4] for e in record[side]] for side in record}))
        parent = read_split(tmp_path / name)
        second = split_episodes([*old, trajectory(99, True, size=16)], 0.4, (), rng(1), parent)
        assert set(first.validation.tolist()) <= set(second.validation.tolist())
        assert set(first.training.tolist()) <= set(second.training.tolist())
    with pytest.raises(UserError, match="name its datasets first"):
        split_episodes([trajectory(99, True, size=16), *old], 0.4, (), rng(1), parent)


def test_a_task_that_was_learned_cannot_be_held_out_later(tmp_path: Path) -> None:
    old = episodes(6, size=16)
    parent = stored(tmp_path / "a", split_episodes(old, 0.4, (), rng(0)), old)
    with pytest.raises(
        UserError, match=r"was learned by the reward model that reward\.start names"
    ):
        split_episodes(old, 0.4, (TASKS["red-task"],), rng(1), parent)


# -- on disk ---------------------------------------------------------------------------------------


def test_a_split_is_read_as_it_was_made_and_for_its_own_episodes_alone(tmp_path: Path) -> None:
    made = episodes(6, size=16)
    split = split_episodes(made, 0.4, (TASKS["green-task"],), rng(0))
    stored(tmp_path / "run", split, made)
    found = split_of(tmp_path / "run", made)
    for name in ("training", "validation", "held_out"):
        np.testing.assert_array_equal(getattr(found, name), getattr(split, name))
    others = [made[:-1], [*made, made[0]], [made[1], made[0], *made[2:]]]
    others.append([replace(made[0], actions=-made[0].actions), *made[1:]])
    for other in others:
        with pytest.raises(UserError, match="have changed since the reward model was trained"):
            split_of(tmp_path / "run", other)
