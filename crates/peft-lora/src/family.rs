//! What the methods of the family share: their layers, and how HF PEFT's fields name them.

use burn::tensor::Tensor;
use peft_core::exchange::{path_ends_with, resolve_targets};
use peft_core::{CoreError, Fields, Geometry, Pass, Proj, Site, Targets, kernels};
use serde_json::{Value, json};

/// Declares the configuration of a variant of LoRA: the keys that LoRA shares with all of them, and
/// those of its own.
macro_rules! lora_variant {
    ($(#[$doc:meta])* $name:ident { $($(#[$key_doc:meta])* $key:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            /// Rank of the update.
            pub rank: usize,
            /// Numerator of the scaling `alpha / rank`.
            pub alpha: f64,
            /// Dropout on the input of `A` while training.
            pub dropout: f64,
            /// Which linear layers; query and value (or the fused projection) where none are named.
            pub targets: peft_core::Targets,
            /// Scaling `alpha / sqrt(rank)`.
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            pub rslora: bool,
            $($(#[$key_doc])* pub $key: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                $crate::lora::Lora::default().into()
            }
        }

        impl From<$crate::lora::Lora> for $name {
            fn from(lora: $crate::lora::Lora) -> Self {
                Self {
                    rank: lora.rank,
                    alpha: lora.alpha,
                    dropout: lora.dropout,
                    targets: lora.targets,
                    rslora: lora.rslora,
                    $($key: Default::default(),)*
                }
            }
        }

        impl $name {
            /// LoRA with the same keys.
            fn lora(&self) -> $crate::lora::Lora {
                $crate::lora::Lora {
                    rank: self.rank,
                    alpha: self.alpha,
                    dropout: self.dropout,
                    targets: self.targets.clone(),
                    rslora: self.rslora,
                    ..Default::default()
                }
            }
        }
    };
}

pub(crate) use lora_variant;

/// The linear layers of a model that are targets.
pub(crate) fn selected<'a>(
    targets: &'a Targets,
    geometry: &'a Geometry,
) -> impl Iterator<Item = &'a Site> {
    let sites = geometry.sites.iter();
    sites.filter(|site| targets.contains(site))
}

/// What a layer makes of `x` with an update of its weight that is dense anyway, `[d_in, d_out]`.
///
/// A product with the sum of both takes no more memory than one with the update alone, and of the
/// five products of two layers in training leaves three. Over a layer of another method, which may do
/// more than multiply, the update is added to what that gives.
pub(crate) fn with_dense_update(
    base: &Proj,
    x: Tensor<3>,
    update: Tensor<2>,
    pass: &Pass<'_>,
) -> Tensor<3> {
    match base.base() {
        None => kernels::linear(x, base.weight(pass) + update, base.bias()),
        Some(_) => kernels::linear_onto(base.forward(x.clone(), pass), x, update),
    }
}

/// Where a tensor of a layer lies here.
pub(crate) fn place(site: &Site, tensor: &str) -> String {
    format!("{}/{tensor}", site.path)
}

/// Where HF PEFT keeps a tensor of a layer.
pub(crate) fn key(site: &Site, tensor: &str) -> String {
    format!("base_model.model.{}.{tensor}", site.path)
}

/// Refuses a number that is not finite.
pub(crate) fn finite(key: &str, value: f64) -> Result<(), CoreError> {
    match value.is_finite() {
        true => Ok(()),
        false => Err(CoreError::bad_value(key, value, "a finite number")),
    }
}

/// Takes what HF PEFT's configurations of this family have in common, and gives the targets.
///
/// # Errors
/// If a target is a module that is no linear layer of the blocks, or the file trains parameters of
/// the base beside the method's own.
pub(crate) fn peft_targets_of(
    fields: &mut Fields,
    geometry: &Geometry,
) -> Result<Targets, CoreError> {
    fields.allow("bias", &["none".into()])?;
    fields.ignore(&["fan_in_fan_out"]);
    let saved = fields.modules_to_save(geometry)?;
    if !saved.is_empty() {
        let expected = "the task head alone: this method trains no module of the base";
        return Err(fields.unsupported("modules_to_save", &json!(saved), expected));
    }
    let (targets, stray) = resolve_targets(fields, geometry)?;
    // A name that matches nothing in the base is left out, as PEFT does.
    if let Some(target) = stray.into_iter().find(|name| is_module(name, geometry)) {
        let known = "the linear layers of the blocks".into();
        return Err(CoreError::NoSuchTarget { target, known });
    }
    Ok(targets)
}

fn is_module(name: &str, geometry: &Geometry) -> bool {
    let params = geometry.params.iter();
    let mut modules = params.filter_map(|param| param.name.rsplit_once('.'));
    modules.any(|(module, _)| path_ends_with(module, name))
}

/// A whole number where it is one: PEFT writes `lora_alpha` so.
pub(crate) fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

/// Layers of a few features for the tests of the methods.
#[cfg(test)]
pub(crate) mod testing {
    use burn::module::{Module, ModuleMapper, Param};
    use burn::tensor::{Device, Tensor};
    use peft_core::contract::random;
    use peft_core::{Dense, Init, Method, Pass, Proj, Role, Site};

    /// A device that tracks gradients.
    pub(crate) fn device() -> Device {
        Device::flex().autodiff()
    }

    /// A layer of a role.
    pub(crate) fn site(role: Role, d_in: usize, d_out: usize) -> Site {
        let path = format!("block.{}", role.name());
        Site {
            layer: 0,
            role,
            path,
            d_in,
            d_out,
        }
    }

    /// The method's layer over random weights, its own parameters moved away from their start.
    pub(crate) fn stirred(method: &dyn Method, site: &Site) -> Proj {
        let device = device();
        let base = Dense::new(
            random([site.d_in, site.d_out], &device),
            Some(random([site.d_out], &device)),
        );
        let base = Proj::new(base.no_grad());
        let fitted = method.project(site, base, &mut Init::new(3, &device));
        fitted.map(&mut Stir)
    }

    struct Stir;

    impl ModuleMapper for Stir {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if !param.is_require_grad() {
                return param;
            }
            param.map(|value| {
                let noise = random(value.dims(), &value.device()).mul_scalar(0.3);
                (value.detach() + noise).detach().require_grad()
            })
        }
    }

    /// Checks `forward`, `weight` and `bias` of a layer against a plain matrix and bias.
    pub(crate) fn computes(layer: &Proj, pass: &Pass<'_>, weight: Tensor<2>, bias: Tensor<1>) {
        let (d_in, _) = layer.dims();
        let x = random([2, 3, d_in], &weight.device());
        let plain = x.clone().matmul(weight.clone().unsqueeze()) + bias.clone().unsqueeze();
        assert!(largest(layer.forward(x, pass) - plain) < 1e-4, "forward");
        assert!(largest(layer.weight(pass) - weight) < 1e-4, "weight");
        let own = layer.bias().expect("the base has a bias");
        assert!(largest(own - bias) < 1e-5, "bias");
    }

    /// The largest magnitude in a tensor.
    pub(crate) fn largest<const D: usize>(tensor: Tensor<D>) -> f32 {
        tensor.abs().max().into_scalar()
    }
}
