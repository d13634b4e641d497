"""Resuming with the very bits of an unbroken run. Leans on private members of mmengine's loops."""

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from ..engine import gpu
from ..engine.self_check import native_finding
from ..inject import restore_sums, waiting_sums
from .of_runner import has_updated, plain_model
from .seeding import PositionSampler, seed_samples, seed_step

_GRADIENTS, _SUMS = "snella_gradients", "snella_gradient_sums"
_MAKER = "snella_cpu_deltas"


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Lets a run that was cut off and resumed end with the same bits as one that was not.

    Every step and every sample draws random numbers of its own (:mod:`snella_seg.hooks.seeding`),
    so that nothing of the random generators has to be saved. Gradients that wait for more
    (``accumulative_counts``) travel in the checkpoint. In several processes they do not: there
    checkpoints should fall on multiples of ``accumulative_counts``.

    :class:`snella_seg.hooks.SnellaCheckpointHook` has one of its own; as a custom hook it serves
    beside mmengine's CheckpointHook.
    """

    def __init__(self) -> None:
        self._gradients: dict = {}
        self._sums: dict = {}
        self._maker: str | None = None
        self._sampler: PositionSampler | None = None
        self._rank = 0

    def before_train(self, runner) -> None:
        self._rank = get_rank() if runner.cfg.get("randomness", {}).get("diff_rank_seed") else 0
        self._seed_samples(runner)
        self._say_who_makes_deltas(runner)
        if runner.iter > 0:
            named = dict(plain_model(runner).named_parameters())
            for name, gradient in self._gradients.items():
                named[name].grad = gradient.to(named[name].device)
            if not restore_sums(plain_model(runner), self._sums):
                runner.logger.warning(
                    "gradients of deltas that waited for more micro-batches are lost: they are "
                    "of the compiled library, which is not in use here"
                )
        self._gradients, self._sums = {}, {}

    def _say_who_makes_deltas(self, runner) -> None:
        now, before, self._maker = _maker(runner), self._maker, None
        found = native_finding()[0] if _device(runner).type == "cpu" else now
        runner.logger.info(f"Deltas of the distance kernels are made by {found}")
        if runner.iter > 0 and before not in (None, now):
            runner.logger.warning(
                f"resumed with deltas made by {now}, before by {before}: right, but not the bits "
                "of an unbroken run (on a CPU SNELLA_NATIVE=0 keeps to plain torch)"
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
            if hasattr(loader.sampler, "_indices_of_rank"):  # dropping that has closed its indices
                loader.sampler.indices = loader.sampler._indices_of_rank()
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
        seed_step(runner.seed, runner.iter, self._rank)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._gradients = checkpoint.pop(_GRADIENTS, {})
        self._sums = checkpoint.pop(_SUMS, {})
        on_cpu = _device(runner).type == "cpu"  # where older checkpoints were by plain torch
        self._maker = checkpoint.pop(_MAKER, "plain torch" if on_cpu else None)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint[_MAKER] = _maker(runner)
        if get_world_size() > 1 or has_updated(runner):
            return
        named = plain_model(runner).named_parameters()
        waiting = {name: p.grad.cpu().clone() for name, p in named if p.grad is not None}
        for key, found in ((_GRADIENTS, waiting), (_SUMS, waiting_sums(plain_model(runner)))):
            if found:
                checkpoint[key] = found


def _device(runner) -> torch.device:
    return next(plain_model(runner).parameters()).device


def _maker(runner) -> str:
    """What makes the deltas of the distance kernels here, without the reason."""
    device = _device(runner)
    if device.type == "cpu":
        return native_finding()[0].partition(" (")[0]
    if not gpu.available(device):
        return "plain torch"
    tiles = (f"{kind} {gpu.tiles_for(device, kind)}" for kind in gpu.KINDS.values())
    return f"Triton in tiles of {', '.join(tiles)}"


def _skipped_by_sampler(iterator, done: int) -> int:
    """How many indices mmengine lets the sampler leave out for ``done`` iterations.

    Newer versions skip so where they can; otherwise batches are drawn and thrown away.
    """
    if not hasattr(iterator, "_resolve_sampler") or iterator._resolve_sampler() is None:
        return 0
    return done * (iterator._resolve_batch_size() or 0)
