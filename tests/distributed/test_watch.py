"""How a rank hears that another one has ended."""

from __future__ import annotations

import time

import pytest
from torch._C._distributed_c10d import Store, TCPStore

from vla_rl.config import UserError
from vla_rl.distributed.watch import RankLostError, Watch

HERE = "127.0.0.1"


@pytest.fixture
def store() -> TCPStore:
    return TCPStore(HERE, 0, 2, is_master=True, wait_for_workers=False)


def connection(store: TCPStore) -> Store:
    return TCPStore(HERE, store.port, is_master=False)


def test_a_rank_that_computes_is_interrupted_with_the_reason_of_another(store: TCPStore) -> None:
    other = Watch(lambda: connection(store), 1)

    def play() -> None:
        with Watch(lambda: connection(store), 0):
            other.tell_own(UserError("no simulator here"))
            while True:
                time.sleep(0.01)

    with pytest.raises(RankLostError, match=r"rank 1 on .*: no simulator here"):
        play()


def test_a_rank_is_not_interrupted_by_its_own_reason(store: TCPStore) -> None:
    """It has an error to raise already, and waits until rank 0 has said it."""
    with Watch(lambda: connection(store), 1) as watch:
        watch.tell_own(UserError("no simulator here"))
        assert not watch.is_spoken(2.5)  # longer than the thread waits between two looks
        assert watch.reason() is not None


def test_the_first_reason_counts(store: TCPStore) -> None:
    first, second = (Watch(lambda: connection(store), rank) for rank in (1, 2))
    first.tell("the disk is full")
    second.tell("waited in vain")
    assert second.reason() == "the disk is full"
