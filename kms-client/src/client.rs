//! The way in.

use kms_core::enrolment::{Fingerprint, bundle::SignedEnrolment, request::SignedRequest};
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};

use crate::apdu::{Apdu, Checked, Opened};
use crate::approvals::{self, Approval};
use crate::audit::Audit;
use crate::call::{CallError, ConnectError};
use crate::ciphering::{self, Decrypt, StreamOptions, VerifyMic};
use crate::columns::{PackedBatch, PackedReply};
use crate::config::{ClientConfig, ConfigError};
use crate::divergence::{
    self, Decision, DivergencePage, DivergenceResolved, DivergenceRow, DivergenceRule,
};
use crate::flow::Results;
use crate::groups::Groups;
use crate::hls::{
    self, HlsAnswered, HlsAssociation, HlsBegin, HlsBegun, HlsChallenge, HlsGiven, HlsVerified,
    HlsVersions,
};
use crate::meters::Meters;
use crate::names::MeterName;
use crate::readiness::{self, PromotionPlan, SiteReadiness};
use crate::replicated::Replicated;
use crate::report::CallReport;
use crate::request_id::RequestId;
use crate::role::{self, PromoteOptions, Promoted, SiteStanding};
use crate::rotation::Rotation;
use crate::site::{self, SiteStatus};
use crate::site_keks::{self, SiteKekRotation};
use crate::site_keys::{self, BlockSecretRotation};
use crate::sites::Errand;
use crate::stubs;
use crate::syncing::{self, SyncOptions, SyncProgress};
use crate::transmitting::{self, PlainApdu, Protected, Protecting};
use crate::transport::Transport;
use crate::triage::{self, Triage};

/// A connection to the service. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct KmsClient {
    transport: Arc<Transport>,
    options: StreamOptions,
}

impl KmsClient {
    /// Checks the settings and reaches the first endpoint that answers.
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        let transport = Arc::new(Transport::connect(&config).await?);
        Ok(Self { transport, options: StreamOptions::default() })
    }

    /// Checks the settings; connections are made by the first call. Must be called within a Tokio
    /// runtime.
    pub fn connect_lazy(config: ClientConfig) -> Result<Self, ConfigError> {
        let transport = Arc::new(Transport::new(&config)?);
        Ok(Self { transport, options: StreamOptions::default() })
    }

    /// The same connections, with batches and streams cut otherwise.
    #[must_use]
    pub fn with_options(&self, options: StreamOptions) -> Self {
        Self { transport: Arc::clone(&self.transport), options }
    }

    /// The same connections, with all further calls under the caller's own request id, which then
    /// stands in the service's log. Without it each call gets a random one.
    #[must_use]
    pub fn with_request_id(&self, id: RequestId) -> Self {
        Self { transport: Arc::new(self.transport.with_request_id(id)), options: self.options }
    }

    /// The same connections, with who answers said in `report`.
    #[must_use]
    pub fn reporting_to(&self, report: &CallReport) -> Self {
        let transport = self.transport.reporting_to(report.clone());
        Self { transport: Arc::new(transport), options: self.options }
    }

    /// The same connections, with all calls at one site, whatever its role and its health; `None`: the
    /// configuration names no such site.
    #[must_use]
    pub fn at_site(&self, name: &str) -> Option<Self> {
        let transport = Arc::new(self.transport.at(name)?);
        Some(Self { transport, options: self.options })
    }

    /// The sites that calls may go to, in order of preference, as the configuration names them. The one of the
    /// form for one site is called as its first endpoint.
    pub fn site_names(&self) -> Vec<String> {
        self.transport.site_names().map(ToString::to_string).collect()
    }

    /// Opens one APDU.
    pub async fn decrypt(&self, apdu: &Apdu) -> Result<Opened, CallError> {
        ciphering::decrypt(&self.transport, apdu).await
    }

    /// Checks the MIC of one APDU; no plaintext comes back.
    pub async fn verify_mic(&self, apdu: &Apdu) -> Result<Checked, CallError> {
        ciphering::verify_mic(&self.transport, apdu).await
    }

    /// Finds out why frames of one meter don't open: as they were recorded, 1 to 64 of them. No plaintext comes back, and
    /// no receive floor rises. A few a minute for each caller and meter.
    pub async fn triage(
        &self,
        meter: &MeterName,
        frames: Vec<Vec<u8>>,
        security_setup: Option<u8>,
    ) -> Result<Triage, CallError> {
        triage::triage(&self.transport, meter, frames, security_setup).await
    }

    /// Opens many, however many: results in the order of the APDUs. A bad one does not fail the rest.
    pub async fn decrypt_batch(
        &self,
        apdus: impl IntoIterator<Item = Apdu>,
    ) -> Result<Vec<Opened>, CallError> {
        let apdus = apdus.into_iter().collect();
        ciphering::batch::<Decrypt>(&self.transport, self.options, apdus).await
    }

    /// Checks the MICs of many, as [`KmsClient::decrypt_batch`] opens them.
    pub async fn verify_mic_batch(
        &self,
        apdus: impl IntoIterator<Item = Apdu>,
    ) -> Result<Vec<Checked>, CallError> {
        let apdus = apdus.into_iter().collect();
        ciphering::batch::<VerifyMic>(&self.transport, self.options, apdus).await
    }

    /// Protects one plain APDU for its meter. Never tried again once it may have arrived: whoever gets
    /// [`CallError::OutcomeUnknown`] decides whether the meter may get it twice.
    pub async fn encrypt(&self, apdu: &PlainApdu, how: Protecting) -> Result<Protected, CallError> {
        transmitting::encrypt(&self.transport, apdu, how).await
    }

    /// Protects many in one message, as [`KmsClient::encrypt`] does one: results in the order of the APDUs, and those
    /// of one meter get their counters in that order. A bad one does not fail the rest.
    pub async fn encrypt_batch(
        &self,
        apdus: &[PlainApdu],
        how: Protecting,
    ) -> Result<Vec<Protected>, CallError> {
        transmitting::encrypt_batch(&self.transport, apdus, how).await
    }

    /// Begins an association with HLS authentication: the service issues our challenge.
    pub async fn begin_hls(&self, what: &HlsBegin) -> Result<HlsBegun, CallError> {
        hls::begin(&self.transport, what).await
    }

    /// Answers the meter's challenge: bare, or as the ciphered ACTION request that carries the answer.
    pub async fn answer_hls_challenge(
        &self,
        association: &HlsAssociation,
        asked: HlsChallenge,
    ) -> Result<HlsAnswered, CallError> {
        hls::answer(&self.transport, association, asked).await
    }

    /// Verifies the meter's answer to our challenge, under this pair or else under each live one. The association ends with
    /// it.
    pub async fn verify_hls_answer(
        &self,
        association: &HlsAssociation,
        given: HlsGiven,
        versions: Option<HlsVersions>,
    ) -> Result<HlsVerified, CallError> {
        hls::verify(&self.transport, association, given, versions).await
    }

    /// Opens whatever `apdus` yields, for as long as it does, in order. The cheapest way to open
    /// millions. Must be called within a Tokio runtime.
    pub fn decrypt_stream(
        &self,
        apdus: impl Stream<Item = Apdu> + Send + 'static,
    ) -> Results<Opened> {
        ciphering::stream::<Decrypt>(Arc::clone(&self.transport), self.options, apdus)
    }

    /// Checks the MICs of whatever `apdus` yields, as [`KmsClient::decrypt_stream`] opens it.
    pub fn verify_mic_stream(
        &self,
        apdus: impl Stream<Item = Apdu> + Send + 'static,
    ) -> Results<Checked> {
        ciphering::stream::<VerifyMic>(Arc::clone(&self.transport), self.options, apdus)
    }

    /// The calls about meters.
    pub fn meters(&self) -> Meters {
        Meters::of(Arc::clone(&self.transport))
    }

    /// The calls about the life of keys.
    pub fn rotation(&self) -> Rotation {
        Rotation::of(Arc::clone(&self.transport))
    }

    /// The calls about broadcast groups.
    pub fn groups(&self) -> Groups {
        Groups::of(Arc::clone(&self.transport))
    }

    /// The calls about the audit log.
    pub fn audit(&self) -> Audit {
        Audit::of(Arc::clone(&self.transport))
    }

    /// The calls that wait for their second person at this site, the oldest first. A call waits where it was asked: of
    /// several sites choose each by [`KmsClient::at_site`].
    pub async fn approvals(&self) -> Result<Vec<Approval>, CallError> {
        approvals::list(&self.transport).await
    }

    /// Is the second person of this call, as [`KmsClient::approvals`] showed it: another one that waits under its number
    /// by now is refused. Whoever made it makes it again; then it passes, once. Both must talk to the same site.
    pub async fn approve_call(&self, shown: &Approval) -> Result<Approval, CallError> {
        approvals::approve(&self.transport, shown).await
    }

    /// The status of the site.
    pub async fn site_status(&self) -> Result<SiteStatus, CallError> {
        site::status(&self.transport).await
    }

    /// What the site that follows has proved, in signed reports.
    pub async fn site_readiness(&self) -> Result<SiteReadiness, CallError> {
        readiness::readiness(&self.transport).await
    }

    /// What a promotion of the site would cost now. With `open_blocks` its token opens every block for the answer,
    /// which takes as long as a round of proofs. Of several sites choose one by [`KmsClient::at_site`].
    pub async fn plan_promotion(&self, open_blocks: bool) -> Result<PromotionPlan, CallError> {
        readiness::plan(&self.transport, open_blocks).await
    }

    /// Makes the site the one that writes. Not tried again once it may have arrived. Of several sites choose one
    /// by [`KmsClient::at_site`].
    pub async fn promote_site(&self, options: PromoteOptions) -> Result<Promoted, CallError> {
        role::promote(&self.transport, options).await
    }

    /// Ends the epoch of the site, so that another one can be promoted without a loss. As
    /// [`KmsClient::promote_site`].
    pub async fn demote_site(&self, expected_epoch: u64) -> Result<SiteStanding, CallError> {
        role::demote(&self.transport, expected_epoch).await
    }

    /// Asks for the second person of a promotion, which is made later with the same options: refused as
    /// [`CallError::SecondPersonNeeded`] until somebody has approved it; then the approval, which is not used by this.
    /// `None`: one person is enough.
    pub async fn ask_to_promote(
        &self,
        options: PromoteOptions,
    ) -> Result<Option<Approval>, CallError> {
        role::ask_to_promote(&self.transport, options).await
    }

    /// The same for a demotion.
    pub async fn ask_to_demote(&self, expected_epoch: u64) -> Result<Option<Approval>, CallError> {
        role::ask_to_demote(&self.transport, expected_epoch).await
    }

    /// Records that one site wrote alone and that were set aside, page by page: those that wait for a decision, and with
    /// `decided` the others, too.
    pub async fn divergence(
        &self,
        after: Option<Vec<u8>>,
        decided: bool,
    ) -> Result<DivergencePage, CallError> {
        divergence::list(&self.transport, after, decided).await
    }

    /// The record of this id that was set aside; none if there is no such one.
    pub async fn divergence_of(&self, id: Vec<u8>) -> Result<Vec<DivergenceRow>, CallError> {
        divergence::show(&self.transport, id).await
    }

    /// Decides about records that were set aside. Asked of the site that writes. To ask again changes nothing.
    pub async fn resolve_divergence(
        &self,
        rule: DivergenceRule,
        decision: Decision,
    ) -> Result<DivergenceResolved, CallError> {
        divergence::resolve(&self.transport, rule, decision).await
    }

    /// Has the site take in a promotion of the other one that is more than one step ahead. Takes two people.
    pub async fn admit_epoch(&self, epoch: u64) -> Result<SiteStanding, CallError> {
        divergence::admit(&self.transport, epoch).await
    }

    /// Has the domain forget how new the revocation list of an authority was, so that lists from another number on count
    /// again: how often that was done, and whether the other site has that. Takes two people.
    pub async fn forget_revocation_list(
        &self,
        authority: &[u8],
        number: &[u8],
        from: &[u8],
    ) -> Result<(u32, Replicated), CallError> {
        divergence::forget_list(&self.transport, [authority, number, from]).await
    }

    /// Has the secrets of all blocks rotated, or says how far the rotation is that is under way. Asked of the site that
    /// writes.
    pub async fn rotate_block_secrets(&self) -> Result<BlockSecretRotation, CallError> {
        site_keys::rotate(&self.transport).await
    }

    /// How far the last rotation of block secrets is.
    pub async fn block_secret_rotation(&self) -> Result<BlockSecretRotation, CallError> {
        site_keys::look(&self.transport).await
    }

    /// Has the site KEK of the token of the server that is asked replaced by a new one, or says how far the rotation is that
    /// is under way.
    pub async fn rotate_site_kek(&self) -> Result<SiteKekRotation, CallError> {
        site_keks::rotate(&self.transport).await
    }

    /// How far the last rotation of the site KEK is.
    pub async fn site_kek_rotation(&self) -> Result<SiteKekRotation, CallError> {
        site_keks::look(&self.transport).await
    }

    /// Has the former site KEK of this id destroyed, and those before it. Backups that were made under one open with nothing
    /// else.
    pub async fn destroy_site_kek(&self, id: &[u8]) -> Result<SiteKekRotation, CallError> {
        site_keks::destroy(&self.transport, id).await
    }

    /// Has a site brought in step with the primary and proved so. The last message says `done`; where the stream
    /// breaks before, it can be asked for again.
    pub async fn sync_site(
        &self,
        options: SyncOptions,
    ) -> Result<impl Stream<Item = Result<SyncProgress, CallError>> + Send + Unpin, CallError> {
        syncing::sync(&self.transport, options).await
    }

    /// Has the site enrol the one that made this request, whose fingerprint two people have compared. With
    /// `replace` a site that is known gets new keys. Gives the bundle for it: to be asked for once more, it is made
    /// anew.
    pub async fn enrol_peer(
        &self,
        request: &SignedRequest,
        fingerprint: Fingerprint,
        replace: bool,
    ) -> Result<SignedEnrolment, CallError> {
        site::enrol(&self.transport, request, fingerprint, replace).await
    }

    /// For benches: one batch that was packed before, its answer not taken apart.
    pub async fn decrypt_packed(&self, batch: &PackedBatch) -> Result<PackedReply, CallError> {
        let send =
            |link, request| async move { stubs::ciphering(link).decrypt_batch(request).await };
        let call = self.transport.call(Errand::Read, batch.0.clone(), send);
        call.await.map(PackedReply)
    }

    /// For benches: batches that were packed before, as fast as the wire takes them. Nothing is
    /// sent again, and no deadline ends the stream.
    pub async fn decrypt_packed_stream(
        &self,
        batches: impl Stream<Item = PackedBatch> + Send + 'static,
    ) -> Result<impl Stream<Item = Result<PackedReply, CallError>> + Send + Unpin, CallError> {
        let once = self.transport.tries(Errand::Write, None);
        let request = once.request(batches.map(|batch| batch.0));
        let replies = stubs::ciphering(once.link()).decrypt_stream(request).await;
        let replies = replies.map_err(|status| CallError::from_status(&status))?.into_inner();
        Ok(replies.map(|reply| match reply {
            Ok(reply) => Ok(PackedReply(reply)),
            Err(status) => Err(CallError::from_status(&status)),
        }))
    }
}

impl std::fmt::Debug for KmsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KmsClient").field("options", &self.options).finish_non_exhaustive()
    }
}
