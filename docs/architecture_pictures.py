"""The picture of the floors: every room of `src/jepakit`, and the imports between them."""

from collections.abc import Callable
from functools import cache
from itertools import permutations

import source_tree
from drawing import Theme
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

WIDTH, BOX_HEIGHT, FLOOR_HEIGHT = 100.0, 8.0, 16.0
LEFT, CLEAR = 7.0, 1.0  # room for the number of the floor; between a line and a box
Edge = tuple[str, str]
Layout = dict[str, tuple[float, int]]  # room: centre, floor


@cache
def edges() -> tuple[Edge, ...]:
    """Imports between public rooms, without those that follow from others (a, b), (b, c)."""
    rooms = {room for label, rooms in source_tree.floors() if label != "helpers" for room in rooms}
    imports = {room: source_tree.imported_rooms(room) & rooms for room in rooms}

    def reachable(room: str) -> set[str]:
        return imports[room].union(*map(reachable, imports[room]))

    found = (
        (room, other)
        for room in rooms
        for other in imports[room]
        if not any(other in reachable(between) for between in imports[room] - {other})
    )
    return tuple(sorted(found))


def half_width(room: str) -> float:
    return 1.2 + 0.78 * len(room)


def passes_behind(edge: Edge, layout: Layout) -> int:
    """Number of boxes that the line of an import would touch, between its own two."""
    (x0, high), (x1, low) = layout[edge[0]], layout[edge[1]]
    start, end = high * FLOOR_HEIGHT, low * FLOOR_HEIGHT + BOX_HEIGHT
    touched = 0
    for room, (x, floor) in layout.items():
        if low < floor < high:
            bottom = floor * FLOOR_HEIGHT
            at = [
                x0 + (x1 - x0) * (start - y) / (start - end) for y in (bottom, bottom + BOX_HEIGHT)
            ]
            reach = half_width(room) + CLEAR
            touched += min(at) < x + reach and max(at) > x - reach
    return touched


def cost(layout: Layout) -> float:
    length = sum(abs(layout[a][0] - layout[b][0]) for a, b in edges())
    return length + 1000 * sum(passes_behind(edge, layout) for edge in edges())


def row(rooms: tuple[str, ...], floor: int, shift: float) -> Layout:
    """Rooms side by side; `shift` from 0, at the left end, to 1, at the right end."""
    total = sum(2 * half_width(room) for room in rooms)
    gap = min(12.0, (WIDTH - LEFT - total) / max(len(rooms) - 1, 1))
    x = LEFT + shift * (WIDTH - LEFT - total - gap * (len(rooms) - 1))
    places: Layout = {}
    for room in rooms:
        places[room] = (x + half_width(room), floor)
        x += 2 * half_width(room) + gap
    return places


@cache
def layout() -> Layout:
    """Orders and shifts of the floors that keep lines short and away from boxes."""
    floors = [rooms for label, rooms in source_tree.floors() if label != "helpers"]
    best: Layout = {}
    for floor, rooms in enumerate(floors):
        best |= row(tuple(rooms), floor, 0.5)
    for _ in range(4):  # one floor after another, the others as they are
        for floor, rooms in enumerate(floors):
            options = [
                best | row(order, floor, shift / 20)
                for order in permutations(rooms)
                for shift in range(21)
            ]
            best = min([best, *options], key=cost)
    return best


def floors(theme: Theme) -> Figure:
    listed = [entry for entry in source_tree.floors() if entry[0] != "helpers"]
    height = FLOOR_HEIGHT * len(listed) + BOX_HEIGHT
    figure, ax = plt.subplots(figsize=(5.0, 5.0 * (height + FLOOR_HEIGHT) / WIDTH))
    ax.set_xlim(-1, WIDTH + 1)
    ax.set_ylim(-FLOOR_HEIGHT - 1, height + 1)
    ax.axis("off")

    def box(x: float, y: float, half: float, label: str, colour: str) -> None:
        ax.add_patch(
            FancyBboxPatch(
                (x - half, y),
                2 * half,
                BOX_HEIGHT,
                boxstyle="round,pad=0,rounding_size=1.4",
                fc=theme.page,
                ec=colour,
                lw=1.4,
            )
        )
        ax.text(x, y + BOX_HEIGHT / 2, label, ha="center", va="center", fontsize=9.5)

    middle, half = (LEFT + WIDTH) / 2, (WIDTH - LEFT) / 2
    colours = [theme.target, theme.context, theme.third, theme.fourth]
    for floor, (label, rooms) in enumerate(listed):
        y = floor * FLOOR_HEIGHT
        ax.text(2, y + BOX_HEIGHT / 2, label, va="center", color=theme.faint)
        for room in rooms:
            colour = colours[min(floor, len(colours) - 1)]
            box(layout()[room][0], y, half_width(room), room, colour)
    for upper, lower in edges():
        (x0, high), (x1, low) = layout()[upper], layout()[lower]
        ax.add_patch(
            FancyArrowPatch(
                (x0, high * FLOOR_HEIGHT),
                (x1, low * FLOOR_HEIGHT + BOX_HEIGHT),
                arrowstyle="-|>",
                mutation_scale=9,
                color=theme.faint,
                lw=1.1,
                zorder=0.5,  # behind the boxes
                shrinkA=0,
                shrinkB=0,
            )
        )
    helpers = sorted(
        room for label, rooms in source_tree.floors() if label == "helpers" for room in rooms
    )
    lines = helpers[: len(helpers) // 2], helpers[len(helpers) // 2 :]
    box(middle, -FLOOR_HEIGHT, half, "\n".join(map("   ".join, lines)), theme.faint)
    top = "jepakit: exports the headline names"
    box(middle, len(listed) * FLOOR_HEIGHT, half, top, theme.faint)
    return figure


PICTURES: dict[str, Callable[[Theme], Figure]] = {"floors": floors}
