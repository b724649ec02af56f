//! Layer-norm tuning: the layer norms of the base are trained and nothing else.
//!
//! Paper: Zhao et al. 2023, "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM
//! Finetuning", arXiv 2312.11420.
//! Seam: none. HF PEFT's `LN_TUNING`.

use peft_core::exchange::{path_ends_with, peft_names, resolve_modules};
use peft_core::{
    BaseParam, CoreError, Fields, Foreign, Geometry, Method, MethodConfig, MethodInfo, Part, Rule,
    Start,
};
use serde::{Deserialize, Serialize};

use crate::peft;

/// Configuration of layer-norm tuning, `kind = "ln_tuning"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LnTuning {
    /// The norms, by the end of their path in whole components (`ln_1`, `output.LayerNorm`); all of
    /// them where none are named.
    pub targets: Vec<String>,
}

/// The paths of the model's norms, each once, in order of use.
fn norms(geometry: &Geometry) -> Vec<&str> {
    let params = geometry.params.iter().filter(|p| p.part == Part::Norm);
    let paths = params.filter_map(|p| p.name.strip_suffix(".weight"));
    paths.collect()
}

impl LnTuning {
    fn selected<'a>(&self, geometry: &'a Geometry) -> Vec<&'a str> {
        let norms = norms(geometry).into_iter();
        norms.filter(|norm| self.names(norm)).collect()
    }

    fn names(&self, norm: &str) -> bool {
        let mut names = self.targets.iter();
        self.targets.is_empty() || names.any(|name| path_ends_with(norm, name))
    }
}

impl MethodConfig for LnTuning {
    const INFO: MethodInfo = MethodInfo {
        kind: "ln_tuning",
        name: "LayerNorm tuning",
        paper: "Zhao et al. 2023, arXiv 2312.11420",
        seam: "none: unfreezes norms",
        formula: "the norms",
        start: Start::Identity,
        mergeable: true,
        size_key: None,
    };

    fn examples() -> Vec<Self> {
        vec![Self::default()]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "LN_TUNING" {
            return Ok(None);
        }
        let norms = norms(geometry);
        let selected = match fields.peek("target_modules").is_null() {
            true => norms.clone(),
            false => resolve_modules(fields, &norms, geometry)?,
        };
        peft::only_the_head_is_saved(fields, geometry)?;
        let targets = match selected.len() == norms.len() {
            true => Vec::new(),
            false => selected.into_iter().map(String::from).collect(),
        };
        Ok(Some(Self { targets }))
    }
}

impl Method for LnTuning {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        let norms = norms(geometry);
        let matches_none = |name: &&String| !norms.iter().any(|norm| path_ends_with(norm, name));
        if let Some(name) = self.targets.iter().find(matches_none) {
            return Err(CoreError::NoSuchTarget {
                target: name.clone(),
                known: format!("the norms {}", norms.join(", ")),
            });
        }
        if norms.is_empty() {
            return Err(CoreError::NoSeam {
                method: "LayerNorm tuning".into(),
                needs: "layer norms".into(),
            });
        }
        Ok(())
    }

    fn trains(&self, param: &BaseParam) -> bool {
        let module = param.name.rsplit_once('.').map(|(module, _)| module);
        param.part == Part::Norm && module.is_some_and(|norm| self.names(norm))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        geometry.count(|param| self.trains(param))
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        let fields = serde_json::json!({
            "peft_type": "LN_TUNING",
            "target_modules": peft_names(&self.selected(geometry), geometry),
            "exclude_modules": null,
        });
        let trained = geometry.params.iter().filter(|param| self.trains(param));
        let rule = |param: &BaseParam| {
            let (norm, leaf) = param.name.rsplit_once('.')?;
            let key = format!("base_model.model.{norm}.ln_tuning_layers.{leaf}");
            Some(Rule::as_is(param.name.clone(), key))
        };
        Some(Foreign::new(fields, trained.filter_map(rule).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peft_core::{Host, Init, contract::ContractHost, toy::Toy};

    peft_core::contract_tests!(LnTuning);

    fn toy() -> Geometry {
        Toy::build(&mut Init::new(0, &burn::tensor::Device::flex())).geometry()
    }

    fn read(target_modules: serde_json::Value) -> Result<Option<LnTuning>, CoreError> {
        let fields =
            serde_json::json!({"peft_type": "LN_TUNING", "target_modules": target_modules});
        let serde_json::Value::Object(fields) = fields else {
            unreachable!("a table")
        };
        LnTuning::from_peft(&mut Fields::new("adapter_config.json", fields), &toy())
    }

    #[test]
    fn a_name_takes_the_norms_whose_paths_end_in_it() {
        let targets = vec!["norm_2".into()];
        let trained = LnTuning { targets }.parameters(&toy());
        assert_eq!((trained, LnTuning::default().parameters(&toy())), (32, 64));
    }

    #[test]
    fn every_norm_is_written_by_names_no_other_module_has() {
        let names = |targets: &[&str]| {
            let targets = targets.iter().map(|name| name.to_string()).collect();
            let form = LnTuning { targets }.peft(&toy()).unwrap();
            form.fields["target_modules"].clone()
        };
        assert_eq!(names(&[]), serde_json::json!(["norm_1", "norm_2"]));
        assert_eq!(names(&["0.norm_1"]), serde_json::json!(["0.norm_1"]));
    }

    #[test]
    fn names_and_patterns_of_peft_select_the_same_norms() {
        let all = LnTuning::default();
        assert_eq!(
            read(serde_json::json!(["norm_1", "norm_2"])).unwrap(),
            Some(all)
        );
        let one = Some(LnTuning {
            targets: vec!["layers.1.norm_1".into()],
        });
        assert_eq!(read(serde_json::json!(r".*\.1\.norm_1")).unwrap(), one);
    }

    #[test]
    fn a_module_that_is_no_norm_is_refused_by_name() {
        let error = read(serde_json::json!(["norm_1", "query"])).unwrap_err();
        assert!(error.to_string().contains("`query`"), "{error}");
    }
}
