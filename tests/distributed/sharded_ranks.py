"""What two ranks with sharded weights do, in processes of their own, and the same in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from builders.policies import make_observation, narrow_model, tiny_policy
from builders.rollouts import window
from vla_rl.algorithms.advantages import compute_advantages
from vla_rl.algorithms.ppo import PPO
from vla_rl.algorithms.sharded_gradients import ShardedGradients
from vla_rl.config import (
    CriticConfig,
    LoraConfig,
    OptimizerConfig,
    PolicyConfig,
    PPOConfig,
    UserError,
)
from vla_rl.distributed import Shards, World
from vla_rl.distributed.sharding import Sharding, is_sharded, local, part_of
from vla_rl.distributed.torch_world import TorchWorld
from vla_rl.policies import OpenVLAPolicy
from vla_rl.policies.openvla.sharding import units_of
from vla_rl.policies.shardable import lending, playing
from vla_rl.runtime.checkpoint import flatten_optimizer, restore_optimizer
from vla_rl.runtime.child_pool import ChildPool
from vla_rl.training.sharded import whole
from vla_rl.types import Rollout

ENVS, COUNT, ITERATIONS = 6, 5, 4
"""Environments, shards, windows of play: rank 0 has the first two environments, rank 1 the other four."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """What is trained, and how."""

    name: str
    critic: str = "separate"
    lora: bool = False
    gather: str = "window"
    kl_coef: float = 0.0
    micro_batch: int = 0
    checkpointing: bool = False
    compute: torch.dtype = torch.float32
    learning_rate: float = 1e-3
    kept_successes: int = 0
    checkpoint: str = ""
    """In OpenVLA's own format; empty: a small policy of our own."""


@dataclass(frozen=True)
class Learned:
    """What came of it; weights by file and name, on rank 0 alone."""

    metrics: list[dict[str, float]]
    weights: dict[str, Tensor]
    share: float  # of the model's weights that this rank held
    dtypes: dict[bool, set[torch.dtype]]  # of the weights that were trained, and of the others


def policy_of(case: Case) -> OpenVLAPolicy:
    """Two layers and two blocks of each; adapters that say something, so that all of them have gradients."""
    model = narrow_model()
    config = PolicyConfig(
        device="cpu",
        lora=LoraConfig(rank=3, alpha=6) if case.lora else None,
        critic=CriticConfig(kind=case.critic),  # type: ignore[arg-type]
        activation_checkpointing=case.checkpointing,
        unnorm_key="kitchen" if case.checkpoint else "",
    )
    if case.checkpoint:
        torch.manual_seed(0)  # new adapters are drawn as a run is seeded
        return OpenVLAPolicy.from_checkpoint(case.checkpoint, config)
    model = replace(
        model,
        dino=replace(model.dino, depth=2),
        siglip=replace(model.siglip, depth=2),
        language=replace(model.language, layers=2),
    )
    policy = tiny_policy(["go on"], model, config, action_chunk=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.05, generator=generator)
    return policy


def play(policy: OpenVLAPolicy, iteration: int, turns: int = 4) -> Rollout:
    """A window of noise, played by the policy. In the third, rank 1 has no turn with an outcome."""
    rng = np.random.default_rng(iteration)
    shape, size = (turns, ENVS), policy.image_size
    valid = np.ones(shape, bool)
    valid[1, 3] = False
    if iteration == 2:
        valid[:, 2:] = False
    rollout = window(
        turns,
        ENVS,
        images=rng.integers(0, 256, (*shape, size, size, 3), dtype=np.uint8),
        instructions=("go on",),
        episode_ids=np.tile(ENVS * iteration + np.arange(ENVS), (turns, 1)),
        time_fraction=rng.random(shape, dtype=np.float32),
        rewards=rng.random(shape, dtype=np.float32),
        terminated=rng.random(shape) < 0.2,
        next_values=rng.random(ENVS, dtype=np.float32),
        next_images=np.zeros((ENVS, size, size, 3), np.uint8),
        succeeded=rng.random(shape) < 0.5,
        valid=valid,
    )
    uniforms = rng.random((turns * ENVS, 4), dtype=np.float32)
    with playing(policy):
        output = policy.act(rollout.flat_observation(), 1.0, uniforms)
    assert output.values is not None
    return replace(
        rollout,
        tokens=output.tokens.numpy().reshape(*shape, 4),
        log_probs=output.log_probs.numpy().reshape(*shape, 4),
        values=output.values.numpy().reshape(shape),
    )


def learn(world: World, case: Case, folder: Path) -> Learned:
    """Learn from windows of all environments, and save; sharded where there are several ranks."""
    policy = policy_of(case)
    if case.kl_coef:
        policy.keep_reference()
        with torch.no_grad():
            for parameter in policy.policy_parameters():
                parameter.mul_(1.01)  # the reference is another policy
    if world.size > 1:
        policy.shard(Sharding(world, CPU, case.gather, case.compute))  # type: ignore[arg-type]
    elif case.lora:
        for parameter in policy.model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(case.compute)
    shards = Shards.of(ENVS, COUNT, world)
    settings = PPOConfig(
        minibatch=11, epochs=2, critic_warmup=1, critic_epochs=1, critic_first_epochs=1, entropy_coef=0.01,
        kl_coef=case.kl_coef, micro_batch=case.micro_batch, logprob_tolerance=0.5,
        kept_successes=case.kept_successes,
    )  # fmt: skip
    rates = OptimizerConfig(learning_rate=case.learning_rate, warmup_steps=2, adam_eps=1e-6)
    learner = PPO(policy, settings, rates, policy.config.critic, 0, 1, world, shards)
    metrics = []
    for iteration in range(ITERATIONS):
        rollout = play(policy, iteration)
        if case.kept_successes:  # what always succeeds is not imitated
            rollout = replace(rollout, truncated=rollout.succeeded & ~rollout.terminated)
        own = slice(shards.own_envs.start, shards.own_envs.stop)
        mine = replace(
            rollout, images=rollout.images[:, own], next_images=rollout.next_images[own],
            first=own.start, shards=shards.by_env(),
        )  # fmt: skip
        batch = compute_advantages(mine, np.zeros_like(mine.rewards), settings)
        metrics.append(learner.update(batch, iteration, 0.0))
        if iteration == 1:
            save_and_restore(world, policy, learner)
    dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    for parameter in policy.model.parameters():
        dtypes[parameter.requires_grad].add(parameter.dtype)
    everyones = sum(parameter.numel() for parameter in policy.model.parameters())
    share = sum(local(parameter).numel() for parameter in policy.model.parameters()) / everyones
    with lending(policy, learner.optimizers().values()):
        if world.rank == 0:
            policy.save(folder)
    return Learned(metrics, weights_in(folder) if world.rank == 0 else {}, share, dtypes)


def save_and_restore(world: World, policy: OpenVLAPolicy, learner: PPO) -> None:
    """Take the optimizers' states whole, as a checkpoint has them, and put them back in parts."""
    sharding, saved = policy.sharding, {}
    with lending(policy, learner.optimizers().values()):
        if world.rank == 0:
            for name, optimizer in learner.optimizers().items():
                tensors, state = flatten_optimizer(optimizer, name)
                saved[name] = whole(tensors, sharding) if sharding else dict(tensors), state
    for name, (tensors, state) in world.broadcast(saved).items():
        assert not any(is_sharded(tensor) for tensor in tensors.values())
        restore_optimizer(learner.optimizers()[name], tensors, state, part_of)


def weights_in(folder: Path) -> dict[str, Tensor]:
    return {
        f"{file.relative_to(folder)}/{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def uneven_play(world: World, gather: str, kind: str = "shared") -> list[Tensor]:
    """Ranks that act and value as often as they happen to, then learn together; what rank 0 was told."""
    policy = policy_of(Case("play", kind))
    if world.size > 1:
        policy.shard(Sharding(world, CPU, gather))  # type: ignore[arg-type]
    told: list[Tensor] = []
    units, whole = units_of(policy.model), [0]

    def count(*_: object) -> None:
        together = sum(not is_sharded(next(unit.parameters())) for unit in units)
        whole[0] = max(whole[0], together)

    for layer in policy.model.language_model.model.layers:
        layer.register_forward_pre_hook(count)
    seen = make_observation(3, texts=("go on",), size=32)
    for round_ in range(2):
        with playing(policy), torch.no_grad():
            if world.rank == 0:
                for seed in range(2 + round_):
                    draws = np.random.default_rng(seed).random((3, 4), dtype=np.float32)
                    output = policy.act(seen, 1.0, draws)
                    told += [output.tokens, output.log_probs, policy.values(seen)]
            elif round_ == 0:
                policy.values(seen)
        told.append(torch.tensor(whole[0]))
        # a pass of learning: what is fetched ahead in it must not depend on who has played how often
        evaluation = policy.evaluate(seen, torch.zeros(3, 4, dtype=torch.int64))
        evaluation.log_probs.mean().backward()
        told.append(evaluation.log_probs.detach())
    return told if world.rank == 0 else []


def both_ranks(work: Callable[..., Any], *arguments: Any, timeout: float = 100.0) -> list[Any]:
    """What `work(world, ...)` returns on two ranks: this process, and a child."""
    store = TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    with ChildPool(1, reuse=False) as pool:
        other = pool.submit(_follow, store.port, timeout, work, arguments)
        world = TorchWorld(store, 0, 2, timeout, 0, 2)
        try:
            mine = work(world, *arguments)
        finally:
            world.leave()
        return [mine, other.result()]


def _follow(port: int, timeout: float, work: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    torch.set_num_threads(1)
    world = TorchWorld(TCPStore("127.0.0.1", port, 2, is_master=False), 1, 2, timeout, 1, 2)
    try:
        return work(world, *arguments)
    finally:
        world.leave()


def learn_all(world: World, cases: Sequence[Case], folder: Path) -> dict[str, Learned]:
    return {case.name: learn(world, case, folder / case.name) for case in cases}


def other_weights(world: World) -> str:
    """What a rank is told where one of them has read other weights."""
    policy = policy_of(Case("other"))
    if world.rank == 1:
        policy.model.language_model.lm_head.weight.data.mul_(2)
    sharding = Sharding(world, CPU)
    policy.shard(sharding)
    with pytest.raises(UserError) as error:
        sharding.require_same()
    return str(error.value)


def broken_weight(world: World) -> list[bool]:
    """What both ranks say of a weight of which one of them holds the part that is not a number."""
    policy = policy_of(Case("broken"))
    sharding = Sharding(world, CPU)
    policy.shard(sharding)
    gradients, weights = ShardedGradients(sharding, 0, None), policy.policy_parameters()
    said = [gradients.finite(weights)]
    if world.rank == 1:
        local(policy.model.language_model.lm_head.weight).fill_(torch.nan)
    return [*said, gradients.finite(weights)]
