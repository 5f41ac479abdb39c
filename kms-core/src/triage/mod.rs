//! The likely causes of a meter's frames that don't open, by rules that the service and the tool share.
//!
//! [`framing`] finds the APDU in what was recorded, [`trial`] tries keys and says only whether they fit, and
//! [`conclude`] makes causes of what was found of each frame. No plaintext is in any answer: what is deciphered
//! without its tag is looked at in here and wiped.

mod cause;
pub mod framing;
mod rule;
pub mod trial;

use dlms::SystemTitle;
use dlms::frame::FrameKind;

pub use cause::{Cause, Confidence};
pub use framing::Bad;
pub use rule::{Finding, STRUCTURE_MIN, conclude};

use crate::KeyKind;

/// The keys under which a tag verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fit {
    /// e in `0.0.43.0.e.255`.
    pub setup: u8,
    /// Version of the encryption key.
    pub encryption_key_version: u16,
    /// Version of the GAK.
    pub authentication_key_version: u16,
    /// Both are the newest that protect; else one of them is staged, superseded or older.
    pub is_current: bool,
}

/// The place of an authentic message among those that its meter sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The meter has no receive floor for this key.
    NoFloor,
    /// It was not seen before.
    New,
    /// The same message was taken before.
    Taken,
    /// Another message was taken under its counter.
    OtherTaken,
    /// Below the floor. `seen`: whether its counter was; `None`: too far below to be known.
    Below {
        /// The lowest counter that would be new.
        floor: u32,
        /// Whether a message with this counter was taken.
        seen: Option<bool>,
    },
    /// The floor can't be read now.
    Unknown,
}

/// The encryption keys under which a decipherment begins as an APDU does: bit n for the n-th of those that
/// were tried. Says nothing of the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plausible(pub u32);

impl Plausible {
    /// The most keys that are tried.
    pub const KEYS_MAX: usize = 32;
}

/// What was found of one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// There is no ciphered APDU in it that can be opened here.
    Bad(Bad),
    /// Its tag verifies as the meter's frames are opened.
    Opens(Fit, Standing),
    /// Nothing authenticates it, and the meter's policy lets it through.
    Unauthenticated(Plausible),
    /// Its tag verifies under keys of another setup than the one that was named.
    OtherSetup(Fit),
    /// Its tag verifies with a key of a record that was set aside.
    OtherSite(Fit),
    /// Its tag verifies with a key that was declared compromised.
    Compromised(Fit),
    /// Its tag verifies with encryption key and GAK in each other's place.
    Exchanged(Fit),
    /// Its tag verifies with the other rule about general-ciphering's header.
    OtherHeaderRule(Fit),
    /// Its tag verifies under the meter's keys with a title that the meter's record does not have.
    OtherTitle(SystemTitle),
    /// It carries the title of another meter that is known here; `opens`: under that one's keys.
    OtherMeter {
        /// The title that it carries.
        title: SystemTitle,
        /// Its tag verifies under that meter's keys.
        opens: bool,
    },
    /// It carries a title that nobody has, and the meter's keys don't fit under it.
    StrangeTitle(SystemTitle),
    /// The meter has no GAK that it could be verified with.
    NoGak(Plausible),
    /// The meter has no live key of this kind.
    NoKey(KeyKind),
    /// The meter has keys of this kind, and of another length than the frame's suite.
    OtherSuite(KeyKind),
    /// Less protected than the meter's policy demands.
    Policy,
    /// Its key can't be reached now.
    Unavailable(Box<str>),
    /// Its tag verifies under nothing that is known. `None`: its decipherment was not looked at.
    Fails(Option<Plausible>),
    /// The same, and the client's title that would begin its nonce is not known.
    FailsWithoutClientTitle,
}

/// One frame, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What carried the APDU, outermost first.
    pub layers: Vec<FrameKind>,
    /// Its invocation counter; 0 if there is none.
    pub counter: u32,
    /// What was found.
    pub found: Found,
}

impl Frame {
    /// Whether a checksum of its line held: what is wrong with it was wrong before it was sent.
    pub fn was_checked(&self) -> bool {
        self.layers.iter().any(|kind| matches!(kind, FrameKind::Hdlc | FrameKind::MBus))
    }
}

#[cfg(test)]
mod tests;
