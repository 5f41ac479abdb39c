//! What a key was used with before it came here: without it nobody knows where its counters may begin, so nothing is sent
//! under it. A counter that a meter was found at raises the line as well.

use dlms::KeySet;

use super::{
    batch::Transmitting,
    item::{Outcome, Whose},
    keys,
};
use crate::{
    keyring::{Change, KeyringError},
    store::StoreError,
};
use kms_core::{
    Epoch, Record, SecuritySetup, SystemTitle,
    audit::{AuditOutcome, AuditedCall, Detail, Subject},
    block::BlockMark,
    counters::{
        Line, LineName,
        allocator::Purpose,
        line::{NoCounterEpoch, invocation_counter},
    },
    ports::Replicated,
};

/// The most tries of a change: it is decided anew after another writer was first.
const TRIES: u32 = 8;

/// A statement about a meter's key.
#[derive(Clone, Copy, Debug)]
pub struct Declaration<'a> {
    /// The meter.
    pub whose: Whose<'a>,
    /// The security setup of its key.
    pub setup: SecuritySetup,
    /// The client whose title the counters are of.
    pub client: u16,
    /// Its own key, or the one that it shares.
    pub key_set: KeySet,
    /// The last invocation counter that the key was used with by this client; `None`: it was never used.
    pub last: Option<u32>,
    /// Two people say so.
    pub two_people: bool,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// The meter.
    pub system_title: SystemTitle,
    /// The client title that the counters are of.
    pub client_title: SystemTitle,
    /// No counter below this one is given out in this epoch.
    pub at_least: u32,
    /// Whether anything was changed.
    pub changed: bool,
    /// The state that the line's block has now; none if nothing was changed.
    pub states: Vec<BlockMark>,
}

/// The reason why nothing was declared.
#[derive(Debug, thiserror::Error)]
pub enum NotDeclared {
    /// The meter, or a key of it that is of use, is not there.
    #[error("{}", .0.reason.as_deref().unwrap_or("the meter can't be sent to"))]
    Unusable(Box<Outcome>),
    /// No counter epoch is left above it.
    #[error("no invocation counter is left above that one ({0}): give the meter another key first")]
    RekeyFirst(NoCounterEpoch),
    /// Too long a step for one person.
    #[error(
        "the line stands below {known:08X}, and that would burn {epochs} of 256 counter epochs at once: two people have to \
         say so (`dual_control = [\"Meters/DeclareCounter\"]`)"
    )]
    StepTooLong {
        /// Where it stands.
        known: u32,
        /// The counter epochs that it would rise by.
        epochs: u16,
    },
    /// This site was restored, and nobody else remembers: whatever it knew of the key may be from before it was used.
    #[error(
        "this site was restored, and nobody else knows whether the key was used since: declare the counter that the meter is at"
    )]
    Restored,
    /// The line's block.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
}

impl From<Outcome> for NotDeclared {
    fn from(outcome: Outcome) -> Self {
        Self::Unusable(Box::new(outcome))
    }
}

impl Transmitting {
    /// Declares the last counter of a key: its line begins above it. What is known already stays as it is; nothing is ever
    /// lowered. In the audit log as `call` when this returns; a failure is for the caller to record.
    pub async fn declare(
        &self,
        call: &AuditedCall,
        declaration: Declaration<'_>,
    ) -> Result<Declared, NotDeclared> {
        let (title, name) = self.line_named(&declaration).await?;
        let mut tried = 0;
        loop {
            tried += 1;
            match self.declare_once(call, &declaration, (title, name)).await {
                Err(NotDeclared::Keyring(KeyringError::Store(StoreError::Conflict(_))))
                    if tried < TRIES => {}
                outcome => return outcome,
            }
        }
    }

    /// Whether the other site has what was declared. For when it is done: nothing is held while it is asked.
    pub async fn replicated(&self, states: &[BlockMark]) -> Replicated {
        self.gate.replicated(states).await
    }

    async fn line_named(
        &self,
        declaration: &Declaration<'_>,
    ) -> Result<(SystemTitle, LineName), NotDeclared> {
        let Declaration { whose, setup, client, key_set, .. } = *declaration;
        let title = self.title_of(whose).await?;
        let table = self.reader.open(self.reader.block_of(&title)).await;
        let table = table.map_err(|error| {
            Outcome::of(kms_core::Verdict::Unavailable).because(error.to_string()).about(title)
        })?;
        let meter = keys::find(&table, title)?;
        // Also of a compromised key: it carries the transfer of its successor.
        let choice = keys::Choice { setup, version: 0, purpose: Purpose::KeyTransfer };
        let name = keys::line_of(&meter, &self.identities, (key_set, choice, client))?;
        Ok((title, name))
    }

    async fn declare_once(
        &self,
        call: &AuditedCall,
        declaration: &Declaration<'_>,
        (title, name): (SystemTitle, LineName),
    ) -> Result<Declared, NotDeclared> {
        let standing = self.counters.parts.counting.standing();
        let block = self.counters.parts.counting.block_of(&name);
        let restored = self.counters.is_forgotten(block, standing.epoch).await;
        let restored = restored.map_err(|error| Outcome::refused(&error).about(title))?;
        if restored && declaration.last.is_none() {
            return Err(NotDeclared::Restored);
        }
        let mut changes = self.writer.change(&[block]).await?;
        let Some(change) = changes.first_mut() else {
            let what = "it was not taken for change".to_owned();
            return Err(KeyringError::Damaged { block, what }.into());
        };
        let line = declared(change, name, declaration, standing.epoch)?;
        let offset = line.offset.map(|offset| offset.counter_epoch(standing.epoch));
        let counter_epoch =
            offset.transpose().map_err(NotDeclared::RekeyFirst)?.unwrap_or_default();
        // After a restore what counts is that it was declared since.
        let changed = restored || change.line(&name)? != Some(line);
        if changed {
            change.put(Record::Line(line));
        }
        let subject = Subject { system_title: Some(title), block: Some(block), ..Subject::NONE };
        let entry = call.entry(self.clock.unix_ms(), subject, AuditOutcome::Done);
        let at_least = invocation_counter(counter_epoch, 0);
        let entry = entry.with(Detail::CounterAtLeast, at_least.into());
        let states = self.writer.commit(changes, vec![entry]).await?;
        let client_title = name.originator;
        Ok(Declared { system_title: title, client_title, at_least, changed, states })
    }
}

/// The line as it is to stand.
fn declared(
    change: &Change,
    name: LineName,
    declaration: &Declaration<'_>,
    epoch: Epoch,
) -> Result<Line, NotDeclared> {
    let known = change.line(&name)?;
    let line = match (known, declaration.last) {
        (Some(known), None) if known.offset.is_some() => return Ok(known),
        (_, None) => Line::of_new_key(name, epoch),
        (known, Some(last)) => known.unwrap_or(Line::undeclared(name)).declared(last, epoch),
    };
    let line = line.map_err(NotDeclared::RekeyFirst)?;
    let counter_epoch = |line: &Line| line.offset?.counter_epoch(epoch).ok();
    if let (Some(before), Some(after)) =
        (known.as_ref().and_then(counter_epoch), counter_epoch(&line))
    {
        let epochs = u16::from(after.saturating_sub(before));
        // Up to the next one of the parity is what one authenticated counter may do as well.
        if epochs > u16::from(Line::STEP_MAX) + 1 && !declaration.two_people {
            let known = invocation_counter(before, 0x00FF_FFFF);
            return Err(NotDeclared::StepTooLong { known, epochs });
        }
    }
    Ok(line)
}
