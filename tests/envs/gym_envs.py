"""Environments of somebody else, in all the shapes that they come in; simulator processes import them by name."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

SIZE = 16
RESETS = count()
PICTURE = gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
HAND = gym.spaces.Box(-1, 1, (2,), np.float32)
LOOKS = {
    "uint8": PICTURE,
    "dict": gym.spaces.Dict({"pixels": PICTURE, "agent_pos": HAND, "goal": HAND}),
    "nested": gym.spaces.Dict({"pixels": gym.spaces.Dict({"top": PICTURE, "side": PICTURE})}),
    "tuple": gym.spaces.Tuple((HAND, PICTURE)),
    "planes": gym.spaces.Box(0, 255, (3, SIZE, SIZE), np.uint8),
    "grey": gym.spaces.Box(0, 255, (SIZE, SIZE, 1), np.uint8),
    "wide": gym.spaces.Box(0, 255, (SIZE, 2 * SIZE, 3), np.uint8),
    "float": gym.spaces.Box(0, 1, (SIZE, SIZE, 3), np.float32),
    "int64": gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.int64),
    "lying": PICTURE,
    "vector": HAND,
}
ACTIONS: dict[str, Any] = {
    "box": gym.spaces.Box(np.array([0, -0.2], np.float32), np.array([4, 0.2], np.float32)),
    "open": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "discrete": gym.spaces.Discrete(3),
    "dict": gym.spaces.Dict({"move": HAND}),
    "tuple": gym.spaces.Tuple((HAND, HAND)),
    "whole": gym.spaces.Box(-3, 3, (2,), np.int64),
    "flat": gym.spaces.Box(0, 0, (2,), np.float32),
}


class Rail(gym.Env):
    """A carriage goes along a rail with the second number of an action, to a mark that the seed sets."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        looks: str = "uint8",
        actions: str = "box",
        says: str = "success",
        text: str = "go",
        state: str = "",
        broken: str = "",
        marker: str = "",
        render_mode: str | None = None,
    ) -> None:
        self.observation_space, self.action_space = LOOKS[looks], ACTIONS[actions]
        self.looks, self.says, self.text, self.state, self.broken = looks, says, text, state, broken
        self.marker, self.render_mode = marker, render_mode
        if text == "one for all":
            self.instruction = text
        if state:
            self.get_state, self.set_state = self._get_state, self._set_state
        if broken == "constructor":
            raise RuntimeError("the licence has run out")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.broken == "reset":
            raise RuntimeError("the rail is gone")
        self.asked = options or {}
        self.place, self.steps, self.hidden = 0.5, 0, 0.0
        self.mark = float(self.np_random.choice([0.2, 0.8])) + 0.001 * float(
            self.np_random.random()
        )
        if self.broken == "chance":
            self.mark = 0.1 + 0.3 * (next(RESETS) % 3)  # whatever the seed
        if self.broken == "no info":
            return self._get_obs(), None
        if self.broken == "exit":
            raise SystemExit(3)
        info = {"instruction": f"{self.text} {seed}" if self.text == "another" else self.text}
        return self._get_obs(), ({} if self.text in ("", "one for all") else info)

    def step(self, action):
        self.last = np.asarray(action)
        self.steps += 1
        if self.broken == "step" and self.steps > 8:
            raise ZeroDivisionError("the wheels turn on air")
        if self.broken == "once" and self.steps > 2 and not Path(self.marker).exists():
            Path(self.marker).touch()
            raise OSError("the network is down")
        if self.broken == "triple":
            return self._get_obs(), 0.0, False
        self.hidden += 0.001 * self.steps
        self.place += float(self.last.reshape(-1)[-1]) + (
            self.hidden if self.state == "partial" else 0
        )
        solved = bool(abs(self.place - self.mark) < 0.1)
        fell = not -1 < self.place < 2
        if self.broken == "nan":
            return self._get_obs(), float("nan"), False, False, {"success": False}
        info = {} if self.says in ("nothing", "reward", "end") else {self.says: solved}
        if self.says == "text":
            info = {"text": "no"}
        return self._get_obs(), float(solved), solved or fell, False, info

    def _get_state(self):
        kept = {"place": self.place, "steps": self.steps}
        if self.state == "whole":
            kept |= {"mark": self.mark, "hidden": np.array([self.hidden])}
        return {"env": self} if self.state == "object" else kept

    def _set_state(self, state):
        self.place, self.steps = float(state["place"]), int(state["steps"])
        if self.state == "whole":
            self.mark, self.hidden = float(state["mark"]), float(state["hidden"][0])

    def _picture(self, height=SIZE, width=SIZE):
        image = np.zeros((height, width, 3), np.uint8)
        for channel, place in enumerate((self.place, self.mark)):
            image[:, round(np.clip(place, 0, 1) * (width - 1)), channel] = 255
        return image

    def _get_obs(self):
        image, hand = self._picture(), np.array([self.place, 0], np.float32)
        return {
            "dict": {"pixels": image, "agent_pos": hand, "goal": hand},
            "nested": {"pixels": {"top": image, "side": image}},
            "tuple": (hand, image),
            "planes": image.transpose(2, 0, 1),
            "grey": image[..., :1],
            "wide": self._picture(SIZE, 2 * SIZE),
            "float": (image / 255).astype(np.float32),
            "int64": image.astype(np.int64),
            "lying": (image / 255).astype(np.float32),
            "vector": hand,
        }.get(self.looks, image)

    def render(self):
        return self._picture(2 * SIZE, 2 * SIZE) if self.render_mode == "rgb_array" else None


class Modest(Rail):
    """It says that it can be drawn, and cannot be made so."""

    def __init__(self) -> None:
        super().__init__()


class Blind(Rail):
    """It cannot be drawn."""

    metadata = {"render_modes": ["human"]}  # noqa: RUF012


def go_to_mark(env):
    """An expert."""
    return [2.0, np.clip(env.mark - env.place, -0.2, 0.2)]


def make_rail(**keywords: Any) -> Rail:
    return Rail(**keywords)


gym.register("Rail-v0", Rail, max_episode_steps=20)
gym.register("Blind-v0", Blind)
gym.register("Modest-v0", Modest)
