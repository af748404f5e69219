"""The tables of docs/scaling.md: OpenVLA-7B on LIBERO on 1 to 1,024 GPUs, computed by `vla-rl plan`'s code.

    python benchmarks/plan_tables.py docs/scaling.md      puts them into the page, between its marks

Nothing here was measured on a GPU. What it rests on is in the costs files that come with the program.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from vla_rl.config import TrainConfig
from vla_rl.planning.arrangements import Machine
from vla_rl.planning.plan import KINDS, Plan, Row, plan
from vla_rl.recipes.plan import costs_for, machine_of
from vla_rl.recipes.presets import preset
from vla_rl.runtime.files import write_text

BEGIN, END = "<!-- computed tables: begin -->", "<!-- computed tables: end -->"
WRITE = "python benchmarks/plan_tables.py docs/scaling.md"
GPUS = tuple(2**power for power in range(11))
A_NODE = 8
ENVS, MINIBATCH, MOST_ENVS = 10, 128, 4096
"""Of each GPU, as the presets have them for one; and the most environments that a run may have."""
SUITES = ("spatial", "object", "goal", "10")
EPISODES = 50_000


def machine(gpus: int, gigabytes: float) -> Machine:
    """Nodes of eight GPUs and 96 cores; below eight, a part of one."""
    here = min(gpus, A_NODE)
    return machine_of(gpus // here, here, gigabytes, "h200" if gigabytes > 80 else "h100")


def run_of(suite: str, gpus: int) -> TrainConfig:
    """The preset with as many environments and as large a part of each minibatch for every GPU."""
    config = preset(f"libero-{suite}-openvla-7b")
    return replace(
        config,
        env=replace(config.env, num_envs=min(ENVS * gpus, MOST_ENVS)),
        ppo=replace(config.ppo, minibatch=MINIBATCH * gpus),
        parallel=replace(config.parallel, shards=max(config.parallel.shards, gpus)),
    )


@lru_cache(maxsize=256)
def planned(suite: str, gpus: int, gigabytes: float, kinds: tuple[str, ...] = ()) -> Plan:
    on = machine(gpus, gigabytes)
    kinds = kinds or ("ranks" if gpus > 1 else "single",)
    return plan(run_of(suite, gpus), on, costs_for(on), episodes=EPISODES, kinds=kinds)


def _best(rows: Sequence[Row], kind: str, staleness: int = 0) -> Row | None:
    found = [
        row
        for row in rows
        if row.arrangement.kind == kind and row.arrangement.staleness == staleness and row.fits
    ]
    return max(found, key=lambda row: row.turns_a_second) if found else None


def _seconds(row: Row | None) -> str:
    if row is None:
        return "-"
    of_whom = (
        f" ({row.arrangement.ranks} + {row.arrangement.actors})" if row.arrangement.actors else ""
    )
    return f"{row.times.seconds:.0f}{of_whom}"


def time_table() -> Iterator[str]:
    """Seconds of a window on GPUs of 141 GB."""
    yield (
        "| GPUs | environments | simulate | infer | score | learn | sync | wait | a window | turns/s | of ideal "
        "| fsdp2 | pools | pools, staleness 1 |"
    )
    yield "|---:|" + "---:|" * 13
    first = 0.0
    for gpus in GPUS:
        made = planned("spatial", gpus, 141, KINDS if gpus == 1 else KINDS[1:])
        row = _best(made.rows, "ranks") or made.rows[0]
        first = first or row.turns_a_second
        times = row.times
        parts = (
            times.simulate,
            times.infer,
            times.score,
            times.learn,
            times.sync,
            times.wait,
            times.seconds,
        )
        others = [
            _best(made.rows, kind, late)
            for kind, late in (("fsdp2", 0), ("pools", 0), ("pools", 1))
        ]
        cells = [
            f"{gpus:,}",
            f"{made.load.config.env.num_envs:,}",
            *(f"{part:.1f}" for part in parts),
        ]
        cells += [f"{row.turns_a_second:,.0f}", f"{row.turns_a_second / first / gpus:.0%}"]
        yield f"| {' | '.join([*cells, *map(_seconds, others)])} |"


def memory_table() -> Iterator[str]:
    """GB of a GPU and of a node, on GPUs of 80 and of 141 GB."""
    yield (
        "| GPUs | of 80 GB: weights | gradients, optimizer | caches | activations | workspace, exchange | rendering "
        "| all | micro-batch | of 141 GB: all | micro-batch | memory of a node | of it simulators |"
    )
    yield "|---:|" + "---:|" * 12
    for gpus in GPUS:
        small, large = (planned("spatial", gpus, gigabytes).rows for gigabytes in (80, 141))
        held, more = small[0].memory, large[0].memory
        part = held.learner
        sizes = (
            part.weights, part.gradients + part.optimizer, part.caches, part.activations,
            part.workspace + part.exchange,
            part.rendering, part.total,
        )  # fmt: skip
        cells = [f"{gpus:,}", *(f"{size / 1e9:.1f}" for size in sizes), str(held.micro_batch)]
        cells += [f"{more.learner.total / 1e9:.1f}", str(more.micro_batch)]
        cells += [f"{held.node.total / 1e9:,.0f}", f"{held.node.simulators / 1e9:,.0f}"]
        yield f"| {' | '.join(cells)} |"


def hours_table() -> Iterator[str]:
    """Hours and GPU-hours to so many episodes, all of them as long as they may be."""
    yield f"| GPUs | {' | '.join(f'libero-{suite}' for suite in SUITES)} |"
    yield "|---:|" + "---:|" * len(SUITES)
    for gpus in GPUS:
        cells = []
        for suite in SUITES:
            made = planned(suite, gpus, 141)
            row = _best(made.rows, "ranks") or made.rows[0]
            cells.append(f"{row.hours:,.1f} h, {row.gpu_hours:,.0f} GPU-hours")
        yield f"| {gpus:,} | {' | '.join(cells)} |"


def assumptions() -> Iterator[str]:
    """What the tables rest on."""
    made = planned("spatial", 16, 141, KINDS[1:])
    for phase, notes in sorted(made.assumptions.items()):
        yield from (f"- {phase}: {note}" for note in notes)


def tables() -> str:
    """All that stands between the marks."""
    parts = [
        "**Computed, not measured.** Seconds of a window of 128 turns in each environment, arrangement `ranks`, GPUs "
        "of 141 GB; the last columns are the whole window in the other arrangements.",
        "\n".join(time_table()),
        "**Computed, not measured.** Memory in GB.",
        "\n".join(memory_table()),
        f"**Computed, not measured.** Time to {EPISODES:,} episodes that all last to the horizon, which is the most "
        "they can take: successes end them sooner.",
        "\n".join(hours_table()),
        "All of it rests on assumptions:",
        "\n".join(assumptions()),
    ]
    return "\n\n".join(parts)


def with_tables(page: str) -> str:
    """The page with the tables of today."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_text(path, with_tables(path.read_text(encoding="utf-8")))
