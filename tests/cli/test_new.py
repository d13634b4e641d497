"""A folder of images and label maps becomes a config that trains."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg")

from helpers import run_tool, scores_of  # noqa: E402
from mmengine.config import Config  # noqa: E402

from snella_seg.cli.new import main as new  # noqa: E402
from snella_seg.recipes import own_data  # noqa: E402
from snella_seg.recipes.survey import survey_folder  # noqa: E402


def make_folder(root, count=10, values=(0, 1, 2, 255), splits=False, mark="", size=(64, 96)):
    """Random images, and label maps that hold these values."""
    generator = np.random.default_rng(0)
    for i in range(count):
        split = ("val/" if i % 5 == 4 else "train/") if splits else ""
        image, label = root / f"images/{split}{i:02}.jpg", root / f"masks/{split}{i:02}{mark}.png"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(image)
        Image.fromarray(generator.choice(np.array(values, np.uint8), size)).save(label)
    return root


@pytest.mark.parametrize("splits", [False, True])
@pytest.mark.parametrize("mark", ["", "_mask"])
def test_what_is_seen(tmp_path, splits, mark):
    survey = survey_folder(make_folder(tmp_path, splits=splits, mark=mark))
    assert (len(survey.train), len(survey.val)) == (8, 2)
    assert survey.split_is_ours != splits
    assert (survey.img_suffix, survey.seg_map_suffix) == (".jpg", f"{mark}.png")
    assert survey.sizes == {(64, 96): 10} and survey.looked == 10
    assert survey.classes == 3 and not survey.reduce_zero_label


@pytest.mark.parametrize(
    "values, classes, reduce",
    [((1, 2, 3), 3, True), ((0, 1), 2, False), ((0, 1, 2, 3, 255), 4, False)],
)
def test_classes_and_zero(tmp_path, values, classes, reduce):
    survey = survey_folder(make_folder(tmp_path, values=values))
    assert (survey.classes, survey.reduce_zero_label) == (classes, reduce)


def test_what_does_not_fit_is_named(tmp_path, capsys):
    root = make_folder(tmp_path / "data")
    config = str(tmp_path / "mine.py")
    with pytest.raises(SystemExit):
        new([str(tmp_path / "absent"), "--out", config])
    assert "folder not found" in capsys.readouterr().err
    (root / "masks/03.png").unlink()
    with pytest.raises(SystemExit):
        new([str(root), "--out", config])
    error = capsys.readouterr().err
    assert "03.jpg has no label map" in error and len(error.strip().splitlines()) == 1
    Image.new("RGB", (96, 64)).save(root / "masks/03.png")
    with pytest.raises(SystemExit):
        new([str(root), "--out", config])
    assert "03.png is a picture" in capsys.readouterr().err
    Image.new("L", (90, 64)).save(root / "masks/03.png")
    with pytest.raises(SystemExit):
        new([str(root), "--out", config])
    assert "is (64, 90), its image (64, 96)" in capsys.readouterr().err
    assert not (tmp_path / "mine.py").exists()


def test_the_config_has_what_was_seen(tmp_path, capsys):
    root = make_folder(tmp_path / "data")
    out = tmp_path / "mine.py"
    new([str(root), "--out", str(out), "--iterations", "400", "--weights", "vit.pth"])
    said = capsys.readouterr().out
    assert "8 to train on, 2 to validate on" in said and f"snella-seg preflight {out}" in said
    assert len(out.read_text().splitlines()) <= 20
    cfg = Config.fromfile(out)
    assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 3
    assert cfg.train_cfg.max_iters == 400 and cfg.param_scheduler[-1].end == 400
    assert cfg.model.backbone.base_checkpoint == "vit.pth"
    assert cfg.model.data_preprocessor.size == (64, 96)
    assert cfg.train_dataloader.dataset.ann_file == "snella_train.txt"
    with pytest.raises(SystemExit):
        new([str(root), "--out", str(out)])
    assert "--force" in capsys.readouterr().err


def test_own_data_needs_classes():
    with pytest.raises(ValueError, match="needs classes"):
        own_data({}, data_root="", classes=(), train={}, val={})


def test_from_a_folder_to_a_score(tmp_path, shared):
    """new, train, test: as a user would."""
    root = make_folder(tmp_path / "data")
    config, work = tmp_path / "mine.py", tmp_path / "work"
    base = ("--base", "snella_upernet_camvid.py", "--batch-size", 2)
    assert run_tool("new", root, "--out", config, *base, "--iterations", 12) == 0
    assert run_tool("train", config, "--work-dir", work) == 0
    assert run_tool("test", config, work / "iter_12.pth", "--work-dir", tmp_path / "test") == 0
    assert 0 <= scores_of(tmp_path / "test")["mIoU"] <= 100
