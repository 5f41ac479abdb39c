//! Why frames of a meter don't open: the service's answer.

use bytes::Bytes;
use dlms::SystemTitle;
use kms_core::Numbered as _;
use kms_core::triage::{Cause, Confidence};
use kms_proto::v1;
use serde::Serialize;

use crate::apdu::Verdict;
use crate::call::{CallError, ProtocolError};
use crate::meter::optional_title;
use crate::names::{MeterName, optional_title_hex};
use crate::sites::Errand;
use crate::stubs;
use crate::transport::Transport;

/// The word for a cause or a confidence that this version of the client does not know.
const UNRECOGNISED: &str = "UNRECOGNISED";

/// The answer about the frames of one meter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Triage {
    /// Likely causes, most likely first.
    pub findings: Vec<TriageFinding>,
    /// What `decrypt` would say of each frame, plaintext apart; in their order.
    pub frames: Vec<TriagedFrame>,
    /// The meter's; `None`: there is no such meter.
    #[serde(with = "optional_title_hex")]
    pub system_title: Option<SystemTitle>,
}

/// One likely cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TriageFinding {
    /// As the wire has it; `UNRECOGNISED`: of a newer service.
    pub cause: &'static str,
    /// `CERTAIN`, `LIKELY` or `POSSIBLE`.
    pub confidence: &'static str,
    /// The frames that it was judged by, by their places from 0.
    pub frames: Vec<u32>,
    /// The setup whose keys fit; of a cause that names keys.
    pub security_setup: u32,
    /// The version of the encryption key that fits, or seems to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption_key_version: Option<u32>,
    /// The version of the GAK that fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication_key_version: Option<u32>,
    /// Another title than the meter's.
    #[serde(with = "optional_title_hex", skip_serializing_if = "Option::is_none")]
    pub system_title: Option<SystemTitle>,
    /// One more sentence; may be empty.
    pub detail: String,
    /// The cause, for people.
    pub meaning: String,
    /// The next thing to do.
    pub next_step: String,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TriagedFrame {
    /// Of the APDU in it.
    #[serde(serialize_with = "word")]
    pub verdict: Verdict,
    /// The counter half of its nonce.
    pub invocation_counter: u32,
    /// The title that it carries.
    #[serde(with = "optional_title_hex", skip_serializing_if = "Option::is_none")]
    pub carries: Option<SystemTitle>,
    /// What was taken off, outermost first.
    pub layers: Vec<String>,
    /// The version of the encryption key that opens it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption_key_version: Option<u32>,
    /// The version of the GAK that verifies it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication_key_version: Option<u32>,
    /// The same message was taken before.
    pub duplicate: bool,
    /// One sentence; may be empty.
    pub reason: String,
}

fn word<S: serde::Serializer>(verdict: &Verdict, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(verdict.word())
}

/// Asks. Never of two sites at a time: each call counts.
pub(crate) async fn triage(
    transport: &Transport,
    meter: &MeterName,
    frames: Vec<Vec<u8>>,
    security_setup: Option<u8>,
) -> Result<Triage, CallError> {
    let mut request = v1::TriageRequest {
        frames: frames.into_iter().map(Bytes::from).collect(),
        security_setup: security_setup.map(u32::from),
        ..v1::TriageRequest::default()
    };
    match meter {
        MeterName::Id(id) => request.meter_id = id.to_string(),
        MeterName::Title(title) => request.system_title = title.as_bytes().to_vec().into(),
    }
    let send = |link, request| async move { stubs::ciphering(link).triage(request).await };
    let reply: v1::TriageResponse = transport.call(Errand::OneRead, request, send).await?;
    Ok(Triage {
        findings: reply.findings.into_iter().map(finding).collect::<Result<_, _>>()?,
        frames: reply.frames.into_iter().map(frame).collect::<Result<_, _>>()?,
        system_title: optional_title(&reply.system_title)?,
    })
}

fn finding(finding: v1::TriageFinding) -> Result<TriageFinding, ProtocolError> {
    let number = |number: i32| u8::try_from(number).ok();
    let cause = number(finding.cause).and_then(Cause::from_number);
    let confidence = number(finding.confidence).and_then(Confidence::from_number);
    Ok(TriageFinding {
        cause: cause.map_or(UNRECOGNISED, Cause::word),
        confidence: confidence.map_or(UNRECOGNISED, Confidence::word),
        frames: finding.frames,
        security_setup: finding.security_setup,
        encryption_key_version: some(finding.encryption_key_version),
        authentication_key_version: some(finding.authentication_key_version),
        system_title: optional_title(&finding.system_title)?,
        detail: finding.detail,
        meaning: finding.meaning,
        next_step: finding.next_step,
    })
}

fn frame(frame: v1::TriagedFrame) -> Result<TriagedFrame, ProtocolError> {
    Ok(TriagedFrame {
        verdict: Verdict::from_number(frame.verdict),
        invocation_counter: frame.invocation_counter,
        carries: optional_title(&frame.carries)?,
        layers: frame.layers,
        encryption_key_version: some(frame.encryption_key_version),
        authentication_key_version: some(frame.authentication_key_version),
        duplicate: frame.duplicate,
        reason: frame.reason,
    })
}

/// A version; the wire's 0 is none.
fn some(version: u32) -> Option<u32> {
    (version != 0).then_some(version)
}
