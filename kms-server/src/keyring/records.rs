//! Meters' records as they are stored, and the way to them from a meter id. What an index says, this
//! process's or the database's, is a hint where to look; what counts is the record there, which is
//! authenticated.

use std::{collections::HashMap, sync::Arc};

use super::{error::KeyringError, opening::Opener};
use kms_core::{
    BlockCount, BlockNo, Head, MeterId, MeterRecord, Record, RecordKey, StoredRecord, SystemTitle,
    fact::{Fact, FactName},
};

/// The outcome of a look-up by meter id.
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

/// Reads records: each verified with all of its block.
pub struct Records {
    opener: Arc<Opener>,
}

impl Records {
    /// Over the same blocks as `opener`.
    pub(super) fn new(opener: Arc<Opener>) -> Self {
        Self { opener }
    }

    /// The block that a title belongs to.
    pub fn block_of(&self, title: &SystemTitle) -> BlockNo {
        self.opener.resident.blocks().block_of(title)
    }

    /// The block that a fact of the domain belongs to.
    pub fn block_of_fact(&self, name: &FactName) -> BlockNo {
        name.block(self.opener.resident.blocks())
    }

    /// A fact as it is stored, verified with all of its block; `None`: there is none that can be read.
    pub async fn fact(&self, name: &FactName) -> Result<Option<Fact>, KeyringError> {
        let (_, verified) = self.opener.verified(self.block_of_fact(name)).await?;
        Ok(match verified.stands(&RecordKey::fact(name)) {
            Ok(Some(Record::Fact(fact))) => Some(fact),
            _ => None,
        })
    }

    /// The blocks of the domain.
    pub fn blocks(&self) -> BlockCount {
        self.opener.resident.blocks()
    }

    /// The meters of a block, verified with all of it. One that can't be read is left out.
    pub async fn meters_of(&self, block: BlockNo) -> Result<Vec<MeterRecord>, KeyringError> {
        let (_, verified) = self.opener.verified(block).await?;
        let meters = verified.authentic().filter(|it| it.key.is_meter());
        Ok(meters
            .filter_map(|it| match Record::decode(&it.body) {
                Ok(Record::Meter(meter)) => Some(meter),
                _ => None,
            })
            .collect())
    }

    /// The facts of a kind in a block, verified with all of it; those that can't be read are left out.
    pub async fn facts_of(&self, block: BlockNo, kind: u8) -> Result<Vec<Fact>, KeyringError> {
        let (_, verified) = self.opener.verified(block).await?;
        let of_kind = verified.authentic().filter(|it| it.key.as_bytes().first() == Some(&kind));
        let facts = of_kind.filter_map(|stored| match verified.stands(&stored.key) {
            Ok(Some(Record::Fact(fact))) => Some(fact),
            _ => None,
        });
        Ok(facts.collect())
    }

    /// These records of one block, read and verified once: `None` for each that is not there, or can't be read.
    pub async fn stand(
        &self,
        block: BlockNo,
        keys: &[RecordKey],
    ) -> Result<Vec<Option<Record>>, KeyringError> {
        let (_, verified) = self.opener.verified(block).await?;
        Ok(keys.iter().map(|key| verified.stands(key).unwrap_or(None)).collect())
    }

    /// Whether the domain has a block of this number.
    pub fn has_block(&self, block: BlockNo) -> bool {
        block.0 < self.opener.resident.blocks().get()
    }

    /// The head of a block as it is stored, all of it verified.
    pub async fn head(&self, block: BlockNo) -> Result<Head, KeyringError> {
        self.opener.verified(block).await.map(|(_, verified)| verified.head().clone())
    }

    /// The record of this meter as it is stored, verified with all of its block.
    pub async fn read(&self, title: &SystemTitle) -> Result<Option<Record>, KeyringError> {
        let read = self.read_of(self.block_of(title), std::slice::from_ref(title)).await?;
        read.into_iter().next().unwrap_or(Ok(None))
    }

    /// The records of these meters of one block, read and verified once: an answer a title. `Err` as a
    /// whole: nothing of the block can be read.
    pub async fn read_of(
        &self,
        block: BlockNo,
        titles: &[SystemTitle],
    ) -> Result<Vec<Result<Option<Record>, KeyringError>>, KeyringError> {
        let (_, verified) = self.opener.verified(block).await?;
        let read = |title: &SystemTitle| {
            let record = verified.record(title);
            record.map_err(|why| KeyringError::unreadable(block, *title, why))
        };
        Ok(titles.iter().map(read).collect())
    }

    /// The records that stand where these of one block were set aside, read and verified once: each beside the one that
    /// was set aside, as far as that is authentic and can be read.
    pub async fn beside(
        &self,
        block: BlockNo,
        aside: &[StoredRecord],
    ) -> Result<Vec<(Option<Record>, Option<Record>)>, KeyringError> {
        let (unsealed, verified) = self.opener.verified(block).await?;
        let mut scratch = Vec::new();
        let mut both = Vec::with_capacity(aside.len());
        for record in aside {
            let is_authentic = unsealed.keys.record_is_authentic(block, record, &mut scratch);
            let read = Record::decode(&record.body).ok().filter(|read| read.key() == record.key);
            both.push((
                read.filter(|_| is_authentic),
                verified.stands(&record.key).unwrap_or(None),
            ));
        }
        Ok(both)
    }

    /// The title of the meter with this id, if its block is open now.
    pub fn resident_title(&self, id: &str) -> Option<SystemTitle> {
        let resident = &self.opener.resident;
        resident.title_of(&resident.snapshot(), id)
    }

    /// Where the database's index has the meter with this id. A hint: whoever uses it holds it against
    /// the record.
    pub async fn look_up(&self, id: &MeterId) -> Result<Option<SystemTitle>, KeyringError> {
        Ok(self.opener.store.find_meter(id).await?.map(|place| place.system_title))
    }

    /// The same of many ids at once: one way to the database and back.
    pub async fn look_up_all(
        &self,
        ids: &[MeterId],
    ) -> Result<HashMap<MeterId, SystemTitle>, KeyringError> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let found = self.opener.store.find_meters(ids).await?;
        Ok(found.into_iter().map(|place| (place.meter_id, place.system_title)).collect())
    }

    /// Where the meter with this id is: memory first, then the index; the stored record decides.
    pub async fn find(&self, id: &MeterId) -> Result<Found, KeyringError> {
        let resident = self.resident_title(id.as_str());
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
            let resident = &self.opener.resident;
            let snapshot = resident.snapshot();
            match resident.title_of(&snapshot, id) {
                Some(title) => Some(Err(title)),
                // A block that was closed and opened again meanwhile had its ids.
                None if !Arc::ptr_eq(&snapshot, &resident.snapshot()) => None,
                None => Some(Ok(snapshot.is_complete())),
            }
        });
        let complete = match complete {
            Some(Err(title)) => return Found::At(title),
            Some(Ok(complete)) => complete,
            None => false,
        };
        let faults = &self.opener.faults;
        let doubts = [
            (Doubt::NotNewest, self.opener.freshness.refusal().is_some()),
            (Doubt::Damage, faults.may_hide_a_meter()),
            (Doubt::NoRoom, !complete && faults.no_room_for().is_some()),
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
                    self.opener.faults.damage.forget_lie(id);
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
                    self.opener.faults.damage.forget_lie(id);
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
        self.opener.faults.damage.note_lie(id, title);
        Ok(Found::Unsure(format!(
            "the index of meter ids says that {id} has system title {title}, and the record there says \
             otherwise: the database was changed outside this service"
        )))
    }
}

/// The most looks into memory while blocks are published.
const MEMORY_LOOKS: u32 = 4;

/// The most reads of record and index before the index is called wrong.
const CONFIRM_LOOKS: u32 = 4;
