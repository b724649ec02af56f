//! The Llama family: pre-norm decoders with rotary positions, grouped queries and a gated
//! feed-forward block. Llama, Mistral, Qwen2 and Qwen3 differ in biases, windows and norms.
//!
//! Touvron et al. 2023 (arXiv 2302.13971), Jiang et al. 2023 (2310.06825), Yang et al. 2024
//! (2407.10671) and 2025 (2505.09388).

use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    Activation, AttendSlot, EndsSlot, Geometry, Heads, Host, LookupSlot, Pass, Proj, Role,
    Sublayer, Surgeon, Table, TapSlot, attend::AttentionSpec, kernels,
};

use crate::angles::Angles;
use crate::batch::{Batch, Reading};
use crate::builder::{Builder, Linear};
use crate::cache::Cache;
use crate::error::ModelError;
use crate::llama_config::{LlamaConfig, LlamaFamily};
use crate::norm::RmsNorm;
use crate::plan::{Plan, tap_sites};
use crate::stages::{Context, trains};

/// A language model of the Llama family with seams.
#[derive(Module, Debug)]
pub struct Llama {
    embed_tokens: Param<Tensor<2>>,
    lookup: Option<LookupSlot>,
    ends: Option<EndsSlot>,
    layers: Vec<Block>,
    norm: RmsNorm,
    /// `[vocab, d]`; absent where the head is tied to `embed_tokens`.
    lm_head: Option<Param<Tensor<2>>>,
    #[module(skip)]
    angles: Angles,
    #[module(skip)]
    pub(crate) config: LlamaConfig,
    #[module(skip)]
    pub(crate) plan: Arc<Plan>,
}

#[derive(Module, Debug)]
struct Block {
    input_norm: RmsNorm,
    q_proj: Proj,
    k_proj: Proj,
    v_proj: Proj,
    head_norms: Option<HeadNorms>,
    attend: Option<AttendSlot>,
    o_proj: Proj,
    after_attention: Option<TapSlot>,
    mlp_norm: RmsNorm,
    gate_proj: Proj,
    up_proj: Proj,
    down_proj: Proj,
    after_mlp: Option<TapSlot>,
    after_layer: Option<TapSlot>,
    #[module(skip)]
    spec: AttentionSpec,
    #[module(skip)]
    activation: Activation,
}

/// Qwen3's norms of every head of queries and keys.
#[derive(Module, Debug)]
struct HeadNorms {
    q_norm: RmsNorm,
    k_norm: RmsNorm,
}

/// Prefix of the body's tensors.
pub(crate) const BODY: &str = "model.";

impl Llama {
    pub(crate) fn build(
        config: LlamaConfig,
        mut b: Builder<'_>,
        file: &Path,
    ) -> Result<Self, ModelError> {
        config.check(file)?;
        let (d, vocab) = (config.width, config.vocab_size);
        let embed_tokens = b.embedding("model.embed_tokens.weight", vocab, d);
        let layers = (0..config.layers)
            .map(|i| Block::build(i, &config, &mut b))
            .collect();
        b.enter_layer(None);
        let norm = b.rms_norm("model.norm", d, config.eps);
        let tied = config.tied;
        let lm_head = (!tied).then(|| b.lm_head(vocab, d));
        // Old checkpoints carry the frequencies as buffers, and tied ones may repeat the table.
        let ignored = |name: &str| {
            name.ends_with(".rotary_emb.inv_freq") || (tied && name == "lm_head.weight")
        };
        let (plan, _) = b.finish(file, ignored)?;
        let angles = Angles::new(config.rope.clone(), config.head_dim, config.max_positions);
        Ok(Self {
            embed_tokens,
            lookup: None,
            ends: None,
            layers,
            norm,
            lm_head,
            angles,
            config,
            plan,
        })
    }

    /// The final hidden states, `[batch, sequence, d]`, those of virtual tokens in front of them.
    ///
    /// With a cache, the batch continues the sequences the cache holds; its mask then covers them
    /// and the new tokens together.
    pub fn hidden(
        &self,
        batch: &Batch,
        mut cache: Option<&mut Cache>,
        pass: &Pass<'_>,
    ) -> Tensor<3> {
        let seen = cache.as_ref().map_or(0, |cache| cache.len());
        let (mut x, context) = self.enter(batch, seen, pass);
        for index in 0..self.layers.len() {
            x = self.layer(index, x, &context, cache.as_deref_mut(), pass);
        }
        self.leave(x, pass)
    }

    /// What enters the layers, `seen` tokens being in a cache already.
    pub(crate) fn enter(
        &self,
        batch: &Batch,
        seen: usize,
        pass: &Pass<'_>,
    ) -> (Tensor<3>, Context) {
        let reading = Reading {
            first: 0,
            seen,
            causal: true,
        };
        let embedded = batch.embed(&self.embed_tokens, self.lookup.as_ref(), reading, pass);
        let angles = self.angles.at(&embedded.positions);
        let x = EndsSlot::enter(self.ends.as_ref(), embedded.rows, pass);
        let context = Context {
            mask: embedded.mask,
            texts: batch.texts.clone(),
            angles: Some(angles),
        };
        (x, context)
    }

    /// The output of one layer.
    pub(crate) fn layer(
        &self,
        index: usize,
        x: Tensor<3>,
        context: &Context,
        cache: Option<&mut Cache>,
        pass: &Pass<'_>,
    ) -> Tensor<3> {
        let cache = cache.map(|cache| (cache, index));
        self.layers[index].forward(x, context, cache, pass)
    }

    /// The final hidden states of the last layer's output.
    pub(crate) fn leave(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        EndsSlot::leave(self.ends.as_ref(), self.norm.forward(x), pass)
    }

    /// Whether anything trains before the first layer, and in every layer.
    pub(crate) fn trained_stages(&self) -> (bool, Vec<bool>) {
        let enter = trains(&self.embed_tokens) || trains(&self.lookup) || trains(&self.ends);
        (enter, self.layers.iter().map(trains).collect())
    }

    /// The head's weight as `[d, vocab]`.
    pub fn head_weight(&self) -> Tensor<2> {
        let head = self.lm_head.as_ref().unwrap_or(&self.embed_tokens);
        head.val().transpose()
    }
}

impl Block {
    fn build(layer: usize, config: &LlamaConfig, b: &mut Builder<'_>) -> Self {
        b.enter_layer(Some(layer));
        let (d, inner, eps) = (config.width, config.inner, config.eps);
        let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_width());
        let path = |name: &str| format!("model.layers.{layer}.{name}");
        let input_norm = b.rms_norm(&path("input_layernorm"), d, eps);
        let mut site = |name: &str, role, dims, bias| {
            b.site(&path(name), role, Linear::out_in(dims).biased(bias))
        };
        let qkv = config.qkv_bias;
        let q_proj = site("self_attn.q_proj", Role::Query, (d, q_width), qkv);
        let k_proj = site("self_attn.k_proj", Role::Key, (d, kv_width), qkv);
        let v_proj = site("self_attn.v_proj", Role::Value, (d, kv_width), qkv);
        let output = config.output_bias;
        let o_proj = site("self_attn.o_proj", Role::Output, (q_width, d), output);
        let mlp = config.mlp_bias;
        let gate_proj = site("mlp.gate_proj", Role::Gate, (d, inner), mlp);
        let up_proj = site("mlp.up_proj", Role::Up, (d, inner), mlp);
        let down_proj = site("mlp.down_proj", Role::Down, (inner, d), mlp);
        let mut head_norm = |name: &str| b.rms_norm(&path(name), config.head_dim, eps);
        let head_norms = (config.family == LlamaFamily::Qwen3).then(|| HeadNorms {
            q_norm: head_norm("self_attn.q_norm"),
            k_norm: head_norm("self_attn.k_norm"),
        });
        Self {
            input_norm,
            q_proj,
            k_proj,
            v_proj,
            head_norms,
            attend: None,
            o_proj,
            after_attention: None,
            mlp_norm: b.rms_norm(&path("post_attention_layernorm"), d, eps),
            gate_proj,
            up_proj,
            down_proj,
            after_mlp: None,
            after_layer: None,
            spec: AttentionSpec {
                heads: config.heads,
                kv_heads: config.kv_heads,
                scale: 1.0 / (config.head_dim as f64).sqrt(),
                causal: true,
                window: config.windows[layer],
            },
            activation: config.activation,
        }
    }

    fn forward(
        &self,
        x: Tensor<3>,
        context: &Context,
        cache: Option<(&mut Cache, usize)>,
        pass: &Pass<'_>,
    ) -> Tensor<3> {
        let output = self.attention(self.input_norm.forward(x.clone()), context, cache, pass);
        let x = TapSlot::onto(self.after_attention.as_ref(), x, output, pass);
        let output = self.feed_forward(self.mlp_norm.forward(x.clone()), pass);
        let x = TapSlot::onto(self.after_mlp.as_ref(), x, output, pass);
        TapSlot::apply(self.after_layer.as_ref(), Sublayer::whole_layer(x), pass)
    }

    fn attention(
        &self,
        x: Tensor<3>,
        context: &Context,
        cache: Option<(&mut Cache, usize)>,
        pass: &Pass<'_>,
    ) -> Tensor<3> {
        let mut q = self.q_proj.forward(x.clone(), pass);
        let mut k = self.k_proj.forward(x.clone(), pass);
        let v = self.v_proj.forward(x.clone(), pass);
        if let Some(HeadNorms { q_norm, k_norm }) = &self.head_norms {
            (q, k) = (q_norm.forward_heads(q), k_norm.forward_heads(k));
        }
        let (cos, sin) = context.angles();
        let turn = |t| kernels::rotary(t, cos.clone(), sin.clone());
        let (q, k) = (turn(q), turn(k));
        let (k, v) = match cache {
            Some((cache, layer)) => cache.extend(layer, k, v),
            None => (k, v),
        };
        let heads = Heads {
            input: x,
            q,
            k,
            v,
            key_mask: context.mask.clone(),
            texts: context.texts.clone(),
            spec: self.spec,
            keys_and_values: &|x| {
                let pass = &pass.aside();
                let k = self.k_proj.forward(x.clone(), pass);
                let k = match &self.head_norms {
                    Some(norms) => norms.k_norm.forward_heads(k),
                    None => k,
                };
                (k, self.v_proj.forward(x, pass))
            },
        };
        let attended = AttendSlot::apply(self.attend.as_ref(), heads, pass);
        self.o_proj.forward(attended, pass)
    }

    fn feed_forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let gate = self.gate_proj.forward(x.clone(), pass);
        let up = self.up_proj.forward(x, pass);
        let gated = match self.activation {
            Activation::Swish => kernels::silu_gate(gate, up),
            other => other.forward(gate) * up,
        };
        self.down_proj.forward(gated, pass)
    }

    fn rebuild(mut self, layer: usize, plan: &Plan, surgeon: &mut dyn Surgeon) -> Self {
        let [query, key, value, output, gate, up, down] = plan.sites_of(layer);
        self.q_proj = surgeon.projection(query, self.q_proj);
        self.k_proj = surgeon.projection(key, self.k_proj);
        self.v_proj = surgeon.projection(value, self.v_proj);
        self.attend = surgeon.attend(layer, self.attend);
        self.o_proj = surgeon.projection(output, self.o_proj);
        self.after_attention = surgeon.tap(layer, Role::AfterAttention, self.after_attention);
        self.gate_proj = surgeon.projection(gate, self.gate_proj);
        self.up_proj = surgeon.projection(up, self.up_proj);
        self.down_proj = surgeon.projection(down, self.down_proj);
        self.after_mlp = surgeon.tap(layer, Role::AfterMlp, self.after_mlp);
        self.after_layer = surgeon.tap(layer, Role::AfterLayer, self.after_layer);
        self
    }
}

impl Host for Llama {
    fn geometry(&self) -> Geometry {
        let config = &self.config;
        Geometry {
            layers: config.layers,
            width: config.width,
            kv_width: config.kv_width(),
            kv_heads: config.kv_heads,
            sites: self.plan.sites.clone(),
            taps: tap_sites(config.layers, |layer, role| match role {
                Role::AfterAttention => format!("model.layers.{layer}.attention_adapters"),
                Role::AfterLayer => format!("model.layers.{layer}.reft_layer"),
                _ => format!("model.layers.{layer}.output_adapters"),
            }),
            table: Table {
                path: "model.embed_tokens".into(),
                rows: config.vocab_size,
                width: config.width,
            },
            params: self.plan.params.clone(),
        }
    }

    fn rebuild(mut self, surgeon: &mut dyn Surgeon) -> Self {
        let plan = self.plan.clone();
        self.lookup = surgeon.lookup(self.lookup);
        self.ends = surgeon.ends(self.ends);
        let layers = self.layers.into_iter().enumerate();
        self.layers = layers
            .map(|(i, layer)| layer.rebuild(i, &plan, surgeon))
            .collect();
        self
    }

    fn untie_head(mut self) -> Self {
        if self.lm_head.is_none() {
            let (head, plan) = self.plan.with_head_like(&self.embed_tokens);
            (self.lm_head, self.plan) = (Some(head), Arc::new(plan));
            self.config.tied = false;
        }
        self
    }
}
