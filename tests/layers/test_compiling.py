"""Adapted layers under torch.compile and torch.export: the results without, and whole graphs."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from snella_seg.inject import add_adapters
from snella_seg.layers import compiling, enable_recompute

pytestmark = pytest.mark.skipif(
    not hasattr(torch.library, "custom_op"), reason="needs torch 2.4 or newer"
)
ADAPTERS = {
    "snella": {},
    "snella_v2": dict(kernel="centred", sparsifier="normalised"),
    "through": dict(kernel="centred", sparsifier="normalised_through"),
    "snell": dict(kernel="distance", sparsifier="soft"),
    "lora": dict(kernel="linear", sparsifier="none"),
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


class Block(nn.Module):
    """An attention and an MLP."""

    def __init__(self, width=24):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2)
        self.mlp = nn.Sequential(nn.Linear(width, 40), nn.GELU(), nn.Linear(40, width))

    def forward(self, x):
        y = self.norm(x).transpose(0, 1)
        x = x + self.attention(y, y, y, need_weights=False)[0].transpose(0, 1)
        return x + self.mlp(x)


def make_model(name="snella", **options):
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block()).requires_grad_(False)
    sparsity = {} if name == "lora" else {"initial_sparsity": 0.6}
    add_adapters(model, dict(rank=8, **sparsity, **ADAPTERS[name], **options), ["*"])
    if name == "lora":
        for key, parameter in model.named_parameters():
            if key.endswith("out_factors"):
                nn.init.normal_(parameter, std=0.1)
    enable_recompute(model)
    return model


def step(run, model, half=False):
    """Output and gradients."""
    x = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        y = run(x)
    y.float().square().mean().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **grads}


def assert_close(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        atol = tolerance * float(value.abs().max()) + 1e-8
        torch.testing.assert_close(found[key], value, rtol=0, atol=atol, msg=key)


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("half", [False, True])
def test_training_in_one_graph(name, half):
    model = make_model(name)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_close(step(compiled, model, half), step(model, model, half), 2e-2 if half else 1e-5)
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_each_step_follows_the_parameters_and_the_sparsity():
    model = make_model()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    first = step(compiled, model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
        for key, buffer in model.named_buffers():
            if key.endswith("sparsity"):
                buffer.fill_(0.3)
    second = step(compiled, model)
    assert_close(second, step(model, model))
    assert not torch.allclose(first["y"], second["y"])


def test_lora_makes_no_matrix_of_the_weights_size():
    program = torch.export.export(make_model("lora").eval(), (torch.randn(2, 5, 24),))
    made = [n.meta["val"] for n in program.graph.nodes if n.op == "call_function"]
    shapes = [tuple(v.shape) for v in made if isinstance(v, torch.Tensor)]
    assert (3 * 24, 24) not in shapes and (40, 24) not in shapes


def test_drop_path_interrupts_the_graph():
    model = make_model(drop_path=0.5)
    compiled = torch.compile(model, backend="aot_eager")
    assert all(value.isfinite().all() for value in step(compiled, model).values())
    assert torch._dynamo.utils.counters["graph_break"]


def test_checkpointing_within_a_graph():
    model = make_model()

    def run(x):
        for block in model:
            x = checkpoint(block, x, use_reentrant=False)
        return x

    expected = step(model, model)
    assert_close(step(torch.compile(run, backend="aot_eager", fullgraph=True), model), expected)


def test_a_copy_is_found_as_itself():
    model = make_model()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.mul_(2)
    expected = step(other, other)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    assert_close(step(compiled, other), expected)
    handles = [m.handle for both in (model, other) for m in both.modules() if hasattr(m, "handle")]
    assert len(set(handles)) == len(handles)


def test_scoring_in_one_graph():
    model = make_model().eval()
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"),
    reason="needs torch 2.7 or newer: before, export and compile cannot be told apart",
)
@pytest.mark.parametrize("name", ADAPTERS)
def test_export_holds_operators_of_torch_alone(name, tmp_path):
    model = make_model(name).eval()
    x = torch.randn(2, 5, 24)
    program = torch.export.export(model, (x,))
    assert not [n for n in program.graph.nodes if "snella" in str(n.target)]
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    disabled = make_model(name).eval()
    for module in disabled.modules():
        if hasattr(module, "adapters_enabled"):
            module.adapters_enabled = False
    with torch.no_grad():
        assert not torch.allclose(disabled(x), loaded(x), atol=1e-4)  # the deltas do something


def test_a_layer_that_is_gone_leaves_nothing_behind():
    def used() -> None:
        model = make_model()
        step(torch.compile(model, backend="eager"), model)
        assert len(compiling._SHAPES) > before

    gc.collect()
    before = len(compiling._SHAPES)
    used()
    torch._dynamo.reset()
    gc.collect()
    assert len(compiling._SHAPES) == before


def test_a_part_of_the_tokens_is_drawn_as_without_a_compiler():
    model = make_model("snella_v2", token_share=0.5)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = []
    for run in (compiled, model, compiled, model):
        torch.manual_seed(len(found) // 2)
        found.append(step(run, model))
    assert_close(found[0], found[1])
    assert_close(found[2], found[3])
    key = "0.mlp.0.adapters.0.in_factors"
    assert not torch.allclose(found[0][key], found[2][key])
    assert torch.equal(found[0]["x"], found[2]["x"])
