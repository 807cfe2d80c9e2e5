"""The picture of ``grebe compare``: error by layer and the distribution of KL, as plain SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

__all__ = ["svg"]

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 40
FLOOR = 1e-9  # of what a logarithm is drawn of
INK, GRID, LINE = "#333333", "#dddddd", "#1f6fb2"


def _decades(values: Sequence[float]) -> tuple[int, int]:
    logs = [math.log10(max(v, FLOOR)) for v in values]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    return low, max(high, low + 1)


def _panel(x0: int, title: str, label: str, points: Sequence[tuple[float, float]]) -> list[str]:
    """One curve, logarithmic upwards; x from the first point to the last."""
    low, high = _decades([y for _, y in points])
    left, right = points[0][0], points[-1][0]
    span = right - left or 1

    def px(x: float) -> float:
        return x0 + LEFT + (x - left) / span * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        share = (math.log10(max(y, FLOOR)) - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    out = [f'<text x="{x0 + LEFT}" y="20" font-weight="bold">{escape(title)}</text>']
    for e in range(low, high + 1):
        y = py(10.0**e)
        out.append(f'<path d="M{px(left):.1f} {y:.1f}H{px(right):.1f}" stroke="{GRID}"/>')
        out.append(f'<text x="{x0 + LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">1e{e}</text>')
    for i in range(5):
        x = left + span * i / 4
        at = f'x="{px(x):.1f}" y="{HEIGHT - BOTTOM + 16}"'
        out.append(f'<text {at} text-anchor="middle">{x:g}</text>')
    middle = px(left + span / 2)
    out.append(f'<text x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{label}</text>')
    line = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
    out.append(f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="2"/>')
    return out


def svg(title: str, layers: Sequence[float], quantiles: Sequence[float]) -> str:
    """A picture as text.

    Args:
        title: above everything.
        layers: error after each layer; may be empty.
        quantiles: of KL, from the 0th to the last percentile in equal steps.
    """
    panels = []
    if layers:
        points = [(float(i), e) for i, e in enumerate(layers)]
        panels.append(("error of the streams after each layer", "layer", points))
    share = 100 / max(len(quantiles) - 1, 1)
    kl = [(i * share, q) for i, q in enumerate(quantiles)]
    panels.append(("KL divergence, nats", "share of tokens below, %", kl))
    width, height = WIDTH * len(panels), HEIGHT + 30
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
        '<g transform="translate(0 30)">',
    ]
    for i, (name, label, points) in enumerate(panels):
        out += _panel(i * WIDTH, name, label, points)
    return "\n".join([*out, "</g>", "</svg>", ""])
