//! End of a node's chain as the database has it, held against what is known of it elsewhere.

use super::{error::AuditError, heads::Heads};
use crate::store::{StoreError, WriteStore};
use kms_core::{
    audit::{ChainTip, NodeId},
    ports::HeadWitness,
};

/// Where a node's chain ends.
pub(super) struct End {
    pub(super) tip: ChainTip,
    /// The contradiction between that and the last signed heads, or the end that was noted outside the
    /// database.
    pub(super) fault: Option<String>,
    /// It was further: this is an older copy.
    pub(super) is_behind: bool,
}

impl End {
    /// Finds out where the chain of `node` ends in the database, and what that is worth.
    pub(super) async fn find(
        node: NodeId,
        store: &dyn WriteStore,
        heads: &Heads,
        witness: &dyn HeadWitness,
    ) -> Result<Self, AuditError> {
        let (chains, fault) = match store.audit_chains().await {
            Ok(chains) => (chains, None),
            Err(StoreError::Damaged(what)) => (Vec::new(), Some(what)),
            Err(error) => return Err(AuditError::of_read(error)),
        };
        let tip = chains.into_iter().find(|tip| tip.node == node).unwrap_or(ChainTip::empty(node));
        let behind = behind_what_is_known(store, witness, &tip).await?;
        let is_behind = behind.is_some();
        let fault = match fault {
            Some(fault) => Some(fault),
            None => heads.examine(&tip).await?.or(behind),
        };
        Ok(Self { tip, fault, is_behind })
    }
}

/// The event that this server knows of its chain and is not before `tip`; `None`: all are.
async fn behind_what_is_known(
    store: &dyn WriteStore,
    witness: &dyn HeadWitness,
    tip: &ChainTip,
) -> Result<Option<String>, AuditError> {
    let known = witness.known().await.map_err(|error| AuditError::Witness(error.0))?;
    let mut behind = None;
    let is_of_it = |noted: &ChainTip| noted.node == tip.node && noted.sequence > 0;
    for noted in known.tips.into_iter().filter(is_of_it) {
        if !stands_in(store, &noted, tip).await? {
            let (last, noted) = (tip.sequence, noted.sequence);
            behind = Some(format!(
                "the audit chain ends at event {last}, and event {noted} of it, which this server knows, is \
                 not in it"
            ));
        }
    }
    Ok(behind)
}

/// Whether the database has this end of a chain: the chain ends there, or goes on behind it.
pub async fn has_end(store: &dyn WriteStore, noted: &ChainTip) -> Result<bool, AuditError> {
    let chains = store.audit_chains().await.map_err(AuditError::of_read)?;
    let end = chains.into_iter().find(|tip| tip.node == noted.node);
    stands_in(store, noted, &end.unwrap_or(ChainTip::empty(noted.node))).await
}

/// Whether an end that a chain had is its end at `tip`, or one of the events before.
async fn stands_in(
    store: &dyn WriteStore,
    noted: &ChainTip,
    tip: &ChainTip,
) -> Result<bool, AuditError> {
    if noted.sequence >= tip.sequence {
        return Ok(noted == tip);
    }
    let events = store.audit_events(&noted.node, noted.sequence - 1, 1).await;
    let events = events.map_err(AuditError::of_read)?;
    Ok(events
        .first()
        .is_some_and(|event| (event.sequence, event.hash) == (noted.sequence, noted.hash)))
}
