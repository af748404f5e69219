"""Which runs are compared, and which of them belong together.

runs/a-seed-0 runs/a-seed-1 runs/b-seed-0     groups of runs that differ in their seed alone
ppo=runs/a-* grpo=runs/b-*                    groups by name
runs/ablation                                 every run in a folder of runs
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vla_rl.config.errors import ConfigError, UserError, nearest, printable
from vla_rl.config.serialize import differences, from_json, to_json
from vla_rl.config.training import TrainConfig
from vla_rl.report.run_data import Run, read_run
from vla_rl.runtime.run_folder import CONFIG, display_name, training_run

MAX_RUNS = 1000
_ENDING_IN_SEED = re.compile(r"[-_.]?seed[-_]?\d+$", re.IGNORECASE)
_SEEDED = ("policy.checkpoint", "reward.model")
_SETTINGS_IN_NAME = 3
# what changes neither what is learned nor how fast it is, or is looked at apart (evaluations)
_INDIFFERENT = re.compile(
    r"run\..*|eval\..*|policy\.device|env\.(num_workers|step_timeout|start_timeout|max_restarts)"
    r"|parallel\.(ranks|timeout|shard|gather|arrangement|learners|actors|hosts|ray)"
)


class Group(NamedTuple):
    """Runs that are averaged: they differ in their seed, or were named as one."""

    name: str
    runs: tuple[Run, ...]


class Selection(NamedTuple):
    """What is compared, in the order in which it was given."""

    groups: tuple[Group, ...]
    notes: tuple[str, ...]


class _Found(NamedTuple):
    name: str  # "" where none was given
    run: Run


def select_runs(words: Sequence[str]) -> Selection:
    """The groups that `words` name: folders and patterns, with or without `NAME=` before them.

    Raises UserError for a word that leads to no training run, and for a run in two groups.
    """
    notes: list[str] = []
    found: list[_Found] = []
    owners: dict[Path, str] = {}
    for word in words:
        name, pattern = _named(word)
        for folder in _folders(pattern, notes):
            place = Path(os.path.realpath(folder))
            if place in owners:
                if owners[place] != name:
                    first, second = (f"{n!r}" if n else "no name" for n in (owners[place], name))
                    raise UserError(
                        f"{folder} is given twice, with {first} and with {second}: a run can be in one group only"
                    )
                notes.append(f"{folder} was given twice and counts once.")
                continue
            owners[place] = name
            if len(owners) > MAX_RUNS:
                raise UserError(f"expected at most {MAX_RUNS} runs, got more: name fewer")
            found.append(_Found(name, _training(folder)))
    if not found:
        raise UserError("compare: expected runs, for example: vla-rl compare runs/a-* runs/b-*")
    groups = _together(found)
    return Selection(tuple(_without_copies(group, notes) for group in groups), tuple(notes))


def seed_of(run: Run) -> int | None:
    """The run's seed, if its configuration says it."""
    seed = run.setting("run.seed")
    seed = run.setting("seed") if seed is None else seed  # a fine-tuning's
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None


def title_of(run: Run) -> str:
    """How a run is called in notes: by its folder and the folder of that."""
    folder = run.folder
    return printable("/".join(folder.parts[-2:]) if len(folder.parts) > 1 else str(folder))


# -- words to folders


def _named(word: str) -> tuple[str, str]:
    """`NAME=PATTERN` in its parts; a folder that is called so is a folder."""
    name, equals, pattern = word.partition("=")
    if not equals or os.path.exists(word):
        return "", word
    if not name.strip() or not pattern:
        raise UserError(f"compare: expected NAME=RUN, got {word!r}")
    return printable(name.strip()), pattern


def _folders(pattern: str, notes: list[str]) -> Iterable[Path]:
    if os.path.lexists(pattern):
        return _runs_in(Path(pattern))
    matches = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else []
    if not matches:
        home = os.path.dirname(pattern) or "."
        inside = os.listdir(home) if os.path.isdir(home) else []
        known = sorted(name for name in inside if os.path.isdir(os.path.join(home, name)))
        hint = nearest(Path(pattern).name, known) if known else ""
        raise UserError(f"no run folder at {pattern}.{hint}")
    folders = [Path(match) for match in matches if os.path.isdir(match)]
    found = [f for folder in folders if _is_run(folder) for f in _runs_in(folder)]
    left = [str(folder) for folder in folders if not _is_run(folder)]
    if left:
        notes.append(f"Left out, as they are no training runs: {', '.join(map(printable, left))}.")
    if not found:
        raise UserError(f"{pattern} leads to no run folder: expected what `vla-rl train` writes")
    return found


def _is_run(folder: Path) -> bool:
    run = training_run(folder)
    return any((run / name).is_file() for name in (CONFIG, "metrics.jsonl"))


def _runs_in(folder: Path) -> Sequence[Path]:
    """`folder`, if it is a run; else the runs in it."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no run folder: expected a folder that `vla-rl train` wrote")
    if _is_run(folder):
        return [training_run(folder)]
    try:
        inside = sorted(child for child in folder.iterdir() if child.is_dir() and _is_run(child))
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error
    runs = [run for child in inside if _is_training(run := training_run(child))]
    # its reader says best what is missing
    return runs or [folder]


def _is_training(folder: Path) -> bool:
    kind = _kind(read_run(folder))
    return kind in ("", TrainConfig.__name__)


def _training(folder: Path) -> Run:
    run = read_run(folder)
    kind = _kind(run)
    if kind not in ("", TrainConfig.__name__):
        raise UserError(f"{folder} is a run of {kind}, expected one of `vla-rl train`")
    return run


def _kind(run: Run) -> str:
    kind = run.provenance("config_type")
    return kind if isinstance(kind, str) else ""


# -- folders to groups


def _together(found: Sequence[_Found]) -> list[Group]:
    named: dict[str, list[Run]] = {}
    alike: dict[str, list[Run]] = {}
    order: list[tuple[bool, str]] = []
    for name, run in found:
        key = name or _what_is_learned(run)
        place, home = (True, named) if name else (False, alike)
        if key not in home:
            order.append((place, key))
        home.setdefault(key, []).append(run)
    names = dict(zip(alike, _names(alike, set(named)), strict=True))
    return [
        Group(key, tuple(named[key])) if is_named else Group(names[key], tuple(alike[key]))
        for is_named, key in order
    ]


def _settings(run: Run) -> dict[str, Any]:
    """Every setting that can make a difference, by dotted name, the seed in folders' names left open."""
    config: Mapping[str, Any] = run.config
    with suppress(ConfigError):  # of another version: as it is
        config = to_json(from_json(TrainConfig, dict(config)))  # with the defaults of what is newer
    flat = {n: v for n, v in _flat(config, "").items() if not _INDIFFERENT.fullmatch(n)}
    seed = seed_of(run)
    for name in _SEEDED:
        if isinstance(flat.get(name), str) and seed is not None:
            flat[name] = re.sub(rf"(?i)(seed[-_]?){seed}(?!\d)", r"\1N", flat[name])
    return flat


def _flat(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: value}
    inner = ((f"{path}.{key}" if path else str(key), v) for key, v in value.items())
    return {name: leaf for key, v in inner for name, leaf in _flat(v, key).items()}


def _what_is_learned(run: Run) -> str:
    # of a run without a configuration nothing is known, and it is like no other
    return json.dumps(_settings(run), sort_keys=True) if run.config else str(run.folder)


def _names(alike: Mapping[str, Sequence[Run]], taken: set[str]) -> list[str]:
    """A name for each group: what its folders are called, or the settings in which the groups differ."""
    by_folder = [{_stem(run) for run in runs} for runs in alike.values()]
    names = [next(iter(stems)) if len(stems) == 1 else "" for stems in by_folder]
    if not all(names) or len({*names, *taken}) < len(names) + len(taken):
        names = _by_settings(list(alike.values()))
    used = set(taken)
    for at, name in enumerate(names):
        number = 2
        while names[at] in used:
            names[at], number = f"{name} ({number})", number + 1
        used.add(names[at])
    return names


def _stem(run: Run) -> str:
    """The folder's name without the seed; of runs that are called by nothing else, their home's."""
    name = _ENDING_IN_SEED.sub("", display_name(run.folder))
    return printable(name or run.folder.resolve().parent.name)


def _by_settings(groups: Sequence[Sequence[Run]]) -> list[str]:
    settings = [_settings(runs[0]) for runs in groups]
    every = dict.fromkeys(name for one in settings for name in one)
    differing = [n for n in every if len({json.dumps(s.get(n)) for s in settings}) > 1]
    names = []
    for runs, own in zip(groups, settings, strict=True):
        parts = [f"{n.rpartition('.')[2]} {own.get(n)}" for n in differing[:_SETTINGS_IN_NAME]]
        names.append(printable(", ".join(parts)) or _stem(runs[0]))
    return names


def _without_copies(group: Group, notes: list[str]) -> Group:
    """A copied folder is not another run; two runs with one seed are said, as they may have more in common than
    that.
    """
    kept: list[Run] = []
    for run in group.runs:
        same = [other for other in kept if _is_copy(run, other)]
        if same:
            notes.append(f"{title_of(run)} is a copy of {title_of(same[0])} and is left out.")
            continue
        seed = seed_of(run)
        twins = [other for other in kept if seed is not None and seed_of(other) == seed]
        if twins:
            notes.append(
                f"{title_of(run)} and {title_of(twins[0])} of {group.name!r} have the same seed, {seed}: they may not "
                f"be "
                "independent, and are not paired by seed."
            )
        kept.append(run)
    group = Group(group.name, tuple(kept))
    _note_mixture(group, notes)
    return group


def _is_copy(run: Run, other: Run) -> bool:
    """Whether every number is the same; clocks are among them, and no two runs take the same time."""
    one, two = run.metrics.columns, other.metrics.columns
    if not len(run.metrics) or seed_of(run) != seed_of(other) or one.keys() != two.keys():
        return False
    return all(np.array_equal(one[name], two[name], equal_nan=True) for name in one)


def _note_mixture(group: Group, notes: list[str]) -> None:
    """Say in what the runs of a named group differ beside their seed."""
    settings = [_settings(run) for run in group.runs if run.config]
    changed = dict.fromkeys(
        name for other in settings[1:] for name in differences(settings[0], other)
    )
    if changed:
        more = ", ..." if len(changed) > 6 else ""
        notes.append(
            f"The runs of {group.name!r} differ in more than their seed: {', '.join([*changed][:6])}{more}."
        )
    unknown = [title_of(run) for run in group.runs if not run.config]
    if unknown and len(group.runs) > 1:
        notes.append(
            f"Nothing is known of the settings of {', '.join(unknown)} in {group.name!r}: config.json is missing or "
            "damaged."
        )
