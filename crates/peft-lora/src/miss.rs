//! MiSS: one small matrix shared by every shard of a layer's input.
//!
//! Paper: Kang et al. 2024, "MiSS: Revisiting the Trade-off in LoRA with an Efficient
//! Shard-Sharing Structure", arXiv 2409.15371 (earlier: Bone).
//! Seam: linear layers. The input is cut into shards of `rank` features, zeros after the last;
//! `y = x W + b + (sum of the shards of dropout(x)) D` with `D` of shape `[rank, d_out]`.
//! Variants: `mini` repeats a `D` of `mini_rank` columns over the output. `bat` has a `[rank, rank]`
//! block for every `rank` outputs and adds `(W_ij + I) D_j` to each block of the weight; as every
//! block of outputs reads another mixture of each shard, that variant forms the dense effective
//! weight in each pass (and its gradient in backward). All start at zero.

mod bat;

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{
    CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Proj,
    Reweighted, Rule, Site, Start, Targets, check, exchange::peft_targets, kernels,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::family::{key, peft_targets_of, place, selected};
pub use bat::BatLinear;

/// Configuration of MiSS, `kind = "miss"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Miss {
    /// Width of a shard of the input.
    pub rank: usize,
    /// Which of the variants.
    pub variant: Variant,
    /// Columns of the matrix that `mini` repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mini_rank: Option<usize>,
    /// Dropout on the input of the update while training; `bat` has none.
    pub dropout: f64,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

/// The variants of MiSS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// One column for each output.
    #[default]
    Balance,
    /// A few columns, repeated over the outputs.
    Mini,
    /// Blocks that the base's weight takes part in.
    Bat,
}

impl Default for Miss {
    fn default() -> Self {
        Self {
            rank: 64,
            variant: Variant::Balance,
            mini_rank: None,
            dropout: 0.0,
            targets: Targets::Default,
        }
    }
}

impl Miss {
    fn columns(&self, site: &Site) -> usize {
        match self.variant {
            Variant::Mini => self.mini_rank.unwrap_or(1),
            Variant::Balance | Variant::Bat => site.d_out,
        }
    }

    fn check_site(&self, site: &Site) -> Result<(), CoreError> {
        let (d_in, d_out, path) = (site.d_in, site.d_out, &site.path);
        if self.rank > d_in {
            let expected = format!("at most {d_in}, the input width of `{path}`");
            return Err(CoreError::bad_value("rank", self.rank, &expected));
        }
        let divides = |rank: usize, width: usize| rank > 0 && width.is_multiple_of(rank);
        let blocks = divides(self.rank, d_in) && divides(self.rank, d_out);
        if self.variant == Variant::Bat && !blocks {
            let expected = format!("a divisor of {d_in} and {d_out}, the widths of `{path}`");
            return Err(CoreError::bad_value("rank", self.rank, &expected));
        }
        let columns = self.columns(site);
        if !divides(columns, d_out) {
            let expected = format!("a divisor of {d_out}, the output width of `{path}`");
            return Err(CoreError::bad_value("mini_rank", columns, &expected));
        }
        Ok(())
    }
}

impl MethodConfig for Miss {
    const INFO: MethodInfo = MethodInfo {
        kind: "miss",
        name: "MiSS",
        paper: "Kang et al. 2024, arXiv 2409.15371",
        seam: "linear layers",
        formula: "r out per target (mini: r mini_r)",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        let of = |rank, variant| Miss {
            rank,
            variant,
            targets: Targets::all_linear(),
            ..Miss::default()
        };
        let mini = Miss {
            mini_rank: Some(4),
            ..of(2, Variant::Mini)
        };
        // A rank of 3 leaves part of a shard over on every layer of the toy.
        vec![of(3, Variant::Balance), of(4, Variant::Bat), mini]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "MISS" {
            return Ok(None);
        }
        let variant = match fields.take::<Value>("init_weights")? {
            Some(Value::String(name)) if name == "bat" => Variant::Bat,
            Some(Value::String(name)) if name == "mini" => Variant::Mini,
            None | Some(Value::Bool(_)) => Variant::Balance,
            Some(other) => {
                let expected = "a boolean, `bat` or `mini`";
                return Err(fields.unsupported("init_weights", &other, expected));
            }
        };
        let mini_rank: Option<usize> = fields.take("mini_r")?;
        let dropout = fields.take("miss_dropout")?.unwrap_or(0.0);
        Ok(Some(Miss {
            targets: peft_targets_of(fields, geometry)?,
            rank: fields.require("r")?,
            mini_rank: mini_rank.filter(|_| variant == Variant::Mini),
            // PEFT does not drop anything in that variant.
            dropout: if variant == Variant::Bat {
                0.0
            } else {
                dropout
            },
            variant,
        }))
    }
}

impl Method for Miss {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::rank(self.rank)?;
        check::dropout(self.dropout)?;
        if self.variant == Variant::Bat && self.dropout > 0.0 {
            return Err(CoreError::bad_value(
                "dropout",
                self.dropout,
                "0 with `bat`",
            ));
        }
        if self.variant != Variant::Mini && self.mini_rank.is_some() {
            let found = self.mini_rank.unwrap_or_default();
            let expected = "left out but with `variant = \"mini\"`";
            return Err(CoreError::bad_value("mini_rank", found, expected));
        }
        let sites = self.targets.select(&geometry.sites)?;
        sites.into_iter().try_for_each(|site| self.check_site(site))
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        let (rank, columns) = (self.rank, self.columns(site));
        if self.variant == Variant::Bat {
            let blocks = init.zeros([site.d_out / rank, rank, rank]);
            return Proj::new(BatLinear::new(base, blocks));
        }
        Proj::new(MissLinear {
            base,
            block: Param::from_tensor(init.zeros([rank, columns])),
            dropout: DropoutConfig::new(self.dropout).init(),
        })
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let sites = selected(&self.targets, geometry);
        sites.map(|site| self.rank * self.columns(site)).sum()
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        // PEFT's layer is one of PyTorch's `Linear` only.
        if geometry.keeps_weights_in_out() {
            return None;
        }
        let sites: Vec<_> = selected(&self.targets, geometry).collect();
        let (variant, ours) = match self.variant {
            Variant::Balance => (json!(true), "block"),
            Variant::Mini => (json!("mini"), "block"),
            Variant::Bat => (json!("bat"), "blocks"),
        };
        let fields = json!({
            "peft_type": "MISS", "r": self.rank, "init_weights": variant,
            "mini_r": self.mini_rank.unwrap_or(1), "miss_dropout": self.dropout,
            "target_modules": peft_targets(&sites, geometry), "bias": "none",
        });
        let rules = sites.iter();
        let rules = rules.map(|site| Rule::as_is(place(site, ours), key(site, "miss_block")));
        Some(Foreign::new(fields, rules.collect()))
    }
}

/// A linear layer with one matrix for all shards of the input.
#[derive(Module, Debug)]
pub struct MissLinear {
    base: Proj,
    /// `[rank, d_out]`, or fewer columns that repeat
    block: Param<Tensor<2>>,
    dropout: Dropout,
}

impl MissLinear {
    /// The matrix for all outputs, `[rank, d_out]`.
    fn columns(&self) -> Tensor<2> {
        let (_, d_out) = self.base.dims();
        let block = self.block.val();
        let [_, columns] = block.dims();
        match d_out / columns {
            1 => block,
            times => block.repeat_dim(1, times),
        }
    }
}

impl Reweighted for MissLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let y = self.base.forward(x.clone(), pass);
        let x = self.dropout.forward(x);
        let ([batch, seq, d_in], [rank, _]) = (x.dims(), self.block.lazy_shape().dims());
        let over = d_in % rank;
        let shards = |x: Tensor<3>| {
            let whole = x.reshape([batch, seq, d_in / rank, rank]);
            whole.sum_dim(2).squeeze_dim::<3>(2)
        };
        let sum = match over {
            0 => shards(x),
            _ => {
                let rest = x.clone().narrow(2, d_in - over, over);
                let zeros = Tensor::zeros([batch, seq, rank - over], &x.device());
                shards(x.narrow(2, 0, d_in - over)) + Tensor::cat(vec![rest, zeros], 2)
            }
        };
        kernels::linear_onto(y, sum, self.columns())
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let ((d_in, _), block) = (self.base.dims(), self.columns());
        let times = d_in.div_ceil(block.dims()[0]);
        self.base.weight(pass) + block.repeat_dim(0, times).narrow(0, 0, d_in)
    }
}

#[cfg(test)]
mod tests;
