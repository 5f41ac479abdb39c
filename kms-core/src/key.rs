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
        /// Known to others. Opens nothing, protects nothing.
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
    /// confirmation was lost already uses it.
    pub const fn may_open(self) -> bool {
        match self {
            Self::PreActive | Self::Active | Self::Deactivated => true,
            Self::Compromised | Self::Destroyed => false,
        }
    }
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
    fn a_compromised_or_destroyed_key_opens_nothing() {
        assert!(!KeyState::Compromised.may_open());
        assert!(!KeyState::Destroyed.may_open());
    }

    #[test]
    fn invariant_2_a_kek_is_never_of_protection_memory() {
        assert!(!KeyKind::Kek.allows(Protection::Memory));
    }
}
