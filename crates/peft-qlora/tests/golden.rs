//! The bytes of bitsandbytes 0.50.2; `golden/make.py` made them.

use peft_qlora::code_book::NF4;
use peft_qlora::codec::{self, Decoder, ScaleSlices};
use peft_qlora::double_quant;
use safetensors::SafeTensors;

const FILE: &[u8] = include_bytes!("golden/nf4.safetensors");
const SHAPES: [&str; 3] = ["17x100", "5x7", "72x160"];
const BLOCK_SIZES: [usize; 3] = [32, 64, 128];

struct Golden(SafeTensors<'static>);

impl Golden {
    fn open() -> Self {
        Self(SafeTensors::deserialize(FILE).unwrap())
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.0
            .tensor(name)
            .unwrap_or_else(|e| panic!("`{name}`: {e}"))
            .data()
            .to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let bytes = self.bytes(name);
        bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }
}

/// Equal, or a message that names the first difference rather than printing thousands of numbers.
fn assert_same<T: PartialEq + std::fmt::Debug>(found: &[T], expected: &[T], what: &str) {
    assert_eq!(found.len(), expected.len(), "length of {what}");
    let difference = (0..found.len()).find(|i| found[*i] != expected[*i]);
    if let Some(i) = difference {
        panic!("{what}[{i}] is {:?}, expected {:?}", found[i], expected[i]);
    }
}

fn for_each_case(check: impl Fn(&Golden, &str, usize, &[f32])) {
    let golden = Golden::open();
    for shape in SHAPES {
        let weight = golden.floats(&format!("weight/{shape}"));
        for block_size in BLOCK_SIZES {
            check(
                &golden,
                &format!("{shape}/b{block_size}"),
                block_size,
                &weight,
            );
        }
    }
}

#[test]
fn the_tables_are_those_of_bitsandbytes_bit_for_bit() {
    let golden = Golden::open();
    assert_same(&NF4.values, &golden.floats("nf4"), "nf4");
    assert_same(
        double_quant::dynamic_map(),
        &golden.floats("dynamic_map"),
        "the dynamic map",
    );
}

#[test]
fn codes_and_block_scales_are_those_of_bitsandbytes_bit_for_bit() {
    for_each_case(|golden, case, block_size, weight| {
        let encoded = codec::encode(weight, block_size, &NF4);
        for suffix in ["", "-dq"] {
            let name = format!("{case}{suffix}/packed");
            assert_same(&encoded.codes, &golden.bytes(&name), &name);
        }
        let name = format!("{case}/absmax");
        assert_same(&encoded.absmax, &golden.floats(&name), &name);
    });
}

#[test]
fn doubly_quantised_scales_are_those_of_bitsandbytes_bit_for_bit() {
    for_each_case(|golden, case, block_size, weight| {
        let quantised = double_quant::quantise(&codec::encode(weight, block_size, &NF4).absmax);
        let name = |part: &str| format!("{case}-dq/{part}");
        assert_same(
            &[quantised.offset],
            &golden.floats(&name("offset")),
            &name("offset"),
        );
        let nested = golden.floats(&name("nested_absmax"));
        assert_same(&quantised.nested_absmax, &nested, &name("nested_absmax"));
        assert_same(
            &quantised.absmax,
            &golden.bytes(&name("absmax")),
            &name("absmax"),
        );
    });
}

#[test]
fn decoded_weights_are_those_of_bitsandbytes_bit_for_bit() {
    for_each_case(|golden, case, block_size, weight| {
        if weight.len() > 2000 {
            return; // the file holds the decoded values of the small shapes only
        }
        let encoded = codec::encode(weight, block_size, &NF4);
        let quantised = double_quant::quantise(&encoded.absmax);
        let rows = [
            (ScaleSlices::Exact(&encoded.absmax), ""),
            (quantised.slices(), "-dq"),
        ];
        for (scales, suffix) in rows {
            let mut out = vec![0.0; weight.len()];
            Decoder::new(&encoded.codes, scales, block_size, &NF4).read(0, &mut out);
            let name = format!("{case}{suffix}/dequant");
            assert_same(&out, &golden.floats(&name), &name);
        }
    });
}
