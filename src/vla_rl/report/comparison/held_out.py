"""Success on held-out initial states, of evaluations that were made alike and on states that all of them share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vla_rl.config.errors import printable
from vla_rl.functional.intervals import (
    Interval,
    PairedDifference,
    mean_interval,
    paired_difference,
    wilson_interval,
)
from vla_rl.report.comparison.selection import Group, seed_of, title_of
from vla_rl.report.run_data import MODES, STAGES, Evaluation, Mode, Run, Stage

State = tuple[str, int]
"""A task and the number of an initial state."""
_PROTOCOL = ("suite", "split", "horizon", "action_repeat", "action_chunk", "search")


class Outcome(NamedTuple):
    """What one run's evaluation came to on the states that are compared."""

    run: Run | None
    """None where the evaluation is not in a run's folder."""
    seed: int | None
    success: Mapping[State, bool]

    @property
    def rate(self) -> float:
        return float(np.mean([*self.success.values()]))


@dataclass(frozen=True)
class HeldOut:
    """The comparable evaluations of one stage and mode: for each group those of its runs that have one."""

    stage: Stage
    mode: Mode
    groups: Mapping[str, tuple[Outcome, ...]]
    states: tuple[State, ...]


class Success(NamedTuple):
    """Of a group: the mean, how far its episodes can be trusted, and how far its seeds can."""

    mean: float
    episodes: int
    over_episodes: Interval
    over_seeds: Interval | None
    """None for a single run."""
    each: tuple[float, ...]


class Difference(NamedTuple):
    """Of a group to another one."""

    paired: PairedDifference
    by_seed: bool
    """Paired over seeds and initial states; else over initial states alone, as the groups have no seeds in common."""
    over_seeds: Interval | None
    each: tuple[float, ...]


def comparable(groups: Sequence[Group], notes: list[str]) -> dict[tuple[Stage, Mode], HeldOut]:
    """What can be compared of every stage and mode; what is left out, and why, is added to `notes`."""
    found: dict[tuple[Stage, Mode], HeldOut] = {}
    for stage in STAGES:
        for mode in MODES:
            one = _comparable(groups, stage, mode, notes)
            if one is not None:
                found[stage, mode] = one
    return found


def _comparable(
    groups: Sequence[Group], stage: Stage, mode: Mode, notes: list[str]
) -> HeldOut | None:
    what = f"{mode} {stage} practice"
    played = [
        (group.name, run, evaluation)
        for group in groups
        for run in group.runs
        if (evaluation := run.evaluations.get((stage, mode))) is not None
    ]
    listed: list[tuple[str, Run, Evaluation]] = []
    for name, run, evaluation in played:
        if _is_list_of_episodes(evaluation.raw.get("episodes")):
            listed.append((name, run, evaluation))
        else:
            notes.append(
                f"{what}: {title_of(run)} is left out, its evaluation has no list of episodes, each with task, "
                "initial_state and success."
            )
    if not listed:
        return None
    protocols = [_protocol(evaluation) for _, _, evaluation in listed]
    usual = Counter(map(_key, protocols)).most_common(1)[0][0]
    reference = next(protocol for protocol in protocols if _key(protocol) == usual)
    kept: list[tuple[str, Run, dict[State, bool]]] = []
    for (name, run, evaluation), protocol in zip(listed, protocols, strict=True):
        if _key(protocol) != usual:
            told = _different(protocol, reference)
            notes.append(f"{what}: {title_of(run)} is left out, it was evaluated with {told}.")
        else:
            kept.append((name, run, _successes(run, evaluation, what, notes)))
    _note_temperatures([evaluation for _, run, evaluation in listed], mode, what, notes)
    states = _shared(kept, what, notes)
    outcomes: dict[str, tuple[Outcome, ...]] = {group.name: () for group in groups}
    for name, run, success in kept:
        if all(state in success for state in states):
            own = {state: success[state] for state in states}
            outcomes[name] = (*outcomes[name], Outcome(run, seed_of(run), own))
    return HeldOut(stage, mode, outcomes, states)


def _is_list_of_episodes(value: Any) -> bool:
    """Whether each says what it was and how it went; whatever else counts as true is no success."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(
            isinstance(row, dict)
            and isinstance(row.get("task"), str)
            and type(row.get("initial_state")) is int
            and isinstance(row.get("success"), bool)
            for row in value
        )
    )


def _protocol(evaluation: Evaluation) -> dict[str, Any]:
    return {name: evaluation.raw.get(name) for name in _PROTOCOL}


def _key(protocol: Mapping[str, Any]) -> str:
    return json.dumps(protocol, sort_keys=True, default=str)


def _different(protocol: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    parts = [
        f"{name} {_short(value)} (the others: {_short(usual[name])})"
        for name, value in protocol.items()
        if value != usual[name]
    ]
    return ", ".join(parts)


def _short(value: Any) -> str:
    text = printable(str(value))
    return f"{text[:57]}..." if len(text) > 60 else text


def _successes(run: Run, evaluation: Evaluation, what: str, notes: list[str]) -> dict[State, bool]:
    success = evaluation.successes()
    if len(success) < len(evaluation.episodes):
        notes.append(
            f"{what}: {title_of(run)} lists some initial states more than once; the last of each counts."
        )
    return success


def _note_temperatures(
    evaluations: Sequence[Evaluation], mode: Mode, what: str, notes: list[str]
) -> None:
    if mode == "greedy":
        return
    found: dict[str, int] = {}
    for evaluation in evaluations:
        sampling = evaluation.raw.get("sampling")
        value = sampling.get("temperature") if isinstance(sampling, dict) else None
        found[_short(value)] = found.get(_short(value), 0) + 1
    if len(found) > 1:
        listed = ", ".join(f"{value} ({count} runs)" for value, count in found.items())
        notes.append(f"{what}: at temperatures that differ: {listed}.")


def _shared(
    kept: Sequence[tuple[str, Run, Mapping[State, bool]]], what: str, notes: list[str]
) -> tuple[State, ...]:
    """The states that all evaluations have; where there are none, those that most have."""
    sets = [frozenset(success) for _, _, success in kept]
    if len(set(sets)) == 1:
        return tuple(sorted(sets[0]))
    common = frozenset.intersection(*sets)
    if common:
        sizes = ", ".join(str(size) for size in sorted({len(one) for one in sets}))
        notes.append(
            f"{what}: the runs were evaluated on different initial states ({sizes} episodes each); what is compared "
            f"are the {len(common)} that all share."
        )
        return tuple(sorted(common))
    usual = Counter(sets).most_common(1)[0][0]
    others = [title_of(run) for _, run, success in kept if not usual <= set(success)]
    notes.append(
        f"{what}: {', '.join(others)} left out, evaluated on other initial states than the rest; no state is common to "
        "all."
    )
    return tuple(sorted(usual))


# -- numbers


def success_of(outcomes: Sequence[Outcome]) -> Success | None:
    """Of a group; None where none of its runs can be compared."""
    if not outcomes:
        return None
    flat = [success for outcome in outcomes for success in outcome.success.values()]
    each = tuple(outcome.rate for outcome in outcomes)
    return Success(
        mean=float(np.mean(each)),
        episodes=len(flat),
        over_episodes=wilson_interval(sum(flat), len(flat)),
        over_seeds=mean_interval(each),
        each=each,
    )


def difference(
    reference: Sequence[Outcome], outcomes: Sequence[Outcome], states: Sequence[State]
) -> Difference | None:
    """Of `outcomes` to `reference`; None where one of them is empty."""
    if not reference or not outcomes:
        return None
    pairs = _by_seed(reference, outcomes)
    if pairs:
        each = tuple(after.rate - before.rate for before, after in pairs)
        before = [one.success[state] for one, _ in pairs for state in states]
        after = [two.success[state] for _, two in pairs for state in states]
        return Difference(paired_difference(before, after), True, mean_interval(each), each)
    means = [
        [float(np.mean([outcome.success[state] for outcome in group])) for state in states]
        for group in (reference, outcomes)
    ]
    return Difference(paired_difference(means[0], means[1]), False, None, ())


def _by_seed(
    reference: Sequence[Outcome], outcomes: Sequence[Outcome]
) -> list[tuple[Outcome, Outcome]]:
    """Pairs of the same seed; a seed that a group has twice is not paired."""
    first, second = _alone(reference), _alone(outcomes)
    return [(first[seed], second[seed]) for seed in first if seed in second]


def _alone(outcomes: Sequence[Outcome]) -> dict[int, Outcome]:
    count = Counter(outcome.seed for outcome in outcomes)
    return {o.seed: o for o in outcomes if o.seed is not None and count[o.seed] == 1}


def gain(before: HeldOut | None, after: HeldOut | None, run: Run) -> PairedDifference | None:
    """A run's own gain by practice, over the initial states that both of its evaluations have."""
    found = [
        outcome
        for held_out in (before, after)
        if held_out is not None
        for outcomes in held_out.groups.values()
        for outcome in outcomes
        if outcome.run is run
    ]
    if len(found) != 2:
        return None
    states = [state for state in found[0].success if state in found[1].success]
    if not states:
        return None
    return paired_difference(
        [found[0].success[state] for state in states], [found[1].success[state] for state in states]
    )
