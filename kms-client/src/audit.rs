//! The audit log: reading it, following it, and checking it without believing the server.

mod chain;
mod event;

use std::sync::Arc;

use futures_util::{Stream, stream};
use kms_proto::v1;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use crate::call::{CallError, ProtocolError};
use crate::sites::Errand;
use crate::stubs;
use crate::transport::{Transport, Tries, connected, within};

pub use chain::{BrokenChain, ChainReport, KnownHead};
use chain::{Chain, Head};
pub use event::{AuditBlock, AuditDetail, AuditEvent, AuditHead, AuditOutcome};

/// The calls about the audit log.
#[derive(Clone)]
pub struct Audit {
    transport: Arc<Transport>,
    /// Empty: the site that answers.
    site: String,
}

/// The end of one node's chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainEnd {
    /// The node whose chain it is.
    pub node: [u8; 16],
    /// The last event.
    pub sequence: u64,
    /// Its hash.
    pub hash: [u8; 32],
    /// The time of the last event; milliseconds since 1970. `None`: there is none, or it can't be read.
    pub last_ms: Option<u64>,
}

/// Knowledge that whoever checks brings along.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The fingerprints of the signing keys, as `kms-server init` told them: one of each token that the site has or had.
    /// None: those that the server shows are taken.
    pub key_fingerprints: Vec<[u8; 32]>,
    /// Ends of the chain that were found good before.
    pub heads: Vec<KnownHead>,
}

impl Audit {
    pub(crate) fn of(transport: Arc<Transport>) -> Self {
        Self { transport, site: String::new() }
    }

    /// The chains of this site instead of those of the site that answers: its own, or the copies that it has of the other
    /// site's. Those are signed with the other site's key. Following is of the site that answers only.
    #[must_use]
    pub fn of_site(self, site: &str) -> Self {
        Self { site: site.to_owned(), ..self }
    }

    /// Events of a chain behind number `after`, in order; fetched a page at a time as they are taken.
    /// Without `node`: the chain of the node that answers first. `after` is a number of that chain: take both from
    /// [`Audit::last`].
    pub fn list(
        &self,
        node: Option<[u8; 16]>,
        after: u64,
    ) -> impl Stream<Item = Result<AuditEvent, CallError>> + Send + Unpin + 'static {
        let list = List { audit: self.clone(), node, ask: Some(after), events: Vec::new() };
        Box::pin(stream::try_unfold(list, |mut list| async move {
            let event = list.next().await?;
            Ok(event.map(|event| (event, list)))
        }))
    }

    /// The node and the number of the last event of a chain. Without `node`: of the chain of the node that answers.
    pub async fn last(&self, node: Option<[u8; 16]>) -> Result<([u8; 16], u64), CallError> {
        let page = self.page(node, u64::MAX).await?;
        Ok((node_of(&page)?, page.tip.unwrap_or_default().sequence))
    }

    /// The chains of the site, one a node; that of the node that answers comes first.
    pub async fn chains(&self) -> Result<Vec<ChainEnd>, CallError> {
        let tips = self.page(None, u64::MAX).await?.chains;
        let mut chains = Vec::with_capacity(tips.len());
        for tip in tips {
            let node = tip.node_id[..].try_into().map_err(|_| ProtocolError::Missing("node_id"))?;
            let hash = tip.hash[..].try_into().map_err(|_| ProtocolError::Missing("hash"))?;
            let sequence = tip.sequence;
            let last = match sequence.checked_sub(1) {
                Some(before) => self.page(Some(node), before).await?.events.into_iter().next(),
                None => None,
            };
            chains.push(ChainEnd { node, sequence, hash, last_ms: last.map(|event| event.at_ms) });
        }
        Ok(chains)
    }

    /// Events of a chain behind number `after`, and each that comes; `node` as in [`Audit::list`]. Ends with an error only; a
    /// connection that breaks is made again.
    pub fn follow(
        &self,
        node: Option<[u8; 16]>,
        after: u64,
    ) -> impl Stream<Item = Result<AuditEvent, CallError>> + Send + Unpin + 'static {
        let state = Follow { audit: self.clone(), node, after, replies: None, events: Vec::new() };
        Box::pin(stream::try_unfold(state, |mut state| async move {
            let event = state.next().await?;
            Ok(Some((event, state)))
        }))
    }

    /// Checks all of a chain here, from its events, its signed heads and the key. The server is asked to
    /// sign its end first, so that nothing can have been cut off unnoticed.
    pub async fn verify(
        &self,
        node: Option<[u8; 16]>,
        expected: &Expected,
    ) -> Result<ChainReport, CallError> {
        let request = v1::VerifyChainRequest { node_id: wire_node(node), site: self.site.clone() };
        let send = |link, request| async move { stubs::audit(link).verify_chain(request).await };
        let server = self.transport.call(Errand::AtPrimary, request, send).await?;
        let node: [u8; 16] =
            server.node_id[..].try_into().map_err(|_| ProtocolError::Missing("node_id"))?;
        let key: [u8; 65] =
            server.public_key[..].try_into().map_err(|_| ProtocolError::Missing("public_key"))?;
        let further = server.further_public_keys.iter().map(|key| key[..].try_into());
        let further = further.collect::<Result<_, _>>();
        let further = further.map_err(|_| ProtocolError::Missing("further_public_keys"))?;
        let mut chain = Chain::new(node, key).with_further(further);
        let checked = self.walk(&mut chain, expected, server.sequence, server.intact).await?;
        Ok(chain.report(checked.err()))
    }

    async fn walk(
        &self,
        chain: &mut Chain,
        expected: &Expected,
        claimed: u64,
        intact: bool,
    ) -> Result<Result<(), BrokenChain>, CallError> {
        macro_rules! attempt {
            ($checked:expr) => {
                if let Err(broken) = $checked {
                    return Ok(Err(broken));
                }
            };
        }
        attempt!(chain.check_keys(&expected.key_fingerprints));
        let node = chain.node();
        for head in expected.heads.iter().filter(|head| head.node == node) {
            chain.know(head);
        }
        loop {
            let after = chain.sequence();
            let page = self.page(Some(chain.node()), after).await?;
            for head in &page.checkpoints {
                let head = Head::from_wire(head).ok_or(ProtocolError::Missing("checkpoint"))?;
                attempt!(chain.head(head));
            }
            for event in &page.events {
                attempt!(chain.event(&AuditEvent::from_wire(event.clone())));
            }
            if next_page(&page, after)?.is_none() {
                break;
            }
        }
        attempt!(chain.finish(if intact { claimed } else { 0 }));
        Ok(Ok(()))
    }

    async fn page(
        &self,
        node: Option<[u8; 16]>,
        after: u64,
    ) -> Result<v1::ListEventsResponse, CallError> {
        let (node_id, site) = (wire_node(node), self.site.clone());
        let request = v1::ListEventsRequest { node_id, after, page_size: 0, site };
        let send = |link, request| async move { stubs::audit(link).list_events(request).await };
        self.transport.call(Errand::AtPrimary, request, send).await
    }
}

/// The event after which the next page begins; `None`: there is no next page.
fn next_page(page: &v1::ListEventsResponse, after: u64) -> Result<Option<u64>, ProtocolError> {
    match page.events.last() {
        Some(last) if page.more && last.sequence > after => Ok(Some(last.sequence)),
        Some(_) if page.more => Err(ProtocolError::EndlessList(after.to_string())),
        _ => Ok(None),
    }
}

/// The node whose chain a page is of.
fn node_of(page: &v1::ListEventsResponse) -> Result<[u8; 16], ProtocolError> {
    let tip = page.tip.as_ref().ok_or(ProtocolError::Missing("tip"))?;
    tip.node_id[..].try_into().map_err(|_| ProtocolError::Missing("node_id"))
}

struct List {
    audit: Audit,
    /// The chain, once one has answered: the next page may come from another server, which has one of its own.
    node: Option<[u8; 16]>,
    ask: Option<u64>,
    /// Last first.
    events: Vec<v1::AuditEvent>,
}

impl List {
    async fn next(&mut self) -> Result<Option<AuditEvent>, CallError> {
        loop {
            if let Some(event) = self.events.pop() {
                return Ok(Some(AuditEvent::from_wire(event)));
            }
            let Some(after) = self.ask.take() else { return Ok(None) };
            let page = self.audit.page(self.node, after).await?;
            self.node = Some(node_of(&page)?);
            self.ask = next_page(&page, after)?;
            self.events = page.events;
            self.events.reverse();
        }
    }
}

struct Follow {
    audit: Audit,
    /// The chain, from the first answer on: who answers after a break may be another server, which has one of its own.
    node: Option<[u8; 16]>,
    after: u64,
    replies: Option<Streaming<v1::FollowEventsResponse>>,
    /// Last first.
    events: Vec<v1::AuditEvent>,
}

impl Follow {
    async fn next(&mut self) -> Result<AuditEvent, CallError> {
        self.choose_node().await?;
        let transport = Arc::clone(&self.audit.transport);
        let mut tries = transport.tries(Errand::AtPrimary, None);
        loop {
            if let Some(event) = self.events.pop() {
                self.after = event.sequence;
                return Ok(AuditEvent::from_wire(event));
            }
            match self.receive(&tries, Instant::now() + transport.deadline()).await {
                Ok(events) => {
                    self.events = events;
                    self.events.reverse();
                }
                Err(status) => {
                    self.replies = None;
                    let until = Instant::now() + transport.deadline();
                    tries.after_break(&status, until).await?;
                }
            }
        }
    }

    async fn choose_node(&mut self) -> Result<(), CallError> {
        if self.node.is_none() {
            self.node = Some(self.audit.last(None).await?.0);
        }
        Ok(())
    }

    /// Waits without end for the next events, but only until `until` for the stream to begin.
    async fn receive(
        &mut self,
        tries: &Tries<'_>,
        until: Instant,
    ) -> Result<Vec<v1::AuditEvent>, Status> {
        let replies = match &mut self.replies {
            Some(replies) => replies,
            none => {
                let link = tries.link();
                connected(until, &link).await?;
                let node_id = wire_node(self.node);
                let request = v1::FollowEventsRequest { node_id, after: self.after };
                let request = tries.request(request);
                let replies =
                    within(until, async { stubs::audit(link).follow_events(request).await })
                        .await?;
                none.insert(replies.into_inner())
            }
        };
        let reply = replies.message().await?;
        let ended = || Status::unavailable("the stream was ended");
        reply.map(|reply| reply.events).ok_or_else(ended)
    }
}

fn wire_node(node: Option<[u8; 16]>) -> bytes::Bytes {
    node.map_or_else(bytes::Bytes::new, |node| node.to_vec().into())
}
