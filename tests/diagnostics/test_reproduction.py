"""The parts of a reproduction: cards, the journal of episodes, the ways of playing, trials, scenes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vla_rl.config import UserError, mini_model
from vla_rl.diagnostics.reproduction.card import CARD, Card, Figure, read_card, write_card
from vla_rl.diagnostics.reproduction.causes import alternatives
from vla_rl.diagnostics.reproduction.diagnose import compared_episodes, evenly, within
from vla_rl.diagnostics.reproduction.episodes import Journal, Outcome, Rate
from vla_rl.diagnostics.reproduction.scenes import (
    TASKS,
    Scene,
    check_scene,
    compared,
    recorded,
    settled_scene,
)
from vla_rl.diagnostics.reproduction.settings import Settings, other_statistics
from vla_rl.envs.defaults import benchmark_env
from vla_rl.policies.openvla.config_files import Checkpoint
from vla_rl.types import EpisodeSpec

PLAYED = Settings("openvla", "own", "openvla-libero", False, "openvla", 0.0, 220, 10)
SPECS = [EpisodeSpec(task, state) for state in range(3) for task in ("a", "b")]


# -- cards


def card() -> Card:
    return Card(Figure(0.75, "ours", 40), benchmark_env("toy"), PLAYED, 10, "toy")


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_card(tmp_path, card())
    assert read_card(tmp_path) == card()
    assert read_card(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("success_rate", 84.7, "success_rate.*at most 1"),
        ("suite", "mt5", "expected one suite, got 'mt5'"),
        ("episodes", 0, "episodes.*above 0"),
        ("env", {"suite": "toy", "image_sise": 32}, "image_sise.*image_size"),
        ("settings", {"kind": "openvla"}, "settings.*statistics"),
        ("format", 2, "format.*at most 1"),
    ],
)
def test_a_damaged_card_is_refused_by_its_key(tmp_path: Path, key, value, message) -> None:
    write_card(tmp_path, card())
    content = json.loads((tmp_path / CARD).read_text()) | {key: value}
    (tmp_path / CARD).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{CARD}.*{message}"):
        read_card(tmp_path)


# -- the journal


def test_the_journal_goes_on_after_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    journal, sampled = Journal(path), replace(PLAYED, temperature=1.0)
    journal.add(PLAYED, SPECS[0], Outcome(True, 12, 12))
    journal.add(sampled, SPECS[0], Outcome(False, 220, 220))
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[0][:40])
    again = Journal(path)
    assert again.of(PLAYED) == {SPECS[0]: Outcome(True, 12, 12)}
    assert again.of(sampled) == {SPECS[0]: Outcome(False, 220, 220)}
    again.add(PLAYED, SPECS[1], Outcome(False, 220, 220))
    assert list(Journal(path).of(PLAYED)) == SPECS[:2]


def test_a_damaged_journal_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    Journal(path).add(PLAYED, SPECS[0], Outcome(True, 12, 12))
    path.write_text(path.read_text().replace('"success": true', '"success": "yes"'))
    with pytest.raises(UserError, match=r"episodes.jsonl, line 1.*success.*true or false"):
        Journal(path)


# -- other ways of playing


def test_the_protocols_value_is_tried_first() -> None:
    protocol = replace(PLAYED, horizon=280, images="as-is", temperature=0.0)
    found = alternatives(PLAYED, protocol, ["own", "other"], ["openvla"])
    assert [one.words for one in found["horizon"]] == ["horizon 280 instead of 220"]
    assert found["horizon"][0].is_protocols
    assert found["image pipeline"][0].settings.images == "as-is"
    assert found["image pipeline"][0].is_protocols
    assert found["image pipeline"][1].words == "frames turned by 180 degrees instead of upright"
    assert [one.settings.statistics for one in found["action statistics"]] == ["other"]
    assert [one.settings.gripper for one in found["gripper"]] == ["as-is"]
    assert found["sampling"] == found["policy kind"] == found["settle steps"] == []
    every = [one.settings for others in found.values() for one in others]
    assert PLAYED not in every
    assert len(set(every)) == len(every)


def test_statistics_of_one_name_and_other_numbers_are_not_mixed_up() -> None:
    own, other = ({"action": {"q01": [-one], "q99": [one]}} for one in (1.0, 2.0))
    description = Checkpoint(
        mini_model(),
        {"own": own, "same": own},
        action_dim=1,
        extra={"norm_stats": {"own": other, "same": own, "pretraining": other}},
    )
    assert other_statistics(description) == {"own in config.json": other, "pretraining": other}


# -- trials


def outcomes(successes: str) -> dict[EpisodeSpec, Outcome]:
    return {spec: Outcome(bit == "1", 1, 1) for spec, bit in zip(SPECS, successes, strict=True)}


def test_a_trial_counts_episodes_that_come_out_otherwise() -> None:
    trial = compared_episodes("x", outcomes("000010"), outcomes("111100"), more=True)
    assert (trial.gained, trial.lost) == (4, 1)
    assert trial.chance == pytest.approx(6 / 32)
    assert not trial.is_clear
    other = compared_episodes("x", outcomes("000010"), outcomes("111100"), more=False)
    assert (other.gained, other.lost) == (1, 4)
    assert "1 -> 4 of the same 6 episodes" in str(trial)


def test_trials_take_as_many_of_each_task() -> None:
    assert evenly(SPECS, 4) == SPECS[:4]
    assert [spec.task for spec in evenly(SPECS[::2] + SPECS[1::2], 4)] == ["a", "b", "a", "b"]
    assert len(evenly(SPECS, 100)) == len(SPECS)


def test_a_figure_lies_within_wilsons_interval_or_not() -> None:
    rate = Rate(400, 500)  # 0.763 to 0.833
    assert within(0.77, rate)
    assert not within(0.847, rate)
    assert not within(0.75, rate)


# -- scenes


def test_scenes_differ_by_place_or_by_colour() -> None:
    scene = Scene((0.5, 0.1, 0.2), (100.0, 90.0, 80.0))
    longer = replace(scene, places=(*scene.places, 7.0))  # velocities follow
    assert compared("libero-goal", scene, longer).is_same
    moved = replace(scene, places=(0.5, 0.1, 0.202))
    assert not compared("libero-goal", scene, moved).is_same
    darker = replace(scene, colour=(98.0, 88.0, 78.0))
    assert not compared("libero-goal", scene, darker).is_same
    assert not compared("libero-goal", scene, replace(scene, places=(0.5,))).is_same


def test_recorded_scenes_are_of_suites_that_are_known() -> None:
    scenes = recorded()
    assert {"libero-spatial", "libero-object", "libero-goal"} <= scenes.keys() <= TASKS.keys()
    assert check_scene("toy") is None


@pytest.mark.sim
@pytest.mark.slow
def test_a_scene_of_this_machine_is_the_recorded_one() -> None:
    pytest.importorskip("libero", reason="needs the extra vla-rl[libero]")
    check = check_scene("libero-object:3")
    assert check is not None
    assert check.is_same, str(check)
    falling = settled_scene("libero-object", settle_steps=0)
    assert not compared("libero-object", recorded()["libero-object"], falling).is_same
