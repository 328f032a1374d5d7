"""On a CUDA device, as far as it can be told without one: no mix of devices, few waits, few launches."""

from __future__ import annotations

import json

import launches
import pytest
import torch
from pretended_cuda import CUDA, pretended_cuda

from binarize_cli.training.phases import PhasePlan

QUICK = ("float", "bw soft", "bw hard")


# --- the device that is pretended --------------------------------------------------------------------------


def test_tensors_of_two_devices_do_not_mix():
    with pretended_cuda() as gpu:
        x = torch.ones(3, device="cuda")
        assert x.device == CUDA and x.is_cuda and (x + 1).is_cuda
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        assert not gpu.mixed
        assert (x * torch.tensor(2.0)).tolist() == [2.0] * 3 and sum(gpu.mixed.values()) == 1


def test_launches_and_waits_are_counted():
    with pretended_cuda() as gpu:
        x = torch.ones(4).to("cuda", non_blocking=True)
        gpu.forget()
        total = (x.view(2, 2) * 2).sum()
        assert dict(gpu.launches) == {"mul": 1, "sum": 1} and not gpu.waits
        assert float(total) == 8.0 and x[x > 0].tolist() == [1.0] * 4
    assert {place.split(" at ")[0] for place in gpu.waits} == {
        "_local_scalar_dense",
        "index by a mask",
        "copy to the CPU",
    }


def test_without_numbers_a_step_is_counted_all_the_same():
    found = []
    for computes in (True, False):
        with pretended_cuda(computes=computes) as gpu:
            net = torch.nn.Linear(3, 2).to("cuda")
            net(torch.zeros(5, 3, device="cuda")).sum().backward()
        found.append(dict(gpu.launches))
    assert found[0] == found[1]


# --- whole commands ----------------------------------------------------------------------------------------

RUNS = {
    "weights": "digits_vit --amp off",
    "activations": "digits_resnet --task bwa --amp bf16 --set train.ema=0.9",
}
LONG = {
    "scaled": "digits_vit --amp fp16 --method pq --set train.accumulate=2",
    "accumulators": "digits_resnet --task bwaa --amp off",
    "attention": "digits_vit --task bwa --set activation.attention=binary --amp bf16",
    "accumulated attention": "digits_vit --task bwaa --set activation.attention=binary --amp fp16",
    "stages": "digits_resnet --recipe two-stage --set train.activation_epochs=1 --set distill.blocks=1",
    "learned scales": "digits_vit --method rpc --set quantizer.scale=learned --set train.mixup=0.5",
    "one scale a layer": "digits_vit --method parq --set quantizer.scale=layer",
}
SMALL = "--epochs 1 -b 4 -j 0 --no-pretrained"
STEPS = 4


@pytest.mark.parametrize(
    "words",
    [*RUNS.values(), *(pytest.param(words, marks=pytest.mark.slow) for words in LONG.values())],
    ids=[*RUNS, *LONG],
)
def test_a_run_keeps_to_its_device_and_waits_once_a_step(words, bnnpp, tiny, tmp_path):
    with pretended_cuda() as gpu:
        done = bnnpp("binarize", *words.split(), *SMALL.split(), "--data-dir", tiny, "-o", tmp_path / "run")
    assert done.code == 0, done.err
    stages = 2 if "activation_epochs" in words else 1
    files = tuple(f"at training/{name}.py" for name in ("step", "reading", "loop"))
    read = {place: n for place, n in gpu.waits.items() if place.startswith(("event", "copy to the CPU"))}
    losses = {place: n for place, n in read.items() if any(file in place for file in files)}
    # one a step, and one an epoch: whether a signal came
    assert sum(losses.values()) == stages * (STEPS + 1), gpu.waits
    assert not [place for place in gpu.waits if "binarize/layers" in place]


def test_images_kept_on_the_device_are_copied_there_once(bnnpp, tmp_path):
    """Digits are augmented on the device; `eval` and `bench` keep to it as well; a run goes on there."""
    run = tmp_path / "run"
    words = ("binarize", "digits_vit", "-b", 512, "-o", run)
    with pretended_cuda() as gpu:
        file = bnnpp(*words, "--epochs", 1).packed
        batches = {place: n for place, n in gpu.waits.items() if "data/device.py" in place}
        assert sum(batches.values()) <= 6, batches
        done = bnnpp("eval", file, "-j", 0, "--json")
        assert done.code == 0, done.err
    packed = json.loads((run / "report.json").read_text())["accuracy"]["packed"]
    assert json.loads(done.out)["top1"] == packed["top1"]


@pytest.mark.slow
def test_a_run_is_taken_up_again_on_the_device(bnnpp, tiny, tmp_path):
    from binarize_cli.training.stop import StopRequest

    words = ("binarize", "digits_vit", "--data-dir", tiny, *SMALL.split(), "--set", "train.ema=0.9")
    taken = []

    def stop_after_two(self):
        taken.append(1)
        return 75 if len(taken) == 2 else 0

    with pretended_cuda():
        with pytest.MonkeyPatch.context() as patch:
            code = property(stop_after_two, lambda self, value: None)
            patch.setattr(StopRequest, "code", code, raising=False)
            left = bnnpp(*words, "-o", tmp_path / "run")
        assert left.code == 75, left.err
        done = bnnpp(*words, "-o", tmp_path / "run", "--resume")
    assert done.code == 0 and "continuing from" in done.err


@pytest.mark.slow
def test_bench_and_compare_keep_to_the_device(bnnpp, tiny, tmp_path):
    with pretended_cuda() as gpu:
        words = ("bench", "train", "digits_vit", "--dataset", "digits", "-b", 8, "--steps", 1)
        done = bnnpp(*words, "--tasks", "bw,bwa", "--json")
        assert done.code == 0, done.err
        flags = ("--data-dir", tiny, *SMALL.split(), "-o", tmp_path / "all")
        done = bnnpp("compare", "digits_vit", "--methods", "bc,ptq", *flags)
        assert done.code == 0, done.err
    assert sum(gpu.launches.values()) > 1000


# --- single rules ------------------------------------------------------------------------------------------


def test_scoring_waits_for_its_sums_alone_and_never_in_a_batch():
    from binarize_cli.evaluation import measure

    with pretended_cuda() as gpu:
        net = torch.nn.Linear(3, 4).to("cuda")
        batches = [(torch.randn(5, 3, device="cuda"), torch.arange(5, device="cuda") % 4)] * 6
        gpu.forget()
        found = measure(net, batches, CUDA)
    assert found.images == 30 and sum(map(sum, found.confusion)) == 30
    assert sum(gpu.waits.values()) <= 3, gpu.waits


def test_scoring_is_in_float32_whatever_training_was_in(monkeypatch):
    from binarize_cli.device import allow_tf32, full_float32

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    try:
        allow_tf32("bf16", CUDA)
        with full_float32(CUDA):
            assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


def test_sums_of_signs_are_integers_whatever_algorithm_cudnn_chooses(monkeypatch):
    from binarize_cli.binarize import float_accumulator
    from binarize_cli.binarize.accumulator import Window

    images, weights = (torch.randn(shape).sign() for shape in ((2, 4, 6, 6), (3, 4, 3, 3)))
    exact, window = torch.nn.functional.conv2d(images, weights), Window((3, 3), (1, 1), (1, 1), 1)
    whole = torch.nn.functional.conv2d
    monkeypatch.setattr(float_accumulator.F, "conv2d", lambda *args: whole(*args) * (1 + 1e-6))
    sums = float_accumulator.FloatAccumulator()
    with pretended_cuda():
        there = images.to("cuda"), weights.to("cuda")
        assert not torch.equal(sums.conv(*there, window).cpu(), exact)
        sums.integers = True
        assert torch.equal(sums.conv(*there, window).cpu(), exact)


def test_sums_of_linear_layers_are_rounded_before_they_are_cast_to_integers(monkeypatch):
    from binarize_cli.binarize import float_accumulator
    from binarize_cli.packed.integer_accumulator import IntegerAccumulator

    rows, weights = (torch.randn(shape).sign() for shape in ((5, 300), (4, 300)))
    exact = rows @ weights.T
    noisy = lambda values, weights: (values @ weights.T) * (1 - 1e-6)  # noqa: E731
    monkeypatch.setattr(float_accumulator.F, "linear", noisy)
    with pretended_cuda():
        sums = float_accumulator.FloatAccumulator()
        sums.integers = True
        assert torch.equal(sums.linear(rows.to("cuda"), weights.to("cuda")).cpu(), exact)
        monkeypatch.setattr(torch.Tensor, "float", lambda x: x.to(torch.float32) * (1 - 1e-6))
        found = IntegerAccumulator().linear(rows.to("cuda"), weights.to("cuda")).cpu()
    assert torch.equal(found.round(), exact) and float((found - exact).abs().max()) < 1e-3


def test_a_step_that_the_scaler_skips_maps_no_latents_and_leaves_the_average(make_trainer, tmp_path):
    fine_tuning = make_trainer(tmp_path, "pq", "digits_vit", amp="fp16", ema=0.5)
    step = fine_tuning.step
    step.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=2.0**8)
    step.phases = PhasePlan("binary", steps=4, harden=0.0, harden_inputs=0.0)
    before = {name: tensor.clone() for name, tensor in fine_tuning.net.state_dict().items()}
    average = {name: tensor.clone() for name, tensor in step.ema.module.state_dict().items()}
    next(p for p in fine_tuning.net.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    fine_tuning.take_step([next(iter(fine_tuning.batches.epoch(0)))], 2)
    assert all(torch.equal(before[name], t) for name, t in fine_tuning.net.state_dict().items())
    assert all(torch.equal(average[name], t) for name, t in step.ema.module.state_dict().items())


def test_the_named_device_is_the_present_one(monkeypatch):
    from binarize_cli.device import find_device

    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert find_device("cuda:1") == torch.device("cuda", 1) and chosen == [1]


def test_batches_cross_to_the_device_as_bytes_and_are_normalised_there(tiny):
    from binarize_cli.data.datasets import open_dataset
    from binarize_cli.data.loaders import Batches, ScoreBatches
    from binarize_cli.data.transforms import train_transform
    from binarize_cli.models.load import load
    from binarize_cli.models.names import resolve
    from binarize_cli.recipe import Augment

    dataset = open_dataset(None, tiny)
    rule = load(resolve("digits_vit"), pretrained=False).preprocessing
    transform = train_transform(rule, Augment(), dataset)

    def batches(device):
        made = Batches(dataset.train, transform, batch_size=4, seed=1, device=device)
        return [*made.epoch(0), *ScoreBatches(dataset.val, rule, 4, device=device)]

    expected, crossed = batches(torch.device("cpu")), []
    with pretended_cuda() as gpu:
        whole = gpu._run
        gpu._run = lambda func, args, *more: (
            crossed.append(args[0].dtype) if func is torch.ops.aten._to_copy.default else None,
            whole(func, args, *more),
        )[1]
        found = [(images.cpu(), targets.cpu()) for images, targets in batches(CUDA)]
    assert torch.uint8 in crossed
    for (images, targets), (others, wanted) in zip(found, expected, strict=True):
        assert torch.equal(images, others) and torch.equal(targets, wanted)


def test_batchnorm_is_estimated_anew_without_a_wait_in_a_batch():
    from binarize_cli.binarize.batchnorm import reestimate

    with pretended_cuda() as gpu:
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).to("cuda")
        batches = [(torch.randn(5, 3, device="cuda"), None) for _ in range(6)]
        gpu.forget()
        reestimate(net, batches, CUDA)
    assert not gpu.waits, gpu.waits
    assert net[1].momentum == 0.1


def test_rprelu_is_computed_in_float32_whatever_autocast_says():
    from binarize_cli.binarize.blocks import RPReLU

    layer, x = RPReLU(3), torch.randn(2, 3, 4, 4) - 1
    torch.nn.init.constant_(layer.slope, 0.1234567)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), expected)


def test_deterministic_kernels_are_a_flag(bnnpp, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on, warn_only: asked.append(warn_only))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    done = bnnpp("binarize", "digits_vit", "--epochs", 0, "--deterministic", "-o", tmp_path / "run")
    assert done.code == 0 and asked == [True]


def test_a_compiled_teacher_teaches_the_same(monkeypatch):
    from binarize_cli.training.teacher import Teacher

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net: whole(net, backend="eager"))
    net, images = torch.nn.Linear(3, 4), torch.randn(5, 3)
    teacher = Teacher(net, compile=True)
    assert teacher.forward is not net
    torch.testing.assert_close(teacher(images, 0), net(images))


# --- launches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model,kind",
    [
        pytest.param(model, kind, marks=() if kind in QUICK and model == "resnet20" else pytest.mark.slow)
        for model in launches.MODELS
        for kind in launches.KINDS
    ],
)
def test_a_step_asks_for_as_many_kernels_as_documented_and_waits_once(model, kind):
    gpu = launches.count(model, kind, launches.MODELS[model])
    advice = f"run `uv run python tests/launches.py`, if they must be more: {gpu.lines.most_common(8)}"
    more = sum(gpu.launches.values()) - launches.documented()[model, kind]
    older = launches.pytorch() < launches.counted_with()  # copies each convolution's gradient once more
    assert 0 <= more <= (gpu.launches["convolution"] if older else 0), advice
    assert sum(gpu.waits.values()) == 1, gpu.waits
