"""Best of N at test time: candidates sampled from the policy, one of them chosen.

    action     N actions are proposed for each observation, the chooser picks one, it is played
    lookahead  N continuations of H turns are played from a snapshot, the chooser scores where they lead; the first
               turn(s) of the best are kept and their snapshot is the new state: nothing is replayed
    trajectory N whole ways to the end are played, or of so many turns, and the one with the best mean score counts
    refine     the episode is played to its end, every turn is scored, and it is played again from the worst one on;
               after N rounds the ending with the best score counts

Candidate j of a decision draws from (seed, task, initial state, turn, j). So the result is the same for any number of
workers or slots; N = 1 is plain evaluation, to the episode; and since the kept candidate goes on as it did when it was
looked ahead, a way to success that has been seen is not lost again.

In `lookahead` a continuation in which the simulator reports success counts as the best of all, for every chooser but
chance, unless `success_ahead` is off. In `trajectory` and `refine` (`trajectories.py`) the reward model alone decides
which ending counts, whether or not it was a success: otherwise this would be N attempts with the best one reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from vla_rl.config.search import BestOfConfig
from vla_rl.envs.env import Snapshot, VectorEnv
from vla_rl.evaluation.episodes import EpisodeRecord, play_each_once
from vla_rl.evaluation.search.branches import Branch, Cost, Sampling
from vla_rl.evaluation.search.candidates import ActionChoice, propose
from vla_rl.evaluation.search.choosers import Chooser, Picture, TurnActions
from vla_rl.evaluation.search.search import OnEpisode, Search, append_turns, succeeds_first
from vla_rl.evaluation.search.trajectories import play_trajectories
from vla_rl.policies.policy import Policy
from vla_rl.types import EpisodeSpec, Observation


def play_best_of(
    policy: Policy,
    envs: VectorEnv,
    specs: Sequence[EpisodeSpec],
    config: BestOfConfig,
    chooser: Chooser,
    *,
    seed: int = 0,
    on_episode: OnEpisode | None = None,
) -> tuple[list[EpisodeRecord], Cost]:
    """Play every spec once with `config.best_of` candidates; the records in the order of `specs`, and what it took.

    An action cannot be scored by its outcome before it is played: where `chooser` needs that, mode action is a
    lookahead of one turn. UserError if the chooser asks for a dense reward that the simulator has not.
    """
    if not specs:
        raise ValueError("no episodes to evaluate: give at least one (task, initial state)")
    if config.mode in ("trajectory", "refine"):
        search = Search(policy, envs, config, chooser, seed, on_episode)
        return play_trajectories(search, specs), search.cost
    if config.mode == "action" and not chooser.needs_outcome and not succeeds_first(config):
        return _play_actions(policy, envs, specs, config, chooser, seed, on_episode)
    search = Search(policy, envs, config, chooser, seed, on_episode)
    return _look_ahead(search, specs), search.cost


# --------------------------------------------------------------------------------------------------
# Action


def _play_actions(
    policy: Policy,
    envs: VectorEnv,
    specs: Sequence[EpisodeSpec],
    config: BestOfConfig,
    chooser: Chooser,
    seed: int,
    on_episode: OnEpisode | None,
) -> tuple[list[EpisodeRecord], Cost]:
    cost = Cost()
    sampling = Sampling(config.temperature, seed, config.greedy_first)
    decide = ActionChoice(policy, chooser, config.best_of, sampling, cost)
    records = play_each_once(policy, envs, specs, decide=decide, on_episode=on_episode)
    cost.turns = sum(record.turns for record in records)
    for record in records:
        record.simulated_turns = record.turns
    return records, cost


# --------------------------------------------------------------------------------------------------
# Lookahead


@dataclass
class _Live:
    """An episode under evaluation. It lives in its snapshot, not in a slot."""

    record: EpisodeRecord
    view: Observation
    snapshot: Snapshot | None = None  # None: the initial state
    frames: tuple[Picture, ...] = ()  # the last images before `view`
    past: tuple[TurnActions, ...] = ()  # what was done at each of them
    over: bool = False


def _look_ahead(search: Search, specs: Sequence[EpisodeSpec]) -> list[EpisodeRecord]:
    records = [EpisodeRecord(spec) for spec in specs]
    waiting = list(records)
    places = max(1, search.envs.num_envs // search.config.best_of)
    live: list[_Live] = []
    while waiting or live:
        opened, waiting = waiting[: places - len(live)], waiting[places - len(live) :]
        live += _open(search, opened)
        _decide(search, live)
        live = [episode for episode in live if not episode.over]
    return records


def _open(search: Search, records: Sequence[EpisodeRecord]) -> list[_Live]:
    """Look at the initial states of some episodes."""
    envs, views = search.envs, dict[int, Observation]()
    missing = list(range(len(records)))
    while missing:
        slots = list(range(len(missing)))
        envs.post_reset(slots, [records[i].spec for i in missing])
        result = envs.wait(slots)
        for row in np.flatnonzero(~result.lost).tolist():
            views[missing[row]] = result.observation.select([row])
        missing = [i for row, i in enumerate(missing) if result.lost[row]]
    return [_Live(record, views[i]) for i, record in enumerate(records)]


def _decide(search: Search, live: Sequence[_Live]) -> None:
    """One decision of every live episode: propose, play on, choose, keep."""
    candidates = _candidates(search, live)
    search.player.play([branch for branches in candidates for branch in branches])
    for episode, branches, scores in zip(
        live, candidates, _scores(search, candidates), strict=True
    ):
        best = _best(branches, scores)
        turns = search.config.execute
        if search.succeeds_first and branches[best].success:
            turns = len(branches[best].turns)  # planning again would only find it again
        episode.record.simulated_turns += sum(len(branch.turns) for branch in branches)
        _keep(search, episode, branches[best], turns)
    search.cost.decisions += len(live) if search.choosing else 0


def _candidates(search: Search, live: Sequence[_Live]) -> list[list[Branch]]:
    config, count = search.config, search.config.best_of
    view = Observation.concatenate([episode.view for episode in live])
    moments = [(episode.record.spec, episode.record.turns) for episode in live]
    tokens = propose(search.policy, view, moments, count, search.sampling).numpy()
    search.cost.prefills += len(live)
    search.cost.action_chunks += len(live) * count
    # an action is scored by its own turn alone; chance, and one candidate, need no look ahead at all
    ahead = config.lookahead if config.mode == "lookahead" else 1
    looking = search.choosing and (search.succeeds_first or not search.chooser.blind)
    limit = ahead if looking else config.execute
    return [
        [
            Branch(
                episode.record.spec,
                candidate=j,
                limit=limit,
                start=episode.snapshot,
                turn=episode.record.turns,
                frames=episode.frames,
                past=episode.past,
                first=tokens[i, j],
                keep=frozenset((min(config.execute, limit),)),
            )
            for j in range(count)
        ]
        for i, episode in enumerate(live)
    ]


def _scores(
    search: Search, candidates: Sequence[Sequence[Branch]]
) -> Iterator[Float32[np.ndarray, " N"]]:
    """The candidates' scores, episode by episode; solved ones score without bound, the fewer turns the better."""
    asked = [
        search.choosing and not (search.succeeds_first and any(b.success for b in branches))
        for branches in candidates
    ]
    moments = [
        branch.moment()
        for branches, ask in zip(candidates, asked, strict=True)
        if ask
        for branch in branches
    ]
    scores = iter(search.score(moments).tolist())
    for branches, ask in zip(candidates, asked, strict=True):
        if ask:
            yield np.array([next(scores) for _ in branches], dtype=np.float32)
        else:
            solved = [1.0 / len(b.turns) if b.success else 0.0 for b in branches]
            yield np.array(solved, dtype=np.float32)


def _best(branches: Sequence[Branch], scores: Float32[np.ndarray, " N"]) -> int:
    """The highest score; of equal ones the first."""
    assert len(branches) == len(scores)
    return int(np.argmax(scores))


def _keep(search: Search, episode: _Live, branch: Branch, turns: int) -> None:
    """Make the first `turns` turns of a branch part of its episode."""
    kept = branch.turns[:turns]
    append_turns(episode.record, kept)
    last = kept[-1]
    episode.view, episode.snapshot = last.view, last.snapshot
    episode.frames, episode.past = last.before, last.past_after
    episode.over = len(kept) == len(branch.turns) and branch.ended
    assert episode.over or episode.snapshot is not None
    if episode.over:
        episode.record.success = branch.success
        search.finish(episode.record)
