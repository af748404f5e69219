"""The actor-environment loop, the window it fills, and evaluation."""

from vla_rl.rollout.collector import Collected, Collector
from vla_rl.rollout.evaluator import EpisodeRecord, play_each_once
from vla_rl.rollout.metrics import rollout_metrics
from vla_rl.rollout.window import FinishedEpisode, Window

__all__ = [
    "Collected",
    "Collector",
    "EpisodeRecord",
    "FinishedEpisode",
    "Window",
    "play_each_once",
    "rollout_metrics",
]
