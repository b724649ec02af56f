//! Starts that take a low-rank part out of the weight and train it, the rest being frozen.
//!
//! `W = R + scaling * A0 B0`, and the layer computes `y = x R + b + scaling * dropout(x) A B` from
//! `A = A0`, `B = B0`. `R` is never saved: the weight and the configuration give it again. Over
//! packed weights it is `R` that is packed, not `W`.
//!
//! In other programs' formats the adapter is plain LoRA of twice the rank over the whole weight,
//! `scaling * (A B - A0 B0)`: whoever reads it need not know of the start.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::exchange::path_ends_with;
use peft_core::{CoreError, Dense, Fields, Geometry, Method, Proj, Site, Store, check};

use super::{Factors, Lora, LoraLinear};

/// A layer whose update starts as a part of the weight. `factors` gives it, of the rank asked for,
/// so that the start is `scaling` times the product.
pub(crate) fn split(
    lora: &Lora,
    site: &Site,
    base: &Proj,
    store: Store<'_>,
    factors: impl FnOnce(&Tensor<2>, usize, f64) -> Factors,
) -> Result<Proj, CoreError> {
    let dense = dense(site, base)?;
    let (rank, scaling) = (lora.rank_at(&site.path), lora.scaling_at(&site.path));
    let start = factors(&dense.weight.val(), rank, scaling);
    let base = store(without(dense, &start, scaling))?;
    let layer = LoraLinear::starting_at(lora, site, base, start);
    Ok(Proj::new(layer.over_the_rest()))
}

/// The layer without `scaling` times the product of the factors.
pub fn without(dense: &Dense, part: &Factors, scaling: f64) -> Dense {
    let rest = dense.weight.val() - part.product().mul_scalar(scaling);
    let rest = Dense {
        weight: Param::from_tensor(rest.detach()),
        bias: dense.bias.clone(),
    };
    rest.no_grad()
}

/// The layer whose weight is about to be divided.
///
/// # Errors
/// If the weight is packed, or holds a number that is not finite.
pub fn dense<'a>(site: &Site, base: &'a Proj) -> Result<&'a Dense, CoreError> {
    let key = format!("{}.weight", site.path);
    let Some(dense) = base.downcast_ref::<Dense>() else {
        let found = base.packing().unwrap_or("adapted".into());
        let expected = "dense, because the method divides it before it is packed; start from a \
                        model that is not packed and name the `storage`";
        return Err(CoreError::bad_value(&key, found, expected));
    };
    let values = dense.weight.val().into_data();
    match values.iter::<f32>().find(|value| !value.is_finite()) {
        None => Ok(dense),
        Some(value) => Err(CoreError::bad_value(&key, value, "finite numbers")),
    }
}

/// Refuses what LoRA refuses, targets that are no linear layers, and ranks above those of the
/// targets' weights.
///
/// # Errors
/// Names the key, what was found and what is allowed.
pub fn check(lora: &Lora, geometry: &Geometry) -> Result<(), CoreError> {
    check::rank(lora.rank)?;
    for site in lora.targets.select(&geometry.sites)? {
        let most = site.d_in.min(site.d_out);
        if lora.rank_at(&site.path) > most {
            let expected = format!("at most {most}, the rank of `{}`", site.path);
            return Err(CoreError::bad_value("rank", lora.rank, &expected));
        }
    }
    if lora.alpha <= 0.0 {
        let expected = "above 0, for the start is divided by the scaling";
        return Err(CoreError::bad_value("alpha", lora.alpha, expected));
    }
    lora.check(geometry)
}

/// LoRA that computes the same beside the whole weight.
pub(crate) fn converted(lora: &Lora) -> Lora {
    let growth = if lora.rslora { 2f64.sqrt() } else { 2.0 };
    Lora {
        rank: 2 * lora.rank,
        alpha: growth * lora.alpha,
        ..lora.clone()
    }
}

/// Reads LoRA's fields where the update starts in this way, if nothing but what all starts share is
/// set.
pub(crate) fn from_peft(
    fields: &mut Fields,
    geometry: &Geometry,
    start: &str,
) -> Result<Option<Lora>, CoreError> {
    if !super::peft::starts_with(fields, start) {
        return Ok(None);
    }
    if fields.peek("use_dora") == true {
        let found = fields.peek("use_dora").clone();
        return Err(fields.unsupported("use_dora", &found, "false with this start"));
    }
    let expected = format!(
        "`{start}`: a start drawn at random cannot be made again; save such an adapter with \
         `path_initial_model_for_weight_conversion`"
    );
    let found = fields.peek("init_lora_weights").clone();
    if found != start {
        return Err(fields.unsupported("init_lora_weights", &found, &expected));
    }
    fields.ignore(&["init_lora_weights"]);
    let read = super::peft::read_fields(fields, geometry)?;
    let shared = Lora {
        rank: read.rank,
        alpha: read.alpha,
        dropout: read.dropout,
        rslora: read.rslora,
        targets: read.targets.clone(),
        ..Lora::default()
    };
    let embeds = |name: &String| path_ends_with(&geometry.table.path, name);
    if read != shared || read.targets.names().iter().any(embeds) {
        let expected = "plain with another rank, bias, module or the embedding: this start is for \
                        one rank of linear layers";
        return Err(fields.unsupported("init_lora_weights", &found, expected));
    }
    Ok(Some(shared))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Olora, Pissa};
    use burn::tensor::{Device, TensorData};
    use peft_core::contract::{ContractHost, perturbed};
    use peft_core::exchange::{collect, export};
    use peft_core::toy::Toy;
    use peft_core::{Adapted, Host, Init, MethodConfig, adapt};

    fn logits(model: &Adapted<Toy>) -> TensorData {
        let ids = Tensor::from_data([[1, 3, 2, 5]], &Device::flex());
        Toy::logits(&model.valid(), ids).into_data()
    }

    fn toy(init: &mut Init) -> Toy {
        Toy::build(init)
    }

    /// What is written is read by plain LoRA over the whole weights.
    fn check_conversion<M: MethodConfig>() {
        for method in M::examples() {
            let init = || Init::new(4, &Device::flex().autodiff());
            let base = toy(&mut init());
            let model = adapt(base, &method, None, &mut init()).unwrap();
            let model = perturbed(model, 0.1);
            let geometry = model.host.geometry();
            let foreign = method.peft(&geometry).unwrap();
            let settled = model.clone().settled();
            let tensors = collect(&settled, &foreign.rules).unwrap();
            let theirs = export(&tensors, &foreign.rules).unwrap();
            let a = theirs.iter().find(|(key, _)| key.contains("lora_A"));
            assert_eq!(a.unwrap().1.shape()[0], 2 * method.size().unwrap() as usize);

            let mut fields = Fields::new("adapter_config.json", foreign.fields);
            let lora = Lora::from_peft(&mut fields, &geometry).unwrap().unwrap();
            let plain = adapt(toy(&mut init()), &lora, None, &mut init()).unwrap();
            let plain = peft_core::exchange::restore(plain, tensors, "x").unwrap();
            let tolerance = burn::tensor::Tolerance::absolute(1e-5);
            logits(&plain).assert_approx_eq::<f32>(&logits(&model), tolerance);
            logits(&settled).assert_approx_eq::<f32>(&logits(&model), tolerance);
        }
    }

    #[test]
    fn a_split_adapter_is_written_as_lora_of_twice_the_rank_that_computes_the_same() {
        check_conversion::<Pissa>();
        check_conversion::<Olora>();
    }

    #[test]
    fn a_split_adapter_in_a_blend_leaves_the_base_whole_for_the_others() {
        let init = || Init::new(4, &Device::flex().autodiff());
        let base = toy(&mut init()).no_grad();
        let pissa = &Pissa::examples()[0];
        let model = adapt(base.clone(), pissa, None, &mut init()).unwrap();
        let model = perturbed(model, 0.1);
        let tolerance = burn::tensor::Tolerance::absolute(1e-5);
        for (weight, expected) in [
            (0.0, logits(&Adapted::plain(base.clone()))),
            (1.0, logits(&model)),
        ] {
            let parts = vec![(weight, model.valid())];
            let blended = peft_core::blend(base.valid(), parts).unwrap();
            let found = logits(&blended);
            found.assert_approx_eq::<f32>(&expected, tolerance);
        }
    }

    #[test]
    fn a_rank_above_that_of_a_weight_is_refused() {
        let geometry = toy(&mut Init::new(0, &Device::flex())).geometry();
        let pissa = Pissa {
            rank: 9,
            ..Pissa::default()
        };
        let error = pissa.check(&geometry).unwrap_err().to_string();
        assert!(error.contains("`rank` is 9, expected at most 8"), "{error}");
    }

    #[test]
    fn a_weight_that_cannot_be_divided_is_refused_by_name() {
        let weight = Tensor::<2>::from_data([[1.0, f32::NAN], [0.0, 1.0]], &Device::flex());
        let site = crate::family::testing::site(peft_core::Role::Query, 2, 2);
        let base = Proj::new(Dense::new(weight, None));
        let error = dense(&site, &base).unwrap_err().to_string();
        assert!(error.contains("`block.query.weight` is NaN"), "{error}");
        let lora = Lora::default().project(&site, base, &mut Init::new(0, &Device::flex()));
        let error = dense(&site, &lora).unwrap_err().to_string();
        assert!(error.contains("is adapted, expected dense"), "{error}");
    }
}
