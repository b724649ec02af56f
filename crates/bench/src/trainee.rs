//! The adapted model as `burn-train` trains it.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Bool, ExecutionError, Int, Tensor, activation::log_softmax};
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use models::Model;
use peft_core::{Adapted, Pass};

use crate::batching::{Targets, TrainBatch};

/// An adapted model under training.
#[derive(Module, Debug)]
pub struct Trainee {
    /// The model with its method.
    pub model: Adapted<Model>,
}

/// The loss of one batch, `[1]`.
pub struct StepLoss(pub Tensor<1>);

impl ItemLazy for StepLoss {
    fn sync(self) -> Result<Self, ExecutionError> {
        Ok(self)
    }
}

impl Trainee {
    /// The training loss of a batch, auxiliary losses of the method included.
    pub fn loss(&self, batch: &TrainBatch) -> Tensor<1> {
        Self::loss_of(&batch.drops.applied(&self.model), batch)
    }

    /// The training loss of a batch by a model, whatever of the method takes no part in the batch.
    pub(crate) fn loss_of(model: &Adapted<Model>, batch: &TrainBatch) -> Tensor<1> {
        let pass = model.pass();
        let output = model.host.output(&batch.batch, &pass);
        Self::head_loss(&model.host, output, batch, &pass)
    }

    /// The loss of a batch given the output of the last layer, with the auxiliary losses that the
    /// pass carries. Copies that a method makes of the texts have a loss each.
    pub(crate) fn head_loss(
        host: &Model,
        x: Tensor<3>,
        batch: &TrainBatch,
        pass: &Pass<'_>,
    ) -> Tensor<1> {
        let loss = match &batch.targets {
            Targets::Tokens { places, next, .. } => {
                let learned = (places.clone(), next.clone());
                host.completion_loss_of(x, &batch.batch, learned, pass)
            }
            Targets::Classes { outputs, others } => {
                class_loss(host.class_logits_of(x), outputs, others.as_ref())
            }
        };
        with_auxiliary(loss, pass)
    }
}

/// The loss of what the model answers, auxiliary losses included: where it answers with the mean of
/// several copies, this is not the sum of theirs that it is trained on.
pub(crate) fn answer_loss(model: &Adapted<Model>, batch: &TrainBatch) -> Tensor<1> {
    let (host, pass) = (&model.host, model.pass());
    let loss = match &batch.targets {
        Targets::Tokens { places, next, .. } => {
            host.completion_loss(&batch.batch, places.clone(), next.clone(), &pass)
        }
        Targets::Classes { outputs, others } => class_loss(
            host.class_logits(&batch.batch, &pass),
            outputs,
            others.as_ref(),
        ),
    };
    with_auxiliary(loss, &pass)
}

/// Mean cross-entropy of classes, each among the outputs of its own task, summed over the copies of
/// the texts that there are logits of.
fn class_loss(
    logits: Tensor<2>,
    outputs: &Tensor<1, Int>,
    others: Option<&Tensor<2, Bool>>,
) -> Tensor<1> {
    let ([all, _], [rows]) = (logits.dims(), outputs.dims());
    let copies = all / rows;
    // No share of a softmax is left for the least of numbers, and so no gradient.
    let logits = match others {
        Some(others) => logits.mask_fill(others.clone().repeat_dim(0, copies), f32::MIN),
        None => logits,
    };
    let chosen = outputs.clone().repeat_dim(0, copies).reshape([all, 1]);
    let means = log_softmax(logits, 1).gather(1, chosen).mean();
    means.mul_scalar(-(copies as f64))
}

/// The loss with what the layers of a pass have added to it so far.
pub(crate) fn with_auxiliary(loss: Tensor<1>, pass: &Pass<'_>) -> Tensor<1> {
    match pass.take_loss() {
        Some(auxiliary) => loss + auxiliary,
        None => loss,
    }
}

impl TrainStep for Trainee {
    type Input = TrainBatch;
    type Output = StepLoss;

    fn step(&self, batch: TrainBatch) -> TrainOutput<StepLoss> {
        let loss = self.loss(&batch);
        if !loss.is_tracked() {
            // Nothing that trains took part: every layer of the method was left out.
            return TrainOutput {
                grads: GradientsParams::new(),
                item: StepLoss(loss),
            };
        }
        let gradients = loss.backward();
        TrainOutput::new(self, gradients, StepLoss(loss.detach()))
    }
}

impl InferenceStep for Trainee {
    type Input = TrainBatch;
    type Output = StepLoss;

    fn step(&self, batch: TrainBatch) -> StepLoss {
        StepLoss(self.loss(&batch))
    }
}

/// Scales gradients so that their norm over all parameters together is at most `limit`, as
/// PyTorch's `clip_grad_norm_` does; Burn's own clipping takes each tensor by itself.
pub fn clip_global_norm<M: Module>(
    module: &M,
    grads: GradientsParams,
    limit: f64,
) -> GradientsParams {
    struct Squares<'a>(&'a GradientsParams, Vec<Tensor<1>>);
    impl ModuleVisitor for Squares<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let grad = self.0.get::<D>(param.id);
            self.1.extend(grad.map(kernels::square_sum));
        }
    }
    let mut squares = Squares(&grads, Vec::new());
    module.visit(&mut squares);
    if squares.1.is_empty() {
        return grads;
    }
    // Read from the device once, not once a parameter.
    let norm = Tensor::cat(squares.1, 0).sum().sqrt();
    let factor = limit / (f64::from(norm.into_scalar::<f32>()) + 1e-6);
    // A norm that is not a number must not pass for a small one.
    if factor >= 1.0 {
        return grads;
    }
    scale_gradients(module, grads, factor)
}

/// Multiplies every gradient: the sum over accumulated batches becomes their mean.
pub fn scale_gradients<M: Module>(
    module: &M,
    grads: GradientsParams,
    factor: f64,
) -> GradientsParams {
    struct Scale(GradientsParams, f64);
    impl ModuleVisitor for Scale {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.0.remove::<D>(param.id) {
                self.0.register(param.id, kernels::scaled(grad, self.1));
            }
        }
    }
    let mut scale = Scale(grads, factor);
    module.visit(&mut scale);
    scale.0
}

#[cfg(test)]
mod class_tests;

#[cfg(test)]
mod copies_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use peft_core::Dense;

    /// Gradients 3, 0 and 0, 4 of a weight and a bias after a change.
    fn changed(change: impl FnOnce(&Dense, GradientsParams) -> GradientsParams) -> Vec<f32> {
        let device = Device::flex();
        let module = Dense::new(
            Tensor::zeros([1, 2], &device),
            Some(Tensor::zeros([2], &device)),
        );
        let mut grads = GradientsParams::new();
        grads.register(
            module.weight.id,
            Tensor::<2>::from_data([[3.0, 0.0]], &device),
        );
        let bias = module.bias.as_ref().unwrap();
        grads.register(bias.id, Tensor::<1>::from_data([0.0, 4.0], &device));
        let grads = change(&module, grads);
        let mut values: Vec<f32> = grads
            .get::<2>(module.weight.id)
            .unwrap()
            .into_data()
            .try_to_vec()
            .unwrap();
        values.extend(
            grads
                .get::<1>(bias.id)
                .unwrap()
                .into_data()
                .try_to_vec::<f32>()
                .unwrap(),
        );
        values
    }

    fn clipped(limit: f64) -> Vec<f32> {
        changed(|module, grads| clip_global_norm(module, grads, limit))
    }

    #[test]
    fn scaling_reaches_every_gradient() {
        let values = changed(|module, grads| scale_gradients(module, grads, 0.5));
        assert_eq!(values, [1.5, 0.0, 0.0, 2.0]);
    }

    #[test]
    fn the_norm_is_taken_over_all_parameters_together() {
        let values = clipped(1.0);
        let expected = [0.6, 0.0, 0.0, 0.8];
        assert!(
            values
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-5),
            "{values:?}"
        );
    }

    #[test]
    fn a_norm_that_is_not_a_number_does_not_pass_for_a_small_one() {
        let values = changed(|module, mut grads| {
            let bias = module.bias.as_ref().unwrap();
            let spoilt = grads.remove::<1>(bias.id).unwrap() * f32::NAN;
            grads.register(bias.id, spoilt);
            clip_global_norm(module, grads, 1.0)
        });
        assert!(values.iter().all(|value| value.is_nan()), "{values:?}");
    }

    #[test]
    fn gradients_below_the_limit_stay_as_they_are() {
        assert_eq!(clipped(10.0), [3.0, 0.0, 0.0, 4.0]);
    }
}
