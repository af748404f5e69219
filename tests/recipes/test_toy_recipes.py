"""The whole product on the toy benchmark: every recipe, no simulator, no checkpoint from elsewhere."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.example_run import make_run
from builders.same_runs import lines, require_same
from vla_rl.config import (
    CurriculumConfig,
    DemosConfig,
    EvalConfig,
    PolicyConfig,
    ProcessRewardConfig,
    RewardCollectConfig,
    RewardEvalConfig,
    RewardModelConfig,
    SFTConfig,
    TrainConfig,
    UserError,
)
from vla_rl.config.agreement import AgreementConfig
from vla_rl.config.parallel import ParallelConfig
from vla_rl.config.quickstart import QuickstartConfig
from vla_rl.config.search import BestOfConfig
from vla_rl.envs.vector.make import make_vector_env
from vla_rl.envs.vector.process import ProcessVectorEnv
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.recipes.agree import agree
from vla_rl.recipes.demos import collect_demos
from vla_rl.recipes.evaluate import evaluate
from vla_rl.recipes.evaluate_reward import evaluate_reward
from vla_rl.recipes.label_trajectories import collect_trajectories
from vla_rl.recipes.loading import load_policy
from vla_rl.recipes.presets import preset
from vla_rl.recipes.quickstart import quickstart
from vla_rl.recipes.ranks import train_on_ranks
from vla_rl.recipes.sft import fine_tune
from vla_rl.recipes.test_time_scaling import evaluate_best_of
from vla_rl.recipes.train_ppo import train
from vla_rl.recipes.train_reward import train_reward
from vla_rl.rewards.trajectory_files import load_trajectories
from vla_rl.types import EpisodeSpec

ENV = replace(preset("toy").env, num_envs=8)


def short(root: Path, **parts) -> TrainConfig:
    """The preset, two updates long."""
    base = preset("toy")
    config = replace(
        base,
        env=ENV,
        schedule=replace(base.schedule, iterations=2, episodes=0),
        rollout=replace(base.rollout, turns=4),
        ppo=replace(base.ppo, minibatch=16),
        eval=replace(base.eval, episodes_per_task=1),
        run=replace(base.run, root=str(root), name="run", save_every=1),
    )
    return replace(config, **parts)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "demos"
    # the environment's chunk and horizon are the policy's; an expert's action is a frame
    return collect_demos(
        DemosConfig(env=replace(ENV, num_workers=1), out=str(out), episodes_per_task=3)
    )


@pytest.fixture(scope="module")
def policy(demos: Path) -> Path:
    config = SFTConfig(
        dataset=str(demos),
        out=str(demos.parent / "sft"),
        policy=PolicyConfig(scratch="mini", device="cpu"),
        action_chunk=1,
        epochs=2,
    )
    return fine_tune(config)


@pytest.fixture(scope="module")
def reward_model(demos: Path, policy: Path) -> str:
    play = demos.parent / "play"
    collect_trajectories(
        RewardCollectConfig(str(policy), out=str(play), episodes_per_task=4, temperature=1.0)
    )
    config = RewardModelConfig(
        datasets=(str(demos), str(play)), out=str(demos.parent / "reward"), epochs=1, device="cpu"
    )
    train_reward(config)
    return config.out


def test_demonstrations_to_a_policy_that_plays(policy: Path, tmp_path: Path) -> None:
    loaded = load_policy(policy)
    assert (loaded.action_dim, loaded.action_chunk, loaded.image_size) == (4, 1, 32)
    result = evaluate(policy, EvalConfig(episodes_per_task=1, videos=1), videos=tmp_path)
    assert result["suite"] == "toy"
    assert result["split"] == "held-out"
    assert [episode["initial_state"] for episode in result["episodes"]] == [900] * 4
    assert len(json.loads((tmp_path / "index.json").read_text())) == 4
    in_memory = evaluate(loaded, EvalConfig(episodes_per_task=1), ENV)
    assert in_memory["episodes"] == result["episodes"]
    with pytest.raises(UserError, match="does not say where it plays"):
        evaluate(loaded)


def test_a_policy_learns_from_its_own_successes(policy: Path, demos: Path, tmp_path: Path) -> None:
    play = tmp_path / "play"
    collect_trajectories(
        RewardCollectConfig(str(policy), out=str(play), episodes_per_task=8, temperature=1.0)
    )
    won = sum(t.success for t in load_trajectories(play))
    assert won > 0
    config = SFTConfig(
        dataset=str(demos),
        successes=(str(play),),
        out=str(tmp_path / "sft"),
        policy=PolicyConfig(checkpoint=str(policy), device="cpu"),
        action_chunk=1,
        epochs=1,
    )
    entry = json.loads((fine_tune(config) / "dataset_statistics.json").read_text())["demos"]
    assert entry["num_trajectories"] == 12 + won


def test_a_policy_agrees_with_its_own_log(policy: Path, demos: Path, tmp_path: Path) -> None:
    play = str(tmp_path / "play")
    collect_trajectories(
        RewardCollectConfig(str(policy), out=play, episodes_per_task=2, temperature=0.0)
    )
    own = agree(AgreementConfig(policy, play))["overall"]
    other = agree(AgreementConfig(policy, str(demos)))["overall"]
    # in other batches another token may be the likeliest by a rounding
    assert own["agrees"]["mean"] > 0.98
    assert other["agrees"]["interval"][1] < 0.9
    assert own["log_prob"]["mean"] > other["log_prob"]["mean"]


def test_a_reward_model_and_practice_with_it(
    reward_model: str, policy: Path, tmp_path: Path
) -> None:
    measured = evaluate_reward(RewardEvalConfig(reward_model, resamples=10))
    assert measured["seen_tasks"]["turns"] > 0
    base = preset("toy")
    config = short(
        tmp_path,
        policy=PolicyConfig(checkpoint=str(policy), device="cpu"),
        reward=replace(base.reward, kind="auto", model=reward_model, form="additive", limit=0.5),
    )
    run = train(config)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2]
    assert 0 < lines[-1]["reward/score_other"] < 1


@pytest.mark.parametrize("chooser", ["reward-model", "simulator"])
def test_best_of_n(chooser, reward_model: str, policy: Path) -> None:
    search = BestOfConfig(best_of=2, lookahead=2, chooser=chooser, reward_model=reward_model)
    result = evaluate_best_of(policy, EvalConfig(episodes_per_task=1), search)
    assert result["sampling"]["mode"] == "best-of"
    assert result["cost"]["total"]["simulator_turns"] > sum(e["turns"] for e in result["episodes"])


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_a_run_from_random_weights_goes_on_to_the_bit(kl: float, tmp_path: Path) -> None:
    """Also with the random weights as the reference of the KL term, which are made again from the seed, and with
    successes and outcomes that are kept."""
    base = preset("toy")
    ppo = replace(base.ppo, minibatch=16, kl_coef=kl, kept_successes=4 if kl else 0)
    curriculum = CurriculumConfig("progress", window=1, slow_window=2) if kl else base.curriculum
    whole = train(short(tmp_path / "whole", ppo=ppo, curriculum=curriculum))
    config = short(tmp_path / "parts", ppo=ppo, curriculum=curriculum)
    first = train(replace(config, schedule=replace(config.schedule, iterations=1)))
    second = train(config, resume=first)
    weights = "checkpoints/iteration-000002/policy/model.safetensors"
    assert (whole / weights).read_bytes() == (second / weights).read_bytes()


def test_a_run_without_a_checkpoint_and_without_scratch_is_refused(tmp_path: Path) -> None:
    config = short(tmp_path, policy=PolicyConfig())
    with pytest.raises(UserError, match=r"policy.checkpoint is empty.*preset toy"):
        train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_quickstart(tmp_path: Path) -> None:
    config = QuickstartConfig(
        out=str(tmp_path),
        preset="toy",
        episodes=400,
        demos_per_task=1,
        sft_epochs=1,
        episodes_per_task=2,
    )
    report = quickstart(config)
    assert "place-block" in report.read_text()
    assert len(list((tmp_path / "ppo/eval/videos/after").glob("*.mp4"))) == 8
    assert json.loads((tmp_path / "quickstart.json").read_text())["episodes"] == 400
    the_reports_made_up_run_has_no_key_of_its_own(tmp_path)


def the_reports_made_up_run_has_no_key_of_its_own(quickstart: Path) -> None:
    """What the report's tests read is what the recipes write, key by key."""
    real, made_up = quickstart / "ppo", make_run(quickstart / "made-up")
    for name in ("run.json", "metrics.jsonl", "sft.jsonl", "eval/before-greedy.json"):
        invented = keys(made_up / name) - keys(real / name)
        # the toy has no simulator's packages, and the quickstart no penalty of KL to its start
        assert not invented - {
            ".versions.metaworld",
            ".versions.mujoco",
            ".losses/kl_reference",
        }, name


def keys(file: Path) -> set[str]:
    """The keys of a file of JSON or of lines of it, down to those that name a task."""
    text = file.read_text()
    values = [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else []
    found: set[str] = set()

    def walk(value: object, above: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                key = re.sub(r"^(success|curriculum/[a-z]+)/.*", r"\1/", key)
                path = f"{above}.{'*' if above == '.tasks' else key}"
                found.add(path)
                walk(inner, path)
        elif isinstance(value, list):
            for inner in value:
                walk(inner, f"{above}[]")

    for value in values or [json.loads(text)]:
        walk(value, "")
    return found


def test_the_presets_own_episodes_are_the_quickstarts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("vla_rl.recipes.quickstart._run_steps", lambda config, base, out: out)
    for name, episodes in (("toy", preset("toy").schedule.episodes), ("metaworld-mt5", 10_000)):
        quickstart(QuickstartConfig(out=str(tmp_path / name), preset=name))
        asked = json.loads((tmp_path / name / "quickstart.json").read_text())
        assert asked["episodes"] == episodes > 0


def test_the_toy_plays_here_and_in_processes_alike() -> None:
    config = replace(ENV, num_envs=4)
    specs = [
        EpisodeSpec(task, 7) for task in ("reach-red", "reach-blue", "grasp-block", "place-block")
    ]
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 1, 4)).astype(np.float32)
    seen = []
    for workers, kind in ((0, SerialVectorEnv), (2, ProcessVectorEnv)):
        with make_vector_env(replace(config, num_workers=workers)) as envs:
            assert isinstance(envs, kind)
            envs.post_reset(range(4), specs)
            envs.wait(range(4))
            envs.post_step(range(4), actions)
            result = envs.wait(range(4))
            seen.append(
                (result.observation.images, result.simulator_steps, envs.dense_rewards(range(4)))
            )
    for here, there in zip(*seen, strict=True):
        np.testing.assert_array_equal(here, there)


def test_ranks_share_a_reward_model_that_is_refreshed(
    policy: Path, reward_model: str, tmp_path: Path
) -> None:
    """What it says of an episode, how it is normalised, and what it has learned, is the same on all ranks."""
    reward = ProcessRewardConfig(
        model=reward_model, weight=0.3, refresh_every=1, refresh_episodes=2, refresh_epochs=1
    )
    runs = [
        train_on_ranks(
            short(
                tmp_path / str(ranks),
                policy=PolicyConfig(checkpoint=str(policy), device="cpu"),
                reward=reward,
                parallel=ParallelConfig(ranks=ranks, timeout=120.0),
            )
        )
        for ranks in (1, 2)
    ]
    require_same(runs[1], runs[0])
    for alone, shared in zip(*map(lines, runs), strict=True):
        assert alone["rollout/return_dense"] != 0
        for name in alone:
            if name.startswith(("reward/", "rollout/")):
                assert shared[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-6), name
