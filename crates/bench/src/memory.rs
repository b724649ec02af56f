//! Memory: predicted before a run, measured after it.

use models::Model;
use peft_core::{Geometry, Host, Method, geometry_for, state, trained_parameters, trains_inside};
use report::record::MemoryInfo;

use crate::study::TrainConfig;
use crate::trial::StorageSpec;

/// Counts what is allocated: what a step needs at most is read from it, not guessed. It grows blocks
/// by copying and clears zeroed ones itself, which hot paths rarely ask for.
#[global_allocator]
static ALLOCATED: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

/// Bytes allocated now.
pub fn allocated() -> u64 {
    ALLOCATED.current_usage() as u64
}

/// Most bytes allocated at once since the last call, or the start.
pub fn take_peak_allocated() -> u64 {
    let peak = ALLOCATED.peak_usage() as u64;
    ALLOCATED.reset_peak_usage();
    peak
}

/// What the program itself takes before any model, in bytes; measured once, rounded up.
const PROGRAM: u64 = 26 << 20;

/// What a training step has to do, as far as its memory goes.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Texts of a batch.
    pub rows: usize,
    /// Tokens of a text, padding included and virtual ones not.
    pub length: usize,
    /// Whether layers are computed again in the backward pass.
    pub checkpointing: bool,
}

impl Load {
    /// A step of a training run on texts of up to so many tokens.
    pub fn of(train: &TrainConfig, longest: usize) -> Self {
        Self {
            rows: train.batch_size,
            length: longest,
            checkpointing: train.checkpointing,
        }
    }
}

/// Predicts the memory of a training run.
///
/// Weights, gradients and optimizer states are exact; activations are a rule of thumb that came
/// within 12% of what trials of GPT-2 and BERT shapes measured. The method's virtual tokens come on
/// top of the load's.
pub fn predict(
    model: &Model,
    method: &dyn Method,
    storage: &StorageSpec,
    load: Load,
) -> MemoryInfo {
    let geometry = geometry_for(model, method);
    let virtual_tokens = method.virtual_tokens();
    let rows = load.rows * method.copies();
    let tokens = rows * (load.length + virtual_tokens.body);
    let preset = method.storage();
    let storage = preset.as_deref().or(storage.build());
    let base = match storage {
        // As it is: its checkpoint may hold it packed.
        None => state::parameters(model).iter().map(|row| row.bytes).sum(),
        Some(storage) => {
            let in_sites: usize = geometry.sites.iter().map(|s| s.d_in * s.d_out).sum();
            let dense = model.geometry().base_parameters() - in_sites;
            let sites = geometry.sites.iter();
            let packed: usize = sites.map(|s| storage.bytes((s.d_in, s.d_out))).sum();
            dense * 4 + packed
        }
    };
    let base = base as u64;
    let trained = trained_parameters(&geometry, method) as u64 * 4;
    let layers = match trains_inside(&geometry, method) {
        true => geometry.layers,
        // Nothing is kept for a backward pass that never enters the layers.
        false => geometry.layers.min(2),
    };
    let prefixes = 4 * rows * virtual_tokens.keys * layers * 2 * geometry.kv_width;
    let kept = activations(&geometry, layers, tokens, load.checkpointing);
    // Copies of a text have their logits one after another.
    let activations = kept + prefixes as u64 + logits(model, tokens / method.copies());
    // Adapters come on top of the base; unfrozen weights are part of it already, but for a head
    // that gets a table of its own.
    let unfrozen = match method.unties_head(&model.geometry()) {
        true => 0,
        false => 4 * geometry.count(|p| method.trains(p)) as u64,
    };
    let adapter = trained.saturating_sub(unfrozen);
    MemoryInfo {
        base,
        adapter: trained,
        gradients: trained,
        optimizer: 2 * trained,
        predicted_peak: PROGRAM + base + adapter + 3 * trained + activations,
        measured_peak: 0,
    }
}

/// The prediction where so many bytes of the method's parameters take no part in training: they lie
/// in memory and have neither gradients nor a state of the optimizer.
pub fn without(predicted: MemoryInfo, left_out: u64) -> MemoryInfo {
    MemoryInfo {
        adapter: predicted.adapter - left_out,
        gradients: predicted.gradients - left_out,
        optimizer: predicted.optimizer - 2 * left_out,
        predicted_peak: predicted.predicted_peak - 3 * left_out,
        ..predicted
    }
}

/// What so many layers keep for their backward pass with fused operations: about 2 widths, queries
/// and what comes of them, keys and values, and 2 inner widths a token. With checkpointing one layer
/// keeps them, the others their input.
fn activations(geometry: &Geometry, layers: usize, tokens: usize, checkpointing: bool) -> u64 {
    let inner = geometry
        .sites
        .iter()
        .map(|site| site.d_in.max(site.d_out))
        .max()
        .unwrap_or(0);
    let heads = geometry.query_width() + geometry.kv_width;
    let whole_layer = 2 * (geometry.width + heads + inner);
    let values = match checkpointing {
        true => whole_layer + layers.saturating_sub(1) * geometry.width,
        false => layers * whole_layer,
    };
    (4 * tokens * values) as u64
}

/// The logits of a language model that exist at once.
fn logits(model: &Model, tokens: usize) -> u64 {
    match model.is_causal() {
        true => 4 * (tokens * model.vocab_size()).min(kernels::MOST_LOGITS) as u64,
        false => 0,
    }
}

/// Makes [`peak_rss`] start anew from what is resident now, after giving back what loading freed: the
/// peak of training is asked for, not that of reading a file. Does nothing where the system cannot.
pub fn restart_peak() {
    #[cfg(target_os = "linux")]
    {
        #[cfg(target_env = "gnu")]
        {
            // SAFETY: gives free memory of the allocator back to the system; nothing in use is
            // touched.
            #[allow(unsafe_code)]
            unsafe {
                libc::malloc_trim(0);
            }
        }
        // A system that refuses keeps counting from the start, which is the larger figure.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
    }
}

/// Largest resident set of this process so far, or since [`restart_peak`], in bytes; 0 where the
/// system does not tell.
pub fn peak_rss() -> u64 {
    high_water_mark().unwrap_or_else(peak_of_usage)
}

/// Linux' own figure, which can be restarted; other systems have none.
fn high_water_mark() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}

fn peak_of_usage() -> u64 {
    // SAFETY: getrusage fills the struct it is given and keeps no pointer to it.
    #[allow(unsafe_code)]
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) == 0).then_some(usage)
    };
    // Linux counts kilobytes, macOS bytes.
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    usage.map_or(0, |usage| usage.ru_maxrss as u64 * unit)
}

/// Tells glibc's allocator to keep large blocks for reuse and not to return them after every step.
///
/// A training step frees and takes the same large buffers again and again; by default each goes back
/// to the system, and the page faults of the next step cost more than some of the arithmetic.
pub fn keep_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LIMIT: libc::c_int = 1 << 30;
        // SAFETY: mallopt only sets parameters of the allocator; it may be called at any time.
        #[allow(unsafe_code)]
        unsafe {
            // The arenas of other threads cannot hold a block of more than 64 MB, which then comes
            // from the system after all; the main one can.
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::mallopt(libc::M_MMAP_THRESHOLD, LIMIT);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LIMIT);
            libc::mallopt(libc::M_TOP_PAD, 64 << 20);
        }
    }
}

/// Bytes for people.
pub fn human(bytes: u64) -> String {
    const MIB: f64 = (1 << 20) as f64;
    match bytes as f64 / MIB {
        small if small < 1024.0 => format!("{small:.0} MiB"),
        large => format!("{:.2} GiB", large / 1024.0),
    }
}

#[cfg(test)]
mod tests;
