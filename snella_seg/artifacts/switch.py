"""Several tasks over one frozen base, in one process."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..configs import replace_type
from ..inject import attach_adapters, detach_adapters
from ..layers import Adapter
from ..loading import CheckpointError, some
from ..loading.header import compare_base
from ..models import SnellaBackbone
from .adapter_file import AdapterFile, read_adapter
from .config_trust import refuse_unknown_types


@dataclass(frozen=True)
class Task:
    """What a task adds to the base.

    Attributes:
        segmentor: its heads around the backbone that all tasks share.
        adapters: matrix name -> adapter.
        extras: what else it trained in the backbone.
    """

    segmentor: nn.Module
    adapters: dict[str, Adapter]
    extras: dict[str, Tensor]


class AdapterSwitch:
    """Loads adapter files over one base and switches between them.

    The base is in memory once, a task adds its adapters and heads. To switch moves references; the
    merged weights are made by the next forward pass and dropped at the next switch. Outputs are
    those of a model that was loaded with that task alone, bit for bit.

    Example::

        switch = AdapterSwitch(base_checkpoint="vit_base.pth")
        switch.load("night.safetensors")
        switch.load("fog.safetensors", name="fog")
        result = inference_model(switch.use_adapter("fog"), "street.png")

    Args:
        base_checkpoint: the base weights; default where the first file says that they were.
        device: where everything is kept.

    Attributes:
        backbone: the shared SnellaBackbone, None until a file is loaded.
        active: name of the task in use, or None: then the backbone is the frozen base.
    """

    def __init__(
        self, base_checkpoint: str | None = None, device: str | torch.device = "cpu"
    ) -> None:
        self.base_checkpoint, self.device = base_checkpoint, torch.device(device)
        self.backbone: SnellaBackbone | None = None
        self.active: str | None = None
        self.tasks: dict[str, Task] = {}
        self._base: dict[str, Tensor] = {}  # what extras of tasks stand in for

    def load(self, path: str | Path, name: str | None = None, force: Iterable[str] = ()) -> str:
        """Read an adapter file; the task in use stays in use.

        Args:
            path: a file with heads.
            name: of the task; default the file's, without its suffix.
            force: see :func:`snella_seg.artifacts.read_adapter`; ``'base'`` takes another base.

        Returns:
            The task's name.

        Raises:
            ValueError: when the name is taken.
            CheckpointError: when the file does not fit the base, and as ``read_adapter``.
        """
        name = name or Path(path).stem
        if name in self.tasks:
            raise ValueError(f"a task {name!r} is loaded already; give another name")
        force = set(force)
        file = read_adapter(path, force)
        if not (file.info["heads"] and file.info["model"]):
            raise CheckpointError(
                f"{path} holds no {'model config' if file.info['heads'] else 'heads'}; export it "
                "anew, with heads, by tools/export_adapter.py"
            )
        refuse_unknown_types(file.info["test_pipeline"], str(path))
        active = self.active
        backbone = self.backbone or self._build_backbone(file)
        self._detach(backbone)
        try:
            extras = file.extras()
            self._check(backbone, file, extras, "base" in force)
            task = Task(self._build_segmentor(name, file, backbone), file.adapters(), extras)
            attach_adapters(backbone.backbone, task.adapters)  # refuses what does not fit
        finally:
            self._detach(backbone)
            if active is not None:
                self.use_adapter(active)
        self._move(task)
        self.backbone = backbone
        for extra in extras:
            self._base.setdefault(extra, backbone.backbone.state_dict(keep_vars=True)[extra])
        self.tasks[name] = task
        return name

    def use_adapter(self, name: str) -> nn.Module:
        """Switch to a task.

        Returns:
            Its segmentor, in eval mode, for mmseg's ``inference_model`` and the like. It refuses to
            run while another task is in use.

        Raises:
            KeyError: when no such task is loaded.
        """
        if name not in self.tasks:
            raise KeyError(f"no task {name!r}; loaded: {', '.join(self.tasks) or 'none'}")
        task = self.tasks[name]
        self._detach(self.backbone)
        self._set(task.extras)
        attach_adapters(self.backbone.backbone, task.adapters)
        self.backbone.optimize_modules()
        self.backbone.eval()
        self.active = name
        return task.segmentor

    def disable_adapters(self) -> SnellaBackbone | None:
        """Take the task in use off; the backbone is the frozen base again, bit for bit.

        Returns:
            The backbone, None before the first file is loaded.
        """
        if self.backbone is not None:
            self._detach(self.backbone)
        return self.backbone

    def remove(self, name: str) -> None:
        """Forget a task."""
        if self.active == name:
            self.disable_adapters()
        del self.tasks[name]

    def _detach(self, backbone: SnellaBackbone) -> None:
        backbone.restore_modules()
        detach_adapters(backbone.backbone)
        self._set(self._base, backbone)
        self.active = None

    def _set(self, values: dict[str, Tensor], backbone: SnellaBackbone | None = None) -> None:
        for name, value in values.items():
            owner, _, leaf = name.rpartition(".")
            module = (backbone or self.backbone).backbone.get_submodule(owner)
            store = module._parameters if leaf in module._parameters else module._buffers
            store[leaf] = value

    def _move(self, task: Task) -> None:
        task.segmentor.to(self.device)
        for adapter in task.adapters.values():
            adapter.to(self.device)
        for name, value in task.extras.items():
            value = value.to(self.device, copy=True)  # or else the whole file would stay mapped
            floating = value.is_floating_point()
            task.extras[name] = nn.Parameter(value, requires_grad=False) if floating else value

    def _build_backbone(self, file: AdapterFile) -> SnellaBackbone:
        """The base alone, with its weights."""
        init_default_scope("mmseg")
        config = dict(file.bare_backbone(self.base_checkpoint), recompute=False)
        backbone = MODELS.build(ConfigDict(config))
        backbone.init_weights()
        backbone.trained_base = frozenset()
        return backbone.to(self.device).eval().requires_grad_(False)

    def _check(self, backbone, file: AdapterFile, extras: dict, force: bool) -> None:
        own = backbone.backbone.state_dict()
        strange = [n for n in extras if n not in own or own[n].shape != extras[n].shape]
        if strange:
            raise CheckpointError(f"{file.path} holds what the base lacks: {some(strange)}")
        problem = compare_base(backbone, file.info["header"], trained=extras)
        if problem and not force:
            raise CheckpointError(f"{file.path}: {problem}")

    def _build_segmentor(self, name: str, file: AdapterFile, backbone) -> nn.Module:
        """The file's heads around the shared backbone."""
        refuse_unknown_types(file.info["model"], str(file.path))
        config = ConfigDict(file.info["model"])
        config.pop("pretrained", None)

        def shared(**_):
            return backbone

        config.backbone = ConfigDict(type=shared)
        replace_type(config, "SyncBN", "BN")  # which needs a GPU, and several processes
        segmentor = MODELS.build(config)
        for part, module in segmentor.named_children():
            if module is not backbone:
                start = f"{part}."
                state = {k: v for k, v in file.tensors.items() if k.startswith(start)}
                module.load_state_dict({k.removeprefix(start): v for k, v in state.items()})
        pipeline = file.info["test_pipeline"]
        segmentor.cfg = Config(dict(model=dict(file.info["model"]), test_pipeline=pipeline))
        segmentor.dataset_meta = file.info["metainfo"]

        segmentor.register_forward_pre_hook(functools.partial(_refuse_idle, self, name))
        return segmentor.eval().requires_grad_(False)


def _refuse_idle(switch: AdapterSwitch, name: str, *_) -> None:
    """Refuse to run a task's segmentor while another task is in use."""
    if switch.active != name:
        raise RuntimeError(
            f"task {name!r} is not in use (in use: {switch.active}); call use_adapter({name!r}) "
            "first"
        )
