"""Many environments side by side in simulator processes, driven slot by slot.

    envs = ProcessVectorEnv(EnvConfig(suite="mt5", num_envs=16))
    envs.post_reset(range(16), specs)
    result = envs.wait(range(8))            # the first half is here; the second may still be simulating
    envs.post_step(range(8), actions)       # (8, C, A)

Slot i belongs to worker i mod W, so any contiguous group of slots keeps every worker busy, and a caller can infer for
one half while the other half simulates.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np
import psutil
from jaxtyping import Float32

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, UserError, nearest
from vla_rl.envs.env import EpisodesLostError, Snapshot, require_beginnings
from vla_rl.envs.registry import longest_horizon, no_dense_reward
from vla_rl.envs.registry import make_envs as make_suite_envs
from vla_rl.envs.rendering.egl import worker_devices
from vla_rl.envs.vector.shared_memory import SlotArrays, anonymous_file
from vla_rl.envs.vector.work_times import as_times
from vla_rl.envs.vector.worker import MakeEnvs, WorkerSetup
from vla_rl.envs.vector.worker_process import (
    Worker,
    WorkerFacts,
    WorkerLostError,
    WorkerProcess,
    WorkerSilentError,
)
from vla_rl.runtime.call_times import CallTimes
from vla_rl.runtime.cpus import available_cpus
from vla_rl.types import EpisodeSpec, Observation, StepResult

_log = logging.getLogger(__name__)


class ProcessVectorEnv:
    """`config.num_envs` slots in `config.num_workers` processes; the `VectorEnv` protocol.

    A worker that dies, raises, or is silent for `config.step_timeout` seconds is killed and restarted. That counts as
    one in `infrastructure_errors` however many slots it had. One that was merely silent doubles the time allowed from
    then on, up to `config.start_timeout`. Each slot that was playing comes back from `wait` with
    `lost` set, at once if it had work outstanding, else after the next `post_step`, and needs a `post_reset`.
    More than `config.max_restarts` of them end the run with a UserError that shows the last traceback.
    """

    def __init__(
        self,
        config: EnvConfig,
        make_envs: MakeEnvs = make_suite_envs,
        local_rank: int = 0,
        local_size: int = 1,
        num_workers: int | None = None,
    ) -> None:
        """local_rank, local_size: of the processes of this machine that have environments, this one's number.
        num_workers: instead of what `config` says.
        """
        self.num_envs = config.num_envs
        self.horizon = config.horizon or longest_horizon(config)
        self.infrastructure_errors = 0
        self._config, self._make_envs = config, make_envs
        wanted = num_workers or config.num_workers or available_cpus()
        self._num_workers = min(wanted, config.num_envs)
        self._egl_devices = worker_devices(self._num_workers, local_rank, local_size)
        self._memory = anonymous_file()
        self._workers: list[Worker] = []
        self._closed = False
        self._patience = 1.0  # times config.step_timeout
        self._ticket = 0
        self._outstanding: list[dict[int, list[int]]] = [{} for _ in range(self._num_workers)]
        self._pending: set[int] = set()  # slots with a result to be waited for
        self._playing: set[int] = set()  # slots with an episode in their worker
        self._lost: set[int] = set()  # slots whose episode went down with their worker
        self._instruction = [""] * self.num_envs
        try:
            facts = self._start_workers()
        except BaseException:
            self.close()
            raise
        self.tasks, self.instructions = facts.tasks, facts.instructions
        self.action_dim, self.proprio_dim = facts.action_dim, facts.proprio_dim
        self._arrays = SlotArrays(
            config.num_envs,
            config.image_size,
            facts.proprio_dim,
            self._memory,
            bool(config.wrist_camera),
        )

    def _start_workers(self) -> WorkerFacts:
        for worker in range(self._num_workers):
            self._workers.append(self._new_worker(worker))
        try:
            facts = [worker.wait_ready() for worker in self._workers]
        except WorkerLostError as error:
            remedy = (
                "; on a slow or busy machine raise env.start_timeout"
                if isinstance(error, WorkerSilentError)
                else ""
            )
            raise UserError(f"A simulator process could not start: {error}{remedy}") from error
        return facts[0]

    def _slots_of(self, worker: int) -> tuple[int, ...]:
        return tuple(range(worker, self.num_envs, self._num_workers))

    def _new_worker(self, worker: int) -> Worker:
        slots = self._slots_of(worker)
        devices = self._egl_devices
        setup = WorkerSetup(self._make_envs, self._config, slots, self._memory)
        return WorkerProcess(setup, devices[worker] if devices else None)

    # -- posting -------------------------------------------------------------------------------------

    def post_reset(self, slots: Sequence[int], specs: Sequence[EpisodeSpec]) -> None:
        """Start an episode in each slot. ConfigError for a task that is not in the suite."""
        for spec in specs:
            if spec.task not in self.tasks:
                raise ConfigError(
                    f"task {spec.task!r} is not in suite {self._config.suite!r}."
                    f"{nearest(spec.task, self.tasks)}"
                )
        require_beginnings(specs)
        self._claim(slots, len(specs))
        self._lost.difference_update(slots)
        for worker, rows in self._rows_by_worker(slots).items():
            mine = [slots[row] for row in rows]
            self._playing.update(mine)
            self._post(worker, "reset", mine, [EpisodeSpec(*specs[row]) for row in rows])

    def post_step(self, slots: Sequence[int], actions: Float32[np.ndarray, "S C A"]) -> None:
        """Play one turn in each slot with its chunk of actions."""
        actions = np.asarray(actions, dtype=np.float32)
        if actions.ndim != 3 or actions.shape[2] != self.action_dim:
            raise ValueError(f"actions must be (S, C, {self.action_dim}), got {actions.shape}")
        unstarted = [slot for slot in slots if slot not in self._playing | self._lost]
        if unstarted:
            raise RuntimeError(f"slots {unstarted} have no episode: post_reset first")
        self._claim(slots, len(actions))
        for worker, rows in self._rows_by_worker(slots).items():
            alive = [row for row in rows if slots[row] not in self._lost]
            if alive:
                self._post(worker, "step", [slots[row] for row in alive], actions[alive])

    def _claim(self, slots: Sequence[int], count: int) -> None:
        if len(slots) != count:
            raise ValueError(f"{len(slots)} slots but work for {count}")
        busy = self._pending.intersection(slots)
        if busy or len(set(slots)) != len(slots):
            raise RuntimeError(f"wait for slots {sorted(busy)} before posting to them again")
        self._pending.update(slots)

    def _rows_by_worker(self, slots: Sequence[int]) -> dict[int, list[int]]:
        rows: dict[int, list[int]] = {}
        for row, slot in enumerate(slots):
            rows.setdefault(slot % self._num_workers, []).append(row)
        return rows

    def _post(self, worker: int, command: str, slots: list[int], work: object) -> int | None:
        """Send work; returns its ticket, or None if the worker turned out to be dead."""
        self._ticket += 1
        outstanding = self._outstanding[worker]
        idle = not outstanding
        outstanding[self._ticket] = slots
        try:
            arguments = (slots,) if work is None else (slots, work)
            self._workers[worker].send(command, self._ticket, arguments, idle=idle)
        except WorkerLostError as error:
            self._recover(worker, error)
            return None
        return self._ticket

    # -- collecting ----------------------------------------------------------------------------------

    def wait(self, slots: Sequence[int]) -> StepResult:
        """Block until the posted work of `slots` is done; see `VectorEnv.wait`. Everything returned is a copy."""
        idle = [slot for slot in slots if slot not in self._pending]
        if idle:
            raise RuntimeError(f"nothing was posted to slots {idle}")
        for worker in self._rows_by_worker(slots):
            while self._still_working(worker, slots):
                self._collect(worker)
        self._pending.difference_update(slots)
        rows = np.asarray(slots, dtype=np.int64)
        arrays = self._arrays
        lost = np.array([slot in self._lost for slot in slots], dtype=bool)
        alive = ~lost
        return StepResult(
            slots=rows,
            observation=self._observation(slots),
            rewards=arrays.rewards[rows] * alive,
            terminated=arrays.terminated[rows] & alive,
            truncated=arrays.truncated[rows] & alive,
            simulator_steps=arrays.simulator_steps[rows] * alive,
            lost=lost,
        )

    def _still_working(self, worker: int, slots: Sequence[int]) -> bool:
        return any(not set(slots).isdisjoint(work) for work in self._outstanding[worker].values())

    def _collect(self, worker: int) -> object:
        """Take the worker's next answer, or recover it. Returns the answer."""
        try:
            _, ticket, answer = self._workers[worker].receive(self._step_timeout())
        except WorkerLostError as error:
            self._recover(worker, error)
            return None
        slots = self._outstanding[worker].pop(ticket)
        if answer and isinstance(answer[0], str):
            for slot, instruction in zip(slots, answer, strict=True):
                self._instruction[slot] = instruction
        return answer

    def _observation(self, slots: Sequence[int]) -> Observation:
        rows = np.asarray(slots, dtype=np.int64)
        return Observation(
            images=self._arrays.images[rows],
            instructions=tuple(self._instruction[slot] for slot in slots),
            proprio=self._arrays.proprio[rows],
            time_fraction=self._arrays.time_fraction[rows],
            wrist=None if self._arrays.wrist is None else self._arrays.wrist[rows],
        )

    # -- faults --------------------------------------------------------------------------------------

    def _recover(self, worker: int, error: WorkerLostError) -> None:
        """Replace a dead or hung worker; all its episodes are lost."""
        self.infrastructure_errors += 1
        old = self._workers[worker]
        last_words = str(error).strip()
        if isinstance(error, WorkerSilentError) and not error.starting:
            last_words += self._allow_more_time()
        _log.warning(
            "simulator process %d (pid %d) was lost, restart %d of at most %d: %s",
            worker, old.pid, self.infrastructure_errors, self._config.max_restarts, last_words,
        )  # fmt: skip
        old.kill()
        mine = set(self._slots_of(worker))
        self._lost |= mine & self._playing
        self._playing -= mine
        self._outstanding[worker].clear()
        if self.infrastructure_errors > self._config.max_restarts:
            raise self._too_many_errors(last_words)
        self._workers[worker] = self._new_worker(worker)
        try:
            self._workers[worker].wait_ready()
        except WorkerLostError as again:
            self._recover(worker, again)

    def _too_many_errors(self, last_words: str) -> UserError:
        return UserError(
            f"Simulator processes crashed or hung {self.infrastructure_errors} times, more than "
            f"env.max_restarts = {self._config.max_restarts} allows. The last one: {last_words}\n"
            "If they are merely slow, raise env.step_timeout and env.start_timeout, or lower env.num_workers."
        )

    def _step_timeout(self) -> float:
        """Seconds of silence that are allowed by now."""
        longest = max(self._config.start_timeout, self._config.step_timeout)
        return min(self._patience * self._config.step_timeout, longest)

    def _allow_more_time(self) -> str:
        """Twice as long from now on: what hangs for ever still ends, what is slow gets on."""
        self._patience *= 2
        allowed = f"{self._step_timeout():g} seconds are allowed from now on"
        return f". If it was merely slow, raise env.step_timeout; {allowed}"

    # -- snapshots -----------------------------------------------------------------------------------

    def snapshot(self, slots: Sequence[int]) -> list[Snapshot]:
        """The state of each slot, which must have an episode and no work outstanding."""
        return self._ask(slots, "snapshot")

    def post_restore(self, slots: Sequence[int], snapshots: Sequence[Snapshot]) -> None:
        """Continue the episodes of `snapshots` in `slots`."""
        self._claim(slots, len(snapshots))
        self._lost.difference_update(slots)
        for worker, rows in self._rows_by_worker(slots).items():
            mine = [slots[row] for row in rows]
            self._playing.update(mine)
            self._post(worker, "restore", mine, [snapshots[row] for row in rows])

    def restore(self, slots: Sequence[int], snapshots: Sequence[Snapshot]) -> Observation:
        """Continue the episodes of `snapshots` in `slots`; returns what they show."""
        self.post_restore(slots, snapshots)
        result = self.wait(slots)
        if result.lost.any():
            raise EpisodesLostError("a simulator process was lost during restore")
        return result.observation

    def dense_rewards(self, slots: Sequence[int]) -> Float32[np.ndarray, " S"]:
        """The simulator's own reward of each slot's state; privileged, see `VectorEnv.dense_rewards`."""
        return np.array(self._ask(slots, "dense_rewards"), dtype=np.float32)

    def _ask(self, slots: Sequence[int], command: str) -> list[Any]:
        """One answer for each slot, which must have an episode at rest. All workers are asked before any is heard."""
        if not self._lost.isdisjoint(slots):
            raise EpisodesLostError(f"a simulator process was lost before {command}")
        missing = [s for s in slots if s not in self._playing or s in self._pending]
        if missing:
            raise RuntimeError(f"slots {missing} have no episode at rest for {command}")
        asked = self._rows_by_worker(slots)
        tickets = {
            worker: self._post(worker, command, [slots[row] for row in rows], None)
            for worker, rows in asked.items()
        }
        heard = {worker: self._answer(worker, ticket) for worker, ticket in tickets.items()}
        answers: list[Any] = [None] * len(slots)
        for worker, rows in asked.items():
            found = heard[worker]
            if not isinstance(found, list):
                raise EpisodesLostError(f"a simulator process was lost during {command}")
            if len(found) != len(rows):
                raise no_dense_reward(self._config.suite)
            for row, answer in zip(rows, found, strict=True):
                answers[row] = answer
        return answers

    def _answer(self, worker: int, ticket: int | None) -> object:
        """The answer to one command, after everything posted before it; None if the worker was lost."""
        answer: object = None
        while ticket in self._outstanding[worker]:
            answer = self._collect(worker)
        return answer

    # -- the rest ------------------------------------------------------------------------------------

    def work_times(self) -> dict[str, CallTimes]:
        """See `TimesItsWork`. What a worker did that was lost meanwhile is not known."""
        tickets = [
            self._post(worker, "work_times", [], None) for worker in range(self._num_workers)
        ]
        heard = [self._answer(worker, ticket) for worker, ticket in enumerate(tickets)]
        return as_times([numbers for numbers in heard if isinstance(numbers, list)])

    def memory_bytes(self) -> int:
        """Resident memory of all worker processes together (what they share is counted in each)."""
        total = 0
        for worker in tuple(self._workers):
            with suppress(psutil.NoSuchProcess):  # one that is being replaced
                total += psutil.Process(worker.pid).memory_info().rss
        return total

    def worker_pids(self) -> tuple[int, ...]:
        """Process ids, by worker."""
        return tuple(worker.pid for worker in self._workers)

    def close(self) -> None:
        """End the workers. May be called twice."""
        if self._closed:
            return
        self._closed = True
        for worker in self._workers:
            worker.close()
        os.close(self._memory)

    def __enter__(self) -> ProcessVectorEnv:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
