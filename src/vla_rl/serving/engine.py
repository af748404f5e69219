"""The player of a run whose actions an engine in another process decides.

What is lost beside playing with the learner's own policy: the engine draws its own random numbers, so that a run cannot
be replayed by its seed; and it gives no hidden states, so that values cost the learner a pass of its own.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from vla_rl.config import ConfigError, TrainConfig
from vla_rl.distributed.world import World
from vla_rl.policies.openvla.exporting import MergedWeights
from vla_rl.policies.openvla.model import OpenVLA
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.policy import ForPolicy, Policy, PolicyOutput
from vla_rl.serving.addresses import Address
from vla_rl.serving.client import EngineClient
from vla_rl.serving.hosting import EngineLostError, HostedEngine, connect
from vla_rl.serving.messages import COLDEST
from vla_rl.serving.process import engine_python
from vla_rl.serving.staging import require_served, served_head_dim
from vla_rl.serving.wire import DTYPES, ConnectionLostError
from vla_rl.types import Observation

LOG = logging.getLogger(__name__)
T = TypeVar("T")

_AGAIN = "the engine has died again within one iteration, and is not started a third time: {}"


class ServedEngine(ForPolicy):
    """`rollout.engine.Engine` on an engine that is started here, or that runs already.

    With several ranks, rank 0 starts it and gives it new weights; all ask it.
    """

    def __init__(
        self, policy: Policy, config: TrainConfig, world: World, backend: str = "vllm"
    ) -> None:
        """Check what can be checked before anything is started.

        backend: what `vla-rl engine serve` is told to play with. Raises UserError for a policy that the backend does
        not serve, ConfigError where vLLM's environment is missing.
        """
        if isinstance(policy, OpenVLAPolicy) and policy.turn_actions.has_fixed:
            raise ConfigError(
                f"parallel.engine {backend} decides every token of a turn, and {config.env.suite!r} has robots whose "
                "actions differ in size: take parallel.engine own"
            )
        if isinstance(policy, OpenVLAPolicy) and policy.turn_actions.end_token is not None:
            raise ConfigError(
                f"parallel.engine {backend} decides a fixed number of tokens a turn, and this policy's FAST tokens end "
                "where they may: take parallel.engine own"
            )
        if not isinstance(policy, OpenVLAPolicy) or policy.kind != OpenVLA.kind:
            raise ConfigError(
                f"parallel.engine {backend} serves policies of OpenVLA's class alone, this one is of type "
                f"{policy.kind!r}: take parallel.engine own"
            )
        super().__init__(policy)
        self._policy: OpenVLAPolicy = policy
        self._config, self._world, self._backend = config, world, backend
        self._parallel = config.parallel
        self._given = (
            Address.parse(self._parallel.engine_address) if self._parallel.engine_address else None
        )
        if self._given is not None:
            self._given.token  # noqa: B018  raises where it is missing
        if backend == "vllm":
            require_served(policy.description.model)
            if policy.device.type == "cpu":
                served_head_dim(policy.description.model.language, on_cpu=True)
        self._python = None if self._given else engine_python(self._parallel.engine_python)
        self._folder: Path | None = None
        self._hosted: HostedEngine | None = None
        self._client: EngineClient | None = None
        self._version: int | None = None
        self._restarted = False
        self.values = policy.values

    # --- what the collector asks

    def act(
        self,
        observation: Observation,
        temperature: float = 1.0,
        uniforms: Float32[np.ndarray, "N K"] | None = None,
    ) -> PolicyOutput:
        """See `Policy.act`. `uniforms` become the seeds of the engine's own random numbers, one for each row."""
        if temperature != 0 and temperature < COLDEST:
            raise ValueError(
                f"temperature must be 0 (greedy) or at least {COLDEST}, got {temperature}"
            )
        policy = self._policy
        raw = policy.processor.raw(observation.images, torch.device("cpu"))
        prompts = policy.processor.prompts(observation.instructions, torch.device("cpu"))
        images = raw.to(torch.uint8)  # integers after every stage
        lengths = torch.from_numpy(prompts.lengths)
        seeds = row_seeds(len(observation), uniforms)
        ids, log_probs = self._ask(
            lambda engine: engine.act(
                images, prompts.ids, lengths, seeds, policy.num_tokens, temperature
            )
        )
        tokens = policy.description.model.language.text_vocab - 1 - ids
        if temperature == 0:
            log_probs = torch.zeros_like(log_probs)  # the choice is certain
        with torch.no_grad():
            values = policy.values(observation).clone()
        device = policy.device
        return PolicyOutput(tokens.to(device), log_probs.to(device), values, self._version)

    def renew(self, policy: Policy, version: int) -> None:
        """Play with the weights of `policy` from now on, see `Engine.renew`."""
        assert policy is self._policy
        self._version = version
        if self._world.rank == 0:
            self._ask(lambda engine: self._send(engine, everything=False))
            self._restarted = False
        self._world.barrier()

    # --- its life

    def __enter__(self) -> ServedEngine:
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _open(self) -> None:
        world, where = self._world, ""
        if world.rank == 0:
            where = str(self._given or self._start())
            if self._given is not None:
                self._client = connect(
                    self._given, self._policy, self._parallel.timeout, self._backend
                )
                self._send(self._client, everything=True)
            facts = self._conversation.facts
            LOG.warning(
                "%s decides the actions (%s, %s): it draws its own random numbers, so that the same seed does not play "
                "the same run again", facts.library, facts.device, facts.dtype,
            )  # fmt: skip
        where = world.broadcast(where)
        if world.rank > 0:
            address = Address.parse(where)
            self._client = connect(address, self._policy, self._parallel.timeout, self._backend)

    def _start(self) -> Address:
        assert self._python is not None
        self._folder = Path(tempfile.mkdtemp(prefix="vla-rl-engine-"))
        self._hosted = HostedEngine(
            self._policy, self._python, self._folder, self._parallel.timeout, self._backend,
            self._parallel.engine_memory,
        )  # fmt: skip
        self._hosted.start()
        return self._hosted.address

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._hosted is not None:
            self._hosted.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._client = self._hosted = self._folder = None

    @property
    def _conversation(self) -> EngineClient:
        if self._hosted is not None:
            return self._hosted.client
        assert self._client is not None
        return self._client

    def _send(self, engine: EngineClient, everything: bool) -> None:
        """Send what was learned, or all weights, in the engine's precision."""
        merged = MergedWeights(self._policy)
        dtype = DTYPES[engine.facts.dtype]
        names = list(merged.base) if everything else merged.learned
        engine.renew({name: merged.tensor(name).to(dtype) for name in names}, self._version or 0)

    def _ask(self, question: Callable[[EngineClient], T]) -> T:
        """Ask the engine; if it has died, start it again with the newest weights and ask that one, but once."""
        try:
            return question(self._conversation)
        except ConnectionLostError as error:
            if self._hosted is None or self._world.size > 1:
                raise EngineLostError(
                    f"{self._conversation.source} is lost ({error}): go on with the run from its last checkpoint, with "
                    "an engine that runs"
                ) from error
            how = self._hosted.process.obituary()
            if self._restarted:
                raise EngineLostError(_AGAIN.format(how)) from error
        self._restarted = True
        LOG.warning("the engine has died and is started again with the newest weights: %s", how)
        self._hosted.start()
        try:
            return question(self._hosted.client)
        except ConnectionLostError as error:
            raise EngineLostError(_AGAIN.format(self._hosted.process.obituary())) from error


def row_seeds(count: int, uniforms: Float32[np.ndarray, "N K"] | None) -> Int64[Tensor, " N"]:
    """A seed for each row: a digest of its uniform numbers, or drawn from torch. ValueError for NaN."""
    if uniforms is None:
        return torch.randint(0, 2**62, (count,), dtype=torch.int64)
    if len(uniforms) != count or not np.isfinite(uniforms).all():
        raise ValueError("an engine takes one row of finite uniform numbers for each observation")
    rows = np.ascontiguousarray(uniforms, np.float32)
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests])
