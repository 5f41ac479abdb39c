//! Transmit counters: the invocation counters that this service protects under. [`line`] says what a counter must be
//! unique in and which part of the 32 bits belongs to which site and epoch, [`allocator`] gives the rest out.

pub mod allocator;
pub mod line;

pub use line::{Line, LineName, Offset};
