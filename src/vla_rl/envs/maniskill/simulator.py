"""One task of ManiSkill on PhysX's CPU backend, driven a control step at a time.

A reset builds the scene anew. It costs more than ManiSkill's plain reset, and it is what makes an episode depend on its
seed alone: PhysX keeps contacts and warm starts of the episode before, which no part of ManiSkill's state holds.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl.config.errors import ConfigError, UserError, nearest
from vla_rl.envs.env import Snapshot, require_like
from vla_rl.envs.maniskill.package import drawing_device, load_maniskill

CAMERA, VIDEO_CAMERA = "base_camera", "render_camera"
CAMERAS = (CAMERA, VIDEO_CAMERA)
"""What the tasks' policies see, and what their videos are drawn from."""
ACTION_DIM, PROPRIO_DIM = 7, 12
_ARM, _FINGERS = slice(0, 7), slice(7, 9)
_STATE = "state:"
_COMMON = "mani_skill.utils.common"
_TOLERANCE = 1e-3
"""How far a state may be from that of a snapshot: another processor rounds differently."""


class ManiSkillSimulator:
    """One scene. `drawn=False` needs no Vulkan driver and has no images."""

    def __init__(
        self, task: str, image_size: int, camera: str = CAMERA, *, drawn: bool = True
    ) -> None:
        """ConfigError for another camera, UserError where ManiSkill or a driver to draw with is missing."""
        if camera not in CAMERAS:
            raise ConfigError(f"ManiSkill has no camera {camera!r}.{nearest(camera, CAMERAS)}")
        load_maniskill()
        backend = drawing_device() if drawn else "none"
        registration = import_module("mani_skill.utils.registration")
        size = {"width": image_size, "height": image_size}
        self.task = task
        self._camera, self._size = camera, image_size
        self._env = registration.make(
            task,
            obs_mode="none",
            reward_mode="none",
            control_mode="pd_ee_delta_pose",
            sim_backend="physx_cpu",
            render_backend=backend,
            sensor_configs=dict(size),
            human_render_camera_configs=dict(size),
        )
        self._action = np.zeros(ACTION_DIM, np.float32)

    @property
    def env(self) -> Any:
        """ManiSkill's own environment. Privileged: it knows objects and goals."""
        return self._env

    def reset(self, seed: int) -> None:
        """Begin the episode of ManiSkill's seed `seed`, in a scene that is built anew."""
        self._env.reset(seed=seed, options={"reconfigure": True})

    def step(self, action: Float32[np.ndarray, " 7"]) -> bool:
        """Play one control step with an action in [-1, 1]; whether the task is solved then.

        Three numbers displace the hand (1 is 0.1 m), three turn it (1 is 0.1 rad), the last closes the gripper at 1 and
        opens it at -1: ManiSkill has the opposite sign.
        """
        self._action = action * _SIGNS
        info = self._env.step(self._action)[4]
        return bool(info["success"])

    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """What the camera sees, upright RGB, with the goals that ManiSkill hides from policies that are told them."""
        scene = self._env.scene
        watched = self._camera == CAMERA
        scene.update_render(update_sensors=watched, update_human_render_cameras=not watched)
        camera = (scene.sensors if watched else scene.human_render_cameras)[self._camera]
        camera.capture()
        seen = camera.get_obs(rgb=True, depth=False, position=False, segmentation=False)
        return seen["rgb"][0].cpu().numpy()

    def proprio(self) -> Float32[np.ndarray, " 12"]:
        """The hand's position (m, 3), the arm's joints (rad, 7), the fingers' (m, 2; 0.04 each is open)."""
        agent = self._env.agent
        joints = agent.robot.get_qpos()[0].cpu().numpy()
        hand = agent.tcp.pose.p[0].cpu().numpy()
        return np.concatenate([hand, joints[_ARM], joints[_FINGERS]]).astype(np.float32)

    def dense_reward(self) -> float:
        """ManiSkill's shaped reward of the present state, 0 to 1. Privileged: it sees objects and goal."""
        action = import_module(_COMMON).to_tensor(self._action[None])
        info = self._env.get_info()
        found = self._env.compute_normalized_dense_reward(obs={}, action=action, info=info)
        return max(0.0, float(found[0]))

    # -- states --------------------------------------------------------------------------------------

    def save(self) -> Snapshot:
        """ManiSkill's state dictionary: poses, velocities, joints; and a controller's, where it has one."""
        return {
            _STATE + "/".join(path): value[0].cpu().numpy().copy()
            for path, value in _leaves(self._env.get_state_dict())
        }

    def load(self, state: Snapshot) -> None:
        """Put ManiSkill's state into the scene. UserError for one of another task.

        Contacts and warm starts of the solver are not in it: what follows is close to what followed there, not equal.
        """
        to_tensor = import_module(_COMMON).to_tensor
        require_like(state, self.save())
        nested: dict[str, Any] = {}
        for key, value in state.items():
            if key.startswith(_STATE):
                *folders, name = key.removeprefix(_STATE).split("/")
                place = nested
                for folder in folders:
                    place = place.setdefault(folder, {})
                place[name] = to_tensor(np.asarray(value, np.float32)[None])
        self._env.set_state_dict(nested)

    def require_state(self, state: Snapshot) -> None:
        """UserError unless the scene is in the state that `save` gave."""
        own = self.save()
        require_like(state, own)
        for key, value in own.items():
            away = float(np.abs(value - np.asarray(state[key])).max(initial=0.0))
            if away > _TOLERANCE:
                raise UserError(
                    f"a snapshot of ManiSkill: its actions lead elsewhere here, {key.removeprefix(_STATE)} is "
                    f"{away:.2g} away: it is of another version of ManiSkill or SAPIEN, or its numbers were changed"
                )

    def close(self) -> None:
        self._env.close()


_SIGNS = np.array([1, 1, 1, 1, 1, 1, -1], np.float32)


def _leaves(state: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if not isinstance(state, dict):
        return [(path, state)]
    return [leaf for name, part in state.items() for leaf in _leaves(part, (*path, str(name)))]
