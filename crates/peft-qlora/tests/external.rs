//! Cases of another generator run, by a variable that names their folder; see the contributor notes.

use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use peft_core::contract::relative_distance;
use peft_core::state::{self, Tensors};
use peft_core::{PackedLayer, PackedReader, Pass};
use peft_qlora::code_book;
use peft_qlora::codec::{self, Decoder, ScaleSlices};
use peft_qlora::{BitsAndBytes, double_quant, int8};

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("PEFT_GOLDEN");
    if folder.is_none() {
        eprintln!("skipped: PEFT_GOLDEN names no folder of cases");
    }
    Some(Path::new(&folder?).join("bnb"))
}

fn floats(tensors: &Tensors, name: &str) -> Vec<f32> {
    tensors[name].try_to_vec().unwrap()
}

fn close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= 1e-6, "{what}: {a} {b}");
    }
}

/// One file: a matrix's name, `nf4` or `fp4` and `b64`, `dq` or nothing.
fn check_blocks(weight: &[f32], parts: &[&str], tensors: &Tensors, what: &str) {
    let book = code_book::by_name(parts[0]).unwrap();
    let block_size = parts[1][1..].parse().unwrap();
    let encoded = codec::encode(weight, block_size, book);
    let codes: Vec<u8> = tensors["packed"].try_to_vec().unwrap();
    assert!(encoded.codes == codes, "codes of {what}");
    let quantised = double_quant::quantise(&encoded.absmax);
    let scales = match parts.get(2) {
        Some(_) => {
            let absmax: Vec<u8> = tensors["absmax"].try_to_vec().unwrap();
            assert!(quantised.absmax == absmax, "scales of {what}");
            quantised.slices()
        }
        None => {
            close(&encoded.absmax, &floats(tensors, "absmax"), what);
            ScaleSlices::Exact(&encoded.absmax)
        }
    };
    let mut out = vec![0.0; weight.len()];
    Decoder::new(&encoded.codes, scales, block_size, book).read(0, &mut out);
    close(&out, &floats(tensors, "dequant"), what);
}

fn check_rows(weight: &[f32], row: usize, tensors: &Tensors, what: &str) {
    let encoded = int8::encode(weight, row);
    close(&encoded.absmax, &floats(tensors, "scale"), what);
    let codes: Vec<i8> = tensors["int8"].try_to_vec().unwrap();
    let worst = encoded.codes.iter().zip(&codes);
    let worst = worst.map(|(a, b)| a.abs_diff(*b)).max();
    assert!(worst <= Some(1), "{what}: {worst:?}");
}

#[test]
fn external_matrices_are_packed_as_bitsandbytes_packs_them() {
    let Some(folder) = folder() else { return };
    let weights = state::load(&folder.join("weights.safetensors")).unwrap();
    let mut checked = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let parts: Vec<_> = name.split('-').collect();
        let safetensors = file.extension().is_some_and(|e| e == "safetensors");
        let Some(weight) = weights.get(parts[0]).filter(|_| safetensors) else {
            continue; // descriptions, and layers in folders of their own
        };
        let (row, tensors) = (weight.shape().to_vec()[1], state::load(&file).unwrap());
        let weight: Vec<f32> = weight.try_to_vec().unwrap();
        match parts[1] {
            "int8" => check_rows(&weight, row, &tensors, &name),
            _ => check_blocks(&weight, &parts[1..], &tensors, &name),
        }
        checked += 1;
    }
    assert!(checked >= 27, "{checked} files");
}

#[test]
fn external_layers_compute_what_bitsandbytes_computes() {
    let Some(folder) = folder() else { return };
    let device = Device::flex();
    for case in ["nf4", "nf4-dq", "fp4-dq"] {
        let folder = folder.join(format!("linear4bit-{case}"));
        let tensors = state::load(&folder.join("model.safetensors")).unwrap();
        let named = tensors
            .into_iter()
            .map(|(n, data)| (format!("layer.{n}"), data));
        let mut tensors: Tensors = named.collect();
        let bias = tensors.remove("layer.bias").unwrap();
        let layer = PackedLayer {
            path: "layer",
            dims: (128, 64),
            bias: Some(Param::from_tensor(Tensor::from_data(bias, &device))),
        };
        let layer = BitsAndBytes.read(layer, &mut tensors, &device);
        let expected = state::load(&folder.join("expected.safetensors")).unwrap();
        let x = Tensor::<2>::from_data(expected["x"].clone(), &device).unsqueeze::<3>();
        let y = layer.unwrap().unwrap().forward(x, &Pass::new()).into_data();
        let distance = relative_distance(&y, &expected["y"]);
        assert!(distance < 1e-5, "{case}: {distance}");
    }
}
