"""Task sampling by recent success, initial states without repetition.

With s_j the success of task j over its last `window` episodes (`prior` before its first), T tasks:

    paper     q_j ~ exp((0.5 - s_j) / tau)      as printed in VLA-RL (arXiv:2505.18719)
    frontier  q_j ~ exp(-|s_j - 0.5| / tau)
    levels    `level_share` of q evenly on the current level's tasks, the rest evenly on all open tasks
    learnable q_j ~ s_j (1 - s_j)               most where success and failure are mixed, none at 0 and 1
    progress  q_j ~ |fast_j - slow_j|           how much success has changed of late, see `Progress`
    uniform   q_j = 1 / T

    P_j = floor + (1 - T floor) q_j

In `paper` the 0.5 cancels in the normalisation: the least solved task gets the most weight, also one that
is never solved, although the paper's text speaks of tasks near 50 %. `frontier` is what that text says;
it still gives a task at 0 or 1 exp(-0.5 / tau) of the weight of one at 1/2, `learnable` and `progress` the floor alone.
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
from vla_rl.curriculum.progress import Progress, in_proportion
from vla_rl.distributed.world import SingleProcess, World
from vla_rl.runtime.seeding import generator
from vla_rl.types import EpisodeSpec


class TaskSampler:
    """Draws (task, initial state) pairs; deterministic by its seed, and exact to continue from its state.

    **Levels.** See `Levels`. The first one opens when the first episode is drawn. Which tasks are easiest is decided by
    what `floor` has let through of closed ones, and by what `observe` was told before the first draw.

    **Initial states.** Each task goes through a fresh permutation of the training states before any state
    comes again. With several shards each has a part of the states for itself and goes through that.

    **Many processes.** The n-th draw of an environment is a function of the seed, the environment, n, and the
    probabilities. Those change in `observe` and `end_batch` alone, which are to be told the same everywhere, between
    two windows of play. So no process needs to ask another one in a window.
    """

    def __init__(
        self,
        config: CurriculumConfig,
        tasks: Sequence[str],
        train_states: Int64[np.ndarray, " n"],
        seed: int,
        shards: int = 1,
    ) -> None:
        """Start without any history.

        Args:
            config: Mode and its numbers.
            tasks: Names, all different; in `levels` the easiest first, as far as known.
            train_states: Numbers of the initial states that training may use.
            seed: 0 or more.
            shards: Into how many parts the initial states are cut; environments of all shards share one part.

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
        self._history: list[deque[bool]] = [deque(maxlen=config.window) for _ in self.tasks]
        self._draws: dict[int, int] = {}  # of each environment
        # episodes of each task in each shard so far: round and place in it
        self._drawn = np.zeros((shards, len(self.tasks)), np.int64)
        # (shard, task): (round, order)
        self._orders: dict[tuple[int, int], tuple[int, Int64[np.ndarray, " n"]]] = {}
        self._levels = Levels(config, len(self.tasks))
        self._progress = Progress(config, len(self.tasks)) if config.mode == "progress" else None

    def draw(self, n: int = 1) -> list[EpisodeSpec]:
        """The next `n` episodes to play."""
        return [self.draw_one() for _ in range(n)]

    def draw_one(self, env: int = 0, shard: int = 0) -> EpisodeSpec:
        """The next episode to play, in an environment of a shard."""
        self._levels.start(self.successes())
        cumulative = np.cumsum(self.probabilities())
        # the last sum may be 1 - 1e-16, and a task without probability must not be hit at the edge
        number = self._draws.get(env, 0)
        self._draws[env] = number + 1
        place = generator(self._seed, "draw", env, number).random() * cumulative[-1]
        task = int(np.searchsorted(cumulative, place, side="right"))
        return EpisodeSpec(self.tasks[task], self._next_state(task, shard))

    def drawn(self, env: int) -> int:
        """How many episodes an environment has drawn."""
        return self._draws.get(env, 0)

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
        if self._progress:
            self._progress.observe(index, bool(success))

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
        if self._progress:
            metrics |= {
                f"curriculum/progress/{task}": float(change)
                for task, change in zip(self.tasks, self._progress.changes(), strict=True)
                if not np.isnan(change)
            }
        return metrics

    def end_window(
        self, outcomes: Sequence[tuple[str, bool]], world: World = SingleProcess()
    ) -> None:
        """Between two windows of play: hear how the episodes of all processes ended, and what the others have drawn.

        outcomes: task and success, the same in every process and in the same order.
        """
        for task, success in outcomes:
            self.observe(task, success)
        self.end_batch()
        for draws, drawn in world.gather((self._draws, self._drawn)):
            self._draws = {
                env: max(draws.get(env, 0), self._draws.get(env, 0))
                for env in draws.keys() | self._draws.keys()
            }
            self._drawn = np.maximum(self._drawn, drawn)

    def state_dict(self) -> dict[str, Any]:
        """All that the next draws depend on, as JSON."""
        return {
            "tasks": list(self.tasks),
            "train_states": self._states_fingerprint(),
            "seed": self._seed,
            "draws": {str(env): number for env, number in sorted(self._draws.items())},
            "history": [[int(x) for x in h] for h in self._history],
            "drawn": self._drawn.tolist(),
            **self._levels.state_dict(),
            **(self._progress.state_dict() if self._progress else {}),
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
        # runs of before drew from one stream, and had no shards
        self._draws = {int(env): int(number) for env, number in state.get("draws", {}).items()}
        for history, saved in zip(self._history, state["history"], strict=True):
            history.clear()
            history.extend(bool(x) for x in saved)
        drawn = np.array(state["drawn"], np.int64)
        if drawn.ndim == 1:
            drawn = np.tile(-(-drawn // len(self._drawn)), (len(self._drawn), 1))
        if drawn.shape != self._drawn.shape:
            raise UserError(
                f"the saved curriculum has {len(drawn)} shards, this run {len(self._drawn)}. Resume with the same "
                "parallel.shards."
            )
        self._drawn = drawn
        self._orders.clear()
        self._levels.load_state_dict(state)
        if self._progress:
            self._progress.load_state_dict(state)

    def _weights(self) -> Float64[np.ndarray, " T"]:
        """The mode's distribution q, before the floor."""
        mode, tau = self.config.mode, self.config.tau
        if mode == "paper":
            return _softmax((0.5 - self.successes()) / tau)
        if mode == "frontier":
            return _softmax(-np.abs(self.successes() - 0.5) / tau)
        if mode == "levels":
            return self._levels.weights(self.successes())
        if mode == "learnable":
            return in_proportion(self.successes() * (1.0 - self.successes()))
        if self._progress:
            return self._progress.weights()
        return np.full(len(self.tasks), 1.0 / len(self.tasks))

    def _next_state(self, task: int, shard: int) -> int:
        """The next initial state of a shard's permutation for a task."""
        shard %= len(self._drawn)
        own = self._states_of(task, shard)
        turn, place = divmod(int(self._drawn[shard, task]), len(own))
        self._drawn[shard, task] += 1
        known = self._orders.get((shard, task))
        if known is None or known[0] != turn:
            # a function of its keys, so that checkpoints need not hold the permutations
            order = generator(self._seed, "states", task, shard, turn).permutation(own)
            known = self._orders[shard, task] = (turn, order)
        return int(known[1][place])

    def _states_of(self, task: int, shard: int) -> Int64[np.ndarray, ...]:
        """The states that a shard has for itself; one of another's where there are more shards than states."""
        mixed = generator(self._seed, "shards", task).permutation(self._states)
        own = mixed[shard :: len(self._drawn)]
        return own if len(own) else mixed[shard % len(mixed)][None]

    def _states_fingerprint(self) -> str:
        return f"{len(self._states)} states, crc {zlib.crc32(self._states.tobytes()):08x}"


def _softmax(logits: Float64[np.ndarray, " T"]) -> Float64[np.ndarray, " T"]:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()
