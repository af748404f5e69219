"""Actions to bins to vocabulary ids and back, against literals and OpenVLA's own code."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from builders.policies import GOLDEN
from vla_rl.config import UserError
from vla_rl.policies import (
    ActionStatistics,
    ActionTokenizer,
    identity_statistics,
    select_statistics,
)

OPENVLA = ActionTokenizer(256, "centers", 32000)
TINY = ActionTokenizer(32, "grid", 512)
ACTIONS = hnp.arrays(np.float64, 9, elements=st.floats(-1, 1))


@pytest.mark.parametrize(
    ("action", "bin_", "token"), [(-1.0, 0, 31999), (0.0, 127, 31872), (1.0, 255, 31744)]
)
def test_openvla_literals(action: float, bin_: int, token: int) -> None:
    bins = OPENVLA.encode(np.array([action]))
    assert bins.tolist() == [bin_]
    assert OPENVLA.to_vocabulary(bins).tolist() == [token]
    assert OPENVLA.from_vocabulary(np.array([token])).tolist() == [bin_]


def test_official_encoding(golden_actions: dict[str, np.ndarray]) -> None:
    for suffix in ("", "_f32"):
        values = golden_actions[f"encode_values{suffix}"].copy()
        ids = OPENVLA.to_vocabulary(
            OPENVLA.encode(values) if not suffix else OPENVLA.encode(values.astype(np.float32))
        )
        want = golden_actions["encode_token_ids" if not suffix else "encode_token_ids_f32"]
        np.testing.assert_array_equal(ids, want)


def test_official_decoding_out_of_range_too(golden_actions: dict[str, np.ndarray]) -> None:
    bins = OPENVLA.from_vocabulary(golden_actions["decode_token_ids"].copy())
    np.testing.assert_array_equal(
        OPENVLA.decode(bins), golden_actions["decode_actions_predict_action"]
    )


def test_last_two_openvla_bins_decode_alike() -> None:
    high = OPENVLA.decode(np.array([254, 255]))
    assert high.tolist() == [0.996078431372549] * 2


@pytest.mark.parametrize("key", ["libero_spatial_no_noops", "bridge_orig"])
def test_official_unnormalisation(golden_actions: dict[str, np.ndarray], key: str) -> None:
    stats = json.loads((GOLDEN / "actions_norm_stats.json").read_text())
    _, statistics = select_statistics(stats, key)
    values = OPENVLA.decode(OPENVLA.from_vocabulary(golden_actions["unnorm_tokens"].copy()))
    got = statistics.unnormalize(values)
    np.testing.assert_allclose(got, golden_actions[f"unnorm_actions__{key}"], rtol=1e-15)


def test_grid_reaches_its_ends_exactly() -> None:
    assert TINY.decode(np.array([0, 31])).tolist() == [-1.0, 1.0]
    assert TINY.encode(np.array([-7.0, -1.0, 1.0, 7.0])).tolist() == [0, 0, 31, 31]
    assert TINY.to_vocabulary(np.array([0, 31])).tolist() == [511, 480]


@pytest.mark.parametrize("tokenizer", [OPENVLA, TINY], ids=["centers", "grid"])
@given(actions=ACTIONS)
def test_round_trip_stays_within_half_a_bin(
    tokenizer: ActionTokenizer, actions: np.ndarray
) -> None:
    bins = tokenizer.encode(actions)
    decoded = tokenizer.decode(bins)
    width = 2 / 255 if tokenizer is OPENVLA else 2 / 31
    assert np.abs(decoded - actions).max() <= width / 2 + 1e-12
    again = tokenizer.encode(decoded)
    np.testing.assert_array_equal(tokenizer.decode(again), decoded)


@given(actions=ACTIONS)
def test_bins_rise_with_the_action(actions: np.ndarray) -> None:
    ordered = np.sort(actions)
    assert (np.diff(OPENVLA.encode(ordered)) >= 0).all()
    assert (np.diff(TINY.encode(ordered)) >= 0).all()


@given(actions=hnp.arrays(np.float64, (5, 3), elements=st.floats(-10, 10)))
def test_normalisation_is_undone(actions: np.ndarray) -> None:
    statistics = ActionStatistics(
        np.array([-0.7, 0.1, 0.0]), np.array([0.9, 0.4, 1.0]), np.array([True, True, False])
    )
    round_trip = statistics.unnormalize(statistics.normalize(actions))
    np.testing.assert_allclose(round_trip, actions, atol=1e-12)
    np.testing.assert_array_equal(statistics.normalize(actions)[:, 2], actions[:, 2])


def test_a_dimension_that_never_moves_stays_finite() -> None:
    still = ActionStatistics(np.zeros(1), np.zeros(1), np.ones(1, dtype=bool))
    assert np.isfinite(still.normalize(np.zeros((2, 1)))).all()
    assert still.unnormalize(np.ones((2, 1))).tolist() == [[0.0], [0.0]]


def test_statistics_key_falls_back_to_no_noops_and_names_the_nearest() -> None:
    stats = {
        **identity_statistics("libero_spatial_no_noops", 7),
        **identity_statistics("bridge_orig", 7),
    }
    assert select_statistics(stats, "libero_spatial")[0] == "libero_spatial_no_noops"
    with pytest.raises(UserError, match="Did you mean 'bridge_orig'"):
        select_statistics(stats, "bridge_origin")
    with pytest.raises(UserError, match="2 datasets"):
        select_statistics(stats)


def test_statistics_of_unequal_length_are_refused() -> None:
    with pytest.raises(UserError, match="one length"):
        select_statistics({"x": {"action": {"q01": [0.0], "q99": [1.0, 2.0]}}})
    with pytest.raises(UserError, match="q01 and q99"):
        select_statistics({"x": {"action": {"mean": [0.0]}}})
