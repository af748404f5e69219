"""The search for causes, on outcomes that are known for every way of playing: nothing is left to be played."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from vla_rl.diagnostics.reproduction.diagnose import Diagnosis, Search
from vla_rl.diagnostics.reproduction.episodes import Journal, Outcome, Player
from vla_rl.diagnostics.reproduction.settings import Settings
from vla_rl.envs.defaults import benchmark_env
from vla_rl.types import EpisodeSpec

RIGHT = Settings("openvla", "own", "openvla-libero", False, "openvla", 0.0, 220, 10)
OTHER = Settings("openvla-oft", "other", "as-is", True, "as-is", 1.5, 60, 0)
SPECS = [EpisodeSpec(task, state) for state in range(25) for task in ("a", "b")]
FIELDS = tuple(vars(RIGHT))
IMAGES = ("openvla-libero", "as-is", "openvla-libero-uncropped")


def every_way() -> list[Settings]:
    """Each field right or other, and images in any of three ways."""
    choices = [
        IMAGES if name == "images" else (getattr(RIGHT, name), getattr(OTHER, name))
        for name in FIELDS
    ]
    return [Settings(*cast(Any, values)) for values in itertools.product(*choices)]


def searched(
    root: Path, played: Settings, successes: Callable[[Settings], int], figure: float = 0.8
) -> Diagnosis:
    """Of 50 episodes so many succeed with each setting; those from the first initial states on."""
    journal = Journal(root / "episodes.jsonl")
    for settings in every_way():
        count = successes(settings)
        known = {spec: Outcome(at < count, 1, 1) for at, spec in enumerate(SPECS)}
        journal.of(settings).update(known)
    player = Player(cast(Any, None), benchmark_env("toy"), journal)  # it has nothing to play
    kinds, statistics = ["openvla", "openvla-oft"], ["own", "other"]
    search = Search(player, SPECS, figure, RIGHT, 50, None, kinds, statistics)
    return search.find(played)


def wrong(settings: Settings, *names: str) -> bool:
    return any(getattr(settings, name) != getattr(RIGHT, name) for name in names or FIELDS)


CAUSES = {
    "kind": "policy kind",
    "statistics": "action statistics",
    "images": "image pipeline",
    "turned": "image pipeline",
    "gripper": "gripper",
    "temperature": "sampling",
    "horizon": "horizon",
    "settle_steps": "settle steps",
}


@pytest.mark.parametrize("field", FIELDS)
def test_each_cause_is_named_and_put_right(field: str, tmp_path: Path) -> None:
    played = replace(RIGHT, **{field: getattr(OTHER, field)})
    found = searched(tmp_path, played, lambda s: 5 if wrong(s) else 40)
    assert [one.cause for one in found.named] == [CAUSES[field]]
    assert found.corrected == RIGHT
    assert found.rate.successes == 40


def test_two_causes_one_after_the_other(tmp_path: Path) -> None:
    """The horizon costs 20 episodes and the gripper 15, whatever the other is."""

    def successes(s: Settings) -> int:
        return 40 - 20 * wrong(s, "horizon") - 15 * wrong(s, "gripper")

    played = replace(RIGHT, horizon=60, gripper="as-is")
    found = searched(tmp_path, played, successes)
    assert {one.cause for one in found.named} == {"horizon", "gripper"}
    assert found.corrected == RIGHT


def test_two_causes_that_only_help_together(tmp_path: Path) -> None:
    played = replace(RIGHT, turned=True, statistics="other")
    found = searched(tmp_path, played, lambda s: 3 if wrong(s) else 40)
    assert {one.cause for one in found.named} == {"image pipeline", "action statistics"}
    assert found.corrected == RIGHT


def test_what_makes_no_difference_is_not_named(tmp_path: Path) -> None:
    """Weights that are worse than the published ones: nothing helps. A deviation stays suspected."""
    found = searched(tmp_path, RIGHT, lambda _: 20)
    assert found.named == []
    assert {one.status for one in found.findings} == {"cleared"}
    found = searched(tmp_path, replace(RIGHT, settle_steps=0), lambda _: 20)
    assert found.named == []
    statuses = {one.cause: one.status for one in found.findings}
    assert statuses["settle steps"] == "suspected"


def test_too_much_success_has_a_cause_as_well(tmp_path: Path) -> None:
    """A horizon that is longer than the protocol's."""
    played = replace(RIGHT, horizon=60)
    found = searched(tmp_path, played, lambda s: 45 if s.horizon == 60 else 20, figure=0.4)
    assert [one.cause for one in found.named] == ["horizon"]
    assert found.corrected == RIGHT


def test_a_few_episodes_more_are_no_proof(tmp_path: Path) -> None:
    """Six of fifty for the better would come by chance in one case of 64."""
    played = replace(RIGHT, temperature=1.5)
    found = searched(tmp_path, played, lambda s: 26 if s == RIGHT else 20)
    assert found.named == []
    assert "p = 0.016" in " ".join(found.findings[4].evidence)
