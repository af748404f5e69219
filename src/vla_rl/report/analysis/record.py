"""The contents of analysis.json, typed: written by `vla-rl analyse`, read by the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from vla_rl.runtime.external import read_json
from vla_rl.runtime.files import write_json

FOLDER, FILE = "analysis", "analysis.json"
COVERAGE, LENGTHS, FAILURES = "coverage.png", "lengths.png", "failures.png"
"""Its pictures."""
Stage = Literal["before", "after"]
Whole = Annotated[int, Ge(0)]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Spread:
    """How far a policy's actions spread."""

    samples: Whole
    entropy: Estimate
    """Differential entropy in nats of actions in the simulator's units."""
    volume: Estimate
    """exp(entropy) as a share of the volume of all actions."""


@dataclass(frozen=True)
class PairSpread:
    """The same for two dimensions of an action: entropies in nats."""

    first: Whole
    second: Whole
    before: Estimate | None
    after: Estimate
    difference: Estimate | None


@dataclass(frozen=True)
class CoverageView:
    """Coverage of both policies on one set of states."""

    states: Literal["own", "same"]
    """own: where each policy came by itself. same: both asked in the states of both."""
    before: Spread | None
    after: Spread
    difference: Estimate | None
    """Entropy after less before, in nats, paired over initial states."""
    pairs: tuple[PairSpread, ...]


@dataclass(frozen=True)
class Coverage:
    """How far actions spread, before and after practice."""

    temperature: float
    episodes: Whole
    neighbours: Whole
    views: tuple[CoverageView, ...]


@dataclass(frozen=True)
class CurriculumChange:
    """An iteration in which the curriculum turned to other tasks."""

    iteration: Whole
    what: str


@dataclass(frozen=True)
class PlateauRow:
    """A stretch of training in which a curve stood still."""

    measure: Literal["success rate", "episode length"]
    first: Whole
    last: Whole
    mean: float
    change: Estimate
    changes_within: tuple[Whole, ...]
    next_change: Whole | None


@dataclass(frozen=True)
class Lengths:
    """Episode length over training."""

    iterations: Whole
    horizon: Whole | None
    first: float
    """Mean length, turns, over the first tenth of the iterations."""
    last: float
    window: Whole
    tolerance: float
    plateaus: tuple[PlateauRow, ...]
    changes: tuple[CurriculumChange, ...]


@dataclass(frozen=True)
class KindCount:
    """How many episodes failed so."""

    kind: str
    failures: Whole
    share: Estimate
    """Of all episodes played, with Wilson's interval."""


@dataclass(frozen=True)
class StageFailures:
    """The failures of one policy."""

    stage: Stage
    episodes: Whole
    failed: Whole
    kinds: tuple[KindCount, ...]
    tasks: dict[str, dict[str, Whole]]


@dataclass(frozen=True)
class FailedEpisode:
    """One failed episode and its kind."""

    stage: Stage
    task: str
    initial_state: int
    kind: str


@dataclass(frozen=True)
class KindVideo:
    """A video that shows one kind of failure."""

    stage: Stage
    kind: str
    file: str
    task: str
    initial_state: int


@dataclass(frozen=True)
class Failures:
    """The failure table."""

    stages: tuple[StageFailures, ...]
    episodes: tuple[FailedEpisode, ...]
    videos: tuple[KindVideo, ...]
    not_told: tuple[str, ...]
    """Kinds that cannot be told here."""


@dataclass(frozen=True)
class Agreement:
    """How far the failure table agrees with labels given by eye."""

    episodes: Whole
    agreed: float
    by_chance: float
    kappa: Estimate | None
    """None where one label is all there is: chance explains everything then."""
    confusion: dict[str, dict[str, Whole]]
    """Label by eye -> kind in the table -> episodes."""


@dataclass(frozen=True)
class Analysis:
    """All that an analysis found. A part that could not be worked out is None, and a note says why."""

    format: Literal[1]
    suite: str
    after: str
    before: str | None
    split: str
    initial_states: Whole
    coverage: Coverage | None
    lengths: Lengths | None
    failures: Failures | None
    agreement: Agreement | None
    notes: tuple[str, ...]


def write_analysis(folder: Path, analysis: Analysis, origin: dict[str, Any]) -> Path:
    """Write analysis.json, with where it came from beside it; returns its path."""
    path = folder / FILE
    write_json(path, asdict(analysis) | {"origin": origin})
    return path


def read_analysis(run: Path) -> Analysis | None:
    """The analysis in a run folder; None if it has none. UserError for a damaged one."""
    path = run / FOLDER / FILE
    if not path.is_file():
        return None
    return read_json(path, Analysis, inside=run, remedy="Run `vla-rl analyse` again.")
