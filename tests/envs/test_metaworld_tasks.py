"""Names, instructions, suites and numbered initial states: no simulator needed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from vla_rl.config import ConfigError, EnvConfig
from vla_rl.envs.defaults import laptop_env
from vla_rl.envs.metaworld.tasks import (
    INSTRUCTIONS,
    SUITES,
    initial_state_generator,
    suite_tasks,
    task_name,
)
from vla_rl.recipes.presets import preset


def test_every_task_has_an_instruction_of_its_own():
    assert len(INSTRUCTIONS) == 50
    assert len(set(INSTRUCTIONS.values())) == 50
    for text in INSTRUCTIONS.values():
        assert text == text.strip().lower()
        assert 2 <= len(text.split()) <= 10


def test_suites():
    assert suite_tasks("mt1:drawer-open") == ("drawer-open",)
    assert suite_tasks("mt1:drawer-open-v3") == ("drawer-open",)
    assert suite_tasks("mt5")[0] == "drawer-open"
    assert [len(suite_tasks(suite)) for suite in ("mt5", "mt10", "mt50")] == [5, 10, 50]
    assert suite_tasks("mt10-hard") == ("reach", "push", "pick-place", "peg-insert-side")
    assert set(SUITES["mt10-hard"]) < set(SUITES["mt10"])


def test_the_hard_suite_is_seen_and_timed_as_it_needs() -> None:
    env = laptop_env("mt10-hard")
    assert (env.image_size, env.horizon) == (96, 20)
    assert preset("metaworld-mt10-hard").env == env
    assert laptop_env("mt10") == EnvConfig(suite="mt10")
    assert set(SUITES["mt5"]) < set(SUITES["mt10"]) | {"button-press-topdown"} < set(SUITES["mt50"])


@pytest.mark.parametrize(
    ("suite", "hint"),
    [("mt11", "'mt1"), ("mt1:draw-open", "'drawer-open'"), ("MT10", "mt10"), ("mt1:", "Known")],
)
def test_unknown_suite_names_the_nearest(suite: str, hint: str):
    with pytest.raises(ConfigError, match="unknown") as error:
        suite_tasks(suite)
    assert hint in str(error.value)


def test_task_name_drops_the_version_only():
    assert task_name("peg-insert-side-v3") == "peg-insert-side"
    with pytest.raises(ConfigError):
        task_name("drawer-open-v2")


def test_initial_state_numbers_mean_the_same_for_ever():
    """Changing these changes what every published number was measured on."""
    first = initial_state_generator("drawer-open", 0).uniform(size=3)
    np.testing.assert_allclose(
        first, [0.3308236899443646, 0.16587696425517373, 0.40934355668914124], rtol=0, atol=1e-15
    )
    again = initial_state_generator("drawer-open", 7).uniform(size=3)
    np.testing.assert_allclose(
        again, [0.46430485285252066, 0.7612572315466878, 0.6420908763597306], rtol=0, atol=1e-15
    )


def test_initial_states_are_spread_out_and_independent_of_each_other():
    draws = np.array([initial_state_generator("reach", i).uniform(size=2) for i in range(400)])
    assert len(np.unique(draws[:, 0])) == 400
    np.testing.assert_allclose(draws.mean(0), 0.5, atol=0.06)  # 4 standard errors
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.2
    assert not np.array_equal(draws[0], initial_state_generator("push", 0).uniform(size=2))


def test_negative_initial_state_is_refused():
    with pytest.raises(ConfigError, match="numbered from 0"):
        initial_state_generator("reach", -1)


@pytest.mark.parametrize(
    "module",
    [
        "metaworld.tasks",
        "metaworld.env",
        "vector.process",
        "vector.serial",
        "vector.worker",
        "known_answers",
    ],
)
def test_importing_environments_loads_neither_torch_nor_a_simulator(module: str):
    program = (
        f"import sys, vla_rl.envs.{module}; "
        "print([m for m in ('torch', 'transformers', 'mujoco', 'metaworld') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
