"""An engine's socket: many clients, one question at a time.

A thread for each client reads and checks; the thread that called `serve` does the work, in the order in which questions
came. So weights are never exchanged in the middle of an answer, and libraries that bind themselves to a thread are
called from that one.
"""

from __future__ import annotations

import logging
import math
import queue
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vla_rl.config.errors import UserError
from vla_rl.runtime.external import parse_json
from vla_rl.serving import wire
from vla_rl.serving.addresses import Address, same
from vla_rl.serving.backend import Backend, Question
from vla_rl.serving.messages import COLDEST, MOST_ROWS, Act, Hello, Refused, Status, Weights
from vla_rl.serving.wire import ConnectionLostError, Message, checksum

LOG = logging.getLogger(__name__)

HELLO_TIMEOUT = 30.0
"""Seconds in which a client must say who it is."""
MOST_CLIENTS = 256
_SLACK = 2**20  # bytes of what is refused with a better reason than its size


@dataclass
class _Job:
    work: Message
    answer: Future[Message]


class EngineServer:
    """Serves one backend until `stop` is called, or it fails in the middle of new weights."""

    def __init__(
        self, backend: Backend, address: Address, listener: socket.socket | None = None
    ) -> None:
        """Listen, unless a `listener` on the address is given.

        Raises UserError where that cannot be done, ConfigError without a token that the address needs.
        """
        self.backend, self.address = backend, address
        self._token = address.token
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._version: int | None = None
        self._checksum, self._rows, self._seconds = "", 0, 0.0
        self._places = threading.Semaphore(MOST_CLIENTS)
        self._ended = False
        self._listener = listener or address.listen()

    def serve(self) -> None:
        """Answer until `stop`. Raises what the backend raises while it takes new weights."""
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            while (job := self._jobs.get()) is not None:
                self._do(job)
        finally:
            self.close()

    def stop(self) -> None:
        """End `serve`, from any thread."""
        self._jobs.put(None)

    def close(self) -> None:
        """Listen no longer, and leave nobody waiting."""
        self._ended = True
        self._listener.close()
        self.address.remove()
        with suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job.answer.set_result(refused("the engine has ended"))

    # --- the working thread

    def _do(self, job: _Job) -> None:
        try:
            job.answer.set_result(self._worked(job.work))
        except UserError as error:
            job.answer.set_result(refused(str(error)))
        except Exception as error:
            job.answer.set_result(refused(f"{type(error).__name__}: {error}"))
            if job.work.kind == "weights":
                time.sleep(0.2)  # the answer is on its way
                raise
            LOG.exception("a question failed")

    def _worked(self, work: Message) -> Message:
        if work.kind == "weights":
            asked = parse_json(work.text, Weights, source="weights", remedy="")
            self._check_weights(asked, work.arrays)
            self.backend.load(work.arrays)
            self._version, self._checksum = asked.version, asked.checksum
            return Message("renewed", asdict(self._status()))
        question = self._question(work)
        started = time.perf_counter()
        tokens, log_probs = self.backend.act(question)
        self._seconds += time.perf_counter() - started
        self._rows += len(question.prompts)
        fields = {"version": self._version}
        return Message("acted", fields, {"tokens": tokens, "log_probs": log_probs.float()})

    def _status(self) -> Status:
        return Status(self._version, self._checksum, self._rows, self._seconds)

    # --- what is asked, checked

    def _question(self, work: Message) -> Question:
        """Raises UserError for what the engine cannot answer."""
        asked = parse_json(work.text, Act, source="act", remedy="")
        facts = self.backend.facts
        if 0 < asked.temperature < COLDEST:
            raise UserError(
                f"temperature: expected 0, or at least {COLDEST}, got {asked.temperature}"
            )
        images, ids, lengths, seeds = _arrays(work, "images", "ids", "lengths", "seeds")
        size, rows = facts.image_size, len(images)
        _require_shape("images", images, torch.uint8, (rows, 3, size, size))
        _require_shape("lengths", lengths, torch.int64, (rows,))
        _require_shape("seeds", seeds, torch.int64, (rows,))
        width = ids.shape[1] if ids.ndim == 2 else 0
        _require_shape("ids", ids, torch.int64, (rows, width))
        if not 1 <= rows <= MOST_ROWS:
            raise UserError(f"images: expected 1 to {MOST_ROWS} of them, got {rows}")
        if not (int(lengths.min()) >= 1 and int(lengths.max()) <= width):
            raise UserError(f"lengths: expected 1 to {width}, the width of ids")
        if int(lengths.max()) + asked.count > facts.longest:
            raise UserError(
                f"prompt and action have {int(lengths.max()) + asked.count} tokens, the engine takes {facts.longest}"
            )
        if int(seeds.min()) < 0:
            raise UserError("seeds: expected none below 0")
        prompts = [row[:length].tolist() for row, length in zip(ids, lengths.tolist(), strict=True)]
        for row in prompts:
            if row[0] != facts.bos_token or min(row) < 0 or max(row) >= facts.first_action:
                raise UserError(
                    f"ids: expected text ids below {facts.first_action} that begin with {facts.bos_token}, got "
                    f"{row[:8]} ..."
                )
        return Question(images, prompts, seeds.tolist(), asked.count, asked.temperature)

    def _check_weights(self, asked: Weights, tensors: Mapping[str, Tensor]) -> None:
        """Raise UserError unless all of it is as it was sent and as the model has it."""
        shapes = self.backend.shapes
        unknown = [name for name in tensors if name not in shapes]
        if unknown or not tensors:
            raise UserError(f"weights: the model has no {unknown[0] if unknown else 'empty set'!r}")
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != tuple(shapes[name]) or not tensor.is_floating_point():
                raise UserError(
                    f"weights: {name} has shape {tuple(tensor.shape)} and type {tensor.dtype}, expected numbers of "
                    f"shape {tuple(shapes[name])}"
                )
        if checksum(tensors) != asked.checksum:
            raise UserError("weights: the checksum does not fit: they changed on the way")
        bad = next((n for n, t in tensors.items() if not bool(torch.isfinite(t).all())), None)
        if bad is not None:
            raise UserError(f"weights: {bad} holds numbers that are not finite")

    # --- one thread for each client

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            if not self._places.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(HELLO_TIMEOUT)
                if not self._admit(connection):
                    return
                connection.settimeout(None)
                while True:
                    wire.send(connection, self._answer(self._receive(connection, self._most_bytes)))
        except ConnectionLostError:
            pass
        except UserError as error:
            LOG.warning("a client was sent away: %s", error)
        finally:
            self._places.release()

    def _admit(self, connection: socket.socket) -> bool:
        """Whether the client has said a hello that fits, and the answer."""
        hello = self._receive(connection, lambda _: 0)
        try:
            if hello.kind != "hello":
                raise UserError(f"expected a hello first, got {hello.kind!r}")
            token = parse_json(hello.text, Hello, source="hello", remedy="").token
            if not same(token, self._token):
                raise UserError("the password is another one")
        except UserError as error:
            wire.send(connection, refused(str(error)))
            return False
        wire.send(connection, Message("facts", asdict(self.backend.facts)))
        return True

    def _receive(self, connection: socket.socket, most_bytes: Any) -> Message:
        """Read a message; what is none is answered, and ends the conversation."""
        try:
            return wire.receive(connection, "the client", most_bytes)
        except ConnectionLostError:
            raise
        except UserError as error:
            wire.send(connection, refused(str(error)))
            raise

    def _answer(self, message: Message) -> Message:
        if self._ended:
            raise ConnectionLostError("the engine has ended")
        if message.kind == "status":
            return Message("status", asdict(self._status()))
        if message.kind not in ("act", "weights"):
            return refused(f"there is no question of kind {message.kind!r}")
        job = _Job(message, Future())
        self._jobs.put(job)
        return job.answer.result()

    def _most_bytes(self, kind: str) -> int:
        facts = self.backend.facts
        if kind == "weights":
            return 4 * facts.weight_count + _SLACK
        if kind == "act":
            return MOST_ROWS * (3 * facts.image_size**2 + 8 * (facts.longest + 2))
        return 0


def refused(reason: str) -> Message:
    """The answer to what cannot be done."""
    return Message("refused", asdict(Refused(reason[:4000])))


def count_numbers(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers tensors of these shapes have together."""
    return sum(math.prod(shape) for shape in shapes.values())


def _arrays(work: Message, *names: str) -> list[Tensor]:
    missing = [name for name in names if name not in work.arrays]
    if missing or len(work.arrays) != len(names):
        raise UserError(f"expected the arrays {', '.join(names)}, got {', '.join(work.arrays)}")
    return [work.arrays[name] for name in names]


def _require_shape(name: str, found: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if found.dtype != dtype or tuple(found.shape) != shape:
        raise UserError(
            f"{name}: expected {dtype} of shape {shape}, got {found.dtype} of shape {tuple(found.shape)}"
        )
