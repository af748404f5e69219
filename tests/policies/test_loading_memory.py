"""Peak memory of loading, measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from builders.policies import GOLDEN
from vla_rl.config import OPENVLA_7B, LanguageConfig, ModelConfig
from vla_rl.policies import OpenVLA
from vla_rl.policies.safetensors_files import Stored, save_sharded

TOWER = replace(OPENVLA_7B.siglip, width=32, depth=2, heads=2, mlp_width=64, attention_pool=False)
MODEL = replace(
    OPENVLA_7B,
    name="bulky",
    dino=replace(TOWER, mean=OPENVLA_7B.dino.mean, std=OPENVLA_7B.dino.std),
    siglip=TOWER,
    language=LanguageConfig(hidden=1024, layers=4, heads=8, mlp_width=4096),
)
LOAD = """
import json, sys
from pathlib import Path
import torch
from vla_rl.config import ModelConfig
from vla_rl.config.serialize import from_json
from vla_rl.policies.openvla.checkpoint import load_model
from vla_rl.policies.openvla.config_files import read_checkpoint_config

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

config = from_json(ModelConfig, json.loads(sys.argv[2]))
small = Path(sys.argv[4])  # what torch loads and allocates on first use is none of the model's
load_model(small, read_checkpoint_config(small).model, "cpu", getattr(torch, sys.argv[3]))
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = resident("VmRSS")
model = load_model(Path(sys.argv[1]), config, "cpu", getattr(torch, sys.argv[3]))
print(resident("VmHWM") - before, sum(p.nbytes for p in model.parameters()))
"""


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in OpenVLA(config).state_dict().items()}


@pytest.mark.slow
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="no Linux: peak memory cannot be reset"
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_little_more_memory_than_the_model(tmp_path: Path, dtype: str) -> None:
    """Four shards of 266 MB in all: less than 1.3 times the finished model at any moment."""
    plan = {name: Stored(torch.bfloat16, shape) for name, shape in shapes(MODEL).items()}
    files = save_sharded(plan, lambda name: torch.ones(plan[name].shape), tmp_path, 70_000_000)
    assert len(files) == 4
    config = json.dumps(asdict(MODEL))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path), config, dtype, str(GOLDEN)],
        capture_output=True,
        text=True,
        check=True,
    )
    peak, size = map(int, done.stdout.split())
    assert size > 250_000_000 * (2 if dtype == "float32" else 1)
    assert 0.95 * size < peak < 1.3 * size
