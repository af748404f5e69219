"""The scripted LIBERO expert at play in the real simulator."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from vla_rl.config import EnvConfig, UserError
from vla_rl.envs.libero.env import LiberoEnv
from vla_rl.envs.libero.expert.expert import LiberoExpert
from vla_rl.envs.libero.expert.scene import Scene
from vla_rl.envs.libero.expert.shapes import DOWN
from vla_rl.envs.libero.expert.spots import spot
from vla_rl.envs.libero.tasks import protocol_horizon
from vla_rl.envs.trace import EpisodeTrace
from vla_rl.evaluation.failures import classify
from vla_rl.types import EpisodeSpec


def make(suite: str, action_repeat: int = 1) -> LiberoEnv:
    pytest.importorskip("libero", reason="needs the extra vla-rl[libero]")
    horizon = -(-protocol_horizon(suite) // action_repeat)
    return LiberoEnv(
        EnvConfig(
            suite=suite, image_size=32, action_repeat=action_repeat, action_chunk=1, horizon=horizon,
            initial_states=50, held_out=10,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def soup() -> Iterator[LiberoEnv]:
    """Alphabet soup into the basket."""
    env = make("libero-object:0")
    yield env
    env.close()


def play(env: LiberoEnv, initial_state: int = 0, **options: float) -> tuple[bool, LiberoExpert]:
    """One episode to its end. Returns (success, the expert)."""
    env.reset(EpisodeSpec(env.tasks[0], initial_state))
    expert = LiberoExpert(env, **options)  # type: ignore[arg-type]
    terminated = truncated = False
    while not (terminated or truncated or expert.done):
        _, terminated, truncated, _ = env.step(expert.action()[None])
    return terminated, expert


SOLVED = {
    "libero-object:6": "butter into a basket",
    "libero-spatial:6": "a bowl from beside a cookie box onto a plate",
    "libero-goal:0": "a drawer opened",
    "libero-goal:7": "a knob turned",
    "libero-10:3": "a bowl into a drawer, which is then closed",
}


@pytest.mark.sim
@pytest.mark.parametrize("suite", SOLVED, ids=SOLVED.values())
def test_solves_within_the_protocols_horizon(suite: str):
    env = make(suite)
    success, _ = play(env)
    env.close()
    assert success


@pytest.mark.sim
@pytest.mark.libero_all
@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("suite", ["libero-object", "libero-spatial", "libero-goal", "libero-10"])
def test_solves_every_task_from_a_first_initial_state(suite: str, number: int):
    env = make(f"{suite}:{number}")
    solved = [play(env, initial_state)[0] for initial_state in (0, 1)]
    env.close()
    assert any(solved)


@pytest.mark.sim
def test_solves_with_actions_that_are_held():
    env = make("libero-object:0", action_repeat=3)
    success, _ = play(env)
    env.close()
    assert success


@pytest.mark.sim
def test_is_over_after_a_success_and_rests(soup: LiberoEnv):
    success, expert = play(soup)
    assert success
    actions = []
    while not expert.done:
        actions.append(expert.action())
        assert len(actions) < 100
    # opens, withdraws, then stays
    assert actions[0][6] == -1
    np.testing.assert_array_equal(actions[-1], [0, 0, 0, 0, 0, 0, -1])


@pytest.mark.sim
def test_the_plan_depends_on_the_state_alone(soup: LiberoEnv):
    def actions(initial_state: int, count: int) -> list[np.ndarray]:
        soup.reset(EpisodeSpec(soup.tasks[0], initial_state))
        expert = LiberoExpert(soup)
        made = []
        for _ in range(count):
            made.append(expert.action())
            soup.step(made[-1][None])
        return made

    first = actions(3, 40)
    other = actions(4, 20)
    np.testing.assert_array_equal(actions(3, 40), first)
    assert not np.array_equal(other, first[:20])


@pytest.mark.sim
def test_noise_is_seeded_bounded_and_spares_the_gripper(soup: LiberoEnv):
    def actions(noise: float, seed: int) -> np.ndarray:
        soup.reset(EpisodeSpec(soup.tasks[0], 0))
        expert = LiberoExpert(soup, noise, seed)
        return np.stack([expert.action() for _ in range(40)])  # of one image: the plan waits

    clean, noisy = actions(0.0, 1), actions(0.3, 1)
    np.testing.assert_array_equal(actions(0.3, 1), noisy)
    assert not np.array_equal(actions(0.3, 2), noisy)
    assert np.abs(actions(5.0, 1)).max() == 1.0
    np.testing.assert_array_equal(noisy[:, 6], clean[:, 6])
    free = np.abs(clean[:, 3:6]) < 0.5  # where noise is not clipped
    added = (noisy - clean)[:, 3:6][free]
    assert added.size > 60
    assert added.std() == pytest.approx(0.06, rel=0.3)
    assert added.mean() == pytest.approx(0.0, abs=0.03)


@pytest.mark.sim
@pytest.mark.parametrize(
    ("task", "goal"),
    [
        ("KITCHEN_SCENE8_turn_off_the_stove", "turnoff flat_stove_1"),
        ("KITCHEN_SCENE7_open_the_microwave", "open microwave_1"),
    ],
)
def test_a_goal_that_no_skill_reaches_is_refused(task: str, goal: str):
    env = make(f"libero-90:{task}")
    env.reset(EpisodeSpec(task, 0))
    with pytest.raises(UserError, match=f"no skill for the goal '{goal}'.*leave this task out"):
        LiberoExpert(env)
    env.close()


@pytest.mark.sim
def test_what_the_expert_knows_of_a_scene(soup: LiberoEnv):
    soup.reset(EpisodeSpec(soup.tasks[0], 0))
    scene = Scene(lambda: soup.simulator)
    goal = ("in", "alphabet_soup_1", "basket_1_contain_region")
    assert scene.goals() == [goal]
    assert not scene.holds(goal)
    assert scene.carrier(goal[2]) == "basket_1"
    assert scene.joint_of(goal[2]) is None
    # the hand as the observation has it, open, pointing down, ready to close along y
    np.testing.assert_allclose(scene.hand_position(), soup.proprio()[:3], atol=2e-3)
    assert scene.finger_opening() == pytest.approx(0.08, abs=0.005)
    np.testing.assert_allclose(scene.hand_rotation()[:, 2], DOWN, atol=0.1)
    assert abs(scene.hand_rotation()[1, 0]) > 0.99
    # a can: 6 to 7 cm wide, standing, and nothing of the scene inside it
    low, high = scene.shape("alphabet_soup_1").hull()
    width = high - low
    assert 0.05 < width[0] < 0.08
    assert width[2] > 0.06
    middle = (low + high)[None] / 2
    assert scene.obstacles().distances(middle)[0] < 0
    assert scene.obstacles(["alphabet_soup_1"]).distances(middle)[0] > 0.01
    # beside the basket nothing is as tall as the basket
    basket = scene.shape("basket_1").hull()[1][2]
    centre = scene.position("basket_1")
    assert scene.tallest_between(centre, centre, 0.15) == pytest.approx(basket)
    assert scene.tallest_between(low, low, 0.01, ["alphabet_soup_1"]) < basket - 0.05


@pytest.mark.sim
def test_what_goes_into_a_basket_is_let_go_over_its_rim(soup: LiberoEnv):
    soup.reset(EpisodeSpec(soup.tasks[0], 0))
    scene = Scene(lambda: soup.simulator)
    place = spot(scene, scene.goals()[0])
    low, high = scene.shape("basket_1").hull()
    assert (place.dropped_into, place.entry) == ("basket_1", None)
    assert place.lowest_hand == pytest.approx(high[2] + 0.012)
    assert (low[:2] < place.point[:2]).all()
    assert (place.point[:2] < high[:2]).all()


@pytest.mark.sim
def test_what_goes_into_a_microwave_enters_at_its_door():
    env = make("libero-10:9")
    env.reset(EpisodeSpec(env.tasks[0], 0))
    scene = Scene(lambda: env.simulator)
    goals = {goal[0]: goal for goal in scene.goals()}
    place = spot(scene, goals["in"])
    door = scene.joint_of(goals["close"][1])
    assert door is not None
    assert not scene.slides(door)
    assert place.entry is not None
    # the open door hangs on that side of the microwave
    hinge, _ = scene.joint_axis(door)
    assert (hinge - scene.position("microwave_1")) @ place.entry > 0.05
    assert abs(place.entry[2]) == 0
    # under the roof, above the floor
    assert scene.tallest_between(place.point, place.point, 0.01) > place.point[2] + 0.1
    env.close()


@pytest.mark.sim
def test_two_pots_do_not_go_to_the_same_spot():
    env = make("libero-10:8")
    env.reset(EpisodeSpec(env.tasks[0], 0))
    scene = Scene(lambda: env.simulator)
    puts = [goal for goal in scene.goals() if goal[0] == "on"]
    one, two = (spot(scene, goal).point for goal in puts)
    region = scene.region_half_extents(puts[0][2])
    centre = scene.position(puts[0][2])
    env.close()
    np.testing.assert_allclose((one + two)[:2] / 2, centre[:2], atol=1e-6)
    assert one[0] - two[0] == pytest.approx(2 * (region[0] - 0.015))
    assert one[1] == two[1]


@pytest.mark.sim
def test_the_episode_tells_what_happens_to_its_object(soup: LiberoEnv) -> None:
    soup.reset(EpisodeSpec(soup.tasks[0], 0))
    expert, actions, moments = LiberoExpert(soup), [], [soup.moment()]
    terminated = truncated = False
    while not (terminated or truncated or expert.done):
        actions.append(expert.action()[None])
        _, terminated, truncated, _ = soup.step(
            actions[-1], on_frame=lambda: moments.append(soup.moment())
        )
    trace = EpisodeTrace.of(soup.traced_goals(), moments)
    (goal,) = trace.goals
    assert goal.goal.kind == "grasp"
    assert terminated
    assert goal.reached[-1]
    assert goal.held.sum() > 20
    assert not goal.held[0]
    assert goal.remaining[-1] < 0.1 < goal.remaining[0]
    assert not trace.held_another.any()
    assert trace.closing[0] < 0 < trace.closing.max()
    assert trace.opening[0] > 0.9 > trace.opening.min()
    # cut before it is lifted, before it is reached, and while it is carried
    first = int(np.argmax(goal.held))
    for length, kind in (
        (first + 2, "missed grasp"),
        (2, "never touched"),
        (first + 40, "time over, other"),
    ):
        assert classify(EpisodeTrace.of(soup.traced_goals(), moments[:length])) == kind
    # asking changed nothing
    asked = soup._own().save().arrays()
    soup.reset(EpisodeSpec(soup.tasks[0], 0))
    for action in actions:
        soup.step(action)
    for name, array in soup._own().save().arrays().items():
        np.testing.assert_array_equal(array, asked[name], err_msg=name)
