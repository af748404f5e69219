"""The tasks of ManiSkill that are played here: what each asks for in words, and how long an episode may take.

They are the table-top tasks of the Panda that come with the package, take `pd_ee_delta_pose` and have a shaped reward.
ManiSkill gives no instructions; these are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.config.errors import ConfigError, nearest

SUITE = "maniskill"


@dataclass(frozen=True)
class Task:
    """One task, by its id in ManiSkill."""

    instruction: str
    steps: int
    """Control steps of an episode, as ManiSkill registers the task."""


TASKS: dict[str, Task] = {
    "PushCube-v1": Task("push the blue cube forward onto the red and white target", 50),
    "PullCube-v1": Task("pull the blue cube back onto the red and white target", 50),
    "PickCube-v1": Task("pick up the red cube and hold it at the green ball", 50),
    "StackCube-v1": Task("stack the red cube on the green cube and let go", 50),
    "LiftPegUpright-v1": Task("stand the peg upright on the table", 50),
    "PlaceSphere-v1": Task("put the ball into the bin", 50),
    "PokeCube-v1": Task("poke the cube onto the target with the peg", 50),
    "PullCubeTool-v1": Task("pull the cube closer with the tool", 100),
    "RollBall-v1": Task("roll the ball to the target at the other end of the table", 80),
    "PegInsertionSide-v1": Task("insert the peg into the hole of the box", 100),
}


def suite_tasks(suite: str) -> tuple[str, ...]:
    """The tasks of `maniskill:<ids, with commas>`, in the order they are named; all of them for `maniskill`.

    ConfigError for an unknown suite or task, and for one named twice.
    """
    name, colon, chosen = suite.partition(":")
    if name != SUITE:
        raise ConfigError(f"unknown suite {suite!r}: expected {SUITE}:<task ids, with commas>")
    if not colon:
        return tuple(TASKS)
    tasks = tuple(word.strip() for word in chosen.split(","))
    for task in tasks:
        if task not in TASKS:
            raise ConfigError(
                f"suite {SUITE!r} has no task {task!r}: expected some of {', '.join(TASKS)}."
                f"{nearest(task, TASKS)}"
            )
    if len(set(tasks)) < len(tasks):
        raise ConfigError(f"{suite!r} names a task twice: name each once")
    return tasks


def longest_episode(suite: str) -> int:
    """Control steps of the longest episode that ManiSkill allows any task of the suite."""
    return max(TASKS[task].steps for task in suite_tasks(suite))


def task_of(instruction: str) -> str:
    """The task that an instruction is of; the text itself where it is of none."""
    found = (name for name, task in TASKS.items() if task.instruction == instruction)
    return next(found, instruction)
