"""Choosing among whole trajectories: the best of N, and the best of several rounds of refinement.

    trajectory  candidates 0 .. N-1 are played from the start to the end, or for `trajectory_turns` turns, after which
                the next choice begins where the chosen one ended
    refine      round 0 is a trajectory. Each further round keeps the best one so far up to a turn, samples the rest
                anew at the round's temperature, and keeps what scores higher. The turn is the one with the worst score,
                or the first one at which the score falls (`refine_from`)

The score of a trajectory is the mean of its turns' scores (probabilities, or progress, 0 to 1): so refinement never
returns less than round 0 has.

What is spent is counted in simulated turns, discarded ones included, episode by episode. With `turn_budget` candidates
are played until exactly so many are spent: one that the budget cuts short is discarded, and counts as spent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vla_rl.config import UserError
from vla_rl.config.search import BestOfConfig
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.evaluation.search.branches import Branch, PlayedTurn
from vla_rl.evaluation.search.choosers import Chooser, Moment
from vla_rl.evaluation.search.search import Search, append_turns
from vla_rl.types import EpisodeSpec


@dataclass
class Ending:
    """One way an episode went, to its end or for a stretch of turns, with a score for each turn."""

    turns: list[PlayedTurn]
    moments: list[Moment]
    success: bool
    scores: list[float] = field(default_factory=list[float])
    over: bool = True
    """The episode has come to its end."""

    def score(self, chooser: Chooser) -> float:
        """How good the whole of it is: the mean over its turns, or where scores are of states that of the last one.

        Chance takes the last too: means over fewer turns vary more, and would favour short episodes.
        """
        if chooser.scores_progress or chooser.blind:
            return self.scores[-1]
        return float(np.mean(chooser.shares(np.array(self.scores))))

    def cut(self, chooser: Chooser, refine_from: str) -> int:
        """The turn to regenerate from.

        worst: the lowest score, or where scores are of states the least rise of them. fall: the first turn whose score
        is lower than that of the turn before it; the worst where it never falls.
        """
        scores = np.array(self.scores)
        falls = np.flatnonzero(np.diff(scores) < 0)
        if refine_from == "fall" and len(falls):
            return int(falls[0]) + 1
        if chooser.scores_progress:
            scores = np.diff(scores, prepend=min(scores[0], 0.0))
        return int(np.argmin(scores))


@dataclass
class _Episode:
    """An episode under evaluation."""

    spec: EpisodeSpec
    kept: list[PlayedTurn] = field(
        default_factory=list[PlayedTurn]
    )  # of stretches that are decided
    best: Ending | None = None  # so far, of the stretch under way
    spent: int = 0  # simulated turns


@dataclass
class _Try:
    """One candidate of an episode: from where it is played, and for how many turns."""

    episode: _Episode
    number: int
    start: PlayedTurn | None
    turn: int  # of the episode
    prefix: Ending  # what it shares with an earlier one
    limit: int


def play_trajectories(search: Search, specs: Sequence[EpisodeSpec]) -> list[EpisodeRecord]:
    """Play every spec once; the records in the order of `specs`, each with the turns that were simulated for it.

    UserError for a budget that does not allow one whole episode.
    """
    _require_budget(search)
    records: list[EpisodeRecord] = []
    config = search.config
    # at a time: slots that are done early take the next ones
    size = 2 * search.envs.num_envs
    if _at_once(config):
        size = max(1, size // config.best_of)
    for start in range(0, len(specs), size):
        episodes = [_Episode(spec) for spec in specs[start : start + size]]
        for episode in episodes:
            records.append(EpisodeRecord(episode.spec))
        _play_to_the_end(search, episodes)
        for record, episode in zip(records[start:], episodes, strict=True):
            assert episode.best is not None
            record.success = episode.best.success
            record.simulated_turns = episode.spent
            append_turns(record, episode.kept)
            search.finish(record)
    return records


def _at_once(config: BestOfConfig) -> bool:
    """Whether all candidates are played side by side: none needs to know what another one has spent or scored."""
    return config.mode == "trajectory" and not config.turn_budget


def _require_budget(search: Search) -> None:
    config, horizon = search.config, search.envs.horizon
    if not config.turn_budget:
        return
    if config.turn_budget < horizon:
        raise UserError(
            f"search.turn_budget {config.turn_budget} does not pay for one episode, which may take {horizon} turns: "
            f"set it to {horizon} or more, or to 0 for no limit"
        )
    if config.mode == "trajectory" and config.trajectory_turns < horizon:
        raise UserError(
            f"search.turn_budget is for whole episodes, and search.trajectory_turns {config.trajectory_turns} cuts "
            f"them into stretches: an episode may take {horizon} turns. Set trajectory_turns to {horizon}, or "
            "turn_budget to 0"
        )


def _play_to_the_end(search: Search, episodes: Sequence[_Episode]) -> None:
    """Stretch after stretch: candidates, a choice, and on from there."""
    live = list(episodes)
    while live:
        for episode in live:
            episode.best = None
        if _at_once(search.config):
            _consider(
                search, [_fresh(search, e, n) for e in live for n in range(search.config.best_of)]
            )
        else:
            _in_rounds(search, live)
        for episode in live:
            assert episode.best is not None
            episode.kept += episode.best.turns
        live = [e for e in live if e.best is not None and not e.best.over]


def _in_rounds(search: Search, live: Sequence[_Episode]) -> None:
    """One candidate of each episode after another."""
    for number in range(search.config.best_of):
        tries: list[_Try] = []
        for episode in live:
            if number and search.succeeds_first and episode.best and episode.best.success:
                continue
            tried = _next(search, episode, number)
            if tried is not None:
                tries.append(tried)
        if not tries:
            break
        _consider(search, tries)


def _next(search: Search, episode: _Episode, number: int) -> _Try | None:
    """The next candidate of an episode; None where its budget is spent."""
    tried = _fresh(search, episode, number)
    if search.config.mode == "refine" and episode.best is not None:
        best = episode.best
        cut = best.cut(search.chooser, search.config.refine_from)
        tried.prefix = Ending(best.turns[:cut], best.moments[:cut], False, best.scores[:cut])
        tried.start, tried.turn = (best.turns[cut - 1] if cut else None), cut
    if number and search.config.turn_budget:
        tried.limit = min(tried.limit, search.config.turn_budget - episode.spent)
    return tried if tried.limit > 0 else None


def _fresh(search: Search, episode: _Episode, number: int) -> _Try:
    """A candidate that begins where the episode has come to."""
    limit = search.envs.horizon
    if search.config.mode == "trajectory" and search.choosing:
        limit = min(limit, search.config.trajectory_turns)
    start = episode.kept[-1] if episode.kept else None
    return _Try(episode, number, start, len(episode.kept), Ending([], [], False), limit)


def _consider(search: Search, tries: Sequence[_Try]) -> None:
    """Play candidates side by side, score them, and keep the best of each episode."""
    config, horizon = search.config, search.envs.horizon
    branches = [
        Branch(
            tried.episode.spec,
            candidate=tried.number,
            limit=tried.limit,
            start=None if tried.start is None else tried.start.snapshot,
            turn=tried.turn,
            frames=() if tried.start is None else tried.start.before,
            past=() if tried.start is None else tried.start.past_after,
            keep=_kept_snapshots(search, tried.limit, horizon),
            reward_every_turn=True,
        )
        for tried in tries
    ]
    search.player.play(branches, config.temperature_of(tries[0].number))
    found: list[tuple[_Try, Ending]] = []
    for tried, branch in zip(tries, branches, strict=True):
        tried.episode.spent += len(branch.turns)
        whole = config.mode == "trajectory" and len(branch.turns) == config.trajectory_turns
        if not (branch.ended or whole):
            continue  # cut short by the budget
        moments = [branch.moment(i) for i in range(len(branch.turns))]
        ending = Ending(
            tried.prefix.turns + branch.turns,
            tried.prefix.moments + moments,
            branch.success,
            list(tried.prefix.scores),
            branch.ended,
        )
        found.append((tried, ending))
    _score(search, [ending for _, ending in found])
    search.cost.decisions += _decisions(search, tries)
    for tried, ending in found:
        if _better(search, ending, tried.episode.best):
            tried.episode.best = ending


def _kept_snapshots(search: Search, limit: int, horizon: int) -> frozenset[int]:
    """After how many turns of a candidate a later one may begin."""
    if not search.choosing:
        return frozenset()
    if search.config.mode == "refine":
        return frozenset(range(1, horizon + 1))
    return frozenset((limit,)) if limit < horizon else frozenset()


def _decisions(search: Search, tries: Sequence[_Try]) -> int:
    """Times a choice is made: once for all candidates of a stretch, or once for each round after the first."""
    if not search.choosing:
        return 0
    if _at_once(search.config):
        return len({id(tried.episode) for tried in tries})
    return sum(tried.number > 0 for tried in tries)


def _score(search: Search, endings: Sequence[Ending]) -> None:
    """Fill in the scores that are missing, in one call."""
    if not search.choosing:
        return
    fresh = [moment for ending in endings for moment in ending.moments[len(ending.scores) :]]
    scores = iter(search.score(fresh).tolist())
    for ending in endings:
        ending.scores += [next(scores) for _ in range(len(ending.turns) - len(ending.scores))]


def _better(search: Search, ending: Ending, best: Ending | None) -> bool:
    if best is None:
        return True
    if search.succeeds_first and best.success != ending.success:
        return ending.success
    if search.succeeds_first and ending.success:
        return len(ending.turns) < len(best.turns)  # played side by side
    return ending.score(search.chooser) > best.score(search.chooser)
