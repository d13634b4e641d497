"""The documentation: links, pictures, and the first hour, whose commands are run."""

import contextlib
import importlib
import io
import re
import runpy
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import COLOURS, ROOT, run_tool

DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.M | re.S)
#: Beginnings of commands of the first hour that are not run here, and why.
ELSEWHERE = {
    "python3 -m venv": "installation and demo, run by CI on a clean machine",
    "mkdir -p pretrain": "a download; the weights are made by a fixture",
}
#: A reader's very small ViT with a small head, in the place of the base of my_config.py.
BASE = """
_base_ = __import__("snella_seg").own("snella_upernet_ade20k.py")

width = [32] * 4
model = dict(
    backbone=dict(
        backbone=dict(embed_dims=32, num_layers=4, num_heads=2, out_indices=[0, 1, 2, 3])
    ),
    neck=dict(in_channels=width, out_channels=32),
    decode_head=dict(in_channels=width, channels=16),
    auxiliary_head=dict(in_channels=32),
)
"""
#: What that reader changes in my_config.py, which is made for images of usual size.
SMALL = {
    'own("snella_upernet_ade20k.py")': 'own("snella_upernet_ade20k.py") and ["./small.py"]',
    "batch_size=4,": "batch_size=2, workers=0,",
    "iterations=4000,": "iterations=16,",
}
#: What makes the commands fit to that, and short.
SHORTER = {
    "iter_4000.pth": "iter_16.pth",
    "preflight.py my_config.py": "preflight.py my_config.py --iters 1",
    "--methods frozen lora snella": "--methods frozen snella",
    "--seeds 3": "--seeds 1",
    "--lrs 1e-3 3e-3 1e-2": "--iters 4 --cost-rounds 0",
}
#: What the page says that its commands leave.
PROMISED = (
    "work_dirs/my_config/report/index.html",
    "work_dirs/my_config/report/report.md",
    "work_dirs/compare_my_config/report.html",
    "work_dirs/compare_my_config/report.md",
    "mine.safetensors",
    "segmented/overlays/0001.png",
    "segmented/labels/0001.png",
    "segmented/legend.png",
    "painted",
    "merged/merged.pth",
    "merged/merged.py",
)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return [text for found, text in FENCE.findall(page.read_text()) if found == language]


def commands(page: Path) -> list[str]:
    """The commands of a page's bash blocks, those over several lines as one."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    return [line for line in (" ".join(x.split()) for x in text.splitlines()) if line]


def tool_of(command: str) -> Path | None:
    """The script that a command calls, ``python tools/X.py ...``."""
    found = re.match(r"python (tools/\w+\.py)", command)
    return ROOT / found[1] if found else None


def arguments(command: str) -> list[str]:
    return shlex.split(command, comments=True)[2:]


FIRST_HOUR = DOCS / "first_hour.md"
COMMANDS = [c for c in commands(FIRST_HOUR) if tool_of(c)]


# Links and pictures


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = page.parent / path if path else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", found.read_text()), re.M)
            assert anchor in map(slug, headings), f"{page.name} links to {target}"


def test_pictures_are_drawn_and_all_are_shown(tmp_path):
    drawn = runpy.run_path(str(DOCS / "figures.py"))["draw"](tmp_path)
    shown = re.findall(r"\]\(images/(\w+\.png)\)", (DOCS / "how_it_works.md").read_text())
    assert sorted(shown) == sorted(path.name for path in drawn)
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 120_000


# The first hour


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_tools_take_the_arguments_of_the_pages(page):
    for command in commands(page):
        tool = tool_of(command)
        if tool is not None:
            module = importlib.import_module(f"snella_seg.cli.{tool.stem}")
            try:
                module.parse_args(arguments(command))
            except SystemExit:
                pytest.fail(f"{page.name}: {command}")


def write_images(root: Path) -> None:
    """Five images to train on and two to validate on; the colour tells the class."""
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for number in range(1, count + 1):
            labels = np.zeros((64, 64), np.uint8)
            for label in range(1, len(COLOURS)):
                top, left = rng.integers(0, 40, 2)
                labels[top : top + 24, left : left + 24] = label
            image = (COLOURS[labels] + rng.normal(0, 10, (64, 64, 3))).clip(0, 255)
            labels[:2] = 255
            cv2.imwrite(str(root / f"images/{split}/{number:04d}.jpg"), image.astype(np.uint8))
            cv2.imwrite(str(root / f"labels/{split}/{number:04d}.png"), labels)


def write_weights(path: Path) -> None:
    """A file of base weights under timm's names, as the page has it, of the ViT of BASE."""
    vit = pytest.importorskip("timm.models.vision_transformer").VisionTransformer
    torch.manual_seed(0)
    shape = dict(embed_dim=32, depth=4, num_heads=2)
    path.parent.mkdir()
    torch.save(vit(img_size=96, patch_size=16, num_classes=10, **shape).state_dict(), path)


def configs() -> dict[str, str]:
    """The configs of the page, by the name in the first line of each."""
    found = {}
    for text in blocks(FIRST_HOUR, "python"):
        name = re.match(r"# (\w+\.py)\n", text)
        assert name, f"a block without the name of a file: {text[:60]}"
        found[name[1]] = text
    return found


def shrink(path: Path) -> None:
    """Make the reader's config one of a small model, and its training short."""
    text = path.read_text()
    for said, small in SMALL.items():
        assert text.count(said) == 1, said
        text = text.replace(said, small)
    path.write_text(text)
    (path.parent / "small.py").write_text(BASE)


class Step(NamedTuple):
    """How a command ended."""

    code: int
    out: str


def run(command: str) -> Step:
    """Run a command of the page within this process."""
    for said, shorter in SHORTER.items():
        command = command.replace(said, shorter)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = run_tool(tool_of(command).stem, *arguments(command))
    return Step(code, out.getvalue())


@pytest.fixture(scope="module")
def hour(tmp_path_factory):
    """The folder of a reader who has gone through the page, and how each command ended."""
    folder = tmp_path_factory.mktemp("hour")
    write_images(folder / "data/mine")
    write_weights(folder / "pretrain/my_vit.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OMP_NUM_THREADS", "1")  # of the trainings that compare starts
        steps = {}
        for command in (c for c in COMMANDS if tool_of(c).is_file()):
            steps[command] = run(command)
            if tool_of(command).stem == "new" and steps[command].code == 0:
                shrink(folder / "my_config.py")
        return folder, steps


def test_all_other_commands_of_the_page_are_known():
    told = "\n".join(blocks(FIRST_HOUR, "bash"))
    for beginning in ELSEWHERE:
        assert told.count(beginning) == 1
    others = [b for b in blocks(FIRST_HOUR, "bash") if not b.startswith("python tools/")]
    assert [next((e for e in ELSEWHERE if b.startswith(e)), b) for b in others] == [*ELSEWHERE]


def test_the_configs_of_the_page_can_be_read(tmp_path):
    from snella_seg.configs import load_config

    for name, text in configs().items():
        (tmp_path / name).write_text(text)
        assert load_config(str(tmp_path / name)).model.backbone.type == "SnellaBackbone"


def test_the_page_shows_what_its_command_writes(tmp_path, monkeypatch):
    write_images(tmp_path / "data/mine")
    monkeypatch.chdir(tmp_path)
    command = next(c for c in COMMANDS if tool_of(c).stem == "new")
    assert run(command).code == 0
    shown, written = configs()["my_config.py"], (tmp_path / "my_config.py").read_text()
    # Names of classes, the place of the folder and the size of images are the reader's own.
    own = r"(data_root|classes|scale|crop)=.*"
    assert re.sub(own, r"\1", shown).splitlines()[1:] == re.sub(own, r"\1", written).splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_works(command, hour):
    if not tool_of(command).is_file():
        pytest.skip(f"there is no {tool_of(command).name} yet")
    step = hour[1][command]
    assert step.code == 0, step.out


@pytest.mark.parametrize("path", PROMISED)
def test_what_the_page_promises_is_there(path, hour):
    folder, steps = hour
    missing = {tool_of(c).name for c in COMMANDS} - {tool_of(c).name for c in steps}
    if missing:
        pytest.skip(f"there is no {', '.join(sorted(missing))} yet")
    assert (folder / path).exists()


def test_preflight_shows_what_the_page_explains(hour):
    text = hour[1]["python tools/preflight.py my_config.py"].out
    for section in ("Base weights", "Model", "Schedule", "Cost", "Warnings", "Problems"):
        assert f"\n{section}\n" in text
    assert text.rstrip().endswith("Problems\n  none")
    assert "tensors found; 1 resized" in text
