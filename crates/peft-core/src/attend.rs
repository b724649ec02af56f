//! The third seam: the attention core, where keys and values meet the queries.

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
pub use kernels::{AttentionSpec, Texts};

use crate::erased::{DynModule, Holder};
use crate::pass::Pass;
use crate::projection::short_type_name;

/// Queries, keys and values of one attention layer, heads side by side in the last axis.
#[derive(Clone)]
pub struct Heads<'a> {
    /// What the layer's projections make them of, `[batch, queries, d]`.
    pub input: Tensor<3>,
    /// `[batch, queries, heads * d_head]`
    pub q: Tensor<3>,
    /// `[batch, keys, kv_heads * d_head]`
    pub k: Tensor<3>,
    /// `[batch, keys, kv_heads * d_head]`
    pub v: Tensor<3>,
    /// `[batch, keys]`, 1 where a key may be seen and 0 at padding.
    pub key_mask: Option<Tensor<2>>,
    /// The texts of a packed row, which do not see each other and carry no `key_mask`; none where
    /// every row is one text.
    pub texts: Option<Texts>,
    /// Number of heads, scale, causality, window.
    pub spec: AttentionSpec,
    /// The keys and values that the layer makes of other states, `[batch, n, d]`: its own
    /// projections, without positions.
    pub keys_and_values: &'a dyn Fn(Tensor<3>) -> (Tensor<3>, Tensor<3>),
}

impl Heads<'_> {
    /// Scaled dot-product attention, `[batch, queries, heads * d_head]`.
    pub fn attend(self) -> Tensor<3> {
        match self.texts {
            Some(texts) => kernels::attention_packed(self.q, self.k, self.v, &self.spec, &texts),
            None => kernels::attention(self.q, self.k, self.v, &self.spec, self.key_mask),
        }
    }

    /// Puts keys and values that every query sees before the others. In a layer with a sliding
    /// window they count as the tokens before the text: queries further on lose sight of them.
    ///
    /// # Shapes
    /// - keys, values: `[n, kv_heads * d_head]`, the same for every row of the batch
    pub fn with_prefix(mut self, keys: Tensor<2>, values: Tensor<2>) -> Self {
        if let Some(texts) = self.texts.take() {
            return self.with_prefix_of_texts(keys, values, &texts);
        }
        let [batch, _, _] = self.k.dims();
        let [n, width] = keys.dims();
        let expand = |t: Tensor<2>| t.unsqueeze::<3>().expand([batch, n, width]);
        self.with_prefix_of_rows(expand(keys), expand(values))
    }

    /// The same with a prefix for every row, `[batch, n, kv_heads * d_head]`.
    fn with_prefix_of_rows(mut self, keys: Tensor<3>, values: Tensor<3>) -> Self {
        let [batch, n, _] = keys.dims();
        self.k = Tensor::cat(vec![keys, self.k], 1);
        self.v = Tensor::cat(vec![values, self.v], 1);
        self.key_mask = self.key_mask.map(|mask| {
            let seen = Tensor::ones([batch, n], &mask.device());
            Tensor::cat(vec![seen, mask], 1)
        });
        self
    }

    /// Attention with a prefix, as [`Heads::with_prefix`] puts it there, that every query sees times
    /// its own gate, keys and values alike.
    ///
    /// # Shapes
    /// - gate: `[batch, queries or 1, 1]`
    pub fn attend_gated_prefix(
        mut self,
        (keys, values): (Tensor<2>, Tensor<2>),
        gate: Tensor<3>,
    ) -> Tensor<3> {
        if gate.dims()[1] == 1 && self.texts.is_none() {
            // All queries of a row see the same: a prefix of the row's own.
            let gated = |t: Tensor<2>| t.unsqueeze::<3>() * gate.clone();
            let (keys, values) = (gated(keys), gated(values));
            return self.with_prefix_of_rows(keys, values).attend();
        }
        // Every head gets a second half, in which the text is zero and the prefix all there is. The
        // gate acts on that half of the queries, and of what they find.
        let AttentionSpec {
            heads, kv_heads, ..
        } = self.spec;
        self.q = beside(self.q.clone(), self.q * gate.clone(), heads);
        self.k = beside(self.k.clone(), self.k.zeros_like(), kv_heads);
        self.v = beside(self.v.clone(), self.v.zeros_like(), kv_heads);
        let second = |prefix: Tensor<2>| {
            let prefix = prefix.unsqueeze::<3>();
            beside(prefix.zeros_like(), prefix, kv_heads).squeeze_dim::<2>(0)
        };
        let found = self.with_prefix(second(keys), second(values)).attend();
        let [batch, queries, both] = found.dims();
        let by_head = found.reshape([batch, queries, heads, both / heads]);
        let half = |at: usize| {
            let width = both / heads / 2;
            let half = by_head.clone().narrow(3, at * width, width);
            half.reshape([batch, queries, both / 2])
        };
        half(0) + half(1) * gate
    }

    /// The same for every text of a packed row.
    fn with_prefix_of_texts(mut self, keys: Tensor<2>, values: Tensor<2>, texts: &Texts) -> Self {
        let [n, width] = keys.dims();
        let places =
            |(_, own): (_, std::ops::Range<usize>)| (0..n).chain(own.start + n..own.end + n);
        let places: Vec<i64> = texts.places().flat_map(places).map(|i| i as i64).collect();
        let all = places.len();
        let device = self.k.device();
        let places = Tensor::<1, Int>::from_data(TensorData::new(places, [all]), &device);
        let before_each = |prefix: Tensor<2>, own: Tensor<3>| {
            let [_, length, _] = own.dims();
            let rows = Tensor::cat(vec![prefix, own.reshape([length, width])], 0);
            kernels::embedding(rows, places.clone()).reshape([1, all, width])
        };
        self.k = before_each(keys, self.k);
        self.v = before_each(values, self.v);
        self.texts = Some(texts.with_keys_before(n));
        self
    }
}

/// Two tensors of `[batch, n, heads * width]`, the second's features behind the first's in every head.
fn beside(first: Tensor<3>, second: Tensor<3>, heads: usize) -> Tensor<3> {
    let [batch, n, width] = first.dims();
    let by_head = |t: Tensor<3>| t.reshape([batch, n, heads, width / heads]);
    let both = Tensor::cat(vec![by_head(first), by_head(second)], 3);
    both.reshape([batch, n, 2 * width])
}

/// Replaces the attention core of a layer.
pub trait Attend: Module + 'static {
    /// Attention output, `[batch, queries, heads * d_head]`.
    fn forward(&self, heads: Heads<'_>, pass: &Pass<'_>) -> Tensor<3>;

    /// The same without what only training needs, where it has such a part; it reads nothing of a
    /// pass.
    fn settled(&self, _pass: &Pass<'_>) -> Option<AttendSlot> {
        None
    }
}

/// Object-safe form of [`Attend`]; implemented for every one of them.
pub trait DynAttend: DynModule {
    #[doc(hidden)]
    fn boxed(&self) -> Box<dyn DynAttend>;
    #[doc(hidden)]
    fn describe(&self) -> String;
    #[doc(hidden)]
    fn run(&self, heads: Heads<'_>, pass: &Pass<'_>) -> Tensor<3>;
    #[doc(hidden)]
    fn settle(&self, pass: &Pass<'_>) -> Option<AttendSlot>;
}

impl<A: Attend> DynAttend for Holder<A> {
    fn boxed(&self) -> Box<dyn DynAttend> {
        Box::new(self.clone())
    }
    fn describe(&self) -> String {
        short_type_name::<A>().into()
    }
    fn run(&self, heads: Heads<'_>, pass: &Pass<'_>) -> Tensor<3> {
        self.get().forward(heads, pass)
    }
    fn settle(&self, pass: &Pass<'_>) -> Option<AttendSlot> {
        self.get().settled(pass)
    }
}

/// Any [`Attend`]. Models hold an `Option<AttendSlot>` in every attention layer.
#[derive(Debug)]
pub struct AttendSlot(Box<dyn DynAttend>);

erased_module!(AttendSlot, DynAttend);

impl AttendSlot {
    /// Erases an attention core.
    pub fn new<A: Attend>(attend: A) -> Self {
        Self(Box::new(Holder::new(attend)))
    }

    /// The same without what only training needs; see [`Attend::settled`].
    pub fn settled(&self, pass: &Pass<'_>) -> Option<Self> {
        self.0.settle(pass)
    }

    /// The slot's attention if there is one, plain attention otherwise.
    pub fn apply(slot: Option<&Self>, heads: Heads<'_>, pass: &Pass<'_>) -> Tensor<3> {
        match slot {
            Some(attend) => attend.0.run(heads, pass),
            None => heads.attend(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::Init;
    use burn::tensor::{Device, Tolerance};

    #[test]
    fn every_query_sees_a_gated_prefix_as_one_that_was_scaled_for_it() {
        let mut init = Init::new(3, &Device::flex());
        let mut random = |shape| init.normal(shape, 1.0);
        let mask = Tensor::from_data([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]], &Device::flex());
        let heads = Heads {
            input: random([2, 3, 1]),
            q: random([2, 3, 8]),
            k: random([2, 3, 4]),
            v: random([2, 3, 4]),
            key_mask: Some(mask),
            texts: None,
            spec: AttentionSpec {
                heads: 4,
                kv_heads: 2,
                scale: 0.7,
                causal: true,
                window: None,
            },
            keys_and_values: &|x| (x.clone(), x),
        };
        let [keys, values] = [(); 2].map(|()| random([1, 2, 4]).squeeze_dim::<2>(0));
        let by_row = Tensor::<3>::from_data([[[0.2]], [[0.9]]], &Device::flex());
        let by_query = Tensor::<3>::from_data(
            [[[0.1], [0.5], [0.9]], [[0.3], [0.8], [0.4]]],
            &Device::flex(),
        );
        for gate in [by_row, by_query] {
            let prefix = (keys.clone(), values.clone());
            let found = heads.clone().attend_gated_prefix(prefix, gate.clone());
            let gates = gate.expand([2, 3, 1]);
            for (row, query) in (0..6).map(|at| (at / 3, at % 3)) {
                let at = |t: Tensor<3>| t.narrow(0, row, 1).narrow(1, query, 1);
                let own = at(gates.clone()).reshape([1, 1]);
                let (keys, values) = (keys.clone() * own.clone(), values.clone() * own);
                let expected = at(heads.clone().with_prefix(keys, values).attend()).into_data();
                let close = Tolerance::absolute(1e-5);
                let found = at(found.clone()).into_data();
                found.assert_approx_eq::<f32>(&expected, close);
            }
        }
    }
}
