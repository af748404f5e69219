"""The actor-environment loop and the window it fills."""

from vla_rl.rollout.buffer import FinishedEpisode, Window
from vla_rl.rollout.collector import Collected, Collector
from vla_rl.rollout.metrics import rollout_metrics

__all__ = [
    "Collected",
    "Collector",
    "FinishedEpisode",
    "Window",
    "rollout_metrics",
]
