"""Cost of a training step: ``python benchmarks/step.py``.

One layer, one ViT-B block and whole UperNet models, tuned by SNELLA as its reference computes it,
by this package, by LoRA (peft), fully, or not at all; and what the competition between weights and
between matrices adds. All rows of a table are built in one process and their timed steps are
interleaved; times are medians. Tables go to ``docs/benchmarks``, after each of them; the raw
figures beside them are not versioned: without them a page begins anew.
"""

import copy
import functools
import os

import options
import torch
from baselines import peft_missing
from cases import Setting, block_case, linear_case, make_blocks
from measure import RELATIONS, Case, compare, measure, time_call
from report import Report, device_name, slug
from upernet import CONFIGS, UperNet
from variants import BLOCK, LINEAR, LINEAR_ROWS, MODEL, VARIANTS

from snella_seg.budget.importances import ImportanceTracker
from snella_seg.engine.threshold_search import ThresholdSearch
from snella_seg.functional import KERNELS, allocate_budget, quantile_threshold

SECTIONS = {
    "linear": "One layer",
    "block": "One ViT block",
    "model": "Whole UperNet",
    "overhead": "Competition",
}
BATCHES = {"linear": [1, 4], "block": [1, 2, 4], "model": [1, 2], "overhead": [2]}
COLUMNS = ["label", "ms", *RELATIONS, "over_frozen", "saved", "held", "peak"]
EPOCH = 1000  # steps over which a reallocation is amortised
INTRO = """
A step is forward and backward pass; for whole models also the loss and AdamW. Rank 32 and
sparsity 0.9 (unless the command says otherwise), 2 heads; SNELLA is the published form, kernel
'mixed', sparsifier 'weighted', but where v2 is said; data and weights are random. Steps of all
rows of a table take turns in one process; times are medians with quartiles, ratios are medians of
the ratios within a round.

- *reference way*: frozen layer and a delta branch beside it, two products, delta recomputed by
  activation checkpointing, torch.quantile of all |K| each time; q, k, v a layer each. Reentrant
  checkpointing, the older kind, also repeats the branch's product; other rows use the newer kind.
- *merged*: one product with W0 + delta; *split*: one product each, as dropout 0.1 and drop-path 0.1
  of the branch (and half precision) need it; *recompute*: outputs of GELU and LayerNorm are made
  again in backward, as configs have it.
- *stock attention*: mmcv's call of nn.MultiheadAttention, which builds the attention matrix, or
  Swin's WindowMSA; *SDPA*: scaled_dot_product_attention, which ours uses.
- *LoRA (peft)* and *LoRA, ours*: rank 32 at the same sites, B filled with small random values, and
  the same attention.
- On AMD processors from Zen 5 on products of adapted layers, of *LoRA, ours*, too, run in oneDNN;
  all other rows multiply as torch does, by MKL. ``SNELLA_ONEDNN=0`` measures all by MKL.
- *frozen*: in a layer or block gradients pass through to the input; in a whole model only the heads
  train, so no gradient enters the backbone.

Saved for backward: storages that autograd saves (saved_tensors_hooks), each once, without
parameters, buffers and inputs. Held after forward also counts the output and what custom functions
keep by other means. Peak is over what was allocated before the step; gradients are in it, weights
and optimizer state are not.
"""


def parse_args():
    p = options.parser(__doc__.splitlines()[0])
    p.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    p.add_argument("--batch", type=int, nargs="+", help="other batch sizes than by default")
    p.add_argument("--models", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    p.add_argument(
        "--model-rounds",
        type=int,
        help="timed steps of whole models (default 3 on a CPU, else 20)",
    )
    p.add_argument(
        "--head-channels",
        type=int,
        default=512,
        help="width of the UperNet head; 64 makes the backbone's share visible",
    )
    p.add_argument("--page", help="name of the machine, for a page of its own")
    p.add_argument("--sparsity", type=float, default=0.9, help="of the deltas")
    p.add_argument("--width", type=int, default=768, help="of a layer or block")
    p.add_argument("--tokens", type=int, default=1025, help="of an image, for a layer or block")
    p.add_argument(
        "--micro-batches",
        type=int,
        default=1,
        help="how many a step of a layer or block adds up (gradient accumulation)",
    )
    args = options.finish(p.parse_args())
    if args.smoke:
        args.model_rounds, args.head_channels, args.batch = 1, 8, args.batch or [1]
        args.width, args.tokens = 32, 17
    if args.model_rounds is None:
        args.model_rounds = 3 if args.device.type == "cpu" else 20
    return args


class Bench:
    """One run: the options, the report, and one method per section."""

    def __init__(self, args) -> None:
        self.args = args
        self.missing = peft_missing()
        self.without = {"lora", "lora_stock"} if self.missing else set()
        machine = args.page or device_name(args.device)
        stem, title = f"step_{slug(machine)}", f"Cost of a training step on {machine}"
        self.report = Report(args.out, stem, title, INTRO, args.device)

    def run(self) -> None:
        for section in self.args.sections:
            getattr(self, section)()

    def table(self, section: str, name: str, cases: list[Case], **more) -> None:
        """Measure the cases and add the table."""
        whole = section == "model"
        rounds = self.args.model_rounds if whole else self.args.rounds
        # A whole model's first step on a CPU is the recorded one; AdamW's state is there already.
        warmup = 0 if whole and self.args.device.type == "cpu" else 3
        rows = measure(cases, rounds, self.args.device, warmup)
        compare(rows)
        heading = SECTIONS[section]
        note = " ".join(filter(None, [f"{rounds} rounds.", more.get("note"), self.missing]))
        self.report.add(heading, name, [*COLUMNS, *more.get("columns", [])], rows, note)

    def settings(self, section: str):
        for batch in self.args.batch or BATCHES[section]:
            yield Setting(
                self.args.device,
                dtype=self.args.dtype,
                rank=self.args.rank,
                batch=batch,
                tokens=self.args.tokens,
                micro_batches=self.args.micro_batches,
                sparsity=self.args.sparsity,
            )

    def linear(self) -> None:
        width = self.args.width
        shapes = {
            "proj": (width, width),
            "qkv": (3 * width, width),
            "fc1": (4 * width, width),
            "fc2": (width, 4 * width),
        }
        for kind, shape in shapes.items():
            for setting in self.settings("linear"):
                name = f"{kind} {shape[1]} to {shape[0]}, {self.describe(setting)}"
                self.announce(name)
                keys = options.chosen(LINEAR_ROWS, self.args, self.without, LINEAR)
                cases = [linear_case(kind, shape, VARIANTS[k], LINEAR[k], setting) for k in keys]
                self.table("linear", name, cases)

    def block(self) -> None:
        width = self.args.width
        stock = make_blocks(width, 2 if width % 64 else width // 64, 4 * width)
        for setting in self.settings("block"):
            name = f"width {width}, {self.describe(setting)}"
            self.announce(name)
            keys = options.chosen(BLOCK, self.args, self.without)
            self.table("block", name, [block_case(stock, VARIANTS[k], setting) for k in keys])

    def model(self) -> None:
        for model in self.args.models:
            for setting in self.settings("model"):
                name = f"{model}, {self.describe(setting, model=True)}"
                self.announce(name)
                net = self.upernet(model, setting)
                keys = options.chosen(MODEL, self.args, self.without)
                cases = [net.case(VARIANTS[k]) for k in keys]
                note = "BatchNorms of the heads in eval mode." if setting.batch == 1 else ""
                self.table("model", name, cases, note=note, columns=["resident", "trained"])
                del net, cases  # before the next ones are built

    def overhead(self) -> None:
        """What thresholds, collection and allocation cost, as shares of a merged model's step."""
        for model in self.args.models:
            for setting in self.settings("overhead"):
                name = f"{model}, {self.describe(setting, model=True)}"
                self.announce(name)
                net = self.upernet(model, setting)
                case = net.case(VARIANTS["merged"])
                step = measure([case], self.args.model_rounds, self.args.device, 1)[0]
                rows = [
                    dict(key="step", label="step (merged)", per_step=step.get("ms"), share=100.0)
                ]
                case.backward(case.forward())  # leaves the gradients in place
                rows += self.parts(net.segmentor.backbone, setting)
                case.finish()
                for row in rows:
                    row["share"] = 100 * row["per_step"] / step["ms"]
                note = (
                    f"Median of {self.args.rounds} calls. Reallocation is spread over an epoch of "
                    f"{EPOCH} steps. The search is part of the step; here it is timed on its own, "
                    "for every K: near the last step's threshold, as in training, and from scratch."
                )
                self.report.add(
                    SECTIONS["overhead"], name, ["label", "per_step", "share"], rows, note
                )
                del net, case  # before the next ones are built

    def parts(self, backbone, setting: Setting) -> list[dict]:
        """Milliseconds per step of each part of the competition, for a model with gradients."""
        tracker = ImportanceTracker(backbone)
        adapters = list(tracker.adapters.values())
        sizes = [adapter.size for adapter in adapters]
        budget = sum(adapter.num_nonzero for adapter in adapters)

        def reallocate():
            shares = allocate_budget(tracker.scores(), sizes, budget, min_density=1e-3)
            for adapter, share in zip(adapters, shares.tolist(), strict=True):
                adapter.set_num_nonzero(share)

        clock = functools.partial(time_call, rounds=self.args.rounds, device=setting.device)
        collection = clock(tracker.update)
        search = sum(clock(_search(adapter)) for adapter in adapters)
        from_scratch = sum(clock(_search_from_scratch(adapter)) for adapter in adapters)
        allocation = clock(reallocate) / EPOCH
        parts = {
            "threshold search": search,
            "collection of importances": collection,
            "scores and allocation": allocation,
            "these three": search + collection + allocation,
            "threshold search from scratch": from_scratch,
        }
        return [dict(key=slug(label), label=label, per_step=ms) for label, ms in parts.items()]

    def upernet(self, model: str, setting: Setting) -> UperNet:
        return UperNet(model, self.args.head_channels, setting, self.args.smoke)

    def describe(self, setting: Setting, model: bool = False) -> str:
        what = f"{self.args.head_channels}-channel head" if model else f"{setting.tokens} tokens"
        several = setting.micro_batches > 1 and not model
        times = f" x {setting.micro_batches} micro-batches" if several else ""
        sparsity = "" if setting.sparsity == 0.9 else f", sparsity {setting.sparsity:g}"
        library = ", all by MKL" if os.environ.get("SNELLA_ONEDNN") == "0" else ""
        count = torch.get_num_threads() if setting.device.type == "cpu" else 1
        threads = f", {count} threads" if count > 1 else ""
        return f"{what}, batch {setting.batch}{times}, {setting.dtype}{sparsity}{library}{threads}"

    def announce(self, name: str) -> None:
        print(f"{name}: building, warming up, measuring memory", flush=True)


@torch.no_grad()
def _dense(adapter) -> torch.Tensor:
    """K of an adapter."""
    kernel = KERNELS[adapter.rule.kernel][0]
    return kernel(*adapter.params, scale=adapter.rule.scale)


def _search(adapter):
    """A call that looks for an adapter's threshold as a step does, near the last one."""
    dense, sparsity = _dense(adapter), adapter.current_sparsity()

    def call():
        search = ThresholdSearch(dense.numel(), sparsity, copy.copy(adapter.bracket))
        search.add(dense)
        return search.finish(dense)

    return call


def _search_from_scratch(adapter):
    """A call that looks for an adapter's threshold without knowing anything."""
    dense, sparsity = _dense(adapter), adapter.current_sparsity()
    return lambda: quantile_threshold(dense, sparsity)


def main() -> None:
    Bench(parse_args()).run()


if __name__ == "__main__":
    main()
