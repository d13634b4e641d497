from torch import nn

from snella_seg.inject import add_adapters, freeze_base, list_adapters
from snella_seg.inject.summary import sparsity_by_kind, summarize


def segmentor():
    model = nn.Module()
    model.backbone = nn.Module()
    for i in range(2):
        block = nn.Module()
        block.mlp = nn.Module()
        block.mlp.fc1, block.mlp.fc2 = nn.Linear(8, 32), nn.Linear(32, 8)
        model.backbone.add_module(f"block{i}", block)
    model.backbone.cls_token = nn.Parameter(nn.Linear(8, 1).weight.detach())
    model.head = nn.Linear(8, 3)
    add_adapters(model.backbone, dict(rank=2))
    freeze_base(model.backbone, ["cls_token"])
    return model


def test_counts_add_up():
    model = segmentor()
    adapters = list_adapters(model.backbone)
    for adapter in adapters.values():
        adapter.set_num_nonzero(64)
    rows = {line.split("  ")[0]: line for line in summarize(model).splitlines()}
    assert rows["fc1"].split()[1:5] == ["2", "512", "166", "128"]
    assert rows["all adapted"].split()[2:6] == ["4", "1,024", "332", "256"]
    assert "(25.0%)" in rows["all adapted"]
    frozen = 2 * (8 * 32 + 32 + 32 * 8 + 8)
    assert f"{frozen:,}" in rows["backbone, frozen"]
    assert rows["backbone, trained"].split()[2:] == ["8", "8"]
    assert rows["heads"].split()[1:] == ["27", "27"]
    assert sparsity_by_kind(adapters) == {"fc1": 0.75, "fc2": 0.75}


def test_a_model_without_adapters_has_a_table_too():
    assert "all adapted" in summarize(nn.Sequential(nn.Linear(2, 2)))
