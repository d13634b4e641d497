"""The embedded demo: its scenes, data set, configs and pictures. Nothing trains here."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("mmseg")
cv2 = pytest.importorskip("cv2")

from mmengine.config import Config  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from mmengine.structures import PixelData  # noqa: E402
from mmseg.datasets import BaseSegDataset  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

from snella_seg import own  # noqa: E402
from snella_seg.lab.demo.dataset import DOMAINS, STAMP, write_dataset  # noqa: E402
from snella_seg.lab.demo.demo_report import draw_overlays  # noqa: E402
from snella_seg.lab.demo.prepare import prepare, prepare_source  # noqa: E402
from snella_seg.lab.demo.scene import CLASSES, OTHER, PALETTE, SIZE, Scene  # noqa: E402
from snella_seg.lab.demo.scenes import render  # noqa: E402


@pytest.fixture
def scenes(tmp_path):
    """Root of a small written set: 3 + 2 scenes of each domain."""
    root = tmp_path / "scenes"
    assert write_dataset(root, training=3, validation=2)
    return root


def files_of(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("domain", DOMAINS)
def test_same_seed_gives_same_bits(domain):
    first, again, other = render(domain, (3, 1)), render(domain, (3, 1)), render(domain, (3, 2))
    for array, same, different in zip(first, again, other, strict=True):
        assert array.dtype == np.uint8 and array.shape[:2] == SIZE
        np.testing.assert_array_equal(array, same)
        assert (array != different).any()


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_class_occurs_and_none_else(domain):
    counts = sum(np.bincount(render(domain, i)[1].ravel(), minlength=256) for i in range(30))
    assert not counts[len(CLASSES) + 1 :].any()
    assert (counts[1 : len(CLASSES) + 1] > 0.003 * counts.sum()).all()
    assert 0 < counts[OTHER] < 0.02 * counts.sum()


def test_the_domains_look_different():
    day, night = (np.mean([render(d, i)[0].mean() for i in range(5)]) for d in DOMAINS)
    assert day > night + 30


def test_paint_writes_colour_and_label_under_one_mask():
    scene = Scene("source", 0)
    mask = scene.ellipse(40, 50, 9, 5)
    scene.paint(mask, "water", "water")
    np.testing.assert_array_equal(scene.labels == CLASSES.index("water") + 1, mask)
    np.testing.assert_array_equal(scene.light.any(axis=-1), mask)
    scene.paint(mask, "thing", None)
    assert not scene.labels.any()


def test_paint_outside_of_the_image_changes_nothing():
    scene = Scene("target", 0)
    scene.paint(scene.box(-20, -20, -10, -10), "wall", "building")
    assert not scene.labels.any() and not scene.light.any()


def test_unknown_domain_is_an_error():
    with pytest.raises(KeyError):
        render("dusk", 0)


def test_layout_is_that_of_ade20k(scenes):
    for domain in DOMAINS:
        for split, count in (("training", 3), ("validation", 2)):
            images = sorted((scenes / domain / "images" / split).iterdir())
            labels = sorted((scenes / domain / "annotations" / split).iterdir())
            assert [p.stem for p in images] == [p.stem for p in labels]
            assert len(images) == count
    written = cv2.imread(str(scenes / "target/images/validation/0001.png"))
    image, labels = render("target", (1, 1, 1))
    np.testing.assert_array_equal(written[..., ::-1], image)
    written = cv2.imread(str(scenes / "target/annotations/validation/0001.png"), -1)
    np.testing.assert_array_equal(written, labels)


def test_whole_set_is_kept_and_another_one_replaced(scenes):
    before = files_of(scenes)
    assert not write_dataset(scenes, training=3, validation=2)
    assert files_of(scenes) == before
    assert write_dataset(scenes, training=2, validation=2)
    assert len(list((scenes / "source/images/training").iterdir())) == 2


def test_interrupted_writing_leaves_no_set(tmp_path, monkeypatch):
    root, calls = tmp_path / "scenes", []

    def interrupted(domain, seed):
        calls.append(seed)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return render(domain, seed)

    monkeypatch.setattr("snella_seg.lab.demo.dataset.render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(root, training=3, validation=2)
    assert not root.exists()
    monkeypatch.undo()
    assert write_dataset(root, training=3, validation=2)
    assert (root / STAMP).is_file()


def test_config_names_the_generators_classes():
    cfg = Config.fromfile(own("_base_/demo_scenes.py")[0])
    assert tuple(cfg.metainfo.classes) == CLASSES
    assert [tuple(colour) for colour in cfg.metainfo.palette] == list(PALETTE)
    model = Config.fromfile(own("_base_/demo_vit_upernet.py")[0]).model
    assert model.decode_head.num_classes == len(CLASSES)
    assert tuple(model.data_preprocessor["size"]) == tuple(model.backbone.img_size) == SIZE


@pytest.fixture
def trainings(monkeypatch, tmp_path):
    """The configs that ``prepare`` would train; it works in ``tmp_path``."""
    found = []

    def train(cfg, checkpoint=None):
        found.append(cfg.to_dict())
        return 50.0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("snella_seg.lab.demo.prepare._train", train)
    monkeypatch.setattr("snella_seg.lab.demo.prepare._evaluate", lambda cfg: 10.0)
    monkeypatch.setattr("snella_seg.lab.demo.prepare.write_dataset", lambda root: False)
    monkeypatch.setattr("snella_seg.lab.demo.prepare.is_written", lambda root: True)
    (tmp_path / "data/snella_demo").mkdir(parents=True)
    return found


def demo_config(**options):
    cfg = Config.fromfile(own("snella_upernet_demo.py")[0])
    cfg.merge_from_dict(options)
    return cfg


def test_the_frozen_reference_differs_in_adaptation_only(trainings):
    cfg = demo_config(**{"train_cfg.max_iters": 7, "model.decode_head.channels": 8})
    prepare(cfg)
    source, frozen = trainings
    assert source["train_cfg"]["max_iters"] == 400
    assert frozen["model"]["backbone"].pop("targets") == []
    assert frozen["custom_hooks"] == []
    main = cfg.to_dict()
    methods = [one["model"]["backbone"].pop("method") for one in (frozen, main)]
    assert methods == ["snella", "snella_v2"]  # without adapters both are the same
    assert "targets" not in main["model"]["backbone"]
    for key in ("model", "train_cfg", "optim_wrapper", "param_scheduler", "train_dataloader"):
        assert frozen[key] == main[key]


@pytest.mark.parametrize("width", [192, 768])
def test_the_source_of_a_ground_is_the_stock_model_by_day(trainings, width):
    cfg = Config.fromfile(own(f"grounds/scenes_{width}.py")[0])
    prepare_source(cfg)
    (source,) = trainings
    backbone = source["model"]["backbone"]
    assert backbone["type"] == "VisionTransformer" and backbone["embed_dims"] == width
    assert source["custom_hooks"] == []
    assert source["optim_wrapper"]["paramwise_cfg"]["backbone_lr"] == 0.1 / width
    for loader in ("train_dataloader", "val_dataloader"):
        assert source[loader]["dataset"]["data_root"] == "data/snella_demo/scenes/source"
    Path(cfg.model.backbone.init_cfg.checkpoint).touch()
    prepare_source(cfg)
    assert len(trainings) == 1  # it is there


def test_only_what_is_not_there_is_prepared(trainings):
    for options, count in (
        ({}, 2),
        ({}, 2),
        ({"load_from": "x.pth", "work_dir": "y"}, 2),
        ({"randomness.seed": 1}, 3),  # the source model stays
        ({"randomness.seed": 1}, 3),
    ):
        prepare(demo_config(**options))
        assert len(trainings) == count


def test_several_processes_do_not_prepare(trainings):
    with pytest.raises(ValueError, match="once in a single process"):
        prepare(demo_config(launcher="pytorch"))
    prepare(demo_config())
    prepare(demo_config(launcher="pytorch"))


class Oracle:
    """A model that predicts the labels it is given."""

    training = True

    def eval(self):
        self.training = False

    def train(self, mode):
        self.training = mode

    def test_step(self, batch):
        assert not self.training
        truth = batch["data_samples"][0].gt_sem_seg.data
        return [SegDataSample(pred_sem_seg=PixelData(data=truth.clamp(max=len(CLASSES) - 1)))]


def test_overlays_are_written(scenes, tmp_path):
    cfg = Config.fromfile(own("_base_/demo_scenes.py")[0]).val_dataloader.dataset
    cfg.pop("type")
    with DefaultScope.overwrite_default_scope("mmseg"):
        dataset = BaseSegDataset(**{**cfg, "data_root": str(scenes / "target")})
    labels = dataset[0]["data_samples"].gt_sem_seg.data.numpy()
    assert set(np.unique(labels)) <= {*range(len(CLASSES)), 255}  # 'other' is ignored
    model = Oracle()
    runner = SimpleNamespace(model=model, val_dataloader=SimpleNamespace(dataset=dataset))
    frozen = scenes / "target/annotations/validation"  # label maps, as the evaluator writes them
    draw_overlays(runner, frozen, 2, tmp_path / "overlays.png")
    picture = cv2.imread(str(tmp_path / "overlays.png"))
    assert min(picture.shape[:2]) > 300
    assert model.training
