"""Asking an engine, and checking what it answers."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import asdict
from types import TracebackType
from typing import TypeVar

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from vla_rl.runtime.external import parse_json
from vla_rl.serving import wire
from vla_rl.serving.addresses import Address
from vla_rl.serving.messages import Act, Facts, Hello, Refused, Status, Weights
from vla_rl.serving.wire import ConnectionLostError, EngineError, Message, ProtocolError

T = TypeVar("T")

_ANSWER_BYTES = 2**31
"""No answer is larger: tokens and log-probs."""


class EngineClient:
    """One conversation with an engine. Not for several threads at once."""

    def __init__(self, address: Address, timeout: float, token: str | None = None) -> None:
        """Connect and say hello.

        timeout: seconds that an answer may take. token: the password; None takes the address's own.
        Raises ConnectionLostError where nobody listens, ProtocolError for an engine of another version or none at all.
        """
        self.address, self.source = address, f"the engine at {address}"
        token = address.token if token is None else token
        try:
            self._connection = address.connect(timeout)
        except OSError as error:
            raise ConnectionLostError(
                f"nobody answers at {address} ({error.strerror or error})"
            ) from error
        try:
            self.facts = self._fields(
                self._ask(Message("hello", asdict(Hello(token))), "facts"), Facts
            )
        except BaseException:
            self.close()
            raise

    def act(
        self,
        images: UInt8[Tensor, "N 3 S S"],
        ids: Int64[Tensor, "N L"],
        lengths: Int64[Tensor, " N"],
        seeds: Int64[Tensor, " N"],
        count: int,
        temperature: float,
    ) -> tuple[Int64[Tensor, "N K"], Float32[Tensor, "N K"]]:
        """See `Backend.act`. EngineError where the engine refuses, or answers what is no answer to this."""
        arrays = {"images": images, "ids": ids, "lengths": lengths, "seeds": seeds}
        answer = self._ask(Message("act", asdict(Act(count, temperature)), arrays), "acted")
        tokens, log_probs = answer.arrays.get("tokens"), answer.arrays.get("log_probs")
        shape, facts = (len(images), count), self.facts
        if (
            tokens is None or log_probs is None
            or tuple(tokens.shape) != shape or tuple(log_probs.shape) != shape
            or tokens.dtype != torch.int64 or log_probs.dtype != torch.float32
        ):  # fmt: skip
            raise ProtocolError(f"{self.source} did not answer with {shape} tokens and log-probs")
        highest = facts.first_action + facts.action_bins
        if int(tokens.min()) < facts.first_action or int(tokens.max()) >= highest:
            raise EngineError(
                f"{self.source} chose ids {int(tokens.min())}..{int(tokens.max())}, actions are "
                f"{facts.first_action}..{highest - 1}"
            )
        if not bool(torch.isfinite(log_probs).all()):
            raise EngineError(f"{self.source} gave log-probs that are not finite")
        return tokens, log_probs

    def renew(self, tensors: Mapping[str, Tensor], version: int) -> Status:
        """Give it these weights. EngineError unless it says that it has them."""
        digest = wire.checksum(tensors)
        message = Message("weights", asdict(Weights(version, digest)), tensors)
        status = self._fields(self._ask(message, "renewed"), Status)
        if (status.version, status.checksum) != (version, digest):
            raise EngineError(
                f"{self.source} has weights of version {status.version}, not {version}"
            )
        return status

    def status(self) -> Status:
        return self._fields(self._ask(Message("status"), "status"), Status)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> EngineClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, question: Message, expected: str) -> Message:
        connection: socket.socket = self._connection
        try:
            wire.send(connection, question)
        except ConnectionLostError:
            # an engine that refuses a question may not have read it to its end
            answer = self._last_words(connection)
        else:
            answer = wire.receive(connection, self.source, lambda _: _ANSWER_BYTES)
        if answer.kind == "refused":
            reason = self._fields(answer, Refused).reason
            raise EngineError(f"{self.source} refuses: {reason}")
        if answer.kind != expected:
            raise ProtocolError(f"{self.source} answered {answer.kind!r} instead of {expected!r}")
        return answer

    def _last_words(self, connection: socket.socket) -> Message:
        return wire.receive(connection, self.source, lambda _: 0)

    def _fields(self, answer: Message, schema: type[T]) -> T:
        return parse_json(json.dumps(dict(answer.fields)), schema, source=self.source, remedy="")
