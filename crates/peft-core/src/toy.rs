//! A two-layer transformer with every seam, small enough for tests of methods.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};

use crate::attend::{AttendSlot, AttentionSpec, Heads};
use crate::contract::ContractHost;
use crate::ends::EndsSlot;
use crate::geometry::{BaseParam, Geometry, Part, Table, TapSite};
use crate::host::{Adapted, Host, Surgeon};
use crate::init::Init;
use crate::lookup::LookupSlot;
use crate::pass::{Pass, Text};
use crate::projection::{Dense, Proj};
use crate::site::{Role, Site};
use crate::tap::{Sublayer, TapSlot};

const VOCAB: usize = 13;
const WIDTH: usize = 8;
const INNER: usize = 16;
const LAYERS: usize = 2;

/// A pre-norm causal transformer: width 8, 2 heads, feed-forward 16, 13 tokens, no positions.
#[derive(Module, Debug)]
pub struct Toy {
    embedding: Param<Tensor<2>>,
    lookup: Option<LookupSlot>,
    ends: Option<EndsSlot>,
    layers: Vec<ToyLayer>,
    head: Param<Tensor<2>>,
}

#[derive(Module, Debug)]
struct ToyLayer {
    norm_1: ToyNorm,
    query: Proj,
    key: Proj,
    value: Proj,
    output: Proj,
    attend: Option<AttendSlot>,
    after_attention: Option<TapSlot>,
    norm_2: ToyNorm,
    up: Proj,
    down: Proj,
    after_mlp: Option<TapSlot>,
    after_layer: Option<TapSlot>,
    #[module(skip)]
    sites: Vec<Site>,
    #[module(skip)]
    params: Vec<BaseParam>,
}

#[derive(Module, Debug)]
struct ToyNorm {
    gamma: Param<Tensor<1>>,
    beta: Param<Tensor<1>>,
}

impl ToyNorm {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        kernels::layer_norm(x, self.gamma.val(), self.beta.val(), 1e-5)
    }
}

/// Collects what a layer's geometry reports while the layer is built.
struct LayerBuilder<'a> {
    layer: usize,
    init: &'a mut Init,
    sites: Vec<Site>,
    params: Vec<BaseParam>,
}

impl LayerBuilder<'_> {
    fn param<const D: usize>(
        &mut self,
        name: &str,
        part: Part,
        value: Tensor<D>,
    ) -> Param<Tensor<D>> {
        let shape = value.dims().to_vec();
        let param = Param::from_tensor(value);
        let name = format!("layers.{}.{name}", self.layer);
        self.params.push(BaseParam {
            id: param.id,
            name,
            shape,
            part,
            layer: Some(self.layer),
            layers_above: Some(LAYERS - 1 - self.layer),
            transposed: false,
            role: None,
        });
        param
    }

    fn linear(&mut self, name: &str, role: Role, d_in: usize, d_out: usize) -> Proj {
        let weight = self.init.normal([d_in, d_out], 0.3);
        let bias = self.init.normal([d_out], 0.1);
        let weight = self.param(&format!("{name}.weight"), Part::Linear, weight);
        let bias = Some(self.param(&format!("{name}.bias"), Part::Linear, bias));
        let own = self.params.iter_mut().rev().take(2);
        own.for_each(|param| param.role = Some(role));
        let path = format!("layers.{}.{name}", self.layer);
        self.sites.push(Site {
            layer: self.layer,
            role,
            path,
            d_in,
            d_out,
        });
        Proj::new(Dense { weight, bias })
    }

    fn norm(&mut self, name: &str) -> ToyNorm {
        let gamma = self.init.full([WIDTH], 1.0);
        let beta = self.init.zeros([WIDTH]);
        ToyNorm {
            gamma: self.param(&format!("{name}.weight"), Part::Norm, gamma),
            beta: self.param(&format!("{name}.bias"), Part::Norm, beta),
        }
    }
}

impl ToyLayer {
    fn new(layer: usize, init: &mut Init) -> Self {
        let mut b = LayerBuilder {
            layer,
            init,
            sites: Vec::new(),
            params: Vec::new(),
        };
        Self {
            norm_1: b.norm("norm_1"),
            query: b.linear("attn.query", Role::Query, WIDTH, WIDTH),
            key: b.linear("attn.key", Role::Key, WIDTH, WIDTH),
            value: b.linear("attn.value", Role::Value, WIDTH, WIDTH),
            output: b.linear("attn.dense", Role::Output, WIDTH, WIDTH),
            attend: None,
            after_attention: None,
            norm_2: b.norm("norm_2"),
            up: b.linear("mlp.up", Role::Up, WIDTH, INNER),
            down: b.linear("mlp.down", Role::Down, INNER, WIDTH),
            after_mlp: None,
            after_layer: None,
            sites: b.sites,
            params: b.params,
        }
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let h = self.norm_1.forward(x.clone());
        let spec = AttentionSpec {
            heads: 2,
            kv_heads: 2,
            scale: 0.5,
            causal: true,
            window: None,
        };
        let heads = Heads {
            q: self.query.forward(h.clone(), pass),
            k: self.key.forward(h.clone(), pass),
            v: self.value.forward(h.clone(), pass),
            input: h,
            key_mask: None,
            texts: None,
            spec,
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
        let x = TapSlot::onto(self.after_attention.as_ref(), x, output, pass);
        let h = kernels::gelu(self.up.forward(self.norm_2.forward(x.clone()), pass));
        let output = self.down.forward(h, pass);
        let x = TapSlot::onto(self.after_mlp.as_ref(), x, output, pass);
        TapSlot::apply(self.after_layer.as_ref(), Sublayer::whole_layer(x), pass)
    }

    fn rebuild(mut self, layer: usize, surgeon: &mut dyn Surgeon) -> Self {
        let [q, k, v, o, up, down] = &self.sites[..] else {
            unreachable!("six linear layers")
        };
        self.query = surgeon.projection(q, self.query);
        self.key = surgeon.projection(k, self.key);
        self.value = surgeon.projection(v, self.value);
        self.attend = surgeon.attend(layer, self.attend);
        self.output = surgeon.projection(o, self.output);
        self.after_attention = surgeon.tap(layer, Role::AfterAttention, self.after_attention);
        self.up = surgeon.projection(up, self.up);
        self.down = surgeon.projection(down, self.down);
        self.after_mlp = surgeon.tap(layer, Role::AfterMlp, self.after_mlp);
        self.after_layer = surgeon.tap(layer, Role::AfterLayer, self.after_layer);
        self
    }
}

impl Host for Toy {
    fn geometry(&self) -> Geometry {
        let table = |param: &Param<Tensor<2>>, name: &str, part| BaseParam {
            id: param.id,
            name: name.into(),
            shape: param.lazy_shape().to_vec(),
            part,
            layer: None,
            layers_above: None,
            transposed: false,
            role: None,
        };
        let mut params = vec![table(&self.embedding, "embedding.weight", Part::Embedding)];
        params.extend(self.layers.iter().flat_map(|l| l.params.clone()));
        params.push(table(&self.head, "lm_head.weight", Part::Head));
        Geometry {
            layers: LAYERS,
            width: WIDTH,
            kv_width: WIDTH,
            kv_heads: 2,
            sites: self.layers.iter().flat_map(|l| l.sites.clone()).collect(),
            taps: (0..LAYERS)
                .flat_map(|layer| {
                    [
                        (Role::AfterAttention, "attn"),
                        (Role::AfterMlp, "mlp"),
                        (Role::AfterLayer, "layer"),
                    ]
                    .map(|(role, name)| TapSite {
                        layer,
                        role,
                        path: format!("layers.{layer}.{name}"),
                    })
                })
                .collect(),
            table: Table {
                path: "embedding".into(),
                rows: VOCAB,
                width: WIDTH,
            },
            params,
        }
    }

    fn rebuild(mut self, surgeon: &mut dyn Surgeon) -> Self {
        self.lookup = surgeon.lookup(self.lookup);
        self.ends = surgeon.ends(self.ends);
        self.layers = self
            .layers
            .into_iter()
            .enumerate()
            .map(|(index, layer)| layer.rebuild(index, surgeon))
            .collect();
        self
    }
}

impl ContractHost for Toy {
    const VOCAB: usize = VOCAB;

    fn build(init: &mut Init) -> Self {
        Self {
            embedding: Param::from_tensor(init.normal([VOCAB, WIDTH], 1.0)),
            lookup: None,
            ends: None,
            layers: (0..LAYERS)
                .map(|layer| ToyLayer::new(layer, init))
                .collect(),
            head: Param::from_tensor(init.normal([WIDTH, VOCAB], 0.3)),
        }
    }

    fn logits(adapted: &Adapted<Self>, ids: Tensor<2, Int>) -> Tensor<3> {
        let pass = adapted.pass();
        pass.see(Text {
            causal: true,
            ..Text::default()
        });
        let toy = &adapted.host;
        let [batch, seq] = ids.dims();
        let rows = ids.clone().reshape([batch * seq]);
        let x = toy
            .embedding
            .val()
            .select(0, rows)
            .reshape([batch, seq, WIDTH]);
        let x = LookupSlot::apply(toy.lookup.as_ref(), &ids, x, &pass);
        let x = match LookupSlot::prompt(toy.lookup.as_ref(), &pass) {
            Some(prompt) => {
                let [n, _] = prompt.dims();
                Tensor::cat(
                    vec![prompt.unsqueeze::<3>().expand([batch, n, WIDTH]), x],
                    1,
                )
            }
            None => x,
        };
        let x = x.repeat_dim(0, pass.copies);
        let x = EndsSlot::enter(toy.ends.as_ref(), x, &pass);
        let x = toy
            .layers
            .iter()
            .fold(x, |x, layer| layer.forward(x, &pass));
        let x = EndsSlot::leave(toy.ends.as_ref(), x, &pass);
        pass.joined(kernels::linear(x, toy.head.val(), None))
    }
}
