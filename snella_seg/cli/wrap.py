"""Turn a stock config into a SNELLA config: ``wrap.py STOCK_CONFIG OUT.py``.

OUT inherits the config and holds what differs. The config is a file, or one of mmsegmentation's by
its name there, such as ``mmseg::vit/vit_deit-b16_mln_upernet_8xb2-160k_ade20k-512x512.py``.
"""

import argparse
import copy
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from ..configs import load_config, replace_type, stock
from ..inject import METHODS, list_adapters
from ..loading.files import write_text
from ..recipes import config_text, wrap_config
from .failures import plain_errors
from .reading import Overrides, need_packages, require_suffix

STOCK = "mmseg::"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help=f"a config file, or {STOCK}NAME for one of mmsegmentation's")
    parser.add_argument("out", type=Path, help="the config to write (.py)")
    parser.add_argument("--method", choices=sorted(METHODS.keys() - {"peft"}), default="snella_v2")
    parser.add_argument(
        "--adapter", nargs="+", action=Overrides, metavar="KEY=VALUE", help="such as rank=8"
    )
    parser.add_argument("--targets", nargs="+", default="auto", help="matrices to adapt (auto)")
    parser.add_argument(
        "--target-sparsity", type=float, default=0.8, help="share of weights that stay (0.8)"
    )
    parser.add_argument(
        "--lr-mult", type=float, default=10.0, help="rate of factors, times the optimizer's (10)"
    )
    parser.add_argument("--bn", action="store_true", help="BN in place of SyncBN: for one GPU")
    parser.add_argument("--force", action="store_true", help="write over a config that is there")
    return parser.parse_args(argv)


def find_base(config: str, out: Path) -> tuple[Path, str]:
    """The file of a config, and the expression by which another one in OUT's folder inherits it.

    Raises:
        FileNotFoundError: when mmsegmentation has none of that name.
    """
    if config.startswith(STOCK):
        name = config.removeprefix(STOCK)
        return Path(stock(name)[0]), f'__import__("snella_seg").stock("{name}")'
    path = Path(config)
    relative = Path(os.path.relpath(path.resolve(), out.resolve().parent)).as_posix()
    return path, f'"{relative if relative.startswith(".") else "./" + relative}"'


def counts(cfg: Config) -> str:
    """Build the model of a config, without its weights, and say what is adapted.

    Raises:
        ValueError: when it cannot be built, with the reason in one line.
    """
    model = copy.deepcopy(cfg.model)
    replace_type(model, "SyncBN", "BN")
    init_default_scope(cfg.get("default_scope", "mmseg"))
    try:
        adapters = list_adapters(MODELS.build(model)).values()
    except Exception as error:  # whatever backbones and heads may raise
        raise ValueError(f"the model cannot be built: {' '.join(str(error).split())}") from error
    if not adapters:
        return "no matrix is adapted"
    learnable = sum(p.numel() for adapter in adapters for p in adapter.parameters())
    return (
        f"{len(adapters)} matrices of {sum(a.size for a in adapters):,} weights are adapted by "
        f"{learnable:,} learnable values"
    )


@plain_errors
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    require_suffix(args.out, ".py")
    if args.out.exists() and not args.force:
        raise ValueError(f"{args.out} is there already: give another name, or --force")
    path, origin = find_base(args.config, args.out)
    need_packages(path)
    base = load_config(path)
    notes: list[str] = []
    wrapped = wrap_config(
        base,
        method=args.method,
        adapter=args.adapter,
        targets=args.targets,
        target_sparsity=args.target_sparsity,
        lr_mult=args.lr_mult,
        sync_bn=not args.bn,
        notes=notes,
    )
    notes.append(f"model: {counts(wrapped)}")
    about = f"{path.stem}, adapted: written by snella-seg wrap"
    write_text(args.out, config_text(base, wrapped, origin, about))
    print("\n".join(notes))
    print(f"{args.out}: snella-seg preflight {args.out} says what a training will do")
