"""Plays episodes with a policy that another program serves, with openpi's protocol."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.runtime.extras import need
from vla_rl.serving.openpi import IMAGE, PROMPT, STATE, WRIST
from vla_rl.serving.openpi_client import PolicyConnection, PolicyServerError, actions_of
from vla_rl.types import EpisodeSpec, Observation

LOG = logging.getLogger(__name__)

TRIES = 3
"""How often an episode is begun, and how often a lost server is looked for."""
WAIT = 1.0  # seconds before the second look; twice as long before each other one


class RemotePlayer:
    """The `Player` whose decisions come from a server; each slot has a conversation of its own.

    A server that dies, is silent for too long or answers what cannot be played loses the episode: it is played again
    from its start, with a new connection. After `TRIES` times the same episode ends the evaluation.
    """

    def __init__(
        self,
        connect: Callable[[], PolicyConnection],
        first: PolicyConnection,
        action_dim: int,
        replan: int,
        image_size: int,
    ) -> None:
        """connect: makes another conversation like `first`. replan: actions that are played of each answer.
        image_size: of the pictures that are sent; others are resampled as openpi's own client does.
        """
        self._connect, self._action_dim, self._replan = connect, action_dim, replan
        self._image_size = image_size
        self._spare: PolicyConnection | None = first
        self._connections: dict[int, PolicyConnection] = {}
        self._lost: Counter[EpisodeSpec] = Counter()
        self.errors = 0
        """Episodes that were lost so far, by the server's fault."""

    def act(
        self, slots: Sequence[int], observation: Observation, records: Sequence[EpisodeRecord]
    ) -> Mapping[int, Float32[np.ndarray, "C A"]]:
        """See `Player.act`. All are asked before any answer is waited for."""
        asked: list[tuple[int, EpisodeRecord]] = []
        decided: dict[int, Float32[np.ndarray, "C A"]] = {}
        for row, (slot, record) in enumerate(zip(slots, records, strict=True)):
            try:
                connection = self._connection(slot)
                if record.turns == 0 and connection.knows_episodes:
                    connection.begin_episode()
                connection.send(self._request(observation, row))
            except PolicyServerError as error:
                self._lose(slot, record, error)
            else:
                asked.append((slot, record))
        for slot, record in asked:
            connection = self._connections[slot]
            try:
                reply = connection.receive("actions")
                actions = actions_of(reply, connection.url, self._action_dim, self._replan)
            except PolicyServerError as error:
                self._lose(slot, record, error)
            else:
                record.actions.append(actions)
                decided[slot] = actions
        return decided

    def close(self) -> None:
        for connection in (*self._connections.values(), self._spare):
            if connection is not None:
                connection.close()
        self._connections, self._spare = {}, None

    def _connection(self, slot: int) -> PolicyConnection:
        if slot not in self._connections:
            spare, self._spare = self._spare, None
            self._connections[slot] = spare or self._found_again()
        return self._connections[slot]

    def _found_again(self) -> PolicyConnection:
        wait = WAIT
        for attempt in range(TRIES):
            try:
                return self._connect()
            except PolicyServerError as error:
                if attempt == TRIES - 1:
                    raise
                LOG.warning("%s; looked for again in %g s", error, wait)
                time.sleep(wait)
                wait *= 2
        raise AssertionError

    def _lose(self, slot: int, record: EpisodeRecord, error: PolicyServerError) -> None:
        connection = self._connections.pop(slot, None)
        if connection is not None:
            connection.close()
        self.errors += 1
        self._lost[record.spec] += 1
        times = self._lost[record.spec]
        if times >= TRIES or connection is None:
            raise PolicyServerError(
                f"{error}. {record.spec.task}, initial state {record.spec.initial_state}, was begun {times} times in "
                "vain; no result is written"
            ) from error
        LOG.warning("%s; the episode is played again from its start", error)

    def _request(self, observation: Observation, row: int) -> dict[str, Any]:
        request = {
            IMAGE: self._sent(observation.images[row]),
            STATE: observation.proprio[row],
            PROMPT: observation.instructions[row],
        }
        if observation.wrist is not None:
            request[WRIST] = self._sent(observation.wrist[row])
        return request

    def _sent(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "S S 3"]:
        size = self._image_size
        if image.shape[:2] == (size, size):
            return image
        need("PIL", purpose="resampling pictures")
        from PIL import Image

        return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
