"""A plan: what fits, how fast it will be, and which arrangement to start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from vla_rl.config import LoraConfig, TrainConfig
from vla_rl.planning.arrangements import (
    Arrangement,
    Machine,
    arrangements,
    command,
    shards_of,
    why_not,
)
from vla_rl.planning.costs import Costs
from vla_rl.planning.lookup import RunCosts, costs_of
from vla_rl.planning.memory import Memory, memory
from vla_rl.planning.timing import WindowTimes, window_times
from vla_rl.planning.workload import Workload, workload

FORMAT = 1
NEARLY = 0.97
"""An arrangement that is simpler and nearly as fast is recommended."""
EPISODES = 10_000
"""To which hours are counted where neither the command nor the schedule names a number."""
FEW_WORKERS = 4
KINDS = ("single", "ranks", "fsdp2", "pools")
SIZES = (24, 40, 80, 141, 192, 288)
"""Memory of GPUs that there are, in GB."""


@dataclass(frozen=True)
class Row:
    """One arrangement."""

    arrangement: Arrangement
    obstacle: str
    """Why the run cannot be spread like that, or what does not fit; empty where nothing is in the way."""
    in_this_version: bool
    memory: Memory
    times: WindowTimes
    assumed: tuple[str, ...]
    """Phases whose seconds rest on an assumption."""
    turns_a_second: float
    episodes_a_second: float
    steps_a_second: float
    hours: float
    """To the wanted episodes."""
    gpu_hours: float
    command: str

    @property
    def fits(self) -> bool:
        return not self.obstacle


@dataclass(frozen=True)
class Plan:
    """All arrangements of a run on a machine."""

    load: Workload
    machine: Machine
    episodes: int
    rows: tuple[Row, ...]
    recommended: Row | None
    reason: str
    would_fit: tuple[str, ...]
    """What would, where nothing fits."""
    notes: tuple[str, ...]
    costs: tuple[str, ...]
    assumptions: dict[str, tuple[str, ...]]


def plan(
    config: TrainConfig,
    machine: Machine,
    costs: Costs,
    *,
    episodes: int = 0,
    episode_turns: float = 0.0,
    words: Sequence[str] = (),
    kinds: Sequence[str] = KINDS,
) -> Plan:
    """Plan a run.

    episodes: to which hours are counted; 0 takes the schedule's, or `EPISODES`. episode_turns: mean length of an
    episode; 0 takes the costs', or the horizon. words: of the command line after `vla-rl train`. kinds: of arrangements
    to look at. UserError for a run that cannot be planned.
    """
    load = workload(config, machine.gpus)
    found = costs_of(load, costs, machine.gpu)
    notes = list(load.notes)
    if episode_turns > 0:
        found = replace(found, simulator=replace(found.simulator, episode_turns=episode_turns))
    elif found.simulator.episode_turns == 0:
        notes.append(
            f"episodes are counted as long as they may be, {load.config.env.horizon} turns: set --episode-turns "
            "otherwise"
        )
    if config.reward.chosen_kind == "model":
        notes.append("the process reward model's scoring and its memory are not counted")
    wanted = episodes or config.schedule.episodes or EPISODES
    rows = tuple(
        _row(load, arrangement, machine, found, wanted, words)
        for arrangement in arrangements(machine, config.parallel.ranks)
        if arrangement.kind in kinds
    )
    recommended, reason = _recommended(rows)
    return Plan(
        load=load,
        machine=machine,
        episodes=wanted,
        rows=rows,
        recommended=recommended,
        reason=reason,
        would_fit=() if any(row.fits for row in rows) else tuple(_would_fit(load, machine, found)),
        notes=tuple(notes),
        costs=costs.names,
        assumptions=_assumptions(found, rows),
    )


def _row(
    load: Workload,
    arrangement: Arrangement,
    machine: Machine,
    costs: RunCosts,
    episodes: int,
    words: Sequence[str],
) -> Row:
    config = load.config
    held = memory(load, arrangement, machine, costs.simulator, costs.process)
    times = window_times(load, arrangement, machine, costs, held.micro_batch)
    length = min(costs.simulator.episode_turns or config.env.horizon, config.env.horizon)
    turns = load.turns / times.seconds
    steps = config.env.action_chunk * config.env.action_repeat * costs.simulator.steps_share
    hours = episodes * length / turns / 3600
    used = arrangement.ranks + arrangement.actors
    return Row(
        arrangement=arrangement,
        obstacle=why_not(arrangement, config) or held.lacking,
        in_this_version=arrangement.in_this_version(),
        memory=held,
        times=times,
        assumed=_assumed_phases(arrangement, costs, load.on_gpu),
        turns_a_second=turns,
        episodes_a_second=turns / length,
        steps_a_second=turns * steps,
        hours=hours,
        gpu_hours=hours * used if load.on_gpu else 0.0,
        command=command(arrangement, machine, config, words),
    )


def _links(arrangement: Arrangement, on_gpu: bool) -> list[str]:
    """The links that an arrangement's exchanges go over."""
    if arrangement.ranks + arrangement.actors == 1:
        return []
    used = ["gpus" if on_gpu else "processes"]
    used += ["nodes"] if arrangement.nodes > 1 else []
    return used + (["weights"] if arrangement.kind == "pools" else [])


def _assumed_phases(arrangement: Arrangement, costs: RunCosts, on_gpu: bool) -> tuple[str, ...]:
    phases = set(costs.assumed)
    links = [costs.links[kind] for kind in _links(arrangement, on_gpu)]
    if any(link.source == "assumed" for link in links):
        phases |= {"sync", "infer"} if arrangement.kind in ("pools", "fsdp2") else {"sync"}
    if phases & {"simulate", "infer"} and arrangement.ranks > 1:
        phases.add("wait")
    return tuple(sorted(phases))


def _assumptions(costs: RunCosts, rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """What is assumed, by phase, in words."""
    said = {phase: list(notes) for phase, notes in costs.assumed.items()}
    kinds = dict.fromkeys(
        kind
        for row in rows
        for on_gpu in (row.gpu_hours > 0,)
        for kind in _links(row.arrangement, on_gpu)
    )
    for kind in kinds:
        link = costs.links[kind]
        if link.source == "assumed":
            said.setdefault("sync", []).append(f"{kind}: {link.note}")
    return {phase: tuple(dict.fromkeys(notes)) for phase, notes in said.items()}


def _recommended(rows: Sequence[Row]) -> tuple[Row | None, str]:
    """The fastest that fits and can be started; a simpler one where it is nearly as fast."""
    possible = [
        row for row in rows if row.fits and row.in_this_version and not row.arrangement.staleness
    ]
    if not possible:
        return None, "nothing fits"
    fastest = max(possible, key=lambda row: row.turns_a_second)
    chosen = next(r for r in possible if r.turns_a_second >= NEARLY * fastest.turns_a_second)
    others = [row for row in possible if row is not chosen]
    if not others:
        rest = [row for row in rows if row is not chosen]
        return chosen, "the only one that fits" if rest else "the only one on this machine"
    second = max(others, key=lambda row: row.turns_a_second)
    if chosen is not fastest:
        share = chosen.turns_a_second / fastest.turns_a_second
        return chosen, f"simpler than {fastest.arrangement.name}, and {share:.0%} as fast"
    ratio = chosen.turns_a_second / second.turns_a_second
    return chosen, f"{ratio:.2f} times as fast as the next one, {second.arrangement.name}"


def _would_fit(load: Workload, machine: Machine, costs: RunCosts) -> Iterator[str]:
    """Changes after which something fits, each alone."""
    for option, config in _changes(load.config):
        if _fits(replace(load, config=config), machine, costs):
            yield option
    for size in SIZES:
        if (
            load.on_gpu
            and size * 1e9 > machine.gpu_memory
            and _fits(load, _with(machine, size), costs)
        ):
            yield f"GPUs of {size} GB (--gpu-memory {size})"
            break
    for nodes in (1, 2, 4, 8, 16, 32):
        more = replace(machine, gpus=8, nodes=nodes)
        if load.on_gpu and more.places > machine.places and _fits(load, more, costs):
            yield f"{more.places} GPUs with sharded weights (--gpus 8 --nodes {nodes}, parallel.shard fsdp2)"
            break
    if machine.memory is not None and not load.on_gpu:
        needed = memory(load, Arrangement("single", 1), machine, costs.simulator, costs.process)
        yield f"{needed.node.total / 1e9:.1f} GB of memory in one process"


def _with(machine: Machine, gigabytes: float) -> Machine:
    return replace(machine, gpu_memory=gigabytes * 1e9)


def _changes(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    policy, ppo, env = config.policy, config.ppo, config.env
    if ppo.micro_batch != 1:
        yield "--ppo.micro-batch 1", replace(config, ppo=replace(ppo, micro_batch=1))
    if not policy.activation_checkpointing:
        changed = replace(policy, activation_checkpointing=True)
        yield "--policy.activation-checkpointing", replace(config, policy=changed)
    if policy.lora is None:
        yield "--policy.lora", replace(config, policy=replace(policy, lora=LoraConfig()))
        small = replace(policy, lora=LoraConfig(), activation_checkpointing=True)
        yield (
            "--policy.lora --policy.activation-checkpointing --ppo.micro-batch 1",
            replace(config, policy=small, ppo=replace(ppo, micro_batch=1)),
        )
    if (
        env.num_workers == 0 or env.num_workers > FEW_WORKERS
    ):  # each that draws on a GPU takes memory of it
        changed = replace(env, num_workers=FEW_WORKERS)
        yield f"--env.num-workers {FEW_WORKERS}", replace(config, env=changed)
    fewer = env.num_envs // 2
    while fewer >= 1:
        yield f"--env.num-envs {fewer}", replace(config, env=replace(env, num_envs=fewer))
        fewer //= 4


def _fits(load: Workload, machine: Machine, costs: RunCosts) -> bool:
    load = workload(load.config, machine.gpus) if load.lora != load.config.policy.lora else load
    return any(
        not why_not(one, load.config)
        and not memory(load, one, machine, costs.simulator, costs.process).lacking
        for one in arrangements(machine)
    )


def as_json(made: Plan, preset: str) -> dict[str, Any]:
    """What `--json` writes."""
    return {
        "format": FORMAT,
        "preset": preset,
        "machine": asdict(made.machine),
        "episodes": made.episodes,
        "turns_a_window": made.load.turns,
        "weights": made.load.weights,
        "trained": made.load.trained,
        "costs": list(made.costs),
        "assumptions": {phase: list(notes) for phase, notes in made.assumptions.items()},
        "notes": list(made.notes),
        "arrangements": [_row_as_json(row, made.load.config) for row in made.rows],
        "recommended": made.recommended and made.recommended.arrangement.name,
        "reason": made.reason,
        "would_fit": list(made.would_fit),
    }


def _row_as_json(row: Row, config: TrainConfig) -> dict[str, Any]:
    held = row.memory
    return {
        "name": row.arrangement.name,
        **asdict(row.arrangement),
        "shards": shards_of(row.arrangement, config),
        "fits": row.fits,
        "obstacle": row.obstacle,
        "in_this_version": row.in_this_version,
        "micro_batch": held.micro_batch,
        "bytes_of_a_gpu": asdict(held.learner) | {"total": held.learner.total},
        "bytes_of_an_actor": held.actor and asdict(held.actor) | {"total": held.actor.total},
        "bytes_of_a_node": asdict(held.node) | {"total": held.node.total},
        "seconds": asdict(row.times),
        "assumed": list(row.assumed),
        "turns_a_second": row.turns_a_second,
        "episodes_a_second": row.episodes_a_second,
        "simulator_steps_a_second": row.steps_a_second,
        "hours": row.hours,
        "gpu_hours": row.gpu_hours,
        "command": row.command,
    }
