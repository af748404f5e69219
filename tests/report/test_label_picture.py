"""Images of labelled trajectories: the labels in their colours, and every kind of trajectory among them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vla_rl.config import RewardLabelConfig
from vla_rl.recipes.label_trajectories import choose_to_draw, label_dataset
from vla_rl.report.figures.labels import NEGATIVE, POSITIVE
from vla_rl.rewards.process.label_files import load_labels
from vla_rl.rewards.trajectories import Trajectory
from vla_rl.rewards.trajectory_files import save_trajectories


def sample(length: int, task: str = "reach", *, success: bool = True) -> Trajectory:
    return Trajectory(
        images=np.full((length, 8, 8, 3), 90, np.uint8),
        proprio=np.random.default_rng(0).random((length, 4), dtype=np.float32),
        actions=np.zeros((length, 1, 4), np.float32),
        instruction=task,
        task=task,
        initial_state=0,
        success=success,
        source="policy",
        robot="metaworld_sawyer",
    )


def test_every_kind_is_drawn_before_any_is_drawn_twice():
    kinds = [(0, True), (0, True), (0, True), (1, True), (1, False), (0, False)]
    given = [sample(3, "ab"[task], success=success) for task, success in kinds]
    assert choose_to_draw(given, 4) == [0, 3, 4, 5]
    assert choose_to_draw(given, 5) == [0, 1, 3, 4, 5]
    assert choose_to_draw(given, 99) == [0, 1, 2, 3, 4, 5]


def test_images_show_the_labels_in_their_colours(tmp_path):
    save_trajectories(tmp_path / "play", [sample(12), sample(12, success=False)])
    folder = label_dataset(RewardLabelConfig(str(tmp_path / "play"), plot=True))
    _, (labels, _) = load_labels(folder)
    success, failure = (
        np.asarray(Image.open(path).convert("RGB")).astype(int)
        for path in sorted((folder / "plots").iterdir())
    )

    def widest(image, colour: str) -> int:
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        return int((np.abs(image - wanted).max(axis=2) <= 2).sum(axis=1).max())

    share = widest(success, POSITIVE) / max(widest(success, NEGATIVE), 1)
    assert share == pytest.approx(labels.positive.sum() / labels.negative.sum(), rel=0.1)
    assert widest(failure, NEGATIVE) > 0.8 * failure.shape[1]
    # the legend's patch alone
    assert widest(failure, POSITIVE) < 0.05 * failure.shape[1]
