"""snella-seg segment: which images, what is written, and what a bad image leaves undone."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import refused, write_tiny_config
from mmengine.config import Config
from mmseg.datasets import ADE20KDataset
from PIL import Image

import snella_seg.register  # noqa: F401
from snella_seg.artifacts import merged_segmentor, save_adapter, stock_config, strip_frozen
from snella_seg.cli.drawing import Palette
from snella_seg.cli.image_files import output_names
from snella_seg.models import build_segmentor
from snella_seg.models.inference import segment

FORMS = ("full.pth", "slim.pth", "task.safetensors", "merged.pth", "alone")
ADE = ADE20KDataset.METAINFO["palette"][:4]  # of the config, where a file has none
PALETTE = [[0, 0, 0], [0, 90, 0], [0, 0, 200], [250, 250, 0]]


class Project:
    """A config, its task in every form, images to segment."""

    def __init__(self, folder: Path, dataset: Path, options: str = "") -> None:
        torch.manual_seed(0)
        plain, base = write_tiny_config(folder, dataset), folder / "base.pth"
        cfg = Config.fromfile(plain)
        torch.save(build_segmentor(cfg).backbone.backbone.state_dict(), base)
        self.config = folder / "project.py"
        self.config.write_text(
            f"_base_ = './tiny.py'\nmodel = dict(backbone=dict(base_checkpoint={str(base)!r}))\n"
            + options
        )
        cfg = Config.fromfile(self.config)
        self.model = model = build_segmentor(cfg)
        for parameter in model.decode_head.parameters():
            parameter.data.normal_(0, 0.3)
        for name, parameter in model.backbone.named_parameters():
            if "adapters" in name:
                parameter.data.normal_(0, 0.3)
        model.dataset_meta = meta = dict(classes=("wall", "building", "sky", "floor"))
        meta["palette"] = PALETTE
        self.files = {name: folder / name for name in ("full.pth", "slim.pth", "task.safetensors")}
        state = model.state_dict()
        torch.save(dict(state_dict=state, meta=dict(dataset_meta=meta)), self.files["full.pth"])
        strip_frozen(state := dict(state), model)
        torch.save(dict(state_dict=state, meta=dict(dataset_meta=meta)), self.files["slim.pth"])
        save_adapter(model, self.files["task.safetensors"])
        stock = stock_config(cfg)
        stock.dump(folder / "merged.py")
        torch.save(dict(state_dict=merged_segmentor(model), meta={}), folder / "merged.pth")
        self.out, self.images = folder / "out", folder / "images"
        shutil.copytree(dataset / "images/validation", self.images)

    def classes(self, image: Path) -> np.ndarray:
        return segment(self.model, str(image))


@pytest.fixture
def project(tmp_path, tiny_dataset) -> Project:
    return Project(tmp_path, tiny_dataset)


def written(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_weights_gives_the_same_labels(tool, project, tmp_path, form):
    config = tmp_path / "merged.py" if form == "merged.pth" else project.config
    given = ["--config", config, "--checkpoint", tmp_path / form]
    given = [project.files["task.safetensors"]] if form == "alone" else given
    done = tool("segment", project.images, *given, "--out", project.out, "--device", "cpu")
    assert done.code == 0, done.err
    names = ("0.png", "1.png")
    expected = {f"{kind}/{name}" for kind in ("labels", "overlays") for name in names}
    assert written(project.out) == expected | {"legend.png"}
    for name in names:
        labels = Image.open(project.out / "labels" / name)
        classes = project.classes(project.images / name.replace("png", "jpg"))
        colours = ADE if form == "merged.pth" else PALETTE
        assert labels.mode == "P" and labels.getpalette()[:12] == sum(colours, [])
        assert np.mean(np.asarray(labels) == classes) > (0.999 if form == "merged.pth" else 0.99999)
        assert len(np.unique(classes)) > 1


def test_opacity_and_plain_labels(tool, project):
    image = project.images / "0.jpg"
    for opacity in ("0", "1"):
        done = tool(
            "segment", project.config, project.files["slim.pth"], image, "--out", project.out,
            "--opacity", opacity, "--labels", "plain", "--device", "cpu",
        )  # fmt: skip
        assert done.code == 0, done.err
        painted = cv2.imread(str(project.out / "overlays/0.png"))
        expected = np.asarray(PALETTE, np.uint8)[project.classes(image)][..., ::-1]
        assert np.array_equal(painted, cv2.imread(str(image)) if opacity == "0" else expected)
    assert Image.open(project.out / "labels/0.png").mode == "L"
    legend = cv2.imread(str(project.out / "legend.png")).reshape(-1, 3)
    assert all((legend == colour[::-1]).all(-1).any() for colour in PALETTE)


def test_names_that_clash_and_patterns(tool, project):
    for folder in ("a", "b"):
        (project.images / folder).mkdir()
        shutil.copy(project.images / "0.jpg", project.images / folder / "x.jpg")
    cv2.imwrite(str(project.images / "a/x.png"), cv2.imread(str(project.images / "1.jpg")))
    task = project.files["task.safetensors"]
    for images in ([project.images], [project.images / "**/*.*g", project.images / "0.jpg"]):
        done = tool("segment", *images, task, "--out", project.images / "out", "--labels", "none")
        assert done.code == 0, done.err
        names = {"0.png", "1.png", "a/x.jpg.png", "a/x.png.png", "b/x.png"}
        assert written(project.images / "out/overlays") == names


def test_names_are_unique_in_what_they_are_called():
    paths = [Path(p) for p in ("/d/a/x.png", "/d/a/x.PNG", "/d/a/X.jpg", "/d/b/x.png")]
    assert len({name.lower() for name in output_names(paths).values()}) >= 3
    assert output_names([Path("/d/a/x.tif")]) == {Path("/d/a/x.tif"): "x.png"}


def test_a_bad_image_is_named_and_the_rest_is_done(tool, project):
    (project.images / "0a.png").write_text("no picture")
    task = project.files["task.safetensors"]
    done = tool("segment", project.images, task, "--out", project.out, "--device", "cpu")
    lines = done.err.strip().splitlines()
    assert lines[0].startswith("left out: ") and "0a.png cannot be read" in lines[0]
    refused(done, "1 of 3 images could not be segmented, the first: ", "0a.png cannot be read")
    assert written(project.out / "labels") == {"0.png", "1.png"}


def test_mistakes_end_in_one_line_before_anything_is_written(tool, project, tmp_path):
    task, image = project.files["task.safetensors"], project.images / "0.jpg"
    (tmp_path / "empty").mkdir()
    (taken := tmp_path / "taken").write_text("mine")
    inside = tmp_path / "seg/overlays"
    inside.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(inside / "0.png")
    both = ("--config", project.config)
    for args, message in {
        (image, task, "--out", taken): "taken is a file, where a folder",
        (tmp_path / "no*.png", task): "image not found",
        (tmp_path / "empty", task): "the folder holds none of .jpg",
        (task,): "no images",
        (image,): "give a config and its checkpoint before the images, or adapter files",
        (image, *both): "go together",
        (project.config, project.files["slim.pth"]): "no images",
        (image, task, "--opacity", "2"): "--opacity must lie between 0 and 1",
        (image, task, "--threshold", "0.2"): "--threshold is for heads with one logit",
        (image, task, "--crop", "32", "32", "--stride", "64", "64"): "leaves gaps",
        (inside / "0.png", task, "--out", tmp_path / "seg"): "is an image to be segmented",
    }.items():
        args = args if "--out" in args else (*args, "--out", project.out)
        done = tool("segment", *args)
        assert done.code == 1 and len(done.err.strip().splitlines()) == 1, (args, done.err)
        assert message in done.err and not list(project.out.rglob("*.png"))


def test_slide_and_whole_differ_and_agree_where_they_must(tool, project):
    image, task = project.images / "0.jpg", project.files["task.safetensors"]
    found = {}
    for name, options in {
        "config": (),
        "whole": ("--mode", "whole"),
        "window": ("--mode", "slide", "--crop", 64, 64),
        "slide": ("--crop", 32, 32, "--stride", 16, 16),
    }.items():
        done = tool("segment", image, task, "--out", project.out / name, *options)
        assert done.code == 0, done.err
        found[name] = np.asarray(Image.open(project.out / name / "labels/0.png"))
    assert np.array_equal(found["config"], found["whole"])
    assert np.array_equal(found["whole"], found["window"])
    assert not np.array_equal(found["whole"], found["slide"])


HALF = 'dict(type="Resize", scale=(32, 32), keep_ratio=False)'
STEPS = f'[dict(type="LoadImageFromFile"), {HALF}, dict(type="PackSegInputs")]'
PIPELINES = {
    "of test_dataloader": f"test_dataloader = dict(dataset=dict(pipeline={STEPS}))",
    "at the top": f"test_pipeline = {STEPS}\ntest_dataloader = None",
}


@pytest.mark.parametrize("where", PIPELINES)
def test_the_pipeline_is_that_of_testing(tool, tmp_path, tiny_dataset, where):
    project = Project(tmp_path, tiny_dataset, PIPELINES[where])
    image, seen = project.images / "0.jpg", []
    project.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    expected = project.classes(image)
    assert seen[0][-2:] == (32, 32) and expected.shape == (64, 64)
    for given in (
        ["--config", project.config, "--checkpoint", project.files["slim.pth"]],
        [project.files["task.safetensors"]],
    ):
        done = tool("segment", image, *given, "--out", project.out)
        assert done.code == 0, done.err
        assert np.array_equal(np.asarray(Image.open(project.out / "labels/0.png")), expected)


def test_one_logit_and_its_threshold(tool, tmp_path, tiny_dataset):
    head = "dict(num_classes=2, out_channels=1, threshold=0.5)"
    project = Project(
        tmp_path, tiny_dataset, f"model.update(decode_head={head}, auxiliary_head={head})"
    )
    image, task = project.images / "0.jpg", project.files["task.safetensors"]
    shares = []
    for threshold in (0.0, 0.5, 1.0):
        done = tool("segment", image, task, "--out", project.out, "--threshold", threshold)
        assert done.code == 0, done.err
        shares.append(np.mean(np.asarray(Image.open(project.out / "labels/0.png"))))
    assert shares[0] == 1 and shares[2] == 0 and 0 <= shares[1] <= 1


FOUR = """
load = dict(type="LoadImageFromFile", color_type="unchanged")
test_dataloader = dict(dataset=dict(pipeline=[load, dict(type="PackSegInputs")]))
model["backbone"]["backbone"] = dict(in_channels=4)
model["backbone"]["bands"] = "mean"
model["data_preprocessor"] = dict(mean=[127.5], std=[127.5], bgr_to_rgb=False)
"""


def test_four_bands_in_tif_beside_an_image_of_three(tool, tmp_path, tiny_dataset):
    project = Project(tmp_path, tiny_dataset, FOUR)
    picture = cv2.imread(str(project.images / "0.jpg"))
    four = np.concatenate([picture, picture[..., :1]], axis=-1)
    cv2.imwrite(str(project.images / "four.tif"), four)
    (project.images / "1.jpg").unlink()
    task = project.files["task.safetensors"]
    done = tool("segment", project.images, task, "--out", project.out, "--opacity", 0)
    assert done.code == 1 and "0.jpg has 3 bands, the model takes 4" in done.err
    assert written(project.out / "labels") == {"four.png"}
    assert np.array_equal(cv2.imread(str(project.out / "overlays/four.png")), picture)


def test_palettes_without_enough_colours_or_names():
    class Head:
        out_channels = 1

    made = Palette.of(dict(classes=("crack",), palette=[[1, 2, 3]]), Head)
    assert made.names == ("not crack", "crack") and len(np.unique(made.colours, axis=0)) == 2
    Head.out_channels = 150
    made = Palette.of({}, Head)
    assert len(made.names) == 150 and len(np.unique(made.colours, axis=0)) > 140
    assert made.legend().shape[2] == 3
