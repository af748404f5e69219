"""Play that is recorded: what was seen and done, whole, in order, failures among it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vla_rl.config import EnvConfig, UserError
from vla_rl.envs.known_answers import ChainEnv, make_chain_envs
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.policies.policy import PolicyOutput
from vla_rl.recipes.label_trajectories import play_and_keep, training_specs
from vla_rl.rewards.trajectories import Trajectory
from vla_rl.types import EpisodeSpec, StepResult

ENV = EnvConfig(
    suite="mt5", image_size=8, action_repeat=5, action_chunk=2, horizon=6, num_envs=3,
    initial_states=20, held_out=5,
)  # fmt: skip


class Walker:
    """Walks on where the image's first pixel is bright enough, that is always; stays where told to."""

    action_dim, action_chunk = 4, 2
    detach_values = False

    def __init__(self, stays: set[int] = frozenset()) -> None:
        self.stays = stays

    def decode_actions(self, tokens):
        return (np.asarray(tokens, dtype=np.float32) / 100).reshape(len(tokens), 2, 4)

    def act(self, observation, temperature=1.0, uniforms=None):
        # cells walked so far, from the bright share of the image
        bright = (observation.images[:, 0, :, 0] > 0).sum(axis=1)
        moves = [100 if int(cells) not in self.stays else 0 for cells in bright]
        tokens = torch.tensor(moves)[:, None].expand(-1, 8).contiguous()
        return PolicyOutput(tokens, torch.zeros(len(moves), 8), torch.zeros(len(moves)))


class CrashingOnce(SerialVectorEnv):
    """Loses slot 1 in its second step."""

    steps = 0

    def post_step(self, slots, actions):
        super().post_step(slots, actions)
        self.steps += 1 in list(slots)

    def wait(self, slots):
        result = super().wait(slots)
        if 1 not in list(slots) or self.steps != 2:
            return result
        self.steps, self.infrastructure_errors = 3, 1
        lost = np.array([slot == 1 for slot in slots])
        return StepResult(
            result.slots, result.observation, result.rewards, result.terminated, result.truncated,
            result.simulator_steps, lost,
        )  # fmt: skip


@pytest.mark.parametrize("kind", [SerialVectorEnv, CrashingOnce])
def test_recorded_play_is_what_was_seen_and_done(kind):
    env = replace(ENV, image_size=11, num_envs=3)
    specs = [EpisodeSpec("chain", state) for state in (4, 0, 3, 1, 2, 9)]
    kept: list[Trajectory] = []
    play_and_keep(Walker(), kind(env, make_chain_envs), env, specs, kept.append)
    # from cell i it is five minus i moves; in the order asked for, not that of their ends
    assert [t.initial_state for t in kept] == [4, 0, 3, 1, 2, 9]
    assert [len(t) for t in kept] == [1, 5, 2, 4, 3, 1]
    for episode in kept:
        assert episode.success
        np.testing.assert_array_equal(episode.actions, np.ones((len(episode), 2, 4)))
        bright = (episode.images[:, 0, :, 0] > 0).sum(axis=1)
        cells = np.arange(5 - len(episode), 5)
        np.testing.assert_array_equal(
            bright, np.round(11 * (cells + 0.5) / (ChainEnv.LENGTH + 0.5))
        )
        assert episode.final_image is not None
        assert (episode.final_image > 0).all()
        assert episode.instruction == "walk to the end"


def test_recorded_play_keeps_failures():
    env = replace(ENV, image_size=11, num_envs=2)
    kept: list[Trajectory] = []
    specs = [EpisodeSpec("chain", 0), EpisodeSpec("chain", 4)]
    play_and_keep(Walker(stays={5}), SerialVectorEnv(env, make_chain_envs), env, specs, kept.append)
    assert [(t.success, len(t)) for t in kept] == [(False, ENV.horizon), (True, 1)]


def test_only_the_training_split_is_played_each_state_once():
    specs = training_specs(ENV, 15, seed=3)
    assert len(set(specs)) == len(specs) == 15 * 5
    assert max(spec.initial_state for spec in specs) == 14  # the last five of twenty are held out
    assert specs == training_specs(ENV, 15, seed=3)
    assert specs != training_specs(ENV, 15, seed=4)
    with pytest.raises(UserError, match="15 initial states of the training split"):
        training_specs(ENV, 16, seed=3)
