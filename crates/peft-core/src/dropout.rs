//! A model in which what its method adds is dropped out at random.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;

use crate::attend::{Attend, AttendSlot, Heads};
use crate::host::{Adapted, Host, Surgeon};
use crate::pass::Pass;
use crate::projection::{Dense, Proj, Projection};
use crate::site::{Role, Site};
use crate::tap::{Sublayer, Tap, TapSlot};

impl<H: Host> Adapted<H> {
    /// The same model with dropout on what its method adds to the output of every linear layer,
    /// sublayer and attention core, whatever the method is: each value is left out with this
    /// probability, and the others are scaled so that the mean stays. It costs the base's linear
    /// layers a second time. What sits on the embedding or on both ends is as before, and so are
    /// parameters of the base.
    ///
    /// The parameters are shared, not copied: a loss of the result has gradients of this model's.
    #[must_use]
    pub fn with_dropout(&self, probability: f64) -> Self {
        let mut dropper = Dropper(DropoutConfig::new(probability).init());
        Self {
            host: self.host.clone().rebuild(&mut dropper),
            ..self.clone()
        }
    }
}

struct Dropper(Dropout);

impl Surgeon for Dropper {
    fn projection(&mut self, _site: &Site, whole: Proj) -> Proj {
        match whole.bare() {
            None => whole,
            Some(bare) => Proj::new(DroppedProjection {
                whole,
                bare,
                dropout: self.0.clone(),
            }),
        }
    }
    fn tap(&mut self, _layer: usize, _role: Role, old: Option<TapSlot>) -> Option<TapSlot> {
        let dropout = self.0.clone();
        old.map(|tap| TapSlot::new(DroppedTap { tap, dropout }))
    }
    fn attend(&mut self, _layer: usize, old: Option<AttendSlot>) -> Option<AttendSlot> {
        let dropout = self.0.clone();
        old.map(|attend| AttendSlot::new(DroppedAttend { attend, dropout }))
    }
}

/// `bare + dropout(whole - bare)`
fn dropped(dropout: &Dropout, bare: Tensor<3>, whole: Tensor<3>) -> Tensor<3> {
    bare.clone() + dropout.forward(whole - bare)
}

/// A linear layer as a method made it, and as it was.
#[derive(Module, Debug)]
struct DroppedProjection {
    whole: Proj,
    bare: Proj,
    dropout: Dropout,
}

impl Projection for DroppedProjection {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let bare = self.bare.forward(x.clone(), pass);
        dropped(&self.dropout, bare, self.whole.forward(x, pass))
    }
    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.whole.weight(pass)
    }
    fn bias(&self) -> Option<Tensor<1>> {
        self.whole.bias()
    }
    fn merge(&self, pass: &Pass<'_>) -> Option<Dense> {
        self.whole.merge(pass)
    }
    fn dims(&self) -> (usize, usize) {
        self.whole.dims()
    }
    fn base(&self) -> Option<Proj> {
        Some(self.bare.clone())
    }
}

/// A method's change of a sublayer.
#[derive(Module, Debug)]
struct DroppedTap {
    tap: TapSlot,
    dropout: Dropout,
}

impl Tap for DroppedTap {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let bare = sublayer.output.clone();
        let whole = TapSlot::apply(Some(&self.tap), sublayer, pass);
        dropped(&self.dropout, bare, whole)
    }
}

/// A method's attention core.
#[derive(Module, Debug)]
struct DroppedAttend {
    attend: AttendSlot,
    dropout: Dropout,
}

impl Attend for DroppedAttend {
    fn forward(&self, heads: Heads<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let bare = heads.clone().attend();
        let whole = AttendSlot::apply(Some(&self.attend), heads, pass);
        dropped(&self.dropout, bare, whole)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tolerance};

    use super::*;
    use crate::contract::random;

    #[test]
    fn each_value_a_method_adds_is_left_out_or_scaled_up() {
        let device = Device::flex().autodiff();
        let dense = || Proj::new(Dense::new(random([4, 30], &device), None));
        let layer = DroppedProjection {
            whole: dense(),
            bare: dense(),
            dropout: DropoutConfig::new(0.25).init(),
        };
        let (x, pass) = (random([2, 50, 4], &device), Pass::new());
        let bare = layer.bare.forward(x.clone(), &pass);
        let added = layer.whole.forward(x.clone(), &pass) - bare.clone();
        let found = layer.forward(x.clone(), &pass) - bare;
        let left_out = found.clone().abs().lower_elem(1e-5);
        let share: f32 = left_out.clone().float().mean().into_scalar();
        assert!((share - 0.25).abs() < 0.05, "{share}");
        let expected = added.div_scalar(0.75).mask_fill(left_out, 0.0);
        let close = Tolerance::absolute(1e-4);
        found
            .into_data()
            .assert_approx_eq::<f32>(&expected.into_data(), close);
        // Nothing is left out where no gradients are tracked.
        let layer = layer.valid();
        let x = x.without_autodiff();
        let expected = layer.whole.forward(x.clone(), &pass).into_data();
        let found = layer.forward(x, &pass).into_data();
        found.assert_approx_eq::<f32>(&expected, close);
    }
}
