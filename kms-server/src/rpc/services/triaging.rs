//! `Ciphering.Triage`: who may ask, how often, what is recorded of it.

use std::{sync::Arc, time::Instant};

use kms_proto::v1::{TriageRequest, TriageResponse};
use tonic::{Request, Status};

use super::{ciphering::CipheringService, triages::Spent};
use crate::{
    ciphering::{Named, Triage, TriageAsked},
    rpc::{
        access::{policy::Permit, verb::Verb},
        gate::recording::Recorder,
        messages::{
            columns,
            status::Refused,
            triage::{self, FRAME_BYTES_MAX, FRAMES_MAX},
            words,
        },
    },
};
use kms_core::{
    SystemTitle,
    audit::{AuditedCall, Detail, Subject},
};

impl CipheringService {
    /// Finds the causes, and records that somebody asked.
    pub(super) async fn triage_for(
        &self,
        permit: &Permit,
        request: Request<TriageRequest>,
    ) -> Result<TriageResponse, Status> {
        let recorder = Recorder(Arc::clone(&self.audit));
        let call = recorder.call(permit, &request);
        if let Err(refused) = self.may_triage(permit) {
            return Err(self.refused(call, refused).await);
        }
        let request = request.into_inner();
        let asked_title = words::optional_title("system_title", &request.system_title)?;
        let named = named(&request, asked_title)?;
        let setup = request.security_setup.map(triage::setup).transpose()?;
        check(&request)?;
        let _charge = self.budget.charge(permit, request.frames.len())?;
        let frames: Vec<&[u8]> = request.frames.iter().map(|frame| &frame[..]).collect();
        let (found, triage) = match self.ciphering.triaged_meter(named).await {
            Ok(title) => {
                let now = Instant::now();
                if let Err(spent) = self.triages.take_of_meter(permit.caller(), title, now) {
                    return Err(self.refused(call, too_many(spent)).await);
                }
                let asked = TriageAsked { named, setup, frames: &frames };
                (Some(title), self.ciphering.triage(title, asked).await)
            }
            Err(outcome) => (None, Triage::of_no_meter(&outcome, frames.len())),
        };
        let subject = Subject { system_title: found.or(asked_title), ..subject(&request)? };
        let entry = recorder.entry(&call, subject).with(Detail::Items, frames.len() as u64);
        recorder.record(entry).await?;
        Ok(triage::response(found, triage))
    }

    /// Whoever may not decrypt learns nothing of a decryption; and nobody asks at will.
    fn may_triage(&self, permit: &Permit) -> Result<(), Refused> {
        self.policy.permit(permit.caller(), Verb::Decrypt)?;
        self.triages.take(permit.caller(), Instant::now()).map_err(too_many)
    }

    async fn refused(&self, call: AuditedCall, refused: Refused) -> Status {
        self.audit.record_refusal(call, refused.word()).await;
        refused.into()
    }
}

fn too_many(Spent { limit, after }: Spent) -> Refused {
    let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX).max(1);
    Refused::TooManyTriages { limit, after_ms }
}

fn named(request: &TriageRequest, title: Option<SystemTitle>) -> Result<Named<'_>, Refused> {
    const PROBLEM: &str = "name the meter: its id or its system title, and not both";
    let wrong = Refused::Field { field: "meter_id", problem: PROBLEM };
    let named = columns::named(title.as_ref().map(SystemTitle::as_bytes), &request.meter_id);
    named.filter(|named| !matches!(named, Named::InApdu)).ok_or(wrong)
}

fn subject(request: &TriageRequest) -> Result<Subject, Refused> {
    match request.meter_id.as_str() {
        "" => Ok(Subject::NONE),
        id => Ok(Subject::meter(&words::meter_id("meter_id", id)?)),
    }
}

fn check(request: &TriageRequest) -> Result<(), Refused> {
    let frames = &request.frames;
    if frames.is_empty() {
        return Err(Refused::Field { field: "frames", problem: "give one frame at least" });
    }
    if frames.len() > FRAMES_MAX {
        return Err(Refused::BatchTooLarge { items: frames.len(), limit: FRAMES_MAX });
    }
    if frames.iter().map(|frame| frame.len()).sum::<usize>() > FRAME_BYTES_MAX {
        let problem = "they have more than 262144 bytes together: give fewer, or shorter ones";
        return Err(Refused::Field { field: "frames", problem });
    }
    // Before anything is looked up, as for every other call about a meter.
    subject(request).map(drop)
}
