//! Modules behind trait objects.
//!
//! Burn's `Module` has generic methods, so a field cannot hold "some module" directly. The models
//! here have seams that any method may fill, so they hold erased modules: a small object-safe
//! bridge carries Burn's visitors and mappers across the trait object and back. Methods write plain
//! `#[derive(Module)]` structs and never see this file.

use std::any::Any;

use burn::module::{Devices, Flag, Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Bool, Device, Int, Tensor};

/// Runs `$body` with the constant `$d` bound to the run-time rank.
macro_rules! with_rank {
    ($rank:expr, $d:ident => $body:expr) => {
        match $rank {
            1 => {
                const $d: usize = 1;
                $body
            }
            2 => {
                const $d: usize = 2;
                $body
            }
            3 => {
                const $d: usize = 3;
                $body
            }
            4 => {
                const $d: usize = 4;
                $body
            }
            5 => {
                const $d: usize = 5;
                $body
            }
            rank => panic!("parameters of rank {rank} are not supported in an erased module"),
        }
    };
}

/// A parameter's element kind, the part of its type that is not its rank.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Floating point, possibly trained.
    Float,
    /// Integers.
    Int,
    /// Booleans.
    Bool,
}

/// Object-safe form of Burn's `ModuleVisitor`.
pub trait DynVisitor {
    /// Visits a `Param<Tensor<rank, kind>>`.
    fn param(&mut self, kind: Kind, rank: usize, param: &dyn Any);
    /// Visits a control flag.
    fn flag(&mut self, flag: &Param<Flag>);
    /// Enters a named child.
    fn enter(&mut self, name: &str, container: &str);
    /// Leaves a named child.
    fn exit(&mut self, name: &str, container: &str);
}

/// Object-safe form of Burn's `ModuleMapper`.
pub trait DynMapper {
    /// Maps a `Param<Tensor<rank, kind>>` to another of the same type.
    fn param(&mut self, kind: Kind, rank: usize, param: Box<dyn Any>) -> Box<dyn Any>;
    /// Maps a control flag.
    fn flag(&mut self, flag: Param<Flag>) -> Param<Flag>;
    /// Enters a named child.
    fn enter(&mut self, name: &str, container: &str);
    /// Leaves a named child.
    fn exit(&mut self, name: &str, container: &str);
}

/// A static visitor seen as a dynamic one.
struct VisitorToDyn<'a, V>(&'a mut V);

impl<V: ModuleVisitor> DynVisitor for VisitorToDyn<'_, V> {
    fn param(&mut self, kind: Kind, rank: usize, param: &dyn Any) {
        with_rank!(rank, D => match kind {
            Kind::Float => self.0.visit_float::<D>(param.downcast_ref().expect("kind and rank fit")),
            Kind::Int => self.0.visit_int::<D>(param.downcast_ref().expect("kind and rank fit")),
            Kind::Bool => self.0.visit_bool::<D>(param.downcast_ref().expect("kind and rank fit")),
        })
    }
    fn flag(&mut self, flag: &Param<Flag>) {
        self.0.visit_flag(flag);
    }
    fn enter(&mut self, name: &str, container: &str) {
        self.0.enter_module(name, container);
    }
    fn exit(&mut self, name: &str, container: &str) {
        self.0.exit_module(name, container);
    }
}

/// A dynamic visitor seen as a static one.
struct DynToVisitor<'a>(&'a mut dyn DynVisitor);

impl ModuleVisitor for DynToVisitor<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.param(Kind::Float, D, param);
    }
    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.0.param(Kind::Int, D, param);
    }
    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.0.param(Kind::Bool, D, param);
    }
    fn visit_flag(&mut self, flag: &Param<Flag>) {
        self.0.flag(flag);
    }
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.0.enter(name, container_type);
    }
    fn exit_module(&mut self, name: &str, container_type: &str) {
        self.0.exit(name, container_type);
    }
}

/// A static mapper seen as a dynamic one.
struct MapperToDyn<'a, M>(&'a mut M);

/// Takes a parameter out of its box. The rank and kind that travel with it make the type certain.
fn unbox<T: 'static>(param: Box<dyn Any>) -> T {
    *param.downcast().expect("kind and rank fit")
}

impl<M: ModuleMapper> DynMapper for MapperToDyn<'_, M> {
    fn param(&mut self, kind: Kind, rank: usize, param: Box<dyn Any>) -> Box<dyn Any> {
        with_rank!(rank, D => match kind {
            Kind::Float => Box::new(self.0.map_float::<D>(unbox(param))),
            Kind::Int => Box::new(self.0.map_int::<D>(unbox(param))),
            Kind::Bool => Box::new(self.0.map_bool::<D>(unbox(param))),
        })
    }
    fn flag(&mut self, flag: Param<Flag>) -> Param<Flag> {
        self.0.map_flag(flag)
    }
    fn enter(&mut self, name: &str, container: &str) {
        self.0.enter_module(name, container);
    }
    fn exit(&mut self, name: &str, container: &str) {
        self.0.exit_module(name, container);
    }
}

/// A dynamic mapper seen as a static one.
struct DynToMapper<'a>(&'a mut dyn DynMapper);

impl ModuleMapper for DynToMapper<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        unbox(self.0.param(Kind::Float, D, Box::new(param)))
    }
    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        unbox(self.0.param(Kind::Int, D, Box::new(param)))
    }
    fn map_bool<const D: usize>(
        &mut self,
        param: Param<Tensor<D, Bool>>,
    ) -> Param<Tensor<D, Bool>> {
        unbox(self.0.param(Kind::Bool, D, Box::new(param)))
    }
    fn map_flag(&mut self, flag: Param<Flag>) -> Param<Flag> {
        self.0.flag(flag)
    }
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.0.enter(name, container_type);
    }
    fn exit_module(&mut self, name: &str, container_type: &str) {
        self.0.exit(name, container_type);
    }
}

/// Object-safe form of the parts of `Module` that training needs.
pub trait DynModule: Send + std::fmt::Debug {
    /// Visits every parameter.
    fn visit_dyn(&self, visitor: &mut dyn DynVisitor);
    /// Maps every parameter in place.
    fn map_dyn(&mut self, mapper: &mut dyn DynMapper);
    /// Applies a whole-module transformation in place.
    fn transform(&mut self, transform: Transform<'_>);
    /// Adds the devices found to the list.
    fn devices_dyn(&self, devices: Devices) -> Devices;
    /// The module itself, for a caller that knows its type.
    fn as_any(&self) -> &dyn Any;
}

/// The transformations of `Module` that take a module to a module of the same type.
#[derive(Clone, Copy)]
pub enum Transform<'a> {
    /// `Module::to_device`
    ToDevice(&'a Device),
    /// `Module::fork`
    Fork(&'a Device),
    /// `Module::train`
    Train,
    /// `Module::valid`
    Valid,
    /// `Module::materialize`
    Materialize,
}

/// Holds a module so that consuming methods can run in place: taken out, transformed, put back.
#[derive(Clone, Debug)]
pub struct Holder<M>(Option<M>);

impl<M> Holder<M> {
    /// Wraps a module.
    pub fn new(module: M) -> Self {
        Self(Some(module))
    }

    /// The module.
    pub fn get(&self) -> &M {
        self.0
            .as_ref()
            .expect("a holder is empty only while its module is being transformed")
    }

    fn replace(&mut self, f: impl FnOnce(M) -> M) {
        let module = self
            .0
            .take()
            .expect("a holder is empty only while its module is transformed");
        self.0 = Some(f(module));
    }
}

impl<M: Module + 'static> DynModule for Holder<M> {
    fn visit_dyn(&self, visitor: &mut dyn DynVisitor) {
        self.get().visit(&mut DynToVisitor(visitor));
    }
    fn map_dyn(&mut self, mapper: &mut dyn DynMapper) {
        self.replace(|module| module.map(&mut DynToMapper(mapper)));
    }
    fn transform(&mut self, transform: Transform<'_>) {
        self.replace(|module| match transform {
            Transform::ToDevice(device) => module.to_device(device),
            Transform::Fork(device) => module.fork(device),
            Transform::Train => module.train(),
            Transform::Valid => module.valid(),
            Transform::Materialize => module.materialize(),
        });
    }
    fn devices_dyn(&self, devices: Devices) -> Devices {
        self.get().collect_devices(devices)
    }
    fn as_any(&self) -> &dyn Any {
        self.get()
    }
}

/// Visits an erased module with a static visitor.
pub fn visit<V: ModuleVisitor>(module: &dyn DynModule, visitor: &mut V) {
    module.visit_dyn(&mut VisitorToDyn(visitor));
}

/// Maps an erased module with a static mapper.
pub fn map<M: ModuleMapper>(module: &mut dyn DynModule, mapper: &mut M) {
    module.map_dyn(&mut MapperToDyn(mapper));
}

/// Makes `$name`, a struct around `Box<dyn $trait>`, a Burn module. `$trait` needs `DynModule` as a
/// supertrait and a method `boxed(&self) -> Box<dyn $trait>`.
macro_rules! erased_module {
    ($name:ident, $trait:ident) => {
        impl Clone for $name {
            fn clone(&self) -> Self {
                Self(self.0.boxed())
            }
        }

        impl burn::module::Module for $name {
            fn collect_devices(&self, devices: burn::module::Devices) -> burn::module::Devices {
                self.0.devices_dyn(devices)
            }
            fn fork(mut self, device: &burn::tensor::Device) -> Self {
                self.0.transform($crate::erased::Transform::Fork(device));
                self
            }
            fn to_device(mut self, device: &burn::tensor::Device) -> Self {
                self.0
                    .transform($crate::erased::Transform::ToDevice(device));
                self
            }
            fn train(mut self) -> Self {
                self.0.transform($crate::erased::Transform::Train);
                self
            }
            fn valid(&self) -> Self {
                let mut copy = self.clone();
                copy.0.transform($crate::erased::Transform::Valid);
                copy
            }
            fn materialize(mut self) -> Self {
                self.0.transform($crate::erased::Transform::Materialize);
                self
            }
            fn visit<V: burn::module::ModuleVisitor>(&self, visitor: &mut V) {
                $crate::erased::visit(&*self.0, visitor);
            }
            fn map<M: burn::module::ModuleMapper>(mut self, mapper: &mut M) -> Self {
                $crate::erased::map(&mut *self.0, mapper);
                self
            }
        }

        impl burn::module::ModuleDisplayDefault for $name {
            fn content(&self, content: burn::module::Content) -> Option<burn::module::Content> {
                content.add_formatted(&self.0.describe()).optional()
            }
        }

        impl burn::module::ModuleDisplay for $name {}
    };
}
