"""Episodes for rerun's viewer, read back by rerun's own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_rl.config import UserError
from vla_rl.config.push import RerunConfig
from vla_rl.recipes.rerun_episodes import write_rerun

rerun = pytest.importorskip("rerun", reason="rerun-sdk is not installed (vla-rl[rerun])")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vla_rl.data.lerobot import LeRobotWriter, camera, vector

    folder = tmp_path_factory.mktemp("data") / "demos"
    features = {"observation.images.image": camera(8, 8, video=False), "action": vector(2)}
    rng = np.random.default_rng(0)
    with LeRobotWriter(folder, fps=10, features=features, robot_type="x") as writer:
        for number in range(2):
            frames = {
                "observation.images.image": rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8),
                "action": np.arange(8, dtype=np.float32).reshape(4, 2) + 10 * number,
            }
            writer.add_episode(frames, task="open the drawer")
    return folder


def test_the_viewers_own_reader_finds_every_episode_and_its_numbers(
    dataset: Path, tmp_path: Path
) -> None:
    from rerun.chunk import RrdReader

    out = write_rerun(RerunConfig(str(dataset), out=str(tmp_path / "out"), episodes=(0, 1, 7)))
    files = sorted(out.iterdir())
    assert [file.name for file in files] == ["episode-000000.rrd", "episode-000001.rrd"]
    for number, file in enumerate(files):
        reader = RrdReader(file)
        (recording,) = reader.recordings()
        chunks = list(reader.stream(store=recording))
        paths = {chunk.entity_path for chunk in chunks}
        assert {"/observation/images/image", "/action", "/instruction"} <= paths
        rows = [
            row
            for chunk in chunks
            if chunk.entity_path == "/action"
            for row in chunk.to_record_batch().column("Scalars:scalars").to_pylist()
        ]
        expected = np.arange(8).reshape(4, 2) + 10 * number
        np.testing.assert_array_equal(np.array(rows), expected)


def test_episodes_that_are_not_there_are_said(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 to 1"):
        write_rerun(RerunConfig(str(dataset), out=str(tmp_path / "out"), episodes=(5,)))
