//! Messages that opened and whose meter has receive floors: what their floor is asked.

use dlms::{CipheredApdu, EncryptionKey, KeySet, Side, SystemTitle};

use super::item::Outcome;
use crate::keyring::ResidentMeter;
use kms_core::{KeyKind, Verdict, counters::LineName, floors::Message};

/// A message that a meter has sent and that opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    /// The meter's title: its block has the floor.
    pub(super) title: SystemTitle,
    pub(super) line: LineName,
    pub(super) message: Message,
    pub(super) window: u8,
}

/// The kind of key that encrypts an APDU.
pub(super) fn key_kind(apdu: &CipheredApdu<'_>) -> KeyKind {
    match (apdu.key_set(), apdu.encryption_key()) {
        (KeySet::Broadcast, _) => KeyKind::Gbek,
        (KeySet::Unicast, EncryptionKey::Dedicated) => KeyKind::Dedicated,
        (KeySet::Unicast, EncryptionKey::Global) => KeyKind::Guek,
    }
}

impl Arrival {
    /// `None`: it has no floor. A floor is for what was authenticated, under a key whose kind has one, and sent by the
    /// meter itself: what the utility's side sent has counters of its own.
    pub(super) fn of(
        apdu: &CipheredApdu<'_>,
        meter: &ResidentMeter<'_>,
        opened: &Outcome,
    ) -> Option<Self> {
        if !meter.policy().has_floors() || opened.verdict != Verdict::Ok {
            return None;
        }
        let originator = match (apdu.system_title(), apdu.originating_side()) {
            (Some(title), _) if title == meter.title() || title == meter.own_title() => title,
            (Some(_), _) | (None, Some(Side::Client)) => return None,
            (None, Some(Side::Server) | None) => meter.own_title(),
        };
        let version = opened.encryption_key_version;
        let (rule, fingerprint) = meter.floored_key(key_kind(apdu), opened.setup, version)?;
        let [a, b, c, d, ..] = *apdu.authentication_tag()?;
        Some(Self {
            title: meter.title(),
            line: LineName { fingerprint, originator },
            message: Message {
                counter: apdu.invocation_counter(),
                check: u32::from_be_bytes([a, b, c, d]),
            },
            window: rule.window,
        })
    }
}
