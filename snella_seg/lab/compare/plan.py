"""Which runs a comparison is made of, and the config of each."""

import copy
from dataclasses import dataclass

from mmengine.config import Config
from mmseg.registry import DATASETS

from ...configs import type_name
from .variant import Variant

#: Contiguous stretches of the training images, each of which gives its end to the held-out part;
#: fewer where there are few images.
STRETCHES = 5
#: Options of schedulers that count iterations or epochs.
_COUNTS = ("begin", "end", "T_max", "total_iters", "total_steps", "step_size")


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        method: a name in :data:`snella_seg.inject.methods.METHODS`, maybe with options, see
            :class:`snella_seg.lab.compare.variant.Variant`.
        lr: learning rate of what is trained in the backbone; None for that of the config.
        head_lr: learning rate of all else; None for that of the config.
        seed: of weights, data order and augmentation.
        search: whether it serves to choose a learning rate: trained on a part of the training
            images and validated on the rest of them.
    """

    method: str
    lr: float | None = None
    head_lr: float | None = None
    seed: int = 0
    search: bool = False

    @property
    def name(self) -> str:
        """The name of its folder."""
        method = self.method.replace(":", "_").replace("=", "").replace(",", "_")
        parts = ["search" if self.search else "run", method]
        for what, value in (("lr", self.lr), ("heads", self.head_lr)):
            parts += [] if value is None else [f"{what}{value:g}"]
        return "-".join([*parts, f"seed{self.seed}"])

    def __str__(self) -> str:
        rates = [] if self.lr is None else [f"lr {self.lr:g}"]
        rates += [] if self.head_lr is None else [f"heads {self.head_lr:g}"]
        return ", ".join([self.method, *rates, f"seed {self.seed}"])


def run_config(base: Config, run: Run, holdout: float = 0.2, iters: int | None = None) -> Config:
    """The config of a run.

    Args:
        base: a config whose backbone is a SnellaBackbone; is left as it is.
        run: the run.
        holdout: share of the training images that searches are validated on, in (0, 1).
        iters: length of the run, in the units of its loop; its schedule is scaled along. None for
            that of the config.

    Raises:
        ValueError: when the config cannot be varied so; the message says why.
    """
    cfg = copy.deepcopy(base)
    if type_name(cfg.model.backbone) != "SnellaBackbone":
        raise ValueError(
            "only configs whose model.backbone is a SnellaBackbone can be compared, got "
            f"{type_name(cfg.model.backbone)}; see 'Wrap a config of your own' in the README"
        )
    Variant.parse(run.method).apply(cfg)
    set_learning_rates(cfg, run.lr, run.head_lr)
    cfg.randomness = {**cfg.get("randomness", {}), "seed": run.seed}
    if iters is not None:
        set_length(cfg, iters)
    if run.search:
        hold_out(cfg, holdout)
        cfg.train_cfg.val_interval = cfg.train_cfg.get("max_iters") or cfg.train_cfg.max_epochs
    checkpoint = cfg.get("default_hooks", {}).get("checkpoint")
    if checkpoint:
        checkpoint.update(max_keep_ckpts=1, save_best=None)
    for name in ("val_evaluator", "test_evaluator"):
        report_classes(cfg.get(name))
    cfg.val_evaluator = [*_listed(cfg.val_evaluator), dict(type="CalibrationMetric")]
    record_scalars(cfg)
    return cfg


def set_learning_rates(cfg: Config, lr: float | None, head_lr: float | None) -> None:
    """Set the learning rates of the backbone and of all else; None leaves one as it is.

    Raises:
        ValueError: when the config's optimizer is not made by our constructor, or mmengine's.
    """
    rates = dict(backbone_lr=lr, head_lr=head_lr)
    rates = {key: rate for key, rate in rates.items() if rate is not None}
    if not rates:
        return
    constructor = type_name(cfg.optim_wrapper.get("constructor", "DefaultOptimWrapperConstructor"))
    known = ("SnellaOptimWrapperConstructor", "DefaultOptimWrapperConstructor")
    if constructor not in known:
        raise ValueError(
            f"learning rates can be set where optim_wrapper.constructor is {known[0]}, got "
            f"{constructor}"
        )
    given = cfg.optim_wrapper.get("paramwise_cfg") or {}
    cfg.optim_wrapper.constructor = known[0]
    cfg.optim_wrapper.paramwise_cfg = {**given, **rates}


def set_length(cfg: Config, length: int) -> None:
    """Make a run of ``length`` iterations (epochs, in a loop of epochs), its schedule scaled along.

    Raises:
        ValueError: on a length below 1.
    """
    if length < 1:
        raise ValueError(f"a run must have at least one iteration, got {length}")
    key = "max_iters" if "max_iters" in cfg.train_cfg else "max_epochs"
    factor = length / cfg.train_cfg[key]
    schedulers = cfg.get("param_scheduler") or []
    for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
        for name in _COUNTS:
            if scheduler.get(name):
                scheduler[name] = max(1, round(scheduler[name] * factor))
        if "milestones" in scheduler:
            scheduler["milestones"] = [max(1, round(m * factor)) for m in scheduler["milestones"]]
    cfg.train_cfg[key] = length
    allocations = [h for h in cfg.get("custom_hooks") or [] if "target_sparsity" in h]
    for owner, name in (
        *((hook, "interval") for hook in allocations),
        (cfg.train_cfg, "val_begin"),
        (cfg.train_cfg, "val_interval"),
        (cfg.get("default_hooks", {}).get("checkpoint", {}), "interval"),
    ):
        if owner.get(name):
            owner[name] = max(1, round(owner[name] * factor))


def hold_out(cfg: Config, share: float) -> None:
    """Train on a part of the training images and validate on the rest of them.

    The training set is cut into five stretches, in its order, and the end of each is held out:
    neighbouring frames of a video seldom part.

    A dataset of some images only (``indices``, a list) is cut likewise.

    Raises:
        ValueError: on a share that leaves one of the two empty, or a wrapped dataset.
    """
    dataset = cfg.train_dataloader.dataset
    chosen = dataset.get("indices")
    if "data_prefix" not in dataset or not (chosen is None or isinstance(chosen, list)):
        raise ValueError(
            "learning rates are chosen on a part of the training images, which needs a plain "
            f"dataset in train_dataloader, got {type_name(dataset)}; give --lr METHOD=RATE instead"
        )
    training, held = split(count_images(dataset), share)
    if chosen is not None:
        training, held = ([chosen[i] for i in part] for part in (training, held))
    pipeline = cfg.val_dataloader.dataset.pipeline
    cfg.val_dataloader.dataset = copy.deepcopy(dataset)
    cfg.val_dataloader.dataset.pipeline = copy.deepcopy(pipeline)
    cfg.val_dataloader.dataset.indices = held
    cfg.train_dataloader.dataset.indices = training


def split(count: int, share: float) -> tuple[list[int], list[int]]:
    """Indices of ``count`` images to train on, and of those to hold out."""
    if not 0.0 < share < 1.0:
        raise ValueError(f"the share of images to hold out must lie in (0, 1), got {share}")
    stretches = max(1, min(STRETCHES, int(count * share)))
    bounds = [round(i * count / stretches) for i in range(stretches + 1)]
    held = [
        index
        for first, last in zip(bounds, bounds[1:], strict=False)
        for index in range(last - round((last - first) * share), last)
    ]
    training = sorted(set(range(count)) - set(held))
    if not held or not training:
        raise ValueError(f"{count} training images are too few to hold out {share:.0%} of them")
    return training, held


def count_images(dataset: dict) -> int:
    """Number of images of a dataset's config."""
    return len(DATASETS.build(copy.deepcopy(dataset)))


def report_classes(evaluators) -> None:
    """Let IoUMetric also report the IoU of each class."""
    for evaluator in _listed(evaluators):
        if type_name(evaluator) == "IoUMetric":
            evaluator["type"] = "ClassIoUMetric"


def _listed(evaluators) -> list:
    return list(evaluators) if isinstance(evaluators, (list, tuple)) else [evaluators]


def record_scalars(cfg: Config) -> None:
    """Let a run write its losses and scores to a file, which a comparison is read from."""
    visualizer = cfg.setdefault("visualizer", dict(type="SegLocalVisualizer", name="visualizer"))
    backends = list(visualizer.get("vis_backends") or [])
    if not any(type_name(backend) == "LocalVisBackend" for backend in backends):
        visualizer["vis_backends"] = [dict(type="LocalVisBackend"), *backends]
