#!/usr/bin/env python3
"""Times training steps here and in the Python stack, side by side on one machine.

    python -m venv venv && venv/bin/pip install torch==2.15.0 transformers==4.57.6 peft==0.21.2 \
        adapters==1.3.0 bitsandbytes==0.50.2
    cargo build --release && venv/bin/python scripts/compare_hf.py --out results/speed

For each method it runs both sides one after the other in processes of their own, several times
over, on the same work: GPT-2 of distilgpt2's shape with random weights, one batch of random tokens,
AdamW. A round gives one ratio, so that a machine that is slow for a while is slow for both. Writes
`speed.json` with every figure and `speed.md` with the table.
"""
import argparse
import datetime
import json
import pathlib
import platform
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


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8, help="timed steps a round, after two that are not")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="methods whose name contains this")
    parser.add_argument("--binary", default="target/release/peft-bench")
    parser.add_argument("--burn-lora", help="binary of the example burn_lora, timed as a third side of LoRA")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--python-side", help=argparse.SUPPRESS)
    return parser.parse_args()


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
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01, fused=True)  # as its Trainer does
    ids = torch.randint(0, config.vocab_size, (args.batch, args.seq))
    model.train()
    times, losses = [], []
    for step in range(args.steps + 2):
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step >= 2:
            times.append(time.perf_counter() - start)
    print(json.dumps({
        "step_ms": 1e3 * statistics.median(times),
        "tokens_per_s": args.batch * args.seq / statistics.median(times),
        "peak_rss_mb": peak_mb(), "program_mb": program_mb,
        "trainable": sum(p.numel() for p in trained),
        "loss_first": losses[0], "loss_last": losses[-1],
    }))


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


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(name, args):
    """Every round of one method: both sides, one after the other."""
    kind, method = METHODS[name]
    size = ["--batch", str(args.batch), "--seq", str(args.seq), "--steps", str(args.steps), "--threads", str(args.threads)]
    sides = {
        "ours": [args.binary, "speed", "--shape", "distilgpt2", "--method", method, *size],
        "hf": [sys.executable, __file__, "--python-side", kind, *size],
    }
    if args.burn_lora and kind == "lora":
        sides["burn"] = [args.burn_lora, *size]
    rounds = []
    for index in range(args.rounds):
        order = list(sides) if index % 2 == 0 else list(sides)[::-1]
        rounds.append({side: run(sides[side]) for side in order})
        ours, theirs = rounds[-1]["ours"], rounds[-1]["hf"]
        print(f"{name}, round {index + 1}: {ours['step_ms']:.0f} ms against {theirs['step_ms']:.0f} ms, "
              f"{theirs['step_ms'] / ours['step_ms']:.2f}x", file=sys.stderr)
        if ours["trainable"] != theirs["trainable"]:
            sys.exit(f"{name}: {ours['trainable']} parameters are trained here, {theirs['trainable']} there")
        if abs(ours["loss_first"] - theirs["loss_first"]) > 0.5:
            sys.exit(f"{name}: the first losses are {ours['loss_first']} here and {theirs['loss_first']} there")
    return rounds


def median(rounds, side, key):
    return statistics.median(r[side][key] for r in rounds)


def ratios(rounds, side, key):
    """Ours to another side, round by round."""
    return sorted(r["ours"][key] / r[side][key] for r in rounds)


def table(results, args):
    lines = [
        "| | tokens/s here | tokens/s HF | ratio (lowest to highest round) | peak MB here | peak MB HF | ratio | GFLOP/s | share of ceiling |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, rounds in results.items():
        speed, memory = ratios(rounds, "hf", "tokens_per_s"), ratios(rounds, "hf", "peak_rss_mb")
        share = statistics.median(r["ours"]["gflops"] / r["ours"]["ceiling_gflops"] for r in rounds)
        lines.append(
            f"| {name} | {median(rounds, 'ours', 'tokens_per_s'):.0f} | {median(rounds, 'hf', 'tokens_per_s'):.0f} "
            f"| **{statistics.median(speed):.2f}** ({speed[0]:.2f} to {speed[-1]:.2f}) "
            f"| {median(rounds, 'ours', 'peak_rss_mb'):.0f} | {median(rounds, 'hf', 'peak_rss_mb'):.0f} "
            f"| **{statistics.median(memory):.2f}** | {median(rounds, 'ours', 'gflops'):.0f} | {share:.0%} |")
        if "burn" in rounds[0]:
            burn = ratios(rounds, "burn", "tokens_per_s")
            lines.append(f"| Burn's own `apply_lora`, the same LoRA | {median(rounds, 'burn', 'tokens_per_s'):.0f} | | "
                         f"ours is **{statistics.median(burn):.2f}** times as fast ({burn[0]:.2f} to {burn[-1]:.2f}) | "
                         f"{median(rounds, 'burn', 'peak_rss_mb'):.0f} | | | | |")
    return "\n".join(lines) + "\n"


def machine(args):
    from importlib.metadata import version
    cpu = platform.processor()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((l.split(":", 1)[1].strip() for l in info.read_text().splitlines() if l.startswith("model name")), cpu)
    packages = ", ".join(f"{p} {version(p)}" for p in PACKAGES)
    return {"date": datetime.date.today().isoformat(), "cpu": cpu, "threads": args.threads, "batch": args.batch,
            "seq": args.seq, "steps": args.steps, "rounds": args.rounds, "packages": packages}


def main():
    args = arguments()
    if args.python_side:
        return python_side(args)
    names = [n for n in METHODS if not args.only or args.only.lower() in n.lower()]
    results = {name: compare(name, args) for name in names}
    about = machine(args)
    text = (f"GPT-2 of distilgpt2's shape, random weights, batch {args.batch} x {args.seq} tokens, AdamW, {args.threads} threads; "
            f"medians of {args.rounds} rounds of {args.steps} steps, both sides alternating.\n"
            f"{about['cpu']}, {about['date']}; {about['packages']}.\n\n{table(results, args)}")
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "speed.json").write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")
        (args.out / "speed.md").write_text(text)


if __name__ == "__main__":
    main()
