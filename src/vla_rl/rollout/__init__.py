"""The actor-environment loop and the window it fills."""

from vla_rl.rollout.buffer import FinishedEpisode, RolloutBuffer
from vla_rl.rollout.collector import Collected, Collector
from vla_rl.rollout.metrics import rollout_metrics

__all__ = [
    "Collected",
    "Collector",
    "FinishedEpisode",
    "RolloutBuffer",
    "rollout_metrics",
]
