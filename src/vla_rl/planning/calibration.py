"""Costs from a run folder: what the user's own machine took, from the run's metrics.jsonl.

A call's seconds are fitted as fixed + each * samples where the run had calls of different sizes: its evaluations end
with fewer and fewer episodes. The less they varied, the more the proportion in the packaged costs counts. What the
threads of the learner cost each other is chosen so that the run's own learning takes as long as it took.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_rl.config import TrainConfig, UserError
from vla_rl.planning.arrangements import Arrangement, Machine
from vla_rl.planning.costs import (
    FORMAT,
    Costs,
    Line,
    PolicyCosts,
    ProcessCosts,
    SimulatorCosts,
    to_json,
)
from vla_rl.planning.timing import learning_seconds
from vla_rl.planning.workload import Workload, workload
from vla_rl.runtime.call_times import CallTimes
from vla_rl.runtime.external import fault, parse_json
from vla_rl.runtime.files import read_json
from vla_rl.runtime.metrics import read_metrics
from vla_rl.runtime.run_folder import read_config, training_run
from vla_rl.training.costs import CALLS, OWN

VARIED = 0.1
"""Spread of call sizes, relative to their mean, at which a run is believed as much as the known proportion: the calls
of an evaluation differ from those of practice by some such share for other reasons than their size."""
EVEN = Line(1.0, 0.05)
"""Proportion of fixed and each where nothing is known of a call."""
SAME = 1e-6
"""Relative variance of sizes that are all alike."""
ROUNDS = 40
MOST = 1e15
"""Of seconds, calls, samples and their squares in one iteration."""
Row = dict[str, Any]


def calibrated(folder: Path, base: Costs) -> Costs:
    """The costs that a run's metrics tell. UserError where the folder is no run, or its metrics do not tell them.

    base: costs whose proportions are taken where the run cannot tell.
    """
    folder = training_run(folder)
    config = read_config(folder, TrainConfig)
    rows = read_metrics(folder / "metrics.jsonl")
    _require_numbers(rows, folder / "metrics.jsonl")
    steady = steady_rows(rows, config)
    machine = _machine(folder)
    load = workload(replace(config, policy=_where_it_ran(folder, config)), len(machine["gpus"]))
    simulator = _simulator(steady, load, config, base)
    policy = _policy(rows, steady, load, base)
    process = _process(steady, load, config, base)
    policy = replace(policy, overlap=_overlap(steady, load, config, policy, machine["cpus"]))
    costs = Costs(
        format=FORMAT,
        machine=f"{machine['cpus']} cores, {', '.join(machine['gpus']) or 'no GPU'}",
        date=str(machine["started"])[:10],
        simulators=(simulator,),
        policies=(policy,),
        processes=(process,),
    )
    costs = parse_json(json.dumps(to_json(costs)), Costs, source=folder / "metrics.jsonl")
    return replace(costs, names=(f"{folder}: {len(steady)} windows of {machine['started']}",))


def steady_rows(rows: Sequence[Row], config: TrainConfig) -> list[Row]:
    """The iterations after the warm-up, when the critic's replay is full and CPU caches and simulators are warm."""
    first = config.ppo.critic_warmup
    if config.policy.critic.kind == "separate":
        first = max(first, config.ppo.critic_replay - 1)
    first = max(first, 1)
    found = [
        row for row in rows if row["iteration"] > first and not row.get("losses/critic_warmup")
    ]
    needed = (
        f"{CALLS}/prefill/calls",
        f"{CALLS}/policy/calls",
        f"{CALLS}/step/calls",
        f"{OWN}/other",
    )
    if not found:
        raise UserError(
            f"this run has {len(rows)} iterations, too few to take costs from: expected at least {first + 1}, so that "
            "warm-ups are over"
        )
    missing = [name for name in needed if not isinstance(found[-1].get(name), int | float)]
    if missing:
        raise UserError(
            f"this run's metrics.jsonl does not say what its calls cost ({missing[0]} is missing): expected a run of "
            "this version of the program, with the policies and simulators that come with it"
        )
    return found


def _require_numbers(rows: Sequence[Row], path: Path) -> None:
    """UserError for a time or a count that is none."""
    for row in rows:
        for key, value in row.items():
            if not key.startswith("time/"):
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            # what is left over of a window may be a little below 0
            least = -1.0 if key == "time/other" else 0.0
            if not number or not least <= value <= MOST:
                where = f"iteration {row['iteration']}: {key}"
                raise fault(path, where, "a number of seconds or calls", value, "Take another run.")


def _machine(folder: Path) -> Row:
    path = folder / "run.json"
    described = read_json(path) if path.exists() else {}
    machine = described.get("machine")
    cpus = machine.get("cpus") if isinstance(machine, dict) else None
    gpus = machine.get("gpus") if isinstance(machine, dict) else None
    if not isinstance(cpus, int) or cpus < 1 or not isinstance(gpus, list):
        raise UserError(
            f"{path} does not say on which machine the run was: expected machine.cpus and machine.gpus"
        )
    return {
        "cpus": cpus,
        "gpus": [str(gpu) for gpu in gpus],
        "started": described.get("started", ""),
    }


def _where_it_ran(folder: Path, config: TrainConfig) -> Any:
    """The run's policy, looked up in the run's own checkpoint where the one it started from is gone."""
    policy = config.policy
    if (
        policy.checkpoint
        and not Path(policy.checkpoint).exists()
        and (folder / "checkpoints").is_dir()
    ):
        return replace(policy, checkpoint=str(folder))
    return policy


def fitted(calls: CallTimes, like: Line | None = None) -> Line:
    """Seconds of a call as fixed + each * samples; neither is below 0, and the mean call takes what it took.

    By least squares. like: a proportion that is known beforehand, which counts the more the less the sizes varied.
    """
    if calls.calls <= 0 or calls.seconds <= 0:
        return Line(0.0, 0.0)
    mean, seconds = calls.samples / calls.calls, calls.seconds / calls.calls
    if mean <= 0:
        return Line(seconds, 0.0)
    variance = max(0.0, calls.squares / calls.calls - mean**2)
    known = like if like is not None and like.at(mean) > 0 else EVEN
    each = known.each * seconds / known.at(mean)
    if variance > SAME * mean**2:
        slope = (calls.products / calls.calls - mean * seconds) / variance
        trusted = 1.0 if like is None else variance / (variance + (VARIED * mean) ** 2)
        each = trusted * min(max(slope, 0.0), seconds / mean) + (1 - trusted) * each
    return Line(seconds - each * mean, each)


def _counted(rows: Sequence[Row], name: str) -> CallTimes:
    return CallTimes.of_metrics(rows, f"{CALLS}/{name}")


def _line(rows: Sequence[Row], steady: Sequence[Row], name: str, like: Line | None = None) -> Line:
    """The slope from all of a run's calls, the level from those of its steady windows."""
    line, calls = fitted(_counted(rows, name), like), _counted(steady, name)
    expected = calls.calls * line.fixed + calls.samples * line.each
    return line.times(calls.seconds / expected) if expected > 0 else line


def _each(calls: CallTimes, per: float) -> float:
    return calls.seconds / per if per > 0 else 0.0


def _mean(rows: Sequence[Row], name: str) -> float:
    numbers = [row[name] for row in rows if isinstance(row.get(name), int | float)]
    return math.fsum(numbers) / len(numbers) if numbers else 0.0


def _simulator(
    steady: Sequence[Row], load: Workload, config: TrainConfig, base: Costs
) -> SimulatorCosts:
    env = config.env
    steps, images, resets = (_counted(steady, name) for name in ("step", "image", "reset"))
    played = _counted(steady, "step")
    possible = played.calls * env.action_chunk * env.action_repeat
    workers = 0 if load.in_process else min(env.num_workers or 10**9, env.num_envs)
    prior = next((s for s in base.simulators if s.benchmark == load.benchmark), None)
    return SimulatorCosts(
        benchmark=load.benchmark,
        image_size=env.image_size,
        mesh_faces=env.mesh_faces,
        step=_each(steps, steps.samples),
        image=_each(images, images.calls),
        reset=_each(resets, resets.calls),
        source="measured",
        worker_bytes=prior.worker_bytes if prior and workers else 0.0,
        gpu_bytes=prior.gpu_bytes if prior else 0.0,
        steps_share=min(1.0, played.samples / possible) if possible else 1.0,
        episode_turns=_mean(steady, "rollout/episode_length"),
    )


def _policy(rows: Sequence[Row], steady: Sequence[Row], load: Workload, base: Costs) -> PolicyCosts:
    device = "gpu" if load.on_gpu else "cpu"
    alike = [p for p in base.policies if p.device == device]
    prior = next((p for p in alike if p.model == load.model.name), alike[0] if alike else None)
    steps = _counted(steady, "steps")
    all_tokens = _line(rows, steady, "tokens", prior.token if prior else None)
    policy = load.config.policy
    return PolicyCosts(
        model=load.model.name,
        device=device,
        image_size=load.model.image_size,
        tokens=load.tokens,
        prefill=_line(rows, steady, "prefill", prior.prefill if prior else None),
        token=all_tokens.times(1 / max(1, load.tokens - 1)),
        learn=_line(rows, steady, "policy", prior.learn if prior else None),
        critic=_line(rows, steady, "critic", prior.critic if prior else None),
        step=_each(steps, steps.calls),
        source="measured",
        adapters=policy.lora is not None,
        checkpointing=policy.activation_checkpointing,
    )


def _process(
    steady: Sequence[Row], load: Workload, config: TrainConfig, base: Costs
) -> ProcessCosts:
    prior = next((p for p in base.processes if p.benchmark == load.benchmark), None)
    prior = prior or next(iter(base.processes), None)
    ranks = config.parallel.ranks
    acts = _counted(steady, "prefill")
    own = {
        name: _mean(steady, f"{OWN}/{name}") * len(steady) for name in ("other", "infer", "values")
    }
    # what `act` did not take of the time to decide, and the simulators' own work where they play in this process
    deciding = own["infer"] - acts.seconds - _counted(steady, "tokens").seconds
    inside = (
        sum(_counted(steady, n).seconds for n in ("step", "image", "reset"))
        if load.in_process
        else 0.0
    )
    turns = replace(acts, seconds=max(0.0, own["other"] + deciding - inside))
    turns.products = turns.seconds * turns.samples / max(1.0, turns.calls)
    windows, envs = float(len(steady)), config.env.num_envs
    scored = max(0.0, _mean(steady, "time/other") - _mean(steady, "time/collect_other"))
    window = CallTimes(1.0, load.turns, load.turns**2, scored, scored * load.turns)
    values = CallTimes(
        windows * ranks, windows * envs, windows * envs**2 / ranks, own["values"], 0.0
    )
    return ProcessCosts(
        benchmark=load.benchmark,
        turn=fitted(turns, prior.turn if prior else None),
        window=fitted(window, prior.window if prior else None),
        values=fitted(values, prior.values if prior else None),
        source="measured",
        main_bytes=prior.main_bytes if prior else 0.0,
    )


def _overlap(
    steady: Sequence[Row], load: Workload, config: TrainConfig, policy: PolicyCosts, cpus: int
) -> float:
    """The share of a pass that threads did at the same time, from how long learning took; 1 where there was one."""
    ranks = config.parallel.ranks
    threads = config.run.threads or max(1, cpus // ranks)
    if load.on_gpu or threads == 1:
        return 1.0
    took = _mean(steady, "time/learn")
    arrangement = Arrangement("ranks" if ranks > 1 else "single", ranks)
    machine = Machine(1, 0, 0.0, cpus, None)
    low, high = 0.0, 1.0
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        trial = replace(policy, overlap=middle)
        if learning_seconds(load, arrangement, machine, trial, 0) > took:
            low = middle
        else:
            high = middle
    return (low + high) / 2
