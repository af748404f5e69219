"""Models without weights: the same names and shapes, and nothing of torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from vla_rl.policies.shapes import shapes_alone


def build() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(5, 4, padding_idx=0), nn.Linear(4, 3), nn.LayerNorm(3), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)
    )  # fmt: skip


def test_names_and_shapes_are_those_of_the_real_model() -> None:
    with shapes_alone():
        bare = build()
    real = build()
    assert {n: t.shape for n, t in bare.state_dict().items()} == {
        n: t.shape for n, t in real.state_dict().items()
    }
    assert all(t.is_meta for t in bare.state_dict().values())
    assert [p.requires_grad for p in bare.parameters()] == [
        p.requires_grad for p in real.parameters()
    ]


def test_outside_weights_are_filled_as_ever() -> None:
    with shapes_alone():
        pass
    weight = torch.nn.init.constant_(torch.empty(3), 7.0)
    assert weight.tolist() == [7.0, 7.0, 7.0]


def test_the_compiler_is_not_loaded() -> None:
    code = (
        "import sys; from torch import nn; from vla_rl.policies.shapes import shapes_alone\n"
        "with shapes_alone(): nn.Embedding(5, 4), nn.Linear(4, 3), nn.Conv2d(3, 2, 3)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "False", answer.stderr
