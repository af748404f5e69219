"""Whether the simulator looks and moves as where the figures were made: one settled scene of a LIBERO suite.

The first initial state of a task, after the protocol's settling, is compared with numbers recorded with mujoco 3.3.0:
where everything has come to rest, and the image's mean colour. The tasks are those that are known to tell versions
apart: from 3.3.3 on libero-object is darker, from 3.4 on the bowl of libero-spatial's task 5 comes to rest elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import numpy as np

from vla_rl.envs import make_vector_env
from vla_rl.envs.defaults import benchmark_env
from vla_rl.envs.registry import task_names
from vla_rl.types import EpisodeSpec

FILE = "scenes.json"
TASKS = {"libero-spatial": 5, "libero-object": 0, "libero-goal": 0, "libero-10": 0}
PLACE_TOLERANCE = 1e-3
"""Metres, and parts of a quaternion. Other processors move things by far less."""
COLOUR_TOLERANCE = 1.0
"""Of 255, of the image's mean. Other drivers smooth edges otherwise."""


@dataclass(frozen=True)
class Scene:
    """A settled scene: simulator time and joint positions, and the image's mean red, green and blue (0..255)."""

    places: tuple[float, ...]
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class SceneCheck:
    """How far a scene is from the recorded one."""

    suite: str
    moved: float
    """Largest difference of a joint position."""
    coloured: float
    """Largest difference of the mean colour."""

    @property
    def is_same(self) -> bool:
        return self.moved <= PLACE_TOLERANCE and self.coloured <= COLOUR_TOLERANCE

    def __str__(self) -> str:
        return (
            f"the settled scene of {self.suite}:{TASKS[self.suite]} differs from the recorded one by "
            f"{1000 * self.moved:.2f} mm and {self.coloured:.2f} of 255 in mean colour"
        )


def check_scene(suite: str) -> SceneCheck | None:
    """Compare this machine's scene of a suite with the recorded one; None for suites that none is recorded of."""
    name = suite.partition(":")[0]
    known = recorded()
    if name not in known:
        return None
    return compared(name, known[name], settled_scene(name))


def compared(suite: str, expected: Scene, found: Scene) -> SceneCheck:
    """The differences; infinite where the scenes have not the same joints."""
    if len(found.places) < len(expected.places):
        return SceneCheck(suite, float("inf"), float("inf"))
    places = np.subtract(found.places[: len(expected.places)], expected.places)
    colours = np.subtract(found.colour, expected.colour)
    return SceneCheck(suite, float(np.abs(places).max()), float(np.abs(colours).max()))


def settled_scene(suite: str, *, settle_steps: int | None = None) -> Scene:
    """The scene of `TASKS[suite]` on this machine. settle_steps: by default the protocol's."""
    env = benchmark_env(f"{suite}:{TASKS[suite]}")
    if settle_steps is not None:
        env = replace(env, settle_steps=settle_steps)
    env = replace(env, num_envs=1, num_workers=1)
    with make_vector_env(env) as envs:
        envs.post_reset([0], [EpisodeSpec(task_names(env.suite)[0], 0)])
        image = envs.wait([0]).observation.images[0]
        state = envs.snapshot([0])[0]["integration"]
    red, green, blue = image.reshape(-1, 3).mean(0).tolist()
    return Scene(tuple(np.asarray(state, np.float64).tolist()), (red, green, blue))


def recorded() -> Mapping[str, Scene]:
    """The scenes that come with the program, by suite."""
    text = resources.files(__package__ or __name__).joinpath(FILE).read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return {
        name: Scene(tuple(one["places"]), tuple(one["colour"])) for name, one in content.items()
    }
