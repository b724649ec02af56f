//! The contract every method keeps, as checks that any model with seams can run.
//!
//! [`contract_tests!`](crate::contract_tests) turns them into one test per claim.

use std::cell::Cell;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, Param};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData, activation::log_softmax};

use crate::compose::Assembler;
use crate::error::CoreError;
use crate::host::{Adapted, Host, adapt};
use crate::init::Init;
use crate::look::{Batches, Looked, Tokens, look};
use crate::method::{Method, MethodConfig, Start, Storage};
use crate::state;

/// A model the contract can be checked on.
pub trait ContractHost: Host {
    /// Number of token ids.
    const VOCAB: usize;

    /// A model of random weights.
    fn build(init: &mut Init) -> Self;

    /// The logits of a batch, `[batch, sequence, classes]`.
    fn logits(adapted: &Adapted<Self>, ids: Tensor<2, Int>) -> Tensor<3>;
}

/// Where a check runs: a device, how the frozen weights are stored, and who knows other methods.
pub struct Setting<'a> {
    /// The device, without gradient tracking.
    pub device: Device,
    /// Storage of the frozen weights; dense where none is given.
    pub storage: Option<&'a dyn Storage>,
    /// Makes the methods that examples name by their kinds; examples that name none need it not.
    pub assembler: Option<&'a dyn Assembler>,
}

impl Setting<'_> {
    /// Dense weights on a device.
    pub fn dense(device: Device) -> Self {
        Self {
            device,
            storage: None,
            assembler: None,
        }
    }

    /// The examples of a method, assembled where someone can.
    fn examples<M: MethodConfig>(&self) -> Vec<M> {
        let examples = M::examples().into_iter();
        let assembled = examples.map(|example| match self.assembler {
            Some(assembler) => example.assemble(assembler),
            None => Ok(example),
        });
        let examples = assembled.collect::<Result<_, _>>();
        examples.unwrap_or_else(|e| panic!("{}: {e}", M::INFO.kind))
    }

    fn adapted<M: MethodConfig, H: ContractHost>(&self, method: &M) -> Adapted<H> {
        self.try_adapted(method)
            .unwrap_or_else(|e| panic!("{method:?} was refused: {e}"))
    }

    fn try_adapted<M: MethodConfig, H: ContractHost>(
        &self,
        method: &M,
    ) -> Result<Adapted<H>, CoreError> {
        let mut init = Init::new(7, &self.device.clone().autodiff());
        let host = H::build(&mut init);
        let looked = self.look(&host, method)?;
        let method: &dyn Method = match &looked {
            Some(looked) => &*looked.method,
            None => method,
        };
        adapt(host, method, self.storage, &mut init)
    }

    /// The method after a look at the batch that all checks use, if it looks at data.
    fn look<M: MethodConfig, H: ContractHost>(
        &self,
        host: &H,
        method: &M,
    ) -> Result<Option<Looked>, CoreError> {
        let device = self.device.clone().autodiff();
        look(host, method, self.storage, self, (7, &device))
    }

    fn looked<M: MethodConfig, H: ContractHost>(&self, method: &M) -> Option<Looked> {
        let host = H::build(&mut Init::new(7, &self.device.clone().autodiff()));
        let looked = self.look(&host, method);
        looked.unwrap_or_else(|e| panic!("{method:?} was refused: {e}"))
    }

    /// The model before the values of its adapter are put in, as whoever reads a file makes it: what
    /// a look found is in the configuration.
    fn reopened<M: MethodConfig, H: ContractHost>(&self, method: &M) -> Adapted<H> {
        let read: Arc<dyn Method> = match self.looked::<M, H>(method) {
            Some(looked) => {
                let read: M = serde_json::from_value(looked.config).expect("it is read as written");
                Arc::new(read)
            }
            None => Arc::new(method.clone()),
        };
        let read = read.without_start().unwrap_or(read);
        let mut init = Init::new(7, &self.device.clone().autodiff());
        let host = H::build(&mut init);
        adapt(host, &*read, self.storage, &mut init)
            .unwrap_or_else(|e| panic!("{read:?} was refused: {e}"))
    }

    /// The base as the method sees it: stored the way the method or the setting stores it.
    fn base<M: MethodConfig, H: ContractHost>(&self, method: &M) -> Adapted<H> {
        let mut init = Init::new(7, &self.device.clone().autodiff());
        let host = H::build(&mut init);
        let preset = method.storage();
        let storage = preset.as_deref().or(self.storage);
        adapt(host, &Untouched, storage, &mut init).expect("the bare model is accepted")
    }

    fn ids<H: ContractHost>(&self) -> Tensor<2, Int> {
        let ids: Vec<i32> = (0..24).map(|i| (i * 7 + i / 5) % H::VOCAB as i32).collect();
        Tensor::from_data(
            TensorData::new(ids, [4, 6]),
            &self.device.clone().autodiff(),
        )
    }

    fn output<H: ContractHost>(&self, model: &Adapted<H>) -> TensorData {
        let ids = self.ids::<H>().without_autodiff();
        H::logits(&model.valid(), ids).into_data()
    }

    fn loss<H: ContractHost>(&self, model: &Adapted<H>) -> Tensor<1> {
        let logits = H::logits(model, self.ids::<H>());
        let [batch, seq, classes] = logits.dims();
        let targets: Vec<i32> = (0..batch * seq)
            .map(|i| ((i * i + 3 * i) % classes) as i32)
            .collect();
        let targets = Tensor::<2, Int>::from_data(
            TensorData::new(targets, [batch * seq, 1]),
            &self.device.clone().autodiff(),
        );
        let logits = logits.reshape([batch * seq, classes]);
        log_softmax(logits, 1).gather(1, targets).mean().neg()
    }
}

impl<H: ContractHost> Batches<H> for Setting<'_> {
    fn count(&self) -> usize {
        1
    }
    fn tokens(&self, _index: usize) -> Tokens {
        let ones = Tensor::ones(self.ids::<H>().dims(), &self.device.clone().autodiff());
        Tokens {
            real: ones.clone(),
            learned: ones,
        }
    }
    fn loss(&self, _index: usize, model: &Adapted<H>) -> Tensor<1> {
        self.loss(model)
    }
}

fn base_output<M: MethodConfig, H: ContractHost>(setting: &Setting<'_>, method: &M) -> TensorData {
    setting.output(&setting.base::<M, H>(method))
}

/// The method that does nothing.
#[derive(Debug)]
struct Untouched;

impl Method for Untouched {
    fn parameters(&self, _geometry: &crate::geometry::Geometry) -> usize {
        0
    }
}

/// The model's output right after the method was put in is what the method declares it to be.
pub fn identity_at_init<M: MethodConfig, H: ContractHost>(setting: &Setting<'_>) {
    for method in setting.examples::<M>() {
        let base = base_output::<M, H>(setting, &method);
        let start = setting.output(&setting.adapted::<M, H>(&method));
        let distance = relative_distance(&start, &base);
        match M::INFO.start {
            Start::Identity => {
                assert!(
                    distance < 1e-5,
                    "{method:?} starts {distance} away from the base"
                );
            }
            Start::Near(limit) => {
                assert!(
                    distance < limit,
                    "{method:?} starts {distance} away from the base"
                );
            }
            Start::Elsewhere(reason) => assert!(
                distance > 1e-5 && distance.is_finite(),
                "{method:?} declares another start ({reason}) but starts at the base"
            ),
        }
    }
}

/// Exactly the declared parameters receive gradients and move; all others stay bit for bit.
pub fn only_declared_parameters_train<M: MethodConfig, H: ContractHost>(setting: &Setting<'_>) {
    for method in setting.examples::<M>() {
        let model = perturbed(setting.adapted::<M, H>(&method), 0.05);
        let geometry = model.host.geometry();
        let before = all_floats(&model);
        let grads = GradientsParams::from_grads(setting.loss(&model).backward(), &model);
        let trained = state::parameters(&model)
            .iter()
            .filter(|row| row.trainable)
            .count();
        assert!(
            trained > 0 && grads.len() == trained,
            "{} of {trained} have gradients",
            grads.len()
        );
        for param in &geometry.params {
            let row = state::parameters(&model)
                .into_iter()
                .find(|row| row.id == param.id);
            if let Some(row) = row {
                assert_eq!(
                    row.trainable,
                    method.trains(param),
                    "{method:?}: `{}`",
                    param.name
                );
            }
        }
        let model = AdamWConfig::new().init().step(0.01, model, grads);
        for (name, trainable, data) in all_floats(&model) {
            let (_, _, old) = before
                .iter()
                .find(|row| row.0 == name)
                .expect("the same tree");
            assert_eq!(
                data != *old,
                trainable,
                "{method:?}: `{name}`, trained: {trainable}"
            );
        }
    }
}

/// The number of trained parameters is the method's closed form.
pub fn count_equals_closed_form<M: MethodConfig, H: ContractHost>(setting: &Setting<'_>) {
    for method in setting.examples::<M>() {
        let model = setting.adapted::<M, H>(&method);
        let geometry = model.host.geometry();
        let counted = state::trainable_parameters(&model);
        // A method may find its ranks in the data.
        let looked = setting.looked::<M, H>(&method);
        let closed_form = match &looked {
            Some(looked) => looked.method.parameters(&geometry),
            None => method.parameters(&geometry),
        };
        assert_eq!(
            counted, closed_form,
            "{method:?}: {counted} values are trained, `parameters` says {closed_form}"
        );
    }
}

/// Where the method merges, the merged model computes the same; where it does not, it says so.
pub fn merge_preserves_the_output<M: MethodConfig, H: ContractHost>(setting: &Setting<'_>) {
    for method in setting.examples::<M>() {
        let model = perturbed(setting.adapted::<M, H>(&method), 0.05);
        let output = setting.output(&model);
        let merged = model.valid().merge();
        assert!(
            merged.is_some() || !M::INFO.mergeable,
            "{method:?} has no `merge`, though `INFO.mergeable` is true"
        );
        assert!(
            merged.is_none() || M::INFO.mergeable,
            "{method:?} merges, though `INFO.mergeable` is false"
        );
        let Some(host) = merged else { continue };
        let distance = relative_distance(&setting.output(&Adapted::plain(host)), &output);
        assert!(
            distance < 1e-4,
            "{method:?} is {distance} off after merging"
        );
    }
}

/// With what follows from the parameters alone computed once, the model computes the same.
pub fn steady_it_computes_the_same<M: MethodConfig, H: ContractHost>(setting: &Setting<'_>) {
    for method in setting.examples::<M>() {
        let model = perturbed(setting.adapted::<M, H>(&method), 0.05);
        let steady = setting.output(&model.valid().steady());
        let distance = relative_distance(&steady, &setting.output(&model));
        assert!(distance < 1e-5, "{method:?} is {distance} off when steady");
    }
}

/// A model without what the method put into its layers has nothing of it left in them, and computes
/// what the base does where the method trains nothing else.
pub fn left_out_of_a_layer_it_leaves_nothing<M: MethodConfig, H: ContractHost>(
    setting: &Setting<'_>,
) {
    for method in setting.examples::<M>() {
        let model = perturbed(setting.adapted::<M, H>(&method), 0.05);
        let geometry = model.host.geometry();
        let bare = model.without_layers(&(0..geometry.layers).collect());
        let elsewhere = |name: &str| {
            let mut parts = name.split('.');
            parts.any(|part| ["lookup", "ends", "shared"].contains(&part))
        };
        let rows = state::parameters(&bare);
        let base = state::parameters(&setting.base::<M, H>(&method));
        for row in &rows {
            let of_the_base = base.iter().any(|param| param.name == row.name);
            assert!(
                of_the_base || elsewhere(&row.name),
                "{method:?}: `{}` is left; has its projection a `base`?",
                row.name
            );
        }
        if rows.iter().any(|row| row.trainable) {
            continue; // Of the base, or on the embedding, where layers do not matter.
        }
        if matches!(M::INFO.start, Start::Elsewhere(_)) && method.storage().is_some() {
            continue; // The frozen weights are packed otherwise than the base's.
        }
        let distance = relative_distance(
            &setting.output(&bare),
            &base_output::<M, H>(setting, &method),
        );
        assert!(distance < 1e-5, "{method:?} leaves {distance} behind");
    }
}

/// The trained parameters alone, put into a fresh model, give the same output bit for bit.
pub fn saved_alone_and_restored<M: MethodConfig, H: ContractHost>(setting: &Setting<'_>) {
    for method in setting.examples::<M>() {
        let model = perturbed(setting.adapted::<M, H>(&method), 0.05);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("adapter.safetensors");
        state::save(&state::trained_tensors(&model), Default::default(), &file).expect("saved");
        let tensors = state::load(&file).expect("loaded");
        let fresh = state::restore(setting.reopened::<M, H>(&method), tensors, "adapter")
            .unwrap_or_else(|e| panic!("{method:?}: {e}"));
        assert_eq!(setting.output(&fresh), setting.output(&model), "{method:?}");
    }
}

/// Thirty steps of AdamW on one batch lower the loss.
pub fn loss_falls<M: MethodConfig, H: ContractHost>(setting: &Setting<'_>) {
    for method in setting.examples::<M>() {
        let mut model = setting.adapted::<M, H>(&method);
        let mut optimizer = AdamWConfig::new().init();
        let first: f32 = setting.loss(&model).into_scalar();
        for _ in 0..30 {
            let grads = GradientsParams::from_grads(setting.loss(&model).backward(), &model);
            model = optimizer.step(0.02, model, grads);
        }
        let last: f32 = setting.loss(&model).into_scalar();
        assert!(
            last < first * 0.995,
            "{method:?}: the loss went from {first} to {last} in thirty steps"
        );
    }
}

/// A misspelt key is an error that names it.
pub fn unknown_keys_are_rejected<M: MethodConfig>() {
    let mut config = serde_json::to_value(&M::examples()[0]).expect("a configuration serialises");
    config
        .as_object_mut()
        .expect("a table")
        .insert("no_such_key".into(), 1.into());
    let error = serde_json::from_value::<M>(config)
        .expect_err("the key is unknown")
        .to_string();
    assert!(error.contains("no_such_key"), "{error}");
}

/// Where the method has targets, one that matches nothing is an error that names it.
pub fn targets_that_match_nothing_are_an_error<M: MethodConfig, H: ContractHost>(
    setting: &Setting<'_>,
) {
    let mut config = serde_json::to_value(&M::examples()[0]).expect("a configuration serialises");
    let table = config.as_object_mut().expect("a table");
    if !table.contains_key("targets") {
        return;
    }
    table.insert("targets".into(), serde_json::json!(["no_such_layer"]));
    let method: M = serde_json::from_value(config).expect("targets is a known key");
    let error = setting
        .try_adapted::<M, H>(&method)
        .expect_err("no layer has that name");
    assert!(error.to_string().contains("no_such_layer"), "{error}");
}

/// Adds noise to every trained parameter, so that nothing hides behind a zero start.
pub fn perturbed<H: Host>(model: Adapted<H>, std: f64) -> Adapted<H> {
    struct Noise(f64, u64);
    impl ModuleMapper for Noise {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if !param.is_require_grad() {
                return param;
            }
            self.1 += 1;
            let noise = Init::new(self.1, &param.val().device()).normal(param.dims(), self.0);
            param.map(|value| (value.detach() + noise).detach().require_grad())
        }
    }
    model.map(&mut Noise(std, 100))
}

fn all_floats<M: Module>(module: &M) -> Vec<(String, bool, TensorData)> {
    struct Collector(Vec<String>, Vec<(String, bool, TensorData)>);
    impl burn::module::ModuleVisitor for Collector {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.0.push(name.into());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.push((
                self.0.join("."),
                param.is_require_grad(),
                param.val().into_data(),
            ));
        }
    }
    let mut collector = Collector(Vec::new(), Vec::new());
    module.visit(&mut collector);
    collector.1
}

/// `|a - b| / |b|` in the Euclidean norm.
pub fn relative_distance(a: &TensorData, b: &TensorData) -> f64 {
    let (a, b): (Vec<f32>, Vec<f32>) = (
        a.try_to_vec().expect("floats"),
        b.try_to_vec().expect("floats"),
    );
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(&b).map(|(x, y)| f64::from(x - y)));
    difference / norm(&mut b.iter().map(|y| f64::from(*y))).max(1e-30)
}

/// Makes one test per claim of the contract for a method, on the toy model, on both CPU backends.
#[macro_export]
macro_rules! contract_tests {
    ($method:ty) => {
        $crate::contract_tests!(@device flex, $method);
        $crate::contract_tests!(@device ndarray, $method);

        #[test]
        fn unknown_keys_are_rejected() {
            $crate::contract::unknown_keys_are_rejected::<$method>();
        }
    };
    (@device $device:ident, $method:ty) => {
        mod $device {
            #[allow(unused_imports)]
            use super::*;
            use $crate::contract::{self, Setting};
            use $crate::toy::Toy;

            fn setting() -> Setting<'static> {
                Setting::dense($crate::device(match stringify!($device) {
                    "flex" => "cpu",
                    other => other,
                }).expect("a CPU device"))
            }
            $crate::contract_tests!(@claims $method:
                identity_at_init, only_declared_parameters_train, count_equals_closed_form,
                merge_preserves_the_output, steady_it_computes_the_same,
                left_out_of_a_layer_it_leaves_nothing, saved_alone_and_restored, loss_falls,
                targets_that_match_nothing_are_an_error);
        }
    };
    (@claims $method:ty: $($claim:ident),*) => {
        $(#[test]
        fn $claim() {
            contract::$claim::<$method, Toy>(&setting());
        })*
    };
}

/// Random values on a device, for tests: others with every call, and the same whenever a test, which
/// has a thread of its own, is run again.
pub fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    thread_local! {
        static CALLS: Cell<u64> = const { Cell::new(1000) };
    }
    let call = CALLS.replace(CALLS.get() + 1);
    Init::new(call, device).normal(shape, 1.0)
}
