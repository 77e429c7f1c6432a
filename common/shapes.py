"""The built-in data set: ten classes of coloured geometric shapes, drawn from a seed, with no download."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

CLASS_NAMES = ["circle", "ring", "square", "triangle", "diamond", "star", "cross", "crescent", "heart", "stripes"]

SUPERSAMPLING = 4
"""Shapes are drawn this many times larger and reduced, so that their edges are smooth."""

Points = list[tuple[float, float]]


def _circle(x: float, y: float, radius: float) -> Points:
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def _regular(corners: int, radii: tuple[float, ...] = (1.0,)) -> Points:
    """A polygon with its corners on circles of the given radii in turn, the first one at the top."""
    angles = [2 * math.pi * corner / corners - math.pi / 2 for corner in range(corners)]
    return [
        (radii[corner % len(radii)] * math.cos(angle), radii[corner % len(radii)] * math.sin(angle))
        for corner, angle in enumerate(angles)
    ]


def _rectangle(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


# Each class, in a box from -1 to 1 with y downwards: the polygons that are filled, and those that are cut out again.
OUTLINES: dict[str, tuple[list[Points], list[Points]]] = {
    "circle": ([_circle(0, 0, 0.9)], []),
    "ring": ([_circle(0, 0, 0.95)], [_circle(0, 0, 0.5)]),
    "square": ([_rectangle(-0.8, -0.8, 0.8, 0.8)], []),
    "triangle": ([_regular(3)], []),
    "diamond": ([[(0, -1), (0.62, 0), (0, 1), (-0.62, 0)]], []),
    "star": ([_regular(10, (1.0, 0.42))], []),
    "cross": ([_rectangle(-0.3, -0.95, 0.3, 0.95), _rectangle(-0.95, -0.3, 0.95, 0.3)], []),
    "crescent": ([_circle(0, 0, 0.95)], [_circle(0.5, -0.1, 0.72)]),
    "heart": (
        [_circle(-0.42, -0.35, 0.46), _circle(0.42, -0.35, 0.46), [(-0.84, -0.15), (0.84, -0.15), (0, 0.95)]],
        [],
    ),
    "stripes": ([_rectangle(-0.9, top, 0.9, top + 0.36) for top in (-0.9, -0.18, 0.54)], []),
}


def draw_shapes(count: int, image_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images, uint8 (count, 3, size, size), and their labels, int64 (count,), the classes in turn."""
    generator = np.random.default_rng(seed)
    images = np.empty((count, 3, image_size, image_size), dtype=np.uint8)
    labels = np.arange(count) % len(CLASS_NAMES)
    for index, label in enumerate(labels):
        images[index] = _draw_one(CLASS_NAMES[label], image_size, generator).transpose(2, 0, 1)
    return images, labels


def _draw_one(name: str, image_size: int, generator: np.random.Generator) -> np.ndarray:
    mask = _draw_mask(OUTLINES[name], image_size, _random_placement(generator))
    background = _random_background(image_size, generator)
    # A bright, saturated shape on a dark background: no colour tells the class, and every shape stands out.
    colour = _hue(generator.uniform(), 0.15) * generator.uniform(0.85, 1.0)
    image = background * (1 - mask) + colour * mask
    return np.round(255 * image).astype(np.uint8)


def _random_placement(generator: np.random.Generator) -> Callable[[Points], Points]:
    """A random size, position and slight turn, as a map from the shape's box to the unit square."""
    radius = generator.uniform(0.28, 0.38)
    centre_x, centre_y = 0.5 + generator.uniform(-0.1, 0.1, size=2)
    angle = generator.uniform(-0.2, 0.2)
    cosine, sine = radius * math.cos(angle), radius * math.sin(angle)

    def place(points: Points) -> Points:
        return [(centre_x + cosine * x - sine * y, centre_y + sine * x + cosine * y) for x, y in points]

    return place


def _draw_mask(outline: tuple[list[Points], list[Points]], image_size: int, place: Callable) -> np.ndarray:
    """Coverage (size, size, 1) in [0, 1] of each pixel."""
    canvas_size = image_size * SUPERSAMPLING
    canvas = Image.new("L", (canvas_size, canvas_size))
    pen = ImageDraw.Draw(canvas)
    filled, cut_out = outline
    for value, polygons in ((255, filled), (0, cut_out)):
        for points in polygons:
            pen.polygon([(canvas_size * x, canvas_size * y) for x, y in place(points)], fill=value)
    return np.asarray(canvas.reduce(SUPERSAMPLING))[:, :, None] / 255


def _random_background(image_size: int, generator: np.random.Generator) -> np.ndarray:
    """A dark colour (size, size, 3) that changes into another one along a random direction."""
    colours = [_hue(generator.uniform(), 0.4) * generator.uniform(0.1, 0.45) for _ in range(2)]
    angle = generator.uniform(0, 2 * math.pi)
    axis = np.linspace(-0.5, 0.5, image_size)
    ramp = 0.5 + 0.7 * (math.cos(angle) * axis[None, :, None] + math.sin(angle) * axis[:, None, None])
    return np.clip(colours[0] * (1 - ramp) + colours[1] * ramp, 0, 1)


def _hue(hue: float, floor: float) -> np.ndarray:
    """The RGB colour of a hue in [0, 1) at full value, its darkest channel no lower than `floor`."""
    offsets = np.array([0.0, 1 / 3, 2 / 3])
    distance = np.abs((hue - offsets + 0.5) % 1 - 0.5)
    return np.clip(2 - 6 * distance, floor, 1)
