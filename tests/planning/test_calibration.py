"""Costs from a run: known calls give known costs, and a real run's folder can be planned with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vla_rl.config import TrainConfig, UserError
from vla_rl.planning.arrangements import Machine
from vla_rl.planning.calibration import calibrated, fitted, steady_rows
from vla_rl.planning.costs import Costs, Line, packaged
from vla_rl.planning.plan import plan
from vla_rl.recipes.presets import preset
from vla_rl.recipes.train_ppo import train
from vla_rl.runtime.call_times import CallTimes
from vla_rl.runtime.metrics import read_metrics
from vla_rl.training.costs import CALLS


def calls(line: Line, sizes: list[int]) -> CallTimes:
    made = CallTimes()
    for size in sizes:
        made.add(size, line.at(size))
    return made


@pytest.mark.parametrize("line", [Line(0.3, 0.02), Line(0.0, 0.5), Line(0.7, 0.0)])
def test_a_line_is_found_again_from_calls_of_different_sizes(line: Line) -> None:
    found = fitted(calls(line, [16, 16, 16, 12, 9, 4, 1]))
    assert found.fixed == pytest.approx(line.fixed, abs=1e-9)
    assert found.each == pytest.approx(line.each, abs=1e-9)


def test_calls_of_one_size_take_the_proportion_they_are_given() -> None:
    found = fitted(calls(Line(0.3, 0.02), [16] * 9), like=Line(3.0, 0.1))
    assert found.at(16) == pytest.approx(0.3 + 0.02 * 16)
    assert found.fixed / found.each == pytest.approx(30)


def test_the_less_sizes_vary_the_more_the_known_proportion_counts() -> None:
    """The mean call takes what it took, whatever the proportion."""
    known, true = Line(1.0, 0.0), Line(0.0, 0.1)
    found = [fitted(calls(true, [16] * 20 + [size] * 4), like=known) for size in (15, 12, 1)]
    slopes = [line.each for line in found]
    assert slopes == sorted(slopes)
    assert slopes[0] < 0.02 < 0.08 < slopes[-1] <= 0.1
    for line, size in zip(found, (15, 12, 1), strict=True):
        mean = (16 * 20 + size * 4) / 24
        assert line.at(mean) == pytest.approx(true.at(mean))


def test_a_fit_is_never_below_zero() -> None:
    made = CallTimes()
    for size, seconds in ((1, 5.0), (8, 1.0), (16, 0.5)):
        made.add(size, seconds)
    found = fitted(made)
    assert (found.each, found.fixed) == (0.0, pytest.approx(6.5 / 3))
    assert fitted(CallTimes()) == Line(0.0, 0.0)


def test_sums_come_back_from_metrics_and_rows_without_them_count_nothing() -> None:
    made = calls(Line(1.0, 2.0), [3, 5])
    rows: list[dict[str, Any]] = [
        made.metrics("a/b"),
        {"other": 1.0},
        made.metrics("a/b") | {"a/b/calls": None},
    ]
    assert CallTimes.of_metrics(rows, "a/b") == made
    taken = made.take()
    assert (taken.calls, made.calls) == (2.0, 0.0)


def toy(root: Path) -> TrainConfig:
    base = preset("toy")
    return replace(
        base,
        env=replace(base.env, num_envs=8),
        schedule=replace(base.schedule, iterations=4, episodes=0),
        rollout=replace(base.rollout, turns=6),
        ppo=replace(base.ppo, critic_warmup=1, minibatch=16),
        eval=replace(base.eval, episodes_per_task=2, videos=0),
        run=replace(base.run, root=str(root), name="run", threads=1),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(toy(tmp_path_factory.mktemp("calibration")))


@pytest.fixture(scope="module")
def costs(run: Path) -> Costs:
    return calibrated(run, packaged("laptop"))


def test_a_run_counts_every_call(run: Path) -> None:
    """Two groups of 4 decide 6 turns; 48 turns are learned from twice, in 3 minibatches of 4 shards."""
    last = read_metrics(run / "metrics.jsonl")[-1]
    counted = {
        name: last[f"{CALLS}/{name}/calls"]
        for name in ("prefill", "tokens", "image", "policy", "steps")
    }
    assert counted == {
        "prefill": 12,
        "tokens": 12,
        "image": 48,
        "policy": 2 * 3 * 4,
        "steps": 6 + 2 * 9,
    }
    assert last[f"{CALLS}/prefill/samples"] == 48
    assert last[f"{CALLS}/policy/samples"] == 2 * 48
    assert last[f"{CALLS}/step/samples"] == last["rollout/simulator_steps"]
    assert last[f"{CALLS}/reset/calls"] == last["rollout/episodes"]
    assert all(
        last[f"{CALLS}/{name}/seconds"] > 0 for name in ("prefill", "step", "critic", "steps")
    )


def test_a_runs_costs_are_those_of_its_policy_and_simulator(run: Path, costs: Costs) -> None:
    (policy,), (simulator,) = costs.policies, costs.simulators
    assert (policy.model, policy.device, policy.tokens, policy.source) == (
        "mini",
        "cpu",
        4,
        "measured",
    )
    assert (simulator.benchmark, simulator.image_size) == ("toy", 32)
    rows = steady_rows(read_metrics(run / "metrics.jsonl"), toy(run.parent))
    assert [row["iteration"] for row in rows] == [3, 4]
    passes = CallTimes.of_metrics(rows, f"{CALLS}/policy")
    assert policy.learn.at(4) == pytest.approx(passes.seconds / passes.calls)
    assert 1 <= simulator.episode_turns <= 5
    assert costs.links == ()  # a run of one process says nothing of them


def test_a_run_is_planned_with_its_own_costs(run: Path, costs: Costs) -> None:
    """No more than that: how well it predicts is measured where nobody else uses the machine."""
    machine = Machine(1, 0, 0.0, 2, None)
    made = plan(toy(run.parent), machine, costs.over(packaged("laptop")))
    assert made.assumptions == {}
    assert made.costs[-1].startswith(str(run))
    single, pair = made.rows
    assert pair.arrangement.ranks == 2
    assert 0.01 < single.times.seconds < 60


def without(run: Path, folder: Path, change: Any) -> Path:
    """A copy of the run's small files, its metrics changed line by line."""
    folder.mkdir()
    for name in ("config.json", "run.json"):
        (folder / name).write_text((run / name).read_text())
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(change(json.loads(line)))}\n" for line in lines)
    )
    return folder


def test_a_run_that_does_not_tell_its_costs_is_refused(run: Path, tmp_path: Path) -> None:
    def old(row: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in row.items() if not key.startswith(CALLS)}

    with pytest.raises(UserError, match="does not say what its calls cost"):
        calibrated(without(run, tmp_path / "old", old), packaged("laptop"))
    short = without(run, tmp_path / "short", lambda row: row)
    lines = (short / "metrics.jsonl").read_text().splitlines()
    (short / "metrics.jsonl").write_text(lines[0] + "\n")
    with pytest.raises(UserError, match=r"1 iterations, too few.*expected at least 3"):
        calibrated(short, packaged("laptop"))
    nobody = without(run, tmp_path / "nobody", lambda row: row)
    (nobody / "run.json").write_text('{"config_type": "TrainConfig", "machine": {"cpus": "two"}}')
    with pytest.raises(UserError, match="on which machine"):
        calibrated(nobody, packaged("laptop"))
    with pytest.raises(UserError, match=r"no config\.json"):
        calibrated(tmp_path, packaged("laptop"))


@pytest.mark.parametrize("value", ["fast", None, -1.0, 1e300])
def test_numbers_of_a_run_that_make_no_sense_are_refused(
    run: Path, tmp_path: Path, value: Any
) -> None:
    name = f"{CALLS}/prefill/seconds"
    odd = without(run, tmp_path / "odd", lambda row: row | {name: value})
    with pytest.raises(UserError, match="prefill"):
        calibrated(odd, packaged("laptop"))
