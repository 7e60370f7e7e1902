"""Strokes of digits, drawn on the page's canvas."""

import numpy as np

from tests.support.pictures.drawing import STROKES, curve


def strokes_of(digit, left=0.2, top=0.12, height=10 / 13):
    """Give a digit's strokes as points from 0 to 1."""
    lines = []
    for line in STROKES[digit][0].split("|"):
        points = np.array([[float(v) for v in point.split(",")] for point in line.split()])
        path = curve(points * [0.13 * height, 0.1 * height] + [left, top], step=0.05 * height)
        lines.append([(float(x), float(y)) for x, y in path])
    return lines


def place_of(page):
    box = page.locator("#canvas").bounding_box()
    return box["x"], box["y"], box["width"]


def draw_by_mouse(page, digit):
    draw_strokes(page, strokes_of(digit))


def draw_strokes(page, strokes):
    left, top, side = place_of(page)
    for stroke in strokes:
        page.mouse.move(left + stroke[0][0] * side, top + stroke[0][1] * side)
        page.mouse.down()
        for x, y in stroke[1:]:
            page.mouse.move(left + x * side, top + y * side)
        page.mouse.up()


def draw_by_finger(page, digit):
    left, top, side = place_of(page)
    session = page.context.new_cdp_session(page)

    def touch(kind, *points):
        places = [{"x": left + x * side, "y": top + y * side} for x, y in points]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    for stroke in strokes_of(digit):
        touch("touchStart", stroke[0])
        for point in stroke[1:]:
            touch("touchMove", point)
        touch("touchEnd")
