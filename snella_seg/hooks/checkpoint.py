"""Checkpoints without the frozen base, written whole or not at all, that resume exactly."""

import re
from pathlib import Path

from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from ..layers.typed_options import typed_options
from ..loading.files import ATOMIC, atomic_write, remove_partials
from ..models import strip_frozen, whole_state
from .exact_resume import ExactResumeHook
from .of_runner import plain_model
from .stop_signals import StopSignals


@HOOKS.register_module()
class SnellaCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook with slim checkpoints, atomic writing and exact resume.

    All arguments of CheckpointHook hold. Local files are replaced only by complete ones, and older
    checkpoints (``max_keep_ckpts``) are removed after the new one is there, not before.

    Args:
        slim: leave the frozen base out of checkpoints. To test them or to resume, the base comes
            from where the config says (``init_cfg``, ``base_checkpoint``) and must be the same. A
            base of no known file is kept in, with a warning.
        exact_resume: end a resumed run with the bits of an unbroken one
            (:class:`snella_seg.hooks.ExactResumeHook`); False leaves it all to mmengine.
    """

    @typed_options
    def __init__(self, *args, slim: bool = True, exact_resume: bool = True, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.slim, self.exact_resume = slim, exact_resume
        self.resuming = ExactResumeHook() if exact_resume else None
        local = self.out_dir is None or "://" not in str(self.out_dir)
        if local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend=ATOMIC)
        self.signals = StopSignals()
        self._told = False

    # What exact resume needs to see

    def before_train(self, runner) -> None:
        super().before_train(runner)
        self.signals.before_train(runner)
        if is_main_process() and Path(self.out_dir).is_dir():
            remove_partials(Path(self.out_dir))
        if self.resuming is not None:
            self.resuming.before_train(runner)
            self._warn_of_lost_gradients(runner)
        if runner.iter > 0:
            self._finish_what_a_kill_cut_off(runner)

    def before_train_epoch(self, runner) -> None:
        if self.resuming is not None:
            self.resuming.before_train_epoch(runner)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self.resuming is not None:
            self.resuming.before_train_iter(runner, batch_idx, data_batch)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if self.resuming is not None:
            self.resuming.after_load_checkpoint(runner, checkpoint)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self.signals.received is not None:
            self._stop(runner)

    def after_train(self, runner) -> None:
        self.signals.after_train(runner)
        super().after_train(runner)

    def _stop(self, runner) -> None:
        """Write a checkpoint of the step that was just finished, and end with the signal's status.

        Raises:
            SystemExit: 128 + the number of the signal, as shells have it.
        """
        done = runner.iter + 1
        written = not self.by_epoch
        if written and Path(self.last_ckpt or "").name != self.filename_tmpl.format(done):
            self._save_checkpoint(runner)
        runner.logger.warning(
            f"stopped after iteration {done} of {runner.max_iters}; "
            + ("--resume goes on from here" if written else "--resume goes on from the last epoch")
        )
        raise SystemExit(128 + self.signals.received)

    def _warn_of_lost_gradients(self, runner) -> None:
        counts = getattr(runner.optim_wrapper, "_accumulative_counts", 1)
        if get_world_size() > 1 and not self.by_epoch and self.interval % counts:
            runner.logger.warning(
                f"checkpoints every {self.interval} iterations fall between optimizer steps "
                f"(accumulative_counts={counts}): gradients that wait are lost when resuming in "
                "several processes"
            )

    # Saving

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        model = plain_model(runner)
        complete = True
        if self.slim:
            complete = strip_frozen(checkpoint["state_dict"], model)
            if "ema_state_dict" in checkpoint:  # of EMAHook: the same names, one level down
                strip_frozen(checkpoint["ema_state_dict"], model, "module.")
        if not complete and not self._told:
            self._told = True
            runner.logger.warning(
                "checkpoints hold the frozen base, since it came from no file that the config "
                "names (model.backbone.init_cfg or base_checkpoint)"
            )
        if self.resuming is not None:
            self.resuming.before_save_checkpoint(runner, checkpoint)

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        """As mmengine's, in an order in which a kill loses nothing: write, point to it, remove."""
        if self._refuse_to_save(runner):
            return
        outdated = []
        if self.max_keep_ckpts > 0:
            kept = [s for s in self.keep_ckpt_ids if s != step] + [step]
            outdated, kept = kept[: -self.max_keep_ckpts], kept[-self.max_keep_ckpts :]
            self.keep_ckpt_ids = type(self.keep_ckpt_ids)(kept, self.max_keep_ckpts)
            runner.message_hub.update_info("keep_ckpt_ids", kept)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        with whole_state(runner.model):
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        if not is_main_process():
            return
        with atomic_write(Path(runner.work_dir) / "last_checkpoint") as partial:
            partial.write_text(self.last_ckpt)
        for old in outdated:
            name = self.filename_tmpl.format(old)
            self._remove(self.file_backend.join_path(self.out_dir, name))

    def _save_best_checkpoint(self, runner, metrics) -> None:
        """As mmengine's, but the last best one is removed after the new one is there."""
        if self._refuse_to_save(runner):
            return
        before = self._best_paths()
        self._set_best_paths(dict.fromkeys(before))  # nothing to remove yet
        with whole_state(runner.model):
            super()._save_best_checkpoint(runner, metrics)
        after = self._best_paths()
        self._set_best_paths({key: after[key] or before[key] for key in before})
        for key, old in before.items():
            if old and after[key] and old != after[key] and is_main_process():
                self._remove(old)

    def _refuse_to_save(self, runner) -> bool:
        """Whether the model is beyond use; then older checkpoints are all that there is."""
        found = [not_finite(plain_model(runner))]
        broadcast_object_list(found)  # running statistics differ, but all have to do the same
        bad = found[0]
        if bad:
            runner.logger.error(
                f"no checkpoint is written at iteration {runner.iter + 1}, and none removed: "
                f"{bad[0]} is not finite"
                + (f", and {len(bad) - 1} other tensors" if len(bad) > 1 else "")
                + "; stop the run, and resume it from the last checkpoint with a lower rate"
            )
        return bool(bad)

    def _best_paths(self) -> dict[str, str | None]:
        """Path of the best checkpoint by each metric; an empty name where there is only one."""
        if hasattr(self, "best_ckpt_path_dict"):
            return dict(self.best_ckpt_path_dict)
        return {"": self.best_ckpt_path} if hasattr(self, "best_ckpt_path") else {}

    def _set_best_paths(self, paths: dict[str, str | None]) -> None:
        if hasattr(self, "best_ckpt_path_dict"):
            self.best_ckpt_path_dict.update(paths)
        elif paths:
            self.best_ckpt_path = paths[""]

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)

    def _finish_what_a_kill_cut_off(self, runner) -> None:
        """Validate where that was due after the checkpoint; remove files that were outdated."""
        loop = runner.train_loop
        done = runner.epoch if isinstance(loop, EpochBasedTrainLoop) else runner.iter
        last = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
        due = done >= loop.val_begin and (done % loop.val_interval == 0 or done == last)
        between = isinstance(loop, EpochBasedTrainLoop) and runner.iter % len(loop.dataloader)
        if runner.val_loop is not None and due and not between:
            runner.val_loop.run()
        if not (is_main_process() and Path(self.out_dir).is_dir()):
            return
        step = runner.epoch if self.by_epoch else runner.iter
        named = self.filename_tmpl.format("STEP")
        pattern = f"(best_.*_)?{re.escape(named).replace('STEP', '([0-9]+)')}"
        keep = {Path(path).name for path in self._best_paths().values() if path}
        if self.max_keep_ckpts > 0:
            keep |= {self.filename_tmpl.format(kept) for kept in self.keep_ckpt_ids}
        for path in Path(self.out_dir).glob(f"*{named.replace('STEP', '*')}"):
            found = re.fullmatch(pattern, path.name)
            outdated = found and path.name not in keep and int(found[2]) <= step
            if outdated and (self.save_best if found[1] else self.max_keep_ckpts > 0):
                self._remove(str(path))


def not_finite(model) -> list[str]:
    """Names of a model's tensors, frozen ones apart, that hold NaN or infinity."""
    named = [
        *model.named_buffers(),
        *((n, p) for n, p in model.named_parameters() if p.requires_grad),
    ]
    floats = [(name, tensor.detach()) for name, tensor in named if tensor.is_floating_point()]
    return [name for name, tensor in floats if not bool(tensor.isfinite().all())]
