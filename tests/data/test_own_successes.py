"""A policy's own successes as demonstrations: failures left out, turns with their own actions, strangers refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla_rl.config import SFTConfig, UserError
from vla_rl.data.demonstrations import action_chunks, load_demonstrations
from vla_rl.data.lerobot import LeRobotReader
from vla_rl.data.own_successes import with_successes
from vla_rl.recipes.sft import fine_tune
from vla_rl.rewards.trajectories import Trajectory
from vla_rl.rewards.trajectory_files import TrajectoryWriter, load_trajectories

INSTRUCTIONS = ("open the drawer", "close the window")


def episode(
    number: int, success: bool, turns: int = 3, chunk: int = 2, size: int = 8, proprio: int = 4
) -> Trajectory:
    rng = np.random.default_rng(number)
    return Trajectory(
        images=rng.integers(0, 256, (turns, size, size, 3), dtype=np.uint8),
        proprio=rng.normal(size=(turns, proprio)).astype(np.float32),
        actions=rng.uniform(-1, 1, (turns, chunk, 4)).astype(np.float32),
        instruction=INSTRUCTIONS[number % 2],
        task=INSTRUCTIONS[number % 2],
        initial_state=number,
        success=success,
        source="policy",
        turn_seconds=0.1,
        robot="metaworld_sawyer",
    )


def play(folder: Path, *episodes: Trajectory) -> str:
    with TrajectoryWriter(folder) as writer:
        for one in episodes:
            writer.add(one)
    return str(folder)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return play(tmp_path_factory.mktemp("own") / "demos", episode(10, True, 5), episode(12, True))


def test_successes_follow_the_demonstrations_turn_by_turn(demos: str, tmp_path: Path) -> None:
    loaded = load_demonstrations(demos)
    folder = play(tmp_path / "play", *(episode(n, n in (1, 2)) for n in range(4)))
    found = with_successes(loaded, [folder], 2)
    kept = [t for t in load_trajectories(folder) if t.success]
    assert [t.initial_state for t in kept] == [1, 2]

    own = slice(len(loaded), None)
    np.testing.assert_array_equal(found.seen.images[own], np.concatenate([t.images for t in kept]))
    np.testing.assert_array_equal(found.chunks[own], np.concatenate([t.actions for t in kept]))
    first = action_chunks(loaded.actions, loaded.episode_ids, 2)
    np.testing.assert_array_equal(found.chunks[: len(loaded)], first)
    said = [found.seen.instructions[i] for i in found.seen.task_ids[own]]
    assert said == [t.instruction for t in kept for _ in t.actions]
    assert found.seen.num_episodes == loaded.num_episodes + 2
    assert (np.diff(found.seen.episode_ids) >= 0).all()


def test_several_folders_keep_their_episodes_apart(demos: str, tmp_path: Path) -> None:
    loaded = load_demonstrations(demos)
    folders = [play(tmp_path / f"play-{n}", episode(n, True)) for n in range(3)]
    found = with_successes(loaded, folders, 2)
    assert found.seen.num_episodes == loaded.num_episodes + 3
    assert len(found.chunks) == len(found.seen) == len(loaded) + 9


def test_what_cannot_be_learned_from_is_refused(demos: str, tmp_path: Path) -> None:
    loaded = load_demonstrations(demos)
    with pytest.raises(UserError, match="none of 2 did"):
        with_successes(loaded, [play(tmp_path / "lost", episode(0, False), episode(1, False))], 2)
    with pytest.raises(UserError, match="expected turns of 4 actions"):
        with_successes(loaded, [play(tmp_path / "two", episode(0, True))], 4)
    with pytest.raises(UserError, match="proprioception of 4"):
        with_successes(loaded, [play(tmp_path / "other", episode(0, True, proprio=5))], 2)
    narrow = replace(loaded, action_high=loaded.action_high / 2)
    with pytest.raises(UserError, match="lie outside"):
        with_successes(narrow, [play(tmp_path / "range", episode(0, True))], 2)
    with pytest.raises(UserError, match="no such folder"):
        with_successes(loaded, [str(tmp_path / "nowhere")], 2)


def test_play_is_not_taken_for_demonstrations(demos: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Give it as --successes"):
        fine_tune(SFTConfig(dataset=demos, out=str(tmp_path / "sft"), action_chunk=2))


def test_one_action_a_turn_needs_no_column_of_its_own(tmp_path: Path) -> None:
    folder = play(tmp_path / "one", episode(0, True, chunk=1))
    assert "action_chunk" not in LeRobotReader(folder).features
    found = with_successes(load_demonstrations(folder), [folder], 1)
    np.testing.assert_array_equal(found.chunks[:3], found.chunks[3:])
