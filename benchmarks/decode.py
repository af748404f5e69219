"""Actions per second of `act` against transformers' `generate`, on the same weights and the same batch.

Both sides get raw images and instructions and give K action tokens per observation. `generate` runs in
transformers' LlamaForCausalLM with our language weights, fed with the embeddings of our vision towers and
projector: what OpenVLA's own code does, but batched (prompts of one length, so that it needs no padding), greedy, from
the whole vocabulary. The two alternate within one run; the ratio is the median of the paired ratios. `act` also
computes values; `generate` has no critic. One more, untimed call restricts `generate` to the action ids and counts
on how many tokens both agree.

    python benchmarks/decode.py --batch 16 --threads 1

The share of the machine's matrix-multiply peak counts the multiplications that `act` cannot avoid (one prefill,
K - 1 steps, the last layer only where an answer is read, no biases, norms or softmax) against the best float32
product of two 2048 x 2048 matrices measured in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from peer_generate import transformers_generate
from vla_rl.config import PolicyConfig, tiny_model
from vla_rl.policies import OpenVLAPolicy, identity_statistics, kernels
from vla_rl.policies.openvla.work import act_products
from vla_rl.runtime.memory import keep_freed_memory
from vla_rl.types import Observation

INSTRUCTIONS = ("open the drawer", "close the drawer", "open the window", "close the window")
ACTION_DIM, ACTION_CHUNK = 4, 2


def matmul_peak(device: torch.device, size: int = 2048) -> float:
    """Best float32 FLOP/s of a square product, by torch's default and by the kernel `act` uses."""
    a = torch.randn(size, size, device=device)
    best = 0.0
    with torch.inference_mode():
        for product in (torch.matmul, kernels.linear):
            for _ in range(5):
                best = max(
                    best, 2 * size**3 / seconds(lambda product=product: product(a, a), device)
                )
    return best


def seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def compare(
    policy: OpenVLAPolicy, batch: int, pairs: int
) -> tuple[list[float], list[float], float]:
    """Paired wall times of `act` and `generate`, and the share of tokens on which they agree."""
    rng = np.random.default_rng(0)
    size = policy.description.model.image_size
    observation = Observation(
        rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8),
        tuple(INSTRUCTIONS[i % len(INSTRUCTIONS)] for i in range(batch)),
        np.zeros((batch, 4), np.float32),
        np.zeros(batch, np.float32),
    )
    generate = transformers_generate(policy)
    agreement = (policy.act(observation, 0.0).tokens == generate(observation, True)).double().mean()
    ours, theirs = [], []
    for i in range(pairs + 3):
        pair = (
            seconds(lambda: policy.act(observation, 0.0), policy.device),
            seconds(lambda: generate(observation, False), policy.device),
        )
        if i >= 3:  # the first ones warm up
            ours.append(pair[0])
            theirs.append(pair[1])
    return ours, theirs, float(agreement)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=16, help="observations per call")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--pairs", type=int, default=30, help="alternating measurements")
    parser.add_argument("--checkpoint", default="", help="policy folder; the tiny model if empty")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    if arguments.checkpoint:
        policy = OpenVLAPolicy.from_checkpoint(arguments.checkpoint)
    else:
        statistics_ = identity_statistics("bench", ACTION_DIM)
        policy = OpenVLAPolicy.create(
            tiny_model(), INSTRUCTIONS, statistics_, ACTION_DIM, ACTION_CHUNK, PolicyConfig()
        )
    ours, theirs, agreement = compare(policy, arguments.batch, arguments.pairs)
    peak = matmul_peak(policy.device)
    prompt = len(policy.processor.prompt_ids(INSTRUCTIONS[0]))
    work = 2 * act_products(policy.description.model, prompt, policy.num_tokens) * arguments.batch
    actions = arguments.batch * policy.action_chunk
    table = Table(
        title=f"{policy.description.model.name}, batch {arguments.batch}, {arguments.threads} thread(s), "
        f"{policy.num_tokens} tokens per observation, median of {arguments.pairs} pairs"
    )
    for column in ("", "actions/s", "ms per observation", "share of matmul peak"):
        table.add_column(column, justify="left" if not column else "right")
    for name, times in (("act", ours), ("transformers generate", theirs)):
        median = statistics.median(times)
        table.add_row(
            name,
            f"{actions / median:,.0f}",
            f"{1e3 * median / arguments.batch:.3f}",
            f"{work / median / peak:.1%}",
        )
    console = Console(width=110)
    console.print(table)
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    console.print(
        f"act is {ratio:.1f} times as fast (median of paired ratios). Same tokens: {agreement:.1%}. "
        f"Peak: {peak / 1e9:.0f} GFLOP/s float32; act needs {work / arguments.batch / 1e6:.0f} MFLOP per observation."
    )


if __name__ == "__main__":
    main()
