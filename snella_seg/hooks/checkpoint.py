"""Checkpoints without the frozen base, written whole or not at all, that resume exactly."""

from pathlib import Path

from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from ..artifacts.state import strip_frozen
from ..files import ATOMIC, AtomicBackend, atomic_write, remove_partials
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
        if not self.exact_resume:
            return
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
            # Where mmengine skips by the sampler, drawing begins in the middle of the run.
            size = loader.batch_size
            if size and hasattr(stream, "skip_iter") and hasattr(loader.sampler, "skip"):
                self._sampler.start = runner.iter * size

    def before_train_epoch(self, runner) -> None:
        loop = runner.train_loop
        if self._sampler is not None and isinstance(loop, EpochBasedTrainLoop):
            self._sampler.start = runner.epoch * len(self._sampler)
            done = runner.iter - runner.epoch * len(loop.dataloader)  # resumed within an epoch
            self._sampler.skip = done * (loop.dataloader.batch_size or 0)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self.exact_resume:
            seed_step(runner.seed, runner.iter, self._rank)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._gradients = checkpoint.pop(_GRADIENTS, None)

    # Saving

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        model = _unwrapped(runner)
        if self.slim and not strip_frozen(checkpoint["state_dict"], model) and not self._told:
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
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old))
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        """As mmengine's, but the last best one is removed after the new one is there."""
        backend, before = self.file_backend, self._best_paths()
        if isinstance(backend, AtomicBackend):
            self.file_backend = _KeepingBackend()
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        if isinstance(backend, AtomicBackend) and is_main_process():
            for path in before - self._best_paths():
                Path(path).unlink(missing_ok=True)

    def _best_paths(self) -> set[str]:
        several = getattr(self, "best_ckpt_path_dict", {}).values()
        return {path for path in (getattr(self, "best_ckpt_path", None), *several) if path}


class _KeepingBackend(AtomicBackend):
    """Has nothing to remove."""

    def isfile(self, filepath) -> bool:
        return False

    def isdir(self, filepath) -> bool:
        return False


def _has_updated(optim_wrapper) -> bool:
    """Whether the last step ended with an update, so that no gradients wait for more."""
    return getattr(optim_wrapper, "should_update", lambda: True)()


def _unwrapped(runner):
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
