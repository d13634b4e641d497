"""Runs with accumulative_counts: what the hook tells adapters, and what comes of it."""

import pytest
import torch
from mmengine.hooks import Hook
from toy_runs import Toy
from toy_runs import train as train_toy

from snella_seg.inject import list_adapters, waiting_sums

pytestmark = pytest.mark.usefixtures("compiler")


def wide():
    """Matrices that are sparse from the start, so that their gradients wait."""
    options = dict(rank=8, sparsifier="normalised", spread=0.3, initial_sparsity=0.8)
    return Toy(widths=(40, 70, 40), **options)


class Each(Hook):
    """Tells adapters nothing, or notes after which iterations gradients wait."""

    priority = "LOW"

    def __init__(self, told=True):
        self.told, self.waiting = told, []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if not self.told:
            for adapter in list_adapters(runner.model).values():
                adapter.accumulator = None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.waiting.append(len(waiting_sums(runner.model)))


def train(work_dir, told=True, resume=False, counts=3, head=True):
    """State dict in the end, and how many matrices' gradients waited after each iteration."""
    watch, model = Each(told), wide()
    model.head.requires_grad_(head)
    runner = train_toy(
        work_dir,
        max_iters=14,
        model=model,
        optim=dict(accumulative_counts=counts),
        checkpoint="SnellaCheckpointHook",
        every=4,
        runner=dict(extra=[watch], resume=resume),
        target_sparsity=0.9,
        interval=5,
    )
    return runner.model.state_dict(), watch.waiting


def test_gradients_wait_within_a_step_and_never_over_a_reallocation(tmp_path):
    _, waiting = train(tmp_path)
    #    steps end with the third of each, and with the last; reallocations with the fifth and tenth
    assert waiting == [2, 2, 0, 2, 0, 0, 2, 2, 0, 0, 2, 0, 2, 0]


def test_one_micro_batch_a_step_keeps_nothing(tmp_path):
    _, waiting = train(tmp_path, counts=1)
    assert waiting == [0] * 14


def test_a_run_ends_where_one_ends_that_makes_all_anew(tmp_path):
    alone, nothing = train(tmp_path / "alone", told=False)
    together, _ = train(tmp_path / "together")
    assert not any(nothing)
    start = wide().state_dict()
    for name, value in together.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-4)
        if "factors" in name:
            assert (value - start[name]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("native_again", "head"), [(True, True), (True, False), (False, True)], ids=str
)
def test_resumed_within_a_step(tmp_path, native_again, head, monkeypatch):
    """The checkpoint of iteration 8 holds the sums of two micro-batches."""
    expected, _ = train(tmp_path, head=head)
    for late in tmp_path.glob("iter_1*.pth"):
        late.unlink()
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_8.pth"))
    saved = torch.load(tmp_path / "iter_8.pth", weights_only=False)
    assert len(saved["snella_gradient_sums"]) == 2 and ("snella_gradients" in saved) == head
    if not native_again:
        monkeypatch.setenv("SNELLA_NATIVE", "0")
    found, waiting = train(tmp_path, resume=True, head=head)
    assert all(torch.equal(found[n], value) for n, value in expected.items()) == native_again
    logs = "".join(path.read_text() for path in tmp_path.glob("*/*.log"))
    assert ("waited for more micro-batches are lost" in logs) != native_again
    assert any(waiting) == native_again
