//! A peer to time `peft-bench speed` against: LoRA as Burn itself offers it, on distilgpt2's shape.
//!
//! Only the allocator settings, the thread pool and the reading of memory are of this workspace,
//! the same for both. The model is made of `burn::nn`, the adapters come from `Module::apply_lora`,
//! the optimizer is Burn's AdamW. The work is that of `peft-bench speed --shape distilgpt2` with
//! rank 8 on `c_attn`: the same batch of random tokens again and again.
//!
//! Burn's own documentation says what costs it, beside its composed operations: with an adapter a
//! parameter "materializes its effective value as `base + scale * (a @ b)`" (`LoraAdapter`); where
//! a layer's input needs a gradient, "autodiff retains that dense weight for backward and computes
//! a full weight-shaped gradient before propagating into the factors" (`QLora`, which composes
//! alike).
//!
//! `cargo run --release -p bench --example burn_lora -- --batch 8 --seq 128 --steps 6 --threads 2`

#![allow(clippy::print_stdout)]

use std::time::Instant;

use bench::cli::Compute;
use bench::memory;
use burn::module::{Initializer, Lora, Module, ModuleVisitor, Param, ParamGroup};
use burn::nn::attention::generate_autoregressive_mask;
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::nn::{
    Embedding, EmbeddingConfig, Gelu, LayerNorm, LayerNormConfig, Linear, LinearConfig,
};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData, activation};
use clap::Parser;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const LAYERS: usize = 6;
const WIDTH: usize = 768;
const HEADS: usize = 12;
const INNER: usize = 3072;
const VOCAB: usize = 50257;
const POSITIONS: usize = 1024;
const RANK: usize = 8;

/// GPT-2's initial weights.
const SMALL: Initializer = Initializer::Normal {
    mean: 0.0,
    std: 0.02,
};

/// Steps before the clock starts, as many as `peft-bench speed` takes.
const WARM_UP: usize = 2;

#[derive(Parser)]
struct Args {
    /// Sequences a step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 128)]
    seq: usize,
    /// Steps that are timed, after two that are not.
    #[arg(long, default_value_t = 6)]
    steps: usize,
    /// Number of CPU threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Wait for a line on standard input before every step.
    #[arg(long)]
    paced: bool,
}

#[derive(Module, Debug)]
struct Block {
    ln_1: LayerNorm,
    c_attn: Linear,
    attn_proj: Linear,
    ln_2: LayerNorm,
    c_fc: Linear,
    gelu: Gelu,
    mlp_proj: Linear,
}

impl Block {
    fn new(device: &Device) -> Self {
        let norm = || LayerNormConfig::new(WIDTH).init(device);
        let linear = |d_in, d_out| LinearConfig::new(d_in, d_out).with_initializer(SMALL);
        let linear = |d_in, d_out| linear(d_in, d_out).init(device);
        Self {
            ln_1: norm(),
            c_attn: linear(WIDTH, 3 * WIDTH),
            attn_proj: linear(WIDTH, WIDTH),
            ln_2: norm(),
            c_fc: linear(WIDTH, INNER),
            // The exact form: Burn has it and its gradient as one pass each, but composes the
            // approximate one of single operations.
            gelu: Gelu::new(),
            mlp_proj: linear(INNER, WIDTH),
        }
    }

    /// On the rows of all sequences, `[batch * seq, WIDTH]`: with three dimensions Burn's linear
    /// does a product for each sequence here, and a step takes longer.
    fn forward(&self, x: Tensor<2>, later: &Tensor<4, Bool>) -> Tensor<2> {
        let x = x.clone() + self.attention(self.ln_1.forward(x), later);
        let h = self.c_fc.forward(self.ln_2.forward(x.clone()));
        x + self.mlp_proj.forward(self.gelu.forward(h))
    }

    /// As Burn's `MultiHeadAttention` computes it, but for the fused linear; its function
    /// `attention` composes the same of more operations under autodiff.
    fn attention(&self, x: Tensor<2>, later: &Tensor<4, Bool>) -> Tensor<2> {
        let [rows, _] = x.dims();
        let [.., seq] = later.dims();
        let shape = [rows / seq, seq, HEADS, WIDTH / HEADS];
        let split = |x: Tensor<2>| x.reshape(shape).swap_dims(1, 2);
        let qkv = self.c_attn.forward(x).chunk(3, 1);
        let [q, k, v] = <[_; 3]>::try_from(qkv).expect("three chunks").map(split);
        let scores = q.matmul(k.transpose()) / ((WIDTH / HEADS) as f64).sqrt();
        let seen = activation::softmax(scores.mask_fill(later.clone(), -1e4), 3).matmul(v);
        let joined = seen.swap_dims(1, 2).reshape([rows, WIDTH]);
        self.attn_proj.forward(joined)
    }
}

#[derive(Module, Debug)]
struct Gpt2 {
    wte: Embedding,
    wpe: Embedding,
    blocks: Vec<Block>,
    ln_f: LayerNorm,
    loss: CrossEntropyLoss,
}

impl Gpt2 {
    fn new(device: &Device) -> Self {
        let table = |rows| EmbeddingConfig::new(rows, WIDTH).with_initializer(SMALL);
        Self {
            wte: table(VOCAB).init(device),
            wpe: table(POSITIONS).init(device),
            blocks: (0..LAYERS).map(|_| Block::new(device)).collect(),
            ln_f: LayerNormConfig::new(WIDTH).init(device),
            loss: CrossEntropyLossConfig::new().init(device),
        }
    }

    /// Mean cross entropy of each token but the first of a sequence.
    fn loss(&self, ids: Tensor<2, Int>) -> Tensor<1> {
        let [batch, seq] = ids.dims();
        let device = ids.device();
        let positions = Tensor::arange(0..seq as i64, &device).unsqueeze::<2>();
        let x = self.wte.forward(ids.clone()) + self.wpe.forward(positions);
        let mut x = x.reshape([batch * seq, WIDTH]);
        let later = generate_autoregressive_mask(1, seq, &device).unsqueeze::<4>();
        for block in &self.blocks {
            x = block.forward(x, &later);
        }
        // No logits are computed where there is no next token.
        let rows = batch * (seq - 1);
        let x = x.reshape([batch, seq, WIDTH]).narrow(1, 0, seq - 1);
        let x = self.ln_f.forward(x.reshape([rows, WIDTH]));
        let logits = x.matmul(self.wte.weight.val().transpose());
        let next = ids.narrow(1, 1, seq - 1).reshape([rows]);
        self.loss.forward(logits, next)
    }
}

/// Counts the values that are trained.
struct Trainable(usize);

impl ModuleVisitor for Trainable {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if param.is_require_grad() {
            self.0 += param.shape().num_elements();
        }
    }
}

fn main() -> anyhow::Result<()> {
    memory::keep_buffers();
    let args = Args::parse();
    let compute = Compute {
        device: "cpu".into(),
        threads: Some(args.threads),
    };
    compute.run(|| measure(&args))
}

fn measure(args: &Args) -> anyhow::Result<()> {
    let device = Device::flex().autodiff();
    device.seed(0);
    let lora = Lora::new(RANK, 16.0).set_param_group(ParamGroup::from_predicate("c_attn.weight"));
    let mut model = Gpt2::new(&device).apply_lora(lora);
    let mut trainable = Trainable(0);
    model.visit(&mut trainable);
    assert_eq!(trainable.0, 147_456, "6 layers of rank 8, 768 -> 2304");

    // Drawn as `bench::speed` draws them.
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let ids: Vec<i64> = (0..args.batch * args.seq)
        .map(|_| rng.random_range(0..VOCAB as u32).into())
        .collect();
    let ids = Tensor::from_data(TensorData::new(ids, [args.batch, args.seq]), &device);

    // The epsilon of ours and PyTorch's, where Burn's default is 1e-5.
    let adamw = AdamWConfig::new().with_epsilon(1e-8);
    let mut optimizer = adamw.with_weight_decay(0.01).init();
    let (mut times, mut losses) = (Vec::new(), Vec::new());
    for step in 0..WARM_UP + args.steps {
        if args.paced {
            bench::speed::wait_for_a_line()?;
        }
        let start = Instant::now();
        let loss = model.loss(ids.clone());
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        losses.push(loss.into_scalar::<f32>());
        model = optimizer.step(1e-3, model, grads);
        if step >= WARM_UP {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let mut sorted = times.clone();
    sorted.sort_by(f64::total_cmp);
    // The quantile of `bench::speed`.
    let median = sorted[((sorted.len() - 1) as f64 * 0.5).round() as usize];
    let steps_ms: Vec<f64> = times.iter().map(|seconds| seconds * 1e3).collect();
    let line = serde_json::json!({
        "method": "burn apply_lora",
        "batch": args.batch, "seq": args.seq, "steps": args.steps, "threads": args.threads,
        "step_ms": median * 1e3,
        "steps_ms": steps_ms,
        "tokens_per_s": (args.batch * args.seq) as f64 / median,
        "peak_rss_mb": memory::peak_rss() as f64 / 1e6,
        "trainable": trainable.0,
        "loss_first": losses[0],
        "loss_last": losses.last(),
    });
    println!("{line}");
    Ok(())
}
