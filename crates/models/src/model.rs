//! Any of the models, behind one type, as the harness uses them.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use peft_core::{
    Adapted, CoreError, DenseOnly, Geometry, Host, Init, PackedReader, Pass, Surgeon, state,
};
use serde_json::Value;

use crate::batch::{Batch, Positions};
use crate::bert::Bert;
use crate::bert_config::{BertConfig, Family};
use crate::builder::{Builder, STD};
use crate::cache::Cache;
use crate::checkpoint;
use crate::error::ModelError;
use crate::gpt2::{self, Gpt2, Gpt2Config, head_logits};
use crate::llama::{self, Llama};
use crate::llama_config::{LlamaConfig, LlamaFamily};
use crate::plan::LM_HEAD;

/// A transformer with seams.
#[derive(Module, Debug)]
pub enum Model {
    /// A causal language model.
    Gpt2(Gpt2),
    /// A sequence classifier.
    Bert(Bert),
    /// A causal language model of the Llama family.
    Llama(Llama),
}

/// A model read from a folder, and what had to be made anew for it.
pub struct Loaded {
    /// The model.
    pub model: Model,
    /// Names of head layers the checkpoint lacks; they start random.
    pub new_layers: Vec<String>,
    /// The folder's `config.json`.
    pub config: Value,
}

/// Reads a Hugging Face folder. `classes` overrides the number of classes of a classifier.
///
/// # Errors
/// If the architecture is unknown, a value of the configuration is not supported, or the tensors do
/// not fit; every misfit is listed.
pub fn load(folder: &Path, classes: Option<usize>, init: &mut Init) -> Result<Loaded, ModelError> {
    load_with(folder, classes, init, &DenseOnly)
}

/// The same, with a reader of the linear layers whose weights the checkpoint holds packed. They stay
/// as they are where methods may adapt them; others (a pooler, a head) are unpacked.
///
/// # Errors
/// As [`load`], and if a packed weight cannot be read.
pub fn load_with(
    folder: &Path,
    classes: Option<usize>,
    init: &mut Init,
    packed: &dyn PackedReader,
) -> Result<Loaded, ModelError> {
    let file = folder.join("config.json");
    let config: Value = checkpoint::parse(&file)?;
    let model_type = config["model_type"].as_str().unwrap_or("").to_string();
    if let Some(family) = Family::from_model_type(&model_type) {
        let mut parsed = BertConfig::from_json(family, &config, &file)?;
        parsed.num_labels = classes.unwrap_or(parsed.num_labels);
        let checkpoint = checkpoint::read(folder)?;
        let builder = Builder::from_checkpoint(checkpoint.tensors, family.names().body, init)
            .with_packed(packed);
        let (model, new_layers) = Bert::build(parsed, builder, &checkpoint.file)?;
        let model = Model::Bert(model);
        return Ok(Loaded {
            model,
            new_layers,
            config,
        });
    }
    let model = if model_type == "gpt2" {
        let parsed = Gpt2Config::from_json(&config, &file)?;
        let checkpoint = checkpoint::read(folder)?;
        let builder =
            Builder::from_checkpoint(checkpoint.tensors, gpt2::BODY, init).with_packed(packed);
        Model::Gpt2(Gpt2::build(parsed, builder, &checkpoint.file)?)
    } else if LlamaFamily::from_model_type(&model_type).is_some() {
        let parsed = LlamaConfig::from_json(&config, &file)?;
        let checkpoint = checkpoint::read(folder)?;
        let builder =
            Builder::from_checkpoint(checkpoint.tensors, llama::BODY, init).with_packed(packed);
        Model::Llama(Llama::build(parsed, builder, &checkpoint.file)?)
    } else {
        let found = model_type;
        return Err(ModelError::Architecture { file, found });
    };
    Ok(Loaded {
        model,
        new_layers: Vec::new(),
        config,
    })
}

impl Model {
    /// A GPT-2 of this shape with random weights.
    ///
    /// # Errors
    /// If the shape makes no sense.
    pub fn random_gpt2(config: Gpt2Config, init: &mut Init) -> Result<Self, ModelError> {
        let builder = Builder::random(gpt2::BODY, config.initializer_range, init);
        Ok(Self::Gpt2(Gpt2::build(
            config,
            builder,
            Path::new("config.json"),
        )?))
    }

    /// A model of the Llama family of this shape with random weights.
    ///
    /// # Errors
    /// If the shape makes no sense.
    pub fn random_llama(config: LlamaConfig, init: &mut Init) -> Result<Self, ModelError> {
        let builder = Builder::random(llama::BODY, config.initializer_range, init);
        Ok(Self::Llama(Llama::build(
            config,
            builder,
            Path::new("config.json"),
        )?))
    }

    /// A classifier of this shape with random weights.
    ///
    /// # Errors
    /// If the shape makes no sense.
    pub fn random_bert(config: BertConfig, init: &mut Init) -> Result<Self, ModelError> {
        let builder = Builder::random(config.family.names().body, STD, init);
        Ok(Self::Bert(
            Bert::build(config, builder, Path::new("config.json"))?.0,
        ))
    }

    /// Whether this is a causal language model.
    pub fn is_causal(&self) -> bool {
        matches!(self, Model::Gpt2(_) | Model::Llama(_))
    }

    /// How batches for this model number their positions.
    pub fn positions(&self) -> Positions {
        match self {
            Model::Gpt2(_) | Model::Llama(_) => Positions::FromLeft,
            Model::Bert(bert) => bert.position_rule(),
        }
    }

    /// Longest sequence.
    pub fn max_length(&self) -> usize {
        match self {
            Model::Gpt2(model) => model.config.n_positions,
            Model::Llama(model) => model.config.max_length(),
            // RoBERTa's table starts behind the padding id.
            Model::Bert(model) => match model.config.family {
                Family::Roberta => model.config.max_positions - model.config.pad_token_id - 1,
                Family::Bert | Family::Distilbert => model.config.max_positions,
            },
        }
    }

    /// Rows of the embedding table.
    pub fn vocab_size(&self) -> usize {
        match self {
            Model::Gpt2(model) => model.config.vocab_size,
            Model::Llama(model) => model.config.vocab_size,
            Model::Bert(model) => model.config.vocab_size,
        }
    }

    /// Number of classes of a classifier.
    pub fn classes(&self) -> Option<usize> {
        match self {
            Model::Gpt2(_) | Model::Llama(_) => None,
            Model::Bert(model) => Some(model.config.num_labels),
        }
    }

    /// Every base parameter by its checkpoint name and in the checkpoint's layout; packed weights
    /// are not among them.
    pub fn export(&self) -> BTreeMap<String, TensorData> {
        match self {
            Model::Gpt2(model) => model.plan.export(model),
            Model::Llama(model) => model.plan.export(model),
            Model::Bert(model) => model.plan.export(model),
        }
    }

    /// Final hidden states of a language model, `[batch, sequence, d]`; those of a method's virtual
    /// tokens stand in front and make the sequence longer. Of several copies of a text it is their
    /// mean, whose logits are the mean of the copies' logits.
    ///
    /// # Panics
    /// If the model is a classifier.
    pub fn hidden(&self, batch: &Batch, cache: Option<&mut Cache>, pass: &Pass<'_>) -> Tensor<3> {
        pass.joined(match self {
            Model::Gpt2(model) => model.hidden(batch, cache, pass),
            Model::Llama(model) => model.hidden(batch, cache, pass),
            Model::Bert(_) => panic!("a classifier has no next-token states"),
        })
    }

    /// The language-model head as `[d, vocab]`.
    ///
    /// # Panics
    /// If the model is a classifier.
    pub fn head_weight(&self) -> Tensor<2> {
        match self {
            Model::Gpt2(model) => model.head_weight(),
            Model::Llama(model) => model.head_weight(),
            Model::Bert(_) => panic!("a classifier has no language-model head"),
        }
    }

    /// Class logits, `[batch, classes]`.
    ///
    /// # Panics
    /// If the model is a language model.
    pub fn class_logits(&self, batch: &Batch, pass: &Pass<'_>) -> Tensor<2> {
        pass.joined(self.class_logits_of(self.output(batch, pass)))
    }

    /// Mean cross-entropy of the next tokens at the given places, `[1]`.
    ///
    /// # Shapes
    /// - places: `[n]`, indices into the flattened `[batch * sequence]` positions
    /// - targets: `[n]`, the token that follows each place
    pub fn completion_loss(
        &self,
        batch: &Batch,
        places: Tensor<1, Int>,
        targets: Tensor<1, Int>,
        pass: &Pass<'_>,
    ) -> Tensor<1> {
        let hidden = self.hidden(batch, None, pass);
        self.next_token_loss(hidden, batch, places, targets)
    }
}

impl Host for Model {
    fn geometry(&self) -> Geometry {
        match self {
            Model::Gpt2(model) => model.geometry(),
            Model::Llama(model) => model.geometry(),
            Model::Bert(model) => model.geometry(),
        }
    }
    fn rebuild(self, surgeon: &mut dyn Surgeon) -> Self {
        match self {
            Model::Gpt2(model) => Model::Gpt2(model.rebuild(surgeon)),
            Model::Llama(model) => Model::Llama(model.rebuild(surgeon)),
            Model::Bert(model) => Model::Bert(model.rebuild(surgeon)),
        }
    }
    fn untie_head(self) -> Self {
        match self {
            Model::Gpt2(model) => Model::Gpt2(model.untie_head()),
            Model::Llama(model) => Model::Llama(model.untie_head()),
            Model::Bert(model) => Model::Bert(model.untie_head()),
        }
    }
}

/// Writes a model as a Hugging Face folder: `model.safetensors`, and `config.json` as given, less
/// what it says of packed weights, and with `tie_word_embeddings` false where the model has a head
/// of its own.
///
/// # Errors
/// If the folder cannot be written, or a weight is packed.
pub fn save(model: &Model, config: &Value, folder: &Path) -> Result<(), ModelError> {
    let tensors = model.export();
    let params = model.geometry().params;
    if let Some(other) = params.iter().find(|p| !tensors.contains_key(&p.name)) {
        let found = "packed, or was replaced by a method";
        let expected = "the dense weight; `peft-bench quantize` writes packed ones";
        return Err(CoreError::bad_value(&other.name, found, expected).into());
    }
    let mut config = config.clone();
    if let Some(config) = config.as_object_mut() {
        config.shift_remove("quantization_config");
        // Readers take the embedding table in place of a head that the configuration calls tied.
        if tensors.contains_key(LM_HEAD) {
            config.insert("tie_word_embeddings".into(), false.into());
        }
    }
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let floats = state::float_tensors(model);
    if floats.len() != tensors.len() {
        let known: Vec<_> = model.geometry().params.iter().map(|p| p.id).collect();
        let rows = state::parameters(model).into_iter();
        let lost = rows.filter(|row| !known.contains(&row.id));
        return Err(ModelError::Unnamed {
            parameters: lost.map(|row| row.name).collect(),
        });
    }
    state::save(&tensors, metadata, &folder.join(checkpoint::SINGLE))?;
    let text = serde_json::to_string_pretty(&config).expect("JSON values serialise");
    state::write_atomically(&folder.join("config.json"), text.as_bytes())?;
    Ok(())
}

/// The adapted model's next-token or class logits as one tensor with the batch in front.
pub fn logits(adapted: &Adapted<Model>, batch: &Batch) -> Tensor<3> {
    adapted.pass().joined(logits_of_copies(adapted, batch))
}

/// The same of every copy that the method makes of a text, copy behind copy.
pub fn logits_of_copies(adapted: &Adapted<Model>, batch: &Batch) -> Tensor<3> {
    let (host, pass) = (&adapted.host, adapted.pass());
    let output = host.output(batch, &pass);
    match host.is_causal() {
        true => head_logits(host.hidden_of(output, &pass), host.head_weight()),
        false => host.class_logits_of(output).unsqueeze_dim(1),
    }
}
