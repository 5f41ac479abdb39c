//! When a connection is cut.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::connection::EndOfLife;
use crate::rpc::{
    config::Limits,
    drain::{DrainWatch, Phase},
    figures::Figures,
    gate::peer::Peer,
};

/// The cut at the end of a drain, that of a connection which was asked to end and did not, and that of one
/// whose answers nobody reads.
pub(super) fn end_of_life(
    limits: &Limits,
    drain: DrainWatch,
    peer: Peer,
    figures: Arc<Figures>,
) -> EndOfLife {
    let life = limits.connection_age_max.map(|age| age.saturating_add(limits.drain_timeout));
    let patience = limits.answer_timeout;
    Box::pin(async move {
        let cut = async {
            tokio::select! {
                () = drain.reached(Phase::Cut) => {}
                () = unread(&peer, patience) => {
                    figures.cut_unread();
                    tracing::warn!(?peer, ?patience, "its answers are not read: connection cut");
                }
            }
        };
        match life {
            Some(life) => drop(timeout(life, cut).await),
            None => cut.await,
        }
    })
}

/// Ends when something has waited for its reader for too long.
async fn unread(peer: &Peer, patience: Duration) {
    while peer.writes().waited() < patience {
        // Late by a quarter, at most.
        tokio::time::sleep(patience / 4).await;
    }
}
