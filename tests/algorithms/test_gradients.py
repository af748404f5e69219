"""Sharded gradients equal the plain gradient of the mean loss, whatever the shares and micro-batches."""

import pytest
import torch
from torch import nn

from vla_rl.algorithms.gradients import Tally, ThreadedGradients


def problem():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    unused = nn.Parameter(torch.zeros(2))
    data = torch.randn(11, 3, dtype=torch.float64)

    def loss(rows):
        per_row = net(data[rows])[:, 0].square()
        return per_row.mean(), {"mean": per_row.mean().item(), "most_max": per_row.max().item()}

    return [*net.parameters(), unused], loss


@pytest.mark.parametrize("shares", [1, 2, 3, 20])
@pytest.mark.parametrize("micro_batch", [0, 1, 4])
def test_gradient_is_that_of_the_mean_loss(shares: int, micro_batch: int):
    parameters, loss = problem()
    rows = torch.tensor([10, 2, 3, 5, 8, 0, 1])
    value, numbers = loss(rows)
    expected = torch.autograd.grad(value, parameters[:-1])
    stats = ThreadedGradients(shares, micro_batch).backward(
        loss, rows.tensor_split(shares), parameters
    )
    for parameter, grad in zip(parameters, expected, strict=False):
        torch.testing.assert_close(parameter.grad, grad)
    assert parameters[-1].grad is None
    assert stats["mean"] == pytest.approx(numbers["mean"], rel=1e-13)
    # another shape of the same product rounds differently: a few units in the last place of a float64
    assert stats["most_max"] == pytest.approx(numbers["most_max"], rel=1e-13)


def test_same_bits_every_time():
    parameters, loss = problem()
    sharded, grads = ThreadedGradients(3), []
    for _ in range(5):
        sharded.backward(loss, torch.arange(11).tensor_split(5), parameters)
        grads.append(torch.cat([p.grad.reshape(-1) for p in parameters[:-1]]))
    assert all(torch.equal(grads[0], g) for g in grads[1:])


def test_an_error_in_a_share_reaches_the_caller():
    parameters, _ = problem()

    def broken(rows):
        raise RuntimeError("no loss today")

    with pytest.raises(RuntimeError, match="no loss today"):
        ThreadedGradients(2).backward(broken, torch.arange(4).tensor_split(2), parameters)


def test_tally_weighs_means_and_keeps_maxima():
    tally = Tally()
    tally.add({"loss": 1.0, "ratio_max": 3.0}, weight=3)
    tally.add({"loss": 5.0, "ratio_max": 2.0, "rare": 7.0}, weight=1)
    assert tally.means() == {"loss": 2.0, "ratio_max": 3.0, "rare": 7.0}
