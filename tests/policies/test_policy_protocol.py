"""A policy that follows OpenVLA's LIBERO protocol: frames of any size in, gripper commands out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from builders.policies import INSTRUCTIONS, make_observation
from vla_rl.config import PolicyConfig, tiny_model
from vla_rl.policies import OpenVLAPolicy, identity_statistics


def protocol_policy() -> OpenVLAPolicy:
    config = PolicyConfig(images="openvla-libero", gripper="openvla", device="cpu")
    statistics = identity_statistics("libero_spatial", 7)
    statistics["libero_spatial"]["action"]["mask"][-1] = False
    return OpenVLAPolicy.create(tiny_model(), INSTRUCTIONS, statistics, 7, 1, config)


def test_frames_are_prepared_and_the_gripper_is_turned() -> None:
    policy = protocol_policy()
    observation = make_observation(3, size=96)
    output = policy.act(observation, temperature=1.0)
    evaluation = policy.evaluate(observation, output.tokens, temperature=1.0)
    torch.testing.assert_close(evaluation.log_probs, output.log_probs, atol=1e-5, rtol=0)
    assert set(policy.decode_actions(output.tokens)[..., -1].ravel().tolist()) <= {-1.0, 0.0, 1.0}


def test_demonstrations_keep_their_gripper() -> None:
    policy = protocol_policy()
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 1, 7)).astype(np.float32)
    actions[..., -1] = np.sign(actions[..., -1])
    played = policy.decode_actions(policy.encode_actions(actions))
    np.testing.assert_array_equal(played[..., -1], actions[..., -1])
    np.testing.assert_allclose(played[..., :-1], actions[..., :-1], atol=1 / 31 + 1e-6)


def test_the_protocol_is_stored_with_the_weights(tmp_path: Path) -> None:
    policy = protocol_policy()
    policy.save(tmp_path)
    again = OpenVLAPolicy.from_checkpoint(tmp_path, PolicyConfig(device="cpu"))
    assert again.description.model == policy.description.model
    observation = make_observation(2, size=96)
    tokens = policy.act(observation, temperature=0.0).tokens
    assert torch.equal(again.act(observation, temperature=0.0).tokens, tokens)
    np.testing.assert_array_equal(again.decode_actions(tokens), policy.decode_actions(tokens))
