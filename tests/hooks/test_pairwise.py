"""What works alone has to work together: every two of these options meet in one of the rows.

Each row is trained, trained again from its middle, and tested; the ends are the same bits.
"""

import itertools
import os

import pytest
import torch
from helpers import history, pairwise, run_tool, same_metrics, scores_of, validations
from helpers import write_tiny_config as write_config
from kill_and_resume import differences

#: Option -> its levels: a word for the test's name, and what it does to a config.
FACTORS = {
    "method": {
        "snella": "",
        "snella_v2_half": """
model['backbone'].update(method='snella_v2')
model['backbone']['adapter']['token_share'] = 0.5
""",
        "lora": "model['backbone'].update(method='lora')",
        "full": "model['backbone'].update(method='full', adapter=None)",
    },
    "average": {"plain": "", "ema": "custom_hooks.append(dict(type='EMAHook', momentum=0.2))"},
    "accumulation": {"each": "", "every_2": "optim_wrapper['accumulative_counts'] = 2"},
    "clipping": {"free": "", "clipped": "optim_wrapper['clip_grad'] = dict(max_norm=0.5)"},
    "blocks": {"kept": "", "with_cp": "model['backbone']['backbone']['with_cp'] = True"},
    "precision": {"fp32": "", "amp": "optim_wrapper['type'] = 'AmpOptimWrapper'"},
    "files": {"slim": "", "whole": "default_hooks['checkpoint']['slim'] = False"},
    "norm": {
        "bn": "",
        "gn": """
for head in (model['decode_head'], model['auxiliary_head']):
    head['norm_cfg'] = dict(type='GN', num_groups=4, requires_grad=True)
""",
    },
}
if os.environ.get("SNELLA_COMPILED"):  # half a minute a row
    FACTORS["compile"] = {"eager": "", "compiled": "compile = dict(backend='eager')"}
COMMON = """
model['backbone']['base_checkpoint'] = 'BASE'
train_cfg = dict(type='IterBasedTrainLoop', max_iters=6, val_interval=3)
default_hooks['checkpoint'].update(type='SnellaCheckpointHook', interval=3)
"""
ROWS = pairwise({name: list(levels) for name, levels in FACTORS.items()}, seed=3)


def test_rows_let_every_two_levels_meet():
    for (a, xs), (b, ys) in itertools.combinations(FACTORS.items(), 2):
        met = {(row[a], row[b]) for row in ROWS}
        assert met == set(itertools.product(xs, ys))
    assert len(ROWS) < 12


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_dataset):
    """A file of base weights, so that slim checkpoints need not hold them."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    folder = tmp_path_factory.mktemp("base")
    init_default_scope("mmseg")
    config = Config.fromfile(write_config(folder, tiny_dataset)).model.backbone.backbone
    torch.manual_seed(1)
    torch.save(MODELS.build(config).state_dict(), folder / "base.pth")
    return folder / "base.pth"


def saved(path) -> dict:
    """What a checkpoint holds of the run, without times and paths."""
    content = torch.load(path, map_location="cpu", weights_only=False)
    return {k: v for k, v in content.items() if k not in ("meta", "message_hub")}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row.values()))
def test_train_resume_and_test(row, base, tiny_dataset, tmp_path):
    config = write_config(tmp_path, tiny_dataset)
    changes = [FACTORS[name][level] for name, level in row.items()]
    text = "\n".join([config.read_text(), COMMON.replace("BASE", base.as_posix()), *changes])
    config.write_text(text)
    whole, resumed, test = (tmp_path / name for name in ("whole", "resumed", "test"))
    assert run_tool("train", config, "--work-dir", whole) == 0
    middle = whole / "iter_3.pth"
    assert run_tool("train", config, "--work-dir", resumed, "--resume", middle) == 0
    last = saved(whole / "iter_6.pth")
    assert differences(saved(resumed / "iter_6.pth"), last) == []
    assert same_metrics(validations(resumed)[-1], validations(whole)[-1])
    if row["method"].startswith("snella"):
        assert history(resumed)[-1] == history(whole)[-1]
        assert last["snella"]["reallocations"] == 2

    slim = row["files"] == "slim" and row["method"] != "full"
    frozen = "backbone.backbone.layers.0.ffn.layers.1.weight"
    assert (frozen not in last["state_dict"]) == slim
    assert ("ema_state_dict" in last) == (row["average"] == "ema")

    assert run_tool("test", config, resumed / "iter_6.pth", "--work-dir", test) == 0
    assert same_metrics(scores_of(test), validations(whole)[-1])
