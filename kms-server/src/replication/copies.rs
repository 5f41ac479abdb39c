//! Copies of the other site's audit chains, as auditors read them here: under the key of the token that signed each, whatever
//! token that site has now.

use super::auditing::Auditing;
use crate::{
    audit::{PAGE_MAX, Page, Verification},
    store::StoreError,
};
use kms_core::audit::{AuditEvent, Broken, ChainTip, NodeId, SiteKeys, Verifier, copying::Copied};

impl Auditing {
    /// Where the copies end, and which of them has the newest event.
    pub async fn ends(&self) -> Result<(Vec<ChainTip>, Option<NodeId>), StoreError> {
        let copies = self.chains.peer_chains(self.peer()).await?;
        let mut newest = None;
        for Copied { tip, .. } in &copies {
            let last =
                self.chains.peer_events(&tip.node, tip.sequence.saturating_sub(1), 1).await?;
            let last = last.first().and_then(|event| AuditEvent::decode(&event.body).ok());
            newest = newest.max(last.map(|event| (event.entry.at_ms, tip.node)));
        }
        Ok((copies.into_iter().map(|copy| copy.tip).collect(), newest.map(|(_, node)| node)))
    }

    /// Events of a copy behind number `after`, as of a chain of our own. `None`: there is no such copy.
    pub async fn page(
        &self,
        node: NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Option<Page>, StoreError> {
        let copies = self.chains.peer_chains(self.peer()).await?;
        let Some(copy) = copies.into_iter().find(|copy| copy.tip.node == node) else {
            return Ok(None);
        };
        let limit = limit.min(PAGE_MAX);
        let mut events = self.chains.peer_events(&node, after, limit).await?;
        // The copy goes on meanwhile: what came later is for the next page.
        events.retain(|event| event.sequence <= copy.tip.sequence);
        let more = events.len() >= limit as usize;
        let last = if more { events.last().map_or(after, |it| it.sequence) } else { copy.signed };
        let mut heads = self.chains.peer_checkpoints(&node, after, PAGE_MAX).await?;
        heads.retain(|head| head.tip.sequence <= last);
        Ok(Some(Page { events, heads, more, tip: copy.tip }))
    }

    /// Whose heads count in a copy.
    pub async fn keys(&self, node: NodeId) -> Result<SiteKeys, String> {
        self.signers(&node, &self.enrolled().await?).await
    }

    /// Checks all of a copy. `None`: there is no such one.
    pub async fn verify(&self, node: NodeId) -> Result<Option<Verification>, String> {
        let mut verifier = Verifier::new(ChainTip::empty(node), self.keys(node).await?);
        let Some(known) = self.copies().await?.into_iter().find(|it| it.tip.node == node) else {
            return Ok(None);
        };
        let broken = loop {
            let page = self.page(node, verifier.tip().sequence, PAGE_MAX).await;
            let Some(page) = page.map_err(|error| error.to_string())? else { break None };
            if let Err(broken) = walk(&mut verifier, &page) {
                break Some(broken);
            }
            if !page.more {
                break verifier.finish(Some(known.tip)).err();
            }
        };
        Ok(Some(Verification { tip: verifier.tip(), heads: verifier.heads_seen(), broken }))
    }
}

fn walk(verifier: &mut Verifier, page: &Page) -> Result<(), Broken> {
    for head in &page.heads {
        verifier.head(head.clone())?;
    }
    page.events.iter().try_for_each(|event| verifier.event(event).map(drop))
}
