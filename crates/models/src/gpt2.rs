//! GPT-2: pre-norm decoder with learned positions, one matrix for query, key and value, and an
//! output head tied to the embedding table.
//!
//! Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".

use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    Activation, AttendSlot, EndsSlot, Geometry, Heads, Host, LookupSlot, Pass, Proj, Role,
    Sublayer, Surgeon, Table, TapSlot, attend::AttentionSpec, kernels,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::batch::{Batch, Reading};
use crate::builder::{Builder, Linear};
use crate::cache::Cache;
use crate::error::ModelError;
use crate::fields::Fields;
use crate::norm::Norm;
use crate::plan::{Plan, tap_sites};
use crate::stages::{Context, trains};

/// The part of `config.json` that decides what a GPT-2 computes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Gpt2Config {
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Longest sequence.
    pub n_positions: usize,
    /// Width.
    pub n_embd: usize,
    /// Layers.
    pub n_layer: usize,
    /// Attention heads.
    pub n_head: usize,
    /// Width of the feed-forward block; four times the model's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_inner: Option<usize>,
    /// Non-linearity.
    #[serde(default = "gelu_new")]
    pub activation_function: Activation,
    /// Added to variances.
    #[serde(default = "default_eps")]
    pub layer_norm_epsilon: f64,
    /// Standard deviation of fresh weights.
    #[serde(default = "default_range")]
    pub initializer_range: f64,
    /// Whether the head shares the embedding table.
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
}

fn gelu_new() -> Activation {
    Activation::GeluTanh
}
fn default_eps() -> f64 {
    1e-5
}
fn default_range() -> f64 {
    0.02
}
fn yes() -> bool {
    true
}

impl Gpt2Config {
    /// A configuration of this shape, everything else as GPT-2 has it.
    pub fn new(
        vocab_size: usize,
        n_positions: usize,
        n_embd: usize,
        n_layer: usize,
        n_head: usize,
    ) -> Self {
        Self {
            vocab_size,
            n_positions,
            n_embd,
            n_layer,
            n_head,
            n_inner: None,
            activation_function: gelu_new(),
            layer_norm_epsilon: default_eps(),
            initializer_range: default_range(),
            tie_word_embeddings: true,
        }
    }

    /// distilgpt2's shape.
    pub fn distilgpt2() -> Self {
        Self::new(50257, 1024, 768, 6, 12)
    }

    /// gpt2's shape (the 124-million-parameter one).
    pub fn gpt2() -> Self {
        Self::new(50257, 1024, 768, 12, 12)
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// If a key is missing, of the wrong type, or asks for something that is not supported.
    pub fn from_json(json: &Value, file: &Path) -> Result<Self, ModelError> {
        let fields = Fields::new(json, file);
        for key in ["vocab_size", "n_positions", "n_embd", "n_head"] {
            fields.count(key)?;
        }
        fields.layers("n_layer")?;
        fields.optional_count("n_inner")?;
        fields.eps("layer_norm_epsilon", default_eps())?;
        fields.above("initializer_range", 0.0)?;
        fields.only("scale_attn_by_inverse_layer_idx", &false.into())?;
        fields.only("scale_attn_weights", &true.into())?;
        fields.only("add_cross_attention", &false.into())?;
        fields.known_packing()?;
        let config: Self = serde_json::from_value(json.clone()).map_err(|e| ModelError::Json {
            file: file.into(),
            reason: e.to_string(),
        })?;
        config.check(file)?;
        Ok(config)
    }

    /// Refuses sizes that do not fit together.
    fn check(&self, file: &Path) -> Result<(), ModelError> {
        if self.n_head == 0 || !self.n_embd.is_multiple_of(self.n_head) {
            return Err(ModelError::Config {
                file: file.into(),
                key: "n_head".into(),
                found: self.n_head.to_string(),
                expected: format!("a divisor of `n_embd` ({})", self.n_embd),
            });
        }
        Ok(())
    }
}

/// A GPT-2 language model with seams.
#[derive(Module, Debug)]
pub struct Gpt2 {
    wte: Param<Tensor<2>>,
    lookup: Option<LookupSlot>,
    ends: Option<EndsSlot>,
    wpe: Param<Tensor<2>>,
    h: Vec<Block>,
    ln_f: Norm,
    /// `[vocab, d]`; absent where the head is tied to `wte`.
    lm_head: Option<Param<Tensor<2>>>,
    #[module(skip)]
    pub(crate) config: Gpt2Config,
    #[module(skip)]
    pub(crate) plan: Arc<Plan>,
}

#[derive(Module, Debug)]
struct Block {
    ln_1: Norm,
    c_attn: Proj,
    attend: Option<AttendSlot>,
    c_proj: Proj,
    after_attention: Option<TapSlot>,
    ln_2: Norm,
    c_fc: Proj,
    mlp_c_proj: Proj,
    after_mlp: Option<TapSlot>,
    after_layer: Option<TapSlot>,
    #[module(skip)]
    spec: AttentionSpec,
    #[module(skip)]
    activation: Activation,
}

pub(crate) const BODY: &str = "transformer.";

impl Gpt2 {
    pub(crate) fn build(
        config: Gpt2Config,
        mut b: Builder<'_>,
        file: &Path,
    ) -> Result<Self, ModelError> {
        config.check(file)?;
        let d = config.n_embd;
        let wte = b.embedding("transformer.wte.weight", config.vocab_size, d);
        let wpe = b.embedding("transformer.wpe.weight", config.n_positions, d);
        let h = (0..config.n_layer)
            .map(|i| Block::build(i, &config, &mut b))
            .collect();
        b.enter_layer(None);
        let ln_f = b.norm("transformer.ln_f", d, config.layer_norm_epsilon);
        let tied = config.tie_word_embeddings;
        let lm_head = (!tied).then(|| b.lm_head(config.vocab_size, d));
        // Old checkpoints carry the causal mask as buffers, and tied ones may repeat the table.
        let ignored = |name: &str| {
            name.ends_with(".attn.bias")
                || name.ends_with(".attn.masked_bias")
                || (tied && name == "lm_head.weight")
        };
        let (plan, _) = b.finish(file, ignored)?;
        Ok(Self {
            wte,
            lookup: None,
            ends: None,
            wpe,
            h,
            ln_f,
            lm_head,
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
        for index in 0..self.h.len() {
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
        let embedded = batch.embed(&self.wte, self.lookup.as_ref(), reading, pass);
        let x = embedded.rows + embed(&self.wpe, &embedded.positions);
        let x = EndsSlot::enter(self.ends.as_ref(), x, pass);
        let context = Context {
            mask: embedded.mask,
            texts: batch.texts.clone(),
            angles: None,
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
        self.h[index].forward(x, context, cache, pass)
    }

    /// The final hidden states of the last layer's output.
    pub(crate) fn leave(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        EndsSlot::leave(self.ends.as_ref(), self.ln_f.forward(x), pass)
    }

    /// Whether anything trains before the first layer, and in every layer.
    pub(crate) fn trained_stages(&self) -> (bool, Vec<bool>) {
        let enter =
            trains(&self.wte) || trains(&self.lookup) || trains(&self.ends) || trains(&self.wpe);
        (enter, self.h.iter().map(trains).collect())
    }

    /// The head's weight as `[d, vocab]`.
    pub fn head_weight(&self) -> Tensor<2> {
        self.lm_head.as_ref().unwrap_or(&self.wte).val().transpose()
    }
}

/// Rows of a table, `[batch, sequence, d]`.
pub(crate) fn embed(table: &Param<Tensor<2>>, ids: &Tensor<2, burn::tensor::Int>) -> Tensor<3> {
    let [batch, seq] = ids.dims();
    let rows = kernels::embedding(table.val(), ids.clone().reshape([batch * seq]));
    let [_, d] = rows.dims();
    rows.reshape([batch, seq, d])
}

impl Block {
    fn build(layer: usize, config: &Gpt2Config, b: &mut Builder<'_>) -> Self {
        b.enter_layer(Some(layer));
        let (d, eps) = (config.n_embd, config.layer_norm_epsilon);
        let inner = config.n_inner.unwrap_or(4 * d);
        let path = |name: &str| format!("transformer.h.{layer}.{name}");
        let ln_1 = b.norm(&path("ln_1"), d, eps);
        let mut site = |name: &str, role, dims| b.site(&path(name), role, Linear::in_out(dims));
        let c_attn = site("attn.c_attn", Role::FusedQkv, (d, 3 * d));
        let c_proj = site("attn.c_proj", Role::Output, (d, d));
        let c_fc = site("mlp.c_fc", Role::Up, (d, inner));
        let mlp_c_proj = site("mlp.c_proj", Role::Down, (inner, d));
        let ln_2 = b.norm(&path("ln_2"), d, eps);
        let heads = config.n_head;
        let scale = 1.0 / ((d / heads) as f64).sqrt();
        Self {
            ln_1,
            c_attn,
            attend: None,
            c_proj,
            after_attention: None,
            ln_2,
            c_fc,
            mlp_c_proj,
            after_mlp: None,
            after_layer: None,
            spec: AttentionSpec {
                heads,
                kv_heads: heads,
                scale,
                causal: true,
                window: None,
            },
            activation: config.activation_function,
        }
    }

    fn forward(
        &self,
        x: Tensor<3>,
        context: &Context,
        cache: Option<(&mut Cache, usize)>,
        pass: &Pass<'_>,
    ) -> Tensor<3> {
        let output = self.attention(self.ln_1.forward(x.clone()), context, cache, pass);
        let x = TapSlot::onto(self.after_attention.as_ref(), x, output, pass);
        let h = self.c_fc.forward(self.ln_2.forward(x.clone()), pass);
        let output = self.mlp_c_proj.forward(self.activation.forward(h), pass);
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
        if self.attend.is_none() && cache.is_none() {
            // Nobody needs the parts: the backward pass then writes one gradient, not three.
            let qkv = self.c_attn.forward(x, pass);
            let attended = match &context.texts {
                Some(texts) => kernels::attention_qkv_packed(qkv, &self.spec, texts),
                None => kernels::attention_qkv(qkv, &self.spec, context.mask.clone()),
            };
            return self.c_proj.forward(attended, pass);
        }
        let qkv = self.c_attn.forward(x.clone(), pass);
        let d = qkv.dims()[2] / 3;
        let part = |i: usize| qkv.clone().narrow(2, i * d, d);
        let (k, v) = match cache {
            Some((cache, layer)) => cache.extend(layer, part(1), part(2)),
            None => (part(1), part(2)),
        };
        let heads = Heads {
            input: x,
            q: part(0),
            k,
            v,
            key_mask: context.mask.clone(),
            texts: context.texts.clone(),
            spec: self.spec,
            keys_and_values: &|x| {
                let qkv = self.c_attn.forward(x, &pass.aside());
                (qkv.clone().narrow(2, d, d), qkv.narrow(2, 2 * d, d))
            },
        };
        self.c_proj
            .forward(AttendSlot::apply(self.attend.as_ref(), heads, pass), pass)
    }

    fn rebuild(mut self, layer: usize, plan: &Plan, surgeon: &mut dyn Surgeon) -> Self {
        let [c_attn, c_proj, c_fc, mlp_c_proj] = plan.sites_of(layer);
        self.c_attn = surgeon.projection(c_attn, self.c_attn);
        self.attend = surgeon.attend(layer, self.attend);
        self.c_proj = surgeon.projection(c_proj, self.c_proj);
        self.after_attention = surgeon.tap(layer, Role::AfterAttention, self.after_attention);
        self.c_fc = surgeon.projection(c_fc, self.c_fc);
        self.mlp_c_proj = surgeon.projection(mlp_c_proj, self.mlp_c_proj);
        self.after_mlp = surgeon.tap(layer, Role::AfterMlp, self.after_mlp);
        self.after_layer = surgeon.tap(layer, Role::AfterLayer, self.after_layer);
        self
    }
}

impl Host for Gpt2 {
    fn geometry(&self) -> Geometry {
        let layers = self.config.n_layer;
        let taps = tap_sites(layers, |layer, role| match role {
            Role::AfterAttention => format!("transformer.h.{layer}.attention_adapters"),
            Role::AfterLayer => format!("transformer.h.{layer}.reft_layer"),
            _ => format!("transformer.h.{layer}.output_adapters"),
        });
        Geometry {
            layers,
            width: self.config.n_embd,
            kv_width: self.config.n_embd,
            kv_heads: self.config.n_head,
            sites: self.plan.sites.clone(),
            taps,
            table: Table {
                path: "transformer.wte".into(),
                rows: self.config.vocab_size,
                width: self.config.n_embd,
            },
            params: self.plan.params.clone(),
        }
    }

    fn rebuild(mut self, surgeon: &mut dyn Surgeon) -> Self {
        let plan = self.plan.clone();
        self.lookup = surgeon.lookup(self.lookup);
        self.ends = surgeon.ends(self.ends);
        let blocks = self.h.into_iter().enumerate();
        self.h = blocks
            .map(|(layer, block)| block.rebuild(layer, &plan, surgeon))
            .collect();
        self
    }

    fn untie_head(mut self) -> Self {
        if self.lm_head.is_none() {
            let (head, plan) = self.plan.with_head_like(&self.wte);
            (self.lm_head, self.plan) = (Some(head), Arc::new(plan));
            self.config.tie_word_embeddings = false;
        }
        self
    }
}

/// Logits of hidden states, `[batch, sequence, vocab]`.
pub(crate) fn head_logits(hidden: Tensor<3>, weight: Tensor<2>) -> Tensor<3> {
    kernels::linear(hidden, weight, None)
}
