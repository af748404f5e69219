"""Practice whose episodes start at states of demonstrations, and success by where they start."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.same_runs import lines, require_same
from builders.started_demos import TOY, toy_demos
from vla_rl.cli import main
from vla_rl.config import EvalConfig, PolicyConfig, StartsConfig, TrainConfig, UserError
from vla_rl.config.parallel import ParallelConfig
from vla_rl.policies.registry import load_policy
from vla_rl.recipes import train_grpo
from vla_rl.recipes.evaluate import evaluate
from vla_rl.recipes.presets import preset
from vla_rl.recipes.ranks import train_on_ranks
from vla_rl.recipes.success_by_start import success_by_start
from vla_rl.recipes.train_ppo import train
from vla_rl.runtime.checkpoint import read_checkpoint
from vla_rl.training.scratch import scratch_policy

TASKS = ("reach-red", "reach-blue", "grasp-block", "place-block")
WEIGHTS = "checkpoints/iteration-000004/policy/model.safetensors"


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_demos(tmp_path_factory.mktemp("starts") / "demos")


def short(root: Path, demos: Path | str, **parts: object) -> TrainConfig:
    base = preset("toy")
    config = replace(
        base,
        env=replace(TOY, num_workers=0),
        schedule=replace(base.schedule, iterations=4, episodes=0),
        rollout=replace(base.rollout, turns=7),
        ppo=replace(base.ppo, critic_warmup=1, critic_warmup_until_explained=False, minibatch=32),
        eval=replace(base.eval, episodes_per_task=1, videos=0),
        run=replace(base.run, root=str(root), name="run", save_every=2),
        starts=StartsConfig(str(demos), share=0.6, window=2, threshold=0.5, step=0.2),
    )
    return replace(config, **parts)


@pytest.fixture(scope="module")
def run(demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(short(tmp_path_factory.mktemp("run"), demos))


def test_a_run_practises_there_and_counts_only_what_began_at_the_beginning(run: Path) -> None:
    found = lines(run)
    last = found[-1]
    assert {f"starts/fraction/{task}" for task in TASKS} <= last.keys()
    assert min(last[f"starts/fraction/{task}"] for task in TASKS) < 0.9, "nothing has moved back"
    shares = [line["starts/share"] for line in found if "starts/share" in line]
    assert 0 < np.mean(shares) < 1
    helped = sum(line["starts/episodes"] for line in found)
    assert sum(line["rollout/episodes"] for line in found) == last["total/episodes"] > helped > 0
    # success as the curriculum has it, and by it the best checkpoint: of true beginnings alone
    history = read_checkpoint(run / "checkpoints/iteration-000004").state["curriculum"]["history"]
    assert sum(map(len, history)) == last["total/episodes"] - helped
    assert all(e["initial_state"] >= 900 for e in evaluations(run, "after-greedy"))


def evaluations(run: Path, name: str) -> list[dict[str, int]]:
    return json.loads((run / f"eval/{name}.json").read_text())["episodes"]


def test_a_stopped_run_goes_on_to_the_bit(run: Path, demos: Path, tmp_path: Path) -> None:
    """Evaluated on the way, too, which puts every running episode back where it was."""
    config = short(tmp_path, demos)
    config = replace(config, run=replace(config.run, eval_every=1))
    first = train(replace(config, schedule=replace(config.schedule, iterations=2)))
    starts = read_checkpoint(first / "checkpoints/iteration-000002").state["collector"]["starts"]
    assert any(starts), "no episode that started on the way is under way: take another seed"
    second = train(config, resume=first)
    assert (run / WEIGHTS).read_bytes() == (second / WEIGHTS).read_bytes()
    wanted = ("starts/", "success/", "curriculum/", "rollout/return", "rollout/episode")
    for mine, other in zip(lines(second), lines(run), strict=True):
        assert {n: v for n, v in mine.items() if n.startswith(wanted)} == {
            n: v for n, v in other.items() if n.startswith(wanted)
        }


def test_two_ranks_run_the_run_of_one(run: Path, demos: Path, tmp_path: Path) -> None:
    config = short(tmp_path, demos, parallel=ParallelConfig(ranks=2, timeout=120.0))
    both = train_on_ranks(config)
    require_same(both, run)
    for mine, other in zip(lines(both), lines(run), strict=True):
        own = {name: value for name, value in mine.items() if name.startswith("starts/")}
        assert own == pytest.approx({n: v for n, v in other.items() if n.startswith("starts/")})


def test_groups_start_together(demos: Path, tmp_path: Path) -> None:
    base = short(tmp_path, demos, algorithm="grpo")
    config = replace(
        base,
        schedule=replace(base.schedule, iterations=1),
        grpo=replace(base.grpo, group_size=2, groups=6),
    )
    (line,) = lines(train_grpo.train(config))
    assert line["starts/episodes"] % 2 == 0
    assert 0 < line["starts/episodes"] < line["rollout/episodes"]


def test_without_demonstrations_nothing_is_said_of_them(tmp_path: Path) -> None:
    config = short(tmp_path, "")
    ended = train(replace(config, schedule=replace(config.schedule, iterations=1)))
    assert not [name for name in lines(ended)[0] if name.startswith("starts/")]


def test_a_run_keeps_to_its_demonstrations(run: Path, demos: Path, tmp_path: Path) -> None:
    again = shutil.copytree(run, tmp_path / "run")
    longer = replace(preset("toy").schedule, iterations=5, episodes=0)
    others = toy_demos(tmp_path / "others", 2)
    for dataset, said in ((others, "others"), ("", "gives none")):
        with pytest.raises(UserError, match=said):
            train(short(tmp_path, dataset, schedule=longer), resume=again)


def test_a_dataset_is_looked_at_before_anything_is_played(demos: Path, tmp_path: Path) -> None:
    for number, (env, said) in enumerate((
        (replace(TOY, initial_states=20, held_out=10), "is not for training"),
        (replace(TOY, horizon=1), "no demonstration has a state"),
    )):  # fmt: skip
        config = short(tmp_path, demos, env=env)
        with pytest.raises(UserError, match=said):
            train(replace(config, run=replace(config.run, name=str(number))))
        assert not list((tmp_path / str(number) / "eval").glob("*.json"))


@pytest.fixture(scope="module")
def policy(demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "policy"
    scratch_policy(short(folder.parent, demos)).save(folder)
    return folder


def test_success_is_measured_by_share(demos: Path, policy: Path, tmp_path: Path, capsys) -> None:
    out, videos = tmp_path / "starts.json", tmp_path / "videos"
    words = ["--suite", "toy", "--horizon", "12", "--temperature", "1", "--episodes-per-task", "3"]
    assert main(["eval", str(policy), "--starts", str(demos), "--fractions", "0", "0.8", *words,
                 "--json", str(out), "--videos", "1", "--videos-out", str(videos)]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert set(result["starts"]) == set(TASKS)
    for task, rows in result["starts"].items():
        assert [row["fraction"] for row in rows] == [0.0, 0.8]
        for row in rows:
            own = [e for e in result["episodes"]
                   if e["task"] == task and e["fraction"] == row["fraction"]]  # fmt: skip
            assert row["episodes"] == len(own) == 3
            assert row["successes"] == sum(e["success"] for e in own)
            low, high = row["interval"]
            assert low <= row["success_rate"] <= high
            line = f"{task:<11}  from {row['fraction']:4.0%}  {row['successes']:>4}/3"
            assert line in printed
            assert all((e["frame"] > 0) == (row["fraction"] > 0) for e in own)
    assert len(list(videos.glob("*.mp4"))) == 4  # each ended as it was recorded
    # at the beginning it is what an evaluation of these states says
    alone = evaluate(load(policy), EvalConfig(suite="toy", split="train", temperature=1.0), TOY)
    same = {(e["task"], e["initial_state"]): e["turns"] for e in alone["episodes"]}
    begun = [e for e in result["episodes"] if e["fraction"] == 0]
    known = [e for e in begun if (e["task"], e["initial_state"]) in same]
    assert all(same[e["task"], e["initial_state"]] == e["turns"] for e in known)


def load(folder: Path):
    return load_policy(folder, PolicyConfig(checkpoint=str(folder), device="cpu"))


def test_more_than_there_are_and_files_of_others_are_refused(
    demos: Path, policy: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="more than the 4 demonstrations"):
        success_by_start(policy, str(demos), (0.5,), EvalConfig(suite="toy", episodes_per_task=5))
    other = tmp_path / "other.json"
    other.write_text('{"precious": 1}')
    with pytest.raises(UserError, match="holds something else"):
        success_by_start(policy, str(demos), (0.5,), EvalConfig(suite="toy"), other)
    assert main(["eval", str(policy), "--fractions", "0.5"]) == 2
    assert main(["eval", str(policy), "--starts", str(demos), "--fractions", "1"]) == 2


def test_a_run_begins_where_success_was_measured_to_be_a_half(demos: Path, tmp_path: Path) -> None:
    rows = {"reach-red": [(0.0, 0.2), (0.4, 0.5), (0.8, 0.9)], "place-block": [(0.6, 0.1)]}
    measured = tmp_path / "starts.json"
    starts = {
        task: [{"fraction": f, "success_rate": s} for f, s in own] for task, own in rows.items()
    }
    measured.write_text(json.dumps({"starts": starts}))
    config = short(tmp_path, demos)
    config = replace(
        config,
        starts=replace(config.starts, measured=str(measured), window=10_000),
        schedule=replace(config.schedule, iterations=1),
    )
    (line,) = lines(train(config))
    assert {task: line[f"starts/fraction/{task}"] for task in TASKS} == {
        "reach-red": 0.4, "reach-blue": 0.9, "grasp-block": 0.9, "place-block": 0.9
    }  # fmt: skip
    measured.write_text('{"starts": {"reach-red": [{"fraction": 2.0, "success_rate": 0.1}]}}')
    with pytest.raises(UserError, match=r"fraction.*vla-rl eval POLICY --starts"):
        train(replace(config, run=replace(config.run, name="again")))
