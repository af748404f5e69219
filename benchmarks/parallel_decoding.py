"""Actions per second of two policies of one size: tokens one after another, and all of a turn in one parallel pass.

Both are tiny policies from random weights with the same instructions, images and chunk; they alternate within one run,
and a ratio is the median of the paired ratios with its quartiles. `act` decides the tokens of every observation, values
included; `learn` is `evaluate` on those tokens with its backward pass.

    python benchmarks/parallel_decoding.py --batch 16 --chunks 1 2 4 8
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vla_rl.config import CriticConfig, PolicyConfig, tiny_model
from vla_rl.policies import OpenVLAPolicy, identity_statistics
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.runtime.memory import keep_freed_memory
from vla_rl.types import Observation

INSTRUCTIONS = (
    "open the drawer",
    "close the drawer",
    "open the window",
    "press the button from the top",
)
ACTION_DIM = 4
WARM_UP = 3


@dataclass(frozen=True)
class Paired:
    """Wall times of both, in seconds a call, measured in turns."""

    one_by_one: list[float]
    parallel: list[float]

    @property
    def ratios(self) -> list[float]:
        """How many times as fast the parallel one was, pair by pair."""
        return [a / b for a, b in zip(self.one_by_one, self.parallel, strict=True)]


def measure(one: Callable[[], object], two: Callable[[], object], pairs: int) -> Paired:
    """Times of both, the first ones left out; they take turns in going first."""
    times: tuple[list[float], list[float]] = [], []
    for i in range(pairs + WARM_UP):
        order = (0, 1) if i % 2 else (1, 0)
        taken = {which: _seconds((one, two)[which]) for which in order}
        if i >= WARM_UP:
            times[0].append(taken[0])
            times[1].append(taken[1])
    return Paired(*times)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def policies(chunk: int) -> tuple[OpenVLAPolicy, OpenVLAPolicy]:
    """A policy of each class, with the same number of weights."""
    settings = PolicyConfig(critic=CriticConfig(kind="shared"), device="cpu")
    made = [
        kind.create(
            tiny_model(),
            INSTRUCTIONS,
            identity_statistics("bench", ACTION_DIM),
            ACTION_DIM,
            chunk,
            settings,
        )
        for kind in (OpenVLAPolicy, OpenVLAOFTPolicy)
    ]
    return made[0], made[1]


def observation(batch: int, size: int) -> Observation:
    """Pictures of noise; the instructions go round, so that prompts differ in length."""
    rng = np.random.default_rng(0)
    return Observation(
        rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8),
        tuple(INSTRUCTIONS[i % len(INSTRUCTIONS)] for i in range(batch)),
        np.zeros((batch, 4), np.float32),
        np.zeros(batch, np.float32),
    )


def compare(chunk: int, batch: int, pairs: int) -> dict[str, Paired]:
    """`act` and `learn` of both classes at this chunk."""
    one, two = policies(chunk)
    seen = observation(batch, one.image_size)
    tokens = one.act(seen, 1.0).tokens

    def learn(policy: OpenVLAPolicy) -> None:
        policy.zero_grad()
        policy.evaluate(seen, tokens).log_probs.mean().backward()

    return {
        "act": measure(lambda: one.act(seen, 1.0), lambda: two.act(seen, 1.0), pairs),
        "learn": measure(lambda: learn(one), lambda: learn(two), pairs),
    }


def table(found: Sequence[tuple[int, dict[str, Paired]]], batch: int, pairs: int) -> Table:
    shown = Table(title=f"tiny, batch {batch}, one thread, median of {pairs} pairs")
    for column in (
        "chunk",
        "tokens",
        "what",
        "one by one: actions/s",
        "parallel: actions/s",
        "ratio (quartiles)",
    ):
        shown.add_column(column, justify="right")
    for chunk, both in found:
        for what, paired in both.items():
            low, middle, high = statistics.quantiles(paired.ratios, n=4)
            rates = [
                batch * chunk / statistics.median(t) for t in (paired.one_by_one, paired.parallel)
            ]
            shown.add_row(
                str(chunk), str(chunk * ACTION_DIM), what, *(f"{rate:,.0f}" for rate in rates),
                f"{middle:.2f} ({low:.2f} to {high:.2f})",
            )  # fmt: skip
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=16, help="observations a call")
    parser.add_argument(
        "--chunks", type=int, nargs="+", default=[1, 2, 4, 8], help="actions a turn"
    )
    parser.add_argument("--pairs", type=int, default=30, help="alternating measurements")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    found = [(c, compare(c, arguments.batch, arguments.pairs)) for c in arguments.chunks]
    Console(width=110).print(table(found, arguments.batch, arguments.pairs))


if __name__ == "__main__":
    main()
