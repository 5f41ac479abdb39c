//! A meter as a member of a broadcast group: whether it can be one, and how far it is with the group's values. How far it
//! is, is nowhere written but in its keys: a state of its own could say something else.

use super::choosing::Place;
use crate::{
    Fingerprint, KeyKind, KeyRecord, KeyState, MeterRecord, StateReason, TransferResult,
    fact::Group,
};

crate::numbered! {
    /// How far a member is with a value of its group.
    pub enum MemberState "member state" {
        /// It has no such key: it is not staged yet.
        NotStaged = 1 "NOT_STAGED",
        /// It is staged, and was never handed out.
        Staged = 2 "STAGED",
        /// It was handed out: the meter may have it.
        Sent = 3 "SENT",
        /// The meter answered that it has not taken it, which may be wrong.
        Failed = 4 "FAILED",
        /// No answer came, or one that proves nothing of this key.
        Unknown = 5 "UNKNOWN",
        /// The meter answered that it has it.
        ConfirmedByResult = 6 "CONFIRMED_BY_RESULT",
        /// The meter has it: it has shown so, or came with it.
        Confirmed = 7 "CONFIRMED",
        /// The meter had it and fell back to another one, as somebody said.
        FellBack = 8 "FELL_BACK",
        /// It is known to others, as somebody said.
        Compromised = 9 "COMPROMISED",
        /// The meter was deleted, can't be read, or is another group's.
        Gone = 10 "GONE",
    }
}

impl MemberState {
    /// Whether the group counts on it.
    pub const fn is_confirmed(self) -> bool {
        matches!(self, Self::ConfirmedByResult | Self::Confirmed)
    }

    /// Whether the meter may use the value.
    pub const fn may_hold(self) -> bool {
        match self {
            Self::Sent | Self::Failed | Self::Unknown | Self::FellBack => true,
            Self::ConfirmedByResult | Self::Confirmed | Self::Compromised => true,
            Self::NotStaged | Self::Staged | Self::Gone => false,
        }
    }
}

/// The version of a member that has this value: of several the newest.
pub fn holding(meter: &MeterRecord, place: Place, value: Fingerprint) -> Option<&KeyRecord> {
    let live = |key: &&KeyRecord| {
        key.fingerprint == value
            && !matches!(key.state, KeyState::Destroyed | KeyState::Deactivated)
    };
    place.versions(meter).filter(live).max_by_key(|key| key.version)
}

/// How far a meter is with this value.
pub fn state_of(meter: &MeterRecord, place: Place, value: Fingerprint) -> MemberState {
    let Some(key) = holding(meter, place, value) else { return MemberState::NotStaged };
    let transfer = key.life.transfer.as_ref();
    match key.state {
        KeyState::PreActive => match transfer.map(|it| (it.sent_ms, it.result)) {
            Some((_, Some((TransferResult::Refused, _)))) => MemberState::Failed,
            Some((_, Some(_))) => MemberState::Unknown,
            Some((Some(_), None)) => MemberState::Sent,
            _ => MemberState::Staged,
        },
        KeyState::Active if place.preferred(meter).is_some_and(|it| it.id != key.id) => {
            MemberState::FellBack
        }
        KeyState::Active if key.life.reason == StateReason::ConfirmedByResult => {
            MemberState::ConfirmedByResult
        }
        KeyState::Active => MemberState::Confirmed,
        KeyState::Compromised => MemberState::Compromised,
        KeyState::Deactivated | KeyState::Destroyed => MemberState::NotStaged,
    }
}

/// The reason why a meter can't be a member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The nonces of broadcasts begin with one title, and this meter knows another one, or none.
    #[error("its title of the broadcasting client is not the group's")]
    OtherClientTitle,
    /// Its GAK is not the group's.
    #[error("its GAK is not the one that the group's broadcasts are authenticated with")]
    OtherGak,
    /// Its policy does not allow what the group sends.
    #[error(
        "the group's broadcasts get no tag, and the meter's policy does not allow encryption alone"
    )]
    NeedsTag,
    /// A key of its own is staged, which is not the group's.
    #[error("a {0} of its own is staged: bring that one to its end, or destroy it")]
    OwnKeyStaged(KeyKind),
    /// It has no key there.
    #[error("it has neither a GBEK nor a KEK in the group's security setup")]
    NoKeys,
    /// Its suite is another one.
    #[error("its keys are of another security suite than the group's")]
    OtherSuite,
}

/// Whether a meter can be a member. `other`: a member that is there already.
pub fn fits(group: &Group, meter: &MeterRecord, other: Option<&MeterRecord>) -> Result<(), Unfit> {
    let policy = &meter.policy;
    let title = policy.client_titles.of(group.setup, group.client).or(policy.client_title);
    if title != Some(group.originator) {
        return Err(Unfit::OtherClientTitle);
    }
    if !group.authenticated && !policy.allow_encryption_only {
        return Err(Unfit::NeedsTag);
    }
    let preferred = |meter, kind| {
        Place { setup: group.setup, kind }.preferred(meter).map(|key| key.fingerprint)
    };
    let gak = preferred(meter, KeyKind::Gak);
    let known: Option<Fingerprint> = group.settled(KeyKind::Gak).map(|value| value.fingerprint);
    if group.authenticated && (gak.is_none() || known.is_some() && gak != known) {
        return Err(Unfit::OtherGak);
    }
    for kind in [KeyKind::Gbek, KeyKind::Gak] {
        let staged = Place { setup: group.setup, kind }.staged(meter).map(|key| key.fingerprint);
        let is_groups =
            staged.is_none_or(|its| group.in_flight(kind).any(|it| it.fingerprint == its));
        if !is_groups && (group.authenticated || kind == KeyKind::Gbek) {
            return Err(Unfit::OwnKeyStaged(kind));
        }
    }
    let len = |meter: &MeterRecord| {
        let kinds = [KeyKind::Gbek, KeyKind::Kek];
        let mut keys = kinds.into_iter().filter_map(|kind| {
            Place { setup: group.setup, kind }.carries(meter).map(|key| key.value_len)
        });
        keys.next()
    };
    match (other.and_then(len), len(meter)) {
        (_, None) => Err(Unfit::NoKeys),
        (Some(theirs), Some(its)) if theirs != its => Err(Unfit::OtherSuite),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod grouping_tests;
