"""Looking at the data that a config names: before anything is built, and after a failure."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.registry import DATASETS

from ..lab.preflight.labels import find_bad_file
from .pipeline_checks import check_pipelines


def check_datasets(cfg: Config, *loaders: str) -> None:
    """See that the folders of the named dataloaders are there and hold images to be loaded.

    Raises:
        FileNotFoundError: naming the folder and how to set it.
        ValueError: when a folder holds no file of the dataset's suffix, a list is empty, or a
            pipeline lacks what it needs (:mod:`snella_seg.cli.pipeline_checks`).
    """
    for loader in loaders:
        check_pipelines(cfg, loader)
        for dataset in _datasets(cfg.get(loader)):
            root = Path(dataset.get("data_root") or "")
            hint = f"set {loader}.dataset.data_root (--cfg-options) or prepare the data"
            listed = dataset.get("ann_file")
            if listed and not (root / listed).is_file():
                raise FileNotFoundError(f"data not found: {root / listed} (ann_file); {hint}")
            if listed and not (root / listed).read_text().strip():
                raise ValueError(f"empty dataset: {root / listed} lists no image; {hint}")
            for key, folder in dataset["data_prefix"].items():
                if folder is None:
                    continue
                if not (root / folder).is_dir():
                    raise FileNotFoundError(f"data not found: {root / folder} ({key}); {hint}")
                files = f"*{_suffix(dataset, key)}"
                if not listed and next((root / folder).rglob(files), None) is None:
                    suffix = key.replace("_path", "_suffix")
                    raise ValueError(
                        f"empty dataset: no {files} in {root / folder}; set {loader}.dataset."
                        f"{suffix} to how the names of its files end, or {hint}"
                    )


class BadDataFile(ValueError):
    """A file of a dataset cannot be used."""


@contextmanager
def naming_bad_files(runner: Runner) -> Iterator[None]:
    """Within this context an error that a file of the data may have caused names that file.

    Readers of images and label maps raise whatever they find, without saying where.

    Raises:
        BadDataFile: naming the file and what is wrong with it, from the error itself.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("snella_seg.") or "out of memory" in str(error):
            raise
        for loop in (runner._train_loop, runner._val_loop):
            dataset = getattr(getattr(loop, "dataloader", None), "dataset", None)
            trouble = None if dataset is None else find_bad_file(dataset)
            if trouble is not None:
                raise BadDataFile(trouble) from error
        raise


def _suffix(dataset: dict, prefix: str) -> str:
    """How the names of a dataset's images or label maps end, by its config or its class."""
    option = prefix.replace("_path", "_suffix")
    if option in dataset:
        return dataset[option]
    kind = dataset["type"]
    known = DATASETS.get(kind) if isinstance(kind, str) else kind
    parameters = {} if known is None else inspect.signature(known).parameters
    return parameters[option].default if option in parameters else ""


def _datasets(node) -> Iterator[dict]:
    """All configs of image folder datasets within a dataloader's config."""
    if isinstance(node, dict):
        if isinstance(node.get("data_prefix"), dict):
            yield node
        else:
            for value in node.values():
                yield from _datasets(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _datasets(value)
