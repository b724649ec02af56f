//! Devices by name, chosen at run time.

use burn::tensor::Device;

use crate::error::CoreError;

/// The devices this build can name, for help texts.
pub const DEVICES: &str = if cfg!(feature = "cuda") {
    "cpu, ndarray, cuda, cuda:N"
} else {
    "cpu, ndarray (cuda needs a build with `--features cuda`)"
};

/// The device of this name: `cpu` (Burn's flex backend), `ndarray`, `cuda` or `cuda:1`.
///
/// # Errors
/// If the name is unknown, or names a backend this build does not have.
pub fn device(name: &str) -> Result<Device, CoreError> {
    let unknown = |reason: String| CoreError::Device {
        device: name.into(),
        reason,
    };
    match name.split_once(':').unwrap_or((name, "0")) {
        ("cpu" | "flex", "0") => Ok(Device::flex()),
        ("ndarray", "0") => Ok(ndarray()),
        ("cuda", index) => {
            let index = index
                .parse()
                .map_err(|_| unknown(format!("`{index}` is not a device number, as in cuda:0")))?;
            cuda(index).ok_or_else(|| {
                unknown("this build has no CUDA; build with `--features cuda`".into())
            })
        }
        _ => Err(unknown(format!("unknown; this build has {DEVICES}"))),
    }
}

// burn-ndarray is deprecated upstream but still released; it stays as the second CPU backend
// because it shares no code with flex, which makes it a useful cross-check.
#[allow(deprecated)]
fn ndarray() -> Device {
    Device::ndarray()
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Option<Device> {
    Some(Device::cuda(index))
}

#[cfg(not(feature = "cuda"))]
fn cuda(_index: usize) -> Option<Device> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_give_devices_and_unknown_ones_an_error_that_lists_them() {
        assert!(device("cpu").is_ok() && device("ndarray").is_ok());
        let message = device("gpu").unwrap_err().to_string();
        assert!(
            message.contains("`gpu`") && message.contains("ndarray"),
            "{message}"
        );
    }

    #[test]
    fn a_bad_cuda_index_is_named() {
        let message = device("cuda:x").unwrap_err().to_string();
        assert!(message.contains("`x`"), "{message}");
    }
}
