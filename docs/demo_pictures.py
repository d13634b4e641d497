"""Draw the README's pictures from a run of the demo: ``python docs/demo_pictures.py [WORK_DIR]``.

Run the demo first, ``python tools/train.py configs/snella_upernet_demo.py``.
"""

import sys
from pathlib import Path

from mmengine.runner import Runner
from PIL import Image

import snella_seg.register  # noqa: F401
from snella_seg.configs import load_config
from snella_seg.lab.demo.demo_report import draw_overlays
from snella_seg.lab.report.collect import collect
from snella_seg.lab.report.plots import density
from snella_seg.lab.style import save_figure
from snella_seg.loading import latest_checkpoint

FOLDER = Path(__file__).parent / "images"


def draw(work_dir: Path, folder: Path = FOLDER) -> list[Path]:
    """Overlays of two validation images, and the density of every matrix in the end."""
    cfg = load_config(work_dir / "snella_upernet_demo.py")
    findings = collect(work_dir, cfg, None)
    heat_map = save_figure(density(findings), folder / "demo_density.png")
    cfg.load_from, cfg.work_dir = latest_checkpoint(work_dir), str(work_dir / "pictures")
    cfg.custom_hooks = []
    runner = Runner.from_cfg(cfg)
    runner.load_checkpoint(cfg.load_from)
    scenes = Path(runner.val_dataloader.dataset.data_root)
    overlay = folder / "demo_overlay.png"
    draw_overlays(runner, scenes.parents[1] / "frozen_predictions", 2, overlay)
    with Image.open(overlay) as picture:
        small = picture.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    small.save(overlay, optimize=True)
    return [overlay, heat_map]


if __name__ == "__main__":
    for path in draw(Path(sys.argv[1] if len(sys.argv) > 1 else "work_dirs/snella_upernet_demo")):
        print(path)
