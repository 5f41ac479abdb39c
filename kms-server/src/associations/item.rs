//! The steps of an association, as they are asked for, and what became of them.

use dlms::{Suite, hls::SecretMechanism};

use super::handle::Handle;
use crate::transmitting::{Envelope, Outcome, Whose};
use kms_core::{SecuritySetup, SystemTitle, Verdict};

/// Bytes of our challenges, unless the caller names another number.
pub const CHALLENGE_LEN_DEFAULT: usize = 16;

/// An HLS authentication mechanism, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// 2: of the manufacturer, in the dialect that the meter's profile says.
    Manufacturer,
    /// 5: a GMAC under the meter's keys.
    Gmac,
    /// 3, 4, 6: with the meter's HLS secret.
    Secret(SecretMechanism),
}

impl Mechanism {
    /// The mechanism with this number; `None`: this service has none.
    pub const fn of_number(number: u32) -> Option<Self> {
        Some(match number {
            2 => Self::Manufacturer,
            3 => Self::Secret(SecretMechanism::Md5),
            4 => Self::Secret(SecretMechanism::Sha1),
            5 => Self::Gmac,
            6 => Self::Secret(SecretMechanism::Sha256),
            _ => return None,
        })
    }
}

/// An association to begin.
#[derive(Clone, Copy, Debug)]
pub struct Begin<'a> {
    /// The meter.
    pub whose: Whose<'a>,
    /// Under which security setup.
    pub setup: SecuritySetup,
    /// As which client.
    pub client: u16,
    /// How the two sides show that they have the key.
    pub mechanism: Mechanism,
    /// `None`: by the key's length, 0 or 2.
    pub suite: Option<Suite>,
    /// Bytes of our challenge.
    pub challenge_len: usize,
    /// The versions of GUEK and GAK that the meter is presumed to hold; 0: the preferred ones.
    pub versions: (u16, u16),
}

/// An association that was begun.
#[derive(Clone, Debug)]
pub struct Begun {
    /// Its name.
    pub handle: Handle,
    /// CtoS.
    pub challenge: Box<[u8]>,
    /// The meter.
    pub system_title: SystemTitle,
    /// The utility's title, which goes into the AARQ.
    pub client_title: SystemTitle,
    /// For so long.
    pub expires_in_ms: u64,
}

/// The ACTION request that is to carry an answer.
#[derive(Clone, Copy, Debug)]
pub struct Action {
    /// Of the caller.
    pub invoke_id_and_priority: u8,
    /// How it travels.
    pub envelope: Envelope,
    /// Whether it gets a tag, and whether it is enciphered.
    pub protection: (bool, bool),
}

/// A challenge to answer.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// StoC.
    pub challenge: &'a [u8],
    /// The mechanism that the meter has named; `None`: nobody said.
    pub said: Option<Mechanism>,
    /// `None`: the answer is wanted bare.
    pub action: Option<Action>,
    /// Other versions than those that the association was begun with; 0: those.
    pub versions: (u16, u16),
}

/// The answer to a meter's challenge.
#[derive(Debug)]
pub struct Answered {
    /// `OK`, or why there is none.
    pub outcome: Outcome,
    /// f(StoC), or the ciphered APDU around it.
    pub bytes: Vec<u8>,
    /// The counter in the answer; 0: it has none.
    pub answer_counter: u32,
    /// The counter of the APDU around it; 0: there is none.
    pub action_counter: u32,
    /// Version of the HLS secret; 0: none took part.
    pub secret_version: u16,
}

/// The meter's answer to our challenge, as it came.
#[derive(Clone, Copy, Debug)]
pub enum GivenAnswer<'a> {
    /// f(CtoS) itself.
    Bare(&'a [u8]),
    /// The ciphered APDU around it.
    Carried(&'a [u8]),
}

/// A meter's answer, and what is said of it.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// As it came.
    pub answer: GivenAnswer<'a>,
    /// The one pair of GUEK and GAK that it is to verify under; 0: each live one is tried.
    pub versions: (u16, u16),
}

/// The judgement of a meter's answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Verified {
    /// `OK`: the meter has shown that it has the key.
    pub verdict: Verdict,
    /// The meter.
    pub system_title: SystemTitle,
    /// Version of the GUEK that the answer was made with; 0: none took part.
    pub encryption_key_version: u16,
    /// Version of the GAK; 0: none took part.
    pub authentication_key_version: u16,
    /// Version of the HLS secret; 0: none took part.
    pub secret_version: u16,
    /// The counter in the answer; 0: it has none.
    pub answer_counter: u32,
    /// The counter of the APDU around it; 0: there is none.
    pub carrier_counter: u32,
    /// One sentence for people.
    pub reason: Option<Box<str>>,
}

impl Answered {
    pub(super) fn refused(outcome: Outcome) -> Self {
        Self { outcome, bytes: Vec::new(), answer_counter: 0, action_counter: 0, secret_version: 0 }
    }
}

impl Verified {
    pub(super) fn of(verdict: Verdict, system_title: SystemTitle) -> Self {
        Self {
            verdict,
            system_title,
            encryption_key_version: 0,
            authentication_key_version: 0,
            secret_version: 0,
            answer_counter: 0,
            carrier_counter: 0,
            reason: None,
        }
    }

    pub(super) fn because(self, reason: impl Into<Box<str>>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }
}
