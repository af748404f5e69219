"""A plan as text for a terminal, and as the tables of docs/scaling.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from vla_rl.planning.memory import DeviceMemory, NodeMemory
from vla_rl.planning.plan import Plan, Row
from vla_rl.planning.timing import PHASES

ASSUMED = "~"
GB = 1e9


def plan_table(made: Plan) -> str:
    """The whole plan."""
    parts = [_heading(made), _table(_memory_rows(made)), _table(_time_rows(made))]
    parts += [_said(made), _advice(made)]
    return "\n\n".join(part for part in parts if part)


def _heading(made: Plan) -> str:
    load, machine = made.load, made.machine
    config = load.config
    if machine.gpus:
        each = (
            f"{machine.gpus} x {machine.gpu_memory / GB:g} GB ({machine.gpu}), {machine.cpus} cores"
        )
    else:
        each = f"{machine.cpus} cores, no GPU"
    nodes = f"{machine.nodes} nodes of {each}" if machine.nodes > 1 else each
    adapters = f", {load.trained / 1e6:.1f} M of adapters" if load.lora else ""
    return (
        f"{load.model.name}: {load.weights / 1e6:,.1f} M weights{adapters}; {config.env.suite}, {config.env.num_envs} "
        f"environments, windows of {load.turns} turns, minibatches of {config.ppo.minibatch}\non {nodes}; costs: "
        f"{'; '.join(made.costs)}"
    )


def _memory_rows(made: Plan) -> list[list[str]]:
    """Per arrangement: the parts of a GPU, then those of a node."""
    of_device = [entry.name for entry in fields(DeviceMemory)]
    of_node = [entry.name for entry in fields(NodeMemory)]
    unit = "a GPU" if made.load.on_gpu else "a rank"
    head = [f"GB of {unit}", "micro-batch", *of_device, "all", "| of a node", *of_node, "all"]
    rows = [head]
    for row in made.rows:
        held = row.memory
        device = [f"{getattr(held.learner, name) / GB:.2f}" for name in of_device]
        node = [f"{getattr(held.node, name) / GB:.2f}" for name in of_node]
        rows.append(
            [
                row.arrangement.name, str(held.micro_batch), *device, f"{held.learner.total / GB:.1f}",
                "|", *node, f"{held.node.total / GB:.1f}",
            ]
        )  # fmt: skip
        if held.actor is not None:
            actor = [f"{getattr(held.actor, name) / GB:.2f}" for name in of_device]
            blank = [""] * (len(of_node) + 1)
            rows.append(["  its actors", "", *actor, f"{held.actor.total / GB:.1f}", "|", *blank])
    return rows


def _time_rows(made: Plan) -> list[list[str]]:
    gpu = ["GPU-hours"] if made.load.on_gpu else []
    head = ["seconds of a window", "fits", "all", *PHASES, "turns/s", "episodes/s", "steps/s"]
    return [
        [*head, f"hours to {made.episodes}", *gpu],
        *(_times(row, bool(gpu)) for row in made.rows),
    ]


def _times(row: Row, gpu: bool) -> list[str]:
    mark = ASSUMED if row.assumed else ""
    phases = [
        f"{ASSUMED if name in row.assumed else ''}{_short(getattr(row.times, name))}"
        for name in PHASES
    ]
    rates = (row.turns_a_second, row.episodes_a_second, row.steps_a_second, row.hours)
    cells = [f"{mark}{_short(number)}" for number in rates]
    cells += [f"{mark}{_short(row.gpu_hours)}"] if gpu else []
    name = row.arrangement.name + ("" if row.in_this_version else " *")
    return [
        name,
        "yes" if row.fits else "no",
        f"{mark}{_short(row.times.seconds)}",
        *phases,
        *cells,
    ]


def _short(number: float) -> str:
    """Three digits, which is more than is known."""
    if number == 0:
        return "0"
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.2f}" if number < 10 else f"{number:.1f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = row
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def _said(made: Plan) -> str:
    lines = [f"{row.arrangement.name}: {row.obstacle}" for row in made.rows if row.obstacle]
    if any(not row.in_this_version for row in made.rows):
        lines.append("* this version of the program has no options for it")
    if made.assumptions:
        lines.append(f"{ASSUMED} rests on what was not measured:")
        lines += [
            f"  {phase}: {note}"
            for phase, notes in sorted(made.assumptions.items())
            for note in notes
        ]
    lines.append("Memory is counted from shapes; workspace and fragmentation are assumptions.")
    return "\n".join([*lines, *made.notes])


def _advice(made: Plan) -> str:
    if made.recommended is not None:
        row = made.recommended
        return f"Recommended: {row.arrangement.name}, {made.reason}.\n  {row.command}"
    runnable = [row for row in made.rows if row.fits]
    if runnable:
        return "Nothing that fits can be started with this version of the program."
    if not made.would_fit:
        return "Nothing fits, and no single change of ours would do: take a smaller model or larger GPUs."
    return "\n".join(
        ["Nothing fits. Each of these alone would:", *(f"  {way}" for way in made.would_fit)]
    )


def markdown_row(cells: Sequence[str]) -> str:
    """One line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"
