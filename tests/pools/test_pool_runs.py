"""Training in pools: the run of `ranks`, whatever the number of learners, actors and hosts, and whoever dies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pool_runs import lines, pools, require_counted_once, require_same_to_the_bit, toy

from vla_rl.config import (
    DemosConfig,
    PolicyConfig,
    ProcessRewardConfig,
    RewardCollectConfig,
    RewardModelConfig,
    SFTConfig,
    TrainConfig,
    UserError,
)
from vla_rl.recipes import pools as recipe
from vla_rl.recipes.demos import collect_demos
from vla_rl.recipes.label_trajectories import collect_trajectories
from vla_rl.recipes.presets import preset
from vla_rl.recipes.ranks import train_on_ranks
from vla_rl.recipes.sft import fine_tune
from vla_rl.recipes.train_reward import train_reward
from vla_rl.rollout.collector import Collected, Collector

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_ranks(toy(tmp_path_factory.mktemp("alone"), "run"))


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ahead")
    return train_on_ranks(pools(folder, "run", 6, 3, actors=1, staleness=1))


@pytest.mark.parametrize("pool", [{"actors": 1}, {"hosts": 2}, {"actors": 1, "hosts": 3}])
def test_actors_and_hosts_change_no_number(
    pool: dict[str, int], alone: Path, tmp_path: Path
) -> None:
    require_same_to_the_bit(train_on_ranks(pools(tmp_path, "run", **pool)), alone)


def test_learners_with_two_actors_are_two_ranks(tmp_path: Path) -> None:
    ranks = train_on_ranks(toy(tmp_path, "ranks", ranks=2))
    run = train_on_ranks(pools(tmp_path, "pools", learners=2, actors=2, hosts=2))
    require_same_to_the_bit(run, ranks)


def test_a_simulator_reward_comes_from_hosts_too(tmp_path: Path) -> None:
    def rewarded(config: Any) -> Any:
        return replace(config, reward=replace(config.reward, kind="simulator"))

    ranks = train_on_ranks(rewarded(toy(tmp_path, "ranks", 2)))
    run = train_on_ranks(rewarded(pools(tmp_path, "pools", 2, actors=1, hosts=2)))
    require_same_to_the_bit(run, ranks)
    assert lines(run)[0]["rollout/return_dense"] > 0


@pytest.mark.slow
def test_a_reward_model_says_the_same_in_pools(tmp_path: Path) -> None:
    """And learns the same, on new episodes that the actor plays no part in."""
    demos = collect_demos(
        DemosConfig(env=toy(tmp_path, "x").env, out=str(tmp_path / "demos"), episodes_per_task=3)
    )
    policy = PolicyConfig(scratch="mini", device="cpu")
    start = fine_tune(
        SFTConfig(str(demos), out=str(tmp_path / "sft"), policy=policy, action_chunk=1, epochs=2)
    )
    play = collect_trajectories(
        RewardCollectConfig(str(start), out=str(tmp_path / "play"), episodes_per_task=4)
    )
    out = str(tmp_path / "reward")
    train_reward(RewardModelConfig((str(demos), str(play)), out=out, epochs=1, device="cpu"))

    def rewarded(config: TrainConfig) -> TrainConfig:
        reward = ProcessRewardConfig(
            model=out, weight=0.3, refresh_every=1, refresh_episodes=2, refresh_epochs=1
        )
        return replace(
            config, policy=PolicyConfig(checkpoint=str(start), device="cpu"), reward=reward
        )

    ranks = train_on_ranks(rewarded(toy(tmp_path, "ranks", 2, ranks=2)))
    run = train_on_ranks(rewarded(pools(tmp_path, "pools", 2, learners=2, actors=2, hosts=2)))
    require_same_to_the_bit(run, ranks)
    assert lines(run)[0]["rollout/return_dense"] != 0


def test_a_window_ahead_gives_the_same_numbers_every_time(ahead: Path, tmp_path: Path) -> None:
    again = train_on_ranks(pools(tmp_path, "run", 6, 3, actors=1, staleness=1))
    require_same_to_the_bit(again, ahead)
    # a save is a point of rest: the window after it is played with the newest weights
    assert ["losses/stale_turns" in line for line in lines(again)] == [False, True, True] * 2
    assert any(line.get("losses/importance_mean", 1.0) != 1.0 for line in lines(again))


def test_a_run_with_windows_ahead_goes_on_as_if_it_had_not_ended(
    ahead: Path, tmp_path: Path
) -> None:
    config = pools(tmp_path, "run", 6, 3, actors=1, staleness=1)
    run = train_on_ranks(replace(config, schedule=replace(config.schedule, iterations=3)))
    for file in (run / "eval").glob("after-*"):
        file.unlink()
    train_on_ranks(config, run)
    require_same_to_the_bit(run, ahead)


def kill_before(
    monkeypatch: pytest.MonkeyPatch, iteration: int, kill: Callable[[Collector], None]
) -> list[int]:
    """Kill somebody once, just before a window; returns the list of windows in which that was done."""
    collect, done = Collector.collect, []

    def killing(self: Collector, turns: int, temperature: float, at: int) -> Collected:
        if at == iteration and not done:
            done.append(at)
            kill(self)
        return collect(self, turns, temperature, at)

    monkeypatch.setattr(Collector, "collect", killing)
    return done


def kill_actor(collector: Collector) -> None:
    os.kill(collector.player.actor_pid(), signal.SIGKILL)  # pyright: ignore


def kill_host(collector: Collector) -> None:
    os.kill(collector.envs.worker_pids()[1], signal.SIGKILL)  # pyright: ignore


@pytest.mark.parametrize("staleness", [0, 1])
def test_an_actor_that_is_killed_is_started_again_and_nothing_is_different(
    staleness: int, alone: Path, ahead: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = kill_before(monkeypatch, 2, kill_actor)
    config = pools(tmp_path, "run", actors=1, hosts=1)
    if staleness:
        config = pools(tmp_path, "run", 6, 3, actors=1, staleness=1)
    run = train_on_ranks(config)
    assert done == [2]
    require_same_to_the_bit(run, ahead if staleness else alone)


def test_an_actor_that_dies_too_often_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_before(monkeypatch, 1, kill_actor)
    config = pools(tmp_path, "run", actors=1)
    with pytest.raises(UserError, match=r"actors died 1 times, more than env.max_restarts = 0"):
        train_on_ranks(replace(config, env=replace(config.env, max_restarts=0)))


def test_a_host_that_is_killed_loses_its_episodes_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = kill_before(monkeypatch, 1, kill_host)
    run = train_on_ranks(pools(tmp_path, "run", hosts=2))
    assert done == [1]
    assert [line["rollout/infrastructure_errors"] for line in lines(run)] == [0, 1, 1, 1]
    # its four environments lost one turn each, all others were played
    assert [line["rollout/turns"] for line in lines(run)] == [48, 48, 48, 48]
    require_counted_once(run)


def test_a_host_that_dies_too_often_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_before(monkeypatch, 1, kill_host)
    config = pools(tmp_path, "run", hosts=2)
    with pytest.raises(UserError, match=r"crashed or hung 1 times, more than env.max_restarts = 0"):
        train_on_ranks(replace(config, env=replace(config.env, max_restarts=0)))


class KilledLearner(recipe.LearnerRank):
    """A learner that is killed before its second window."""

    def follow(self, *arguments: Any) -> None:
        collect = Collector.collect

        def killed(self: Collector, turns: int, temperature: float, at: int) -> Collected:
            if at == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return collect(self, turns, temperature, at)

        Collector.collect = killed
        super().follow(*arguments)


def test_a_learner_that_is_killed_ends_all_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Any
) -> None:
    cluster.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # KilledLearner
    expected = train_on_ranks(toy(tmp_path, "expected", 3, 1, ranks=2))
    config = pools(tmp_path, "run", 3, 1, learners=2, actors=1, hosts=2)
    with monkeypatch.context() as broken:
        broken.setattr(recipe, "LearnerRank", KilledLearner)
        with pytest.raises(UserError, match="rank 1 of 2 has died"):
            train_on_ranks(config)
    run = train_on_ranks(config, tmp_path / "run")
    require_same_to_the_bit(run, expected)


@pytest.mark.slow
@pytest.mark.sim
def test_meta_world_in_hosts_is_meta_world(tmp_path: Path, sim: str) -> None:
    """Simulators in processes of hosts, and an actor: one window and one update, to the bit."""

    def short(config: Any) -> Any:
        base = preset("metaworld-mt5")
        return replace(
            base,
            env=replace(base.env, num_envs=2, horizon=4),
            policy=replace(base.policy, scratch="tiny", checkpoint=""),
            schedule=replace(base.schedule, iterations=2, minutes=0, episodes=0),
            rollout=replace(base.rollout, turns=4),
            ppo=replace(base.ppo, critic_warmup=1, minibatch=8, kl_coef=0.0),
            reward=replace(base.reward, kind="success", model=""),
            eval=replace(base.eval, episodes_per_task=1, videos=0),
            run=config.run,
            parallel=replace(config.parallel, shards=2, timeout=300.0),
        )

    alone = train_on_ranks(short(toy(tmp_path, "alone")))
    run = train_on_ranks(short(pools(tmp_path, "pools", actors=1, hosts=2)))
    require_same_to_the_bit(run, alone)
