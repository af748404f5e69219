"""Episodes that have been played, by their settings; and what is missing is played.

Each episode is a line of episodes.jsonl as soon as it has ended, so that an interrupted evaluation goes on where it
was, and a trial's episodes count in a later whole evaluation by the same settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from vla_rl.config import EnvConfig, UserError
from vla_rl.diagnostics.reproduction.settings import Settings, env_of, understood
from vla_rl.envs import make_vector_env
from vla_rl.evaluation.episodes import Decide, EpisodeRecord, by_itself, play_each_once
from vla_rl.functional import Interval, wilson_interval
from vla_rl.policies.openvla.images.pipeline import rotate_180
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.runtime.devices import use_threads
from vla_rl.runtime.external import parse_json
from vla_rl.runtime.files import cannot_write
from vla_rl.runtime.progress import progress
from vla_rl.types import EpisodeSpec


@dataclass(frozen=True)
class Outcome:
    """How one (task, initial state) went."""

    success: bool
    turns: Annotated[int, Ge(0)]
    simulator_steps: Annotated[int, Ge(0)]


@dataclass(frozen=True)
class _Line:
    settings: dict[str, Any]
    task: str
    initial_state: Annotated[int, Ge(0)]
    outcome: Outcome


Outcomes = dict[EpisodeSpec, Outcome]


@dataclass(frozen=True)
class Rate:
    """Successes of so many episodes, with Wilson's 95 % interval."""

    successes: int
    episodes: int

    @property
    def share(self) -> float:
        return self.successes / self.episodes

    @property
    def interval(self) -> Interval:
        return wilson_interval(self.successes, self.episodes)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.successes}/{self.episodes} = {100 * self.share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def rate_of(outcomes: Outcomes) -> Rate:
    return Rate(sum(one.success for one in outcomes.values()), len(outcomes))


class Journal:
    """episodes.jsonl: the episodes that have been played to their end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Outcomes] = {}
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]  # a killed process leaves half a line
        if whole != text:
            with path.open("r+b") as file:
                file.truncate(len(whole.encode("utf-8")))
        for number, line in enumerate(whole.splitlines(), 1):
            found = parse_json(line, _Line, source=f"{path}, line {number}")
            spec = EpisodeSpec(found.task, found.initial_state)
            self._known.setdefault(_key(found.settings), {})[spec] = found.outcome

    def of(self, settings: Settings) -> Outcomes:
        """What was played by these settings."""
        return self._known.setdefault(_key(asdict(settings)), {})

    def add(self, settings: Settings, spec: EpisodeSpec, outcome: Outcome) -> None:
        """Note an episode, on the disk at once. UserError where that cannot be."""
        line = {
            "settings": asdict(settings),
            "task": spec.task,
            "initial_state": spec.initial_state,
            "outcome": asdict(outcome),
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(cannot_write(self._path, error)) from error
        self.of(settings)[spec] = outcome


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


class Player:
    """Plays a checkpoint by whatever settings; what the journal has is not played again."""

    def __init__(
        self,
        policy: OpenVLAPolicy,
        env: EnvConfig,
        journal: Journal,
        *,
        seed: int = 0,
        statistics: Mapping[str, Any] | None = None,
    ) -> None:
        """env: the protocol's. statistics: further datasets', by name (see `understood`)."""
        self.policy, self.env, self.journal, self.seed = policy, env, journal, seed
        self.statistics = dict(statistics or {})

    def outcomes(self, settings: Settings, specs: Sequence[EpisodeSpec], label: str) -> Outcomes:
        """How each of `specs` goes with these settings, in their order."""
        known = self.journal.of(settings)
        missing = [spec for spec in specs if spec not in known]
        if missing:
            self._play(settings, missing, len(specs), label)
        return {spec: known[spec] for spec in specs}

    def _play(
        self, settings: Settings, specs: Sequence[EpisodeSpec], total: int, label: str
    ) -> None:
        policy = understood(self.policy, settings, self.statistics)
        env = env_of(self.env, settings, policy)
        env = replace(env, num_envs=min(env.num_envs, len(specs)))
        with progress(label, total=total) as bar, use_threads(1), make_vector_env(env) as envs:
            bar.advance(total - len(specs))

            def note(record: EpisodeRecord) -> None:
                outcome = Outcome(record.success, record.turns, record.simulator_steps)
                self.journal.add(settings, record.spec, outcome)
                bar.advance(1)

            decide = _decide(policy, settings, self.seed)
            play_each_once(policy, envs, specs, on_episode=note, decide=decide)


def _decide(policy: OpenVLAPolicy, settings: Settings, seed: int) -> Decide:
    plain = by_itself(policy, settings.temperature, seed)
    if not settings.turned:
        return plain
    return lambda seen, records: plain(replace(seen, images=rotate_180(seen.images)), records)
