//! The first seam: what stands where a linear layer stood.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use crate::erased::{DynModule, Holder};
use crate::pass::Pass;

/// A linear map from `d_in` to `d_out` features, however it is stored and whatever was added to it.
pub trait Projection: Module + 'static {
    /// Applies the map.
    ///
    /// # Shapes
    /// - x: `[batch, sequence, d_in]`
    /// - output: `[batch, sequence, d_out]`
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3>;

    /// The effective weight as a dense `[d_in, d_out]` matrix.
    fn weight(&self, pass: &Pass<'_>) -> Tensor<2>;

    /// The bias, `[d_out]`.
    fn bias(&self) -> Option<Tensor<1>>;

    /// One plain linear layer that computes the same, or none where no such layer exists.
    fn merge(&self, pass: &Pass<'_>) -> Option<Dense>;

    /// `(d_in, d_out)`
    fn dims(&self) -> (usize, usize);

    /// What a method put this around, so that it can be left out again; none where it stands on its
    /// own.
    fn base(&self) -> Option<Proj> {
        None
    }

    /// How the weight is packed, in the words of
    /// [`Storage::packing`](crate::method::Storage::packing); none where it is dense.
    fn packing(&self) -> Option<String> {
        None
    }

    /// The same without what only training needs, if there is a difference.
    fn settled(&self, _pass: &Pass<'_>) -> Option<Proj> {
        None
    }

    /// The same with what follows from its parameters alone computed once, if there is any such thing:
    /// for a model that is not trained on. It keeps every parameter.
    fn steady(&self, _pass: &Pass<'_>) -> Option<Proj> {
        None
    }
}

/// A layer over another that changes its weight and nothing else: bias and shape are the base's,
/// and both merge into one plain layer.
pub trait Reweighted: Module + 'static {
    /// The layer below.
    fn base(&self) -> &Proj;

    /// Applies the map; see [`Projection::forward`].
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3>;

    /// The effective weight, `[d_in, d_out]`.
    fn weight(&self, pass: &Pass<'_>) -> Tensor<2>;

    /// See [`Projection::settled`].
    fn settled(&self, _pass: &Pass<'_>) -> Option<Proj> {
        None
    }

    /// See [`Projection::steady`].
    fn steady(&self, _pass: &Pass<'_>) -> Option<Proj> {
        None
    }
}

impl<R: Reweighted> Projection for R {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        Reweighted::forward(self, x, pass)
    }
    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        Reweighted::weight(self, pass)
    }
    fn bias(&self) -> Option<Tensor<1>> {
        Reweighted::base(self).bias()
    }
    fn merge(&self, pass: &Pass<'_>) -> Option<Dense> {
        Some(Dense::new(
            Reweighted::weight(self, pass),
            Reweighted::base(self).bias(),
        ))
    }
    fn dims(&self) -> (usize, usize) {
        Reweighted::base(self).dims()
    }
    fn base(&self) -> Option<Proj> {
        Some(Reweighted::base(self).clone())
    }
    fn settled(&self, pass: &Pass<'_>) -> Option<Proj> {
        Reweighted::settled(self, pass)
    }
    fn steady(&self, pass: &Pass<'_>) -> Option<Proj> {
        Reweighted::steady(self, pass)
    }
}

/// Object-safe form of [`Projection`]; implemented for every one of them.
pub trait DynProjection: DynModule {
    #[doc(hidden)]
    fn boxed(&self) -> Box<dyn DynProjection>;
    #[doc(hidden)]
    fn describe(&self) -> String;
    #[doc(hidden)]
    fn projection(&self) -> ProjectionRef<'_>;
}

/// The methods of [`Projection`] that survive erasure, borrowed from the concrete projection.
#[doc(hidden)]
pub trait ErasedProjection {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3>;
    fn weight(&self, pass: &Pass<'_>) -> Tensor<2>;
    fn bias(&self) -> Option<Tensor<1>>;
    fn merge(&self, pass: &Pass<'_>) -> Option<Dense>;
    fn dims(&self) -> (usize, usize);
    fn base(&self) -> Option<Proj>;
    fn packing(&self) -> Option<String>;
    fn settled(&self, pass: &Pass<'_>) -> Option<Proj>;
    fn steady(&self, pass: &Pass<'_>) -> Option<Proj>;
}

#[doc(hidden)]
pub type ProjectionRef<'a> = &'a dyn ErasedProjection;

impl<P: Projection> ErasedProjection for P {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        Projection::forward(self, x, pass)
    }
    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        Projection::weight(self, pass)
    }
    fn bias(&self) -> Option<Tensor<1>> {
        Projection::bias(self)
    }
    fn merge(&self, pass: &Pass<'_>) -> Option<Dense> {
        Projection::merge(self, pass)
    }
    fn dims(&self) -> (usize, usize) {
        Projection::dims(self)
    }
    fn base(&self) -> Option<Proj> {
        Projection::base(self)
    }
    fn packing(&self) -> Option<String> {
        Projection::packing(self)
    }
    fn settled(&self, pass: &Pass<'_>) -> Option<Proj> {
        Projection::settled(self, pass)
    }
    fn steady(&self, pass: &Pass<'_>) -> Option<Proj> {
        Projection::steady(self, pass)
    }
}

impl<P: Projection> DynProjection for Holder<P> {
    fn boxed(&self) -> Box<dyn DynProjection> {
        Box::new(self.clone())
    }
    fn describe(&self) -> String {
        let (d_in, d_out) = Projection::dims(self.get());
        format!("{} {d_in} -> {d_out}", short_type_name::<P>())
    }
    fn projection(&self) -> ProjectionRef<'_> {
        self.get()
    }
}

/// The last component of a type's path, for displays.
pub(crate) fn short_type_name<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    name.rsplit("::").next().unwrap_or(name)
}

/// Any [`Projection`]: the type of a linear layer in a model with seams.
#[derive(Debug)]
pub struct Proj(Box<dyn DynProjection>);

erased_module!(Proj, DynProjection);

impl Proj {
    /// Erases a projection.
    pub fn new<P: Projection>(projection: P) -> Self {
        Self(Box::new(Holder::new(projection)))
    }

    /// Applies the map; see [`Projection::forward`].
    pub fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        self.0.projection().forward(x, pass)
    }

    /// The effective weight, `[d_in, d_out]`.
    pub fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.0.projection().weight(pass)
    }

    /// The bias, `[d_out]`.
    pub fn bias(&self) -> Option<Tensor<1>> {
        self.0.projection().bias()
    }

    /// One plain linear layer that computes the same; see [`Projection::merge`].
    pub fn merge(&self, pass: &Pass<'_>) -> Option<Dense> {
        self.0.projection().merge(pass)
    }

    /// `(d_in, d_out)`
    pub fn dims(&self) -> (usize, usize) {
        self.0.projection().dims()
    }

    /// What a method put this around; see [`Projection::base`].
    pub fn base(&self) -> Option<Proj> {
        self.0.projection().base()
    }

    /// The layer that methods were put around, without any of them; none where there is nothing
    /// around it.
    pub fn bare(&self) -> Option<Self> {
        std::iter::successors(self.base(), Self::base).last()
    }

    /// How the weight is packed; see [`Projection::packing`].
    pub fn packing(&self) -> Option<String> {
        self.0.projection().packing()
    }

    /// The same without what only training needs; see [`Projection::settled`].
    pub fn settled(&self, pass: &Pass<'_>) -> Option<Self> {
        self.0.projection().settled(pass)
    }

    /// The same with what follows from its parameters computed once; see [`Projection::steady`].
    pub fn steady(&self, pass: &Pass<'_>) -> Option<Self> {
        self.0.projection().steady(pass)
    }

    /// The concrete projection, if it is a `P`.
    pub fn downcast_ref<P: Projection>(&self) -> Option<&P> {
        self.0.as_any().downcast_ref()
    }
}

/// The plain linear layer `y = x W + b`.
#[derive(Module, Debug)]
pub struct Dense {
    /// `[d_in, d_out]`
    pub weight: Param<Tensor<2>>,
    /// `[d_out]`
    pub bias: Option<Param<Tensor<1>>>,
}

impl Dense {
    /// A layer of these values.
    pub fn new(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Self {
            weight: Param::from_tensor(weight),
            bias: bias.map(Param::from_tensor),
        }
    }

    /// A layer of zeros, to be loaded over.
    pub fn zeros(d_in: usize, d_out: usize, with_bias: bool, device: &Device) -> Self {
        let bias = with_bias.then(|| Tensor::zeros([d_out], device));
        Self::new(Tensor::zeros([d_in, d_out], device), bias)
    }

    /// Applies the map to a tensor of any rank; the last axis holds the features.
    pub fn apply<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        kernels::linear(x, self.weight.val(), self.bias.as_ref().map(Param::val))
    }
}

impl Projection for Dense {
    fn forward(&self, x: Tensor<3>, _pass: &Pass<'_>) -> Tensor<3> {
        self.apply(x)
    }
    fn weight(&self, _pass: &Pass<'_>) -> Tensor<2> {
        self.weight.val()
    }
    fn bias(&self) -> Option<Tensor<1>> {
        self.bias.as_ref().map(Param::val)
    }
    fn merge(&self, _pass: &Pass<'_>) -> Option<Dense> {
        Some(self.clone())
    }
    fn dims(&self) -> (usize, usize) {
        let [d_in, d_out] = self.weight.lazy_shape().dims();
        (d_in, d_out)
    }
}
