"""Tokens, bits and round-trip error of FAST action tokens against bins, on a dataset's turns.

The tokenizer is learned from the first four fifths of the episodes and measured on the rest. Error is the root mean
square of actions in -1..1 after encoding and decoding. Bits of a turn are its tokens times log2 of the number of codes
(the end token is one of both). bins: a token for each number, on a grid of so many values.

    python benchmarks/fast_tokens.py runs/demos --chunks 2 8 16 --scales 5 10 20 --vocabularies 128 256 1024
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64
from rich.console import Console
from rich.table import Table

from vla_rl.config import UserError
from vla_rl.data.demonstrations import action_chunks
from vla_rl.data.lerobot import LeRobotReader
from vla_rl.envs.registry import normalised_robots
from vla_rl.policies.action_tokens import ActionStatistics, ActionTokenizer
from vla_rl.policies.fast.actions import normalized
from vla_rl.policies.fast.tokenizer import fit

TRAINING_SHARE = 0.8


class Row(NamedTuple):
    """What one way of writing turns costs and loses."""

    chunk: int
    name: str
    codes: int
    tokens: float
    longest: int
    bits: float
    error: float
    unknown: float
    """Share of numbers of the transform that the demonstrations which were learned from do not have."""


class Actions(NamedTuple):
    """A dataset's actions without its images."""

    actions: Float32[np.ndarray, "F A"]
    episodes: Int64[np.ndarray, " F"]
    statistics: ActionStatistics

    def turns(
        self, chunk: int
    ) -> tuple[Float64[np.ndarray, "N C A"], Float64[np.ndarray, "M C A"]]:
        """Normalised turns to learn from, and those of other episodes."""
        chunks = normalized(action_chunks(self.actions, self.episodes, chunk), self.statistics)
        first = self.episodes < np.quantile(np.unique(self.episodes), TRAINING_SHARE)
        return chunks[first], chunks[~first]


def read(dataset: str) -> Actions:
    """UserError for a dataset that is missing, damaged or of one episode."""
    reader = LeRobotReader(dataset)
    actions = reader.finite_column("action").astype(np.float32)
    episodes = reader.frame_order()
    if len(np.unique(episodes)) < 2:
        raise UserError(f"{dataset}: expected two episodes, to learn from one and measure another")
    low, high = np.quantile(actions.astype(np.float64), [0.01, 0.99], axis=0)
    if reader.info.robot_type in normalised_robots():
        low, high = -np.ones_like(low), np.ones_like(high)
    return Actions(actions, episodes, ActionStatistics(low, high, np.ones(low.shape, bool)))


def error(found: Float64[np.ndarray, "N C A"], wanted: Float64[np.ndarray, "N C A"]) -> float:
    return float(np.sqrt(np.mean((found - wanted) ** 2)))


def of_bins(chunks: Float64[np.ndarray, "N C A"], bins: int) -> Row:
    """Every number a token."""
    grid = ActionTokenizer(bins, "grid")
    count = chunks[0].size
    back = grid.decode(grid.encode(chunks))
    bits = count * math.log2(bins)
    return Row(chunks.shape[1], f"{bins} bins", bins, count, count, bits, error(back, chunks), 0.0)


def of_fast(
    learned: Float64[np.ndarray, "N C A"],
    chunks: Float64[np.ndarray, "M C A"],
    scale: float,
    vocabulary: int,
) -> Row | None:
    """FAST tokens; None where the vocabulary has no room for the numbers that occur."""
    try:
        tokenizer = fit(learned, vocabulary, scale)
    except UserError:
        return None
    rows = tokenizer.encode(chunks)
    back = [found for found in tokenizer.decode_batch(rows) if found is not None]
    lengths = [len(row) + 1 for row in rows]
    codes = tokenizer.vocabulary + 1
    mean = float(np.mean(lengths))
    return Row(
        chunks.shape[1], f"FAST {vocabulary}, scale {scale:g}", codes, mean, max(lengths),
        mean * math.log2(codes), error(np.clip(np.stack(back), -1, 1), chunks), tokenizer.outside(chunks) / chunks.size,
    )  # fmt: skip


def measured(
    dataset: str, chunks: Sequence[int], scales: Sequence[float], vocabularies: Sequence[int]
) -> Iterator[Row]:
    found = read(dataset)
    for chunk in chunks:
        learned, others = found.turns(chunk)
        yield from (of_bins(others, bins) for bins in (32, 256))
        for scale in scales:
            for vocabulary in vocabularies:
                row = of_fast(learned, others, scale, vocabulary)
                if row is not None:
                    yield row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("dataset", help="folder of a LeRobotDataset v3")
    parser.add_argument("--chunks", type=int, nargs="+", default=[2, 8, 16], help="actions a turn")
    parser.add_argument("--scales", type=float, nargs="+", default=[5.0, 10.0, 20.0])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[128, 256, 1024])
    asked = parser.parse_args()
    table = Table(
        "chunk",
        "written in",
        "codes",
        "tokens a turn",
        "longest",
        "bits a turn",
        "error",
        "unknown",
    )
    try:
        for row in measured(asked.dataset, asked.chunks, asked.scales, asked.vocabularies):
            table.add_row(
                str(row.chunk), row.name, str(row.codes), f"{row.tokens:.1f}", str(row.longest),
                f"{row.bits:.0f}", f"{row.error:.4f}", f"{row.unknown:.2%}",
            )  # fmt: skip
    except UserError as fault:
        parser.exit(2, f"{fault}\n")
    Console().print(table)


if __name__ == "__main__":
    main()
