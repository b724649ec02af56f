#!/usr/bin/env python3
"""Makes nf4.safetensors: weights, and what bitsandbytes stores for them.

    pip install bitsandbytes==0.50.2 torch==2.15.0 safetensors numpy
    python make.py            (x86-64; one thread, so that sums have one order)

`weight/<shape>` are the matrices. `<shape>/b<block>[-dq]/...` holds `packed`, `absmax` (u8 with
double quantisation), `nested_absmax`, `offset`, and for the small shapes `dequant`.

`dequant` is decoded here from the stored bytes over the flat weight, as the CUDA kernels and the
library's own Python reference do: the compiled CPU dequantisation of 0.50.2 is wrong for rows that
are no multiple of the block size.
"""
import os
import pathlib

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import bitsandbytes as bnb
import torch
from bitsandbytes import functional as F
from safetensors.torch import save_file

SHAPES = [(17, 100), (5, 7), (72, 160)]  # short last block; odd number of values; two nested blocks
assert bnb.__version__ == "0.50.2", bnb.__version__
torch.set_num_threads(1)


def weight(shape):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0])) * 0.2
    w.view(-1)[: shape[1]] *= 10 ** torch.linspace(-2, 1, shape[1])  # block maxima far apart
    return w


def decode(packed, qs, shape):
    absmax = qs.absmax
    if qs.nested:
        nested = torch.arange(absmax.numel()) // 256
        absmax = qs.state2.code[absmax.long()] * qs.state2.absmax[nested] + qs.offset
    p = packed.reshape(-1).long()
    n = shape[0] * shape[1]
    codes = torch.stack([p >> 4, p & 15], 1).view(-1)[:n]
    return (qs.code[codes] * absmax[torch.arange(n) // qs.blocksize]).view(shape)


tensors = {"dynamic_map": F.create_dynamic_map(), "nf4": F.get_4bit_type("nf4", device="cpu")}
for shape in SHAPES:
    name = f"{shape[0]}x{shape[1]}"
    w = tensors[f"weight/{name}"] = weight(shape)
    for block in (32, 64, 128):
        for dq in (False, True):
            packed, qs = F.quantize_4bit(w, blocksize=block, compress_statistics=dq, quant_type="nf4")
            case = f"{name}/b{block}{'-dq' if dq else ''}"
            tensors[f"{case}/packed"] = packed.reshape(-1)
            tensors[f"{case}/absmax"] = qs.absmax
            if dq:
                tensors[f"{case}/nested_absmax"] = qs.state2.absmax
                tensors[f"{case}/offset"] = qs.offset.reshape(1)
            if w.numel() < 2000:
                tensors[f"{case}/dequant"] = decode(packed, qs, shape)

versions = {"bitsandbytes": bnb.__version__, "torch": torch.__version__}
save_file({k: v.contiguous() for k, v in tensors.items()},
          pathlib.Path(__file__).with_name("nf4.safetensors"), metadata=versions)
