"""The actor-environment loop, the window it fills, evaluation, and best of N at test time."""

from vla_rl.rollout.best_of import play_best_of
from vla_rl.rollout.branches import Cost
from vla_rl.rollout.choosing import Chooser, make_chooser
from vla_rl.rollout.collector import Collected, Collector
from vla_rl.rollout.evaluator import EpisodeRecord, play_each_once
from vla_rl.rollout.metrics import rollout_metrics
from vla_rl.rollout.window import FinishedEpisode, Window

__all__ = [
    "Chooser",
    "Collected",
    "Collector",
    "Cost",
    "EpisodeRecord",
    "FinishedEpisode",
    "Window",
    "make_chooser",
    "play_best_of",
    "play_each_once",
    "rollout_metrics",
]
