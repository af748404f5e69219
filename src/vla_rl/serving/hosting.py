"""An engine started for a policy of this process: with its present weights, until it is stopped."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from vla_rl.config.errors import UserError
from vla_rl.policies.openvla.exporting import export_merged
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.serving.addresses import LONGEST_PATH, Address
from vla_rl.serving.client import EngineClient
from vla_rl.serving.messages import Facts
from vla_rl.serving.process import EngineProcess
from vla_rl.serving.wire import ConnectionLostError, EngineError

_POLL = 0.1  # seconds between two looks whether it listens yet


class EngineLostError(UserError):
    """The engine's process has ended and is not started again."""


class HostedEngine:
    """The process, and a conversation with it. `start` again gives another process with the weights of then."""

    def __init__(
        self,
        policy: OpenVLAPolicy,
        python: Path,
        folder: Path,
        timeout: float,
        backend: str = "vllm",
        memory: float = 0.4,
    ) -> None:
        """Nothing is started yet.

        python: that runs it. folder: for its socket, log and weights; the caller removes it. timeout: seconds that
        it may take to start, and to answer. memory: share of a GPU's memory.
        """
        self._sockets = folder
        if (
            len(os.fsencode(folder / "socket")) > LONGEST_PATH
        ):  # the weights stay where there is room
            self._sockets = Path(tempfile.mkdtemp(prefix="vla-rl-", dir="/tmp"))
        self.address = Address.of_path(self._sockets / "socket")
        self._policy, self._python, self._folder = policy, python, folder
        self._timeout, self._backend, self._memory = timeout, backend, memory
        self._process: EngineProcess | None = None
        self._client: EngineClient | None = None

    @property
    def client(self) -> EngineClient:
        assert self._client is not None
        return self._client

    @property
    def process(self) -> EngineProcess:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Start it with the policy's weights, and wait until it answers. EngineLostError where it does not."""
        self.stop()
        self._sockets.mkdir(mode=0o700, exist_ok=True)
        checkpoint = self._folder / "checkpoint"
        dtype = self._policy.model.dtype
        try:
            export_merged(self._policy, checkpoint, dtype)
            words = [
                "engine", "serve", str(checkpoint), "--backend", self._backend, "--socket", str(self.address.path),
                "--dtype", str(dtype).removeprefix("torch."), "--memory", str(self._memory),
            ]  # fmt: skip
            self._process = EngineProcess(self._python, words, self._folder, os.environ)
            self._client = self._wait(self._process)
        finally:
            shutil.rmtree(checkpoint, ignore_errors=True)  # 15 GB of a 7B model; it is read by now

    def stop(self) -> None:
        """End it. May be called twice."""
        if self._client is not None:
            self._client.close()
        if self._process is not None:
            self._process.stop()
        self.address.remove()
        if self._sockets != self._folder:
            shutil.rmtree(self._sockets, ignore_errors=True)
        self._client = self._process = None

    def __enter__(self) -> HostedEngine:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _wait(self, process: EngineProcess) -> EngineClient:
        end = time.monotonic() + self._timeout
        assert self.address.path is not None
        while time.monotonic() < end:
            if not process.alive:
                raise EngineLostError(f"the engine did not start: {process.obituary()}")
            if self.address.path.exists():
                with suppress(ConnectionLostError):
                    return connect(self.address, self._policy, self._timeout, self._backend)
            time.sleep(_POLL)
        raise EngineLostError(
            f"the engine did not start within {self._timeout:g} s (parallel.timeout). {process.last_words()}"
        )


def connect(
    address: Address, policy: OpenVLAPolicy, timeout: float, backend: str = "vllm"
) -> EngineClient:
    """Ask an engine to play for `policy`. Raises UserError where it takes other images or ids, or is no engine."""
    client = EngineClient(address, timeout)
    try:
        require_same_model(client.facts, policy, backend, client.source)
    except BaseException:
        client.close()
        raise
    return client


def require_same_model(facts: Facts, policy: OpenVLAPolicy, backend: str, source: str) -> None:
    """Raise EngineError unless an engine is of the wanted kind and takes what the policy takes."""
    model = policy.description.model
    wanted = {
        "engine": backend,
        "image_size": model.image_size,
        "bos_token": model.language.bos_token,
        "first_action": model.language.text_vocab - model.action_bins,
        "action_bins": model.action_bins,
    }
    for name, value in wanted.items():
        found = getattr(facts, name)
        if found != value:
            raise EngineError(
                f"{source} serves another model: its {name} is {found}, here it is {value}"
            )
