//! What triage found, for the wire. There is no field for a plaintext.

use bytes::Bytes;
use kms_proto::v1;

use super::status::Refused;
use crate::ciphering::{Triage, TriagedFrame};
use kms_core::{
    SecuritySetup, SystemTitle,
    triage::{Finding, Fit},
};

/// Frames in one call, at most.
pub(crate) const FRAMES_MAX: usize = 64;
/// Their bytes together, at most: each is deciphered some hundred times.
pub(crate) const FRAME_BYTES_MAX: usize = 256 << 10;

/// A security setup that was named.
pub(crate) fn setup(number: u32) -> Result<SecuritySetup, Refused> {
    let problem = "it is 0 to 255";
    let wrong = Refused::Field { field: "security_setup", problem };
    u8::try_from(number).map(SecuritySetup).map_err(|_| wrong)
}

/// The answer.
pub(crate) fn response(meter: Option<SystemTitle>, triage: Triage) -> v1::TriageResponse {
    let Triage { findings, frames } = triage;
    v1::TriageResponse {
        findings: findings.into_iter().map(finding).collect(),
        frames: frames.into_iter().map(frame).collect(),
        system_title: title(meter),
    }
}

fn finding(finding: Finding) -> v1::TriageFinding {
    let Finding { cause, confidence, frames, fit, title: other, detail } = finding;
    let fit = fit.unwrap_or(Fit {
        setup: 0,
        encryption_key_version: 0,
        authentication_key_version: 0,
        is_current: false,
    });
    v1::TriageFinding {
        cause: cause as i32,
        confidence: confidence as i32,
        frames,
        security_setup: fit.setup.into(),
        encryption_key_version: fit.encryption_key_version.into(),
        authentication_key_version: fit.authentication_key_version.into(),
        system_title: title(other),
        detail: detail.into(),
        meaning: cause.meaning().to_owned(),
        next_step: cause.next_step().to_owned(),
    }
}

fn frame(frame: TriagedFrame) -> v1::TriagedFrame {
    let TriagedFrame { outcome, carries, layers } = frame;
    v1::TriagedFrame {
        verdict: outcome.verdict as i32,
        invocation_counter: outcome.invocation_counter,
        carries: title(carries),
        layers: layers.into_iter().map(|kind| kind.name().to_owned()).collect(),
        security_setup: outcome.setup.0.into(),
        encryption_key_version: outcome.encryption_key_version.into(),
        authentication_key_version: outcome.authentication_key_version.into(),
        duplicate: outcome.duplicate,
        reason: outcome.reason.map_or_else(String::new, Into::into),
    }
}

fn title(title: Option<SystemTitle>) -> Bytes {
    title.map_or_else(Bytes::new, |title| Bytes::copy_from_slice(title.as_bytes()))
}
