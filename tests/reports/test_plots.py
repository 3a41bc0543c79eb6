"""Inline SVG."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from longtail.reports.plots import curves, distribution

SVG = "{http://www.w3.org/2000/svg}"


def elements(text: str, tag: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(text).findall(tag)


def test_distribution_has_a_bar_per_class_most_frequent_first() -> None:
    text = distribution([3, 300, 0], ["r", "f", "-"], ["few", "<b>many</b>", "none"])
    bars = elements(text, "rect")
    titles = [bar.find("title") for bar in bars]
    assert [title.text for title in titles if title is not None] == ["<b>many</b>: 300", "few: 3", "none: 0"]
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights == sorted(heights, reverse=True)
    assert heights[-1] == 0
    assert "<b>" not in text


def test_distribution_of_many_and_of_no_classes() -> None:
    assert len(elements(distribution([1] * 1203, ["r"] * 1203, ["x"] * 1203), "rect")) == 1203
    assert elements(distribution([], [], []), "rect") == []


def test_curves_stay_inside_and_leave_out_what_is_not_finite() -> None:
    text = curves({"a": [(0, 2.0), (10, 1.0), (20, math.nan)], "b & c": [(0, 3.0), (20, math.inf)]}, x_title="images")
    lines = elements(text, "polyline")
    points = [[tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()] for line in lines]
    assert [len(each) for each in points] == [2, 1]
    assert all(0 <= x <= 760 and 0 <= y <= 240 for each in points for x, y in each)
    assert "b &amp; c" in text


def test_curves_of_nothing_and_of_a_constant() -> None:
    assert curves({"a": []}, x_title="images") == ""
    assert elements(curves({"a": [(0, 0.0)]}, x_title="images"), "polyline")
