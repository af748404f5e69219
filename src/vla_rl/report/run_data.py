"""Read a run folder into typed values. Whatever is missing or damaged is noted, never fatal.

- config.json: the resolved TrainConfig
- run.json: command, time of start, git revision, versions, machine
- metrics.jsonl: one object per PPO iteration
- sft.jsonl: one object per epoch of fine-tuning (optional)
- eval/<stage>-<mode>.json: stage before or after, mode greedy or sampled
- eval/iteration-<i>.json: greedy, during training (optional)
- eval/videos/<stage>/: mp4 files and their index.json; eval/videos/iteration-<i>/ those of the last during training
- ranks.jsonl: one object per iteration, what each of several ranks spent its time on (optional)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np

from vla_rl.config.errors import UserError
from vla_rl.config.old_names import renamed
from vla_rl.config.training import TrainConfig
from vla_rl.functional.intervals import wilson_interval
from vla_rl.report.tables import Table, integer, is_inside, number, read_table
from vla_rl.runtime.lock import held_elsewhere

Stage = Literal["before", "after"]
Mode = Literal["greedy", "sampled"]
STAGES: tuple[Stage, ...] = get_args(Stage)
MODES: tuple[Mode, ...] = get_args(Mode)
_FORMAT = 1  # of evaluations


@dataclass(frozen=True)
class Rate:
    """Successes among episodes, with the Wilson 95 % interval; fractions in 0..1."""

    successes: int
    episodes: int
    low: float
    high: float
    mean_turns: float | None = None

    @property
    def rate(self) -> float:
        return self.successes / self.episodes if self.episodes else math.nan

    def overlaps(self, other: Rate) -> bool:
        """Whether the two intervals have a point in common."""
        return self.low <= other.high and other.low <= self.high


class EpisodeResult(NamedTuple):
    """One evaluated episode."""

    task: str
    initial_state: int
    success: bool
    turns: int


@dataclass(frozen=True)
class Evaluation:
    """One evaluation file."""

    stage: Stage
    mode: Mode
    file: Path
    tasks: dict[str, Rate]
    overall: Rate
    episodes: tuple[EpisodeResult, ...]
    raw: Mapping[str, Any]  # the file as it is: checkpoint, suite, split, horizon, seed, ...

    @property
    def infrastructure_errors(self) -> int:
        return integer(self.raw.get("infrastructure_errors")) or 0

    @property
    def practised(self) -> Rate | None:
        """Over the episodes whose initial states were also trained on; None if there are none, or it is not known."""
        return self._part("practised")

    @property
    def held_out(self) -> Rate | None:
        """Over the others; None if there are none, or it is not known."""
        return self._part("held_out")

    def _part(self, name: str) -> Rate | None:
        practice = self.raw.get("practice")
        part = practice.get(name) if isinstance(practice, dict) else None
        return _rate(part) if isinstance(part, dict) else None

    def successes(self) -> dict[tuple[str, int], bool]:
        """Success of each (task, initial state)."""
        return {(e.task, e.initial_state): e.success for e in self.episodes}


@dataclass(frozen=True)
class Video:
    """One recorded episode."""

    stage: Stage
    file: Path
    task: str
    initial_state: int
    success: bool
    turns: int
    iteration: int | None = None  # after which it was played, where training still went on


@dataclass(frozen=True)
class Run:
    """All that a run folder tells."""

    folder: Path
    config: Mapping[str, Any]
    info: Mapping[str, Any]
    metrics: Table
    sft: Table
    evaluations: Mapping[tuple[Stage, Mode], Evaluation]
    during: Mapping[int, Rate]  # overall greedy success evaluated after an iteration
    videos: tuple[Video, ...]
    latest: tuple[Video, ...]  # of the last evaluation during training
    ranks: Table  # seconds and turns of each rank, as `0/learn`; empty where one process did all
    training: bool  # another process still works in the folder, and has not evaluated at the end
    missing: tuple[str, ...]  # sentences: what a complete run has and this one lacks
    problems: tuple[str, ...]  # sentences: files that could not be read as expected

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task named anywhere, in the order of the evaluation, then of the metrics."""
        names: dict[str, None] = {}
        for evaluation in self.evaluations.values():
            names.update(dict.fromkeys(evaluation.tasks))
        for prefix in ("success/", "curriculum/p/"):
            names.update(dict.fromkeys(self.metrics.under(prefix)))
        return tuple(names)

    def setting(self, path: str) -> Any:
        """The config value at a dotted path such as "ppo.iterations", or None."""
        return self._at(self.config, path)

    def provenance(self, path: str) -> Any:
        """The value of run.json at a dotted path such as "machine.cpus", or None."""
        return self._at(self.info, path)

    @staticmethod
    def _at(value: Any, path: str) -> Any:
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def read_run(folder: Path) -> Run:
    """Read `folder`. Raises UserError where it is no run folder at all."""
    expected = "config.json, metrics.jsonl or eval/*.json, as `vla-rl train` writes them"
    if not folder.is_dir():
        raise UserError(f"{folder} is no run folder: expected a folder with {expected}.")
    marks = [folder / "config.json", folder / "metrics.jsonl", folder / "run.json"]
    if not any(f.is_file() for f in [*marks, *_evaluation_files(folder).values()]):
        raise UserError(
            f"{folder} is no run folder: expected {expected}, found none of them. "
            "Name the run's own folder, for example runs/quickstart."
        )
    problems: list[str] = []
    config = _read_config(folder, "config.json", problems)
    info = _read_object(folder, "run.json", problems)
    metrics = read_table(folder, "metrics.jsonl", "iteration", problems)
    sft = read_table(folder, "sft.jsonl", "epoch", problems)
    evaluations: dict[tuple[Stage, Mode], Evaluation] = {}
    for (stage, mode), file in _evaluation_files(folder).items():
        raw = _read_object(folder, f"eval/{file.name}", problems)
        if raw:
            evaluations[stage, mode] = _evaluation(stage, mode, file, raw, problems)
    videos = [video for stage in STAGES for video in _videos(folder, stage, problems)]
    training = ("after", "greedy") not in evaluations and held_elsewhere(folder)
    return Run(
        folder=folder,
        config=config,
        info=info,
        metrics=metrics,
        sft=sft,
        evaluations=evaluations,
        during=dict(_during(folder, problems)),
        videos=tuple(videos),
        latest=tuple(_latest_videos(folder, problems)),
        ranks=read_table(folder, "ranks.jsonl", "iteration", problems),
        training=training,
        missing=() if training else tuple(_missing(config, info, metrics, evaluations, videos)),
        problems=tuple(problems),
    )


def _evaluation_files(folder: Path) -> dict[tuple[Stage, Mode], Path]:
    return {(s, m): folder / "eval" / f"{s}-{m}.json" for s in STAGES for m in MODES}


def _during(folder: Path, problems: list[str]) -> Iterable[tuple[int, Rate]]:
    for file in sorted((folder / "eval").glob("iteration-*.json")):
        iteration = file.stem.removeprefix("iteration-")
        overall = _read_object(folder, f"eval/{file.name}", problems).get("overall")
        if iteration.isascii() and iteration.isdigit() and isinstance(overall, dict):
            yield int(iteration), _rate(overall)


def _missing(
    config: Mapping[str, Any],
    info: Mapping[str, Any],
    metrics: Table,
    evaluations: Mapping[tuple[Stage, Mode], Evaluation],
    videos: list[Video],
) -> Iterable[str]:
    if not len(metrics):
        yield "metrics.jsonl has no iterations: there are no learning curves."
    for stage in STAGES:
        lacking = [mode for mode in MODES if (stage, mode) not in evaluations]
        if lacking:
            names = " and ".join(f"eval/{stage}-{mode}.json" for mode in lacking)
            yield f"No usable {names}: {' and '.join(lacking)} success {stage} training is not known."
    if not config:
        yield "No usable config.json: the settings of this run are not known."
    if not info:
        yield "No usable run.json: versions, machine and command of this run are not known."
    for stage in STAGES:
        if not any(video.stage == stage for video in videos):
            yield f"No usable eval/videos/{stage}: there are no images from {stage} training."


def _read_object(folder: Path, name: str, problems: list[str]) -> dict[str, Any]:
    file = folder / name
    if not is_inside(folder, name, problems):
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{file.name} could not be read and was left out ({error}).")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{file.name} holds no JSON object and was left out.")
        return {}
    return value


def _read_config(folder: Path, name: str, problems: list[str]) -> dict[str, Any]:
    """The settings under their present names."""
    config = _read_object(folder, name, problems)
    try:
        return renamed(TrainConfig, config)
    except UserError as error:
        problems.append(f"{name}: {error}.")
        return config


def _evaluation(
    stage: Stage, mode: Mode, file: Path, raw: dict[str, Any], problems: list[str]
) -> Evaluation:
    episodes = tuple(_episodes(raw.get("episodes")))
    named = raw.get("tasks")
    tasks = {
        str(task): _rate(value)
        for task, value in (named.items() if isinstance(named, dict) else ())
        if isinstance(value, dict)
    }
    overall = raw.get("overall")
    if isinstance(overall, dict):
        total = _rate(overall)
    else:
        total = _count(
            sum(r.successes for r in tasks.values()), sum(r.episodes for r in tasks.values())
        )
    if raw.get("format", _FORMAT) != _FORMAT:
        problems.append(
            f"{file.name} has format {raw['format']!r}, this version writes {_FORMAT}; it is shown as far as it is "
            "understood."
        )
    if episodes:
        names = dict.fromkeys(episode.task for episode in episodes)
        listed = {name: _of_episodes([e for e in episodes if e.task == name]) for name in names}
        everything = _of_episodes(episodes)
        counted = {name: (r.successes, r.episodes) for name, r in tasks.items()}
        if (total.successes, total.episodes) != (everything.successes, everything.episodes) or (
            counted and counted != {name: (r.successes, r.episodes) for name, r in listed.items()}
        ):
            problems.append(
                f"{file.name}: the counts ({total.successes} of {total.episodes}) and the list of episodes "
                f"({everything.successes} of {everything.episodes}) do not agree; the list is shown."
            )
            tasks, total = listed, everything
    elif total.episodes:
        problems.append(
            f"{file.name} has no list of episodes: its counts are shown, and nothing can be paired with them."
        )
    return Evaluation(stage, mode, file, tasks, total, episodes, raw)


def _of_episodes(episodes: Sequence[EpisodeResult]) -> Rate:
    rate = _count(sum(e.success for e in episodes), len(episodes))
    turns = float(np.mean([e.turns for e in episodes]))
    return Rate(rate.successes, rate.episodes, rate.low, rate.high, turns)


def _rate(value: Mapping[str, Any]) -> Rate:
    successes, episodes = integer(value.get("successes")), integer(value.get("episodes"))
    rate = _count(successes or 0, episodes or 0)
    interval, turns = value.get("interval"), number(value.get("mean_turns"))
    if isinstance(interval, list) and len(interval) == 2:
        low, high = (number(bound) for bound in cast("list[Any]", interval))
        if low is not None and high is not None and 0 <= low <= high <= 1:
            return Rate(rate.successes, rate.episodes, low, high, turns)
    return Rate(rate.successes, rate.episodes, rate.low, rate.high, turns)


def _count(successes: int, episodes: int) -> Rate:
    if not 0 <= successes <= episodes:
        return Rate(0, 0, 0.0, 1.0)
    return Rate(successes, episodes, *wilson_interval(successes, episodes))


def _episodes(value: Any) -> Iterable[EpisodeResult]:
    for row in value if isinstance(value, list) else ():
        state = integer(row.get("initial_state")) if isinstance(row, dict) else None
        if state is not None:
            turns = integer(row.get("turns")) or 0
            yield EpisodeResult(str(row.get("task")), state, bool(row.get("success")), turns)


def _latest_videos(folder: Path, problems: list[str]) -> Iterable[Video]:
    """Those of the last evaluation while training went on."""
    homes = sorted((folder / "eval" / "videos").glob("iteration-*/"))
    number = homes[-1].name.removeprefix("iteration-") if homes else ""
    if number.isascii() and number.isdigit():
        for video in _videos(folder, "after", problems, homes[-1].name):
            yield replace(video, iteration=int(number))


def _videos(folder: Path, stage: Stage, problems: list[str], name: str = "") -> Iterable[Video]:
    inside = f"eval/videos/{name or stage}"
    home = folder / inside
    index = home / "index.json"
    if not index.is_file() or not is_inside(folder, f"{inside}/index.json", problems):
        return
    try:
        rows = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{inside}/index.json could not be read ({error}).")
        return
    present = {file.name: file for file in home.iterdir() if file.is_file()}
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, dict):
            continue
        file = present.get(str(row.get("file")))
        if file is None:
            problems.append(f"{inside} lacks {row.get('file')}, which its index names.")
            continue
        if not is_inside(folder, f"{inside}/{file.name}", problems):
            continue
        yield Video(
            stage=stage,
            file=file,
            task=str(row.get("task")),
            initial_state=integer(row.get("initial_state")) or 0,
            success=bool(row.get("success")),
            turns=integer(row.get("turns")) or 0,
        )
