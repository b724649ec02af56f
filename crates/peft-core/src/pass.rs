//! What one forward pass needs and no layer owns.

use std::cell::RefCell;

use burn::module::{Module, ParamId};
use burn::tensor::{Device, Int, Tensor};

use crate::compose::SharedParts;
use crate::erased::{DynModule, Holder};
use crate::memory::Memory;
use crate::projection::short_type_name;

/// What layers may know of the tokens of a pass.
#[derive(Clone, Debug, Default)]
pub struct Text {
    /// `[batch, keys]`, 1 at real tokens and 0 at padding; none where nothing is padded.
    pub mask: Option<Tensor<2>>,
    /// `[batch, keys]`, 1 at tokens that are given and 0 at those a language model is to write (and
    /// at padding behind them), which are not there yet when it writes; none where all are given.
    pub prompt: Option<Tensor<2>>,
    /// How many tokens of every row a cache holds already.
    pub seen: usize,
    /// The number of the task that every row belongs to, `[batch]`; none where all are of task 0.
    pub tasks: Option<Tensor<1, Int>>,
    /// Whether a token must not depend on later ones, as in a model that generates text.
    pub causal: bool,
}

impl Text {
    /// 1 at the real tokens among those of the pass, 0 at padding, `[batch, sequence, 1]`.
    pub fn real_tokens(&self, [batch, seq]: [usize; 2], device: &Device) -> Tensor<3> {
        match &self.mask {
            // The mask begins with the tokens of a cache.
            Some(mask) => {
                let [_, keys] = mask.dims();
                mask.clone().narrow(1, keys - seq, seq).unsqueeze_dim(2)
            }
            None => Tensor::ones([batch, seq, 1], device),
        }
    }
}

/// Context of one forward pass: state shared across layers, and losses that layers add.
#[non_exhaustive]
pub struct Pass<'a> {
    /// What is added to every token's position; see [`Method::position_offset`](crate::Method).
    pub position_offset: usize,
    /// How many copies of every text go through the layers; see [`Method::copies`](crate::Method).
    pub copies: usize,
    shared: Option<&'a SharedSlot>,
    /// The pass of the whole, in one that a part of it sees.
    outer: Option<&'a Pass<'a>>,
    losses: RefCell<Vec<Tensor<1>>>,
    text: RefCell<Text>,
    memory: Option<Memory>,
    aside: bool,
}

impl Default for Pass<'_> {
    fn default() -> Self {
        Self {
            position_offset: 0,
            copies: 1,
            shared: None,
            outer: None,
            losses: RefCell::default(),
            text: RefCell::default(),
            memory: None,
            aside: false,
        }
    }
}

impl<'a> Pass<'a> {
    /// A pass of a model without shared state.
    pub fn new() -> Self {
        Self::default()
    }

    /// A pass of a model with this shared state.
    pub fn with_shared(shared: Option<&'a SharedSlot>) -> Self {
        Self {
            shared,
            ..Self::default()
        }
    }

    /// The pass with what layers kept of the passes before it, over the same texts.
    #[must_use]
    pub fn with_memory(self, memory: Option<Memory>) -> Self {
        Self { memory, ..self }
    }

    /// What was kept of the texts' earlier tokens; see [`Pass::keep`]. Without a memory nothing is.
    pub fn recall(&self, owner: ParamId, place: usize) -> Option<Tensor<3>> {
        self.memory.as_ref()?.recall((owner, place))
    }

    /// Keeps a tensor for the next pass over the same texts, where there will be one: `owner` is a
    /// parameter of the module it belongs to, `place` tells its places in the model apart.
    pub fn keep(&self, owner: ParamId, place: usize, value: Tensor<3>) {
        if let Some(memory) = &self.memory {
            memory.keep((owner, place), value);
        }
    }

    /// The mean of the values over the real tokens of every row: one for all of its tokens,
    /// `[batch, 1, n]`. Where a token must not depend on later ones, each has the mean over those up
    /// to itself, `[batch, sequence, n]`; what that takes of earlier passes over the same texts is
    /// kept under `owner` and `place`, as in [`Pass::keep`].
    ///
    /// # Panics
    /// If tokens are cached and the pass has no memory of them.
    pub fn text_mean(&self, values: Tensor<3>, owner: ParamId, place: usize) -> Tensor<3> {
        let [batch, seq, n] = values.dims();
        let text = self.text();
        let mask = text.real_tokens([batch, seq], &values.device());
        // The last column counts the tokens.
        let marked = Tensor::cat(vec![values * mask.clone(), mask], 2);
        let sums = match text.causal {
            false => marked.sum_dim(1),
            true => {
                let sums = marked.cumsum(1);
                let sums = match self.recall(owner, place) {
                    Some(before) => sums + before,
                    None => {
                        assert!(text.seen == 0, "a pass over cached tokens without a memory");
                        sums
                    }
                };
                self.keep(owner, place, sums.clone().narrow(1, seq - 1, 1));
                sums
            }
        };
        let counts = sums.clone().narrow(2, n, 1).clamp_min(1.0);
        sums.narrow(2, 0, n) / counts
    }

    /// The pass for states that are no tokens of its texts, which stand for a text of their own.
    pub fn aside(&self) -> Pass<'_> {
        Pass {
            position_offset: self.position_offset,
            shared: self.shared,
            aside: true,
            ..Pass::default()
        }
    }

    /// Whether it is for states that are no tokens, which have no place in a row and no task.
    pub fn is_aside(&self) -> bool {
        self.aside
    }

    /// The same pass through another copy of the model, which has this shared state: for layers
    /// that are computed a second time. Losses start anew.
    pub fn again<'b>(&self, shared: Option<&'b SharedSlot>) -> Pass<'b> {
        Pass {
            position_offset: self.position_offset,
            copies: self.copies,
            shared,
            text: self.text.clone(),
            memory: self.memory.clone(),
            ..Pass::default()
        }
    }

    /// The pass as a part of a composition sees it: with the state that this part's layers share.
    /// Losses go to the whole.
    pub fn part(&self, index: usize) -> Pass<'_> {
        let parts = self.shared.and_then(|slot| slot.0.as_any().downcast_ref());
        Pass {
            position_offset: self.position_offset,
            shared: parts.and_then(|parts: &SharedParts| parts.of_part(index)),
            outer: Some(self),
            memory: self.memory.clone(),
            aside: self.aside,
            ..Pass::default()
        }
    }

    /// The pass of the whole, for what a part stands on.
    pub(crate) fn outer(&self) -> &Pass<'_> {
        self.outer.unwrap_or(self)
    }

    /// The state shared across layers.
    ///
    /// # Panics
    /// If the pass carries no `S`: a layer was put into a model without its method's shared state.
    pub fn shared<S: Module + 'static>(&self) -> &S {
        self.shared
            .and_then(|slot| slot.0.as_any().downcast_ref())
            .unwrap_or_else(|| panic!("the pass carries no shared {}", short_type_name::<S>()))
    }

    /// The rows of each copy of the texts; the copies follow each other in the rows of a pass.
    pub fn each_copy<const D: usize>(&self, x: Tensor<D>) -> Vec<Tensor<D>> {
        match self.copies {
            1 => vec![x],
            copies => x.chunk(copies, 0),
        }
    }

    /// What a model says of every text: the mean of what it says of the copies.
    pub fn joined<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        if self.copies == 1 {
            return x;
        }
        let sum = self.each_copy(x).into_iter().reduce(|sum, copy| sum + copy);
        sum.expect("there is a copy") / self.copies as f64
    }

    /// Tells the layers of the pass what tokens it is about; models do before their first layer.
    pub fn see(&self, text: Text) {
        match self.outer {
            Some(outer) => outer.see(text),
            None => drop(self.text.replace(text)),
        }
    }

    /// What tokens the pass is about.
    pub fn text(&self) -> Text {
        match self.outer {
            Some(outer) => outer.text(),
            None => self.text.borrow().clone(),
        }
    }

    /// Adds an auxiliary loss (load balancing, orthogonality), `[1]`, to the training loss.
    pub fn add_loss(&self, loss: Tensor<1>) {
        match self.outer {
            Some(outer) => outer.add_loss(loss),
            None => self.losses.borrow_mut().push(loss),
        }
    }

    /// The sum of the auxiliary losses so far, taken out of the pass.
    pub fn take_loss(&self) -> Option<Tensor<1>> {
        self.losses
            .borrow_mut()
            .drain(..)
            .reduce(|sum, loss| sum + loss)
    }
}

/// Object-safe form of a module shared across layers.
pub trait DynShared: DynModule {
    #[doc(hidden)]
    fn boxed(&self) -> Box<dyn DynShared>;
    #[doc(hidden)]
    fn describe(&self) -> String;
}

impl<S: Module + 'static> DynShared for Holder<S> {
    fn boxed(&self) -> Box<dyn DynShared> {
        Box::new(self.clone())
    }
    fn describe(&self) -> String {
        short_type_name::<S>().into()
    }
}

/// Any module that the layers of one model share. It is owned once, by the adapted model, so that
/// its parameters exist once for the optimizer and the checkpoint.
#[derive(Debug)]
pub struct SharedSlot(Box<dyn DynShared>);

erased_module!(SharedSlot, DynShared);

impl SharedSlot {
    /// Erases a shared module.
    pub fn new<S: Module + 'static>(shared: S) -> Self {
        Self(Box::new(Holder::new(shared)))
    }
}
