"""What others have written, against what we serve: openpi's client and vla-evaluation-harness. `make test-doors`."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from builders.policies import sharpen, tiny_policy
from vla_rl.config import EnvConfig, tiny_model
from vla_rl.envs.defaults import benchmark_env
from vla_rl.envs.registry import benchmark
from vla_rl.recipes.serve import conversations
from vla_rl.types import EpisodeSpec, Observation

pytestmark = pytest.mark.doors

SUITE = "libero-object"
FOLDER = Path(__file__).parent
KEY = "a-key-of-enough-letters"
CHUNK = 8


def others(program: str, *words: object) -> None:
    """Run a program of this folder in the environment that has what others have written."""
    python = Path(os.environ["VLA_RL_DOORS_PYTHON"]) / "bin" / "python"
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, FOLDER / program, *map(str, words)],
        capture_output=True, text=True, check=False, env=settings | {"MUJOCO_GL": "egl"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_openpis_own_client_is_answered(tmp_path: Path) -> None:
    from vla_rl.serving.websocket import PolicyServer

    names = benchmark(SUITE).instructions(SUITE)
    policy = sharpen(tiny_policy(names, tiny_model(224), action_dim=7, dataset="libero"), 30.0)
    env = replace(benchmark_env(SUITE), image_size=224, action_chunk=2, action_repeat=4)
    file = tmp_path / "answers.npz"
    with PolicyServer(conversations(policy, env, None), port=0, key=KEY) as server:
        others("ask.py", "127.0.0.1", server.port, KEY, file)
    with np.load(file) as loaded:
        found = dict(loaded)
    seen = Observation(
        found["sent"],
        ("pick up the milk and place it in the basket",) * 3,
        np.zeros((3, 8), np.float32),
        np.zeros(3, np.float32),
    )
    chunks = policy.decode_actions(policy.act(seen, 0.0).tokens)
    np.testing.assert_array_equal(found["answers"], np.repeat(chunks, 4, axis=1))
    np.testing.assert_array_equal(found["held"], np.repeat(chunks[0], 4, axis=0)[:3])
    assert len(np.unique(chunks, axis=0)) > 1
    assert "prompt is missing" in str(found["refused"])
    assert json.loads(str(found["metadata"]))["action_horizon"] == 8


@dataclass
class Recorded:
    """Plays what an expert has played, a turn for each picture that it knows to the bit; else it stands still."""

    turns: dict[bytes, int]
    actions: np.ndarray  # (turns, C, 7)
    known: int = 0
    action_dim = 7
    action_chunk = CHUNK
    image_size = 256
    resizes_images = True

    def act(self, observation: Observation, temperature: float, uniforms: Any = None) -> Any:
        rows = [self.turns.get(image.tobytes(), -1) for image in observation.images]
        self.known += sum(row >= 0 for row in rows)
        return SimpleNamespace(tokens=torch.tensor(rows)[:, None])

    def decode_actions(self, tokens: torch.Tensor) -> np.ndarray:
        still = np.zeros((1, CHUNK, 7), np.float32)
        still[..., -1] = -1
        return np.concatenate([self.actions, still])[tokens[:, 0].numpy()]

    def fingerprint(self) -> str:
        return "recorded"


def recorded_expert(env_config: EnvConfig, spec: EpisodeSpec) -> tuple[Recorded, int]:
    """An expert's episode, and after how many steps it succeeded."""
    played = benchmark(env_config.suite)
    (env,) = played.make_envs(env_config, 1)
    env.reset(spec)
    expert = played.make_expert(env)
    turns: dict[bytes, int] = {}
    actions: list[np.ndarray] = []
    success, done = False, False
    while not done:
        if len(actions) % CHUNK == 0:
            turns[env.render().tobytes()] = len(actions) // CHUNK
        actions.append(expert.action())
        _, success, truncated, _ = env.step(actions[-1][None])
        done = success or truncated
    env.close()
    assert success
    steps = len(actions)
    actions += [actions[-1]] * (-steps % CHUNK)
    whole = np.asarray(actions, np.float32).reshape(-1, CHUNK, 7)
    assert len(turns) == len(whole)
    return Recorded(turns, whole), steps


@pytest.mark.sim
def test_the_harness_scores_our_policy_as_we_do(tmp_path: Path) -> None:
    """On the same initial states of LIBERO, success for success and step for step.

    The policy knows the pictures of one successful episode to the bit, and fails the other one.
    """
    from vla_rl.envs.vector.serial import SerialVectorEnv
    from vla_rl.evaluation.episodes import play_each_once
    from vla_rl.serving.websocket import PolicyServer

    task = benchmark(SUITE).task_names(SUITE)[0]
    home = benchmark_env(SUITE)
    policy, steps = recorded_expert(home, EpisodeSpec(task, 0))
    turns = len(policy.actions)
    env = replace(home, action_chunk=CHUNK, horizon=turns, num_envs=1)
    with SerialVectorEnv(env) as envs:
        specs = [EpisodeSpec(task, 0), EpisodeSpec(task, 1)]
        here = play_each_once(policy, envs, specs)  # type: ignore[arg-type]
    assert [(r.success, r.simulator_steps) for r in here] == [(True, steps), (False, CHUNK * turns)]
    policy.known = 0
    out = tmp_path / "result.json"
    with PolicyServer(conversations(policy, env, None, "vla-eval"), port=0) as server:
        others("harness.py", server.url, 2, CHUNK * turns, out)
    (result,) = json.loads(out.read_text())
    (scored,) = result["tasks"]
    there = [(e["metrics"]["success"], e["steps"]) for e in scored["episodes"]]
    assert there == [(r.success, r.simulator_steps) for r in here]
    assert result["num_errors"] == 0
    assert policy.known == turns  # every picture of the first episode was ours to the bit
