"""How episodes ended, told to the curriculum of every process alike."""

from __future__ import annotations

from vla_rl.curriculum.sampler import TaskSampler
from vla_rl.distributed.world import World


class Outcomes:
    """Stands between collector and curriculum.

    Alone, the curriculum hears of each episode at once. Among several processes it hears of all their episodes between
    two windows, in the order of the ranks, so that every process has the same success rates and probabilities.
    """

    def __init__(self, curriculum: TaskSampler, world: World) -> None:
        self._curriculum, self._world = curriculum, world
        self._waiting: list[tuple[str, bool]] = []

    def observe(self, task: str, success: bool) -> None:
        """An episode of `task` ended."""
        if self._world.size == 1:
            self._curriculum.observe(task, success)
        else:
            self._waiting.append((task, success))

    def end_window(self) -> None:
        """Between two windows: tell the curriculum what waits, of all processes, and that the batch is complete."""
        for part in self._world.gather(self._waiting):
            for task, success in part:
                self._curriculum.observe(task, success)
        self._waiting = []
        self._curriculum.end_batch()
