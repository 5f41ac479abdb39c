//! Calls that wait to be recorded, and their writer.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::{chain::Chain, error::AuditError, written::Written};
use kms_core::audit::AuditEntry;

/// Calls that wait to be recorded; more are refused.
const QUEUE_MAX: usize = 4_096;
/// Calls recorded in one transaction.
const BATCH_MAX: usize = 256;

/// A queue of calls that are recorded many at once.
pub(super) struct Queue(mpsc::Sender<Asked>);

/// An entry that waits to be recorded, and who waits for it.
struct Asked {
    entry: AuditEntry,
    done: oneshot::Sender<Result<(), AuditError>>,
}

impl Queue {
    /// A queue into `chain`. Call within a Tokio runtime.
    pub(super) fn into(chain: Arc<Chain>) -> Self {
        let (queue, asked) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(write_queued(chain, asked));
        Self(queue)
    }

    /// Writes what is said of a call; on disk when this returns.
    pub(super) async fn record(&self, entry: AuditEntry) -> Result<(), AuditError> {
        let (done, outcome) = oneshot::channel();
        let full = |_| AuditError::NotWritable(format!("{QUEUE_MAX} calls wait for it"));
        self.0.try_send(Asked { entry, done }).map_err(full)?;
        let gone = || AuditError::NotWritable("its writer is gone".to_owned());
        outcome.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// Records what waits, as much as waits in one transaction.
async fn write_queued(chain: Arc<Chain>, mut queue: mpsc::Receiver<Asked>) {
    let mut asked = Vec::new();
    while queue.recv_many(&mut asked, BATCH_MAX).await > 0 {
        let (entries, waiting): (Vec<_>, Vec<_>) =
            asked.drain(..).map(|Asked { entry, done }| (entry, done)).unzip();
        let outcome = chain.commit(Written::NOTHING, entries).await;
        let outcome = outcome.map_err(|error| AuditError::of_write(&error));
        for done in waiting {
            // A caller who gave up waiting does not need to know.
            let _ = done.send(outcome.clone());
        }
    }
}
