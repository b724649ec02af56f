//! Gradient checkpointing by layer: the forward pass keeps nothing but every layer's input, and the
//! backward pass computes one layer after the other again, from the top. Alive at once are the
//! inputs and the activations of one layer, at the price of one more forward pass.
//!
//! Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174).

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Distribution, Tensor};
use models::{Context, Model};
use peft_core::{Adapted, Pass, state};

use crate::batching::TrainBatch;
use crate::trainee::{Trainee, with_auxiliary};

/// The loss of a batch and the gradients of everything that trains: those of one backward pass
/// through the whole model.
pub fn step(trainee: &Trainee, batch: &TrainBatch) -> (f32, GradientsParams) {
    step_seeded(trainee, batch, draw(&batch.batch.ids.device()))
}

/// The same with random numbers from a seed: the device is seeded with it before the embedding, and
/// with the `n`-th number after it before the `n`-th layer.
pub fn step_seeded(trainee: &Trainee, batch: &TrainBatch, seed: u64) -> (f32, GradientsParams) {
    let device = batch.batch.ids.device();
    let seeds = &Seeds { base: seed, device };
    let model = batch.drops.applied(&trainee.model).into_owned();
    let lowest = Lowest::of(&model);
    let frozen = model.clone().no_grad();
    let Forward {
        inputs,
        output,
        context,
        pass,
    } = Forward::run(&frozen, batch, &lowest, seeds);
    let auxiliary = pass.take_loss();
    let mut backward = Backward {
        trainee,
        model: &model,
        batch,
        seeds,
        pass: pass.again(model.shared.as_ref()),
        sum: GradientsAccumulator::new(),
    };
    let (loss, grad) = backward.head(output, lowest.below_head());
    if let Some(grad) = grad {
        backward.layers(inputs, &lowest, &context, grad);
    }
    let loss = match auxiliary {
        Some(auxiliary) => loss + auxiliary,
        None => loss,
    };
    (loss.into_scalar::<f32>(), backward.sum.grads())
}

/// The lowest stage that trains anything: the backward pass ends there.
struct Lowest {
    /// Whether that is what comes before the layers.
    enter: bool,
    /// The lowest layer that gradients reach; the number of layers where they reach none.
    layer: usize,
    layers: usize,
}

impl Lowest {
    fn of(model: &Adapted<Model>) -> Self {
        let stages = model.host.trained_stages();
        let shared = state::parameters(&model.shared);
        // Any stage may use what the layers share.
        let enter = stages.enter || shared.iter().any(|row| row.trainable);
        let layers = stages.layers.len();
        let layer = match enter {
            true => 0,
            false => stages.layers.iter().position(|t| *t).unwrap_or(layers),
        };
        Self {
            enter,
            layer,
            layers,
        }
    }

    /// Whether anything trains below the head.
    fn below_head(&self) -> bool {
        self.enter || self.layer < self.layers
    }

    /// Whether anything trains below a layer.
    fn below(&self, layer: usize) -> bool {
        self.enter || self.layer < layer
    }
}

/// Seeds of the random numbers of every stage, so that the second run of a layer drops out what the
/// first one did.
struct Seeds {
    base: u64,
    device: Device,
}

impl Seeds {
    fn enter(&self) {
        self.device.seed(self.base);
    }
    fn layer(&self, index: usize) {
        self.device.seed(self.base.wrapping_add(index as u64 + 1));
    }
}

/// A seed from the device's own random numbers, which follow the trial's seed.
pub(crate) fn draw(device: &Device) -> u64 {
    let drawn = Tensor::<1>::random([4], Distribution::Uniform(0.0, 1.0), device);
    let drawn: Vec<f32> = drawn
        .into_data()
        .convert::<f32>()
        .try_to_vec()
        .expect("floats were drawn");
    let parts = drawn.into_iter().map(|part| u64::from(part.to_bits()));
    parts.fold(0, |seed, part| seed.rotate_left(17) ^ part)
}

/// A forward pass that records no graph.
struct Forward<'a> {
    /// The input of every layer from the lowest that gradients reach.
    inputs: Vec<Tensor<3>>,
    output: Tensor<3>,
    context: Context,
    pass: Pass<'a>,
}

impl<'a> Forward<'a> {
    fn run(frozen: &'a Adapted<Model>, batch: &TrainBatch, lowest: &Lowest, seeds: &Seeds) -> Self {
        let pass = frozen.pass();
        seeds.enter();
        let (mut x, context) = frozen.host.enter(&batch.batch, &pass);
        let mut inputs = Vec::new();
        for index in 0..lowest.layers {
            if index >= lowest.layer {
                inputs.push(x.clone());
            }
            seeds.layer(index);
            x = frozen.host.layer(index, x, &context, &pass);
        }
        Self {
            inputs,
            output: x,
            context,
            pass,
        }
    }
}

/// The way back, stage by stage.
struct Backward<'a> {
    trainee: &'a Trainee,
    /// The model of the trainee, less the layers' modules that are left out this time.
    model: &'a Adapted<Model>,
    batch: &'a TrainBatch,
    seeds: &'a Seeds,
    pass: Pass<'a>,
    sum: GradientsAccumulator<Trainee>,
}

impl Backward<'_> {
    /// The loss of the last layer's output, and its gradient where one is asked for.
    fn head(&mut self, x: Tensor<3>, wanted: bool) -> (Tensor<1>, Option<Tensor<3>>) {
        let x = x.set_require_grad(wanted);
        let loss = Trainee::head_loss(&self.model.host, x.clone(), self.batch, &self.pass);
        let grad = self.collect(loss.clone(), &x);
        (loss.detach(), grad)
    }

    /// Back through the layers with these inputs, and through what comes before them.
    fn layers(
        &mut self,
        mut inputs: Vec<Tensor<3>>,
        lowest: &Lowest,
        context: &Context,
        mut grad: Tensor<3>,
    ) {
        let host = &self.model.host;
        while let Some(x) = inputs.pop() {
            let index = lowest.layer + inputs.len();
            let x = x.set_require_grad(lowest.below(index));
            self.seeds.layer(index);
            let y = host.layer(index, x.clone(), context, &self.pass);
            let Some(below) = self.collect_along(y, grad, &x) else {
                return;
            };
            grad = below;
        }
        if lowest.enter {
            self.seeds.enter();
            let (x, _) = host.enter(&self.batch.batch, &self.pass);
            self.collect_along(x.clone(), grad, &x);
        }
    }

    /// The gradients of a stage with this output, given the gradient of the output.
    fn collect_along(
        &mut self,
        output: Tensor<3>,
        grad: Tensor<3>,
        input: &Tensor<3>,
    ) -> Option<Tensor<3>> {
        let along = with_auxiliary((output * grad).sum(), &self.pass);
        self.collect(along, input)
    }

    /// Adds the gradients of a stage to the sum; gives that of its input.
    fn collect(&mut self, loss: Tensor<1>, input: &Tensor<3>) -> Option<Tensor<3>> {
        if !loss.is_tracked() {
            return None;
        }
        let mut grads = loss.backward();
        let trained = GradientsParams::from_module(&mut grads, self.trainee);
        self.sum.accumulate(self.trainee, trained);
        input.grad_remove(&mut grads)
    }
}

#[cfg(test)]
mod tests;
