"""Fused attention with a learned bias is attention: values and gradients, whatever path serves them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ofa_plugin.models.ofa.attention import Attention, FlashWithBias
from ofa_plugin.models.ofa.position import split_heads
from ofa_plugin.models.ofa.tuning import LoRALinear

ROWS, HEADS, QUERIES, KEYS, WIDTH = 3, 2, 4, 5, 8


@pytest.fixture(params=[1, ROWS], ids=["shared bias", "bias of each row"])
def inputs(request: pytest.FixtureRequest) -> list[Tensor]:
    """Queries, keys, values and a bias that hides the last keys of the first query; float64."""
    shapes = (
        [(ROWS, HEADS, QUERIES, WIDTH)] + 2 * [(ROWS, HEADS, KEYS, WIDTH)] + [(request.param, HEADS, QUERIES, KEYS)]
    )
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    tensors[3][:, :, 0, 3:] = -torch.inf
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.fixture(params=[True, False], ids=["padded", "unpadded"])
def padding(request: pytest.FixtureRequest) -> Tensor | None:
    if not request.param:
        return None
    mask = torch.zeros(ROWS, 1, 1, KEYS, dtype=torch.float64)
    mask[1, ..., 2:] = -torch.inf
    return mask


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_fused_values_and_gradients_are_those_of_plain_attention(
    monkeypatch: pytest.MonkeyPatch, inputs: list[Tensor], padding: Tensor | None, samples: int
):
    monkeypatch.setattr("ofa_plugin.models.ofa.attention.CACHED", samples * HEADS * QUERIES * KEYS)
    assert FlashWithBias.serves(inputs[0], inputs[3])
    queries, keys, values, bias = inputs
    logits = 0.3 * queries @ keys.transpose(-1, -2) + bias + (0 if padding is None else padding)
    plain = logits.softmax(-1) @ values
    fused = FlashWithBias.apply(queries, keys, values, bias, padding, 0.3)
    torch.testing.assert_close(fused, plain)
    direction = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, inputs, direction)
    torch.testing.assert_close(torch.autograd.grad(fused, inputs, direction), expected)


@pytest.mark.parametrize("need_weights", [True, False])
def test_module_gives_the_same_with_and_without_the_fused_path(monkeypatch: pytest.MonkeyPatch, need_weights: bool):
    attention = Attention(16, HEADS, 2.0, scale_heads=True)
    x, bias = torch.randn(ROWS, KEYS, 16), torch.randn(1, HEADS, KEYS, KEYS, requires_grad=True)
    fused, _ = attention(*attention.project(x), bias)
    (fused_gradient,) = torch.autograd.grad(fused.square().sum(), bias)
    monkeypatch.setattr(FlashWithBias, "serves", staticmethod(lambda queries, bias: False))
    other, weights = attention(*attention.project(x), bias, need_weights=need_weights)
    (gradient,) = torch.autograd.grad(other.square().sum(), bias)
    torch.testing.assert_close(other, fused, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, fused_gradient, rtol=1e-4, atol=1e-6)
    assert (weights is not None) == need_weights


def test_fused_path_keeps_no_weights_of_every_row():
    attention = Attention(16, HEADS, 2.0, scale_heads=False)
    x, bias = torch.randn(8, 40, 16), torch.randn(1, HEADS, 40, 40, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        attention(*attention.project(x), bias)
    assert max(sizes) < 8 * HEADS * 40 * 40


def test_sixteen_bits_and_inference_are_not_served():
    bias = torch.randn(1, HEADS, 2, 2, requires_grad=True)
    queries = torch.randn(1, HEADS, 2, WIDTH)
    assert not FlashWithBias.serves(queries.bfloat16(), bias)
    assert not FlashWithBias.serves(queries, bias.detach())
    with torch.no_grad():
        assert not FlashWithBias.serves(queries, bias)


def test_16_bits_that_learn_a_bias_are_close_to_32():
    """Values and gradients, a source position masked out."""
    torch.manual_seed(4)
    attention, other = (Attention(16, HEADS, 2.0, scale_heads=False) for _ in range(2))
    other.load_state_dict(attention.state_dict())
    other.bfloat16()
    bias = torch.randn(1, HEADS, 6, 6)
    x, padding = torch.randn(2, 6, 16), torch.zeros(2, 1, 1, 6)
    padding[1, ..., 4:] = -torch.inf
    found = []
    for module, dtype in ((attention, torch.float32), (other, torch.bfloat16)):
        learned, given = (part.detach().to(dtype).clone().requires_grad_() for part in (bias, x))
        assert FlashWithBias.serves(given, learned) == (dtype == torch.float32)
        out, _ = module(*module.project(given), learned, padding.to(dtype))
        out.float().square().sum().backward()
        found.append([out.detach(), given.grad, learned.grad])
    for wide, narrow in zip(*found, strict=True):
        torch.testing.assert_close(narrow.float(), wide, atol=0.03 * float(wide.abs().max()), rtol=0.05)


def test_dropout_works_on_the_attention_weights():
    attention = Attention(16, HEADS, 2.0, scale_heads=True, dropout=0.5).train()
    x, bias = torch.randn(2, 6, 16), torch.zeros(1, HEADS, 6, 6, requires_grad=True)
    first, _ = attention(*attention.project(x), bias)
    second, _ = attention(*attention.project(x), bias)
    assert not torch.equal(first, second)
    attention.eval()
    once, _ = attention(*attention.project(x), bias)
    assert torch.equal(attention(*attention.project(x), bias)[0], once)


def test_projections_of_one_product_are_those_of_each_layer():
    """Values, and gradients of input, matrices and offsets; without gradients, and with LoRA, layer by layer."""
    torch.manual_seed(5)
    attention = Attention(16, HEADS, 2.0, scale_heads=False)
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
        nn.init.normal_(layer.bias)
    x = torch.randn(2, 5, 16, requires_grad=True)
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    weights = [x, *(parameter for layer in layers for parameter in layer.parameters())]
    apart = [split_heads(layer(x), HEADS) for layer in layers]
    directions = [torch.randn_like(part) for part in apart]
    expected = torch.autograd.grad(apart, weights, directions)
    for found, own in ((attention.project(x), directions), (attention.keys_and_values(x), directions[1:])):
        torch.testing.assert_close(list(found), apart[-len(found) :])
        gradients = torch.autograd.grad(found, weights, own, allow_unused=True)
        torch.testing.assert_close(gradients[3:], expected[3:])
    gradients = torch.autograd.grad(attention.project(x), weights, directions)
    torch.testing.assert_close(gradients, expected)
    with torch.no_grad():
        torch.testing.assert_close(list(attention.project(x)), apart, rtol=0, atol=0)
    attention.q_proj = LoRALinear(attention.q_proj, 2, 4.0)
    nn.init.ones_(attention.q_proj.lora_b)
    torch.testing.assert_close(attention.project(x)[0], split_heads(attention.q_proj(x), HEADS))
