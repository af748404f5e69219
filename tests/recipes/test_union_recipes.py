"""Several suites in one run: practice, evaluation by suite, ranks, resuming, demonstrations and fine-tuning."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders.same_runs import evaluations, lines, require_same, weights
from vla_rl.cli import main
from vla_rl.cli.tables import success_table
from vla_rl.config import DemosConfig, EvalConfig, PolicyConfig, SFTConfig, TrainConfig, UserError
from vla_rl.config.parallel import ParallelConfig
from vla_rl.data.demonstrations import load_demonstrations
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.evaluation.result import evaluation_result
from vla_rl.functional import mean_of_intervals, wilson_interval
from vla_rl.planning.workload import workload
from vla_rl.recipes.demos import collect_demos
from vla_rl.recipes.evaluate import evaluate
from vla_rl.recipes.presets import preset
from vla_rl.recipes.ranks import train_on_ranks
from vla_rl.recipes.sft import fine_tune
from vla_rl.recipes.train_ppo import train
from vla_rl.types import EpisodeSpec

SUITE = "toy:reach-red + toy:grasp-block"
TASKS = ["reach-red", "grasp-block"]


def short(root: Path, **parts: Any) -> TrainConfig:
    base = preset("toy")
    config = replace(
        base,
        env=replace(base.env, suite=SUITE, num_envs=8, horizon=0, action_repeat=0),
        schedule=replace(base.schedule, iterations=2, episodes=0),
        rollout=replace(base.rollout, turns=6),
        ppo=replace(base.ppo, critic_warmup=1, critic_warmup_until_explained=False, minibatch=32),
        eval=replace(base.eval, episodes_per_task=2, videos=0),
        run=replace(base.run, root=str(root), name="run", save_every=1),
    )
    return replace(config, **parts)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_ranks(short(tmp_path_factory.mktemp("union")))


def test_a_union_is_practised_and_evaluated_by_suite(run: Path) -> None:
    result = json.loads((run / "eval" / "after-greedy.json").read_text())
    assert result["suite"] == SUITE
    assert list(result["tasks"]) == TASKS
    assert list(result["suites"]) == ["toy:reach-red", "toy:grasp-block"]
    assert {row["horizon"] for row in result["suites"].values()} == {5}
    assert {row["episodes"] for row in result["suites"].values()} == {2}
    practised = {name for line in lines(run) for name in line if name.startswith("curriculum/p/")}
    assert practised == {f"curriculum/p/{task}" for task in TASKS}


def test_two_ranks_run_the_run_of_one_process(run: Path, tmp_path: Path) -> None:
    ranks = short(tmp_path, parallel=ParallelConfig(ranks=2, timeout=120.0))
    require_same(train_on_ranks(ranks), run)


def test_a_resumed_union_equals_one_that_never_stopped_to_the_bit(
    run: Path, tmp_path: Path
) -> None:
    whole = short(tmp_path)
    half = replace(whole, schedule=replace(whole.schedule, iterations=1))
    resumed = train(half)
    for file in (resumed / "eval").glob("after-*"):
        file.unlink()
    train(whole, resume=resumed)
    mine, other = weights(resumed), weights(run)
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert evaluations(resumed) == evaluations(run)


def test_a_run_of_other_tasks_is_not_resumed(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    config["env"]["suite"] = "toy:grasp-block + toy:reach-red"
    (copy / "config.json").write_text(json.dumps(config))
    more = short(tmp_path, schedule=replace(short(tmp_path).schedule, iterations=3))
    with pytest.raises(UserError, match="suite"):
        train(replace(more, env=replace(more.env, suite=config["env"]["suite"])), resume=copy)


def test_the_command_shows_the_suites(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--episodes-per-task", "1"]) == 0
    shown = capsys.readouterr().out
    assert "toy:grasp-block  " in shown
    assert "up to 5 turns" in shown
    assert "mean of suites" in shown
    assert main(["eval", str(run), "--suite", "toy:reach-red+toy:raech-blue"]) == 2
    assert "no task 'raech-blue'" in capsys.readouterr().err


def records(counts: dict[str, tuple[int, int]]) -> list[EpisodeRecord]:
    return [
        EpisodeRecord(EpisodeSpec(task, i), i < won, 3, 60)
        for task, (won, episodes) in counts.items()
        for i in range(episodes)
    ]


def test_the_mean_of_suites_gives_each_suite_the_same_weight(tmp_path: Path) -> None:
    env = replace(short(tmp_path).env, suite="toy:reach-red,reach-blue,grasp-block+toy:place-block")
    config = EvalConfig(split="held-out", episodes_per_task=2)
    won = {"reach-red": (2, 2), "reach-blue": (2, 2), "grasp-block": (2, 2), "place-block": (0, 2)}
    result = evaluation_result(records(won), env, config, 0, 1.0)
    assert result["overall"]["success_rate"] == pytest.approx(6 / 8)
    assert result["mean_of_suites"]["success_rate"] == pytest.approx(1 / 2)
    low, high = result["mean_of_suites"]["interval"]
    each = [wilson_interval(6, 6), wilson_interval(0, 2)]
    assert low == pytest.approx(0.5 - (1 - each[0].low) / 2)
    assert high == pytest.approx(0.5 + each[1].high / 2)
    assert "50.0%" in success_table(result).splitlines()[-1]
    alone = evaluation_result(
        records({"reach-red": (1, 2)}), replace(env, suite="toy:reach-red"), config, 0, 1.0
    )
    assert "suites" not in alone
    assert alone["horizon"] == 5


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth, covered = np.array([0.1, 0.5, 0.95]), 0
    for _ in range(1000):
        won = rng.binomial(30, truth)
        intervals = [wilson_interval(int(k), 30) for k in won]
        low, high = mean_of_intervals([k / 30 for k in won], [(i.low, i.high) for i in intervals])
        covered += low <= truth.mean() <= high
    assert 0.93 < covered / 1000 < 0.98
    with pytest.raises(ValueError, match="at least one"):
        mean_of_intervals([], [])


def test_demonstrations_of_a_union_teach_a_policy_that_plays_it(tmp_path: Path) -> None:
    env = replace(short(tmp_path).env, num_workers=1)
    demos = collect_demos(
        DemosConfig(env=env, out=str(tmp_path / "demos"), episodes_per_task=2, noise=0.1)
    )
    loaded = load_demonstrations(str(demos))
    assert set(loaded.instructions) == {"reach the red disc", "grasp the yellow block"}
    policy = fine_tune(
        SFTConfig(
            dataset=str(demos), out=str(tmp_path / "sft"), action_chunk=1, epochs=1, batch_size=16,
            policy=PolicyConfig(scratch="mini", device="cpu"),
        )
    )  # fmt: skip
    statistics = json.loads((policy / "dataset_statistics.json").read_text())
    assert statistics.keys() == {"toy_hand"}
    assert statistics["toy_hand"]["num_trajectories"] == 4
    result = evaluate(tmp_path / "sft", EvalConfig(episodes_per_task=1))
    assert list(result["suites"]) == ["toy:reach-red", "toy:grasp-block"]


def test_a_dataset_that_says_what_no_suite_says_is_refused(tmp_path: Path) -> None:
    env = replace(short(tmp_path).env, num_workers=1)
    demos = collect_demos(DemosConfig(env=env, out=str(tmp_path / "demos"), episodes_per_task=1))
    file = demos / "meta" / "environment.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"suite": "toy:reach-blue+toy:place-block"})
    )
    config = SFTConfig(dataset=str(demos), out=str(tmp_path / "sft"), action_chunk=1, epochs=1)
    with pytest.raises(UserError, match="another dataset"):
        fine_tune(config)


def test_a_plan_takes_the_mean_clock_of_the_suites() -> None:
    load = workload(preset("libero-40-tiny"), 0)
    assert (load.benchmark, load.benchmarks) == ("libero", ("libero",))
    assert load.config.env.horizon == round((28 + 35 + 38 + 65) / 4)
    mixed = replace(preset("libero-40-tiny"), env=replace(preset("toy").env, suite="toy+mt5"))
    assert workload(mixed, 0).benchmarks == ("metaworld", "toy")
    assert workload(preset("toy"), 0).benchmarks == ("toy",)
