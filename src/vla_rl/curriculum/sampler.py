"""Task sampling by recent success, initial states without repetition.

With s_j the success of task j over its last `window` episodes (`prior` before its first), T tasks:

    paper     q_j ~ exp((0.5 - s_j) / tau)      as printed in VLA-RL (arXiv:2505.18719)
    frontier  q_j ~ exp(-|s_j - 0.5| / tau)
    levels    `level_share` of q evenly on the current level's tasks, the rest evenly on all open tasks
    uniform   q_j = 1 / T

    P_j = floor + (1 - T floor) q_j

In `paper` the 0.5 cancels in the normalisation: the least solved task gets the most weight, also one that
is never solved, although the paper's text speaks of tasks near 50 %. `frontier` is what that text says.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from vla_rl.config import ConfigError, CurriculumConfig, UserError, nearest, require
from vla_rl.curriculum.levels import Levels
from vla_rl.types import EpisodeSpec


class TaskSampler:
    """Draws (task, initial state) pairs; deterministic by its seed, and exact to continue from its state.

    **Levels.** See `Levels`. The first one opens when the first episode is drawn. Which tasks are easiest is decided by
    what `floor` has let through of closed ones, and by what `observe` was told before the first draw.

    **Initial states.** Each task goes through a fresh permutation of the training states before any state
    comes again.
    """

    def __init__(
        self,
        config: CurriculumConfig,
        tasks: Sequence[str],
        train_states: Int64[np.ndarray, " n"],
        seed: int,
    ) -> None:
        """Start without any history.

        Args:
            config: Mode and its numbers.
            tasks: Names, all different; in `levels` the easiest first, as far as known.
            train_states: Numbers of the initial states that training may use.
            seed: 0 or more.

        Raises:
            ConfigError: No or repeated tasks, no states, a negative seed, or a floor that T tasks cannot all have.
        """
        require(len(tasks) > 0, "the curriculum needs at least one task, got none")
        require(
            len(set(tasks)) == len(tasks), f"curriculum tasks must differ, got {', '.join(tasks)}"
        )
        require(len(train_states) > 0, "the curriculum needs training states, got none")
        require(seed >= 0, f"the curriculum's seed must be 0 or more, got {seed}")
        require(
            config.floor * len(tasks) <= 1 + 1e-9,
            f"curriculum.floor {config.floor:g} for each of {len(tasks)} tasks sums to more than 1; "
            f"choose at most {1 / len(tasks):.4g}",
        )
        self.config = config
        self.tasks = tuple(tasks)
        self._index = {task: i for i, task in enumerate(self.tasks)}
        self._states = np.asarray(train_states, dtype=np.int64)
        self._seed = seed
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._history: list[deque[bool]] = [deque(maxlen=config.window) for _ in self.tasks]
        self._drawn = [0] * len(self.tasks)  # episodes of each task so far: round and place in it
        self._orders: dict[int, tuple[int, Int64[np.ndarray, " n"]]] = {}  # task: (round, order)
        self._levels = Levels(config, len(self.tasks))

    def draw(self, n: int = 1) -> list[EpisodeSpec]:
        """The next `n` episodes to play."""
        return [self.draw_one() for _ in range(n)]

    def draw_one(self) -> EpisodeSpec:
        """The next episode to play."""
        self._levels.start(self.successes())
        cumulative = np.cumsum(self.probabilities())
        # the last sum may be 1 - 1e-16, and a task without probability must not be hit at the edge
        place = self._rng.random() * cumulative[-1]
        task = int(np.searchsorted(cumulative, place, side="right"))
        return EpisodeSpec(self.tasks[task], self._next_state(task))

    def draw_group(self, size: int) -> list[EpisodeSpec]:
        """One draw, `size` times: episodes from the same initial state, to be compared with each other."""
        require(size >= 1, f"a group needs at least one episode, got {size}")
        return [self.draw_one()] * size

    def observe(self, task: str, success: bool) -> None:
        """Note how an episode ended. A crashed simulator is no outcome: never report one here."""
        if task not in self._index:
            raise ConfigError(f"unknown task {task!r}.{nearest(task, self.tasks)}")
        index = self._index[task]
        self._history[index].append(bool(success))
        self._levels.observe(index, bool(success))

    def end_batch(self) -> None:
        """An iteration's episodes have all been observed: its success decides about the next level."""
        self._levels.end_batch(self.successes())

    def successes(self) -> Float64[np.ndarray, " T"]:
        """Recent success of each task, the prior where it has not been played."""
        return np.array([np.mean(h) if h else self.config.prior for h in self._history])

    def measured(self) -> Float64[np.ndarray, " T"]:
        """Recent success of each task, NaN where it has not been played."""
        return np.array([np.mean(h) if h else np.nan for h in self._history])

    def probabilities(self) -> Float64[np.ndarray, " T"]:
        """Probability of each task in the next draw; sums to 1, none below the floor."""
        share = self.config.floor * len(self.tasks)
        return self.config.floor + max(0.0, 1.0 - share) * self._weights()

    def metrics(self) -> dict[str, float]:
        """Probabilities, their entropy in nats, and the recent success of the tasks that were played.

        `curriculum/success_mean` is the mean over those tasks, each with the same weight however often it is played.
        """
        probabilities = self.probabilities()
        metrics = {
            f"curriculum/p/{task}": float(p)
            for task, p in zip(self.tasks, probabilities, strict=True)
        }
        positive = probabilities[probabilities > 0]
        metrics["curriculum/entropy"] = float(-(positive * np.log(positive)).sum())
        metrics |= {
            f"curriculum/success/{task}": float(np.mean(h))
            for task, h in zip(self.tasks, self._history, strict=True)
            if h
        }
        played = self.measured()[~np.isnan(self.measured())]
        if len(played):
            metrics["curriculum/success_mean"] = float(played.mean())
        if self.config.mode == "levels":
            metrics["curriculum/level"] = float(max(1, len(self._levels.open)))
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """All that the next draws depend on, as JSON."""
        return {
            "tasks": list(self.tasks),
            "train_states": self._states_fingerprint(),
            "seed": self._seed,
            "rng": self._rng.bit_generator.state,
            "history": [[int(x) for x in h] for h in self._history],
            "drawn": list(self._drawn),
            **self._levels.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; the seed comes from there too.

        Raises:
            UserError: If the state belongs to other tasks or other training states.
        """
        if list(state["tasks"]) != list(self.tasks):
            raise UserError(
                f"the saved curriculum is for the tasks {', '.join(state['tasks'])}; this run has "
                f"{', '.join(self.tasks)}. Resume with the suite the run was started with."
            )
        if state["train_states"] != self._states_fingerprint():
            raise UserError(
                f"the saved curriculum is for other training states ({state['train_states']}) than this run's "
                f"({self._states_fingerprint()}). Resume with the same env.initial_states and env.held_out."
            )
        self._seed = int(state["seed"])
        self._rng.bit_generator.state = state["rng"]
        for history, saved in zip(self._history, state["history"], strict=True):
            history.clear()
            history.extend(bool(x) for x in saved)
        self._drawn = [int(x) for x in state["drawn"]]
        self._orders.clear()
        self._levels.load_state_dict(state)

    def _weights(self) -> Float64[np.ndarray, " T"]:
        """The mode's distribution q, before the floor."""
        mode, tau = self.config.mode, self.config.tau
        if mode == "paper":
            return _softmax((0.5 - self.successes()) / tau)
        if mode == "frontier":
            return _softmax(-np.abs(self.successes() - 0.5) / tau)
        if mode == "levels":
            return self._levels.weights(self.successes())
        return np.full(len(self.tasks), 1.0 / len(self.tasks))

    def _next_state(self, task: int) -> int:
        """The next initial state of a task's permutation."""
        turn, place = divmod(self._drawn[task], len(self._states))
        self._drawn[task] += 1
        known = self._orders.get(task)
        if known is None or known[0] != turn:
            # a function of (seed, task, round), so that checkpoints need not hold the permutations
            order = np.random.default_rng([self._seed, task, turn]).permutation(self._states)
            known = self._orders[task] = (turn, order)
        return int(known[1][place])

    def _states_fingerprint(self) -> str:
        return f"{len(self._states)} states, crc {zlib.crc32(self._states.tobytes()):08x}"


def _softmax(logits: Float64[np.ndarray, " T"]) -> Float64[np.ndarray, " T"]:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()
