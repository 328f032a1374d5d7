"""The weights of all layers, computed together: those of each layer by itself, to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from binarize_cli.binarize.bank import LatentBank, add_banks, remove_banks
from binarize_cli.binarize.layers import BinaryConv2d, BinaryLinear
from binarize_cli.binarize.phase import Moment, Phase
from binarize_cli.binarize.quantizer import WeightQuantizer
from binarize_cli.binarize.weights import LatentWeight, computed_once
from binarize_cli.quantizers.methods import METHODS
from binarize_cli.quantizers.scales import SCALES

METHODS_OF_WEIGHTS = [m.name for m in METHODS.values() if m.backward or m.applies_map]


def a_net(
    method: str = "bnn++", scale: str = "channel", last: bool = True, plain: bool = False
) -> nn.Sequential:
    """Convolutions of several fan-ins (one of 1 x 1, one by channel) and a linear layer, over latents."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 6, 3), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 3)]
    chosen = METHODS[method]
    quantizer = WeightQuantizer(chosen, chosen.schedules, None if plain else chosen.normalize, SCALES[scale])
    binary = [BinaryConv2d(layer, LatentWeight(layer.weight, quantizer)) for layer in layers]
    head = nn.Linear(36, 5)
    net = nn.Sequential(*binary, nn.Flatten(), BinaryLinear(head, LatentWeight(head.weight, quantizer)))
    with torch.no_grad():
        net[0].source.latent[1] = 0.0  # a dead channel
    return net.to(memory_format=torch.channels_last) if last else net


def sources(net: nn.Module) -> list[LatentWeight]:
    return [m for m in net.modules() if isinstance(m, LatentWeight)]


def images() -> Tensor:
    return torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(1))


def with_bank(net: nn.Module, signs: bool = False) -> nn.Module:
    add_banks(net, sources(net), signs)
    assert all(isinstance(source.bank, LatentBank) for source in sources(net))
    return net


def lie(tensor: Tensor) -> list[int]:
    """Return the strides that mean something."""
    return [step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def enter(net: nn.Module, phase: Phase) -> None:
    sources(net)[0].quantizer.enter(phase)


@pytest.mark.parametrize("mode", ["float", "soft", "hard"])
@pytest.mark.parametrize("method", METHODS_OF_WEIGHTS)
def test_a_step_is_that_of_layers_by_themselves_to_the_bit(method, mode):
    alone, together = a_net(method), with_bank(a_net(method))
    outs = []
    for net in (alone, together):
        enter(net, Phase.at(0.4, mode))
        out = net(images())
        out.square().sum().backward()
        outs.append(out)
    assert torch.equal(*outs)
    for one, other in zip(sources(alone), sources(together), strict=True):
        assert torch.equal(one.latent.grad, other.latent.grad)
        assert lie(other.latent) == lie(other.latent.grad), "as CUDA's fused optimizers want it"
        assert other.cache is None


@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize(
    "scale,plain,last", [("channel", False, True), ("none", True, False), ("none", False, True)]
)
def test_signs_and_scales_are_those_of_layers_by_themselves(scale, plain, last, mode):
    alone, together = (a_net("bnn++", scale, last, plain) for _ in range(2))
    add_banks(together, sources(together), signs=True)
    for net in (alone, together):
        enter(net, Phase.at(0.4, mode))
    sources(together)[0].bank.compute()
    for one, other in zip(sources(alone), sources(together), strict=True):
        for left, right in zip(one.signs_and_scale(), other.signs_and_scale(), strict=True):
            assert torch.equal(left, right) and lie(left) == lie(right)
        (3 * one.signs_and_scale()[0].square()).sum().backward()
    sum((3 * other.signs_and_scale()[0].square()).sum() for other in sources(together)).backward()
    for one, other in zip(sources(alone), sources(together), strict=True):
        assert torch.equal(one.latent.grad, other.latent.grad)


def test_weights_that_stand_still_are_computed_once_and_forgotten(monkeypatch):
    net = with_bank(a_net()).eval()
    made, compute = [], LatentBank.compute
    monkeypatch.setattr(LatentBank, "compute", lambda self: (made.append(1), compute(self)))
    with torch.no_grad(), computed_once(net):
        first = net(images())
        assert torch.equal(net(images()), first) and len(made) == 1
    assert all(source.cache is None for source in sources(net))
    with torch.no_grad():
        net[0].source.latent += 1
        assert not torch.equal(net(images()), first) and len(made) == 2


def test_a_failed_pass_leaves_nothing_behind():
    net = with_bank(a_net())
    with pytest.raises(RuntimeError):
        net(torch.zeros(1, 3, 9, 9))
    assert all(source.cache is None for source in sources(net))


def test_a_copy_has_a_bank_of_its_own():
    net = with_bank(a_net())
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for source in sources(net):
            source.latent.neg_()
    assert sources(twin)[0].bank is not sources(net)[0].bank
    assert torch.equal(twin(images()), a_net()(images()))
    remove_banks(twin)
    assert not twin._forward_pre_hooks and not twin._forward_hooks and net._forward_hooks


def test_layers_whose_scale_has_a_gradient_or_is_the_layers_compute_by_themselves():
    for scale in ("learned", "layer"):
        net = a_net(scale=scale)
        add_banks(net, sources(net), signs=False)
        assert all(source.bank is None for source in sources(net)) and not net._forward_pre_hooks
    assert Moment().mode == "soft"


def test_a_compiled_network_with_a_bank_is_one_graph():
    net = with_bank(a_net())
    fast = torch.compile(net, backend="eager", fullgraph=True)
    for phase in (Phase.at(0.2), Phase.at(0.7), Phase.at(0.7, "hard")):
        enter(net, phase)
        torch.testing.assert_close(fast(images()), net(images()))
        assert all(source.cache is None for source in sources(net))


@pytest.mark.parametrize("model,task", [("digits_vit", "bw"), ("digits_resnet", "bwa")])
def test_a_training_ends_like_one_of_layers_by_themselves_to_the_bit(model, task, make_trainer, tmp_path):
    ends = []
    for together in (True, False):
        fine_tuning = make_trainer(tmp_path / str(together), model=model, task=task, harden=0.5, ema=0.9)
        if not together:
            remove_banks(fine_tuning.net)
            remove_banks(fine_tuning.step.ema.module)
        fine_tuning.run()
        ends.append(fine_tuning.net.state_dict())
    assert all(torch.equal(ends[0][name], tensor) for name, tensor in ends[1].items())
