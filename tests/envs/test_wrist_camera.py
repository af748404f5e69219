"""The second camera: there when it is asked for, and then nothing else is different."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vla_rl.config import ConfigError, DemosConfig, EnvConfig, TrainConfig, UserError
from vla_rl.envs.toy.benchmark import TOY
from vla_rl.envs.toy.env import ToyEnv
from vla_rl.envs.vector.process import ProcessVectorEnv
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.types import EpisodeSpec, Observation

PLAIN = replace(TOY.env_defaults("toy:reach-red"), image_size=16, num_envs=2, camera="table")
SEEN = replace(PLAIN, wrist_camera="wrist")
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (3, 2, 2, 4)).astype(np.float32)


def played(kind: type[SerialVectorEnv | ProcessVectorEnv], config: EnvConfig) -> list[Observation]:
    with kind(config) as envs:
        envs.post_reset([0, 1], [EpisodeSpec("reach-red", 3), EpisodeSpec("reach-red", 4)])
        found = [envs.wait([0, 1]).observation]
        for actions in ACTIONS:
            envs.post_step([0, 1], actions)
            found.append(envs.wait([0, 1]).observation)
        found.append(envs.restore([1], envs.snapshot([0])))
    return found


def test_slots_here_and_in_processes_show_both_cameras() -> None:
    plain, here = played(SerialVectorEnv, PLAIN), played(SerialVectorEnv, SEEN)
    there = played(ProcessVectorEnv, replace(SEEN, num_workers=2))
    for without, one, other in zip(plain, here, there, strict=True):
        assert without.wrist is None
        assert one.wrist is not None
        assert other.wrist is not None
        np.testing.assert_array_equal(one.images, without.images)
        np.testing.assert_array_equal(one.proprio, without.proprio)
        np.testing.assert_array_equal(one.wrist, other.wrist)
        assert (one.wrist != one.images).any()
    alone = ToyEnv(replace(PLAIN, camera="wrist"))
    alone.reset(EpisodeSpec("reach-red", 3))
    assert here[0].wrist is not None
    np.testing.assert_array_equal(alone.render(), here[0].wrist[0])


def test_observations_keep_it_row_by_row() -> None:
    rng = np.random.default_rng(0)

    def seen(count: int, wrist: bool) -> Observation:
        images, wrists = rng.integers(0, 256, (2, count, 4, 4, 3), dtype=np.uint8)
        numbers = np.zeros((count, 3), np.float32)
        return Observation(
            images, ("x",) * count, numbers, numbers[:, 0], wrists if wrist else None
        )

    one, two = seen(2, True), seen(3, True)
    whole = Observation.concatenate([one, two])
    assert one.wrist is not None
    assert two.wrist is not None
    assert whole.wrist is not None
    np.testing.assert_array_equal(whole.wrist, np.concatenate([one.wrist, two.wrist]))
    picked = whole.select([4, 0]).wrist
    assert picked is not None
    np.testing.assert_array_equal(picked, whole.wrist[[4, 0]])
    blank = one.blank().wrist
    assert blank is not None
    assert blank.shape == (1, 4, 4, 3)
    plain = seen(2, False)
    assert Observation.concatenate([plain, plain]).select([1]).wrist is None
    assert plain.blank().wrist is None
    with pytest.raises(ValueError, match="others have none"):
        Observation.concatenate([one, plain])


def test_unknown_cameras_and_simulators_without_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no camera 'wirst'\. Did you mean 'wrist'"):
        ToyEnv(replace(PLAIN, wrist_camera="wirst"))

    class Blind:
        """An environment of before."""

        def __init__(self, env: ToyEnv) -> None:
            self._env = env

        def __getattr__(self, name: str):
            if name == "render_wrist":
                raise AttributeError(name)
            return getattr(self._env, name)

    def make(config: EnvConfig, count: int) -> list:
        return [Blind(ToyEnv(config)) for _ in range(count)]

    with SerialVectorEnv(SEEN, make) as envs, pytest.raises(UserError, match="no second camera"):
        envs.post_reset([0], [EpisodeSpec("reach-red", 3)])


@pytest.mark.parametrize("config", [TrainConfig, DemosConfig])
def test_what_keeps_one_image_a_turn_says_so(config: type) -> None:
    with pytest.raises(ConfigError, match=r"env\.wrist_camera: training and demonstrations keep"):
        config(env=EnvConfig(wrist_camera="wrist"))


@pytest.mark.sim
@pytest.mark.parametrize(
    ("first", "second", "camera"),
    [("", "wrist", "gripperPOV"), ("corner", "corner2", "corner2")],  # which hangs upside down
)
def test_metaworlds_second_camera_is_the_models_own(first: str, second: str, camera: str) -> None:
    pytest.importorskip("metaworld")
    from vla_rl.envs.metaworld.env import MetaWorldEnv

    config = EnvConfig(suite="mt1:drawer-open", image_size=32, camera=first)
    plain = MetaWorldEnv(config)
    seen = MetaWorldEnv(replace(config, wrist_camera=second))
    alone = MetaWorldEnv(replace(config, camera=camera))
    for env in (plain, seen, alone):
        env.reset(EpisodeSpec("drawer-open", 5))
    for actions in ACTIONS:
        for env in (plain, seen, alone):
            env.step(actions[0])
        np.testing.assert_array_equal(seen.render_wrist(), alone.render())
        np.testing.assert_array_equal(seen.render(), plain.render())
        for one, other in zip(seen.snapshot().values(), plain.snapshot().values(), strict=True):
            np.testing.assert_array_equal(one, other)
    for env in (plain, seen, alone):
        env.close()
