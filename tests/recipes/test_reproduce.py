"""`vla-rl reproduce` on small weights: a figure of their own, reached; and missed, with the cause."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.published_policy import (
    PER_TASK,
    SUITE,
    demonstrate,
    fine_tuned,
    look,
    other_copy,
    publish,
)
from vla_rl.cli import main
from vla_rl.config import mini_model
from vla_rl.config.reproduce import PlayedAs
from vla_rl.envs.registry import benchmark
from vla_rl.policies import OpenVLAPolicy, identity_statistics


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has learned nothing, in the frames' size."""
    folder = tmp_path_factory.mktemp("fresh") / "policy"
    suite = benchmark(SUITE)
    statistics = identity_statistics("toy_hand", suite.action_dim)
    words = suite.instructions(SUITE)
    OpenVLAPolicy.create(mini_model(), words, statistics, suite.action_dim, 1).save(folder)
    return folder


def test_a_figure_is_measured_published_and_reached(fresh: Path, tmp_path: Path) -> None:
    first = look(fresh, tmp_path / "first", publish=True, episodes_per_task=2)
    card = json.loads((fresh / "reproduce.json").read_text())
    assert (card["suite"], card["episodes"], card["episodes_per_task"]) == (SUITE, 4, 2)
    assert card["success_rate"] == first["evaluation"]["success_rate"]
    again = look(fresh, tmp_path / "again")
    assert again["within"]
    assert again["deviations"] == {}
    assert again["evaluation"] == first["evaluation"]
    assert "it lies within the interval" in again["text"]
    assert "true rate" in again["text"]
    assert (tmp_path / "again" / "report.txt").read_text() == again["text"]
    assert json.loads((tmp_path / "again" / "report.json").read_text())["within"]

    # what was played is not played again, and more is played on top
    journal = tmp_path / "again" / "episodes.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join(lines[:3]) + "\n" + lines[3][:30])
    assert look(fresh, tmp_path / "again")["evaluation"] == first["evaluation"]
    assert sorted(journal.read_text().splitlines()) == sorted(lines)
    more = look(fresh, tmp_path / "again", episodes_per_task=3)
    assert more["evaluation"]["episodes"] == 6
    assert len(journal.read_text().splitlines()) == 6


def test_mistakes_are_one_line(fresh: Path, tmp_path: Path, capsys) -> None:
    out = ["--out", str(tmp_path / "out"), "--checkpoint", str(fresh)]
    told = {
        ("reproduce", "toy"): "no checkpoint is published for 'toy'",
        ("reproduce", "toi", *out): "unknown suite 'toi'",
        ("reproduce", "toy", *out, "--demos", "nowhere"): "there are no demonstrations at nowhere",
        (
            "reproduce",
            "toy",
            *out,
            "--preset",
            "tox",
        ): "there is no preset 'tox'. Did you mean 'toy'?",
        ("reproduce", "toy", *out, "--publish", "--published", "80"): "leave published out",
        ("reproduce", "toy", *out, "--published", "101"): "published",
        ("reproduce", "toy", "--checkpont", "x"): "Did you mean '--checkpoint'?",
    }
    for words, message in told.items():
        assert main(list(words)) == 2
        said = capsys.readouterr().err.strip()
        assert message in said
        assert "\n" not in said


def test_a_folder_holds_one_reproduction(fresh: Path, tmp_path: Path, capsys) -> None:
    look(fresh, tmp_path / "out", published=50.0, episodes_per_task=1)
    words = ["reproduce", SUITE, "--checkpoint", str(fresh), "--out", str(tmp_path / "out")]
    assert main([*words, "--published", "60"]) == 2
    assert "holds a reproduction with --published 50.0" in capsys.readouterr().err


# -- causes


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demonstrate(tmp_path_factory.mktemp("demonstrations"))


@pytest.fixture(scope="module")
def trained(demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that plays well, with its card."""
    root = tmp_path_factory.mktemp("trained")
    policy = fine_tuned(root, demos)
    rate = publish(policy, root / "published")["evaluation"]["success_rate"]
    assert rate > 0.7
    return policy


Case = Callable[[Path, Path], tuple[Path, dict[str, Any]]]
CASES: dict[str, Case] = {
    "horizon": lambda policy, _: (policy, {"played": PlayedAs(horizon=1)}),
    "image pipeline": lambda policy, _: (policy, {"played": PlayedAs(turned=True)}),
    "action statistics": lambda policy, root: (
        other_copy(policy, root / "copy", unnorm_key="another_robot"),
        {},
    ),
    "sampling": lambda policy, _: (policy, {"played": PlayedAs(temperature=3.0)}),
    "policy kind": lambda policy, _: (policy, {"played": PlayedAs(kind="openvla-oft")}),
}


@pytest.mark.slow
@pytest.mark.parametrize("cause", CASES)
def test_the_cause_is_named(cause: str, trained: Path, demos: Path, tmp_path: Path) -> None:
    checkpoint, changes = CASES[cause](trained, tmp_path)
    found = look(checkpoint, tmp_path / "out", demos=demos, **changes)
    assert not found["within"]
    named = [one["cause"] for one in found["diagnosis"]["findings"] if one["status"] == "named"]
    assert named == [cause]
    assert found["diagnosis"]["corrected"]["within"]
    assert f"Cause: {cause}." in found["text"]


@pytest.mark.slow
def test_turned_frames_are_found_without_demonstrations(trained: Path, tmp_path: Path) -> None:
    found = look(trained, tmp_path / "out", played=PlayedAs(turned=True))
    statuses = {one["cause"]: one["status"] for one in found["diagnosis"]["findings"]}
    assert statuses["image pipeline"] == "named"
    assert "named" not in {s for cause, s in statuses.items() if cause != "image pipeline"}


@pytest.mark.slow
def test_the_right_copy_is_reached_and_practised(trained: Path, tmp_path: Path) -> None:
    found = look(trained, tmp_path / "out", practice_iterations=1)
    assert found["within"]
    assert found["evaluation"]["episodes"] == 2 * PER_TASK
    assert "diagnosis" not in found
    practice = found["practice"]
    assert (practice["preset"], practice["iterations"]) == ("toy", 1)
    assert practice["hours"] > 0
    assert "Practice: 1 iteration(s) of toy" in found["text"]
