"""A third simulator is an entry in a dictionary: nothing of Meta-World's or LIBERO's is assumed of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from own_simulator import OWN, OwnEnv

from vla_rl.config import (
    ConfigError,
    Conventions,
    EnvConfig,
    EvalConfig,
    ProcessRewardConfig,
    TrainConfig,
    UserError,
)
from vla_rl.config.search import BestOfConfig
from vla_rl.diagnostics import machine
from vla_rl.envs.benchmark import Benchmark
from vla_rl.envs.defaults import benchmark_env, conventions, evaluation_env, evaluation_protocol
from vla_rl.envs.registry import BENCHMARKS, benchmark, no_dense_reward
from vla_rl.envs.vector.make import make_vector_env
from vla_rl.recipes.test_time_scaling import reward_model_of
from vla_rl.rewards.process.robot_signals import robot_signals
from vla_rl.rewards.simulator_reward import dense_reward_max
from vla_rl.runtime.provenance import versions
from vla_rl.types import EpisodeSpec

DOCS = Path(__file__).parents[2] / "docs"
SOURCES = Path(__file__).parents[2] / "src" / "vla_rl"


PLAYED = """
from dataclasses import replace
import numpy as np
from vla_rl import EpisodeSpec, collect_demos, laptop_env, make_vector_env
from vla_rl.config import DemosConfig
from vla_rl.data.lerobot import LeRobotReader

if __name__ == "__main__":
    solved = []
    config = replace(laptop_env("slider"), num_envs=2, num_workers=1)
    with make_vector_env(config) as envs:
        envs.post_reset([0, 1], [EpisodeSpec("slide", 0), EpisodeSpec("slide", 1)])
        envs.wait([0, 1])
        for _ in range(8):
            alive = [i for i in (0, 1) if i not in solved]
            if alive:
                envs.post_step(alive, np.stack([np.full((2, 2), 1 - 2 * i, np.float32) for i in alive]))
                solved += [i for i, done in zip(alive, envs.wait(alive).terminated) if done]
    demos = collect_demos(DemosConfig(env=laptop_env("slider"), out="demos", episodes_per_task=1))
    print("demonstrations", len(LeRobotReader(demos).episodes), end=", ")
    print("solved by initial states", sorted(solved))
"""


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "own", OWN)


@pytest.mark.usefixtures("own")
def test_it_is_played_by_its_own_numbers() -> None:
    env = benchmark_env("own")
    assert (benchmark("own"), env.image_size, env.horizon) == (OWN, 16, 7)
    protocol = evaluation_protocol(EvalConfig(), env)
    assert (protocol.split, protocol.episodes_per_task) == ("train", 10)
    assert conventions("own") == Conventions(unnorm_key="own")
    trained = replace(env, action_chunk=2, action_repeat=2)
    # another suite has its own length, another benchmark's run says nothing
    assert evaluation_env("own-long", trained, 16, False, 2).horizon == 40 // 4
    assert evaluation_env("own", EnvConfig(), 16, False, 1) == replace(env, action_chunk=1)
    assert evaluation_env("mt5", trained, 64, False, 2) == EnvConfig()
    with pytest.raises(ConfigError, match=r"own or own-long of Own"):
        benchmark("mine")


@pytest.mark.usefixtures("own")
def test_what_it_has_not_is_said_and_who_has_is_named() -> None:
    assert str(no_dense_reward("own")).count("Meta-World or Toy") == 1
    config = TrainConfig(env=benchmark_env("own"), reward=ProcessRewardConfig(kind="simulator"))
    with pytest.raises(UserError, match="own has no dense reward"):
        dense_reward_max(config)
    with pytest.raises(UserError, match="own has no dense reward"):
        reward_model_of(BestOfConfig(chooser="simulator"), "own")
    with pytest.raises(ConfigError, match="at most 12 on Own"):
        make_vector_env(EnvConfig(suite="own"))


@pytest.mark.usefixtures("own")
def test_its_robot_and_its_packages_are_known() -> None:
    layout = robot_signals("own_robot")
    assert (layout.name, layout.proprio_size, layout.action_size) == ("own_robot", 4, 4)
    assert "own-distribution" in versions(OWN.packages)
    checks = dict(machine.simulator_checks())
    assert set(checks) == {"metaworld", "libero", "maniskill", "own"}
    assert "optional" in checks["own"]().found


@pytest.mark.usefixtures("own")
def test_simulator_processes_find_it_by_the_name_of_its_function() -> None:
    """They import the module that the function is in; the entry is this process's alone."""
    with make_vector_env(replace(benchmark_env("own"), num_envs=2, num_workers=1)) as envs:
        envs.post_reset([0, 1], [EpisodeSpec("chain", 0), EpisodeSpec("chain", 3)])
        envs.wait([0, 1])
        envs.post_step([0, 1], np.ones((2, 2, 4), np.float32))
        envs.wait([0, 1])
        images = envs.restore([0], envs.snapshot([1])).images
        twin = OwnEnv(benchmark_env("own"))
        twin.reset(EpisodeSpec("chain", 4))
        np.testing.assert_array_equal(images[0], twin.render())


def test_only_a_simulators_own_folder_knows_its_name() -> None:
    """Outside envs/ and the presets no code asks which benchmark it has."""
    suspicious = (
        'startswith("libero")',
        "is_libero",
        'startswith("mt',
        '== "toy"',
        "is METAWORLD",
        "is LIBERO",
    )
    allowed = {"config/env.py"}  # LIBERO's stored states, checked before anything is imported
    found = [
        str(path.relative_to(SOURCES))
        for path in sorted(SOURCES.rglob("*.py"))
        if "envs" not in path.relative_to(SOURCES).parts
        and any(word in path.read_text(encoding="utf-8") for word in suspicious)
    ]
    assert set(found) <= allowed


def test_the_simulator_in_the_documentation_keeps_its_promises(tmp_path: Path) -> None:
    """As it stands there, in a program of its own: checked, and played in a simulator process."""
    page = (DOCS / "environments.md").read_text(encoding="utf-8")
    module, program = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "slider.py").write_text(module)
    (tmp_path / "program.py").write_text(f"{program}\n{PLAYED}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(SOURCES.parent), str(tmp_path)])}
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "demonstrations 1, solved by initial states [0, 1]\n"


def test_every_field_of_a_benchmark_is_in_the_documentation() -> None:
    table = (DOCS / "environments.md").read_text(encoding="utf-8").partition("| field of")[2]
    for field in fields(Benchmark):
        assert re.search(rf"`{field.name}[`(]", table), field.name
