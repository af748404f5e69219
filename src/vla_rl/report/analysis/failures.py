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


def kinds_not_told(goals: Iterable[TracedGoal]) -> tuple[str, ...]:
    """The kinds that cannot occur where these are the goals; all of them without any."""
    possible = {kind for goal in goals for kind in KINDS[goal.kind]}
    return tuple(kind for kind in MEANING if kind not in possible and kind != "not told")


def read_labels(path: Path) -> dict[str, str]:
    """Labels by eye, by strip. UserError for a file that is none, a label that is no kind, and a strip named twice."""
    text = read_bytes(path, max_bytes=MAX_LABELS_BYTES, remedy="").decode("utf-8-sig", "replace")
    labels: dict[str, str] = {}
    try:
        rows = csv.DictReader(io.StringIO(text.replace("\0", "\ufffd")))
        columns = list(rows.fieldnames or ())
        if not {"strip", "label"} <= set(columns):
            raise fault(path, "line 1", "the columns strip and label", ",".join(columns), "")
        for row in rows:
            where = f"line {rows.line_num}"
            strip, label = (row["strip"] or "").strip(), (row["label"] or "").strip()
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


def agreement(
    labels: Mapping[str, str], strips: Mapping[str, FailedEpisode], source: str
) -> Agreement:
    """How far labels by eye and the failure table agree. UserError for labels of strips that there are not."""
    for strip in labels:
        if strip not in strips:
            same = "The same --seed gives the same strips."
            expected = f"one of the {len(strips)} strips of this analysis"
            raise fault(source, "strip", expected, strip, same)
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
