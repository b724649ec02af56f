//! The BERT family with a sequence-classification head: BERT, RoBERTa, DistilBERT.
//!
//! Devlin et al. 2018 (arXiv 1810.04805), Liu et al. 2019 (1907.11692), Sanh et al. 2019 (1910.01108).
//! One post-norm encoder; the three differ in names, positions, token types and the head.

use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation::relu};
use peft_core::{
    Activation, AttendSlot, Dense, EndsSlot, Geometry, Heads, Host, LookupSlot, Part, Pass, Proj,
    Role, Sublayer, Surgeon, Table, TapSlot, attend::AttentionSpec,
};

use crate::batch::{Batch, Positions, Reading};
use crate::bert_config::{BertConfig, Family};
use crate::builder::{Builder, Linear};
use crate::error::ModelError;
use crate::gpt2::embed;
use crate::norm::Norm;
use crate::plan::{Plan, tap_sites};
use crate::stages::{Context, trains};

/// A sequence classifier of the BERT family with seams.
#[derive(Module, Debug)]
pub struct Bert {
    words: Param<Tensor<2>>,
    lookup: Option<LookupSlot>,
    ends: Option<EndsSlot>,
    positions: Param<Tensor<2>>,
    /// Token types; every text here is of type 0.
    types: Option<Param<Tensor<2>>>,
    norm: Norm,
    layers: Vec<Layer>,
    /// BERT's pooler, part of the pretrained body.
    pooler: Option<Dense>,
    /// First layer of RoBERTa's and DistilBERT's heads.
    head_dense: Option<Dense>,
    classifier: Dense,
    #[module(skip)]
    pub(crate) config: BertConfig,
    #[module(skip)]
    pub(crate) plan: Arc<Plan>,
}

#[derive(Module, Debug)]
struct Layer {
    query: Proj,
    key: Proj,
    value: Proj,
    attend: Option<AttendSlot>,
    output: Proj,
    after_attention: Option<TapSlot>,
    attention_norm: Norm,
    up: Proj,
    down: Proj,
    after_mlp: Option<TapSlot>,
    after_layer: Option<TapSlot>,
    mlp_norm: Norm,
    #[module(skip)]
    spec: AttentionSpec,
    #[module(skip)]
    activation: Activation,
}

impl Bert {
    /// Builds the model; returns it with the names of head layers that had to be made anew.
    pub(crate) fn build(
        config: BertConfig,
        mut b: Builder<'_>,
        file: &Path,
    ) -> Result<(Self, Vec<String>), ModelError> {
        config.check(file)?;
        let (d, names) = (config.width, config.family.names());
        let embedding = |name: &str| format!("{}embeddings.{name}", names.body);
        let words = b.embedding(&embedding("word_embeddings.weight"), config.vocab_size, d);
        let positions = b.embedding(
            &embedding("position_embeddings.weight"),
            config.max_positions,
            d,
        );
        let types = (config.type_vocab_size > 0).then(|| {
            b.embedding(
                &embedding("token_type_embeddings.weight"),
                config.type_vocab_size,
                d,
            )
        });
        let norm = b.norm(&embedding("LayerNorm"), d, config.eps);
        let layers = (0..config.layers)
            .map(|i| Layer::build(i, &config, &mut b))
            .collect();
        b.enter_layer(None);
        let pooler = names
            .pooler
            .map(|name| b.linear(name, Part::Linear, Linear::out_in((d, d))));
        let head_dense = names.head_dense.map(|name| b.head(name, (d, d)));
        let classifier = b.head(names.classifier, (d, config.num_labels));
        let (plan, new) = b.finish(file, |name| names.ignores(name))?;
        let model = Self {
            words,
            lookup: None,
            ends: None,
            positions,
            types,
            norm,
            layers,
            pooler,
            head_dense,
            classifier,
            config,
            plan,
        };
        Ok((model, new))
    }

    /// How this model numbers positions.
    pub fn position_rule(&self) -> Positions {
        match self.config.family {
            Family::Roberta => Positions::RealTokens {
                start: self.config.pad_token_id + 1,
                padding: self.config.pad_token_id,
            },
            Family::Bert | Family::Distilbert => Positions::FromLeft,
        }
    }

    /// What enters the layers.
    pub(crate) fn enter(&self, batch: &Batch, pass: &Pass<'_>) -> (Tensor<3>, Context) {
        // The head takes the first token of every row.
        assert!(batch.texts.is_none(), "a classifier takes one text a row");
        let reading = Reading {
            first: self.position_rule().first(),
            seen: 0,
            causal: false,
        };
        let embedded = batch.embed(&self.words, self.lookup.as_ref(), reading, pass);
        let mut x = embedded.rows + embed(&self.positions, &embedded.positions);
        if let Some(types) = &self.types {
            x = x + types.val().narrow(0, 0, 1).unsqueeze();
        }
        x = EndsSlot::enter(self.ends.as_ref(), self.norm.forward(x), pass);
        let context = Context {
            mask: embedded.mask,
            texts: None,
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
        pass: &Pass<'_>,
    ) -> Tensor<3> {
        self.layers[index].forward(x, context.mask.as_ref(), pass)
    }

    /// Whether anything trains before the first layer, and in every layer.
    pub(crate) fn trained_stages(&self) -> (bool, Vec<bool>) {
        let enter = trains(&self.words)
            || trains(&self.lookup)
            || trains(&self.ends)
            || trains(&self.positions)
            || trains(&self.types)
            || trains(&self.norm);
        (enter, self.layers.iter().map(trains).collect())
    }

    /// The head on the first token; with virtual tokens that is the first of them, as in HF PEFT.
    pub(crate) fn classify(&self, x: Tensor<3>) -> Tensor<2> {
        let [rows, _, d] = x.dims();
        let mut first = x.narrow(1, 0, 1).reshape([rows, d]);
        if let Some(pooler) = &self.pooler {
            first = pooler.apply(first).tanh();
        }
        if let Some(dense) = &self.head_dense {
            first = match self.config.family {
                Family::Distilbert => relu(dense.apply(first)),
                Family::Bert | Family::Roberta => dense.apply(first).tanh(),
            };
        }
        self.classifier.apply(first)
    }
}

impl Layer {
    fn build(layer: usize, config: &BertConfig, b: &mut Builder<'_>) -> Self {
        b.enter_layer(Some(layer));
        let (d, inner, names) = (config.width, config.inner, config.family.names());
        let path = |name: &str| format!("{}{layer}.{name}", names.layers);
        let mut site = |name: &str, role, dims| b.site(&path(name), role, Linear::out_in(dims));
        let [query, key, value, output, up, down] = [
            site(names.query, Role::Query, (d, d)),
            site(names.key, Role::Key, (d, d)),
            site(names.value, Role::Value, (d, d)),
            site(names.output, Role::Output, (d, d)),
            site(names.up, Role::Up, (d, inner)),
            site(names.down, Role::Down, (inner, d)),
        ];
        let scale = 1.0 / ((d / config.heads) as f64).sqrt();
        Self {
            query,
            key,
            value,
            attend: None,
            output,
            after_attention: None,
            attention_norm: b.norm(&path(names.attention_norm), d, config.eps),
            up,
            down,
            after_mlp: None,
            after_layer: None,
            mlp_norm: b.norm(&path(names.mlp_norm), d, config.eps),
            spec: AttentionSpec {
                heads: config.heads,
                kv_heads: config.heads,
                scale,
                causal: false,
                window: None,
            },
            activation: config.activation,
        }
    }

    fn forward(&self, x: Tensor<3>, mask: Option<&Tensor<2>>, pass: &Pass<'_>) -> Tensor<3> {
        let heads = Heads {
            input: x.clone(),
            q: self.query.forward(x.clone(), pass),
            k: self.key.forward(x.clone(), pass),
            v: self.value.forward(x.clone(), pass),
            key_mask: mask.cloned(),
            texts: None,
            spec: self.spec,
            keys_and_values: &|x| {
                let pass = &pass.aside();
                (
                    self.key.forward(x.clone(), pass),
                    self.value.forward(x, pass),
                )
            },
        };
        let attended = AttendSlot::apply(self.attend.as_ref(), heads, pass);
        let output = self.output.forward(attended, pass);
        let x = add_and_norm(
            x,
            output,
            self.after_attention.as_ref(),
            &self.attention_norm,
            pass,
        );
        let h = self.activation.forward(self.up.forward(x.clone(), pass));
        let output = self.down.forward(h, pass);
        let x = add_and_norm(x, output, self.after_mlp.as_ref(), &self.mlp_norm, pass);
        TapSlot::apply(self.after_layer.as_ref(), Sublayer::whole_layer(x), pass)
    }

    fn rebuild(mut self, layer: usize, plan: &Plan, surgeon: &mut dyn Surgeon) -> Self {
        let [query, key, value, output, up, down] = plan.sites_of(layer);
        self.query = surgeon.projection(query, self.query);
        self.key = surgeon.projection(key, self.key);
        self.value = surgeon.projection(value, self.value);
        self.attend = surgeon.attend(layer, self.attend);
        self.output = surgeon.projection(output, self.output);
        self.after_attention = surgeon.tap(layer, Role::AfterAttention, self.after_attention);
        self.up = surgeon.projection(up, self.up);
        self.down = surgeon.projection(down, self.down);
        self.after_mlp = surgeon.tap(layer, Role::AfterMlp, self.after_mlp);
        self.after_layer = surgeon.tap(layer, Role::AfterLayer, self.after_layer);
        self
    }
}

/// The post-norm residual sum, with whatever sits on the sublayer.
fn add_and_norm(
    residual: Tensor<3>,
    output: Tensor<3>,
    tap: Option<&TapSlot>,
    norm: &Norm,
    pass: &Pass<'_>,
) -> Tensor<3> {
    let normalise = |x| norm.forward(x);
    let sublayer = Sublayer {
        residual: residual.clone(),
        output,
        norm: Some(&normalise),
    };
    norm.forward(residual + TapSlot::apply(tap, sublayer, pass))
}

impl Host for Bert {
    fn geometry(&self) -> Geometry {
        let (layers, names) = (self.config.layers, self.config.family.names());
        let taps = tap_sites(layers, |layer, role| {
            let name = match role {
                Role::AfterAttention => names.attention_adapters,
                Role::AfterLayer => "reft_layer",
                _ => names.mlp_adapters,
            };
            format!("{}{layer}.{name}", names.layers)
        });
        Geometry {
            layers,
            width: self.config.width,
            kv_width: self.config.width,
            kv_heads: self.config.heads,
            sites: self.plan.sites.clone(),
            taps,
            table: Table {
                path: format!(
                    "{}embeddings.word_embeddings",
                    self.config.family.names().body
                ),
                rows: self.config.vocab_size,
                width: self.config.width,
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
}
