"""A humanoid of 17 joints that touches a coloured ball with one hand: a Gymnasium environment for `gym:` suites.

    gym:humanoid_reach:RightHand-v0     "touch the red ball with the right hand"
    gym:humanoid_reach:LeftHand-v0      "touch the blue ball with the left hand"

Both balls are there in both, at places that the seed draws. The robot is Gymnasium's `humanoid.xml` (MIT licence), read
from where Gymnasium is installed, with these changes, since the task is reaching:

- Its feet are fixed where they stand. They are spheres, on which it could only stand by balancing all the time. Knees,
  hips and waist still carry the hand.
- Its 17 motors are position servos, as robots of this size are driven. An action moves their 17 targets, by at most
  `MOVE` radians each.
- Nothing collides, and no floor is drawn.

Knows nothing of vla_rl. Used without it, MuJoCo needs MUJOCO_GL=egl or osmesa where there is no screen.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np

SIZE = 64
"""Height and width of the image in pixels."""
TIMESTEP, SUBSTEPS = 0.005, 40
"""Seconds of a step of physics, and how many of those one step of the environment takes: five a second."""
MOST_STEPS = 10
MOVE = 0.3
"""Radians by which one action can move a servo's target."""
BALL, HAND = 0.08, 0.04
"""Radii in metres; the hand's is the model's own."""
TOUCH = BALL + HAND
"""Metres between the middles of hand and ball below which they touch, looked at after each step."""
STIFFNESS, DAMPING = 500.0, 40.0
"""Of the servos, Nm a radian and Nm s a radian; the arms have a fifth of it."""
LOW, HIGH = np.array([0.25, -0.35, 0.85]), np.array([0.60, 0.35, 1.45])
"""Corners of the box in which balls are placed, in metres: x away from the chest, y to its left, z above the floor."""
APART = 0.22
"""Least distance of a ball to the other one, and to both hands, in metres."""
BEND = 0.6
"""How far hips, knees and waist may bend from standing, in radians; arms have their whole range."""
STANDING = dict.fromkeys(("right_knee", "left_knee", "right_hip_y", "left_hip_y"), -0.25)
"""Joint angles of standing, in radians; the others are 0."""
SETTLING = 400
"""Steps of physics in which the body comes to rest in that posture."""
COLOURS = {"red": (0.9, 0.1, 0.1, 1.0), "blue": (0.1, 0.2, 0.95, 1.0)}
VIEW = mujoco.MjvCamera()
VIEW.lookat[:], VIEW.distance, VIEW.azimuth, VIEW.elevation = (0.25, 0.0, 1.15), 1.4, 180, -20


@cache
def humanoid() -> Any:
    """The model. One for all environments of a process: what an episode changes is in its data."""
    folder = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    spec = mujoco.MjSpec.from_file(str(folder / "humanoid.xml"))
    spec.option.timestep = TIMESTEP
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
    spec.geom("floor").delete()
    spec.body("torso").pos[2] = 1.46  # soles at height 0
    for motor in spec.actuators:
        share = 0.2 if _is_of_an_arm(motor.name) else 1.0
        motor.gear[0], motor.ctrllimited, motor.biastype = 1.0, False, mujoco.mjtBias.mjBIAS_AFFINE
        motor.gainprm[0] = STIFFNESS * share
        motor.biasprm[1], motor.biasprm[2] = -STIFFNESS * share, -DAMPING * share
    for name, colour in COLOURS.items():
        ball = spec.worldbody.add_body(name=name, mocap=True)
        ball.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[BALL, 0, 0], rgba=colour)
    for side in ("right", "left"):
        spec.add_equality(
            type=mujoco.mjtEq.mjEQ_WELD,
            objtype=mujoco.mjtObj.mjOBJ_BODY,
            name1=f"{side}_foot",
            data=[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],  # where it is in the model's own posture
        )
    for geom in spec.geoms:
        geom.material = ""
    spec.visual.headlight.ambient = [0.4, 0.4, 0.4]
    quality = spec.visual.quality
    quality.offsamples, quality.numslices, quality.numstacks = 0, 12, 8
    return spec.compile()


def _is_of_an_arm(name: str) -> bool:
    return "shoulder" in name or "elbow" in name


@cache
def standing() -> np.ndarray:
    """The state of a body that stands still, as `whole_state` gives it."""
    model = humanoid()
    data = mujoco.MjData(model)
    for name, angle in STANDING.items():
        data.joint(name).qpos[0] = angle
    data.ctrl[:] = data.qpos[model.jnt_qposadr[model.actuator_trnid[:, 0]]]
    mujoco.mj_step(model, data, SETTLING)
    data.time, data.qvel[:] = 0.0, 0.0
    mujoco.mj_forward(model, data)
    return whole_state(data)


def whole_state(data: Any) -> np.ndarray:
    """All that the next step depends on, the servos' targets among it."""
    model, kind = humanoid(), mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    return state


class HumanoidReach(gymnasium.Env):
    """One hand, one ball.

    Observation: `image`, uint8 (64, 64, 3), from in front; `proprio`, float32 (34,): joint angles in radians, and their
    velocities in radians a second. Action: (17,), in radians, what is added to the servos' targets, in the order of the
    model's actuators: waist 3, right leg 4, left leg 4, right arm 3, left arm 3. Reward: 1 with success, which
    terminates. Info: `is_success`, and `distance` between the middles of hand and ball in metres.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / (TIMESTEP * SUBSTEPS))}  # noqa: RUF012

    def __init__(self, hand: str = "right", colour: str = "red", render_mode: str | None = None):
        if hand not in ("right", "left") or colour not in COLOURS:
            raise ValueError(f"hand is right or left, colour red or blue; got {hand!r}, {colour!r}")
        self.model, self.render_mode = humanoid(), render_mode
        self.data = mujoco.MjData(self.model)
        self.hand, self.colour = hand, colour
        self.instruction = f"touch the {colour} ball with the {hand} hand"
        driven = self.model.actuator_trnid[:, 0]
        self.angles, self.velocities = self.model.jnt_qposadr[driven], self.model.jnt_dofadr[driven]
        self.low, self.high = self._bounds(self.model.jnt_range[driven])
        self.action_space = gymnasium.spaces.Box(-MOVE, MOVE, (self.model.nu,), np.float32)
        image = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        proprio = gymnasium.spaces.Box(-np.inf, np.inf, (2 * self.model.nu,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({"image": image, "proprio": proprio})
        self.renderer: Any = None

    def _bounds(self, ranges: np.ndarray) -> np.ndarray:
        """Of the servos' targets, (2, 17), in radians."""
        names = [self.model.actuator(number).name for number in range(self.model.nu)]
        middle = np.array([STANDING.get(name, 0.0) for name in names])
        reach = np.array([np.inf if _is_of_an_arm(name) else BEND for name in names])
        return np.clip(ranges.T, middle - reach, middle + reach)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.set_state(standing())
        hands = [self.data.geom(f"{side}_hand").xpos.copy() for side in ("right", "left")]
        places: list[np.ndarray] = []
        while len(places) < 2:
            place = self.np_random.uniform(LOW, HIGH)
            if all(np.linalg.norm(place - other) > APART for other in [*hands, *places]):
                places.append(place)
        self.data.mocap_pos[:] = places
        mujoco.mj_forward(self.model, self.data)
        return self._get_obs(), self._info()

    def step(self, action: Any):
        moved = self.data.ctrl + np.clip(action, -MOVE, MOVE)
        self.data.ctrl[:] = np.clip(moved, self.low, self.high)
        mujoco.mj_step(self.model, self.data, SUBSTEPS)
        mujoco.mj_forward(self.model, self.data)  # so that what is seen belongs to the state
        info = self._info()
        return self._get_obs(), float(info["is_success"]), info["is_success"], False, info

    def _info(self) -> dict[str, Any]:
        hand = self.data.geom(f"{self.hand}_hand").xpos
        distance = float(np.linalg.norm(hand - self.data.body(self.colour).xpos))
        return {"is_success": distance < TOUCH, "distance": distance}

    def _get_obs(self) -> dict[str, np.ndarray]:
        body = self.data.qpos[self.angles], self.data.qvel[self.velocities]
        return {"image": self.render(), "proprio": np.concatenate(body).astype(np.float32)}

    def render(self) -> np.ndarray:
        if self.renderer is None:
            self.renderer = mujoco.Renderer(self.model, SIZE, SIZE)
            self.renderer.scene.flags[:] = False  # no shadows, no reflections, no sky
        self.renderer.update_scene(self.data, VIEW)
        return self.renderer.render()

    def get_state(self) -> np.ndarray:
        return whole_state(self.data)

    def set_state(self, state: np.ndarray) -> None:
        """Go to a state that `get_state` gave."""
        mujoco.mj_setState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(self.model, self.data)

    def close(self) -> None:
        if self.renderer is not None:
            self.renderer.close()
            self.renderer = None


def expert(env: HumanoidReach) -> np.ndarray:
    """The action that brings the hand towards the ball: the whole body's inverse kinematics, feet where they are.

    Damped least squares on the hand's distance, from the present posture: waist, legs and both arms take part as far as
    it serves, each as little as it can.
    """
    model, data = env.model, mujoco.MjData(env.model)
    data.qpos[:], data.mocap_pos[:] = env.data.qpos, env.data.mocap_pos
    hand, geom = env.data.body(env.colour).xpos.copy(), model.geom(f"{env.hand}_hand").id
    feet = [model.body(f"{side}_foot").id for side in ("right", "left")]
    effort = np.where(np.arange(model.nv) < 6, 0.0, 0.02)  # moving the free base is no effort
    jacobian, turning = np.zeros((2, 3, model.nv)), np.zeros((3, model.nv))
    for _ in range(25):
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_jacGeom(model, data, jacobian[0], None, geom)
        rows, wanted = [jacobian[0].copy()], [hand - data.geom_xpos[geom]]
        for foot in feet:
            mujoco.mj_jacBody(model, data, jacobian[1], turning, foot)
            rows += [10 * jacobian[1], 10 * turning.copy()]
            wanted += [np.zeros(6)]
        system, aim = np.concatenate(rows), np.concatenate(wanted)
        change = np.linalg.solve(system.T @ system + np.diag(effort + 1e-6), system.T @ aim)
        mujoco.mj_integratePos(model, data.qpos, np.clip(change, -0.2, 0.2), 1.0)
        data.qpos[env.angles] = np.clip(data.qpos[env.angles], env.low, env.high)
    moved = data.qpos[env.angles] - env.data.qpos[env.angles]
    return np.clip(moved, -MOVE, MOVE)


for _hand, _colour in (("right", "red"), ("left", "blue")):
    gymnasium.register(
        f"{_hand.capitalize()}Hand-v0",
        entry_point=HumanoidReach,
        kwargs={"hand": _hand, "colour": _colour},
        max_episode_steps=MOST_STEPS,
    )
