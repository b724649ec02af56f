//! The parameters of a module as a flat list: counted, saved, restored.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::buffer::BUFFER;
use crate::error::CoreError;

/// One parameter of a module.
#[derive(Clone, Debug)]
pub struct ParamRow {
    /// Path of the parameter in the module tree.
    pub name: String,
    /// Identity.
    pub id: ParamId,
    /// Shape.
    pub shape: Vec<usize>,
    /// Whether it is trained. Meaningful on a module in training mode.
    pub trainable: bool,
    /// Whether it is a [`Buffer`](crate::buffer::Buffer)'s.
    pub buffer: bool,
    /// Bytes of its values in memory.
    pub bytes: usize,
}

impl ParamRow {
    /// Number of values.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether an adapter is saved by it.
    pub fn is_saved(&self) -> bool {
        self.trainable || self.buffer
    }
}

/// Every parameter of the module, packed codes and scales included.
pub fn parameters<M: Module>(module: &M) -> Vec<ParamRow> {
    let mut lister = Lister::default();
    module.visit(&mut lister);
    lister.rows
}

/// Number of trained values. Call it on a module in training mode.
pub fn trainable_parameters<M: Module>(module: &M) -> usize {
    parameters(module)
        .iter()
        .filter(|row| row.trainable)
        .map(ParamRow::numel)
        .sum()
}

#[derive(Default)]
struct Lister {
    path: Vec<String>,
    /// For every component of the path, whether it lies in a buffer.
    buffers: Vec<bool>,
    rows: Vec<ParamRow>,
}

impl Lister {
    fn push(&mut self, id: ParamId, shape: Vec<usize>, trainable: bool, dtype: DType) {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        self.rows.push(ParamRow {
            name: self.path.join("."),
            id,
            shape,
            trainable,
            buffer: self.buffers.last() == Some(&true),
            bytes,
        });
    }
}

impl ModuleVisitor for Lister {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push(name.into());
        self.buffers.push(container_type == BUFFER);
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
        self.buffers.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let trainable = param.is_require_grad();
        self.push(
            param.id,
            param.lazy_shape().to_vec(),
            trainable,
            param.val().dtype(),
        );
    }
    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.push(
            param.id,
            param.lazy_shape().to_vec(),
            false,
            param.val().dtype(),
        );
    }
    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.push(
            param.id,
            param.lazy_shape().to_vec(),
            false,
            param.val().dtype(),
        );
    }
}

/// Named tensors, as they are kept in a safetensors file.
pub type Tensors = BTreeMap<String, TensorData>;

/// The values an adapter is saved by: its trained parameters and its buffers. Call it on a module
/// in training mode.
pub fn trained_tensors<M: Module>(module: &M) -> Tensors {
    let rows = parameters(module).into_iter();
    tensors_of(
        module,
        &rows.filter(ParamRow::is_saved).map(|row| row.id).collect(),
    )
}

/// The values of every floating-point parameter, trained or not.
pub fn float_tensors<M: Module>(module: &M) -> Tensors {
    let rows = parameters(module).into_iter();
    tensors_of(module, &rows.map(|row| row.id).collect())
}

/// The values of the floating-point parameters that `wanted` picks. Call it on a module in training
/// mode.
pub fn tensors_where<M: Module>(module: &M, wanted: impl Fn(&ParamRow) -> bool) -> Tensors {
    let rows = parameters(module).into_iter();
    tensors_of(module, &rows.filter(wanted).map(|row| row.id).collect())
}

/// The values of these floating-point parameters.
pub fn tensors_of<M: Module>(module: &M, wanted: &HashSet<ParamId>) -> Tensors {
    struct Collector<'a> {
        path: Vec<String>,
        wanted: &'a HashSet<ParamId>,
        tensors: Tensors,
    }
    impl ModuleVisitor for Collector<'_> {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.into());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.wanted.contains(&param.id) {
                let data = param.val().into_data();
                self.tensors.insert(self.path.join("."), data);
            }
        }
    }
    let mut collector = Collector {
        path: Vec::new(),
        wanted,
        tensors: Tensors::new(),
    };
    module.visit(&mut collector);
    collector.tensors
}

/// Puts values in place of parameters of these names, trained or not. `file` names their source in
/// errors.
///
/// # Errors
/// Lists every tensor that no parameter is called after, or of another shape; nothing is changed
/// then.
pub fn set<M: Module>(module: M, tensors: Tensors, file: &str) -> Result<M, CoreError> {
    let names: Vec<String> = tensors.keys().cloned().collect();
    let rows = parameters(&module).into_iter();
    let wanted = rows.filter(|row| names.contains(&row.name)).collect();
    put(module, wanted, tensors, file)
}

/// Puts saved values back in place of the trained parameters and the buffers. `file` names their source in errors.
///
/// # Errors
/// Lists every tensor that is missing, left over or of another shape; nothing is changed then.
pub fn restore<M: Module>(module: M, tensors: Tensors, file: &str) -> Result<M, CoreError> {
    let rows = parameters(&module).into_iter();
    let saved = rows.filter(ParamRow::is_saved).collect();
    put(module, saved, tensors, file)
}

/// Puts values in place of exactly these parameters.
fn put<M: Module>(
    module: M,
    wanted: Vec<ParamRow>,
    tensors: Tensors,
    file: &str,
) -> Result<M, CoreError> {
    let mut left = tensors;
    let mut values = HashMap::new();
    let mut problems = Vec::new();
    for row in wanted {
        match left.remove(&row.name) {
            None => problems.push(format!("missing `{}` {:?}", row.name, row.shape)),
            Some(data) if data.shape().to_vec() != row.shape => problems.push(format!(
                "`{}` has shape {:?}, the model wants {:?}",
                row.name,
                data.shape().to_vec(),
                row.shape
            )),
            Some(data) => {
                values.insert(row.id, data);
            }
        }
    }
    problems.extend(
        left.keys()
            .map(|name| format!("`{name}` is not trained in this model")),
    );
    if !problems.is_empty() {
        return Err(CoreError::Mismatch {
            file: file.into(),
            problems,
        });
    }
    Ok(module.map(&mut Restorer(values)))
}

struct Restorer(HashMap<ParamId, TensorData>);

impl ModuleMapper for Restorer {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(data) = self.0.remove(&param.id) else {
            return param;
        };
        param.map(|old| {
            let tracked = old.is_require_grad();
            Tensor::from_data(data, &old.device()).set_require_grad(tracked)
        })
    }
}

/// Writes tensors as a safetensors file, whole or not at all.
///
/// # Errors
/// If the folder cannot be written, or a tensor has a type safetensors has no name for.
pub fn save(
    tensors: &Tensors,
    metadata: BTreeMap<String, String>,
    file: &Path,
) -> Result<(), CoreError> {
    let views = tensors
        .iter()
        .map(|(name, data)| Ok((name.as_str(), view(name, data, file)?)))
        .collect::<Result<Vec<_>, CoreError>>()?;
    let metadata: HashMap<_, _> = metadata.into_iter().collect();
    let bytes =
        safetensors::serialize(views, (!metadata.is_empty()).then_some(metadata)).map_err(|e| {
            CoreError::Safetensors {
                file: file.into(),
                reason: e.to_string(),
            }
        })?;
    write_atomically(file, &bytes)
}

/// Writes a file under a temporary name and renames it, so that a reader never sees half of it.
///
/// # Errors
/// If the folder cannot be written.
pub fn write_atomically(file: &Path, bytes: &[u8]) -> Result<(), CoreError> {
    let folder = file
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
        std::io::Write::write_all(&mut temporary, bytes)?;
        temporary.as_file().sync_all()?;
        #[cfg(unix)]
        {
            // A temporary file is private to its owner; results are meant to be shared.
            use std::os::unix::fs::PermissionsExt;
            temporary
                .as_file()
                .set_permissions(std::fs::Permissions::from_mode(0o644))?;
        }
        temporary.persist(file).map_err(|e| e.error)?;
        Ok(())
    };
    write().map_err(|source| CoreError::io(file, source))
}

fn view<'a>(name: &str, data: &'a TensorData, file: &Path) -> Result<TensorView<'a>, CoreError> {
    let error = |reason: String| CoreError::Safetensors {
        file: file.into(),
        reason,
    };
    let dtype = match data.dtype() {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F64 => Dtype::F64,
        DType::U8 => Dtype::U8,
        DType::I8 => Dtype::I8,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        other => {
            return Err(error(format!(
                "`{name}` has type {other:?}, which is not saved"
            )));
        }
    };
    TensorView::new(dtype, data.shape().to_vec(), data.as_bytes()).map_err(|e| error(e.to_string()))
}

/// Reads every tensor of a safetensors file; 16-bit floats become 32-bit.
///
/// # Errors
/// If the file cannot be read, is damaged, or holds a type that is not supported.
pub fn load(file: &Path) -> Result<Tensors, CoreError> {
    let bytes = std::fs::read(file).map_err(|source| CoreError::io(file, source))?;
    let error = |reason: String| CoreError::Safetensors {
        file: file.into(),
        reason,
    };
    let archive = SafeTensors::deserialize(&bytes).map_err(|e| error(e.to_string()))?;
    archive
        .iter()
        .map(|(name, view)| {
            let data = decode(&view).map_err(|dtype| {
                error(format!("`{name}` has type {dtype:?}, which is not read"))
            })?;
            Ok((name.to_string(), data))
        })
        .collect()
}

/// The values of one tensor of a safetensors file, floats widened to 32 bits.
///
/// # Errors
/// The type, if it is none that models and adapters are kept in.
pub fn decode(view: &TensorView<'_>) -> Result<TensorData, Dtype> {
    fn words<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
        bytes
            .chunks_exact(N)
            .map(|c| f(c.try_into().expect("chunks of N")))
            .collect()
    }
    use burn::tensor::{bf16, f16};
    let (bytes, shape) = (view.data(), view.shape().to_vec());
    Ok(match view.dtype() {
        Dtype::F32 => TensorData::new(words(bytes, f32::from_le_bytes), shape),
        Dtype::F64 => TensorData::new(words(bytes, |b| f64::from_le_bytes(b) as f32), shape),
        Dtype::F16 => TensorData::new(words(bytes, |b| f16::from_le_bytes(b).to_f32()), shape),
        Dtype::BF16 => TensorData::new(words(bytes, |b| bf16::from_le_bytes(b).to_f32()), shape),
        Dtype::I64 => TensorData::new(words(bytes, i64::from_le_bytes), shape),
        Dtype::I32 => TensorData::new(words(bytes, i32::from_le_bytes), shape),
        Dtype::U8 => TensorData::new(bytes.to_vec(), shape),
        Dtype::I8 => TensorData::new(words(bytes, i8::from_le_bytes), shape),
        other => return Err(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projection::Dense;
    use burn::tensor::Device;

    fn dense() -> Dense {
        let device = Device::flex().autodiff();
        Dense::new(
            Tensor::ones([2, 3], &device),
            Some(Tensor::zeros([3], &device)),
        )
    }

    #[test]
    fn saved_tensors_come_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/er/state.safetensors");
        let tensors = trained_tensors(&dense());
        save(&tensors, BTreeMap::new(), &file).unwrap();
        assert_eq!(load(&file).unwrap(), tensors);
    }

    #[test]
    fn every_mismatch_is_listed_in_one_error() {
        let mut tensors = trained_tensors(&dense());
        let weight = tensors.remove("weight").unwrap();
        tensors.insert("wieght".into(), weight);
        tensors.insert("bias".into(), TensorData::zeros::<f32, _>([4]));
        let message = restore(dense(), tensors, "x.safetensors")
            .unwrap_err()
            .to_string();
        for part in [
            "missing `weight` [2, 3]",
            "`bias` has shape [4]",
            "`wieght`",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_truncated_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("half.safetensors");
        save(&trained_tensors(&dense()), BTreeMap::new(), &file).unwrap();
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() - 5]).unwrap();
        assert!(
            load(&file)
                .unwrap_err()
                .to_string()
                .contains("half.safetensors")
        );
    }
}
