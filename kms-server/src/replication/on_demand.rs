//! Proofs that somebody waits for: the other site opens blocks as they are stored there, now, and they are as they are here.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use super::proving::{ASKED_AT_ONCE, Proven, Proving};
use kms_core::{
    BlockNo,
    ports::{ProofGate, Proved},
};

/// The longest wait for a site that follows and is not yet where we are.
const PATIENCE: Duration = Duration::from_secs(5);
/// The first pause before it is asked again; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(10);
/// The longest one.
const PAUSE_MAX: Duration = Duration::from_millis(320);

/// Asks for proofs when somebody needs one. Until replication has begun there is none.
#[derive(Default)]
pub struct OnDemand {
    proving: OnceLock<Arc<Proving>>,
}

impl OnDemand {
    /// Asks by this one from now on.
    pub fn begin(&self, proving: Arc<Proving>) {
        // The first one stays.
        let _ = self.proving.set(proving);
    }
}

#[async_trait]
impl ProofGate for OnDemand {
    async fn prove_each(&self, blocks: &[BlockNo]) -> Vec<Proved> {
        let mut missing: BTreeMap<BlockNo, String> =
            blocks.iter().map(|block| (*block, "it was not asked".to_owned())).collect();
        let outcome = self.prove_missing(&mut missing).await;
        let proved = |block: &BlockNo| match (missing.get(block), &outcome) {
            (None, _) => Proved::Yes,
            (Some(_), Err(why)) => Proved::No(why.clone()),
            (Some(why), Ok(())) => Proved::No(why.clone()),
        };
        blocks.iter().map(proved).collect()
    }
}

fn note(missing: &mut BTreeMap<BlockNo, String>, block: BlockNo, proof: Proven) {
    let why = match proof {
        Proven::Yes => {
            missing.remove(&block);
            return;
        }
        Proven::No(why) => why,
        Proven::Moved => format!("block {block} is not there as it is here"),
    };
    missing.insert(block, why);
}

impl OnDemand {
    /// Asks for proofs of these blocks until none is missing, or patience ends; each that stays has the reason beside it.
    /// An error says why none of those can be proved.
    async fn prove_missing(&self, missing: &mut BTreeMap<BlockNo, String>) -> Result<(), String> {
        let proving = self.proving.get().ok_or("replication has not begun yet")?;
        let until = Instant::now() + PATIENCE;
        let mut pause = PAUSE;
        loop {
            let blocks: Vec<BlockNo> = missing.keys().copied().collect();
            for some in blocks.chunks(ASKED_AT_ONCE) {
                for (block, proof) in proving.prove_now(some).await? {
                    note(missing, block, proof);
                }
            }
            // What it does not have yet it may have in a moment, and so may what it could not open.
            if missing.is_empty() || Instant::now() + pause >= until {
                return Ok(());
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}
