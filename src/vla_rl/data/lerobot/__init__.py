"""LeRobotDataset v3.0, read and written with pyarrow, av, numpy and json alone.

LeRobot is met by its format, not by import: its pins exclude ours.
"""

from vla_rl.data.lerobot.episodes import EpisodeEntry
from vla_rl.data.lerobot.reader import LeRobotReader
from vla_rl.data.lerobot.schema import CODEBASE_VERSION, DatasetInfo, Feature, camera, vector
from vla_rl.data.lerobot.writer import LeRobotWriter

__all__ = [
    "CODEBASE_VERSION",
    "DatasetInfo",
    "EpisodeEntry",
    "Feature",
    "LeRobotReader",
    "LeRobotWriter",
    "camera",
    "vector",
]
