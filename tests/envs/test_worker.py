"""What a simulator process does first."""

from __future__ import annotations

from multiprocessing import Pipe
from typing import Any

from faulty_envs import order

from vla_rl.config import EnvConfig
from vla_rl.envs.known_answers import ChainEnv, make_chain_envs
from vla_rl.envs.vector.repeated_errors import PlayedAgain
from vla_rl.envs.vector.shared_memory import SlotArrays
from vla_rl.envs.vector.worker import SlotWorker
from vla_rl.types import EpisodeSpec

CONFIG = EnvConfig(image_size=11, action_repeat=1, action_chunk=1, horizon=8, num_envs=4)
START = EpisodeSpec("chain", 0)


def answered(messages: list[tuple[Any, ...]]) -> list[int]:
    """Tickets in the order in which they were answered, of messages that all lie in the pipe at the beginning."""
    ours, its = Pipe()
    envs = dict(enumerate(make_chain_envs(CONFIG, CONFIG.num_envs)))
    arrays = SlotArrays(CONFIG.num_envs, CONFIG.image_size, envs[0].proprio_dim)
    worker = SlotWorker(
        envs, arrays, CONFIG.horizon, its, PlayedAgain("chain", lambda: ChainEnv(CONFIG))
    )
    for message in (("reset", 0, ([0, 1, 2], [START] * 3)), *messages):
        ours.send(message)
    tickets: list[int] = []
    while len(tickets) <= len(messages):
        worker.do(worker.next_message())
        while ours.poll():
            word, *answer = ours.recv()
            tickets += answer[:1] if word == "done" else []
    return tickets[1:]


def test_an_episode_starts_before_turns_of_other_slots() -> None:
    turn = ("step", 1, ([0, 1], order(0.0, 2)))
    later = ("step", 2, ([2], order(0.0)))
    start = ("reset", 3, ([3], [START]))
    assert answered([turn, later, start]) == [3, 1, 2]


def test_turns_keep_their_order() -> None:
    turns = [("step", ticket, ([slot], order(0.0))) for ticket, slot in ((1, 0), (2, 1), (3, 2))]
    assert answered([*turns, ("snapshot", 4, ([0],))]) == [1, 2, 3, 4]
