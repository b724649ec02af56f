#!/usr/bin/env python3
"""The fused operations against their plain forms, from what Criterion measured last.

    cargo bench -p kernels && scripts/fused_table.py > results/speed/fused.md
"""
import json
import pathlib
import sys

ROOT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "target/criterion")


def median(group, form):
    found = json.loads((group / form / "new/estimates.json").read_text())["median"]
    bounds = found["confidence_interval"]
    return [found["point_estimate"] / 1e6, bounds["lower_bound"] / 1e6, bounds["upper_bound"] / 1e6]


def main():
    groups = sorted(g for g in ROOT.iterdir() if (g / "fused").is_dir())
    if not groups:
        sys.exit(f"`{ROOT}` holds no measurements; run `cargo bench -p kernels` first")
    print("Forward and backward pass of each fused operation against the same of the backend's own "
          "operations, batch 8 x 128, d 768, 2 threads; medians in ms with 95% intervals "
          "(`cargo bench -p kernels`). Products: ours against the `gemm` crate's.\n")
    print("| operation | fused, ms | plain, ms | times as fast |\n|---|---:|---:|---:|")
    for group in groups:
        fused, plain = (median(group, form) for form in ("fused", "plain"))
        cells = " | ".join(f"{m:.1f} ({low:.1f} to {high:.1f})" for m, low, high in (fused, plain))
        print(f"| {group.name} | {cells} | {plain[0] / fused[0]:.1f} |")


if __name__ == "__main__":
    main()
