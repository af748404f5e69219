"""Evaluation results say apart how the policy did where it has practised, and elsewhere."""

from __future__ import annotations

import pytest

from vla_rl.cli.tables import success_table
from vla_rl.config import EnvConfig, EvalConfig
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.evaluation.practised import apart, practised_in
from vla_rl.evaluation.result import evaluation_result, summary
from vla_rl.types import EpisodeSpec

ENV = EnvConfig(suite="mt1:reach", initial_states=50, held_out=10)


def record(state: int, success: bool, task: str = "reach") -> EpisodeRecord:
    return EpisodeRecord(EpisodeSpec(task, state), success, 3, 15, [[0] * 8] * 3)


def test_the_training_split_of_the_trained_tasks_is_practised():
    practised = practised_in(ENV)
    assert practised(EpisodeSpec("reach", 0))
    assert practised(EpisodeSpec("reach", 39))
    assert not practised(EpisodeSpec("reach", 40))  # held out
    assert not practised(EpisodeSpec("push", 0))  # another task


def test_both_parts_are_counted_and_add_up_to_the_whole():
    records = [record(i, success=i < 40) for i in range(50)]
    practice = apart(records, ENV, summary)
    assert practice["known"]
    assert (practice["practised"]["successes"], practice["practised"]["episodes"]) == (40, 40)
    assert (practice["held_out"]["successes"], practice["held_out"]["episodes"]) == (0, 10)


def test_held_out_alone_leaves_the_other_part_empty():
    practice = apart([record(45, True)], ENV, summary)
    assert practice["practised"] is None
    assert practice["held_out"]["episodes"] == 1


def test_an_unknown_origin_is_said_to_be_unknown():
    assert apart([record(0, True)], None, summary) == {
        "known": False,
        "practised": None,
        "held_out": None,
    }


@pytest.mark.parametrize(
    ("trained_in", "said"),
    [
        (ENV, ["practised    20/20   100.0%", "held out     0/10     0.0%"]),
        (None, ["Nothing says which of these initial states the policy was trained on."]),
    ],
)
def test_the_table_of_eval_shows_them_apart(trained_in: EnvConfig | None, said: list[str]):
    records = [record(i, success=i < 40) for i in range(20, 50)]
    config = EvalConfig(split="all", episodes_per_task=50)
    result = evaluation_result(records, ENV, config, 0, 1.0)
    result["practice"] = apart(records, trained_in, summary)
    table = success_table(result)
    assert all(line in table for line in said), table
