//! Plain HTTP for machines that watch: metrics and probes. Of `rpc` it may name the drain alone.

pub(crate) mod probes;
