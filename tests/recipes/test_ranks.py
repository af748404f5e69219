"""Training in several processes: the same run as in one, and nobody is left behind when one of them ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from builders.same_runs import lines, require_same
from builders.thread_ranks import on_ranks
from vla_rl.config import PolicyConfig, TrainConfig, UserError
from vla_rl.config.parallel import ParallelConfig
from vla_rl.policies import OpenVLAPolicy
from vla_rl.recipes import ranks as recipe
from vla_rl.recipes.presets import preset
from vla_rl.recipes.ranks import train_on_ranks
from vla_rl.recipes.train_ppo import train
from vla_rl.rollout.metrics import PHASES
from vla_rl.runtime.metrics import read_metrics
from vla_rl.training.scratch import scratch_policy


def toy(root: Path, ranks: int, **parts: Any) -> TrainConfig:
    base = preset("toy")
    config = replace(
        base,
        env=replace(base.env, num_envs=8),
        schedule=replace(base.schedule, iterations=4, episodes=0),
        rollout=replace(base.rollout, turns=6),
        ppo=replace(base.ppo, critic_warmup=1, critic_warmup_until_explained=False, minibatch=32),
        eval=replace(base.eval, episodes_per_task=2, videos=0),
        run=replace(base.run, root=str(root), name=f"ranks-{ranks}", save_every=2),
        parallel=ParallelConfig(ranks=ranks, timeout=120.0),
    )
    return replace(config, **parts)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_ranks(toy(tmp_path_factory.mktemp("alone"), 1))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_run_the_run_of_one_process(ranks: int, alone: Path, tmp_path: Path) -> None:
    run = train_on_ranks(toy(tmp_path, ranks))
    require_same(run, alone)
    require_shared(run, ranks)


def require_shared(run: Path, ranks: int) -> None:
    """Each rank has played its part, and its time is accounted for."""
    of_ranks = read_metrics(run / "ranks.jsonl")
    for line, shares in zip(lines(run), of_ranks, strict=True):
        for count in ("turns", "simulator_steps"):
            parts = [shares[f"{rank}/{count}"] for rank in range(ranks)]
            assert sum(parts) == line[f"rollout/{count}"]
        assert {shares[f"{rank}/turns"] for rank in range(ranks)} == {line["rollout/turns"] / ranks}
        seconds = [shares[f"{rank}/{phase}"] for rank in range(ranks) for phase in PHASES]
        assert min(seconds) > -1e-3
        assert sum(seconds) / ranks == pytest.approx(sum(line[f"time/{p}"] for p in PHASES))


@pytest.mark.sim
@pytest.mark.slow
def test_ranks_on_meta_world_run_the_run_of_one_process(sim: str, tmp_path: Path) -> None:
    base = preset("metaworld-mt1")
    runs = [
        train_on_ranks(
            toy(
                tmp_path,
                ranks,
                env=replace(base.env, num_envs=4, num_workers=2, image_size=32, horizon=4),
                policy=PolicyConfig(scratch="mini", device="cpu"),
                reward=base.reward,
                eval=replace(base.eval, episodes_per_task=2, videos=0),
            )
        )
        for ranks in (1, 2, 4)
    ]
    for run, ranks in zip(runs[1:], (2, 4), strict=True):
        require_same(run, runs[0])
        require_shared(run, ranks)


def test_a_run_goes_on_with_another_number_of_ranks(alone: Path, tmp_path: Path) -> None:
    config = toy(tmp_path, 2)
    half = replace(config, schedule=replace(config.schedule, iterations=2))
    run = train_on_ranks(half)
    for file in (run / "eval").glob("after-*"):
        file.unlink()
    train_on_ranks(replace(config, parallel=replace(config.parallel, ranks=3)), run)
    require_same(run, alone)


def test_in_float64_the_same_to_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What remains between one process and several is rounding: with 29 bits more it is 29 bits smaller."""
    one_at_a_time = threading.Lock()
    made: list[OpenVLAPolicy] = []

    def double(config: TrainConfig) -> OpenVLAPolicy:
        with one_at_a_time:  # torch's generator is that of all threads
            policy = scratch_policy(config)
        assert isinstance(policy, OpenVLAPolicy)
        made.append(policy.double())
        return policy

    monkeypatch.setattr("vla_rl.training.state.scratch_policy", double)
    alone = train_on_ranks(toy(tmp_path / "alone", 1))
    ranks = toy(tmp_path / "ranks", 3)
    run, *_ = on_ranks(3, lambda world: train(ranks, None, world))
    require_same(run, alone)
    expected, *on_each = [policy.state_dict() for policy in made]
    start = scratch_policy(ranks).state_dict()
    assert max(_distance(expected, start).values()) > 1e-3, "nothing was learned"
    for own in on_each:
        assert max(_distance(own, expected).values()) < 1e-12


def _distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float((one[name] - other[name]).abs().max()) for name in one if one[name].numel()}


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _break(rank: int, how: Callable[[], object], iteration: int) -> Callable[..., Any]:
    """Training in which a rank breaks in an iteration."""
    from vla_rl.rollout import Collector

    collect = Collector.collect

    def broken(self: Collector, turns: int, temperature: float, at: int) -> Any:
        if self.shards.rank == rank and at == iteration:
            how()
        return collect(self, turns, temperature, at)

    return broken


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse() -> None:
    raise UserError("the simulator of this node is not installed")


def _follow_and_be_killed(port: int, rank: int, config: TrainConfig, resume: Path | None) -> None:
    from vla_rl.rollout import Collector

    Collector.collect = _break(1, _kill, 1)
    recipe._follow(port, rank, config, resume)


def _follow_and_refuse(port: int, rank: int, config: TrainConfig, resume: Path | None) -> None:
    from vla_rl.rollout import Collector

    Collector.collect = _break(1, _refuse, 1)
    recipe._follow(port, rank, config, resume)


@pytest.mark.parametrize(
    ("follow", "said"),
    [
        (_follow_and_be_killed, r"rank 1 of 2 has died: .*SIGKILL"),
        (_follow_and_refuse, "the simulator of this node is not installed"),
    ],
)
def test_a_rank_that_ends_ends_all_and_the_run_goes_on_later(
    follow: Callable[..., None],
    said: str,
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = toy(tmp_path, 2)
    config = replace(config, run=replace(config.run, save_every=1))
    original = recipe._follow
    monkeypatch.setattr(recipe, "_follow", follow)
    before = set(children())  # of other tests
    with pytest.raises(UserError, match=said):
        train_on_ranks(config)
    assert not set(children()) - before
    monkeypatch.setattr(recipe, "_follow", original)
    run = tmp_path / "ranks-2"
    train_on_ranks(config, run)
    require_same(run, alone)
