"""The table of commands against the recipes it names."""

from __future__ import annotations

import dataclasses
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from vla_rl.cli import main
from vla_rl.cli.commands import COMMANDS, Recipe
from vla_rl.cli.tables import reward_model_table

RECIPES = {name: entry.run for name, entry in COMMANDS.items() if isinstance(entry.run, Recipe)}


@pytest.mark.parametrize("name", RECIPES)
def test_a_command_calls_a_function_that_takes_its_options(name: str) -> None:
    recipe = RECIPES[name]
    function = getattr(import_module(f"vla_rl.{recipe.module}"), recipe.function)
    if recipe.config.__module__ in ("vla_rl.cli.arguments", "vla_rl.cli.door_arguments"):
        fields = {entry.name: None for entry in dataclasses.fields(recipe.config)}
        inspect.signature(function).bind(**fields)
    else:
        (parameter, *others) = inspect.signature(function).parameters.values()
        assert parameter.annotation == recipe.config.__name__
        assert all(other.default is not other.empty for other in others)


def measured(auroc: float | None) -> dict[str, Any]:
    return {
        "turns": 20,
        "positives": 8,
        "episodes": 4,
        "successes": 2,
        "auroc": auroc,
        "auroc_interval": None if auroc is None else [0.81, 0.95],
        "average_precision": auroc,
        "chance": 0.4,
        "calibration_error": 0.0312,
        "ranking": {"last": {"accuracy": None, "pairs": 0}},
        "progress_correlation": {"mean": 0.5, "episodes": 2},
        "progress": {"mean_absolute_error": 0.12, "rank_correlation": None},
        "tasks": {"drawer-open": {"turns": 20, "positives": 8, "auroc": auroc}},
    }


def test_a_reward_models_table_says_what_could_not_be_measured() -> None:
    result = {"seen_tasks": measured(0.912), "held_out_tasks": None, "mismatched": None}
    text = reward_model_table(result)
    assert "AUROC                           0.912  [0.810, 0.950]" in text
    assert "AUROC of drawer-open  0.912  8/20 positive" in text
    assert "success above failure, at end   -  0 pairs" in text
    assert "held-out tasks" not in text
    assert "mismatched" not in text
    result |= {"held_out_tasks": measured(None), "mismatched": {"auroc": 0.97}}
    text = reward_model_table(result)
    assert "held-out tasks: 20 turns" in text
    assert "AUROC                           -  [-, -]" in text
    assert text.endswith("mismatched instructions: AUROC 0.970")


@pytest.mark.parametrize("suite", ["toy:zz", "mt10+mt10", "libero-object:0-200"])
def test_settings_that_are_printed_name_tasks_that_exist(
    suite: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "toy", "--env.suite", suite, "--print-config"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert suite.partition(":")[2] in error


def test_a_plan_is_of_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path)]) == 2
    assert f"--costs {tmp_path}" in capsys.readouterr().err
