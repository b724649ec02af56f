#!/usr/bin/env python3
"""Makes the fixtures beside this file: tiny random models and what `transformers` computes from them.

    pip install torch==2.15.0 transformers==4.57.6 safetensors==0.8.0
    python make.py [--seed 1]

One folder per model: config.json and model.safetensors as `save_pretrained` writes them, and
golden.safetensors with input_ids, attention_mask (row 1 is padded on the right), logits, and for
gpt2 a greedy continuation (prompt and output).
"""
import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (BertConfig, BertForSequenceClassification, DistilBertConfig,
                          DistilBertForSequenceClassification, GPT2Config, GPT2LMHeadModel,
                          RobertaConfig, RobertaForSequenceClassification)

COMMON = dict(vocab_size=96, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
              intermediate_size=40, max_position_embeddings=32, num_labels=3)


def models():
    yield "gpt2", GPT2LMHeadModel(GPT2Config(
        vocab_size=96, n_positions=32, n_embd=24, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0))
    yield "bert", BertForSequenceClassification(BertConfig(**COMMON))
    yield "roberta", RobertaForSequenceClassification(RobertaConfig(**COMMON, pad_token_id=1))
    yield "distilbert", DistilBertForSequenceClassification(DistilBertConfig(
        vocab_size=96, dim=24, n_layers=2, n_heads=3, hidden_dim=40, max_position_embeddings=32, num_labels=3))


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
            ids = torch.randint(4, 96, (3, 11))
            mask = torch.ones_like(ids)
            pad = model.config.pad_token_id or 0
            ids[1, 8:], mask[1, 8:] = pad, 0
            golden = {"input_ids": ids, "attention_mask": mask,
                      "logits": model(input_ids=ids, attention_mask=mask).logits}
            if name == "gpt2":
                out = model.generate(ids[:1, :5], attention_mask=mask[:1, :5], do_sample=False,
                                     max_new_tokens=12, min_new_tokens=12, pad_token_id=0)
                golden |= {"prompt": ids[:1, :5].contiguous(), "output": out}
        model.save_pretrained(here / name)
        (here / name / "generation_config.json").unlink(missing_ok=True)
        save_file({k: v.clone().contiguous() for k, v in golden.items()}, here / name / "golden.safetensors")


if __name__ == "__main__":
    main()
