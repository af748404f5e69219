"""LIBERO in ProcessVectorEnv against LIBERO's own SubprocVectorEnv: episode turnover, steps per second, memory.

    python benchmarks/envs.py --benchmark libero --seconds 40

Both sides have two processes with one environment each, one camera of 128 pixels, the first task of `libero-object`.

Turnover is the time from the end of an episode to the first image of the next: seed, reset, stored initial state, ten
settling steps. Meshes are whole, and images after it and during the episode are compared: they must be equal. Ours is
timed on initial states never put before; putting one again takes no settling.

Steps: one action, one image, on both sides. Ours draws light meshes, theirs has none. Memory is the proportional set
size of worker processes, each side measured alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from side_by_side import alternate, memory_bytes, play
from vla_rl.config import EnvConfig
from vla_rl.envs.libero.env import LiberoEnv, make_libero_envs
from vla_rl.envs.libero.package import load_libero
from vla_rl.envs.libero.tasks import stored_states, suite_tasks
from vla_rl.envs.rendering.gl import load_mujoco
from vla_rl.envs.vector.process import ProcessVectorEnv
from vla_rl.types import EpisodeSpec

PROCESSES = 2
CONFIG = EnvConfig(
    suite="libero-object:0", image_size=128, mesh_faces=0, action_repeat=1, action_chunk=1, horizon=10_000,
    num_envs=PROCESSES, num_workers=PROCESSES, initial_states=50, held_out=10,
)  # fmt: skip
LIGHT = replace(CONFIG, mesh_faces=EnvConfig.mesh_faces)
TASK = suite_tasks(CONFIG.suite)[0]
SETTLING = np.tile(np.array([0, 0, 0, 0, 0, 0, -1], np.float32), (PROCESSES, 1))
EVERY = range(PROCESSES)


def random_actions(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, (PROCESSES, 7)).astype(np.float32)


class Ours:
    """Slots of ProcessVectorEnv."""

    name = "vla-rl ProcessVectorEnv"

    def __init__(self, config: EnvConfig) -> None:
        self.envs = ProcessVectorEnv(config, make_libero_envs)
        self.start(0)

    def start(self, first: int) -> np.ndarray:
        """Begin episodes at the initial states `first`, `first + 1`, ...; returns the images."""
        self.envs.post_reset(EVERY, [EpisodeSpec(TASK.name, first + slot) for slot in EVERY])
        return self.envs.wait(EVERY).observation.images

    def step(self, actions: np.ndarray) -> np.ndarray:
        self.envs.post_step(EVERY, actions[:, None])
        return self.envs.wait(EVERY).observation.images

    def turn(self, rng: np.random.Generator) -> int:
        self.step(random_actions(rng))
        return PROCESSES

    def close(self) -> None:
        self.envs.close()


class _Maker:
    def __call__(self) -> Any:
        from libero.libero.envs import OffScreenRenderEnv

        size = CONFIG.image_size
        return OffScreenRenderEnv(
            bddl_file_name=str(TASK.problem),
            camera_heights=size,
            camera_widths=size,
            camera_names=["agentview"],
        )


class Theirs:
    """LIBERO's SubprocVectorEnv over OffScreenRenderEnv, as its own evaluation uses them."""

    name = "LIBERO SubprocVectorEnv"

    def __init__(self) -> None:
        from libero.libero.envs import SubprocVectorEnv

        self.envs = SubprocVectorEnv([_Maker() for _ in EVERY])
        self.start(0)

    def start(self, first: int) -> np.ndarray:
        self.envs.seed([0] * PROCESSES)
        self.envs.reset()
        self.envs.set_init_state([stored_states(TASK.states)[first + slot] for slot in EVERY])
        for _ in range(CONFIG.settle_steps):
            images = self.step(SETTLING)
        return images

    def step(self, actions: np.ndarray) -> np.ndarray:
        observations, *_ = self.envs.step(actions)
        return np.stack([o["agentview_image"][::-1, ::-1] for o in observations])

    def turn(self, rng: np.random.Generator) -> int:
        self.step(random_actions(rng))
        return PROCESSES

    def close(self) -> None:
        self.envs.close()


def timed(start: Callable[[int], np.ndarray], states: list[int]) -> float:
    """Seconds of one turnover, the median over `states`."""
    seconds = []
    for state in states:
        begin = time.perf_counter()
        start(state)
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


def compare_turnover(ours: Ours, theirs: Theirs, repeats: int) -> None:
    """Equal images, then the time from one episode to the next."""
    rng = np.random.default_rng(0)
    for first in (4, 6):
        assert (ours.start(first) == theirs.start(first)).all(), "first images differ"
        for _ in range(10):
            actions = random_actions(rng)
            assert (ours.step(actions) == theirs.step(actions)).all(), "images differ"
    states = [10 + PROCESSES * k for k in range(repeats)]
    fresh, again = timed(ours.start, states), timed(ours.start, states)
    official = timed(theirs.start, states[: max(3, repeats // 4)])
    print("images equal in 2 resets and 20 steps of 2 environments each")
    print(f"turnover of {PROCESSES} environments in {PROCESSES} processes, whole meshes:")
    print(
        f"{Ours.name:28} {1e3 * fresh:8.0f} ms ({1e3 * again:.0f} ms for an initial state put before)"
    )
    print(f"{Theirs.name:28} {1e3 * official:8.0f} ms")
    print(f"turnover ratio {official / fresh:.1f} (put before: {official / again:.1f}; bar: 8)")


def compare(seconds: float, slices: int) -> None:
    """Print turnover, steps per second and memory of both sides, and their ratios."""
    load_libero()  # imports it without its log file and messages
    own = memory_bytes()
    # it forks, so nothing may have been drawn in this process before
    theirs = Theirs()
    memory = {Theirs.name: memory_bytes() - own}
    whole = Ours(CONFIG)
    compare_turnover(whole, theirs, repeats=12)
    whole.close()
    light = Ours(LIGHT)
    for side in (light, theirs):
        play(side, 1.0, np.random.default_rng(2))
    rates = alternate(light, theirs, seconds, slices)
    theirs.close()
    memory[Ours.name] = memory_bytes() - own
    light.close()

    print("steps with a image each, light meshes on our side:")
    for name, rate in ((Ours.name, rates.ours), (Theirs.name, rates.theirs)):
        print(f"{name:28} {rate:7.1f} steps/s  {memory[name] / 1e6:8.0f} MB (PSS)")
    slices_text = ", ".join(f"{ratio:.1f}" for ratio in rates.slices)
    print(f"speed ratio {rates.ratio:.1f} (slices: {slices_text}; bar: 4)")
    print(f"memory ratio {memory[Ours.name] / memory[Theirs.name]:.3f} (bar: 0.5)")


def split_a_step(config: EnvConfig, steps: int) -> None:
    """Milliseconds of one control step with a image in one process: MuJoCo, Python around it, image."""
    mujoco: Any = load_mujoco()
    names = ("mj_forward", "mj_fwdConstraint", "mj_step2")
    originals = {name: getattr(mujoco, name) for name in names}
    spent = dict.fromkeys(("mujoco", "image", "success"), 0.0)

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments)
            spent[name] += time.perf_counter() - begin
            return result

        return call

    env = LiberoEnv(config)
    env.reset(EpisodeSpec(TASK.name, 0))
    env.render()
    rng = np.random.default_rng(0)
    render = clocked("image", env.render)
    problem = env._own().robosuite_env
    problem._check_success = clocked("success", problem._check_success)
    for name, original in originals.items():
        setattr(mujoco, name, clocked("mujoco", original))
    begin = time.perf_counter()
    for _ in range(steps):
        env.step(random_actions(rng)[:1])
        render()
    total = time.perf_counter() - begin
    for name, original in originals.items():
        setattr(mujoco, name, original)
    env.close()
    rest = total - sum(spent.values())
    parts = {
        "mujoco": spent["mujoco"],
        "success": spent["success"],
        "rest of python": rest,
        "image": spent["image"],
    }
    shown = ", ".join(f"{name} {1e3 * part / steps:.2f}" for name, part in parts.items())
    faces = config.mesh_faces or "all"
    print(f"milliseconds per step in one process, {faces} faces a mesh: {shown}")
    if config.mesh_faces:
        bound = steps / (spent["mujoco"] + spent["image"])
        print(
            f"MuJoCo and OpenGL alone would allow {bound:.0f} steps/s; reached {steps / total:.0f}"
        )


def main(seconds: float, slices: int) -> None:
    compare(seconds, slices)
    for config in (LIGHT, CONFIG):
        split_a_step(config, steps=60)
