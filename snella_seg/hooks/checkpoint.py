"""Checkpoints without the frozen base, written whole or not at all, that resume exactly."""

import re
from pathlib import Path

from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from ..artifacts.state import strip_frozen
from ..files import ATOMIC, atomic_write, remove_partials
from ..seeding import PositionSampler, seed_samples, seed_step

_GRADIENTS = "snella_gradients"


@HOOKS.register_module()
class SnellaCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook with slim checkpoints, atomic writing and exact resume.

    All arguments of CheckpointHook hold. Local files are replaced only by complete ones, and older
    checkpoints (``max_keep_ckpts``) are removed after the new one is there, not before.

    Args:
        slim: leave the frozen base out of checkpoints. To test them or to resume, the base comes
            from where the config says (``init_cfg``, ``base_checkpoint``) and must be the same. A
            base of no known file is kept in, with a warning.
        exact_resume: let every step and every sample draw random numbers of its own
            (:mod:`snella_seg.seeding`), so that a run that was cut off and resumed ends with the
            same bits as one that was not; gradients that wait for more
            (``accumulative_counts``) travel in the checkpoint. In several processes they do not:
            there ``interval`` should be a multiple of ``accumulative_counts``.
    """

    def __init__(self, *args, slim: bool = True, exact_resume: bool = True, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.slim, self.exact_resume = slim, exact_resume
        local = self.out_dir is None or "://" not in str(self.out_dir)
        if local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend=ATOMIC)
        self._told = False
        self._gradients: dict | None = None
        self._sampler: PositionSampler | None = None

    # Exact resume

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if is_main_process() and Path(self.out_dir).is_dir():
            remove_partials(Path(self.out_dir))
        if self.exact_resume:
            self._prepare_exact_resume(runner)
        if runner.iter > 0:
            self._finish_what_a_kill_cut_off(runner)

    def _prepare_exact_resume(self, runner) -> None:
        self._rank = get_rank() if runner.cfg.get("randomness", {}).get("diff_rank_seed") else 0
        self._seed_samples(runner)
        if self._gradients is not None and runner.iter > 0:
            named = dict(_unwrapped(runner).named_parameters())
            for name, gradient in self._gradients.items():
                named[name].grad = gradient.to(named[name].device)
        self._gradients = None
        counts = getattr(runner.optim_wrapper, "_accumulative_counts", 1)
        if get_world_size() > 1 and not self.by_epoch and self.interval % counts:
            runner.logger.warning(
                f"checkpoints every {self.interval} iterations fall between optimizer steps "
                f"(accumulative_counts={counts}): gradients that wait are lost when resuming in "
                "several processes"
            )

    def _seed_samples(self, runner) -> None:
        loop, loader = runner.train_loop, runner.train_dataloader
        self._sampler = seed_samples(loader, runner.seed, get_rank())
        if self._sampler is None:
            runner.logger.warning(
                "a resumed run will draw other augmentations: this dataloader's samples cannot be "
                "seeded one by one"
            )
        elif not isinstance(loop, EpochBasedTrainLoop):
            # Older mmengine has begun to draw, by workers that know nothing of seeds.
            stream, loader._iterator = type(loop.dataloader_iterator), None
            loop.dataloader_iterator = stream(loader)
            self._sampler.start = _skipped_by_sampler(loop.dataloader_iterator, runner.iter)

    def before_train_epoch(self, runner) -> None:
        loop = runner.train_loop
        if self._sampler is None or not isinstance(loop, EpochBasedTrainLoop):
            return
        self._sampler.start = runner.epoch * len(self._sampler)
        length = len(loop.dataloader)
        done = runner.iter - runner.epoch * length  # more than 0 when resumed within an epoch
        if 0 < done <= length and loop.dataloader.batch_size:
            self._sampler.pass_over = done * loop.dataloader.batch_size
        elif done:
            runner.logger.warning(
                f"the checkpoint was written in epochs of another length than the {length} "
                "iterations of this run: its epoch begins anew"
            )

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self.exact_resume:
            seed_step(runner.seed, runner.iter, self._rank)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._gradients = checkpoint.pop(_GRADIENTS, None)

    # Saving

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        model = _unwrapped(runner)
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
        if self.exact_resume and get_world_size() == 1:
            waiting = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            if waiting and not _has_updated(runner.optim_wrapper):
                checkpoint[_GRADIENTS] = {n: g.cpu().clone() for n, g in waiting.items()}

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        """As mmengine's, in an order in which a kill loses nothing: write, point to it, remove."""
        outdated = []
        if self.max_keep_ckpts > 0:
            kept = [s for s in self.keep_ckpt_ids if s != step] + [step]
            outdated, kept = kept[: -self.max_keep_ckpts], kept[-self.max_keep_ckpts :]
            self.keep_ckpt_ids = type(self.keep_ckpt_ids)(kept, self.max_keep_ckpts)
            runner.message_hub.update_info("keep_ckpt_ids", kept)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
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
        before = self._best_paths()
        self._set_best_paths(dict.fromkeys(before))  # nothing to remove yet
        super()._save_best_checkpoint(runner, metrics)
        after = self._best_paths()
        self._set_best_paths({key: after[key] or before[key] for key in before})
        for key, old in before.items():
            if old and after[key] and old != after[key] and is_main_process():
                self._remove(old)

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


def _skipped_by_sampler(iterator, done: int) -> int:
    """How many indices mmengine lets the sampler leave out for ``done`` iterations.

    Newer versions skip so where they can; otherwise batches are drawn and thrown away.
    """
    if not hasattr(iterator, "_resolve_sampler") or iterator._resolve_sampler() is None:
        return 0
    return done * (iterator._resolve_batch_size() or 0)


def _has_updated(optim_wrapper) -> bool:
    """Whether the last step ended with an update, so that no gradients wait for more."""
    return getattr(optim_wrapper, "should_update", lambda: True)()


def _unwrapped(runner):
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
