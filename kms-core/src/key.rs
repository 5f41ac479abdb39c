//! Keys: their kinds, their lives, and everything a record says of them but the key itself.

use std::fmt;

/// A key's random name, the same in all of its states and at both sites.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 16]);

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({})", hex::encode(self.0))
    }
}

crate::numbered! {
    /// The kind of a key, by its purpose: COSEM class 64 key ids, dedicated keys, association secrets.
    pub enum KeyKind "kind" {
        /// Global unicast encryption key.
        Guek = 1 "GUEK",
        /// Global broadcast encryption key.
        Gbek = 2 "GBEK",
        /// Global authentication key: additional data, never an AES key.
        Gak = 3 "GAK",
        /// Key encryption key (master key).
        Kek = 4 "KEK",
        /// Encryption key of one association.
        Dedicated = 5 "DEDICATED",
        /// Secret of HLS mechanisms 2, 3, 4, 6; of free length.
        HlsSecret = 6 "HLS_SECRET",
        /// Password of LLS, mechanism 1; of free length.
        LlsPassword = 7 "LLS_PASSWORD",
    }
}

impl KeyKind {
    /// Whether its value has the length of an AES key: 16 or 32 bytes.
    pub const fn is_cipher_key(self) -> bool {
        match self {
            Self::Guek | Self::Gbek | Self::Gak | Self::Kek | Self::Dedicated => true,
            Self::HlsSecret | Self::LlsPassword => false,
        }
    }

    /// The protection levels that make sense for it. A KEK is never in server memory; a GAK is
    /// additional data, which PKCS #11 takes from memory.
    pub const fn allows(self, protection: Protection) -> bool {
        match self {
            Self::Kek => matches!(protection, Protection::Hsm),
            Self::Guek | Self::Gbek => true,
            Self::Gak | Self::Dedicated | Self::HlsSecret | Self::LlsPassword => {
                matches!(protection, Protection::Memory)
            }
        }
    }

    /// The protection that a key of this kind gets unless another is named.
    pub const fn default_protection(self) -> Protection {
        match self {
            Self::Kek => Protection::Hsm,
            Self::Guek
            | Self::Gbek
            | Self::Gak
            | Self::Dedicated
            | Self::HlsSecret
            | Self::LlsPassword => Protection::Memory,
        }
    }
}

crate::numbered! {
    /// The protection of a key: where its clear bytes may be.
    pub enum Protection "protection" {
        /// Used only inside the token.
        Hsm = 1 "HSM",
        /// Released into locked memory of the server, for throughput.
        Memory = 2 "MEMORY",
    }
}

crate::numbered! {
    /// The state of a key in its life (NIST SP 800-57 part 1, KMIP).
    pub enum KeyState "state" {
        /// Stored; not yet confirmed by the meter.
        PreActive = 1 "PRE_ACTIVE",
        /// Protects and opens.
        Active = 2 "ACTIVE",
        /// Opens what was protected before; protects nothing.
        Deactivated = 3 "DEACTIVATED",
        /// Known to others. Until its successor is proved it carries key transfers, HLS and their answers; nothing
        /// that it opens vouches for anything (NIST: process only).
        Compromised = 4 "COMPROMISED",
        /// The live copies are gone; the record stays.
        Destroyed = 5 "DESTROYED",
    }
}

/// An event in the life of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyEvent {
    /// The meter has shown that it uses the key.
    Activate,
    /// A newer key has taken over, or the key is given up.
    Deactivate,
    /// The key is known to others.
    Compromise,
    /// The live copies are destroyed.
    Destroy,
}

/// An event that a key in this state can't have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key that is {from:?} cannot {event:?}")]
pub struct IllegalStep {
    /// The state it is in.
    pub from: KeyState,
    /// The event that was asked for.
    pub event: KeyEvent,
}

impl KeyState {
    /// The state after `event`. A key's whole life is these rows (SP 800-57 part 1, section 7).
    pub const fn after(self, event: KeyEvent) -> Result<Self, IllegalStep> {
        use KeyEvent::{Activate, Compromise, Deactivate, Destroy};
        Ok(match (self, event) {
            (Self::PreActive, Activate) => Self::Active,
            (Self::PreActive | Self::Active, Deactivate) => Self::Deactivated,
            (Self::PreActive | Self::Active | Self::Deactivated, Compromise) => Self::Compromised,
            (Self::PreActive | Self::Deactivated | Self::Compromised, Destroy) => Self::Destroyed,
            (from, event) => return Err(IllegalStep { from, event }),
        })
    }

    /// Whether a key in this state may protect what is sent to a meter.
    pub const fn may_protect(self) -> bool {
        matches!(self, Self::Active)
    }

    /// Whether a key in this state may open what a meter sent. A pre-active one may: a meter whose
    /// confirmation was lost already uses it. A compromised one may, and what it opens says so.
    pub const fn may_open(self) -> bool {
        match self {
            Self::PreActive | Self::Active | Self::Deactivated | Self::Compromised => true,
            Self::Destroyed => false,
        }
    }

    /// Whether what a key in this state opens is vouched for by it.
    pub const fn vouches(self) -> bool {
        match self {
            Self::PreActive | Self::Active | Self::Deactivated => true,
            Self::Compromised | Self::Destroyed => false,
        }
    }

    /// Whether a key in this state may carry what brings the meter another key, or finds out which one it holds: key
    /// transfers, HLS, a probe. More than may be sent under it otherwise, and never less.
    pub const fn may_carry(self) -> bool {
        match self {
            Self::PreActive | Self::Active | Self::Compromised => true,
            Self::Deactivated | Self::Destroyed => false,
        }
    }
}

crate::numbered! {
    /// Why a key is in its state.
    #[derive(Default)]
    pub enum StateReason "reason" {
        /// It came from outside, and its signer said that the meter has it.
        #[default]
        Imported = 1 "IMPORTED",
        /// It was made here for the meter, which has not shown it yet.
        Staged = 2 "STAGED",
        /// The meter sent what only this key can have made: a whole tag of its own.
        Evidence = 3 "EVIDENCE",
        /// The meter answered that it took it. Weaker than evidence: a meter may say so and have changed nothing.
        ConfirmedByResult = 4 "CONFIRMED_BY_RESULT",
        /// A key that travelled under it has shown itself.
        TransferProved = 5 "TRANSFER_PROVED",
        /// A newer version has taken over, and the grace is over.
        Superseded = 6 "SUPERSEDED",
        /// The meter was set back to it; two people said so.
        Revived = 7 "REVIVED",
        /// Somebody said that it is known to others.
        ReportedCompromised = 8 "REPORTED_COMPROMISED",
        /// Somebody gave it up.
        Withdrawn = 9 "WITHDRAWN",
        /// It was compromised, and its successor is proved.
        WipedAfterSuccessor = 10 "WIPED_AFTER_SUCCESSOR",
        /// Somebody had it destroyed, and the delay is over.
        DestroyedOnDemand = 11 "DESTROYED_ON_DEMAND",
        /// The oldest of the deactivated ones made room for another version.
        MadeRoom = 12 "MADE_ROOM",
        /// The same value goes on as a newer version.
        GoesOnAsAnother = 13 "GOES_ON_AS_ANOTHER",
        /// A person decided it of what two sites wrote apart.
        Reconciled = 14 "RECONCILED",
    }
}

crate::numbered! {
    /// The form in which an association carries what a client sends.
    #[derive(Default)]
    pub enum AssociationForm "form" {
        /// The service's own glo- form.
        Glo = 1 "GLO",
        /// The service's own ded- form.
        Ded = 2 "DED",
        /// general-glo-ciphering.
        #[default]
        GeneralGlo = 3 "GENERAL_GLO",
        /// general-ciphering with an identified key.
        GeneralCiphering = 4 "GENERAL_CIPHERING",
    }
}

/// The association over which a key travels: that of the management client, also where the key is another's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carrier {
    /// The security setup whose keys protect it.
    pub setup: SecuritySetup,
    /// The client's address.
    pub client: u16,
    /// How it is wrapped.
    pub form: AssociationForm,
}

crate::numbered! {
    /// The meter's answer to a transfer. A hint, both ways: meters answer OK and have not changed, or the opposite.
    pub enum TransferResult "result" {
        /// action-result success.
        Success = 1 "SUCCESS",
        /// Any other action-result.
        Refused = 2 "REFUSED",
        /// None came.
        NoAnswer = 3 "NO_ANSWER",
    }
}

/// How a key that was made here gets to its meter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The name of the request that had it made, as it came.
    pub request: String,
    /// The KEK that it travels under.
    pub kek: KeyId,
    /// Of COSEM class 64: 0 or 1.
    pub class_version: u8,
    /// The association that carries it.
    pub carrier: Carrier,
    /// The key under the meter's KEK, RFC 3394: what goes into `key_transfer`. The same each time it is sent.
    pub wrapped: Vec<u8>,
    /// It may be handed out although the other site has not proved that it has it.
    pub unreplicated: bool,
    /// When it was handed out first: from then on the meter may hold it. Milliseconds since 1970.
    pub sent_ms: Option<u64>,
    /// The meter's last answer.
    pub result: Option<(TransferResult, u64)>,
}

/// A state that a key was in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PastState {
    /// The state.
    pub state: KeyState,
    /// Milliseconds since 1970.
    pub since_ms: u64,
    /// Why it came into it.
    pub reason: StateReason,
}

/// A key's life so far, and what is due.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyLife {
    /// Why it is in its state.
    pub reason: StateReason,
    /// The states before, oldest first. A state never comes twice, so there are fewer than [`KeyState::ALL`] has.
    pub past: Vec<PastState>,
    /// Of the active versions of a key the one with the latest time here protects what is sent; of two with the same,
    /// the newer one. Milliseconds since 1970; 0: never chosen.
    pub preferred_ms: u64,
    /// The end of the grace of one that is not preferred any more; milliseconds since 1970.
    pub usable_until_ms: Option<u64>,
    /// It is to be destroyed then; milliseconds since 1970.
    pub destroy_at_ms: Option<u64>,
    /// How it gets to the meter; `None`: it did not come from here.
    pub transfer: Option<Transfer>,
}

/// e in the OBIS code `0.0.43.0.e.255` of a COSEM security setup (class 64).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecuritySetup(pub u8);

/// Keyed identity of a key *value*: CMAC under the key itself over the domain's label, so it can be
/// compared within a domain and says nothing of the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 16]);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({})", hex::encode(self.0))
    }
}

/// Key check value: the first five bytes of CMAC over sixteen zero bytes (X9.24-1:2017). Never the
/// ECB one, which is the top of GHASH's H.
pub type Kcv = [u8; 5];

/// One version of one key, as it stands in its meter's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// Its name.
    pub id: KeyId,
    /// The security setup that it belongs to.
    pub setup: SecuritySetup,
    /// Its kind.
    pub kind: KeyKind,
    /// Its display order within (setup, kind), from 1.
    pub version: u16,
    /// Its state.
    pub state: KeyState,
    /// Its protection.
    pub protection: Protection,
    /// The key, wrapped: RFC 3394 under the block's `wrap` key or a sealed KEK; secrets of free
    /// length AES-GCM-sealed under the block's `seal` key.
    pub wrapped: Vec<u8>,
    /// Length of the value in bytes.
    pub value_len: u8,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// The time of the last change of its state; milliseconds since 1970.
    pub changed_ms: u64,
    /// Absent for secrets of free length.
    pub kcv: Option<Kcv>,
    /// Identity of its value.
    pub fingerprint: Fingerprint,
    /// Its life so far, and what is due.
    pub life: KeyLife,
}

impl KeyRecord {
    /// Brings it into a state that is further on, and keeps the former one. One that is destroyed keeps nothing to open
    /// with.
    pub fn go_on(&mut self, state: KeyState, reason: StateReason, now_ms: u64) {
        if state <= self.state {
            return;
        }
        let before =
            PastState { state: self.state, since_ms: self.changed_ms, reason: self.life.reason };
        self.life.past.push(before);
        self.state = state;
        self.changed_ms = now_ms;
        self.life.reason = reason;
        self.life.usable_until_ms = None;
        if state == KeyState::Destroyed {
            self.life.destroy_at_ms = None;
            self.life.transfer = None;
            self.wrapped.clear();
        }
    }

    /// Whether it still takes part in anything: it is tried on what a meter sends.
    pub fn is_live(&self) -> bool {
        self.state.may_open()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_goes_back() {
        let events =
            [KeyEvent::Activate, KeyEvent::Deactivate, KeyEvent::Compromise, KeyEvent::Destroy];
        for &from in KeyState::ALL {
            for event in events {
                match from.after(event) {
                    Ok(to) => assert!(to > from, "{from:?} {event:?} {to:?}"),
                    Err(step) => assert_eq!(step, IllegalStep { from, event }),
                }
            }
        }
    }

    #[test]
    fn an_active_key_is_not_destroyed_before_it_is_deactivated() {
        assert!(KeyState::Active.after(KeyEvent::Destroy).is_err());
    }

    #[test]
    fn a_compromised_key_carries_and_vouches_for_nothing_and_a_destroyed_one_does_nothing() {
        let uses = |state: KeyState| {
            (state.may_protect(), state.may_carry(), state.may_open(), state.vouches())
        };
        assert_eq!(uses(KeyState::PreActive), (false, true, true, true));
        assert_eq!(uses(KeyState::Active), (true, true, true, true));
        assert_eq!(uses(KeyState::Deactivated), (false, false, true, true));
        assert_eq!(uses(KeyState::Compromised), (false, true, true, false));
        assert_eq!(uses(KeyState::Destroyed), (false, false, false, false));
    }

    #[test]
    fn invariant_2_a_kek_is_never_of_protection_memory() {
        assert!(!KeyKind::Kek.allows(Protection::Memory));
    }
}
