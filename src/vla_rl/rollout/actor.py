"""An actor: a process with a copy of the policy, which plays for one or more learners."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64

from vla_rl.config import UserError
from vla_rl.policies.policy import Policy, has_critic
from vla_rl.rollout.weights import WeightsSent, put_in
from vla_rl.runtime.cpus import available_cpus
from vla_rl.types import Observation


class Acted(NamedTuple):
    """What an actor answers; numpy alone, as no GPU's memory travels."""

    tokens: Int64[np.ndarray, "N K"]
    log_probs: Float32[np.ndarray, "N K"]
    values: Float32[np.ndarray, " N"] | None


class PlayingActor:
    """The actor's side.

    Whoever asks says which version is to answer. The answer is None where the actor has another one: it has been
    started again meanwhile and needs the weights.
    """

    def __init__(self, make_policy: Callable[[], Policy], threads: int, folder: str) -> None:
        """make_policy: called on this machine; it must travel to it. threads: of torch, 0 for all cores. folder: from
        where the run was started; paths are relative to it.
        """
        self._make_policy, self._threads, self._folder = make_policy, threads, folder
        self._policy: Policy | None = None
        self._version: int | None = None

    def pid(self) -> int:
        return os.getpid()

    def renew(self, sent: WeightsSent) -> tuple[int, int] | None:
        """Play with these weights from now on; returns version and checksum of what is there now."""
        if sent.base is not None and sent.base != self._version:
            return None
        self._version, checksum = put_in(self._opened, sent)
        return self._version, checksum

    def act(
        self,
        version: int,
        observation: Observation,
        temperature: float,
        uniforms: Float32[np.ndarray, "N K"] | None,
    ) -> Acted | None:
        if version != self._version:
            return None
        output = self._opened.act(observation, temperature, uniforms)
        values = None if output.values is None else output.values.float().cpu().numpy()
        return Acted(output.tokens.cpu().numpy(), output.log_probs.float().cpu().numpy(), values)

    def values(self, version: int, observation: Observation) -> Float32[np.ndarray, " N"] | None:
        policy = self._opened
        if version != self._version or not has_critic(policy):
            return None
        with torch.no_grad():
            return policy.values(observation).float().cpu().numpy()

    def fingerprint(self) -> str:
        """Of all that decides its actions, frozen weights too."""
        return self._opened.fingerprint()

    @property
    def _opened(self) -> Policy:
        if self._policy is None:
            enter_folder(self._folder)
            torch.set_num_threads(self._threads or available_cpus())
            self._policy = self._make_policy()
        return self._policy


def enter_folder(folder: str) -> None:
    """Work from the folder in which the run was started. UserError where this machine does not have it."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(
            f"the folder {folder}, from which the run was started, is not there ({error.strerror}): learners and "
            "actors read checkpoints and the run folder from a file system that all machines share"
        ) from error
