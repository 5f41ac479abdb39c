//! APDUs as they come in, and what became of them.

use kms_core::{SecuritySetup, SystemTitle, Verdict, life::evidence::Shown};

/// The caller's name for the meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named<'a> {
    /// Not at all: the APDU carries its system title.
    InApdu,
    /// By its system title.
    Title(SystemTitle),
    /// By the operator's id.
    Id(&'a str),
}

/// One APDU to open.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// One whole ciphered APDU, from its tag byte on.
    pub apdu: &'a [u8],
    /// The meter, as the caller named it.
    pub named: Named<'a>,
    /// Under which security setup; `None`: each in turn, lowest first.
    pub setup: Option<SecuritySetup>,
}

/// The answer that the caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Plaintext and verdict.
    Plaintext,
    /// The verdict only.
    Verdict,
}

/// The outcome of one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The verdict.
    pub verdict: Verdict,
    /// The meter whose keys were used or tried.
    pub system_title: Option<SystemTitle>,
    /// Of the APDU; 0 if it could not be parsed.
    pub invocation_counter: u32,
    /// Version of the encryption key that opened it; 0: none.
    pub encryption_key_version: u16,
    /// Version of the GAK that took part; 0: none.
    pub authentication_key_version: u16,
    /// The setup whose keys opened it.
    pub setup: SecuritySetup,
    /// The same message was opened before: a call that was sent again.
    pub duplicate: bool,
    /// One sentence for people, where the verdict alone does not say enough.
    pub reason: Option<Box<str>>,
    /// Keys that wait for evidence, and that its tag vouches for.
    pub shown: Option<Shown>,
}

/// A batch in columns, in the order of its items.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenedBatch {
    /// One plaintext after the other; empty where the caller wanted verdicts only.
    pub plaintexts: Vec<u8>,
    /// Their lengths; 0 for what was not opened.
    pub lengths: Vec<u32>,
    /// One an item.
    pub outcomes: Vec<Outcome>,
}

impl Outcome {
    pub(super) fn of(verdict: Verdict) -> Self {
        Self {
            verdict,
            system_title: None,
            invocation_counter: 0,
            encryption_key_version: 0,
            authentication_key_version: 0,
            setup: SecuritySetup(0),
            duplicate: false,
            reason: None,
            shown: None,
        }
    }

    /// Of an item that was not finished.
    pub(super) fn lost() -> Self {
        Self::of(Verdict::Unavailable).because("the item was not finished")
    }

    pub(super) fn because(mut self, reason: impl Into<Box<str>>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    pub(super) fn about(mut self, apdu: &dlms::CipheredApdu<'_>, title: SystemTitle) -> Self {
        self.system_title = Some(title);
        self.invocation_counter = apdu.invocation_counter();
        self
    }
}
