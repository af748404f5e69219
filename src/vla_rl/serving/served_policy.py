"""One of our policies as others may ask it: picture and instruction in, actions as our simulators apply them out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl import __version__
from vla_rl.config import EnvConfig
from vla_rl.config.serialize import to_json
from vla_rl.envs.registry import benchmark
from vla_rl.policies.policy import Policy, decoded, tokens_of_turn
from vla_rl.runtime.images import make_square
from vla_rl.runtime.resizing import resize
from vla_rl.runtime.seeding import generator
from vla_rl.serving.openpi import IMAGE, PROMPT, STATE
from vla_rl.serving.packing import MOST_PIXELS, WireError, in_words

LOG = logging.getLogger(__name__)

MOST_LETTERS = 4096
OURS = "vla_rl"
"""Name under which a server of ours says in its metadata where the policy was trained."""

ROBOT = "vla_rl_robot"
"""The same of a policy that is served to a robot, and has no environment."""


class ServedPolicy:
    """A policy with the environment that it was made for, or with a robot that no simulator here has.

    An answer is one turn: its chunk of C actions, each `action_repeat` times as our environments hold them, clipped to
    [-1, 1]. So whoever plays one row a simulator step does what our own environments do. On LIBERO -1 opens the gripper
    and 1 closes it, as LIBERO's own environments have it. For a robot each action is one row, in the unit of the
    dataset that the policy was fine-tuned on; its statistics (q01 to q99) are the only bounds.
    """

    def __init__(
        self, policy: Policy, env: EnvConfig | None, temperature: float = 0.0, seed: int = 0
    ) -> None:
        """env: where the policy plays at home; None for a robot. temperature: 0 is greedy."""
        self._policy, self._env = policy, env
        self._temperature, self._seed = temperature, seed
        self.robot: str | None = None
        self._proprio_dim: int | None = None
        self.action_dim = policy.action_dim
        self._repeat, self._image_size = 1, policy.image_size
        if env is not None:
            played = benchmark(env.suite)
            self.robot, self._proprio_dim = played.robot, played.proprio_dim
            # of a union's policy the robot of one suite may take fewer numbers than it decides: the first
            self.action_dim = min(played.action_dim, policy.action_dim)
            self._repeat, self._image_size = env.action_repeat, env.image_size
        self._worker = ThreadPoolExecutor(max_workers=1)  # models bind themselves to a thread
        self._lock, self._clients, self._told_sizes = threading.Lock(), 0, set[tuple[int, ...]]()

    @property
    def steps(self) -> int:
        """Rows of an answer: simulator steps of one turn."""
        return self._policy.action_chunk * self._repeat

    def metadata(self) -> dict[str, Any]:
        """What every client is told."""
        return {
            "action_dim": self.action_dim,
            "action_horizon": self.steps,
            "image_size": self._image_size,
            OURS if self._env is not None else ROBOT: {
                "version": __version__,
                **({"env": to_json(self._env)} if self._env is not None else {}),
                "policy": self._policy.fingerprint(),
            },
        }

    def new_client(self) -> Client:
        with self._lock:
            self._clients += 1
            return Client(self, self._clients)

    def decide(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        instruction: str,
        proprio: Float32[np.ndarray, " P"] | None,
        client: int,
        turn: int,
    ) -> Float32[np.ndarray, "steps A"]:
        """One turn's actions. client, turn: key of the randomness where it samples."""
        from vla_rl.types import Observation

        state = np.zeros(self._proprio_dim or 0, np.float32) if proprio is None else proprio
        images = self._as_the_policy_sees(image[None])
        observation = Observation(images, (instruction,), state[None], np.zeros(1, np.float32))
        return self._worker.submit(self._decide, observation, client, turn).result()

    def _decide(self, observation: Any, client: int, turn: int) -> Float32[np.ndarray, "steps A"]:
        uniforms = None
        if self._temperature > 0:
            count = tokens_of_turn(self._policy)
            uniforms = generator(self._seed, client, turn).random((1, count), np.float32)
        tokens = self._policy.act(observation, self._temperature, uniforms).tokens
        decided = decoded(self._policy, tokens, observation.instructions)[0]
        actions = decided[:, : self.action_dim].astype(np.float32)
        if self._env is not None:  # what a simulator would clip
            actions = np.clip(actions, -1, 1)
        return np.repeat(actions, self._repeat, axis=0)

    def _as_the_policy_sees(self, images: UInt8[np.ndarray, "1 H W 3"]) -> np.ndarray:
        size = self._policy.image_size
        if self._policy.resizes_images or images.shape[1:3] == (size, size):
            return images
        shape = images.shape[1:3]
        if shape not in self._told_sizes:
            self._told_sizes.add(shape)
            LOG.warning(
                "a client's pictures have %d x %d pixels, the policy looks at %d x %d: they are resampled here "
                "(Lanczos), which is not how it was trained", *shape, size, size,
            )  # fmt: skip
        return resize(np.ascontiguousarray(make_square(images, "pad")), size)

    # -- what came, checked

    def picture(self, value: Any, name: str) -> UInt8[np.ndarray, "H W 3"]:
        """WireError unless it is a colour picture of bytes."""
        good = (
            isinstance(value, np.ndarray)
            and value.dtype == np.uint8
            and value.ndim == 3
            and value.shape[2] == 3
            and all(1 <= side <= MOST_PIXELS for side in value.shape[:2])
        )
        if not good:
            raise WireError(
                f"{name}: expected uint8 of shape (H, W, 3), RGB and upright, got {in_words(value)}"
            )
        return value

    def instruction(self, value: Any, name: str) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > MOST_LETTERS:
            raise WireError(
                f"{name}: expected an instruction of 1 to {MOST_LETTERS} letters, got {in_words(value)}"
            )
        return value

    def proprio(self, value: Any, name: str) -> Float32[np.ndarray, " P"] | None:
        """None where nothing came."""
        if value is None:
            return None
        state = np.asarray(value) if isinstance(value, (np.ndarray, list)) else np.zeros(())
        wanted = (
            (len(state),) if self._proprio_dim is None and state.ndim == 1 else (self._proprio_dim,)
        )
        good = state.shape == wanted and state.dtype.kind in "fiu"
        if not good or not np.isfinite(state).all():
            count = "some" if self._proprio_dim is None else str(self._proprio_dim)
            raise WireError(f"{name}: expected {count} finite numbers, got {in_words(value)}")
        return state.astype(np.float32)


class Client:
    """One client's turns, counted; answers openpi's requests."""

    def __init__(self, served: ServedPolicy, number: int) -> None:
        self.served, self._number, self._turn = served, number, 0

    def decide(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        instruction: str,
        proprio: Float32[np.ndarray, " P"] | None,
    ) -> Float32[np.ndarray, "steps A"]:
        self._turn += 1
        return self.served.decide(image, instruction, proprio, self._number, self._turn)

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Openpi's request for LIBERO, and with the same keys for every other robot. WireError for what is amiss."""
        missing = [name for name in (IMAGE, PROMPT) if name not in request]
        if missing:
            raise WireError(f"{missing[0]} is missing, got {in_words(dict(request))}")
        served = self.served
        image = served.picture(request[IMAGE], IMAGE)
        proprio = served.proprio(request.get(STATE), STATE)
        return {"actions": self.decide(image, served.instruction(request[PROMPT], PROMPT), proprio)}
