"""One LIBERO task in this process: robosuite's model and goal predicates, our control loop and camera.

Every reset is exact: state and images equal, bit by bit, those of a newly built environment that is seeded, reset
and given the stored initial state. robosuite's own reset takes seconds and, without seeding, leaves cabinets and stoves
in other places each time. Here it is done once; what it leaves behind is kept and put back.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, UserError, nearest
from vla_rl.envs.env import require_like
from vla_rl.envs.libero.assets import lighten, without_looks
from vla_rl.envs.libero.control import ControlState, OperationalSpaceControl
from vla_rl.envs.libero.package import load_libero
from vla_rl.envs.libero.tasks import LiberoTask, stored_states, suite_tasks
from vla_rl.envs.libero.tracing import Witness
from vla_rl.envs.rendering.camera import TEXELS_PER_PIXEL, Camera, CameraSettings, Drawing
from vla_rl.envs.rendering.gl import load_mujoco, shared_context
from vla_rl.envs.simulator_pool import SimulatorPool
from vla_rl.envs.trace import Moment

SEED = 0
"""Seed of every reset, as in OpenVLA's evaluation: it places the furniture, which initial states do not hold."""

_SETTLING_ACTION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
_RESET_ATTEMPTS = 100
_CAMERAS = {"": "agentview", "wrist": "robot0_eye_in_hand"}


@dataclass
class LiberoState:
    """Everything that tells one episode from another in the same simulator."""

    integration: Float64[np.ndarray, " S"]  # mujoco's mjSTATE_INTEGRATION
    control: ControlState
    site_colours: Float32[np.ndarray, "s 4"]  # a burner that is on glows
    seen_colours: Float32[
        np.ndarray, "s 4"
    ]  # in the last observation, taken before the step sets them

    def arrays(self) -> dict[str, Any]:
        """The state as arrays and numbers, in copies."""
        fields = vars(self) | vars(self.control)
        del fields["control"]
        return {name: copy.copy(value) for name, value in fields.items()}

    def replaced(self, arrays: dict[str, Any]) -> LiberoState:
        """The state that `arrays` describes; what is only in this one is ignored."""
        own = self.arrays()
        require_like(arrays, own)
        values = {name: np.asarray(arrays[name], np.asarray(own[name]).dtype) for name in own}
        control = {name: values.pop(name).copy() for name in vars(self.control) if name != "first"}
        first = bool(values.pop("first"))
        return LiberoState(
            control=ControlState(**control, first=first),
            **{name: value.copy() for name, value in values.items()},
        )


class LiberoSimulator:
    """The simulator of one task. `owner` is whoever's state is loaded at the moment.

    `robosuite_env` is LIBERO's problem, with the objects and predicates; `model` and `data` are mujoco's.
    """

    def __init__(self, task: LiberoTask, settings: CameraSettings, settle_steps: int) -> None:
        self.task = task
        self.owner: object | None = None
        self._mujoco = load_mujoco()
        self._settle_steps = settle_steps
        self.robosuite_env: Any = _reset_environment(task, settings)
        self._control = OperationalSpaceControl(self.robosuite_env)
        self.model, self.data = self._control.model, self._control.data
        settings = replace(
            settings,
            camera=_camera_name(self.model, settings.camera),
            second=_camera_name(self.model, settings.second) if settings.second else "",
        )
        self._camera = Camera(self.model, settings, _drawing(self.model, settings))
        self._shown = self._mujoco.MjData(self.model)
        self._following = False
        self._seen_colours: Float32[np.ndarray, "s 4"] = self.model.site_rgba.copy()
        self._state_kind = int(self._mujoco.mjtState.mjSTATE_INTEGRATION)
        self._state_size = self._mujoco.mj_stateSize(self.model, self._state_kind)
        robot = self.robosuite_env.robots[0]
        self._grip_site = robot.eef_site_id
        self._hand = self.robosuite_env.sim.model.body_name2id(robot.robot_model.eef_name)
        self._after_reset = self.save()
        self._settled: dict[int, LiberoState] = {}
        self._seen_by: Witness | None = None

    # -- state ---------------------------------------------------------------------------------------

    def save(self) -> LiberoState:
        state = np.empty(self._state_size)
        self._mujoco.mj_getState(self.model, self.data, state, self._state_kind)
        colours = self.model.site_rgba.copy()
        return LiberoState(state, replace(self._control.state), colours, self._seen_colours)

    def load(self, state: LiberoState) -> None:
        self._mujoco.mj_setState(self.model, self.data, state.integration, self._state_kind)
        self._control.state = replace(state.control)
        self.model.site_rgba[:] = state.site_colours
        self._seen_colours = state.seen_colours
        self._following = False

    def follow(self) -> None:
        """Bring bodies and contacts in `data` to where the joints are now, for whoever looks at them between turns.

        Steps leave them 2 ms behind, loading a state leaves them anywhere. What happens next is not changed by it.
        """
        if self._following:
            return
        warm_start = self.data.qacc_warmstart.copy()
        self._mujoco.mj_forward(self.model, self.data)
        self.data.qacc_warmstart[:] = warm_start
        self._following = True

    # -- episode -------------------------------------------------------------------------------------

    def reset(self, initial_state: int) -> None:
        """Put a stored initial state and let things settle."""
        if initial_state not in self._settled:
            self._settled[initial_state] = self._settle(initial_state)
        # also the first time, so that nothing differs from the second
        self.load(self._settled[initial_state])

    def _settle(self, initial_state: int) -> LiberoState:
        states = stored_states(self.task.states)
        if not 0 <= initial_state < len(states):
            raise UserError(
                f"task {self.task.name!r} has initial states 0 to {len(states) - 1}, got {initial_state}: "
                f"set env.initial_states to at most {len(states)}"
            )
        self.load(self._after_reset)
        self._set_positions(states[initial_state])
        for _ in range(self._settle_steps):
            self.play(_SETTLING_ACTION[None], 1)
        return self.save()

    def _set_positions(self, state: Float64[np.ndarray, " S"]) -> None:
        model, data = self.model, self.data
        expected = 1 + model.nq + model.nv
        if len(state) != expected:
            raise UserError(
                f"the stored initial states of {self.task.name!r} have {len(state)} numbers, its model {expected}: "
                "the files of the installed LIBERO do not belong together, reinstall it"
            )
        data.time = state[0]
        data.qpos[:] = state[1 : 1 + model.nq]
        data.qvel[:] = state[1 + model.nq :]
        self._mujoco.mj_forward(model, data)
        self._control.see_now()
        self.robosuite_env._check_success()
        self.robosuite_env._post_process()
        self._seen_colours = self.model.site_rgba.copy()

    def play(
        self,
        actions: Float64[np.ndarray, "C 7"],
        action_repeat: int,
        on_frame: Callable[[], None] | None = None,
    ) -> tuple[bool, int]:
        """Hold each action for `action_repeat` control steps; stop at success. Returns (success, steps taken)."""
        env = self.robosuite_env
        self._following = False
        success, total = False, len(actions) * action_repeat
        for step in range(total):
            self._seen_colours = self.model.site_rgba.copy()
            self._control.step(actions[step // action_repeat])
            env._post_process()
            success = bool(env._check_success())
            if on_frame is not None:
                on_frame()
            if success:
                return True, step + 1
        return False, total

    @property
    def witness(self) -> Witness:
        """Who tells what happens to the objects."""
        if self._seen_by is None:
            self._seen_by = Witness(self.robosuite_env, self.model, self.data)
        return self._seen_by

    def moment(self) -> Moment:
        """What a trace holds of the present state. What happens next is not changed by asking."""
        self._following = False  # within `play` the joints have moved since
        self.follow()
        return self.witness.moment(self._control.state.gripper)

    # -- observations --------------------------------------------------------------------------------

    def _show(self) -> Any:
        """Bodies, sites and cameras where the observation shows them, in data of their own.

        The simulation's own data must not be touched: computing positions there moves the solver's warm start.
        """
        self._shown.qpos[:] = self._control.state.seen
        self._mujoco.mj_kinematics(self.model, self._shown)
        self._mujoco.mj_camlight(self.model, self._shown)
        return self._shown

    def proprio(self) -> Float32[np.ndarray, " 8"]:
        """End-effector position (m), its rotation as axis times angle (rad), the two finger joints (m)."""
        shown = self._show()
        return np.concatenate(
            [
                shown.site_xpos[self._grip_site],
                _axis_angle(shown.xquat[self._hand]),
                self._control.state.seen_fingers,
            ]
        ).astype(np.float32)

    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """What the camera sees, RGB: LIBERO's observation turned by 180 degrees, as published policies expect it."""
        return self._drawn(self._camera.image)

    def second_image(self) -> UInt8[np.ndarray, "H W 3"]:
        """What the second camera sees, turned in the same way."""
        return self._drawn(self._camera.second_image)

    def _drawn(self, draw: Callable[[Any], np.ndarray]) -> UInt8[np.ndarray, "H W 3"]:
        colours = self.model.site_rgba.copy()
        self.model.site_rgba[:] = self._seen_colours
        image = draw(self._show())
        self.model.site_rgba[:] = colours
        return image

    def close(self) -> None:
        self._camera.close()


def _axis_angle(quaternion: Float64[np.ndarray, " 4"]) -> Float64[np.ndarray, " 3"]:
    """Axis times angle in 0..2 pi of (w, x, y, z), as LIBERO's demonstrations hold it."""
    w = min(1.0, max(-1.0, float(quaternion[0])))
    sine = np.sqrt(1.0 - w * w)
    return np.zeros(3) if np.isclose(sine, 0.0) else quaternion[1:] * (2 * np.arccos(w) / sine)


def _camera_name(model: Any, wanted: str) -> str:
    """A camera of the model. ConfigError, with the nearest name, if there is none of that name."""
    name = _CAMERAS.get(wanted, wanted)
    known = [model.camera(i).name for i in range(model.ncam)]
    if name not in known:
        raise ConfigError(f"LIBERO has no camera {wanted!r}.{nearest(wanted, ['wrist', *known])}")
    return name


def _drawing(model: Any, settings: CameraSettings) -> Drawing:
    """As robosuite draws, or without smooth edges and reflections where meshes are simplified anyway.

    robosuite's image has its rows upwards, and published policies see it turned by 180 degrees: upright, mirrored.
    """
    whole = settings.mesh_faces == 0
    return Drawing(
        effects=whole,
        multisamples=4 if whole else 0,
        # LIBERO's lights cast no shadows; the empty map would take 64 MB
        shadow_map=4096 if model.light_castshadow.any() else 0,
        simplified=not whole,
        hidden_group=0,  # shapes for collisions
        mirrored=True,
    )


# -- building ----------------------------------------------------------------------------------------


def libero_simulators(config: EnvConfig) -> SimulatorPool[LiberoSimulator]:
    """A pool of simulators for `config`. UserError at once, with the remedy, if none could be made."""
    load_libero()
    shared_context()
    settings = CameraSettings.of(config, pretty=False, default_camera="")
    tasks = {task.name: task for task in suite_tasks(config.suite)}
    return SimulatorPool(lambda name: LiberoSimulator(tasks[name], settings, config.settle_steps))


def _reset_environment(task: LiberoTask, settings: CameraSettings) -> Any:
    """LIBERO's problem for `task`, as its first seeded `reset` leaves it."""
    libero = load_libero()
    original = libero.problems[libero.problem_name(str(task.problem))]
    # robosuite keeps a table of its classes by name, and LIBERO compares names
    unobserved: Any = type(original.__name__, (_Unobserved, original), {"settings": settings})
    with _numpy_random_state(SEED), contextlib.redirect_stdout(io.StringIO()):
        env = unobserved(
            str(task.problem),
            robots=["Panda"],
            controller_configs=dict(libero.controller),
            initialization_noise=None,
            use_camera_obs=False,
            has_offscreen_renderer=False,
            ignore_done=True,
            hard_reset=True,
        )
        np.random.seed(SEED)
        # LIBERO's own reset retries for ever, whatever the error
        for _ in range(_RESET_ATTEMPTS):
            try:
                env.reset()
                return env
            except libero.randomization_error:
                continue
    raise UserError(
        f"LIBERO found no free places for the objects of {task.name!r} in {_RESET_ATTEMPTS} attempts: "
        "reinstall it, or leave the task out"
    )


class _Unobserved:
    """Mixed into LIBERO's problems: no observations, which robosuite samples at every physics step; lighter meshes."""

    settings: CameraSettings
    built = False

    def _initialize_sim(self, xml_string: str | None = None) -> None:
        xml = xml_string or self.model.get_xml()  # type: ignore[attr-defined]
        if not self.built:
            xml = without_looks(xml)  # `reset` makes a new model of its own
            self.built = True
        elif self.settings.mesh_faces > 0:
            xml = lighten(xml, self.settings.mesh_faces, TEXELS_PER_PIXEL * self.settings.size)
        super()._initialize_sim(xml)  # type: ignore[misc]

    def _setup_observables(self) -> OrderedDict[str, Any]:
        return OrderedDict()

    def _reset_internal(self) -> None:
        # as robosuite's renderer does when it is made: moves the solver's warm start
        self.sim.forward()  # type: ignore[attr-defined]
        super()._reset_internal()  # type: ignore[misc]


@contextlib.contextmanager
def _numpy_random_state(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which LIBERO draws from, and put it back afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
