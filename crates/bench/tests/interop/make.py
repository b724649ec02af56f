#!/usr/bin/env python3
"""Makes the cases beside this file: tiny random bases, adapters of HF PEFT and AdapterHub as the
libraries save them, and what the libraries compute from them.

    pip install torch==2.15.0 transformers==4.57.6 peft==0.21.2 adapters==1.3.0 bitsandbytes==0.50.2 safetensors==0.8.0
    python make.py [--seed 1] [--missing]

base/NAME       config.json, model.safetensors, inputs.safetensors (row 1 is padded on the right)
peft/NAME       adapter/ and expected.safetensors (logits); gpt2-lora also merged/
adapterhub/NAME adapter/ (safetensors) and adapter_bin/ (pickled), expected.safetensors (gated adapters: of rows
                 without their padding, which the library's gates would count)
look/NAME       batches.safetensors, start/ (an adapter that began with a look at them)
train/NAME      batches.safetensors, start/, final/, expected.safetensors (losses of ten AdamW steps)
"""
import argparse
import json
import shutil
import zlib
from functools import partial
from pathlib import Path

import adapters
import bitsandbytes.functional as bnb
import peft
import torch
from adapters.composition import Fuse, Parallel, Stack
from safetensors.torch import save_file
from transformers import (BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, LlamaConfig,
                          LlamaForCausalLM, RobertaConfig, RobertaForSequenceClassification)
from transformers.pytorch_utils import Conv1D

HERE = Path(__file__).parent
ENCODER = dict(vocab_size=96, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
               max_position_embeddings=32, num_labels=3)
BASES = {
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=96, n_positions=32, n_embd=24, n_layer=2, n_head=3,
                                         bos_token_id=0, eos_token_id=0)),
    "bert": (BertForSequenceClassification, BertConfig(**ENCODER)),
    "roberta": (RobertaForSequenceClassification, RobertaConfig(**ENCODER, pad_token_id=1)),
    "llama": (LlamaForCausalLM, LlamaConfig(vocab_size=96, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
                                            num_key_value_heads=1, intermediate_size=40, max_position_embeddings=32,
                                            tie_word_embeddings=False, pad_token_id=0)),
}
LORA = dict(r=4, lora_alpha=8)
QV, LINEAR = ["query", "value"], ["query", "value", "intermediate.dense"]
PEFT = {
    "gpt2-lora": lambda: peft.LoraConfig(**LORA, target_modules=["c_attn"], fan_in_fan_out=True),
    "gpt2-lora_patterns": lambda: peft.LoraConfig(
        **LORA, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True,
        rank_pattern={"c_fc": 6, r"h\.0\.attn\.c_attn": 2}, alpha_pattern={"c_fc": 5, "h.1.attn.c_proj": 3}),
    "gpt2-lora_modules_to_save": lambda: peft.LoraConfig(
        **LORA, target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["ln_f", "lm_head"]),
    "gpt2-vera": lambda: peft.VeraConfig(r=6, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
    "gpt2-prefix_tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3),
    "bert-lora": lambda: peft.LoraConfig(**LORA, target_modules=["query", "value"]),
    "bert-lora_bias_all": lambda: peft.LoraConfig(**LORA, target_modules=["query", "value"], bias="all"),
    "bert-lora_bias_lora_only": lambda: peft.LoraConfig(**LORA, target_modules=["query", "value"], bias="lora_only"),
    "bert-prefix_tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3),
    "bert-ln_tuning": lambda: peft.LNTuningConfig(target_modules=["attention.output.LayerNorm"]),
    "gpt2-ln_tuning": lambda: peft.LNTuningConfig(target_modules=r".*\.(ln_1|ln_f)"),
    "gpt2-prompt_tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=3),
    "bert-prompt_tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=3),
    "roberta-prompt_tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=3),
    "gpt2-p_tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16),
    "bert-p_tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=16),
    "gpt2-prefix_projection": lambda: peft.PrefixTuningConfig(
        num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=16),
    "llama-lora_regex": lambda: peft.LoraConfig(**LORA, target_modules=r".*\.1\..*(q_proj|up_proj)"),
    "llama-lora_layers": lambda: peft.LoraConfig(**LORA, target_modules=["q_proj", "v_proj"], layers_to_transform=[1]),
    "llama-lora_exclude": lambda: peft.LoraConfig(
        **LORA, target_modules="all-linear", exclude_modules=["down_proj"], use_rslora=True),
    "llama-lora_bias": lambda: peft.LoraConfig(**LORA, target_modules=["q_proj", "v_proj"], lora_bias=True),
    "llama-lora_embed": lambda: peft.LoraConfig(**LORA, target_modules=["embed_tokens", "q_proj"]),
    "llama-vera": lambda: peft.VeraConfig(r=6, target_modules=["q_proj", "down_proj"]),
    "llama-prefix_tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3),
    "llama-prompt_tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=3),
    "llama-p_tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16),
    "llama-adaption_prompt": lambda: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1),
    "llama-ln_tuning": lambda: peft.LNTuningConfig(),
    "llama-ln_tuning_names": lambda: peft.LNTuningConfig(target_modules=["input_layernorm", "norm"]),
    "gpt2-pissa": lambda: peft.LoraConfig(
        **LORA, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, init_lora_weights="pissa"),
    "bert-pissa_rslora": lambda: peft.LoraConfig(**LORA, target_modules=LINEAR, use_rslora=True, init_lora_weights="pissa"),
    "bert-olora": lambda: peft.LoraConfig(**LORA, target_modules=LINEAR, init_lora_weights="olora"),
    "gpt2-dora": lambda: peft.LoraConfig(
        **LORA, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, use_dora=True, rank_pattern={"c_fc": 2}),
    "gpt2-ia3": lambda: peft.IA3Config(
        target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True),
    "gpt2-hira": lambda: peft.HiraConfig(r=3, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
    "gpt2-fourierft": lambda: peft.FourierFTConfig(n_frequency=9, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
    "gpt2-adalora": lambda: peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=8, total_step=10, target_modules=["c_attn"], fan_in_fan_out=True),
    "gpt2-adalora_pruned": lambda: peft.AdaLoraConfig(
        init_r=4, target_r=1, lora_alpha=8, total_step=3, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
    "bert-dora": lambda: peft.LoraConfig(**LORA, target_modules=QV, use_dora=True, use_rslora=True),
    "bert-ia3": lambda: peft.IA3Config(
        target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]),
    "bert-ia3_attention": lambda: peft.IA3Config(target_modules=["key", "value"], feedforward_modules=[]),
    "bert-loha": lambda: peft.LoHaConfig(r=2, alpha=6, target_modules=LINEAR),
    "bert-loha_wide": lambda: peft.LoHaConfig(r=4, alpha=6, target_modules=QV),
    "bert-lokr": lambda: peft.LoKrConfig(r=2, alpha=4, target_modules=LINEAR),
    "bert-lokr_both": lambda: peft.LoKrConfig(r=2, alpha=4, decompose_both=True, decompose_factor=8, target_modules=LINEAR),
    "bert-miss": lambda: peft.MissConfig(r=7, target_modules=LINEAR),
    "bert-miss_mini": lambda: peft.MissConfig(r=4, mini_r=3, init_weights="mini", target_modules=QV),
    "bert-miss_bat": lambda: peft.MissConfig(r=8, init_weights="bat", target_modules=LINEAR),
    "bert-oft": lambda: peft.OFTConfig(oft_block_size=7, target_modules=QV),
    "bert-oft_exact": lambda: peft.OFTConfig(
        r=4, oft_block_size=0, use_cayley_neumann=False, target_modules=["query", "output.dense"]),
    "bert-oft_shared": lambda: peft.OFTConfig(oft_block_size=8, block_share=True, target_modules=QV),
    "bert-boft": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=LINEAR),
    "bert-boft_blocks": lambda: peft.BOFTConfig(
        boft_block_size=0, boft_block_num=3, boft_n_butterfly_factor=2, target_modules=QV),
    "bert-hra": lambda: peft.HRAConfig(r=6, target_modules=LINEAR),
    "bert-delora": lambda: peft.DeloraConfig(r=3, delora_lambda=4, target_modules=LINEAR),
    "bert-gralora": lambda: peft.GraloraConfig(r=4, alpha=6, gralora_k=4, target_modules=LINEAR),
    "gpt2-gralora": lambda: peft.GraloraConfig(r=4, alpha=6, target_modules=["c_attn"], fan_in_fan_out=True),
    "bert-randlora": lambda: peft.RandLoraConfig(r=7, randlora_alpha=20, target_modules=[*LINEAR, "output.dense"]),
    "gpt2-randlora": lambda: peft.RandLoraConfig(r=10, randlora_alpha=20, target_modules=["c_attn"], fan_in_fan_out=True),
    "bert-road": lambda: peft.RoadConfig(group_size=8, target_modules=LINEAR),
    "bert-road_2": lambda: peft.RoadConfig(variant="road_2", group_size=4, target_modules=QV),
    "llama-road_4": lambda: peft.RoadConfig(variant="road_4", group_size=8, target_modules=["q_proj", "v_proj", "up_proj"]),
    "bert-c3a": lambda: peft.C3AConfig(block_size=8, target_modules=LINEAR),
    "bert-vb_lora": lambda: peft.VBLoRAConfig(r=3, num_vectors=7, vector_length=4, topk=3, target_modules=LINEAR),
    "bert-fourierft": lambda: peft.FourierFTConfig(n_frequency=60, scaling=100.0, random_loc_seed=5, target_modules=QV),
}
# What a look at data starts: the base, PEFT's configuration, and what a study says.
LOOK = {
    "gpt2-eva": lambda: (
        dict(target_modules=["c_attn", "c_fc", "mlp.c_proj"], fan_in_fan_out=True),
        dict(rho=2.0), dict(targets=["c_attn", "c_fc", "mlp.c_proj"])),
    "gpt2-eva_fixed": lambda: (
        dict(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
        dict(rho=1.0, use_label_mask=False), dict(targets=["c_attn", "c_fc"], rho=1.0, use_label_mask=False)),
    # Layers of equal inputs.
    "llama-eva": lambda: (
        dict(target_modules=["q_proj", "v_proj", "up_proj"], use_rslora=True),
        dict(rho=1.5), dict(targets=["q_proj", "v_proj", "up_proj"], rslora=True, rho=1.5)),
    # The library has no label mask for classes, and whitens layers of equal inputs more than once.
    "bert-eva_whiten": lambda: (
        dict(target_modules=["query", "output.dense"]),
        dict(rho=1.5, use_label_mask=False, whiten=True, adjust_scaling_factors=False),
        dict(targets=["query", "output.dense"], rho=1.5, whiten=True, adjust_scaling_factors=False)),
}
HUB = {
    "bert-houlsby_with_head": lambda: adapters.DoubleSeqBnConfig(reduction_factor=4, non_linearity="gelu"),
    "bert-pfeiffer": lambda: adapters.SeqBnConfig(reduction_factor=4),
    "bert-par_bn": lambda: adapters.ParBnConfig(reduction_factor=4),
    "bert-scaled_par_bn": lambda: adapters.ParBnConfig(reduction_factor=4, scaling="learned"),
    "bert-channel": lambda: adapters.ParBnConfig(reduction_factor=4, scaling="channel"),
    # Without its stochastic depth, for which the library needs torchvision.
    "bert-adapter_plus": lambda: adapters.AdapterPlusConfig(reduction_factor=4, stochastic_depth=0.0),
    "gpt2-adapter_plus": lambda: adapters.AdapterPlusConfig(reduction_factor=6, stochastic_depth=0.0),
    "bert-factors": lambda: adapters.DoubleSeqBnConfig(reduction_factor={"1": 8, "default": 2}, leave_out=[0]),
    "bert-compacter": lambda: adapters.CompacterConfig(reduction_factor=3),
    "bert-compacterpp": lambda: adapters.CompacterPlusPlusConfig(reduction_factor=4, phm_dim=3),
    "gpt2-compacter_own_rules": lambda: adapters.CompacterConfig(
        reduction_factor=3, phm_dim=2, phm_rank=2, shared_phm_rule=False, scaling="learned"),
    "bert-houlsby_inv": lambda: adapters.DoubleSeqBnInvConfig(reduction_factor=4, inv_adapter_reduction_factor=3),
    "roberta-pfeiffer_inv": lambda: adapters.SeqBnInvConfig(reduction_factor=4),
    "bert-loreft": lambda: adapters.LoReftConfig(r=2, suffix_positions=2, dropout=0.0),
    "roberta-loreft_tied": lambda: adapters.LoReftConfig(
        r=3, suffix_positions=1, tied_weights=True, layers=[1], dropout=0.0),
    "gpt2-loreft": lambda: adapters.LoReftConfig(r=2, prefix_positions=5, suffix_positions=4, dropout=0.0),
    "gpt2-noreft": lambda: adapters.NoReftConfig(r=2, dropout=0.0),
    "bert-prefix": lambda: adapters.PrefixTuningConfig(prefix_length=3, bottleneck_size=8),
    "bert-prefix_flat": lambda: adapters.PrefixTuningConfig(flat=True, prefix_length=3),
    "gpt2-prefix": lambda: adapters.PrefixTuningConfig(prefix_length=3, bottleneck_size=8),
    "gpt2-houlsby": lambda: adapters.DoubleSeqBnConfig(reduction_factor=5, non_linearity="swish"),
    "gpt2-pfeiffer": lambda: adapters.SeqBnConfig(reduction_factor=4),
    "gpt2-par_bn": lambda: adapters.ParBnConfig(reduction_factor=4),
    "roberta-pfeiffer": lambda: adapters.SeqBnConfig(reduction_factor=4),
    "llama-houlsby": lambda: adapters.DoubleSeqBnConfig(reduction_factor=4),
    "llama-compacterpp": lambda: adapters.CompacterPlusPlusConfig(reduction_factor=3),
    "llama-loreft": lambda: adapters.LoReftConfig(r=2, suffix_positions=2, dropout=0.0),
    "llama-prefix": lambda: adapters.PrefixTuningConfig(prefix_length=3, bottleneck_size=8),
    "llama-lora": lambda: adapters.LoRAConfig(r=3, alpha=6, attn_matrices=["q", "k"]),
    "bert-houlsby_gated": lambda: adapters.DoubleSeqBnConfig(reduction_factor=4, use_gating=True),
    "bert-unipelt": lambda: adapters.UniPELTConfig(
        PREFIX, adapters.SeqBnConfig(reduction_factor=6), adapters.LoRAConfig(r=2, alpha=2)),
    "roberta-unipelt_flat": lambda: adapters.UniPELTConfig(
        adapters.PrefixTuningConfig(flat=True, prefix_length=2), adapters.SeqBnConfig(reduction_factor=8),
        adapters.LoRAConfig(r=3, attn_matrices=["q", "k", "v"])),
    "bert-mam": lambda: adapters.MAMConfig(PREFIX, adapters.ParBnConfig(reduction_factor=4)),
    "gpt2-mam": lambda: adapters.MAMConfig(PREFIX, adapters.ParBnConfig(reduction_factor=4, scaling="learned")),
}
PREFIX = adapters.PrefixTuningConfig(prefix_length=3, bottleneck_size=8)
SEQ, DOUBLE = partial(adapters.SeqBnConfig, reduction_factor=4), partial(adapters.DoubleSeqBnConfig, reduction_factor=4)
SETUPS = {  # the block, its two adapters, and how they are fused
    "bert-fusion": lambda: (Fuse, SEQ(), SEQ(reduction_factor=8), "dynamic"),
    "roberta-fusion_static": lambda: (Fuse, SEQ(), SEQ(), "static"),
    "bert-fusion_query_before_ln": lambda: (
        Fuse, SEQ(), SEQ(), adapters.DynamicAdapterFusionConfig(query_before_ln=True, value_before_softmax=False)),
    "gpt2-fusion_double": lambda: (Fuse, DOUBLE(), DOUBLE(reduction_factor=6), "dynamic"),
    "bert-stack": lambda: (Stack, adapters.SeqBnInvConfig(reduction_factor=4), DOUBLE(), None),
    "gpt2-stack": lambda: (Stack, DOUBLE(leave_out=[0]), SEQ(), None),
    # The library prepares the input of all parts as the first one's.
    "bert-parallel": lambda: (Parallel, SEQ(), SEQ(reduction_factor=8), None),
    "gpt2-parallel": lambda: (Parallel, DOUBLE(leave_out=[0]), DOUBLE(leave_out=[0], reduction_factor=6), None),
    "llama-parallel": lambda: (Parallel, DOUBLE(), DOUBLE(reduction_factor=6), None),
}
TRAIN = ["gpt2-lora", "gpt2-qlora", "gpt2-full", "gpt2-dora", "gpt2-adalora_allocated", "gpt2-hira",
         "bert-lora", "bert-houlsby", "bert-boft", "bert-fusion"]
# Configurations of training alone.
TRAIN_PEFT = {
    "gpt2-adalora_allocated": lambda: peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=8, total_step=10, tinit=1, tfinal=2, deltaT=3,
        target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
}


def base(name, **options):
    return BASES[name][0].from_pretrained(HERE / "base" / name, **options).eval()


def stir(parameters, by=0.1):
    """Moves parameters away from their start, so that an error in any of them shows."""
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.randn_like(p) * by)


def set_signs(named_parameters):
    """Whole signs on the diagonals of orthogonal parametrisations: PyTorch drops fractions of them."""
    for name, p in named_parameters:
        if name.endswith("parametrizations.weight.original"):
            p.data.diagonal().copy_(torch.randn(min(p.shape)).sign())


def save(tensors, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, file)


def write_case(folder, **about):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "case.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")


def make_bases():
    for name, (cls, config) in BASES.items():
        model = cls(config).eval()
        stir(model.parameters())
        if hasattr(model, "lm_head"):
            model.tie_weights()
        folder = HERE / "base" / name
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        ids = torch.randint(4, 96, (2, 8))
        mask = torch.ones_like(ids)
        ids[1, 6:], mask[1, 6:] = model.config.pad_token_id or 0, 0
        save({"input_ids": ids, "attention_mask": mask}, folder / "inputs.safetensors")


def inputs(name):
    from safetensors.torch import load_file
    return load_file(HERE / "base" / name / "inputs.safetensors")


def logits(model, name):
    with torch.no_grad():
        return model(**inputs(name)).logits


def task(name):
    return "SEQ_CLS" if name in ("bert", "roberta") else "CAUSAL_LM"


def prune(model, ids):
    """AdaLoRA's steps, so that ranks are pruned; the last layer loses all of them."""
    config = model.peft_config["default"]
    for step in range(1, config.total_step + 1):
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        model.base_model.update_and_allocate(step)
    last = list(config.rank_pattern)[-1]
    config.rank_pattern[last] = [False] * config.init_r
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n.endswith(last)).zero_()
    assert any(any(kept) and not all(kept) for kept in config.rank_pattern.values())


def wanted(part, cases, seed):
    """The cases that are not there yet, each with random numbers of its own."""
    for name, config in cases.items():
        if not (HERE / part / name).exists():
            torch.manual_seed(zlib.crc32(f"{seed} {part}/{name}".encode()))
            yield name, name.split("-")[0], HERE / part / name, config()


def make_peft(seed):
    for name, kind, folder, config in wanted("peft", PEFT, seed):
        config.task_type = task(kind)
        model = peft.get_peft_model(base(kind), config).eval()
        stir([p for p in model.parameters() if p.requires_grad])
        if name.endswith("_pruned"):
            prune(model, inputs(kind)["input_ids"])
        model.save_pretrained(folder / "adapter")
        (folder / "adapter" / "README.md").unlink(missing_ok=True)
        save({"logits": logits(model, kind)}, folder / "expected.safetensors")
        write_case(folder, base_dir=f"base/{kind}", library=f"peft {peft.__version__}")
        if name == "gpt2-lora":
            model.merge_and_unload().save_pretrained(folder / "merged")
            (folder / "merged" / "generation_config.json").unlink(missing_ok=True)


def make_look(seed):
    for name, kind, folder, (own, eva, ours) in wanted("look", LOOK, seed):
        config = peft.LoraConfig(**LORA, **own, init_lora_weights="eva", eva_config=peft.EvaConfig(**eva))
        config.task_type = task(kind)
        model = peft.get_peft_model(base(kind), config)
        batches = random_batches(kind, 1, 8, 16)
        # One batch, so that what the library forgets of earlier ones does not show.
        loader = [{key: tensor[0] for key, tensor in batches.items()}]
        peft.initialize_lora_eva_weights(model, loader, show_progress_bar=False)
        model.save_pretrained(folder / "start")
        (folder / "start" / "README.md").unlink(missing_ok=True)
        save(batches, folder / "batches.safetensors")
        method = dict(rank=LORA["r"], alpha=LORA["lora_alpha"], **ours)
        write_case(folder, base_dir=f"base/{kind}", library=f"peft {peft.__version__}", method=method)
        trained = HERE / "peft" / name
        if not trained.exists():
            model.eval()
            stir([p for p in model.parameters() if p.requires_grad])
            model.save_pretrained(trained / "adapter")
            (trained / "adapter" / "README.md").unlink(missing_ok=True)
            save({"logits": logits(model, kind)}, trained / "expected.safetensors")
            write_case(trained, base_dir=f"base/{kind}", library=f"peft {peft.__version__}")


def random_batches(kind, steps, rows, length):
    """Random texts, the second of every batch padded; of language models the first three tokens are no target."""
    ids = torch.randint(4, 96, (steps, rows, length))
    mask = torch.ones_like(ids)
    ids[:, 1, 7:], mask[:, 1, 7:] = 0, 0
    if kind == "bert":
        labels = torch.randint(0, 3, (steps, rows))
    else:
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :, :3] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def save_prefix(folder):
    """The pickled prefix without its copies, which keep the library from writing safetensors."""
    tensors = torch.load(folder / "adapter_bin" / "pytorch_adapter.bin")
    save({k: v for k, v in tensors.items() if ".pool." not in k}, folder / "adapter" / "adapter.safetensors")
    shutil.copy(folder / "adapter_bin" / "adapter_config.json", folder / "adapter")


def make_hub(seed):
    for name, kind, folder, config in wanted("adapterhub", HUB, seed):
        is_prefix = isinstance(config, (adapters.PrefixTuningConfig, adapters.MAMConfig, adapters.UniPELTConfig))
        # With its default attention the library masks GPT-2's prefixes out.
        model = base(kind, attn_implementation="eager") if is_prefix else base(kind)
        adapters.init(model)
        model.add_adapter("golden", config=config)
        model.train_adapter("golden")
        with_head = name.endswith("_with_head")
        stir([p for n, p in model.named_parameters() if p.requires_grad and (with_head or ".golden." in n)])
        set_signs(model.named_parameters())
        model.eval()
        folder.mkdir(parents=True)
        model.save_adapter(str(folder / "adapter_bin"), "golden", with_head=with_head)
        if is_prefix:
            save_prefix(folder)
        else:
            model.save_adapter(str(folder / "adapter"), "golden", use_safetensors=True, with_head=with_head)
        save({"logits": logits(model, kind)}, folder / "expected.safetensors")
        write_case(folder, base_dir=f"base/{kind}", library=f"adapters {adapters.__version__}")


def composed(model, block, first, second, fusion):
    """Puts two adapters into a model, active as the block says; returns the block."""
    adapters.init(model)
    model.add_adapter("task_a", config=first)
    model.add_adapter("task_b", config=second)
    setup = block("task_a", "task_b")
    if fusion:
        model.add_adapter_fusion(setup, fusion)
        model.train_adapter_fusion(setup)
    else:
        model.train_adapter(setup)
    stir([p for n, p in model.named_parameters() if ".task_" in n])
    return setup


def make_setups(seed):
    for name, kind, folder, (block, first, second, fusion) in wanted("adapterhub", SETUPS, seed):
        model = base(kind)
        setup = composed(model, block, first, second, fusion)
        model.eval()
        model.save_adapter_setup(str(folder / "adapter_bin"), setup)
        model.save_adapter_setup(str(folder / "adapter"), setup, use_safetensors=True)
        save({"logits": logits(model, kind)}, folder / "expected.safetensors")
        write_case(folder, base_dir=f"base/{kind}", library=f"adapters {adapters.__version__}")


def pack(module):
    """Linear layers hold what NF4 with double quantisation keeps of them, decoded exactly."""
    for child in module.modules():
        if isinstance(child, Conv1D):
            weight = child.weight.data.T.contiguous()
            packed, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
            child.weight.data = decoded(packed, state, weight.shape).T.contiguous()


def decoded(packed, state, shape):
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten()[: shape.numel()].long()
    nested = state.state2
    scales = nested.code[state.absmax.long()]
    blocks = torch.arange(scales.numel()) // nested.blocksize
    scales = scales * nested.absmax[blocks] + state.offset
    return (state.code[codes] * scales[torch.arange(shape.numel()) // 64]).reshape(shape)


def lora(kind):
    targets = ["c_attn"] if kind == "gpt2" else QV
    return peft.LoraConfig(**LORA, target_modules=targets, fan_in_fan_out=kind == "gpt2")


def make_train(seed):
    known = PEFT | TRAIN_PEFT
    cases = {name: known.get(name, partial(lora, name.split("-")[0])) for name in TRAIN}
    for name, kind, folder, config in wanted("train", cases, seed):
        method, model = name.split("-")[1], base(kind)
        if method == "qlora":
            pack(model)
        rate = 1e-3 if method == "full" else 1e-2
        if method == "houlsby":
            adapters.init(model)
            model.add_adapter("golden", config=adapters.DoubleSeqBnConfig(reduction_factor=4, non_linearity="gelu"))
            model.train_adapter("golden")
            folder.mkdir(parents=True)
            write = lambda to: model.save_adapter(str(to), "golden", use_safetensors=True, with_head=True)
        elif method == "fusion":
            setup = composed(model, *SETUPS[name]())
            write = lambda to: model.save_adapter_setup(str(to), setup, use_safetensors=True, head_setup=True)
        elif method == "full":
            write = lambda to: model.save_pretrained(to)
        else:
            config.task_type = task(kind)
            model = peft.get_peft_model(model, config)
            write = lambda to: model.save_pretrained(to)
        trained = [p for p in model.parameters() if p.requires_grad]
        if method != "full":
            stir(trained)
            write(folder / "start")
        batches = random_batches(kind, 10, 3, 10)
        ids, mask, labels = batches.values()
        save(batches, folder / "batches.safetensors")
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
        losses = []
        model.eval()  # no dropout
        for step in range(10):
            loss = model(input_ids=ids[step], attention_mask=mask[step], labels=labels[step]).loss
            if method == "fusion":
                loss = loss + model.get_fusion_regularization_loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if method.endswith("_allocated"):
                model.base_model.update_and_allocate(step + 1)
            losses.append(loss.detach())
        if method.endswith("_allocated"):
            # Every triplet is kept in the file, pruned ones with a singular value of zero.
            pruned = [v for k, v in model.named_parameters() if "lora_E" in k]
            assert sum(int((e == 0).sum()) for e in pruned) == 4 * (4 - 2)
            config.rank_pattern = None
        write(folder / "final")
        for part in ("start", "final"):
            for extra in ("README.md", "generation_config.json"):
                (folder / part / extra).unlink(missing_ok=True)
        save({"losses": torch.stack(losses)}, folder / "expected.safetensors")
        write_case(folder, base_dir=f"base/{kind}", optimizer={"lr": rate, "weight_decay": 0.01},
                   start="start" if method != "full" else None)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--missing", action="store_true", help="only the cases that are not there yet")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    if not args.missing:
        for part in ("base", "peft", "adapterhub", "look", "train"):
            shutil.rmtree(HERE / part, ignore_errors=True)
        make_bases()
    make_peft(args.seed)
    make_look(args.seed)
    make_hub(args.seed)
    make_setups(args.seed)
    make_train(args.seed)
    for file in HERE.rglob("*.json"):
        # The libraries write where a base was found.
        file.write_text(file.read_text().replace(f"{HERE}/", ""))


if __name__ == "__main__":
    main()
