"""Plots as inline SVG: no library in the page, no file beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from longtail.reports.drawings import GROUP_COLOURS

WIDTH, HEIGHT = 760, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 34
PALETTE = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#e8890c", "#17becf", "#8c564b", "#7f7f7f")

BAR = Markup('<rect x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}" fill="{}"><title>{}</title></rect>')

Points = Sequence[tuple[float, float]]


def distribution(counts: Sequence[int], groups: Sequence[str], names: Sequence[str]) -> Markup:
    """Training examples per class as bars on a logarithmic axis, most frequent first, coloured by group."""
    order = sorted(range(len(counts)), key=lambda index: (-counts[index], names[index]))
    top = math.log10(max([*counts, 9]) + 1)
    width = (WIDTH - LEFT - RIGHT) / max(1, len(order))
    bars = []
    for place, index in enumerate(order):
        height = math.log10(counts[index] + 1) / top * (HEIGHT - TOP - BOTTOM)
        bars.append(
            Markup(
                '<rect x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}" fill="{}"><title>{}</title></rect>'
            ).format(
                LEFT + place * width,
                HEIGHT - BOTTOM - height,
                max(0.5, width - (1 if width > 4 else 0)),
                height,
                GROUP_COLOURS[groups[index]],
                f"{names[index]}: {counts[index]}",
            )
        )
    ticks = [(math.log10(value + 1) / top, str(value)) for value in (0, 1, 10, 100, 1000, 10000, 100000)]
    axes = y_axis([(share, text) for share, text in ticks if share <= 1])
    return framed(axes + Markup("").join(bars) + caption(f"{len(order)} classes, most frequent first"))


def curves(series: Mapping[str, Points], *, x_title: str) -> Markup:
    """Lines with a legend; x and y in their own units. Points that are not finite are left out."""
    clean = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in series.items()
    }
    everything = [point for points in clean.values() for point in points]
    if not everything:
        return Markup("")
    right = max(x for x, _ in everything) or 1.0
    high = max(y for _, y in everything)
    low = min(0.0, *(y for _, y in everything))
    high = high if high > low else low + 1.0
    lines = []
    for place, (name, points) in enumerate(clean.items()):
        colour = PALETTE[place % len(PALETTE)]
        path = " ".join(
            f"{LEFT + x / right * (WIDTH - LEFT - RIGHT):.1f},"
            f"{HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM):.1f}"
            for x, y in points
        )
        lines.append(
            Markup('<polyline points="{}" fill="none" stroke="{}" stroke-width="1.5"/>').format(path, colour)
            + Markup('<text x="{}" y="{}" text-anchor="end" fill="{}">{}</text>').format(
                WIDTH - RIGHT - 4, TOP + 14 + 14 * place, colour, name
            )
        )
    ticks = y_axis([(share, f"{low + share * (high - low):.3g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)])
    return framed(ticks + Markup("").join(lines) + caption(f"{x_title}, 0 to {right:g}"))


def y_axis(ticks: Sequence[tuple[float, str]]) -> Markup:
    """Grid lines with their labels; a tick is its share of the height and its text."""
    marks = []
    for share, text in ticks:
        y = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
        marks.append(
            Markup('<line x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}" stroke="#ddd"/>').format(LEFT, WIDTH - RIGHT, y)
            + Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(LEFT - 6, y + 4, text)
        )
    return Markup("").join(marks)


def caption(text: str) -> Markup:
    """The words below the horizontal axis."""
    return Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(WIDTH // 2, HEIGHT - 10, escape(text))


def framed(content: Markup) -> Markup:
    """The SVG element around a plot."""
    return Markup('<svg viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img">{2}</svg>').format(
        WIDTH, HEIGHT, content
    )
