"""Best of N as a command's recipe: results, the study of N, its images and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from builders.policies import saved_policy
from vla_rl.config import ConfigError, EnvConfig, EvalConfig, UserError, tiny_model
from vla_rl.config.search import BestOfConfig, ScalingConfig
from vla_rl.recipes.learning_curve import training_curve
from vla_rl.recipes.test_time_scaling import (
    evaluate_best_of,
    reward_model_of,
    scaling_study,
    write_study,
)

ENV = EnvConfig(
    suite="mt1:drawer-close", image_size=32, horizon=3, num_envs=4, initial_states=6, held_out=3
)
PROTOCOL = EvalConfig(episodes_per_task=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_policy(tmp_path_factory.mktemp("policy"), ["close a drawer"], model=tiny_model(32))


@pytest.mark.sim
def test_the_result_says_how_it_was_found_and_what_it_cost(
    checkpoint: Path, tmp_path: Path
) -> None:
    search = BestOfConfig(3, "lookahead", "simulator", lookahead=2)
    result = evaluate_best_of(checkpoint, PROTOCOL, search, ENV, tmp_path / "r.json", workers=1)
    assert json.loads((tmp_path / "r.json").read_text()) == result
    assert [(e["task"], e["initial_state"]) for e in result["episodes"]] == [
        ("drawer-close", 3),
        ("drawer-close", 4),
    ]
    assert result["search"]["best_of"] == 3
    assert result["search"]["chooser"] == "simulator"
    total, per_turn = result["cost"]["total"], result["cost"]["per_turn"]
    assert total["turns"] == sum(e["turns"] for e in result["episodes"])
    assert per_turn["simulator_turns"] == total["simulator_turns"] / total["turns"] > 3
    assert per_turn["seconds"] > 0
    low, high = result["overall"]["interval"]
    assert 0 <= low <= result["overall"]["success_rate"] <= high <= 1


@pytest.mark.sim
def test_a_study_is_continued_and_not_mixed_with_another(checkpoint: Path, tmp_path: Path) -> None:
    config = ScalingConfig(
        str(checkpoint),
        BestOfConfig(lookahead=2, reward_model=""),
        PROTOCOL,
        sizes=(1, 2),
        choosers=("judge", "random", "success"),
        out=str(tmp_path / "study"),
        bootstrap=100,
        workers=1,
    )
    table = scaling_study(config, ENV)
    evaluations = tmp_path / "study" / "evaluations"
    names = sorted(file.name for file in evaluations.iterdir())
    assert names == ["plain-1.json", "random-2.json", "success-2.json"]  # no reward model was given
    text = table.read_text()
    assert "| chance | 2 |" in text
    assert "success seen ahead" in text
    assert (tmp_path / "study" / "scaling.png").stat().st_size > 5000
    before = {file.name: file.stat().st_mtime_ns for file in evaluations.iterdir()}
    assert scaling_study(replace(config, sizes=(1, 2, 3), choosers=("success",)), ENV) == table
    after = {file.name: file.stat().st_mtime_ns for file in evaluations.iterdir()}
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {"success-3.json"}
    other = replace(config, search=replace(config.search, temperature=0.5))
    with pytest.raises(UserError, match=r"another search\.temperature"):
        scaling_study(other, ENV)
    fewer = replace(config, protocol=replace(PROTOCOL, episodes_per_task=1))
    with pytest.raises(UserError, match="another episodes"):
        scaling_study(fewer, ENV)
    with pytest.raises(UserError, match="none of the choosers"):
        scaling_study(replace(config, choosers=("judge",)), ENV)


def evaluation(rate: float, episodes: int = 50) -> dict:
    successes = round(rate * episodes)
    return {
        "overall": {
            "successes": successes,
            "episodes": episodes,
            "interval": [rate - 0.1, min(1, rate + 0.1)],
            "mean_turns": 9.0,
        },
        "episodes": [
            {"task": "push", "initial_state": i, "success": i < successes} for i in range(episodes)
        ][::-1],
        "cost": {
            "per_turn": dict.fromkeys(
                ("prefills", "action_chunks", "simulator_turns", "scored", "seconds"), 2.0
            )
        },
    }


def test_the_table_has_rates_gains_costs_and_the_fit(tmp_path: Path) -> None:
    sizes = (1, 2, 4, 8)
    rates = {"random": (0.4, 0.4, 0.4, 0.4), "judge": (0.4, 0.5, 0.6, 0.7)}
    results = {
        (name, size): evaluation(rate)
        for name, values in rates.items()
        for size, rate in zip(sizes, values, strict=True)
    }
    config = ScalingConfig("runs/x", sizes=sizes, out=str(tmp_path))
    text = write_study(config, list(rates), sizes, results).read_text()  # type: ignore[arg-type]
    assert "| process reward model | 8 | 70.0 % [60.0, 80.0] | +30.0 [" in text
    assert "| process reward model | 40.0 ±" in text
    assert "| +10.00 ±" in text
    assert "| chance | 40.0 ±" in text
    assert "| +0.00 ±" in text
    stored = json.loads((tmp_path / "scaling.json").read_text())
    assert stored["fits"]["judge"]["slope"] == pytest.approx(0.1)
    assert len(stored["rows"]) == 8


def write_evaluation(folder: Path, name: str, rate: float) -> None:
    (folder / "eval").mkdir(exist_ok=True)
    (folder / "eval" / f"{name}.json").write_text(json.dumps(evaluation(rate)))


def test_success_against_steps_of_training(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    lines = [json.dumps({"iteration": i, "rollout/turns": 100.0}) for i in range(1, 31)]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    write_evaluation(run, "before-greedy", 0.3)
    with pytest.raises(UserError, match=r"run\.eval_every"):
        training_curve(run, tmp_path / "steps.png")
    for iteration, rate in ((10, 0.5), (20, 0.6)):
        write_evaluation(run, f"iteration-{iteration:06d}", rate)
    write_evaluation(run, "after-greedy", 0.8)
    image = training_curve(run, tmp_path / "steps.png")
    assert image.stat().st_size > 5000
    from vla_rl.report.figures.scaling import training_rates
    from vla_rl.report.run_data import read_run

    rates = training_rates(read_run(run))
    assert {step: rate.rate for step, rate in rates.items()} == {0: 0.3, 10: 0.5, 20: 0.6, 30: 0.8}


def test_choosers_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--reward-model runs/reward"):
        reward_model_of(BestOfConfig(chooser="judge"), "mt5")
    with pytest.raises(UserError, match=r"libero-goal:1 has no dense reward"):
        reward_model_of(BestOfConfig(chooser="simulator"), "libero-goal:1")
    assert reward_model_of(BestOfConfig(1, chooser="judge"), "mt5") is None  # nothing to judge
    assert reward_model_of(BestOfConfig(chooser="random"), "libero-goal") is None
    with pytest.raises(UserError, match="judge"):
        reward_model_of(BestOfConfig(chooser="judge", reward_model=str(tmp_path)), "mt5")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"best_of": 0}, r"best_of: expected a whole number from 1 to 65536, got 0"),
        ({"lookahead": 2, "execute": 3}, "cannot be kept of a lookahead of 2"),
        ({"temperature": 0.0}, r"temperature: expected a number from 0\.01 to 100, got 0\.0"),
    ],
)
def test_settings_that_make_no_sense(fields: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BestOfConfig(**fields)


def test_sizes_that_make_no_sense() -> None:
    for sizes in ((), (0, 1), (2, 2)):
        with pytest.raises(ConfigError, match="sizes"):
            ScalingConfig("x", sizes=sizes)
