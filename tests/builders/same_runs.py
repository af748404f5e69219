"""Whether two training runs are the same run, played by different numbers of processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vla_rl.config import TrainConfig
from vla_rl.runtime.run_folder import read_config

EQUAL = ("rollout/episodes", "rollout/success_rate", "total/", "curriculum/", "success/")
"""Metrics of what was played; what is a sum of floats is compared within its rounding."""
TIMED = ("time/", "speed/", "memory/", "wall_seconds", "total/train_seconds")


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
