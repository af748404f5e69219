"""Trajectories from windows, datasets and recorded play: whole, in order, and the same after a round trip."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.rollouts import window
from vla_rl.config import EnvConfig, RewardLabelConfig, UserError
from vla_rl.data.demonstrations import ACTION, IMAGE, STATE, demonstration_features
from vla_rl.data.lerobot import LeRobotReader, LeRobotWriter, camera, vector
from vla_rl.recipes.label_trajectories import label_dataset
from vla_rl.rewards.process.label_files import load_labels
from vla_rl.rewards.trajectories import EpisodeCutter, Trajectory, trajectories_of
from vla_rl.rewards.trajectory_files import load_trajectories, save_trajectories
from vla_rl.types import Rollout

ENV = EnvConfig(
    suite="mt5", image_size=8, action_repeat=5, action_chunk=2, horizon=6, num_envs=3,
    initial_states=20, held_out=5,
)  # fmt: skip
TASKS, INSTRUCTIONS = ("drawer-open", "reach"), ("open the drawer", "reach the goal")


class Doubling:
    """Known answers: tokens t to actions t / 100, two actions of four numbers a turn."""

    action_dim, action_chunk = 4, 2

    def decode_actions(self, tokens):
        return (np.asarray(tokens, dtype=np.float32) / 100).reshape(len(tokens), 2, 4)


def sample(
    length: int = 5, *, chunk: int = 2, proprio: int = 4, success: bool = True, seed: int = 0
) -> Trajectory:
    rng = np.random.default_rng(seed)
    return Trajectory(
        images=rng.integers(0, 256, (length, 8, 8, 3), dtype=np.uint8),
        proprio=rng.random((length, proprio), dtype=np.float32),
        actions=rng.random((length, chunk, 4), dtype=np.float32),
        instruction=INSTRUCTIONS[seed % 2],
        task=TASKS[seed % 2],
        initial_state=seed,
        success=success,
        source="policy",
        turn_seconds=0.4,
        robot="metaworld_sawyer",
    )


def assert_same(first: Trajectory, second: Trajectory) -> None:
    for name in ("images", "proprio", "actions"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    for name in (
        "instruction",
        "task",
        "initial_state",
        "success",
        "source",
        "turn_seconds",
        "robot",
    ):
        assert getattr(first, name) == getattr(second, name), name


# --------------------------------------------------------------------------------------------------
# From windows


def play(lengths: list[list[int]], turns: int, lost: set[tuple[int, int]] = frozenset()) -> Rollout:
    """`turns` turns of slots that play episodes of these lengths one after the other; odd lengths succeed.

    Turn m of slot n has the image and the proprioception 10 n + m and the tokens m. A lost turn starts its episode
    again.
    """
    slots = len(lengths)
    shape = (turns, slots)
    number = 10 * np.arange(slots)[None, :] + np.arange(turns)[:, None]
    episode, fraction = np.zeros(shape, int), np.zeros(shape, np.float32)
    terminated, truncated = np.zeros(shape, bool), np.zeros(shape, bool)
    for slot, own in enumerate(lengths):
        index, at = 0, 0
        for turn in range(turns):
            episode[turn, slot], fraction[turn, slot] = index, at / 100
            at += 1
            if (turn, slot) in lost:
                at = 0
            elif at == own[index]:
                (terminated if own[index] % 2 else truncated)[turn, slot] = True
                index, at = index + 1, 0
    valid = np.ones(shape, bool)
    for place in lost:
        valid[place] = False
    return window(
        turns,
        slots,
        images=np.broadcast_to(number[..., None, None, None], (*shape, 2, 2, 3)).astype(np.uint8),
        task_ids=episode % 2,
        tasks=TASKS,
        instructions=INSTRUCTIONS,
        initial_states=episode,
        episode_ids=episode,
        group_ids=episode,
        proprio=np.repeat(number[..., None], 4, axis=2).astype(np.float32),
        time_fraction=fraction,
        tokens=np.broadcast_to(np.arange(turns)[:, None, None], (*shape, 8)).copy(),
        log_probs=np.zeros((*shape, 8), np.float32),
        rewards=terminated.astype(np.float32),
        terminated=terminated,
        truncated=truncated,
        next_images=np.zeros((slots, 2, 2, 3), np.uint8),
        succeeded=terminated,
        valid=valid,
    )


def cut(rollout: Rollout, edges: list[int]) -> list[Rollout]:
    """The same play in consecutive windows."""
    arrays = [
        name
        for name, values in vars(rollout).items()
        if isinstance(values, np.ndarray) and name not in ("next_values", "next_images")
    ]
    stops = [*edges, len(rollout.rewards)]
    starts = [0, *edges]
    return [
        replace(rollout, **{name: getattr(rollout, name)[a:b] for name in arrays})
        for a, b in zip(starts, stops, strict=True)
    ]


def test_windows_are_cut_into_whole_episodes():
    found = trajectories_of([play([[3, 4, 9], [5, 2, 9]], 8)], Doubling(), ENV)
    # by when they ended: slot 0 after turns 2 and 6, slot 1 after turns 4 and 6
    assert [(t.images[0, 0, 0, 0], len(t), t.success) for t in found] == [
        (0, 3, True), (10, 5, True), (3, 4, False), (15, 2, False),
    ]  # fmt: skip
    third = found[2]
    np.testing.assert_array_equal(third.proprio[:, 0], [3, 4, 5, 6])
    np.testing.assert_allclose(third.actions[:, 1, 2], [0.03, 0.04, 0.05, 0.06], rtol=1e-6)
    assert (third.task, third.instruction, third.initial_state) == ("reach", "reach the goal", 1)
    # two actions of five simulator steps at 80 a second
    assert third.turn_seconds == 0.125
    assert (third.robot, third.source) == ("metaworld_sawyer", "policy")


@settings(max_examples=40)
@given(edges=st.sets(st.integers(1, 29), max_size=8), data=st.data())
def test_it_does_not_matter_where_windows_end(edges: set[int], data: st.DataObject):
    lengths = data.draw(
        st.lists(st.lists(st.integers(1, 9), min_size=30, max_size=30), min_size=1, max_size=3)
    )
    lost = data.draw(
        st.sets(st.tuples(st.integers(0, 29), st.integers(0, len(lengths) - 1)), max_size=4)
    )
    whole = play(lengths, 30, lost)
    expected = trajectories_of([whole], Doubling(), ENV)
    found = trajectories_of(cut(whole, sorted(edges)), Doubling(), ENV)
    assert (
        len(found) == len(expected) == int((whole.terminated | whole.truncated)[whole.valid].sum())
    )
    for before, after in zip(expected, found, strict=True):
        assert_same(before, after)


def test_lost_episodes_are_left_out_and_their_repetition_is_whole():
    found = trajectories_of([play([[4, 3, 9]], 12, lost={(2, 0)})], Doubling(), ENV)
    # turns 0..2 were lost; the same episode again is 3..6
    assert [t.images[:, 0, 0, 0].tolist() for t in found] == [[3, 4, 5, 6], [7, 8, 9]]


def test_an_episode_whose_beginning_was_not_seen_is_left_out():
    first, second = cut(play([[6, 3, 9]], 12), [2])
    found = EpisodeCutter(Doubling(), ENV).add(second)
    assert [t.images[:, 0, 0, 0].tolist() for t in found] == [[6, 7, 8]]
    assert len(trajectories_of([first, second], Doubling(), ENV)) == 2


# --------------------------------------------------------------------------------------------------
# Datasets


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("proprio", [0, 4])
def test_what_is_saved_is_loaded(tmp_path, chunk: int, proprio: int):
    given = [
        sample(5, chunk=chunk, proprio=proprio, seed=0),
        sample(1, chunk=chunk, proprio=proprio, success=False, seed=1),
        replace(sample(7, chunk=chunk, proprio=proprio, success=False, seed=2), source="expert"),
    ]
    folder = save_trajectories(tmp_path / "play", given)
    loaded = load_trajectories(folder)
    assert len(loaded) == 3
    for before, after in zip(given, loaded, strict=True):
        assert_same(before, after)


def test_other_programs_see_the_outcome_and_the_first_action(tmp_path):
    given = [sample(5), sample(4, success=False, seed=1)]
    reader = LeRobotReader(save_trajectories(tmp_path / "play", given))
    assert reader.column("next.success").tolist() == [False] * 4 + [True] + [False] * 4
    assert reader.column("next.done").tolist() == [False] * 4 + [True] + [False] * 3 + [True]
    np.testing.assert_array_equal(reader.column(ACTION)[:5], given[0].actions[:, 0])
    assert reader.fps == 2  # 0.4 s a turn: a whole number in the format, the exact time beside it


def demonstrations(folder, *, success: bool | None = True, robot: str = "metaworld_sawyer"):
    """Two demonstrations of three frames; success None leaves the feature out, as foreign datasets do."""
    features = demonstration_features(8, 4, 4, video=False)
    if success is None:
        for name in ("next.reward", "next.success", "initial_state"):
            del features[name]
    with LeRobotWriter(folder, fps=16, features=features, robot_type=robot) as writer:
        for number in (1, 2):
            last = np.array([False, False, True])
            columns = {
                IMAGE: np.full((3, 8, 8, 3), number, np.uint8),
                STATE: np.full((3, 4), number, np.float32),
                ACTION: np.repeat(np.arange(3, dtype=np.float32)[:, None] / 10, 4, axis=1),
                "next.reward": last.astype(np.float32),
                "next.done": last,
                "next.success": last & bool(success),
                "initial_state": np.full(3, 70 + number),
            }
            writer.add_episode(
                {k: v for k, v in columns.items() if k in features}, task="open the drawer"
            )
    return folder


def test_every_frame_of_a_demonstration_is_a_decision(tmp_path):
    first, second = load_trajectories(demonstrations(tmp_path / "demos"))
    assert first.actions.shape == (3, 1, 4)
    assert (first.task, first.instruction, first.source) == (
        "drawer-open",
        "open the drawer",
        "expert",
    )
    assert (first.initial_state, second.initial_state) == (71, 72)
    assert first.success
    assert first.turn_seconds == 1 / 16
    chunked, _ = load_trajectories(tmp_path / "demos", action_chunk=2)
    np.testing.assert_allclose(
        chunked.actions[:, :, 0], [[0, 0.1], [0.1, 0.2], [0.2, 0.2]], rtol=1e-6
    )


def test_demonstrations_that_do_not_say_how_they_ended_are_successes(tmp_path):
    first, _ = load_trajectories(demonstrations(tmp_path / "demos", success=None, robot="panda"))
    assert first.success
    assert first.initial_state == -1
    assert first.task == "open_the_drawer"


def test_failures_are_read_as_failures(tmp_path):
    assert not any(
        t.success for t in load_trajectories(demonstrations(tmp_path / "d", success=False))
    )


def test_images_of_another_size_are_resized(tmp_path):
    folder = save_trajectories(tmp_path / "play", [sample()])
    assert load_trajectories(folder, image_size=4)[0].images.shape == (5, 4, 4, 3)


def test_another_chunk_than_the_one_stored_is_an_error(tmp_path):
    folder = save_trajectories(tmp_path / "play", [sample()])
    assert load_trajectories(folder, action_chunk=2)[0].actions.shape == (5, 2, 4)
    with pytest.raises(UserError, match="turns of 2 actions each, 4 were asked for"):
        load_trajectories(folder, action_chunk=4)


@pytest.mark.parametrize(
    "other",
    [sample(chunk=1), sample(proprio=0), replace(sample(), robot="panda"), replace(sample(), turn_seconds=1.0)],
)  # fmt: skip
def test_trajectories_of_two_kinds_do_not_go_into_one_dataset(tmp_path, other: Trajectory):
    with pytest.raises(UserError, match="expected it like the first"):
        save_trajectories(tmp_path / "play", [sample(), other])
    assert not (tmp_path / "play").exists()


def test_a_dataset_is_never_overwritten_nor_empty(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already"):
        save_trajectories(tmp_path / "there", [sample()])
    with pytest.raises(UserError, match="no trajectory"):
        save_trajectories(tmp_path / "play", [])
    assert not (tmp_path / "play").exists()


@pytest.mark.parametrize(
    ("name", "feature", "values"),
    [
        ("initial_state", vector(2, dtype="int64"), np.zeros((3, 2), np.int64)),
        ("initial_state", vector(1), np.full(3, 0.5, np.float32)),
        ("next.success", vector(1), np.ones(3, np.float32)),
        ("action_chunk", vector(7), np.zeros((3, 7), np.float32)),
        ("action_chunk", vector(8, dtype="int64"), np.zeros((3, 8), np.int64)),
    ],
)
def test_columns_of_another_kind_are_an_error(tmp_path, name: str, feature, values):
    features = {"observation.images.image": camera(8, 8, video=False), ACTION: vector(4)}
    with LeRobotWriter(tmp_path / "odd", fps=16, features={**features, name: feature}) as writer:
        columns = {
            IMAGE: np.zeros((3, 8, 8, 3), np.uint8),
            ACTION: np.zeros((3, 4), np.float32),
            name: values,
        }
        writer.add_episode(columns, task="open the drawer")
    with pytest.raises(UserError, match=name):
        load_trajectories(tmp_path / "odd")


def test_details_of_another_dataset_are_an_error(tmp_path):
    folder = save_trajectories(tmp_path / "play", [sample(), sample(seed=1)])
    path = folder / "meta" / "trajectories.json"
    details = json.loads(path.read_text())
    path.write_text(json.dumps({**details, "episodes": details["episodes"][:1]}))
    with pytest.raises(UserError, match="does not belong to this dataset"):
        load_trajectories(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("proprio", np.zeros((4, 4), np.float32)),
        ("actions", np.zeros((5, 4), np.float32)),
        ("turn_seconds", 0.0),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_parts_that_do_not_fit_together_are_an_error(name: str, value):
    with pytest.raises(UserError, match="expected"):
        replace(sample(), **{name: value})


def test_an_episode_without_a_decision_is_an_error():
    with pytest.raises(UserError, match="at least one turn"):
        sample(0)


def test_a_foreign_camera_and_action_size_can_be_labelled(tmp_path):
    """LeRobot's LIBERO layout: robot panda, eight numbers of proprioception, no outcome."""
    features = {
        "observation.images.front": camera(8, 8, video=False),
        STATE: vector(8),
        ACTION: vector(7),
    }
    with LeRobotWriter(
        tmp_path / "libero", fps=20, features=features, robot_type="panda"
    ) as writer:
        state = np.zeros((30, 8), np.float32)
        state[:, 0] = np.linspace(0, 0.6, 30)
        state[:15, 6], state[:15, 7] = 0.04, -0.04  # closes half-way
        writer.add_episode(
            {
                "observation.images.front": np.zeros((30, 8, 8, 3), np.uint8),
                STATE: state,
                ACTION: np.zeros((30, 7), np.float32),
            },
            task="pick up the milk and place it in the basket",
        )
    folder = label_dataset(RewardLabelConfig(str(tmp_path / "libero")))
    assert folder == tmp_path / "libero" / "labels"
    _, (labels,) = load_labels(folder)
    assert labels.milestones.tolist() == [15]
    # the dataset is read as before
    assert len(load_trajectories(tmp_path / "libero")) == 1
