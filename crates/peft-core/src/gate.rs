//! Gates: how much of what a method adds a text gets.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation::sigmoid};

use crate::error::CoreError;
use crate::exchange::{Fields, Rule};
use crate::geometry::Geometry;
use crate::init::Init;
use crate::pass::Pass;

/// A trained gate, between 0 and 1: the mean of `sigmoid(x w + b)` over a text.
///
/// Padding is no part of the mean, unless the gate is told to count it. In an encoder all tokens of a text have one gate. In a model that
/// generates text a token must not know of later ones: it has the mean over the tokens up to itself,
/// those of a cache included, so that a text that is generated token by token meets the gates it has
/// when it is read as a whole.
#[derive(Module, Debug)]
pub struct Gate {
    /// `[d, 1]`
    weight: Param<Tensor<2>>,
    /// `[1]`
    bias: Param<Tensor<1>>,
    counts_padding: bool,
}

impl Gate {
    /// A gate on states of width `d`. It starts half open.
    pub fn new(d: usize, init: &mut Init) -> Self {
        Self {
            weight: Param::from_tensor(init.normal([d, 1], 0.02)),
            bias: Param::from_tensor(init.zeros([1])),
            counts_padding: false,
        }
    }

    /// The gate with padding in its mean or not. AdapterHub's are means over a row as it is padded, so
    /// that what they let through depends on the other texts of a batch.
    #[must_use]
    pub fn counting(self, counts_padding: bool) -> Self {
        Self {
            counts_padding,
            ..self
        }
    }

    /// Refuses `counts_padding` where it has no meaning.
    ///
    /// # Errors
    /// If there is no gate, or the model generates text, in which AdapterHub's gates are others.
    pub fn check(gating: bool, counts_padding: bool, geometry: &Geometry) -> Result<(), CoreError> {
        let refused = |expected| {
            Err(CoreError::bad_value(
                "counts_padding",
                counts_padding,
                expected,
            ))
        };
        match counts_padding {
            true if !gating => refused("left out where `gating` is off"),
            true if !Self::is_known_to_adapter_hub(geometry) => {
                refused("left out in a model that generates text")
            }
            _ => Ok(()),
        }
    }

    /// Closed form of the number of parameters.
    pub fn parameters(d: usize) -> usize {
        d + 1
    }

    /// The gates of texts with these states, `[batch, 1, 1]` or `[batch, sequence, 1]`.
    pub fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let score = kernels::linear(x, self.weight.val(), Some(self.bias.val()));
        match self.counts_padding {
            true => sigmoid(score).mean_dim(1),
            false => pass.text_mean(sigmoid(score), self.weight.id, 0),
        }
    }

    /// Whether AdapterHub computes the gates of this model as they are here: on texts without padding,
    /// or where they count it, on all. In a model that generates
    /// text it does not: there each is a mean over the whole text, later tokens included, while it is
    /// read at once, and the newest token's alone while it is generated.
    pub fn is_known_to_adapter_hub(geometry: &Geometry) -> bool {
        geometry.task_head_parameters() > 0
    }

    /// Takes AdapterHub's `use_gating`; a gate that is read there counts padding.
    ///
    /// # Errors
    /// If it is on and AdapterHub's gates are others.
    pub fn from_adapter_hub(fields: &mut Fields, geometry: &Geometry) -> Result<bool, CoreError> {
        let gating = fields.take("use_gating")?.unwrap_or(false);
        if gating && !Self::is_known_to_adapter_hub(geometry) {
            let expected = "false in a model that generates text: AdapterHub's gates look ahead";
            return Err(fields.unsupported("use_gating", &gating.into(), expected));
        }
        Ok(gating)
    }

    /// The gate of this place as AdapterHub keeps it below a path.
    pub fn rules(place: &str, path: &str) -> [Rule; 2] {
        let (weight, bias) = (format!("{place}.weight"), format!("{place}.bias"));
        [
            Rule::transposed(weight, format!("{path}.weight")),
            Rule::as_is(bias, format!("{path}.bias")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::pass::Text;
    use burn::tensor::{Device, TensorData, Tolerance};

    fn gate() -> Gate {
        let mut init = Init::new(4, &Device::flex());
        Gate {
            weight: Param::from_tensor(init.normal([3, 1], 1.0)),
            bias: Param::from_tensor(init.normal([1], 1.0)),
            counts_padding: false,
        }
    }

    /// Rows of six tokens, two of them padding on the left.
    fn padded() -> (Tensor<3>, Text) {
        let device = Device::flex();
        let mask = Tensor::from_data([[0.0, 0.0, 1.0, 1.0, 1.0, 1.0]; 2], &device);
        let text = Text {
            mask: Some(mask),
            ..Text::default()
        };
        (Init::new(5, &device).normal([2, 6, 3], 1.0), text)
    }

    /// The gate of every token by itself, row by row.
    fn alone(gate: &Gate, x: &Tensor<3>) -> Vec<Vec<f64>> {
        let floats = |data: TensorData| data.try_to_vec::<f32>().unwrap();
        let (w, b) = (gate.weight.val().into_data(), gate.bias.val().into_data());
        let (w, b, x) = (floats(w), floats(b)[0], floats(x.clone().into_data()));
        let one = |state: &[f32]| {
            let products = state.iter().zip(&w).map(|(x, w)| f64::from(x * w));
            1.0 / (1.0 + (-products.sum::<f64>() - f64::from(b)).exp())
        };
        let rows = x.chunks(18);
        rows.map(|row| row.chunks(3).map(one).collect()).collect()
    }

    fn run(gate: &Gate, x: Tensor<3>, text: Text) -> Tensor<3> {
        let pass = Pass::new();
        pass.see(text);
        gate.forward(x, &pass)
    }

    fn assert_is(found: Tensor<3>, expected: Vec<f64>) {
        let expected = TensorData::new(expected, found.dims());
        let close = Tolerance::absolute(1e-5);
        found.into_data().assert_approx_eq::<f32>(&expected, close);
    }

    #[test]
    fn a_text_of_an_encoder_has_the_mean_of_its_real_tokens() {
        let (gate, (x, text)) = (gate(), padded());
        let mean = |row: &Vec<f64>| row[2..].iter().sum::<f64>() / 4.0;
        let expected = alone(&gate, &x).iter().map(mean).collect();
        assert_is(run(&gate, x, text), expected);
    }

    #[test]
    fn a_gate_that_counts_padding_has_the_mean_of_the_whole_row() {
        let (gate, (x, text)) = (gate().counting(true), padded());
        let mean = |row: &Vec<f64>| row.iter().sum::<f64>() / 6.0;
        let expected = alone(&gate, &x).iter().map(mean).collect();
        assert_is(run(&gate, x, text), expected);
    }

    #[test]
    fn a_token_of_a_language_model_has_the_mean_up_to_itself() {
        let (gate, (x, text)) = (gate(), padded());
        let text = Text {
            causal: true,
            ..text
        };
        let up_to = |row: &Vec<f64>, at: usize| row[2..=at].iter().sum::<f64>() / (at - 1) as f64;
        let rows = alone(&gate, &x);
        let row = |row: &Vec<f64>| (2..6).map(|at| up_to(row, at)).collect::<Vec<_>>();
        let expected = rows.iter().flat_map(row).collect();
        assert_is(run(&gate, x, text).narrow(1, 2, 4), expected);
    }

    #[test]
    fn gates_of_cached_texts_go_on_where_the_last_pass_ended() {
        let (gate, (x, text)) = (gate(), padded());
        let whole = Text {
            causal: true,
            ..text.clone()
        };
        let whole = run(&gate, x.clone(), whole);
        let memory = Memory::new();
        for (seen, count) in [(0, 3), (3, 1), (4, 2)] {
            let pass = Pass::new().with_memory(Some(memory.clone()));
            let mask = text
                .mask
                .clone()
                .map(|mask| mask.narrow(1, 0, seen + count));
            pass.see(Text {
                mask,
                seen,
                causal: true,
                ..Text::default()
            });
            let part = gate.forward(x.clone().narrow(1, seen, count), &pass);
            let expected = whole.clone().narrow(1, seen, count).into_data();
            let close = Tolerance::absolute(1e-6);
            part.into_data().assert_approx_eq::<f32>(&expected, close);
        }
    }

    #[test]
    fn states_beside_the_text_leave_its_gates_alone() {
        let (gate, (x, text)) = (gate(), padded());
        let pass = Pass::new().with_memory(Some(Memory::new()));
        pass.see(Text {
            causal: true,
            ..text.clone()
        });
        let prompt = x.clone().narrow(0, 0, 1).narrow(1, 0, 2);
        let mean = |row: &Vec<f64>| (row[0] + row[1]) / 2.0;
        let expected = alone(&gate, &x).iter().take(1).map(mean).collect();
        assert_is(gate.forward(prompt, &pass.aside()), expected);
        assert!(pass.recall(gate.weight.id, 0).is_none());
    }
}
