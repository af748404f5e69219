"""Runs with sharded weights (`parallel.shard fsdp2`): they go on from runs without, and the other way round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from test_ranks import alone, toy

from builders.same_runs import require_same, weights
from vla_rl.config import ConfigError, LoraConfig, TrainConfig
from vla_rl.recipes import ranks
from vla_rl.runtime.child_pool import ChildPool
from vla_rl.runtime.run_folder import Run

__all__ = ["alone"]


def train_on_ranks(config: TrainConfig, resume: Path | None = None) -> Path:
    """In a process of its own: torch keeps the group that sharded weights were spread over until its process ends."""
    with ChildPool(1, reuse=False) as pool:
        return pool.submit(ranks.train_on_ranks, config, resume).result()


def sharded(
    root: Path, size: int, gather: Literal["window", "call"] = "window", until: int = 4
) -> TrainConfig:
    config = toy(root, size)
    return replace(
        config,
        schedule=replace(config.schedule, iterations=until),
        parallel=replace(config.parallel, shard="fsdp2", gather=gather),
    )


def whole(config: TrainConfig, size: int, until: int = 4) -> TrainConfig:
    return replace(
        config,
        schedule=replace(config.schedule, iterations=until),
        parallel=replace(config.parallel, ranks=size, shard="none"),
    )


def begin(config: TrainConfig) -> Path:
    """A run as far as it goes, as if it had been stopped there."""
    run = train_on_ranks(config)
    for file in (run / "eval").glob("after-*"):
        file.unlink()
    return run


def files_in(run: Path) -> list[str]:
    newest = max((run / "checkpoints").glob("iteration-*"))
    return sorted(str(path.relative_to(newest)) for path in newest.rglob("*"))


def shapes(run: Path) -> dict[str, torch.Size]:
    """Of weights and optimizers; the critic's replay is as long as the run."""
    return {name: t.shape for name, t in weights(run).items() if "/replay/" not in name}


def test_a_sharded_run_goes_on_in_one_process(alone: Path, tmp_path: Path) -> None:
    config = sharded(tmp_path, 2, until=2)
    run = begin(config)
    assert files_in(run) == files_in(alone)
    assert shapes(run) == shapes(alone)
    train_on_ranks(whole(config, 1), run)
    require_same(run, alone)


@pytest.mark.slow
@pytest.mark.parametrize("gather", ["window", "call"])
def test_a_run_goes_on_with_sharded_weights(
    gather: Literal["window", "call"], alone: Path, tmp_path: Path
) -> None:
    """By two ranks without, then by three with: the environments of one of them are fewer."""
    config = sharded(tmp_path, 3, gather)
    run = begin(whole(config, 2, until=2))
    train_on_ranks(config, run)
    require_same(run, alone)


@pytest.mark.slow
def test_a_sharded_run_goes_on_on_another_number_of_ranks(alone: Path, tmp_path: Path) -> None:
    run = begin(sharded(tmp_path, 3, "call", until=2))
    train_on_ranks(sharded(tmp_path, 2), run)
    require_same(run, alone)


@pytest.mark.slow
def test_adapters_and_what_they_are_held_to_go_on(tmp_path: Path) -> None:
    """The reference of the KL term is that of the beginning: it is made again when a run goes on."""
    pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")

    def held(config: TrainConfig, name: str) -> TrainConfig:
        return replace(
            config,
            run=replace(config.run, name=name),
            policy=replace(config.policy, lora=LoraConfig(rank=4, alpha=8)),
            ppo=replace(config.ppo, kl_coef=0.5),
        )

    expected = train_on_ranks(held(toy(tmp_path, 1), "alone"))
    run = begin(held(sharded(tmp_path, 2, until=2), "sharded"))
    train_on_ranks(held(sharded(tmp_path, 2, "call"), "sharded"), run)
    own, theirs = weights(run), weights(expected)
    assert shapes(run) == shapes(expected)
    assert max(float((own[n].double() - theirs[n].double()).abs().max()) for n in own) < 1e-5


@pytest.mark.slow
def test_parallel_decoding_is_sharded_as_well(tmp_path: Path) -> None:
    """With the reference of the KL term, whose weights are divided too."""

    def parallel(config: TrainConfig, name: str) -> TrainConfig:
        return replace(
            config,
            run=replace(config.run, name=name),
            schedule=replace(config.schedule, iterations=2),
            policy=replace(config.policy, kind="openvla-oft"),
            ppo=replace(config.ppo, kl_coef=0.5),
        )

    expected = train_on_ranks(parallel(toy(tmp_path, 1), "alone"))
    run = train_on_ranks(parallel(sharded(tmp_path, 2, "call"), "sharded"))
    assert shapes(run) == shapes(expected)
    require_same(run, expected)


def test_one_rank_is_refused_before_there_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> Run:
        raise AssertionError("a run was made")

    monkeypatch.setattr(Run, "create", never)
    with pytest.raises(ConfigError, match=r"there is one: set parallel\.ranks 2 or more"):
        train_on_ranks(sharded(tmp_path, 1))
