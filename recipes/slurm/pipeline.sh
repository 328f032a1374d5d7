#!/usr/bin/env bash
# Submits an array over methods and seeds, and a comparison that starts when all of it has succeeded.
#
#   recipes/slurm/pipeline.sh deit_tiny bc,pc,bnn++ 0,1,2 [flags of bnnpp binarize]
#
# $SBATCH_FLAGS goes to both jobs, such as SBATCH_FLAGS='--partition=low --account=mine'.
set -euo pipefail
model=${1:?usage: pipeline.sh MODEL METHODS SEEDS [FLAGS]}
IFS=, read -ra methods <<<"${2:?no METHODS given}"
IFS=, read -ra seeds <<<"${3:?no SEEDS given}"
read -ra flags <<<"${SBATCH_FLAGS:-}"
here=$(dirname "$0") tasks=$((${#methods[@]} * ${#seeds[@]}))

array=$(sbatch --parsable "${flags[@]}" --array="0-$((tasks - 1))" "$here/array.sbatch" "$@")
after=$(sbatch --parsable "${flags[@]}" --dependency="afterok:$array" --kill-on-invalid-dep=yes \
  "$here/compare.sbatch" "$@")
echo "array $array of $tasks runs of $model, then the comparison $after: bnnpp-compare-$after.out"
