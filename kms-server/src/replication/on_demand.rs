//! Proofs that somebody waits for: the other site opens blocks as they are stored there, now, and they are as they are here.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use super::proving::{Proven, Proving};
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
    async fn prove(&self, blocks: &[BlockNo]) -> Proved {
        let Some(proving) = self.proving.get() else {
            return Proved::No("replication has not begun yet".to_owned());
        };
        let until = Instant::now() + PATIENCE;
        let mut pause = PAUSE;
        loop {
            let why = match proving.prove_now(blocks).await {
                Err(why) => return Proved::No(why),
                Ok(proofs) => match proofs.into_iter().find(|(_, proof)| *proof != Proven::Yes) {
                    None => return Proved::Yes,
                    Some((_, Proven::No(why))) => why,
                    Some((block, _)) => format!("block {block} is not there as it is here"),
                },
            };
            // What it does not have yet it may have in a moment, and so may what it could not open.
            if Instant::now() + pause >= until {
                return Proved::No(why);
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}
