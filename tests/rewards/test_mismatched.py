"""Images under another task's instruction: never one that the other task could call positive."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from builders.trajectories import trajectory
from vla_rl.config import LabelConfig
from vla_rl.envs.metaworld.tasks import INSTRUCTIONS, suite_tasks
from vla_rl.rewards.process.examples import Examples, build_examples
from vla_rl.rewards.process.mismatched import Mismatches, objects_of

SEGMENTS = LabelConfig(scheme="segments")  # of six turns the last three are positive


def examples_of(*instructions: str) -> Examples:
    """A success and a failure of each, six turns each."""
    made = [
        replace(trajectory(10 * i + success, success), instruction=text, task=text)
        for i, text in enumerate(instructions)
        for success in (True, False)
    ]
    return build_examples(made, SEGMENTS)


def shown(examples: Examples) -> dict[tuple[str, str], list[int]]:
    """(own instruction, the other) -> the turns that are shown under it."""
    rows, texts = Mismatches(examples, np.arange(len(examples)), examples.instructions).pairs()
    found: dict[tuple[str, str], list[int]] = {}
    for row, own, other in zip(rows.tolist(), examples.instructions_of(rows), texts, strict=True):
        found.setdefault((own, other), []).append(row)
    return found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("open the drawer", "close the drawer"),
        ("put the ring on the peg", "take the ring off the peg"),
        ("slide the plate into the cabinet", "slide the plate out of the cabinet"),
        ("push the puck to the goal", "pick up the puck and place it at the goal"),
        ("open the top drawer", "open the top drawer and put the bowl inside"),
        ("reach the goal", "push the puck to the goal"),
        ("turn on the stove", "turn off the stove"),
    ],
)
def test_opposite_tasks_and_tasks_within_another_lend_each_other_nothing(
    one: str, other: str
) -> None:
    assert shown(examples_of(one, other)) == {}


def test_of_a_scene_with_something_in_common_the_reached_goal_alone_is_shown() -> None:
    """Whoever grasps the bowl may put it anywhere; a bowl on the stove is not on the plate."""
    one, other = "put the bowl on the stove", "put the bowl on the plate"
    examples = examples_of(one, other)
    assert np.flatnonzero(examples.final).tolist() == [4, 5, 16, 17]  # the last of five segments
    assert shown(examples) == {(one, other): [4, 5], (other, one): [16, 17]}


def test_tasks_about_other_things_lend_everything() -> None:
    one, other = "open the drawer", "close the window"
    assert shown(examples_of(one, other)) == {
        (one, other): list(range(12)), (other, one): list(range(12, 24)),
    }  # fmt: skip


def test_objects_are_the_words_without_verbs_and_function_words() -> None:
    assert objects_of("Pick up the puck, and place it at the goal") == {"puck", "goal"}
    assert objects_of("pick up the black bowl next to the ramekin and place it on the plate") == {
        "black", "bowl", "ramekin", "plate",
    }  # fmt: skip
    assert objects_of("turn it on") == frozenset()


@pytest.mark.parametrize("suite", ["mt5", "mt10"])
def test_in_our_suites_every_instruction_can_be_denied_and_none_by_its_opposite(suite: str) -> None:
    texts = [INSTRUCTIONS[task] for task in suite_tasks(suite)]
    examples = examples_of(*texts)
    assert not Mismatches(examples, np.arange(len(examples)), texts).never_denied
    pairs = set(shown(examples))
    for thing in ("drawer", "window"):
        opposite = f"open the {thing}", f"close the {thing}"
        assert not {opposite, opposite[::-1]} & pairs


def test_draws_come_from_the_pairs_alone_and_reach_every_instruction() -> None:
    examples = examples_of(
        "open the drawer", "close the drawer", "press the button", "open the window"
    )
    mismatches = Mismatches(examples, np.arange(len(examples)), examples.instructions)
    allowed = set(zip(*(part for part in map(list, mismatches.pairs())), strict=True))
    rows, texts = mismatches.draw(400, np.random.default_rng(0))
    assert set(zip(rows.tolist(), texts, strict=True)) <= {
        (int(row), text) for row, text in allowed
    }
    counts = [texts.count(text) for text in mismatches.instructions]
    assert min(counts) > 60
    nothing = Mismatches(examples, np.arange(12), ["open the drawer"])
    assert nothing.never_denied == ["open the drawer"]
    rows, texts = nothing.draw(10, np.random.default_rng(0))
    assert (len(rows), texts) == (0, [])
