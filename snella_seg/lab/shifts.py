"""Shifts of a domain, made of any images: night, fog, a thermal camera.

Transforms for mmseg's pipelines, to stand right after ``LoadImageFromFile``, in training and in
testing alike. An image becomes the same one every time and on every machine: its noise is drawn by
a generator that is seeded by its file's name.
"""

import zlib
from pathlib import Path

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS


class Shift(BaseTransform):
    """What all shifts share.

    Args:
        strength: 0 leaves an image as it is, 1 is the full shift; in [0, 1].
        noise: standard deviation of the noise, as a share of white.

    Raises:
        ValueError: on a strength outside [0, 1] or negative noise.
    """

    def __init__(self, strength: float = 1.0, noise: float = 0.03) -> None:
        if not 0.0 <= strength <= 1.0 or noise < 0.0:
            raise ValueError(
                f"strength must lie in [0, 1] and noise must not be negative, got {strength} and "
                f"{noise}"
            )
        self.strength, self.noise = strength, noise

    def transform(self, results: dict) -> dict:
        """Replace ``img``, (H, W, 3) in BGR, uint8 or floating point in 0 to 255."""
        image = results["img"]
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"{type(self).__name__} needs images of three channels, got shape {image.shape} in "
                f"{results.get('img_path')}"
            )
        light = image.astype(np.float32) / 255
        name = Path(results.get("img_path") or "").name
        drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(image.shape)
        shifted = self.develop(light) + self.noise * drawn.astype(np.float32)
        light = light + self.strength * (shifted - light)
        light = (255 * light).clip(0, 255)
        rounded = light.round() if image.dtype == np.uint8 else light
        results["img"] = rounded.astype(image.dtype)
        return results

    def develop(self, light: np.ndarray) -> np.ndarray:
        """The shifted image without noise, (H, W, 3) in 0 to 1, BGR."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}(strength={self.strength}, noise={self.noise})"


@TRANSFORMS.register_module()
class Night(Shift):
    """Little light, most of it blue: dark parts sink into the noise of the sensor."""

    def develop(self, light: np.ndarray) -> np.ndarray:
        grey = light.mean(2, keepdims=True)
        faded = 0.5 * light + 0.5 * grey
        return 0.4 * faded**1.8 * np.array([1.25, 1.0, 0.8], np.float32)


@TRANSFORMS.register_module()
class Fog(Shift):
    """White air before everything, thicker towards the top, where a street is far away."""

    def develop(self, light: np.ndarray) -> np.ndarray:
        height = np.linspace(1.0, 0.0, len(light), dtype=np.float32)[:, None, None]
        clear = np.exp(-0.6 - 1.8 * height)  # transmission, Koschmieder's law
        return light * clear + 0.85 * (1.0 - clear)


@TRANSFORMS.register_module()
class Thermal(Shift):
    """One grey channel, bright where the image is dark, blurred as by few and large sensors."""

    def develop(self, light: np.ndarray) -> np.ndarray:
        grey = 1.0 - light.mean(2)
        blurred = cv2.GaussianBlur(grey, (0, 0), len(light) / 160)
        return np.repeat(blurred[:, :, None], 3, 2)
