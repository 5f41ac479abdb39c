//! `Replication`: answers to the other site.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kms_proto::v1::{
    ExchangeMarksRequest, ExchangeMarksResponse, FetchAuditEventsRequest, FetchAuditEventsResponse,
    FetchBlocksRequest, FetchBlocksResponse, FollowChangesRequest, FollowChangesResponse,
    HandEvidenceRequest, HandEvidenceResponse, ListBlockHeadsRequest, ListBlockHeadsResponse,
    ListFloorsRequest, ListFloorsResponse, ListRoleRecordsRequest, ListRoleRecordsResponse,
    ProveBlocksRequest, ProveBlocksResponse, ReportDivergenceRequest, ReportDivergenceResponse,
    ShowHeadTablesRequest, ShowHeadTablesResponse, replication_server,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::in_order::{Answers, to_its_end};
use crate::{
    ciphering::Ciphering,
    lifecycle::Lifecycle,
    replication::{
        Answering, AuditAsked, AuditSaid, Auditing, HeadTablesSaid, MarksSaid, NotServed,
        Remembered, Remembering, Serving, SiteCard, Witnessing,
    },
    rpc::{
        access::{policy::Permit, sites::Sites, verb::Verb},
        gate::recording::call_of,
        messages::{
            audit, divergence, floors,
            lifecycle_status::of_lifecycle,
            papers,
            sites::{self, BadMessage},
            status::{Refused, of_incoming},
        },
        shares::budget::Budget,
    },
};
use kms_core::{BlockNo, Epoch};

/// The other site's side of the wire.
#[derive(Clone)]
pub(crate) struct ReplicationService {
    /// `None`: this site is the only one.
    pub(crate) parts: Option<ReplicationParts>,
    /// Who is which site.
    pub(crate) sites: Sites,
    /// Receive floors, and what meters have shown to another site.
    pub(crate) ciphering: Arc<Ciphering>,
    /// Takes in what the other site wrote alone.
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) budget: Budget,
    pub(crate) message_bytes_max: usize,
}

/// The parts that answer.
#[derive(Clone)]
pub struct ReplicationParts {
    /// Blocks, heads and role records.
    pub serving: Arc<Serving>,
    /// Proofs.
    pub answering: Arc<Answering>,
    /// Marks of counters.
    pub remembering: Arc<Remembering>,
    /// Head tables.
    pub witnessing: Arc<Witnessing>,
    /// Audit chains, and copies of the other site's.
    pub auditing: Arc<Auditing>,
}

impl ReplicationService {
    fn parts(&self) -> Result<&ReplicationParts, Refused> {
        self.parts.as_ref().ok_or(Refused::SingleSite)
    }

    /// The card of a caller, which is the site that it says.
    fn card(
        &self,
        permit: &Permit,
        card: Option<kms_proto::v1::SiteCard>,
    ) -> Result<SiteCard, Refused> {
        let card = sites::card(card).map_err(Refused::from)?;
        let caller = permit.caller();
        if self.sites.is(caller, &card.site) {
            return Ok(card);
        }
        tracing::warn!(%caller, site = card.site, "a caller speaks for a site that it is not");
        Err(Refused::AnotherSite { caller: caller.clone(), site: card.site })
    }

    /// Takes the peer's card and gives ours, and counts what is asked for.
    async fn greet(
        &self,
        permit: &Permit,
        theirs: Option<kms_proto::v1::SiteCard>,
    ) -> Result<(SiteCard, SiteCard), Status> {
        let parts = self.parts()?;
        let _charge = self.budget.charge(permit, 1)?;
        let theirs = self.card(permit, theirs)?;
        let ours = parts.serving.greet(&theirs).await.map_err(Refused::from)?;
        Ok((theirs, ours))
    }

    /// What changes after the states that the follower names.
    async fn follow(
        &self,
        permit: &Permit,
        request: Request<Streaming<FollowChangesRequest>>,
    ) -> Result<Response<Answers<FollowChangesResponse>>, Status> {
        self.parts()?;
        let limit = self.message_bytes_max;
        let mut messages = request.into_inner();
        let first = messages.try_next().await.map_err(|status| of_incoming(status, limit))?;
        let first = first.unwrap_or_default();
        let (theirs, ours) = self.greet(permit, first.card).await?;
        let cursors = sites::states(first.cursors).map_err(Refused::from)?;
        // What can't be read ends what is said, and with it the session.
        let said = messages.map(|message| {
            let stored = message.map_err(drop)?.stored;
            sites::states(stored).map_err(|BadMessage(_)| ())
        });
        let said = said.take_while(|stored| std::future::ready(stored.is_ok()));
        let said = said.filter_map(|stored| std::future::ready(stored.ok())).boxed();
        let serving = &self.parts()?.serving;
        let sent = serving.follow(&theirs.site, cursors, said).await.map_err(Refused::from)?;
        let hello = FollowChangesResponse { card: Some(sites::wire_card(ours)), update: None };
        // What was said at once is ready at once, so that it shares frames.
        let sent = ReceiverStream::new(sent).map(|said| {
            let said = said.map_err(Refused::from)?.into_iter();
            Ok::<_, Status>(stream::iter(said.map(|it| Ok(sites::wire_said(it)))))
        });
        let sent = sent.try_flatten();
        Ok(Response::new(Box::pin(stream::iter([Ok(hello)]).chain(sent))))
    }
}

#[async_trait]
impl replication_server::Replication for ReplicationService {
    async fn list_block_heads(
        &self,
        request: Request<ListBlockHeadsRequest>,
    ) -> Result<Response<ListBlockHeadsResponse>, Status> {
        let permit = Permit::of(&request, Verb::ListBlockHeads)?;
        let mut request = request.into_inner();
        self.greet(&permit, request.card.take()).await?;
        let serving = &self.parts()?.serving;
        let (heads, reached) = serving.heads(sites::asked(request)).await.map_err(Refused::from)?;
        // Behind the wait: the site may have been promoted meanwhile.
        let card = serving.card().await.map_err(Refused::from)?;
        Ok(Response::new(ListBlockHeadsResponse {
            card: Some(sites::wire_card(card)),
            heads: heads.iter().map(sites::wire_head).collect(),
            reached,
        }))
    }

    type FetchBlocksStream = Answers<FetchBlocksResponse>;

    async fn fetch_blocks(
        &self,
        request: Request<FetchBlocksRequest>,
    ) -> Result<Response<Self::FetchBlocksStream>, Status> {
        let permit = Permit::of(&request, Verb::FetchBlocks)?;
        let FetchBlocksRequest { card, blocks } = request.into_inner();
        let (theirs, ours) = self.greet(&permit, card).await?;
        let blocks = blocks.into_iter().map(BlockNo).collect();
        let serving = &self.parts()?.serving;
        let updates = serving.fetch(&theirs.site, blocks).map_err(Refused::from)?;
        let first = FetchBlocksResponse { card: Some(sites::wire_card(ours)), update: None };
        let updates = ReceiverStream::new(updates).map(|update| {
            let update = Some(sites::wire_update(update.map_err(Refused::from)?));
            Ok(FetchBlocksResponse { card: None, update })
        });
        Ok(Response::new(Box::pin(stream::iter([Ok(first)]).chain(updates))))
    }

    type FollowChangesStream = Answers<FollowChangesResponse>;

    async fn follow_changes(
        &self,
        request: Request<Streaming<FollowChangesRequest>>,
    ) -> Result<Response<Self::FollowChangesStream>, Status> {
        let permit = Permit::of(&request, Verb::FollowChanges)?;
        let caller = permit.caller().to_string();
        let followed = self.follow(&permit, request).await;
        if let (Err(refused), Some(parts)) = (&followed, &self.parts) {
            parts.serving.turned_away(&caller, refused.message().to_owned());
        }
        followed
    }

    type ProveBlocksStream = Answers<ProveBlocksResponse>;

    async fn prove_blocks(
        &self,
        request: Request<ProveBlocksRequest>,
    ) -> Result<Response<Self::ProveBlocksStream>, Status> {
        let permit = Permit::of(&request, Verb::ProveBlocks)?;
        let ProveBlocksRequest { card, challenges, report } = request.into_inner();
        let (theirs, ours) = self.greet(&permit, card).await?;
        let challenges = sites::challenges(challenges).map_err(Refused::from)?;
        let report = report.map(papers::report).transpose().map_err(Refused::from)?;
        self.parts()?.answering.take(report).await;
        let proofs = self.parts()?.answering.prove(theirs, challenges).map_err(Refused::from)?;
        let first = ProveBlocksResponse { card: Some(sites::wire_card(ours)), proofs: Vec::new() };
        let proofs = ReceiverStream::new(proofs).map(|proofs| {
            let proofs = proofs.into_iter().map(sites::wire_proof).collect();
            Ok(ProveBlocksResponse { card: None, proofs })
        });
        Ok(Response::new(Box::pin(stream::iter([Ok(first)]).chain(proofs))))
    }

    async fn exchange_marks(
        &self,
        request: Request<ExchangeMarksRequest>,
    ) -> Result<Response<ExchangeMarksResponse>, Status> {
        let permit = Permit::of(&request, Verb::ExchangeMarks)?;
        self.parts()?;
        let (theirs, asked) = sites::marks_asked(request.into_inner()).map_err(Refused::from)?;
        let site = theirs.site.clone();
        let (_, card) = self.greet(&permit, Some(sites::wire_card(theirs))).await?;
        let exchanged = self.parts()?.remembering.exchange(&site, asked).await;
        let Remembered { marks, set_aside, since } = exchanged.map_err(Refused::from)?;
        let said = MarksSaid { card, marks, set_aside, remembers_since: since };
        Ok(Response::new(sites::wire_marks_said(said)))
    }

    type ListRoleRecordsStream = Answers<ListRoleRecordsResponse>;

    async fn list_role_records(
        &self,
        request: Request<ListRoleRecordsRequest>,
    ) -> Result<Response<Self::ListRoleRecordsStream>, Status> {
        let permit = Permit::of(&request, Verb::ListRoleRecords)?;
        let _charge = self.budget.charge(&permit, 1)?;
        let ListRoleRecordsRequest { card, from_epoch } = request.into_inner();
        let serving = &self.parts()?.serving;
        // Not met as in other calls: both may ask this of each other at one time, and neither waits.
        let theirs = self.card(&permit, card)?;
        let ours = serving.know(&theirs).await.map_err(Refused::from)?;
        let records = serving.role_records(Epoch(from_epoch)).await.map_err(Refused::from)?;
        let first =
            ListRoleRecordsResponse { card: Some(sites::wire_card(ours)), records: Vec::new() };
        // One a message: it has the state of each block.
        let records = stream::iter(records).map(|record| {
            let records = vec![sites::wire_role_record(&record)];
            Ok(ListRoleRecordsResponse { card: None, records })
        });
        Ok(Response::new(Box::pin(stream::iter([Ok(first)]).chain(records))))
    }

    async fn list_floors(
        &self,
        request: Request<ListFloorsRequest>,
    ) -> Result<Response<ListFloorsResponse>, Status> {
        let permit = Permit::of(&request, Verb::ListFloors)?;
        let ListFloorsRequest { card, after } = request.into_inner();
        let (_, ours) = self.greet(&permit, card).await?;
        let place = floors::after(after).map_err(Refused::from)?;
        let rows = self.ciphering.floors().stored_after(&place).await;
        let rows = rows.map_err(|error| Refused::from(NotServed::from(error)))?;
        Ok(Response::new(ListFloorsResponse {
            card: Some(sites::wire_card(ours)),
            floors: rows.iter().map(floors::wire).collect(),
        }))
    }

    async fn hand_evidence(
        &self,
        request: Request<HandEvidenceRequest>,
    ) -> Result<Response<HandEvidenceResponse>, Status> {
        let permit = Permit::of(&request, Verb::HandEvidence)?;
        let HandEvidenceRequest { card, messages } = request.into_inner();
        let (_, ours) = self.greet(&permit, card).await?;
        let _charge = self.budget.charge(&permit, messages.len())?;
        let messages = sites::evidence(messages).map_err(Refused::from)?;
        // Else it would be handed back.
        if ours.writes {
            self.ciphering.hear(&messages).await;
        }
        Ok(Response::new(HandEvidenceResponse { card: Some(sites::wire_card(ours)) }))
    }

    async fn report_divergence(
        &self,
        request: Request<ReportDivergenceRequest>,
    ) -> Result<Response<ReportDivergenceResponse>, Status> {
        let permit = Permit::of(&request, Verb::ReportDivergence)?;
        let call = call_of(permit.caller(), permit.verb(), request.extensions().get());
        let ReportDivergenceRequest { card, records } = request.into_inner();
        let (theirs, ours) = self.greet(&permit, card).await?;
        let charge = self.budget.charge(&permit, records.len())?;
        let rows = divergence::reported(records, &theirs.site)?;
        let serving = &self.parts()?.serving;
        let may = serving.may_report(&theirs.site, &rows).await.map_err(Refused::from)?;
        let is_replica = !serving.peers().any(|peer| peer == theirs.site);
        let lifecycle = Arc::clone(&self.lifecycle);
        let taken = rows.into_iter().zip(&may).filter(|(_, may)| may.is_ok()).map(|(row, _)| row);
        let taken: Vec<_> = taken.collect();
        let known = to_its_end(async move {
            let _charge = charge;
            let known = lifecycle.take_report(&call, taken, is_replica).await;
            known.map_err(|error| of_lifecycle(&error))
        })
        .await?;
        let known = divergence::answers(&may, known);
        Ok(Response::new(ReportDivergenceResponse {
            card: Some(sites::wire_card(ours)),
            answers: known.into_iter().map(divergence::wire_known).collect(),
        }))
    }

    async fn show_head_tables(
        &self,
        request: Request<ShowHeadTablesRequest>,
    ) -> Result<Response<ShowHeadTablesResponse>, Status> {
        let permit = Permit::of(&request, Verb::ShowHeadTables)?;
        let (theirs, card) = self.greet(&permit, request.into_inner().card).await?;
        let witnessing = &self.parts()?.witnessing;
        let shown = witnessing.shown().await;
        let (own, witnessed) = shown.map_err(|error| {
            tracing::warn!(error, "head tables can't be read");
            Refused::PeerStore
        })?;
        let known = witnessing.known_tokens(&theirs.site).await;
        let tokens = witnessing.token_lists();
        let said = HeadTablesSaid { card, own, witnessed, tokens, known };
        Ok(Response::new(sites::wire_head_tables(said)))
    }

    async fn fetch_audit_events(
        &self,
        request: Request<FetchAuditEventsRequest>,
    ) -> Result<Response<FetchAuditEventsResponse>, Status> {
        let permit = Permit::of(&request, Verb::FetchAuditEvents)?;
        let FetchAuditEventsRequest { card, node_id, after, heads_after } = request.into_inner();
        let (_, card) = self.greet(&permit, card).await?;
        let node = audit::node(&node_id).map_err(Refused::from)?;
        let asked = AuditAsked { node, after, heads_after };
        let read = self.parts()?.auditing.piece(asked).await;
        let (chains, piece) = read.map_err(|error| Refused::from(NotServed::from(error)))?;
        Ok(Response::new(audit::wire_said(AuditSaid { card, chains, piece })))
    }
}
