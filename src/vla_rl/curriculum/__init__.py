"""Which task, and which of its initial states, the next episode plays, and where on the way it starts."""

from vla_rl.curriculum.sampler import TaskSampler
from vla_rl.curriculum.starts import Starts, Way

__all__ = ["Starts", "TaskSampler", "Way"]
