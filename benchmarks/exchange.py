"""What processes exchange in a step: ``python benchmarks/exchange.py``.

Counts what trains in ViT-L/16 with UperNet (512 channels, 150 classes), untrained.
"""

import copy

from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

import snella_seg.register  # noqa: F401
from snella_seg.cli.machine import fit_to_machine
from snella_seg.configs import load_config, own
from snella_seg.inject import is_adapter_key

VIT_L = dict(embed_dims=1024, num_layers=24, num_heads=16, out_indices=(5, 11, 17, 23))


def counts(method: str) -> dict[str, int]:
    """Parameters by what they are: all, and those that train."""
    cfg = load_config(own("snella_upernet_ade20k.py")[0])
    fit_to_machine(cfg, "none")
    cfg.model.pretrained = None
    backbone = cfg.model.backbone
    backbone.backbone.update(init_cfg=None, pretrained=None, **VIT_L)
    if method != "snella":
        backbone.method, backbone.adapter = method, None
    cfg.model.neck.in_channels, cfg.model.neck.out_channels = [1024] * 4, 1024
    cfg.model.decode_head.in_channels = [1024] * 4
    cfg.model.auxiliary_head.in_channels = 1024
    init_default_scope("mmseg")
    model = MODELS.build(copy.deepcopy(cfg.model))
    named = [(n, p.numel(), p.requires_grad) for n, p in model.named_parameters()]
    trained = [(n, size) for n, size, trains in named if trains]
    return {
        "all": sum(size for _, size, _ in named),
        "trained": sum(size for _, size in trained),
        "adapters": sum(size for n, size in trained if is_adapter_key(n)),
        "backbone": sum(size for n, size in trained if n.startswith("backbone.")),
    }


def main() -> None:
    for method in ("snella", "full"):
        found = counts(method)
        heads = found["trained"] - found["backbone"]
        adapters, trained, total = (found[k] / 1e6 for k in ("adapters", "trained", "all"))
        print(f"{method}: {total:.1f} M parameters, {trained:.1f} M of them train")
        print(f"  {adapters:.1f} M in adapters, {heads / 1e6:.1f} M in neck and heads")
        for processes in (2, 8, 64, 256):
            sent = 2 * (processes - 1) / processes * 4 * found["trained"]
            print(f"  {processes} processes: {sent / 2**20:.0f} MiB a process and step")
            frozen = 4 * (found["all"] - found["trained"])
            gathered = 2 * (processes - 1) / processes * frozen
            if frozen:
                print(
                    f"    with a sharded base {(sent + gathered) / 2**20:.0f} MiB, and "
                    f"{frozen / processes / 2**20:.0f} MiB of it held"
                )


if __name__ == "__main__":
    main()
