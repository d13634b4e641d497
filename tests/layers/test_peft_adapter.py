"""PEFT's tuners on single matrices: what peft computes, on packed weights too."""

import copy
import pickle
import sys

import pytest
import torch
from helpers import import_peft
from torch import nn

from snella_seg.inject import add_adapters, freeze_base, list_adapters
from snella_seg.layers import PeftAdapter

peft = import_peft()

TUNERS = {
    "lora": dict(config="LoraConfig", r=4, lora_alpha=8, init_lora_weights=False),
    "dora": dict(config="LoraConfig", r=4, use_dora=True, init_lora_weights=False),
    "shira": dict(config="ShiraConfig", r=2, init_weights=False),
    "vera": dict(config="VeraConfig", r=4, init_weights=False),
    "oft": dict(config="OFTConfig", oft_block_size=4, init_weights=False, use_cayley_neumann=False),
}
X = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def stock():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)).double()


def by_peft(options):
    """The same layers, wrapped by peft itself."""
    options = dict(options)
    cls = getattr(peft, options.pop("config"))
    if options.get("r") and "random_seed" in cls.__dataclass_fields__:
        options["random_seed"] = 0
    return peft.get_peft_model(stock(), cls(target_modules=["0", "2"], **options)).base_model.model


def ours(options):
    model = stock()
    adapters = add_adapters(model, options, ["0", "2"], PeftAdapter)
    freeze_base(model, [])
    return model, adapters


@pytest.mark.parametrize("tuner", TUNERS)
def test_it_computes_what_peft_does(tuner):
    (model, adapters), theirs = ours(TUNERS[tuner]), by_peft(TUNERS[tuner])
    theirs.double()
    for place, adapter in zip(("0", "2"), adapters.values(), strict=True):
        layer = theirs.get_submodule(place)
        state = {k: v for k, v in layer.state_dict().items() if "base_layer" not in k}
        known = adapter.layer.state_dict()
        adapter.layer.load_state_dict({k: v for k, v in state.items() if k in known})
    results = []
    for each in (model, theirs):
        x = X.clone().requires_grad_()
        y = each.train()(x)
        y.square().sum().backward()
        results.append((y, x.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    assert not torch.allclose(results[0][0], stock()(X))
    wanted = {n: p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    assert len(wanted) == sum(len(adapter.params) for adapter in adapters.values())
    for place, adapter in zip(("0", "2"), adapters.values(), strict=True):
        for name, parameter in zip(adapter.names, adapter.params, strict=True):
            torch.testing.assert_close(parameter.grad, wanted[f"{place}.{name}"])
    assert all(p.grad is None for n, p in model.named_parameters() if "adapters" not in n)


@pytest.mark.parametrize("tuner", TUNERS)
def test_eval_merges_once_and_reads_as_an_effective_weight(tuner):
    model, adapters = ours(TUNERS[tuner])
    model.double()
    x = X.clone().requires_grad_()
    expected = model.eval()(x)
    with torch.no_grad():
        torch.testing.assert_close(model(X), expected)
        plain = nn.functional.linear(X, model[0].weight, model[0].bias)
    torch.testing.assert_close(plain, model[0](x))
    for adapter, place in zip(adapters.values(), (0, 2), strict=True):
        weight = model[place].base_weight + adapter.delta_weight()
        torch.testing.assert_close(model[place].weight, weight)


@pytest.mark.parametrize("targets", [["q", "k", "v"], ["q", "v"], ["k"]])
def test_packed_weights(targets):
    torch.manual_seed(0)
    attention = nn.Module()
    attention.attn = nn.Module()
    attention.attn.attn = nn.MultiheadAttention(8, 2, batch_first=True)
    attention.double()
    plain = copy.deepcopy(attention.attn.attn)
    adapters = add_adapters(attention, TUNERS["lora"], targets, PeftAdapter)
    assert [name.rpartition(".")[2] for name in adapters] == targets
    attention.double().train()
    with torch.no_grad():
        for i, kind in enumerate("qkv"):
            if kind in targets:
                delta = adapters[f"attn.attn.{kind}"].delta_weight()
                plain.in_proj_weight[8 * i : 8 * i + 8] += delta
    torch.testing.assert_close(
        attention.attn.attn(X, X, X)[0], plain(X, X, X, need_weights=False)[0]
    )


@pytest.mark.parametrize("tuner", TUNERS)
def test_state_copies_and_pickles(tuner):
    model, _ = ours(TUNERS[tuner])
    model.double().eval()
    x = X.clone().requires_grad_()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(x), model(x))
    torch.manual_seed(7)  # what is not in the state must not depend on it
    again = add_adapters(fresh := stock(), TUNERS[tuner], ["0", "2"], PeftAdapter)
    fresh.double().load_state_dict(model.state_dict())
    assert len(again) == 2
    torch.testing.assert_close(fresh.eval()(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(config="NoConfig"), "peft has no config 'NoConfig'; it has .*LoraConfig"),
        (dict(config="LoraConfig", rank=3), "LoraConfig of peft does not take 'rank'"),
        (dict(config="LoraConfig", target_modules=["q"]), "set by targets of model.backbone"),
        (dict(config="LoraConfig", r=0), "peft cannot wrap these matrices by LoraConfig"),
        (dict(config="PromptTuningConfig"), "peft cannot wrap|does not wrap"),
    ],
)
def test_what_peft_cannot_do_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        add_adapters(stock(), options, ["0"], PeftAdapter)


def test_a_peft_that_goes_with_another_torch_is_named(monkeypatch, tmp_path):
    (tmp_path / "peft.py").write_text("from torch.nn import NoSuchThing")
    monkeypatch.delitem(sys.modules, "peft")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"peft cannot be imported \(ImportError: .*NoSuchThing"):
        add_adapters(stock(), dict(config="LoraConfig"), ["0"], PeftAdapter)


def test_its_matrices_are_listed_like_others():
    model, adapters = ours(TUNERS["shira"])
    assert list_adapters(model) == adapters
    adapter = next(iter(adapters.values()))
    assert adapter.options() == TUNERS["shira"] and adapter.num_nonzero == adapter.size == 96
