"""The engine whose policy plays in actors: processes of their own, on this or other machines (Ray)."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from vla_rl.config import TrainConfig, UserError
from vla_rl.distributed.ray_cluster import Share, share_of
from vla_rl.distributed.ray_errors import (
    PeerFailedError,
    PeerLostError,
    PeerSilentError,
    answer_of,
    require_ray,
)
from vla_rl.distributed.world import World
from vla_rl.policies.policy import ForPolicy, Policy, PolicyOutput, has_critic
from vla_rl.rollout.actor import PlayingActor
from vla_rl.rollout.weights import SentWeights, WeightsSent, checksum_of
from vla_rl.types import Observation

_log = logging.getLogger(__name__)

_PATIENCE = 0.2  # seconds between two looks at an actor that is being started again


class ActorEngine(ForPolicy):
    """The `Engine` protocol over `parallel.actors` Ray actors; rank r of R is served by actor r A // R alone.

    A batch is answered as it came, never together with another's: so its numbers do not depend on who was faster. An
    actor that dies is started again, gets the newest weights and is asked the same once more; since the random numbers
    come with the question, the answer is the same.
    """

    def __init__(
        self,
        policy: Policy,
        config: TrainConfig,
        world: World,
        make_policy: Callable[[], Policy],
    ) -> None:
        """Start the actors, or find them. All ranks call it.

        make_policy: what an actor calls for its copy; it travels to the actor's machine. What learning changes is sent
        by `renew`, all else must be the same there.
        """
        super().__init__(policy)
        self._world = world
        self._timeout, self._max_restarts = config.parallel.timeout, config.env.max_restarts
        self._weights, self._losses, self._closed = SentWeights(), 0, False
        count = config.parallel.actors
        self._number = world.rank * count // world.size
        self._name = f"actor {self._number}"
        token = world.broadcast(uuid.uuid4().hex)
        self._actors: list[Any] = []  # of rank 0: all, since it tells them the weights
        if world.rank == 0:
            share = share_of(config.parallel)
            self._actors = [
                _start(f"{token}-{number}", make_policy, config, share) for number in range(count)
            ]
        world.barrier()  # a name is known from when it is given
        self._actor = (
            self._actors[self._number]
            if self._actors
            else require_ray().get_actor(f"{token}-{self._number}")
        )
        if has_critic(policy):
            self.values = self._values

    def act(
        self,
        observation: Observation,
        temperature: float = 1.0,
        uniforms: Float32[np.ndarray, "N K"] | None = None,
    ) -> PolicyOutput:
        """See `Policy.act`; UserError where the actor cannot be had."""
        version = self._version
        acted = self._ask(
            lambda: self._actor.act.remote(version, observation, temperature, uniforms)
        )
        values = None if acted.values is None else torch.from_numpy(acted.values.copy())
        return PolicyOutput(
            torch.from_numpy(acted.tokens.copy()),
            torch.from_numpy(acted.log_probs.copy()),
            values,
            version,
        )

    def _values(self, observation: Observation) -> Float[Tensor, " N"]:
        version = self._version
        found = self._ask(lambda: self._actor.values.remote(version, observation))
        return torch.from_numpy(found.copy())

    @property
    def _version(self) -> int:
        if self._weights.version is None:
            raise RuntimeError("the actors have no weights yet: call renew() first")
        return self._weights.version

    def renew(self, policy: Policy, version: int) -> None:
        """Rank 0 tells all actors what has changed, and hears from each what it has then."""
        sent = self._weights.take(policy, version)
        if self._world.rank == 0:
            reference = require_ray().put(sent)
            for number, actor in enumerate(self._actors):
                self._tell(number, actor, reference, sent)
            if sent.base is None:
                self._require_same_policy(policy)
        self._world.barrier()

    def _tell(self, number: int, actor: Any, reference: Any, sent: WeightsSent) -> None:
        name = f"actor {number}"
        try:
            found = answer_of(actor.renew.remote(reference), self._timeout, name)
        except PeerLostError as error:
            self._note_loss(error)
            found = None
        except PeerSilentError as error:
            raise _silent(error) from error
        except PeerFailedError as error:
            raise UserError(str(error)) from error
        if found is None:
            self._give_whole(actor, name)
        else:
            _require_same(found, sent, name)

    def _require_same_policy(self, policy: Policy) -> None:
        """What is not sent must be the same as well: a checkpoint of the same name may be another elsewhere."""
        asked = [actor.fingerprint.remote() for actor in self._actors]
        own = policy.fingerprint()
        for number, reference in enumerate(asked):
            name = f"actor {number}"
            if self._until_heard(lambda reference=reference: reference, name) != own:
                raise UserError(
                    f"{name} has loaded another policy than the learner: what lies under the path of policy.checkpoint "
                    "(or of its base) differs between the machines"
                )

    def _give_whole(self, actor: Any, name: str) -> None:
        """All weights, to an actor that was started again. Several ranks may do so: they have the same."""
        sent = self._weights.whole()
        found = self._until_heard(lambda: actor.renew.remote(sent), name)
        _require_same(found, sent, name)

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The actor's answer, whatever becomes of it meanwhile."""
        while True:
            answer = self._until_heard(question, self._name)
            if answer is not None:
                return answer
            self._give_whole(self._actor, self._name)

    def _until_heard(self, question: Callable[[], Any], name: str) -> Any:
        until = time.monotonic() + self._timeout
        while True:
            if self._closed:
                raise UserError("the engine was closed while it was asked")
            try:
                return answer_of(question(), max(1.0, until - time.monotonic()), name)
            except PeerLostError as error:
                self._note_loss(error)
                if time.monotonic() > until:
                    raise _silent(error) from error
                time.sleep(_PATIENCE)
            except PeerSilentError as error:
                raise _silent(error) from error
            except PeerFailedError as error:
                raise UserError(str(error)) from error

    def _note_loss(self, error: PeerLostError) -> None:
        if (
            "unavailable" in str(error).lower()
        ):  # it is on its way, and was counted when it was lost
            return
        self._losses += 1
        if self._losses > self._max_restarts:
            raise UserError(
                f"actors died {self._losses} times, more than env.max_restarts = {self._max_restarts} allows. The last "
                f"one: {error}"
            ) from error
        _log.warning(
            "an actor was lost and is started again, %d of at most %d: %s",
            self._losses, self._max_restarts, error,
        )  # fmt: skip

    def __enter__(self) -> ActorEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        for actor in self._actors:
            with suppress(Exception):
                require_ray().kill(actor)

    def actor_pid(self) -> int:
        """Process id of the actor that serves this rank."""
        return self._ask(lambda: self._actor.pid.remote())


def _start(name: str, make_policy: Callable[[], Policy], config: TrainConfig, share: Share) -> Any:
    return (
        require_ray()
        .remote(PlayingActor)
        .options(
            name=name,
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_restarts=config.env.max_restarts,
        )
        .remote(make_policy, config.run.torch_threads, os.getcwd())
    )


def _require_same(found: tuple[int, int], sent: WeightsSent, name: str) -> None:
    expected = (sent.version, checksum_of(sent.checksums))
    if found != expected:
        raise UserError(
            f"{name} plays with other weights than it was sent: version {found[0]}, checksum {found[1]:08x}, expected "
            f"version {expected[0]}, checksum {expected[1]:08x}. Its memory or its checkpoint is damaged"
        )


def _silent(error: Exception) -> UserError:
    return UserError(
        f"{error} (parallel.timeout): it hangs, its machine is gone, or the cluster has no room for it. `ray status` "
        "shows what waits; raise parallel.timeout where it is merely slow"
    )
