"""Memory by part: the sizes that docs/memory.md has, divided as they are divided, and what lies in a node."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vla_rl.algorithms.gradients import ThreadedGradients
from vla_rl.config import LoraConfig, TrainConfig
from vla_rl.distributed import Shards
from vla_rl.planning.arrangements import Arrangement, Machine
from vla_rl.planning.costs import ProcessCosts, SimulatorCosts, packaged
from vla_rl.planning.memory import Memory, memory
from vla_rl.planning.timing import exchanged_bytes
from vla_rl.planning.workload import workload
from vla_rl.policies.openvla.memory import training_budget
from vla_rl.recipes.presets import preset

GB = 1e9
SEVEN_B = "libero-spatial-openvla-7b"
SINGLE = Arrangement("single", 1)
LINE = packaged("laptop").processes[0].turn
PROCESS = ProcessCosts("", LINE, LINE, LINE, "measured", main_bytes=1e9)
SIMULATOR = SimulatorCosts(
    "libero", 256, 0, 0.01, 0.01, 0.1, "measured", worker_bytes=2e9, gpu_bytes=5e8
)
NO_RENDERING = replace(SIMULATOR, gpu_bytes=0.0)


def changed(name: str, **parts: dict[str, Any]) -> TrainConfig:
    config = preset(name)
    groups = {group: replace(getattr(config, group), **values) for group, values in parts.items()}
    return replace(config, **groups)


def held(
    config: TrainConfig, arrangement: Arrangement = SINGLE, gigabytes: float = 80, gpus: int = 8,
    simulator: SimulatorCosts = NO_RENDERING, ram: float | None = None, cpus: int = 96,
) -> Memory:  # fmt: skip
    machine = Machine(arrangement.nodes, gpus, gigabytes * GB, cpus, ram)
    return memory(workload(config, gpus), arrangement, machine, simulator, PROCESS)


@pytest.mark.parametrize(
    ("envs", "checkpointing", "held_gb", "sample_gb"),
    [
        (10, True, 20.5, 0.16),
        (64, True, 29.5, 0.16),
        (10, False, 20.5, 1.48),
        (64, False, 29.5, 1.48),
    ],
)
def test_one_gpu_holds_what_the_page_on_memory_says(
    envs: int, checkpointing: bool, held_gb: float, sample_gb: float
) -> None:
    """docs/memory.md: held with LoRA 32, and GB a sample; 5 % are added to both for fragmentation."""
    config = changed(
        SEVEN_B,
        env={"num_envs": envs},
        policy={"activation_checkpointing": checkpointing},
        ppo={"micro_batch": 2},
    )
    found = held(config)
    assert found.learner.total / GB == pytest.approx(held_gb + 2 * 1.05 * sample_gb, abs=0.06)
    assert found.learner.weights == pytest.approx(2 * 7_541_237_184 + 4 * 79_953_920)
    assert found.learner.gradients + found.learner.optimizer == pytest.approx(20 * 79_953_920)
    assert found.learner.caches == pytest.approx(envs * 0.1586 * GB, rel=0.02)
    assert found.micro_batch == 2
    assert found.lacking == ""


def test_the_micro_batch_is_the_one_a_run_would_choose() -> None:
    """docs/memory.md: 119 samples fit on 40 GB, 21 on 24 GB; of powers of two 64 and 16; at most a shard's part."""
    config = changed(SEVEN_B, parallel={"shards": 1})
    chosen = {gb: held(config, gigabytes=gb).micro_batch for gb in (24, 40, 80)}
    assert chosen == {24: 16, 40: 64, 80: 128}
    eight = changed(SEVEN_B, parallel={"shards": 8})
    assert held(eight, gigabytes=80).micro_batch == 128 // 8
    nothing = held(config, gigabytes=20)
    assert nothing.micro_batch == 0
    assert "GPU memory" in nothing.lacking


def test_all_weights_need_several_gpus_and_sharding_divides_them() -> None:
    """docs/memory.md: 191 GB, 24 bytes for each of 7.5e9 weights. Eight ranks hold an eighth of that each."""
    config = changed(SEVEN_B, policy={"lora": None, "dtype": "float32"}, ppo={"micro_batch": 1})
    whole = held(config)
    assert whole.learner.total / GB == pytest.approx(191, abs=4)
    assert whole.lacking
    sharded = held(config, Arrangement("fsdp2", 8))
    assert sharded.lacking == ""
    budget = training_budget(workload(config, 8).model, None, torch.float32)
    own = sharded.learner.gradients + sharded.learner.optimizer
    assert own <= budget.trained / 8
    assert whole.learner.gradients / sharded.learner.gradients == pytest.approx(8)


def test_ranks_divide_environments_and_not_weights() -> None:
    config = changed(SEVEN_B, env={"num_envs": 80}, ppo={"micro_batch": 4})
    one, eight = held(config), held(config, Arrangement("ranks", 8))
    assert eight.learner.weights == one.learner.weights
    assert eight.learner.caches == pytest.approx(one.learner.caches / 8)


def test_simulators_that_draw_take_memory_of_the_gpu() -> None:
    config = changed(SEVEN_B, ppo={"micro_batch": 4})
    without, drawn = held(config), held(config, simulator=SIMULATOR)
    assert (
        drawn.learner.rendering == 10 * SIMULATOR.gpu_bytes
    )  # one process for each of ten environments
    assert drawn.learner.total == pytest.approx(without.learner.total + drawn.learner.rendering)
    few = held(config, simulator=SIMULATOR, cpus=4)
    assert few.learner.rendering == 4 * SIMULATOR.gpu_bytes


def test_a_nodes_memory() -> None:
    config = preset("metaworld-mt5")
    found = held(config, gpus=0, cpus=2, ram=24 * GB)
    images = 50 * 32 * 64 * 64 * 3
    assert found.node.window == images * (
        1 + 2 * 3
    )  # the window, three of replay, and those joined
    assert found.node.simulators == 2 * SIMULATOR.worker_bytes
    assert (found.node.processes, found.learner.exchange) == (1e9, 0.0)
    assert found.node.policies == found.learner.total
    assert found.lacking == ""
    assert "memory of a node" in held(config, gpus=0, cpus=2, ram=4 * GB).lacking


def test_what_a_window_keeps_of_images_is_counted() -> None:
    """Against the arrays themselves."""
    from vla_rl.rollout.buffer import RolloutBuffer
    from vla_rl.types import Observation

    config = changed("metaworld-mt5", env={"num_envs": 4}, rollout={"turns": 6})
    example = Observation(
        np.zeros((4, 64, 64, 3), np.uint8),
        ("x",) * 4,
        np.zeros((4, 4), np.float32),
        np.zeros(4, np.float32),
    )

    class Envs:
        num_envs, tasks, instructions = 4, ("x",), ("x",)

    buffer = RolloutBuffer(6, Envs(), 8, example)  # type: ignore[arg-type]
    assert held(config, gpus=0, ram=None).node.window == 7 * buffer.images.nbytes


class Counting:
    """A rank that meets copies of itself, and counts the bytes of gradients it receives."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.received = rank, size, 0

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.size

    def gather_tensors(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.received += tensor.nbytes * (self.size - 1)
        return [tensor] * self.size

    def exchange(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        parts = tensor.chunk(self.size)
        self.received += sum(part.nbytes for part in parts[1:])
        return list(parts)


@pytest.mark.parametrize(("ranks", "shards"), [(2, 4), (4, 4), (3, 4), (3, 5), (8, 8), (1, 4)])
def test_the_gradients_that_a_rank_receives_are_counted(ranks: int, shards: int) -> None:
    """What ThreadedGradients really asks for; a rank with fewer branches sends zeros in the others' turns."""
    parameter = nn.Parameter(torch.ones(100))
    most = 0
    for rank in range(ranks):
        world = Counting(rank, ranks)
        spread = Shards(shards, shards, rank, ranks)
        gradients = ThreadedGradients(1, world=world, shards=spread)  # type: ignore[arg-type]
        parts = [torch.arange(2) for _ in spread.own]
        gradients.backward(lambda rows: (parameter.sum() * len(rows), {}), parts, [parameter])
        most = max(most, world.received)
    assert exchanged_bytes(100, ranks, shards) == most


@settings(max_examples=40)
@given(ranks=st.integers(1, 64), gigabytes=st.sampled_from([24.0, 40.0, 80.0, 141.0]))
def test_more_ranks_never_need_more_of_a_gpu(ranks: int, gigabytes: float) -> None:
    config = changed(SEVEN_B, env={"num_envs": 128}, parallel={"shards": 128})
    kind: Any = "ranks" if ranks > 1 else "single"
    one = held(config, Arrangement(kind, ranks), gigabytes)
    more = held(config, Arrangement("ranks", 2 * ranks), gigabytes)
    assert more.learner.caches <= one.learner.caches
    assert more.micro_batch >= one.micro_batch or more.micro_batch == 128 // 128
    assert one.lacking or not more.lacking
    sharded = held(config, Arrangement("fsdp2", 2 * ranks), gigabytes)
    assert sharded.learner.optimizer < more.learner.optimizer


def test_adapters_take_less_than_all_weights() -> None:
    small = changed("metaworld-mt5", policy={"lora": LoraConfig()})
    assert (
        held(small, gpus=0).learner.optimizer
        < held(preset("metaworld-mt5"), gpus=0).learner.optimizer
    )
