"""Ablations: each cell differs in one thing, results are paired, and what is done is not done again."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest

from vla_rl.config import AblationConfig, ConfigError, TrainConfig, UserError
from vla_rl.config.ablation import CELLS
from vla_rl.config.serialize import differences
from vla_rl.recipes import ablate as recipe
from vla_rl.recipes import many_runs
from vla_rl.recipes.ablate import ablate, cell_config, compare, planned_run, write_results
from vla_rl.recipes.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_cell_differs_from_the_whole_in_one_thing(name: str) -> None:
    base = preset(name)
    base = replace(
        base,
        reward=replace(base.reward, kind="auto", model="runs/reward", form="additive"),
        curriculum=replace(base.curriculum, mode="frontier"),
    )
    expected = {
        "full": set(),
        "no-reward": {"reward.model"},
        "no-curriculum": {"curriculum.mode"},
        "temperature": {"rollout.temperature"},
        "no-warmup": set() if base.compares_groups else {"ppo.critic_warmup"},
        "learning-rate": {"optimizer.learning_rate"},
    }
    assert set(expected) == set(CELLS) == set(recipe.PAPER)
    for cell, fields in expected.items():
        changed = differences(base, cell_config(base, cell))
        assert set(changed) - {"ppo.critic_warmup_until_explained"} == fields, cell
    assert (
        cell_config(base, "learning-rate").optimizer.learning_rate
        == 10 * base.optimizer.learning_rate
    )
    # the paper's comparison, from whichever side the recipe stands on
    temperatures = {base.rollout.temperature, cell_config(base, "temperature").rollout.temperature}
    assert temperatures in ({0.7, 1.0}, {1.0, 1.5}, {1.0, 1.6})


def test_runs_of_a_seed_start_alike_and_have_places_of_their_own() -> None:
    config = AblationConfig(
        checkpoint="policy", reward_model="runs/reward", parallel=2, cores=3, out="o"
    )
    runs = [planned_run(config, cell, seed) for cell in CELLS for seed in range(3)]
    assert len({run.run.name for run in runs}) == len(runs)
    for run in runs:
        assert (run.policy.checkpoint, run.env.num_workers, run.run.threads) == ("policy", 3, 3)
    assert {run.run.seed for run in runs} == {0, 1, 2}
    timed = planned_run(replace(config, minutes=8), "full", 0)
    assert (timed.schedule.minutes, timed.schedule.iterations) == (8, 100_000)


def test_the_simulators_reward_is_taken_apart_like_a_reward_models() -> None:
    config = AblationConfig(checkpoint="policy", reward_kind="simulator")
    kinds = {c: planned_run(config, c, 0).reward.chosen_kind for c in ("full", "no-reward")}
    assert kinds == {"full": "simulator", "no-reward": "success"}
    # a preset keeps its own
    of_preset = AblationConfig(preset="toy", checkpoint="policy")
    assert planned_run(of_preset, "full", 0).reward == preset("toy").reward
    assert planned_run(of_preset, "no-reward", 0).reward.chosen_kind == "success"


def test_a_cell_without_a_difference_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No dense reward was given, and the toy's preset draws its tasks evenly."""
    monkeypatch.setattr(many_runs, "is_complete", lambda run: True)
    monkeypatch.setattr(recipe, "write_results", lambda config, runs: sorted({c for c, _ in runs}))
    config = AblationConfig(
        preset="toy", checkpoint="x", out=str(tmp_path), reward_kind="success",
        cells=("full", "no-reward", "no-curriculum", "learning-rate"),
    )  # fmt: skip
    assert ablate(config) == ["full", "learning-rate"]
    told = " ".join("".join(capsys.readouterr()).split())
    assert "as the whole recipe is without it already: no-reward, no-curriculum" in told


def pretend(run: TrainConfig, successes: list[int]) -> None:
    """Leave behind what a run leaves: ten evaluated episodes."""
    folder = Path(run.run.root) / run.run.name / "eval"
    folder.mkdir(parents=True)
    episodes = [{"success": bool(success)} for success in successes]
    for mode in ("greedy", "sampled"):
        (folder / f"after-{mode}.json").write_text(json.dumps({"episodes": episodes}))


@pytest.fixture
def finished(tmp_path: Path) -> tuple[AblationConfig, dict[tuple[str, int], TrainConfig]]:
    config = AblationConfig(
        checkpoint="policy", out=str(tmp_path), cells=("full", "no-warmup"), seeds=2
    )
    runs = {(c, s): planned_run(config, c, s) for s in range(2) for c in config.cells}
    pretend(runs["full", 0], [1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    pretend(runs["full", 1], [1, 1, 1, 1, 1, 1, 0, 0, 0, 0])
    pretend(runs["no-warmup", 0], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    pretend(runs["no-warmup", 1], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    return config, runs


def test_differences_are_paired_over_seed_and_state(finished) -> None:
    _, runs = finished
    result = compare(runs, "no-warmup", 2, "greedy")
    assert result["mean"] == pytest.approx(0.4)
    assert result["rate"].startswith("40.0 % [21.9, 61.3]")  # Wilson, 8 of 20
    # 6 of 20 pairs lose 1: -30 %, standard error sqrt(0.3 * 0.7 * 20 / 19 / 20)
    assert result["gain"] == "-30.0 [-50.6, -9.4] (-40, -20)"
    assert compare(runs, "full", 2, "greedy")["gain"] == ""


def test_the_table_stands_beside_the_papers(finished) -> None:
    config, runs = finished
    table = write_results(config, runs).read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert rows[0].split("|")[1:3] == [" ", " paper, LIBERO-Spatial "]
    assert "| full | 90.2 % | 70.0 % [48.1, 85.5] |" in table
    assert (
        "| no critic warm-up | 80.0 % | 40.0 % [21.9, 61.3] | -30.0 [-50.6, -9.4] (-40, -20) |"
        in table
    )
    assert (Path(config.out) / "ablation.png").stat().st_size > 5000


def test_complete_runs_are_not_done_again(finished, monkeypatch) -> None:
    config, _ = finished

    def never(*_):
        raise AssertionError("a complete run was started")

    monkeypatch.setattr(many_runs, "train_one", never)
    assert ablate(config).name == "table.md"


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"no cell 'no-warmupp'\. Did you mean 'no-warmup'"):
        AblationConfig(cells=("full", "no-warmupp"))
    with pytest.raises(ConfigError, match="full is what the others are compared with"):
        AblationConfig(cells=("no-warmup",))
    with pytest.raises(UserError, match="needs a policy to start from"):
        ablate(AblationConfig())
    for name in ("seeds", "iterations", "parallel"):
        with pytest.raises(ConfigError, match=f"^{name}: expected a whole number"):
            AblationConfig(**{name: 0})
    assert {field.name for field in dataclasses.fields(AblationConfig)} >= {"reward_model", "cores"}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AblationConfig:
    """The default preset in small, and a fresh policy to start from."""
    from builders.policies import saved_policy
    from vla_rl.envs.metaworld.tasks import INSTRUCTIONS

    policy = saved_policy(tmp_path / "policy", tuple(INSTRUCTIONS.values()))
    base = preset("metaworld-mt5")
    reduced = replace(
        base,
        env=replace(base.env, suite="mt1:drawer-close", num_envs=2, horizon=3),
        rollout=replace(base.rollout, turns=4),
        ppo=replace(base.ppo, minibatch=8, critic_warmup=1),
    )
    monkeypatch.setitem(PRESETS, "metaworld-mt5", reduced)
    return AblationConfig(
        checkpoint=str(policy),
        out=str(tmp_path / "out"),
        cells=("full", "no-warmup"),
        seeds=1,
        iterations=2,
        episodes_per_task=2,
        cores=1,
    )


@pytest.mark.sim
@pytest.mark.slow
def test_a_real_ablation(small: AblationConfig) -> None:
    """Two cells trained in processes of their own, from a fresh policy; then the same command has nothing to do."""
    table = ablate(small)
    warmups = {
        cell: json.loads((Path(small.out) / f"{cell}-seed-0" / "config.json").read_text())
        for cell in small.cells
    }
    assert warmups["full"]["ppo"]["critic_warmup"] == 1
    assert warmups["no-warmup"]["ppo"]["critic_warmup"] == 0
    first = table.read_text()
    assert ablate(small).read_text() == first
    with pytest.raises(
        UserError, match=r"full-seed-0 was trained with schedule\.iterations 2 \(now 3\)"
    ):
        ablate(replace(small, iterations=3))


@pytest.mark.sim
@pytest.mark.slow
def test_a_run_that_diverges_is_a_result(
    small: AblationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with the policy it had last saved, the table says so, and it is not tried again."""
    base = preset(small.preset)
    hopeless = replace(
        base,
        ppo=replace(base.ppo, critic_warmup=0),
        optimizer=replace(base.optimizer, learning_rate=1e30),
    )
    monkeypatch.setitem(PRESETS, small.preset, hopeless)
    config = replace(small, cells=("full",), iterations=4)
    table = ablate(config)
    assert "| full (1 of 1 runs diverged) |" in table.read_text()
    run = Path(small.out) / "full-seed-0"
    assert "not finite" in (run / many_runs.DIVERGED).read_text()
    evaluation = json.loads((run / "eval" / "after-greedy.json").read_text())
    assert evaluation["checkpoint"] == small.checkpoint, "nothing had been saved yet"
    assert len(evaluation["episodes"]) == 2
    monkeypatch.setattr(many_runs, "train_one", None)
    assert ablate(config) == table
