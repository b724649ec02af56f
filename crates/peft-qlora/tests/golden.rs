//! The bytes of bitsandbytes 0.50.2; `golden/make.py` made them.

use peft_qlora::code_book::{CodeBook, FP4, NF4};
use peft_qlora::codec::{self, Decoder, ScaleSlices};
use peft_qlora::{double_quant, int8};
use safetensors::SafeTensors;

const NF4_FILE: &[u8] = include_bytes!("golden/nf4.safetensors");
const FP4_FILE: &[u8] = include_bytes!("golden/fp4.safetensors");
const INT8_FILE: &[u8] = include_bytes!("golden/int8.safetensors");
const SHAPES: [(&str, usize); 3] = [("17x100", 100), ("5x7", 7), ("72x160", 160)];
const BLOCK_SIZES: [usize; 3] = [32, 64, 128];

struct Golden(SafeTensors<'static>);

impl Golden {
    fn open(file: &'static [u8]) -> Self {
        Self(SafeTensors::deserialize(file).unwrap())
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

struct Case<'a> {
    golden: &'a Golden,
    book: &'static CodeBook,
    name: String,
    block_size: usize,
    weight: Vec<f32>,
}

fn for_each_case(check: impl Fn(&Case<'_>)) {
    let weights = Golden::open(NF4_FILE);
    for (book, file) in [(&NF4, NF4_FILE), (&FP4, FP4_FILE)] {
        let golden = Golden::open(file);
        for (shape, _) in SHAPES {
            for block_size in BLOCK_SIZES {
                check(&Case {
                    golden: &golden,
                    book,
                    name: format!("{shape}/b{block_size}"),
                    block_size,
                    weight: weights.floats(&format!("weight/{shape}")),
                });
            }
        }
    }
}

#[test]
fn the_tables_are_those_of_bitsandbytes_bit_for_bit() {
    let golden = Golden::open(NF4_FILE);
    assert_same(&NF4.values, &golden.floats("nf4"), "nf4");
    let fp4 = Golden::open(FP4_FILE).floats("fp4");
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_same(&bits(&FP4.values), &bits(&fp4), "fp4");
    assert_same(
        double_quant::dynamic_map(),
        &golden.floats("dynamic_map"),
        "the dynamic map",
    );
}

#[test]
fn codes_and_block_scales_are_those_of_bitsandbytes_bit_for_bit() {
    for_each_case(|case| {
        let encoded = codec::encode(&case.weight, case.block_size, case.book);
        for suffix in ["", "-dq"] {
            let name = format!("{}{suffix}/packed", case.name);
            assert_same(&encoded.codes, &case.golden.bytes(&name), &name);
        }
        let name = format!("{}/absmax", case.name);
        assert_same(&encoded.absmax, &case.golden.floats(&name), &name);
    });
}

#[test]
fn doubly_quantised_scales_are_those_of_bitsandbytes_bit_for_bit() {
    for_each_case(|case| {
        let encoded = codec::encode(&case.weight, case.block_size, case.book);
        let quantised = double_quant::quantise(&encoded.absmax);
        let name = |part: &str| format!("{}-dq/{part}", case.name);
        assert_same(
            &[quantised.offset],
            &case.golden.floats(&name("offset")),
            &name("offset"),
        );
        let nested = case.golden.floats(&name("nested_absmax"));
        assert_same(&quantised.nested_absmax, &nested, &name("nested_absmax"));
        assert_same(
            &quantised.absmax,
            &case.golden.bytes(&name("absmax")),
            &name("absmax"),
        );
    });
}

#[test]
fn decoded_weights_are_those_of_bitsandbytes_bit_for_bit() {
    for_each_case(|case| {
        if case.weight.len() > 2000 {
            return; // the file holds the decoded values of the small shapes only
        }
        let encoded = codec::encode(&case.weight, case.block_size, case.book);
        let quantised = double_quant::quantise(&encoded.absmax);
        let rows = [
            (ScaleSlices::Exact(&encoded.absmax), ""),
            (quantised.slices(), "-dq"),
        ];
        for (scales, suffix) in rows {
            let mut out = vec![0.0; case.weight.len()];
            Decoder::new(&encoded.codes, scales, case.block_size, case.book).read(0, &mut out);
            let name = format!("{}{suffix}/dequant", case.name);
            assert_same(&out, &case.golden.floats(&name), &name);
        }
    });
}

#[test]
fn eight_bit_codes_and_row_scales_are_those_of_bitsandbytes_bit_for_bit() {
    let (weights, golden) = (Golden::open(NF4_FILE), Golden::open(INT8_FILE));
    for (shape, row) in SHAPES {
        let weight = weights.floats(&format!("weight/{shape}"));
        let encoded = int8::encode(&weight, row);
        let bytes: Vec<u8> = encoded
            .codes
            .iter()
            .map(|code| code.cast_unsigned())
            .collect();
        let name = |part: &str| format!("{shape}/{part}");
        assert_same(&bytes, &golden.bytes(&name("int8")), &name("int8"));
        assert_same(
            &encoded.absmax,
            &golden.floats(&name("scale")),
            &name("scale"),
        );
        if weight.len() > 2000 {
            continue; // as above
        }
        let mut out = vec![0.0; weight.len()];
        Decoder::int8(&encoded.codes, ScaleSlices::Exact(&encoded.absmax), row).read(0, &mut out);
        assert_same(&out, &golden.floats(&name("dequant")), &name("dequant"));
    }
}
