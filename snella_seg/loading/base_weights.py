"""Base weights: read from a file, brought to a backbone's own names, loaded by the stock code.

The rule: every frozen base weight must come from the file (:mod:`snella_seg.loading.completeness`).
"""

from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from ..inject import adapter_keys
from .completeness import BaseFit, check_base, fit_base
from .conversion import Conversion, convert
from .errors import CheckpointError
from .weights_file import read_weights

_SCHEME = "snella-base:"


def init_base_weights(backbone: nn.Module, bands: str = "mean") -> None:
    """Run a stock backbone's ``init_weights`` so that a pretrained load is complete or an error.

    The file may hold the backbone or a larger model in any known layout
    (:data:`snella_seg.loading.formats.FORMATS`); it is brought to the backbone's own names and then
    loaded by the stock code, which resizes position embeddings and bias tables.

    Args:
        backbone: a stock mmseg backbone; ``init_cfg`` says where its weights are.
        bands: how a trained patch embedding for other bands than RGB starts
            (:func:`snella_seg.loading.resizing.fit_bands`).

    Raises:
        FileNotFoundError: when the file does not exist.
        CheckpointError: when frozen weights are missing from it or have other shapes.
    """
    init_cfg = backbone.init_cfg
    if getattr(backbone, "is_init", False):  # TIMMBackbone loads when it is built
        return
    if not (isinstance(init_cfg, dict) and "checkpoint" in init_cfg):
        print_log(
            f"The base {type(backbone).__name__} has no pretrained weights (init_cfg={init_cfg}): "
            "its frozen weights are RANDOM unless a checkpoint is loaded (load_from, resume). Set "
            "backbone.init_cfg=dict(type='Pretrained', checkpoint=...).",
            logger="current",
            level=30,
        )
        backbone.init_weights()
        return
    source = init_cfg["checkpoint"]
    found = convert(read_weights(source), backbone, source, bands)
    for line in found.lines(source):
        print_log(line, "current")

    def load_from_memory(filename, map_location):
        return dict(state_dict=found.state)

    def check(state_dict, prefix, *_):
        check_base(backbone, state_dict, prefix, source)

    ours = adapter_keys(backbone)

    def expect_no_adapters(_, incompatible):
        keys = incompatible.missing_keys
        keys[:] = [k for k in keys if k not in ours]

    CheckpointLoader.register_scheme(_SCHEME, load_from_memory, force=True)
    handles = [
        backbone._register_load_state_dict_pre_hook(check),
        backbone.register_load_state_dict_post_hook(expect_no_adapters),
    ]
    backbone.init_cfg = {**init_cfg, "checkpoint": _SCHEME + source}
    try:
        backbone.init_weights()
    except NotImplementedError:  # BEiT's tables of position biases
        raise CheckpointError(
            f"mmseg's {type(backbone).__name__} loads weights for square images only, and "
            f"img_size is {backbone.img_size}: give a square one, or use TIMMBackbone"
        ) from None
    finally:
        backbone.init_cfg = init_cfg
        for handle in handles:
            handle.remove()
        CheckpointLoader._schemes.pop(_SCHEME, None)


def fit_base_file(backbone: nn.Module, bands: str = "mean") -> tuple[BaseFit, Conversion] | None:
    """Hold the file that a stock backbone's ``init_cfg`` names against its weights.

    Weights that the stock loader resizes count as misshapen here. None where no file is named.

    Raises:
        FileNotFoundError, CheckpointError: when the file cannot be read.
    """
    source = backbone.init_cfg.get("checkpoint") if isinstance(backbone.init_cfg, dict) else None
    if source is None:
        return None
    found = convert(read_weights(source), backbone, source, bands)
    return fit_base(backbone, found.state), found
