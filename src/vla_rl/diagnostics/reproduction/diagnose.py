"""Looks for what keeps a checkpoint from its published figure, cause by cause, and says what it found of each.

Three kinds of evidence, the cheap ones first:

    the settings    where what is played differs from the protocol
    likelihood      where the demonstrations are likelier by another reading of images, gripper, statistics or class
    a trial         some episodes again, with one thing changed: which of the same initial states came out otherwise

A cause is named where a trial moves success the missing way, more often than chance would in one case of a hundred.
What is named is put right, everything is played again, and if the figure is still missed the search goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from vla_rl.config import UserError
from vla_rl.diagnostics.reproduction.causes import (
    MOST_UNSEEN,
    SEEN_IN_DEMONSTRATIONS,
    SETTINGS,
    Alternative,
    alternatives,
    in_words,
)
from vla_rl.diagnostics.reproduction.demonstrated import Difference, Likelihoods
from vla_rl.diagnostics.reproduction.episodes import Outcomes, Player, Rate, rate_of
from vla_rl.diagnostics.reproduction.settings import Settings
from vla_rl.functional import sign_test
from vla_rl.types import EpisodeSpec

CHANCE = 0.01
"""Of as many changes for the better in a trial, if it made no difference."""
MOST_ROUNDS = 4
"""Causes that are put right one after another."""
TOGETHER = "several together"

Status = Literal["named", "suspected", "cleared", "not tested"]


@dataclass(frozen=True)
class Trial:
    """The same episodes with something changed."""

    words: str
    before: Rate
    after: Rate
    gained: int
    """Episodes that came out the missing way (successes, where success is too rare) only after the change."""
    lost: int
    chance: float
    """Of so many, if the change made no difference."""

    @property
    def is_clear(self) -> bool:
        return self.chance < CHANCE

    def __str__(self) -> str:
        return (
            f"{self.words}: {self.before.successes} -> {self.after.successes} of the same {self.after.episodes} "
            f"episodes succeed ({self.gained} moved towards the figure, {self.lost} away; by chance p = "
            f"{self.chance:.2g})"
        )


@dataclass
class Finding:
    """What was found of one cause."""

    cause: str
    status: Status
    evidence: list[str] = field(default_factory=list)


@dataclass
class Diagnosis:
    """The causes, and how far putting right what was named goes."""

    findings: list[Finding]
    corrected: Settings
    rate: Rate
    """By the corrected settings, all episodes."""

    @property
    def named(self) -> list[Finding]:
        return [one for one in self.findings if one.status == "named"]


class Search:
    """One search for causes; `find` does it."""

    def __init__(
        self,
        player: Player,
        specs: Sequence[EpisodeSpec],
        figure: float,
        protocol: Settings,
        trial_episodes: int,
        likelihoods: Likelihoods | None,
        kinds: Sequence[str] = (),
        statistics: Sequence[str] = (),
    ) -> None:
        """specs: all episodes of the evaluation. statistics, kinds: names of what else there is to choose from."""
        self._player, self._specs, self._figure = player, list(specs), figure
        self._protocol, self._likelihoods = protocol, likelihoods
        self._kinds, self._statistics = kinds, statistics
        self._trial_specs = evenly(specs, trial_episodes)
        self._findings = {cause: Finding(cause, "cleared") for cause in SETTINGS}

    def find(self, played: Settings) -> Diagnosis:
        """Look for the causes of what `played` misses, until the figure is reached or nothing more is found."""
        settings, rate = played, self._whole(played)
        for _ in range(MOST_ROUNDS):
            if within(self._figure, rate):
                break
            better = self._round(settings)
            if better is None:
                break
            settings, rate = better, self._whole(better)
        if within(self._figure, rate):  # what else was suspected explains nothing that is left
            for finding in self._findings.values():
                finding.status = "named" if finding.status == "named" else "cleared"
        return Diagnosis(list(self._findings.values()), settings, rate)

    def _whole(self, settings: Settings) -> Rate:
        return rate_of(self._player.outcomes(settings, self._specs, "evaluate"))

    def _round(self, settings: Settings) -> Settings | None:
        """Name the cause that explains most, and return the settings without it; None where none is found."""
        candidates = self._candidates(settings)
        tried = [(one, self._trial(settings, one)) for one in candidates]
        clear = [(one, trial) for one, trial in tried if trial is not None and trial.is_clear]
        if clear:
            best, _ = max(clear, key=lambda pair: pair[1].gained - pair[1].lost)
            self._findings[best.cause].status = "named"
            for one, weaker in tried:
                if weaker is not None and one.cause != best.cause:
                    self._clear_of(one, weaker)
            return best.settings
        return self._together(settings, [one for one, _ in tried])

    def _clear_of(self, one: Alternative, trial: Trial) -> None:
        finding = self._findings[one.cause]
        if finding.status != "named":
            finding.status = "suspected" if trial.gained > trial.lost else "cleared"

    def _together(self, settings: Settings, found: Sequence[Alternative]) -> Settings | None:
        """All that the settings or the demonstrations point at, changed at once: one alone may not be enough."""
        pointed = [one for one in found if self._findings[one.cause].status == "suspected"]
        first = {one.cause: one for one in reversed(pointed)}
        if len(first) < 2:
            return None
        changed = settings
        for cause, one in first.items():
            values = {name: getattr(one.settings, name) for name in SETTINGS[cause]}
            changed = replace(changed, **values)
        both = Alternative(TOGETHER, changed, in_words(changed, settings), False)
        trial = self._trial(settings, both)
        if trial is None or not trial.is_clear:
            return None
        for cause in first:
            self._findings[cause].status = "named"
            self._findings[cause].evidence.append(f"together, {trial}")
        return changed

    def _candidates(self, settings: Settings) -> list[Alternative]:
        """What to try by playing: whatever differs from the protocol, and what demonstrations point at."""
        found = alternatives(settings, self._protocol, self._statistics, self._kinds)
        chosen: list[Alternative] = []
        for cause, others in found.items():
            finding = self._findings[cause]
            if finding.status == "named":
                continue
            deviating = [one for one in others if one.is_protocols]
            if deviating:
                finding.status = "suspected"
                _note(finding, f"the protocol has {deviating[0].words}")
            chosen += deviating
            if not others:
                _note(finding, "as the protocol has it, and there is nothing else it could be")
            elif cause not in SEEN_IN_DEMONSTRATIONS:
                if not deviating:
                    _note(finding, "as the protocol has it")
            elif self._likelihoods is not None:
                chosen += self._likelier(settings, others, self._likelihoods)
            else:
                chosen += [one for one in others if one not in deviating][:MOST_UNSEEN]
        return list(dict.fromkeys(chosen))

    def _likelier(
        self, settings: Settings, others: Sequence[Alternative], likelihoods: Likelihoods
    ) -> list[Alternative]:
        """The reading of the demonstrations that is likeliest, if it is clearly likelier than the one played."""
        compared: list[tuple[Difference, Alternative]] = []
        for one in others:
            try:
                compared.append((likelihoods.compare(settings, one.settings), one))
            except UserError:  # these weights, or images of this size, cannot be read so
                continue
        if not compared:
            return []
        difference, best = max(compared, key=lambda pair: pair[0].gain)
        finding = self._findings[best.cause]
        if difference.is_clear:
            finding.status = "suspected"
            _note(finding, f"demonstrations are likelier with {best.words}: {difference}")
            return [best]
        _note(
            finding,
            f"demonstrations are not likelier otherwise; nearest, {best.words}: {difference}",
        )
        return []

    def _trial(self, settings: Settings, one: Alternative) -> Trial | None:
        """Play some episodes with the change. None where that cannot be played."""
        before = self._player.outcomes(settings, self._trial_specs, "trial: as played")
        try:
            after = self._player.outcomes(one.settings, self._trial_specs, f"trial: {one.cause}")
        except UserError as error:
            if one.cause in self._findings:
                _note(self._findings[one.cause], f"{one.words} cannot be played: {error}")
            return None
        rarer = rate_of(before).share < self._figure
        trial = compared_episodes(one.words, before, after, more=rarer)
        if one.cause in self._findings:
            _note(self._findings[one.cause], str(trial))
        return trial


def compared_episodes(words: str, before: Outcomes, after: Outcomes, *, more: bool) -> Trial:
    """A trial from the outcomes of the same episodes. more: whether success is to become more frequent."""
    pairs = [(before[spec].success, after[spec].success) for spec in before]
    gained = sum(new and not old for old, new in pairs)
    lost = sum(old and not new for old, new in pairs)
    if not more:
        gained, lost = lost, gained
    chance = sign_test(gained, lost)
    return Trial(words, rate_of(before), rate_of(after), gained, lost, chance)


def within(figure: float, rate: Rate) -> bool:
    """Whether a published figure lies within the interval of what was measured."""
    low, high = rate.interval
    return low <= figure <= high


def evenly(specs: Sequence[EpisodeSpec], count: int) -> list[EpisodeSpec]:
    """`count` of the episodes, as many of each task, the first initial states of each; all where there are fewer."""
    by_task: dict[str, list[EpisodeSpec]] = {}
    for spec in specs:
        by_task.setdefault(spec.task, []).append(spec)
    turns = max(len(one) for one in by_task.values())
    order = [one[at] for at in range(turns) for one in by_task.values() if at < len(one)]
    return order[:count]


def _note(finding: Finding, words: str) -> None:
    if words not in finding.evidence:
        finding.evidence.append(words)
