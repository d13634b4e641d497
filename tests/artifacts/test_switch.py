"""Several tasks over one base: each computes what it does on its own, and the base stays."""

import gc
import weakref

import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS
from tasks import SWIN, save_base, scores

from snella_seg.artifacts import AdapterSwitch, load_adapter, save_adapter
from snella_seg.inject import list_adapters
from snella_seg.layers import AdaptedModule
from snella_seg.loading import CheckpointError

TASKS = {
    "night": dict(seed=0),
    "fog": dict(seed=1, classes=9, adapter=dict(rank=8, kernel="distance")),
    "rain": dict(seed=2, targets=["fc1", "v"], trainable=["cls_token", "layers.1.ln1"]),
}


@pytest.fixture
def files(build, tmp_path) -> dict:
    """Adapter files of tasks with other ranks, kernels, targets, trained extras and classes."""
    paths = {}
    for name, options in TASKS.items():
        paths[name] = tmp_path / f"{name}.safetensors"
        save_adapter(build(**options), paths[name])
    return paths


@pytest.fixture
def switch(files) -> AdapterSwitch:
    loaded = AdapterSwitch()
    for path in files.values():
        loaded.load(path)
    return loaded


@pytest.mark.parametrize("order", [("night", "fog", "rain"), ("rain", "night", "rain", "fog")])
def test_outputs_are_those_of_separate_models(switch, build, files, image, order):
    for name in order:
        alone = build(**{**TASKS[name], "seed": 9})
        load_adapter(alone, files[name])
        assert torch.equal(scores(switch.use_adapter(name), image), scores(alone, image)), name


def test_disabled_it_is_the_frozen_base(switch, config, image):
    stock = MODELS.build(Config(config.to_dict()).model.backbone.backbone)
    stock.load_state_dict(torch.load(config.model.backbone.base_checkpoint))
    stock.eval()
    switch.use_adapter("rain")
    base = switch.disable_adapters().backbone
    assert switch.active is None
    assert not list_adapters(base)
    assert not any(isinstance(module, AdaptedModule) for module in base.modules())
    state = base.state_dict()
    assert all(torch.equal(state[k], v) for k, v in stock.state_dict().items())
    with torch.no_grad():
        outputs = zip(base(image), stock(image), strict=True)
    assert all(torch.equal(*pair) for pair in outputs)


def test_only_the_task_in_use_runs(switch, image):
    night = switch.use_adapter("night")
    switch.use_adapter("fog")
    with pytest.raises(RuntimeError, match="'night' is not in use.*fog.*use_adapter"):
        scores(night, image)
    with pytest.raises(KeyError, match="no task 'snow'; loaded: night, fog, rain"):
        switch.use_adapter("snow")
    assert scores(switch.use_adapter("night"), image).shape[1] == 4


def test_the_base_is_there_once(switch):
    def storages(module):
        return {t.untyped_storage().data_ptr() for t in module.state_dict().values()}

    base = storages(switch.disable_adapters().backbone)
    kept = [value for task in switch.tasks.values() for value in task.extras.values()]
    assert all(v.untyped_storage().nbytes() == v.nbytes for v in kept)  # no file stays mapped
    extras = {value.data_ptr() for value in kept}
    for task in switch.tasks.values():
        assert task.segmentor.backbone is switch.backbone
        held = {p.data_ptr() for a in task.adapters.values() for p in a.parameters()}
        assert not held & base
    assert len(extras) == 1 + 1 + 3 and not extras & base


def test_a_removed_task_is_gone(switch, image):
    switch.use_adapter("fog")
    held = weakref.ref(next(iter(switch.tasks["fog"].adapters.values())))
    switch.remove("fog")
    gc.collect()
    assert held() is None and switch.active is None and set(switch.tasks) == {"night", "rain"}
    scores(switch.use_adapter("night"), image)


def test_loading_leaves_the_task_in_use(files, image):
    switch = AdapterSwitch()
    night = (switch.load(files["night"]), switch.use_adapter("night"))[1]
    before = scores(night, image)
    assert switch.load(files["fog"], name="mist") == "mist"
    assert switch.active == "night" and torch.equal(scores(night, image), before)


def test_what_does_not_fit_is_refused_and_nothing_changes(
    switch, files, build, config, image, tmp_path
):
    night = switch.use_adapter("night")
    before = scores(night, image)
    other = str(save_base(config, tmp_path / "other.pth", seed=2))
    save_adapter(build(3, base_checkpoint=other), tmp_path / "foreign.safetensors")
    save_adapter(build(3), tmp_path / "bare.safetensors", heads=False)
    for path, words in (("foreign", "trained on another base"), ("bare", "holds no heads")):
        with pytest.raises(CheckpointError, match=words):
            switch.load(tmp_path / f"{path}.safetensors")
    with pytest.raises(ValueError, match="loaded already"):
        switch.load(files["fog"])
    assert set(switch.tasks) == set(TASKS) and switch.active == "night"
    assert torch.equal(scores(night, image), before)
    switch.load(tmp_path / "foreign.safetensors", force=["base"])


def test_swin_whose_base_lacks_output_norms(build, config, tmp_path, image):
    """The output norms of mmseg's Swin are in no ImageNet file: they belong to the task."""
    config.model.neck.update(in_channels=[16, 32])
    stock = MODELS.build(Config(dict(model=SWIN)).model)
    state = {k: v for k, v in stock.state_dict().items() if not k.startswith("norm")}
    torch.save(state, tmp_path / "swin.pth")
    options = dict(backbone=SWIN, trainable="auto", base_checkpoint=str(tmp_path / "swin.pth"))
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(2)]
    for seed, path in enumerate(paths):
        save_adapter(build(seed, **options), path)
    switch = AdapterSwitch()
    names = [switch.load(path) for path in paths]
    for seed in (1, 0):
        output = scores(switch.use_adapter(names[seed]), image)
        assert torch.equal(output, scores(build(seed, **options), image))
    assert torch.equal(switch.disable_adapters().backbone.norm0.weight, torch.ones(16))


def test_base_weights_may_lie_elsewhere(build, config, files, tmp_path, image):
    moved = tmp_path / "moved.pth"
    (tmp_path / "base.pth").rename(moved)
    with pytest.raises(FileNotFoundError, match="base weights not found"):
        AdapterSwitch().load(files["night"])
    switch = AdapterSwitch(base_checkpoint=str(moved))
    switch.load(files["night"])
    alone = build(0, base_checkpoint=str(moved))
    assert torch.equal(scores(switch.use_adapter("night"), image), scores(alone, image))


def test_the_tool_paints_every_task(tool, files, tiny_dataset, tmp_path):
    picture = tiny_dataset / "images" / "validation" / "0.jpg"
    done = tool("segment", picture, *files.values(), "--out", tmp_path / "out", "--device", "cpu")
    assert done.code == 0, done.err
    assert all(f"{name}: 1 images segmented in" in done.out for name in TASKS)
    written = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.png")]
    kinds = ("labels/0.png", "overlays/0.png", "legend.png")
    expected = {f"{name}/{kind}" for name in TASKS for kind in kinds} | {"side_by_side/0.png"}
    assert {path.as_posix() for path in written} == expected
    refused = tool("segment", tmp_path / "none.png", files["night"])
    assert refused.code == 1 and "image not found" in refused.err
