"""LIBERO played through its own environment, in a process of its own.

    python official_libero.py PLAN.npz ...

A plan holds `problem` (BDDL file), `initial_state`, `actions` (T, 7), `drawn` (steps whose images are wanted),
`cameras`, `size`, and `joints` with `positions`, which are set before step `turned`. For each PLAN.npz,
PLAN.played.npz tells what happened; index 0 of everything is the state after ten settling steps. Only the wanted
images are rendered: they take most of the time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SETTLING = np.array([0, 0, 0, 0, 0, 0, -1.0])


class Official:
    """Plays plans one after another while the test does something else."""

    def __init__(self, folder: Path, plans: dict[str, dict[str, Any]]) -> None:
        self._folder = folder
        self.plans = plans
        for name, plan in plans.items():
            np.savez(folder / f"{name}.npz", **plan)
        self._errors = (folder / "stderr").open("w+")
        files = [str(folder / f"{name}.npz") for name in plans]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *files], stdout=subprocess.DEVNULL, stderr=self._errors
        )

    def played(self, name: str) -> dict[str, np.ndarray]:
        """What LIBERO made of a plan."""
        path = self._folder / f"{name}.played.npz"
        while not path.is_file():
            if self._process.poll() is not None and not path.is_file():
                self._errors.seek(0)
                raise RuntimeError(f"LIBERO did not play {name}:\n{self._errors.read()[-3000:]}")
            time.sleep(0.05)
        with np.load(path) as file:
            return dict(file)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()


def integration_state(model: Any, data: Any) -> np.ndarray:
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    return state


class _Recorder:
    def __init__(self, env: Any, drawn: set[int]) -> None:
        self._env, self._drawn = env, drawn
        self._drawing = False
        self.rows: list[dict[str, Any]] = []
        self.images: dict[str, list[np.ndarray]] = {name: [] for name in env.env.camera_names}
        for name in self.images:
            observable = env.env._observables[f"{name}_image"]
            observable._sensor = self._sparing(observable._sensor)

    def _sparing(self, sensor: Any) -> Any:
        def spared(cache: Any) -> Any:
            return sensor(cache) if self._drawing else np.zeros((2, 2, 3), np.uint8)

        spared.__modality__ = sensor.__modality__  # type: ignore[attr-defined]
        return spared

    def before(self, step: int) -> None:
        self._drawing = step in self._drawn

    def after(self, observation: Any, done: bool) -> None:
        sim = self._env.env.sim
        self.rows.append(
            {
                "integration": integration_state(sim.model._model, sim.data._data),
                "position": observation["robot0_eef_pos"],
                "quaternion": observation["robot0_eef_quat"],
                "fingers": observation["robot0_gripper_qpos"],
                "colours": sim.model.site_rgba.copy(),
                "done": done,
            }
        )
        if self._drawing:
            for name, images in self.images.items():
                images.append(observation[f"{name}_image"])


def play(path: Path) -> None:
    from vla_rl.envs.libero.package import load_libero

    load_libero()  # imports it without its log file in a shared place
    from libero.libero.envs import OffScreenRenderEnv

    with np.load(path) as file:
        plan = dict(file)
    size = int(plan["size"])
    env = OffScreenRenderEnv(
        bddl_file_name=str(plan["problem"]),
        camera_heights=size,
        camera_widths=size,
        camera_names=[str(name) for name in plan["cameras"]],
    )
    env.seed(0)
    env.env.reset()  # not env.reset(), which repeats for ever whatever the error
    recorder = _Recorder(env, {int(step) for step in plan["drawn"]})
    recorder.before(-1)
    env.set_init_state(plan["initial_state"])
    for settling in range(10):
        recorder.before(0 if settling == 9 else -1)
        observation, *_ = env.step(SETTLING)
    recorder.after(observation, bool(env.check_success()))
    for step, action in enumerate(plan["actions"], start=1):
        recorder.before(step)
        if step == int(plan["turned"]):
            for joint, position in zip(plan["joints"], plan["positions"], strict=True):
                env.sim.data.set_joint_qpos(str(joint), float(position))
        observation, _, done, _ = env.step(action)
        recorder.after(observation, bool(done))
    results = {name: np.stack([row[name] for row in recorder.rows]) for name in recorder.rows[0]}
    for name, images in recorder.images.items():
        results[name] = np.stack(images)
    model = env.sim.model._model
    results["body_pos"], results["body_quat"] = model.body_pos.copy(), model.body_quat.copy()
    unfinished = path.with_suffix(".unfinished.npz")
    np.savez(unfinished, **results)
    os.replace(unfinished, path.with_suffix(".played.npz"))
    env.close()


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        play(Path(argument))
    os._exit(0)  # robosuite's contexts complain while the interpreter takes itself apart
