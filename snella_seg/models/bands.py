"""How many bands images have, and whether what is done to them fits."""

from torch import nn


def _first_convolution(backbone: nn.Module) -> tuple[str, nn.Conv2d] | None:
    found = ((n, m) for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d))
    return next(found, None)


def input_bands(backbone: nn.Module) -> int:
    """How many bands the images of a backbone have, by its first convolution."""
    found = _first_convolution(backbone)
    return 3 if found is None else found[1].in_channels


def first_filters(backbone: nn.Module) -> list[str]:
    """Names of the weights that see the bands: the first convolution's."""
    found = _first_convolution(backbone)
    if found is None:
        return []
    name, convolution = found
    return [f"{name}.{kind}" for kind, _ in convolution.named_parameters(recurse=False)]


def band_problem(model: nn.Module) -> str | None:
    """Tell whether a segmentor's preprocessing is for as many bands as its backbone takes.

    Returns:
        None, or a sentence that says what of ``data_preprocessor`` does not fit.
    """
    model = getattr(model, "module", model)  # DDP
    if not isinstance(getattr(model, "backbone", None), nn.Module):
        return None
    preprocessor, bands = getattr(model, "data_preprocessor", None), input_bands(model.backbone)
    for name in ("mean", "std"):
        values = getattr(preprocessor, name, None)
        if values is not None and values.numel() not in (1, bands):
            return (
                f"data_preprocessor.{name} has {values.numel()} values, but the backbone takes "
                f"images of {bands} bands: give {bands} values, or 1 for all of them"
            )
    return None


def check_bands(model: nn.Module) -> None:
    """Refuse what :func:`band_problem` finds.

    Raises:
        ValueError: with its sentence.
    """
    problem = band_problem(model)
    if problem is not None:
        raise ValueError(problem)
