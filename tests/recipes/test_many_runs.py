"""Many runs of one study: what is complete is left alone, what fails does not take the others with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from builders.inline_pool import InlinePool
from builders.practised_runs import TASKS, practised
from vla_rl.algorithms.learner import TrainingDivergedError
from vla_rl.cli import main
from vla_rl.config import TrainConfig, UserError
from vla_rl.policies.openvla.exporting import save_policy
from vla_rl.recipes import many_runs, ranks
from vla_rl.recipes.many_runs import finish_all, shared_out, train_all, train_one
from vla_rl.recipes.presets import preset
from vla_rl.recipes.seeds import seeded, train_seeds
from vla_rl.training.scratch import scratch_policy

TOY = preset("toy")
SHORT = replace(
    TOY,
    env=replace(TOY.env, num_envs=8, num_workers=1),
    schedule=replace(TOY.schedule, iterations=1, episodes=0),
    rollout=replace(TOY.rollout, turns=4),
    ppo=replace(TOY.ppo, minibatch=16),
    eval=replace(TOY.eval, episodes_per_task=1),
)


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_runs, "ChildPool", InlinePool)


def in_folder(root: Path, name: str, config: TrainConfig = SHORT) -> TrainConfig:
    return replace(config, run=replace(config.run, root=str(root), name=name))


def test_one_that_fails_does_not_end_the_others_and_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(name: str) -> None:
        if name == "b":
            raise UserError("b wants more memory")
        (tmp_path / name).mkdir()

    jobs = {name: (work, (name,)) for name in "abc"}
    with pytest.raises(UserError, match=r"1 of 5 runs are not complete: b: b wants more memory\."):
        finish_all(jobs, lambda label: (tmp_path / label).is_dir(), 2, of=5)
    assert (tmp_path / "c").is_dir()
    assert "b: b wants more memory" in "".join(capsys.readouterr())
    # what an earlier sitting left is no excuse for an error
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="1 of 1 runs"):
        finish_all({"b": jobs["b"]}, lambda _: True, 1, of=1)


def test_what_the_runs_begin_with_is_looked_at_once_before_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def started_from(checkpoint: str = "", model: str = "") -> dict[str, TrainConfig]:
        reward = replace(SHORT.reward, kind="process", model=model) if model else SHORT.reward
        policy = replace(SHORT.policy, checkpoint=checkpoint)
        config = replace(SHORT, policy=policy, reward=reward)
        return {f"seed {s}": in_folder(tmp_path, f"seed-{s}", config) for s in range(2)}

    nothing = tmp_path / "nothing"
    with pytest.raises(UserError, match="nothing does not exist"):
        train_all(started_from(checkpoint=str(nothing)), 1)
    with pytest.raises(UserError, match="nothing is no process reward model"):
        train_all(started_from(model=str(nothing)), 1)
    policy = tmp_path / "policy"
    save_policy(scratch_policy(SHORT), policy)
    weights = policy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        train_all(started_from(checkpoint=str(policy)), 1)
    assert "runs" not in "".join(capsys.readouterr())
    assert not list(tmp_path.glob("seed-*"))


def test_complete_runs_are_left_alone_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, Path | None]] = []

    def train(config: TrainConfig, resume: Path | None = None) -> None:
        begun.append((config.run.name, resume))
        eval_folder = Path(config.run.root) / config.run.name / "eval"
        eval_folder.mkdir(parents=True, exist_ok=True)
        for mode in many_runs.MODES:
            (eval_folder / f"after-{mode}.json").write_text("{}")

    monkeypatch.setattr(ranks, "train_on_ranks", train)
    practised(tmp_path, "whole", config=SHORT)
    stopped = practised(tmp_path, "stopped", config=SHORT, wins={"before": 1})
    train_all({name: in_folder(tmp_path, name) for name in ("whole", "stopped", "new")}, 1)
    assert begun == [("stopped", stopped), ("new", None)]


def test_a_folder_with_another_run_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_runs, "train_one", None)
    practised(tmp_path, "a", config=SHORT)
    changed = replace(SHORT, rollout=replace(SHORT.rollout, turns=5))
    with pytest.raises(UserError, match=r"a was trained with rollout\.turns 4 \(now 5\)"):
        train_all({"new": in_folder(tmp_path, "new"), "a": in_folder(tmp_path, "a", changed)}, 1)
    # another share of the machine changes nothing in what is learned
    train_all({"a": shared_out(in_folder(tmp_path, "a"), 1, cores=2)}, 1)


@pytest.mark.parametrize("algorithm", ["grpo", "tpo"])
def test_a_study_of_an_algorithm_without_critic_goes_on(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = preset(f"toy-{algorithm}")
    small = {"group_size": 2, "groups": 1, "extra_groups": 0}
    config = in_folder(
        tmp_path,
        "study",
        replace(
            base,
            env=replace(base.env, num_envs=2),
            schedule=replace(base.schedule, iterations=1, episodes=0),
            grpo=replace(base.grpo, **small),
            tpo=replace(base.tpo, **small),
            eval=replace(base.eval, episodes_per_task=1, videos=0),
        ),
    )
    train_seeds(config, 1)
    monkeypatch.setattr(many_runs, "train_one", None)
    train_seeds(config, 1)
    with pytest.raises(UserError, match=rf"{algorithm}\.groups 1 \(now 2\)"):
        train_seeds(
            replace(
                config,
                grpo=replace(config.grpo, groups=2),
                tpo=replace(config.tpo, groups=2),
            ),
            1,
        )


def test_a_run_that_diverges_at_once_counts_as_what_it_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(config: TrainConfig, resume: Path | None = None) -> None:
        practised(tmp_path, config.run.name, config=config, wins={"before": 1}, success=[0.2])
        raise TrainingDivergedError("the loss is not finite")

    monkeypatch.setattr(ranks, "train_on_ranks", diverge)
    config = in_folder(tmp_path, "a")
    train_one(config)
    run = tmp_path / "a"
    assert "not finite" in (run / many_runs.DIVERGED).read_text()
    assert many_runs.is_complete(run)
    after = json.loads((run / "eval" / "after-sampled.json").read_text())
    assert after["overall"]["successes"] == len(TASKS)


# -- several seeds


def test_several_seeds_are_trained_compared_and_added_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = in_folder(tmp_path, "study")
    table = train_seeds(config, 2)
    assert table == tmp_path / "study" / "comparison.md"
    assert "| study | 2 |" in table.read_text()
    curves = [(tmp_path / "study" / f"seed-{s}" / "metrics.jsonl").read_text() for s in (0, 1)]
    assert curves[0] != curves[1]

    trained: list[str] = []
    original = train_one

    def count(run: TrainConfig) -> None:
        trained.append(run.run.name)
        original(run)

    monkeypatch.setattr(many_runs, "train_one", count)
    assert "| study | 3 |" in train_seeds(config, 3).read_text()
    assert trained == ["seed-2"]
    with pytest.raises(UserError, match="several seeds want a folder of runs"):
        train_seeds(in_folder(tmp_path / "study", "seed-0"), 2)


def test_each_seed_may_have_a_policy_of_its_own_and_a_share_of_the_machine() -> None:
    policy = replace(TOY.policy, checkpoint="runs/seed-{seed}/sft/policy")
    config = replace(TOY, policy=policy, env=replace(TOY.env, num_workers=0))
    run = seeded(in_folder(Path("runs"), "x", config), 7, jobs=1)
    assert (run.policy.checkpoint, run.run.seed) == ("runs/seed-7/sft/policy", 7)
    assert (run.run.root, run.run.name) == ("runs/x", "seed-7")
    assert (run.env.num_workers, run.run.threads) == (0, 0)
    assert seeded(config, 7, jobs=2).env.num_workers >= 1
    chosen = replace(config, env=replace(config.env, num_workers=5))
    assert seeded(chosen, 7, jobs=2).env.num_workers == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seeds 0", "--seeds: expected a whole number from 1 to 1000, got '0'"),
        ("--seeds two", "expected a whole number from 1 to 1000, got 'two'"),
        ("--seeds 3 --jobs -1", "--jobs needs a value: how many runs at a time"),
        ("--seeds 3 --jobs 2.5", "--jobs: expected a whole number"),
        ("--seeds", "--seeds needs a value"),
        ("--jobs 2", "--jobs has no effect"),
        ("--seeds 2 --resume runs/x", "with --seeds the same command does"),
        ("--seeds 2 --seeds 3", "there is no option --seeds"),
    ],
)
def test_what_cannot_be_asked_of_several_seeds_is_said(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "toy", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_ranks_of_a_launcher_do_not_each_start_all_seeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {**launched, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "toy", "--seeds", "2"]) == 2
    assert "one of 2 ranks of a launcher" in capsys.readouterr().err
