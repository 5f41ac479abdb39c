//! The summary of a call about the life of a key, for the person who is to approve it.

use kms_proto::v1::{
    CompromiseKeyRequest, ConfirmKeyRequest, DestroyKeyRequest, KeyKind, KeyPlace,
    NextTransferRequest, RestoreKeyRequest, ReviveKeyRequest, RollBackKeyRequest,
    SetLegalHoldRequest, StageKeyRequest,
};
use prost::Message as _;

use super::about::{About, read, subject};
use crate::rpc::access::verb::Verb;

/// The matter of this message, of one of these calls.
pub(super) fn about_key(verb: Verb, message: &[u8]) -> About {
    match verb {
        Verb::StageKey => read(message, |asked: StageKeyRequest| {
            let risks = [
                (
                    asked.allow_unreplicated,
                    ", handed out although the other site has not proved it",
                ),
                (asked.under_compromised_kek, ", under a KEK that is known to others"),
            ];
            let risks: String =
                risks.into_iter().filter(|(taken, _)| *taken).map(|(_, what)| what).collect();
            of_key(asked.place, |key| format!("a new {key}{risks}"))
        }),
        Verb::NextTransfer => read(message, |asked: NextTransferRequest| {
            of_key(asked.place, |key| format!("transfer the staged {key}"))
        }),
        Verb::ConfirmKey => read(message, |asked: ConfirmKeyRequest| {
            of_key(asked.place, |key| format!("the answer to the transfer of the {key}"))
        }),
        Verb::RollBackKey => read(message, |RollBackKeyRequest { place, version }| {
            of_key(place, |key| format!("prefer version {version} of the {key}"))
        }),
        Verb::ReviveKey => read(message, |ReviveKeyRequest { place, version }| {
            of_key(place, |key| {
                format!("bring back version {version} of the {key}, which was given up")
            })
        }),
        Verb::CompromiseKey => read(message, |CompromiseKeyRequest { place, version }| {
            of_key(place, |key| format!("version {version} of the {key} is known to others"))
        }),
        Verb::DestroyKey => read(message, |DestroyKeyRequest { place, version, last_way }| {
            let last = if last_way { ", also if the meter is not reached without it" } else { "" };
            of_key(place, |key| format!("destroy version {version} of the {key}{last}"))
        }),
        Verb::RestoreKey => read(message, |RestoreKeyRequest { place, version }| {
            of_key(place, |key| format!("do not destroy version {version} of the {key}"))
        }),
        Verb::SetLegalHold => read(message, |SetLegalHoldRequest { meter_id, hold }| {
            let what = if hold { "put under" } else { "taken out of" };
            let line = format!("meter {meter_id:?} is {what} a legal hold");
            About { line, subject: subject(&meter_id, &[]) }
        }),
        _ => About::default(),
    }
}

/// Whether a request takes two people whatever the policy says: what is known to be dangerous is not for one alone.
pub(super) fn takes_two(verb: Verb, message: &[u8]) -> bool {
    match verb {
        Verb::StageKey => StageKeyRequest::decode(message).is_ok_and(|it| it.under_compromised_kek),
        Verb::DestroyKey => DestroyKeyRequest::decode(message).is_ok_and(|it| it.last_way),
        _ => false,
    }
}

fn of_key(place: Option<KeyPlace>, say: impl FnOnce(String) -> String) -> About {
    let KeyPlace { meter_id, kind, security_setup } = place.unwrap_or_default();
    let kind = KeyKind::try_from(kind).map_or("unknown key", |kind| kind.as_str_name());
    let key = format!("{kind} of meter {meter_id:?}, security setup {security_setup}");
    About { line: say(key), subject: subject(&meter_id, &[]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Option<KeyPlace> {
        Some(KeyPlace { meter_id: "m\n1".into(), kind: KeyKind::Guek as i32, security_setup: 2 })
    }

    #[test]
    fn the_second_person_sees_which_key_and_what_is_dangerous_about_it() {
        let staged = StageKeyRequest {
            place: place(),
            allow_unreplicated: true,
            under_compromised_kek: true,
            ..StageKeyRequest::default()
        };
        let about = about_key(Verb::StageKey, &staged.encode_to_vec());
        assert_eq!(
            about.line,
            "a new GUEK of meter \"m\\n1\", security setup 2, handed out although the other site has not proved it, \
             under a KEK that is known to others"
        );
        let destroyed = DestroyKeyRequest { place: place(), version: 3, last_way: true };
        let about = about_key(Verb::DestroyKey, &destroyed.encode_to_vec());
        assert!(about.line.starts_with("destroy version 3 of the GUEK of meter"), "{}", about.line);
        assert!(about.line.ends_with("also if the meter is not reached without it"));
        let garbled = about_key(Verb::ReviveKey, &[0xFF]);
        assert_eq!(garbled.line, "a request that can't be read");
    }

    #[test]
    fn what_is_dangerous_takes_two_whatever_the_policy_says() {
        let stage = |under_compromised_kek| {
            let asked = StageKeyRequest { under_compromised_kek, ..StageKeyRequest::default() };
            takes_two(Verb::StageKey, &asked.encode_to_vec())
        };
        let destroy = |last_way| {
            let asked = DestroyKeyRequest { last_way, ..DestroyKeyRequest::default() };
            takes_two(Verb::DestroyKey, &asked.encode_to_vec())
        };
        assert_eq!(
            (stage(true), stage(false), destroy(true), destroy(false)),
            (true, false, true, false)
        );
        assert!(!takes_two(Verb::RestoreKey, &[]));
    }
}
