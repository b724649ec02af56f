#!/usr/bin/env python3
"""Times a training step of every method here and in the Python libraries, side by side on one machine.

    python -m venv venv && venv/bin/pip install torch==2.15.0 transformers==4.57.6 peft==0.21.2 \
        adapters==1.3.0 bitsandbytes==0.50.2
    cargo build --release && venv/bin/python scripts/compare_methods.py --out results/speed

What `compare_hf.py` does for four methods on a language model, for all that the libraries have, on a BERT
of MiniLM's shape (6 layers, 384 wide) with random weights and a classifier: one batch of random tokens,
AdamW, all linear layers of the blocks where the method goes by layer. Both sides train equally many
values, or the script ends. Writes `methods.json` with every figure and `methods.md` with the table.
"""
import json
import sys

from compare_hf import machine, parser, peak_mb, speedup, taking_turns, timed_steps

LINEAR = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def linear(cls, **settings):
    """A method of PEFT over all linear layers of the blocks."""
    def build(model):
        import peft
        config = getattr(peft, cls)(task_type="SEQ_CLS", target_modules=LINEAR, **settings)
        return peft.get_peft_model(model, config)
    return build


def prompt(cls, **settings):
    """A method of PEFT with virtual tokens."""
    def build(model):
        import peft
        return peft.get_peft_model(model, getattr(peft, cls)(task_type="SEQ_CLS", **settings))
    return build


def hub(cls, **settings):
    """A method of AdapterHub."""
    def build(model):
        import adapters
        adapters.init(model)
        model.add_adapter("a", config=getattr(adapters, cls)(**settings))
        model.train_adapter("a")
        return model
    return build


def ia3(model):
    """(IA)^3 on the outputs of all linear layers, on the inputs of the last feed-forward ones."""
    import peft
    layers = [f"bert.encoder.layer.{number}." for number in range(model.config.num_hidden_layers)]
    outputs = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
               "intermediate.dense"]
    feedforward = [layer + "output.dense" for layer in layers]
    targets = [layer + name for layer in layers for name in outputs] + feedforward
    config = peft.IA3Config(task_type="SEQ_CLS", target_modules=targets, feedforward_modules=feedforward)
    return peft.get_peft_model(model, config)


def bitfit(model):
    for name, param in model.named_parameters():
        param.requires_grad = name.startswith("classifier") or name.endswith("bias")
    return model


ALL = 'targets = "all-linear"'
METHODS = {
    "LoRA r4": (f'kind = "lora"\nrank = 4\n{ALL}', linear("LoraConfig", r=4, lora_alpha=16)),
    "DoRA r4": (f'kind = "dora"\nrank = 4\n{ALL}', linear("LoraConfig", r=4, lora_alpha=16, use_dora=True)),
    "AdaLoRA r6": (f'kind = "adalora"\ninit_rank = 6\ntarget_rank = 4\n{ALL}',
                   linear("AdaLoraConfig", init_r=6, target_r=4, lora_alpha=16, total_step=10_000)),
    "VeRA r256": (f'kind = "vera"\nrank = 256\n{ALL}', linear("VeraConfig", r=256)),
    "(IA)^3": (f'kind = "ia3"\n{ALL}', ia3),
    "HiRA r4": (f'kind = "hira"\nrank = 4\n{ALL}', linear("HiraConfig", r=4)),
    "LoHa r2": (f'kind = "loha"\nrank = 2\n{ALL}', linear("LoHaConfig", r=2)),
    "LoKr r8": (f'kind = "lokr"\nrank = 8\n{ALL}', linear("LoKrConfig", r=8)),
    "MiSS r8": (f'kind = "miss"\nrank = 8\n{ALL}', linear("MissConfig", r=8)),
    "OFT 16": (f'kind = "oft"\nblock_size = 16\n{ALL}', linear("OFTConfig", r=0, oft_block_size=16, use_cayley_neumann=True)),
    "BOFT 4": (f'kind = "boft"\nblock_size = 4\n{ALL}', linear("BOFTConfig", boft_block_size=4)),
    "HRA r8": (f'kind = "hra"\nrank = 8\n{ALL}', linear("HRAConfig", r=8)),
    "FourierFT 1000": (f'kind = "fourierft"\nn_frequency = 1000\n{ALL}', linear("FourierFTConfig", n_frequency=1000)),
    "DeLoRA r4": (f'kind = "delora"\nrank = 4\n{ALL}', linear("DeloraConfig", r=4)),
    "GraLoRA r4": (f'kind = "gralora"\nrank = 4\n{ALL}', linear("GraloraConfig", r=4)),
    "RandLoRA r32": (f'kind = "randlora"\nrank = 32\n{ALL}', linear("RandLoraConfig", r=32)),
    "VB-LoRA r4": (f'kind = "vb_lora"\nrank = 4\nnum_vectors = 96\nvector_length = 96\n{ALL}',
                   linear("VBLoRAConfig", r=4, num_vectors=96, vector_length=96)),
    "C3A 64": (f'kind = "c3a"\nblock_size = 64\n{ALL}', linear("C3AConfig", block_size=64)),
    "RoAd 1": (f'kind = "road"\n{ALL}', linear("RoadConfig")),
    "LayerNorm tuning": ('kind = "ln_tuning"', prompt("LNTuningConfig", target_modules=["LayerNorm"])),
    "Prompt tuning 32": ('kind = "prompt_tuning"\nnum_virtual_tokens = 32', prompt("PromptTuningConfig", num_virtual_tokens=32)),
    "P-tuning 20": ('kind = "p_tuning"\nnum_virtual_tokens = 20\nencoder_hidden_size = 96',
                    prompt("PromptEncoderConfig", num_virtual_tokens=20, encoder_hidden_size=96)),
    "Prefix 32": ('kind = "prefix"\nnum_virtual_tokens = 32', prompt("PrefixTuningConfig", num_virtual_tokens=32)),
    "BitFit": ('kind = "bitfit"', bitfit),
    "Houlsby 16": ('kind = "houlsby"\nbottleneck = 16', hub("DoubleSeqBnConfig", reduction_factor=24, non_linearity="relu")),
    "Pfeiffer 32": ('kind = "pfeiffer"\nbottleneck = 32', hub("SeqBnConfig", reduction_factor=12)),
    "Parallel 32": ('kind = "parallel"\nbottleneck = 32', hub("ParBnConfig", reduction_factor=12)),
    "AdapterPlus 32": ('kind = "adapter_plus"\nbottleneck = 32\nstochastic_depth = 0.0', hub("AdapterPlusConfig", reduction_factor=12, stochastic_depth=0.0)),
    "Compacter 12": ('kind = "compacter"\nbottleneck = 12', hub("CompacterConfig", reduction_factor=32)),
    "Compacter++ 12": ('kind = "compacter_plus"\nbottleneck = 12', hub("CompacterPlusPlusConfig", reduction_factor=32)),
    "LoReFT 16": ('kind = "loreft"\nr = 16', hub("LoReftConfig", r=16)),
}


def python_side(args):
    """Trains with the Python libraries in this process and prints a JSON line."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.set_num_threads(args.threads)
    program_mb = peak_mb()
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=6, hidden_size=384, num_attention_heads=12, intermediate_size=1536,
                        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2)
    model = METHODS[args.python_side][1](BertForSequenceClassification(config))
    ids = torch.randint(1000, config.vocab_size, (args.batch, args.seq))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(args.batch) % 2}
    print(json.dumps({**timed_steps(model, batch, args), "program_mb": program_mb}))


def compare(name, args):
    """The figures of both sides of one method, taking turns."""
    size = ["--batch", str(args.batch), "--seq", str(args.seq), "--steps", str(args.steps), "--threads", str(args.threads)]
    figures = taking_turns({
        "ours": [args.binary, "speed", "--paced", "--shape", "minilm", "--method", METHODS[name][0], *size],
        "theirs": [sys.executable, __file__, "--python-side", name, *size],
    }, args)
    ours, theirs = figures["ours"], figures["theirs"]
    print(f"{name}: {ours['step_ms']:.0f} ms against {theirs['step_ms']:.0f} ms, "
          f"{ours['trainable']} and {theirs['trainable']} values", file=sys.stderr)
    if ours["trainable"] != theirs["trainable"]:
        sys.exit(f"{name}: both sides must train equally many values")
    return figures


def table(results):
    lines = [
        "| | trained | ms a step here | in Python | times as fast (95% interval) | peak MB here | in Python | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, figures in results.items():
        ours, theirs = figures["ours"], figures["theirs"]
        middle, low, high = speedup(figures, "theirs")
        lines.append(
            f"| {name} | {ours['trainable']:,} | {ours['step_ms']:.0f} | {theirs['step_ms']:.0f} "
            f"| **{middle:.2f}** ({low:.2f} to {high:.2f}) | {ours['peak_rss_mb']:.0f} | {theirs['peak_rss_mb']:.0f} "
            f"| **{ours['peak_rss_mb'] / theirs['peak_rss_mb']:.2f}** |")
    return "\n".join(lines) + "\n"


def main():
    args = parser(__doc__, batch=32, seq=48, steps=12).parse_args()
    if args.python_side:
        return python_side(args)
    names = [n for n in METHODS if not args.only or args.only.lower() in n.lower()]
    results, about = {}, machine(args)
    for name in names:
        results[name] = compare(name, args)
        write(results, about, args)
    print(table(results))


def write(results, about, args):
    """After every method, so that what was measured is kept when a later one fails."""
    text = (f"BERT of MiniLM's shape, random weights, batch {args.batch} x {args.seq} tokens, AdamW, {args.threads} threads; "
            f"{args.steps} timed steps, both sides taking turns step by step.\n"
            f"{about['cpu']}, {about['date']}; {about['packages']}.\n\n{table(results)}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "methods.json").write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")
        (args.out / "methods.md").write_text(text)


if __name__ == "__main__":
    main()
