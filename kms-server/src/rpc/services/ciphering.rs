//! `Ciphering`: split the columns, open or protect, put the columns together again.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use kms_proto::v1::{
    AnswerHlsChallengeRequest, AnswerHlsChallengeResponse, ApduBatch, BeginHlsRequest,
    BeginHlsResponse, DecryptBatchResponse, DecryptRequest, DecryptResponse, EncryptBatchResponse,
    EncryptRequest, EncryptResponse, PlainBatch, TriageRequest, TriageResponse,
    VerifyHlsAnswerRequest, VerifyHlsAnswerResponse, VerifyMicBatchResponse, VerifyMicRequest,
    VerifyMicResponse, ciphering_server,
};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{
    in_order::{Answers, answer_in_order},
    looks::Looks,
    triages::Triages,
};
use crate::{
    associations::Associations,
    audit::Audit,
    ciphering::{Ciphering, Item, OpenedBatch, Outcome, Want},
    lifecycle::LifecycleError,
    rpc::{
        access::{
            policy::{Permit, Policy},
            verb::Verb,
        },
        messages::{
            columns::{self, Misfit},
            deadline::timeout_of,
            lifecycle_status::of_lifecycle,
            request_id::RequestId,
            status::{Refused, of_incoming},
            transmitting,
            words::optional_title,
        },
        shares::budget::Budget,
    },
    transmitting::{Origin, Plain, ProtectedBatch, Transmitting, refuse_claimed},
};
use kms_core::{SecuritySetup, SystemTitle, Verdict};

/// The HES's side of the wire.
#[derive(Clone)]
pub(crate) struct CipheringService {
    pub(crate) ciphering: Arc<Ciphering>,
    pub(crate) transmitting: Arc<Transmitting>,
    pub(crate) associations: Arc<Associations>,
    pub(crate) audit: Arc<Audit>,
    pub(crate) budget: Budget,
    pub(crate) message_bytes_max: usize,
    pub(crate) looks: Arc<Looks>,
    pub(crate) triages: Arc<Triages>,
    pub(crate) policy: Arc<Policy>,
}

/// The reason beside a MIC that failed and would not with two keys exchanged.
const EXCHANGED: &str = "the MIC verifies with the meter's encryption key and GAK in each other's place: they \
                         were exchanged when they were imported";

#[async_trait]
impl ciphering_server::Ciphering for CipheringService {
    async fn decrypt(
        &self,
        request: Request<DecryptRequest>,
    ) -> Result<Response<DecryptResponse>, Status> {
        let permit = Permit::of(&request, Verb::Decrypt)?;
        let DecryptRequest { apdu, meter_id, system_title, security_setup } = request.into_inner();
        let item = item(&apdu, &meter_id, &system_title, security_setup)?;
        let (outcome, plaintext) = self.open_one(&permit, item, Want::Plaintext).await?;
        Ok(Response::new(decrypt_response(outcome, plaintext)))
    }

    async fn decrypt_batch(
        &self,
        request: Request<ApduBatch>,
    ) -> Result<Response<DecryptBatchResponse>, Status> {
        let permit = Permit::of(&request, Verb::DecryptBatch)?;
        let batch = request.into_inner();
        let _charge = self.budget.charge(&permit, batch.lengths.len())?;
        Ok(Response::new(self.decrypt_columns(&permit, &batch).await?))
    }

    type DecryptStreamStream = Answers<DecryptBatchResponse>;

    async fn decrypt_stream(
        &self,
        request: Request<Streaming<ApduBatch>>,
    ) -> Result<Response<Self::DecryptStreamStream>, Status> {
        let permit = Permit::of(&request, Verb::DecryptStream)?;
        let this = self.clone();
        let answers = answer_in_order(self.batches(request), move |batch| {
            let (this, permit) = (this.clone(), Arc::clone(&permit));
            async move {
                let _charge = this.budget.charge_soon(&permit, batch.lengths.len()).await?;
                this.decrypt_columns(&permit, &batch).await
            }
        });
        Ok(Response::new(answers))
    }

    async fn verify_mic(
        &self,
        request: Request<VerifyMicRequest>,
    ) -> Result<Response<VerifyMicResponse>, Status> {
        let permit = Permit::of(&request, Verb::VerifyMic)?;
        let VerifyMicRequest { apdu, meter_id, system_title, security_setup } =
            request.into_inner();
        let item = item(&apdu, &meter_id, &system_title, security_setup)?;
        let (outcome, _) = self.open_one(&permit, item, Want::Verdict).await?;
        Ok(Response::new(verify_response(outcome)))
    }

    async fn verify_mic_batch(
        &self,
        request: Request<ApduBatch>,
    ) -> Result<Response<VerifyMicBatchResponse>, Status> {
        let permit = Permit::of(&request, Verb::VerifyMicBatch)?;
        let batch = request.into_inner();
        let _charge = self.budget.charge(&permit, batch.lengths.len())?;
        Ok(Response::new(self.verify_columns(&permit, &batch).await?))
    }

    async fn encrypt(
        &self,
        request: Request<EncryptRequest>,
    ) -> Result<Response<EncryptResponse>, Status> {
        let permit = Permit::of(&request, Verb::Encrypt)?;
        let came = Came::of(&request);
        let EncryptRequest { apdu, meter_id, system_title, protecting } = request.into_inner();
        let how = transmitting::how(protecting)?;
        let whose = transmitting::whose(&meter_id, &system_title)?;
        let _charge = self.budget.charge(&permit, 1)?;
        let item = transmitting::item(&apdu, whose, how);
        let batch = self.protect(&permit, &came, &[item]).await?;
        Ok(Response::new(transmitting::protected(batch).map_err(misfit)?))
    }

    async fn begin_hls(
        &self,
        request: Request<BeginHlsRequest>,
    ) -> Result<Response<BeginHlsResponse>, Status> {
        self.begin(request).await
    }

    async fn answer_hls_challenge(
        &self,
        request: Request<AnswerHlsChallengeRequest>,
    ) -> Result<Response<AnswerHlsChallengeResponse>, Status> {
        self.answer(request).await
    }

    async fn verify_hls_answer(
        &self,
        request: Request<VerifyHlsAnswerRequest>,
    ) -> Result<Response<VerifyHlsAnswerResponse>, Status> {
        self.verify(request).await
    }

    async fn encrypt_batch(
        &self,
        request: Request<PlainBatch>,
    ) -> Result<Response<EncryptBatchResponse>, Status> {
        let permit = Permit::of(&request, Verb::EncryptBatch)?;
        let came = Came::of(&request);
        let batch = request.into_inner();
        let how = transmitting::how(batch.protecting)?;
        let _charge = self.budget.charge(&permit, batch.lengths.len())?;
        let items = transmitting::items(&batch, how)?;
        let protected = self.protect(&permit, &came, &items).await?;
        let answer = transmitting::protected_batch(batch.tag, items.len(), protected);
        Ok(Response::new(answer.map_err(misfit)?))
    }

    async fn triage(
        &self,
        request: Request<TriageRequest>,
    ) -> Result<Response<TriageResponse>, Status> {
        let permit = Permit::of(&request, Verb::Triage)?;
        Ok(Response::new(self.triage_for(&permit, request).await?))
    }

    type VerifyMicStreamStream = Answers<VerifyMicBatchResponse>;

    async fn verify_mic_stream(
        &self,
        request: Request<Streaming<ApduBatch>>,
    ) -> Result<Response<Self::VerifyMicStreamStream>, Status> {
        let permit = Permit::of(&request, Verb::VerifyMicStream)?;
        let this = self.clone();
        let answers = answer_in_order(self.batches(request), move |batch| {
            let (this, permit) = (this.clone(), Arc::clone(&permit));
            async move {
                let _charge = this.budget.charge_soon(&permit, batch.lengths.len()).await?;
                this.verify_columns(&permit, &batch).await
            }
        });
        Ok(Response::new(answers))
    }
}

/// A call's own name, and the end of its caller's patience.
pub(super) struct Came {
    id: Option<RequestId>,
    until: Option<Instant>,
}

impl Came {
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        let id = request.extensions().get().cloned();
        let until = timeout_of(request.metadata());
        Self { id, until: until.and_then(|timeout| Instant::now().checked_add(timeout)) }
    }
}

impl CipheringService {
    fn batches(
        &self,
        request: Request<Streaming<ApduBatch>>,
    ) -> impl futures_util::Stream<Item = Result<ApduBatch, Status>> + Send + 'static {
        let limit = self.message_bytes_max;
        request.into_inner().map(move |batch| batch.map_err(|status| of_incoming(status, limit)))
    }

    async fn decrypt_columns(
        &self,
        permit: &Permit,
        batch: &ApduBatch,
    ) -> Result<DecryptBatchResponse, Status> {
        let items = columns::items(batch)?;
        let opened = self.open(permit, &items, Want::Plaintext).await;
        Ok(columns::decrypted(batch.tag, items.len(), opened).map_err(misfit)?)
    }

    async fn verify_columns(
        &self,
        permit: &Permit,
        batch: &ApduBatch,
    ) -> Result<VerifyMicBatchResponse, Status> {
        let items = columns::items(batch)?;
        let opened = self.open(permit, &items, Want::Verdict).await;
        Ok(columns::verified(batch.tag, items.len(), opened).map_err(misfit)?)
    }

    /// Opens, and counts for the audit log what became of it.
    async fn open(&self, permit: &Permit, items: &[Item<'_>], want: Want) -> OpenedBatch {
        let opened = self.ciphering.open_batch(items, want).await;
        let outcomes = opened.outcomes.iter();
        let outcomes = outcomes.map(|outcome| (outcome.system_title, outcome.verdict));
        self.audit.count(permit.caller().as_str(), permit.verb().name(), outcomes);
        opened
    }

    /// Protects, and counts for the audit log what became of it.
    async fn protect(
        &self,
        permit: &Permit,
        came: &Came,
        items: &[Plain<'_>],
    ) -> Result<ProtectedBatch, Status> {
        self.must_write()?;
        let origin = self.origin(permit, came)?;
        let protected = match refuse_claimed(items) {
            Some(refused) => refused,
            None => self.transmitting.protect_for(&origin, items).await,
        };
        let outcomes = protected.outcomes.iter().filter(|outcome| !outcome.by_another);
        let outcomes = outcomes.map(|outcome| (outcome.system_title, outcome.verdict));
        self.audit.count(permit.caller().as_str(), permit.verb().name(), outcomes);
        Ok(protected)
    }

    /// Said of the whole call, so that it is made at the site that writes.
    pub(super) fn must_write(&self) -> Result<(), Status> {
        let refused = |reason| of_lifecycle(&LifecycleError::NotPrimary { reason });
        self.transmitting.writes().map_err(refused)
    }

    /// What goes with what is forwarded.
    pub(super) fn origin<'a>(
        &self,
        permit: &'a Permit,
        came: &'a Came,
    ) -> Result<Origin<'a>, Refused> {
        let roles = self.policy.roles(permit.caller()).map_err(Refused::from)?;
        Ok(Origin {
            caller: permit.caller().as_str(),
            roles: roles.iter().map(|role| role.name()).collect(),
            call: permit.verb().name(),
            request_id: came.id.as_ref().map_or("", RequestId::as_str),
            until: came.until,
        })
    }

    /// Says of a MIC that failed when two keys were exchanged. Single calls only: what many frames do, one
    /// of them shows.
    fn look_closer(&self, permit: &Permit, item: &Item<'_>, outcome: &mut Outcome) {
        let failed = outcome.verdict == Verdict::MicFailure;
        let Some(title) = outcome.system_title.filter(|_| failed) else { return };
        if self.looks.may(permit.caller(), Instant::now())
            && self.ciphering.is_exchanged(item, title)
        {
            outcome.reason = Some(EXCHANGED.into());
        }
    }

    /// A batch of one. The plaintext is empty unless the item was opened and wanted.
    async fn open_one(
        &self,
        permit: &Permit,
        item: Item<'_>,
        want: Want,
    ) -> Result<(Outcome, Bytes), Status> {
        let _charge = self.budget.charge(permit, 1)?;
        let OpenedBatch { plaintexts, lengths: _, mut outcomes } =
            self.open(permit, &[item], want).await;
        if let Some(outcome) = outcomes.first_mut() {
            self.look_closer(permit, &item, outcome);
        }
        match (outcomes.pop(), outcomes.is_empty()) {
            (Some(outcome), true)
                if outcome.verdict.may_have_plaintext() && want == Want::Plaintext =>
            {
                Ok((outcome, plaintexts.into()))
            }
            (Some(outcome), true) => Ok((outcome, Bytes::new())),
            _ => Err(misfit(Misfit).into()),
        }
    }
}

pub(super) fn misfit(Misfit: Misfit) -> Refused {
    Refused::Fault("ciphering's answer does not fit its batch")
}

fn item<'a>(
    apdu: &'a [u8],
    meter_id: &'a str,
    system_title: &[u8],
    security_setup: Option<u32>,
) -> Result<Item<'a>, Refused> {
    let title = optional_title("system_title", system_title)?;
    let named = columns::named(title.as_ref().map(SystemTitle::as_bytes), meter_id).ok_or(
        Refused::Field {
            field: "meter_id",
            problem: "give a meter id or a system title, not both",
        },
    )?;
    let setup = security_setup.map(setup_of).transpose()?;
    Ok(Item { apdu, named, setup })
}

fn setup_of(number: u32) -> Result<SecuritySetup, Refused> {
    u8::try_from(number)
        .map(SecuritySetup)
        .map_err(|_| Refused::Field { field: "security_setup", problem: "it is 0 to 255" })
}

fn decrypt_response(outcome: Outcome, plaintext: Bytes) -> DecryptResponse {
    DecryptResponse {
        verdict: outcome.verdict as i32,
        plaintext,
        authenticated: outcome.verdict == Verdict::Ok,
        system_title: title_bytes(outcome.system_title),
        encryption_key_version: outcome.encryption_key_version.into(),
        authentication_key_version: outcome.authentication_key_version.into(),
        invocation_counter: outcome.invocation_counter,
        reason: outcome.reason.map_or_else(String::new, Into::into),
        security_setup: outcome.setup.0.into(),
        duplicate: outcome.duplicate,
    }
}

fn verify_response(outcome: Outcome) -> VerifyMicResponse {
    VerifyMicResponse {
        verdict: outcome.verdict as i32,
        system_title: title_bytes(outcome.system_title),
        encryption_key_version: outcome.encryption_key_version.into(),
        authentication_key_version: outcome.authentication_key_version.into(),
        invocation_counter: outcome.invocation_counter,
        reason: outcome.reason.map_or_else(String::new, Into::into),
        security_setup: outcome.setup.0.into(),
        duplicate: outcome.duplicate,
    }
}

fn title_bytes(title: Option<SystemTitle>) -> Bytes {
    title.map_or_else(Bytes::new, |title| Bytes::copy_from_slice(title.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ciphering::Named;

    #[test]
    fn an_item_names_its_meter_once_or_not_at_all() {
        let named = |id, title: &[u8]| item(&[], id, title, None).map(|item| item.named);
        assert_eq!(named("", b""), Ok(Named::InApdu));
        assert_eq!(named("m", b""), Ok(Named::Id("m")));
        assert_eq!(
            named("", b"ABC\0\0\0\0\x01"),
            Ok(Named::Title(SystemTitle::new(*b"ABC\0\0\0\0\x01")))
        );
        assert!(named("m", b"ABC\0\0\0\0\x01").is_err());
        assert!(named("", b"ABC").is_err());
        assert!(item(&[], "", b"", Some(256)).is_err());
    }
}
