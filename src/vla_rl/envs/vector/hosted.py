"""Many environments in simulator hosts, which are Ray actors on this or other machines."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from vla_rl.config.env import EnvConfig
from vla_rl.distributed.ray_errors import (
    PeerFailedError,
    PeerLostError,
    PeerSilentError,
    answer_of,
    require_ray,
)
from vla_rl.envs.registry import as_played, playable
from vla_rl.envs.vector.host import HostSetup, Played, SimulatorHost
from vla_rl.envs.vector.process import ProcessVectorEnv
from vla_rl.envs.vector.worker_process import (
    WorkerFacts,
    WorkerLostError,
    WorkerSilentError,
)

_ABOUT_MEMORY = 10.0  # seconds; a host that is busy for longer counts as nothing


class HostedVectorEnv(ProcessVectorEnv):
    """`config.num_envs` slots in `hosts` simulator hosts; the `VectorEnv` protocol.

    Slot i belongs to host i mod H. A host that dies, or is silent for `timeout` seconds, is started again, on another
    machine if need be, and treated as `ProcessVectorEnv` treats a dead worker: its slots come back `lost`. Simulators
    that die in a host are the host's business; they count here, and against the same `config.max_restarts`.
    """

    def __init__(
        self, config: EnvConfig, hosts: int, timeout: float, cpus: float, workers: int
    ) -> None:
        """timeout: seconds for one answer. cpus: of each host, for Ray. workers: simulator processes in each host.

        UserError where the simulator is not installed on a host's machine.
        """
        self._timeout, self._cpus, self._workers_in_host = timeout, cpus, workers
        self._errors_of: dict[int, int] = {}  # of the host that is there now
        self._played = playable(config)
        super().__init__(as_played(config), self._played.make_envs, num_workers=hosts)

    def _new_worker(self, worker: int) -> HostWorker:
        slots = self._slots_of(worker)
        in_process = self._played.in_process and self._config.num_workers == 0
        config = replace(
            self._config,
            num_envs=len(slots),
            num_workers=0 if in_process else min(self._workers_in_host, len(slots)),
        )
        setup = HostSetup(config, self._make_envs, in_process, slots, worker, self._num_workers)
        self._errors_of[worker] = 0
        return HostWorker(setup, self._timeout, self._cpus, f"simulator host {worker}")

    def _collect(self, worker: int) -> object:
        answer = super()._collect(worker)
        if isinstance(answer, Played):
            self._keep(worker, answer)
        return answer

    def _keep(self, worker: int, played: Played) -> None:
        rows, result = list(played.slots), played.result
        arrays, seen = self._arrays, played.result.observation
        arrays.images[rows], arrays.proprio[rows] = seen.images, seen.proprio
        arrays.time_fraction[rows] = seen.time_fraction
        if arrays.wrist is not None and seen.wrist is not None:
            arrays.wrist[rows] = seen.wrist
        arrays.rewards[rows], arrays.simulator_steps[rows] = result.rewards, result.simulator_steps
        arrays.terminated[rows], arrays.truncated[rows] = result.terminated, result.truncated
        for row, slot in enumerate(rows):
            self._instruction[slot] = seen.instructions[row]
        lost = {slot for slot, is_lost in zip(rows, result.lost, strict=True) if is_lost}
        self._lost |= lost
        self._playing -= lost
        self.infrastructure_errors += played.infrastructure_errors - self._errors_of[worker]
        self._errors_of[worker] = played.infrastructure_errors
        if self.infrastructure_errors > self._config.max_restarts:
            raise self._too_many_errors("see the log of the host's machine")

    def memory_bytes(self) -> int:
        """Resident memory of all simulators, as far as their hosts say so in time."""
        asked = [worker.ask_memory() for worker in self._workers if isinstance(worker, HostWorker)]
        total = 0
        for reference in asked:
            with suppress(PeerLostError, PeerSilentError, PeerFailedError):
                total += answer_of(reference, _ABOUT_MEMORY, "a simulator host")
        return total


class HostWorker:
    """The learner's side of a host; `Worker`'s protocol."""

    def __init__(self, setup: HostSetup, timeout: float, cpus: float, name: str) -> None:
        remote = require_ray().remote(SimulatorHost)
        self._actor = remote.options(
            num_cpus=cpus, num_gpus=0, max_restarts=0, scheduling_strategy="SPREAD"
        ).remote(setup)
        self._timeout, self._name = timeout, name
        self._work: deque[tuple[int, Any]] = deque()  # ticket and what Ray will give
        self._ready = self._actor.open.remote()
        self.pid = 0

    def wait_ready(self) -> WorkerFacts:
        facts = self._heard(lambda: answer_of(self._ready, self._timeout, self._name), True)
        self.pid = facts.pid
        return facts.worker

    def send(self, command: str, ticket: int, work: tuple[Any, ...], *, idle: bool) -> None:
        self._work.append((ticket, getattr(self._actor, command).remote(*work)))

    def receive(self, timeout: float) -> tuple[Any, ...]:
        """The next answer. The host watches over its own simulators, so it may take as long as any other process."""
        ticket, reference = self._work[0]
        answer = self._heard(lambda: answer_of(reference, self._timeout, self._name), False)
        self._work.popleft()
        return ("done", ticket, answer)

    def _heard(self, listen: Callable[[], Any], starting: bool) -> Any:
        try:
            return listen()
        except PeerSilentError as error:
            raise WorkerSilentError(self._timeout, starting) from error
        except (PeerLostError, PeerFailedError) as error:
            raise WorkerLostError(str(error)) from error

    def ask_memory(self) -> Any:
        return self._actor.memory_bytes.remote()

    def kill(self) -> None:
        with suppress(Exception):
            require_ray().kill(self._actor)

    def close(self) -> None:
        """End it; its simulators end with it."""
        self.kill()
