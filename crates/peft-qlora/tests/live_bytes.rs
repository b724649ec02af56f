//! What stays in memory between the forward and the backward pass, counted by the allocator.

// A counting allocator needs `unsafe impl GlobalAlloc`; it only forwards to the system's.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use burn::module::Module;
use burn::tensor::{Device, Gradients, Tensor};
use peft_core::contract::random;
use peft_core::{Dense, Pass, Proj, Role, Site, Storage};
use peft_qlora::{Int8, Nf4};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is forwarded unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WIDTH: usize = 1024;
const BATCH: [usize; 3] = [8, 32, WIDTH];
const DENSE: usize = WIDTH * WIDTH * 4;
const ACTIVATION: usize = 8 * 32 * WIDTH * 4;
/// Graph nodes, thread pools' bookkeeping, a tile of decoded rows: all far below a dense weight.
const SLACK: usize = DENSE / 2;

/// Bytes of one pass through a layer, relative to what was alive before the layer was made.
struct Bytes {
    /// The layer alone.
    layer: usize,
    /// Alive between forward and backward, the input and the layer included.
    between: usize,
    /// The most that was alive at once during the forward pass.
    forward_peak: usize,
    /// The most that was alive at once during the backward pass.
    backward_peak: usize,
}

/// Runs `work` and returns its result with the peak while it ran.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    PEAK.store(LIVE.load(Relaxed), Relaxed);
    let result = work();
    (result, PEAK.load(Relaxed))
}

/// Passes through two layers one after the other, so that the second layer's input is an
/// activation of the graph; the loss is linear, so it keeps nothing itself.
fn measure(layer: impl Fn(&Device) -> Proj) -> Bytes {
    let device = Device::flex().autodiff();
    let run = |proj: &Proj, x: &Tensor<3>| {
        let pass = Pass::new();
        proj.forward(proj.forward(x.clone(), &pass), &pass)
    };
    let start = LIVE.load(Relaxed);
    let proj = layer(&device).train();
    let layer = LIVE.load(Relaxed) - start;
    let x = random(BATCH, &device).require_grad();
    let (y, forward_peak) = peak_of(|| run(&proj, &x));
    let between = LIVE.load(Relaxed) - start;
    let (grads, backward_peak): (Gradients, usize) = peak_of(|| y.sum().backward());
    assert!(x.grad(&grads).is_some(), "the input has a gradient");
    Bytes {
        layer,
        between,
        forward_peak: forward_peak - start,
        backward_peak: backward_peak - start,
    }
}

fn dense(device: &Device) -> Dense {
    Dense::new(random([WIDTH, WIDTH], device), None)
}

fn packed(storage: &dyn Storage, device: &Device) -> Proj {
    let path = "layer".into();
    let site = Site {
        layer: 0,
        role: Role::Up,
        path,
        d_in: WIDTH,
        d_out: WIDTH,
    };
    storage.pack(&site, dense(device).no_grad()).unwrap()
}

fn keeps_its_codes_alone(storage: &dyn Storage) {
    let name = storage.name();
    let layer = |device: &Device| packed(storage, device);
    measure(layer); // thread pools and tables are made on first use

    let bytes = measure(layer);
    let stored = storage.bytes((WIDTH, WIDTH));
    assert!(
        bytes.layer < stored + 8192,
        "{name}: {} bytes, {stored} of them the weight",
        bytes.layer
    );
    // Alive: the input and the output. No activation in between, no decoded weight.
    let floor = bytes.layer + 2 * ACTIVATION;
    assert!(
        bytes.between < floor + 65_536,
        "{name}: {} bytes above",
        bytes.between - floor
    );
    let forward = bytes.forward_peak - bytes.layer - 3 * ACTIVATION;
    assert!(
        forward < SLACK,
        "{name}: forward holds {forward} bytes beside the activations"
    );
    let backward = bytes.backward_peak - bytes.layer - 4 * ACTIVATION;
    assert!(
        backward < SLACK,
        "{name}: backward holds {backward} bytes beside the activations"
    );
}

/// One test, because the counters are the whole process's.
#[test]
fn a_packed_layer_keeps_its_codes_and_no_dense_weight_or_gradient_of_one() {
    // Products take scratch memory for each thread: the same number of them on every machine.
    rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .build_global()
        .expect("no pool yet");
    keeps_its_codes_alone(&Nf4::default());
    keeps_its_codes_alone(&Int8 {});

    // A frozen dense layer keeps its weight; one that is trained gets a dense gradient too. That
    // the same count sees both shows that it would see them above.
    let frozen = measure(|device| Proj::new(dense(device).no_grad()));
    assert!(frozen.layer >= DENSE && frozen.between >= DENSE + 2 * ACTIVATION);
    let trained = measure(|device| Proj::new(dense(device)));
    let backward = trained
        .backward_peak
        .saturating_sub(trained.layer + 4 * ACTIVATION);
    assert!(
        backward >= DENSE,
        "backward holds {backward} bytes beside the activations"
    );
    assert!(
        trained.between > trained.layer + 3 * ACTIVATION - 65_536,
        "the input of the second layer"
    );
}
