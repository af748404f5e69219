"""Limits on actions: what leaves is within them to the bit, clipped or refused as asked, and counted."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_rl.config import ConfigError
from vla_rl.config.limits import LimitsConfig
from vla_rl.serving.limits import ActionLimits, LimitKeeper, RefusedError


def test_known_answers() -> None:
    limits = ActionLimits(4, low=[-1], high=[1, 1, 1, 0.5], change=[0.25], box_high=[9, 9, 0.125])
    keep = LimitKeeper(limits)
    wild = np.array([[3, 0, 0, 1], [3, 0, 1, 1], [-3, 0.25, 1, 1]], np.float32)
    wanted = [[1, 0, 0, 0.5], [1, 0, 0.125, 0.5], [0.75, 0.25, 0.125, 0.5]]
    np.testing.assert_array_equal(keep(wild), np.array(wanted, np.float32))
    # the first row of the next answer comes after the last of this one
    np.testing.assert_array_equal(keep(wild[:1]), np.array([[1, 0, 0, 0.5]], np.float32))
    keep.forget()
    np.testing.assert_array_equal(keep(-wild[:1]), np.array([[-1, 0, 0, -1]], np.float32))
    assert keep.counts["actions"] == 5
    assert {kind: keep.counts[kind] for kind in ("bounds", "box", "change", "refused")} == {
        "bounds": 5,
        "box": 2,
        "change": 1,
        "refused": 0,
    }


NUMBERS = st.floats(-1e5, 1e5, width=32)


@settings(max_examples=60)
@given(
    actions=arrays(np.float32, (6, 3), elements=NUMBERS),
    ends=arrays(np.float64, (2, 3), elements=st.floats(-50, 50)),
    change=st.floats(1e-3, 10),
    split=st.integers(1, 5),
)
def test_whatever_comes_in_what_leaves_is_within(actions, ends, change, split) -> None:
    low, high = ends.min(0), ends.max(0)
    keep = LimitKeeper(ActionLimits(3, low=low, high=high, change=[change]))
    sent = np.concatenate([keep(actions[:split]), keep(actions[split:])])
    assert (sent >= low.astype(np.float32)).all()
    assert (sent <= high.astype(np.float32)).all()
    steps = np.abs(np.diff(sent.astype(np.float64), axis=0))
    assert (steps <= np.float32(change)).all()
    assert np.isfinite(sent).all()


def test_what_is_within_passes_untouched() -> None:
    calm = np.random.default_rng(0).uniform(-0.1, 0.1, (9, 7)).astype(np.float32)
    keep = LimitKeeper(ActionLimits(7, low=[-1], high=[1], change=[0.25], beyond="refuse"))
    np.testing.assert_array_equal(keep(calm), calm)
    assert (
        keep.report() == "9 actions, clipped 0 by bounds, 0 by box, 0 by change; 0 answers refused"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("beyond", ["clip", "refuse"])
def test_what_is_no_number_never_leaves(bad: float, beyond: str) -> None:
    actions = np.zeros((3, 2))
    keep = LimitKeeper(ActionLimits(2, low=[-1], high=[1], beyond=beyond))
    keep(actions)
    actions[2, 1] = bad
    with pytest.raises(RefusedError):
        keep(actions)
    assert keep.counts["refused"] == 1
    np.testing.assert_array_equal(keep.last, [0, 0])
    if not np.isfinite(bad):
        with pytest.raises(RefusedError):
            LimitKeeper(None)(actions)


def test_a_refusal_says_which_number_and_keeps_the_last_action() -> None:
    keep = LimitKeeper(ActionLimits(2, high=[1], change=[0.5], beyond="refuse"))
    keep(np.zeros((1, 2), np.float32))
    with pytest.raises(
        RefusedError, match=r"action 1: number 1 is 1.5, within the limits \(bounds\)"
    ):
        keep(np.array([[0, 0.5], [0, 1.5]], np.float32))
    with pytest.raises(RefusedError, match=r"number 0 is 0.75, within the limits \(change\).* 0.5"):
        keep(np.array([[0.75, 0]], np.float32))
    np.testing.assert_array_equal(keep.last, [0, 0])


def test_a_robot_that_is_beyond_the_limits_already_is_not_moved() -> None:
    keep = LimitKeeper(ActionLimits(1, high=[1], change=[0.5]))
    keep.last = np.array([2], np.float32)
    with pytest.raises(RefusedError, match="bring the robot back by hand"):
        keep(np.zeros((1, 1), np.float32))
    keep.last = np.array([1.25], np.float32)
    np.testing.assert_array_equal(keep(np.zeros((1, 1), np.float32)), [[0.75]])


def test_it_is_logged_but_not_a_thousand_times(caplog: pytest.LogCaptureFixture) -> None:
    keep = LimitKeeper(ActionLimits(1, high=[1]), "client 7")
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            keep(np.full((1, 1), 2, np.float32))
    assert len(caplog.records) == 4  # 1, 10, 100, 1000
    assert "client 7: 1 of 1 actions clipped by bounds; 1000 so far" in caplog.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"low": [0, 0]}, "low: expected 3 numbers"),
        ({"low": [1], "high": [0]}, "no action keeps the limits: number 0"),
        ({"low": [1], "box_high": [2, 0, 2]}, "no action keeps the limits: number 1"),
        ({"change": [0]}, "change: expected numbers above 0"),
        ({"high": [np.nan]}, "high: expected finite numbers"),
        ({"box_low": [0, 0]}, "box_low: expected x, y and z"),
        ({"beyond": "warn"}, "expected clip or refuse"),
    ],
)
def test_limits_that_do_not_fit_are_refused(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ActionLimits(3, **given)


def test_the_options_are_checked_before_anything_is_loaded() -> None:
    assert not LimitsConfig().any
    assert LimitsConfig(change=(0.1,)).any
    with pytest.raises(ConfigError, match=r"limits.box_low: expected 3 numbers"):
        LimitsConfig(box_low=(0.0,))
    with pytest.raises(ConfigError, match="give one for each dimension"):
        LimitsConfig(low=(0.0, 0.0), high=(1.0, 1.0, 1.0))
