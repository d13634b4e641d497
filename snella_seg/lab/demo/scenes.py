"""Procedural street scenes whose labels are right to the pixel.

A scene is a backdrop, a plane with road and water, and objects that stand on the plane. Objects are
painted from far to near, so that near ones hide far ones; :class:`snella_seg.lab.demo.scene.Scene`
sees to perspective and labels. :func:`render` is the entry point.
"""

import numpy as np

from .scene import CLASSES, OTHER, PALETTE, SIZE, Scene
from .styles import develop, value_noise

__all__ = ["CLASSES", "OTHER", "PALETTE", "SIZE", "render"]


def paint_backdrop(scene: Scene):
    """Sky with clouds, birds (other) and one or two ridges of hills."""
    rng, (height, width) = scene.rng, SIZE
    scene.paint(
        np.ones(SIZE, bool), "sky", "sky", near=1 - np.clip(0.6 * scene.y / scene.horizon, 0, 1)
    )
    clouds = value_noise(rng, SIZE, (28, 9)) + 0.4 * value_noise(rng, SIZE, (9, 4))
    scene.paint(clouds > rng.uniform(0.5, 1.6), "cloud", "sky", near=0.7)
    for _ in range(rng.integers(0, 4)):
        x, y = rng.uniform(0, width), rng.uniform(0, 0.6 * scene.horizon)
        wings = [(x - 4, y - 2), (x, y + 1), (x + 4, y - 2), (x, y - 0.2)]
        scene.paint(scene.polygon(*wings), "thing", None, shade=0.5)
    for layer in range(rng.integers(0, 3)):
        phases, swings = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.02, 0.07, 3)
        waves = [
            a * np.sin(scene.x / width * f + p)
            for f, a, p in zip((4, 9, 19), swings, phases, strict=True)
        ]
        crest = scene.horizon - height * (0.1 - 0.04 * layer + sum(waves) * (0.9 - 0.3 * layer))
        scene.paint(scene.y > crest, "hill", "hill", near=0.3 + 0.3 * layer)


def paint_plane(scene: Scene) -> float:
    """Ground, water (a canal or a lake) and the road; returns half the road's width in metres."""
    rng = scene.rng
    land = scene.y >= scene.horizon
    near = scene.nearness(scene.y)
    scene.paint(land, "ground", "ground", near)
    meadow = value_noise(rng, SIZE, (40, 8)) > 0.6
    scene.paint(land & meadow, "ground", "ground", near)
    scale = np.maximum(scene.scale(scene.y), 1e-3)
    metres = (scene.x - scene.column(0.0, scene.y)) / scale
    ripple = 0.5 * value_noise(rng, SIZE, (14, 4))
    kind = rng.choice(["canal", "lake", "none"], p=[0.35, 0.35, 0.3])
    if kind == "canal":
        side, bank = rng.choice([-1, 1]), rng.uniform(4.5, 7.5)
        distance = side * metres + ripple
        wet = land & (distance > bank) & (distance < bank + rng.uniform(4, 12))
        scene.paint(wet, "water", "water", near)
    elif kind == "lake":
        y = scene.horizon + (SIZE[0] - scene.horizon) * rng.uniform(0.15, 0.6)
        x = rng.uniform(0, SIZE[1])
        radius = (rng.uniform(28, 64), rng.uniform(0.4, 0.8) * (y - scene.horizon))
        reach = ((scene.x - x) / radius[0]) ** 2 + ((scene.y - y) / radius[1]) ** 2
        scene.paint(land & (reach + ripple < 1), "water", "water", near)
    half = rng.uniform(2.6, 3.6)
    scene.paint(land & (np.abs(metres) < half), "road", "road", near)
    dashes = np.sin(12 / scale + rng.uniform(0, 6)) > 0
    scene.paint(land & (np.abs(metres) < 0.12) & dashes, "marking", "road", near)
    scene.paint(land & (np.abs(np.abs(metres) - 0.9 * half) < 0.1), "marking", "road", near)
    return half


def paint_wall(scene: Scene, mask, u, v, near, shade):
    """A wall with windows; ``u`` and ``v`` are its coordinates in metres, (H, W)."""
    scene.paint(mask, "wall", "building", near, shade)
    pitch, storey = scene.rng.uniform(1.8, 2.6), scene.rng.uniform(2.6, 3.2)
    pane = (np.mod(u, pitch) > 0.45 * pitch) & (np.mod(v, storey) > 0.4 * storey)
    number = (np.floor(u / pitch) + 3 * np.floor(v / storey)).astype(int) % 3
    for variant in range(3):
        scene.paint(mask & pane & (number == variant), "window", "building", near, shade)


def paint_building(scene: Scene, y: float, half: float):
    """A house or tower beside the road: front, receding side and roof."""
    rng, scale = scene.rng, scene.scale(y)
    side = rng.choice([-1, 1])
    inner = half + rng.uniform(2.5, 9)
    width, height = rng.uniform(5, 9), rng.choice([rng.uniform(3.5, 6), rng.uniform(8, 16)])
    near = scene.nearness(y)
    x_in, x_out = scene.column(side * inner, y), scene.column(side * (inner + width), y)
    left, right = min(x_in, x_out), max(x_in, x_out)
    top = y - height * scale
    y_back = scene.horizon + (y - scene.horizon) * rng.uniform(0.55, 0.8)
    x_back = scene.column(side * inner, y_back)
    if side * (x_back - x_in) < 0:
        back_top = y_back - height * scene.scale(y_back)
        flank = scene.polygon((x_in, y), (x_in, top), (x_back, back_top), (x_back, y_back))
        foot = y + (y_back - y) * np.clip((scene.x - x_in) / (x_back - x_in), 0, 1)
        pixels = scene.scale(foot)
        paint_wall(
            scene, flank, 60 / pixels, (foot - scene.y) / pixels, near, rng.uniform(0.6, 0.8)
        )
    front = scene.box(left, top, right, y)
    paint_wall(scene, front, (scene.x - left) / scale, (y - scene.y) / scale, near, 1.0)
    ridge = top - rng.uniform(0.8, 2.0) * scale
    if height < 6:
        overhang = 0.4 * scale
        gable = [(left - overhang, top), ((left + right) / 2, ridge), (right + overhang, top)]
        scene.paint(scene.polygon(*gable), "roof", "building", near)


def paint_tree(scene: Scene, y: float, half: float):
    """A broad-leaved tree or a conifer beside the road."""
    rng, scale, near = scene.rng, scene.scale(y), scene.nearness(y)
    x = scene.column(rng.choice([-1, 1]) * (half + rng.uniform(0.8, 12)), y)
    height = rng.uniform(3.0, 7.0) * scale
    trunk = max(0.18 * scale, 0.8)
    scene.paint(scene.box(x - trunk, y - 0.5 * height, x + trunk, y), "bark", "tree", near)
    ragged = value_noise(rng, SIZE, (max(0.5 * scale, 1.5),) * 2)
    if rng.random() < 0.4:
        depth = (scene.y - (y - height)) / (0.85 * height)
        width = 0.28 * height * (0.35 * np.mod(3 * depth, 1) + 0.75 * depth)
        crown = (depth > 0) & (depth < 1) & (np.abs(scene.x - x) < width + 0.15 * scale * ragged)
        scene.paint(crown, "leaves", "tree", near, 0.85)
        return
    for _ in range(rng.integers(3, 6)):
        cx = x + 0.16 * height * rng.standard_normal()
        cy = y - height * rng.uniform(0.55, 0.85)
        radius = height * rng.uniform(0.17, 0.26)
        reach = np.hypot(scene.x - cx, scene.y - cy) / radius + 0.12 * ragged
        light = 1 + 0.25 * np.clip((cy - scene.y) / radius, -1, 1)
        scene.paint(reach < 1, "leaves", "tree", near, light)


def paint_vehicle(scene: Scene, y: float, half: float):
    """A car or van on the road, seen along the road."""
    rng, scale, near = scene.rng, scene.scale(y), scene.nearness(y)
    x = scene.column(rng.choice([-0.5, 0.5]) * half + rng.uniform(-0.2, 0.2), y)
    w = rng.uniform(0.85, 1.0) * scale
    body, roof = (0.95, 1.5) if rng.random() < 0.65 else (1.2, 2.5)
    body, roof = body * scale, roof * scale
    for wheel in (-0.75, 0.75):
        left = x + wheel * w - 0.2 * w
        scene.paint(scene.box(left, y - 0.35 * scale, left + 0.4 * w, y), "tyre", "vehicle", near)
    cabin = [
        (x - w, y - body),
        (x - 0.75 * w, y - roof),
        (x + 0.75 * w, y - roof),
        (x + w, y - body),
    ]
    hull = scene.box(x - w, y - body, x + w, y - 0.2 * scale) | scene.polygon(*cabin)
    scene.paint(hull, "paint", "vehicle", near)
    glass = [
        (cx + (x - cx) * 0.2, cy + (y - body - 0.4 * (roof - body) - cy) * 0.2) for cx, cy in cabin
    ]
    scene.paint(scene.polygon(*glass), "glass", "vehicle", near)
    for lamp in (-0.7, 0.7):
        light = scene.ellipse(
            x + lamp * w, y - 0.65 * scale, max(0.16 * scale, 0.7), max(0.13 * scale, 0.7)
        )
        scene.paint(light, "headlight", "vehicle")


def paint_person(scene: Scene, y: float, half: float):
    """A walker on or beside the road."""
    rng, scale, near = scene.rng, scene.scale(y), scene.nearness(y)
    x = scene.column(rng.uniform(-1.6, 1.6) * half, y)
    height = rng.uniform(1.55, 1.95) * scale
    w, stride = 0.17 * height, rng.uniform(0.03, 0.12) * height
    for foot in (-1, 1):
        hip, sole = x + foot * 0.05 * height, x + foot * (0.05 * height + stride)
        leg = [(hip - 0.4 * w, y - 0.5 * height), (hip + 0.4 * w, y - 0.5 * height)]
        leg += [(sole + 0.35 * w, y), (sole - 0.35 * w, y)]
        scene.paint(scene.polygon(*leg), "cloth", "person", near, 0.8)
    torso = [(x - w, y - 0.82 * height), (x + w, y - 0.82 * height)]
    torso += [(x + 0.7 * w, y - 0.42 * height), (x - 0.7 * w, y - 0.42 * height)]
    scene.paint(scene.polygon(*torso), "cloth", "person", near)
    head = scene.ellipse(x, y - 0.91 * height, 0.075 * height, 0.09 * height)
    scene.paint(head, "skin", "person", near)


def paint_lamp(scene: Scene, y: float, half: float):
    """A street lamp at the roadside, its arm over the road."""
    rng, scale, near = scene.rng, scene.scale(y), scene.nearness(y)
    side = rng.choice([-1, 1])
    x, top = scene.column(side * (half + 0.6), y), y - rng.uniform(3.4, 4.6) * scale
    pole = max(0.11 * scale, 0.6)
    reach = x - side * 1.1 * scale
    arm = scene.box(min(x, reach), top - pole, max(x, reach), top + pole)
    scene.paint(scene.box(x - pole, top, x + pole, y) | arm, "pole", "lamp", near)
    bulb = scene.ellipse(reach, top + 0.1 * scale, max(0.42 * scale, 1.2), max(0.24 * scale, 1.0))
    scene.paint(bulb, "lamp", "lamp")


def paint_thing(scene: Scene, y: float, half: float):
    """A bin or box at the roadside, of no class."""
    x = scene.column(scene.rng.choice([-1, 1]) * (half + scene.rng.uniform(0.4, 1.5)), y)
    scale = scene.scale(y)
    box = scene.box(x - 0.3 * scale, y - 0.9 * scale, x + 0.3 * scale, y)
    scene.paint(box, "thing", None, scene.nearness(y))


POPULATION = (
    (paint_building, (1, 5), (0.1, 0.6)),
    (paint_tree, (1, 6), (0.1, 0.8)),
    (paint_vehicle, (1, 4), (0.12, 0.8)),
    (paint_person, (1, 5), (0.25, 0.95)),
    (paint_lamp, (1, 4), (0.2, 0.85)),
    (paint_thing, (0, 2), (0.3, 0.9)),
)
"""For each kind of object: painter, how many (from, below), how near (from, to; 1 is nearest)."""


def render(domain: str, seed) -> tuple[np.ndarray, np.ndarray]:
    """Render one scene.

    Args:
        domain: 'source' (day) or 'target' (night).
        seed: anything that ``numpy.random.default_rng`` takes; the same seed gives the same bits.

    Returns:
        The image, (H, W, 3) uint8, RGB, and its labels, (H, W) uint8: 0 = other, k = CLASSES[k-1].
    """
    scene = Scene(domain, seed)
    paint_backdrop(scene)
    half = paint_plane(scene)
    objects = []
    for painter, (low, high), (far, close) in POPULATION:
        for _ in range(scene.rng.integers(low, high)):
            near = np.exp(scene.rng.uniform(np.log(far), np.log(close)))
            objects.append((scene.horizon + near * (SIZE[0] - scene.horizon), painter))
    for y, painter in sorted(objects, key=lambda item: item[0]):
        painter(scene, y, half)
    return develop(scene.style, scene.light, scene.emitted, scene.rng), scene.labels
