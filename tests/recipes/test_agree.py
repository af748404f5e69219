"""`vla-rl agree`: a policy agrees with what it did itself, and how far others lie from it is told in numbers known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.policies import sharpen, tiny_policy
from vla_rl.cli import main
from vla_rl.config import UserError, tiny_model
from vla_rl.config.agreement import AgreementConfig
from vla_rl.data.logged import load_logged
from vla_rl.policies import OpenVLAPolicy
from vla_rl.recipes.agree import agree, along, parting, share
from vla_rl.rewards.trajectories import Trajectory
from vla_rl.rewards.trajectory_files import save_trajectories
from vla_rl.types import Observation

INSTRUCTIONS = ("open the drawer", "close the window")


def policy_of(seed: int) -> OpenVLAPolicy:
    return sharpen(tiny_policy(INSTRUCTIONS, tiny_model(32), dataset="toy", seed=seed), 30.0)


def played(policy: OpenVLAPolicy, number: int, success: bool, turns: int = 5) -> Trajectory:
    """An episode of noise, answered greedily."""
    rng = np.random.default_rng(number)
    images = rng.integers(0, 256, (turns, 32, 32, 3), dtype=np.uint8)
    words = INSTRUCTIONS[number % 2]
    nothing = np.zeros((turns, 4), np.float32)
    seen = Observation(images, (words,) * turns, nothing, np.zeros(turns, np.float32))
    return Trajectory(
        images=images,
        proprio=nothing,
        actions=policy.decode_actions(policy.act(seen, 0.0).tokens),
        instruction=words,
        task=words,
        initial_state=number,
        success=success,
        source="policy",
        turn_seconds=0.1,
        robot="metaworld_sawyer",
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two policies, and six episodes of the first; those with an even number succeeded."""
    root = tmp_path_factory.mktemp("agree")
    for seed in (0, 1):
        policy_of(seed).save(root / f"policy-{seed}")
    episodes = [played(policy_of(0), number, number % 2 == 0) for number in range(6)]
    save_trajectories(root / "log", episodes)
    shifted = [
        replace(e, actions=np.where(np.arange(4) == 2, e.actions / 2 + 0.25, e.actions))
        for e in episodes
    ]
    save_trajectories(root / "shifted", shifted)
    return root


def test_a_policy_agrees_with_itself_and_not_with_another(place: Path) -> None:
    own = agree(AgreementConfig(place / "policy-0", str(place / "log")))
    assert set(own["tasks"]) == set(INSTRUCTIONS)
    assert own["overall"]["episodes"] == 6
    assert own["overall"]["frames"] == 30
    assert own["overall"]["agrees"]["mean"] == 1.0
    assert own["overall"]["same_tokens"]["mean"] == 1.0
    assert own["overall"]["parts_at"]["mean"] == 1.0
    low, high = own["overall"]["agrees"]["interval"]
    assert 0.5 < low < high == 1.0  # six episodes do not prove that all others are alike

    other = agree(AgreementConfig(place / "policy-1", str(place / "log")))
    assert other["overall"]["agrees"]["mean"] < 0.5
    assert other["overall"]["parts_at"]["mean"] < 0.5
    assert other["overall"]["log_prob"]["mean"] < own["overall"]["log_prob"]["mean"] - 1


def test_one_dimension_that_was_logged_otherwise_is_found(place: Path) -> None:
    found = agree(AgreementConfig(place / "policy-0", str(place / "shifted")))["overall"]
    apart = [d["mean_apart"]["mean"] for d in found["dimensions"]]
    assert apart[2] > 0.1
    assert max(apart[0], apart[1], apart[3]) < 1e-6
    assert [d["span"] for d in found["dimensions"]] == [2.0] * 4  # known of this robot
    # the log is a/2 + 1/4: what is further than the tolerance from it is further than that
    log = load_logged(place / "log", 2).chunks[:, :, 2]
    np.testing.assert_allclose(apart[2], np.abs(log / 2 - 0.25).mean(), atol=1e-5)


def test_episodes_are_chosen_by_how_they_ended(place: Path) -> None:
    log = load_logged(place / "log", 2, outcome="failure")
    assert log.episodes.tolist() == [1, 3, 5]
    assert log.initial_states.tolist() == [1, 3, 5]
    assert log.success is not None
    assert not log.success.any()
    found = agree(AgreementConfig(place / "policy-0", str(place / "log"), outcome="success"))
    assert list(found["tasks"]) == [INSTRUCTIONS[0]]
    with pytest.raises(UserError, match="expected turns of 3 actions"):
        load_logged(place / "log", 3)


def test_what_shares_and_partings_are() -> None:
    assert parting(np.array([True, True, False, True])) == 0.5
    assert parting(np.array([True, True])) == 1.0
    assert share([0.0] * 4)["interval"][0] == 0.0
    assert share([0.5])["interval"] is None
    assert share([0.9, 1.0])["interval"][1] == 1.0
    parts = along([np.array([True, True, False, False]), np.array([True, False])], 2)
    assert [part["mean"] if part else None for part in parts] == [1.0, 0.0]
    assert along([np.array([True])], 3)[1:] == [None, None]


def test_the_command(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "agreement.json"
    words = ["agree", str(place / "policy-0"), "--dataset", str(place / "log")]
    assert main([*words, "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "100.0%" in said
    assert INSTRUCTIONS[1] in said
    assert json.loads(out.read_text())["overall"]["agrees"]["mean"] == 1.0
    assert main([*words, "--outcome", "succes"]) == 2
    assert main(["agree", str(place / "policy-0"), "--dataset", str(tmp_path / "none")]) == 2
    errors = capsys.readouterr().err
    assert "success" in errors
    assert "no such folder" in errors
    assert "Traceback" not in errors
