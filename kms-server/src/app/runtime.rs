//! The async runtime of a verb.

use super::fault::Fault;

/// An async runtime with this many threads for tasks; 0: one a core.
pub(super) fn runtime(threads: usize) -> Result<tokio::runtime::Runtime, Fault> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if threads > 0 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build().map_err(|error| Fault::Runtime(error.into()))
}
