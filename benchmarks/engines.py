"""What an engine in another process costs: start, decisions, new weights. `python benchmarks/engines.py [vllm]`.

A small model of OpenVLA's architecture (224 px) with random weights, on the CPU, one thread. The engines are our own
policy in this process, the same in another one, and vLLM where its environment is there. One line of JSON each.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vla_rl.config import OPENVLA_7B, LanguageConfig, PolicyConfig
from vla_rl.config.parallel import ParallelConfig
from vla_rl.distributed import SingleProcess
from vla_rl.policies import OpenVLAPolicy, identity_statistics
from vla_rl.policies.openvla.exporting import MergedWeights
from vla_rl.recipes.presets import preset
from vla_rl.rollout.engine import OwnPolicy
from vla_rl.serving.engine import ServedEngine
from vla_rl.types import Observation

ROWS, REPEATS = (1, 8, 32), 5
INSTRUCTIONS = ("open the drawer", "close the window")


def make_policy() -> OpenVLAPolicy:
    tower = {"width": 128, "depth": 4, "heads": 4, "mlp_width": 512}
    language = LanguageConfig(
        hidden=512, layers=8, heads=8, mlp_width=1376, text_vocab=32000, padded_vocab=32064, max_positions=512,
    )  # fmt: skip
    model = replace(
        OPENVLA_7B, name="bench", language=language, final_prompt_token=None,
        dino=replace(OPENVLA_7B.dino, **tower), siglip=replace(OPENVLA_7B.siglip, **tower),
    )  # fmt: skip
    statistics = identity_statistics("bench", 7)
    return OpenVLAPolicy.create(model, INSTRUCTIONS, statistics, 7, 1, PolicyConfig(device="cpu"))


def observation(rows: int) -> Observation:
    rng = np.random.default_rng(rows)
    return Observation(
        rng.integers(0, 256, (rows, 224, 224, 3), dtype=np.uint8),
        tuple(INSTRUCTIONS[i % 2] for i in range(rows)),
        np.zeros((rows, 4), np.float32),
        np.zeros(rows, np.float32),
    )


def seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """The shortest of several times."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return round(min(times), 4)


def measure(name: str, policy: OpenVLAPolicy) -> dict[str, Any]:
    config = replace(preset("toy"), parallel=ParallelConfig(engine="vllm"))
    if name == "own, served":
        config = replace(config, parallel=replace(config.parallel, engine_python=sys.executable))
    kind = "vllm" if name == "vllm" else "own"
    result: dict[str, Any] = {"engine": name}
    with ExitStack() as opened:
        started = time.perf_counter()
        player: Any = OwnPolicy(policy)
        if name != "own":
            player = opened.enter_context(ServedEngine(policy, config, SingleProcess(), kind))
        result["start"] = round(time.perf_counter() - started, 1)
        for rows in ROWS:
            seen = observation(rows)
            uniforms = np.random.default_rng(0).random((rows, policy.num_tokens), np.float32)
            result[f"act {rows}"] = seconds(lambda s=seen, u=uniforms: player.act(s, 1.0, u))
        result["renew"] = seconds(lambda: player.renew(policy, 1), 3)
    weights = MergedWeights(policy)
    result["megabytes"] = sum(weights.base[n].numel() for n in weights.learned) * 4 // 2**20
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    names = ["own", "own, served", *(["vllm"] if "vllm" in sys.argv[1:] else [])]
    for engine in names:
        print(json.dumps(measure(engine, make_policy())), flush=True)
