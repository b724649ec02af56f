//! How frozen weights are stored: what study files, adapters and the command line say of it.

use anyhow::{Result, anyhow, ensure};
use clap::{Args, ValueEnum};
use peft_core::Storage;
use peft_qlora::storage::Code;
use peft_qlora::{FourBit, Fp4, Int8, Nf4};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::with_suggestion;

/// How frozen weights are stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "storage", rename_all = "snake_case")]
pub enum StorageSpec {
    /// As they are.
    #[default]
    F32,
    /// 4-bit NormalFloat.
    Nf4(Nf4),
    /// 4-bit floating point.
    Fp4(Fp4),
    /// 8 bits.
    Int8(Int8),
}

impl StorageSpec {
    /// The storage of this name, its keys taken out of `keys`; what it has no use for stays there.
    ///
    /// # Errors
    /// If there is none of the name, or a key has a value it cannot have.
    pub(crate) fn take(name: &str, keys: &mut Map<String, Value>) -> Result<Self, String> {
        let known = StorageName::from_str(name, false).map_err(|_| {
            let known = StorageName::value_variants().iter();
            let known: Vec<_> = known.map(|name| format!("`{}`", name.text())).collect();
            format!(
                "`storage` is `{name}`, expected one of {}",
                known.join(", ")
            )
        })?;
        Ok(match known {
            StorageName::F32 => StorageSpec::F32,
            StorageName::Nf4 => StorageSpec::Nf4(four_bit(keys)?),
            StorageName::Fp4 => StorageSpec::Fp4(four_bit(keys)?),
            StorageName::Int8 => StorageSpec::Int8(Int8 {}),
        })
    }

    /// The storage, or none for dense weights.
    pub fn build(&self) -> Option<&dyn Storage> {
        match self {
            StorageSpec::F32 => None,
            StorageSpec::Nf4(nf4) => Some(nf4),
            StorageSpec::Fp4(fp4) => Some(fp4),
            StorageSpec::Int8(int8) => Some(int8),
        }
    }

    /// Name for tables.
    pub fn name(&self) -> String {
        self.build().map_or_else(|| "f32".into(), Storage::name)
    }
}

fn four_bit<C: Code>(keys: &mut Map<String, Value>) -> Result<FourBit<C>, String> {
    let names = ["block_size", "double_quant"];
    let own = names
        .iter()
        .filter_map(|key| Some((key.to_string(), keys.remove(*key)?)));
    let storage: FourBit<C> = serde_json::from_value(Value::Object(own.collect()))
        .map_err(|e| with_suggestion(&e.to_string()))?;
    storage.check().map_err(|e| e.to_string())?;
    Ok(storage)
}

/// The storages by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StorageName {
    /// As the model has them.
    #[default]
    F32,
    /// 4-bit NormalFloat.
    Nf4,
    /// 4-bit floating point.
    Fp4,
    /// 8 bits, one scale a row.
    Int8,
}

impl StorageName {
    fn text(self) -> String {
        let value = self.to_possible_value().expect("no storage is hidden");
        value.get_name().to_string()
    }
}

/// How weights are packed; the options of every verb that packs.
#[derive(Args, Clone, Debug, Default)]
pub struct PackingArgs {
    /// Weights that share one scale, for nf4 and fp4: a power of two from 32 to 4096 [default: 64].
    #[arg(long)]
    pub block_size: Option<usize>,
    /// Keep the scales of nf4 and fp4 in 8 bits too.
    #[arg(long)]
    pub double_quant: bool,
}

impl PackingArgs {
    /// The storage of this name with these options.
    ///
    /// # Errors
    /// If it has no such option, or not with this value.
    pub fn of(&self, name: StorageName) -> Result<StorageSpec> {
        let mut keys = Map::new();
        if let Some(size) = self.block_size {
            keys.insert("block_size".into(), size.into());
        }
        // What is not asked for is not done, as in bitsandbytes.
        keys.insert("double_quant".into(), self.double_quant.into());
        let name = name.text();
        let spec = StorageSpec::take(&name, &mut keys)
            .map_err(|reason| anyhow!("`--storage {name}`: {reason}"))?;
        let unused = keys.iter().any(|(_, value)| *value != Value::Bool(false));
        ensure!(
            !unused,
            "`--block-size` and `--double-quant` are for nf4 and fp4, {name} has neither"
        );
        Ok(spec)
    }
}

/// How the frozen weights are stored.
#[derive(Args, Clone, Debug, Default)]
pub struct StorageArgs {
    /// Storage of the frozen weights; an adapter of our own format says it itself.
    #[arg(long, value_enum, default_value_t)]
    pub storage: StorageName,
    /// How to pack, where it packs.
    #[command(flatten)]
    pub packing: PackingArgs,
}

impl StorageArgs {
    /// The storage these options describe.
    ///
    /// # Errors
    /// As [`PackingArgs::of`].
    pub fn spec(&self) -> Result<StorageSpec> {
        self.packing.of(self.storage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(storage: StorageName, block_size: Option<usize>, double_quant: bool) -> Result<String> {
        let packing = PackingArgs {
            block_size,
            double_quant,
        };
        let spec = packing.of(storage)?;
        Ok(spec.build().map_or("dense".into(), Storage::packing))
    }

    #[test]
    fn the_command_line_packs_as_it_says() {
        let dense = spec(StorageName::F32, None, false).unwrap();
        let plain = spec(StorageName::Nf4, None, false).unwrap();
        let double = spec(StorageName::Fp4, Some(128), true).unwrap();
        assert_eq!(dense, "dense");
        assert_eq!(plain, "nf4 in blocks of 64");
        assert_eq!(double, "fp4+dq in blocks of 128");
        assert_eq!(spec(StorageName::Int8, None, false).unwrap(), "int8");
    }

    #[test]
    fn options_that_a_storage_does_not_have_are_refused() {
        let refused = [
            spec(StorageName::Int8, Some(64), false),
            spec(StorageName::Int8, None, true),
            spec(StorageName::F32, Some(64), false),
        ];
        for error in refused.map(|spec| spec.unwrap_err().to_string()) {
            assert!(error.contains("`--block-size`"), "{error}");
        }
        let error = spec(StorageName::Nf4, Some(48), false).unwrap_err();
        assert!(error.to_string().contains("a power of two"), "{error}");
    }

    #[test]
    fn every_storage_is_known_by_its_name_and_comes_back_from_json() {
        for name in StorageName::value_variants() {
            let text = name.text();
            let spec = StorageSpec::take(&text, &mut Map::new()).unwrap();
            let json = serde_json::to_value(&spec).unwrap();
            assert_eq!(json["storage"], *text);
            assert_eq!(serde_json::from_value::<StorageSpec>(json).unwrap(), spec);
        }
        let error = StorageSpec::take("int4", &mut Map::new()).unwrap_err();
        assert!(error.contains("`fp4`, `int8`"), "{error}");
    }
}
