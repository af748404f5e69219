"""A made-up run folder for the report's tests: plausible numbers, drawn images. Never a result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vla_rl.config import TrainConfig
from vla_rl.functional.intervals import wilson_interval
from vla_rl.runtime.video import write_video

MT5 = (
    "drawer-open-v3",
    "drawer-close-v3",
    "window-open-v3",
    "window-close-v3",
    "button-press-topdown-v3",
)
HELD_OUT = tuple(range(900, 930))
# success before and after of a task, greedy; sampling costs a little
BEFORE = (0.30, 0.63, 0.33, 0.40, 0.13)
AFTER = (0.87, 0.97, 0.83, 0.93, 0.40)
Json = dict[str, Any]


def make_run(
    folder: Path,
    tasks: Sequence[str] = MT5,
    iterations: int = 69,
    videos_per_task: int = 2,
    initial_states: Sequence[int] = HELD_OUT,
    seed: int = 0,
) -> Path:
    """Write a whole run folder and return it."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    (folder / "eval").mkdir()
    config = TrainConfig()
    config = replace(
        config,
        schedule=replace(config.schedule, iterations=iterations),
        ppo=replace(config.ppo, self_imitation_coef=0.15),
        curriculum=replace(config.curriculum, mode="frontier"),
        policy=replace(config.policy, checkpoint="runs/sft/policy"),
        run=replace(config.run, name=folder.name, seed=3),
    )
    write_json(folder / "config.json", asdict(config))
    write_json(folder / "run.json", _run_info(folder.name))
    success = np.array([_curve(i, iterations, tasks) for i in range(iterations)])
    write_lines(folder / "metrics.jsonl", _metrics(success, tasks, rng))
    write_lines(folder / "sft.jsonl", _sft(rng))
    for stage, rates in (("before", BEFORE), ("after", AFTER)):
        for mode, factor in (("greedy", 1.0), ("sampled", 0.85)):
            chances = [rates[i % len(rates)] * factor for i in range(len(tasks))]
            evaluation = make_evaluation(stage, mode, tasks, chances, initial_states)
            write_json(folder / "eval" / f"{stage}-{mode}.json", evaluation)
            if mode == "greedy":
                _videos(folder / "eval" / "videos" / stage, evaluation, videos_per_task)
    return folder


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1), encoding="utf-8")


def write_lines(file: Path, rows: Sequence[Json]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_evaluation(
    stage: str,
    mode: str,
    tasks: Sequence[str],
    chances: Sequence[float],
    initial_states: Sequence[int] = HELD_OUT,
) -> Json:
    """An evaluation file in which the first round(chance * n) initial states of a task succeed."""
    episodes: list[Json] = []
    for number, (task, chance) in enumerate(zip(tasks, chances, strict=True)):
        wins = round(chance * len(initial_states))
        order = np.random.default_rng(number).permutation(len(initial_states))
        for place, state in enumerate(initial_states):
            won = bool(order[place] < wins)
            turns = int(5 + order[place] % 7) if won else 15
            episodes.append(
                {
                    "task": task,
                    "initial_state": int(state),
                    "success": won,
                    "turns": turns,
                    "simulator_steps": turns * 10,
                }
            )
    return {
        "format": 1,
        "checkpoint": "runs/sft/policy"
        if stage == "before"
        else "runs/example/checkpoints/last/policy",
        "suite": "mt5",
        "split": "held-out",
        "tasks": {task: _rate([e for e in episodes if e["task"] == task]) for task in tasks},
        "overall": _rate(episodes),
        "horizon": 15,
        "action_repeat": 5,
        "action_chunk": 2,
        "sampling": {"mode": mode, "temperature": 0.0 if mode == "greedy" else 1.0},
        "seed": 0,
        "initial_states": [int(state) for state in initial_states],
        "episodes": episodes,
        "infrastructure_errors": 0,
        "versions": {"vla-rl": "0.1.0", "torch": "2.13.0"},
        "wall_seconds": 11.4,
    }


def _rate(episodes: Sequence[Json]) -> Json:
    wins = sum(e["success"] for e in episodes)
    turns = [e["turns"] for e in episodes]
    return {
        "successes": wins,
        "episodes": len(episodes),
        "success_rate": wins / len(episodes),
        "interval": list(wilson_interval(wins, len(episodes))),
        "mean_turns": float(np.mean(turns)),
        "mean_simulator_steps": float(np.mean(turns)) * 10,
    }


def _run_info(name: str) -> Json:
    return {
        "config_type": "TrainConfig",
        "command": ["vla-rl", "train", "metaworld-mt5", "--run.name", name, "--run.seed", "3"],
        "started": "2025-11-21T09:30:12+0000",
        "git": {"revision": "4f2c9e1b7d0a4c55b1f0e6a9d8c7b6a5f4e3d2c1", "dirty": False},
        "versions": {
            "python": "3.11.2",
            "vla-rl": "0.1.0",
            "torch": "2.13.0+cpu",
            "numpy": "2.4.0",
            "mujoco": "3.3.0",
            "metaworld": "3.1.1",
        },
        "machine": {"platform": "Linux-6.1.0-x86_64-with-glibc2.36", "cpus": 2, "gpus": []},
    }


def _curve(iteration: int, iterations: int, tasks: Sequence[str]) -> np.ndarray:
    start = np.array([BEFORE[i % len(BEFORE)] for i in range(len(tasks))]) * 0.85
    end = np.array([AFTER[i % len(AFTER)] for i in range(len(tasks))]) * 0.85
    middle = 0.18 + 0.09 * (np.arange(len(tasks)) % 5)
    share = 1 / (1 + np.exp(-9 * (iteration / max(iterations - 1, 1) - middle)))
    return start + (end - start) * share


def _metrics(success: np.ndarray, tasks: Sequence[str], rng: np.random.Generator) -> list[Json]:
    rows: list[Json] = []
    clock = 0.0
    for i, rates in enumerate(success):
        p = np.exp(-np.abs(rates - 0.5) / 0.4)
        p /= p.sum()
        learning = i >= 2
        drawn = np.clip(rates + rng.normal(0, 0.07, len(tasks)), 0, 1)
        episodes = int(128 + rng.integers(-6, 7))
        simulate, infer, learn = (
            2.6 + rng.normal(0, 0.1),
            2.1 + rng.normal(0, 0.1),
            3.6 + rng.normal(0, 0.15),
        )
        if i == 0:
            learn += 4.0
        clock += simulate + infer + learn + 0.4
        kl = abs(rng.normal(0.006, 0.002)) if learning else 0.0
        rows.append(
            {
                "iteration": i,
                "wall_seconds": clock,
                "rollout/success_rate": float((p * drawn).sum()),
                "curriculum/success_mean": float(drawn.mean()),
                "rollout/episode_length": float(14 - 5 * rates.mean() + rng.normal(0, 0.2)),
                "rollout/return_sparse": float((p * drawn).sum()),
                "rollout/return_dense": float((p * drawn).sum() * 0.3),
                "rollout/episodes": episodes,
                "rollout/turns": 1600,
                "curriculum/entropy": float(-(p * np.log(p)).sum()),
                "losses/policy": float(rng.normal(-0.01, 0.004)),
                "losses/value": float(0.16 * np.exp(-i / 20) + 0.05 + rng.normal(0, 0.006)),
                "losses/entropy": float(1.9 - 0.7 * i / len(success) + rng.normal(0, 0.02)),
                "losses/approx_kl_k1": kl * 0.8 if learning else 0.0,
                "losses/approx_kl_k3": kl,
                "losses/kl_reference": 0.6 * (1 - np.exp(-i / 30)) if learning else 0.0,
                "losses/clip_fraction": float(abs(rng.normal(0.05, 0.01))) if learning else 0.0,
                "losses/ratio_mean": float(1 + rng.normal(0, 0.002)),
                "losses/ratio_max": float(abs(rng.normal(2.2, 0.4))),
                "losses/explained_variance": float(
                    0.55 * (1 - np.exp(-i / 8)) + rng.normal(0, 0.03)
                ),
                "losses/grad_norm_policy": float(abs(rng.normal(0.6, 0.1))) if learning else None,
                "losses/grad_norm_critic": float(abs(rng.normal(1.1, 0.3))),
                "losses/learning_rate": 2e-4 * (1 - 0.7 * i / len(success)) if learning else 0.0,
                "losses/logprob_max_difference": float(abs(rng.normal(2e-6, 5e-7))),
                "time/simulate": simulate,
                "time/infer": infer,
                "time/learn": learn,
                "time/other": 0.4,
                "speed/turns_per_second": 1600 / (simulate + infer),
                "speed/episodes_per_second": episodes / (simulate + infer),
                "memory/main_mb": 700.0 + rng.normal(0, 3),
                "memory/workers_mb": 900.0 + rng.normal(0, 3),
                "rollout/infrastructure_errors": 0,
                **{f"success/{t}": float(r) for t, r in zip(tasks, drawn, strict=True)},
                **{f"curriculum/p/{t}": float(q) for t, q in zip(tasks, p, strict=True)},
                **{f"curriculum/success/{t}": float(r) for t, r in zip(tasks, rates, strict=True)},
            }
        )
    return rows


def _sft(rng: np.random.Generator) -> list[Json]:
    return [
        {
            "epoch": e,
            "sft/loss": float(1.1 + 2.3 * np.exp(-e / 9) + rng.normal(0, 0.03)),
            "sft/validation_loss": float(
                1.6 + 1.9 * np.exp(-e / 7) + 0.004 * e + rng.normal(0, 0.03)
            ),
        }
        for e in range(60)
    ]


def _videos(folder: Path, evaluation: Json, per_task: int) -> None:
    """Videos of the first episodes of every task, which are the same initial states before and after."""
    folder.mkdir(parents=True)
    index: list[Json] = []
    for task in evaluation["tasks"]:
        for episode in [e for e in evaluation["episodes"] if e["task"] == task][:per_task]:
            name = f"{len(index):03d}.mp4"
            frames = _draw(
                hash_of(task), episode["initial_state"], episode["turns"] + 1, episode["success"]
            )
            write_video(folder / name, frames, fps=5)
            keys = ("task", "initial_state", "success", "turns")
            index.append({"file": name, **{key: episode[key] for key in keys}})
    write_json(folder / "index.json", index)


def hash_of(text: str) -> int:
    """A small number that differs between tasks and not between processes."""
    return sum(ord(letter) * (place + 1) for place, letter in enumerate(text))


def _draw(task: int, state: int, frames: int, success: bool) -> list[np.ndarray]:
    """A table, an arm and a box which the arm reaches, or misses."""
    size, fine = 64, 4
    colors = ((196, 84, 60), (60, 120, 196), (84, 160, 90), (200, 150, 50), (140, 90, 170))
    box = np.array([22 + (state * 7 + task) % 26, 34 + (state * 5) % 12], dtype=float)
    goal = box + (np.zeros(2) if success else np.array([13.0, -12.0]))
    images: list[np.ndarray] = []
    for t in range(frames):
        image = Image.new("RGB", (size * fine, size * fine), (206, 214, 220))
        draw = ImageDraw.Draw(image)
        draw.polygon([(n * fine) for n in (0, 30, 64, 24, 64, 64, 0, 64)], fill=(150, 112, 78))
        share = 1 - (1 - t / max(frames - 1, 1)) ** 2
        hand = (1 - share) * np.array([46.0, 10.0]) + share * (goal - (0, 4))
        x, y = box * fine
        draw.rectangle((x - 20, y - 16, x + 20, y + 16), fill=colors[task % len(colors)])
        hx, hy = hand * fine
        draw.line(
            (58 * fine, 0, 52 * fine, 14 * fine, hx, hy), fill=(70, 74, 82), width=16, joint="curve"
        )
        draw.ellipse((hx - 12, hy - 12, hx + 12, hy + 12), fill=(40, 42, 48))
        images.append(np.asarray(image.resize((size, size), Image.Resampling.LANCZOS)).copy())
    return images
