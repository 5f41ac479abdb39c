//! The audit log: reading it, following it, and checking it without believing the server.

mod chain;

use futures_util::{Stream, stream};
use kms_proto::v1;
use kms_proto::v1::audit_client::AuditClient;
use serde::{Serialize, Serializer};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use crate::call::{CallError, ProtocolError};
use crate::client::KmsClient;
use crate::link::Link;
use crate::retry::Safety;
use crate::transport::{ANSWER_LEN_MAX, Tries, connected, within};

pub use chain::{BrokenChain, KnownHead};
use chain::{Chain, Head};

/// The calls about the audit log.
#[derive(Clone)]
pub struct Audit {
    client: KmsClient,
}

/// One event, as the server tells it; [`Audit::verify`] shows whether that is what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditEvent {
    /// Whose chain; 16 bytes.
    #[serde(serialize_with = "as_hex")]
    pub node_id: Vec<u8>,
    /// From 1, without a gap.
    pub sequence: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The name in the caller's certificate; `kms-server`: the service itself.
    pub caller: String,
    /// Such as `Meters/DeleteMeter`.
    pub verb: String,
    /// What the caller sent as `x-request-id`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    /// The meter, by the operator's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub meter_id: String,
    /// The meter, by its name on the wire.
    #[serde(serialize_with = "as_hex", skip_serializing_if = "Vec::is_empty")]
    pub system_title: Vec<u8>,
    /// The block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<u32>,
    /// How the call ended.
    pub outcome: AuditOutcome,
    /// Why not otherwise; empty if done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<AuditDetail>,
    /// Of a record of crypto traffic: items by block.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<AuditBlock>,
    /// Where each block stands that changed with this event.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<AuditHead>,
    /// Of this event and all before it.
    #[serde(serialize_with = "as_hex")]
    pub hash: Vec<u8>,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AuditOutcome {
    /// The event could not be read.
    Unreadable = 0,
    /// As asked.
    Done = 1,
    /// For what was asked, or who asked.
    Refused = 2,
    /// For a fault of the service.
    Failed = 3,
}

/// A number in an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditDetail {
    /// What it counts.
    pub name: String,
    /// How many.
    pub number: u64,
    #[serde(skip)]
    wire_name: u32,
}

/// Items of one block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditBlock {
    /// The block.
    pub block: u32,
    /// How many.
    pub items: u64,
}

/// Where a block stood after a change, and what was in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditHead {
    /// The block.
    pub block: u32,
    /// The writer's epoch.
    pub epoch: u64,
    /// The change's number within the block.
    pub sequence: u64,
    /// Over its records' MACs.
    #[serde(serialize_with = "as_hex")]
    pub digest: Vec<u8>,
}

/// Where one node's chain ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainEnd {
    /// Whose.
    pub node: [u8; 16],
    /// The last event.
    pub sequence: u64,
    /// Its hash.
    pub hash: [u8; 32],
    /// When it was written; `None`: there is none, or it can't be read.
    pub last_ms: Option<u64>,
}

/// What became of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChainReport {
    /// Whose chain; 32 hex digits.
    pub node_id: String,
    /// Nothing is wrong.
    pub intact: bool,
    /// The last good event.
    pub sequence: u64,
    /// Its hash; 64 hex digits.
    pub hash: String,
    /// Signed heads that fitted.
    pub checkpoints: u64,
    /// The first bad event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_bad_sequence: Option<u64>,
    /// What is wrong there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// SHA-256 of the key that signs, as `kms-server init` told it.
    pub key_fingerprint: String,
}

/// What whoever checks knows beforehand.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The fingerprint of the signing key, as `kms-server init` told it.
    pub key_fingerprint: Option<[u8; 32]>,
    /// Ends of the chain that were found good before.
    pub heads: Vec<KnownHead>,
}

fn as_hex<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

impl Audit {
    pub(crate) fn of(client: KmsClient) -> Self {
        Self { client }
    }

    /// Events of a chain behind number `after`, in order; fetched a page at a time as they are taken.
    /// Without `node`: the chain of the node that answers.
    pub fn list(
        &self,
        node: Option<[u8; 16]>,
        after: u64,
    ) -> impl Stream<Item = Result<AuditEvent, CallError>> + Send + Unpin + 'static {
        let state = (self.clone(), Some(after), Vec::new().into_iter());
        let next = move |(this, mut ask, mut events): (
            Self,
            Option<u64>,
            std::vec::IntoIter<v1::AuditEvent>,
        )| async move {
            loop {
                if let Some(event) = events.next() {
                    return Ok(Some((AuditEvent::from_wire(event), (this, ask, events))));
                }
                let Some(after) = ask.take() else { return Ok(None) };
                let page = this.page(node, after).await?;
                ask = next_page(&page, after)?;
                events = page.events.into_iter();
            }
        };
        Box::pin(stream::try_unfold(state, next))
    }

    /// The number of the last event of a chain.
    pub async fn last(&self, node: Option<[u8; 16]>) -> Result<u64, CallError> {
        let page = self.page(node, u64::MAX).await?;
        Ok(page.tip.unwrap_or_default().sequence)
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

    /// Events of a chain behind number `after`, and each that comes. Ends with an error only; a
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
        let request = v1::VerifyChainRequest { node_id: wire_node(node) };
        let send = |link, request| async move { wire(link).verify_chain(request).await };
        let server = self.client.transport().call(Safety::Repeatable, request, send).await?;
        let node: [u8; 16] =
            server.node_id[..].try_into().map_err(|_| ProtocolError::Missing("node_id"))?;
        let key: [u8; 65] =
            server.public_key[..].try_into().map_err(|_| ProtocolError::Missing("public_key"))?;
        let mut chain = Chain::new(node, key);
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
        attempt!(chain.check_key(expected.key_fingerprint.as_ref()));
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
        let request = v1::ListEventsRequest { node_id: wire_node(node), after, page_size: 0 };
        let send = |link, request| async move { wire(link).list_events(request).await };
        self.client.transport().call(Safety::Repeatable, request, send).await
    }
}

/// Where the page after this one begins.
fn next_page(page: &v1::ListEventsResponse, after: u64) -> Result<Option<u64>, ProtocolError> {
    match page.events.last() {
        Some(last) if page.more && last.sequence > after => Ok(Some(last.sequence)),
        Some(_) if page.more => Err(ProtocolError::EndlessList(after.to_string())),
        _ => Ok(None),
    }
}

struct Follow {
    audit: Audit,
    node: Option<[u8; 16]>,
    after: u64,
    replies: Option<Streaming<v1::FollowEventsResponse>>,
    /// Last first.
    events: Vec<v1::AuditEvent>,
}

impl Follow {
    async fn next(&mut self) -> Result<AuditEvent, CallError> {
        let transport = self.audit.client.shared();
        let mut tries = transport.tries(Safety::Repeatable, None);
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
                    within(until, async { wire(link).follow_events(request).await }).await?;
                none.insert(replies.into_inner())
            }
        };
        let reply = replies.message().await?;
        let ended = || Status::unavailable("the stream was ended");
        reply.map(|reply| reply.events).ok_or_else(ended)
    }
}

impl AuditEvent {
    fn from_wire(wire: v1::AuditEvent) -> Self {
        let outcome = match wire.outcome() {
            v1::AuditOutcome::Unspecified => AuditOutcome::Unreadable,
            v1::AuditOutcome::Done => AuditOutcome::Done,
            v1::AuditOutcome::Refused => AuditOutcome::Refused,
            v1::AuditOutcome::Failed => AuditOutcome::Failed,
        };
        Self {
            node_id: wire.node_id.to_vec(),
            sequence: wire.sequence,
            at_ms: wire.at_ms,
            caller: wire.caller,
            verb: wire.verb,
            request_id: wire.request_id,
            meter_id: wire.meter_id,
            system_title: wire.system_title.to_vec(),
            block: wire.block,
            outcome,
            reason: wire.reason,
            details: wire.details.into_iter().map(AuditDetail::from_wire).collect(),
            blocks: wire
                .blocks
                .into_iter()
                .map(|block| AuditBlock { block: block.block, items: block.items })
                .collect(),
            heads: wire
                .heads
                .into_iter()
                .map(|head| AuditHead {
                    block: head.block,
                    epoch: head.epoch,
                    sequence: head.sequence,
                    digest: head.digest.to_vec(),
                })
                .collect(),
            hash: wire.hash.to_vec(),
        }
    }
}

impl AuditDetail {
    fn from_wire(wire: v1::AuditDetail) -> Self {
        let known =
            i32::try_from(wire.name).ok().and_then(|n| v1::AuditDetailName::try_from(n).ok());
        let name = known.map_or_else(
            || format!("detail_{}", wire.name),
            |name| name.as_str_name().to_lowercase(),
        );
        Self { name, number: wire.number, wire_name: wire.name }
    }
}

fn wire_node(node: Option<[u8; 16]>) -> bytes::Bytes {
    node.map_or_else(bytes::Bytes::new, |node| node.to_vec().into())
}

fn wire(link: Link) -> AuditClient<Link> {
    AuditClient::new(link).max_decoding_message_size(ANSWER_LEN_MAX)
}
