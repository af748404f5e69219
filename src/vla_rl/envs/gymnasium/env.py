"""A Gymnasium environment as one of ours: numbered initial states are seeds, a turn is a chunk of actions.

The environment's own code may fail. What fails again when the episode is played again from its seed is a fault of that
environment, told at once; what does not is treated as any simulator that went down, whose episodes are played again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, UserError, nearest
from vla_rl.envs.env import Snapshot
from vla_rl.envs.faults import fault, same, told
from vla_rl.envs.gymnasium.options import GymOptions
from vla_rl.envs.gymnasium.simulator import GymSimulator, Layout
from vla_rl.envs.gymnasium.states import read_state, write_state
from vla_rl.runtime.images import make_square
from vla_rl.runtime.resizing import resize
from vla_rl.types import EpisodeSpec

T = TypeVar("T")

NO_SNAPSHOTS = (
    "what goes back to a moment of an episode does not work with it: demonstrations with --snapshots and --starts, "
    "search with a lookahead (--mode lookahead or trajectories), and a resumed run is not the same run"
)
"""What an environment that cannot be gone back to is not good for."""
_ACTIONS = "actions"


def other_instruction(
    options: GymOptions, expected: str, said: str | None, seed: int
) -> ConfigError:
    """The error of an environment that is more than one task."""
    return ConfigError(
        f"{options.suite}: it says {expected!r} in one episode and {said!r} in that of seed {seed}: a suite of it is "
        "one task. Fix the task with make.<keyword>= or reset.<option>=, name it with task=, and put several such "
        "suites together with +; or give one instruction=<text> for all"
    )


@dataclass(frozen=True)
class GymMaker:
    """Makes environments of one process. A value: simulator processes receive it."""

    options: GymOptions
    layout: Layout

    def __call__(self, config: EnvConfig, count: int) -> list[GymEnv]:
        return [self.one(config) for _ in range(count)]

    def one(self, config: EnvConfig, *, video: bool = False) -> GymEnv:
        """With the abilities that the environment has."""
        kind = _KINDS[self.layout.wrist is not None, self.options.dense is not None]
        return kind(self.options, self.layout, config, video=video)


class GymEnv:
    """One slot. `video`: the image is what the environment draws of itself, where it does."""

    def __init__(
        self, options: GymOptions, layout: Layout, config: EnvConfig, *, video: bool = False
    ) -> None:
        self.tasks, self.instructions = (options.task,), (layout.instruction,)
        self.instruction, self.turns = "", 0
        self.action_dim, self.proprio_dim = len(layout.actions.low), layout.proprio_dim
        self._options, self._layout, self._config = options, layout, config
        self._drawn = video and layout.renders
        self._simulator = self._make()
        self._seed: int | None = None
        self._played: list[Float32[np.ndarray, " A"]] = []  # of the episode, one a step
        self._ended = False

    def _make(self) -> GymSimulator:
        return GymSimulator(self._options, self._layout, rendered=self._drawn)

    @property
    def snapshots_in_words(self) -> str:
        """How an episode is gone back to."""
        if self._layout.keeps == "state":
            return "exact, by the environment's state"
        return "exact, by playing an episode again from its seed"

    @property
    def seed(self) -> int:
        """Of the episode being played."""
        assert self._seed is not None
        return self._seed

    @property
    def simulator(self) -> GymSimulator:
        """With the Gymnasium environment in it. Privileged: for experts."""
        return self._simulator

    def reset(self, spec: EpisodeSpec) -> None:
        """Start the episode whose number is the environment's seed. ConfigError for another task than its one."""
        if spec.task not in self.tasks:
            raise ConfigError(
                f"task {spec.task!r} is not in suite {self._config.suite!r}.{nearest(spec.task, self.tasks)}"
            )
        seed = int(spec.initial_state)
        self._seed, self._played = seed, []
        self._ask("reset", lambda simulator: simulator.reset(seed), fresh=True)
        self._ended, self.turns = False, 0
        self.instruction = self._layout.instruction
        if self._layout.reads_instruction:
            said = self._simulator.instruction()
            if said != self.instruction:
                raise other_instruction(self._options, self.instruction, said, seed)

    def step(
        self,
        actions: Float32[np.ndarray, "C A"],
        on_frame: Callable[[], None] | None = None,
    ) -> tuple[float, bool, bool, int]:
        """Play one turn: each action clipped to [-1, 1] and held for `action_repeat` steps; stops at the end.

        An end without success counts as the time limit does: nothing is to be had after it. `on_frame` is called after
        every step. Returns (reward, terminated, truncated, steps taken).
        """
        if self._seed is None:
            raise RuntimeError("reset the environment first")
        if self._ended:
            raise RuntimeError("the episode has ended: reset before the next step")
        success, over, steps = False, False, 0
        clipped = np.clip(np.asarray(actions, np.float32).reshape(-1, self.action_dim), -1, 1)
        for action in np.repeat(clipped, self._config.action_repeat, axis=0):
            success, over = self._step(action)
            steps += 1
            if on_frame is not None:
                on_frame()
            if success or over:
                break
        self.turns += 1
        truncated = not success and (over or self.turns >= self._config.horizon)
        self._ended = success or truncated
        return float(success), success, truncated, steps

    def _step(self, action: Float32[np.ndarray, " A"]) -> tuple[bool, bool]:
        self._ask("step", lambda simulator: simulator.step(action))
        self._played.append(action.copy())
        return self._simulator.succeeded, self._simulator.over

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        """The image in `image_size`; one that is not square has black bars."""
        return self._fitted(
            self._ask("render", lambda simulator: simulator.picture(drawn=self._drawn))
        )

    def _fitted(self, picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        return resize(make_square(picture[None], "pad"), self._config.image_size)[0]

    def proprio(self) -> Float32[np.ndarray, " P"]:
        return self._simulator.proprio()

    # -- faults of the environment -------------------------------------------------------------------

    def _ask(self, doing: str, call: Callable[[GymSimulator], T], *, fresh: bool = False) -> T:
        """`call` with the simulator; where it raises, find out whether it does so again.

        fresh: it begins with a reset.
        """
        try:
            return call(self._simulator)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            if same(error, self._again(call, fresh)):
                raise fault(self._options.suite, f"{doing}()", error) from error
            raise

    def _again(self, call: Callable[[GymSimulator], T], fresh: bool) -> BaseException | None:
        """What the same raises in an environment that is made anew and played to the same moment."""
        try:
            twin = self._make()
            try:
                if not fresh:
                    self._play_again(twin)
                call(twin)
            finally:
                with suppress(Exception):
                    twin.close()
        except (Exception, SystemExit) as error:
            return error
        return None

    def _play_again(self, simulator: GymSimulator) -> None:
        assert self._seed is not None
        simulator.reset(self._seed)
        for action in self._played:
            simulator.step(action)

    # -- snapshots -----------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The episode so far: its actions, and the environment's state if it gives one. UserError where it has none."""
        if self._seed is None:
            raise RuntimeError("reset the environment first")
        if self._layout.keeps == "none":
            raise UserError(f"{self._options.suite} has no snapshots: {NO_SNAPSHOTS}")
        found = read_state(self._simulator.env) if self._layout.keeps == "state" else {}
        return {
            "task": self._options.task,
            "initial_state": self._seed,
            "turns": self.turns,
            "ended": self._ended,
            "reward": self._simulator.reward,
            _ACTIONS: np.array(self._played, np.float32).reshape(-1, self.action_dim),
            **found,
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Continue the episode of `snapshot`. UserError for one of another environment."""
        self._require_own(snapshot)
        if self._layout.keeps == "none":
            raise UserError(f"{self._options.suite} has no snapshots: {NO_SNAPSHOTS}")
        self.reset(EpisodeSpec(str(snapshot["task"]), int(snapshot["initial_state"])))
        actions = np.asarray(snapshot[_ACTIONS], np.float32)
        if self._layout.keeps == "replay":
            for action in actions:
                self._step(action)
        else:
            write_state(self._simulator.env, snapshot)
            if len(actions):  # what the episode shows comes with a step, which must not be played
                self._simulator.observe_state(float(snapshot["reward"]))
            self._played = list(actions)
        self.turns, self._ended = int(snapshot["turns"]), bool(snapshot["ended"])

    def _require_own(self, snapshot: Snapshot) -> None:
        actions = np.asarray(snapshot.get(_ACTIONS, ()))
        if actions.ndim != 2 or actions.shape[1] != self.action_dim or actions.dtype.kind != "f":
            raise UserError(
                f"a snapshot of the simulator: expected the actions of an episode of {self._options.suite}, "
                f"{self.action_dim} numbers each, got {actions.dtype} of shape {actions.shape}: collect the "
                "demonstrations again"
            )

    def close(self) -> None:
        with told(self._options.suite, "close()"):
            self._simulator.close()


class _Dense(GymEnv):
    """Its reward is a shaped one."""

    def dense_reward(self) -> float:
        """What the last step gave."""
        if not self._played:
            raise RuntimeError("the dense reward is of a turn: play one since the last reset")
        return self._simulator.reward


class _Wrist(GymEnv):
    """It has a second image."""

    def render_wrist(self) -> UInt8[np.ndarray, "H W 3"]:
        return self._fitted(self._simulator.wrist())


class _DenseWrist(_Dense, _Wrist):
    """Both."""


_KINDS: dict[tuple[bool, bool], type[GymEnv]] = {
    (False, False): GymEnv,
    (False, True): _Dense,
    (True, False): _Wrist,
    (True, True): _DenseWrist,
}
"""By whether there is a second image, and a dense reward."""
