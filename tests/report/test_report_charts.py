from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.report.page.charts import (
    Axis,
    Guide,
    Line,
    heat_chart,
    interval_bar,
    line_chart,
    moving_average,
    nice_ticks,
    number,
    percent,
    points,
    stacked_chart,
)
from vla_rl.report.run_data import Rate

X = np.arange(5)
NAN = float("nan")


def parse(html: str) -> ElementTree.Element:
    """Charts are well-formed XML as well."""
    return ElementTree.fromstring(html)


def path(html: str, kind: str) -> str:
    found = re.search(rf'<path class="{kind}[^"]*" d="([^"]*)"', html)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (12345.6, "12,346"), (123.4, "123"), (9.4123, "9.41"), (-0.5, "−0.5"),
        (0.0123, "0.0123"), (2e-4, "2e-4"), (3.21e-6, "3.2e-6"), (-0.0, "0"), (NAN, "–"),
    ],
)  # fmt: skip
def test_number(value: float, text: str):
    assert number(value) == text


def test_percent_and_points():
    assert (percent(0.847), percent(1.0), percent(NAN)) == ("84.7%", "100.0%", "–")
    assert (points(0.487), points(-0.02), points(0.0), points(-0.0001)) == (
        "+48.7",
        "−2.0",
        "0.0",
        "0.0",
    )


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_round_and_cover_the_data(low: float, span: float, count: int):
    ticks = nice_ticks(low, low + span, count)
    steps = np.diff(ticks)
    step = float(np.median(steps))
    assert step > 0
    assert np.allclose(steps, step, rtol=1e-3)
    assert ticks[0] <= low + 1e-3 * step
    assert ticks[-1] >= low + span - 1e-3 * step
    assert 1 <= len(steps) <= 2 * count + 2
    mantissa = step / 10 ** math.floor(math.log10(step * 1.0001))
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 0.01


def test_ticks_literal():
    assert nice_ticks(0, 0.83) == [0, 0.5, 1]
    assert nice_ticks(-0.3, 1, 3) == [-0.5, 0, 0.5, 1]
    assert nice_ticks(2, 2)[0] < 2 < nice_ticks(2, 2)[-1]


def test_moving_average_literal():
    values = np.array([1.0, 3.0, NAN, 5.0])
    assert moving_average(values, 2).tolist() == [1.0, 2.0, 3.0, 5.0]
    weighted = moving_average(np.array([0.0, 1.0]), 2, np.array([1.0, 3.0]))
    assert weighted.tolist() == [0.0, 0.75]
    assert np.isnan(moving_average(np.array([NAN, NAN]), 2)).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(1, 40))
def test_moving_average_stays_inside_and_keeps_constants(values: list[float], window: int):
    data = np.array(values)
    mean = moving_average(data, window)
    assert (mean >= data.min() - 1e-9).all()
    assert (mean <= data.max() + 1e-9).all()
    assert np.allclose(moving_average(data, 1), data)
    assert np.allclose(moving_average(np.full(len(data), 0.3), window), 0.3)


def test_a_line_is_drawn_where_the_data_are_and_broken_where_they_are_missing():
    chart = line_chart(
        "t", X, [Line("a", np.array([0.0, 1.0, NAN, 0.5, 0.25]))], Axis(percent=True)
    )
    assert path(chart, "line solid c0") == "M0 1000h0L250 0M750 500h0L1000 750"
    svg = parse(chart).find(".//svg")
    assert svg is not None
    assert svg.findtext("title") == "t"
    assert "first 0.0%, last 25.0%, from 0.0% to 100.0%" in (svg.findtext("desc") or "")


def test_guides_and_band_are_drawn_and_named():
    chart = line_chart(
        "t", X, [Line("a", np.full(5, 0.5))], Axis(percent=True),
        guides=[Guide("goal", 0.25, "after")], band=(0, 1, "warm-up"),
    )  # fmt: skip
    assert path(chart, "line dashed after") == "M0 750H1000"
    assert path(chart, "band") == "M0 0H250V1000H0Z"
    legend = ["".join(item.itertext()) for item in parse(chart).findall(".//li")]
    assert legend == ["a", "goal", "warm-up"]


def test_stacked_areas_add_up():
    layers = [
        Line("a", np.full(5, 0.25), "c0"),
        Line("b", np.array([0.75, NAN, 0.75, 0.75, 0.75]), "c1"),
    ]
    chart = stacked_chart("t", X, layers, Axis(percent=True))
    upper = path(chart, "area c1").removeprefix("M").split("L")
    assert upper[:5] == ["0 0", "250 750", "500 0", "750 0", "1000 0"]
    assert path(chart, "area c0").startswith("M0 750L250 750")


def test_many_points_are_thinned_to_means():
    x = np.arange(10_000)
    chart = line_chart("t", x, [Line("a", np.linspace(0, 1, 10_000))], Axis(percent=True))
    drawn = path(chart, "line solid c0")
    assert drawn.count("L") == 399
    assert drawn.startswith("M0 999")
    assert drawn.endswith("L1000 1")


def corners(html: str) -> list[tuple[float, float]]:
    """Every point that the paths of a chart go through and every corner of its rectangles, in units of its viewBox.

    Raises ValueError for what is no number, and for a path that begins anywhere but with a move.
    """
    found: list[tuple[float, float]] = []
    for shape in parse(html).iter():
        if shape.tag == "path":
            steps = re.findall(r"([a-zA-Z])([^a-zA-Z]*)", shape.get("d", ""))
            assert "".join(letter + rest for letter, rest in steps) == shape.get("d", "")
            for letter, rest in steps:
                numbers = [float(word) for word in rest.split()]
                match letter:
                    case "M" | "L":
                        x, y = numbers
                    case "H":
                        (x,) = numbers
                    case "V":
                        (y,) = numbers
                    case "h":
                        (step,) = numbers
                        x += step
                    case "Z":
                        continue
                    case _:
                        raise ValueError(f"unknown step {letter}")
                found.append((x, y))
        elif shape.tag == "rect":
            left, width = float(shape.get("x", "0")), float(shape.get("width", "nan"))
            found += [(left, 0.0), (left + width, float(shape.get("height", "nan")))]
    return found


def assert_inside(html: str) -> None:
    assert parse(html).find(".//svg[@viewBox='0 0 1000 1000']") is not None
    for x, y in corners(html):
        assert 0 <= x <= 1000
        assert 0 <= y <= 1000
    for place in re.findall(r"(?:bottom|left):([^%\"]*)%", html):
        assert 0 <= float(place) <= 100


@pytest.mark.parametrize("values", [[0.5], [NAN], [0.0, 0.0], [-3.0, -3.0], [1e-9, 2e-9]])
def test_degenerate_data_are_drawn_inside_the_chart(values: list[float]):
    data = np.array(values)
    x = np.arange(len(data))
    axes = [Axis(), Axis(zero=False)]
    if not (data < 0).any():  # no share is
        axes.append(Axis(percent=True))
    for axis in axes:
        assert_inside(line_chart("t", x, [Line("a", data)], axis))
        if axis.zero:  # what is stacked begins there
            assert_inside(stacked_chart("t", x, [Line("a", np.abs(data))], axis))
    assert_inside(heat_chart("t", x, [Line("a", np.abs(data))]))


def test_where_degenerate_data_are_drawn():
    half = line_chart("t", np.arange(1), [Line("a", np.array([0.5]))], Axis(percent=True))
    assert path(half, "line") == "M500 500h0"  # one point, in the middle
    nothing = line_chart("t", np.arange(1), [Line("a", np.array([NAN]))], Axis(percent=True))
    assert path(nothing, "line") == ""
    tiny = line_chart("t", np.arange(2), [Line("a", np.array([1e-9, 2e-9]))])
    assert path(tiny, "line") == "M0 500h0L1000 0"
    heat = heat_chart("t", np.arange(2), [Line("a", np.zeros(2))])
    assert corners(heat) == [(0, 0), (500, 1000), (500, 0), (1000, 1000)]


def test_hostile_names_are_escaped():
    hostile = "<b onload='x'>\"&"
    chart = line_chart(hostile, X, [Line(hostile, np.ones(5)), Line("b", np.ones(5))])
    assert not parse(chart).findall(".//b")
    heat = heat_chart(hostile, X, [Line(hostile, np.ones(5))], note=hostile)
    assert not parse(heat).findall(".//b")


def test_interval_bar_is_at_its_numbers():
    bar = interval_bar(Rate(54, 150, 0.2877, 0.4393), Rate(120, 150, 0.7289, 0.8560))
    assert 'style="left:28.77%;width:15.16%"' in bar
    assert 'style="left:36.00%"' in bar
    assert "before 36.0%, interval 28.8% to 43.9%; after 80.0%, interval 72.9% to 85.6%" in bar
    assert "no data" in interval_bar(None, Rate(0, 0, 0, 1))
