"""How the demo's two domains look: materials, light and sensor.

A scene's geometry knows nothing of colours: it paints named materials. A :class:`Style` turns those
names into pixels, so the same street exists by day (`source`) and by night (`target`).
"""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Material:
    """A surface: what colour it has and how that colour varies.

    Args:
        colours: RGB triples in 0..255; each object takes one of them.
        spread: standard deviation of the colour between objects, in grey levels.
        grain: standard deviation of the texture inside an object, in grey levels.
        cell: width and height of one texture cell, in pixels.
        glow: share of the colour that is emitted as light (0 for a surface that only reflects).
    """

    colours: tuple
    spread: float = 8.0
    grain: float = 6.0
    cell: tuple = (2.0, 2.0)
    glow: float = 0.0


@dataclass(frozen=True)
class Style:
    """A domain's materials, camera and sensor.

    Args:
        materials: material by name.
        haze: RGB colour into which far objects fade.
        haze_share: the fade at the horizon, 0..1.
        camera: lowest and highest camera height, in metres.
        gain: lowest and highest exposure factor of an image.
        cast: standard deviation of the factor of each colour channel.
        noise: standard deviation of the sensor noise, in grey levels.
        vignette: share of the light that is lost in the corners.
    """

    materials: dict
    haze: tuple
    haze_share: float
    camera: tuple
    gain: tuple
    cast: float
    noise: float
    vignette: float


def value_noise(rng: np.random.Generator, shape: tuple, cell: tuple) -> np.ndarray:
    """Smooth noise of about unit deviation, (H, W) float32; a cell is (width, height) pixels."""
    height, width = shape
    rows = max(2, int(np.ceil(height / cell[1])) + 1)
    columns = max(2, int(np.ceil(width / cell[0])) + 1)
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def develop(
    style: Style, light: np.ndarray, emitted: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Turn painted light into a photograph: glow, exposure, colour cast, vignette, sensor noise.

    Args:
        style: the domain's style.
        light: painted colours, (H, W, 3) float32 in about 0..255.
        emitted: light sources among them, of the same shape.
        rng: the scene's generator.

    Returns:
        The image, (H, W, 3) uint8, RGB.
    """
    height, width = light.shape[:2]
    halo = cv2.GaussianBlur(emitted, (0, 0), 0.02 * width) + cv2.GaussianBlur(
        emitted, (0, 0), 0.07 * width
    )
    image = light + halo
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    radius = np.hypot(2 * x / width - 1, 2 * y / height - 1) / np.sqrt(2)
    image *= (1 - style.vignette * radius**2)[..., None]
    image *= rng.uniform(*style.gain) * (1 + style.cast * rng.standard_normal(3)).astype(np.float32)
    image += style.noise * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


DAY = Style(
    materials=dict(
        sky=Material(((120, 170, 225), (150, 190, 230), (175, 200, 220)), 8, 3, (40, 12)),
        cloud=Material(((240, 240, 242), (225, 226, 230)), 6, 5, (12, 5)),
        hill=Material(((110, 130, 120), (130, 140, 150), (95, 120, 95)), 10, 6, (10, 5)),
        ground=Material(((110, 160, 70), (135, 165, 80), (170, 160, 95)), 10, 9, (3, 2)),
        road=Material(((115, 115, 118), (95, 95, 100), (135, 130, 125)), 6, 4, (1, 1)),
        marking=Material(((235, 235, 230),), 5, 4, (2, 2)),
        water=Material(((50, 105, 165), (60, 125, 160), (70, 110, 140)), 8, 9, (16, 2)),
        wall=Material(
            ((190, 110, 85), (215, 190, 150), (200, 200, 205), (170, 90, 75)), 12, 5, (5, 2)
        ),
        roof=Material(((140, 65, 50), (95, 90, 95)), 10, 7, (4, 2)),
        window=Material(((70, 90, 115), (90, 110, 135)), 8, 4, (2, 2)),
        bark=Material(((95, 70, 45),), 8, 6, (2, 4)),
        leaves=Material(((45, 105, 40), (60, 120, 45), (80, 125, 35), (35, 85, 45)), 8, 16, (3, 3)),
        paint=Material(
            ((200, 30, 35), (235, 235, 235), (30, 60, 150), (235, 190, 40)), 10, 3, (6, 4)
        ),
        glass=Material(((55, 70, 85),), 6, 4, (4, 3)),
        tyre=Material(((25, 25, 28),), 4, 3),
        headlight=Material(((245, 240, 200),), 6, 3),
        skin=Material(((225, 180, 150), (150, 105, 75), (95, 65, 50)), 8, 3),
        cloth=Material(
            ((200, 60, 120), (60, 60, 70), (240, 150, 40), (70, 90, 160)), 12, 6, (3, 2)
        ),
        pole=Material(((70, 75, 80),), 6, 3, (2, 6)),
        lamp=Material(((250, 245, 225),), 5, 3),
        thing=Material(((150, 60, 160), (60, 150, 150)), 15, 10, (2, 2)),
    ),
    haze=(190, 205, 220),
    haze_share=0.35,
    camera=(2.4, 3.2),
    gain=(0.9, 1.1),
    cast=0.03,
    noise=3.0,
    vignette=0.1,
)

NIGHT = Style(
    materials=dict(
        sky=Material(((58, 46, 74), (44, 48, 72), (70, 54, 66)), 6, 4, (24, 16)),
        cloud=Material(((98, 78, 84), (84, 82, 98)), 5, 6, (8, 8)),
        hill=Material(((24, 26, 34), (34, 32, 40)), 5, 4, (6, 8)),
        ground=Material(((64, 84, 104), (84, 92, 104), (58, 92, 96)), 7, 16, (4, 5)),
        road=Material(((128, 96, 62), (146, 112, 72), (112, 84, 64)), 6, 12, (2, 9)),
        marking=Material(((206, 176, 122),), 8, 8, (2, 3)),
        water=Material(((176, 128, 66), (138, 112, 92), (190, 146, 96)), 8, 44, (9, 2)),
        wall=Material(((112, 104, 128), (86, 92, 112), (128, 108, 104)), 8, 12, (2, 7)),
        roof=Material(((52, 48, 58), (70, 60, 62)), 6, 6, (6, 2)),
        window=Material(
            ((240, 200, 110), (52, 54, 70), (58, 58, 66), (190, 205, 220)), 8, 6, (2, 2), 0.05
        ),
        bark=Material(((58, 46, 52),), 5, 6, (2, 3)),
        leaves=Material(((66, 52, 66), (78, 58, 62), (56, 54, 74)), 6, 30, (2, 2)),
        paint=Material(((72, 66, 80), (182, 168, 152), (140, 60, 58), (66, 92, 132)), 8, 6, (8, 2)),
        glass=Material(((36, 38, 50),), 4, 5, (6, 2)),
        tyre=Material(((20, 20, 24),), 3, 3),
        headlight=Material(((250, 245, 225), (245, 70, 50)), 6, 3, (2, 2), 0.5),
        skin=Material(((182, 142, 120), (120, 92, 82)), 6, 4),
        cloth=Material(
            ((70, 150, 150), (170, 168, 172), (52, 56, 74), (96, 140, 90)), 8, 14, (2, 3)
        ),
        pole=Material(((36, 36, 42), (50, 46, 46)), 5, 4, (2, 4)),
        lamp=Material(((255, 215, 140), (235, 240, 255)), 5, 3, (2, 2), 0.5),
        thing=Material(((90, 70, 100), (120, 110, 60)), 8, 12, (3, 2)),
    ),
    haze=(76, 66, 82),
    haze_share=0.4,
    camera=(1.9, 2.5),
    gain=(0.75, 1.25),
    cast=0.06,
    noise=6.0,
    vignette=0.3,
)

STYLES = dict(source=DAY, target=NIGHT)
