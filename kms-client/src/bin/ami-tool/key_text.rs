//! A meter's keys, for people: states, reasons, what is due, and how those that were made here get to the meter.

use kms_client::{KeyInfo, KeyState, KeyTransfer};
use kms_core::date::date;

/// One line a key, and below it what is to be known beside that.
pub(crate) fn keys(all: &[KeyInfo]) -> String {
    let more = |key| [transfer(key, all), before(key)].into_iter().flatten();
    let lines = all.iter().flat_map(|key| [line(key)].into_iter().chain(more(key)));
    lines.collect::<Vec<_>>().join("\n")
}

fn line(key: &KeyInfo) -> String {
    let kcv = if key.kcv.is_empty() { "-" } else { &key.kcv };
    let mut text = format!(
        "key  setup {}  {:<12}  v{:<3}  {:<11}  {:<6}  KCV {kcv}  {} since {}",
        key.security_setup,
        key.kind,
        key.version,
        key.state,
        key.protection,
        key.reason,
        date(key.changed_ms)
    );
    for word in due(key) {
        text.push_str(", ");
        text.push_str(&word);
    }
    text
}

/// What protects what is sent, and what time brings.
fn due(key: &KeyInfo) -> impl Iterator<Item = String> {
    let preferred = key.preferred.then(|| "preferred".to_owned());
    let until = |until| format!("usable until {}, then DEACTIVATED", date(until));
    let grace = key.usable_until_ms.map(until);
    let destroyed = key.destroy_at_ms.map(|at| format!("to be destroyed at {}", date(at)));
    preferred.into_iter().chain(grace).chain(destroyed)
}

/// How it gets to the meter, while that matters: it waits for the meter to show it, or is not shown by more than an answer.
fn transfer(key: &KeyInfo, all: &[KeyInfo]) -> Option<String> {
    let transfer = key.transfer.as_ref().filter(|_| {
        key.state == KeyState::PreActive || key.reason == kms_client::StateReason::ConfirmedByResult
    })?;
    Some(format!("       {}", way(transfer, all)))
}

/// The way of a key to its meter, as a sentence.
pub(crate) fn way(transfer: &KeyTransfer, all: &[KeyInfo]) -> String {
    let kek = all.iter().find(|key| key.key_id == transfer.kek_id);
    let kek = kek.map_or("a KEK that is gone".to_owned(), |kek| format!("KEK v{}", kek.version));
    let KeyTransfer { carrier_setup, carrier_client, form, class_version, .. } = transfer;
    let mut text = format!(
        "travels under {kek}, over client {carrier_client} of setup {carrier_setup} ({form}), class 64 version {class_version}"
    );
    let sent = |at| format!("sent first at {}: the meter may hold it", date(at));
    text.push_str("; ");
    text.push_str(&transfer.sent_ms.map_or("never sent".to_owned(), sent));
    if let Some(result) = transfer.result {
        text.push_str(&format!("; the meter's last answer: {result}"));
    }
    if transfer.unreplicated {
        text.push_str("; may be sent although the other site has not proved it");
    }
    text
}

fn before(key: &KeyInfo) -> Option<String> {
    let past = key.past.iter();
    let states: Vec<String> = past
        .map(|it| format!("{} ({}) since {}", it.state, it.reason, date(it.since_ms)))
        .collect();
    (!states.is_empty()).then(|| format!("       before: {}", states.join(", ")))
}

#[cfg(test)]
mod tests {
    use kms_client::{
        AssociationForm, KeyKind, PastState, Protection, StateReason, TransferResult,
    };

    use super::*;

    fn key(kind: KeyKind, version: u32, state: KeyState) -> KeyInfo {
        KeyInfo {
            key_id: format!("{:02x}", version + 16 * kind as u32).repeat(16),
            kind,
            security_setup: 0,
            version,
            state,
            protection: Protection::Memory,
            kcv: "0102030405".into(),
            created_ms: 0,
            reason: StateReason::Imported,
            changed_ms: 0,
            past: Vec::new(),
            preferred: false,
            usable_until_ms: None,
            destroy_at_ms: None,
            transfer: None,
        }
    }

    fn transfer(kek: &KeyInfo) -> KeyTransfer {
        KeyTransfer {
            request_id: "spring-7".into(),
            kek_id: kek.key_id.clone(),
            class_version: 1,
            carrier_setup: 2,
            carrier_client: 16,
            form: AssociationForm::Glo,
            unreplicated: false,
            sent_ms: None,
            result: None,
            result_ms: None,
        }
    }

    #[test]
    fn a_meters_keys_say_what_they_are_since_when_and_what_comes() {
        let former = KeyInfo {
            usable_until_ms: Some(86_400_000),
            destroy_at_ms: Some(2 * 86_400_000),
            ..key(KeyKind::Guek, 1, KeyState::Active)
        };
        let past =
            PastState { state: KeyState::PreActive, since_ms: 1_000, reason: StateReason::Staged };
        let newer = KeyInfo {
            preferred: true,
            reason: StateReason::Evidence,
            past: vec![past],
            transfer: Some(transfer(&former)),
            ..key(KeyKind::Guek, 2, KeyState::Active)
        };
        let said = keys(&[former, newer]);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 3, "{said}");
        assert!(lines[0].contains("IMPORTED since 1970-01-01T00:00:00Z, usable until 1970-01-02"));
        assert!(lines[0].contains("then DEACTIVATED, to be destroyed at 1970-01-03"), "{said}");
        assert!(lines[1].ends_with("EVIDENCE since 1970-01-01T00:00:00Z, preferred"), "{said}");
        // What is proved needs no word of its way.
        assert_eq!(lines[2], "       before: PRE_ACTIVE (STAGED) since 1970-01-01T00:00:01Z");
    }

    #[test]
    fn a_key_that_waits_says_how_far_it_is() {
        let kek = key(KeyKind::Kek, 3, KeyState::Active);
        let mut staged = KeyInfo {
            reason: StateReason::Staged,
            transfer: Some(transfer(&kek)),
            ..key(KeyKind::Gak, 2, KeyState::PreActive)
        };
        let said = keys(&[kek.clone(), staged.clone()]);
        let way =
            "travels under KEK v3, over client 16 of setup 2 (GLO), class 64 version 1; never sent";
        assert!(said.ends_with(way), "{said}");
        let it = staged.transfer.as_mut().unwrap();
        (it.sent_ms, it.result, it.unreplicated) = (Some(0), Some(TransferResult::NoAnswer), true);
        let said = keys(&[staged]);
        assert!(said.contains("under a KEK that is gone"), "{said}");
        assert!(said.contains("; sent first at 1970-01-01T00:00:00Z: the meter may hold it;"));
        assert!(said.contains("last answer: NO_ANSWER; may be sent although the other"), "{said}");
    }
}
