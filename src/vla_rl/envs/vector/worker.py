"""A simulator process: hosts some slots, does what comes through its pipe in order, answers when a batch is done.

Only a start of episodes goes before turns that wait or are half played: other slots need it to be decided for, and the
turns are not needed before that is done. Slots do not depend on each other, so the order changes no result.

A child process (`vla_rl.runtime.children`) that imports no torch. First it gets its `WorkerSetup`.
Messages in: (command, ticket, work). Messages out, with what follows the word:

    ready  tasks, instructions, action_dim, proprio_dim
    done   ticket, answer          busy   (still at it)          loading  (a task, which takes long)
    failed traceback               user_error  text: the user's mistake, or an error that comes again when an
                                               episode is played again: a restart would not mend it
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import UserError
from vla_rl.envs.env import DenselyRewarded, Env
from vla_rl.envs.vector.repeated_errors import PlayedAgain
from vla_rl.envs.vector.shared_memory import SlotArrays
from vla_rl.envs.vector.work_times import TimedWork
from vla_rl.types import EpisodeSpec

MakeEnvs = Callable[[EnvConfig, int], Sequence[Env]]
"""Makes several environments of one process. Must be importable by name: workers receive the name."""

Message = tuple[Any, ...]
"""(command, ticket, work), or ("close",)."""

_STARTS = ("reset", "restore")
_BUSY_EVERY = 1.0  # seconds between signs of life within one batch


class WorkerSetup(NamedTuple):
    """The first message to a worker: what to simulate, and where to leave what comes of it."""

    make_envs: MakeEnvs
    config: EnvConfig
    slots: tuple[int, ...]  # which rows of the shared arrays are this worker's
    memory: int  # descriptor of the shared arrays


def serve(connection: Connection) -> None:
    """What a simulator process does: see `vla_rl.runtime.children`."""
    setup = connection.recv()
    try:
        _serve(connection, setup)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise  # the parent has closed us
    except UserError as error:
        connection.send(("user_error", str(error)))
    except Exception:
        connection.send(("failed", traceback.format_exc()))


def _serve(connection: Connection, setup: WorkerSetup) -> None:
    envs = dict(zip(setup.slots, setup.make_envs(setup.config, len(setup.slots)), strict=True))
    first = envs[setup.slots[0]]
    connection.send(("ready", first.tasks, first.instructions, first.action_dim, first.proprio_dim))
    message = connection.recv()
    config = setup.config
    arrays = SlotArrays(
        config.num_envs,
        config.image_size,
        first.proprio_dim,
        setup.memory,
        bool(config.wrist_camera),
    )
    again = PlayedAgain(config.suite, lambda: setup.make_envs(config, 1)[0])
    worker = SlotWorker(envs, arrays, config.horizon, connection, again)
    while message[0] != "close":
        worker.do(message)
        message = worker.next_message()
    for env in envs.values():
        env.close()


class SlotWorker:
    """The commands. Each method is one; its answer travels back with `done`."""

    def __init__(
        self,
        envs: dict[int, Env],
        arrays: SlotArrays,
        horizon: int,
        connection: Connection,
        again: PlayedAgain,
    ) -> None:
        self._envs, self._arrays, self._horizon = envs, arrays, horizon
        self._connection, self._work = connection, TimedWork(arrays, horizon)
        self._again = again
        self._last_sign = time.monotonic()
        self._loaded: set[str] = set()
        self._waiting: deque[Message] = deque()

    def do(self, message: Message) -> None:
        """Do what one message asks for, and answer."""
        command, ticket, work = message
        answer = getattr(self, command)(*work)
        self._connection.send(("done", ticket, answer))

    def next_message(self) -> Message:
        """The oldest that has not been done."""
        return self._waiting.popleft() if self._waiting else self._connection.recv()

    def _start_others(self) -> None:
        """Between two slots' turns: start the episodes that are asked for meanwhile."""
        while self._connection.poll():
            message = self._connection.recv()
            if message[0] in _STARTS:
                self.do(message)
            else:
                self._waiting.append(message)

    def _load(self, task: str) -> bool:
        """Say so where the next reset is this process's first of a task: its simulator is built then."""
        first = task not in self._loaded
        if first:
            self._loaded.add(task)
            self._connection.send(("loading",))
            self._last_sign = time.monotonic()
        return first

    def _sign_of_life(self) -> None:
        """Building simulators takes seconds; say that we are at it, so as not to be taken for hung."""
        now = time.monotonic()
        if now - self._last_sign > _BUSY_EVERY:
            self._connection.send(("busy",))
            self._last_sign = now

    def reset(self, slots: Sequence[int], specs: Sequence[EpisodeSpec]) -> list[str]:
        # by task, so that the models in use change least often; image at once, while the state is loaded
        for row in sorted(range(len(slots)), key=lambda row: specs[row].task):
            env = self._envs[slots[row]]
            builds = self._load(specs[row].task)
            self._again.starts(slots[row], specs[row])
            with self._again.told(slots[row]):
                self._work.reset(slots[row], env, specs[row], builds=builds)
            self._sign_of_life()
        return [self._envs[slot].instruction for slot in slots]

    def step(self, slots: Sequence[int], actions: Float32[np.ndarray, "S C A"]) -> None:
        for row in sorted(range(len(slots)), key=lambda row: self._envs[slots[row]].instruction):
            env = self._envs[slots[row]]
            self._start_others()
            self._again.plays(slots[row], actions[row])
            with self._again.told(slots[row]):
                self._work.step(slots[row], env, actions[row])
            self._sign_of_life()

    def snapshot(self, slots: Sequence[int]) -> list[dict[str, Any]]:
        """In the order of `slots`."""
        return [self._envs[slot].snapshot() for slot in slots]

    def restore(self, slots: Sequence[int], snapshots: Sequence[dict[str, Any]]) -> list[str]:
        for row in sorted(range(len(slots)), key=lambda row: str(snapshots[row].get("task"))):
            env = self._envs[slots[row]]
            self._load(str(snapshots[row].get("task")))
            self._again.goes_elsewhere(slots[row])
            env.restore(snapshots[row])
            self._arrays.write_reset(slots[row], env, self._horizon)
            self._sign_of_life()
        return [self._envs[slot].instruction for slot in slots]

    def work_times(self, slots: Sequence[int]) -> list[float]:
        """What this process's work cost since this was last asked."""
        return self._work.take()

    def dense_rewards(self, slots: Sequence[int]) -> list[float]:
        """One number per slot; none at all if the simulator has no such reward."""
        envs = [self._envs[slot] for slot in slots]
        return [env.dense_reward() for env in envs if isinstance(env, DenselyRewarded)]
