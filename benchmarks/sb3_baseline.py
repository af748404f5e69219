r"""stable-baselines3's PPO with its CNN policy, on one of our tasks as a Gymnasium environment, from pixels.

    python benchmarks/sb3_baseline.py mt1:drawer-close --turns 20000 --out runs/sb3.json
    python benchmarks/sb3_baseline.py toy:reach-red --turns 20000 --reward dense --chunk 1 --out runs/sb3-toy.json

For an environment with stable-baselines3 in it, which needs nothing that vla-rl does not bring but pandas and
cloudpickle. It starts from nothing, plays the same training states as our practice, and is scored as `vla-rl eval`
scores: held-out initial states, each once, greedy and sampled. The result names its simulator steps, which is what two
recipes may be compared by.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO, __version__
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

import vla_rl.gymnasium_envs  # noqa: F401  registers our suites
from vla_rl.functional.intervals import wilson_interval


class Progress(BaseCallback):
    """Counts simulator steps and finished episodes, and stops after so many minutes."""

    def __init__(self, minutes: float) -> None:
        super().__init__()
        self.simulator_steps, self.ends, self.curve = 0, list[bool](), list[list[float]]()
        self.until = time.monotonic() + 60 * minutes

    def _on_step(self) -> bool:
        for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True):
            self.simulator_steps += int(info["simulator_steps"])
            if done:
                self.ends.append(bool(info["is_success"]))
        return time.monotonic() < self.until

    def _on_rollout_end(self) -> None:
        recent = self.ends[-100:]
        self.curve.append([self.num_timesteps, len(self.ends), float(np.mean(recent or [0]))])
        print(
            f"{self.num_timesteps} turns, {len(self.ends)} episodes, success {self.curve[-1][2]:.2f}"
        )


def evaluate(model: Any, env: Any, episodes: int, *, greedy: bool) -> dict[str, Any]:
    """Success on the first `episodes` initial states that are held out, each once."""
    inner, successes = env.unwrapped, []
    for state in inner._states[:episodes].tolist():
        torch.manual_seed(state)
        seen, _ = env.reset(options={"initial_state": state})
        ended = False
        while not ended:
            action, _ = model.predict(seen, deterministic=greedy)
            seen, _, terminated, truncated, info = env.step(action)
            ended = terminated or truncated
        successes.append(bool(info["is_success"]))
    low, high = wilson_interval(sum(successes), len(successes))
    return {
        "success_rate": float(np.mean(successes)),
        "interval": [low, high],
        "episodes": successes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("suite")
    parser.add_argument("--turns", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument(
        "--steps", type=int, default=256, help="turns of an environment between updates"
    )
    parser.add_argument("--chunk", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--reward", choices=("success", "dense"), default="success")
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    settings = {
        "suite": asked.suite, "observation": "image", "image_size": asked.image_size, "action_chunk": asked.chunk,
    }  # fmt: skip
    envs = make_vec_env(
        "vla_rl/suite-v0", asked.envs, asked.seed, env_kwargs={**settings, "reward": asked.reward}
    )
    model = PPO("CnnPolicy", envs, seed=asked.seed, n_steps=asked.steps, device="cpu")
    held_out = gymnasium.make("vla_rl/suite-v0", split="held-out", **settings)
    progress, began = Progress(asked.minutes), time.process_time()
    model.learn(asked.turns, callback=progress)
    result = {
        "suite": asked.suite,
        "stable_baselines3": __version__,
        "reward": asked.reward,
        "seed": asked.seed,
        "turns": model.num_timesteps,
        "training_episodes": len(progress.ends),
        "simulator_steps": progress.simulator_steps,
        "cpu_seconds": time.process_time() - began,
        "curve": progress.curve,
        "greedy": evaluate(model, held_out, asked.episodes, greedy=True),
        "sampled": evaluate(model, held_out, asked.episodes, greedy=False),
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=1))
    for play in ("greedy", "sampled"):
        found = result[play]
        print(f"{play}: {found['success_rate']:.1%} {np.round(found['interval'], 3)}")


if __name__ == "__main__":
    main()
