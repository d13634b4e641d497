"""Leaves out optimizer steps whose gradients are not finite, before they ruin the model."""

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import Tensor


class TrainingDiverged(Exception):
    """Too many steps in a row had no finite gradients."""


@HOOKS.register_module()
class FiniteStepsHook(Hook):
    """Skips a step with NaN or infinite gradients, and ends a run that has nothing else to offer.

    A skipped step changes nothing: neither weights nor the optimizer's averages nor the running
    statistics of normalisation layers, and importances do not see it. The log names the images.
    The learning rate goes on by its schedule. In several processes all skip alike, since
    gradients are reduced before.

    :class:`SparsityAllocationHook` brings this hook along where a config does not name it. Under a
    GradScaler steps are left out by the scaler itself, as it looks for its scale; those count only
    when the loss was not finite.

    Args:
        patience: skipped steps in a row that end the run.

    Raises:
        ValueError: on a patience that is not a positive integer.
        TrainingDiverged: in training, when patience ends.
    """

    priority = "HIGH"  # its look at gradients comes before that of the importances

    def __init__(self, patience: int = 10) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience must be a positive number of steps, got {patience!r}")
        self.patience = patience
        self.skipped = self.in_a_row = 0
        self._bad = False
        self._batches: list[list[str]] = []
        self._statistics: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._handles: list = []

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._statistics = [
            buffer
            for module in model.modules()
            if getattr(module, "running_mean", None) is not None
            for buffer in module.buffers(recurse=False)
        ]
        self._kept = [buffer.clone() for buffer in self._statistics]
        wrappers = getattr(runner.optim_wrapper, "optim_wrappers", {"": runner.optim_wrapper})
        for wrapper in wrappers.values():
            self._handles.append(wrapper.optimizer.register_step_pre_hook(self._before_step))

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        self._batches.append(image_names(data_batch))
        for kept, buffer in zip(self._kept, self._statistics, strict=True):
            kept.copy_(buffer)

    @torch.compiler.disable  # mmengine may compile a whole train step
    def _before_step(self, optimizer, args, kwargs) -> None:
        if getattr(optimizer, "found_inf", None) is not None:
            return  # a fused optimizer skips by itself
        held = [p for group in optimizer.param_groups for p in group["params"]]
        grads = [p.grad for p in held if p.grad is not None]
        if not grads or bool(torch.stack(torch._foreach_norm(grads)).isfinite().all()):
            return
        self._bad = True
        for parameter in held:
            parameter.grad = None  # optimizers pass over parameters without a gradient

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        loss = (outputs or {}).get("loss")
        lost = isinstance(loss, Tensor) and not bool(loss.detach().isfinite().all())
        if lost or self._bad:
            for kept, buffer in zip(self._kept, self._statistics, strict=True):
                buffer.copy_(kept)
        else:
            if runner.optim_wrapper.should_update():
                self._batches, self.in_a_row = [], 0
            return
        self.skipped += 1
        self.in_a_row += 1
        what = "the loss was not finite" if lost else "gradients were not finite"
        names = list(dict.fromkeys(name for batch in self._batches for name in batch))
        self._bad, self._batches = False, []
        said = ", ".join(names) or "the batch holds no file names"
        text = f"iteration {runner.iter + 1} was skipped, {what} (images: {said})"
        runner.logger.warning(text)
        if self.in_a_row >= self.patience:
            raise TrainingDiverged(
                f"{self.in_a_row} steps in a row were skipped; of the last one, {what} (images: "
                f"{said}). Lower backbone_lr and head_lr of the optimizer's paramwise_cfg (or its "
                "lr), clip gradients (optim_wrapper.clip_grad), or look at these images and label "
                "maps; then go on from the last checkpoint with --resume"
            )

    def after_train(self, runner) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self.skipped:
            runner.logger.warning(
                f"{self.skipped} of {runner.iter} iterations were skipped, since losses or "
                "gradients were not finite"
            )


def image_names(data_batch) -> list[str]:
    """Paths of the images of a batch, as far as its samples know them."""
    samples = data_batch.get("data_samples", []) if isinstance(data_batch, dict) else []
    names = (getattr(sample, "img_path", None) for sample in samples)
    return [str(name) for name in names if name is not None]
