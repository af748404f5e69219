"""Short runs of the toy benchmark in pools, and what two runs must have in common."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vla_rl.config import TrainConfig
from vla_rl.config.parallel import ParallelConfig
from vla_rl.recipes.presets import preset

TIMED = ("time/", "speed/", "memory/", "wall_seconds", "total/train_seconds")


def toy(
    root: Path, name: str, iterations: int = 4, save_every: int = 2, **parallel: Any
) -> TrainConfig:
    base = preset("toy")
    return replace(
        base,
        env=replace(base.env, num_envs=8),
        schedule=replace(base.schedule, iterations=iterations, episodes=0),
        rollout=replace(base.rollout, turns=6),
        ppo=replace(base.ppo, critic_warmup=1, critic_warmup_until_explained=False, minibatch=32),
        eval=replace(base.eval, episodes_per_task=1, videos=0),
        run=replace(base.run, root=str(root), name=name, save_every=save_every),
        parallel=ParallelConfig(timeout=60.0, **parallel),
    )


def pools(
    root: Path, name: str, iterations: int = 4, save_every: int = 2, **parallel: Any
) -> TrainConfig:
    return toy(root, name, iterations, save_every, arrangement="pools", **parallel)


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").glob("iteration-*"))
    found: dict[str, torch.Tensor] = {}
    for file in sorted(newest.rglob("*.safetensors")):
        found |= {f"{file.stem}/{name}": tensor for name, tensor in load_file(file).items()}
    return found


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def require_same_to_the_bit(run: Path, expected: Path) -> None:
    """All numbers but times, all evaluations, and all weights and optimizers."""
    for mine, other in zip(lines(run), lines(expected), strict=True):
        own, theirs = (
            {name: value for name, value in line.items() if not name.startswith(TIMED)}
            for line in (mine, other)
        )
        assert own == theirs
    for file in sorted((expected / "eval").glob("*.json")):
        assert (
            json.loads((run / "eval" / file.name).read_text())["episodes"]
            == (json.loads(file.read_text())["episodes"])
        )
    own, theirs = weights(run), weights(expected)
    assert own.keys() == theirs.keys()
    assert [name for name in own if not torch.equal(own[name], theirs[name])] == []


def require_counted_once(run: Path) -> None:
    """Every iteration once, and as many episodes in all as have ended in each."""
    found = lines(run)
    assert [line["iteration"] for line in found] == list(range(1, len(found) + 1))
    assert found[-1]["total/episodes"] == sum(line["rollout/episodes"] for line in found)
