"""The page on scaling: its tables are what the code computes today, and its job files are whole."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import plan_tables

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def test_the_tables_of_the_page_are_the_codes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert plan_tables.with_tables(page) == page, f"write it again: {plan_tables.WRITE}"


def test_every_table_says_that_it_is_computed() -> None:
    text = plan_tables.tables()
    assert text.count("**Computed, not measured.**") == 3
    assert "no GPU measured" in text
    assert sum(line.startswith("| 1,024 |") for line in text.splitlines()) == 3


def test_a_page_without_marks_keeps_its_text() -> None:
    marked = f"before {plan_tables.BEGIN} old {plan_tables.END} after"
    changed = plan_tables.with_tables(marked)
    assert changed.startswith("before ")
    assert changed.endswith(" after")
    assert " old " not in changed


def test_scripts_are_bash() -> None:
    scripts = blocks("bash")
    assert any("#SBATCH" in script for script in scripts)
    for script in scripts:
        done = subprocess.run(
            ["bash", "-n"], input=script, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_job_files_are_yaml() -> None:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, which vla-rl[lora] brings")
    rayjob, sky = (yaml.safe_load(text) for text in blocks("yaml"))
    assert rayjob["kind"] == "RayJob"
    spec = rayjob["spec"]["rayClusterSpec"]
    gpus = [
        int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    ]
    assert sum(gpus) == 14 + 2  # the learners and actors that its command asks for
    assert sky["num_nodes"] * 8 == 16
    assert "--parallel.shards 16" in sky["run"]
