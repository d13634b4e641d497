"""A config on one's own images: of any SNELLA config, and a few facts about the data."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..configs import type_name


def own_data(
    base: Mapping[str, Any],
    *,
    data_root: str,
    classes: Sequence[str],
    train: Mapping[str, str],
    val: Mapping[str, str],
    img_suffix: str = ".jpg",
    seg_map_suffix: str = ".png",
    reduce_zero_label: bool = False,
    palette: Sequence[Sequence[int]] | None = None,
    scale: tuple[int, int] = (2048, 512),
    crop: tuple[int, int] = (512, 512),
    batch_size: int = 4,
    workers: int = 2,
    iterations: int = 4000,
    weights: str | None = None,
) -> dict[str, Any]:
    """The keys of a config that put another one on one's own data.

    In a config, behind its ``_base_``::

        globals().update(__import__('snella_seg').own_data(_base_, data_root='data/mine', ...))

    Args:
        base: the config that is inherited, ``_base_`` within a config: model, optimizer, hooks.
        data_root: folder of the data.
        classes: names, in the order of the label values.
        train, val: of BaseSegDataset within ``data_root``: ``img_path``, ``seg_map_path``, and
            ``ann_file``, a list of names, where splits are no folders.
        img_suffix, seg_map_suffix: how names of images and label maps end.
        reduce_zero_label: 0 is no class; the others move down by one.
        palette: RGB of each class, for pictures.
        scale: images are resized to fit into this (long side, short side).
        crop: height and width that the model sees in training.
        batch_size, workers: of the training loader, on one device.
        iterations: length of the training; schedule and intervals are scaled to it.
        weights: file of base weights; None for those of ``base``.

    Returns:
        Key -> value, to be merged into ``base``.

    Raises:
        ValueError: when there are no classes, or as many colours as classes are not given.
    """
    if not classes or palette is not None and len(palette) != len(classes):
        raise ValueError(
            f"own_data needs classes, and as many colours where it has a palette; got "
            f"{len(classes)} classes and {len(palette or ())} colours"
        )
    resize = dict(scale=tuple(scale), keep_ratio=True)
    annotations = dict(type="LoadAnnotations", reduce_zero_label=reduce_zero_label)
    train_pipeline = [
        dict(type="LoadImageFromFile"),
        annotations,
        dict(type="RandomResize", ratio_range=(0.5, 2.0), **resize),
        dict(type="RandomCrop", crop_size=tuple(crop), cat_max_ratio=0.75),
        dict(type="RandomFlip", prob=0.5),
        dict(type="PhotoMetricDistortion"),
        dict(type="PackSegInputs"),
    ]
    test_pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="Resize", **resize),
        annotations,
        dict(type="PackSegInputs"),
    ]
    names = dict(classes=tuple(classes), palette=palette or colours(len(classes)))
    dataset = dict(
        type="BaseSegDataset",
        data_root=data_root,
        metainfo=names,
        img_suffix=img_suffix,
        seg_map_suffix=seg_map_suffix,
        reduce_zero_label=reduce_zero_label,
    )
    val_loader = dict(
        _delete_=True,
        batch_size=1,
        num_workers=workers,
        persistent_workers=workers > 0,
        sampler=dict(type="DefaultSampler", shuffle=False),
        dataset=dict(**dataset, **_split(val), pipeline=test_pipeline),
    )
    evaluator = dict(_delete_=True, type="ClassIoUMetric", iou_metrics=["mIoU"])
    return dict(
        train_dataloader=dict(
            _delete_=True,
            batch_size=batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            sampler=dict(type="InfiniteSampler", shuffle=True),
            dataset=dict(**dataset, **_split(train), pipeline=train_pipeline),
        ),
        val_dataloader=val_loader,
        test_dataloader=val_loader,
        test_pipeline=test_pipeline,
        val_evaluator=evaluator,
        test_evaluator=evaluator,
        model=_model(base["model"], len(classes), tuple(crop), weights),
        **_schedule(base, iterations),
    )


def colours(count: int) -> list[list[int]]:
    """RGB colours that differ, the same ones each time; mmseg's maps of PASCAL VOC have them."""
    palette = []
    for number in range(1, count + 1):
        bits = [[(number >> (3 * i + c)) & 1 for i in range(3)] for c in range(3)]
        palette.append([sum(bit << (7 - i) for i, bit in enumerate(channel)) for channel in bits])
    return palette


def _split(split: Mapping[str, str]) -> dict[str, Any]:
    prefix = dict(img_path=split["img_path"], seg_map_path=split["seg_map_path"])
    listed = dict(ann_file=split["ann_file"]) if split.get("ann_file") else {}
    return dict(data_prefix=prefix, **listed)


def _model(
    model: Mapping[str, Any], classes: int, crop: tuple[int, int], weights: str | None
) -> dict[str, Any]:
    """Classes of all heads, the size of the crops, and base weights."""
    changed: dict[str, Any] = dict(data_preprocessor=dict(size=crop))
    for name in ("decode_head", "auxiliary_head"):
        head = model.get(name)
        if isinstance(head, Mapping):
            changed[name] = dict(num_classes=classes)
        elif head:
            changed[name] = [{**one, "num_classes": classes} for one in head]
    backbone: dict[str, Any] = {}
    if "img_size" in model["backbone"].get("backbone", {}):
        backbone["backbone"] = dict(img_size=crop)
    if weights is not None:
        backbone["base_checkpoint"] = weights
    if backbone:
        changed["backbone"] = backbone
    test = model.get("test_cfg") or {}
    if test.get("mode") == "slide":
        stride = tuple(side * 2 // 3 for side in crop)
        changed["test_cfg"] = dict(crop_size=crop, stride=stride)
    return changed


def _schedule(base: Mapping[str, Any], iterations: int) -> dict[str, Any]:
    """The schedule of ``base``, scaled; four validations, a tenth of warm-up at the least."""
    former = base["train_cfg"]["max_iters"]
    quarter = max(iterations // 4, 1)

    def scaled(step: int) -> int:
        return round(step * iterations / former)

    schedulers = [dict(one) for one in base.get("param_scheduler") or []]
    warm = next((one for one in schedulers if type_name(one) == "LinearLR"), None)
    was = warm["end"] if warm else None
    end = max(scaled(was), iterations // 10, 1) if warm else 0
    for one in schedulers:
        for key in ("begin", "end"):
            step = one.get(key, 0 if key == "begin" else former)
            one[key] = end if step == was else scaled(step)
    return dict(
        train_cfg=dict(max_iters=iterations, val_interval=quarter),
        param_scheduler=schedulers,
        default_hooks=dict(checkpoint=dict(interval=quarter, max_keep_ckpts=2)),
    )
