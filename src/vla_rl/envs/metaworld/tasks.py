"""The fifty Meta-World tasks: what each asks for in words, the suites, and the numbered initial states.

Knows no simulator: the command line and the tests may read it without mujoco installed. Task names are
Meta-World's without the version (`drawer-open` is `drawer-open-v3` there). Meta-World itself gives no
instructions; these are ours, each a verb phrase that completes "What action should the robot take to".
"""

from __future__ import annotations

import hashlib

import numpy as np

from vla_rl.config.errors import ConfigError, nearest

INSTRUCTIONS: dict[str, str] = {
    "assembly": "put the ring on the peg",
    "basketball": "put the ball in the basket",
    "bin-picking": "move the block from one bin to the other",
    "box-close": "put the lid on the box",
    "button-press": "press the button from the front",
    "button-press-topdown": "press the button from the top",
    "button-press-topdown-wall": "press the button behind the wall from the top",
    "button-press-wall": "press the button behind the wall from the front",
    "coffee-button": "press the button of the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "take the ring off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door",
    "door-open": "open the door",
    "door-unlock": "unlock the door",
    "drawer-close": "close the drawer",
    "drawer-open": "open the drawer",
    "faucet-close": "close the faucet",
    "faucet-open": "open the faucet",
    "hammer": "hit the nail with the hammer",
    "hand-insert": "put the gripper into the hole",
    "handle-press": "press the handle down",
    "handle-press-side": "press the handle down from the side",
    "handle-pull": "pull the handle up",
    "handle-pull-side": "pull the handle up from the side",
    "lever-pull": "pull the lever up",
    "peg-insert-side": "insert the peg into the hole in the side",
    "peg-unplug-side": "unplug the peg from the side",
    "pick-out-of-hole": "pick the puck out of the hole",
    "pick-place": "pick up the puck and place it at the goal",
    "pick-place-wall": "pick up the puck and place it behind the wall",
    "plate-slide": "slide the plate into the cabinet",
    "plate-slide-back": "slide the plate out of the cabinet",
    "plate-slide-back-side": "slide the plate out of the cabinet sideways",
    "plate-slide-side": "slide the plate into the cabinet sideways",
    "push": "push the puck to the goal",
    "push-back": "pull the block back to the goal",
    "push-wall": "push the block around the wall to the goal",
    "reach": "reach the goal",
    "reach-wall": "reach the goal behind the wall",
    "shelf-place": "put the block on the shelf",
    "soccer": "push the ball into the soccer goal",
    "stick-pull": "pull the box with the stick",
    "stick-push": "push the box with the stick",
    "sweep": "sweep the block off the table",
    "sweep-into": "sweep the block into the hole",
    "window-close": "close the window",
    "window-open": "open the window",
}

_MT5 = ("drawer-open", "drawer-close", "window-open", "window-close", "button-press-topdown")
_MT10 = (
    "reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close",
    "button-press-topdown", "peg-insert-side", "window-open", "window-close",
)  # fmt: skip
_MT10_HARD = ("reach", "push", "pick-place", "peg-insert-side")
SUITES: dict[str, tuple[str, ...]] = {
    "mt5": _MT5, "mt10": _MT10, "mt10-hard": _MT10_HARD, "mt50": tuple(INSTRUCTIONS),
}  # fmt: skip
"""mt10 is Meta-World's MT10, in its order; mt50 is all of them. Ours are mt5, the five that train on a laptop, and
mt10-hard, the four of MT10 that a small policy hardly learns from twenty demonstrations each."""

_SINGLE = "mt1:"


def task_name(name: str) -> str:
    """The task called `name`, with or without the version suffix. ConfigError if there is none."""
    task = name.removesuffix("-v3")
    if task not in INSTRUCTIONS:
        raise ConfigError(f"unknown Meta-World task {name!r}.{nearest(task, INSTRUCTIONS)}")
    return task


def suite_tasks(suite: str) -> tuple[str, ...]:
    """The tasks of `mt1:<task>`, `mt5`, `mt10`, `mt10-hard` or `mt50`, in order. ConfigError for anything else."""
    if suite.startswith(_SINGLE):
        return (task_name(suite.removeprefix(_SINGLE)),)
    if suite not in SUITES:
        known = [*SUITES, *(_SINGLE + task for task in INSTRUCTIONS)]
        raise ConfigError(
            f"unknown suite {suite!r}: expected mt1:<task>, {', '.join(SUITES)}.{nearest(suite, known)}"
        )
    return SUITES[suite]


def initial_state_generator(task: str, index: int) -> np.random.Generator:
    """The generator from which initial state `index` of `task` is drawn.

    Keyed by (task name, index) alone, so that a numbered state is the same in every process, whatever
    was played before and whichever suite the task is played in.
    """
    if index < 0:
        raise ConfigError(f"an initial state is numbered from 0, got {index}")
    digest = hashlib.sha256(f"metaworld/{task}/{index}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
