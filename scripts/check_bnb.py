#!/usr/bin/env python3
"""Checks that packed models travel between `peft-bench` and bitsandbytes, both ways.

    python -m venv venv && venv/bin/pip install torch==2.15.0 transformers==4.57.6 accelerate==1.15.0 \
        bitsandbytes==0.50.2
    cargo build --release && venv/bin/python scripts/check_bnb.py [--out results/interop/bnb.txt] [BASE ...]

For small models with random weights (and every folder named as BASE) and every storage:

- there: `peft-bench quantize` writes a folder, `transformers` loads it through bitsandbytes, and its
  logits are compared with those of `peft-bench logits` on the same folder;
- back: `transformers` quantises the dense base and saves it, and `peft-bench logits` on that folder is
  compared with the logits of `transformers`.

`exact` decodes the loaded bytes over the flat weight, as the CUDA kernels of bitsandbytes and its Python
reference do. `library` is the library as it is: its compiled CPU decoding of 4 bits is wrong for rows that
are no multiple of the block size (checked only where they are), and LLM.int8 may quantise activations as
well, which a weight-only product does not (shown, not checked).
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import bitsandbytes as bnb
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

TOLERANCE = 1e-4
STORAGES = [
    ("nf4", ["--storage", "nf4"]),
    ("nf4 b128 dq", ["--storage", "nf4", "--block-size", "128", "--double-quant"]),
    ("nf4 dq", ["--storage", "nf4", "--double-quant"]),
    ("fp4", ["--storage", "fp4"]),
    ("fp4 dq", ["--storage", "fp4", "--double-quant"]),
    ("int8", ["--storage", "int8"]),
]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="*", type=pathlib.Path, metavar="BASE", help="folders of dense models")
    parser.add_argument("--binary", default="target/release/peft-bench")
    parser.add_argument("--skip", nargs="*", default=[], help="model types the binary does not have")
    parser.add_argument("--out", type=pathlib.Path, help="file for what is printed")
    return parser.parse_args()


def made(folder):
    """Small models with random weights; rows of 64 and 128 are whole blocks, those of 48 are not."""
    common = dict(vocab_size=211)
    gpt2 = dict(n_positions=32, n_layer=2, n_head=4, **common)
    bert = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
                max_position_embeddings=40, num_labels=3, **common)
    llama = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                 intermediate_size=128, max_position_embeddings=64, **common)
    shapes = {"gpt2-64": ("gpt2", dict(n_embd=64, **gpt2)), "gpt2-48": ("gpt2", dict(n_embd=48, **gpt2)),
              "bert-64": ("bert", bert), "llama-64": ("llama", llama)}
    for seed, (name, (kind, shape)) in enumerate(shapes.items()):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(kind, **shape)
        model = auto(config).from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():  # biases too, and logits far from each other
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder / name)
        yield folder / name


def auto(config):
    causal = config.model_type not in ("bert", "roberta", "distilbert")
    return AutoModelForCausalLM if causal else AutoModelForSequenceClassification


def loaded(folder, **options):
    config = AutoConfig.from_pretrained(folder)
    for key, value in vars(config).items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    options |= dict(config=config, dtype=torch.float32, device_map={"": "cpu"})
    return auto(config).from_pretrained(folder, **options)


def inputs(config, folder):
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(5, config.vocab_size, (3, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    file = folder / "inputs.safetensors"
    save_file({"input_ids": ids, "attention_mask": mask}, file)
    return dict(input_ids=ids, attention_mask=mask), file


def theirs(model, batch, training=True):
    # In training mode 4-bit layers keep the packing of the file; there is no dropout to disturb.
    with torch.no_grad():
        logits = model.train(training)(**batch, **({"use_cache": False} if model.can_generate() else {})).logits
    return logits.float()


def decoded_layers(model):
    """Every packed layer as a plain one of exactly its weight."""
    for name, module in list(model.named_modules()):
        if isinstance(module, bnb.nn.Linear4bit):
            weight = decode(module.weight)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            scale = module.state.SCB if module.weight.SCB is None else module.weight.SCB
            weight = bnb.functional.int8_vectorwise_dequant(module.weight.data, scale)
        else:
            continue
        plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None)
        plain.weight.data, plain.bias = weight, module.bias
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, plain)
    return model


def decode(weight):
    state = weight.quant_state
    absmax = state.absmax
    if state.nested:
        place = torch.arange(absmax.numel()) // state.state2.blocksize
        absmax = state.state2.code[absmax.long()] * state.state2.absmax[place] + state.offset
    packed = weight.data.reshape(-1).long()
    count = state.shape.numel()
    codes = torch.stack([packed >> 4, packed & 15], 1).view(-1)[:count]
    return (state.code[codes] * absmax[torch.arange(count) // state.blocksize]).view(state.shape)


def whole_blocks(model):
    layers = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    return all(m.weight.quant_state.shape[1] % m.weight.quant_state.blocksize == 0 for m in layers)


def ours(args, folder, file, work):
    out = work / "logits.safetensors"
    run(args, "logits", "--model", folder, "--inputs", file, "--out", out)
    return load_file(out)["logits"]


def run(args, *words):
    done = subprocess.run([args.binary, *map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"peft-bench {' '.join(map(str, words))}\n{done.stderr}")
    return done.stdout


def difference(a, b):
    assert a.shape == b.shape, (a.shape, b.shape)
    return (a - b).abs().max().item()


class Report:
    def __init__(self):
        self.lines, self.failed = [], 0

    def say(self, line):
        print(line, flush=True)
        self.lines.append(line)

    def row(self, base, storage, way, exact, library, checked):
        good = exact < TOLERANCE and (library < TOLERANCE or not checked)
        self.failed += not good
        note = "" if checked else " (shown only)"
        self.say(f"{base:<14} {storage:<12} {way:<6} exact {exact:.1e}  library {library:.1e}{note}"
                 f"{'' if good else '  FAILED'}")


def compare(model, logits, batch):
    int8 = any(isinstance(m, bnb.nn.Linear8bitLt) for m in model.modules())
    checked = not int8 and whole_blocks(model)
    library = difference(theirs(model, batch, training=not int8), logits)
    return difference(theirs(decoded_layers(model), batch), logits), library, checked


def there(args, base, storage, options, work, report):
    folder = work / "quantised"
    run(args, "quantize", "--model", base, *options, "--out", folder)
    model = loaded(folder)
    assert model.config.quantization_config.quant_method == "bitsandbytes"
    batch, file = inputs(model.config, work)
    report.row(base.name, storage, "there", *compare(model, ours(args, folder, file, work), batch))


def back(args, base, storage, options, work, report):
    kind, dq = options[1], "--double-quant" in options
    if "--block-size" in options:
        return  # `transformers` knows blocks of 64 alone
    config = (BitsAndBytesConfig(load_in_8bit=True) if kind == "int8" else
              BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=dq))
    folder = work / "theirs"
    loaded(base, quantization_config=config).save_pretrained(folder)
    model = loaded(folder)
    batch, file = inputs(model.config, work)
    report.row(base.name, storage, "back", *compare(model, ours(args, folder, file, work), batch))


def main():
    args = arguments()
    report = Report()
    report.say(f"torch {torch.__version__}, transformers {transformers.__version__}, "
               f"bitsandbytes {bnb.__version__}; largest difference of logits")
    with tempfile.TemporaryDirectory() as folder:
        for base in [*made(pathlib.Path(folder)), *args.bases]:
            kind = json.loads((base / "config.json").read_text())["model_type"]
            if kind in args.skip:
                report.say(f"{base.name:<14} left out: --skip {kind}")
                continue
            for storage, options in STORAGES:
                for way in (there, back):
                    with tempfile.TemporaryDirectory() as work:
                        way(args, base, storage, options, pathlib.Path(work), report)
    report.say("FAILED: " + str(report.failed) if report.failed else "all within 1e-4")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(report.lines) + "\n")
    sys.exit(report.failed > 0)


main()
