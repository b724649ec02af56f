//! The interface between PEFT methods and models.
//!
//! A model ([`Host`](host::Host)) exposes three seams: linear layers ([`Projection`](projection::Projection)),
//! sublayers ([`Tap`](tap::Tap)) and attention cores ([`Attend`](attend::Attend)). A method
//! ([`Method`](method::Method)) fills some of them. [`adapt`](host::adapt) puts the two together;
//! neither knows the other. A method that starts from training data looks at some first
//! ([`look`](look::look)). [`contract`] is the suite that every method passes.

#[macro_use]
pub mod erased;
pub mod activation;
pub mod attend;
pub mod blend;
pub mod buffer;
pub mod check;
pub mod compose;
pub mod contract;
pub mod device;
mod dropout;
pub mod ends;
pub mod error;
pub mod exchange;
pub mod gate;
pub mod geometry;
pub mod host;
pub mod init;
pub mod look;
pub mod lookup;
pub mod memory;
pub mod method;
mod omit;
pub mod packed;
pub mod pass;
pub mod projection;
pub mod regulate;
mod settle;
pub mod site;
pub mod state;
mod store;
pub mod tap;
pub mod toy;
pub mod trained;

pub use activation::Activation;
pub use attend::{Attend, AttendSlot, Heads};
pub use blend::blend;
pub use buffer::Buffer;
pub use compose::{Assembler, Composition};
pub use device::device;
pub use ends::{Ends, EndsSlot};
pub use error::CoreError;
pub use exchange::{Fields, Foreign, Form, Rule};
pub use gate::Gate;
pub use geometry::{BaseParam, Geometry, Part, Table, TapSite};
pub use host::{Adapted, Host, Surgeon, adapt, geometry_for, trained_parameters, trains_inside};
pub use init::Init;
pub use kernels;
pub use look::{Batches, Input, Looked, Preview, Slope, Tokens, look};
pub use lookup::{Lookup, LookupSlot};
pub use memory::Memory;
pub use method::{Method, MethodConfig, MethodInfo, Start, Storage, Store, VirtualTokens};
pub use packed::{DenseOnly, PackedLayer, PackedReader};
pub use pass::{Pass, SharedSlot, Text};
pub use projection::{Dense, Proj, Projection, Reweighted};
pub use regulate::{Consequences, Regulator, Seams, Step, regulate};
pub use site::{Role, Site, Targets};
pub use store::{divides, pack};
pub use tap::{Sublayer, Tap, TapSlot};
pub use trained::{Origin, Trained, parameter_names, trained};
