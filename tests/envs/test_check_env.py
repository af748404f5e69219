"""Every registered simulator keeps what the rest relies on, and the check itself finds what does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vla_rl.config import EnvConfig, UserError
from vla_rl.envs.check import check_env
from vla_rl.envs.registry import BENCHMARKS
from vla_rl.envs.toy.benchmark import TOY
from vla_rl.envs.toy.env import ToyEnv

DRAWN_BY_A_SIMULATOR = [name for name, played in BENCHMARKS.items() if played.installation]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.sim] if name in DRAWN_BY_A_SIMULATOR else [])
        for name in BENCHMARKS
    ],
)
def test_every_benchmark_keeps_its_promises(name: str) -> None:
    played = BENCHMARKS[name]
    if played.installation is not None:
        pytest.importorskip(played.installation.module)
    check_env(played)


class Forgetful(ToyEnv):
    """Breaks one promise for each thing that an author forgets."""

    broken = ""

    def reset(self, spec):
        if self.broken == "history" and self._world is not None:
            spec = replace_state(spec)
        super().reset(spec)

    def step(self, actions, on_frame=None):
        if self.broken == "clip":
            self.world.hand += 0.001 * float(np.abs(actions).max() > 1)
        reward, terminated, truncated, steps = super().step(actions, on_frame)
        return (0.5 if self.broken == "reward" else reward), terminated, truncated, steps

    def render(self):
        image = super().render()
        return image.astype(np.float32) if self.broken == "dtype" else image

    def snapshot(self):
        state = super().snapshot()
        if self.broken == "object":
            state["world"] = self.world
        if self.broken == "hand":
            state["hand"] = state["hand"] + 0.1
        return state


def replace_state(spec):
    return type(spec)(spec.task, spec.initial_state + 5)


def make_forgetful_envs(config: EnvConfig, count: int) -> list[ToyEnv]:
    return [Forgetful(config) for _ in range(count)]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("history", "depends on what was played before"),
        ("clip", "clipped to"),
        ("reward", "the reward is sparse"),
        ("dtype", "render should give uint8"),
        ("object", r"\['world'\] are something else"),
        ("hand", "goes on differently"),
    ],
)
def test_a_broken_promise_is_named(monkeypatch, broken: str, said: str) -> None:
    monkeypatch.setattr(Forgetful, "broken", broken)
    with pytest.raises(UserError, match=said):
        check_env(replace(TOY, make_envs=make_forgetful_envs))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"noise_scale": (1.0,)}, "noise_scale should hold 4"),
        ({"instructions": lambda suite: ("one",)}, "one text per task"),
        ({"make_envs": lambda config, count: []}, "function of a module"),
        ({"env_defaults": lambda suite: EnvConfig()}, "for another suite, 'mt5'"),
        ({"proprio_dim": 3}, "outside the 3"),
        ({"dense_reward_max": None}, "dense_reward_max should be a number"),
    ],
)
def test_a_wrong_statement_is_named(change: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_env(replace(TOY, **change))
