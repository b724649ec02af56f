use super::*;
use crate::contract::ContractHost;
use crate::exchange::restore;
use crate::geometry::BaseParam;
use crate::state::{self, Tensors};
use crate::toy::Toy;
use burn::tensor::{Int, activation::log_softmax};

fn device() -> Device {
    Device::flex().autodiff()
}

fn toy() -> Toy {
    Toy::build(&mut Init::new(7, &device()))
}

/// Two texts a batch, of which every next token is to be learned.
struct Texts(Vec<[[i32; 4]; 2]>);

fn texts() -> Texts {
    Texts(vec![
        [[1, 5, 2, 9], [7, 7, 0, 12]],
        [[3, 1, 4, 1], [5, 9, 2, 6]],
        [[8, 10, 11, 2], [6, 0, 3, 3]],
    ])
}

impl Batches<Toy> for Texts {
    fn count(&self) -> usize {
        self.0.len()
    }
    fn tokens(&self, index: usize) -> Tokens {
        let real = Tensor::full([2, 4], index as f64, &device());
        Tokens {
            learned: real.clone(),
            real,
        }
    }
    fn loss(&self, index: usize, model: &Adapted<Toy>) -> Tensor<1> {
        let ids = Tensor::<2, Int>::from_data(self.0[index], &device());
        let next = ids.clone().narrow(1, 1, 3).unsqueeze_dim::<3>(2);
        let logits = Toy::logits(model, ids).narrow(1, 0, 3);
        log_softmax(logits, 2).gather(2, next).mean().neg()
    }
}

/// Trains the norms, after a look that leaves what it saw to the test.
#[derive(Debug, Default)]
struct Norms {
    inputs: Mutex<Vec<(String, TensorData, f32)>>,
    slopes: Mutex<Vec<Slope>>,
}

/// What is put into the model to try.
#[derive(Debug)]
struct TrainsNorms;

impl Method for TrainsNorms {
    fn trains(&self, param: &BaseParam) -> bool {
        param.name.contains("norm")
    }
    fn parameters(&self, geometry: &Geometry) -> usize {
        geometry.count(|param| self.trains(param))
    }
}

impl Method for Norms {
    fn looks_at(&self) -> usize {
        3
    }
    fn look(
        &self,
        _geometry: &Geometry,
        preview: &dyn Preview,
    ) -> Result<Option<Looked>, CoreError> {
        let targets = Targets::Many(vec!["query".into(), "value".into()]);
        preview.inputs(&targets, &mut |input| {
            let batch = input.tokens.real.clone().max().into_scalar::<f32>();
            let seen = (input.site.path.clone(), input.x.into_data(), batch);
            self.inputs.lock().unwrap().push(seen);
            Ok(())
        })?;
        *self.slopes.lock().unwrap() = preview.slopes(&TrainsNorms)?;
        Ok(None)
    }
    fn parameters(&self, _geometry: &Geometry) -> usize {
        0
    }
}

fn looked() -> Norms {
    let method = Norms::default();
    let found = look(&toy(), &method, None, &texts(), (3, &device())).unwrap();
    assert!(found.is_none());
    method
}

fn floats(data: &TensorData) -> Vec<f32> {
    data.iter::<f32>().collect()
}

#[test]
fn a_look_shows_what_goes_into_the_targets_batch_by_batch_in_order_of_use() {
    let inputs = looked().inputs.into_inner().unwrap();
    let order: Vec<_> = inputs
        .iter()
        .map(|(path, _, batch)| (&**path, *batch))
        .collect();
    let of_batch = |batch: f32| {
        let layers = ["layers.0", "layers.1"].into_iter();
        layers
            .flat_map(move |at| ["query", "value"].map(|name| (format!("{at}.attn.{name}"), batch)))
    };
    let expected: Vec<_> = [0.0, 1.0, 2.0].into_iter().flat_map(of_batch).collect();
    let expected: Vec<_> = expected
        .iter()
        .map(|(path, batch)| (&**path, *batch))
        .collect();
    assert_eq!(order, expected);

    // What goes into the first query is a token's row of the table, normalised.
    let params = state::float_tensors(&toy());
    let find = |end: &str| {
        floats(
            params
                .iter()
                .find(|(name, _)| name.ends_with(end))
                .unwrap()
                .1,
        )
    };
    let (table, gamma, beta) = (
        find("embedding"),
        find("layers.0.norm_1.gamma"),
        find("layers.0.norm_1.beta"),
    );
    for (index, texts) in texts().0.iter().enumerate() {
        let seen = floats(&inputs[4 * index].1);
        for (token, id) in texts.iter().flatten().enumerate() {
            let row = &table[*id as usize * 8..][..8];
            let mean = row.iter().sum::<f32>() / 8.0;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 8.0;
            for (at, value) in row.iter().enumerate() {
                let normal = (value - mean) / (variance + 1e-5).sqrt() * gamma[at] + beta[at];
                assert!((seen[8 * token + at] - normal).abs() < 1e-4);
            }
        }
    }
}

#[test]
fn slopes_are_the_gradients_of_the_mean_loss_over_the_batches() {
    let slopes = looked().slopes.into_inner().unwrap();
    // Two layers of two norms with two parameters each.
    assert_eq!(slopes.len(), 8);
    let texts = texts();
    let loss = |place: &str, value: Vec<f32>| -> f64 {
        let model = adapt(toy(), &TrainsNorms, None, &mut Init::new(3, &device())).unwrap();
        let data = TensorData::new(value, [8]);
        let model = restore(model, Tensors::from([(place.to_string(), data)]), "x").unwrap();
        let losses = (0..3).map(|index| texts.loss(index, &model).into_scalar::<f32>());
        losses.map(f64::from).sum::<f64>() / 3.0
    };
    for slope in &slopes {
        for at in [0, 5] {
            let moved = |by: f32| {
                let mut value = floats(&slope.value);
                value[at] += by;
                loss(&slope.place, value)
            };
            let difference = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            let found = f64::from(floats(&slope.gradient)[at]);
            assert!(
                (found - difference).abs() < 2e-3 + 0.02 * difference.abs(),
                "{}: {found}, by differences {difference}",
                slope.place
            );
        }
    }
    let largest = slopes.iter().flat_map(|slope| floats(&slope.gradient));
    assert!(largest.fold(0f32, |max, v| max.max(v.abs())) > 0.01);
}

#[test]
fn without_a_batch_there_is_nothing_to_start_from() {
    let none = Texts(Vec::new());
    let run = (3, &device());
    let error = look(&toy(), &Norms::default(), None, &none, run).unwrap_err();
    assert!(error.to_string().contains("`batches` is 0"), "{error}");
    // Whoever does not look does not miss them.
    assert!(
        look(&toy(), &TrainsNorms, None, &none, run)
            .unwrap()
            .is_none()
    );
}
