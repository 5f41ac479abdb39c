//! Reading the log, and checking all of a chain.

use super::{
    error::AuditError,
    log::Audit,
    paging::{PAGE_MAX, Page},
};
use kms_core::audit::{Broken, ChainTip, NodeId, Verifier};

/// Outcome of a check of a whole chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// The last good event.
    pub tip: ChainTip,
    /// Signed heads that fitted.
    pub heads: u64,
    /// The first bad event, if there is one.
    pub broken: Option<Broken>,
}

impl Audit {
    /// The chains there are. This node's own ends where this process left it.
    pub async fn chains(&self) -> Result<Vec<ChainTip>, AuditError> {
        let own = self.chain.tip();
        let mut chains = self.store.audit_chains().await.map_err(AuditError::of_read)?;
        chains.retain(|tip| tip.node != own.node);
        chains.insert(0, own);
        Ok(chains)
    }

    /// Events of a chain behind number `after`, at most `limit` and [`PAGE_MAX`]. `None`: there is no
    /// such chain.
    pub async fn page(
        &self,
        node: NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Option<Page>, AuditError> {
        let Some(tip) = self.chains().await?.into_iter().find(|tip| tip.node == node) else {
            return Ok(None);
        };
        let limit = limit.min(PAGE_MAX);
        // First the heads: what one of them signs is there when the events are read, and is no tail that was cut.
        let heads = self.store.audit_checkpoints(&node, after, PAGE_MAX).await;
        let mut heads = heads.map_err(AuditError::of_read)?;
        let events =
            self.store.audit_events(&node, after, limit).await.map_err(AuditError::of_read)?;
        let more = events.len() >= limit as usize;
        if let (true, Some(last)) = (more, events.last()) {
            heads.retain(|head| head.tip.sequence <= last.sequence);
        }
        Ok(Some(Page { events, heads, more, tip }))
    }

    /// Checks all of a chain. The end of this node's own is signed first, as this process knows it: so
    /// not even its last events can have been cut off. `None`: there is no such chain.
    pub async fn verify(&self, node: NodeId) -> Result<Option<Verification>, AuditError> {
        let Some(tip) = self.chains().await?.into_iter().find(|tip| tip.node == node) else {
            return Ok(None);
        };
        if node == self.chain.tip().node {
            self.sign().await;
        }
        let mut verifier = Verifier::new(ChainTip::empty(node), self.keys());
        let broken = self.walk(&mut verifier, tip).await?;
        let (tip, heads) = (verifier.tip(), verifier.heads_seen());
        Ok(Some(Verification { tip, heads, broken }))
    }

    async fn walk(
        &self,
        verifier: &mut Verifier,
        known: ChainTip,
    ) -> Result<Option<Broken>, AuditError> {
        loop {
            let after = verifier.tip().sequence;
            let Some(page) = self.page(known.node, after, PAGE_MAX).await? else { break };
            if let Err(broken) = check(verifier, &page) {
                return Ok(Some(broken));
            }
            if !page.more {
                break;
            }
        }
        Ok(verifier.finish(Some(known)).err())
    }
}

fn check(verifier: &mut Verifier, page: &Page) -> Result<(), Broken> {
    for head in &page.heads {
        verifier.head(head.clone())?;
    }
    page.events.iter().try_for_each(|event| verifier.event(event).map(drop))
}
