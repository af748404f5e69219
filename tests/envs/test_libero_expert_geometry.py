"""The geometry behind the scripted LIBERO expert, by literal known answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.envs.libero.expert.grasp import (
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
from vla_rl.envs.libero.expert.shapes import (
    DOWN,
    UP,
    Boxes,
    rotation_about,
    rotation_vector,
    unit,
    wrap_half_turn,
)

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
    heights = [grasp.position[2] for grasp in pinch_grasps(flat.points())]
    assert heights
    np.testing.assert_allclose(heights, 0.9 + 0.0125 + 0.003, atol=1e-12)


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
