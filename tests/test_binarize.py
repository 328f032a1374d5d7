"""Which layers become binary, and what the binary layers compute."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from timm.layers import Conv2dSame, Linear, StdConv2d
from torch import nn
from torchvision.models.vision_transformer import EncoderBlock

from binarize_cli.binarize.activations import SignInput
from binarize_cli.binarize.attention import LinearProjAttention, use_linear_projections
from binarize_cli.binarize.convert import binary_weights, harden, replace_layers, to_latents
from binarize_cli.binarize.layers import BinaryConv2d, BinaryLinear, kind
from binarize_cli.binarize.observe import read_past_the_layer
from binarize_cli.binarize.phase import Moment, Phase, set_phase
from binarize_cli.binarize.prepare import make_binary, quantizers, rewrite_and_choose
from binarize_cli.binarize.quantizer import WeightQuantizer
from binarize_cli.binarize.rounding import LARGE, round_floats, rounded
from binarize_cli.binarize.select import OTHER, all_float, count_macs, select
from binarize_cli.binarize.weights import LatentWeight, SignWeight, computed_once
from binarize_cli.errors import InputError
from binarize_cli.models.build import build
from binarize_cli.models.heads import head_names
from binarize_cli.recipe import Layers, Recipe


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def quantizer(method: str = "bnn++", progress: float = 0.0, **rules) -> WeightQuantizer:
    made, _ = quantizers(Recipe.model_validate({"method": method, "quantizer": rules}))
    made.move_to(Moment(progress))
    return made


class Net(nn.Module):
    """A convolution, a depthwise one, a norm, a parameter of its own, two linear layers."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(8))
        self.stem = nn.Conv2d(3, 8, 3)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8))
        self.mix = nn.Linear(8, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.block(self.stem(x)).mean((2, 3)) + self.shift
        return self.head(self.mix(x).relu())


IMAGES = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(5))


def table(net: nn.Module, example: torch.Tensor = IMAGES, heads=("head",), **rules):
    """Layer name -> its row."""
    rows = select(net, Layers(**rules), list(count_macs(net, example)), list(heads))
    return {row.name: row for row in rows}


def binary(rows) -> list[str]:
    return [name for name, row in rows.items() if row.binary]


# --- which layers ----------------------------------------------------------------------------------------


def test_first_layer_and_head_stay_float_and_the_table_says_why():
    rows = table(Net())
    assert list(rows) == ["shift", "stem", "block.0", "block.1", "mix", "head"]
    assert binary(rows) == ["block.0", "mix"]
    assert rows["mix"].why == "every layer but those kept float"
    assert rows["stem"].why == "first layer (keep_float)"
    assert rows["head"].why == "classifier head (keep_float)"
    assert rows["shift"].why == rows["block.1"].why == OTHER
    assert (rows["shift"].kind, rows["block.1"].kind) == ("parameter", "batchnorm2d")
    assert (rows["block.0"].shape, rows["mix"].shape, rows["shift"].shape) == ([8, 1, 3, 3], [12, 8], [8])


@pytest.mark.parametrize(
    ("keep_float", "make_binary", "expected"),
    [
        ([], [], ["stem", "block.0", "mix", "head"]),
        (["head"], [], ["stem", "block.0", "mix"]),
        (["first", "block.*"], [], ["mix", "head"]),
        (["*"], ["m?x"], ["mix"]),
        (["first", "head"], ["head"], ["block.0", "mix", "head"]),
        (["*"], ["first", "head"], ["stem", "head"]),
    ],
)
def test_patterns_choose_and_make_binary_overrides(keep_float, make_binary, expected):
    rows = table(Net(), keep_float=keep_float, make_binary=make_binary)
    assert binary(rows) == expected
    if make_binary == ["m?x"]:
        assert rows["mix"].why == "matches 'm?x' (make_binary)"
        assert rows["stem"].why == "matches '*' (keep_float)"


def test_first_is_the_first_layer_called_not_the_first_defined():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.early = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(self.early(x))

    net = Backwards()
    assert list(count_macs(net, torch.zeros(1, 4))) == ["early", "last"]
    assert binary(table(net, torch.zeros(1, 4), [], keep_float=["first"])) == ["last"]


@pytest.mark.parametrize("key", ["keep_float", "make_binary"])
def test_a_pattern_that_matches_nothing_is_refused_with_a_hint(key):
    with pytest.raises(InputError, match=rf"layers\.{key}: the pattern 'mixx' matches no layer") as caught:
        table(Net(), **{key: ["mixx"]})
    assert "Did you mean 'mix'" in str(caught.value) and "The layers: stem, block.0" in str(caught.value)


def test_a_recipe_that_leaves_no_layer_is_refused():
    with pytest.raises(InputError, match="no layer is left to binarize"):
        table(Net(), keep_float=["*"])


def test_looking_at_the_calls_changes_nothing():
    net = Net().train()
    before = copy.deepcopy(net.state_dict())
    assert list(count_macs(net, IMAGES)) == ["stem", "block.0", "mix", "head"]
    assert net.training and not any(module._forward_pre_hooks for module in net.modules())
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())


def test_a_method_without_binary_layers_has_a_table_too():
    rows = {row.name: row for row in all_float(Net())}
    assert list(rows) == list(table(Net())) and not binary(rows)
    assert rows["mix"].why == "method float" and rows["shift"].why == OTHER


def test_a_layer_whose_operation_is_not_known_is_refused_by_name():
    odd = nn.Sequential(nn.Conv2d(3, 4, 3), StdConv2d(4, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    odd(IMAGES)
    with pytest.raises(InputError, match=r"^1: the layer is a StdConv2d") as caught:
        table(odd, heads=["3"])
    assert "layers.keep_float: ['1'" in str(caught.value)
    with pytest.raises(InputError, match="no layer is left"):
        table(odd, heads=["3"], keep_float=["first", "head", "1"])


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_another_padding_than_zeros_is_refused(mode):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode))
    with pytest.raises(InputError, match=f"1: the layer is a convolution with {mode} padding"):
        table(net, heads=[], keep_float=["first"])


def test_layers_whose_weights_are_read_past_them_are_refused():
    net = torchvision.models.swin_t(weights=None, num_classes=3)
    with pytest.raises(InputError, match="ShiftedWindowAttention bypasses them") as caught:
        table(net, torch.zeros(1, 3, 64, 64))
    assert "24 layers are never called" in caught.value.what
    rows = table(net, torch.zeros(1, 3, 64, 64), keep_float=["first", "head", "*.attn.*"])
    assert "features.1.0.mlp.0" in binary(rows) and "features.1.0.attn.qkv" not in binary(rows)


def test_downsample_layers_are_binary_and_the_table_says_so():
    net = timm.create_model("resnet18", num_classes=3)
    rows = table(net, torch.zeros(1, 3, 32, 32), head_names(net))
    assert [n for n, row in rows.items() if row.why.endswith(", here the downsample branch")] == [
        f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)
    ]
    assert len(binary(rows)) == 16 + 3 and rows["layer2.0.downsample.0"].kind == "conv 1x1"


@pytest.mark.parametrize(
    ("module", "word"),
    [
        (nn.Linear(2, 3), "linear"),
        (nn.Conv2d(4, 6, (3, 5)), "conv 3x5"),
        (nn.Conv2d(4, 8, 7, groups=4), "depthwise conv 7x7"),
        (nn.Conv2d(4, 8, 1, groups=2), "grouped conv 1x1"),
        (nn.Conv2d(1, 8, 3), "conv 3x3"),
        (nn.LayerNorm(3), "layernorm"),
    ],
)
def test_kinds_have_words_before_and_after(module, word):
    assert kind(module) == word
    if isinstance(module, nn.Linear | nn.Conv2d):
        net = nn.Sequential(module)
        to_latents(net, ["0"], quantizer())
        assert type(net[0]) in (BinaryLinear, BinaryConv2d) and kind(net[0]) == word


class Bypassed(nn.Module):
    """A layer that is called, one whose weights are read past it, and one that nothing uses."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.idle, self.head = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        return self.head(nn.functional.linear(self.stem(x), self.mix.weight, self.mix.bias).relu())


def test_a_layer_whose_weights_are_read_past_it_is_binary_and_reaches_the_output():
    net, x = Bypassed(), torch.randn(4, 6)
    float_output, order = net(x), [name for name, _ in net.named_parameters()]
    assert read_past_the_layer(net, ["mix", "idle"], x) == ["mix"]
    assert type(net.mix) is nn.Linear and [name for name, _ in net.named_parameters()] != []
    assert torch.equal(net(x), float_output) and sorted(order) == sorted(n for n, _ in net.named_parameters())
    recipe = Recipe.model_validate({"layers": {"keep_float": ["first", "head", "idle"]}})
    net, rows = rewrite_and_choose(net, x, recipe, ["head"])
    made = make_binary(net, rows, recipe)
    made.harden()
    assert [row.name for row in made.table if row.binary] == ["mix"]
    assert not torch.allclose(made.net(x), float_output, atol=1e-3), "the signs reach the output"
    made.net(x).sum().backward()
    assert made.net.mix.source.latent.grad.abs().sum() > 0
    for task, silent in (("bw", "1 layers"), ("bwa", "2 layers")):
        with pytest.raises(InputError, match=f"{silent} are never called"):
            rewrite_and_choose(Bypassed(), x, Recipe(task=task), ["head"])


# --- attention -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "heads", "bias"), [(8, 1, True), (12, 3, False), (32, 8, True)])
def test_split_attention_is_multihead_attention(width, heads, bias):
    whole = nn.MultiheadAttention(width, heads, bias=bias, batch_first=True).eval()
    if bias:
        nn.init.normal_(whole.in_proj_bias)
        nn.init.normal_(whole.out_proj.bias)
    split, x = LinearProjAttention(copy.deepcopy(whole)).eval(), torch.randn(3, 7, width)
    found, weights = split(x, x, x, need_weights=False)
    assert weights is None
    torch.testing.assert_close(found, whole(x, x, x, need_weights=False)[0], rtol=0, atol=1e-6)


def test_an_encoder_block_of_torchvision_computes_the_same_and_its_layers_are_called():
    block = EncoderBlock(4, 32, 64, dropout=0.0, attention_dropout=0.0, norm_layer=nn.LayerNorm).eval()
    x = torch.randn(2, 9, 32)
    before, called = block(x), list(count_macs(block, x))
    use_linear_projections(block)
    torch.testing.assert_close(block(x), before, rtol=0, atol=1e-6)
    assert set(count_macs(block, x)) - set(called) == {
        "self_attention.in_proj",
        "self_attention.out_proj",
    }
    rows = table(block, x, keep_float=[], heads=[])
    assert binary(rows) == ["self_attention.in_proj", "self_attention.out_proj", "mlp.0", "mlp.3"]


def test_attention_drops_out_in_training_alone():
    split = LinearProjAttention(nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True))
    x = torch.randn(2, 5, 8)
    assert not torch.equal(split(x, x, x)[0], split(x, x, x)[0])
    split.eval()
    assert torch.equal(split(x, x, x)[0], split(x, x, x)[0])


def test_attention_of_another_form_is_left_alone_and_refuses_to_guess():
    net = nn.ModuleList([nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, kdim=4, batch_first=True)])
    use_linear_projections(net)
    assert all(type(module) is nn.MultiheadAttention for module in net)
    split, x = LinearProjAttention(nn.MultiheadAttention(8, 2, batch_first=True)), torch.randn(1, 3, 8)
    for arguments in ((x, x.clone(), x), (x, x, x.clone()), (x, x, x, True)):
        with pytest.raises(NotImplementedError):
            split(*arguments)


# --- the weights of a binary layer -----------------------------------------------------------------------


def reference_F(method: str, progress: float):
    """F at a progress, from its formula."""
    mu, rho = 5 * 12**progress, 0.01 + 9.99 * progress

    def sign(x):
        return np.where(x < 0, -1.0, 1.0)

    def sign_swish(x):
        return 2 * expit(mu * x) * (1 + mu * x * expit(-mu * x)) - 1

    def linear_quantizer(x):
        return sign(x) * np.minimum(1, rho + np.abs(x)) if rho < 1 else sign(x)

    return {"bc": sign, "bnn": sign, "bnn+": sign, "bnn++": sign_swish, "pc": linear_quantizer}[method]


def reference_weight(w: np.ndarray, method: str, progress: float, scale: str, normalize) -> np.ndarray:
    """alpha F(w / n), with alpha and n in float64."""
    F, w = reference_F(method, progress), w.astype(float)
    axes = None if scale == "layer" else tuple(range(1, w.ndim))
    magnitude = np.abs(w).mean(axis=axes, keepdims=True)
    n = 1.0 if normalize == "none" else (normalize or 10.0) * magnitude
    alpha = 1.0 if scale == "none" else magnitude / np.abs(F(w / n)).mean(axis=axes, keepdims=True)
    return alpha * F(w / n)


LAYERS = {
    "linear": (lambda: nn.Linear(13, 6), (4, 13)),
    "linear of tokens": (lambda: nn.Linear(5, 4, bias=False), (2, 3, 5)),
    "linear of timm": (lambda: Linear(13, 6), (4, 13)),  # MobileNet's head: the same operation
    "conv": (lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 8, 8)),
    "strided": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 3, 9, 8)),
    "dilated": (lambda: nn.Conv2d(3, 4, 3, dilation=2, bias=False), (2, 3, 8, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 7)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding="same"), (2, 4, 7, 7)),
    "as TensorFlow pads": (lambda: Conv2dSame(3, 4, 3, stride=2), (2, 3, 8, 7)),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", ["bc", "bnn++", "pc"])
def test_a_binary_layer_is_its_float_twin_with_the_quantized_weights(layer, method):
    make, shape = LAYERS[layer]
    net, x = nn.Sequential(make()), torch.randn(shape)
    twin = copy.deepcopy(net)
    twin[0].weight.data = torch.from_numpy(
        reference_weight(net[0].weight.detach().numpy(), method, 0.05, "channel", None)
    ).float()
    to_latents(net, ["0"], quantizer(method, 0.05))
    torch.testing.assert_close(net(x), twin(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("progress", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("scale", ["channel", "layer", "learned", "none"])
@pytest.mark.parametrize("normalize", [None, 2.5, "none"])
@pytest.mark.parametrize("method", ["bnn+", "bnn++", "pc"])
def test_weights_follow_the_rules_for_scale_and_normaliser(method, normalize, scale, progress):
    w = torch.randn(6, 3, 3, 3) * torch.logspace(-3, 1, 6).view(-1, 1, 1, 1)
    found = LatentWeight(w, quantizer(method, progress, scale=scale, normalize=normalize))()
    expected = reference_weight(w.numpy(), method, progress, scale, normalize)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=2e-4, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    progress=st.floats(0, 1),
    size=st.floats(1e-6, 1e3),
    method=st.sampled_from(["bc", "bnn", "bnn+", "bnn++", "pc"]),
    seed=st.integers(0, 1000),
)
def test_alpha_keeps_the_mean_magnitude_of_each_channel_at_any_progress(progress, size, method, seed):
    w = size * torch.randn(4, 9, generator=torch.Generator().manual_seed(seed))
    found = LatentWeight(w, quantizer(method, progress))()
    torch.testing.assert_close(found.abs().mean(1), w.abs().mean(1), rtol=1e-4, atol=0)


def test_hard_weights_are_the_signs_times_their_mean_magnitude():
    w = torch.randn(5, 2, 3, 3)
    w[0, 0, 0, 0] = 0.0  # a zero is +1
    expected = np.abs(w.numpy()).mean((1, 2, 3), keepdims=True) * np.where(w.numpy() < 0, -1, 1)
    q = quantizer("bnn++", 0.3)
    latent = LatentWeight(w, q)
    soft = latent().detach()
    q.move_to(Moment(0.3, "hard"))
    np.testing.assert_allclose(latent().detach().numpy(), expected, rtol=1e-6)
    q.move_to(Moment(0.3, "soft"))
    assert torch.equal(latent(), soft) and (soft.abs() - soft.abs().mean()).abs().max() > 0.1
    np.testing.assert_allclose(latent.hard_scale(), np.abs(w.numpy()).mean((1, 2, 3)), rtol=1e-6)
    assert torch.equal(latent.signs(), torch.where(w < 0, -1.0, 1.0))


def test_hard_scales_follow_their_rule():
    w = torch.randn(3, 8)
    assert LatentWeight(w, quantizer(scale="none")).hard_scale().tolist() == [1, 1, 1]
    layer = LatentWeight(w, quantizer(scale="layer")).hard_scale()
    torch.testing.assert_close(layer, w.abs().mean().expand(3))
    learned = LatentWeight(w, quantizer(scale="learned"))
    learned.learned_scale.data = torch.tensor([[1.0], [2.0], [-3.0]])
    assert learned.hard_scale().tolist() == [1, 2, -3]
    learned.quantizer.move_to(Moment(0.0, "hard"))
    torch.testing.assert_close(learned().abs().mean(1), torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize(("scale", "owned"), [("learned", 2), ("channel", 1), ("layer", 1), ("none", 1)])
def test_only_the_latents_and_a_learned_scale_are_trained(scale, owned):
    latent = LatentWeight(torch.randn(4, 8), quantizer(scale=scale))
    latent().square().sum().backward()
    assert [bool(p.grad.any()) for p in latent.parameters()] == [True] * owned


def test_a_channel_of_zeros_gives_no_nan():
    for rules in ({}, {"scale": "layer"}, {"scale": "learned"}, {"scale": "none"}, {"normalize": "none"}):
        for method in ("bc", "bnn++", "pc"):
            w = torch.randn(3, 6)
            w[1] = 0
            for weights in (w, torch.zeros(3, 6)):
                latent = LatentWeight(weights, quantizer(method, **rules))
                out = latent()
                out.sum().backward()
                assert out.isfinite().all() and all(p.grad.isfinite().all() for p in latent.parameters())
                if not rules:
                    assert not out[1].any()


def test_where_F_is_linear_the_soft_network_is_the_float_one():
    net = build("timm", "digits_vit", 10).eval()
    x = torch.randn(4, 1, 8, 8)
    before = net(x)
    rows = select(net, Layers(), list(count_macs(net, x)), head_names(net))
    to_latents(net, [row.name for row in rows if row.binary], quantizer(schedules={"mu": 1e-3}))
    assert len(list(binary_weights(net))) == 16
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-4)
    set_phase(net, Phase.at(0.0, "hard"))
    assert (net(x) - before).abs().max() > 1e-2


def test_parameters_move_in_place_in_0d_tensors():
    q = quantizer("bnn++")
    tensor = q.values["mu"]
    q.move_to(Moment(0.5))
    assert tensor is q.values["mu"] and tensor.shape == () and tensor.item() == pytest.approx(300**0.5)


def test_the_layers_of_a_network_share_a_quantizer_and_a_copy_has_one_of_its_own():
    net = Net()
    to_latents(net, binary(table(net)), quantizer())
    twin = copy.deepcopy(net)
    assert net.mix.source.quantizer is net.block[0].source.quantizer
    assert twin.mix.source.quantizer is twin.block[0].source.quantizer is not net.mix.source.quantizer
    set_phase(twin, Phase.at(1.0))
    assert float(twin.mix.source.quantizer.values["mu"]) == 60
    assert float(net.mix.source.quantizer.values["mu"]) == 5
    assert twin.mix.source.latent is not net.mix.source.latent


def test_weights_computed_once_are_those_of_each_call_and_are_forgotten_afterwards():
    made, parts = quantizer("bnn++"), [nn.Linear(6, 6), nn.Linear(6, 3)]
    net = nn.Sequential(*(BinaryLinear(part, LatentWeight(part.weight, made)) for part in parts))
    x = torch.randn(4, 6)
    made.move_to(Moment(0.0, "hard"))
    expected = net(x)
    with computed_once(net):
        assert torch.equal(net(x), expected)
    net(x).sum().backward()
    assert all(layer.source.latent.grad.abs().sum() > 0 for layer in net)


def test_a_layer_keeps_its_bias_and_the_rest_of_the_network_its_identity():
    net = Net()
    bias, stem, float_weight = net.mix.bias, net.stem, net.mix.weight.detach().clone()
    to_latents(net, binary(table(net)), quantizer())
    assert net.mix.bias is bias and net.stem is stem and torch.equal(net.mix.source.latent, float_weight)
    assert [name for name, _ in binary_weights(net)] == ["block.0", "mix"]


# --- harden ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["channel", "layer", "learned", "none"])
def test_harden_computes_exactly_what_the_hard_network_did(scale):
    net = Net().eval()
    q = quantizer(scale=scale)
    to_latents(net, binary(table(net)), q)
    q.move_to(Moment(0.0, "hard"))
    before = net(IMAGES)
    round_floats(harden(net), "float32")
    assert torch.equal(net(IMAGES), before)
    assert net.mix.source.signs.dtype == torch.int8 and not net.mix.source.state_dict()


def test_harden_rounds_everything_to_what_the_file_holds():
    net = Net().eval()
    net.shift.data.fill_(1e-8)  # float16 would make it 0
    net.block[1].running_var.fill_(1e6)  # and this inf
    to_latents(net, binary(table(net)), quantizer())
    round_floats(harden(net), "float16")
    whole = {"shift", "block.1.running_var"}
    for name, tensor in (*net.state_dict().items(), ("scale", net.mix.source.scale)):
        assert torch.equal(tensor.half().to(tensor.dtype), tensor) == (name not in whole)
    assert (net.shift == 1e-8).all() and (net.block[1].running_var == 1e6).all()
    assert net.stem.weight.dtype == torch.float32


class OfSigns(nn.Module):
    """A layer with binary inputs, and BatchNorm and a large embedding before it."""

    def __init__(self):
        super().__init__()
        self.norm, self.embed = nn.BatchNorm1d(3), nn.Embedding(LARGE // 8, 8)
        self.layer = BinaryLinear(nn.Linear(3, 4), SignWeight(torch.ones(4, 3), torch.rand(4)))

    def with_binary_inputs(self):
        self.layer.input = SignInput((-1,), torch.rand(3), torch.rand(()))
        return self


def in_half(net: nn.Module) -> set[str]:
    """The names of the tensors, of state dict and buffers, whose numbers float16 holds."""
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    return {name for name, tensor in floats.items() if torch.equal(tensor.half().float(), tensor)}


def test_before_a_sign_only_large_tensors_are_rounded():
    torch.manual_seed(0)
    net = OfSigns().with_binary_inputs()
    net.norm.weight.data.uniform_()
    before = in_half(net)
    assert "layer.source.scale" not in before and "embed.weight" not in before
    round_floats(net, "float16")
    assert in_half(net) == before | {"embed.weight"}
    round_floats(net, "int8")
    assert {"norm.weight", "layer.input.threshold", "layer.input.scale", "layer.source.scale"} <= in_half(net)


def test_without_binary_inputs_every_tensor_is_rounded_and_in_float32_none_is():
    torch.manual_seed(0)
    net = OfSigns()
    net.norm.weight.data.uniform_()
    before = in_half(net)
    assert in_half(round_floats(net, "float32")) == before
    tensors = {name for name, _ in (*net.named_parameters(), *net.named_buffers())}
    integers = {"norm.num_batches_tracked", "layer.source.signs"}
    assert in_half(round_floats(net, "float16")) == tensors - integers


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ([0.1, -3.3, 0.0], True),
        ([0.0, 0.0], True),
        ([65504.0], True),
        ([1e6, 1.0], False),
        ([1e-8, 2e-8], False),
        ([1.0, 1e-8], True),
        ([1e-6] * 4, False),
        ([float("inf")], False),
    ],
)
def test_a_tensor_is_rounded_where_float16_can_hold_it(values, fits):
    tensor = torch.tensor(values)
    found = rounded(tensor)
    expected = np.array(values, np.float32)
    expected = expected.astype(np.float16).astype(np.float32) if fits else expected
    assert found.dtype == torch.float32 and np.array_equal(found.numpy(), expected)
    assert torch.equal(rounded(found), found)


def test_a_layer_that_a_network_holds_twice_is_replaced_under_both_names():
    shared = nn.Linear(2, 2)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    replace_layers(net, ["0"], lambda name, layer: nn.Identity())
    assert net[0] is net[2] and isinstance(net[2], nn.Identity)
