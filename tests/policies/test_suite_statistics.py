"""One policy for several suites: which statistics each is played with, and the tokens that are no decision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders.policies import tiny_policy
from vla_rl.config import PolicyConfig, UserError, tiny_model
from vla_rl.config.policy import SuiteActions
from vla_rl.envs.defaults import suite_actions
from vla_rl.policies import OpenVLAPolicy, identity_statistics
from vla_rl.policies.openvla.config_files import Checkpoint
from vla_rl.policies.registry import load_policy
from vla_rl.policies.suite_statistics import datasets_of_suites
from vla_rl.types import Observation

CPU = PolicyConfig(device="cpu")
EVERY = frozenset({"spatial", "goal", "long", "arm"})
SPATIAL, GOAL = SuiteActions("spatial", "arm", 4, EVERY), SuiteActions("goal", "arm", 4, EVERY)
SHORT = SuiteActions("short", "stick", 2, EVERY | {"short", "stick"})


def entry(scale: float, size: int = 4) -> dict[str, Any]:
    return {"action": {"q01": [-scale] * size, "q99": [scale] * size, "mask": [True] * size}}


def described(names: list[str], **said: Any) -> Checkpoint:
    return Checkpoint(tiny_model(), {name: entry(1.0) for name in names}, 4, **said)


@pytest.mark.parametrize(
    ("checkpoint", "found"),
    [
        (described(["spatial", "goal_no_noops"]), ("spatial", "goal_no_noops")),
        (described(["goal", "arm"]), ("arm", "goal")),  # the robot's are for all its suites
        (described(["kitchen"]), ("kitchen", "kitchen")),  # fine-tuned on all together
        (described(["spatial", "goal", "mine"], unnorm_key="mine", own=True), ("mine", "mine")),
        (
            described(["spatial", "goal", "x"], unnorm_key="goal", unnorm_keys=("spatial", "goal"), own=True),
            ("spatial", "goal"),
        ),
    ],
)  # fmt: skip
def test_each_suite_is_played_with_its_own(checkpoint: Checkpoint, found: tuple[str, str]) -> None:
    chosen = datasets_of_suites(checkpoint, [SPATIAL, GOAL])
    assert (chosen[SPATIAL], chosen[GOAL]) == found
    assert set(datasets_of_suites(checkpoint, [SPATIAL, GOAL], "asked").values()) == {"asked"}


@pytest.mark.parametrize(
    "checkpoint",
    [
        described(["spatial"]),
        described(["spatial_no_noops", "long"]),
        described(
            ["bridge", "fractal", "spatial"]
        ),  # a base's pretraining is for no suite in particular
        described([]),
        described(["kitchen", "spatial"]),  # nothing says that goal's are the kitchen's
        # its base knew goal's, but it was fine-tuned on spatial's alone
        described(["spatial", "goal"], unnorm_key="spatial", own=True),
    ],
)
def test_missing_statistics_are_named(checkpoint: Checkpoint) -> None:
    with pytest.raises(UserError, match=r"also need those of .*'goal'.*policy\.unnorm_key"):
        datasets_of_suites(checkpoint, [SPATIAL, GOAL])


def several(sizes: dict[str, int], scales: dict[str, float] | None = None) -> OpenVLAPolicy:
    policy = tiny_policy(config=CPU)
    scales = scales or {}
    statistics = {name: entry(scales.get(name, 1.0), size) for name, size in sizes.items()}
    return OpenVLAPolicy.create(
        policy.description.model, ("left", "right", "up"), statistics, 4, 2, CPU, 0
    )


def observation(words: tuple[str, ...], size: int = 64) -> Observation:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (len(words), size, size, 3)).astype(np.uint8)
    return Observation(
        images, words, np.zeros((len(words), 4), np.float32), np.zeros(len(words), np.float32)
    )


def test_an_instruction_has_the_actions_of_its_suite(tmp_path: Path) -> None:
    policy = several({"spatial": 4, "goal": 4}, {"spatial": 0.5, "goal": 2.0})
    assert policy.play_suites({"left": SPATIAL, "right": GOAL}) == 4
    tokens = torch.full((3, 8), policy.action_tokenizer.bins - 1)
    actions = policy.decode_actions_for(tokens, ["left", "right", "left"])
    assert actions[:, 0, 0] == pytest.approx([0.5, 2.0, 0.5], rel=0.02)
    again = policy.encode_actions_for(actions, ["left", "right", "left"])
    played = policy.decode_actions_for(again, ["left", "right", "left"])
    assert played == pytest.approx(actions, abs=0.1)
    # what it knows goes with it, and either suite alone is played with its own
    policy.save(tmp_path / "policy")
    back = load_policy(tmp_path / "policy", CPU)
    assert isinstance(back, OpenVLAPolicy)
    assert back.plays_suites
    assert back.play_suites({"right": GOAL}) == 4
    assert back.decode_actions_for(tokens, ["right"] * 3)[0, 0, 0] == pytest.approx(2.0, rel=0.02)
    assert back.fingerprint() == policy.fingerprint()
    with pytest.raises(UserError, match="'long'"):
        back.play_suites({"up": replace_dataset(GOAL, "long")})


def replace_dataset(one: SuiteActions, name: str) -> SuiteActions:
    return one._replace(dataset=name, robot=name)


def test_statistics_of_another_robot_are_refused() -> None:
    policy = tiny_policy(config=CPU)  # four numbers, of no suite in particular
    with pytest.raises(UserError, match="have 4 numbers, and 'short' is played with 2"):
        policy.play_suites({"left": SPATIAL, "up": SHORT})


def test_tokens_that_a_robot_has_no_number_for_are_no_decision() -> None:
    policy = several({"spatial": 4, "short": 2})
    assert policy.play_suites({"left": SPATIAL, "up": SHORT}) == 4
    seen = observation(("left", "up", "up"))
    uniforms = np.random.default_rng(1).random((3, 8), dtype=np.float32)
    output = policy.act(seen, 1.0, uniforms)
    unused = np.tile([False, False, True, True], 2)
    fixed = policy.turn_actions.fixed_token
    assert (output.tokens[1:, unused] == fixed).all()
    assert (output.log_probs[1:, unused] == 0).all()
    assert (output.log_probs[1:, ~unused] < 0).all()
    assert (output.log_probs[0] < 0).all()
    assert policy.decode_actions_for(output.tokens, seen.instructions)[1:, :, 2:].any() == False  # noqa: E712
    # another draw where nothing is decided changes nothing
    other = uniforms.copy()
    other[1:, unused] = 1 - other[1:, unused]
    assert torch.equal(policy.act(seen, 1.0, other).tokens, output.tokens)
    # learning agrees with play, and those tokens pull at no weight
    learned = policy.evaluate(seen, output.tokens, 1.0)
    torch.testing.assert_close(learned.log_probs, output.log_probs, atol=1e-5, rtol=0)
    assert (learned.entropy[1:, unused] == 0).all()
    parameters = policy.policy_parameters()
    pull = torch.autograd.grad(
        learned.log_probs[1:, unused].sum(), parameters, retain_graph=True, allow_unused=True
    )
    assert all(one is None or not one.any() for one in pull)
    pull = torch.autograd.grad(learned.log_probs[1:, ~unused].sum(), parameters, allow_unused=True)
    assert any(one is not None and one.any() for one in pull)
    policy.keep_reference()
    reference = policy.reference_log_probs(seen, output.tokens, 1.0)
    torch.testing.assert_close(reference, learned.log_probs.detach(), atol=1e-5, rtol=0)
    proposed = policy.propose(seen, 1.0, np.stack([uniforms, other], 1))
    assert torch.equal(proposed.tokens[:, 0], output.tokens)
    assert torch.equal(proposed.tokens[:, 1, ~unused][1:], output.tokens[1:, ~unused])


def test_a_suite_of_one_robot_alone_is_played_in_its_own_size() -> None:
    policy = several({"spatial": 4, "short": 2})
    assert policy.play_suites({"up": SHORT}) == 2
    output = policy.act(observation(("up",)), 0.0)
    assert policy.decode_actions_for(output.tokens, ["up"]).shape == (1, 2, 2)


def test_demonstrations_of_several_robots_are_encoded_each_in_its_size() -> None:
    policy = several({"spatial": 4, "short": 2})
    policy.play_suites({"left": SPATIAL, "up": SHORT})
    actions = np.linspace(-0.9, 0.9, 16).reshape(2, 2, 4).astype(np.float32)
    actions[1, :, 2:] = 0
    tokens = policy.encode_actions_for(actions, ["left", "up"])
    assert (tokens[1].reshape(2, 4)[:, 2:] == policy.turn_actions.fixed_token).all()
    assert policy.decode_actions_for(tokens, ["left", "up"]) == pytest.approx(actions, abs=0.05)
    with pytest.raises(UserError, match="actions of size 4"):
        policy.encode_actions_for(actions[:, :, :3], ["left", "up"])


def test_a_checkpoint_of_one_suite_is_none_for_the_joint_suite() -> None:
    wanted = suite_actions("libero-40") if _has_libero() else {"left": SPATIAL, "right": GOAL}
    one = next(iter(wanted.values()))
    checkpoint = Checkpoint(tiny_model(), identity_statistics(f"{one.dataset}_no_noops", 7), 7)
    with pytest.raises(UserError, match=f"action statistics of '{one.dataset}_no_noops'"):
        datasets_of_suites(checkpoint, wanted.values())


def _has_libero() -> bool:
    from importlib.util import find_spec

    return find_spec("libero") is not None


def test_a_damaged_list_of_suites_is_refused(tmp_path: Path) -> None:
    import json

    policy = several({"spatial": 4, "goal": 4})
    policy.save(tmp_path / "policy")
    file = tmp_path / "policy" / "config.json"
    content = json.loads(file.read_text())
    assert content["vla_rl"]["unnorm_keys"] == ["spatial", "goal"]
    content["vla_rl"]["unnorm_keys"] = ["spatial", "nowhere"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="nowhere"):
        load_policy(tmp_path / "policy", CPU)
    content["vla_rl"]["unnorm_keys"] = 3
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="unnorm_keys"):
        load_policy(tmp_path / "policy", CPU)
