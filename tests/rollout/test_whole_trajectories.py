"""Choosing among whole trajectories, and refinement, where scores, best answers and budgets are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from builders.policies import narrow_policy
from vla_rl.config import ConfigError, EnvConfig, UserError
from vla_rl.config.search import BestOfConfig
from vla_rl.envs.known_answers import ChainEnv, make_chain_envs
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.evaluation.episodes import EpisodeRecord, play_each_once
from vla_rl.evaluation.search.best_of import play_best_of
from vla_rl.evaluation.search.branches import Branch, BranchPlayer, Cost, Sampling
from vla_rl.evaluation.search.choosers import Moment, RewardModelChooser
from vla_rl.policies import OpenVLAPolicy
from vla_rl.rewards.process.model import PastSteps, RewardModelDescription
from vla_rl.types import EpisodeSpec

HORIZON = 6
CHAIN = [EpisodeSpec("chain", i) for i in range(6)]
SEED = 3


@pytest.fixture(scope="module")
def walker() -> OpenVLAPolicy:
    return narrow_policy(ChainEnv.instructions)


class Walked:
    """A hand-made reward model: the log-odds are how far the corridor has been walked, +-, with every turn noted."""

    def __init__(self, history: int = 1) -> None:
        regresses = history > 1
        self.description = RewardModelDescription(
            "walked", "?", "1", "0", 0, history, int(regresses), 4 if regresses else 0,
            head="regression" if regresses else "next-token",
        )  # fmt: skip
        self.sees_actions = False
        self.past: list[PastSteps] = []

    def log_odds(self, images, instructions, actions=None, past=None):
        if past is not None:
            self.past.append(past)
            images = images[:, -1]
        return (4 * (images[:, 0, :, 0] > 0).mean(1) - 2).astype(np.float32)

    def save(self, folder) -> None:
        raise NotImplementedError


def env_config(num_envs: int = 8) -> EnvConfig:
    return EnvConfig(
        image_size=32, num_envs=num_envs, horizon=HORIZON, action_chunk=1, action_repeat=1
    )


def play(
    policy: OpenVLAPolicy, config: BestOfConfig, model: Walked | None = None, num_envs: int = 8
) -> tuple[list[EpisodeRecord], Cost]:
    with SerialVectorEnv(env_config(num_envs), make_chain_envs) as envs:
        chooser = RewardModelChooser(model or Walked())
        return play_best_of(policy, envs, CHAIN, config, chooser, seed=SEED)


def mean_score(policy: OpenVLAPolicy, record: EpisodeRecord) -> float:
    """Of a trajectory that is played again by its tokens: the mean of the probabilities of what each turn led to."""
    env = ChainEnv(env_config())
    env.reset(record.spec)
    scores = []
    for chunk in policy.decode_actions(torch.tensor(record.tokens)):
        env.step(chunk)
        scores.append(Walked().log_odds(env.render()[None], ["walk"])[0])
    return float(np.mean(1 / (1 + np.exp(-np.array(scores, np.float64)))))


def candidates(policy: OpenVLAPolicy, count: int, temperature: float) -> list[list[EpisodeRecord]]:
    """What candidate j alone plays in each episode: the first of a search in which it is the only one that can win."""
    found = []
    for number in range(count):
        config = BestOfConfig(1, "trajectory", temperature=temperature, greedy_first=False)
        with SerialVectorEnv(env_config(), make_chain_envs) as envs:
            player = BranchPlayer(policy, envs, Sampling(config.temperature, SEED, False), Cost())
            branches = [Branch(spec, candidate=number, limit=HORIZON) for spec in CHAIN]
            player.play(branches)
        found.append(
            [
                EpisodeRecord(b.spec, b.success, len(b.turns), 0, [t.tokens for t in b.turns])
                for b in branches
            ]
        )
    return found


ALL = BestOfConfig(5, "trajectory", temperature=0.8, greedy_first=False)
REFINE = BestOfConfig(4, "refine", temperatures=(0.3, 0.5), greedy_first=False)


@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_the_trajectory_with_the_best_mean_score_is_kept(
    walker: OpenVLAPolicy, num_envs: int
) -> None:
    tried = candidates(walker, 5, 0.8)
    records, cost = play(walker, ALL, num_envs=num_envs)
    for i, record in enumerate(records):
        scores = [mean_score(walker, own[i]) for own in tried]
        best = tried[int(np.argmax(scores))][i]
        assert (record.tokens, record.success) == (best.tokens, best.success)
        assert record.simulated_turns == sum(own[i].turns for own in tried)
    assert len({tuple(map(tuple, r.tokens)) for r in records}) > 3
    assert cost.simulator_turns == sum(r.simulated_turns for r in records)
    assert cost.decisions == len(CHAIN)


def test_a_trajectory_that_is_longer_than_the_limit_is_chosen_stretch_by_stretch(
    walker: OpenVLAPolicy,
) -> None:
    """With one turn a stretch this is a lookahead of one turn; with two the second choice begins after two."""
    one = replace(ALL, trajectory_turns=1)
    ahead = BestOfConfig(
        5, "lookahead", lookahead=1, temperature=0.8, greedy_first=False, success_ahead=False
    )
    for config in (one, replace(ALL, trajectory_turns=2)):
        records, cost = play(walker, config)
        assert cost.decisions == sum(-(-r.turns // config.trajectory_turns) for r in records)
        for record in records:
            if not record.success:
                assert record.turns == HORIZON
                assert record.simulated_turns == 5 * HORIZON
    stretched = [r.tokens for r in play(walker, one)[0]]
    assert stretched == [r.tokens for r in play(walker, ahead)[0]]
    assert stretched != [r.tokens for r in play(walker, ALL)[0]]


@pytest.mark.parametrize("refine_from", ["worst", "fall"])
def test_refinement_never_scores_less_than_round_nought_and_each_round_no_less_than_the_last(
    walker: OpenVLAPolicy, refine_from: str
) -> None:
    config = replace(REFINE, refine_from=refine_from)
    rounds = [play(walker, replace(config, best_of=n))[0] for n in (1, 2, 3, 4, 8)]
    scores = np.array([[mean_score(walker, r) for r in records] for records in rounds])
    assert (np.diff(scores, axis=0) >= -1e-9).all()
    assert scores[-1].mean() > scores[0].mean() + 0.02


def test_round_nought_and_the_others_are_sampled_at_their_own_temperatures(
    walker: OpenVLAPolicy,
) -> None:
    with SerialVectorEnv(env_config(), make_chain_envs) as envs:
        plain = play_each_once(walker, envs, CHAIN, temperature=0.3, seed=SEED)
    first = play(walker, replace(REFINE, best_of=1))[0]
    assert [r.tokens for r in first] == [r.tokens for r in plain]
    refined = [r.tokens for r in play(walker, REFINE)[0]]
    assert refined != [r.tokens for r in play(walker, replace(REFINE, temperatures=(0.3, 5.0)))[0]]
    same = replace(REFINE, temperatures=(0.3, 0.5, 0.5, 0.5))
    assert refined == [r.tokens for r in play(walker, same)[0]]
    assert [REFINE.temperature_of(n) for n in range(4)] == [0.3, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("budget", [HORIZON, 13, 20])
@pytest.mark.parametrize("mode", ["trajectory", "refine"])
def test_a_budget_is_spent_to_the_turn(walker: OpenVLAPolicy, mode: str, budget: int) -> None:
    """Both ways spend the same in every episode, and what they return is whole."""
    config = BestOfConfig(500, mode, turn_budget=budget, greedy_first=False)
    records, cost = play(walker, config)
    assert [r.simulated_turns for r in records] == [budget] * len(CHAIN)
    assert cost.simulator_turns == budget * len(CHAIN)
    assert all(r.success or r.turns == HORIZON for r in records)
    # what N allows ends it before
    few = play(walker, replace(config, best_of=2))[0]
    assert all(r.simulated_turns <= min(budget, 2 * HORIZON) for r in few)
    assert [r.tokens for r in play(walker, config, num_envs=2)[0]] == [r.tokens for r in records]


def test_a_budget_without_end_is_no_budget(walker: OpenVLAPolicy) -> None:
    expected, _ = play(walker, ALL)
    assert play(walker, replace(ALL, turn_budget=10_000))[0] == expected


def test_a_reward_model_that_reads_the_steps_so_far_is_shown_them(walker: OpenVLAPolicy) -> None:
    """After turn t of an episode the last min(t + 1, 3) actions are there, those of a branch's prefix among them."""
    for config in (ALL, REFINE, BestOfConfig(3, "lookahead", lookahead=2, success_ahead=False)):
        model = Walked(history=4)
        play(walker, config, model)
        counts = np.concatenate([past.count for past in model.past])
        assert set(counts.tolist()) == {1, 2, 3}
        for past in model.past:
            there = np.arange(3) >= 3 - past.count[:, None]
            assert (past.actions[~there] == 0).all()
            assert (np.abs(past.actions[there]).sum((1, 2)) > 0).all()


def test_the_last_action_shown_is_the_one_that_led_to_what_is_seen() -> None:
    model = Walked(history=3)
    taken = [np.full((1, 4), value, np.float32) for value in (1, 2, 3)]
    images = tuple(np.full((4, 4, 3), value, np.uint8) for value in range(4))
    moments = [
        Moment(("a",), "walk", images[:1], taken[0], images[:2]),
        Moment(("a",), "walk", images[:3], taken[2], images[1:4], None, (taken[0], taken[1])),
    ]
    RewardModelChooser(model).score(moments)
    past = model.past[0]
    assert past.count.tolist() == [1, 2]
    assert past.actions[..., 0, 0].tolist() == [[0, 1], [2, 3]]


def test_a_reward_model_of_another_chunk_is_refused() -> None:
    moment = Moment(("a",), "walk", (np.zeros((4, 4, 3), np.uint8),), np.zeros((2, 7), np.float32),
                    (np.zeros((4, 4, 3), np.uint8),) * 2)  # fmt: skip
    with pytest.raises(
        UserError, match=r"turns of 1 action\(s\) of size 4, the policy decides 2 of size 7"
    ):
        RewardModelChooser(Walked(history=3)).score([moment])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"best_of": 0}, "best_of: expected a whole number"),
        ({"trajectory_turns": 0}, "trajectory_turns: expected a whole number from 1"),
        (
            {"mode": "lookahead", "turn_budget": 5},
            "turn_budget is for the modes trajectory and refine",
        ),
        ({"temperatures": (0.3,)}, "temperatures are those of the rounds of mode refine"),
        ({"mode": "refine", "temperatures": (0.3, 0.0)}, "temperatures"),
        ({"refine_from": "end"}, "refine_from: expected one of worst, fall"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(ALL, **change)


def test_a_budget_that_pays_for_no_episode_is_refused(walker: OpenVLAPolicy) -> None:
    with pytest.raises(UserError, match="does not pay for one episode, which may take 6 turns"):
        play(walker, replace(ALL, turn_budget=HORIZON - 1))
    with pytest.raises(UserError, match="cuts them into stretches"):
        play(walker, replace(ALL, turn_budget=30, trajectory_turns=3))
