//! Why a step of a key's life is not done.

use super::LIVE_MAX;
use crate::{KeyKind, KeyState, RefusalCode, SecuritySetup};

/// The reason why a step is not done. Nothing is changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    /// No KEK.
    #[error(
        "the meter has no KEK in security setup {} that a key could travel under: bring it in with its factory keys",
        .0.0
    )]
    NoKek(SecuritySetup),
    /// A KEK that is known to others.
    #[error(
        "the KEK of security setup {} is compromised: whoever has it reads the new key on its way. Replace the KEK at the \
         meter; where that is not possible, two people may override this",
        .0.0
    )]
    KekCompromised(SecuritySetup),
    /// Class version 0.
    #[error(
        "class 64 version 0 has no key_id for the KEK: this meter's KEK can't be changed by a transfer"
    )]
    NoKekChange,
    /// A class version that is none.
    #[error("class 64 has versions 0 and 1, not {0}")]
    ClassVersion(u8),
    /// A kind that is not transferred.
    #[error(
        "a {0} does not travel by key_transfer (class 64, method 2): GUEK, GBEK, GAK and KEK do"
    )]
    NotTransferable(KeyKind),
    /// KEK and key are of two suites.
    #[error("the KEK has {kek} bytes and the key would have {key}: they are of one security suite")]
    SuitesMixed {
        /// Length of the KEK.
        kek: u8,
        /// Length of the key.
        key: u8,
    },
    /// Nothing is staged.
    #[error("no {kind} is staged in security setup {}: `ami-tool key stage` makes one", setup.0)]
    NothingStaged {
        /// The kind.
        kind: KeyKind,
        /// The security setup.
        setup: SecuritySetup,
    },
    /// The bound.
    #[error(
        "the meter has {LIVE_MAX} live versions of the {kind} in security setup {}, and no more are tried on what it \
         sends: none of them is deactivated for long enough to make room; destroy one that the meter can't hold any more",
        setup.0
    )]
    TooManyLive {
        /// The kind.
        kind: KeyKind,
        /// The security setup.
        setup: SecuritySetup,
    },
    /// More than a record has.
    #[error("no further version of the {kind} fits into the meter's record")]
    RecordFull {
        /// The kind.
        kind: KeyKind,
    },
    /// No such version.
    #[error("the meter has no version {version} of the {kind} in security setup {}", setup.0)]
    NoSuchVersion {
        /// The kind.
        kind: KeyKind,
        /// The security setup.
        setup: SecuritySetup,
        /// The version.
        version: u16,
    },
    /// A state that does not allow it.
    #[error("version {version} of the {kind} is {}: {what}", state.word())]
    State {
        /// The kind.
        kind: KeyKind,
        /// The version.
        version: u16,
        /// Its state.
        state: KeyState,
        /// What would be needed.
        what: &'static str,
    },
    /// The pair that protects it has the very key.
    #[error("the {0} would travel under itself: name the versions that the meter held before")]
    UnderItself(KeyKind),
    /// No pair of keys to protect it with.
    #[error("the meter has no {kind} in security setup {} that could carry it", setup.0)]
    NoCarrier {
        /// The kind.
        kind: KeyKind,
        /// The carrier's security setup.
        setup: SecuritySetup,
    },
    /// A legal hold.
    #[error("the meter is under a legal hold: nothing of it is destroyed until that is lifted")]
    LegalHold,
    /// The last way.
    #[error(
        "without version {version} of the {kind} nothing reaches the meter, or what it may hold already is lost: say so \
         once more (`--last-way`) if that is meant"
    )]
    LastWay {
        /// The kind.
        kind: KeyKind,
        /// The version.
        version: u16,
    },
}

impl NotDone {
    /// For machines.
    pub const fn code(&self) -> RefusalCode {
        match self {
            Self::NoKek(_) => RefusalCode::NoKek,
            Self::KekCompromised(_) => RefusalCode::KekCompromised,
            Self::NoKekChange => RefusalCode::NoKekChange,
            Self::ClassVersion(_) => RefusalCode::BadField,
            Self::NotTransferable(_) => RefusalCode::NotTransferable,
            Self::SuitesMixed { .. } => RefusalCode::SuitesMixed,
            Self::NothingStaged { .. } => RefusalCode::NothingStaged,
            Self::TooManyLive { .. } => RefusalCode::TooManyLiveVersions,
            Self::RecordFull { .. } => RefusalCode::TooManyVersions,
            Self::NoSuchVersion { .. } => RefusalCode::NoSuchVersion,
            Self::State { .. } | Self::NoCarrier { .. } => RefusalCode::KeyState,
            Self::UnderItself(_) => RefusalCode::UnderItself,
            Self::LegalHold => RefusalCode::LegalHold,
            Self::LastWay { .. } => RefusalCode::LastWay,
        }
    }
}
