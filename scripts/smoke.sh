#!/usr/bin/env bash
# Runs a reduced quickstart, kills it once on the way, resumes it, and checks what it leaves behind.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
bench=target/release/peft-bench
sweep=("$bench" sweep scripts/smoke.toml --out "$out" --threads 2 --quiet)

"${sweep[@]}" &
pid=$!
for _ in $(seq 600); do
  [ -n "$(ls "$out/records" 2>/dev/null)" ] && break
  sleep 0.1
done
kill -9 "$pid" 2>/dev/null || true
wait "$pid" 2>/dev/null || true
first=$(ls "$out/records" | head -1)
stamp=$(stat -c %Y "$out/records/$first")

"${sweep[@]}"
for file in runs.csv REPORT.md report.html plots; do
  [ -e "$out/$file" ] || { echo "missing $file"; exit 1; }
done
count=$(ls "$out/records" | wc -l)
[ "$count" = 5 ] || { echo "expected 5 records, found $count"; exit 1; }
[ "$stamp" = "$(stat -c %Y "$out/records/$first")" ] || { echo "a finished trial ran again"; exit 1; }
"$bench" report "$out" >/dev/null
"$bench" generate --model experiments/base/quickstart --prompt "User likes cooking videos" --max-new-tokens 8
echo "smoke test passed: resumed after a kill, 5 trials, report written"
