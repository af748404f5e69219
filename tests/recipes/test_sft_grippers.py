"""Fine-tuning does not take a joint for a gripper that opens and closes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_rl.config import PolicyConfig, SFTConfig, UserError
from vla_rl.data.demonstrations import demonstration_features
from vla_rl.data.lerobot import LeRobotWriter
from vla_rl.recipes.sft import fine_tune


def demonstrations(folder: Path, last: list[float]) -> Path:
    """One episode whose actions end in these numbers."""
    length = len(last)
    actions = np.zeros((length, 4), np.float32)
    actions[:, -1] = last
    ends = np.arange(length) == length - 1
    features = demonstration_features(32, 4, 4, video=False)
    with LeRobotWriter(folder, fps=16, features=features, robot_type="gymnasium") as writer:
        frames: dict[str, Any] = {
            "observation.images.image": np.zeros((length, 32, 32, 3), np.uint8),
            "observation.state": np.zeros((length, 4), np.float32),
            "action": actions,
            "next.reward": ends.astype(np.float32),
            "next.done": ends,
            "next.success": ends,
            "initial_state": np.zeros(length, np.int64),
        }
        writer.add_episode(frames, task="reach")
    return folder


@pytest.mark.parametrize("last", [[-1.0, 1.0, 0.98, -1.0], [-1.0, 0.4, -0.3, 1.0]])
def test_only_what_opens_and_closes_is_opened_and_closed(last: list[float], tmp_path: Path):
    settings = SFTConfig(
        dataset=str(demonstrations(tmp_path / "demos", last)),
        out=str(tmp_path / "first"),
        policy=PolicyConfig(scratch="mini", device="cpu"),
        epochs=1,
        action_chunk=1,
        validation_fraction=0.0,
    )
    start = str(fine_tune(settings))
    again = replace(
        settings,
        out=str(tmp_path / "second"),
        policy=PolicyConfig(checkpoint=start, gripper="openvla", device="cpu"),
    )
    if 0.4 not in last:
        assert fine_tune(again).is_dir()
        return
    with pytest.raises(UserError, match=r"in 50% of the frames it is neither: .*gripper as-is"):
        fine_tune(again)
    assert not (tmp_path / "second").exists()
