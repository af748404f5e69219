"""The simulated window against answers worked out by hand, and what must hold for any numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_rl.planning.costs import Line
from vla_rl.planning.simulation import NOTHING, Play, passes, simulate

INF = float("inf")


def play(**changes: object) -> Play:
    base = Play(envs=1, turns=10, workers=1, cores=8.0, turn=0.5, infer=Line(0.0, 0.0))
    return replace(base, **changes)  # type: ignore[arg-type]


def near(seconds: float) -> object:
    return pytest.approx(seconds, rel=1e-9)


def test_one_environment_takes_the_sum_of_its_parts() -> None:
    """Nothing can overlap: ten turns of 0.2 s to decide and 0.5 s to play, 0.1 s beside, then 0.3 s of values."""
    times = simulate(
        play(infer=Line(0.15, 0.05), overhead=Line(0.1, 0.0), values=Line(0.3, 0.0), on_device=True)
    )
    assert times.total == near(10 * (0.2 + 0.5 + 0.1) + 0.3)
    assert (times.simulate, times.infer) == (near(10 * 0.5), near(10 * 0.2 + 0.3))
    assert times.other == near(10 * 0.1)


def test_while_one_half_simulates_the_other_is_decided_for() -> None:
    """Two groups of one, as long to decide for as to play: the engine never waits until the last turn is played."""
    times = simulate(play(envs=2, workers=2, turn=0.2, infer=Line(0.0, 0.2), on_device=True))
    assert times.total == near(2 * 10 * 0.2 + 0.2)
    assert times.simulate == near(0.2)


def test_slow_simulators_hide_the_engine() -> None:
    """Two groups whose simulators are busy all the time: only the first decision is seen, then ten turns of 1 s."""
    times = simulate(play(envs=2, workers=2, turn=1.0, infer=Line(0.0, 0.1), on_device=True))
    # a group's own turn follows its own decision: 1 + 0.1 each, and the second group starts 0.1 later
    assert times.total == near(10 * 1.1 + 0.1)


def test_one_core_does_everything_one_after_the_other() -> None:
    """However much runs at the same time, a core does a second of work in a second."""
    work = 10 * (4 * 0.2 + 2 * 0.1)
    times = simulate(play(envs=4, workers=4, cores=1.0, turn=0.2, infer=Line(0.1, 0.0)))
    assert times.total == near(work)
    assert simulate(
        play(envs=4, workers=0, cores=1.0, turn=0.2, infer=Line(0.1, 0.0))
    ).total == near(work)


def test_two_on_one_core_take_twice_as_long_each() -> None:
    """Both groups play at once on half a core each: 1 s for 0.5 s of work."""
    times = simulate(play(envs=2, workers=2, cores=1.0, turns=1))
    assert times.total == near(1.0)
    assert simulate(play(envs=2, workers=2, cores=2.0, turns=1)).total == near(0.5)


def test_a_worker_with_several_environments_plays_them_in_turn() -> None:
    """Environment i belongs to worker i mod W, as in ProcessVectorEnv: 3 and 2 of five, 0.5 s each."""
    times = simulate(play(envs=5, workers=2, turns=1))
    # groups {0, 1, 2} and {3, 4}: worker 0 has 0, 2 and 4, worker 1 has 1 and 3
    assert times.total == near(3 * 0.5)


def test_an_engine_that_two_share_answers_one_after_the_other() -> None:
    alone = simulate(play(envs=1, turns=1, turn=0.0, infer=Line(1.0, 0.0), on_device=True))
    both = simulate(play(envs=1, turns=1, turn=0.0, infer=Line(1.0, 0.0), on_device=True, ranks=2))
    assert (alone.total, both.total) == (near(1.0), near(2.0))
    assert both.infer == near(1.5)  # the mean of 1 and 2


def test_the_way_to_an_engine_counts_twice_where_it_does() -> None:
    there_and_back = Line(0.2, 0.1)
    times = simulate(
        play(envs=1, turns=1, transfer=there_and_back, infer=Line(1.0, 0.0), on_device=True)
    )
    assert times.total == near(0.3 + 1.0 + 0.5)


def test_resets_are_waited_for_where_episodes_end() -> None:
    """All four end after every fifth turn: the groups' resets are waited for one after the other.

    Group 1 goes on at 2.5 + 0.3 s and group 2 at 3.1; they have played their tenth turn at 5.3 and 5.6 s. The last
    resets end at 5.6 and 5.9.
    """
    ends = play(envs=4, workers=4, reset=0.3, episode_turns=5.0, staggered=False)
    assert simulate(ends).total == near(10 * 0.5 + 3 * 0.3)
    never = replace(ends, episode_turns=INF)
    assert simulate(never).total == near(10 * 0.5)


def test_staggered_episodes_end_as_often_on_the_whole() -> None:
    """One worker, so that all resets lie one after the other: 8 environments x 100 turns / 10 a reset."""
    base = play(envs=8, turns=100, reset=1.0, turn=0.0, episode_turns=10.0, infer=NOTHING)
    assert simulate(base).total == near(80.0)
    assert simulate(replace(base, staggered=False)).total == near(80.0)


def test_passes_in_threads() -> None:
    assert passes(4, 1.0, 1, 2.0) == near(4.0)
    assert passes(4, 1.0, 2, 2.0) == near(2.0)
    assert passes(5, 1.0, 2, 2.0) == near(3.0)
    assert passes(4, 1.0, 2, 1.0) == near(4.0)
    # half of each pass waits for the interpreter: two at once take as long as one after the other
    assert passes(4, 1.0, 2, 2.0, overlap=0.5) == near(2.0)
    assert passes(4, 1.0, 2, 2.0, overlap=0.0) == near(4.0)
    assert passes(0, 1.0, 2, 2.0) == 0


seconds = st.floats(0.0, 2.0)


@settings(max_examples=60)
@given(
    envs=st.integers(1, 6), workers=st.integers(0, 4), cores=st.floats(0.5, 6.0), turn=seconds,
    fixed=seconds, each=seconds, reset=seconds, length=st.floats(1.5, 9.0), device=st.booleans(),
)  # fmt: skip
def test_more_work_never_takes_less_and_nothing_is_faster_than_its_bounds(
    envs: int, workers: int, cores: float, turn: float, fixed: float, each: float, reset: float,
    length: float, device: bool,
) -> None:  # fmt: skip
    this = Play(
        envs=envs, turns=4, workers=workers, cores=cores, turn=turn, reset=reset, episode_turns=length,
        infer=Line(fixed, each), on_device=device,
    )  # fmt: skip
    times = simulate(this)
    slack = 1e-6
    # a rank with one group cannot be faster than that group's own way, nor the engine than its work
    groups = 2 if envs > 1 else 1
    assert times.total >= 4 * (groups * fixed + envs * each) - slack
    assert times.total >= 4 * (turn + fixed) - slack
    work = 4 * envs * turn / max(1.0, min(cores, max(1, workers)))
    assert times.total >= work - slack
    assert times.total == pytest.approx(times.simulate + times.infer + times.other, abs=1e-6)
    assert simulate(replace(this, turns=5)).total >= times.total - slack
    if (
        workers == 1 or envs == 1
    ):  # what is done one after the other can only grow; processes side by side may reorder
        slower = replace(this, turn=turn + 0.1)
        assert simulate(slower).total >= times.total - slack
    assert simulate(this) == times


def test_more_cores_and_more_workers_are_no_slower_for_equal_environments() -> None:
    base = play(envs=8, turns=20, turn=0.3, infer=Line(0.02, 0.01))
    by_cores = [simulate(replace(base, workers=8, cores=c)).total for c in (1.0, 2.0, 4.0, 9.0)]
    assert by_cores == sorted(by_cores, reverse=True)
    by_workers = [simulate(replace(base, workers=w, cores=16.0)).total for w in (1, 2, 4, 8)]
    assert by_workers == sorted(by_workers, reverse=True)
    assert by_workers[0] > 2 * by_workers[-1]
