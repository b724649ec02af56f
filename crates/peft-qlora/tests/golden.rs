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
        self.0.tensor(name).unwrap_or_else(|e| panic!("`{name}`: {e}")).data().to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let bytes = self.bytes(name);
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

fn for_each_case(check: impl Fn(&Golden, &str, usize, &[f32])) {
    let golden = Golden::open();
    for shape in SHAPES {
        let weight = golden.floats(&format!("weight/{shape}"));
        for block_size in BLOCK_SIZES {
            check(&golden, &format!("{shape}/b{block_size}"), block_size, &weight);
        }
    }
}

#[test]
fn the_tables_are_those_of_bitsandbytes_bit_for_bit() {
    let golden = Golden::open();
    assert_eq!(golden.floats("nf4"), NF4.values);
    assert_eq!(golden.floats("dynamic_map"), double_quant::dynamic_map());
}

#[test]
fn codes_and_block_scales_are_those_of_bitsandbytes_bit_for_bit() {
    for_each_case(|golden, case, block_size, weight| {
        let encoded = codec::encode(weight, block_size, &NF4);
        assert_eq!(encoded.codes, golden.bytes(&format!("{case}/packed")), "{case}");
        assert_eq!(encoded.absmax, golden.floats(&format!("{case}/absmax")), "{case}");
    });
}

#[test]
fn doubly_quantised_scales_are_those_of_bitsandbytes_bit_for_bit() {
    for_each_case(|golden, case, block_size, weight| {
        let encoded = codec::encode(weight, block_size, &NF4);
        let quantised = double_quant::quantise(&encoded.absmax);
        let nested = golden.floats(&format!("{case}-dq/nested_absmax"));
        assert_eq!(encoded.codes, golden.bytes(&format!("{case}-dq/packed")), "{case}");
        assert_eq!([quantised.offset], *golden.floats(&format!("{case}-dq/offset")), "{case}");
        assert_eq!(quantised.nested_absmax, nested, "{case}");
        assert_eq!(quantised.absmax, golden.bytes(&format!("{case}-dq/absmax")), "{case}");
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
        let rows = [(ScaleSlices::Exact(&encoded.absmax), ""), (quantised.slices(), "-dq")];
        for (scales, suffix) in rows {
            let mut out = vec![0.0; weight.len()];
            Decoder::new(&encoded.codes, scales, block_size, &NF4).read(0, &mut out);
            assert_eq!(out, golden.floats(&format!("{case}{suffix}/dequant")), "{case}{suffix}");
        }
    });
}
