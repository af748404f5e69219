"""The four tasks of the toy benchmark: what each asks for in words, the suites, and the numbered initial states."""

from __future__ import annotations

import hashlib

import numpy as np

from vla_rl.config.errors import ConfigError, nearest

INSTRUCTIONS: dict[str, str] = {
    "reach-red": "reach the red disc",
    "reach-blue": "reach the blue disc",
    "grasp-block": "grasp the yellow block",
    "place-block": "put the yellow block on the green mat",
}

SUITE = "toy"


def suite_tasks(suite: str) -> tuple[str, ...]:
    """The tasks of `toy`, or those that `toy:<names, with commas>` names, in the order it names them.

    ConfigError for an unknown suite or task, and for one named twice.
    """
    name, colon, chosen = suite.partition(":")
    if name != SUITE:
        raise ConfigError(f"unknown suite {suite!r}: expected {SUITE} or {SUITE}:<task>")
    if not colon:
        return tuple(INSTRUCTIONS)
    tasks = tuple(word.strip() for word in chosen.split(","))
    for task in tasks:
        if task not in INSTRUCTIONS:
            raise ConfigError(f"suite {SUITE!r} has no task {task!r}.{nearest(task, INSTRUCTIONS)}")
    if len(set(tasks)) < len(tasks):
        raise ConfigError(f"{suite!r} names a task twice: name each once")
    return tasks


def initial_state_generator(task: str, index: int) -> np.random.Generator:
    """The generator from which initial state `index` of `task` is drawn: the same in every process and suite."""
    if index < 0:
        raise ConfigError(f"an initial state is numbered from 0, got {index}")
    digest = hashlib.sha256(f"toy/{task}/{index}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
