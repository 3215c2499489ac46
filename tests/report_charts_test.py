"""Charts put values where they belong."""

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from offpolicy_rl.report import figures, series, svg


def points(*pairs) -> list[series.Point]:
  return [series.Point(x, y, y, y) for x, y in pairs]


def drawn(*curves, log=False, form=svg.lines):
  """The picture of lists of (x, y)."""
  found = [series.binned(points(*pairs), 1) for pairs in curves]
  last = max(x for s in found for x in s.x)
  axes = svg.fit_axes(found, (0, last), log=log)
  named = [svg.Curve("c", s, n) for n, s in enumerate(found)]
  return ElementTree.fromstring(form(named, axes, "unit")), axes


def corners(element) -> list[tuple[float, float]]:
  return [tuple(map(float, p.split(","))) for p in element.attrib["points"].split()]


def test_lines_place_points_and_ticks():
  picture, _ = drawn([(0, 0.0), (10, 1.0)], [(5, 0.5)])
  first, second = [corners(e) for e in picture.iter("polyline")]
  (x0, y0), (x1, y1) = first
  [(xm, ym)] = second
  assert x0 < x1 and y0 > y1  # time to the right, larger values higher
  assert xm == pytest.approx((x0 + x1) / 2, abs=0.2) and ym == pytest.approx((y0 + y1) / 2, abs=0.2)
  texts = [e.text for e in picture.iter("text")]
  assert {"0", "0.2", "1", "10", "step", "unit"} <= set(texts)


def test_a_logarithmic_axis_gives_every_power_the_same_room():
  picture, axes = drawn([(0, 1e-6), (1, 1e-4), (2, 1e-2)], log=True)
  assert axes.ticks == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
  ys = [y for _, y in corners(next(picture.iter("polyline")))]
  assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)
  assert len(series.log_ticks(1e-12, 1.0)) <= 7


def test_areas_lie_on_top_of_one_another():
  picture, axes = drawn([(0, 0.25), (1, 0.5)], [(0, 0.75), (1, 0.5)], form=svg.stacked)
  lower, upper = [corners(e) for e in picture.iter("polygon")]
  heights = [y for _, y in lower[:2]]
  assert heights == pytest.approx([axes.y(0.25), axes.y(0.5)], abs=0.1)
  assert [y for _, y in upper[2:]] == heights[::-1]  # the upper one begins where the lower ends


def test_a_spread_is_shaded():
  s = series.binned([series.Point(0, 1, 0, 2), series.Point(1, 1, 0.5, 2)], 1)
  axes = svg.fit_axes([s], (0, 1))
  picture = ElementTree.fromstring(svg.lines([svg.Curve("c", s, 0)], axes))
  ys = [y for _, y in corners(next(picture.iter("polygon")))]
  assert ys == pytest.approx([axes.y(v) for v in (2, 2, 0.5, 0)], abs=0.1)


def test_what_is_off_the_picture_is_told():
  picture, axes = drawn([(x, 1.0 + x / 100) for x in range(99)] + [(99, 500.0)])
  assert axes.ticks[-1] < 3
  assert "up to 500" in [e.text for e in picture.iter("text")]
  picture, axes = drawn([(x, float(x)) for x in range(100)])
  assert axes.ticks[-1] >= 99
  assert not any(e.text.startswith("up to") for e in picture.iter("text") if e.text)


def test_bins_have_means_and_extremes():
  s = series.binned(points(*((x, float(x)) for x in range(7))), 3)
  assert s.x == [1.0, 4.0, 7.0]
  assert s.values == [1.0, 4.0, 6.0] and s.lows == [0, 3, 6] and s.highs == [2, 5, 6]
  assert series.bin_width(299) == 1 and series.bin_width(300) == 2


def test_smoothing_keeps_lines_straight_and_removes_noise():
  straight = [2.0 * i for i in range(100)]
  np.testing.assert_allclose(series.smoothed(straight), straight, atol=1e-9)
  noise = [(-1.0) ** i for i in range(100)]
  assert max(map(abs, series.smoothed(noise)[5:-5])) < 0.2
  assert series.binned(points(*enumerate(noise)), 1).smooth
  assert series.binned(points(*enumerate(noise[:20])), 1).smooth == []


@pytest.mark.parametrize(
  ("low", "high"),
  [
    *((0, 1), (-3.2, 7.7), (0.4131, 0.4132), (5, 5), (0, 0), (-1e6, 1e-6)),
    *((0, 3e-16), (-2e-14, 1e-14), (0, 1e-45), (3e38, 3e38), (-3e38, 3e38)),
    *((1 / 3, math.nextafter(1 / 3, 1)), (-1e17, math.nextafter(-1e17, 0)), (0, 5e-324)),
  ],
)
def test_ticks_are_round_and_enclose_the_data(low, high):
  ticks = series.ticks(low, high)
  steps = np.diff(ticks)
  slack = 2e-3 * steps[0]  # less than a pixel
  assert ticks[0] <= low + slack and ticks[-1] >= high - slack and 2 <= len(ticks) <= 8
  np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
  leading = float(f"{steps[0]:e}".split("e")[0])
  assert leading == pytest.approx(round(leading), abs=1e-3)


def test_a_curve_of_tiny_values_is_drawn():
  """As the loss of one step whose advantages cancel up to rounding."""
  picture, axes = drawn([(0, 3e-16)])
  assert axes.y(0.0) > axes.y(3e-16) > 0
  assert "3e-16" in [e.text for e in picture.iter("text")]


def test_rows_before_the_first_version_and_without_a_value_are_left_out():
  rows = [
    {"step": 0, "version": -1, "a": 1.0},
    {"step": 3, "version": 3, "a": 2.0, "b": 1.5, "c": 2.5},
    {"step": 1, "a": float("inf")},
    {"step": 2, "a": 4},
    {"step": 5},
  ]
  assert series.points(rows, "a", "b", "c") == [(2, 4, 4, 4), (3, 2.0, 1.5, 2.5)]


def test_heat_cells_are_shares_of_their_column():
  cells = figures.heat_cells([(0, {"0": 1}), (1, {"1": 3, "0": 1}), (119, {"2": 5})], 119)
  assert cells.labels == ["0", "1", "2"] and len(cells.columns) == 60
  assert cells.columns[0] == [0.4, 0.6, 0] and cells.columns[59] == [0, 0, 1]
  assert cells.columns[30] == [0, 0, 0]
  assert cells.edges[:2] == [0, 1.5] and cells.edges[-1] == 119
  wide = figures.heat_cells([(0, {"0": 1, "255": 1})], 0)
  assert wide.labels[0] == "0-15" and wide.labels[-1] == "240-255" and len(wide.labels) == 16


def test_cells_are_drawn_from_the_bottom():
  heat = svg.Heat([0.0, 1.0], ["0", "1"], [[0.0, 1.0]])
  [cell] = list(ElementTree.fromstring(svg.heat(heat, (0, 1), "versions")).iter("rect"))
  assert float(cell.attrib["y"]) == svg.TOP and cell.attrib["fill-opacity"] == "1.00"


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (0.12345, "0.123"),
    (1234.5, "1,234"),
    (22.2e9, "22.2G"),
    (12_345, "12.3k"),
    (0, "0"),
    (1.234e-5, "1.23e-5"),
    (-3.0, "-3"),
    (5e13, "50T"),
    (999.9, "1,000"),
    (999_990, "1M"),
    (9_999, "10k"),
  ],
)
def test_numbers_are_short(value, text):
  assert svg.number(value) == text
