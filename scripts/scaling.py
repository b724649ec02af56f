#!/usr/bin/env python3
"""Tokens a second against batch, sequence length, threads and rank: cost should grow as the
arithmetic does, so that the GFLOP/s of a column stay level.

    cargo build --release && scripts/scaling.py --out results/speed
"""
import argparse
import json
import pathlib
import subprocess
import sys

LORA = 'kind = "lora"\nrank = {rank}\nalpha = 16\ntargets = ["c_attn"]'
BASE = {"batch": 8, "seq": 128, "threads": 2, "rank": 8}
AXES = {"batch": [1, 2, 4, 8, 16], "seq": [32, 64, 128, 256, 512], "threads": [1, 2], "rank": [1, 8, 64, 256]}


def speed(binary, point, steps):
    command = [binary, "speed", "--shape", "distilgpt2", "--method", LORA.format(rank=point["rank"]), "--steps", str(steps)]
    for option in ("batch", "seq", "threads"):
        command += [f"--{option}", str(point[option])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/peft-bench")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    rows, lines = [], ["| axis | value | step ms | tokens/s | GFLOP a step | GFLOP/s | peak MB |", "|---|---:|---:|---:|---:|---:|---:|"]
    for axis, values in AXES.items():
        for value in values:
            found = speed(args.binary, {**BASE, axis: value}, args.steps)
            rows.append({"axis": axis, "value": value, **found})
            lines.append(f"| {axis} | {value} | {found['step_ms']:.0f} | {found['tokens_per_s']:.0f} "
                         f"| {found['gflop_per_step']:.0f} | {found['gflops']:.0f} | {found['peak_rss_mb']:.0f} |")
            print(lines[-1], file=sys.stderr)
    base = ", ".join(f"{name} {value}" for name, value in BASE.items())
    text = f"LoRA on c_attn, GPT-2 of distilgpt2's shape; unless the row says otherwise: {base}.\n\n" + "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "scaling.json").write_text(json.dumps(rows, indent=1) + "\n")
        (args.out / "scaling.md").write_text(text)


if __name__ == "__main__":
    main()
