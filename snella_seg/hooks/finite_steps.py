"""Leaves out optimizer steps whose gradients are not finite, before they ruin the model."""

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..inject import settle_gradients
from ..layers.typed_options import typed_options
from .of_runner import has_updated, micro_batches, optim_wrappers, plain_model


class TrainingDiverged(Exception):
    """Too many steps in a row had no finite gradients."""


@HOOKS.register_module()
class FiniteStepsHook(Hook):
    """Skips a step with NaN or infinite gradients, and ends a run that has nothing else to offer.

    A skipped step changes nothing: neither weights nor the optimizer's averages nor the running
    statistics of normalisation layers, and importances do not see it. The log names the images:
    those of the batches whose loss was not finite, else all whose gradients were added up
    (``accumulative_counts``). A step is counted once, however many of its batches were bad. The
    learning rate goes on by its schedule. In several processes all skip alike, since gradients are
    reduced before, and the images of all are named.

    A loss that is not finite over gradients that are (of an auxiliary term, say) costs no step: it
    is warned of, and counted apart.

    :class:`SparsityAllocationHook` brings this hook along where a config does not name it. Under a
    GradScaler steps are left out by the scaler itself, as it looks for its scale; those count only
    when the loss was not finite.

    Args:
        patience: skipped steps in a row that end the run.

    Attributes:
        skipped: how many steps were.
        lost: how many steps were taken though a loss was not finite.

    Raises:
        ValueError: on a patience that is not a positive integer.
        TrainingDiverged: in training, when patience ends.
    """

    priority = "HIGH"  # its look at gradients comes before that of the importances

    @typed_options
    def __init__(self, patience: int = 10) -> None:
        if patience < 1:
            raise ValueError(f"patience must be a positive number of steps, got {patience!r}")
        self.patience = patience
        self.skipped = self.lost = self.in_a_row = 0
        self._statistics: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._handles: list = []
        self._model: nn.Module | None = None
        self._begin_step()

    def _begin_step(self) -> None:
        """Forget all about the last optimizer step."""
        self._taken = self._bad = False
        self._seen: list[str] = []  # images of the batches so far
        self._suspects: list[str] = []  # of those whose loss was not finite
        self._losses_lost = 0
        self._begun = False

    def before_train(self, runner) -> None:
        self._first = runner.iter
        self._statistics = [
            buffer
            for module in plain_model(runner).modules()
            if getattr(module, "running_mean", None) is not None
            for buffer in module.buffers(recurse=False)
        ]
        self._kept = [buffer.clone() for buffer in self._statistics]
        self._model = plain_model(runner) if micro_batches(runner) > 1 else None
        for wrapper in optim_wrappers(runner):
            self._handles.append(wrapper.optimizer.register_step_pre_hook(self._before_step))

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        self._images = image_names(data_batch)
        self._seen += self._images
        if not self._begun:
            self._begun = True
            _copy(self._statistics, self._kept)

    @torch.compiler.disable  # mmengine may compile a whole train step
    def _before_step(self, optimizer, args, kwargs) -> None:
        if self._model is not None:
            settle_gradients(self._model)
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is not None:  # a fused optimizer skips by itself
            self._taken = not bool(overflow)
            return
        held = [p for group in optimizer.param_groups for p in group["params"]]
        grads = [p.grad for p in held if p.grad is not None]
        if not grads or bool(torch.stack(torch._foreach_norm(grads)).isfinite().all()):
            self._taken = True
            return
        self._bad = True
        for parameter in held:
            parameter.grad = None  # optimizers pass over parameters without a gradient

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        loss = (outputs or {}).get("loss")
        if isinstance(loss, Tensor) and not bool(loss.detach().isfinite().all()):
            self._losses_lost += 1
            self._suspects += self._images
            if not all(bool(buffer.isfinite().all()) for buffer in self._statistics):
                _copy(self._kept, self._statistics)
        if has_updated(runner):
            if self._bad or not self._taken:
                self._after_skip(runner)
            else:
                self._after_step(runner)
            self._begin_step()

    def _after_step(self, runner) -> None:
        self.in_a_row = 0
        if self._losses_lost:
            self.lost += 1
            runner.logger.warning(
                f"iteration {runner.iter + 1}: the loss was not finite, but all gradients were, so "
                f"the step was taken (images: {_listed(self._suspects)})"
            )

    def _after_skip(self, runner) -> None:
        """Count a step that no process took.

        Raises:
            TrainingDiverged: when patience ends.
        """
        told = all_gather_object((self._losses_lost, self._suspects, self._seen))
        lost = sum(count for count, _, _ in told)
        if not (self._bad or lost):
            return  # the GradScaler looks for its scale
        _copy(self._kept, self._statistics)
        self.skipped += 1
        self.in_a_row += 1
        what = "the loss was not finite" if lost else "gradients were not finite"
        images = _listed([n for _, suspects, seen in told for n in (suspects if lost else seen)])
        runner.logger.warning(
            f"the step of iteration {runner.iter + 1} was skipped, {what} (images: {images})"
        )
        if self.in_a_row >= self.patience:
            raise TrainingDiverged(
                f"{self.in_a_row} steps in a row were skipped; of the last one, {what} (images: "
                f"{images}). Lower backbone_lr and head_lr of the optimizer's paramwise_cfg (or "
                "its lr), clip gradients (optim_wrapper.clip_grad), or look at these images and "
                "label maps; then go on from the last checkpoint with --resume"
            )

    def after_train(self, runner) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        iterations = runner.iter - self._first
        if self.skipped:
            runner.logger.warning(
                f"{self.skipped} optimizer steps in {iterations} iterations were skipped, since "
                "losses or gradients were not finite"
            )
        if self.lost:
            runner.logger.warning(
                f"{self.lost} optimizer steps in {iterations} iterations were taken though a loss "
                "was not finite: look at its terms in the log"
            )


def image_names(data_batch) -> list[str]:
    """Paths of the images of a batch, as far as its samples know them."""
    samples = data_batch.get("data_samples", []) if isinstance(data_batch, dict) else []
    names = (getattr(sample, "img_path", None) for sample in samples)
    return [str(name) for name in names if name is not None]


def _listed(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(names)) or "the batch holds no file names"


def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
