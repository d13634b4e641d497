"""The canvas of a demo scene: a camera over a plane, and one brush for colour and label."""

import cv2
import numpy as np

from .styles import STYLES, value_noise

CLASSES = (
    'sky', 'hill', 'ground', 'road', 'water', 'building', 'tree', 'vehicle', 'person', 'lamp',
)  # fmt: skip
PALETTE = (
    (110, 170, 230), (150, 120, 160), (150, 190, 90), (120, 120, 120), (30, 90, 200),
    (200, 100, 60), (20, 120, 40), (230, 40, 60), (255, 150, 210), (255, 220, 40),
)  # fmt: skip
SIZE = (128, 128)
OTHER = 0
"""The label of things that belong to no class; class ``CLASSES[k]`` has label ``k + 1``."""


class Scene:
    """A canvas with a camera.

    Args:
        domain: 'source' or 'target'.
        seed: anything that ``numpy.random.default_rng`` takes; it determines the scene.

    Attributes:
        light: painted colours, (H, W, 3) float32, RGB.
        emitted: light that sources send out, (H, W, 3) float32.
        labels: (H, W) uint8.
        horizon: row of the horizon, in pixels.

    Raises:
        KeyError: if the domain is unknown.
    """

    def __init__(self, domain: str, seed):
        self.style = STYLES[domain]
        self.rng = np.random.default_rng(seed)
        height, width = SIZE
        self.light = np.zeros((height, width, 3), np.float32)
        self.emitted = np.zeros_like(self.light)
        self.labels = np.zeros((height, width), np.uint8)
        self.horizon = height * self.rng.uniform(0.34, 0.5)
        self.camera = self.rng.uniform(*self.style.camera)
        self.vanishing_x = width * self.rng.uniform(0.3, 0.7)
        self.bend = width * self.rng.uniform(-0.25, 0.25)
        self.y, self.x = np.mgrid[0:height, 0:width].astype(np.float32)

    def scale(self, y):
        """Pixels per metre at ground row ``y``."""
        return (y - self.horizon) / self.camera

    def nearness(self, y):
        """0 at the horizon, 1 at the lower edge of the image."""
        return np.clip((y - self.horizon) / (SIZE[0] - self.horizon), 0, 1)

    def column(self, metres, y):
        """Image column of a point ``metres`` right of the road's axis, at ground row ``y``."""
        return self.vanishing_x + metres * self.scale(y) + self.bend * (1 - self.nearness(y)) ** 2

    def polygon(self, *corners) -> np.ndarray:
        """The mask of a polygon given by (x, y) corners in pixels, (H, W) bool."""
        mask = np.zeros(SIZE, np.uint8)
        points = np.rint(np.array(corners, np.float64) * 16).astype(np.int32)
        cv2.fillPoly(mask, [points], 1, shift=4)
        return mask.astype(bool)

    def box(self, left, top, right, bottom) -> np.ndarray:
        """The mask of an upright rectangle, (H, W) bool."""
        return (self.x >= left) & (self.x < right) & (self.y >= top) & (self.y < bottom)

    def ellipse(self, x, y, radius_x, radius_y) -> np.ndarray:
        """The mask of an upright ellipse, (H, W) bool."""
        return ((self.x - x) / radius_x) ** 2 + ((self.y - y) / radius_y) ** 2 <= 1

    def paint(self, mask, material: str, label: str | None, near=1.0, shade=1.0):
        """Paint colour and label under one mask.

        Args:
            mask: (H, W) bool.
            material: name of a material of the style.
            label: a class name, or None for 'other'.
            near: nearness 0..1 (a number or (H, W)); far things fade into the haze.
            shade: factor of the colour (a number or (H, W)).
        """
        if not mask.any():
            return
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        inside = mask[box]
        spec = self.style.materials[material]
        colour = np.array(spec.colours[self.rng.integers(len(spec.colours))], np.float32)
        colour = colour + spec.spread * self.rng.standard_normal(3).astype(np.float32)
        grain = spec.grain * value_noise(self.rng, inside.shape, spec.cell)
        shade, near = (v[box][..., None] if np.ndim(v) else v for v in (shade, near))
        fade = self.style.haze_share * (1 - near)
        pixels = (colour + grain[..., None]) * shade * (1 - fade)
        pixels = (pixels + fade * np.array(self.style.haze, np.float32))[inside]
        self.light[box][inside] = pixels
        self.emitted[box][inside] = spec.glow * pixels
        self.labels[box][inside] = OTHER if label is None else CLASSES.index(label) + 1
