"""A scripted expert for LIBERO's tasks, for demonstrations where none can be downloaded.

    env.reset(EpisodeSpec(task, initial_state))
    expert = LiberoExpert(env)
    while not expert.done:
        env.step(expert.action()[None])

It reads the task's goal predicates and the poses and collision shapes of everything from the simulator: privileged
knowledge that no policy has. It serves demonstrations only, and must never be asked in training or evaluation.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from vla_rl.config.errors import UserError
from vla_rl.envs.libero.env import LiberoEnv
from vla_rl.envs.libero.expert.fixtures import Fixtures
from vla_rl.envs.libero.expert.hand import Condition, Hand, Plan
from vla_rl.envs.libero.expert.placing import Placing
from vla_rl.envs.libero.expert.scene import Goal, Scene
from vla_rl.envs.libero.expert.spots import named

NOISE_SCALE = (1.0, 1.0, 1.0, 0.2, 0.2, 0.2, 0.0)
"""Noise of each action component: less in rotations, and none in the gripper, which would drop what it holds."""
_ORDER = {"open": 0, "turnon": 1, "on": 2, "in": 2, "close": 3}
"""Goals come in this order whatever the BDDL file's: a drawer is closed after something has been put in it."""
_PUSHED = ("plate",)
"""Categories that are pushed to a place on the table instead of being carried there."""
_ROUNDS = 3


class LiberoExpert:
    """Plays one episode of `env`, which has just been reset, from wherever the robot is.

    `noise` is the standard deviation of what is added to displacements (1 is 5 cm), see NOISE_SCALE for the rest.
    Without noise an episode depends on the simulator's state alone. Raises UserError if the task has a goal that no
    skill reaches.
    """

    def __init__(self, env: LiberoEnv, noise: float = 0.0, seed: int = 0) -> None:
        self.done = False
        """The plan is over: the goals hold, or it has been given up."""
        self.skill = ""
        """What is being done, such as "on akita_black_bowl_1 plate_1"."""
        self._scene = Scene(lambda: env.simulator)
        self._hand = Hand(self._scene, hold=env._config.action_repeat)
        self._placing = Placing(self._scene, self._hand)
        self._fixtures = Fixtures(self._scene, self._hand, self._placing)
        self._noise = noise * np.array(NOISE_SCALE)
        self._rng = np.random.default_rng(seed)
        for goal in self._scene.goals():
            self._require_known(goal)
        self._plan = self._reach_goals()

    def action(self) -> Float32[np.ndarray, " 7"]:
        """What to do now, in [-1, 1]: displacement and rotation about x, y, z, gripper (-1 opens, 1 closes)."""
        action = next(self._plan, None)
        if action is None:
            self.done = True
            action = self._hand.rest()
        else:
            action = action + self._noise * self._rng.standard_normal(7)
        return np.clip(action, -1, 1).astype(np.float32)

    # -- plan ----------------------------------------------------------------------------------------

    def _reach_goals(self) -> Plan:
        """Reach one goal after the other; what did not work, or came undone, is tried again."""
        goals = sorted(self._scene.goals(), key=lambda goal: _ORDER[goal[0]])
        for _ in range(_ROUNDS):
            for goal in goals:
                if not self._scene.holds(goal):
                    yield from self._reach(goal)
            if all(self._scene.holds(goal) for goal in goals):
                return

    def _reach(self, goal: Goal) -> Plan:
        self.skill = " ".join(goal)
        before = self._opened_before(goal)
        if before is not None:
            yield from self._work(before)
        if goal[0] not in ("on", "in"):
            yield from self._work(goal)
        elif named(goal[1], _PUSHED) and not self._scene.is_object(goal[2]):
            yield from self._fixtures.push(goal[1], goal[2], self._reached(goal))
        else:
            yield from self._placing.move_object(goal)

    def _opened_before(self, goal: Goal) -> Goal | None:
        """What has to be opened first: the closed drawer that an object is to be put into."""
        if goal[0] not in ("on", "in") or self._scene.is_object(goal[2]):
            return None
        opened = ("open", goal[2])
        if self._scene.joint_of(goal[2]) is None or self._scene.holds(opened):
            return None
        return opened

    def _work(self, goal: Goal) -> Plan:
        """Open, close or turn something."""
        relation, name = goal
        joint = self._scene.joint_of(name)
        assert joint is not None, f"{name} has no joint"
        done = self._reached(goal)
        if relation == "turnon":
            return self._fixtures.turn_knob(name, joint, done)
        if relation == "open":
            return self._fixtures.open_drawer(name, joint, done)
        if self._scene.slides(joint):
            return self._fixtures.close_drawer(name, joint, done)
        return self._fixtures.close_door(name, joint, done)

    def _reached(self, goal: Goal) -> Condition:
        return lambda: self._scene.holds(goal)

    def _require_known(self, goal: Goal) -> None:
        """UserError if no skill leads to this goal, be it reached already or not."""
        hard = self._opened_before(goal) or goal
        joint = self._scene.joint_of(hard[1]) if hard[0] in ("open", "close", "turnon") else None
        movable = joint is not None and (hard[0] != "open" or self._scene.slides(joint))
        if hard[0] not in _ORDER or not (movable or hard[0] in ("on", "in")):
            raise UserError(
                f"the scripted expert has no skill for the goal {' '.join(hard)!r}. It opens drawers, turns knobs on, "
                "puts things on or in others, and closes drawers and doors: leave this task out"
            )
