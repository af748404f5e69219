"""The training program as a user runs it: on the real simulator, killed, resumed, interrupted, damaged."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from builders.policies import saved_policy
from vla_rl.config import EnvConfig, EvalConfig, TrainConfig, UserError
from vla_rl.envs.metaworld.tasks import INSTRUCTIONS
from vla_rl.recipes.evaluate import evaluate_checkpoint
from vla_rl.recipes.presets import preset
from vla_rl.recipes.train_ppo import train
from vla_rl.runtime.locate import locate_policy

pytestmark = pytest.mark.sim
TASKS = ("drawer-close", "button-press-topdown")


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "policy"
    return saved_policy(folder, [INSTRUCTIONS[task] for task in TASKS])


def small(
    policy_folder: Path, root: Path, iterations: int = 4, turns: int = 6, **ppo
) -> TrainConfig:
    config = preset("metaworld-mt5")
    return replace(
        config,
        env=replace(config.env, suite="mt1:drawer-close", num_envs=4, num_workers=2, horizon=4),
        policy=replace(config.policy, checkpoint=str(policy_folder), device="cpu"),
        schedule=replace(config.schedule, iterations=iterations),
        rollout=replace(config.rollout, turns=turns),
        ppo=replace(config.ppo, **{"minibatch": 8, "critic_warmup": 1, "kl_coef": 0.1, **ppo}),
        eval=replace(config.eval, episodes_per_task=2),
        run=replace(config.run, name="run", root=str(root), save_every=2, trackers="none", keep=5),
    )


def arguments(policy_folder: Path, root: Path, name: str, iterations: int) -> list[str]:
    return [
        sys.executable, "-m", "vla_rl", "train", "metaworld-mt5",
        "--policy.checkpoint", str(policy_folder), "--policy.device", "cpu",
        "--env.suite", "mt1:drawer-close", "--env.num-envs", "4", "--env.num-workers", "2", "--env.horizon", "4",
        "--schedule.iterations", str(iterations), "--rollout.turns", "6", "--ppo.minibatch", "8",
        "--ppo.critic-warmup", "1", "--ppo.kl-coef", "0.1", "--eval.episodes-per-task", "2", "--eval.videos", "0",
        "--run.name", name, "--run.root", str(root), "--run.save-every", "2", "--run.trackers", "none",
    ]  # fmt: skip


def lines(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_iteration(run: Path, iteration: int, process: subprocess.Popen) -> None:
    while len(lines(run)) < iteration:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def final_tensors(run: Path, iteration: int) -> dict[str, np.ndarray]:
    folder = run / "checkpoints" / f"iteration-{iteration:06d}"
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{f.relative_to(folder)}:{k}": v for f in files for k, v in load_file(f).items()}


@pytest.mark.slow
def test_killed_and_resumed_equals_never_stopped_to_the_bit(policy_folder: Path, tmp_path: Path):
    whole = train(small(policy_folder, tmp_path / "whole"))
    killed_root = tmp_path / "killed"
    command = arguments(policy_folder, killed_root, "run", 4)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    run = killed_root / "run"
    wait_for_iteration(run, 3, process)  # after the checkpoint of iteration 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    if len(lines(run)) < 4:  # else it was faster than the signal, and there is nothing to resume
        resumed = subprocess.run(
            [*command[:4], "--resume", str(run)], capture_output=True, text=True
        )
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    expected, found = final_tensors(whole, 4), final_tensors(run, 4)
    assert expected.keys() == found.keys()
    different = [name for name in expected if not np.array_equal(expected[name], found[name])]
    assert not different
    losses = [
        [line.get(k) for k in ("losses/policy", "losses/value", "rollout/turns")]
        for line in lines(whole)
    ]
    again = [
        [line.get(k) for k in ("losses/policy", "losses/value", "rollout/turns")]
        for line in lines(run)
    ]
    assert losses == again
    assert any(line[0] for line in losses), (
        "the policy never learned: the comparison would say nothing"
    )
    results = [
        json.loads((r / "eval" / "after-sampled.json").read_text())["episodes"]
        for r in (whole, run)
    ]
    assert results[0] == results[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_says_how_to_go_on(policy_folder: Path, tmp_path: Path, number: int):
    command = arguments(policy_folder, tmp_path, "run", 500)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    run = tmp_path / "run"
    wait_for_iteration(run, 1, process)
    os.kill(process.pid, number)
    output, _ = process.communicate()
    assert (
        process.returncode == 128 + number
    )  # so that `vla-rl train ... && vla-rl eval ...` stops as well
    assert f"--resume {run}" in output
    assert "Traceback" not in output
    done = lines(run)[-1]["iteration"]
    assert (
        run / "checkpoints" / f"iteration-{done:06d}" / "policy" / "model.safetensors"
    ).is_file()


def test_policy_of_another_image_size_or_chunk_is_refused(policy_folder: Path, tmp_path: Path):
    config = small(policy_folder, tmp_path)
    with pytest.raises(UserError, match=r"env\.image_size"):
        train(replace(config, env=replace(config.env, image_size=32)))
    with pytest.raises(UserError, match=r"env\.action_chunk"):
        train(
            replace(
                config, env=replace(config.env, action_chunk=1), run=replace(config.run, name="b")
            )
        )


def test_training_without_a_policy_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(UserError, match="vla-rl sft"):
        train(replace(TrainConfig(), run=replace(TrainConfig().run, root=str(tmp_path))))


def test_divergence_keeps_the_last_good_checkpoint_and_names_it(
    policy_folder: Path, tmp_path: Path, monkeypatch
):
    from vla_rl.algorithms.ppo import PPO

    config = small(policy_folder, tmp_path)
    learn = PPO.update

    def poisoned(self, batch, iteration, progress):
        if iteration == 2:
            batch = replace(batch, advantages=batch.advantages * float("nan"))
        return learn(self, batch, iteration, progress)

    monkeypatch.setattr(PPO, "update", poisoned)
    with pytest.raises(UserError, match=r"not finite.*last good checkpoint is .*iteration-000002"):
        train(config)
    weights = final_tensors(tmp_path / "run", 2)
    assert all(np.isfinite(w).all() for w in weights.values() if w.dtype.kind == "f")


def test_divergence_in_the_last_step_of_a_run_saves_nothing(policy_folder: Path, tmp_path: Path):
    config = small(policy_folder, tmp_path, iterations=1, critic_warmup=0, minibatch=1000, epochs=1)
    config = replace(config, optimizer=replace(config.optimizer, learning_rate=1e30))
    with pytest.raises(UserError, match=r"iteration 0: .*not finite.*no checkpoint had been saved"):
        train(config)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_one_environment_and_a_horizon_of_one_turn(policy_folder: Path, tmp_path: Path):
    config = small(policy_folder, tmp_path, iterations=1, critic_warmup=0, turns=9, kl_coef=0.0)
    run = train(replace(config, env=replace(config.env, num_envs=1, horizon=1)))
    (line,) = lines(run)
    assert line["rollout/episodes"] == 9
    assert line["rollout/episode_length"] == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_evaluation_is_the_same_for_any_number_of_workers(
    policy_folder: Path, tmp_path: Path, temperature: float
):
    env = EnvConfig(suite="mt1:button-press-topdown", num_envs=6, horizon=3)
    config = EvalConfig(episodes_per_task=8, temperature=temperature, seed=5)
    results = []
    for workers in (1, 2, 3):
        path = tmp_path / f"{workers}.json"
        evaluate_checkpoint(policy_folder, config, env, path, workers=workers)
        results.append(json.loads(path.read_text()))
    assert results[0]["episodes"] == results[1]["episodes"] == results[2]["episodes"]
    played = [(e["task"], e["initial_state"]) for e in results[0]["episodes"]]
    assert len(set(played)) == len(played) == 8
    assert results[0]["initial_states"] == list(range(900, 908))
    assert results[0]["overall"]["episodes"] == 8
    assert results[0]["sampling"]["mode"] == ("sampled" if temperature else "greedy")


def test_more_episodes_than_initial_states_is_refused(policy_folder: Path):
    with pytest.raises(UserError, match="100 initial states"):
        evaluate_checkpoint(
            policy_folder, EvalConfig(episodes_per_task=101), EnvConfig(suite="mt1:drawer-close")
        )


def test_checkpoint_that_is_none_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        locate_policy(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no policy"):
        locate_policy(tmp_path)


@pytest.mark.slow
def test_videos_replay_the_evaluated_episodes(policy_folder: Path, tmp_path: Path):
    from vla_rl.runtime.video import read_video

    env = EnvConfig(suite="mt1:drawer-close", num_envs=2, horizon=2)
    videos = tmp_path / "videos"
    evaluate_checkpoint(policy_folder, EvalConfig(episodes_per_task=2, videos=1), env, None, videos)
    (entry,) = json.loads((videos / "index.json").read_text())
    frames = read_video(videos / entry["file"])
    assert len(frames) >= 10
    assert frames[0].shape == (256, 256, 3)
    assert np.abs(frames[0].astype(int) - frames[-9].astype(int)).max() > 20, (
        "nothing moves in the video"
    )
