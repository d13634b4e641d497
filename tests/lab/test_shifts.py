"""Shifts of a domain: the same for the same file, in range, and what their names say."""

import cv2
import numpy as np
import pytest
from mmseg.registry import TRANSFORMS

import snella_seg.register  # noqa: F401

NAMES = ("Night", "Fog", "Thermal")


def image(dtype=np.uint8):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    return cv2.resize(small, (160, 120)).astype(dtype)


def shift(name, path="a/1.jpg", picture=None, **options):
    results = dict(img=image() if picture is None else picture, img_path=path)
    return TRANSFORMS.build(dict(type=name, **options))(results)["img"]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_file_becomes_the_same_image(name):
    assert np.array_equal(shift(name), shift(name, "another/folder/1.jpg"))
    assert not np.array_equal(shift(name), shift(name, "a/2.jpg"))
    assert np.array_equal(shift(name, noise=0.0), shift(name, "a/2.jpg", noise=0.0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_type_and_range_stay(name, dtype):
    shifted = shift(name, picture=image(dtype))
    assert shifted.dtype == dtype and shifted.shape == (120, 160, 3)
    assert shifted.min() >= 0 and shifted.max() <= 255
    before = image(dtype)
    assert np.array_equal(shift(name, picture=before.copy(), strength=0.0), before)


def test_night_is_dark_and_blue():
    night = shift("Night").astype(float)
    assert night.mean() < 0.45 * image().mean()
    blue, _, red = night.mean((0, 1)) / image().mean((0, 1))
    assert blue > 1.2 * red


def test_fog_takes_contrast_most_at_the_top():
    fog = shift("Fog", noise=0.0)
    top, bottom = (part.std() for part in (fog[:40], fog[-40:]))
    assert top < 0.5 * bottom < 0.5 * image()[-40:].std()
    assert fog[:40].mean() > 150


def test_thermal_is_grey_and_inverted():
    thermal = shift("Thermal", noise=0.0).astype(float)
    assert np.ptp(thermal, axis=2).max() == 0
    grey = cv2.GaussianBlur(image().mean(2), (0, 0), 2)
    assert np.corrcoef(thermal[:, :, 0].ravel(), grey.ravel())[0, 1] < -0.9


@pytest.mark.parametrize("options", [dict(strength=1.5), dict(noise=-0.1)])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match="strength must lie in"):
        shift("Fog", **options)


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(ValueError, match=r"three channels, got shape \(4, 4, 4\) in a/1.jpg"):
        shift("Fog", picture=np.zeros((4, 4, 4), np.uint8))
