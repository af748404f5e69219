"""LIBERO's official files: what is seen before an action goes with it, turned, and damage is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="needs the extra vla-rl[libero]")

from libero_files import SIZE, TASK, recording, write_file  # noqa: E402

from vla_rl.cli import main  # noqa: E402
from vla_rl.config import UserError  # noqa: E402
from vla_rl.data.demonstrations import ACTION, IMAGE, STATE, load_demonstrations  # noqa: E402
from vla_rl.data.lerobot import LeRobotReader  # noqa: E402
from vla_rl.data.libero_hdf5 import (  # noqa: E402
    WRIST_IMAGE,
    convert_libero_hdf5,
    instruction,
    moving,
    read_libero_demos,
)

FILE = f"{TASK}_demo.hdf5"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("after", [True, False], ids=["official", "regenerated"])
def test_every_action_goes_with_the_last_observation_before_it(
    tmp_path: Path, rng: np.random.Generator, after: bool
) -> None:
    """Moment t is what was seen before action t, in whichever row it is stored; pictures turn by 180 degrees."""
    recorded = [recording(rng, length) for length in (6, 9)]
    path = write_file(tmp_path / FILE, recorded, after=after)
    demos = list(read_libero_demos(path, wrist=True))
    assert [demo.name for demo in demos] == ["demo_0", "demo_1"]
    for demo, moments in zip(demos, recorded, strict=True):
        first = (
            1 if after else 0
        )  # nothing seen before the first action is stored in official files
        rows = slice(first, len(moments["actions"]))
        np.testing.assert_array_equal(demo.images, np.rot90(moments["agentview"][rows], 2, (1, 2)))
        np.testing.assert_array_equal(demo.wrist_images, np.rot90(moments["hand"][rows], 2, (1, 2)))
        np.testing.assert_array_equal(demo.actions, moments["actions"][rows].astype(np.float32))
        state = np.concatenate([moments["pose"], moments["fingers"]], axis=1)[rows]
        np.testing.assert_array_equal(demo.state, state.astype(np.float32))


def test_the_timing_can_be_said(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write_file(tmp_path / FILE, [recording(rng, 5)])
    rows = {
        t: len(next(read_libero_demos(path, timing=t)).actions) for t in ("auto", "after", "before")
    }
    assert rows == {"auto": 4, "after": 4, "before": 5}


def test_pictures_stored_upright_are_only_mirrored(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    demo = recording(rng, 4)
    flipped = {**demo, "agentview": demo["agentview"][:, ::-1]}
    one = write_file(tmp_path / "one" / FILE, [demo])
    two = write_file(tmp_path / "two" / FILE, [flipped], macros_image_convention="opencv")
    first, second = next(read_libero_demos(one)), next(read_libero_demos(two))
    np.testing.assert_array_equal(first.images, second.images)
    three = write_file(tmp_path / "three" / FILE, [demo], macros_image_convention="vulkan")
    with pytest.raises(UserError, match="'opengl' or 'opencv', got 'vulkan'"):
        next(read_libero_demos(three))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet_demo.hdf5",
         "close the top drawer of the cabinet"),
        ("LIVING_ROOM_SCENE2_put_both_the_alphabet_soup_and_the_tomato_sauce_in_the_basket_demo.hdf5",
         "put both the alphabet soup and the tomato sauce in the basket"),
        ("STUDY_SCENE1_pick_up_the_book_and_place_it_in_the_back_compartment_of_the_caddy_demo.hdf5",
         "pick up the book and place it in the back compartment of the caddy"),
        ("turn_on_the_stove_demo.hdf5", "turn on the stove"),
    ],
)  # fmt: skip
def test_the_instruction_is_the_benchmarks(name: str, text: str) -> None:
    assert instruction(Path("libero_90") / name) == text


def action(motion: float, gripper: float) -> list[float]:
    return [motion, 0, 0, 0, 0, 0, gripper]


def test_noops_are_still_and_leave_the_gripper_as_the_last_kept_action_did() -> None:
    actions = np.array([
        action(0, -1),  # nothing yet, and nothing moves
        action(0.5, -1),
        action(9e-5, -1),  # below the threshold
        action(0, 1),  # closes
        action(0, 1),  # goes on closing: OpenVLA drops it
        action(0, -1),  # opens
        action(2e-4, -1),
    ])  # fmt: skip
    assert moving(actions).tolist() == [False, True, False, True, False, True, True]


def test_a_converted_folder_is_what_fine_tuning_loads(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    demos = [recording(rng, 30) for _ in range(3)]
    still = demos[0]["actions"]
    still[4:7, :6] = 0
    write_file(tmp_path / "in" / "sub" / FILE, demos[:2])
    write_file(tmp_path / "in" / "turn_on_the_stove_demo.hdf5", demos[2:])
    folder = convert_libero_hdf5(tmp_path / "in", tmp_path / "out", wrist=True)
    reader = LeRobotReader(folder)
    assert (reader.fps, reader.cameras) == (20, (IMAGE, WRIST_IMAGE))
    assert [entry.length for entry in reader.episodes] == [26, 29, 29]
    assert reader.column("next.success").sum() == 3
    loaded = load_demonstrations(folder, action_size=7)
    assert [loaded.instructions[i] for i in loaded.task_ids[[0, 26, 55]]] == [
        "pick up the milk and place it in the basket",
        "pick up the milk and place it in the basket",
        "turn on the stove",
    ]
    rows = [t for t in range(1, 30) if t not in (4, 5, 6)]
    np.testing.assert_array_equal(loaded.actions[:26], still[rows].astype(np.float32))
    np.testing.assert_array_equal(loaded.images[:26], demos[0]["agentview"][rows, ::-1, ::-1])
    # the gripper's two commands are the ends of its range
    assert (loaded.action_low[6], loaded.action_high[6]) == (-1, 1)
    whole = convert_libero_hdf5(
        [tmp_path / "in" / "sub"], tmp_path / "whole", drop_noops=False, image_size=8
    )
    assert [entry.length for entry in LeRobotReader(whole).episodes] == [29, 29]
    assert LeRobotReader(whole).features[IMAGE].shape == (8, 8, 3)
    assert LeRobotReader(whole).features[STATE].shape == (8,)


def test_the_command(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_file(tmp_path / FILE, [recording(rng, 10)])
    words = ["convert", str(path), "--out", str(tmp_path / "d"), "--no-drop-noops", "--wrist"]
    assert main(words) == 0
    assert capsys.readouterr().out == f"Demonstrations: {tmp_path / 'd'}\n"
    assert LeRobotReader(tmp_path / "d").column(ACTION).shape == (9, 7)
    assert main(["convert", str(tmp_path / "none")]) == 2


def damaged(path: Path, key: str, value: np.ndarray | None) -> Path:
    with h5py.File(path, "r+") as file:
        group = file["data/demo_0"]
        del group[key]
        if value is not None:
            group[key] = value
    return path


BAD_PARTS = {
    "obs/agentview_rgb": (None, r"demo_0: expected the dataset 'obs/agentview_rgb', got none\. Known: "),
    "obs/ee_states": (np.zeros((6, 7)), r"6 rows of 6 numbers in 'obs/ee_states', got shape \(6, 7\)"),
    "obs/gripper_states": (np.zeros((5, 2)), r"6 rows of 2 numbers in 'obs/gripper_states', got shape \(5, 2\)"),
    "actions": (np.zeros((6, 4)), r"T rows of 7 numbers in 'actions', got shape \(6, 4\)"),
    "states": (np.zeros((6, 3)), r"expected simulator states in 'states', got 3 numbers"),
    "obs": (None, r"expected the dataset 'obs/ee_states', got none"),
}  # fmt: skip


@pytest.mark.parametrize("key", BAD_PARTS)
def test_a_missing_or_misshapen_part_is_named(
    tmp_path: Path, rng: np.random.Generator, key: str
) -> None:
    value, message = BAD_PARTS[key]
    path = damaged(write_file(tmp_path / FILE, [recording(rng, 6)]), key, value)
    with pytest.raises(UserError, match=message):
        list(read_libero_demos(path))


def test_pictures_of_another_kind_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write_file(tmp_path / FILE, [recording(rng, 6)])
    damaged(path, "obs/agentview_rgb", np.zeros((6, SIZE, SIZE, 3), np.float32))
    with pytest.raises(
        UserError, match=r"6 uint8 RGB pictures in 'obs/agentview_rgb', got float32"
    ):
        convert_libero_hdf5(path, tmp_path / "d")
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE]


def test_files_of_another_kind_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    text = tmp_path / "notes.hdf5"
    text.write_text("not really")
    with pytest.raises(UserError, match="another kind of file"):
        convert_libero_hdf5(text, tmp_path / "d")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["episodes"] = np.zeros(3)
    with pytest.raises(UserError, match="expected LIBERO's group 'data', got episodes"):
        convert_libero_hdf5(tmp_path / "other.hdf5", tmp_path / "d")
    with pytest.raises(UserError, match="got none of them"):
        convert_libero_hdf5(write_file(tmp_path / "empty_demo.hdf5", []), tmp_path / "d")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"<task>_demo\.hdf5 in .*folder, got none"):
        convert_libero_hdf5(tmp_path / "folder", tmp_path / "d")
    with pytest.raises(UserError, match="no such file"):
        convert_libero_hdf5(tmp_path / "nowhere", tmp_path / "d")
    small = write_file(tmp_path / "mixed" / "a_demo.hdf5", [recording(rng, 4, 8)])
    large = write_file(tmp_path / "mixed" / "b_demo.hdf5", [recording(rng, 4, 16)])
    with pytest.raises(UserError, match=r"8 x 8 in .*, but 16 x 16 in .*give an image_size"):
        convert_libero_hdf5([small, large], tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_file_is_an_error_and_leaves_nothing(
    tmp_path: Path, rng: np.random.Generator, share: float
) -> None:
    path = write_file(tmp_path / FILE, [recording(rng, 20) for _ in range(3)])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match="damaged or cut short"):
        convert_libero_hdf5(path, tmp_path / "d")
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE]


@pytest.mark.sim
def test_the_simulator_records_the_arm_where_timing_is_looked_for() -> None:
    """LIBERO's own environment: after a step the observed joints are the state's numbers 1 to 7, exactly."""
    benchmark = pytest.importorskip("libero.libero.benchmark", reason="needs vla-rl[libero]")
    from libero.libero import get_libero_path
    from libero.libero.envs.env_wrapper import ControlEnv

    task = benchmark.get_benchmark_dict()["libero_object"]().get_task(0)
    bddl = Path(get_libero_path("bddl_files")) / task.problem_folder / task.bddl_file
    env = ControlEnv(bddl_file_name=str(bddl), use_camera_obs=False, has_offscreen_renderer=False)
    env.seed(0)
    env.env.reset()
    for _ in range(3):
        before = env.sim.get_state().flatten()[1:8]
        observed = env.step([0.3, 0.2, -0.4, 0.1, 0.1, 0.1, -1])[0]["robot0_joint_pos"]
        np.testing.assert_array_equal(observed, env.sim.get_state().flatten()[1:8])
        assert np.abs(observed - before).max() > 1e-4
    env.close()
