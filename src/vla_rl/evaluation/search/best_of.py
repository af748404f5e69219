"""Best of N at test time: candidates sampled from the policy, one of them chosen.

    action     N actions are proposed for each observation, the chooser picks one, it is played
    lookahead  N continuations of H turns are played from a snapshot, the chooser scores where they lead; the first
               turn(s) of the best are kept and their snapshot is the new state: nothing is replayed
    refine     the episode is played to its end, every turn is scored, and it is played again from the worst one on;
               after N rounds the ending with the best score counts

Candidate j of a decision draws from (seed, task, initial state, turn, j). So the result is the same for any number of
workers or slots; N = 1 is plain evaluation, to the episode; and since the kept candidate goes on as it did when it was
looked ahead, a way to success that has been seen is not lost again.

In `lookahead` a continuation in which the simulator reports success counts as the best of all, for every chooser but
chance, unless `success_ahead` is off. In `refine` the reward model alone decides which ending counts, whether or not it
was a success: otherwise this would be N attempts with the best one reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32

from vla_rl.config.search import BestOfConfig
from vla_rl.envs.env import Snapshot, VectorEnv
from vla_rl.evaluation.episodes import EpisodeRecord, play_each_once
from vla_rl.evaluation.search.branches import Branch, BranchPlayer, Cost, PlayedTurn, Sampling
from vla_rl.evaluation.search.candidates import ActionChoice, propose
from vla_rl.evaluation.search.choosers import Chooser, Moment, Picture
from vla_rl.policies.policy import Policy
from vla_rl.types import EpisodeSpec, Observation

OnEpisode = Callable[[EpisodeRecord], None]


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
    if config.mode == "refine":
        search = _Search(policy, envs, config, chooser, seed, on_episode)
        return _refine(search, specs), search.cost
    if config.mode == "action" and not chooser.needs_outcome and not succeeds_first(config):
        return _play_actions(policy, envs, specs, config, chooser, seed, on_episode)
    search = _Search(policy, envs, config, chooser, seed, on_episode)
    return _look_ahead(search, specs), search.cost


def succeeds_first(config: BestOfConfig) -> bool:
    """Whether a candidate that has reached success in the simulator is taken without asking the chooser."""
    if config.mode == "lookahead":
        return config.success_ahead and config.chooser != "random"
    return config.chooser in ("simulator", "success")


class _Search:
    """What all decisions of one evaluation share."""

    def __init__(
        self,
        policy: Policy,
        envs: VectorEnv,
        config: BestOfConfig,
        chooser: Chooser,
        seed: int,
        on_episode: OnEpisode | None,
    ) -> None:
        self.policy, self.envs, self.config, self.chooser = policy, envs, config, chooser
        self.sampling = Sampling(config.temperature, seed, config.greedy_first)
        self.cost = Cost()
        self.succeeds_first = succeeds_first(config)
        self.choosing = config.best_of > 1
        self.player = BranchPlayer(
            policy,
            envs,
            self.sampling,
            self.cost,
            history=chooser.history,
            dense_rewards=self.choosing and chooser.needs_dense_reward,
        )
        self._on_episode = on_episode

    def score(self, moments: Sequence[Moment]) -> Float32[np.ndarray, " B"]:
        """One call of the chooser for all moments."""
        if not moments:
            return np.zeros(0, dtype=np.float32)
        self.cost.scored += len(moments)
        self.cost.chooser_calls += 1
        return self.chooser.score(moments)

    def finish(self, record: EpisodeRecord) -> None:
        self.cost.turns += record.turns
        if self._on_episode is not None:
            self._on_episode(record)


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
    over: bool = False


def _look_ahead(search: _Search, specs: Sequence[EpisodeSpec]) -> list[EpisodeRecord]:
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


def _open(search: _Search, records: Sequence[EpisodeRecord]) -> list[_Live]:
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


def _decide(search: _Search, live: Sequence[_Live]) -> None:
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
        _keep(search, episode, branches[best], turns)
    search.cost.decisions += len(live) if search.choosing else 0


def _candidates(search: _Search, live: Sequence[_Live]) -> list[list[Branch]]:
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
                first=tokens[i, j],
                keep=frozenset((min(config.execute, limit),)),
            )
            for j in range(count)
        ]
        for i, episode in enumerate(live)
    ]


def _scores(
    search: _Search, candidates: Sequence[Sequence[Branch]]
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


def _keep(search: _Search, episode: _Live, branch: Branch, turns: int) -> None:
    """Make the first `turns` turns of a branch part of its episode."""
    kept = branch.turns[:turns]
    _append(episode.record, kept)
    last = kept[-1]
    episode.view, episode.snapshot, episode.frames = last.view, last.snapshot, last.before
    episode.over = len(kept) == len(branch.turns) and branch.ended
    assert episode.over or episode.snapshot is not None
    if episode.over:
        episode.record.success = branch.success
        search.finish(episode.record)


def _append(record: EpisodeRecord, turns: Sequence[PlayedTurn]) -> None:
    record.turns += len(turns)
    record.simulator_steps += sum(turn.simulator_steps for turn in turns)
    record.tokens += [turn.tokens for turn in turns]


# --------------------------------------------------------------------------------------------------
# Refine


@dataclass
class _Ending:
    """One way an episode went to its end, with a score for each turn."""

    turns: list[PlayedTurn]
    moments: list[Moment]
    success: bool
    scores: list[float] = field(default_factory=list[float])

    def score(self, chooser: Chooser) -> float:
        """How good the whole of it is: the mean over its turns, or where scores are of states that of the last one.

        Chance takes the last too: means over fewer turns vary more, and would favour short episodes.
        """
        if chooser.scores_progress or chooser.blind:
            return self.scores[-1]
        return float(np.mean(self.scores))

    def worst(self, progress: bool) -> int:
        """The turn to regenerate from: the lowest score, or where scores are of states the least rise of them."""
        scores = np.array(self.scores)
        if progress:
            scores = np.diff(scores, prepend=min(scores[0], 0.0))
        return int(np.argmin(scores))


def _refine(search: _Search, specs: Sequence[EpisodeSpec]) -> list[EpisodeRecord]:
    records: list[EpisodeRecord] = []
    size = 2 * search.envs.num_envs  # at a time: slots that are done early take the next ones
    for start in range(0, len(specs), size):
        some = specs[start : start + size]
        for spec, ending in zip(some, _refined(search, some), strict=True):
            record = EpisodeRecord(spec, success=ending.success)
            _append(record, ending.turns)
            records.append(record)
            search.finish(record)
    return records


def _refined(search: _Search, specs: Sequence[EpisodeSpec]) -> list[_Ending]:
    """Play some episodes and refine each of them; the endings that count."""
    best = _play_on(search, specs, [None] * len(specs), 0)
    for number in range(1, search.config.best_of):
        open_rows = [i for i, e in enumerate(best) if not (search.succeeds_first and e.success)]
        if not open_rows:
            break
        again = _play_on(
            search, [specs[i] for i in open_rows], [best[i] for i in open_rows], number
        )
        search.cost.decisions += len(open_rows)
        for i, ending in zip(open_rows, again, strict=True):
            solved = search.succeeds_first and ending.success
            if solved or ending.score(search.chooser) > best[i].score(search.chooser):
                best[i] = ending
    return best


def _play_on(
    search: _Search, specs: Sequence[EpisodeSpec], before: Sequence[_Ending | None], number: int
) -> list[_Ending]:
    """Round `number`: play each episode to its end, from the start or from the worst turn of an earlier ending on."""
    horizon, progress = search.envs.horizon, search.chooser.scores_progress
    cuts = [0 if ending is None else ending.worst(progress) for ending in before]
    branches: list[Branch] = []
    for spec, ending, cut in zip(specs, before, cuts, strict=True):
        last = ending.turns[cut - 1] if ending is not None and cut > 0 else None
        branches.append(
            Branch(
                spec,
                candidate=number,
                limit=horizon,
                start=None if last is None else last.snapshot,
                turn=cut,
                frames=() if last is None else last.before,
                keep=frozenset(range(1, horizon + 1)) if search.choosing else frozenset(),
                reward_every_turn=True,
            )
        )
    search.player.play(branches)
    endings: list[_Ending] = []
    fresh: list[Moment] = []
    for branch, ending, cut in zip(branches, before, cuts, strict=True):
        kept = ending or _Ending([], [], False)
        moments = [branch.moment(i) for i in range(len(branch.turns))]
        fresh += moments
        endings.append(
            _Ending(
                kept.turns[:cut] + branch.turns,
                kept.moments[:cut] + moments,
                branch.success,
                kept.scores[:cut],
            )
        )
    scores = iter(search.score(fresh if search.choosing else []).tolist())
    for ending in endings:
        missing = len(ending.turns) - len(ending.scores) if search.choosing else 0
        ending.scores += [next(scores) for _ in range(missing)]
    return endings
