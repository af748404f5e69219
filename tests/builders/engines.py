"""Runs in which an engine decides, and engines that are killed."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_rl.config import (
    OPENVLA_7B,
    LanguageConfig,
    ModelConfig,
    PolicyConfig,
    TrainConfig,
)
from vla_rl.config.parallel import ParallelConfig
from vla_rl.distributed.world import World
from vla_rl.envs.toy.benchmark import TOY
from vla_rl.policies import OpenVLAPolicy, identity_statistics
from vla_rl.policies.policy import Policy, PolicyOutput
from vla_rl.recipes.presets import preset
from vla_rl.serving.engine import ServedEngine


def own_served(policy: Policy, config: TrainConfig, world: World) -> ServedEngine:
    """An engine that plays with our own decoding, in a process of its own."""
    return ServedEngine(policy, config, world, backend="own")


def toy_run(root: Path, engine: str, python: str, **parts: Any) -> TrainConfig:
    """Three iterations on the toy; from the second on the policy learns."""
    base = preset("toy")
    config = replace(
        base,
        env=replace(base.env, num_envs=4),
        schedule=replace(base.schedule, iterations=3, episodes=0),
        rollout=replace(base.rollout, turns=4),
        ppo=replace(base.ppo, critic_warmup=1, critic_warmup_until_explained=False, minibatch=8),
        eval=replace(base.eval, episodes_per_task=1, videos=0),
        run=replace(base.run, root=str(root), name=engine, save_every=1),
        parallel=ParallelConfig(engine=engine, engine_python=python, timeout=600.0),
    )
    return replace(config, **parts)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class KilledEngines:
    """Kills an engine's process before the n-th decisions that it is asked for."""

    def __init__(self, *when: int) -> None:
        self.when, self.asked, self.pids = when, 0, list[int]()
        self._act = ServedEngine.act

    def act(self, engine: ServedEngine, *given: Any) -> PolicyOutput:
        self.asked += 1
        assert engine._hosted is not None
        pid = engine._hosted.process.pid
        if pid not in self.pids:
            self.pids.append(pid)
        if self.asked in self.when:
            os.kill(pid, signal.SIGKILL)
        return self._act(engine, *given)


def servable_model(**language: Any) -> ModelConfig:
    """An OpenVLA that vLLM serves, a few numbers wide: 224 px, official towers, a small vocabulary."""
    tower = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 64}
    sizes = {
        "hidden": 64, "layers": 2, "heads": 2, "mlp_width": 96, "text_vocab": 512, "padded_vocab": 576,
        "max_positions": 512, "pad_token": 512,
    }  # fmt: skip
    return replace(
        OPENVLA_7B,
        name="servable",
        dino=replace(OPENVLA_7B.dino, **tower),
        siglip=replace(OPENVLA_7B.siglip, **tower),
        language=LanguageConfig(**{**sizes, **language}),
        action_bins=8,
        final_prompt_token=None,
    )


def save_servable(folder: Path, **language: Any) -> OpenVLAPolicy:
    """A checkpoint of such a model for the toy, its distributions far from uniform."""
    statistics = identity_statistics("toy", TOY.action_dim)
    policy = OpenVLAPolicy.create(
        servable_model(**language), TOY.instructions("toy"), statistics, TOY.action_dim, 1,
        PolicyConfig(device="cpu"),
    )  # fmt: skip
    policy.model.language_model.lm_head.weight.data.mul_(5.0)
    policy.save(folder)
    return policy
