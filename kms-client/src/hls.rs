//! HLS authentication of associations. The service keeps the challenges and gives out the counters; no step is sent a second
//! time once it may have arrived. The three calls of one association are for one server: whichever this client is connected
//! to. Where it was another one meanwhile, the service says so (`ASSOCIATION_OF_ANOTHER_NODE`), and a new one is begun.

use std::time::Duration;

use bytes::Bytes;
use dlms::SystemTitle;
use kms_core::Numbered as _;
use kms_core::counters::refusal::Refusal;
use kms_proto::v1;

use crate::apdu::Verdict;
use crate::call::{CallError, ProtocolError};
use crate::meter::optional_title;
use crate::names::MeterName;
use crate::sites::Errand;
use crate::stubs;
use crate::transmitting::{ApduProtection, CipheringForm, id_of, title_of};
use crate::transport::Transport;

/// An association to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HlsBegin {
    /// The meter.
    pub meter: MeterName,
    /// e in `0.0.43.0.e.255`.
    pub security_setup: u8,
    /// The client (its address; 0: the meter's default).
    pub client: u16,
    /// HLS_authentication_mechanism_id: 2 to 6.
    pub mechanism: u8,
    /// Bytes of our challenge, 8 to 64; 0: 16.
    pub challenge_length: u8,
    /// Of mechanism 5. `None`: by the key's length, 0 or 2.
    pub security_suite: Option<u8>,
    /// The pair that the meter is presumed to hold; `None`: the preferred one.
    pub versions: Option<HlsVersions>,
}

/// Versions of GUEK and GAK that are staged, active or compromised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HlsVersions {
    /// Of the GUEK, from 1 on.
    pub encryption: u16,
    /// Of the GAK, from 1 on.
    pub authentication: u16,
}

/// The name of an association. It stands in no log.
#[derive(Clone, PartialEq, Eq)]
pub struct HlsAssociation(Bytes);

impl HlsAssociation {
    /// Bytes of a handle.
    const LEN: usize = 32;

    /// The handle that was given before; `None`: none has so many bytes.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Option<Self> {
        Some(Self(bytes.into())).filter(|it| it.0.len() == Self::LEN)
    }

    /// The handle: whoever has it goes on with the association.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for HlsAssociation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HlsAssociation(..)")
    }
}

/// What was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HlsBegun {
    /// `OK`, or why nothing was begun.
    pub verdict: Verdict,
    /// Its name, if it was.
    pub association: Option<HlsAssociation>,
    /// CtoS, for the AARQ.
    pub challenge: Bytes,
    /// The utility's title, for the AARQ.
    pub client_title: Option<SystemTitle>,
    /// The meter's title.
    pub system_title: Option<SystemTitle>,
    /// It is known for so long.
    pub expires_in: Duration,
    /// Says more of a verdict that is not `OK`.
    pub refusal: Option<Refusal>,
    /// One sentence for people.
    pub reason: Option<String>,
}

/// The ACTION request that is to carry an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HlsAction {
    /// Of the caller.
    pub invoke_id_and_priority: u8,
    /// The envelope: glo- or general-glo.
    pub form: CipheringForm,
    /// Authenticated, encrypted, or both.
    pub protection: ApduProtection,
}

/// A meter's challenge to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HlsChallenge {
    /// StoC.
    pub challenge: Bytes,
    /// `None`: the answer is wanted bare.
    pub action: Option<HlsAction>,
    /// Another pair than the association was begun with; `None`: that.
    pub versions: Option<HlsVersions>,
}

/// The answer to a meter's challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HlsAnswered {
    /// `OK`, or why there is none.
    pub verdict: Verdict,
    /// f(StoC), or the ciphered APDU around it where one was wanted.
    pub bytes: Option<Bytes>,
    /// The counter in the answer; 0: it has none.
    pub invocation_counter: u32,
    /// The counter of the APDU around it; 0: there is none.
    pub apdu_invocation_counter: u32,
    /// Version of the GUEK that it was made with, or that is around it; 0: none took part.
    pub encryption_key_version: u32,
    /// Version of the GAK; 0: none took part.
    pub authentication_key_version: u32,
    /// Says more of a verdict that is not `OK`.
    pub refusal: Option<Refusal>,
    /// One sentence for people.
    pub reason: Option<String>,
}

/// A meter's answer, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HlsGiven {
    /// f(CtoS) itself.
    Bare(Bytes),
    /// The ciphered APDU around it, not opened before.
    Carried(Bytes),
}

/// The judgement of a meter's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HlsVerified {
    /// `OK`: the meter has shown that it has the key. Anything else: abort the association.
    pub verdict: Verdict,
    /// Version of the GUEK that it was made with; 0: none took part.
    pub encryption_key_version: u32,
    /// Version of the GAK; 0: none took part.
    pub authentication_key_version: u32,
    /// Version of the HLS secret; 0: none took part.
    pub secret_version: u32,
    /// The counter in the answer; 0: it has none.
    pub invocation_counter: u32,
    /// One sentence for people.
    pub reason: Option<String>,
}

/// As the wire has it: 0 and 0 where none is named.
fn versions_of(versions: Option<HlsVersions>) -> (u32, u32) {
    versions.map_or((0, 0), |it| (it.encryption.into(), it.authentication.into()))
}

fn said(reason: String) -> Option<String> {
    Some(reason).filter(|reason| !reason.is_empty())
}

fn refusal(number: i32) -> Option<Refusal> {
    u8::try_from(number).ok().and_then(Refusal::from_number)
}

fn contradiction(what: &'static str, verdict: Verdict) -> CallError {
    ProtocolError::Contradiction { index: 0, what, verdict: verdict.word() }.into()
}

/// Begins one.
pub(crate) async fn begin(transport: &Transport, what: &HlsBegin) -> Result<HlsBegun, CallError> {
    let (encryption_key_version, authentication_key_version) = versions_of(what.versions);
    let request = v1::BeginHlsRequest {
        meter_id: id_of(&what.meter),
        system_title: title_of(&what.meter),
        security_setup: what.security_setup.into(),
        client: what.client.into(),
        mechanism: what.mechanism.into(),
        challenge_length: what.challenge_length.into(),
        security_suite: what.security_suite.map(u32::from),
        encryption_key_version,
        authentication_key_version,
    };
    let send = |link, request| async move { stubs::ciphering(link).begin_hls(request).await };
    let reply: v1::BeginHlsResponse = transport.call(Errand::Write, request, send).await?;
    let verdict = Verdict::from_number(reply.verdict);
    if (verdict == Verdict::Ok) == reply.association.is_empty() {
        return Err(contradiction("the association", verdict));
    }
    Ok(HlsBegun {
        verdict,
        association: Some(reply.association).filter(|it| !it.is_empty()).map(HlsAssociation),
        challenge: reply.challenge,
        client_title: optional_title(&reply.client_system_title)?,
        system_title: optional_title(&reply.system_title)?,
        expires_in: Duration::from_millis(reply.expires_in_ms.into()),
        refusal: refusal(reply.refusal),
        reason: said(reply.reason),
    })
}

/// Answers the meter's challenge.
pub(crate) async fn answer(
    transport: &Transport,
    association: &HlsAssociation,
    HlsChallenge { challenge, action, versions }: HlsChallenge,
) -> Result<HlsAnswered, CallError> {
    let wire = |action: HlsAction| v1::HlsAction {
        invoke_id_and_priority: action.invoke_id_and_priority.into(),
        form: action.form as i32,
        protection: action.protection as i32,
    };
    let (encryption_key_version, authentication_key_version) = versions_of(versions);
    let request = v1::AnswerHlsChallengeRequest {
        association: association.0.clone(),
        challenge,
        mechanism: 0,
        action: action.map(wire),
        encryption_key_version,
        authentication_key_version,
    };
    let send =
        |link, request| async move { stubs::ciphering(link).answer_hls_challenge(request).await };
    let reply: v1::AnswerHlsChallengeResponse =
        transport.call(Errand::Write, request, send).await?;
    let verdict = Verdict::from_number(reply.verdict);
    let is_ok = verdict == Verdict::Ok;
    let (bytes, other) = match action {
        Some(_) => (reply.apdu, reply.answer),
        None => (reply.answer, reply.apdu),
    };
    if is_ok == bytes.is_empty() || !other.is_empty() {
        return Err(contradiction("the answer", verdict));
    }
    Ok(HlsAnswered {
        verdict,
        bytes: Some(bytes).filter(|_| is_ok),
        invocation_counter: reply.invocation_counter,
        apdu_invocation_counter: reply.apdu_invocation_counter,
        encryption_key_version: reply.encryption_key_version,
        authentication_key_version: reply.authentication_key_version,
        refusal: refusal(reply.refusal),
        reason: said(reply.reason),
    })
}

/// Verifies the meter's answer.
pub(crate) async fn verify(
    transport: &Transport,
    association: &HlsAssociation,
    given: HlsGiven,
    versions: Option<HlsVersions>,
) -> Result<HlsVerified, CallError> {
    let (answer, apdu) = match given {
        HlsGiven::Bare(answer) => (answer, Bytes::new()),
        HlsGiven::Carried(apdu) => (Bytes::new(), apdu),
    };
    let (encryption_key_version, authentication_key_version) = versions_of(versions);
    let request = v1::VerifyHlsAnswerRequest {
        association: association.0.clone(),
        answer,
        apdu,
        encryption_key_version,
        authentication_key_version,
    };
    let send =
        |link, request| async move { stubs::ciphering(link).verify_hls_answer(request).await };
    let reply: v1::VerifyHlsAnswerResponse = transport.call(Errand::Write, request, send).await?;
    Ok(HlsVerified {
        verdict: Verdict::from_number(reply.verdict),
        encryption_key_version: reply.encryption_key_version,
        authentication_key_version: reply.authentication_key_version,
        secret_version: reply.secret_version,
        invocation_counter: reply.invocation_counter,
        reason: said(reply.reason),
    })
}
