"""Ranks: who is who, batches shared out, sums over ranks, and that a rank's death is noticed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from binarize_cli import ranks
from binarize_cli.binarize.batchnorm import reestimate
from binarize_cli.data.digits import open_digits
from binarize_cli.data.loaders import Batches, ScoreBatches, _part
from binarize_cli.data.transforms import Transform
from binarize_cli.device import find_device
from binarize_cli.errors import InputError, Interrupted
from binarize_cli.evaluation import measure
from binarize_cli.ranks import RankInfo, find_rank_info, first_host
from binarize_cli.training import state
from binarize_cli.training.parallel import synchronise

CPU = torch.device("cpu")

# --- who is who ------------------------------------------------------------------------------------------

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "n7",
    "MASTER_PORT": "29500",
}
STEP = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_NODELIST": "n[3-4]",
    "SLURM_STEP_NODELIST": "n[3-4]",
}


def test_torchrun_says_which_rank_this_is():
    assert find_rank_info(TORCHRUN) == RankInfo(3, 4, 1, "n7", 29500)
    assert find_rank_info(STEP | TORCHRUN) == RankInfo(3, 4, 1, "n7", 29500), "torchrun inside srun"


def test_slurm_says_which_rank_this_is():
    place = find_rank_info(STEP)
    assert (place.rank, place.world, place.local_rank, place.address) == (2, 4, 0, "n3")
    assert 15_000 <= place.port < 31_000
    assert find_rank_info(STEP | {"SLURM_PROCID": "0"}).port == place.port
    others = [{"SLURM_STEP_ID": "2"}, {"SLURM_JOB_ID": "4243"}]
    assert all(find_rank_info(STEP | other).port != place.port for other in others)
    assert find_rank_info(STEP | {"MASTER_ADDR": "gw", "MASTER_PORT": "7"}).address == "gw"


def test_one_task_or_a_batch_shell_is_a_plain_run():
    assert find_rank_info({}) == RankInfo()
    assert find_rank_info(STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) == RankInfo()
    shell = {key: value for key, value in STEP.items() if "STEP" not in key}
    assert find_rank_info(shell | {"SLURM_PROCID": "0"}) == RankInfo()


@pytest.mark.parametrize(
    ("change", "named"),
    [({"RANK": "four"}, "RANK"), ({"RANK": "4"}, "RANK"), ({"LOCAL_RANK": None}, "LOCAL_RANK")],
)
def test_variables_that_make_no_sense_are_named(change, named):
    env = {key: value for key, value in (TORCHRUN | change).items() if value is not None}
    with pytest.raises(InputError) as left:
        find_rank_info(env)
    assert left.value.where == named and "torchrun" in left.value.hint


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-3,5]", "n1"),
        ("gpu[01-04,7]-ib,m1", "gpu01-ib"),
        ("r[2,4]n[08-11],x", "r2n08"),
        ("a-b.cluster.org,c", "a-b.cluster.org"),
    ],
)
def test_the_first_host_of_a_list_of_nodes(nodes, first):
    assert first_host(nodes) == first


def test_each_rank_has_the_gpu_of_its_number_on_the_node(monkeypatch):
    monkeypatch.setattr(ranks, "_store", object())
    monkeypatch.setattr(ranks, "rank_info", lambda: RankInfo(5, 8, 1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr("binarize_cli.device._identity", lambda index: ("n1", f"GPU-{index}"))
    monkeypatch.setattr(ranks, "exchange", lambda own: [("n0", own and own[1]), own])
    for count, index in ((4, 1), (2, 1), (1, 0)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert find_device("auto") == find_device("cuda") == torch.device("cuda", index)
    with pytest.raises(InputError, match="cannot share"):
        find_device("cuda:0")
    monkeypatch.setattr(ranks, "rank_info", lambda: RankInfo(7, 8, 3))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="local rank 3 has no GPU: 2 found"):
        find_device("auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # SLURM shows all tasks the same one
    monkeypatch.setattr(ranks, "exchange", lambda own: [own, ("n0", "GPU-0"), own])
    with pytest.raises(InputError, match=r"ranks 0, 2 have the same GPU on n1") as caught:
        find_device("auto")
    assert "--gpus-per-task=1" in caught.value.hint
    assert find_device("cpu") == CPU


class OldDDP(torch.nn.Module):
    """Takes the flags of torch 2.11."""

    def __init__(self, net, broadcast_buffers=True, gradient_as_bucket_view=False):
        super().__init__()
        self.flags = (broadcast_buffers, gradient_as_bucket_view)


class NewDDP(torch.nn.Module):
    """Takes those of torch 2.15, where the old one is deprecated."""

    def __init__(self, net, broadcast_buffers=None, gradient_as_bucket_view=False, forward_sync_buffers=True):
        super().__init__()
        assert broadcast_buffers is None
        self.flags = (forward_sync_buffers, gradient_as_bucket_view)


@pytest.mark.parametrize("ddp", [OldDDP, NewDDP])
def test_ddp_sends_no_buffers_and_keeps_no_second_gradient(ddp, monkeypatch):
    from binarize_cli.training import parallel

    monkeypatch.setattr(parallel, "DistributedDataParallel", ddp)
    monkeypatch.setattr(ranks, "world", lambda: 2)
    assert parallel.DataParallel(torch.nn.Linear(2, 2)).net.flags == (False, True)


# --- batches shared out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 8, 12, 20])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_parts_of_a_batch_are_the_batch_and_hold_the_pairs_of_mixup(size, parts):
    batch = [100 + i for i in range(size)]
    shared = [_part(batch, number, parts) for number in range(parts)]
    assert (
        sorted(image for part in shared for image in part) == batch
        and len({len(part) for part in shared}) == 1
    )
    if size // parts % 2 == 0:
        partner = dict(zip(batch, reversed(batch), strict=True))
        for part in shared:
            assert [partner[image] for image in part] == part[::-1]


def pretend(monkeypatch, number: int, world: int) -> None:
    monkeypatch.setattr(ranks, "rank", lambda: number)
    monkeypatch.setattr(ranks, "world", lambda: world)


def test_ranks_and_micro_batches_see_the_images_of_one_rank_with_the_same_augmentation(monkeypatch):
    split = open_digits(None, need_train=True).train.subset(range(40))

    def noisy(image):
        return torch.from_numpy(np.array(image))[None] + torch.randint(9, (1,), dtype=torch.uint8)

    def erase(image):
        image += torch.rand(())

    transform = Transform(noisy, lambda pixels: pixels.float(), erase)

    def epoch(accumulate: int) -> list[torch.Tensor]:
        batches = Batches(split, transform, batch_size=12, seed=5, accumulate=accumulate)
        assert len(batches) == 3 and batches.micro_batch == 12 // batches.parts
        return [images for images, _ in batches.epoch(2)]

    whole = epoch(1)
    shared: list[list[torch.Tensor]] = [[], [], []]
    for number in range(2):
        pretend(monkeypatch, number, 2)
        micro_batches = epoch(3)
        assert len(micro_batches) == 9
        for step in range(3):
            shared[step] += micro_batches[3 * step : 3 * step + 3]
    for step, parts in zip(whole, shared, strict=True):
        ours, theirs = (
            torch.stack(sorted(t, key=lambda i: i.sum().item())) for t in (step, torch.cat(parts))
        )
        assert torch.equal(ours, theirs)


def test_a_batch_that_cannot_be_shared_out_is_refused(monkeypatch):
    split = open_digits(None, need_train=True).train.subset(range(10))
    pretend(monkeypatch, 0, 4)
    with pytest.raises(InputError, match="10 images cannot be shared out over 4 ranks") as left:
        Batches(split, None, batch_size=10, seed=0)
    assert left.value.where == "train.batch_size" and "multiple of 4" in left.value.hint
    assert Batches(split, None, batch_size=64, seed=0).batch_size == 8
    with pytest.raises(InputError, match="10 images are too few"):
        Batches(split, None, batch_size=64, seed=0, accumulate=4)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_image_is_scored_once(world, monkeypatch):
    digits = open_digits(None, need_train=False)
    split = digits.val.subset(range(11))
    preprocessing = type("P", (), {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)})()
    monkeypatch.setattr("binarize_cli.data.loaders.score_transform", lambda p: p)
    seen = []
    for number in range(world):
        pretend(monkeypatch, number, world)
        seen += [index for batch in ScoreBatches(split, preprocessing, 4).batches for index in batch]
    assert sorted(seen) == list(range(11))


# --- sums over ranks, in real processes ------------------------------------------------------------------


def values(ended) -> list:
    assert [each.code for each in ended] == [0] * len(ended), [each.err for each in ended]
    return [each.value for each in ended]


def a_score(net: nn.Module, number: int, world: int):
    draw = torch.Generator().manual_seed(1)
    batches = [(torch.randn(n, 6, generator=draw), torch.arange(n) % 4) for n in (5, 5, 3)]
    return measure(net, batches[number::world], CPU)


@pytest.mark.parametrize("world", [2, 4], ids=["two ranks", "one of four without a batch"])
def test_scores_are_those_of_one_rank(world, on_ranks):
    torch.manual_seed(0)
    net = nn.Linear(6, 4)
    expected = a_score(net, 0, 1)
    for found in values(on_ranks(world, lambda number: a_score(net, number, world))):
        assert (found.top1, found.top5, found.images) == (expected.top1, expected.top5, 13)
        assert found.confusion == expected.confusion
        assert found.loss == pytest.approx(expected.loss, abs=2e-6)


def test_what_ranks_tell_each_other(on_ranks, tmp_path):
    def talk(number: int):
        turns = tmp_path / "turns"
        with ranks.rank0_first(), turns.open("a") as file:
            time.sleep(0.2 * (number == 0))
            file.write(f"{number} ")
        told = ranks.broadcast_from_rank0(lambda: f"rank {number} was asked")
        total = ranks.reduce_sum(torch.tensor([number + 1.0, 1.0])).tolist()
        faults = []
        for guilty in (1, 0):
            try:
                with ranks.raise_on_all_ranks():
                    if number == guilty:
                        raise InputError("no such image", where="x.png")
            except InputError as error:
                faults.append((error.where, error.on_all_ranks))
        try:
            ranks.broadcast_from_rank0(
                lambda: int("7") / 0 if number else (_ for _ in ()).throw(InputError("full"))
            )
        except InputError as error:
            faults.append(error.what)
        return told, total, faults

    expected = ("rank 0 was asked", [3.0, 2.0], [("rank 1: x.png", True), ("x.png", True), "full"])
    assert values(on_ranks(2, talk)) == [expected] * 2
    assert (tmp_path / "turns").read_text() == "0 1 "


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_synchronised_batchnorm_is_that_of_the_whole_batch(dtype, on_ranks):
    """Output, gradient and running statistics, against torch's BatchNorm on both halves together.

    Inputs in bfloat16 are what --amp gives; it rounds what goes in and out, not the statistics.
    """
    draw = torch.Generator().manual_seed(3)
    x, g = (torch.randn(8, 5, 3, 3, generator=draw).to(dtype) for _ in range(2))

    def through(net: nn.Module, part: slice):
        inputs = x[part].clone().requires_grad_()
        out = net(inputs)
        out.backward(g[part])
        weight = ranks.reduce_sum(net[0].weight.grad)
        return out.detach(), inputs.grad, weight, net[0].running_mean, net[0].running_var

    def net() -> nn.Sequential:
        norm = nn.BatchNorm2d(5, momentum=0.3)
        nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
        return nn.Sequential(norm)

    expected = through(net(), slice(None))

    def half(number: int):
        synced = synchronise(net(), CPU)
        assert type(synced[0]).__name__ == "SyncBatchNorm"
        return through(synced, slice(4 * number, 4 * number + 4))

    first, second = values(on_ranks(2, half))
    joined = [torch.cat(pair) for pair in zip(first[:2], second[:2], strict=True)]
    for found, wanted in zip([*joined, *first[2:]], expected, strict=True):
        rtol, atol = (1e-5, 1e-6) if found.dtype == torch.float32 else (2e-2, 1e-3)
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)
    assert all(torch.equal(a, b) for a, b in zip(first[2:], second[2:], strict=True))


def test_reestimated_statistics_are_the_mean_over_ranks(on_ranks):
    def statistics(number: int):
        net = nn.Sequential(nn.BatchNorm1d(4))
        draw = torch.Generator().manual_seed(number)
        reestimate(net, [(torch.randn(8, 4, generator=draw) + number, None)], CPU)
        return net[0].running_mean, net[0].running_var

    first, second = values(on_ranks(2, statistics))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    drawn = [torch.randn(8, 4, generator=torch.Generator().manual_seed(i)) + i for i in range(2)]
    torch.testing.assert_close(first[0], torch.stack([x.mean(0) for x in drawn]).mean(0))
    torch.testing.assert_close(first[1], torch.stack([x.var(0) for x in drawn]).mean(0))


# --- training over ranks ---------------------------------------------------------------------------------

# Respreading at the hardening ranks magnitudes: rounding can swap two of them. Hence two settings without it.
SETTINGS = {
    "transformer": {"model": "digits_vit", "method": "bnn++"},
    "BatchNorm": {"model": "digits_resnet", "method": "bnn++", "sync_batchnorm": True, "harden": 0.0},
    "mixed, averaged": {"model": "digits_vit", "method": "bc", "mixup": 0.4, "cutmix": 0.4, "ema": 0.5},
    "binary inputs": {"model": "digits_vit", "method": "bnn++", "task": "bwa"},
    "int8 sums": {"model": "digits_vit", "method": "bnn++", "task": "bwaa", "harden": 0.0},
    "map after the step": {"model": "digits_vit", "method": "pq"},
    "map before the step": {"model": "digits_vit", "method": "rpc", "harden": 0.0},
}
COMMON = {"epochs": 2, "images": 16, "opt": "sgd", "lr": 0.05, "warmup": 0.0, "harden": 0.25}


def trained(make_trainer, folder, **setting):
    """What a training ends with. SGD: Adam's first steps magnify rounding where a gradient is nearly 0."""
    fine_tuning = make_trainer(folder, **{**COMMON, **setting})
    rows = fine_tuning.run()
    return fine_tuning.net.state_dict(), [(row.epoch, row.loss, row.flip_ratio) for row in rows]


def agree(found, expected) -> None:
    for name, tensor in expected[0].items():
        torch.testing.assert_close(found[0][name], tensor, rtol=1e-4, atol=2e-6, msg=name)
    for (_, loss, flips), (_, its_loss, its_flips) in zip(found[1][1:], expected[1][1:], strict=True):
        assert loss == pytest.approx(its_loss, rel=1e-4) and flips == pytest.approx(its_flips, abs=1e-3)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_two_ranks_with_half_the_batch_each_are_one_rank(setting, make_trainer, on_ranks, tmp_path):
    one = {key: value for key, value in setting.items() if key != "sync_batchnorm"}
    expected = trained(make_trainer, tmp_path / "one", **one)
    found = values(on_ranks(2, lambda number: trained(make_trainer, tmp_path / "two", **setting)))
    for each in found:
        agree(each, expected)
    assert all(torch.equal(tensor, found[1][0][name]) for name, tensor in found[0][0].items())


@pytest.mark.parametrize("amp", ["off", "fp16"])
@pytest.mark.parametrize("method", ["bnn++", "pq", "rpc"])
def test_micro_batches_are_the_whole_batch(method, amp, make_trainer, tmp_path):
    setting = {"model": "digits_vit", "method": method, "clip_grad": 0.5, "ema": 0.5, "amp": amp}
    whole, parts = (trained(make_trainer, tmp_path / str(n), accumulate=n, **setting) for n in (1, 4))
    if amp == "off":
        agree(parts, whole)
    for (_, loss, _), (_, expected, _) in zip(parts[1][1:], whole[1][1:], strict=True):
        assert loss == pytest.approx(expected, rel=1e-2)


def test_ranks_and_micro_batches_together_are_one_rank(make_trainer, on_ranks, tmp_path):
    setting = {"model": "digits_vit", "method": "bnn++"}
    expected = trained(make_trainer, tmp_path / "one", **setting)
    found = values(
        on_ranks(2, lambda number: trained(make_trainer, tmp_path / "two", accumulate=2, **setting))
    )
    agree(found[0], expected)


@pytest.mark.parametrize("guilty", [0, 1])
def test_a_signal_to_any_rank_stops_all_and_the_first_saves(guilty, make_trainer, on_ranks, tmp_path):
    setting = {**COMMON, "model": "digits_vit", "method": "bnn++"}
    whole = make_trainer(tmp_path / "whole", **setting)
    whole.run()

    def stopped(number: int):
        fine_tuning = make_trainer(tmp_path / "stopped", **setting)
        rule, count = fine_tuning.step.objective, [0]

        def objective(*args):
            count[0] += 1
            if number == guilty and count[0] == 3:
                signal.raise_signal(signal.SIGCONT)
                signal.raise_signal(signal.SIGUSR1)
            return rule(*args)

        fine_tuning.step.objective = objective
        try:
            fine_tuning.run()
        except Interrupted as left:
            ranks.barrier()
            return str(left), left.exit_code

    told = values(on_ranks(2, stopped))
    assert told[0] == told[1] and "after step 3" in told[0][0] and told[0][1] == 75
    assert [path.name for path in state.saved_states(tmp_path / "stopped")] == [
        "step-00000003.state",
        "step-00000002.state",
    ]

    def resumed(number: int):
        fine_tuning = make_trainer(tmp_path / "stopped", **setting)
        return len(fine_tuning.run(resume=True)), fine_tuning.net.state_dict()

    for rows, net in values(on_ranks(2, resumed)):
        assert rows == 3
        for name, tensor in whole.net.state_dict().items():
            torch.testing.assert_close(net[name], tensor, rtol=1e-4, atol=2e-6)


def test_divergence_on_one_rank_is_divergence_on_all_told_by_the_first(make_trainer, on_ranks, tmp_path):
    def diverging(number: int):
        fine_tuning = make_trainer(tmp_path / "run", model="digits_vit", method="bnn++")
        rule = fine_tuning.step.objective
        fine_tuning.step.objective = lambda *args: rule(*args) * (torch.nan if number else 1)
        fine_tuning.run()

    first, second = on_ranks(2, diverging)
    assert (first.code, second.code) == (3, 3)
    assert "diverged at step 1" in first.err and "error" not in second.err


@pytest.mark.parametrize("guilty", [0, 1, 2])
def test_a_rank_that_dies_ends_the_others_in_seconds_with_one_message(
    guilty, make_trainer, on_ranks, tmp_path
):
    def dying(number: int):
        fine_tuning = make_trainer(tmp_path / "run", model="digits_vit", batch_size=9, images=27)
        rule = fine_tuning.step.objective

        def objective(*args):
            if number == guilty:
                (tmp_path / "when").write_text(str(time.time()))
                os.kill(os.getpid(), signal.SIGKILL)
            return rule(*args)

        fine_tuning.step.objective = objective
        fine_tuning.run()

    ended = on_ranks(3, dying)
    assert time.time() - float((tmp_path / "when").read_text()) < 15
    assert ended[guilty].code == -signal.SIGKILL
    others = [each for number, each in enumerate(ended) if number != guilty]
    assert {each.code for each in others} == {1}
    said = [each.err for each in others if f"rank {guilty} of 3 has died" in each.err]
    assert len(said) == 1 and "--resume" in said[0]


def test_a_fault_that_one_rank_alone_has_is_told_by_it_and_ends_all(on_ranks):
    def failing(number: int):
        if number:
            raise InputError("cannot be decoded", where="x.png")
        torch.distributed.barrier()  # as training would wait for the gradient

    first, second = on_ranks(2, failing)
    assert second.code == 2 and "rank 1: x.png: cannot be decoded" in second.err
    assert first.code == 1 and "rank 1 of 2 has died or failed" in first.err


# --- the command -----------------------------------------------------------------------------------------


def command(*words: object) -> list[subprocess.CompletedProcess]:
    """`bnnpp` as two ranks, in processes of their own."""
    with socket.create_server(("localhost", 0)) as free:
        port = str(free.getsockname()[1])
    started = []
    for number in range(2):
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        env |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
        env |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        program = [sys.executable, "-m", "binarize_cli", *map(str, words)]
        started.append(subprocess.Popen(program, env=env, stdout=-1, stderr=-1, text=True))
    ended = []
    for child in started:
        out, err = child.communicate(timeout=300)
        ended.append(subprocess.CompletedProcess(child.args, child.returncode, out, err))
    return ended


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("digits_vit", "--method", "bnn++", "--set", "train.epoch=3"), "unknown key 'train.epoch'"),
        (("digits_vit", "--data-dir", "nowhere"), "nowhere"),
        (("digits_vit", "--dataset", "digits", "-b", 7), "shared out over 2 ranks"),
        (("digits_vit", "--dataset", "digits", "--parallel", "fsdp", "--compile"), "is not compiled"),
    ],
    ids=["recipe", "data", "batch", "parallel"],
)
def test_wrong_input_is_one_message_and_every_rank_leaves_with_2(words, told, empty):
    first, second = command("binarize", *words)
    assert (first.returncode, second.returncode) == (2, 2)
    assert first.stderr.count("error:") == 1
    assert told in first.stderr and (second.stdout, second.stderr) == ("", "")
    assert not list(empty.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_of_two_ranks_packs_what_a_run_of_one_packs(parallel, bnnpp, empty):
    """To rounding: the same signs but for a few, the same accuracy but for a few images."""
    words = ("digits_resnet", "--dataset", "digits", "--epochs", 2, "-b", 128, "--opt", "sgd", "--lr", 0.002)
    words = ("binarize", *words, "--set", "train.sync_batchnorm=true", "--set", "train.harden=0")
    one = json.loads(bnnpp(*words, "-o", "one", "--json").out)
    first, second = command(*words, "--parallel", parallel, "-o", "two", "--json")
    assert (first.returncode, second.returncode, second.stdout, second.stderr) == (0, 0, "", "")
    two = json.loads(first.stdout)
    for ours, theirs in zip(one["epochs"], two["epochs"], strict=True):
        assert ours["hard_top1"] == pytest.approx(theirs["hard_top1"], abs=1.5)
        if ours["epoch"]:  # before training there is no loss
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)
    assert two["accuracy"]["packed"]["images"] == 360
