"""The toy world: its physics by hand, its pictures, its expert, its numbered initial states."""

from __future__ import annotations

import numpy as np
import pytest

from vla_rl.config import ConfigError, EnvConfig
from vla_rl.envs.toy.benchmark import TOY
from vla_rl.envs.toy.env import ToyEnv, ToyExpert
from vla_rl.envs.toy.tasks import INSTRUCTIONS, initial_state_generator, suite_tasks
from vla_rl.envs.toy.world import (
    BLOCK_RADIUS,
    DISC_RADIUS,
    HAND_RADIUS,
    MAT_RADIUS,
    STEP,
    TABLE,
    World,
)
from vla_rl.types import EpisodeSpec

CONFIG = TOY.env_defaults("toy")
RIGHT, STAY, CLOSE = (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)


def test_suites_and_initial_states() -> None:
    assert suite_tasks("toy") == tuple(INSTRUCTIONS)
    assert suite_tasks("toy:place-block, reach-red") == ("place-block", "reach-red")
    for wrong, said in (("toy:reach-rod", "reach-red"), ("toy:reach-red,reach-red", "twice")):
        with pytest.raises(ConfigError, match=said):
            suite_tasks(wrong)
    with pytest.raises(ConfigError, match="numbered from 0"):
        initial_state_generator("reach-red", -1)
    # what a number means must not change: results are compared by it
    assert World.initial("reach-red", 0).hand == pytest.approx(-0.04120 + 0.02005j, abs=1e-4)


def test_nothing_touches_at_first_and_everything_lies_on_the_table() -> None:
    for task in INSTRUCTIONS:
        for index in range(200):
            world = World.initial(task, index)
            assert not world.solved()
            places = [place for place in (world.disc, world.block, world.mat) if place is not None]
            assert max(max(abs(p.real), abs(p.imag)) for p in places) < TABLE - 0.05
            if world.block is not None:
                assert world.gap() > 0
            if world.mat is not None and world.block is not None:
                assert abs(world.block - world.mat) > MAT_RADIUS


def test_the_hand_goes_where_it_is_told_and_no_farther_than_the_table() -> None:
    world = World("reach-red", 0j, disc=-0.3 + 0j)
    world.step((1.0, -0.5, 0.0, 0.0))
    assert world.hand == pytest.approx(STEP * (1 - 0.5j))
    for _ in range(100):
        world.step(RIGHT)
    assert world.hand.real == TABLE
    assert world.height <= 0.1


def test_a_disc_is_reached_at_its_edge() -> None:
    world = World("reach-blue", 0j, disc=complex(DISC_RADIUS + 1.5 * STEP, 0))
    assert not world.step(RIGHT)
    assert 0.9 * (1 - 2 * (DISC_RADIUS + STEP)) < world.dense_reward() < 0.9
    assert world.step(RIGHT)
    assert world.dense_reward() == 1.0


def test_a_block_is_shoved_until_the_gripper_holds_it() -> None:
    contact = HAND_RADIUS + BLOCK_RADIUS
    world = World("place-block", 0j, block=complex(contact, 0), mat=complex(0, 0.4))
    world.step(RIGHT)
    assert world.block == pytest.approx(complex(contact + STEP, 0)), "shoved"
    while not world.held:
        world.step(CLOSE)
    assert world.opening < 0.5
    world.step((-1.0, 0.0, 0.0, 0.0))
    assert world.block == pytest.approx(complex(contact, 0)), "carried back"
    for _ in range(10):
        world.step((0.0, 0.0, 0.0, -1.0))
    assert not world.held
    world.step((-1.0, 0.0, 0.0, 0.0))
    assert world.block == pytest.approx(complex(contact, 0)), "left behind"


def test_a_block_out_of_reach_is_not_held() -> None:
    world = World("grasp-block", 0j, block=0.3 + 0j)
    for _ in range(20):
        assert not world.step(CLOSE)


def test_the_block_counts_on_the_mat_however_it_came_there() -> None:
    world = World("place-block", 0j, block=0.2 + 0j, mat=complex(0.2 + MAT_RADIUS + STEP, 0))
    solved = [world.step(RIGHT) for _ in range(20)]
    assert solved[-1]
    assert not world.held
    assert sorted(solved) == solved


@pytest.mark.parametrize("task", INSTRUCTIONS)
def test_the_expert_solves_every_task(task: str) -> None:
    env = ToyEnv(CONFIG)
    expert = ToyExpert(env)
    for index in range(50):
        env.reset(EpisodeSpec(task, index))
        outcomes = [env.step(expert.action()[None])]
        while not (outcomes[-1][1] or outcomes[-1][2]):
            outcomes.append(env.step(expert.action()[None]))
        assert outcomes[-1][1], f"initial state {index}"


def test_cameras() -> None:
    seen = {}
    for camera in ("", "wrist", "table"):
        env = ToyEnv(EnvConfig(suite="toy", image_size=64, camera=camera))
        env.reset(EpisodeSpec("reach-red", 3))
        seen[camera] = env.render()
    np.testing.assert_array_equal(seen[""], seen["wrist"])
    assert not np.array_equal(seen["wrist"], seen["table"])
    with pytest.raises(ConfigError, match=r"no camera 'tabel'.*'table'"):
        ToyEnv(EnvConfig(suite="toy", camera="tabel"))


@pytest.mark.parametrize("size", [1, 15, 32, 200])
def test_the_disc_is_drawn_where_it_lies(size: int) -> None:
    """Its red pixels, weighed by how red they are, lie around its place; edges are smooth at any size."""
    env = ToyEnv(EnvConfig(suite="toy", image_size=size, camera="table"))
    env.reset(EpisodeSpec("reach-red", 5))
    image = env.render().astype(float)
    assert image.shape == (size, size, 3)
    if size < 15:
        return
    red = np.maximum(image[..., 0] - image[..., 2] - 40, 0)
    pixel = 1.1 / size
    middle = (np.arange(size) + 0.5) * pixel - 0.55
    disc = env.world.disc
    assert disc is not None
    assert (red.sum(0) @ middle) / red.sum() == pytest.approx(disc.real, abs=pixel / 2 + 0.002)
    assert (red.sum(1) @ -middle) / red.sum() == pytest.approx(disc.imag, abs=pixel / 2 + 0.002)


def test_images_show_the_task_and_what_has_changed() -> None:
    env, seen = ToyEnv(CONFIG), []
    for task in INSTRUCTIONS:
        env.reset(EpisodeSpec(task, 0))
        seen.append(env.render())
        env.step(np.array([[0.0, 0.0, 0.0, 1.0]], np.float32))
        seen.append(env.render())
    for i, image in enumerate(seen):
        assert all(not np.array_equal(image, other) for other in seen[:i])
