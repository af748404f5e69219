"""Best of N on environments where the right choice, and how often it is found, are known."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from builders.policies import narrow_policy
from vla_rl.config import EnvConfig, UserError
from vla_rl.config.search import BestOfConfig
from vla_rl.envs import EpisodesLostError, ProcessVectorEnv
from vla_rl.envs.known_answers import BanditEnv, ChainEnv, make_bandit_envs, make_chain_envs
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.evaluation.episodes import EpisodeRecord, play_each_once
from vla_rl.evaluation.search.best_of import play_best_of
from vla_rl.evaluation.search.branches import Branch, BranchPlayer, Cost, Sampling
from vla_rl.evaluation.search.choosers import make_chooser
from vla_rl.evaluation.search.trajectories import Ending
from vla_rl.policies import OpenVLAPolicy
from vla_rl.rewards.process.model import RewardModelDescription
from vla_rl.types import EpisodeSpec, Observation, StepResult

SIZE = 32
LENGTH = ChainEnv.LENGTH
CHAIN = [EpisodeSpec("chain", i) for i in range(8)]


def env_config(num_envs: int = 8, horizon: int = 6, **more) -> EnvConfig:
    return EnvConfig(
        image_size=SIZE, num_envs=num_envs, horizon=horizon, action_chunk=1, action_repeat=1, **more
    )


@pytest.fixture(scope="module")
def walker() -> OpenVLAPolicy:
    return narrow_policy(ChainEnv.instructions)


@pytest.fixture(scope="module")
def gambler() -> OpenVLAPolicy:
    return narrow_policy(BanditEnv.instructions)


class Oracle:
    """A reward model that knows the answer. `sign` -1 makes it wrong about everything."""

    def __init__(self, sees_actions: bool, sign: int = 1) -> None:
        self.description = RewardModelDescription(
            "oracle", "?", "1", "0", 0, 1, int(sees_actions), 4
        )
        self.sees_actions, self.sign = sees_actions, sign
        self.calls: list[int] = []

    def log_odds(self, images, instructions, actions=None):
        self.calls.append(len(images))
        bright = (images[:, 0, :, 0] > 0).mean(1)
        if not self.sees_actions:  # the corridor walked
            return (self.sign * bright).astype(np.float32)
        right = images[:, 0, -1, 0] > 0  # the bandit's bright side
        return (self.sign * np.where(right, 1, -1) * actions[:, 0, 0]).astype(np.float32)

    def save(self, folder) -> None:
        raise NotImplementedError


def positive_probability(policy: OpenVLAPolicy, image: np.ndarray, instruction: str) -> float:
    """How likely the policy's first number is positive when sampled at temperature 1."""
    seen = Observation(
        image[None], (instruction,), np.zeros((1, 4), np.float32), np.zeros(1, np.float32)
    )
    total = 0.0
    for token in range(8):
        tokens = torch.tensor([[token, 0, 0, 0]])
        if policy.decode_actions(tokens)[0, 0, 0] > 0:
            with torch.no_grad():
                total += float(policy.evaluate(seen, tokens, 1.0).log_probs[0, 0].exp())
    return total


def play(policy: OpenVLAPolicy, specs, config: BestOfConfig, make=make_chain_envs, **options):
    options = {"num_envs": 8, "horizon": 6, "reward_model": None, "seed": 3} | options
    reward_model, seed = options.pop("reward_model"), options.pop("seed")
    with SerialVectorEnv(env_config(**options), make) as envs:
        chooser = make_chooser(config.chooser, reward_model, seed)
        return play_best_of(policy, envs, specs, config, chooser, seed=seed)


def outcome(records: list[EpisodeRecord]) -> list[tuple]:
    return [(r.spec, r.success, r.turns, r.simulator_steps, r.tokens) for r in records]


# --------------------------------------------------------------------------------------------------
# Known answers

EACH = 100
BANDITS = [EpisodeSpec("bandit", i) for i in range(2 * EACH)]


@pytest.mark.parametrize(
    ("mode", "chooser", "sign"),
    [
        ("action", "reward-model", 1),
        ("action", "reward-model", -1),
        ("action", "random", 1),
        ("lookahead", "success", 1),
        ("lookahead", "random", 1),
        ("action", "success", 1),  # an outcome: played one turn ahead
        ("refine", "reward-model", 1),
        ("refine", "reward-model", -1),
        ("refine", "success", 1),
        ("trajectory", "reward-model", 1),
        ("trajectory", "reward-model", -1),
        ("trajectory", "success", 1),
        ("trajectory", "random", 1),
    ],
)
@pytest.mark.parametrize("n", [1, 3])
def test_success_is_as_likely_as_the_arithmetic_says(
    gambler: OpenVLAPolicy, mode, chooser, sign, n: int
) -> None:
    """Of N independent draws the best succeeds with 1 - (1 - p)^N, the worst with p^N, one by chance with p."""
    config = BestOfConfig(n, mode, chooser, lookahead=1, greedy_first=False)
    reward_model = Oracle(True, sign) if chooser == "reward-model" else None
    records, _ = play(
        gambler,
        BANDITS,
        config,
        make_bandit_envs,
        horizon=1,
        num_envs=64,
        reward_model=reward_model,
    )
    expected, variance = 0.0, 0.0
    for side in (0, 1):
        env = BanditEnv(env_config())
        env.reset(EpisodeSpec("bandit", side))
        positive = positive_probability(gambler, env.render(), env.instruction)
        p = positive if side else 1 - positive
        assert 0.2 < p < 0.8
        if chooser != "random":
            p = 1 - (1 - p) ** n if sign > 0 else p**n
        expected += EACH * p
        variance += EACH * p * (1 - p)
    assert abs(sum(r.success for r in records) - expected) < 4 * np.sqrt(variance)


@pytest.mark.parametrize("chooser", ["reward-model", "simulator", "random"])
def test_lookahead_walks_the_corridor_as_often_as_the_arithmetic_says(
    walker: OpenVLAPolicy, chooser
) -> None:
    """Looking one turn ahead each cell is left with 1 - (1 - p)^N; by chance with p."""
    n, horizon = 3, 6
    specs = [EpisodeSpec("chain", LENGTH * i) for i in range(EACH)]
    config = BestOfConfig(n, "lookahead", chooser, lookahead=1, greedy_first=False)
    reward_model = Oracle(False) if chooser == "reward-model" else None
    records, _ = play(
        walker, specs, config, num_envs=64, horizon=horizon, reward_model=reward_model
    )
    reach = np.zeros(LENGTH + 1)
    reach[0] = 1.0
    moves = []
    for cell in range(LENGTH):
        env = ChainEnv(env_config())
        env.reset(EpisodeSpec("chain", cell))
        p = positive_probability(walker, env.render(), env.instruction)
        moves.append(p if chooser == "random" else 1 - (1 - p) ** n)
    for _ in range(horizon):
        moved = reach[:-1] * moves
        reach[:-1] -= moved
        reach[1:] += moved
    p = reach[-1]
    assert 0.05 < p < 0.95
    assert abs(sum(r.success for r in records) - EACH * p) < 4 * np.sqrt(EACH * p * (1 - p))


def test_the_reward_model_decides_which_ending_counts_and_the_simulator_whether_it_was_a_success(
    gambler: OpenVLAPolicy,
) -> None:
    """A reward model that is wrong about everything makes refinement worse than plain play: nothing looks at
    success."""
    one = BestOfConfig(1, "refine", "reward-model", greedy_first=False)
    many = replace(one, best_of=5)
    reward_model = Oracle(True, -1)
    plain, worse = (
        play(gambler, BANDITS[:100], c, make_bandit_envs, horizon=1, reward_model=reward_model)[0]
        for c in (one, many)
    )
    assert sum(r.success for r in worse) < 10 < 30 < sum(r.success for r in plain)
    for record in worse:  # and what is reported is what the simulator said of those tokens
        action = gambler.decode_actions(torch.tensor(record.tokens))[0, 0, 0]
        assert record.success == ((action > 0) == bool(record.spec.initial_state % 2))


# --------------------------------------------------------------------------------------------------
# Relations

MODES = ("action", "lookahead", "trajectory", "refine")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("execute", [1, 2])
def test_one_candidate_is_plain_evaluation(
    walker: OpenVLAPolicy, mode, greedy: bool, execute: int
) -> None:
    config = BestOfConfig(1, mode, "random", execute=execute, greedy_first=greedy)
    records, cost = play(walker, CHAIN, config)
    with SerialVectorEnv(env_config(), make_chain_envs) as envs:
        plain = play_each_once(walker, envs, CHAIN, temperature=0.0 if greedy else 1.0, seed=3)
    assert outcome(records) == outcome(plain)
    assert cost.simulator_turns == cost.action_chunks == cost.turns == sum(r.turns for r in plain)
    assert (cost.scored, cost.decisions) == (0, 0)


@pytest.mark.parametrize("mode", MODES)
def test_workers_and_slots_change_nothing(walker: OpenVLAPolicy, mode) -> None:
    chooser = "random" if mode == "action" else "simulator"
    config = BestOfConfig(3, mode, chooser, lookahead=2, greedy_first=False)
    expected = outcome(play(walker, CHAIN, config, num_envs=7)[0])
    assert (
        outcome(play(walker, CHAIN, config, num_envs=2)[0]) == expected
    )  # fewer slots than candidates
    for workers in (1, 3):
        env = env_config(num_envs=6, num_workers=workers)
        with ProcessVectorEnv(env, make_chain_envs) as envs:
            records, _ = play_best_of(
                walker, envs, CHAIN, config, make_chooser(chooser, None, 3), seed=3
            )
        assert outcome(records) == expected
    other = play(walker, CHAIN, config, num_envs=7, seed=4)[0]
    assert [r.tokens for r in other] != [tokens for *_, tokens in expected]


class DyingEnv(ProcessVectorEnv):
    """Its second worker is killed before some of the steps, and once before a snapshot."""

    steps = 0
    asked = False

    def post_step(self, slots, actions):
        self.steps += 1
        if self.steps in (2, 9):
            os.kill(self.worker_pids()[1], signal.SIGKILL)
        super().post_step(slots, actions)

    def snapshot(self, slots):
        if not self.asked:
            self.asked = True
            os.kill(self.worker_pids()[1], signal.SIGKILL)
        return super().snapshot(slots)


@pytest.mark.parametrize("mode", ["lookahead", "trajectory", "refine"])
def test_crashed_simulators_change_nothing(walker: OpenVLAPolicy, mode) -> None:
    config = BestOfConfig(3, mode, "simulator", lookahead=2)
    undisturbed, without = play(walker, CHAIN[:6], config)
    expected = outcome(undisturbed)
    with DyingEnv(env_config(num_envs=6, num_workers=2), make_chain_envs) as envs:
        chooser = make_chooser("simulator", None, 3)
        records, cost = play_best_of(walker, envs, CHAIN[:6], config, chooser, seed=3)
        assert envs.infrastructure_errors >= 2
    assert outcome(records) == expected
    # what a crash has lost is no part of an episode's budget
    assert [r.simulated_turns for r in records] == [r.simulated_turns for r in undisturbed]
    assert cost.simulator_turns == without.simulator_turns


class LosingEnv(SerialVectorEnv):
    """Reports a reset as lost now and then, as a worker's crash does."""

    waits = 0

    def wait(self, slots):
        result = super().wait(slots)
        self.waits += 1
        if self.waits % 5 or not (result.observation.time_fraction == 0).all():
            return result
        lost = np.arange(len(slots)) == 0
        return StepResult(
            result.slots, result.observation, result.rewards, result.terminated, result.truncated,
            result.simulator_steps, lost,
        )  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_lost_resets_are_repeated(walker: OpenVLAPolicy, mode) -> None:
    config = BestOfConfig(2, mode, "random", lookahead=2)
    expected = outcome(play(walker, CHAIN, config)[0])
    with LosingEnv(env_config(), make_chain_envs) as envs:
        chooser = make_chooser("random", None, 3)
        records, _ = play_best_of(walker, envs, CHAIN, config, chooser, seed=3)
    assert outcome(records) == expected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", [1, 4])
def test_kept_tokens_played_again_end_as_recorded(walker: OpenVLAPolicy, mode, n: int) -> None:
    """What videos rely on, and what would break if a snapshot, a prefix or a cut were wrong."""
    chooser = "random" if mode == "action" else "simulator"
    config = BestOfConfig(n, mode, chooser, lookahead=3, execute=2)
    for record in play(walker, CHAIN, config)[0]:
        env = ChainEnv(env_config())
        env.reset(record.spec)
        results = [env.step(chunk) for chunk in walker.decode_actions(torch.tensor(record.tokens))]
        assert len(results) == record.turns
        assert sum(steps for *_, steps in results) == record.simulator_steps
        assert results[-1][1] == record.success
        assert [bool(done or cut) for _, done, cut, _ in results] == [False] * (
            record.turns - 1
        ) + [True]


def test_the_kept_candidate_goes_on_as_it_did_when_looked_ahead(walker: OpenVLAPolicy) -> None:
    cost = Cost()
    with SerialVectorEnv(env_config(), make_chain_envs) as envs:
        player = BranchPlayer(walker, envs, Sampling(1.0, 3, False), cost)
        first = Branch(CHAIN[0], candidate=2, limit=4, keep=frozenset((1,)))
        player.play([first])
        kept = first.turns[0]
        again = Branch(CHAIN[0], 2, 3, kept.snapshot, turn=1, frames=kept.before)
        other = Branch(CHAIN[0], 1, 3, kept.snapshot, turn=1, frames=kept.before)
        player.play([other, again])
    assert [t.tokens for t in again.turns] == [t.tokens for t in first.turns[1:]]
    assert [t.tokens for t in other.turns] != [t.tokens for t in first.turns[1:]]
    for one, two in zip(first.turns[1:], again.turns, strict=True):
        np.testing.assert_array_equal(one.after[-1], two.after[-1])
    assert cost.simulator_turns == 10


def test_candidates_are_scored_in_one_call_and_counted(walker: OpenVLAPolicy) -> None:
    reward_model = Oracle(False)
    specs = [EpisodeSpec("chain", 0), EpisodeSpec("chain", 5)]
    config = BestOfConfig(4, "lookahead", "reward-model", lookahead=2, greedy_first=False)
    records, cost = play(walker, specs, config, num_envs=8, horizon=4, reward_model=reward_model)
    assert (
        reward_model.calls == [8] * 4
    )  # nobody can succeed in four turns: both episodes go to the end
    assert [r.turns for r in records] == [4, 4]
    assert (cost.turns, cost.decisions, cost.chooser_calls, cost.scored) == (8, 8, 4, 32)
    # the last turn cannot be looked beyond: 3 x 2 turns and 1, of 4 candidates, in 2 episodes
    assert cost.simulator_turns == cost.action_chunks == 56
    assert cost.prefills == 8 + 24  # first turns share a prefill, second ones cannot
    assert cost.per_turn(4.0)["simulator_turns"] == 7.0
    assert cost.per_turn(4.0)["seconds"] == 0.5


def test_success_seen_ahead_is_taken_whatever_the_reward_model_says(walker: OpenVLAPolicy) -> None:
    """The reward model prefers to stay; an end in sight is walked to all the same, and by the shortest way."""
    specs = [EpisodeSpec("chain", LENGTH * i + LENGTH - 1) for i in range(20)]
    config = BestOfConfig(8, "lookahead", "reward-model", lookahead=2, greedy_first=False)
    records, _ = play(walker, specs, config, reward_model=Oracle(False, -1))
    assert sum(r.success for r in records) == 20
    assert sum(r.turns == 1 for r in records) > 14
    # alone, it stays
    alone = replace(config, success_ahead=False)
    records, _ = play(walker, specs, alone, horizon=4, reward_model=Oracle(False, -1))
    assert sum(r.success for r in records) < 10


def test_the_turn_to_regenerate_from() -> None:
    model, states = (
        make_chooser("reward-model", Oracle(False), 0),
        make_chooser("simulator", None, 0),
    )
    assert Ending([], [], False, [3.0, 1.0, 2.0, 1.0]).cut(model, "worst") == 1
    # of states reached: the third turn undoes most
    assert Ending([], [], False, [1.0, 4.0, 2.0, 2.5]).cut(states, "worst") == 2
    assert Ending([], [], False, [0.0, 4.0, 5.0, 6.0]).cut(states, "worst") == 0
    # the first fall is not the worst turn; without one it is that
    assert Ending([], [], False, [2.0, 3.0, 2.5, 4.0, 1.0]).cut(model, "fall") == 2
    assert Ending([], [], False, [2.0, 3.0, 3.0]).cut(model, "fall") == 0


def test_the_score_of_an_ending() -> None:
    """The mean of probabilities for a reward model, however sure it is of one turn; the last state for others."""
    ending = Ending([], [], False, [0.0, 50.0, -50.0])
    assert ending.score(make_chooser("reward-model", Oracle(False), 0)) == pytest.approx(0.5)
    for name in ("simulator", "random"):
        assert Ending([], [], False, [3.0, 1.0, 5.0]).score(make_chooser(name, None, 0)) == 5.0


def test_nobody_to_ask_for_a_dense_reward_is_the_users_mistake(gambler: OpenVLAPolicy) -> None:
    config = BestOfConfig(2, "lookahead", "simulator")
    with pytest.raises(UserError, match="no dense reward"):
        play(gambler, BANDITS[:1], replace(config, lookahead=1), make_bandit_envs, horizon=2)
    with pytest.raises(ValueError, match="no episodes"):
        play(gambler, [], config, make_bandit_envs)


def test_slots_of_a_lost_worker_are_said_to_be_lost(walker: OpenVLAPolicy) -> None:
    env = env_config(num_envs=4, num_workers=2)
    with ProcessVectorEnv(env, make_chain_envs) as envs:
        envs.post_reset(range(4), CHAIN[:4])
        envs.wait(range(4))
        states = envs.snapshot([3, 0, 2])
        assert [s["initial_state"] for s in states] == [3, 0, 2]
        os.kill(envs.worker_pids()[0], signal.SIGKILL)
        with pytest.raises(EpisodesLostError):
            envs.snapshot([1, 2])
        with pytest.raises(EpisodesLostError):  # slot 0 went down with 2, and is known to be lost
            envs.dense_rewards([0])
        shown = envs.restore([0, 2], [states[1], states[2]])
        assert shown.time_fraction.tolist() == [0, 0]
        assert envs.dense_rewards([2, 0]).tolist() == pytest.approx([10 * 2 / 5, 0])
        assert envs.infrastructure_errors == 1
