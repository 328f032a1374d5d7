"""A step as a GPU should see it: nothing recompiled as schedules move, and no wait before the next one."""

from __future__ import annotations

import pytest
import torch
from pretended_cuda import pretended_cuda

from binarize_cli.errors import Diverged
from binarize_cli.training import state
from binarize_cli.training.reading import Outcome, not_finite

# --- the loss, read a step late ----------------------------------------------------------------------------


def make_late(trainer, late=True):
    """Give a training on the CPU CUDA's fused optimizer, and let it look at losses a step late, or not."""
    step, old = trainer.step, trainer.step.optimizer
    step.optimizer = type(old)([{**g, "fused": True, "foreach": None} for g in old.param_groups])
    step.scheduler.optimizer, step.late = step.optimizer, late
    return trainer


def test_a_number_that_is_not_finite_is_found_without_asking_for_it():
    for bad in (torch.nan, torch.inf, -torch.inf):
        assert not_finite(torch.tensor([1.0, bad])) == 1
    assert not_finite(torch.tensor([3e38, 1.0])) == 0


def test_losses_read_a_step_late_leave_the_same_network_and_the_same_rows(make_trainer, tmp_path):
    ends = []
    for late in (False, True):
        trainer = make_late(make_trainer(tmp_path / str(late), "pq", epochs=2, ema=0.9, clip_grad=1.0), late)
        rows = trainer.run()
        ends.append(([(row.loss, row.hard) for row in rows], trainer.net.state_dict()))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(tensor, ends[1][1][name]) for name, tensor in ends[0][1].items())


def test_a_step_tells_of_the_one_before(make_trainer, tmp_path):
    trainer = make_late(make_trainer(tmp_path))
    first, second = list(trainer.batches.epoch(0))[:2]
    assert trainer.take_step([first], 0) is None
    assert isinstance(trainer.take_step([second], 1), Outcome)
    assert isinstance(trainer.step.catch_up(str), Outcome) and trainer.step.catch_up(str) is None


@pytest.mark.parametrize("bad", [4, 5, 6], ids=["last of its epoch", "first", "second"])
def test_divergence_is_noticed_late_but_told_as_if_at_once(bad, make_trainer, tmp_path):
    """Of four steps an epoch: no update by a bad gradient, none after it, and no state of it is kept."""
    trainer, moved = make_late(make_trainer(tmp_path, epochs=3)), []
    latent = trainer.net.layer3[0].conv2.source.latent
    trainer.step.optimizer.register_step_pre_hook(lambda *_: moved.append(latent.detach().clone()))
    phases = trainer.step.phases

    def spoil(gradient):
        return gradient * torch.inf if trainer.binary.phase == phases.at(bad - 1) else gradient

    latent.register_hook(spoil)
    with pytest.raises(Diverged, match=rf"at step {bad}, in layer3\.0\.conv2") as left:
        trainer.run()
    assert torch.equal(latent, moved[bad - 1]) and not torch.equal(latent, moved[bad - 2])
    kept = [state.load(path) for path in state.saved_states(tmp_path)]
    assert [saved["position"]["epoch"] for saved in kept] == ([1] if bad > 4 else [])
    assert ("last good state" if bad > 4 else "No epoch had ended") in str(left.value)


def test_a_state_saved_within_an_epoch_holds_the_loss_of_its_last_step(make_trainer, tmp_path):
    trainer = make_late(make_trainer(tmp_path))
    trainer.saving.minutes = 0.0
    trainer._leave_if = lambda code: trainer.global_step < 2 or 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    saved = state.load_newest(tmp_path)["position"]
    trainer = make_late(make_trainer(tmp_path / "again"), late=False)
    batches = list(trainer.batches.epoch(0))
    trainer.net.train()
    assert saved["step"] == 2
    assert saved["loss"] == sum(trainer.take_step([batches[i]], i).loss for i in range(2))


def test_a_gpu_is_asked_for_the_next_step_before_the_loss_of_the_last_is_waited_for(
    bnnpp, tiny, tmp_path, monkeypatch
):
    """And a run that diverges there ends with the step and the layer, and without a file."""
    from binarize_cli.training.reading import Reading

    asked, whole = [], Reading.wait
    monkeypatch.setattr(
        Reading, "wait", lambda self: (asked.append(gpu.launches["_fused_adamw_"]), whole(self))[1]
    )
    words = ("binarize", "digits_vit", "--data-dir", tiny, "--epochs", 1, "-b", 4, "-j", 0, "--no-pretrained")
    with pretended_cuda() as gpu:
        done = bnnpp(*words, "-o", tmp_path / "run")
        assert done.code == 0, done.err
        each = asked[0] // 2  # launches of the optimizer a step
        assert asked == [each * steps for steps in (2, 3, 4, 4)]
        left = bnnpp(*words, "--opt", "sgd", "--lr", "1e30", "-o", tmp_path / "other")
    assert left.code == 3 and "diverged at step 2, in " in left.err, left.err
    assert not list((tmp_path / "other").rglob("model.safetensors"))


def test_what_ranks_want_of_each_other_is_made_on_the_device(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path)
    with pretended_cuda() as gpu:
        trainer.device = torch.device("cuda", 0)
        assert len(trainer._wishes()) == 3
    assert not gpu.waits


# --- compiled ----------------------------------------------------------------------------------------------


def test_a_compiled_training_compiles_for_soft_and_for_hard_and_moves_numbers_in_place(
    make_trainer, tmp_path, monkeypatch
):
    """mu, rho and the learning rate move with every step; tensors stay where a CUDA graph has read them."""
    from torch._dynamo.testing import CompileCounter

    counter, whole, counts, places, numbers = CompileCounter(), torch.compile, [], set(), []
    monkeypatch.setattr(torch, "compile", lambda net, mode: whole(net, backend=counter, fullgraph=True))
    trainer = make_trainer(tmp_path, model="digits_vit", compile="default", epochs=2, harden=0.5, warmup=0.5)
    read = [*trainer.net.parameters(), *trainer.net.buffers(), *trainer.binary.quantizer.buffers()]
    take = trainer.step.take

    def counted(*args):
        outcome = take(*args)
        counts.append(counter.frame_count)
        places.add(tuple(tensor.data_ptr() for tensor in read))
        numbers.append(
            (float(trainer.binary.quantizer.values["mu"]), trainer.step.optimizer.param_groups[0]["lr"])
        )
        return outcome

    trainer.step.take = counted
    trainer.run()
    assert counts == [
        2,
        2,
        2,
        2,
        3,
        3,
        3,
        3,
    ]  # two graphs, of the weights and of the network; F of the weights
    assert len(places) == 1 and len({mu for mu, _ in numbers}) == 4 and len({lr for _, lr in numbers}) > 6


@pytest.mark.slow
@pytest.mark.parametrize("model,task", [("digits_vit", "bw"), ("digits_resnet", "bwaa")])
def test_nothing_in_a_compiled_step_keeps_pytorch_from_recording_cuda_graphs(
    model, task, make_trainer, tmp_path, monkeypatch
):
    """Every graph, soft and hard, forwards and backwards, on another device: no tensor of the CPU is left."""
    from torch._inductor.fx_passes.post_grad import ConstructorMoverPass
    from torch._inductor.utils import get_first_incompatible_cudagraph_node

    graphs, whole = [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda net, mode: whole(net, fullgraph=True, backend=lambda *graph: _kept(*graph))
    )

    def _kept(graph, inputs):
        graphs.append((graph, inputs))
        return graph.forward

    trainer = make_trainer(tmp_path, model=model, task=task, compile="default", harden=0.5)
    trainer.run()
    assert len(graphs) >= 3
    splits = torch._inductor.config.graph_partition
    for graph, inputs in graphs:
        traced = _traced_elsewhere(graph, inputs)
        ConstructorMoverPass("meta", splits, splits)(traced)  # as Inductor moves constants to the device
        tensors = [node for node in traced.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
        assert {str(node.kwargs.get("device", node.meta["val"].device)) for node in tensors} == {"meta"}
        assert get_first_incompatible_cudagraph_node(traced.owning_module) is None


def _traced_elsewhere(graph, inputs):
    """Return the operators of a graph and of its gradient, for inputs on a device without numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    def with_gradient(*given):
        outs = graph(*given)
        outs = [out for out in outs if isinstance(out, torch.Tensor) and out.requires_grad]
        leaves = [each for each in given if isinstance(each, torch.Tensor) and each.requires_grad]
        return torch.autograd.grad([out.float().sum() for out in outs], leaves, allow_unused=True)

    def elsewhere(tensor):
        if not isinstance(tensor, torch.Tensor):
            return tensor
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return made.requires_grad_(tensor.requires_grad)

    with FakeTensorMode():
        return make_fx(with_gradient)(*map(elsewhere, inputs)).graph


def test_cuda_graphs_are_a_mode_of_the_flag_and_need_a_gpu_and_whole_batches(bnnpp, tmp_path, monkeypatch):
    asked = []
    words = ("binarize", "digits_vit", "--epochs", 0, "-o", tmp_path / "run")
    left = bnnpp(*words, "--compile", "reduce-overhead")
    assert (
        left.code == 2
        and "CUDA graphs, and training is on cpu" in left.err
        and not (tmp_path / "run").exists()
    )
    monkeypatch.setattr(torch, "compile", lambda net, mode="default": (asked.append(mode), net)[1])
    with pretended_cuda():
        left = bnnpp(*words, "--compile", "reduce-overhead", "--set", "train.accumulate=2")
        assert left.code == 2 and "2 micro-batches" in left.err
        assert bnnpp(*words, "--compile", "reduce-overhead").code == 0
    assert "reduce-overhead" in asked
    asked.clear()
    assert bnnpp("binarize", "--compile", *words[1:], "--overwrite").code == 0 and set(asked) == {"default"}
