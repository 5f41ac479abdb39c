//! The HES's verbs: open ciphered APDUs and check their MICs.
//!
//! A batch goes through three passes. [`batch`]: parse, look up, open what is resident, without a
//! lock and without a wait. [`misses`]: open the blocks that were missing, then try again. [`token`]:
//! ask the HSM for keys of protection `HSM`. Where other servers write to the same database, [`doubt`]
//! looks once more at what did not open. What is accepted from a meter is decided in one place,
//! [`attempt`].

mod attempt;
mod batch;
mod doubt;
mod exchanged;
mod figures;
mod misses;
mod token;

use std::sync::Arc;

use crate::{
    hsm::Hsm,
    keyring::{BlockTable, Keyring},
    telemetry::metrics::{Page, Source},
};
use kms_core::{SecuritySetup, SystemTitle, Verdict};

/// How the caller named the meter.
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
    /// Whose.
    pub named: Named<'a>,
    /// Under which security setup; `None`: each in turn, lowest first.
    pub setup: Option<SecuritySetup>,
}

/// What the caller wants back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Plaintext and verdict.
    Plaintext,
    /// The verdict only.
    Verdict,
}

/// What became of one item.
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
    /// One sentence for people, where the verdict alone does not say enough.
    pub reason: Option<Box<str>>,
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
    fn of(verdict: Verdict) -> Self {
        Self {
            verdict,
            system_title: None,
            invocation_counter: 0,
            encryption_key_version: 0,
            authentication_key_version: 0,
            setup: SecuritySetup(0),
            reason: None,
        }
    }

    /// Of an item that was not finished.
    fn lost() -> Self {
        Self::of(Verdict::Unavailable).because("the item was not finished")
    }

    fn because(mut self, reason: impl Into<Box<str>>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    fn about(mut self, apdu: &dlms::CipheredApdu<'_>, title: SystemTitle) -> Self {
        self.system_title = Some(title);
        self.invocation_counter = apdu.invocation_counter();
        self
    }
}

/// Opens APDUs with the keyring's keys.
pub struct Ciphering {
    keyring: Arc<Keyring>,
    hsm: Hsm,
    figures: figures::Figures,
}

impl Ciphering {
    /// Puts the verbs on top of their parts.
    pub fn new(keyring: Arc<Keyring>, hsm: Hsm) -> Self {
        Self { keyring, hsm, figures: figures::Figures::default() }
    }

    /// Opens a batch. One bad item never fails its batch (invariant 9); plaintext comes back only
    /// after its tag verified, or marked as unauthenticated where the meter's policy allows that
    /// (invariant 8).
    pub async fn open_batch(&self, items: &[Item<'_>], want: Want) -> OpenedBatch {
        let mut pass = batch::Pass::new(items, want);
        let shared = self.keyring.has_other_writers();
        // Taken before anything is tried: a block that is newer than here deserves a second look.
        let before = shared.then(|| self.keyring.snapshot());
        pass.open_resident(&self.keyring).await;
        if !pass.misses.is_empty() || !pass.token.is_empty() {
            self.figures.misses.add(pass.misses.len() as u64);
            self.open_misses(&mut pass).await;
            self.figures.token_apdus.add(pass.token.len() as u64);
            self.ask_token(&mut pass).await;
        }
        if let Some(before) = before {
            let seen = |block| before.table(block).map(BlockTable::position).unwrap_or_default();
            self.look_again(&mut pass, seen).await;
        }
        let (columns, verdicts) = pass.into_columns();
        self.figures.count(want, &verdicts);
        columns
    }
}

impl Source for Ciphering {
    fn tell(&self, page: &mut Page) {
        self.figures.tell(page);
    }
}
