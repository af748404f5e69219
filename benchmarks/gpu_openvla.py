"""OpenVLA-7B with random weights on a GPU: decoding, LoRA learning, and transformers' `generate` beside them.

    python benchmarks/gpu_openvla.py --size 7b --out gpu_openvla.json

Needs no checkpoint: the model is made on the device in bfloat16, 15 GB. Everything is measured in one run, each
figure the median of several calls after a warm-up, in device time between CUDA events (on a CPU: wall time):

  act                 images and instructions to tokens, log-probs and values; prefill and token loop apart, the
                      loop also without CUDA graphs
  act, adapters       the same with LoRA adapters in place, as in training
  generate            transformers' LlamaForCausalLM.generate on the same weights, fed by our vision towers: one
                      image at a time as OpenVLA's `predict_action` does, and the same batch at once
  learn               one micro-batch forward and backward: clipped surrogate and value loss, gradients of adapters
                      and critic; with and without activation checkpointing

"share of peak" divides the FLOPs that the work cannot avoid (openvla_work.py: recomputed ones do not count) by
those of the best large square product in the same precision, measured in the same run. What does not fit in memory
is said to. Results go to `--out` as JSON and beside it as a Markdown table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openvla_work import act_products, learner_products
from peer_generate import transformers_generate
from vla_rl.algorithms.gradients import ThreadedGradients
from vla_rl.config import (
    OPENVLA_7B,
    CriticConfig,
    LoraConfig,
    ModelConfig,
    PolicyConfig,
    tiny_model,
)
from vla_rl.functional import clipped_surrogate, squared_value_loss
from vla_rl.policies import OpenVLA, OpenVLAPolicy, build_tiny_tokenizer, identity_statistics
from vla_rl.policies.openvla import lora
from vla_rl.policies.openvla.config_files import Checkpoint
from vla_rl.policies.openvla.decoding import TokenDecoder
from vla_rl.policies.openvla.processing import pixel_values, raw_pixels
from vla_rl.types import Observation

WORDS = "pick up the black bowl between the plate and the ramekin and place it on the plate"
PROMPT_TOKENS = 35
"""As Llama's tokenizer makes them of LIBERO's instructions and OpenVLA's template."""
ACTION_DIM = 7
LORA = LoraConfig(rank=32, alpha=16)
TEMPERATURE = 1.5
MODELS = {"tiny": tiny_model(), "7b": OPENVLA_7B}
GOALS = "Goals on an H200: 100 actions/s at batch 64, learner at 45 % of peak, 10 times `generate` per image."

Row = dict[str, Any]


def random_policy(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> OpenVLAPolicy:
    """A policy of any size with random weights, made where it runs: never whole in host memory, never in float32."""
    with torch.device("meta"):
        network = OpenVLA(config).to(dtype)
    network.to_empty(device=device).requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in network.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.normal_(0, 0.02, generator=generator)
    critic = CriticConfig(kind="shared")
    statistics_ = identity_statistics("bench", ACTION_DIM)
    description = Checkpoint(config, statistics_, ACTION_DIM, 1, critic=critic)
    tokenizer = build_tiny_tokenizer([WORDS], config)
    settings = PolicyConfig(critic=critic, device=str(device))
    return OpenVLAPolicy(network, tokenizer, description, settings, device)


def remade(policy: OpenVLAPolicy, **changes: Any) -> OpenVLAPolicy:
    """The same weights under a changed PolicyConfig."""
    config = dataclasses.replace(policy.config, **changes)
    description = dataclasses.replace(policy.description, lora=config.lora)
    tokenizer = policy.processor.tokenizer
    return OpenVLAPolicy(policy.model, tokenizer, description, config, policy.device)


def instruction(policy: OpenVLAPolicy, prompt_tokens: int) -> str:
    """A text whose prompt has so many tokens: the benchmark's tokenizer takes one for each word."""
    words = WORDS.split()
    count = prompt_tokens - len(policy.processor.prompt_ids(WORDS)) + len(words)
    if count < 1:
        raise ValueError(f"a prompt needs at least {prompt_tokens - count + 1} tokens")
    text = " ".join(words[i % len(words)] for i in range(count))
    assert len(policy.processor.prompt_ids(text)) == prompt_tokens
    return text


def observations(policy: OpenVLAPolicy, count: int) -> Observation:
    rng = np.random.default_rng(0)
    size = policy.description.model.image_size
    return Observation(
        rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
        (instruction(policy, PROMPT_TOKENS),) * count,
        np.zeros((count, 8), np.float32),
        np.zeros(count, np.float32),
    )


class Clock:
    """Seconds between marks: of the device where there are CUDA events, else of the wall."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.device.type != "cuda":
            self.marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def laps(self) -> list[float]:
        """Seconds from each mark to the next; waits for the device."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        self.marks = []
        if self.device.type != "cuda":
            return [b - a for a, b in pairs]
        torch.cuda.synchronize(self.device)
        return [1e-3 * a.elapsed_time(b) for a, b in pairs]


def measure(
    work: Callable[[Clock], None], device: torch.device, repeats: int
) -> tuple[list[float], float | None]:
    """Medians of the laps that `work` marks, after a warm-up, and the peak memory (GiB) where it can be told."""
    on_gpu = device.type == "cuda"
    clock = Clock(device)
    for _ in range(3):
        work(clock)
    clock.laps()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    laps = []
    for _ in range(repeats):
        work(clock)
        laps.append(clock.laps())
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None
    return [statistics.median(column) for column in zip(*laps, strict=True)], peak


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of the best of several square products."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")

    def multiply(clock: Clock) -> None:
        clock.mark()
        torch.mm(a, b)
        clock.mark()

    for _ in range(5):
        best = min(best, measure(multiply, device, 5)[0][0])
    return 2 * size**3 / best


def measure_act(policy: OpenVLAPolicy, batch: int, repeats: int) -> Row:
    """`act` whole, then its prefill and token loop apart, and the loop without recordings."""
    seen, device = observations(policy, batch), policy.device

    def whole(clock: Clock) -> None:
        clock.mark()
        policy.act(seen, TEMPERATURE)
        clock.mark()

    def parts(decoder: TokenDecoder) -> Callable[[Clock], None]:
        @torch.inference_mode()
        def run(clock: Clock) -> None:
            clock.mark()
            pixels = pixel_values(raw_pixels(seen.images, device), policy.processor.config)
            prompts = policy.processor.prompts(seen.instructions, device)
            hidden, state = decoder.prefill(pixels, prompts)
            clock.mark()
            draws = torch.rand(batch, policy.num_tokens).to(device)
            decoder.choose(hidden, state, draws, TEMPERATURE)
            clock.mark()

        return run

    (total,), peak = measure(whole, device, repeats)
    (prefill, loop), _ = measure(parts(policy.decoder), device, repeats)
    (_, plain), _ = measure(parts(TokenDecoder(policy.model, policy.num_tokens)), device, repeats)
    if not torch.isfinite(policy.act(seen, TEMPERATURE).log_probs).all():
        raise RuntimeError("act gave log-probs that are not finite: the measurement means nothing")
    return {
        "batch": batch,
        "seconds": total,
        "prefill_seconds": prefill,
        "loop_seconds": loop,
        "plain_loop_seconds": plain,
        "graphs": policy.decoder.recordings,
        "peak_gib": peak,
    }


def measure_generate(policy: OpenVLAPolicy, batch: int, repeats: int) -> Row:
    generate, seen = transformers_generate(policy), observations(policy, batch)

    def work(clock: Clock) -> None:
        clock.mark()
        generate(seen, False)
        clock.mark()

    (seconds,), peak = measure(work, policy.device, repeats)
    return {"batch": batch, "seconds": seconds, "peak_gib": peak}


def measure_learning(policy: OpenVLAPolicy, batch: int, repeats: int) -> Row:
    """One micro-batch as PPO learns it: forward, backward, gradients of adapters and critic."""
    seen, device = observations(policy, batch), policy.device
    out = policy.act(seen, TEMPERATURE)
    targets = torch.linspace(-1, 1, batch, device=device)
    parameters: list[nn.Parameter] = policy.policy_parameters() + policy.critic_parameters()
    gradients = ThreadedGradients(1, device=device)

    def loss(rows: Tensor) -> tuple[Tensor, dict[str, float]]:
        now = policy.evaluate(seen.select(rows.numpy()), out.tokens[rows], TEMPERATURE)
        surrogate = clipped_surrogate(now.log_probs, out.log_probs[rows], targets[rows])
        return surrogate + squared_value_loss(now.values, targets[rows]), {}

    def work(clock: Clock) -> None:
        clock.mark()
        gradients.backward(loss, [torch.arange(batch)], parameters)
        clock.mark()

    (seconds,), peak = measure(work, device, repeats)
    for parameter in parameters:
        parameter.grad = None
    return {"batch": batch, "seconds": seconds, "peak_gib": peak}


def every(
    measurement: Callable[[OpenVLAPolicy, int, int], Row],
    policy: OpenVLAPolicy,
    batches: Iterable[int],
    repeats: int,
    flops: float,
    peak: float,
) -> list[Row]:
    """A measurement at every batch size, up to the first that does not fit in memory."""
    rows: list[Row] = []
    for batch in batches:
        try:
            row = measurement(policy, batch, repeats)
        except torch.OutOfMemoryError:
            rows.append({"batch": batch, "fits": False})
            break
        finally:
            if policy.device.type == "cuda":
                torch.cuda.empty_cache()
        rate = batch / row["seconds"]
        rows.append(row | {"fits": True, "per_second": rate, "share_of_peak": rate * flops / peak})
    return rows


def run(
    size: str, device: torch.device, batches: list[int], micro_batches: list[int], repeats: int
) -> Row:
    """All measurements of one size, as what the JSON file holds."""
    config = MODELS[size]
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    peak = matmul_peak(device, dtype, 16384 if on_gpu else 512)
    policy = random_policy(config, device, dtype)
    act_flops = 2 * act_products(config, PROMPT_TOKENS, policy.num_tokens)
    learn_flops = 2 * learner_products(config, PROMPT_TOKENS, policy.num_tokens, LORA.rank)
    result: Row = {
        "size": size,
        "device": torch.cuda.get_device_name(device) if on_gpu else "CPU",
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "matmul_peak_flops": peak,
        "prompt_tokens": PROMPT_TOKENS,
        "action_tokens": policy.num_tokens,
        "act_flops": act_flops,
        "learn_flops": learn_flops,
        "lora_rank": LORA.rank,
        "temperature": TEMPERATURE,
    }
    result["act"] = every(measure_act, policy, batches, repeats, act_flops, peak)
    result["generate"] = every(measure_generate, policy, batches, repeats, act_flops, peak)
    lora.add_adapters(policy.model, LORA)
    policy = remade(policy, lora=LORA)
    result["act_adapters"] = every(measure_act, policy, batches, repeats, act_flops, peak)
    for name, checkpointing in (("learn", False), ("learn_checkpointing", True)):
        learner = remade(policy, activation_checkpointing=checkpointing, decode_graphs=False)
        result[name] = every(measure_learning, learner, micro_batches, repeats, learn_flops, peak)
    return result


TITLES = {
    "act": "act",
    "act_adapters": "act, adapters",
    "generate": "generate",
    "learn": "learn",
    "learn_checkpointing": "learn, checkpointing",
}


def markdown(result: Row) -> str:
    """The result as a table, with what it was measured on."""
    unit = f"{result['matmul_peak_flops'] / 1e12:.3g} TFLOP/s"
    lines = [
        f"OpenVLA-class model `{result['size']}`, random weights, {result['dtype']}, on {result['device']}, torch "
        f"{result['torch']}; best square product {unit}; prompt {result['prompt_tokens']} tokens; "
        f"{result['act_flops'] / 1e12:.3g} TFLOP an action, {result['learn_flops'] / 1e12:.3g} a sample learnt.",
        "",
        "| what | batch | per second | ms a call | prefill ms | token loop ms | loop without graphs ms "
        "| share of peak | peak memory GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, title in TITLES.items():
        for row in result[name]:
            if not row["fits"]:
                lines.append(f"| {title} | {row['batch']} | does not fit | | | | | | |")
                continue
            times = [
                f"{1e3 * row[key]:.1f}" if key in row else ""
                for key in ("seconds", "prefill_seconds", "loop_seconds", "plain_loop_seconds")
            ]
            memory = "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
            lines.append(
                f"| {title} | {row['batch']} | {row['per_second']:.3g} | {' | '.join(times)} "
                f"| {row['share_of_peak']:.1%} | {memory} |"
            )
    return "\n".join([*lines, "", *comparisons(result), ""])


def comparisons(result: Row) -> list[str]:
    """How the goals are met, as far as the run tells."""
    ours = {row["batch"]: row for row in result["act"] if row["fits"]}
    peer = {row["batch"]: row for row in result["generate"] if row["fits"]}
    lines = [GOALS, ""]
    if 1 in peer and ours:
        best = max(ours.values(), key=lambda row: row["per_second"])
        ratio = best["per_second"] / peer[1]["per_second"]
        lines.append(
            f"- `act` at batch {best['batch']} plays {ratio:.1f} times the actions of `generate` per image."
        )
    for batch in sorted(set(ours) & set(peer)):
        ratio = peer[batch]["seconds"] / ours[batch]["seconds"]
        lines.append(f"- batch {batch}: `act` is {ratio:.2f} times as fast as `generate` batched.")
    if result["device"] != "CPU" and not all(row["graphs"] for row in ours.values()):
        lines.append("- Some token loops ran without CUDA graphs: see the log for the reason.")
    return lines


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=sorted(MODELS), default="7b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", type=numbers, default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument(
        "--micro-batches", type=numbers, default=[1, 2, 4, 8, 16, 32, 64], help="of the learner"
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("gpu_openvla.json"))
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if arguments.size == "7b" and device.type != "cuda":
        parser.error("--size 7b needs a GPU with 24 GB or more; on a CPU take --size tiny")
    result = run(
        arguments.size, device, arguments.batches, arguments.micro_batches, arguments.repeats
    )
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = markdown(result)
    arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
