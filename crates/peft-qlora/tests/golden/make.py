#!/usr/bin/env python3
"""Makes the *.safetensors beside it: weights, and what bitsandbytes stores for them.

    pip install bitsandbytes==0.50.2 torch==2.15.0 safetensors numpy
    python make.py            (x86-64; one thread, so that sums have one order)

`nf4` and `fp4`: `weight/<shape>` are the matrices (in the first alone). `<shape>/b<block>[-dq]/...`
holds `packed`, `absmax` (u8 with double quantisation), `nested_absmax`, `offset`, and for the small
shapes `dequant`. `int8`: `<shape>/int8`, `scale`, `dequant` of the same matrices. `layers`: whole
layers as a checkpoint holds them, `<case>.weight...`, and `<case>/y` for the input `x`.

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


def blocks(quant_type, weights):
    tensors = {quant_type: F.get_4bit_type(quant_type, device="cpu")}
    for name, w in weights.items():
        for block in (32, 64, 128):
            for dq in (False, True):
                packed, qs = F.quantize_4bit(w, blocksize=block, compress_statistics=dq, quant_type=quant_type)
                case = f"{name}/b{block}{'-dq' if dq else ''}"
                tensors[f"{case}/packed"] = packed.reshape(-1)
                tensors[f"{case}/absmax"] = qs.absmax
                if dq:
                    tensors[f"{case}/nested_absmax"] = qs.state2.absmax
                    tensors[f"{case}/offset"] = qs.offset.reshape(1)
                if w.numel() < 2000:
                    tensors[f"{case}/dequant"] = decode(packed, qs, w.shape)
    return tensors


def int8(weights):
    tensors = {}
    for name, w in weights.items():
        q, scale, _ = F.int8_vectorwise_quant(w.half())  # as `Int8Params` does on its way to a device
        tensors.update({f"{name}/int8": q, f"{name}/scale": scale})
        if w.numel() < 2000:
            tensors[f"{name}/dequant"] = F.int8_vectorwise_dequant(q, scale)
    return tensors


def layers():
    """Layers as their `state_dict` has them, an input, and the output by the decoded weight."""
    tensors = {}
    w, bias, x = weight((24, 64)), torch.linspace(-1, 1, 24), torch.linspace(-2, 3, 5 * 64).view(5, 64)
    tensors["x"] = x
    for quant_type, dq in (("nf4", True), ("nf4", False), ("fp4", True)):
        name = f"{quant_type}{'-dq' if dq else ''}"
        layer = bnb.nn.Linear4bit(64, 24, compute_dtype=torch.float32, compress_statistics=dq, quant_type=quant_type)
        layer.weight = bnb.nn.Params4bit(w.clone(), requires_grad=False, compress_statistics=dq, quant_type=quant_type)
        layer.bias.data = bias.clone()
        layer = layer.to("cpu")
        tensors.update({f"{name}.{key}": v for key, v in layer.state_dict().items()})
        decoded = decode(layer.weight.data, layer.weight.quant_state, w.shape)
        tensors[f"{name}/y"] = torch.nn.functional.linear(x, decoded, bias)
    layer = bnb.nn.Linear8bitLt(64, 24, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(w.clone(), requires_grad=False, has_fp16_weights=False)
    layer.bias.data = bias.clone()
    state = layer.to("cpu").state_dict()
    tensors.update({f"int8.{key}": v for key, v in state.items()})
    decoded = F.int8_vectorwise_dequant(state["weight"], state["SCB"])
    tensors["int8/y"] = torch.nn.functional.linear(x, decoded, bias)
    return tensors


def write(file, tensors):
    versions = {"bitsandbytes": bnb.__version__, "torch": torch.__version__}
    save_file({k: v.contiguous() for k, v in tensors.items()},
              pathlib.Path(__file__).with_name(file), metadata=versions)


weights = {f"{rows}x{cols}": weight((rows, cols)) for rows, cols in SHAPES}
named = {f"weight/{name}": w for name, w in weights.items()}
write("nf4.safetensors", {"dynamic_map": F.create_dynamic_map(), **named, **blocks("nf4", weights)})
write("fp4.safetensors", blocks("fp4", weights))
write("int8.safetensors", int8(weights))
write("layers.safetensors", layers())
