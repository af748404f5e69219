"""The failure table: how many episodes failed in which way, before and after practice; and labels given by eye."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vla_rl.config.errors import UserError, nearest
from vla_rl.envs.trace import TracedGoal
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.evaluation.failures import KINDS, MEANING
from vla_rl.functional.agreement import cohens_kappa
from vla_rl.functional.intervals import wilson_interval
from vla_rl.report.analysis.record import (
    Agreement,
    Estimate,
    FailedEpisode,
    KindCount,
    Stage,
    StageFailures,
)
from vla_rl.runtime.external import fault, read_bytes

MAX_LABELS_BYTES = 2**20


def stage_failures(
    stage: Stage, records: Sequence[EpisodeRecord], failed: Sequence[FailedEpisode]
) -> StageFailures:
    """Count the kinds of one policy's failed episodes; shares are of all its episodes."""
    mine = [episode for episode in failed if episode.stage == stage]
    counts = Counter(episode.kind for episode in mine)
    kinds = []
    for kind in MEANING:
        if counts[kind]:
            interval = wilson_interval(counts[kind], len(records))
            share = Estimate(counts[kind] / len(records), *interval)
            kinds.append(KindCount(kind, counts[kind], share))
    tasks = {
        task: dict(Counter(e.kind for e in mine if e.task == task))
        for task in dict.fromkeys(record.spec.task for record in records)
    }
    return StageFailures(stage, len(records), len(mine), tuple(kinds), tasks)


def kinds_not_told(goals: Iterable[TracedGoal] | None) -> tuple[str, ...]:
    """The kinds that cannot occur in these tasks, or that the simulator does not tell apart (None: it tells nothing)."""
    if goals is None:
        return tuple(kind for kind in MEANING if kind != "not told")
    goals = list(goals)
    possible = {kind for goal in goals for kind in KINDS[goal.kind]}
    return tuple(kind for kind in MEANING if kind not in possible and kind != "not told")


def read_labels(path: Path, strips: Mapping[str, FailedEpisode]) -> dict[str, str]:
    """Labels by eye, by strip. UserError for a file that is none, strips that are not there, and unknown labels."""
    text = read_bytes(path, max_bytes=MAX_LABELS_BYTES, remedy="").decode("utf-8-sig", "replace")
    rows = csv.DictReader(io.StringIO(text))
    expected = "the columns strip and label in the first line"
    if not {"strip", "label"} <= set(rows.fieldnames or ()):
        raise fault(path, "line 1", expected, ",".join(rows.fieldnames or ()), "Write them there.")
    labels: dict[str, str] = {}
    try:
        for row in rows:
            where = f"line {rows.line_num}"
            strip, label = (row["strip"] or "").strip(), (row["label"] or "").strip()
            if strip not in strips:
                raise fault(path, where, "a strip of this analysis", strip, _strips_hint(strips))
            if label not in MEANING:
                raise fault(path, where, "a kind of failure", label, nearest(label, MEANING))
            if strip in labels:
                raise fault(path, where, "each strip once", strip, "Take one of both lines out.")
            labels[strip] = label
    except csv.Error as error:
        raise UserError(f"{path}: expected a CSV file ({error})") from error
    if not labels:
        raise UserError(
            f"{path}: expected a label or more, found none. Write a line for each strip"
        )
    return labels


def _strips_hint(strips: Mapping[str, FailedEpisode]) -> str:
    if not strips:
        return "Let strips be written first: --strips 50."
    names = list(strips)
    return f"There are {names[0]} to {names[-1]}; the same --strips and --seed give the same ones."


def agreement(labels: Mapping[str, str], strips: Mapping[str, FailedEpisode]) -> Agreement:
    """How far labels by eye and the failure table agree."""
    eye = list(labels.values())
    table = [strips[strip].kind for strip in labels]
    found = cohens_kappa(eye, table)
    confusion: dict[str, dict[str, int]] = {}
    for (label, kind), count in sorted(Counter(zip(eye, table, strict=True)).items()):
        confusion.setdefault(label, {})[kind] = count
    kappa = None
    if math.isfinite(found.kappa):
        kappa = Estimate(found.kappa, found.low, found.high)
    return Agreement(found.things, found.agreed, found.by_chance, kappa, confusion)
