//! From a meter id to its title. What an index says, this process's or the database's, is a hint where
//! to look; what counts is the record there, which is authenticated.

use std::sync::Arc;

use super::{Directory, Keyring, KeyringError, ResidentMeter};
use kms_core::{MeterId, Record, SystemTitle};

/// What can be said of a meter id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The record of this title has it.
    At(SystemTitle),
    /// Neither memory nor index know it.
    Nowhere {
        /// Why it may be there all the same.
        but: Option<Doubt>,
    },
    /// The index says where it is, and the record there can't be read or says otherwise. Whether there is
    /// such a meter can't be said.
    Unsure(String),
}

/// Why a meter may be there all the same that neither memory nor index know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// The database is not the newest that is known: its index is not either.
    #[error(
        "but the database is not the newest, and it may be in what is missing: see `site status`"
    )]
    NotNewest,
    /// There is damage.
    #[error(
        "but records were changed outside this service, and it may be one of them: see `site status`"
    )]
    Damage,
    /// The index may have lost it, and not each block is open.
    #[error("but not all blocks are open yet, and it may be in one of the others: try again")]
    NotAllOpen,
    /// The same, and there is no room for all of them.
    #[error(
        "but the arena has no room for all blocks, and it may be in one of the others: see `site status`"
    )]
    NoRoom,
}

impl Keyring {
    /// The title of the meter with this id, if its block is open. Its record has said so.
    pub fn title_of(&self, snapshot: &Directory, id: &str) -> Option<SystemTitle> {
        let tag = self.ids.tag(id);
        let title = self.ids.get(tag.hash)?;
        let meter = snapshot.table(self.block_of(&title))?.find(&title)?;
        (!meter.is_damaged() && meter.id() == tag).then_some(title)
    }

    /// Whether this is the meter with this id: its record says so.
    pub fn has_id(&self, meter: &ResidentMeter<'_>, id: &str) -> bool {
        !meter.is_damaged() && meter.id() == self.ids.tag(id)
    }

    /// Where the database's index has the meter with this id. A hint: whoever uses it holds it against
    /// the record.
    pub async fn look_up(&self, id: &MeterId) -> Result<Option<SystemTitle>, KeyringError> {
        Ok(self.store.find_meter(id).await?.map(|place| place.system_title))
    }

    /// Where the meter with this id is: memory first, then the index; the stored record decides.
    pub async fn find(&self, id: &MeterId) -> Result<Found, KeyringError> {
        let resident = self.title_of(&self.snapshot(), id.as_str());
        if let Some(title) = resident
            && let Some(Record::Meter(meter)) = self.read(&title).await?
            && meter.meter_id == *id
        {
            return Ok(Found::At(title));
        }
        match self.look_up(id).await? {
            Some(title) => self.confirm(id, title).await,
            None => Ok(match self.nowhere(id.as_str()) {
                // Its record, read just now, says otherwise: deleted by another server.
                Found::At(title) if Some(title) == resident => Found::Nowhere { but: None },
                found => found,
            }),
        }
    }

    /// Of an id that the index does not know. An index is not authenticated: that it has no row says
    /// nothing while a block is closed, of which memory does not know the ids; and memory is asked again.
    pub fn nowhere(&self, id: &str) -> Found {
        let complete = (0..MEMORY_LOOKS).find_map(|_| {
            let snapshot = self.snapshot();
            match self.title_of(&snapshot, id) {
                Some(title) => Some(Err(title)),
                // A block that was closed and opened again meanwhile had its ids.
                None if !Arc::ptr_eq(&snapshot, &self.snapshot()) => None,
                None => Some(Ok(snapshot.is_complete())),
            }
        });
        let complete = match complete {
            Some(Err(title)) => return Found::At(title),
            Some(Ok(complete)) => complete,
            None => false,
        };
        let doubts = [
            (Doubt::NotNewest, self.freshness.refusal().is_some()),
            (Doubt::Damage, self.may_be_damaged()),
            (Doubt::NoRoom, !complete && self.memory().too_small.is_some()),
            (Doubt::NotAllOpen, !complete),
        ];
        Found::Nowhere { but: doubts.into_iter().find(|(_, holds)| *holds).map(|(doubt, _)| doubt) }
    }

    /// Holds what the index says against the stored record. That the index lies is only said after
    /// looking twice: another writer may have been between the two.
    pub async fn confirm(&self, id: &MeterId, hint: SystemTitle) -> Result<Found, KeyringError> {
        let mut title = hint;
        for look in 0..CONFIRM_LOOKS {
            match self.read(&title).await {
                Ok(Some(Record::Meter(meter))) if meter.meter_id == *id => {
                    self.damage.forget_lie(id);
                    return Ok(Found::At(title));
                }
                Ok(_) => {}
                Err(
                    error @ (KeyringError::RecordDamaged { .. }
                    | KeyringError::RecordMissing { .. }
                    | KeyringError::Damaged { .. }),
                ) => return Ok(Found::Unsure(error.to_string())),
                Err(error) => return Err(error),
            }
            match self.look_up(id).await? {
                None => {
                    self.damage.forget_lie(id);
                    return Ok(match self.nowhere(id.as_str()) {
                        // As above: memory is older than what was read.
                        Found::At(memory) if memory == title => Found::Nowhere { but: None },
                        found => found,
                    });
                }
                Some(again) if again == title && look > 0 => break,
                Some(again) => title = again,
            }
        }
        self.damage.note_lie(id, title);
        Ok(Found::Unsure(format!(
            "the index of meter ids says that {id} has system title {title}, and the record there says \
             otherwise: the database was changed outside this service"
        )))
    }
}

/// How often memory is asked while blocks are published.
const MEMORY_LOOKS: u32 = 4;

/// How often record and index are read before the index is called wrong.
const CONFIRM_LOOKS: u32 = 4;
