//! The calls to the peer. One connection carries all of them; it is made when it is needed, and made anew when it has
//! ended.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};
use kms_proto::v1::{
    FetchAuditEventsRequest, FetchBlocksRequest, FollowChangesRequest, ListFloorsRequest,
    ListRoleRecordsRequest, ShowHeadTablesRequest, replication_client::ReplicationClient,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Streaming,
    transport::{Channel, Endpoint},
};

use super::{
    connector::Connector,
    failure::{of_message, of_status},
};
use crate::{
    replication::{
        AuditAsked, AuditSaid, BlockProof, BlockUpdate, Followed, HeadTablesSaid, HeadsAsked,
        HeadsSaid, Known, MarksAsked, MarksSaid, Peer, PeerError, SiteCard,
    },
    rpc::{
        config::{PeerConfig, TlsConfig},
        messages::{audit, divergence, floors, sites},
    },
    store::sites::Divergent,
};
use kms_core::{
    BlockNo, Epoch,
    block::BlockMark,
    floors::{FloorPlace, FloorRow},
    ports::MetersMessage,
    site::{readiness::SignedReadiness, role::SignedRoleRecord},
};

/// A peer that says nothing is asked after so long whether it is there, and may take so long to answer.
const PINGS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(2));
/// The longest time until an answer begins, beside a wait that was asked for, and between two messages of one that
/// has an end.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that the peer may send before we have taken them up: for one stream, for one connection.
const WINDOWS: (u32, u32) = (1 << 20, 4 << 20);
/// The longest answer: the heads of the largest key domain.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Sayings of what is stored that wait for the peer to read them.
const SAID_AHEAD: usize = 16;

/// The other site, over gRPC.
pub struct PeerClient {
    calls: ReplicationClient<Channel>,
}

impl PeerClient {
    /// To the peer of `config`, with the identity of `own`. Opens no connection yet; call within a Tokio runtime.
    pub fn new(config: PeerConfig, own: TlsConfig) -> Self {
        let calls = ReplicationClient::new(channel(config, own));
        Self { calls: calls.max_decoding_message_size(ANSWER_BYTES_MAX) }
    }
}

/// Connections that are made when they are needed. Call within a Tokio runtime.
pub(super) fn channel(config: PeerConfig, own: TlsConfig) -> Channel {
    let connector = Connector::new(config, own);
    // Its address is the connector's affair.
    let endpoint = Endpoint::from_static("http://peer")
        .http2_keep_alive_interval(PINGS.0)
        .keep_alive_timeout(PINGS.1)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1);
    let connect = tower::service_fn(move |_: http::Uri| connector.clone().connect());
    endpoint.connect_with_connector_lazy(connect)
}

/// Waits for the beginning of an answer.
async fn begun<T>(
    wait: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, PeerError> {
    match timeout(wait, call).await {
        Ok(answer) => Ok(answer.map_err(|status| of_status(&status))?.into_inner()),
        Err(_) => Err(PeerError::Broken(format!("no answer within {wait:?}"))),
    }
}

/// The next message of an answer that has an end.
async fn next<T>(messages: &mut Streaming<T>) -> Result<Option<T>, PeerError> {
    match timeout(PATIENCE, messages.message()).await {
        Ok(message) => message.map_err(|status| of_status(&status)),
        Err(_) => Err(PeerError::Broken(format!("an answer did not go on for {PATIENCE:?}"))),
    }
}

#[async_trait]
impl Peer for PeerClient {
    async fn list_heads(&self, card: SiteCard, asked: HeadsAsked) -> Result<HeadsSaid, PeerError> {
        let wait = PATIENCE + Duration::from_millis(asked.wait_ms.into());
        let request = sites::wire_asked(card, asked);
        let said = begun(wait, self.calls.clone().list_block_heads(request)).await?;
        let heads = said.heads.into_iter().map(|head| sites::head(Some(head)));
        Ok(HeadsSaid {
            card: sites::card(said.card).map_err(of_message)?,
            heads: heads.collect::<Result<_, _>>().map_err(of_message)?,
            reached: said.reached,
        })
    }

    async fn fetch_blocks(
        &self,
        card: SiteCard,
        blocks: Vec<BlockNo>,
    ) -> Result<BoxStream<'static, Result<BlockUpdate, PeerError>>, PeerError> {
        let blocks = blocks.into_iter().map(|block| block.0).collect();
        let request = FetchBlocksRequest { card: Some(sites::wire_card(card)), blocks };
        let messages = begun(PATIENCE, self.calls.clone().fetch_blocks(request)).await?;
        let updates = stream::try_unfold(messages, |mut messages| async move {
            while let Some(message) = next(&mut messages).await? {
                if let Some(update) = message.update {
                    let update = sites::update(update).map_err(of_message)?;
                    return Ok(Some((update, messages)));
                }
            }
            Ok(None)
        });
        Ok(updates.boxed())
    }

    async fn follow(&self, card: SiteCard, cursors: Vec<BlockMark>) -> Result<Followed, PeerError> {
        let (tell, told) = mpsc::channel::<Vec<BlockMark>>(SAID_AHEAD);
        let first = FollowChangesRequest {
            card: Some(sites::wire_card(card)),
            cursors: sites::wire_states(cursors),
            stored: Vec::new(),
        };
        let later = ReceiverStream::new(told).map(|stored| FollowChangesRequest {
            stored: sites::wire_states(stored),
            ..FollowChangesRequest::default()
        });
        let request = Request::new(stream::iter([first]).chain(later));
        let messages = begun(PATIENCE, self.calls.clone().follow_changes(request)).await?;
        let said = messages
            .map_err(|status| of_status(&status))
            .and_then(|message| std::future::ready(sites::said(message).map_err(of_message)))
            .map_ok(|said| stream::iter(said).map(Ok))
            .try_flatten();
        Ok(Followed { said: said.boxed(), tell })
    }

    async fn prove(
        &self,
        card: SiteCard,
        challenges: Vec<(BlockNo, [u8; 32])>,
        report: Option<SignedReadiness>,
    ) -> Result<(SiteCard, Vec<BlockProof>), PeerError> {
        let most = challenges.len();
        let request = sites::wire_challenges(card, challenges, report.as_ref());
        let mut messages = begun(PATIENCE, self.calls.clone().prove_blocks(request)).await?;
        let first = next(&mut messages).await?.unwrap_or_default();
        let card = sites::card(first.card).map_err(of_message)?;
        let mut proofs = Vec::with_capacity(most);
        while let Some(message) = next(&mut messages).await? {
            for proof in message.proofs {
                proofs.push(sites::proof(proof).map_err(of_message)?);
            }
            if proofs.len() > most {
                return Err(PeerError::Unreadable("there are more proofs than challenges"));
            }
        }
        if proofs.len() < most {
            return Err(PeerError::Unreadable("there are fewer proofs than challenges"));
        }
        Ok((card, proofs))
    }

    async fn exchange_marks(
        &self,
        card: SiteCard,
        asked: MarksAsked,
    ) -> Result<MarksSaid, PeerError> {
        let request = sites::wire_marks_asked(card, asked);
        let said = begun(PATIENCE, self.calls.clone().exchange_marks(request)).await?;
        sites::marks_said(said).map_err(of_message)
    }

    async fn role_records(
        &self,
        card: SiteCard,
        from: Epoch,
    ) -> Result<BoxStream<'static, Result<SignedRoleRecord, PeerError>>, PeerError> {
        let request =
            ListRoleRecordsRequest { card: Some(sites::wire_card(card)), from_epoch: from.0 };
        let messages = begun(PATIENCE, self.calls.clone().list_role_records(request)).await?;
        // One message is in memory at a time; whoever reads them ends it where one does not hold.
        let records = stream::try_unfold(messages, |mut messages| async move {
            let Some(message) = next(&mut messages).await? else { return Ok(None) };
            let records = message.records.iter().map(sites::role_record);
            let records = records.collect::<Result<Vec<_>, _>>().map_err(of_message)?;
            Ok(Some((stream::iter(records.into_iter().map(Ok)), messages)))
        });
        Ok(records.try_flatten().boxed())
    }

    async fn report_divergence(
        &self,
        card: SiteCard,
        rows: Vec<Divergent>,
    ) -> Result<(SiteCard, Vec<Known>), PeerError> {
        let most = rows.len();
        let request = divergence::wire_reported(card, rows);
        let said = begun(PATIENCE, self.calls.clone().report_divergence(request)).await?;
        if said.answers.len() != most {
            return Err(PeerError::Unreadable("there are not as many answers as records"));
        }
        let known = said.answers.into_iter().map(divergence::known);
        let known = known.collect::<Result<_, _>>().map_err(of_message)?;
        Ok((sites::card(said.card).map_err(of_message)?, known))
    }

    async fn hand_evidence(
        &self,
        card: SiteCard,
        messages: Vec<MetersMessage>,
    ) -> Result<SiteCard, PeerError> {
        let request = sites::wire_evidence(card, messages);
        let said = begun(PATIENCE, self.calls.clone().hand_evidence(request)).await?;
        sites::card(said.card).map_err(of_message)
    }

    async fn floors(
        &self,
        card: SiteCard,
        after: FloorPlace,
    ) -> Result<(SiteCard, Vec<FloorRow>), PeerError> {
        let after = Some(floors::wire_after(&after));
        let request = ListFloorsRequest { card: Some(sites::wire_card(card)), after };
        let said = begun(PATIENCE, self.calls.clone().list_floors(request)).await?;
        let card = sites::card(said.card).map_err(of_message)?;
        Ok((card, floors::rows(said.floors).map_err(of_message)?))
    }

    async fn head_tables(&self, card: SiteCard) -> Result<HeadTablesSaid, PeerError> {
        let request = ShowHeadTablesRequest { card: Some(sites::wire_card(card)) };
        let said = begun(PATIENCE, self.calls.clone().show_head_tables(request)).await?;
        sites::head_tables(said).map_err(of_message)
    }

    async fn audit(&self, card: SiteCard, asked: AuditAsked) -> Result<AuditSaid, PeerError> {
        let AuditAsked { node, after, heads_after } = asked;
        let node_id = node.map_or_else(Default::default, |node| audit::wire_node(&node));
        let card = Some(sites::wire_card(card));
        let request = FetchAuditEventsRequest { card, node_id, after, heads_after };
        let said = begun(PATIENCE, self.calls.clone().fetch_audit_events(request)).await?;
        audit::said(said, node).map_err(of_message)
    }
}
