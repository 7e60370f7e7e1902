"""Draws how often answers of each confidence are right, as a small SVG."""

from collections.abc import Sequence

from experiments.handwriting.evaluation import Outcome

LIMITS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
"""Limits between confidences that are drawn as one point."""
SIDE, MARGIN = 320, 44
"""Pixels of the diagram, and around it."""


def groups(outcomes: Sequence[Outcome]) -> list[tuple[float, float, int]]:
    """Return the mean confidence, the share that is right, and the number of answers, by LIMITS."""
    answers = [outcome for outcome in outcomes if outcome.read]
    found = []
    for low, high in zip(LIMITS, (*LIMITS[1:-1], 1.01), strict=False):
        own = [answer for answer in answers if low <= answer.probability < high]
        if own:
            mean = sum(answer.probability for answer in own) / len(own)
            found.append((mean, sum(answer.is_right for answer in own) / len(own), len(own)))
    return found


def diagram(outcomes: Sequence[Outcome]) -> str:
    """Draw confidence to the right and share of right answers upwards; the diagonal is exact."""
    size, end = SIDE + 2 * MARGIN, SIDE + MARGIN
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" width="{size}"'
        ' font-family="sans-serif" font-size="12" fill="#667">',
        f'<path d="M{MARGIN} {MARGIN}V{end}H{end}M{MARGIN} {end}L{end} {MARGIN}"'
        ' fill="none" stroke="#99a"/>',
    ]
    for percent in range(0, 101, 20):
        at = SIDE * percent // 100
        drawn.append(
            f'<text x="{MARGIN + at}" y="{end + 16}" text-anchor="middle">{percent}</text>'
            f'<text x="{MARGIN - 6}" y="{end - at + 4}" text-anchor="end">{percent}</text>'
        )
    drawn += [
        f'<text x="{size / 2}" y="{size - 8}" text-anchor="middle">confidence, %</text>',
        f'<text x="{MARGIN}" y="{MARGIN - 12}" text-anchor="middle">right, %</text>',
    ]
    for confidence, right, number in groups(outcomes):
        x, y = MARGIN + SIDE * confidence, end - SIDE * right
        radius = 2 + number**0.5 / 5
        drawn.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="#36c" fill-opacity=".6">'
            f"<title>{number} answers: {confidence:.1%} certain, {right:.1%} right</title></circle>"
        )
    return "\n".join([*drawn, "</svg>"]) + "\n"
