"""Credit over turns: relations that define it, and columns small enough to work out by hand."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, tensor

from vla_rl.functional import bootstrap_inputs, discounted_returns, generalized_advantages

GAMMA = 0.9


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Tensor]:
    """A window with random numbers and random ends, at most one kind of end a turn."""
    turns, envs = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    ends = torch.rand(turns, envs, generator=generator)
    return {
        "rewards": torch.randn(turns, envs, generator=generator),
        "values": torch.randn(turns, envs, generator=generator),
        "final_values": torch.randn(turns, envs, generator=generator),
        "following_values": torch.randn(envs, generator=generator),
        "terminated": ends < 0.2,
        "truncated": ends > 0.8,
    }


def inputs(window: dict[str, Tensor], gamma: float = GAMMA, **flags: Any):
    keys = ("values", "terminated", "truncated", "final_values", "following_values")
    return bootstrap_inputs(**{key: window[key] for key in keys}, gamma=gamma, **flags)


def gae(window: dict[str, Tensor], lam: float, gamma: float = GAMMA, **flags: Any) -> Tensor:
    discounts, next_values, trace = inputs(window, gamma, **flags)
    return generalized_advantages(
        window["rewards"], discounts, window["values"], next_values, trace, lam
    )


def column(*numbers: float) -> Tensor:
    return tensor(numbers)[:, None]


def test_discounted_returns_known():
    # G_2 = 4 + .5*8 = 8, G_1 = 2 + 0*8 = 2 (an end), G_0 = 1 + .5*2 = 2
    result = discounted_returns(column(1.0, 2.0, 4.0), column(0.5, 0.0, 0.5), tensor([8.0]))
    assert result[:, 0].tolist() == [2.0, 2.0, 8.0]


def test_advantages_known():
    # gamma .5, lambda .5, no ends: delta_1 = 2 + .5*6 - 4 = 1, delta_0 = 1 + .5*4 - 2 = 1
    # A_1 = 1, A_0 = 1 + .5*.5*1 = 1.25
    window = {
        "rewards": column(1.0, 2.0),
        "values": column(2.0, 4.0),
        "final_values": column(0.0, 0.0),
        "following_values": tensor([6.0]),
        "terminated": column(0, 0).bool(),
        "truncated": column(0, 0).bool(),
    }
    assert gae(window, 0.5, gamma=0.5)[:, 0].tolist() == [1.25, 1.0]


def test_success_at_the_end_of_a_chain_of_equal_values():
    # V = 1/2 everywhere, reward 1 at the success in turn 4, gamma 1: all deltas but the last are 0 and the
    # last is 1 - 1/2, so A_t = lambda^(3 - t) / 2
    turns, lam = 4, 0.8
    window = {
        "rewards": column(0.0, 0.0, 0.0, 1.0),
        "values": torch.full((turns, 1), 0.5),
        "final_values": torch.zeros(turns, 1),
        "following_values": tensor([0.5]),
        "terminated": column(0, 0, 0, 1).bool(),
        "truncated": torch.zeros(turns, 1, dtype=torch.bool),
    }
    expected = tensor([0.256, 0.32, 0.4, 0.5])
    torch.testing.assert_close(gae(window, lam, gamma=1.0)[:, 0], expected)


@pytest.mark.parametrize("where", ["inside", "last turn"])
def test_time_limit_bootstraps_and_success_does_not(where: str):
    """One turn with reward 1, V 2, final value 10, next episode's value 100: gamma .5, lambda 1.

    time limit: 1 + .5 * 10 - 2 = 4       success, and a terminal time limit: 1 - 2 = -1
    """
    turns = 2 if where == "inside" else 1
    end = torch.zeros(turns, 1, dtype=torch.bool)
    end[0] = True
    never = torch.zeros_like(end)
    window = {
        "rewards": torch.ones(turns, 1),
        "values": torch.full((turns, 1), 100.0),
        "final_values": torch.zeros(turns, 1),
        "following_values": tensor([100.0]),
    }
    window["values"][0] = 2.0
    window["final_values"][0] = 10.0
    limited = window | {"terminated": never, "truncated": end}
    succeeded = window | {"terminated": end, "truncated": never}
    assert gae(limited, 1.0, 0.5)[0].item() == 4.0
    assert gae(succeeded, 1.0, 0.5)[0].item() == -1.0
    assert gae(limited, 1.0, 0.5, time_limit_is_terminal=True)[0].item() == -1.0


def test_episode_across_the_edge_bootstraps_from_the_following_value():
    window = {
        "rewards": column(1.0),
        "values": column(2.0),
        "final_values": column(50.0),
        "following_values": tensor([4.0]),
        "terminated": column(0).bool(),
        "truncated": column(0).bool(),
    }
    assert gae(window, 0.3, 0.5).item() == 1.0  # 1 + .5 * 4 - 2


@given(windows())
def test_lambda_0_is_the_one_step_error(window: dict[str, Tensor]):
    discounts, next_values, _ = inputs(window)
    expected = window["rewards"] + discounts * next_values - window["values"]
    torch.testing.assert_close(gae(window, 0.0), expected)


@given(windows(), st.sampled_from([1.0, 0.9]))
def test_lambda_1_is_monte_carlo(window: dict[str, Tensor], gamma: float):
    """Reward-to-go minus V, with the time limit's value paid as a reward on the last turn."""
    discounts, next_values, trace = inputs(window, gamma)
    truncated = window["truncated"]
    paid = torch.where(truncated, window["rewards"] + gamma * next_values, window["rewards"])
    to_go = discounted_returns(paid, discounts * trace, window["following_values"])
    torch.testing.assert_close(
        gae(window, 1.0, gamma), to_go - window["values"], rtol=1e-4, atol=1e-4
    )


@given(windows(), st.floats(-8, 8))
def test_scales_with_rewards_and_values(window: dict[str, Tensor], scale: float):
    numbers = ("rewards", "values", "final_values", "following_values")
    scaled = window | {key: scale * window[key] for key in numbers}
    torch.testing.assert_close(gae(scaled, 0.7), scale * gae(window, 0.7), rtol=1e-4, atol=1e-4)


@given(windows(), windows(), st.booleans())
def test_an_end_separates_episodes(
    first: dict[str, Tensor], second: dict[str, Tensor], limit: bool
):
    """Two windows played one after another in the same environment equal the two computed apart."""
    envs = min(first["rewards"].shape[1], second["rewards"].shape[1])
    first, second = ({key: x[..., :envs].clone() for key, x in w.items()} for w in (first, second))
    first["truncated"][-1], first["terminated"][-1] = limit, not limit
    joined = {
        key: torch.cat([first[key], second[key]])
        for key in ("rewards", "values", "final_values", "terminated", "truncated")
    } | {"following_values": second["following_values"]}
    torch.testing.assert_close(gae(joined, 0.7), torch.cat([gae(first, 0.7), gae(second, 0.7)]))


@given(windows())
def test_order_of_environments_does_not_matter(window: dict[str, Tensor]):
    flipped = {key: x.flip(-1) for key, x in window.items()}
    torch.testing.assert_close(gae(flipped, 0.7), gae(window, 0.7).flip(-1))


@given(windows())
def test_values_after_an_end_are_never_read(window: dict[str, Tensor]):
    """The final value counts at time limits only; the value after a reset never does."""
    spoiled = window | {"final_values": window["final_values"].clone()}
    spoiled["final_values"][~window["truncated"]] = torch.nan
    over = window["terminated"][-1] | window["truncated"][-1]
    spoiled["following_values"] = torch.where(over, torch.nan, window["following_values"])
    assert torch.equal(gae(spoiled, 0.7), gae(window, 0.7))


@settings(max_examples=30)
@given(windows())
def test_bfloat16_is_computed_in_float32(window: dict[str, Tensor]):
    short = {k: x.bfloat16() if x.is_floating_point() else x for k, x in window.items()}
    wide = {k: x.float() if x.is_floating_point() else x for k, x in short.items()}
    assert gae(short, 0.7).dtype == torch.float32
    assert torch.equal(gae(short, 0.7), gae(wide, 0.7))


def test_no_gradient_flows_into_values():
    values = torch.ones(2, 1, requires_grad=True)
    ones = torch.ones(2, 1)
    assert not generalized_advantages(ones, ones, values, values, ones, 0.9).requires_grad
