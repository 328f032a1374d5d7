#!/usr/bin/env bash
# What only a GPU can show, in about ten minutes: bash tests/gpu/check.sh [OUTPUT FOLDER]
# It has never run on one. It ends with a table of what failed.
set -u
cd "$(dirname "$0")/../.." || exit
PYTHON=${PYTHON:-.venv/bin/python} DEVICE=${DEVICE:-cuda} out=${1:-/tmp/bnnpp-gpu}
mkdir -p "$out"
: >"$out/summary"

check() { # name, seconds, command...: one line of the summary
  local name=$1 seconds=$2
  shift 2
  if timeout "$seconds" "$@" >"$out/$name.log" 2>&1; then
    echo "ok    $name" | tee -a "$out/summary"
  else
    echo "FAIL  $name (exit $?): $(tail -n 1 "$out/$name.log")" | tee -a "$out/summary"
  fi
}
bnnpp() { check "$1" "$2" "$PYTHON" -m binarize_cli "${@:3}"; }

check facts 30 "$PYTHON" -c "
import torch
assert '$DEVICE' == 'cpu' or torch.cuda.is_available(), 'torch sees no GPU'
print(torch.__version__, torch.cuda.is_available() and torch.cuda.get_device_name())"
grep -q "^FAIL" "$out/summary" && exit 1

# Are sums of signs whole numbers, whatever algorithm cuDNN chooses?
check sums 60 "$PYTHON" -c "
import torch, torch.nn.functional as F
worst = 0.0
for tf32 in (False, True):
    torch.backends.cudnn.allow_tf32 = tf32
    for c, size, batch in ((16, 32, 64), (64, 8, 64), (64, 56, 16), (256, 14, 16), (512, 7, 16)):
        x, w = (torch.randn(s, device='$DEVICE').sign() for s in ((batch, c, size, size), (c, c, 3, 3)))
        y = F.conv2d(x, w, padding=1)
        worst = max(worst, float((y - y.round()).abs().max()))
print('farthest from a whole number:', worst)
assert worst < 0.25"

# Do the kernels in Triton compute what the CPU does, forwards and backwards? Does Triton work at all?
check kernels 120 env PYTHONPATH=tests "$PYTHON" -c "
import torch, test_fused as t
from binarize_cli.binarize.fused.launch import triton_works
assert '$DEVICE' == 'cpu' or triton_works(), 'Triton does not work here'
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
for name, make in t.LAYERS.items():
    for mode in ('soft', 'hard'):
        for rule in (None, t.AccumulatorRule('saturate')):
            if rule and mode == 'soft':  # a last bit decides what overflows
                continue
            layer, x = t.layer_of(make(), mode, rule)
            expected = t.gradients(layer, x)
            layer.zero_grad()
            for there, here in zip(t.gradients(layer.to('$DEVICE'), x.to('$DEVICE')), expected):
                torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)"

run() { bnnpp "$1" 90 binarize "${@:2}" --device "$DEVICE" --epochs 2 -b 128 --overwrite -o "$out/$1"; }
run vit-bw digits_vit
run vit-bw-off digits_vit --amp off
run vit-pq-fp16 digits_vit --method pq --amp fp16 --set train.ema=0.9
run vit-compiled digits_vit --compile
run resnet-bwa digits_resnet --task bwa
run resnet-bwa-deterministic digits_resnet --task bwa --deterministic
run resnet-bwa-off digits_resnet --task bwa --amp off
run resnet-bwaa digits_resnet --task bwaa
run vit-attention digits_vit --task bwaa --set activation.attention=binary
bnnpp eval 60 eval "$out/resnet-bwa/model.safetensors" --device "$DEVICE"
bnnpp eval-on-cpu 60 eval "$out/resnet-bwa/model.safetensors" --device cpu

bench() { bnnpp "$1" 90 bench train "${@:2}" --device "$DEVICE"; }
data=(--dataset cifar10 ${BNNPP_DATA:+--data-dir "$BNNPP_DATA"})
bench bench-resnet20 resnet20 --tasks bw,bwa,bwaa -b 512 "${data[@]}"
bench bench-deit_tiny deit_tiny --tasks bw,bwa,bwaa -b 256 "${data[@]}"
bench bench-resnet20-compiled resnet20 --tasks bw -b 512 --compile "${data[@]}"

# CUDA graphs by torch.compile: recorded, not skipped, and as fast as the launches they spare.
if [ "$DEVICE" != cpu ]; then
  export TORCH_LOGS=cudagraphs
  run vit-graphs digits_vit --compile reduce-overhead
  run resnet-graphs-bwa digits_resnet --task bwa --compile reduce-overhead
  run resnet-graphs-bwaa digits_resnet --task bwaa --compile reduce-overhead
  bench bench-resnet20-graphs resnet20 --tasks bw,bwa -b 512 --compile reduce-overhead "${data[@]}"
  check graphs-recorded 5 sh -c "grep -q 'Recording function' '$out/vit-graphs.log' &&
    ! grep 'skipping cudagraphs' '$out/vit-graphs.log' '$out'/resnet-graphs-*.log"
  unset TORCH_LOGS
fi

# Two GPUs: NCCL, with a copy of the model on each, and with a part of it.
if [ "$DEVICE" != cpu ] && "$PYTHON" -c "import torch; assert torch.cuda.device_count() > 1" 2>/dev/null; then
  for kind in ddp fsdp; do
    check "two-gpus-$kind" 120 "$PYTHON" -m torch.distributed.run --nproc-per-node 2 -m binarize_cli binarize \
      digits_vit --task bwa --parallel "$kind" --epochs 2 -b 128 --overwrite -o "$out/two-gpus-$kind"
  done
fi

echo "--- what failed (logs: $out)"
grep "^FAIL" "$out/summary" || echo "nothing"
