"""The loss curve of a run as a small SVG."""

__all__ = ["draw_curve"]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 320, 48, 36


def draw_curve(points: list[tuple[int, float, float]]) -> str:
    """An SVG document of `(step, seconds, loss in nats per token)` points over the minutes."""
    end = max((seconds for _, seconds, _ in points), default=1.0) or 1.0
    top = max((loss for *_, loss in points), default=1.0) or 1.0
    width, height = _WIDTH - _LEFT - 12, _HEIGHT - _BOTTOM - 12
    line = " ".join(
        f"{_LEFT + width * seconds / end:.1f},{12 + height * (1 - loss / top):.1f}"
        for _, seconds, loss in points
    )
    marks = "".join(
        f'<text x="{_LEFT - 6}" y="{16 + height * (1 - part):.0f}" text-anchor="end">'
        f"{top * part:.1f}</text>"
        for part in (0.0, 0.5, 1.0)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<path d="M{_LEFT} 12V{12 + height}H{_WIDTH - 12}" fill="none" stroke="#888"/>{marks}'
        f'<text x="{_LEFT}" y="{_HEIGHT - 12}">loss in nats per token, over '
        f"{end / 60:.1f} minutes</text>"
        f'<polyline points="{line}" fill="none" stroke="#36c"/></svg>\n'
    )
