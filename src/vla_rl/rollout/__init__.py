"""The actor-environment loop and the window it fills."""

from vla_rl.rollout.buffer import FinishedEpisode, RolloutBuffer
from vla_rl.rollout.collector import Collected, Collector
from vla_rl.rollout.engine import build_engine
from vla_rl.rollout.groups import GroupPlay, PlayedGroups
from vla_rl.rollout.metrics import rollout_metrics
from vla_rl.rollout.together import of_all
from vla_rl.rollout.windows import Windows

__all__ = [
    "Collected",
    "Collector",
    "FinishedEpisode",
    "GroupPlay",
    "PlayedGroups",
    "RolloutBuffer",
    "Windows",
    "build_engine",
    "of_all",
    "rollout_metrics",
]
