"""Demonstrations from the scripted experts, played in the real simulator."""

from typing import Literal

import numpy as np
import pytest

from vla_rl.config import DemosConfig, EnvConfig, UserError
from vla_rl.data.demonstrations import ACTION, IMAGE, STATE
from vla_rl.data.lerobot import LeRobotReader
from vla_rl.envs.metaworld.env import MetaWorldEnv
from vla_rl.recipes.demos import collect_demos
from vla_rl.types import EpisodeSpec

pytestmark = pytest.mark.sim
TASK = "button-press-topdown"


def collect(
    folder, episodes=3, *, noise=0.0, seed=0, image_format: Literal["png", "mp4"] = "png", **env
):
    config = DemosConfig(
        env=EnvConfig(**{"suite": f"mt1:{TASK}", "image_size": 32, "num_workers": 1, **env}),
        out=str(folder),
        episodes_per_task=episodes,
        noise=noise,
        seed=seed,
        image_format=image_format,
    )
    return LeRobotReader(collect_demos(config))


def initial_states(reader):
    return [
        int(reader.episode(e.index, pictures=False)["initial_state"][0]) for e in reader.episodes
    ]


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    return collect(tmp_path_factory.mktemp("demos") / "d")


def test_replaying_the_stored_actions_gives_the_stored_images_and_success(demos):
    env = MetaWorldEnv(EnvConfig(suite=f"mt1:{TASK}", image_size=32, action_chunk=1, horizon=30))
    episode = demos.episode(0)
    env.reset(EpisodeSpec(TASK, int(episode["initial_state"][0])))
    for step, action in enumerate(episode[ACTION]):
        np.testing.assert_array_equal(env.render(), episode[IMAGE][step])
        np.testing.assert_array_equal(env.proprio(), episode[STATE][step])
        _, success, _, _ = env.step(action[None])
        assert success == episode["next.success"][step] == (step == len(episode[ACTION]) - 1)
    assert episode["task"] == env.instruction
    env.close()


def test_the_dataset_does_not_depend_on_the_number_of_processes(demos, tmp_path):
    collect(tmp_path / "d", num_workers=2)
    for path in demos.folder.rglob("*"):
        if path.is_file():
            assert (
                path.read_bytes() == (tmp_path / "d" / path.relative_to(demos.folder)).read_bytes()
            )


def test_only_initial_states_of_the_training_split_are_played(tmp_path):
    assert sorted(initial_states(collect(tmp_path / "d", 3, initial_states=6, held_out=3))) == [
        0,
        1,
        2,
    ]
    with pytest.raises(
        UserError, match=r"4 episodes a task were asked for, .* has 3 initial states"
    ):
        collect(tmp_path / "e", 4, initial_states=6, held_out=3)


def test_another_seed_plays_other_initial_states(demos, tmp_path):
    other = initial_states(collect(tmp_path / "d", 3, seed=1))
    assert len({*other, *initial_states(demos)}) == 6


def test_a_failed_episode_is_replaced_by_the_next_initial_state(demos, tmp_path):
    lengths = [entry.length for entry in demos.episodes]
    limit = min(lengths)
    assert lengths[0] > limit, "the first episode would not fail: take another seed"
    short = collect(tmp_path / "d", 1, horizon=limit, action_chunk=1)
    assert initial_states(short) == [initial_states(demos)[lengths.index(limit)]]
    assert short.column("next.success").tolist() == [False] * (limit - 1) + [True]


def test_noise_moves_the_robot_but_the_clean_action_is_stored(demos, tmp_path):
    noisy = collect(tmp_path / "d", 1, noise=0.3)
    clean, played = demos.episode(0), noisy.episode(0)
    assert played["initial_state"][0] == clean["initial_state"][0]
    np.testing.assert_array_equal(
        played[ACTION][0], clean[ACTION][0]
    )  # the same state, the same advice
    np.testing.assert_array_equal(played[STATE][0], clean[STATE][0])
    assert np.abs(played[STATE][1] - clean[STATE][1]).max() > 1e-3


def test_an_expert_without_enough_time_is_an_error_that_says_so(tmp_path):
    with pytest.raises(
        UserError,
        match=r"succeeded in only 0 of .* has 2 actions of 5 simulator steps.*raise env\.horizon",
    ):
        collect(tmp_path / "d", 1, horizon=1)
    assert list(tmp_path.iterdir()) == []


def test_videos_and_frame_rate(tmp_path):
    reader = collect(tmp_path / "d", 1, image_format="mp4", image_size=64, action_repeat=5)
    assert reader.fps == 16  # 80 simulator steps a second, 5 an action
    assert reader.features[IMAGE].dtype == "video"
    still = collect(tmp_path / "still", 1, image_size=64)
    difference = reader.pictures(IMAGE, 0).astype(float) - still.pictures(IMAGE, 0)
    assert np.abs(difference).mean() < 8


def test_an_existing_folder_is_refused_before_anything_is_played(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(UserError, match="exists already"):
        collect(tmp_path / "d")
