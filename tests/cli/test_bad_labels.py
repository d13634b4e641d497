"""Label maps and images that cannot be right: named with their file, before and in training."""

import shutil

import cv2
import numpy as np
import pytest
from helpers import refused, write_tiny_config


def too_large(root):
    path = root / "annotations/training/2.png"
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    labels[-4:, -4:] = 160  # ADE20K has 150 classes, of which the config keeps four
    cv2.imwrite(str(path), labels)


def grey(root):
    for path in (root / "annotations").rglob("*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) * 50)


def colour(root):
    path = root / "annotations/training/1.png"
    cv2.imwrite(str(path), cv2.imread(str(path)))  # three equal channels


def sixteen_bits(root):
    path = root / "annotations/training/1.png"
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.uint16)
    labels[0, 0] = 256
    cv2.imwrite(str(path), labels)


def other_size(root):
    path = root / "annotations/training/3.png"
    cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[:40])


def missing_map(root):
    (root / "annotations/training/3.png").unlink()


def unreadable_map(root):
    (root / "annotations/training/0.png").write_bytes(b"not a picture")


def truncated_image(root):
    path = root / "images/training/0.jpg"
    path.write_bytes(path.read_bytes()[:400])


def text_for_an_image(root):
    (root / "images/validation/1.jpg").write_text("not a picture")


def one_class(root):
    for path in (root / "annotations").rglob("*.png"):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), (labels > 1).astype(np.uint8))  # 0 is ignored, 1 is class 0


# What is done to the data -> what preflight says, what training says (None: it may go on).
CASES = {
    too_large: ("hold 159 (159 in 1 of 4 files, first", "holds the labels 159, decode_head knows"),
    grey: ("class numbers, not grey values", "class numbers, not grey values"),
    colour: ("1.png is a picture of 3 channels", "picture of"),
    sixteen_bits: ("1.png holds 256, in 16 bits", None),
    other_size: ("3.png is (64, 40) pixels large, its image (64, 64)", "3.png is (64, 40) pixels"),
    missing_map: ("3.png is missing, which", "3.png is missing, which"),
    unreadable_map: ("0.png cannot be read", "0.png cannot be read"),
    truncated_image: ("0.jpg cannot be read", "0.jpg cannot be read"),
    text_for_an_image: ("1.jpg cannot be read", "1.jpg cannot be read"),
    one_class: ("hold a single class, none holds building, sky, floor", None),
}


@pytest.fixture(params=CASES, ids=lambda spoil: spoil.__name__)
def spoilt(request, tmp_path, tiny_dataset):
    """The config of data that was spoilt, and what is to be said of it."""
    shutil.copytree(tiny_dataset, tmp_path / "data")
    request.param(tmp_path / "data")
    return write_tiny_config(tmp_path, tmp_path / "data"), *CASES[request.param]


def test_preflight_names_the_file(tool, spoilt):
    config, told, _ = spoilt
    done = tool("preflight", config, "--iters", "1")
    refused(done, told, code=2)


def test_training_ends_in_a_line(tool, spoilt, tmp_path):
    config, before, told = spoilt
    done = tool("train", config, "--work-dir", tmp_path / "run")
    if told is None:
        assert done.code == 0, done.err
        said = done.out.count("no label of the first pass over the training set is of class build")
        assert said == ("hold a single class" in before)  # a warning
    else:
        refused(done, told)


def test_good_data_have_no_problem_with_labels(tool, tiny_config_file):
    done = tool("preflight", tiny_config_file, "--iters", "0")
    assert "label map" not in done.out


def test_training_on_nothing_but_ignored_labels_ends(tool, tmp_path, tiny_dataset):
    shutil.copytree(tiny_dataset, tmp_path / "data")
    for path in (tmp_path / "data/annotations").rglob("*.png"):
        cv2.imwrite(str(path), np.zeros((64, 64), np.uint8))  # reduced to 255
    config = write_tiny_config(tmp_path, tmp_path / "data")
    assert "are to be ignored" in tool("preflight", config, "--iters", "0").out
    options = ("--cfg-options", "train_cfg.max_iters=40", "custom_hooks.0.interval=10")
    done = tool("train", config, "--work-dir", tmp_path / "run", *options)
    refused(done, "the first 20 iterations are to be ignored")
