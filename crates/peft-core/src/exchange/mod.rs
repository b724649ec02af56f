//! Adapters in the formats of other programs: which of our tensors is which of theirs.
//!
//! Every parameter of an adapted model has a *place*: `transformer.h.0.attn.c_attn/a` on a linear
//! layer, `bert.encoder.layer.0.output/adapter.down` on a sublayer, `layer.0.attention/keys` in an
//! attention core, `ends/f.down` at the ends of the body, `shared/a`, or the plain checkpoint name of a base parameter. A method states
//! one [`Rule`] per tensor; reading and writing both follow from it.

mod fields;
mod places;
mod targets;

use burn::tensor::TensorData;
use serde_json::{Map, Value};

use crate::error::CoreError;
use crate::state::Tensors;

pub use fields::Fields;
pub(crate) use places::{Place, places};
pub use places::{collect, restore};
pub use targets::{
    path_ends_with, peft_names, peft_targets, resolve_modules, resolve_pattern, resolve_targets,
};

/// How another program keeps a method: its configuration fields and its tensors.
#[derive(Clone, Debug, Default)]
pub struct Foreign {
    /// Fields of its configuration file, those every method has left out.
    pub fields: Map<String, Value>,
    /// Its tensors.
    pub rules: Vec<Rule>,
}

/// One of our tensors and where another program keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Our place.
    pub place: String,
    /// Their key.
    pub key: String,
    /// How theirs is made from ours.
    pub form: Form,
    /// Whether a file may leave it out; what the model holds stays then.
    pub optional: bool,
}

/// How a tensor of theirs is made from one of ours.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// The same values in the same shape.
    AsIs,
    /// The transposed matrix.
    Transposed,
    /// The same values in another shape.
    Shaped {
        /// Ours.
        ours: Vec<usize>,
        /// Theirs.
        theirs: Vec<usize>,
    },
    /// Neighbouring columns of a matrix that several places share.
    Columns(Columns),
    /// Likewise of a matrix they keep as one vector, row by row.
    FlatColumns(Columns),
    /// The diagonal of a matrix another place holds the rest of; its rule comes before this one.
    Diagonal {
        /// Their matrix.
        shape: [usize; 2],
    },
}

/// Neighbouring columns of a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Columns {
    /// The first column.
    pub start: usize,
    /// How many.
    pub count: usize,
    /// Width of their matrix.
    pub width: usize,
}

impl Foreign {
    /// Fields given as a JSON table, and rules.
    ///
    /// # Panics
    /// If the fields are no table.
    pub fn new(fields: Value, rules: Vec<Rule>) -> Self {
        match fields {
            Value::Object(fields) => Self { fields, rules },
            other => panic!("{other} is no table"),
        }
    }
}

impl Rule {
    /// The same values in the same shape.
    pub fn as_is(place: impl Into<String>, key: impl Into<String>) -> Self {
        Self::new(place, key, Form::AsIs)
    }

    /// The transposed matrix.
    pub fn transposed(place: impl Into<String>, key: impl Into<String>) -> Self {
        Self::new(place, key, Form::Transposed)
    }

    /// Any form.
    pub fn new(place: impl Into<String>, key: impl Into<String>, form: Form) -> Self {
        let (place, key) = (place.into(), key.into());
        Self {
            place,
            key,
            form,
            optional: false,
        }
    }

    /// The rule for a tensor a file may leave out.
    #[must_use]
    pub fn optional(self) -> Self {
        Self {
            optional: true,
            ..self
        }
    }
}

/// Our tensors by place as their tensors by key.
///
/// # Errors
/// If a place of the rules is not among the tensors.
pub fn export(ours: &Tensors, rules: &[Rule]) -> Result<Tensors, CoreError> {
    let mut theirs = Tensors::new();
    for rule in rules {
        let Some(data) = ours.get(&rule.place) else {
            return Err(CoreError::Mismatch {
                file: "the adapter".into(),
                problems: vec![format!("missing `{}`", rule.place)],
            });
        };
        match &rule.form {
            Form::AsIs => drop(theirs.insert(rule.key.clone(), data.clone())),
            Form::Transposed => drop(theirs.insert(rule.key.clone(), transposed(data))),
            Form::Shaped { theirs: shape, .. } => {
                let data = TensorData::new(floats(data), shape.clone());
                theirs.insert(rule.key.clone(), data);
            }
            Form::Columns(columns) | Form::FlatColumns(columns) => {
                let rows = data.shape()[0];
                let flat = matches!(rule.form, Form::FlatColumns(_));
                let shape = match flat {
                    true => vec![rows * columns.width],
                    false => vec![rows, columns.width],
                };
                let whole = theirs
                    .remove(&rule.key)
                    .unwrap_or_else(|| TensorData::zeros::<f32, _>(shape));
                theirs.insert(rule.key.clone(), with_columns(whole, data, *columns));
            }
            Form::Diagonal { shape } => {
                let whole = theirs
                    .remove(&rule.key)
                    .unwrap_or_else(|| TensorData::zeros::<f32, _>(*shape));
                theirs.insert(rule.key.clone(), with_diagonal(whole, data));
            }
        }
    }
    Ok(theirs)
}

/// Their tensors by key as our tensors by place. `file` names their source in errors.
///
/// # Errors
/// Lists every tensor that is missing, left over, or cannot have the form its rule says.
pub fn import(theirs: Tensors, rules: &[Rule], file: &str) -> Result<Tensors, CoreError> {
    let (mut ours, mut problems) = (Tensors::new(), Vec::new());
    for rule in rules {
        let Some(data) = theirs.get(&rule.key) else {
            if !rule.optional {
                problems.push(format!("missing `{}`", rule.key));
            }
            continue;
        };
        match inverted(data, &rule.form) {
            Ok(data) => drop(ours.insert(rule.place.clone(), data)),
            Err(reason) => problems.push(format!("`{}` {reason}", rule.key)),
        }
    }
    let known = |key: &String| rules.iter().any(|rule| rule.key == *key);
    let extra = theirs.keys().filter(|key| !known(key));
    problems.extend(extra.map(|key| format!("`{key}` has no place in the model")));
    if problems.is_empty() {
        return Ok(ours);
    }
    Err(CoreError::Mismatch {
        file: file.into(),
        problems,
    })
}

fn inverted(data: &TensorData, form: &Form) -> Result<TensorData, String> {
    let shape = data.shape().to_vec();
    match form {
        Form::AsIs => Ok(data.clone()),
        Form::Transposed if shape.len() == 2 => Ok(transposed(data)),
        Form::Transposed => Err(format!("has shape {shape:?}, expected a matrix")),
        Form::Shaped { ours, theirs } if *theirs == shape => {
            Ok(TensorData::new(floats(data), ours.clone()))
        }
        Form::Shaped { theirs, .. } => Err(format!("has shape {shape:?}, expected {theirs:?}")),
        Form::Columns(columns) if shape.len() == 2 && shape[1] == columns.width => {
            Ok(columns_of(data, *columns))
        }
        Form::FlatColumns(columns)
            if shape.len() == 1 && shape[0].is_multiple_of(columns.width) =>
        {
            Ok(columns_of(data, *columns))
        }
        Form::Columns(Columns { width, .. }) => {
            Err(format!("has shape {shape:?}, expected [n, {width}]"))
        }
        Form::FlatColumns(Columns { width, .. }) => Err(format!(
            "has shape {shape:?}, expected a multiple of {width}"
        )),
        Form::Diagonal { shape: expected } if shape == expected => {
            let (values, step) = (floats(data), shape[1] + 1);
            let diagonal: Vec<f32> = values.into_iter().step_by(step).collect();
            let count = shape[0].min(shape[1]);
            Ok(TensorData::new(diagonal[..count].to_vec(), [count]))
        }
        Form::Diagonal { shape: expected } => {
            Err(format!("has shape {shape:?}, expected {expected:?}"))
        }
    }
}

/// A tensor's values as 32-bit floats.
fn floats(data: &TensorData) -> Vec<f32> {
    let data = data.clone().convert::<f32>();
    data.try_to_vec().expect("converted to f32")
}

fn transposed(data: &TensorData) -> TensorData {
    let [rows, columns] = data.shape()[..] else {
        panic!(
            "only matrices are transposed, this has shape {:?}",
            data.shape()
        );
    };
    let values = floats(data);
    let values = (0..rows * columns).map(|i| values[i % rows * columns + i / rows]);
    TensorData::new(values.collect::<Vec<_>>(), [columns, rows])
}

fn columns_of(data: &TensorData, columns: Columns) -> TensorData {
    let Columns {
        start,
        count,
        width,
    } = columns;
    let values = floats(data);
    let rows = values.chunks(width);
    let part: Vec<f32> = rows
        .flat_map(|row| row[start..start + count].to_vec())
        .collect();
    let rows = part.len() / count;
    TensorData::new(part, [rows, count])
}

fn with_columns(whole: TensorData, part: &TensorData, columns: Columns) -> TensorData {
    let Columns {
        start,
        count,
        width,
    } = columns;
    let shape = whole.shape().to_vec();
    let (mut whole, part) = (floats(&whole), floats(part));
    for (row, part) in whole.chunks_mut(width).zip(part.chunks(count)) {
        row[start..start + count].copy_from_slice(part);
    }
    TensorData::new(whole, shape)
}

fn with_diagonal(whole: TensorData, diagonal: &TensorData) -> TensorData {
    let shape = whole.shape().to_vec();
    let (mut whole, step) = (floats(&whole), shape[1] + 1);
    for (at, value) in whole.iter_mut().step_by(step).zip(floats(diagonal)) {
        *at = value;
    }
    TensorData::new(whole, shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize) -> TensorData {
        let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        TensorData::new(values, [rows, columns])
    }

    fn rules() -> Vec<Rule> {
        let columns = |place: &str, start, count| {
            let columns = Columns {
                start,
                count,
                width: 5,
            };
            Rule::new(place, "both", Form::Columns(columns))
        };
        vec![
            Rule::transposed("q/a", "q.lora_A"),
            columns("keys", 0, 2),
            columns("values", 2, 3),
            Rule::new(
                "v/l",
                "v.ia3_l",
                Form::Shaped {
                    ours: vec![4],
                    theirs: vec![4, 1],
                },
            ),
        ]
    }

    fn ours() -> Tensors {
        let line = TensorData::new(vec![1f32, 2.0, 3.0, 4.0], [4]);
        Tensors::from([
            ("q/a".into(), matrix(2, 3)),
            ("keys".into(), matrix(4, 2)),
            ("values".into(), matrix(4, 3)),
            ("v/l".into(), line),
        ])
    }

    #[test]
    fn what_is_exported_comes_back_the_same() {
        let theirs = export(&ours(), &rules()).unwrap();
        assert_eq!(theirs["q.lora_A"].shape().to_vec(), [3, 2]);
        assert_eq!(theirs["both"].shape().to_vec(), [4, 5]);
        assert_eq!(import(theirs, &rules(), "x").unwrap(), ours());
    }

    #[test]
    fn a_diagonal_goes_into_the_matrix_and_comes_out_of_it() {
        for (rows, columns) in [(2, 3), (3, 2)] {
            let form = Form::Diagonal {
                shape: [rows, columns],
            };
            let rules = [
                Rule::as_is("rest", "whole"),
                Rule::new("signs", "whole", form),
            ];
            let signs = TensorData::new(vec![-1f32, 7.0], [2]);
            let ours = Tensors::from([
                ("rest".into(), matrix(rows, columns)),
                ("signs".into(), signs.clone()),
            ]);
            let theirs = export(&ours, &rules).unwrap();
            let mut expected = floats(&matrix(rows, columns));
            (expected[0], expected[columns + 1]) = (-1.0, 7.0);
            assert_eq!(floats(&theirs["whole"]), expected);
            assert_eq!(import(theirs, &rules, "x").unwrap()["signs"], signs);
        }
    }

    #[test]
    fn missing_extra_and_misshapen_tensors_are_listed_together() {
        let mut theirs = export(&ours(), &rules()).unwrap();
        theirs.remove("q.lora_A");
        theirs.insert("both".into(), matrix(4, 6));
        theirs.insert("stranger".into(), matrix(1, 1));
        let error = import(theirs, &rules(), "x.safetensors")
            .unwrap_err()
            .to_string();
        for part in [
            "missing `q.lora_A`",
            "`both` has shape [4, 6]",
            "`stranger`",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn an_optional_tensor_may_be_missing() {
        let rules = [Rule::as_is("head", "head").optional()];
        assert!(import(Tensors::new(), &rules, "x").unwrap().is_empty());
    }
}
