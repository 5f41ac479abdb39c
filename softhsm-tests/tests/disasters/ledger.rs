//! What callers were told of their writes.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use kms_client::{ClientConfig, ImportRules, KmsClient, Replicated};
use tokio::{task::JoinHandle, time::sleep};
use tokio_stream::StreamExt as _;

use super::common::fleet::{line, parsed};

/// Between two writes of a caller.
const PAUSE: Duration = Duration::from_millis(15);

const GOING: u8 = 0;
const PAUSED: u8 = 1;
const ENDED: u8 = 2;

/// All meters that somebody wrote, and what was told of each.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Arc<Parts>);

#[derive(Default)]
struct Parts {
    next: AtomicU64,
    told: Mutex<BTreeMap<u64, Replicated>>,
    unknown: AtomicU64,
    state: AtomicU8,
    working: AtomicU64,
}

impl Ledger {
    /// A caller who makes one meter after the other.
    pub(crate) fn writer(&self, config: ClientConfig) -> JoinHandle<()> {
        let ledger = self.clone();
        tokio::spawn(async move {
            let client = KmsClient::connect_lazy(config).unwrap();
            while ledger.0.state.load(Ordering::SeqCst) != ENDED {
                if ledger.0.state.load(Ordering::SeqCst) == GOING {
                    ledger.0.working.fetch_add(1, Ordering::SeqCst);
                    ledger.write(&client).await;
                    ledger.0.working.fetch_sub(1, Ordering::SeqCst);
                }
                sleep(PAUSE).await;
            }
        })
    }

    async fn write(&self, client: &KmsClient) {
        let number = self.0.next.fetch_add(1, Ordering::SeqCst);
        let lines = tokio_stream::iter(parsed(&line(number)));
        let mut results = client.meters().import(lines, ImportRules::default());
        match results.next().await {
            // Sent again after an answer that was lost, it is there already, and nobody says since when.
            Some(Ok(result)) if result.code.is_empty() => {
                self.0.told.lock().unwrap().insert(number, result.replicated);
            }
            _ => {
                self.0.unknown.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    /// No write is under way when this returns, and none begins.
    pub(crate) async fn pause(&self) {
        self.0.state.store(PAUSED, Ordering::SeqCst);
        while self.0.working.load(Ordering::SeqCst) > 0 {
            sleep(PAUSE).await;
        }
    }

    /// Callers go on.
    pub(crate) fn go_on(&self) {
        self.0.state.store(GOING, Ordering::SeqCst);
    }

    /// Callers end.
    pub(crate) fn end(&self) {
        self.0.state.store(ENDED, Ordering::SeqCst);
    }

    /// Each meter that was acknowledged, and whether it was told to be at the other site.
    pub(crate) fn told(&self) -> BTreeMap<u64, Replicated> {
        self.0.told.lock().unwrap().clone()
    }

    /// Writes that were refused, or whose outcome nobody knows.
    pub(crate) fn not_told(&self) -> u64 {
        self.0.unknown.load(Ordering::SeqCst)
    }
}
