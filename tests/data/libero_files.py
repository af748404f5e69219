"""Small files with the structure of LIBERO's official demonstrations, as its scripts/create_dataset.py writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

TASK = "pick_up_the_milk_and_place_it_in_the_basket"
SIZE = 16


def recording(rng: np.random.Generator, length: int, size: int = SIZE) -> dict[str, np.ndarray]:
    """A robot that is somewhere else in each of length + 1 moments; `actions[t]` leads from t to t + 1.

    `moments` of everything seen, so that a test can say which moment a stored picture belongs to.
    """
    actions = rng.uniform(-1, 1, (length, 7))
    actions[:, 6] = np.where(np.arange(length) < length // 2, -1.0, 1.0)
    return {
        "actions": actions,
        "agentview": rng.integers(0, 256, (length + 1, size, size, 3), dtype=np.uint8),
        "hand": rng.integers(0, 256, (length + 1, size, size, 3), dtype=np.uint8),
        "pose": rng.normal(size=(length + 1, 6)),
        "fingers": rng.normal(size=(length + 1, 2)),
        "joints": np.cumsum(rng.normal(0, 0.01, (length + 1, 7)), axis=0),
    }


def write_file(
    path: Path, demos: list[dict[str, np.ndarray]], *, after: bool = True, **attributes: Any
) -> Path:
    """Write the demonstrations; `after`: observations are those after each action, as in official files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"problem_name": "libero_floor_manipulation"})
        text = "a different text, from the BDDL file"
        data.attrs["problem_info"] = json.dumps({"language_instruction": text})
        data.attrs["bddl_file_name"] = "libero/bddl_files/libero_object/x.bddl"
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["num_demos"] = len(demos)
        for name, value in attributes.items():
            data.attrs[name] = value
        for number, demo in enumerate(demos):
            write_demo(data.create_group(f"demo_{number}"), demo, after)
    return path


def write_demo(group: h5py.Group, demo: dict[str, np.ndarray], after: bool) -> None:
    length = len(demo["actions"])
    seen = slice(1, None) if after else slice(None, -1)
    joints = demo["joints"][:-1]  # simulator states are always those before the action
    rest = np.zeros((length, 5))
    group["actions"] = demo["actions"]
    group["states"] = np.concatenate([np.arange(length)[:, None] * 0.05, joints, rest], axis=1)
    group["robot_states"] = np.zeros((length, 9))
    group["rewards"] = group["dones"] = (np.arange(length) == length - 1).astype(np.uint8)
    group["obs/agentview_rgb"] = demo["agentview"][seen]
    group["obs/eye_in_hand_rgb"] = demo["hand"][seen]
    group["obs/ee_states"] = demo["pose"][seen]
    group["obs/ee_pos"] = demo["pose"][seen, :3]
    group["obs/ee_ori"] = demo["pose"][seen, 3:]
    group["obs/gripper_states"] = demo["fingers"][seen]
    group["obs/joint_states"] = demo["joints"][seen]
