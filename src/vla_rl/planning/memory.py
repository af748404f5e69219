"""What fits: memory of a GPU and of a node, by part.

The sizes are those of `policies.openvla.memory`, which also chooses the micro-batch of a run; here they are told apart,
divided among GPUs, and what lies in the nodes' own memory is added.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from vla_rl.planning.arrangements import Arrangement, Machine, shards_of
from vla_rl.planning.costs import ProcessCosts, SimulatorCosts
from vla_rl.planning.workload import Workload
from vla_rl.policies.memory import MemoryBudget
from vla_rl.policies.openvla.memory import TRAINED_BYTES, inference_budget, training_budget
from vla_rl.policies.openvla.work import layer_products

MASTER, GRADIENTS, OPTIMIZER = 4, 8, 12
"""Of `TRAINED_BYTES` for each trained weight: its float32 self, two gradients, two moments and the step's temporary."""
EXCHANGED = 4
"""Copies of all gradients while they are exchanged: given, received, summed, and the sums of all ranks."""
GATHERED_LAYERS = 2
"""Layers that sharded weights hold whole at a time: the one that computes, and the next."""
assert MASTER + GRADIENTS + OPTIMIZER == TRAINED_BYTES


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of one GPU, or of one rank where there is none, at the moment that takes most."""

    weights: float
    gradients: float
    optimizer: float
    caches: float
    activations: float
    workspace: float
    """The device's context and fragmentation."""
    exchange: float
    """The gradients of other ranks."""
    rendering: float
    """Of the simulators that draw on this GPU."""

    @property
    def total(self) -> float:
        return sum(vars(self).values())


@dataclass(frozen=True)
class NodeMemory:
    """Bytes of host memory of one node."""

    processes: float
    simulators: float
    window: float
    """Images of a window, and the copies that learning makes of them."""
    policies: float
    """Where there are no GPUs: what would lie on one."""

    @property
    def total(self) -> float:
        return sum(vars(self).values())


@dataclass(frozen=True)
class Memory:
    """What an arrangement takes, and whether it is there."""

    learner: DeviceMemory
    actor: DeviceMemory | None
    node: NodeMemory
    micro_batch: int
    """Samples of a forward pass that were counted; 0: not even one fits."""
    lacking: str
    """What does not fit; empty where all does."""


def envs_of_rank(load: Workload, ranks: int) -> int:
    """Environments of the rank that has most."""
    return -(-load.config.env.num_envs // ranks)


def workers_of_rank(load: Workload, arrangement: Arrangement, machine: Machine) -> int:
    """Simulator processes of a rank: its share of the cores, at most one for each environment."""
    if load.in_process:
        return 0
    wanted = load.config.env.num_workers or machine.cpus
    ranks = arrangement.ranks_a_node
    return max(1, min(-(-wanted // ranks), envs_of_rank(load, arrangement.ranks)))


def _budget(load: Workload, arrangement: Arrangement, rollout_batch: int) -> MemoryBudget:
    dtype = torch.bfloat16 if load.itemsize == 2 else torch.float32
    budget = training_budget(
        load.model,
        load.lora,
        dtype,
        checkpointing=load.config.policy.activation_checkpointing,
        rollout_batch=rollout_batch,
        action_tokens=load.tokens,
    )
    once = budget.once if load.on_gpu else 0.0
    if arrangement.kind != "fsdp2":
        return replace(budget, once=once)
    layer = GATHERED_LAYERS * layer_products(load.model.language) * load.itemsize
    ranks = arrangement.ranks
    return replace(
        budget, weights=budget.weights / ranks + layer, trained=budget.trained / ranks, once=once
    )


def _micro_batch(load: Workload, budget: MemoryBudget, free: float, part: int) -> int:
    """The samples of a forward pass: as set, or with -1 the largest power of two that fits."""
    setting = load.config.ppo.micro_batch
    if setting > 0:
        return min(setting, part)
    if setting == 0:
        return part
    fitting = budget.most_samples(free)
    return min(1 << (fitting.bit_length() - 1), part) if fitting else 0


def _device(
    load: Workload, budget: MemoryBudget, samples: int, rendering: float, exchange: float = 0.0
) -> DeviceMemory:
    trained = budget.trained / TRAINED_BYTES
    parts = DeviceMemory(
        weights=budget.weights + trained * MASTER,
        gradients=trained * GRADIENTS,
        optimizer=trained * OPTIMIZER,
        caches=budget.caches,
        activations=samples * budget.per_sample,
        workspace=0.0,
        exchange=exchange,
        rendering=rendering,
    )
    return replace(parts, workspace=budget.total(samples) + rendering + exchange - parts.total)


def _playing(
    load: Workload, arrangement: Arrangement, batch: int, rendering: float
) -> DeviceMemory:
    """While a window is played: the whole weights also where they are sharded, caches, and one layer's activations."""
    dtype = torch.bfloat16 if load.itemsize == 2 else torch.float32
    budget = inference_budget(load.model, dtype, load.tokens)
    once = budget.once if load.on_gpu else 0.0
    if arrangement.kind == "fsdp2":
        ranks = arrangement.ranks
        own = training_budget(load.model, load.lora, dtype, action_tokens=load.tokens)
        budget = replace(
            budget, weights=budget.weights + own.weights / ranks, trained=own.trained / ranks
        )
    return _device(load, replace(budget, once=once), batch, rendering)


def memory(
    load: Workload,
    arrangement: Arrangement,
    machine: Machine,
    simulator: SimulatorCosts | None,
    process: ProcessCosts | None,
) -> Memory:
    """What `arrangement` takes of `machine`, and what of it is not there."""
    config = load.config
    envs = envs_of_rank(load, arrangement.ranks)
    workers = workers_of_rank(load, arrangement, machine)
    pools = arrangement.kind == "pools"
    rendering = workers * simulator.gpu_bytes if simulator and load.on_gpu else 0.0
    clients = -(-arrangement.ranks // arrangement.actors) if pools else 1
    budget = _budget(load, arrangement, 0 if pools else envs)
    part = -(-config.ppo.minibatch // shards_of(arrangement, config))
    free = machine.gpu_memory if load.on_gpu else (machine.memory or float("inf"))
    if not load.on_gpu:
        free /= arrangement.ranks_a_node
    exchange = 0.0
    if arrangement.ranks > 1 and arrangement.kind != "fsdp2":
        exchange = EXCHANGED * 4.0 * (load.trained + load.critic)
    micro = _micro_batch(load, budget, free - rendering - exchange, part)
    learner = _device(load, budget, max(1, micro), rendering, exchange)
    if not pools:
        playing = _playing(load, arrangement, -(-envs // 2), rendering)
        learner = max(learner, playing, key=lambda part: part.total)
    actor = _playing(load, arrangement, clients * envs, 0.0) if pools else None
    node = _node(load, arrangement, workers, learner, simulator, process)
    return Memory(learner, actor, node, micro, _lacking(load, machine, learner, actor, node, micro))


def _node(
    load: Workload,
    arrangement: Arrangement,
    workers: int,
    learner: DeviceMemory,
    simulator: SimulatorCosts | None,
    process: ProcessCosts | None,
) -> NodeMemory:
    ranks, config = arrangement.ranks_a_node, load.config
    images = config.rollout.turns * envs_of_rank(load, arrangement.ranks) * load.image_bytes
    # the window, its turns in the order of shards; a separate critic keeps windows, and joins them
    copies = 1 + 2 * config.ppo.critic_replay if load.separate_critic else 2
    return NodeMemory(
        processes=ranks * (process.main_bytes if process else 0.0),
        simulators=ranks * workers * (simulator.worker_bytes if simulator else 0.0),
        window=float(ranks * images * copies),
        policies=0.0 if load.on_gpu else ranks * learner.total,
    )


def _lacking(
    load: Workload,
    machine: Machine,
    learner: DeviceMemory,
    actor: DeviceMemory | None,
    node: NodeMemory,
    micro: int,
) -> str:
    fullest = max(learner.total, actor.total if actor else 0.0)
    if load.on_gpu and (fullest > machine.gpu_memory or micro == 0):
        return f"GPU memory: {fullest / 1e9:.1f} GB of {machine.gpu_memory / 1e9:g} GB"
    if machine.memory is not None and node.total > machine.memory:
        return f"memory of a node: {node.total / 1e9:.1f} GB of {machine.memory / 1e9:g} GB"
    return ""
