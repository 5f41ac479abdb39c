//! The wiping of what work with keys leaves on the stack.

/// Wipes the stack below the caller, where opening an APDU or unwrapping a key left the last key and what
/// was expanded of it: copies that moves leave behind have no owner who could wipe them. A tenth of a
/// microsecond. To be called from the function that called the cryptography.
#[inline(never)]
pub fn scrub_stack() {
    /// More than the frames of an opening take: 16 KiB, or 128 KiB where nothing is optimised.
    const WORDS: usize = if cfg!(debug_assertions) { 16_384 } else { 2_048 };
    let mut stack = [0_u64; WORDS];
    std::hint::black_box(&mut stack); // A constant would not be on the stack.
}
