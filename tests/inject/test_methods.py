"""Methods under one key: what each trains, that LoRA is LoRA, and that all run and come back."""

import copy
import re

import pytest
import torch
from helpers import history, import_peft, same_metrics, scores_of, validations
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn

import snella_seg.register  # noqa: F401
from snella_seg.artifacts import merge_adapters
from snella_seg.inject import METHODS, Method, adapter_keys, add_adapters, list_adapters
from snella_seg.layers import Adapter, SnellaAdapter

ADAPTING = [name for name, method in METHODS.items() if method.adapts]


def build(config, **backbone) -> nn.Module:
    init_default_scope("mmseg")
    cfg = Config.fromfile(config)
    cfg.model.backbone.update(backbone)
    return MODELS.build(cfg.model)


def trained(model) -> set[str]:
    inner = model.backbone.backbone
    names = {n for n, p in inner.named_parameters() if p.requires_grad}
    return names - adapter_keys(inner)


def options_of(method: str) -> dict:
    """What of the tiny config fits a method: those that adapt nothing take no rank."""
    if method == "peft":
        import_peft()
        return dict(method=dict(type="peft", config="LoraConfig", r=4), adapter=None)
    return dict(method=method) if METHODS[method].adapts else dict(method=method, adapter=None)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_what_it_says(method, tiny_config_file):
    model = build(tiny_config_file, **options_of(method))
    inner = model.backbone.backbone
    every = {n for n, _ in inner.named_parameters()} - adapter_keys(inner)
    expected = {
        "full": every,
        "frozen": set(),
        "bitfit": {name for name in every if name.endswith("bias")},
    }
    assert trained(model) == expected.get(method, {"cls_token"})
    assert len(list_adapters(model)) == (12 if method in ADAPTING else 0)
    assert all(p.requires_grad for p in model.decode_head.parameters())


CONTRADICTIONS = {
    "another kernel": (
        dict(method="lora", adapter=dict(kernel="mixed")),
        "method='lora' has kernel 'linear', got adapter.kernel='mixed'; leave it out",
    ),
    "another sparsifier": (
        dict(method="snell", adapter=dict(sparsifier="weighted")),
        "method='snell' has sparsifier 'soft', got adapter.sparsifier='weighted'",
    ),
    "a rank without adapters": (
        dict(method="full", adapter=dict(rank=4)),
        "method='full' adapts no matrix, so adapter.rank would have no effect",
    ),
    "targets without adapters": (
        dict(method="frozen", adapter=None, targets=["q"]),
        "method='frozen' adapts no matrix, so targets would have no effect",
    ),
    "other trained parameters": (
        dict(method="frozen", adapter=None, trainable=["cls_token"]),
        "method='frozen' says itself what is trained, got trainable=",
    ),
    "a former name": (
        dict(method="snella_uniform"),
        "method 'snella_uniform' is now a variant: snella:allocation=uniform in comparisons",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_settings_that_contradict_the_method_are_refused(case, tiny_config_file):
    options, message = CONTRADICTIONS[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        build(tiny_config_file, **options)


def test_settings_that_a_method_leaves_open_hold(tiny_config_file):
    options = dict(rank=4, kernel="linear", scale=0.25)
    model = build(tiny_config_file, method="lora", adapter=options)
    rules = {
        (a.rule.kernel, a.rule.sparsifier, a.rule.scale) for a in list_adapters(model).values()
    }
    assert rules == {("linear", "none", 0.25)}
    model = build(tiny_config_file, method="lora")
    assert {a.rule.scale for a in list_adapters(model).values()} == {1.0}


def test_another_way_of_allocation_is_refused(tool, tiny_config_file, tmp_path):
    options = ("model.backbone.method=snell", "custom_hooks.0.allocation=competition")
    done = tool("train", tiny_config_file, "--work-dir", tmp_path, "--cfg-options", *options)
    assert done.code == 1 and "method='snell' has allocation 'fixed', got allocation=" in done.err


class Diagonal(Adapter):
    """A delta of another make: an output's row of ones, times what is learnt for it."""

    def __init__(self, in_features, out_features, start=0.01, **options):
        super().__init__(in_features, out_features, **options)
        self.gain = nn.Parameter(torch.full((out_features,), start))
        self.rule = Rows(in_features)

    @property
    def params(self):
        return (self.gain,)

    @property
    def factors(self):
        return (self.gain,)

    def options(self):
        return dict(start=0.01)


class Rows:
    competes = False
    sparsifier = "none"

    def __init__(self, columns):
        self.columns = columns

    def __call__(self, params, sparsity, threshold=None):
        delta = params[0][:, None].expand(-1, self.columns) * 1.0
        return delta, params[0].new_full((), -1.0)


def test_a_method_is_an_entry_and_an_adapter_class(tool, tiny_config_file, tmp_path, monkeypatch):
    """Trains, saves, tests and merges through all that was there before."""
    entry = Method("Diagonal", "made up", allocation=None, adapter_class=Diagonal)
    monkeypatch.setitem(METHODS, "diagonal", entry)
    key = ("--cfg-options", "model.backbone.method=diagonal", "model.backbone.adapter=None")
    run = tmp_path / "run"
    assert tool("train", tiny_config_file, "--work-dir", run, *key).code == 0
    assert tool("test", tiny_config_file, run / "iter_8.pth", "--work-dir", tmp_path / "t", *key)
    assert same_metrics(scores_of(tmp_path / "t"), validations(run)[-1])
    state = torch.load(run / "iter_8.pth", weights_only=False)["state_dict"]
    moved = [v for n, v in state.items() if n.endswith(".gain")]
    assert len(moved) == 12 and all((v != 0.01).any() for v in moved)
    model = build(tiny_config_file, method="diagonal", adapter=None).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model.backbone(x)
        after = merge_adapters(model).backbone(x)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b)


def test_an_unknown_method_names_near_ones(tiny_config_file):
    with pytest.raises(ValueError, match="unknown method 'snela'; choose one of snell"):
        build(tiny_config_file, method="snela")


def lora_layer(scale: float = 0.5) -> nn.Linear:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9)).double().requires_grad_(False)
    options = dict(rank=4, heads=2, kernel="linear", sparsifier="none", scale=scale)
    add_adapters(model, options, ["0.*"])
    return model


def test_lora_starts_as_the_stock_layer_and_learns():
    model = lora_layer()
    adapter = next(iter(list_adapters(model).values()))
    x = torch.randn(3, 6, dtype=torch.float64)
    stock = nn.functional.linear(x, model[0].base_weight, model[0].bias)
    assert torch.equal(model(x), stock)
    assert adapter.in_factors.abs().max() <= 6**-0.5 and adapter.in_factors.std() > 0.1
    model(x).square().sum().backward()
    assert adapter.out_factors.grad.abs().min() > 0 and not adapter.in_factors.grad.any()


def test_lora_is_that_of_peft():
    """The same outputs and gradients as HF PEFT's LoRA layer with the same A and B."""
    peft = import_peft()
    model = lora_layer(scale=0.5)
    adapter = next(iter(list_adapters(model).values()))
    nn.init.normal_(adapter.out_factors)
    stock = nn.Sequential(nn.Linear(6, 9)).double()
    stock[0].load_state_dict({"weight": model[0].base_weight, "bias": model[0].bias})
    config = peft.LoraConfig(r=4, lora_alpha=2, lora_dropout=0.0, target_modules=["0"])
    theirs = peft.inject_adapter_in_model(config, stock).double()
    a, b = theirs[0].lora_A["default"].weight, theirs[0].lora_B["default"].weight
    with torch.no_grad():  # A is (r, in), B (out, r); our heads lie side by side
        a.copy_(adapter.in_factors.transpose(1, 2).flatten(0, 1))
        b.copy_(adapter.out_factors.transpose(0, 1).flatten(1))
    x = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    y, expected = model(x), theirs(x)
    torch.testing.assert_close(y, expected)
    seed = torch.randn_like(y)
    grads = torch.autograd.grad(y, (x, *adapter.factors), seed)
    right = torch.autograd.grad(expected, (x, a, b), seed)
    torch.testing.assert_close(grads[0], right[0])
    torch.testing.assert_close(grads[1].transpose(1, 2).flatten(0, 1), right[1])
    torch.testing.assert_close(grads[2].transpose(0, 1).flatten(1), right[2])
    delta = theirs[0].get_delta_weight("default")
    torch.testing.assert_close(adapter.delta_weight(), delta)


def test_lora_merges_into_a_stock_layer():
    model = lora_layer()
    adapter = next(iter(list_adapters(model).values()))
    nn.init.normal_(adapter.out_factors)
    merged = copy.deepcopy(model).eval()
    x = torch.randn(3, 6, dtype=torch.float64)
    with torch.no_grad():
        weight = merged[0].effective_weight()
    torch.testing.assert_close(weight, model[0].base_weight + adapter.delta_weight())
    torch.testing.assert_close(merged(x), model(x))


def test_no_sparsity_without_competition():
    with pytest.raises(ValueError, match="sparsifier 'none' keeps all weights"):
        SnellaAdapter(4, 4, rank=2, sparsifier="none", initial_sparsity=0.5)
    with pytest.raises(ValueError, match="sparsifier 'none' keeps all 16 weights, got count 3"):
        SnellaAdapter(4, 4, rank=2, sparsifier="none").set_num_nonzero(3)


@pytest.mark.parametrize("method", ["full", "frozen", "bitfit", "lora", "snell"])
def test_each_baseline_trains_and_tests_by_the_tools(method, tool, tiny_config_file, tmp_path):
    keys = [f"model.backbone.{key}={value}" for key, value in options_of(method).items()]
    slim = "default_hooks.checkpoint.type=SnellaCheckpointHook"
    options = ("--cfg-options", *keys, slim)
    assert tool("train", tiny_config_file, "--work-dir", tmp_path / "run", *options).code == 0
    checkpoint = tmp_path / "run" / "iter_8.pth"
    test = ("test", tiny_config_file, checkpoint, "--work-dir", tmp_path / "test", *options[:-1])
    assert tool(*test).code == 0
    assert same_metrics(scores_of(tmp_path / "test"), validations(tmp_path / "run")[-1])
    written = (tmp_path / "run" / "sparsity_history.jsonl").is_file()
    assert written == (method == "snell")


def test_snell_has_its_sparsity_from_the_start(tool, tiny_config_file, tmp_path):
    key = "model.backbone.method=snell"
    done = tool("train", tiny_config_file, "--work-dir", tmp_path, "--cfg-options", key)
    assert done.code == 0
    lines = history(tmp_path)
    assert [line["epoch"] for line in lines] == [0]
    assert set(lines[0]["sparsity"].values()) == {0.5}
    saved = torch.load(tmp_path / "iter_8.pth", weights_only=False)["state_dict"]
    values = {v.item() for n, v in saved.items() if n.endswith(".sparsity")}
    assert values == {0.5}


def test_without_layer_competition_all_are_as_dense(tool, tiny_config_file, tmp_path):
    densities = {}
    for allocation in ("competition", "uniform"):
        key = f"custom_hooks.0.allocation={allocation}"
        work_dir = tmp_path / allocation
        done = tool("train", tiny_config_file, "--work-dir", work_dir, "--cfg-options", key)
        assert done.code == 0
        densities[allocation] = history(work_dir)
    budgets = [[line["budget"] for line in lines] for lines in densities.values()]
    assert budgets[0] == budgets[1]
    for line in densities["uniform"]:
        values = line["sparsity"].values()
        assert max(values) - min(values) < 1e-3
    last = densities["competition"][-1]["sparsity"].values()
    assert max(last) - min(last) > 0.05


def test_a_full_checkpoint_stands_by_itself(tool, tiny_config_file, tmp_path):
    """All is trained, so nothing is left out and the base's file is of no need."""
    init_default_scope("mmseg")
    cfg = Config.fromfile(tiny_config_file)
    torch.manual_seed(0)
    base = tmp_path / "base.pth"
    torch.save(MODELS.build(cfg.model.backbone.backbone).state_dict(), base)
    options = (
        *("--cfg-options", "model.backbone.method=full", "model.backbone.adapter=None"),
        "default_hooks.checkpoint.type=SnellaCheckpointHook",
        f"model.backbone.base_checkpoint={base}",
    )
    assert tool("train", tiny_config_file, "--work-dir", tmp_path / "run", *options).code == 0
    base.unlink()
    checkpoint = tmp_path / "run" / "iter_8.pth"
    test = ("test", tiny_config_file, checkpoint, "--work-dir", tmp_path / "test", *options[:3])
    assert tool(*test).code == 0
    assert same_metrics(scores_of(tmp_path / "test"), validations(tmp_path / "run")[-1])


def test_competition_needs_a_sparsifier(tool, tiny_config_file, tmp_path):
    key = "model.backbone.adapter.sparsifier=none"
    done = tool("train", tiny_config_file, "--work-dir", tmp_path, "--cfg-options", key)
    assert done.code == 1 and "there is no budget to share" in done.err


def test_heads_may_start_in_pairs_that_lie_apart():
    torch.manual_seed(0)
    near, apart = (SnellaAdapter(64, 48, rank=8, spread=spread) for spread in (0.0, 0.5))
    assert apart.in_factors.std() > 5 * near.in_factors.std()
    assert near.in_factors.abs().max() <= (64 * 4) ** -0.5  # as published
    with torch.no_grad():
        distances = torch.cdist(apart.out_factors, apart.in_factors)
        assert (distances[0] - distances[1]).abs().mean() < 0.1 * distances.mean()
    with pytest.raises(ValueError, match="spread is for kernels of distances"):
        SnellaAdapter(4, 4, rank=2, kernel="linear", spread=0.5)
    with pytest.raises(ValueError, match="spread must be a number and not negative"):
        SnellaAdapter(4, 4, rank=2, spread=-1.0)
