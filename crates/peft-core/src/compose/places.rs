//! What stands at a seam where a token's place, or its row, says which part of a composition it is the
//! matter of, and where a part must not see what is not its own.

use burn::module::Module;
use burn::tensor::Tensor;

use crate::attend::{Attend, AttendSlot, Heads};
use crate::blend::Weighted;
use crate::pass::Pass;
use crate::projection::{Dense, Proj, Projection};

/// `base + sum of weight * (part - base)`, where at every place one weight is 1 at most; a part sees the
/// pass as its own.
fn at_its_places<S: Module>(
    base: Tensor<3>,
    parts: &[Weighted<S>],
    pass: &Pass<'_>,
    run: impl Fn(&Weighted<S>, &Pass<'_>) -> Tensor<3>,
) -> Tensor<3> {
    let add = |sum: Tensor<3>, part: &Weighted<S>| {
        let change = run(part, &pass.part(part.index)) - base.clone();
        sum + part.weight.on(change, pass)
    };
    parts.iter().fold(base.clone(), add)
}

/// A linear layer that is at every place what the place's part makes of it.
#[derive(Module, Debug)]
pub(super) struct LinearByPlace {
    pub(super) base: Proj,
    pub(super) parts: Vec<Weighted<Proj>>,
    /// How many parts there are, those that leave this layer alone among them.
    pub(super) count: usize,
}

impl LinearByPlace {
    /// The layer for states that are at no place: as many rows for each part, as [`AttendByPlace`] asks,
    /// or else the base's.
    fn aside(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        if !x.dims()[0].is_multiple_of(self.count) {
            return self.base.forward(x, pass);
        }
        let rows = x.chunk(self.count, 0).into_iter().enumerate();
        let of_part = |(index, rows)| {
            let mut parts = self.parts.iter();
            match parts.find(|part| part.index == index) {
                Some(part) => part.module.forward(rows, &pass.part(index)),
                None => self.base.forward(rows, pass),
            }
        };
        Tensor::cat(rows.map(of_part).collect(), 0)
    }
}

impl Projection for LinearByPlace {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        if pass.is_aside() {
            return self.aside(x, pass);
        }
        let base = self.base.forward(x.clone(), pass);
        at_its_places(base, &self.parts, pass, |part, pass| {
            part.module.forward(x.clone(), pass)
        })
    }
    /// That of the base, which is all that the places have in common.
    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.base.weight(pass)
    }
    fn bias(&self) -> Option<Tensor<1>> {
        self.base.bias()
    }
    fn merge(&self, _pass: &Pass<'_>) -> Option<Dense> {
        None
    }
    fn dims(&self) -> (usize, usize) {
        self.base.dims()
    }
    fn packing(&self) -> Option<String> {
        self.base.packing()
    }
    fn base(&self) -> Option<Proj> {
        Some(self.base.clone())
    }
}

/// An attention core that is for every query what the query's part makes of it.
#[derive(Module, Debug)]
pub(super) struct AttendByPlace {
    pub(super) parts: Vec<Weighted<AttendSlot>>,
    /// How many parts there are, those that leave this core alone among them.
    pub(super) count: usize,
}

impl Attend for AttendByPlace {
    fn forward(&self, heads: Heads<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let plain = heads.clone().attend();
        at_its_places(plain, &self.parts, pass, |part, pass| {
            // The layer's projections may be another for every part. They are asked with rows for each,
            // made of the same states, and those of the other parts are dropped.
            let keys_and_values = |x: Tensor<3>| {
                let [rows, ..] = x.dims();
                let (k, v) = (heads.keys_and_values)(x.repeat_dim(0, self.count));
                let own = |all: Tensor<3>| all.narrow(0, part.index * rows, rows);
                (own(k), own(v))
            };
            let own = Heads {
                keys_and_values: &keys_and_values,
                ..heads.clone()
            };
            AttendSlot::apply(Some(&part.module), own, pass)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blend::Weight;
    use crate::contract::random;
    use crate::pass::Text;
    use burn::tensor::{Device, Int, Tolerance};

    /// A layer of three, of which the second part leaves it alone, and the three as they are alone.
    fn layer(weights: [Weight; 2]) -> (LinearByPlace, [Dense; 3]) {
        let device = Device::flex();
        let dense = |_| Dense::new(random([4, 3], &device), Some(random([3], &device)));
        let [base, first, third] = [0, 1, 2].map(dense);
        let part = |index, weight, dense: &Dense| Weighted {
            weight,
            index,
            module: Proj::new(dense.clone()),
        };
        let parts = vec![part(0, weights[0], &first), part(2, weights[1], &third)];
        let layer = LinearByPlace {
            base: Proj::new(base.clone()),
            parts,
            count: 3,
        };
        (layer, [first, base, third])
    }

    fn assert_same(a: Tensor<3>, b: Tensor<3>) {
        let close = Tolerance::absolute(1e-5);
        a.into_data().assert_approx_eq::<f32>(&b.into_data(), close);
    }

    #[test]
    fn every_token_goes_through_the_layer_of_its_own_part() {
        let tokens = |from, to| Weight::Tokens { from, to };
        let (layer, alone) = layer([tokens(0, 1), tokens(3, usize::MAX)]);
        let x = random([2, 5, 4], &Device::flex());
        let found = layer.forward(x.clone(), &Pass::new());
        for (token, part) in [0, 1, 1, 2, 2].into_iter().enumerate() {
            let at = |t: Tensor<3>| t.narrow(1, token, 1);
            assert_same(at(found.clone()), at(alone[part].apply(x.clone())));
        }
    }

    #[test]
    fn every_row_goes_through_the_layer_of_its_own_part() {
        let (layer, alone) = layer([Weight::Task(0), Weight::Task(2)]);
        let x = random([4, 2, 4], &Device::flex());
        let tasks = [2, 0, 1, 0];
        let pass = Pass::new();
        pass.see(Text {
            tasks: Some(Tensor::<1, Int>::from_data(tasks, &x.device())),
            ..Text::default()
        });
        let found = layer.forward(x.clone(), &pass);
        for (row, task) in tasks.into_iter().enumerate() {
            let at = |t: Tensor<3>| t.narrow(0, row, 1);
            assert_same(at(found.clone()), at(alone[task as usize].apply(x.clone())));
        }
        assert!(layer.merge(&pass).is_none());
    }

    #[test]
    fn states_that_are_no_tokens_go_through_the_part_that_asks_or_the_base() {
        let (layer, alone) = layer([Weight::Task(0), Weight::Task(2)]);
        let pass = Pass::new();
        let pass = pass.aside();
        let x = random([1, 2, 4], &Device::flex());
        let base = alone[1].apply(x.clone());
        assert_same(layer.forward(x.clone(), &pass), base);
        let each = layer.forward(x.clone().repeat_dim(0, 3), &pass);
        for (row, part) in alone.iter().enumerate() {
            let own = each.clone().narrow(0, row, 1);
            assert_same(own, part.apply(x.clone()));
        }
    }
}
