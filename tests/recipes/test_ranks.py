"""Training in several processes: the same run as in one, and nobody is left behind when one of them ends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from vla_rl.config import TrainConfig, UserError
from vla_rl.config.parallel import ParallelConfig
from vla_rl.recipes import ranks as recipe
from vla_rl.recipes.presets import preset
from vla_rl.recipes.ranks import train_on_ranks
from vla_rl.runtime.run_folder import read_config

EQUAL = ("rollout/episodes", "rollout/success_rate", "total/", "curriculum/", "success/")
"""Metrics of what was played; what is a sum of floats is compared within its rounding."""
TIMED = ("time/", "speed/", "memory/", "wall_seconds", "total/train_seconds")


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


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").glob("iteration-*"))
    found: dict[str, torch.Tensor] = {}
    for file in sorted(newest.rglob("*.safetensors")):
        found |= {f"{file.stem}/{name}": tensor for name, tensor in load_file(file).items()}
    return found


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def evaluations(run: Path) -> dict[str, list[Any]]:
    return {
        file.name: json.loads(file.read_text())["episodes"]
        for file in sorted((run / "eval").glob("*.json"))
    }


def require_same(run: Path, expected: Path) -> None:
    """The same episodes, and weights within 1 % of how far practice has moved them."""
    for mine, other in zip(lines(run), lines(expected), strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            if name.startswith(EQUAL) and not name.startswith(TIMED):
                assert mine[name] == pytest.approx(other[name], rel=1e-6), name
    assert evaluations(run) == evaluations(expected)
    own, theirs = weights(run), weights(expected)
    assert own.keys() == theirs.keys()
    assert {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in theirs.items()}
    policy = [name for name in own if name.startswith("model/")]
    moved = (
        4 * 6 * 8 * read_config(expected, TrainConfig).optimizer.learning_rate
    )  # at most, by Adam
    assert max(float((own[n] - theirs[n]).abs().max()) for n in policy) < 0.01 * moved


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_ranks(toy(tmp_path_factory.mktemp("alone"), 1))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_run_the_run_of_one_process(ranks: int, alone: Path, tmp_path: Path) -> None:
    require_same(train_on_ranks(toy(tmp_path, ranks)), alone)


def test_a_run_goes_on_with_another_number_of_ranks(alone: Path, tmp_path: Path) -> None:
    config = toy(tmp_path, 2)
    half = replace(config, schedule=replace(config.schedule, iterations=2))
    run = train_on_ranks(half)
    for file in (run / "eval").glob("after-*"):
        file.unlink()
    train_on_ranks(replace(config, parallel=replace(config.parallel, ranks=3)), run)
    require_same(run, alone)


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
    with pytest.raises(UserError, match=said):
        train_on_ranks(config)
    assert not children()
    monkeypatch.setattr(recipe, "_follow", original)
    run = tmp_path / "ranks-2"
    train_on_ranks(config, run)
    require_same(run, alone)
