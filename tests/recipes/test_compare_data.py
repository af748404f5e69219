"""Practice against more demonstrations, and the recipe built up: planned, done, and not done again, on the toy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from builders.inline_pool import InlinePool
from vla_rl.cli import main
from vla_rl.config import AblationConfig, ConfigError, UserError
from vla_rl.config.comparison import CompareDataConfig
from vla_rl.recipes import build_up as building
from vla_rl.recipes import compare_data as recipe
from vla_rl.recipes import many_runs
from vla_rl.recipes.build_up import build_up, planned
from vla_rl.recipes.compare_data import compare_data, planned_practice, planned_tuning
from vla_rl.recipes.presets import PRESETS, preset
from vla_rl.report.comparison.build_up import Row, write_build_up
from vla_rl.report.comparison.held_out import Outcome
from vla_rl.report.run_data import Mode

TASKS = 4


@pytest.fixture(scope="module")
def patched():
    """The toy's preset in small, and no other processes."""
    base = preset("toy")
    small = replace(
        base,
        env=replace(base.env, num_envs=8),
        rollout=replace(base.rollout, turns=4),
        ppo=replace(base.ppo, minibatch=16),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "toy", small)
        patch.setattr(many_runs, "ChildPool", InlinePool)
        yield


@pytest.fixture(scope="module")
def study(patched, tmp_path_factory: pytest.TempPathFactory) -> CompareDataConfig:
    """A whole study, the smallest there is."""
    config = CompareDataConfig(
        preset="toy",
        out=str(tmp_path_factory.mktemp("study") / "out"),
        sizes=(1, 2),
        practise=(1,),
        seeds=1,
        sft_episodes=4,
        start_episodes=2,
        iterations=1,
        episodes_per_task=2,
        cores=1,
    )
    compare_data(config)
    return config


def test_fine_tunings_see_the_same_work_and_practice_the_same_turns() -> None:
    config = CompareDataConfig(seeds=2, jobs=2)
    base = preset(config.preset)
    tunings = [planned_tuning(config, base, size, 1, start=False).config for size in config.sizes]
    assert [t.episodes_per_task * t.epochs for t in tunings] == [600] * 5
    assert {t.dataset for t in tunings} == {"runs/compare-data/demos"}
    starts = [planned_tuning(config, base, size, 1, start=True).config for size in config.practise]
    assert [t.episodes_per_task * t.epochs for t in starts] == [140] * 3
    runs = [planned_practice(config, base, size, 1) for size in config.practise]
    for run, size in zip(runs, config.practise, strict=True):
        assert run.policy.checkpoint == f"runs/compare-data/start-{size}-seed-1/policy"
        assert (run.run.seed, run.schedule.iterations, run.schedule.episodes) == (1, 60, 0)
    assert len({(run.env.num_envs, run.rollout.turns, run.eval) for run in runs}) == 1


def test_the_table_states_what_everything_cost(study: CompareDataConfig) -> None:
    out = Path(study.out)
    values = json.loads((out / "data.json").read_text())
    rows = {(row["kind"], row["demonstrations"]): row for row in values["rows"]}
    assert list(rows) == [("fine-tuning", 1), ("fine-tuning", 2), ("start", 1), ("practice", 1)]
    # what was fine-tuned on says how many frames it had; an action is held
    for size in (1, 2):
        found = json.loads((out / f"sft-{size}-seed-0/policy/dataset_statistics.json").read_text())
        assert found["demos"]["num_trajectories"] == size * TASKS
        frames = found["demos"]["num_transitions"]
        steps = rows["fine-tuning", size]["demonstrated_steps"]
        assert steps == frames * preset("toy").env.action_repeat
    metrics = json.loads((out / "practice-1-seed-0" / "metrics.jsonl").read_text())
    assert rows["practice", 1]["practised_steps"] == metrics["rollout/simulator_steps"]
    # practice starts from where its own fine-tuning ended
    before = json.loads((out / "practice-1-seed-0/eval/before-greedy.json").read_text())
    after = json.loads((out / "start-1-seed-0/eval/after-greedy.json").read_text())
    assert before["episodes"] == after["episodes"]
    assert rows["practice", 1]["gain_by_practice"]["greedy"]["pairs"] == 2 * TASKS
    assert rows["practice", 1]["to_most_demonstrations"]["sampled"]["pairs"] == 2 * TASKS
    assert "One seed alone" in (out / "data.md").read_text()
    assert (out / "data.png").stat().st_size > 5000


def test_what_is_complete_is_not_done_again(
    study: CompareDataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((recipe, "tune_one"), (recipe, "collect_demos"), (many_runs, "train_one")):
        monkeypatch.setattr(module, name, None)
    before = (Path(study.out) / "data.md").read_text()
    assert compare_data(study).read_text() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sft_episodes": 6}, r"sft-1-seed-0 was fine-tuned with epochs 4 \(now 6\)"),
        ({"start_episodes": 3}, r"start-1-seed-0 was fine-tuned with epochs 2 \(now 3\)"),
        ({"iterations": 2}, r"practice-1-seed-0 was trained with schedule\.iterations 1 \(now 2\)"),
        ({"sizes": (1, 3), "practise": (1,)}, "holds 2 demonstrations of each of 4 tasks, expected 3"),
    ],
)  # fmt: skip
def test_other_settings_are_refused(
    study: CompareDataConfig, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        compare_data(replace(study, **changed))


def test_evaluations_on_other_states_are_not_compared(study: CompareDataConfig) -> None:
    file = Path(study.out) / "sft-2-seed-0" / "eval" / "after-greedy.json"
    whole = file.read_text()
    evaluation = json.loads(whole)
    evaluation["horizon"] += 1
    file.write_text(json.dumps(evaluation))
    try:
        with pytest.raises(
            UserError, match=r"cannot be compared\. greedy after practice: .* horizon"
        ):
            compare_data(study)
    finally:
        file.write_text(whole)


def test_what_makes_no_study_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="practise: 3 not among the sizes"):
        CompareDataConfig(sizes=(1, 2), practise=(3,))
    for sizes in ((), (1, 1)):
        with pytest.raises(ConfigError, match="sizes: expected different numbers"):
            CompareDataConfig(sizes=sizes, practise=(1,))
    with pytest.raises(ConfigError, match="sizes"):
        CompareDataConfig(sizes=(0, 1), practise=(1,))
    assert main(["compare", "data", "libero-goal-openvla-7b"]) == 2
    assert "which has seen its demonstrations" in capsys.readouterr().err


# -- building up


def test_rows_without_a_part_of_the_recipe_are_left_out(
    patched, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = AblationConfig(checkpoint="p", reward_model="runs/reward", build_up=True, seeds=2)
    plan = planned(whole)
    assert plan.rows == ("sft", "reward", "ppo", "process-reward", "curriculum", "test-time")
    assert {cell for cell, _ in plan.runs} == {"success-alone", "no-curriculum", "full"}
    kinds = {cell: run.reward.chosen_kind for (cell, seed), run in plan.runs.items() if seed == 0}
    assert kinds == {"success-alone": "success", "no-curriculum": "process", "full": "process"}
    modes = {cell: run.curriculum.mode for (cell, seed), run in plan.runs.items() if seed == 0}
    assert (modes["success-alone"], modes["no-curriculum"]) == ("uniform", "uniform")
    assert modes["full"] == preset("metaworld-mt5").curriculum.mode
    search = plan.searches["end", 1]
    assert (search.checkpoint, search.choosers) == (
        "runs/ablation/full-seed-1",
        ("reward-model-alone",),
    )
    assert (search.search.reward_model, search.protocol.seed) == ("runs/reward", 1)

    bare = planned(replace(whole, reward_model="", reward_kind="success"))
    assert bare.rows == ("sft", "ppo", "curriculum")
    assert "reward, process-reward, test-time" in " ".join("".join(capsys.readouterr()).split())
    assert planned(replace(whole, preset="toy", reward_model="")).rows == (
        "sft", "reward", "ppo", "process-reward", "test-time",
    )  # fmt: skip


def test_the_recipe_is_built_up(
    study: CompareDataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Path(study.out) / "sft-1-seed-0" / "policy"
    config = AblationConfig(
        preset="toy", checkpoint=str(policy), build_up=True, best_of=2, seeds=1, iterations=1,
        episodes_per_task=1, cores=1, out=str(tmp_path / "out"),
    )  # fmt: skip
    table = build_up(config).read_text()
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[0] for line in lines] == [
        "| fine-tuning", "| + reward model, no practice", "| + PPO for success alone", "| + process reward",
        "| + best of 2 at test time",
    ]  # fmt: skip
    assert [line.split(" | ")[1] for line in lines] == ["68.2", "72.1", "", "75.8", "82.3"]
    assert "(+ PPO for success alone)" in lines[3]
    assert "(+ process reward)" in lines[4]
    values = json.loads((tmp_path / "out" / "build-up.json").read_text())
    assert [row["stands_on"] for row in values["rows"]] == [
        "",
        "sft",
        "sft",
        "ppo",
        "process-reward",
    ]
    assert (tmp_path / "out" / "build-up.png").stat().st_size > 5000

    # done again: nothing is trained or played
    monkeypatch.setattr(many_runs, "train_one", None)
    monkeypatch.setattr("vla_rl.recipes.test_time_scaling.evaluate_search", None)
    assert build_up(config).read_text() == table
    # but another policy under the same name is noticed
    other = Path(study.out) / "sft-2-seed-0" / "policy" / "model.safetensors"
    weights = (policy / "model.safetensors").read_bytes()
    (policy / "model.safetensors").write_bytes(other.read_bytes())
    try:
        with pytest.raises(UserError, match=r"was evaluated with another policy"):
            build_up(config)
    finally:
        (policy / "model.safetensors").write_bytes(weights)


def test_building_up_needs_a_policy_and_something_to_choose_from() -> None:
    with pytest.raises(UserError, match="--build-up: needs the policy"):
        build_up(AblationConfig(build_up=True))
    with pytest.raises(ConfigError, match="best_of: expected at least 2"):
        AblationConfig(build_up=True, best_of=1)
    assert set(building.CELLS) < {*building.STANDS_ON}


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "tpo"])
def test_what_is_built_up_is_called_by_its_algorithm(algorithm: str, tmp_path: Path) -> None:
    config = AblationConfig(
        preset="toy" if algorithm == "ppo" else f"toy-{algorithm}", checkpoint="p", build_up=True
    )
    one = (Outcome(None, 0, {("reach-red", 0): True}),)
    outcomes: dict[Mode, tuple[Outcome, ...]] = {"greedy": one, "sampled": one}
    rows = [Row("sft", "sft", outcomes, 0), Row("ppo", "sft", outcomes, 0)]
    table = write_build_up(rows, tmp_path, building._notes(config, planned(config)))
    assert f"| + {algorithm.upper()} for success alone |" in table.read_text()
