"""Best of N as a command's recipe: results, the study of N with what each part contributes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from builders.policies import saved_policy
from vla_rl.config import (
    ConfigError,
    EnvConfig,
    EvalConfig,
    PolicyConfig,
    RewardModelConfig,
    UserError,
    tiny_model,
)
from vla_rl.config.search import BestOfConfig, ScalingConfig
from vla_rl.config.serialize import from_json
from vla_rl.envs.toy.tasks import INSTRUCTIONS
from vla_rl.policies import OpenVLAPolicy, identity_statistics
from vla_rl.recipes.learning_curve import training_curve
from vla_rl.recipes.test_time_scaling import (
    available_choosers,
    evaluate_best_of,
    reward_model_of,
    scaling_study,
)
from vla_rl.report.test_time import write_study
from vla_rl.rewards.process.tiny import TinyProcessRewardModel

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


TOY = EnvConfig(
    suite="toy:reach-red", image_size=32, action_repeat=20, action_chunk=1, horizon=3, num_envs=4,
    initial_states=6, held_out=3,
)  # fmt: skip


def toy_policy(folder: Path, seed: int) -> Path:
    words = tuple(INSTRUCTIONS.values())
    statistics, config = identity_statistics("toy", 4), PolicyConfig(device="cpu")
    policy = OpenVLAPolicy.create(tiny_model(32), words, statistics, 4, 1, config, seed)
    policy.save(folder)
    return folder


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two policies and two reward models of random weights."""
    folder = tmp_path_factory.mktemp("toys")
    for seed, name in enumerate(("one", "other")):
        toy_policy(folder / f"policy-{name}", seed)
        config = RewardModelConfig(seed=seed)
        model = TinyProcessRewardModel.create(config, tuple(INSTRUCTIONS.values()), 32)
        model.save(folder / f"reward-{name}")
    return folder


def study_in(folder: Path) -> ScalingConfig:
    return ScalingConfig(
        str(folder / "policy"),
        BestOfConfig(lookahead=2, reward_model=str(folder / "reward")),
        PROTOCOL,
        sizes=(1, 2),
        choosers=("reward-model-alone", "success", "reward-model"),
        out=str(folder / "study"),
        bootstrap=100,
        workers=1,
    )


@pytest.fixture(scope="module")
def finished(toys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three choosers, its policy and its reward model."""
    folder = tmp_path_factory.mktemp("finished")
    for kind in ("policy", "reward"):
        shutil.copytree(toys / f"{kind}-one", folder / kind)
    scaling_study(study_in(folder), TOY)
    return folder


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> ScalingConfig:
    """The finished study, with a policy and a reward model that may be exchanged."""
    return study_in(Path(shutil.copytree(finished, tmp_path / "copy")))


def files_of(study: ScalingConfig) -> dict[str, int]:
    """The evaluations of a study with the times at which they were written."""
    return {f.name: f.stat().st_mtime_ns for f in (Path(study.out) / "evaluations").iterdir()}


def test_a_study_plays_each_way_of_choosing_and_goes_on_where_it_stopped(
    study: ScalingConfig,
) -> None:
    table, before = Path(study.out) / "scaling.md", files_of(study)
    assert sorted(before) == [
        "greedy-1.json", "reward-model-2.json", "reward-model-alone-2.json", "sampled-1.json", "success-2.json",
    ]  # fmt: skip
    stored = {n: json.loads((table.parent / "evaluations" / n).read_text()) for n in before}
    ways = {n: (r["search"]["chooser"], r["search"]["success_ahead"]) for n, r in stored.items()}
    assert ways["reward-model-alone-2.json"] == ("reward-model", False)
    assert ways["reward-model-2.json"] == ("reward-model", True)
    assert ways["success-2.json"] == ("success", True)
    first = {n: stored[n]["search"]["greedy_first"] for n in ("greedy-1.json", "sampled-1.json")}
    assert first == {"greedy-1.json": True, "sampled-1.json": False}
    assert (table.parent / "scaling.png").stat().st_size > 5000
    more = replace(study, sizes=(2, 3), choosers=("success",))
    assert scaling_study(more, TOY) == table
    after = files_of(study)
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {"success-3.json"}


def exchange(kind: str) -> Callable[[ScalingConfig, Path], None]:
    """Puts another policy or reward model in the place of the first, under the same path."""

    def act(study: ScalingConfig, toys: Path) -> None:
        folder = Path(study.out).parent / kind
        shutil.rmtree(folder)
        shutil.copytree(toys / f"{kind}-other", folder)

    return act


def statistics(study: ScalingConfig, toys: Path) -> None:
    path = Path(study.checkpoint) / "dataset_statistics.json"
    path.write_text(path.read_text().replace("1.0", "0.5"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (exchange("policy"), "another policy"),
        (exchange("reward"), "another reward_model"),
        (statistics, "another policy"),
    ],
)
def test_evaluations_of_other_weights_under_the_same_path_are_not_taken_for_its_own(
    study: ScalingConfig, toys: Path, change: Callable[[ScalingConfig, Path], None], words: str
) -> None:
    change(study, toys)
    with pytest.raises(UserError, match=words):
        scaling_study(replace(study, sizes=(1, 2, 4)), TOY)
    assert not any("4" in name for name in files_of(study))


def test_the_same_weights_are_known_under_another_path(study: ScalingConfig) -> None:
    before = files_of(study)
    moved = Path(study.checkpoint).rename(Path(study.out).parent / "elsewhere")
    scaling_study(replace(study, checkpoint=str(moved)), TOY)
    assert files_of(study) == before


def test_evaluations_of_other_settings_are_refused(study: ScalingConfig) -> None:
    with pytest.raises(UserError, match=r"another search\.temperature"):
        scaling_study(replace(study, search=replace(study.search, temperature=0.5)), TOY)
    fewer = replace(study, protocol=replace(PROTOCOL, episodes_per_task=1))
    with pytest.raises(UserError, match="another episodes"):
        scaling_study(fewer, TOY)
    with pytest.raises(UserError, match=r"another environment\.action_repeat"):
        scaling_study(study, replace(TOY, action_repeat=10))
    # how the work is shared out changes nothing
    scaling_study(study, replace(TOY, num_envs=2))
    file = Path(study.out) / "evaluations" / "greedy-1.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in whole.items() if k != "origin"}))
    with pytest.raises(UserError, match="does not say of which weights it is"):
        scaling_study(study, TOY)
    for damage in ({"episodes": None}, {"cost": {"per_turn": {}}}, {"overall": {}}):
        file.write_text(json.dumps(whole | damage))
        with pytest.raises(UserError, match="greedy-1"):
            scaling_study(study, TOY)


def test_the_fingerprint_is_of_every_weight(toys: Path) -> None:
    config = PolicyConfig(device="cpu")
    policy = OpenVLAPolicy.from_checkpoint(toys / "policy-one", config)
    first = policy.fingerprint()
    assert first == OpenVLAPolicy.from_checkpoint(toys / "policy-one", config).fingerprint()
    with torch.no_grad():
        list(policy.model.parameters())[-1].view(-1)[-1] += 1
    assert policy.fingerprint() != first


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


RATES = {
    "random": (0.3, 0.3, 0.3),
    "reward-model-alone": (0.4, 0.5, 0.6),
    "success": (0.5, 0.5, 0.5),
    "reward-model": (0.5, 0.6, 0.7),
}


def written_study(folder: Path, choosers: dict[str, tuple[float, ...]]) -> Path:
    sizes = (2, 4, 8)
    results = {("greedy", 1): evaluation(0.4), ("sampled", 1): evaluation(0.3)} | {
        (name, size): evaluation(rate)
        for name, rates in choosers.items()
        for size, rate in zip(sizes, rates, strict=True)
    }
    return write_study(ScalingConfig("runs/x", sizes=(1, *sizes), out=str(folder)), results)


def test_the_headline_says_what_each_part_contributes(tmp_path: Path) -> None:
    text = written_study(tmp_path, RATES).read_text()
    head = text.split("| chosen by |")[0]
    assert (
        "succeeds in 40.0 % of the episodes greedily and in 30.0 % when its actions are sampled"
        in head
    )
    assert "With N = 8 candidates" in head
    for words in (
        "- chance: -10.0 [",
        "- the reward model alone: +20.0 [",
        "- success seen ahead alone: +10.0 [",
        "- both: +30.0 [",
        "- the reward model beside success seen ahead: +20.0 [",
        "- success seen ahead beside the reward model: +10.0 [",
    ):
        assert words in head
    stored = json.loads((tmp_path / "scaling.json").read_text())
    gains = {(p["over"], p["what"]): p["gain"] for p in stored["contributions"]}
    assert gains["greedy", "sampled"] == pytest.approx(-0.1)
    assert gains["success", "reward-model"] == pytest.approx(0.2)
    # what was not evaluated is not claimed
    alone = written_study(tmp_path, {"success": RATES["success"]}).read_text()
    assert "reward model" not in alone.split("| chosen by |")[0]


def test_the_table_has_rates_gains_costs_and_the_fit(tmp_path: Path) -> None:
    text = written_study(tmp_path, RATES).read_text()
    assert "| no choice, greedy | 1 | 40.0 % [30.0, 50.0] |  |" in text
    assert "| no choice, sampled | 1 | 30.0 % [20.0, 40.0] | -10.0 [" in text
    assert "| reward model and success seen ahead | 8 | 70.0 % [60.0, 80.0] | +30.0 [" in text
    # plain play, which is greedy, is no point of the line through sampled candidates
    assert "| reward model alone | 30.0 ±" in text
    assert "| +10.00 ±" in text
    assert "| chance | 30.0 ±" in text
    stored = json.loads((tmp_path / "scaling.json").read_text())
    assert stored["fits"]["reward-model"]["slope"] == pytest.approx(0.1)
    assert [(row["chooser"], row["best_of"]) for row in stored["rows"]][:3] == [
        ("greedy", 1), ("sampled", 1), ("random", 2),
    ]  # fmt: skip
    assert len(stored["rows"]) == 14


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
        reward_model_of(BestOfConfig(), "mt5")
    with pytest.raises(UserError, match=r"libero-goal:1 has no dense reward"):
        reward_model_of(BestOfConfig(chooser="simulator"), "libero-goal:1")
    assert reward_model_of(BestOfConfig(1), "mt5") is None  # nothing to choose
    assert reward_model_of(BestOfConfig(chooser="random"), "libero-goal") is None
    with pytest.raises(UserError, match="no process reward model"):
        reward_model_of(BestOfConfig(reward_model=str(tmp_path)), "mt5")
    without = ScalingConfig("x", choosers=("reward-model", "simulator", "random"))
    assert available_choosers(without, "libero-goal") == (["random"], None)
    with pytest.raises(UserError, match="none of the choosers"):
        available_choosers(replace(without, choosers=("reward-model-alone",)), "mt5")


def test_outside_lookahead_the_reward_model_is_alone(toys: Path) -> None:
    search = BestOfConfig(mode="refine", reward_model=str(toys / "reward-one"))
    config = ScalingConfig("x", search, choosers=("reward-model", "reward-model-alone", "random"))
    assert available_choosers(config, "toy")[0] == ["reward-model-alone", "random"]


def test_saved_searches_in_which_the_reward_model_was_a_judge() -> None:
    saved = {"best_of": 4, "chooser": "judge", "judge": "runs/reward"}
    assert from_json(BestOfConfig, saved) == BestOfConfig(4, reward_model="runs/reward")


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
