"""Finds a sheet that was photographed on a darker table, and undoes its perspective.

    thumbnail ─▶ bright areas ─▶ polygons around them ─▶ four edges ─▶ moved to the sheet's sides

An area is bright as a whole, or it has no step of brightness in it, as under a shadow.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from digit_classifier.normalizer import Levels, Mask, fit

THUMB = 128
"""Pixels of the longer side of the picture in which a sheet is looked for."""
MAX_INK, MAX_INKED = 7, 0.3
"""Pixels there: the ink on a sheet is narrower; and the share of a sheet that is ink. Between chalk
lines on a board it is more."""
NUM_LEVELS, STEPS = 8, (6, 10, 16, 25)
"""Thresholds of brightness, and of the difference between neighbours, to find areas by."""
NUM_AREAS = 3
"""The largest of each."""
MIN_CONTRAST, MAX_TABLE = 20, 0.8
"""Levels of 255 by which a sheet is brighter than what is beside it; its table's share of that."""
MIN_AREA, MAX_BORDER = 0.08, 0.4
"""Shares of the area of the picture, and of that of its border."""
MIN_FILLED = 0.93
"""Share of the area inside of four edges."""
MIN_CLEAR, MIN_UP = 0.8, 0.4
"""Shares of a side in the picture that are a step, and that are brighter inside."""
MIN_SEEN, MIN_SIDES = 0.3, 3
"""Share of a side that is in the picture, and how many such sides there are."""
REACH = 3
"""Pixels of the thumbnail: how far from its edge a side may be."""
NUM_PROFILES = 48
"""Across a side."""
INSET = 0.006
"""Share of a sheet that is left out as its margin."""
BORDER_SHARE = 0.15
"""Share of the area that an edge on the picture's border costs: it is left out first."""

Points = npt.NDArray[np.float64]
"""(N, 2): x, y; a polygon's are clockwise."""


class Sheet(NamedTuple):
    """A sheet that was found in a picture."""

    grey: Levels
    """(H, W): its levels, as if it were seen from above."""
    corners: Points
    """(4, 2): in the picture, or outside of it; from the top left, clockwise."""
    matrix: Points
    """(3, 3): maps its points to the picture's, in homogeneous coordinates."""

    def placed(self, box: Sequence[float]) -> Points:
        """Return the corners in the picture of left, top, right, bottom on the sheet: (4, 2)."""
        return _projected(_corners(*box) @ self.matrix.T)


def find_sheet(grey: Levels) -> Sheet | None:
    """Find a sheet in a picture's (H, W) levels, 0 to 255; None if it has none, or is small."""
    thumb = fit(grey, THUMB)
    if max(grey.shape) < THUMB or min(thumb.shape) < 4 * MAX_INK:
        return None
    found = sorted((_around(area) for area in _bright_areas(thumb)), key=lambda each: -each[0])
    scale = max(grey.shape) / THUMB
    for filled, edges in found:
        sides = _sides(grey, edges * scale, round(REACH * scale)) if filled >= MIN_FILLED else None
        if sides is not None:
            return _flattened(grey, sides)
    return None


def _bright_areas(thumb: Levels) -> Iterator[Mask]:
    """Yield the large areas that are brighter than the rest of a picture; dark ink is closed."""
    closed = ndimage.grey_closing(thumb, MAX_INK)
    if np.ptp(closed) < MIN_CONTRAST:
        return
    levels = np.linspace(closed.min(), closed.max(), NUM_LEVELS + 2)[1:-1]
    differences = ndimage.maximum_filter(closed, 3) - ndimage.minimum_filter(closed, 3)
    masks = [*(closed > level for level in levels), *(differences < step for step in STEPS)]
    for labels in (ndimage.label(mask)[0] for mask in masks):
        sizes = np.bincount(labels.ravel())[1:]
        for number in np.argsort(-sizes)[:NUM_AREAS]:
            area = labels == number + 1
            border = np.concatenate([area[[0, -1]].ravel(), area[:, [0, -1]].ravel()])
            if sizes[number] >= MIN_AREA * area.size and border.mean() <= MAX_BORDER:
                area = np.asarray(ndimage.binary_fill_holes(area))
                sheet, table = np.median(thumb[area]), np.median(thumb[~area])
                inked = (closed - thumb > MIN_CONTRAST)[area].mean()
                if inked <= MAX_INKED and table <= min(sheet - MIN_CONTRAST, MAX_TABLE * sheet):
                    yield area


def _around(area: Mask) -> tuple[float, Points]:
    """Return the four edges around an area, and its share of what they enclose; 0 for others."""
    polygon, size = _hull(area), area.shape[::-1]
    while len(polygon) > 4:  # leave out the edge that adds the least area if its neighbours meet
        before, ends, after = (np.roll(polygon, by, 0) for by in (1, -1, -2))
        meeting = _meeting(_lines(before, polygon), _lines(ends, after))
        added = -_cross(ends - polygon, meeting - polygon)
        at_border = ((polygon == ends) & ((polygon == 0) | (polygon == size))).any(1)
        cost = np.where(added > 0, np.where(at_border, BORDER_SHARE, 1) * added, np.inf)
        edge = int(cost.argmin())
        if cost[edge] == np.inf:
            break
        polygon[edge] = meeting[edge]
        polygon = np.delete(polygon, (edge + 1) % len(polygon), 0)
    y, x = np.indices(area.shape) + 0.5
    grid = np.stack([x.ravel(), y.ravel(), np.ones(area.size)])
    inside = (_lines(polygon, np.roll(polygon, -1, 0)) @ grid >= 0).all(0)
    share = np.count_nonzero(area) / max(1, int(np.count_nonzero(inside)))
    return share if len(polygon) == 4 else 0.0, polygon


def _hull(area: Mask) -> Points:
    """Return the convex polygon around an area (monotone chain, Andrew 1979)."""
    rows = np.flatnonzero(area.any(1))
    ends = area[rows].argmax(1), area.shape[1] - area[rows, ::-1].argmax(1)
    corners = [(side.tolist(), (rows + low).tolist()) for side in ends for low in (0, 1)]
    points = sorted(point for x, y in corners for point in zip(x, y, strict=True))
    hull: list[tuple[int, int]] = []
    for ordered in (points, points[::-1]):
        chain: list[tuple[int, int]] = []
        for x, y in ordered:
            while len(chain) > 1 and _turns_left(chain[-2], chain[-1], (x, y)):
                chain.pop()
            chain.append((x, y))
        hull += chain[:-1]
    return np.array(hull, np.float64)


def _turns_left(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) <= (b[1] - a[1]) * (c[0] - a[0])


def _sides(grey: Levels, edges: Points, reach: int) -> Points | None:
    """Move edges to where the levels rise most: (4, 2) corners; None if there are no such sides."""
    moved, num_sides = [], 0
    share = np.linspace(0.04, 0.96, NUM_PROFILES)
    for start, end in zip(edges, np.roll(edges, -1, 0), strict=True):
        inward = (end - start)[::-1] / np.linalg.norm(end - start) * [-1, 1]
        steps = np.arange(-2 * reach, 2 * reach + 1)
        points = start + (end - start) * share[:, None, None] + steps[:, None] * inward
        levels = ndimage.map_coordinates(grey, points.T[::-1], order=0, cval=np.nan).T
        means = np.lib.stride_tricks.sliding_window_view(levels, reach, 1).mean(-1)
        rise = means[:, reach:] - means[:, :-reach]  # NaN outside the picture
        change = np.where(np.isfinite(rise), np.abs(rise), 0)
        place = change.argmax(1)
        is_clear = change.max(1) >= MIN_CONTRAST
        is_up = is_clear & (rise[np.arange(NUM_PROFILES), place] > 0)
        is_seen = np.isfinite(rise).any(1)
        if (
            is_seen.mean() >= MIN_SEEN
            and is_clear.sum() >= MIN_CLEAR * is_seen.sum()
            and is_up.sum() >= MIN_UP * is_seen.sum()
        ):
            num_sides += 1
            slope, first = _line_through(share[is_clear], steps[reach + place][is_clear])
            start, end = start + inward * first, end + inward * (first + slope)
        elif np.isfinite(rise[:, reach]).mean() >= MIN_SEEN:  # its place is in the picture
            return None
        moved.append(_lines(start, end))
    lines = np.array(moved)
    corners = _meeting(np.roll(lines, 1, 0), lines)
    turns = np.roll(corners, -1, 0) - corners
    is_convex = (_cross(turns, np.roll(turns, -1, 0)) > 0).all()
    return corners if num_sides >= MIN_SIDES and is_convex else None


def _line_through(x: Points, y: npt.NDArray[np.intp]) -> tuple[float, float]:
    """Return the slope and the value at 0 of a line through most points: medians."""
    half = len(x) // 2
    slope = float(np.median((y[-half:] - y[:half]) / (x[-half:] - x[:half])))
    return slope, float(np.median(y - slope * x))


def _flattened(grey: Levels, corners: Points) -> Sheet:
    """Show a sheet as if it were seen from above, beginning with its corner at the top left."""
    corners = np.roll(corners, -int(corners.sum(1).argmin()), 0)
    lengths = np.linalg.norm(np.roll(corners, -1, 0) - corners, axis=1)
    width, height = np.maximum(lengths[:2], lengths[2:])
    edge = INSET * max(width, height)
    matrix = homography(_corners(-edge, -edge, width + edge, height + edge), corners)
    flat = Image.fromarray(grey).transform(
        (max(1, round(width)), max(1, round(height))),
        Image.Transform.PERSPECTIVE,
        matrix.ravel()[:8].tolist(),
        Image.Resampling.BICUBIC,
        fillcolor=float("nan"),
    )
    levels = np.array(flat)
    levels[np.isnan(levels)] = np.nanmedian(levels)  # outside the picture
    return Sheet(levels.clip(0, 255), corners, matrix)


def homography(corners: Points, others: Points) -> Points:
    """Return the (3, 3) matrix that maps four points, also (4, 3) homogeneous, to (4, 2) others."""
    equations = [
        row
        for (x, y), (u, v) in zip(corners[:, :2], others, strict=True)
        for row in ([x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y])
    ]
    return np.append(np.linalg.solve(np.array(equations), others.ravel()), 1).reshape(3, 3)


def _corners(left: float, top: float, right: float, bottom: float) -> Points:
    """Return a rectangle's corners, clockwise from the top left: (4, 3), homogeneous."""
    return np.array([(left, top, 1), (right, top, 1), (right, bottom, 1), (left, bottom, 1)], float)


def _lines(starts: Points, ends: Points) -> Points:
    """Return lines through points, positive on their right: (..., 3), homogeneous."""
    one = np.ones((*starts.shape[:-1], 1))
    return _crossed(np.append(starts, one, -1), np.append(ends, one, -1))


def _meeting(lines: Points, others: Points) -> Points:
    return _projected(_crossed(lines, others))


def _crossed(one: Points, other: Points) -> Points:
    """Return the cross products of (..., 3): as `np.cross`, which takes five times as long."""
    after, last = [1, 2, 0], [2, 0, 1]
    return np.asarray(one[..., after] * other[..., last] - one[..., last] * other[..., after])


def _projected(points: Points) -> Points:
    with np.errstate(divide="ignore", invalid="ignore"):  # parallels
        return np.asarray(points[..., :2] / points[..., 2:])


def _cross(one: Points, other: Points) -> Points:
    with np.errstate(invalid="ignore"):  # where parallels meet
        return np.asarray(one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0])
