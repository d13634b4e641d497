"""The hook in a real Runner on a toy model."""

import json

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from toy_runs import Toy, train

from snella_seg.budget.importances import IMPORTANCES, ImportanceTracker
from snella_seg.budget.wording import due_text
from snella_seg.functional import allocate_budget, budget_schedule
from snella_seg.inject import list_adapters


def history(work_dir):
    lines = (work_dir / "sparsity_history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("by_epoch", [False, True], ids=["iterations", "epochs"])
@pytest.mark.parametrize("importance", IMPORTANCES)
def test_budgets_follow_the_schedule_to_the_target(tmp_path, by_epoch, importance):
    runner = train(tmp_path, by_epoch=by_epoch, target_sparsity=0.75, importance=importance)
    total = 8 * 24 + 24 * 16
    lines = history(tmp_path)
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert [line["iter"] for line in lines] == [0, 3, 6, 9, 12, 15]
    for line in lines:
        expected = budget_schedule(line["epoch"], 6, total, total // 4, final=1)
        assert line["budget"] == expected == sum(line["nonzero"].values())
    assert lines[-1]["budget"] == total // 4
    for name, adapter in list_adapters(runner.model).items():
        assert adapter.num_nonzero == lines[-1]["nonzero"][name]
        assert int((adapter.delta_weight() != 0).sum()) == adapter.num_nonzero
    assert len(set(lines[-1]["sparsity"].values())) == 2  # the matrices did compete


def test_scalars_reach_the_visualizer(tmp_path):
    runner = train(tmp_path, target_sparsity=0.5)
    path = next(tmp_path.glob("*/vis_data/scalars.json"))
    written = [json.loads(line) for line in path.read_text().splitlines()]
    budgets = [line["snella/budget"] for line in written if "snella/budget" in line]
    assert budgets == [line["budget"] for line in history(tmp_path)]
    hub = runner.message_hub
    assert (
        hub.get_scalar("snella/sparsity_0").current()
        == history(tmp_path)[-1]["sparsity"]["backbone.0.0"]
    )


class Watch(Hook):
    """Which iterations take all tokens."""

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        adapters = list_adapters(runner.model).values()
        assert len({adapter.takes_all_tokens for adapter in adapters}) == 1
        self.seen += [runner.iter] * next(iter(adapters)).takes_all_tokens


@pytest.mark.parametrize(
    ("options", "counts", "expected"),
    [
        ({}, 1, [6, 7, 8, 15, 16, 17]),  # a third before each, none after the last
        ({}, 3, [6, 7, 8, 15, 16, 17]),  # one step of three iterations
        (dict(importance="per_weight"), 1, [6, 7, 8, 15, 16, 17]),
        (dict(importance="magnitude"), 1, []),
        (dict(allocation="uniform"), 1, []),
        (dict(allocation="fixed"), 1, []),
    ],
    ids=str,
)
def test_what_is_seen_before_a_reallocation_is_exact(tmp_path, options, counts, expected):
    watch, model = Watch(), Toy(token_share=0.5)
    optim = dict(accumulative_counts=counts)
    extra = dict(extra=[watch])
    train(tmp_path, 24, model=model, interval=9, optim=optim, runner=extra, **options)
    assert watch.seen == expected


def test_long_intervals_end_with_a_number_of_exact_steps(tmp_path):
    watch = Watch()
    extra = dict(extra=[watch])
    train(tmp_path, 200, model=Toy(token_share=0.5), interval=90, runner=extra)
    assert watch.seen == [*range(70, 90), *range(160, 180)]


def test_an_interval_in_iterations(tmp_path):
    train(tmp_path, max_iters=10, interval=4)
    assert [line["iter"] for line in history(tmp_path)] == [0, 4, 8]


def test_warmup_and_initial_sparsity(tmp_path):
    train(tmp_path, model=Toy(initial_sparsity=0.5), warmup_epochs=2, target_sparsity=0.75)
    budgets = [line["budget"] for line in history(tmp_path)]
    assert budgets[:3] == [288] * 3 and budgets[3] < 288 and budgets[-1] == 144


@pytest.mark.parametrize("schedule", ["late", "dense_first_half"])
def test_another_schedule(tmp_path, schedule):
    train(tmp_path, target_sparsity=0.75, schedule=schedule)
    expected = [budget_schedule(e, 6, 576, 144, 0, 1, schedule) for e in range(6)]
    assert [line["budget"] for line in history(tmp_path)] == expected
    assert expected[2] > budget_schedule(2, 6, 576, 144, 0, 1)


def test_gradient_accumulation_counts_updates(tmp_path, monkeypatch):
    updates = []

    def counted(self, *_):
        updates.append(self.factors[0].grad.clone())

    monkeypatch.setattr(ImportanceTracker, "update", counted)
    train(tmp_path, optim=dict(accumulative_counts=3))
    assert len(updates) == 6 and all(grad.abs().sum() > 0 for grad in updates)


def state_of(runner):
    hook = next(h for h in runner.hooks if type(h).__name__ == "SparsityAllocationHook")
    return runner.model.state_dict(), hook.allocator.tracker.state_dict()


WHEN_DUE = dict(reallocate="when_due", due_at=0.05)  # of five reallocations, some are due


def test_reallocations_when_due(tmp_path):
    """The budget falls on time; who has it changes only where the scores would move enough."""
    train(tmp_path / "always", target_sparsity=0.75)
    train(tmp_path / "due", target_sparsity=0.75, **WHEN_DUE)
    always, due = history(tmp_path / "always"), history(tmp_path / "due")
    assert [line["budget"] for line in due] == [line["budget"] for line in always]
    assert due[1]["moved"] is None and due[1]["due"]  # the first has nothing to be compared with
    assert {line["due"] for line in due[2:]} == {True, False}
    for before, line in zip(due[1:], due[2:], strict=False):
        assert line["due"] == (line["moved"] > 0.05)
        assert (line["score"] == before["score"]) != line["due"]
        shares = allocate_budget([*line["score"].values()], [192, 384], line["budget"], 1e-3)
        assert [*line["nonzero"].values()] == shares.tolist()
    text = next((tmp_path / "due").glob("*/vis_data/scalars.json")).read_text()
    scalars = [json.loads(row) for row in text.splitlines() if "snella/moved" in row]
    assert [row["snella/moved"] for row in scalars] == [line["moved"] for line in due[2:]]
    told = [due_text(line) for line in due]
    assert told[:2] == ["", ""] and told[2].endswith("% of it would move: competed anew")
    assert any("shared as before, no reallocation is due" in one for one in told)


@pytest.mark.parametrize(("due_at", "count"), [(0.0, 5), (1.0, 1)])
def test_the_bounds_of_when_due(tmp_path, due_at, count):
    train(tmp_path, target_sparsity=0.75, reallocate="when_due", due_at=due_at)
    lines = history(tmp_path)
    assert sum(line["due"] for line in lines[1:]) == count and lines[-1]["budget"] == 144


@pytest.mark.parametrize("options", [{}, WHEN_DUE], ids=["always", "when_due"])
def test_a_resumed_run_goes_on_as_if_never_stopped(tmp_path, options):
    options = dict(target_sparsity=0.75, **options)
    whole = train(tmp_path / "whole", **options)
    for stop in (6, 10):  # right at a reallocation, and between two (from the checkpoint before)
        folder = tmp_path / f"stop{stop}"

        class Stop(Toy):
            iterations = 0

            def forward(self, inputs, target, mode="tensor", limit=stop):
                self.iterations += 1
                if self.iterations > limit:
                    raise KeyboardInterrupt
                return super().forward(inputs, target, mode)

        with pytest.raises(KeyboardInterrupt):
            train(folder, model=Stop(), **options)
        with open(folder / "sparsity_history.jsonl", "a") as killed:
            killed.write('{"epoch": 9, "it')  # in the middle of a line
        resumed = train(folder, runner=dict(resume=True), **options)
        for a, b in zip(state_of(whole), state_of(resumed), strict=True):
            assert a.keys() == b.keys()
            for key in a:
                pair = ([v] if torch.is_tensor(v) else v for v in (a[key], b[key]))
                for x, y in zip(*pair, strict=True):
                    assert torch.equal(x, y) if torch.is_tensor(x) else x == y, key
        assert history(folder) == history(tmp_path / "whole")


def test_loading_weights_only_starts_the_schedule_anew(tmp_path):
    train(tmp_path / "first", target_sparsity=0.75)
    checkpoint = str(tmp_path / "first" / "iter_18.pth")
    train(tmp_path / "second", target_sparsity=0.9, runner=dict(load_from=checkpoint))
    lines = history(tmp_path / "second")
    # V0 is what the checkpoint's sparsities leave: 144 of 576
    assert lines[0]["budget"] == 144 and lines[-1]["budget"] == 58


def test_an_old_history_is_kept_aside(tmp_path):
    train(tmp_path, target_sparsity=0.75)
    first = history(tmp_path)
    train(tmp_path, target_sparsity=0.5)
    aside = (tmp_path / "sparsity_history.previous.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in aside] == first != history(tmp_path)


def test_a_starved_matrix_can_win_weights_back(tmp_path):
    class Silent(Toy):
        """The first layer's features are not looked at until late in the run."""

        step = 0

        def forward(self, inputs, target, mode="tensor"):
            self.step += 1
            if self.step <= 15:
                with torch.no_grad():
                    hidden = self.backbone[:2](inputs)
            else:
                hidden = self.backbone[:2](inputs) * 10
            error = self.head(self.backbone[2](hidden)) - target
            return dict(loss=error.square().mean())

    counts = {}
    for min_density in (0.0, 0.05):
        folder = tmp_path / str(min_density)
        train(
            folder, max_iters=33, model=Silent(seed=5), target_sparsity=0.8, min_density=min_density
        )
        counts[min_density] = [line["nonzero"]["backbone.0.0"] for line in history(folder)]
    assert min(counts[0.0]) == 0 and counts[0.0][-1] == 0  # published: gone for good
    assert min(counts[0.05][1:]) >= 10 and counts[0.05][-1] > 10


def test_a_run_that_would_never_reallocate_is_refused_at_its_start(tmp_path):
    with pytest.raises(ValueError, match="no reallocation would take place: the first is due af"):
        train(tmp_path, max_iters=3)
    assert not list(tmp_path.glob("*.pth"))
    train(tmp_path / "fixed", max_iters=3, allocation="fixed")
    assert [line["budget"] for line in history(tmp_path / "fixed")] == [115]


def test_a_run_that_is_stopped_early_says_what_happened(tmp_path):
    """It ends well, and its log and scalars tell that no reallocation took place."""

    class Impatient(Toy):
        def forward(self, inputs, target, mode="tensor"):
            self.runner.train_loop.stop_training = True
            return super().forward(inputs, target, mode)

    @HOOKS.register_module(force=True)
    class LendRunner(Hook):
        def before_train(self, runner):
            object.__setattr__(runner.model, "runner", runner)

    runner = train(tmp_path, model=Impatient(), runner=dict(extra=[dict(type="LendRunner")]))
    assert runner.iter < 3
    written = "".join(p.read_text() for p in tmp_path.glob("*/vis_data/scalars.json"))
    assert '"snella/reallocations": 0' in written
    log = next(tmp_path.glob("*/*.log")).read_text()
    assert (
        f"training stopped after {runner.iter} of 18 iterations: no reallocation took place" in log
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(target_sparsity=1.0), "target_sparsity must lie"),
        (dict(min_density=-0.1), "min_density must lie"),
        (dict(interval=0), "interval must be"),
        (dict(final_epochs=-1), "must not be negative"),
        (dict(reallocate="never"), "unknown reallocate 'never'; choose one of always, when_due"),
        (dict(due_at=1.5), r"due_at must lie in \[0, 1\], got 1.5"),
        (dict(schedule="quartic"), "unknown schedule 'quartic'; choose one of cubic, late, dense_"),
        (dict(importance="gradient"), "sensitivity, per_weight, magnitude, frobenius, common"),
        (dict(beta1=2.0), "beta1 must lie"),
        (dict(warmup_epochs=5), "shorter than its warm-up"),
        (dict(model=Toy(targets=())), "no SNELLA adapters"),
    ],
)
def test_bad_options_say_why(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **options)


def test_an_optimizer_without_the_factors_is_refused(tmp_path):
    model = Toy()
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match="does not hold all SNELLA factors"):
        train(tmp_path, model=model, optim=dict(optimizer=optimizer))


@pytest.mark.parametrize("allocation", ["competition", "fixed"])
def test_a_delta_larger_than_its_weight_is_told_of(tmp_path, allocation):
    model = Toy()
    with torch.no_grad():
        for module in (model.backbone[0], model.backbone[2]):
            module.weight.mul_(1e-6)
    train(
        tmp_path,
        model=model,
        allocation=allocation,
        optim=dict(optimizer=dict(type="Adam", lr=1.0)),
    )
    log = next(tmp_path.glob("*/*.log")).read_text()
    assert log.count("is larger than the frozen weight") == 1


def back_to(work_dir, iteration):
    """Let the last checkpoint of a run be an earlier one."""
    for path in work_dir.glob("iter_*.pth"):
        if int(path.stem.removeprefix("iter_")) > iteration:
            path.unlink()
    (work_dir / "last_checkpoint").write_text(str(work_dir / f"iter_{iteration}.pth"))


def newest_log(work_dir):
    return max(work_dir.glob("*/*.log"), key=lambda path: path.stat().st_mtime).read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(max_iters=30), "iterations 18 -> 30"),
        (dict(interval=1), "iterations between reallocations 3 -> 1"),
        (dict(target_sparsity=0.9), "target budget"),
        (dict(schedule="late"), "curve cubic -> late"),
    ],
)
def test_a_budget_does_not_grow_after_resuming(tmp_path, change, said):
    train(tmp_path, max_iters=18, target_sparsity=0.75)
    back_to(tmp_path, 9)
    options = dict(max_iters=18, target_sparsity=0.75) | change
    runner = train(tmp_path, runner=dict(resume=True), **options)
    budgets = [line["budget"] for line in history(tmp_path)]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[-1] == round((1 - options["target_sparsity"]) * sum((8 * 24, 24 * 16)))
    assert said in newest_log(tmp_path)
    assert runner.iter == options["max_iters"]


@pytest.mark.parametrize(
    ("interval", "batch_size", "apart", "said"),
    [
        (6, 8, 3, "reallocations are 24 images apart"),
        (3, 8, 2, "reallocations are 16 images apart, as near as whole iterations come to 12"),
        (6, 2, 12, "reallocations are 24 images apart"),
        (None, 6, 2, "reallocations are 12 images apart"),  # one pass over the training set
    ],
)
def test_other_images_an_iteration_leave_reallocations_where_they_were(
    tmp_path, interval, batch_size, apart, said
):
    """As resuming on more or fewer processes has, which takes their number times the batch."""
    options = dict(max_iters=24, target_sparsity=0.75, interval=interval)
    train(tmp_path, **options)
    back_to(tmp_path, 12)
    train(tmp_path, runner=dict(resume=True), batch_size=batch_size, **options)
    resumed = [line["iter"] for line in history(tmp_path) if line["iter"] > 12]
    assert resumed == [i for i in range(13, 24) if i % apart == 0]
    assert said in newest_log(tmp_path)


def test_images_between_reallocations_do_not_drift(tmp_path):
    """Through several resumes, until another interval is asked for."""
    options = dict(max_iters=24, target_sparsity=0.75)
    train(tmp_path, interval=3, **options)
    for step, (batch_size, interval, apart) in enumerate([(8, 3, 2), (4, 3, 3), (8, 1, 1)]):
        back_to(tmp_path, 6 + 3 * step)
        again = dict(runner=dict(resume=True), batch_size=batch_size, interval=interval)
        train(tmp_path, **again, **options)
        *_, last_but_one, last = (line["iter"] for line in history(tmp_path))
        assert last - last_but_one == apart
