#!/usr/bin/env bash
# Checks a build with CUDA on a machine with a GPU: parity of every method's logits with the CPU,
# then the quickstart on cuda:0. Writes its figures to results/cuda/ (or the folder given).
#
#   cargo build --release --features cuda && scripts/gpu_check.sh [OUT] [PEFT_BENCH]
#
# Takes less than 9 minutes. Skips with a message where there is no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-results/cuda}
bench=${2:-target/release/peft-bench}
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
  echo "skipped: this machine has no NVIDIA GPU"
  exit 0
fi
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  echo "== parity: the golden inputs on cuda:0 and on cpu"
  for model in gpt2 bert roberta distilbert; do
    folder=crates/models/tests/golden/$model
    for device in cpu cuda:0; do
      "$bench" logits --model "$folder" --inputs "$folder/golden.safetensors" \
        --out "$work/$model-${device%%:*}.safetensors" --device "$device"
    done
    "$bench" compare "$work/$model-cpu.safetensors" "$work/$model-cuda.safetensors" --tolerance 1e-3
  done
  echo "== the reduced quickstart on cuda:0"
  "$bench" sweep scripts/smoke.toml --device cuda:0 --out "$work/smoke" --quiet
  echo "== the quickstart on cuda:0, one seed"
  timeout 400 "$bench" sweep experiments/quickstart.toml --device cuda:0 --only s1 --out "$work/quickstart" --quiet
} 2>&1 | tee "$out/gpu_check.txt"
cp "$work/quickstart/runs.csv" "$out/quickstart-runs.csv"
