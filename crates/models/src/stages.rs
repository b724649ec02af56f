//! A forward pass in stages, for callers that run the layers one by one.

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use peft_core::attend::Texts;
use peft_core::{Pass, kernels, state};

use crate::batch::Batch;
use crate::model::Model;

/// What the layers need to know of a batch besides its hidden states.
#[derive(Clone, Debug)]
pub struct Context {
    /// `[batch, keys]`, 1 where a key may be seen.
    pub(crate) mask: Option<Tensor<2>>,
    /// The texts of a packed row.
    pub(crate) texts: Option<Texts>,
    /// Cosines and sines of the positions, in models that turn queries and keys.
    pub(crate) angles: Option<(Tensor<3>, Tensor<3>)>,
}

impl Context {
    /// The angles, in a model that has them.
    pub(crate) fn angles(&self) -> &(Tensor<3>, Tensor<3>) {
        let angles = self.angles.as_ref();
        angles.expect("a model that turns queries and keys makes angles when a batch enters it")
    }
}

/// Where a model trains anything.
#[derive(Clone, Debug)]
pub struct TrainedStages {
    /// Whether before the first layer.
    pub enter: bool,
    /// Whether in each layer.
    pub layers: Vec<bool>,
}

/// Whether any parameter of a module is trained.
pub(crate) fn trains<M: Module>(module: &M) -> bool {
    state::parameters(module).iter().any(|row| row.trainable)
}

impl Model {
    /// Where the model trains anything, as it is now; the head aside.
    pub fn trained_stages(&self) -> TrainedStages {
        let (enter, layers) = match self {
            Model::Gpt2(model) => model.trained_stages(),
            Model::Llama(model) => model.trained_stages(),
            Model::Bert(model) => model.trained_stages(),
        };
        TrainedStages { enter, layers }
    }

    /// The first stage: what enters the layers, `[batch, sequence, d]`.
    pub fn enter(&self, batch: &Batch, pass: &Pass<'_>) -> (Tensor<3>, Context) {
        match self {
            Model::Gpt2(model) => model.enter(batch, 0, pass),
            Model::Llama(model) => model.enter(batch, 0, pass),
            Model::Bert(model) => model.enter(batch, pass),
        }
    }

    /// The output of one layer, given that of the one before.
    ///
    /// # Panics
    /// If there is no such layer, or the context is that of another architecture.
    pub fn layer(
        &self,
        index: usize,
        x: Tensor<3>,
        context: &Context,
        pass: &Pass<'_>,
    ) -> Tensor<3> {
        match self {
            Model::Gpt2(model) => model.layer(index, x, context, None, pass),
            Model::Llama(model) => model.layer(index, x, context, None, pass),
            Model::Bert(model) => model.layer(index, x, context, pass),
        }
    }

    /// All stages but the last: the output of the last layer, `[copies * batch, sequence, d]`.
    pub fn output(&self, batch: &Batch, pass: &Pass<'_>) -> Tensor<3> {
        let layers = match self {
            Model::Gpt2(model) => model.config.n_layer,
            Model::Llama(model) => model.config.layers,
            Model::Bert(model) => model.config.layers,
        };
        let (x, context) = self.enter(batch, pass);
        (0..layers).fold(x, |x, index| self.layer(index, x, &context, pass))
    }

    /// The final hidden states of a language model, given the output of the last layer; those of
    /// every copy.
    ///
    /// # Panics
    /// If the model is a classifier.
    pub fn hidden_of(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        match self {
            Model::Gpt2(model) => model.leave(x, pass),
            Model::Llama(model) => model.leave(x, pass),
            Model::Bert(_) => panic!("a classifier has no next-token states"),
        }
    }

    /// The last stage of a language model that is trained: the sum over the copies of the losses of
    /// [`Model::completion_loss`], given the output of the last layer.
    ///
    /// # Panics
    /// If the model is a classifier.
    pub fn completion_loss_of(
        &self,
        x: Tensor<3>,
        batch: &Batch,
        (places, targets): (Tensor<1, Int>, Tensor<1, Int>),
        pass: &Pass<'_>,
    ) -> Tensor<1> {
        let copies = pass.each_copy(self.hidden_of(x, pass)).into_iter();
        let losses =
            copies.map(|copy| self.next_token_loss(copy, batch, places.clone(), targets.clone()));
        let sum = losses.reduce(|sum, loss| sum + loss);
        sum.expect("there is a copy")
    }

    /// The mean cross-entropy of the next tokens at some places, given the final hidden states.
    pub(crate) fn next_token_loss(
        &self,
        hidden: Tensor<3>,
        batch: &Batch,
        places: Tensor<1, Int>,
        targets: Tensor<1, Int>,
    ) -> Tensor<1> {
        let ([rows, seq], [_, all, d]) = (batch.ids.dims(), hidden.dims());
        let hidden = hidden.narrow(1, all - seq, seq);
        let hidden = hidden.reshape([rows * seq, d]).select(0, places);
        kernels::cross_entropy_head(hidden, self.head_weight(), targets)
    }

    /// The last stage of a classifier: class logits, given the output of the last layer; those of
    /// every copy.
    ///
    /// # Panics
    /// If the model is a language model.
    pub fn class_logits_of(&self, x: Tensor<3>) -> Tensor<2> {
        match self {
            Model::Bert(model) => model.classify(x),
            Model::Gpt2(_) | Model::Llama(_) => panic!("a language model has no classes"),
        }
    }
}
