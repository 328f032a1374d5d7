#!/usr/bin/env bash
# The tables of docs/results.md at a GPU's budgets: bash tests/gpu/evidence.sh OUTPUT [MINUTES]
#
# Run it again to go on: finished rows are kept, stopped ones resume. JOBS rows share the GPU. DATA holds the image
# folders cifar10 and imagenette, WEIGHTS the pretrained files; ROWS=FILE replaces the rows below.
#   python docs/generate.py --store OUTPUT      keeps what has finished
# It has never run on a GPU.
set -u
cd "$(dirname "$0")/../.." || exit
out=${1:?usage: evidence.sh OUTPUT [MINUTES]} minutes=${2:-9}
export PYTHON=${PYTHON:-.venv/bin/python} DEVICE=${DEVICE:-cuda} out
DATA=${DATA:-data} WEIGHTS=${WEIGHTS:-../shared/data/weights}
mkdir -p "$out"

rows() { # the most telling first: a folder, then the flags of bnnpp compare
  local cifar="--weights $WEIGHTS/resnet20_cifar10.safetensors --data-dir $DATA/cifar10 -b 128"
  local deit="--weights $WEIGHTS/deit_tiny_patch16_224.safetensors --data-dir $DATA/imagenette -b 64"
  local seed method
  for seed in 0 1 2; do
    for method in bnn++ bc bnn+ pc bnn parq binary-relax pq rpc ptq; do
      echo "resnet20-bw-$method-$seed resnet20 --task bw --methods $method --seeds $seed --epochs 100 $cifar"
    done
    for method in bnn++ bnn+ bnn; do
      echo "resnet20-bwa-$method-$seed resnet20 --task bwa --methods $method --seeds $seed --epochs 200 $cifar"
      echo "deit_tiny-bwa-$method-$seed deit_tiny --task bwa --methods $method --seeds $seed --epochs 100 $deit"
    done
    for method in bnn++ bc bnn+ pc; do
      echo "deit_tiny-bw-$method-$seed deit_tiny --task bw --methods $method --seeds $seed --epochs 100 $deit"
    done
  done
  for method in bnn++ bnn+ bnn; do
    echo "resnet20-bwaa-$method resnet20 --task bwaa --methods $method --epochs 200 $cifar"
  done
  for method in bc bnn++; do
    echo "resnet20-scratch-$method resnet20 --recipes paper/end-to-end/$method --no-pretrained --data-dir $DATA/cifar10 -b 128"
  done
}

row() { # FOLDER FLAGS...: one row, stopped in time to save its state
  local folder=$out/$1 left=$((deadline - $(cut -d. -f1 /proc/uptime)))
  shift
  ((left > 60)) || return 0
  timeout --kill-after=60 "$left" "$PYTHON" -m binarize_cli compare "$@" --device "$DEVICE" --amp bf16 \
    --output "$folder" 2>>"$folder.log" >/dev/null
  case $? in
  0) echo "done     $*" ;;
  75 | 124) echo "stopped  $*" ;;
  *) echo "FAILED   $*: $(tail -n 2 "$folder.log" | tr '\n' ' ')" ;;
  esac
}
export -f row
export deadline=$(($(cut -d. -f1 /proc/uptime) + 60 * minutes))
{ [ -n "${ROWS:-}" ] && cat "$ROWS" || rows; } | xargs -P "${JOBS:-6}" -d '\n' -I{} bash -c 'row {}'
