#!/usr/bin/env python3
"""Adapters written here, loaded by the Python libraries: the logits must be the same.

    python -m venv venv && venv/bin/pip install torch==2.15.0 transformers==4.57.6 peft==0.21.2 adapters==1.3.0
    cargo build --release && venv/bin/python scripts/check_peft.py > results/interop/python.txt

For every method with a form in HF PEFT or AdapterHub: train it for a few steps here on the tiny bases
under crates/bench/tests/interop, write it with `convert`, load it with the library, and compare the
logits of `peft-bench logits` with those of the library. Then `merge` it and load the result with
`transformers` alone.
"""
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import adapters
import peft
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

ROOT = Path(__file__).resolve().parent.parent
CASES = ROOT / "crates/bench/tests/interop"
TOLERANCE = 1e-4

LINEAR = [
    ("lora", 'kind = "lora"\nrank = 4'),
    ("lora all-linear rslora", 'kind = "lora"\nrank = 4\ntargets = "all-linear"\nrslora = true'),
    ("lora lora_bias, bias all", 'kind = "lora"\nrank = 3\nlora_bias = true\nbias = "all"'),
    ("lora embedding", 'kind = "lora"\nrank = 3\ntargets = ["embedding", "output"]'),
    ("lora_plus", 'kind = "lora_plus"\nrank = 4\nlora_plus_ratio = 4.0'),
    ("dora", 'kind = "dora"\nrank = 4'),
    ("pissa", 'kind = "pissa"\nrank = 4'),
    ("pissa rslora, searched", 'kind = "pissa"\nrank = 3\nrslora = true\nniter = 4\ntargets = "all-linear"'),
    ("olora", 'kind = "olora"\nrank = 4'),
    ("vera", 'kind = "vera"\nrank = 5'),
    ("randlora", 'kind = "randlora"\nrank = 5\nalpha = 20\ntargets = "all-linear"'),
    ("vb_lora", 'kind = "vb_lora"\nrank = 3\nnum_vectors = 8\nvector_length = 4'),
    ("gralora", 'kind = "gralora"\nrank = 4\nalpha = 8'),
    ("ia3", 'kind = "ia3"'),
    ("hira", 'kind = "hira"\nrank = 4'),
    ("adalora", 'kind = "adalora"\ninit_rank = 4\ntarget_rank = 2'),
    ("fourierft", 'kind = "fourierft"\nn_frequency = 40'),
    ("ln_tuning", 'kind = "ln_tuning"'),
    ("prompt_tuning", 'kind = "prompt_tuning"\nnum_virtual_tokens = 3'),
    ("p_tuning", 'kind = "p_tuning"\nnum_virtual_tokens = 3'),
    ("prefix", 'kind = "prefix"\nnum_virtual_tokens = 3\ntakes_positions = true'),
]
# HF PEFT has these for PyTorch's linear layers, and not for those of GPT-2.
NOT_GPT2 = [
    ("loha", 'kind = "loha"\nrank = 2'),
    ("lokr", 'kind = "lokr"\nrank = 2'),
    ("miss", 'kind = "miss"\nrank = 4'),
    ("oft", 'kind = "oft"\nblock_size = 4'),
    ("boft", 'kind = "boft"\nblock_size = 4'),
    ("hra", 'kind = "hra"\nrank = 4'),
    ("delora", 'kind = "delora"\nrank = 4\nlambda = 4'),
    ("road", 'kind = "road"\ngroup_size = 4'),
    ("c3a", 'kind = "c3a"\nblock_size = 4'),
]
BOTTLENECK = [
    ("houlsby", 'kind = "houlsby"\nbottleneck = 5'),
    ("pfeiffer", 'kind = "pfeiffer"\nbottleneck = 5'),
    ("parallel", 'kind = "parallel"\nbottleneck = 5'),
    ("parallel, learned scaling", 'kind = "parallel"\nreduction_factor = 4\nscaling = "learned"'),
    ("houlsby, factors by layer", 'kind = "houlsby"\nreduction_factor = { "1" = 8, default = 2 }\nleave_out = [0]'),
    ("mam", 'kind = "mam"\nprefix = { num_virtual_tokens = 3, prefix_projection = true, encoder_hidden_size = 8 }\n'
            'adapter = { bottleneck = 5 }'),
]
# AdapterHub has these for models with a matrix for each of query, key and value.
HUB_LORA = [
    ("lora", 'kind = "lora"\nrank = 3\nalpha = 6\ntargets = ["query", "key"]'),
]
# Its gates are those of here in encoders: on texts without padding, or where padding is told to count.
GATED = [
    ("houlsby, gated", 'kind = "houlsby"\nbottleneck = 5\ngating = true'),
    ("unipelt", 'kind = "unipelt"\nprefix = { num_virtual_tokens = 3, prefix_projection = true, encoder_hidden_size = 8 }\n'
                'adapter = { bottleneck = 4 }\nlora = { rank = 2 }'),
    ("unipelt, flat prefix", 'kind = "unipelt"\nprefix = { num_virtual_tokens = 2 }\nadapter = { bottleneck = 4 }\n'
                             'lora = { rank = 3, targets = ["query", "key", "value"] }'),
    ("houlsby, gated, padding", 'kind = "houlsby"\nbottleneck = 5\ngating = true\ncounts_padding = true'),
    ("unipelt, padding", 'kind = "unipelt"\nprefix = { num_virtual_tokens = 2, counts_padding = true }\n'
                         'adapter = { bottleneck = 4, counts_padding = true }\nlora = { rank = 2, counts_padding = true }'),
]
SEQ, DOUBLE = 'kind = "pfeiffer"\nbottleneck = 5', 'kind = "houlsby"\nbottleneck = 4'
COMPOSED = [  # two adapters, trained one by one, and the method that is made of them
    ("fusion of pfeiffer", (SEQ, SEQ), 'kind = "fusion"\nadapters = ["{0}", "{1}"]'),
    ("fusion of houlsby", (DOUBLE, DOUBLE), 'kind = "fusion"\nadapters = ["{0}", "{1}"]\nquery_before_ln = true'),
    ("static fusion", (SEQ, SEQ), 'kind = "fusion"\nadapters = ["{0}", "{1}"]\nvalue = false\nregularization = false'),
    ("stack on a frozen adapter", (DOUBLE,),
     'kind = "stack"\nparts = [{{ adapter = "{0}" }}, {{ kind = "pfeiffer", bottleneck = 3 }}]'),
]
HUB_BASES = ["gpt2", "bert", "roberta"]
TRAIN = {"gpt2": "gpt2-lora", "llama": "gpt2-lora", "bert": "bert-lora", "roberta": "bert-lora"}


def run(binary, *args):
    done = subprocess.run([binary, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"peft-bench {' '.join(map(str, args))}\nfailed:\n{done.stderr}")


def load(folder, kind):
    causal = kind in ("gpt2", "llama")
    cls = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    # With its default attention AdapterHub masks GPT-2's prefixes out.
    return cls.from_pretrained(folder, attn_implementation="eager").eval()


def train(binary, kind, method, out, *args):
    base, batches = CASES / "base" / kind, CASES / "train" / TRAIN[kind] / "batches.safetensors"
    run(binary, "train", "--model", base, "--batches", batches, "--method", method, "--learning-rate", "0.02",
        "--out", out, *args)


def with_parts(binary, kind, parts, method, folder):
    """The method with the folders of its parts, which are trained here."""
    folders = [folder / f"part_{number}" for number in range(len(parts))]
    for seed, (part, out) in enumerate(zip(parts, folders), 2):
        train(binary, kind, part, out, "--seed", seed)
    return method.format(*folders)


def logits(model, kind):
    with torch.no_grad():
        return model(**load_file(CASES / "base" / kind / "inputs.safetensors")).logits


def logits_without_padding(model, kind):
    inputs = load_file(CASES / "base" / kind / "inputs.safetensors")
    rows = zip(inputs["input_ids"], inputs["attention_mask"].bool())
    with torch.no_grad():
        return torch.cat([model(input_ids=ids[mask][None]).logits for ids, mask in rows])


def difference(a, b):
    return (a - b).abs().max().item()


def check(binary, kind, method, to, folder):
    """Largest differences of the adapter in the library and of the merged model."""
    base, native = CASES / "base" / kind, folder / "native"
    train(binary, kind, method, native)
    run(binary, "convert", "--model", base, "--adapter", native, "--to", to, "--out", folder / to, "--name", "mine")
    run(binary, "logits", "--model", base, "--adapter", native, "--inputs", base / "inputs.safetensors", "--out", folder / "out.safetensors")
    ours = load_file(folder / "out.safetensors")["logits"]
    model = load(base, kind)
    plain = logits(model, kind)
    if to == "peft":
        model = peft.PeftModel.from_pretrained(model, folder / to).eval()
    else:
        adapters.init(model)
        if (folder / to / "adapter_setup.json").exists():
            model.load_adapter_setup(str(folder / to), set_active=True, use_safetensors=True)
        else:
            name = model.load_adapter(str(folder / to), use_safetensors=True)
            model.set_active_adapters(name)
        model.eval()
    text = ours if ours.dim() == 2 else ours[:, -plain.shape[1]:]  # virtual tokens have logits too
    assert difference(plain, text) > 1e-2, "the adapter does nothing: the check would prove nothing"
    leaves_padding_out = "counts_padding" not in method and method in [method for _, method in GATED]
    theirs = logits_without_padding if leaves_padding_out else logits
    return difference(theirs(model, kind), ours), ours


def merged(binary, kind, ours, folder):
    done = subprocess.run([binary, "merge", "--model", CASES / "base" / kind, "--adapter", folder / "native",
                           "--out", folder / "merged"], capture_output=True, text=True)
    if done.returncode:
        return None
    return difference(logits(load(folder / "merged", kind), kind), ours)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=ROOT / "target/release/peft-bench")
    parser.add_argument("--only", help="only the methods whose names contain this")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print(f"peft {peft.__version__}, adapters {adapters.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
    print(f"{'base':8} {'method':28} {'format':11} {'logits differ by':>17} {'merged':>9}")
    plan = [(kind, (*method, ()), "peft") for kind in ("gpt2", "bert", "roberta", "llama") for method in LINEAR
            if (kind, method[0]) != ("roberta", "prefix")]  # PEFT 0.21.2 fails on it by itself
    plan += [(kind, (*method, ()), "peft") for kind in ("bert", "roberta", "llama") for method in NOT_GPT2]
    plan += [(kind, (*method, ()), "adapterhub") for kind in HUB_BASES for method in BOTTLENECK]
    plan += [(kind, (*method, ()), "adapterhub") for kind in ("bert", "roberta", "llama") for method in HUB_LORA]
    plan += [(kind, (*method, ()), "adapterhub") for kind in ("bert", "roberta") for method in GATED]
    plan += [(kind, (name, method, parts), "adapterhub") for kind in HUB_BASES for name, parts, method in COMPOSED]
    worst = 0.0
    for kind, (name, method, parts), to in plan:
        if args.only and args.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            if parts:
                method = with_parts(args.binary, kind, parts, method, Path(folder))
            error, ours = check(args.binary, kind, method, to, Path(folder))
            plain = merged(args.binary, kind, ours, Path(folder))
        worst = max(worst, error, plain or 0.0)
        shown = "-" if plain is None else f"{plain:.1e}"
        print(f"{kind:8} {name:28} {to:11} {error:17.1e} {shown:>9}")
    print(f"largest difference {worst:.1e}, allowed {TOLERANCE:.0e}: {'ok' if worst < TOLERANCE else 'FAILED'}")
    sys.exit(worst >= TOLERANCE)


if __name__ == "__main__":
    main()
