//! `Audit`: what was done, and whether the record of it is whole.
//!
//! Reading the log is recorded in it, but not refused when it can't be written: that is when it is
//! needed.

use std::{fmt::Display, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use kms_proto::v1::{
    self, FollowEventsRequest, FollowEventsResponse, ListEventsRequest, ListEventsResponse,
    VerifyChainRequest, VerifyChainResponse, audit_server,
};
use tokio::{sync::watch, time::timeout};
use tonic::{Request, Response, Status, async_trait};

use super::in_order::Answers;
use crate::{
    audit::{Audit, PAGE_MAX, Page, Verification},
    replication::Auditing,
    rpc::{
        access::{policy::Permit, verb::Verb},
        gate::recording::Recorder,
        messages::{
            audit::{self, wire_checkpoint, wire_tip},
            status::Refused,
        },
    },
};
use kms_core::audit::{
    AuditEvent, AuditOutcome, AuditedCall, ChainTip, Detail, NodeId, SiteKeys, StoredEvent, Subject,
};

/// The longest wait of a follower before it looks again: chains of other nodes tell us nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The auditors' side of the wire.
#[derive(Clone)]
pub(crate) struct AuditService {
    pub(crate) audit: Arc<Audit>,
    /// Copies of the other site's chains; `None`: there is no other site.
    pub(crate) copies: Option<Arc<Auditing>>,
    /// Of this site.
    pub(crate) site: String,
}

#[async_trait]
impl audit_server::Audit for AuditService {
    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let permit = Permit::of(&request, Verb::ListEvents)?;
        let call = Recorder(Arc::clone(&self.audit)).call(&permit, &request);
        let ListEventsRequest { node_id, after, page_size, site } = request.into_inner();
        let limit = match page_size {
            0 => PAGE_MAX,
            1..=PAGE_MAX => page_size,
            _ => {
                let problem = "a page has 1,000 events at most";
                return Err(Refused::Field { field: "page_size", problem }.into());
            }
        };
        let (Page { events, heads, more, tip }, chains, keys) = match self.copies_of(&site)? {
            None => self.own_page(&node_id, after, limit).await?,
            Some(copies) => copied_page(copies, &node_id, after, limit).await?,
        };
        let answer = ListEventsResponse {
            events: events.iter().map(event).collect(),
            checkpoints: heads.iter().map(wire_checkpoint).collect(),
            more,
            public_key: Bytes::copy_from_slice(keys.first()),
            tip: Some(wire_tip(&tip)),
            chains: chains.iter().map(wire_tip).collect(),
            further_public_keys: further(&keys),
        };
        self.read(&call, &[(Detail::After, after), (Detail::Items, events.len() as u64)]).await;
        Ok(Response::new(answer))
    }

    type FollowEventsStream = Answers<FollowEventsResponse>;

    async fn follow_events(
        &self,
        request: Request<FollowEventsRequest>,
    ) -> Result<Response<Self::FollowEventsStream>, Status> {
        let permit = Permit::of(&request, Verb::FollowEvents)?;
        let call = Recorder(Arc::clone(&self.audit)).call(&permit, &request);
        let FollowEventsRequest { node_id, after } = request.into_inner();
        let node = self.node(&node_id)?;
        self.page(node, after, 1).await?;
        self.read(&call, &[(Detail::After, after)]).await;
        let state = (self.clone(), self.audit.follow(), after);
        let answers = stream::try_unfold(state, move |(this, mut tip, after)| async move {
            let page = this.next(node, after, &mut tip).await?;
            let last = page.events.last().map_or(after, |event| event.sequence);
            let answer = FollowEventsResponse {
                events: page.events.iter().map(event).collect(),
                checkpoints: page.heads.iter().map(wire_checkpoint).collect(),
            };
            Ok(Some((answer, (this, tip, last))))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn verify_chain(
        &self,
        request: Request<VerifyChainRequest>,
    ) -> Result<Response<VerifyChainResponse>, Status> {
        let permit = Permit::of(&request, Verb::VerifyChain)?;
        let call = Recorder(Arc::clone(&self.audit)).call(&permit, &request);
        let VerifyChainRequest { node_id, site } = request.into_inner();
        self.read(&call, &[]).await;
        let (Verification { tip, heads, broken }, keys) = match self.copies_of(&site)? {
            None => {
                let found = self.audit.verify(self.node(&node_id)?).await.map_err(unreadable)?;
                (found.ok_or_else(no_chain)?, self.audit.keys())
            }
            Some(copies) => verified_copy(copies, &node_id).await?,
        };
        let node = tip.node;
        if let Some(broken) = &broken {
            tracing::error!(%broken, "the audit chain is broken");
        }
        Ok(Response::new(VerifyChainResponse {
            node_id: Bytes::copy_from_slice(&node.0),
            intact: broken.is_none(),
            sequence: tip.sequence,
            hash: Bytes::copy_from_slice(&tip.hash),
            checkpoints: heads,
            first_bad_sequence: broken.map_or(0, |broken| broken.sequence),
            reason: broken.map_or_else(String::new, |broken| broken.what.to_string()),
            public_key: Bytes::copy_from_slice(keys.first()),
            further_public_keys: further(&keys),
        }))
    }
}

impl AuditService {
    fn node(&self, bytes: &[u8]) -> Result<NodeId, Refused> {
        if bytes.is_empty() {
            return Ok(self.audit.status().node);
        }
        let problem = "a node id has 16 bytes";
        bytes.try_into().map(NodeId).map_err(|_| Refused::Field { field: "node_id", problem })
    }

    /// Where the chains of this site are; `None`: they are our own.
    fn copies_of(&self, site: &str) -> Result<Option<&Auditing>, Refused> {
        if site.is_empty() || site == self.site {
            return Ok(None);
        }
        let copies = self.copies.as_deref().filter(|copies| copies.peer() == site);
        let problem = "neither this site nor the other one has this name";
        copies.map(Some).ok_or(Refused::Field { field: "site", problem })
    }

    async fn own_page(&self, node: &[u8], after: u64, limit: u32) -> Result<Pieced, Status> {
        let page = self.page(self.node(node)?, after, limit).await?;
        let chains = self.audit.chains().await.map_err(unreadable)?;
        Ok((page, chains, self.audit.keys()))
    }

    async fn page(&self, node: NodeId, after: u64, limit: u32) -> Result<Page, Status> {
        let page = self.audit.page(node, after, limit).await.map_err(unreadable)?;
        Ok(page.ok_or_else(no_chain)?)
    }

    /// The next events of a chain, as soon as there are any.
    async fn next(
        &self,
        node: NodeId,
        after: u64,
        tip: &mut watch::Receiver<ChainTip>,
    ) -> Result<Page, Status> {
        loop {
            tip.borrow_and_update();
            let page = self.page(node, after, PAGE_MAX).await?;
            if !page.events.is_empty() {
                return Ok(page);
            }
            // Late or gone: both mean to look again.
            let _ = timeout(LOOK_AGAIN, tip.changed()).await;
        }
    }

    async fn read(&self, call: &AuditedCall, details: &[(Detail, u64)]) {
        let mut entry = call.entry(self.audit.now_ms(), Subject::NONE, AuditOutcome::Done);
        entry.details = details.to_vec();
        if let Err(error) = self.audit.record(entry).await {
            tracing::error!(%error, caller = %call.caller, "a look at the audit log is not in it");
        }
    }
}

/// A page, all chains there are, and the key that signs them.
type Pieced = (Page, Vec<ChainTip>, SiteKeys);

async fn copied_page(
    copies: &Auditing,
    node: &[u8],
    after: u64,
    limit: u32,
) -> Result<Pieced, Status> {
    let (chains, newest) = copies.ends().await.map_err(unreadable)?;
    let node = copied_node(node, newest)?;
    let page = copies.page(node, after, limit).await.map_err(unreadable)?.ok_or_else(no_chain)?;
    Ok((page, chains, copies.keys(node).await.map_err(unreadable)?))
}

/// The keys of a site's other tokens.
fn further(keys: &SiteKeys) -> Vec<Bytes> {
    keys.iter().skip(1).map(|key| Bytes::copy_from_slice(key)).collect()
}

async fn verified_copy(copies: &Auditing, node: &[u8]) -> Result<(Verification, SiteKeys), Status> {
    let (_, newest) = copies.ends().await.map_err(unreadable)?;
    let node = copied_node(node, newest)?;
    let found = copies.verify(node).await.map_err(unreadable)?.ok_or_else(no_chain)?;
    Ok((found, copies.keys(node).await.map_err(unreadable)?))
}

/// The copy that is asked for; without a name the one with the newest event.
fn copied_node(bytes: &[u8], newest: Option<NodeId>) -> Result<NodeId, Refused> {
    let node = audit::node(bytes).map_err(Refused::from)?;
    node.or(newest).ok_or_else(no_chain)
}

fn unreadable(error: impl Display) -> Status {
    tracing::warn!(%error, "the audit log can't be read");
    Refused::AuditNotReadable.into()
}

fn no_chain() -> Refused {
    Refused::NoAuditChain
}

/// An event whose bytes are none comes as it can: its place and its hash, with nothing in between, so
/// that whoever checks the chain finds it bad.
fn event(stored: &StoredEvent) -> v1::AuditEvent {
    let StoredEvent { node, sequence, hash, body } = stored;
    let hash = Bytes::copy_from_slice(hash);
    let place = v1::AuditEvent {
        node_id: Bytes::copy_from_slice(&node.0),
        sequence: *sequence,
        hash,
        ..v1::AuditEvent::default()
    };
    let entry = match AuditEvent::decode(body) {
        Ok(event) if (event.node, event.sequence) == (*node, *sequence) => event.entry,
        _ => return place,
    };
    let (outcome, reason) = match &entry.outcome {
        AuditOutcome::Done => (v1::AuditOutcome::Done, String::new()),
        AuditOutcome::Refused(word) => (v1::AuditOutcome::Refused, word.to_string()),
        AuditOutcome::Failed(word) => (v1::AuditOutcome::Failed, word.to_string()),
    };
    let title = entry.subject.system_title;
    let detail = |(name, number): &(Detail, u64)| v1::AuditDetail {
        name: (*name as u8).into(),
        number: *number,
    };
    v1::AuditEvent {
        at_ms: entry.at_ms,
        caller: entry.call.caller.to_string(),
        verb: entry.call.verb.to_string(),
        request_id: entry.call.request_id.to_string(),
        meter_id: entry.subject.meter_id.map_or_else(String::new, |id| id.as_str().to_owned()),
        system_title: title
            .map_or_else(Bytes::new, |title| Bytes::copy_from_slice(title.as_bytes())),
        block: entry.subject.block.map(|block| block.0),
        outcome: outcome as i32,
        reason,
        details: entry.details.iter().map(detail).collect(),
        blocks: entry
            .blocks
            .iter()
            .map(|(block, items)| v1::AuditBlock { block: block.0, items: *items })
            .collect(),
        heads: entry
            .heads
            .iter()
            .map(|mark| v1::AuditHead {
                block: mark.block.0,
                epoch: mark.position.epoch.0,
                sequence: mark.position.sequence.0,
                digest: Bytes::copy_from_slice(&mark.digest),
            })
            .collect(),
        ..place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_details_are_those_of_the_wire() {
        for detail in Detail::ALL {
            let wire = v1::AuditDetailName::try_from(i32::from(*detail as u8)).unwrap();
            let word = wire.as_str_name().to_lowercase();
            assert_eq!(word.trim_end_matches("_lines"), detail.word());
        }
        assert!(v1::AuditDetailName::try_from(Detail::ALL.len() as i32 + 1).is_err());
    }
}
