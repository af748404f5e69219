"""The scripted LIBERO expert: its geometry by literal known answers, and its play in the real simulator."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.config import EnvConfig, UserError
from vla_rl.envs.libero import LiberoEnv
from vla_rl.envs.libero_expert import LiberoExpert
from vla_rl.envs.libero_grasp import (
    MAX_WIDTH,
    Grasp,
    best_grasp,
    extent_along,
    hand_down,
    hand_facing,
    handle_grasps,
    leaning,
    pinch_grasps,
    rim_grasps,
    room,
)
from vla_rl.envs.libero_scene import Scene
from vla_rl.envs.libero_shapes import (
    DOWN,
    UP,
    Boxes,
    rotation_about,
    rotation_vector,
    unit,
    wrap_half_turn,
)
from vla_rl.envs.libero_spots import spot
from vla_rl.envs.libero_tasks import protocol_horizon
from vla_rl.types import EpisodeSpec

X, Y, Z = np.eye(3)
angles = st.floats(-3.1, 3.1)


def boxes(*corners: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Boxes:
    """Boxes along the axes, by their lowest and highest corners."""
    lows, highs = np.moveaxis(np.array(corners, dtype=float), 1, 0)
    return Boxes((lows + highs) / 2, np.tile(np.eye(3), (len(corners), 1, 1)), (highs - lows) / 2)


def turned(shape: Boxes, yaw: float) -> Boxes:
    """The shape turned about the world's z."""
    rotation = rotation_about(UP, yaw)
    return Boxes(shape.centres @ rotation.T, rotation @ shape.rotations, shape.half_sizes)


def same_line(one: np.ndarray, two: np.ndarray) -> bool:
    return bool(abs(one @ two) > 0.9999)


# -- boxes and rotations -----------------------------------------------------------------------------

CUBE = boxes(((-1, -1, -1), (1, 1, 1)))


def test_distances_to_a_cube():
    points = np.array([[2, 0, 0], [2, 2, 0], [2, 2, 2], [0, 0, 0], [0.5, 0, 0], [1, 0.3, 0]])
    expected = [1.0, np.sqrt(2), np.sqrt(3), -1.0, -0.5, 0.0]
    np.testing.assert_allclose(CUBE.distances(points), expected, atol=1e-12)


def test_the_nearest_of_several_boxes_counts_and_none_is_infinitely_far():
    two = boxes(((0, 0, 0), (1, 1, 1)), ((3, 0, 0), (4, 1, 1)))
    np.testing.assert_allclose(two.distances(np.array([[2.5, 0.5, 0.5]])), [0.5])
    assert two.where(np.array([False, False])).distances(np.zeros((1, 3)))[0] == np.inf


def test_bounds_of_a_turned_cube():
    diamond = turned(CUBE, np.pi / 4)
    low, high = diamond.hull()
    np.testing.assert_allclose(high, [np.sqrt(2), np.sqrt(2), 1])
    np.testing.assert_allclose(low, -high)
    # its edge, not a face, looks along x
    np.testing.assert_allclose(diamond.distances(np.array([[np.sqrt(2), 0, 0]])), [0], atol=1e-12)
    np.testing.assert_allclose(diamond.distances(np.array([[1.0, 1.0, 0]])), [np.sqrt(2) - 1])


def test_points_fill_a_box_to_its_corners():
    points = turned(boxes(((0, 0, 0), (1, 2, 3))), np.pi / 2).points(per_axis=3)
    assert len(points) == 27
    np.testing.assert_allclose(points.min(axis=0), [-2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(points.max(axis=0), [0, 1, 3], atol=1e-12)


@given(st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 0.1), angles)
def test_rotation_vector_undoes_rotation_about(direction: tuple[float, ...], angle: float):
    axis = unit(np.array(direction))
    np.testing.assert_allclose(
        rotation_vector(rotation_about(axis, angle)), axis * angle, atol=1e-6
    )


@pytest.mark.parametrize("axis", [X, Y, Z, unit(np.array([1.0, 2.0, -3.0]))])
def test_half_a_turn_is_half_a_turn_either_way(axis: np.ndarray):
    vector = rotation_vector(rotation_about(axis, np.pi))
    assert np.linalg.norm(vector) == pytest.approx(np.pi)
    assert same_line(vector / np.pi, axis)


def test_a_quarter_turn_about_z_takes_x_to_y():
    np.testing.assert_allclose(rotation_about(Z, np.pi / 2) @ X, Y, atol=1e-12)


@given(angles)
def test_directions_of_lines_repeat_after_half_a_turn(angle: float):
    wrapped = wrap_half_turn(angle)
    assert -np.pi / 2 <= wrapped <= np.pi / 2
    assert np.cos(2 * wrapped) == pytest.approx(np.cos(2 * angle), abs=1e-9)
    assert np.sin(2 * wrapped) == pytest.approx(np.sin(2 * angle), abs=1e-9)


# -- hands and grasps --------------------------------------------------------------------------------

CARTON = boxes(((0.28, -0.02, 0.9), (0.34, 0.02, 1.0)))  # 6 x 4 x 10 cm


def test_frames_of_the_hand():
    down = hand_down(0.0)
    np.testing.assert_allclose(down, np.stack([Y, X, DOWN], axis=1), atol=1e-12)
    np.testing.assert_allclose(hand_down(np.pi / 2)[:, 0], -X, atol=1e-12)
    forward = hand_facing(3 * X, Z + 5 * X)
    np.testing.assert_allclose(forward, np.stack([Z, -Y, X], axis=1), atol=1e-12)
    for rotation in (down, forward):
        assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_extent_along_a_direction():
    points = np.array([[0.0, 0, 0], [3, 4, 9]])
    assert extent_along(points, np.array([0.6, 0.8])) == pytest.approx((5.0, 2.5))


def test_a_carton_is_pinched_across_its_narrow_side():
    grasp = best_grasp(pinch_grasps(CARTON.points()), [])
    np.testing.assert_allclose(grasp.position, [0.31, 0.0, 0.973], atol=1e-9)  # 27 mm below its top
    assert same_line(grasp.closing, Y)
    np.testing.assert_allclose(grasp.approach, DOWN, atol=1e-12)
    assert grasp.width == pytest.approx(0.04)


@pytest.mark.parametrize("degrees", [-45, -30, 30, 45])
def test_the_hand_turns_with_the_carton(degrees: float):
    yaw = np.radians(degrees)
    grasp = best_grasp(pinch_grasps(turned(CARTON, yaw).points()), [])
    assert same_line(grasp.closing, rotation_about(UP, yaw) @ Y)
    assert grasp.width == pytest.approx(0.04)


def test_fingertips_stay_above_what_a_flat_thing_stands_on():
    flat = boxes(((0, 0, 0.9), (0.05, 0.05, 0.91)))
    assert {grasp.position[2] for grasp in pinch_grasps(flat.points())} == {0.9 + 0.0125 + 0.003}


def test_a_long_thing_may_be_held_off_its_middle_at_a_price():
    rod = boxes(((-0.1, -0.01, 0), (0.1, 0.01, 0.05)))
    grasps = [grasp for grasp in pinch_grasps(rod.points()) if same_line(grasp.closing, Y)]
    along = sorted((round(float(grasp.position[0]), 6), grasp.cost) for grasp in grasps)
    assert [x for x, _ in along] == [-0.08, -0.04, 0, 0.04, 0.08]
    costs = [cost for _, cost in along]
    assert costs[2] < costs[1] < costs[0]
    assert costs[1] == pytest.approx(costs[3])


def test_what_is_wider_than_the_open_fingers_is_not_pinched():
    wide = boxes(((0, 0, 0), (MAX_WIDTH + 0.002, MAX_WIDTH + 0.002, 0.1)))
    assert pinch_grasps(wide.points()) == []


def ring(radius: float, low: float, high: float) -> np.ndarray:
    """Points of a bowl's wall around the origin."""
    turns, heights = np.linspace(0, 2 * np.pi, 360), np.linspace(low, high, 11)
    circle = np.stack([np.cos(turns), np.sin(turns)], axis=1) * radius
    return np.concatenate([np.column_stack([circle, np.full(360, z)]) for z in heights])


def test_a_bowl_is_held_by_its_wall_from_any_side():
    grasps = rim_grasps(ring(0.06, 0.90, 0.95))
    assert len(grasps) == 24
    for grasp in grasps:
        outward = grasp.position * [1, 1, 0]
        assert np.linalg.norm(outward) == pytest.approx(0.06, abs=1e-3)
        assert same_line(grasp.closing, unit(outward))
        assert grasp.position[2] == pytest.approx(0.95 - 0.025)
    # the cheapest one needs no turn of the wrist
    assert same_line(best_grasp(grasps, []).closing, Y)


def test_no_rim_grasp_where_a_handle_is_in_the_way():
    handle = boxes(((-0.01, 0.06, 0.93), (0.01, 0.10, 0.95))).points()
    grasps = rim_grasps(np.concatenate([ring(0.06, 0.90, 0.95), handle]))
    straight = [grasp.position[1] for grasp in grasps if abs(grasp.position[0]) < 0.005]
    assert len(grasps) == 23
    assert straight == [pytest.approx(-0.06, abs=1e-3)]  # opposite the handle alone


def test_a_handle_is_what_sticks_out():
    around = [0.04 * rotation_about(UP, turn * np.pi / 4) @ X for turn in range(8)]
    walls = [((x - 0.01, y - 0.01, 0.0), (x + 0.01, y + 0.01, 0.1)) for x, y, _ in around]
    pot = boxes(*walls, ((0.07, -0.005, 0.04), (0.09, 0.005, 0.08)))
    grasps = handle_grasps(pot)
    for grasp in grasps:
        np.testing.assert_allclose(grasp.position, [0.08, 0.0, 0.065], atol=1e-9)
    assert sorted(round(grasp.width, 6) for grasp in grasps) == [0.01, 0.02]
    assert handle_grasps(pot.where(np.arange(9) < 8)) == []


def test_a_leaning_hand_closes_as_before():
    grasp = Grasp(np.zeros(3), hand_down(0.4), 0.05, 0.1)
    lean = leaning(grasp, 0.3)
    np.testing.assert_allclose(lean.closing, grasp.closing, atol=1e-12)
    assert lean.approach @ DOWN == pytest.approx(np.cos(0.3))
    assert lean.cost > grasp.cost


def test_room_of_the_open_hand():
    floor = boxes(((-1, -1, -1), (1, 1, 0)))
    low = Grasp(np.array([0.0, 0.0, 0.0155]), hand_down(0.0), 0.04)
    high = Grasp(np.array([0.0, 0.0, 0.0255]), hand_down(0.0), 0.04)
    assert room(low, floor) == pytest.approx(0.0055)
    assert room(high, floor) == pytest.approx(0.0155)
    # fingers open to 68 mm either side along the closing axis, 11 mm across it
    beside = boxes(((-1, 0.078, -1), (1, 1, 0.02)))
    assert room(low, beside) == pytest.approx(0.010)
    across = boxes(((0.031, -0.05, -1), (1, 0.05, 0.02)))
    assert room(low, across) == pytest.approx(0.020)
    assert room(low, boxes(((-1, 0.05, -1), (1, 1, 0.02)))) < 0
    assert room(low, floor.where(np.array([False]))) == np.inf


def test_the_cheapest_grasp_that_fits_and_was_not_tried():
    near, far = (Grasp(np.array([x, 0.0, 1.0]), hand_down(0.0), 0.04, x) for x in (0.01, 0.04))
    assert best_grasp([far, near], []) is near
    assert best_grasp([far, near], [lambda grasp: 1.0 if grasp is far else -0.01]) is far
    # little room costs less than a collision, and room beyond what the hand needs is worth nothing
    assert best_grasp([far, near], [lambda grasp: 1.0 if grasp is far else 0.02]) is near
    assert best_grasp([far, near], [], tried=[near, near]) is far
    with pytest.raises(ValueError, match="empty"):
        best_grasp([], [])


# -- in the simulator --------------------------------------------------------------------------------


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
        return np.stack([expert.action() for _ in range(40)])  # of one picture: the plan waits

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
