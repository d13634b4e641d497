"""Cost against tokens, width, rank and number of layers: ``python benchmarks/scaling.py``.

Forward and backward pass of ViT blocks (and of single square matrices, up to one that older
``torch.quantile`` refuses), from ViT-T to ViT-g shapes. One thing is swept at a time, the others
stay at ViT-B's. Measured as in ``step.py``.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import options
import plots
from baselines import peft_missing
from cases import Setting, block_case, linear_case, make_blocks
from measure import Case, compare, measure
from report import Report, device_name
from variants import LINEAR, VARIANTS

#: Name -> width, heads, hidden width of the MLP.
SHAPES = {
    "ViT-T": (192, 3, 768),
    "ViT-S": (384, 6, 1536),
    "ViT-B": (768, 12, 3072),
    "ViT-L": (1024, 16, 4096),
    "ViT-H": (1280, 16, 5120),
    "ViT-g": (1408, 16, 6144),
}
TOKENS = (197, 577, 1025, 2305, 4097)  # a class token and 14, 24, 32, 48 and 64 patches squared
RANKS = (8, 16, 32, 64, 128)
LAYERS = (1, 2, 4, 8, 12)
SIDES = (512, 1024, 2048, 4000, 4480)  # of square matrices: up to 16.0 and 20.07 M elements
SMOKE = dict(TOKENS=(5, 17), RANKS=(4, 8), LAYERS=(1, 2), SIDES=(16, 32))
SWEEPS = {
    "tokens": "tokens",
    "width": "width of the block",
    "rank": "rank",
    "layers": "number of blocks",
    "matrix": "side of one square matrix",
}
BLOCK_ROWS = ("reference", "merged", "split", "lora", "full_sdpa", "frozen")
MATRIX_ROWS = ("reference", "merged", "split", "lora", "full", "frozen")
INTRO = """
Forward and backward pass of mmseg's ViT blocks without drop-path, or of one linear layer. Unless it
is swept: ViT-B's block (768, 12 heads, 3072), one block, 1025 tokens, one image, rank 32 in 2
heads, sparsity 0.9. Rows and figures are those of `step.py`. All rows of one value take turns in
one process. torch.quantile, which the reference way calls, refuses more than 16 M elements in many
versions of torch; where it does, the row says so.
"""


@dataclass(frozen=True)
class Point:
    """One value of a sweep: as a number for plots, as text for tables, and its cases."""

    number: float
    text: str
    cases: list[Case]


def parse_args():
    p = options.parser(__doc__.splitlines()[0])
    p.set_defaults(rounds=10)
    p.add_argument("--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS))
    p.add_argument("--batch", type=int, default=1)
    return options.finish(p.parse_args())


class Sweeps:
    """Yields the points of every sweep; each is built when it is asked for."""

    def __init__(self, args, without: set[str]) -> None:
        self.args, self.without = args, without
        self.base = (32, 2, 128) if args.smoke else SHAPES["ViT-B"]
        self.tokens_of_base = 17 if args.smoke else 1025

    def values(self, name: str) -> tuple[int, ...]:
        return SMOKE[name] if self.args.smoke else globals()[name]

    def setting(self, tokens: int | None = None, rank: int | None = None) -> Setting:
        return Setting(
            self.args.device,
            self.args.dtype,
            rank or self.args.rank,
            self.args.batch,
            tokens or self.tokens_of_base,
        )

    def blocks(self, setting: Setting, shape=None, layers: int = 1) -> list[Case]:
        stock = make_blocks(*(shape or self.base), layers)
        keys = options.chosen(BLOCK_ROWS, self.args, self.without)
        return [block_case(stock, VARIANTS[key], setting) for key in keys]

    def tokens(self) -> Iterator[Point]:
        for tokens in self.values("TOKENS"):
            yield Point(tokens, f"{tokens}", self.blocks(self.setting(tokens=tokens)))

    def width(self) -> Iterator[Point]:
        shapes = {"tiny": (16, 2, 64), "small": (32, 2, 128)} if self.args.smoke else SHAPES
        for name, shape in shapes.items():
            yield Point(shape[0], f"{name}, {shape[0]}", self.blocks(self.setting(), shape))

    def rank(self) -> Iterator[Point]:
        for rank in self.values("RANKS"):
            yield Point(rank, f"{rank}", self.blocks(self.setting(rank=rank)))

    def layers(self) -> Iterator[Point]:
        for layers in self.values("LAYERS"):
            yield Point(layers, f"{layers}", self.blocks(self.setting(), layers=layers))

    def matrix(self) -> Iterator[Point]:
        keys = options.chosen(MATRIX_ROWS, self.args, self.without, LINEAR)
        for side in self.values("SIDES"):
            cases = [
                linear_case("fc1", (side, side), VARIANTS[k], LINEAR[k], self.setting())
                for k in keys
            ]
            yield Point(side, f"{side}, {side * side / 1e6:.2f} M", cases)


def main() -> None:
    args = parse_args()
    missing = peft_missing()
    sweeps = Sweeps(args, {"lora"} if missing else set())
    device = device_name(args.device)
    report = Report(args.out, f"scaling_{device}", f"Scaling on {device}", INTRO, args.device)
    columns = ["value", "label", "ms", "ratio", "over_frozen", "saved", "held", "peak"]
    for sweep in args.sweeps:
        heading = SWEEPS[sweep].capitalize()
        name = f"batch {args.batch}, {args.dtype}"
        note = " ".join(filter(None, [f"{args.rounds} rounds.", missing]))
        rows = []
        for point in getattr(sweeps, sweep)():
            print(f"{SWEEPS[sweep]} {point.text}", flush=True)
            found = measure(point.cases, args.rounds, args.device)
            compare(found)
            rows += [dict(row, value=point.text, number=point.number) for row in found]
            report.add(heading, name, columns, rows, note)
            del point  # before the next one is built
        plots.curves(rows, SWEEPS[sweep], f"{heading}, {name}", report.image(heading, name))
        report.write()  # now with the plot


if __name__ == "__main__":
    main()
