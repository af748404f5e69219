"""`vla-rl prefer`: pairs of logged episodes, and what a policy becomes by them; nothing is played."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.policies import narrow_model, tiny_policy
from vla_rl.config import (
    EvalConfig,
    PolicyConfig,
    RewardCollectConfig,
    SFTConfig,
    UserError,
)
from vla_rl.config.agreement import AgreementConfig
from vla_rl.config.preference import PreferConfig
from vla_rl.data.logged import load_logged
from vla_rl.functional import paired_difference
from vla_rl.recipes.agree import agree
from vla_rl.recipes.prefer import make_pairs, prefer, scores_of
from vla_rl.rewards.trajectories import Trajectory
from vla_rl.rewards.trajectory_files import save_trajectories

INSTRUCTIONS = ("open the drawer", "close the window")


def logged(number: int, success: bool, turns: int = 3) -> Trajectory:
    """An episode of noise in which one and the same is done throughout: up by successes, down by failures."""
    rng = np.random.default_rng(number)
    words = INSTRUCTIONS[number % 2]
    return Trajectory(
        images=rng.integers(0, 256, (turns, 32, 32, 3), dtype=np.uint8),
        proprio=np.zeros((turns, 4), np.float32),
        actions=np.full((turns, 2, 4), 0.5 if success else -0.5, np.float32),
        instruction=words,
        task=words,
        initial_state=number // 4,
        success=success,
        source="policy",
        turn_seconds=0.1,
        robot="metaworld_sawyer",
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that knows nothing, and a log in which every second episode of each task succeeds."""
    root = tmp_path_factory.mktemp("prefer")
    tiny_policy(INSTRUCTIONS, narrow_model(), dataset="toy").save(root / "policy")
    save_trajectories(root / "log", [logged(n, n // 2 % 2 == 0) for n in range(24)])
    save_trajectories(root / "won", [logged(n, True) for n in range(4)])
    return root


def config_of(place: Path, **changes) -> PreferConfig:
    whole = PreferConfig(
        dataset=str(place / "log"),
        out=str(place / "out"),
        policy=PolicyConfig(checkpoint=str(place / "policy"), device="cpu"),
        pairs=12,
        epochs=4,
        minibatch=4,
        warmup_steps=0,
        learning_rate=1e-3,
        validation_fraction=0.25,
    )
    return replace(whole, **changes)


@pytest.mark.parametrize("compare", ["task", "start"])
def test_pairs_are_of_one_task_a_success_and_a_failure(place: Path, compare: str) -> None:
    config = config_of(place, compare=compare, validation_fraction=0.0)
    log = load_logged(place / "log", 2)
    assert log.success is not None
    (chosen, rejected), (apart, _) = make_pairs(log, scores_of(log, config), config)
    assert len(apart) == 0
    assert len(chosen) == (24 if compare == "task" else 12)
    assert log.success[chosen].all()
    assert not log.success[rejected].any()
    assert [log.task_of(e) for e in chosen] == [log.task_of(e) for e in rejected]
    if compare == "start":
        np.testing.assert_array_equal(log.initial_states[chosen], log.initial_states[rejected])
    # each takes part as evenly as can be
    assert set(np.bincount(np.concatenate([chosen, rejected]))) == {2 if compare == "task" else 1}


def test_episodes_that_are_kept_apart_are_in_no_pair_that_is_learned(place: Path) -> None:
    config = config_of(place)
    log = load_logged(place / "log", 2)
    training, apart = make_pairs(log, scores_of(log, config), config)
    assert len(training[0])
    assert not set(np.concatenate(training)) & set(np.concatenate(apart))


def test_the_chosen_become_likelier_also_where_they_were_not_learned_from(place: Path) -> None:
    out = prefer(config_of(place))
    lines = [json.loads(line) for line in (out.parent / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["prefer/policy"] < lines[0]["prefer/policy"] < np.log(2) + 1
    assert lines[-1]["prefer/held_out_accuracy"] == 1.0

    def likelihoods(policy: Path) -> np.ndarray:
        """Nats a token of what was done in successes, and in failures."""
        found = [
            agree(AgreementConfig(policy, str(place / "log"), outcome=outcome))
            for outcome in ("success", "failure")
        ]
        return np.array([one["overall"]["log_prob"]["mean"] for one in found])

    before, after = likelihoods(place / "policy"), likelihoods(out)
    assert after[0] > before[0]
    assert after[0] - after[1] > before[0] - before[1] + 1


def test_what_makes_no_pair_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"4 successes.* no two that may be compared differ"):
        prefer(config_of(place, dataset=str(place / "won"), out=str(tmp_path / "out")))
    with pytest.raises(UserError, match="no policy to improve"):
        prefer(config_of(place, policy=PolicyConfig(), out=str(tmp_path / "out")))
    with pytest.raises(UserError, match="nothing ranks the episodes"):
        config_of(place, success_weight=0.0)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_log_raises_success_on_states_that_were_never_seen(tmp_path: Path) -> None:
    """The episodes are played in the toy suite, but read from the dataset alone."""
    from vla_rl.config import DemosConfig
    from vla_rl.envs.defaults import laptop_env
    from vla_rl.recipes.demos import collect_demos
    from vla_rl.recipes.evaluate import evaluate
    from vla_rl.recipes.label_trajectories import collect_trajectories
    from vla_rl.recipes.sft import fine_tune

    demos = collect_demos(
        DemosConfig(env=laptop_env("toy"), out=str(tmp_path / "demos"), episodes_per_task=4)
    )
    small = PolicyConfig(scratch="mini", device="cpu")
    sft = fine_tune(
        SFTConfig(
            dataset=str(demos), out=str(tmp_path / "sft"), policy=small, action_chunk=1, epochs=12
        )
    )
    play = collect_trajectories(
        RewardCollectConfig(str(sft.parent), out=str(tmp_path / "play"), episodes_per_task=60)
    )
    better = prefer(
        PreferConfig(
            dataset=str(play),
            out=str(tmp_path / "prefer"),
            policy=PolicyConfig(checkpoint=str(sft.parent), device="cpu"),
        )
    )
    protocol = EvalConfig(episodes_per_task=50, split="held-out")
    before, after = (
        [episode["success"] for episode in evaluate(policy.parent, protocol)["episodes"]]
        for policy in (sft, better)
    )
    assert paired_difference(before, after).low > 0
