"""What the demo shows: a table and pictures, frozen against adapted."""

from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.dataset import pseudo_collate
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...inject import adapter_keys, list_adapters
from .prepare import results_of


@HOOKS.register_module()
class DemoReportHook(Hook):
    """Prints a table at the end of the demo and writes it, with overlays, into the work dir.

    ``demo_report.md``: the source model as it is, a head on its frozen backbone, and SNELLA, with
    the mIoU of each by night. ``overlays.png``: validation images with labels and predictions.

    Args:
        images: how many validation images to show.
    """

    priority = "LOW"

    def __init__(self, images: int = 5) -> None:
        self.images = images

    def after_train(self, runner) -> None:
        if not is_main_process():
            return
        root = Path(runner.val_dataloader.dataset.data_root).parents[1]
        text = demo_table(runner, results_of(root))
        work_dir = Path(runner.work_dir)
        (work_dir / "demo_report.md").write_text(text)
        draw_overlays(runner, root / "frozen_predictions", self.images, work_dir / "overlays.png")
        runner.logger.info(f"demo\n{text}\nPictures: {work_dir / 'overlays.png'}")


def demo_table(runner, results: dict) -> str:
    """The comparison as Markdown."""
    model = runner.model
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    heads = sum(n for name, n in trained.items() if not name.startswith("backbone."))
    backbone = sum(trained.values()) - heads
    ours = adapter_keys(model)
    token = sum(n for k, n in trained.items() if k.startswith("backbone.") and k not in ours)
    adapters = list_adapters(model).values()
    nonzero, size = sum(a.num_nonzero for a in adapters), sum(a.size for a in adapters)
    miou = float(runner.message_hub.get_scalar("val/mIoU").current())
    rows = [
        ("source model as it is", results["source_by_night"], "0", "0", "0"),
        ("frozen backbone, new head", results["frozen"], f"{token:,}", f"{heads:,}", "0"),
        (
            "SNELLA, new head",
            miou,
            f"{backbone:,}",
            f"{heads:,}",
            f"{nonzero:,} of {size:,} ({nonzero / size:.0%})",
        ),
    ]
    lines = [
        "| night scenes | mIoU | trained, backbone | trained, head | non-zero delta weights |",
        "|---|---|---|---|---|",
        *(f"| {name} | {value:.2f} | {' | '.join(rest)} |" for name, value, *rest in rows),
        "",
        f"A ViT trained on day scenes (mIoU {results['source_by_day']:.2f} there) meets the night. "
        "Both heads start from scratch and have the same schedule, seed and learning rate.",
        "",
    ]
    return "\n".join(lines)


@torch.no_grad()
def predict(model, dataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true classes of one image, (H, W) each; 255 is no class."""
    item = dataset[index]
    sample = model.test_step(pseudo_collate([item]))[0]
    predicted = sample.pred_sem_seg.data[0].cpu().numpy()
    return predicted, item["data_samples"].gt_sem_seg.data[0].cpu().numpy()


def draw_overlays(runner, frozen_folder: Path, count: int, path: Path) -> None:
    """Write a picture: rows are images; columns image, labels, frozen and adapted prediction."""
    dataset, model = runner.val_dataloader.dataset, runner.model
    training = model.training
    model.eval()
    palette = np.array([*dataset.metainfo["palette"], [0, 0, 0]], np.uint8)
    step = max(1, len(dataset) // count)
    rows = []
    for index in range(0, min(step * count, len(dataset)), step):
        image_path = Path(dataset.get_data_info(index)["img_path"])
        image = cv2.imread(str(image_path))[..., ::-1]
        adapted, labels = predict(model, dataset, index)
        frozen = cv2.imread(str(frozen_folder / f"{image_path.stem}.png"), cv2.IMREAD_GRAYSCALE)
        frozen = frozen - 1  # written with the labels of the files, where 0 is 'other'
        masks = [palette[np.minimum(m, len(palette) - 1)] for m in (labels, frozen, adapted)]
        rows.append([image, *masks])
    model.train(training)
    titles = ("image", "labels", "frozen backbone, new head", "SNELLA, new head")
    figure = Figure(figsize=(9.2, 2.2 * len(rows) + 0.7), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, pictures in zip(axes, rows, strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    classes = [*dataset.metainfo["classes"], "other"]
    legend = [Patch(color=c / 255, label=n) for n, c in zip(classes, palette, strict=True)]
    figure.legend(handles=legend, loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    FigureCanvasAgg(figure).print_png(str(path))
