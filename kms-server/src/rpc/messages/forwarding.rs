//! What one node of a site forwards to another, and its answer.

use dlms::KeySet;
use kms_proto::v1::{
    ApduProtection, CipheringForm, CounterPurpose, EncryptBatchResponse, PlainBatch,
    ProtectRequest, Protecting,
};

use super::papers::BadMessage;
use crate::transmitting::{Envelope, Origin, Outcome, Plain, ProtectedBatch, Whose};
use kms_core::{
    Numbered as _, SystemTitle, Verdict,
    audit::NodeId,
    counters::{allocator::Purpose, refusal::Refusal},
};

/// Items of one call, which are all protected alike, for `node`.
pub(crate) fn wire(node: NodeId, origin: &Origin<'_>, items: &[Plain<'_>]) -> ProtectRequest {
    ProtectRequest {
        caller: origin.caller.to_owned(),
        roles: origin.roles.iter().map(|role| (*role).to_owned()).collect(),
        call: origin.call.to_owned(),
        node_id: node.0.to_vec().into(),
        batch: Some(batch(items)),
    }
}

/// The item in the column of meter ids: empty if it goes by its title.
fn meter_id(item: &Plain<'_>) -> String {
    match item.whose {
        Whose::Title(_) => String::new(),
        Whose::Id(id) => id.to_owned(),
    }
}

/// The item in the column of titles: zeros if it goes by its id.
fn title(item: &Plain<'_>) -> [u8; SystemTitle::LEN] {
    match item.whose {
        Whose::Title(title) => *title.as_bytes(),
        Whose::Id(_) => [0; SystemTitle::LEN],
    }
}

fn batch(items: &[Plain<'_>]) -> PlainBatch {
    let mut meter_ids: Vec<_> = items.iter().map(meter_id).collect();
    let mut titles: Vec<_> = items.iter().map(title).collect();
    // A column is whole or empty.
    if meter_ids.iter().all(String::is_empty) {
        meter_ids.clear();
    } else if meter_ids.iter().all(|id| !id.is_empty()) {
        titles.clear();
    }
    PlainBatch {
        apdus: items.iter().map(|item| item.apdu).collect::<Vec<_>>().concat().into(),
        lengths: items.iter().map(|item| item.apdu.len() as u32).collect(),
        system_titles: titles.concat().into(),
        meter_ids,
        protecting: items.first().map(protecting),
        tag: 0,
    }
}

fn protecting(item: &Plain<'_>) -> Protecting {
    let form = match item.envelope {
        Envelope::GeneralGlo => CipheringForm::GeneralGlo,
        Envelope::Service => CipheringForm::Glo,
        Envelope::GeneralCiphering => CipheringForm::GeneralCiphering,
        Envelope::HlsAnswer => CipheringForm::HlsAnswer,
    };
    let protection = match item.protection {
        (true, true) => ApduProtection::AuthenticatedEncrypted,
        (true, false) => ApduProtection::Authenticated,
        (false, _) => ApduProtection::Encrypted,
    };
    let purpose = match item.purpose {
        Purpose::Traffic => CounterPurpose::Traffic,
        Purpose::KeyTransfer => CounterPurpose::KeyTransfer,
        Purpose::Hls => CounterPurpose::Hls,
        Purpose::Broadcast => CounterPurpose::Broadcast,
        Purpose::Probe => CounterPurpose::Probe,
    };
    Protecting {
        security_setup: item.setup.0.into(),
        client: item.client.into(),
        broadcast: item.key_set == KeySet::Broadcast,
        form: form.into(),
        protection: protection.into(),
        security_suite: item.suite.map(|suite| suite.number().into()),
        purpose: purpose.into(),
        encryption_key_version: item.versions.0.into(),
        authentication_key_version: item.versions.1.into(),
    }
}

/// The answer to so many items.
pub(crate) fn answer(
    answer: EncryptBatchResponse,
    items: usize,
) -> Result<ProtectedBatch, BadMessage> {
    let columns = [
        answer.lengths.len(),
        answer.verdicts.len(),
        answer.refusals.len(),
        answer.invocation_counters.len(),
        answer.encryption_key_versions.len(),
        answer.authentication_key_versions.len(),
    ];
    let sum: u64 = answer.lengths.iter().map(|len| u64::from(*len)).sum();
    if columns != [items; 6] || sum != answer.apdus.len() as u64 {
        return Err(BadMessage("columns"));
    }
    let mut outcomes: Vec<_> =
        (0..items).map(|at| outcome(&answer, at)).collect::<Result<_, _>>()?;
    for reason in answer.reasons {
        let place = usize::try_from(reason.index).ok().and_then(|at| outcomes.get_mut(at));
        place.ok_or(BadMessage("reasons"))?.reason = Some(reason.reason.into());
    }
    Ok(ProtectedBatch { apdus: answer.apdus.into(), lengths: answer.lengths, outcomes })
}

/// One item of an answer whose columns are whole.
fn outcome(answer: &EncryptBatchResponse, at: usize) -> Result<Outcome, BadMessage> {
    let verdict = Verdict::from_number(answer.verdicts[at]).ok_or(BadMessage("verdict"))?;
    if (answer.lengths[at] > 0) != (verdict == Verdict::Ok) {
        return Err(BadMessage("lengths"));
    }
    let version = |version: u32| u16::try_from(version).map_err(|_| BadMessage("key version"));
    Ok(Outcome {
        verdict,
        // A newer release may have other ones; the reason says them.
        refusal: Refusal::from_number(answer.refusals[at]),
        system_title: None,
        invocation_counter: answer.invocation_counters[at],
        encryption_key_version: version(answer.encryption_key_versions[at])?,
        authentication_key_version: version(answer.authentication_key_versions[at])?,
        reason: None,
        by_another: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::messages::transmitting;
    use dlms::Suite;
    use kms_core::SecuritySetup;

    fn plain<'a>(apdu: &'a [u8], whose: Whose<'a>) -> Plain<'a> {
        Plain {
            apdu,
            whose,
            setup: SecuritySetup(3),
            client: 5,
            key_set: KeySet::Broadcast,
            envelope: Envelope::GeneralCiphering,
            protection: (true, false),
            suite: Some(Suite::Suite2),
            purpose: Purpose::KeyTransfer,
            versions: (2, 3),
        }
    }

    const ORIGIN: Origin<'static> = Origin {
        caller: "hes-1",
        roles: Vec::new(),
        call: "Ciphering/EncryptBatch",
        request_id: "",
        until: None,
    };

    #[test]
    fn what_is_forwarded_is_what_was_asked() {
        let title = Whose::Title(SystemTitle::new([7; 8]));
        let other = Plain {
            envelope: Envelope::Service,
            protection: (false, true),
            key_set: KeySet::Unicast,
            suite: None,
            purpose: Purpose::Traffic,
            ..plain(b"abc", title)
        };
        for items in [
            vec![plain(b"a", title), plain(b"bc", Whose::Id("m-2"))],
            vec![plain(b"a", Whose::Id("m-1"))],
            vec![other, Plain { apdu: b"d", ..other }],
            vec![Plain { envelope: Envelope::GeneralGlo, protection: (true, true), ..other }],
            vec![Plain { envelope: Envelope::HlsAnswer, protection: (true, false), ..other }],
        ] {
            let sent = wire(NodeId([9; 16]), &ORIGIN, &items);
            assert_eq!((sent.caller.as_str(), &sent.node_id[..]), ("hes-1", &[9; 16][..]));
            let batch = sent.batch.unwrap();
            let is_answer = items[0].envelope == Envelope::HlsAnswer;
            assert!(!is_answer || transmitting::how_forwarded(batch.protecting, false).is_err());
            let how = transmitting::how_forwarded(batch.protecting, is_answer).unwrap();
            let read = transmitting::items(&batch, how).unwrap();
            assert_eq!(format!("{read:?}"), format!("{items:?}"));
        }
    }

    #[test]
    fn an_answer_comes_back_as_it_was_given_and_one_that_does_not_fit_is_none() {
        let outcome = |verdict, refusal, reason: Option<&str>| Outcome {
            verdict,
            refusal,
            system_title: None,
            invocation_counter: 8,
            encryption_key_version: 2,
            authentication_key_version: 3,
            reason: reason.map(Into::into),
            by_another: true,
        };
        let refused = Some(Refusal::HeldByAnotherNode);
        let batch = ProtectedBatch {
            apdus: vec![1, 2, 3],
            lengths: vec![3, 0],
            outcomes: vec![
                outcome(Verdict::Ok, None, None),
                outcome(Verdict::Unavailable, refused, Some("node x")),
            ],
        };
        let wire = transmitting::protected_batch(0, 2, batch.clone()).unwrap();
        assert_eq!(answer(wire.clone(), 2), Ok(batch));
        assert!(answer(wire.clone(), 1).is_err() && answer(wire.clone(), 3).is_err());
        for wrong in [
            EncryptBatchResponse { verdicts: vec![1].into(), ..wire.clone() },
            EncryptBatchResponse { verdicts: vec![1, 1].into(), ..wire.clone() },
            EncryptBatchResponse { verdicts: vec![1, 200].into(), ..wire.clone() },
            EncryptBatchResponse { apdus: vec![1, 2].into(), ..wire.clone() },
            EncryptBatchResponse { lengths: vec![0, 3], ..wire.clone() },
            EncryptBatchResponse { encryption_key_versions: vec![70_000, 1], ..wire },
        ] {
            assert!(answer(wrong.clone(), 2).is_err(), "{wrong:?}");
        }
    }
}
