"""The run folder: what a training run leaves behind, and what it needs to go on.

    runs/<name>/
      config.json       the resolved configuration
      environment.json  of a fine-tuning: where its demonstrations were played
      run.json          command, git revision, versions, machine, times of start and resumption
      metrics.jsonl     one line per iteration
      ranks.jsonl       the same for each of several ranks: where its time went, and what it played
      tensorboard/      the same for TensorBoard
      trackers.json     the ids under which other trackers know this run
      checkpoints/      iteration-000010/ ..., index.json
      eval/             evaluation results

Importing this module imports no torch; saving and reading checkpoints does.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from vla_rl.config.errors import UserError, nearest
from vla_rl.config.serialize import from_json, to_json
from vla_rl.runtime.files import cannot_write, read_json, write_json
from vla_rl.runtime.lock import FolderLock
from vla_rl.runtime.metrics import MetricsFile, read_metrics
from vla_rl.runtime.new_run import CONFIG, PROVENANCE, new_run_folder, remove_unused
from vla_rl.runtime.partial import sweep
from vla_rl.runtime.provenance import describe_run
from vla_rl.runtime.trackers.copies import Trackers

if TYPE_CHECKING:
    from vla_rl.runtime.trees import Array

C = TypeVar("C")

CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
QUICKSTART_RUN = "ppo"
"""The training run within a quickstart's folder."""
QUICKSTART_REQUEST = "quickstart.json"
"""What the quickstart in a folder was asked for."""
QUICKSTART_CURVE = "sft.jsonl"
"""The fine-tuning's metrics, which a quickstart leaves in its training run."""
ENVIRONMENT_OF_RUN = "environment.json"
logger = logging.getLogger(__name__)


def read_config(folder: Path, cls: type[C]) -> C:
    """The resolved configuration of a run. UserError where it is missing, damaged or of another kind."""
    _require_run(folder)
    kind = _provenance(folder).get("config_type", cls.__name__)
    if kind != cls.__name__:
        raise UserError(f"{folder} is a run of {kind}, expected one of {cls.__name__}")
    return from_json(cls, read_json(folder / CONFIG), source=folder / CONFIG)


def _provenance(folder: Path) -> dict[str, Any]:
    """run.json; without one (a run of before that was killed as it began) nothing is known."""
    path = folder / PROVENANCE
    return read_json(path) if path.exists() else {}


def _note_resumption(folder: Path, command: Sequence[str], packages: Sequence[str]) -> None:
    described = _provenance(folder)
    resumed = described.setdefault("resumed", [])
    if not isinstance(resumed, list):
        raise UserError(f"{folder / PROVENANCE} is damaged: expected a list `resumed`")
    resumed.append(describe_run(command, packages))
    write_json(folder / PROVENANCE, described)


def _require_run(folder: Path) -> None:
    if (folder / CONFIG).is_file():
        return
    if folder.is_dir():
        raise UserError(f"{folder} is no run folder: it holds no config.json")
    others = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
    hint = nearest(folder.name, sorted(others)) if others else ""
    raise UserError(f"no run folder at {folder}.{hint}")


def training_run(folder: Path) -> Path:
    """`folder` itself, or the training run in it where `folder` is a quickstart's (which has demos and sft as well)."""
    practice = folder / QUICKSTART_RUN
    inside = (practice / CONFIG).is_file() and not (folder / CONFIG).is_file()
    return practice if inside and _is_of_quickstart(practice) else folder


def display_name(folder: Path) -> str:
    """How a run is called: by its folder, a quickstart's by that of the quickstart."""
    folder = folder.resolve()
    return folder.parent.name if _is_of_quickstart(folder) else folder.name


def _is_of_quickstart(run: Path) -> bool:
    """Whether a quickstart made this run; anyone may call a run of PPO so, and have others beside it."""
    marks = (run.parent / QUICKSTART_REQUEST, run / QUICKSTART_CURVE)  # the second one of before
    return run.name == QUICKSTART_RUN and any(mark.is_file() for mark in marks)


def saved_checkpoints(run: Path) -> list[tuple[int, Path]]:
    """The checkpoints in a run folder with their iterations, oldest first, readable or not."""
    found = []
    for folder in (run / CHECKPOINTS).glob("iteration-*"):
        number = folder.name.partition("-")[2]
        if number.isascii() and number.isdigit() and folder.is_dir():
            found.append((int(number), folder))
    return sorted(found)


def newest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, see `Run.latest`."""
    from vla_rl.runtime.checkpoint import CheckpointError, first_whole

    folders = [folder for _, folder in reversed(saved_checkpoints(run))]
    found = first_whole(folders)
    if found is None and folders:
        raise CheckpointError(
            f"none of the {len(folders)} checkpoints in {run / CHECKPOINTS} can be read, so there is nothing to go on "
            f"from. Bring back a copy, or move that folder away to start over at iteration 0."
        )
    return found


class Run:
    """One run folder, held by one process at a time. Use as a context manager, or call `close`.

    A UserError before anything was logged or saved takes a new folder away again: a mistake costs no name.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        trackers: Sequence[str] = (),
        lock: FolderLock | None = None,
    ) -> None:
        """Open `folder`, whose `lock` is taken here unless it is held already."""
        self.folder = folder
        self.resumed = False
        """Whether the folder was there before."""
        self._keep = keep
        self._lock = lock or FolderLock(folder)
        try:
            logged = read_metrics(folder / METRICS)
            self._iteration = int(logged[-1]["iteration"]) if logged else 0
            self._trackers = Trackers(folder, trackers, self._iteration)
            self._metrics = MetricsFile(folder / METRICS)
            ranks = folder / "ranks.jsonl"
            self._ranks = MetricsFile(ranks) if ranks.is_file() else None
        except BaseException:
            self._lock.release()
            raise

    @classmethod
    def create(
        cls,
        root: str | Path,
        name: str,
        config: Any,
        command: Sequence[str],
        packages: Sequence[str] = (),
        *,
        keep: int = 2,
        trackers: Sequence[str] = (),
    ) -> Run:
        """Make the folder `<root>/<name>` for a new run of the dataclass `config`.

        An empty name takes the time. Raises UserError if the folder cannot be written, or exists and holds
        something (what a run leaves that failed at its start does not count).
        """
        name = name or datetime.now().strftime("run-%Y%m%d-%H%M%S")
        if name in (".", "..") or "/" in name:
            raise UserError(
                f"run name {name!r} must be a plain folder name; the folder above is --run.root"
            )
        folder = Path(root) / name
        described = {"config_type": type(config).__name__, **describe_run(command, packages)}
        lock = new_run_folder(folder, to_json(config), described)
        return cls(folder, keep=keep, trackers=trackers, lock=lock)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        command: Sequence[str] = (),
        config: Any = None,
        packages: Sequence[str] = (),
        *,
        keep: int = 2,
        trackers: Sequence[str] = (),
    ) -> Run:
        """Go on in an existing run folder; run.json notes when and by which command.

        `config`, if given, takes the place of the saved one: how long the run may go on can change, and stays changed
        when it is resumed again.
        """
        folder = Path(folder)
        _require_run(folder)
        lock = FolderLock(folder)
        try:
            for part in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
                sweep(part, all_dead=True)
            if config is not None:
                write_json(folder / CONFIG, to_json(config))
            _note_resumption(folder, command, packages)
        except BaseException:
            lock.release()
            raise
        run = cls(folder, keep=keep, trackers=trackers, lock=lock)
        run.resumed = True
        return run

    def read_config(self, cls: type[C]) -> C:
        """The configuration this run was created with."""
        return read_config(self.folder, cls)

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl and hand it to the trackers; what is not finite becomes null."""
        self._metrics.append(iteration, metrics)
        self._iteration = iteration
        self._trackers.log(iteration, metrics)

    def log_evaluation(self, file: Path, videos: Sequence[Path] = ()) -> None:
        """Hand the trackers an evaluation of the policy as it is now, which lies in `file` already."""
        self._trackers.log_evaluation(self._iteration, file, videos)

    def log_ranks(self, iteration: int, ranks: Sequence[Mapping[str, float]]) -> None:
        """Append one line to ranks.jsonl: what each of several ranks has spent its time on, as `0/learn`."""
        if self._ranks is None:
            self._ranks = MetricsFile(self.folder / "ranks.jsonl")
        numbered = enumerate(ranks)
        of_all = {f"{rank}/{name}": n for rank, numbers in numbered for name, n in numbers.items()}
        self._ranks.append(iteration, of_all)

    def rewind(self, iteration: int) -> None:
        """Forget what came after `iteration`: metric lines, a half-written last line, checkpoints.

        For a run that was killed after its last whole checkpoint and now plays those iterations again. A checkpoint
        that cannot be read is set aside under another name, never deleted.
        """
        self._metrics.rewind(iteration)
        if self._ranks is not None:
            self._ranks.rewind(iteration)
        self._iteration = iteration
        self._trackers.rewind(iteration, read_metrics(self.folder / METRICS))
        scores = self._scores()
        for number, folder in self._saved():
            if number > iteration:
                self._put_away(folder, iteration)
                scores.pop(number, None)
        self._write_index(scores)

    def _put_away(self, folder: Path, iteration: int) -> None:
        from vla_rl.runtime.checkpoint import find_damage

        damage = find_damage(folder)
        if damage is None:
            logger.warning("%s lies after iteration %d: removed", folder, iteration)
            shutil.rmtree(folder)
            return
        aside = folder.with_name(f"unreadable-{folder.name}")
        for copy in itertools.count(2):
            if not aside.exists():
                break
            aside = folder.with_name(f"unreadable-{folder.name}-{copy}")
        folder.rename(aside)
        logger.warning("%s cannot be read (%s): set aside as %s", folder, damage, aside.name)

    def save(
        self,
        iteration: int,
        tensors: Mapping[str, Array],
        state: Mapping[str, Any],
        write_policy: Callable[[Path], None] | None = None,
        score: float | None = None,
    ) -> Path:
        """Write checkpoints/iteration-<iteration>, then drop the earlier ones but the last `keep` and the best.

        `state` is saved with "iteration" added. UserError if it cannot be written; the earlier ones stay.
        """
        from vla_rl.runtime.checkpoint import write_checkpoint

        self._metrics.sync()
        folder = self._checkpoints / f"iteration-{iteration:06d}"
        write_checkpoint(
            folder,
            tensors=tensors,
            state={**state, "iteration": iteration},
            write_policy=write_policy,
        )
        scores = self._scores()
        scores[iteration] = None if score is None or score != score else float(score)
        # one with a higher number is not this run's: it neither counts nor goes
        saved = {number: old for number, old in self._saved() if number <= iteration}
        scores = {number: score for number, score in scores.items() if number in saved}
        kept = {*list(saved)[-self._keep :], *self._by_score(scores)[:1]}
        self._write_index({number: scores.get(number) for number in kept})
        for number, old in saved.items():
            if number not in kept:
                shutil.rmtree(old)
        return folder

    def latest(self) -> Path | None:
        """The newest checkpoint that is whole, None without any; says so in the log when a newer one is damaged.

        CheckpointError where there are checkpoints and none can be read, or the newest comes from another version.
        """
        return newest_checkpoint(self.folder)

    def best(self) -> Path | None:
        """The whole checkpoint with the highest score (the later one of equals), None without scores."""
        from vla_rl.runtime.checkpoint import first_whole

        folders = dict(self._saved())
        ranked = self._by_score(self._scores())
        return first_whole([folders[number] for number in ranked if number in folders])

    @property
    def eval_folder(self) -> Path:
        """Folder for evaluation results; made when asked for."""
        folder = self.folder / "eval"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(cannot_write(folder, error)) from error
        return folder

    @property
    def wall_seconds(self) -> float:
        """Seconds of this run so far, earlier sittings included, as metrics.jsonl counts them."""
        return self._metrics.wall_seconds()

    def close(self) -> None:
        """Flush the trackers and let other processes have the folder."""
        self._metrics.close()
        if self._ranks is not None:
            self._ranks.close()
        self._trackers.close()
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, UserError) and not self.resumed:
            remove_unused(self.folder)
        self.close()

    @property
    def _checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    def _saved(self) -> list[tuple[int, Path]]:
        """Checkpoints on the disk, oldest first."""
        return saved_checkpoints(self.folder)

    @staticmethod
    def _by_score(scores: Mapping[int, float | None]) -> list[int]:
        rated = [(score, number) for number, score in scores.items() if score is not None]
        return [number for _, number in sorted(rated, reverse=True)]

    def _scores(self) -> dict[int, float | None]:
        """What index.json says; a missing or damaged one only costs the scores."""
        path = self._checkpoints / "index.json"
        if not path.exists():
            return {}
        try:
            entries = read_json(path)["checkpoints"]
            return {
                int(entry["iteration"]): None if entry["score"] is None else float(entry["score"])
                for entry in entries
            }
        except (UserError, KeyError, TypeError, ValueError):
            logger.warning("%s is damaged: scores of earlier checkpoints are lost", path)
            return {}

    def _write_index(self, scores: Mapping[int, float | None]) -> None:
        if not self._checkpoints.is_dir():
            return
        ranked = self._by_score(scores)
        entries = [
            {"iteration": number, "folder": f"iteration-{number:06d}", "score": scores[number]}
            for number in sorted(scores)
        ]
        write_json(
            self._checkpoints / "index.json",
            {
                "checkpoints": entries,
                "best": ranked[0] if ranked else None,
                "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            },
        )
