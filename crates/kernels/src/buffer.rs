//! New vectors, written by all threads without a serial pass that clears them first.

// Marking memory as initialised, after writing it, is unsafe.
#![allow(unsafe_code)]

use core::mem::MaybeUninit;
use rayon::prelude::*;

/// A vector of `len` elements made of parts of `part` elements (the last may be shorter).
///
/// `fill` is given the index of the first element of a part and the part, all zero.
pub(crate) fn fill_parts(
    len: usize,
    part: usize,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let part = part.max(1);
    let mut out: Vec<f32> = Vec::with_capacity(len);
    out.spare_capacity_mut()[..len]
        .par_chunks_mut(part)
        .enumerate()
        .for_each(|(i, part_of_out)| fill(i * part, zeroed(part_of_out)));
    // SAFETY: the parts cover the first `len` elements and every one has been zeroed.
    unsafe { out.set_len(len) };
    out
}

/// Clears uninitialised memory. Parts fit into a cache, so the second write to them costs little.
fn zeroed(memory: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    for place in memory.iter_mut() {
        place.write(0.0);
    }
    // SAFETY: every element has just been written, and the layouts are the same.
    unsafe { &mut *(core::ptr::from_mut(memory) as *mut [f32]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_zero_at_first_and_end_up_in_order() {
        let filled = fill_parts(10, 4, |start, part| {
            for (i, place) in part.iter_mut().enumerate() {
                *place += (start + i) as f32;
            }
        });
        assert!(filled.iter().copied().eq((0..10).map(|i| i as f32)));
        assert!(fill_parts(0, 4, |_, _| ()).is_empty());
    }
}
