"""A policy of ours as a model server of vla-evaluation-harness: an action for each simulator step.

The harness shows every step and wants one action for it. Ours decide several steps at once: what is decided is played
to its end before the policy looks again, as in our own environments. An episode begins afresh.

Source: vla-eval 0.8.0, protocol/messages.py and model_servers/serve.py.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import numpy as np
from websockets.sync.server import ServerConnection

from vla_rl import __version__
from vla_rl.serving.limits import ActionLimits, LimitKeeper, RefusedError, Rules
from vla_rl.serving.packing import WireError, in_words, pack, unpack
from vla_rl.serving.served_policy import Client, ServedPolicy
from vla_rl.serving.websocket import bound_sending

LOG = logging.getLogger(__name__)

PROTOCOL = 1
MAIN_CAMERA = "agentview"
_KINDS = ("hello", "observation", "action", "episode_start", "episode_end", "error")
_LIBERO = {
    "position": {"name": "position", "dims": 3, "format": "delta_xyz", "range": [-1, 1]},
    "rotation": {"name": "rotation", "dims": 3, "format": "axis_angle", "range": [-3.15, 3.15]},
    "gripper": {"name": "gripper", "dims": 1, "format": "binary_close_positive", "range": [-1, 1]},
}
_SPECS = {"libero_panda": _LIBERO}
"""By robot: what the harness can check of an action before it plays it."""


class HarnessConversations:
    """Answers the harness's clients, each in its thread."""

    def __init__(
        self, served: ServedPolicy, limits: ActionLimits | None = None, rules: Rules | None = None
    ) -> None:
        """limits: what every action keeps that leaves. rules: time-outs; the harness numbers its requests itself."""
        self._served, self._limits, self._rules = served, limits, rules or Rules()
        self._adding = threading.Lock()
        self.totals = LimitKeeper(limits, "all clients")
        """What the limits did in the conversations that have ended."""

    def __call__(self, connection: ServerConnection) -> None:
        """An answer to each observation. A fault of the client's is said, and it may go on."""
        player = _Player(self._served.new_client(), LimitKeeper(self._limits, "the harness"))
        if self._rules.idle:
            bound_sending(connection.socket, self._rules.idle)
        try:
            self._converse(connection, player)
        except TimeoutError:
            LOG.warning("the harness was silent for %g s: hung up", self._rules.idle)
            connection.close(1001, f"nothing was asked for {self._rules.idle:g} s")
        finally:
            with self._adding:
                self.totals.counts += player.keeper.counts

    def _converse(self, connection: ServerConnection, player: _Player) -> None:
        while True:
            frame = connection.recv(timeout=self._rules.idle or None)
            number, came = 0, time.monotonic()
            try:
                kind, payload, number = _message(frame)
                answer = self._answer(player, kind, payload)
                seconds = time.monotonic() - came
                if 0 < self._rules.answer < seconds:
                    player.keeper.refuse(
                        f"it took {seconds:.3g} s, and {self._rules.answer:g} s are allowed"
                    )
            except RefusedError as error:
                player.drop()
                answer = "error", {"error": f"the answer is refused: {error}"}
            except WireError as error:
                answer = "error", {"error": f"the message cannot be used: {error}"}
            except Exception as error:
                LOG.exception("the policy has failed")
                answer = (
                    "error",
                    {"error": f"the policy has failed: {type(error).__name__}: {error}"},
                )
            if answer is not None:
                connection.send(_frame(*answer, number))

    def _answer(
        self, player: _Player, kind: str, payload: dict[str, Any]
    ) -> tuple[str, dict[str, Any]] | None:
        if kind == "hello":
            return "hello", self._hello()
        if kind == "observation":
            return "action", {"actions": player.act(payload)}
        if kind == "episode_start":
            player.start()
        elif kind == "error":
            LOG.warning("the harness reports: %s", in_words(payload))
        return None

    def _hello(self) -> dict[str, Any]:
        spec = _SPECS.get(
            self._served.robot or "", {}
        )  # of seven numbers there are other robots too
        return {
            "harness_version": "",
            "protocol_version": PROTOCOL,
            "model_server": f"vla-rl {__version__}",
            "capabilities": {},
            "observation_params": {"send_wrist_image": False, "send_state": False},
            **({"action_spec": spec} if spec else {}),
        }


class _Player:
    """One client's episode: what has been decided and not yet been played."""

    def __init__(self, client: Client, keeper: LimitKeeper) -> None:
        self._client, self.keeper = client, keeper
        self._decided: list[np.ndarray] = []

    def start(self) -> None:
        self.drop()
        self.keeper.forget()

    def drop(self) -> None:
        self._decided = []

    def act(self, payload: dict[str, Any]) -> np.ndarray:
        served = self._client.served
        images = payload.get("images")
        if not isinstance(images, dict) or not images:
            raise WireError(f"images: expected a map of pictures, got {in_words(images)}")
        name = MAIN_CAMERA if MAIN_CAMERA in images else next(iter(images))
        if name != MAIN_CAMERA and len(images) > 1:
            raise WireError(
                f"images: expected one of them to be {MAIN_CAMERA}, got {in_words(images)}"
            )
        picture = served.picture(images[name], f"images.{name}")
        words = served.instruction(payload.get("task_description"), "task_description")
        proprio = served.proprio(payload.get("states"), "states")
        if not self._decided:
            self._decided = list(self.keeper(self._client.decide(picture, words, proprio)))
        return self._decided.pop(0)


def _message(frame: str | bytes) -> tuple[str, dict[str, Any], int]:
    if isinstance(frame, str):
        raise WireError("expected a binary frame of msgpack, got one of text")
    message = unpack(frame)
    if not isinstance(message, dict):
        raise WireError(f"expected a map, got {in_words(message)}")
    kind, payload, number = (message.get(name) for name in ("type", "payload", "seq"))
    if kind not in _KINDS:
        raise WireError(f"type: expected one of {', '.join(_KINDS)}, got {in_words(kind)}")
    if not isinstance(payload, dict):
        raise WireError(f"payload: expected a map, got {in_words(payload)}")
    if type(number) is not int or not 0 <= number < 2**63:
        raise WireError(f"seq: expected a whole number, got {in_words(number)}")
    return kind, payload, number


def _frame(kind: str, payload: dict[str, Any], number: int) -> bytes:
    message = {"type": kind, "payload": payload, "seq": number, "timestamp": time.time()}
    return pack(message, keys="text")
