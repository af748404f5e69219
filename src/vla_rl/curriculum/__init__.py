"""Which task, and which of its initial states, the next episode plays."""

from vla_rl.curriculum.sampler import TaskSampler

__all__ = ["TaskSampler"]
