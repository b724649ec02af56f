#!/usr/bin/env python3
"""Makes the fixtures beside this file: tiny random models and what `transformers` computes from them.

    pip install torch==2.15.0 transformers==4.57.6 safetensors==0.8.0
    python make.py [--seed 1]

One folder per model: config.json and model.safetensors as `save_pretrained` writes them, and
golden.safetensors with input_ids, attention_mask (row 1 is padded on the right), logits, and for
language models a greedy continuation (prompt and output).
"""
import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (BertConfig, BertForSequenceClassification, DistilBertConfig,
                          DistilBertForSequenceClassification, GPT2Config, GPT2LMHeadModel,
                          LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, RobertaConfig,
                          RobertaForSequenceClassification)

COMMON = dict(vocab_size=96, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
              intermediate_size=40, max_position_embeddings=32, num_labels=3)
DECODER = dict(vocab_size=40, hidden_size=12, num_hidden_layers=2, num_attention_heads=4,
               num_key_value_heads=2, intermediate_size=20, max_position_embeddings=32,
               bos_token_id=0, eos_token_id=0)


def models():
    yield "gpt2", GPT2LMHeadModel(GPT2Config(
        vocab_size=96, n_positions=32, n_embd=24, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0))
    yield "bert", BertForSequenceClassification(BertConfig(**COMMON))
    yield "roberta", RobertaForSequenceClassification(RobertaConfig(**COMMON, pad_token_id=1))
    yield "distilbert", DistilBertForSequenceClassification(DistilBertConfig(
        vocab_size=96, dim=24, n_layers=2, n_heads=3, hidden_dim=40, max_position_embeddings=32, num_labels=3))
    # Queries wider than the model, and frequencies below, on and above llama3's ramp.
    llama3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=128)
    yield "llama", LlamaForCausalLM(LlamaConfig(**DECODER, head_dim=8, rope_scaling=llama3))
    # Texts longer than 8 tokens are stretched.
    dynamic = DECODER | dict(max_position_embeddings=8)
    yield "llama-sharded", LlamaForCausalLM(LlamaConfig(
        **dynamic, head_dim=4, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
        rope_scaling=dict(rope_type="dynamic", factor=4.0)))
    yield "mistral", MistralForCausalLM(MistralConfig(**DECODER, head_dim=4, sliding_window=4))
    yarn = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
    yield "qwen2", Qwen2ForCausalLM(Qwen2Config(
        **DECODER | dict(hidden_size=16, num_attention_heads=2), rope_theta=100.0, rope_scaling=yarn))
    yield "qwen3", Qwen3ForCausalLM(Qwen3Config(
        **DECODER, head_dim=6, tie_word_embeddings=True, use_sliding_window=True, sliding_window=5,
        max_window_layers=1, rope_scaling=dict(rope_type="linear", factor=2.0)))


# How `save_pretrained` writes a model, where not as one file of 32-bit floats.
SHARDED, HALF = {"llama-sharded": "6KB"}, {"qwen3": torch.bfloat16, "mistral": torch.float16}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    here = Path(__file__).parent
    torch.manual_seed(args.seed)
    for name, model in models():
        model = model.eval()
        with torch.no_grad():
            for p in model.parameters():  # larger than the usual start, so that errors show
                p.add_(torch.randn_like(p) * 0.1)
                p.copy_(p.to(HALF.get(name, p.dtype)))
            ids = torch.randint(4, model.config.vocab_size, (3, 11))
            mask = torch.ones_like(ids)
            pad = model.config.pad_token_id or 0
            ids[1, 8:], mask[1, 8:] = pad, 0
            golden = {"input_ids": ids, "attention_mask": mask,
                      "logits": model(input_ids=ids, attention_mask=mask).logits}
            if model.can_generate():
                out = model.generate(ids[:1, :5], attention_mask=mask[:1, :5], do_sample=False,
                                     max_new_tokens=12, min_new_tokens=12, pad_token_id=0)
                golden |= {"prompt": ids[:1, :5].contiguous(), "output": out}
        model = model.to(HALF.get(name, torch.float32))
        model.save_pretrained(here / name, max_shard_size=SHARDED.get(name, "5GB"))
        (here / name / "generation_config.json").unlink(missing_ok=True)
        save_file({k: v.clone().contiguous() for k, v in golden.items()}, here / name / "golden.safetensors")


if __name__ == "__main__":
    main()
