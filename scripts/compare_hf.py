#!/usr/bin/env python3
"""Times training steps here and in the Python stack, side by side on one machine.

    python -m venv venv && venv/bin/pip install torch==2.15.0 transformers==4.57.6 peft==0.21.2 \
        adapters==1.3.0 bitsandbytes==0.50.2
    cargo build --release && venv/bin/python scripts/compare_hf.py --out results/speed

For each method both sides run as processes of their own on the same work: GPT-2 of distilgpt2's
shape with random weights, one batch of random tokens, AdamW. They take turns step by step, one
computing while the others wait, so that a machine that is slow for a while is slow for all. The
ratio is the median over pairs of neighbouring steps; its interval is from 10,000 bootstrap samples of
the pairs. Writes `speed.json` with every figure and `speed.md` with the table.
"""
import argparse
import datetime
import json
import pathlib
import platform
import random
import resource
import statistics
import subprocess
import sys
import time

METHODS = {
    "LoRA r8 on c_attn": ("lora", 'kind = "lora"\nrank = 8\nalpha = 16\ntargets = ["c_attn"]'),
    "Houlsby 16": ("houlsby", 'kind = "houlsby"\nbottleneck = 16'),
    "QLoRA: NF4 + double quantisation, LoRA r8 on c_attn": (
        "qlora",
        'kind = "lora"\nrank = 8\nalpha = 16\ntargets = ["c_attn"]\nstorage = "nf4"\ndouble_quant = true',
    ),
    "full fine-tuning": ("full", 'kind = "full"'),
}
PACKAGES = ["torch", "transformers", "peft", "adapters", "bitsandbytes"]


def parser(about, batch, seq, steps):
    """What every comparison takes, with this much work where nothing else is asked for."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--seq", type=int, default=seq)
    parser.add_argument("--steps", type=int, default=steps, help="timed steps, after two that are not")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between steps, for idle threads to fall asleep")
    parser.add_argument("--only", help="methods whose name contains this")
    parser.add_argument("--binary", default="target/release/peft-bench")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--python-side", help=argparse.SUPPRESS)
    return parser


def arguments():
    taken = parser(__doc__, batch=8, seq=128, steps=30)
    taken.add_argument("--burn-lora", help="binary of the example burn_lora, timed as a third side of LoRA")
    return taken.parse_args()


def python_side(args):
    """Trains with the Python libraries in this process and prints a JSON line."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(args.threads)
    program_mb = peak_mb()
    torch.manual_seed(0)
    config = GPT2Config(n_layer=6, n_embd=768, n_head=12, vocab_size=50257, n_positions=1024,
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
    model = prepared(GPT2LMHeadModel(config), config, args.python_side)
    ids = torch.randint(0, config.vocab_size, (args.batch, args.seq))
    print(json.dumps({**timed_steps(model, {"input_ids": ids, "labels": ids}, args), "program_mb": program_mb}))


def timed_steps(model, batch, args):
    """Trains on one batch, a step whenever a line comes in, and returns times, memory and losses."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01, fused=True)  # as its Trainer does
    model.train()
    times, losses = [], []
    for step in range(args.steps + 2):
        print("ready", flush=True)
        sys.stdin.readline()
        start = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step >= 2:
            times.append(time.perf_counter() - start)
    return {
        "step_ms": 1e3 * statistics.median(times), "steps_ms": [1e3 * t for t in times],
        "tokens_per_s": args.batch * args.seq / statistics.median(times),
        "peak_rss_mb": peak_mb(),
        "trainable": sum(p.numel() for p in trained),
        "loss_first": losses[0], "loss_last": losses[-1],
    }


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def prepared(model, config, method):
    """The model with the adapters of a method, as a user of the libraries would make it."""
    if method == "full":
        return model
    if method == "houlsby":
        import adapters
        adapters.init(model)
        model.add_adapter("a", config=adapters.DoubleSeqBnConfig(reduction_factor=config.n_embd / 16, non_linearity="relu"))
        model.train_adapter("a")
        return model
    from peft import LoraConfig, get_peft_model
    if method == "qlora":
        pack(model.transformer)
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn"], fan_in_fan_out=method == "lora"))


def pack(module):
    """Replaces linear layers by 4-bit ones, as transformers does on `load_in_4bit`."""
    import bitsandbytes as bnb
    import torch
    from transformers.pytorch_utils import Conv1D
    for name, child in module.named_children():
        if not isinstance(child, Conv1D):
            pack(child)
            continue
        weight = child.weight.data.T.contiguous()
        packed = bnb.nn.Linear4bit(weight.shape[1], weight.shape[0], bias=True, compute_dtype=torch.float32,
                                   compress_statistics=True, quant_type="nf4")
        packed.weight = bnb.nn.Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4")
        packed.bias.data = child.bias.data
        setattr(module, name, packed.to("cpu"))


class Side:
    """A process that takes one training step whenever it is told to."""

    def __init__(self, command):
        self.command = command
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True)
        self.last = None

    def wait(self):
        """Until it waits for its next step, or has printed its figures."""
        for line in self.process.stdout:
            if line.strip() == "ready":
                return
            self.last = line
        if self.process.wait():
            sys.exit(f"{' '.join(self.command)} failed:\n{self.process.stderr.read()[-2000:]}")

    def step(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.wait()


def compare(name, args):
    """The figures of every side of one method, taking turns."""
    kind, method = METHODS[name]
    size = ["--batch", str(args.batch), "--seq", str(args.seq), "--steps", str(args.steps), "--threads", str(args.threads)]
    commands = {
        "ours": [args.binary, "speed", "--paced", "--shape", "distilgpt2", "--method", method, *size],
        "hf": [sys.executable, __file__, "--python-side", kind, *size],
    }
    if args.burn_lora and kind == "lora":
        commands["burn"] = [args.burn_lora, "--paced", *size]
    figures = taking_turns(commands, args)
    ours, theirs = figures["ours"], figures["hf"]
    print(f"{name}: {ours['step_ms']:.0f} ms against {theirs['step_ms']:.0f} ms", file=sys.stderr)
    if ours["trainable"] != theirs["trainable"]:
        sys.exit(f"{name}: {ours['trainable']} parameters are trained here, {theirs['trainable']} there")
    if abs(ours["loss_first"] - theirs["loss_first"]) > 0.5:
        sys.exit(f"{name}: the first losses are {ours['loss_first']} here and {theirs['loss_first']} there")
    return figures


def taking_turns(commands, args):
    """Runs every side's command, step by step in turns, and returns the figures each prints."""
    sides = {}
    for side, command in commands.items():  # one after the other: loading is work too
        sides[side] = Side(command)
        sides[side].wait()
    for index in range(args.steps + 2):
        order = list(sides.values())
        for side in order if index % 2 == 0 else order[::-1]:
            time.sleep(args.pause)
            side.step()
    return {side: json.loads(process.last) for side, process in sides.items()}


def speedup(figures, side):
    """Median of the ratios of neighbouring steps, and its 95% interval."""
    ratios = [theirs / ours for ours, theirs in zip(figures["ours"]["steps_ms"], figures[side]["steps_ms"])]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(10_000))
    return statistics.median(ratios), medians[250], medians[9750]


def table(results, args):
    lines = [
        "| | tokens/s here | tokens/s HF | times as fast (95% interval) | peak MB here | peak MB HF | ratio | GFLOP/s | share of ceiling |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, figures in results.items():
        ours, theirs = figures["ours"], figures["hf"]
        middle, low, high = speedup(figures, "hf")
        lines.append(
            f"| {name} | {ours['tokens_per_s']:.0f} | {theirs['tokens_per_s']:.0f} "
            f"| **{middle:.2f}** ({low:.2f} to {high:.2f}) "
            f"| {ours['peak_rss_mb']:.0f} | {theirs['peak_rss_mb']:.0f} "
            f"| **{ours['peak_rss_mb'] / theirs['peak_rss_mb']:.2f}** | {ours['gflops']:.0f} "
            f"| {ours['gflops'] / ours['ceiling_gflops']:.0%} |")
        if "burn" in figures:
            middle, low, high = speedup(figures, "burn")
            burn = figures["burn"]
            lines.append(f"| Burn's own `apply_lora`, the same LoRA | | {burn['tokens_per_s']:.0f} "
                         f"| **{middle:.2f}** ({low:.2f} to {high:.2f}) | | {burn['peak_rss_mb']:.0f} "
                         f"| **{ours['peak_rss_mb'] / burn['peak_rss_mb']:.2f}** | | |")
    return "\n".join(lines) + "\n"


def machine(args):
    from importlib.metadata import version
    cpu = platform.processor()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((l.split(":", 1)[1].strip() for l in info.read_text().splitlines() if l.startswith("model name")), cpu)
    packages = ", ".join(f"{p} {version(p)}" for p in PACKAGES)
    return {"date": datetime.date.today().isoformat(), "cpu": cpu, "threads": args.threads, "batch": args.batch,
            "seq": args.seq, "steps": args.steps, "packages": packages}


def main():
    args = arguments()
    if args.python_side:
        return python_side(args)
    names = [n for n in METHODS if not args.only or args.only.lower() in n.lower()]
    results = {name: compare(name, args) for name in names}
    about = machine(args)
    text = (f"GPT-2 of distilgpt2's shape, random weights, batch {args.batch} x {args.seq} tokens, AdamW, {args.threads} threads; "
            f"{args.steps} timed steps, the sides taking turns step by step.\n"
            f"{about['cpu']}, {about['date']}; {about['packages']}.\n\n{table(results, args)}")
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "speed.json").write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")
        (args.out / "speed.md").write_text(text)


if __name__ == "__main__":
    main()
