"""Simulator throughput and memory against what the benchmarks bring themselves.

    python benchmarks/envs.py --seconds 25
    python benchmarks/envs.py --benchmark libero --seconds 40     (see libero_envs.py)
    python benchmarks/envs.py --benchmark all --seconds 10 --costs costs.json     for `vla-rl plan --costs`

Meta-World against gymnasium's AsyncVectorEnv over Meta-World's own rendering. Both sides play the mt5 tasks with random
actions: 16 environments, two actions a turn held for five simulator steps each, a 64-pixel image from `corner2` at
the end of every turn, stop at success, restart after 15 turns. The sides alternate in slices of a few seconds, so that
whatever else the machine does hits both; read the ratio.

Ours: each of 16 slots may play any of the five tasks, as training needs. Theirs: each of 16 processes plays one task
(easier). Memory is the proportional set size (PSS) of all worker processes plus this one, each side measured alone.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from cost_files import simulator_costs, write_costs
from side_by_side import alternate, memory_bytes, play
from vla_rl.config import EnvConfig
from vla_rl.envs.defaults import benchmark_env, laptop_env
from vla_rl.envs.metaworld.env import MetaWorldEnv, expert_action
from vla_rl.envs.metaworld.tasks import SUITES
from vla_rl.envs.rendering.gl import load_mujoco
from vla_rl.envs.vector.process import ProcessVectorEnv
from vla_rl.types import EpisodeSpec

CONFIG = EnvConfig(suite="mt5", num_envs=16, image_size=64)
TASKS = SUITES["mt5"]


class OfficialTurns(gymnasium.Env):
    """Meta-World with its own `step` and `render`, one chunk of held actions per step."""

    def __init__(self, task: str) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        size = CONFIG.image_size
        self.env: Any = ALL_V3_ENVIRONMENTS[f"{task}-v3"](
            render_mode="rgb_array", camera_name="corner2", width=size, height=size
        )
        self.env._partially_observable = False
        self.env.__dict__.pop("sawyer_observation_space", None)
        self.env._freeze_rand_vec = False
        self.env._set_task_called = True
        camera = self.env.model.camera("corner2").id
        self.env.model.cam_pos[camera] = (0.75, 0.075, 0.7)
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1, 1, (CONFIG.action_chunk, 4), np.float32)
        self.turns = 0

    def _image(self) -> np.ndarray:
        return np.ascontiguousarray(self.env.render()[::-1, ::-1])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.env.reset()
        self.turns = 0
        return self._image(), {}

    def step(self, action: np.ndarray) -> Any:
        success = False
        for held in np.repeat(action, CONFIG.action_repeat, axis=0):
            *_, info = self.env.step(held)
            success = bool(info["success"])
            if success:
                break
        self.turns += 1
        ended = not success and self.turns >= CONFIG.horizon
        return self._image(), float(success), success, ended, {}


def random_actions(rng: np.random.Generator) -> np.ndarray:
    shape = (CONFIG.num_envs, CONFIG.action_chunk, 4)
    return rng.uniform(-1, 1, shape).astype(np.float32)


class Ours:
    """Slots of ProcessVectorEnv."""

    name = "vla-rl ProcessVectorEnv"

    def __init__(self) -> None:
        self.envs = ProcessVectorEnv(CONFIG)
        self.rng = np.random.default_rng(0)
        every = range(CONFIG.num_envs)
        for task in TASKS:  # build every simulator before the clock starts
            self.envs.post_reset(every, [EpisodeSpec(task, 0)] * CONFIG.num_envs)
            self.envs.wait(every)
        self._reset(list(every))

    def _reset(self, slots: list[int]) -> None:
        specs = [
            EpisodeSpec(TASKS[self.rng.integers(len(TASKS))], int(self.rng.integers(900)))
            for _ in slots
        ]
        self.envs.post_reset(slots, specs)
        self.envs.wait(slots)

    def turn(self, rng: np.random.Generator) -> int:
        every = range(CONFIG.num_envs)
        self.envs.post_step(every, random_actions(rng))
        result = self.envs.wait(every)
        ended = [int(s) for s in result.slots[result.terminated | result.truncated]]
        if ended:
            self._reset(ended)
        return CONFIG.num_envs

    def close(self) -> None:
        self.envs.close()


class Theirs:
    """gymnasium.vector.AsyncVectorEnv, which resets by itself in the step after an end."""

    name = "gymnasium AsyncVectorEnv"

    def __init__(self) -> None:
        makers: list[Callable[[], Any]] = [
            _Maker(TASKS[k % len(TASKS)]) for k in range(CONFIG.num_envs)
        ]
        self.envs = gymnasium.vector.AsyncVectorEnv(makers, context="spawn")
        self.envs.reset(seed=0)
        self.ended = np.zeros(CONFIG.num_envs, dtype=bool)

    def turn(self, rng: np.random.Generator) -> int:
        played = int((~self.ended).sum())
        _, _, terminated, truncated, _ = self.envs.step(random_actions(rng))
        self.ended = terminated | truncated
        return played

    def close(self) -> None:
        self.envs.close()


class _Maker:
    def __init__(self, task: str) -> None:
        self.task = task

    def __call__(self) -> OfficialTurns:
        return OfficialTurns(self.task)


def compare(seconds: float, slices: int) -> None:
    """Play both sides in alternation and print turns per second, memory, and their ratios."""
    rng = np.random.default_rng(1)
    ours = Ours()
    play(ours, 2.0, rng)
    memory = {Ours.name: memory_bytes()}
    theirs = Theirs()
    play(theirs, 2.0, rng)
    rates = alternate(ours, theirs, seconds, slices)
    ours.close()
    memory[Theirs.name] = memory_bytes()
    theirs.close()

    for name, rate in ((Ours.name, rates.ours), (Theirs.name, rates.theirs)):
        print(f"{name:28} {rate:7.1f} images/s  {memory[name] / 1e6:8.0f} MB (PSS)")
    slices_text = ", ".join(f"{ratio:.1f}" for ratio in rates.slices)
    print(f"speed ratio {rates.ratio:.1f} (slices: {slices_text}; bar: 8)")
    print(f"memory ratio {memory[Ours.name] / memory[Theirs.name]:.3f} (bar: 0.333)")


def split_a_turn(episodes: int) -> None:
    """Milliseconds of one turn in one process: MuJoCo itself, Python around it, image, reset."""
    mujoco: Any = load_mujoco()
    spent = dict.fromkeys(("mujoco", "reset", "turn", "image"), 0.0)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments)
            spent[name] += time.perf_counter() - start
            return result

        return call

    env = MetaWorldEnv(CONFIG)
    for task in TASKS:
        env.reset(EpisodeSpec(task, 0))
        env.render()
    reset, step, render = (
        timed("reset", env.reset),
        timed("turn", env.step),
        timed("image", env.render),
    )
    original = mujoco.mj_step, mujoco.mj_forward
    turns, physics = 0, 0.0
    for episode in range(episodes):
        reset(EpisodeSpec(TASKS[episode % len(TASKS)], episode))
        ended = False
        while not ended:
            chunk = np.stack([expert_action(env)] * CONFIG.action_chunk)
            spent["mujoco"] = 0.0
            mujoco.mj_step, mujoco.mj_forward = (timed("mujoco", f) for f in original)
            _, terminated, truncated, _ = step(chunk)
            mujoco.mj_step, mujoco.mj_forward = original
            physics += spent["mujoco"]
            render()
            turns, ended = turns + 1, terminated or truncated
    env.close()
    parts = {
        "physics": physics / turns,
        "python": (spent["turn"] - physics) / turns,
        "image": spent["image"] / turns,
        "reset": spent["reset"] / turns,
    }
    shown = ", ".join(f"{name} {1e3 * seconds:.2f}" for name, seconds in parts.items())
    print(f"milliseconds per turn in one process: {shown} (resets spread over turns)")


def measure_costs(path: Path, chosen: str, seconds: float) -> None:
    """Our simulators as presets play them, so many seconds each."""
    suites = {
        "metaworld": [EnvConfig(suite="mt5")],
        "libero": [benchmark_env("libero-spatial:0"), laptop_env("libero-spatial:0")],
        "toy": [benchmark_env("toy")],
    }
    configs = [c for name, found in suites.items() if chosen in (name, "all") for c in found]
    measured = [simulator_costs(replace(config, num_envs=2), seconds) for config in configs]
    write_costs(path, simulators=measured)
    for costs in measured:
        print(
            f"{costs.note}, {costs.image_size} px: step {1e3 * costs.step:.3f} ms, image {1e3 * costs.image:.2f} ms, "
            f"reset {1e3 * costs.reset:.1f} ms, {costs.worker_bytes / 1e6:.0f} MB"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=25.0, help="per side, in all")
    parser.add_argument("--slices", type=int, default=5, help="alternations")
    parser.add_argument(
        "--benchmark",
        choices=["metaworld", "libero", "toy", "all"],
        default="metaworld",
        help="what to measure",
    )
    parser.add_argument(
        "--costs",
        type=Path,
        help="measure our simulators alone, and write a costs file for `vla-rl plan`",
    )
    arguments = parser.parse_args()
    # for the other side's processes; ours see to it themselves
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("MUJOCO_GL", "egl")
    warnings.filterwarnings("ignore")
    if arguments.costs is not None:
        measure_costs(arguments.costs, arguments.benchmark, arguments.seconds)
        raise SystemExit
    if arguments.benchmark in (
        "libero",
        "all",
    ):  # first: its other side forks, before anything is drawn here
        import libero_envs

        libero_envs.main(arguments.seconds, arguments.slices)
    if arguments.benchmark in ("metaworld", "all"):
        split_a_turn(episodes=20)
        compare(arguments.seconds, arguments.slices)
