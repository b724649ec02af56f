//! Prompt tuning: trained virtual tokens in front of the embedded text.
//!
//! Paper: Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", arXiv
//! 2104.08691.
//! Seam: token embedding. As in HF PEFT the virtual tokens take positions, every token of the text
//! sees them, and a classifier that reads the first token reads the first virtual one.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use peft_core::{
    CoreError, Fields, Foreign, Geometry, Init, Lookup, LookupSlot, Method, MethodConfig,
    MethodInfo, Pass, Rule, Start, Table, check,
};
use serde::{Deserialize, Serialize};

use crate::peft;

/// Configuration of prompt tuning, `kind = "prompt_tuning"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PromptTuning {
    /// Number of virtual tokens in front of the text.
    pub num_virtual_tokens: usize,
    /// What they start from.
    pub prompt_tuning_init: PromptInit,
}

/// What virtual tokens start from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptInit {
    /// Independent uniform values between -0.5 and 0.5, as in the paper.
    Random,
    /// The embeddings of tokens drawn from the whole vocabulary.
    SampleVocab,
    /// The embeddings of a text's tokens: cut, or repeated, to the number of virtual tokens.
    Text(PromptText),
}

/// The text that virtual tokens start from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a text, or the ids of its tokens")]
pub enum PromptText {
    /// In words. Methods know no tokenizer: whoever has the model's puts the ids in its place.
    Words(String),
    /// By the ids of its tokens.
    Ids(Vec<u32>),
}

impl Default for PromptTuning {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            prompt_tuning_init: PromptInit::SampleVocab,
        }
    }
}

impl PromptTuning {
    /// The rows of the base's table that the virtual tokens start from.
    fn ids(&self, table: &Table, init: &mut Init) -> Option<Vec<usize>> {
        let count = self.num_virtual_tokens;
        match &self.prompt_tuning_init {
            // A text without its tokens is refused by `check`.
            PromptInit::Random | PromptInit::Text(PromptText::Words(_)) => None,
            PromptInit::SampleVocab => Some(init.indices(count, table.rows)),
            PromptInit::Text(PromptText::Ids(ids)) => {
                let repeated = ids.iter().cycle().take(count);
                Some(repeated.map(|id| *id as usize).collect())
            }
        }
    }
}

impl MethodConfig for PromptTuning {
    const INFO: MethodInfo = MethodInfo {
        kind: "prompt_tuning",
        name: "Prompt tuning",
        paper: "Lester et al. 2021, arXiv 2104.08691",
        seam: "token embedding",
        formula: "n d",
        start: Start::Elsewhere("the virtual tokens take part of the attention from the start"),
        mergeable: false,
        size_key: Some("num_virtual_tokens"),
    };

    fn examples() -> Vec<Self> {
        let starts = [
            PromptInit::SampleVocab,
            PromptInit::Random,
            PromptInit::Text(PromptText::Ids(vec![3, 1])),
        ];
        let example = |prompt_tuning_init| Self {
            num_virtual_tokens: 3,
            prompt_tuning_init,
        };
        starts.map(example).into()
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "PROMPT_TUNING" {
            return Ok(None);
        }
        // How it started; the file holds what became of it.
        fields.ignore(&[
            "prompt_tuning_init",
            "prompt_tuning_init_text",
            "tokenizer_name_or_path",
            "tokenizer_kwargs",
        ]);
        Ok(Some(Self {
            num_virtual_tokens: peft::virtual_tokens(fields, geometry)?,
            prompt_tuning_init: PromptInit::Random,
        }))
    }
}

impl Method for PromptTuning {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::size("num_virtual_tokens", self.num_virtual_tokens)?;
        let PromptInit::Text(text) = &self.prompt_tuning_init else {
            return Ok(());
        };
        let rows = geometry.table.rows;
        let expected = format!("at least one id, each from 0 to below {rows}");
        let error = |found: String| CoreError::bad_value("prompt_tuning_init", found, &expected);
        let ids = match text {
            PromptText::Ids(ids) => ids,
            PromptText::Words(text) => {
                return Err(error(format!("the text `{text}`, without its tokens")));
            }
        };
        if ids.is_empty() {
            return Err(error("an empty text".into()));
        }
        match ids.iter().find(|id| **id as usize >= rows) {
            Some(id) => Err(error(format!("a text with the id {id}"))),
            None => Ok(()),
        }
    }

    fn lookup_from(&self, table: &Table, rows: &Tensor<2>, init: &mut Init) -> Option<LookupSlot> {
        let Some(ids) = self.ids(table, init) else {
            return self.lookup(table, init);
        };
        let device = rows.device();
        let ids: Vec<i64> = ids.into_iter().map(|id| id as i64).collect();
        let ids = Tensor::<1, Int>::from_data(&ids[..], &device);
        let start = rows.clone().select(0, ids).into_data();
        Some(LookupSlot::new(Prompt::new(Tensor::from_data(
            start,
            init.device(),
        ))))
    }

    fn lookup(&self, table: &Table, init: &mut Init) -> Option<LookupSlot> {
        let shape = [self.num_virtual_tokens, table.width];
        Some(LookupSlot::new(Prompt::new(init.uniform(shape, 0.5))))
    }

    fn position_offset(&self) -> usize {
        self.num_virtual_tokens
    }

    fn needs_own_rows(&self) -> bool {
        true
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        self.num_virtual_tokens * geometry.table.width
    }

    fn size(&self) -> Option<u64> {
        Some(self.num_virtual_tokens as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        let count = self.num_virtual_tokens;
        let mut fields = peft::prompt_fields("PROMPT_TUNING", count, geometry);
        fields.insert("prompt_tuning_init".into(), "RANDOM".into());
        let rules = vec![Prompt::rule(geometry)];
        Some(Foreign { fields, rules })
    }
}

/// Trained virtual tokens.
#[derive(Module, Debug)]
pub struct Prompt {
    /// `[n, d]`
    prompt: Param<Tensor<2>>,
}

impl Prompt {
    /// Virtual tokens that start from these rows.
    pub fn new(rows: Tensor<2>) -> Self {
        Self {
            prompt: Param::from_tensor(rows),
        }
    }

    /// Where HF PEFT keeps them.
    pub(crate) fn rule(geometry: &Geometry) -> Rule {
        let place = format!("{}/prompt", geometry.table.path);
        Rule::as_is(place, "prompt_embeddings")
    }
}

impl Lookup for Prompt {
    fn forward(&self, _ids: Tensor<2, Int>, rows: Tensor<3>, _pass: &Pass<'_>) -> Tensor<3> {
        rows
    }

    fn prompt(&self, _pass: &Pass<'_>) -> Option<Tensor<2>> {
        Some(self.prompt.val())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use peft_core::{Host, adapt, contract::ContractHost, state, toy::Toy};

    peft_core::contract_tests!(PromptTuning);

    /// The virtual tokens of a fresh toy, and the toy's own table.
    fn start(prompt_tuning_init: PromptInit) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let mut init = Init::new(1, &Device::flex().autodiff());
        let toy = Toy::build(&mut init);
        let table = state::float_tensors(&toy).remove("embedding").unwrap();
        let method = PromptTuning {
            num_virtual_tokens: 5,
            prompt_tuning_init,
        };
        let adapted = adapt(toy, &method, None, &mut init).unwrap();
        let prompt = state::trained_tensors(&adapted)
            .into_values()
            .next()
            .unwrap();
        let rows = |data: burn::tensor::TensorData| -> Vec<Vec<f32>> {
            let values: Vec<f32> = data.try_to_vec().unwrap();
            values.chunks(8).map(<[f32]>::to_vec).collect()
        };
        (rows(prompt), rows(table))
    }

    #[test]
    fn a_text_is_repeated_to_the_number_of_virtual_tokens() {
        let (prompt, table) = start(PromptInit::Text(PromptText::Ids(vec![7, 2])));
        let expected = [7, 2, 7, 2, 7].map(|id: usize| table[id].clone());
        assert_eq!(prompt, expected);
    }

    #[test]
    fn sampled_virtual_tokens_are_rows_of_the_vocabulary_and_random_ones_are_not() {
        let (prompt, table) = start(PromptInit::SampleVocab);
        assert!(prompt.iter().all(|row| table.contains(row)));
        assert!(prompt.iter().any(|row| *row != prompt[0]));
        let (prompt, table) = start(PromptInit::Random);
        assert!(prompt.iter().all(|row| !table.contains(row)));
    }

    #[test]
    fn ids_outside_the_vocabulary_and_texts_without_tokens_are_refused() {
        let toy = Toy::build(&mut Init::new(0, &Device::flex())).geometry();
        for (text, said) in [
            (serde_json::json!([1, 13]), "the id 13"),
            (serde_json::json!([]), "an empty text"),
            (
                serde_json::json!("Be kind."),
                "the text `Be kind.`, without its tokens",
            ),
        ] {
            let config = serde_json::json!({"prompt_tuning_init": {"text": text}});
            let method: PromptTuning = serde_json::from_value(config).unwrap();
            let error = method.check(&toy).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
