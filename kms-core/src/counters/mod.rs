//! Transmit counters: the invocation counters that this service protects under. [`line`] says what a counter must be
//! unique in and which part of the 32 bits belongs to which site and epoch, [`allocator`] gives the rest out, [`mark`] is what
//! it reserved as a database has it, [`standing`] says whether the other site knows a line, [`refusal`] why nothing is
//! sent.

pub mod allocator;
pub mod line;
pub mod mark;
pub mod refusal;
pub mod standing;

pub use line::{Line, LineName, Offset};
