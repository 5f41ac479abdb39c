//! Listing meters: the index says which come next, their records say what they are. Each block of a page
//! is read once, and what can't be read is named: it never takes the page with it.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};

use super::{error::LifecycleError, verbs::Lifecycle, view::MeterView};
use crate::{
    keyring::{Found, KeyringError},
    store::IndexedMeter,
};
use kms_core::{BlockNo, MeterId, Record, SystemTitle};

/// Blocks of a page that are read at the same time.
const AT_ONCE: usize = 8;

/// One page of meters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In order of id.
    pub meters: Vec<MeterView>,
    /// Those of the page that can't be shown, in order of id.
    pub damaged: Vec<DamagedMeter>,
    /// Where the next page starts; `None`: this was the last.
    pub next: Option<MeterId>,
}

/// A meter that the index knows and whose record can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedMeter {
    /// As the index has it.
    pub meter_id: MeterId,
    /// As the index has it.
    pub system_title: SystemTitle,
    /// The block of that title.
    pub block: BlockNo,
    /// The fault, as a sentence.
    pub reason: String,
}

impl Lifecycle {
    /// Meters in order of id after `after`, at most `limit`.
    pub async fn list(&self, after: Option<&MeterId>, limit: u32) -> Result<Page, LifecycleError> {
        // One more than asked for: it says whether there is a next page.
        let mut places = self.store.list_meters(after, limit.saturating_add(1)).await?;
        let more = places.len() > limit as usize;
        places.truncate(limit as usize);
        let next = places.last().filter(|_| more).map(|place| place.meter_id.clone());
        let mut by_block: BTreeMap<BlockNo, Vec<IndexedMeter>> = BTreeMap::new();
        for place in places {
            by_block.entry(self.records.block_of(&place.system_title)).or_default().push(place);
        }
        let read = stream::iter(by_block).map(|(block, places)| self.read_block(block, places));
        let mut read = std::pin::pin!(read.buffer_unordered(AT_ONCE));
        let mut page = Page { next, ..Page::default() };
        while let Some(part) = read.next().await {
            let Page { meters, damaged, next: _ } = part?;
            page.meters.extend(meters);
            page.damaged.extend(damaged);
        }
        page.meters.sort_by(|a, b| a.record.meter_id.cmp(&b.record.meter_id));
        page.damaged.sort_by(|a, b| a.meter_id.cmp(&b.meter_id));
        Ok(page)
    }

    /// The part of a page that one block has. An error only if nothing can be read for a passing reason.
    async fn read_block(
        &self,
        block: BlockNo,
        places: Vec<IndexedMeter>,
    ) -> Result<Page, LifecycleError> {
        let titles: Vec<SystemTitle> = places.iter().map(|place| place.system_title).collect();
        let records = match self.records.read_of(block, &titles).await {
            Ok(records) => records,
            Err(error) if error.is_transient() => return Err(error.into()),
            Err(error) => {
                let reason = error.to_string();
                let damaged = places.into_iter().map(|place| damaged(block, place, reason.clone()));
                return Ok(Page { damaged: damaged.collect(), ..Page::default() });
            }
        };
        let mut page = Page::default();
        for (place, record) in places.into_iter().zip(records) {
            match record {
                Ok(Some(Record::Meter(record))) if record.meter_id == place.meter_id => {
                    page.meters.push(MeterView { record, block });
                }
                Ok(_) => self.put_unsure(&mut page, block, place).await?,
                Err(error) => page.damaged.push(damaged(block, place, error.to_string())),
            }
        }
        Ok(page)
    }

    /// The record is not what the index says: deleted between the two reads, or the index is wrong.
    async fn put_unsure(
        &self,
        page: &mut Page,
        block: BlockNo,
        place: IndexedMeter,
    ) -> Result<(), LifecycleError> {
        match self.records.confirm(&place.meter_id, place.system_title).await {
            Ok(Found::At(title)) => {
                if let Some(Record::Meter(record)) = self.records.read(&title).await?
                    && record.meter_id == place.meter_id
                {
                    page.meters.push(MeterView { record, block: self.records.block_of(&title) });
                }
            }
            Ok(Found::Nowhere { .. }) => {}
            Ok(Found::Unsure(reason)) => page.damaged.push(damaged(block, place, reason)),
            Err(error @ KeyringError::Store(_)) => return Err(error.into()),
            Err(error) => page.damaged.push(damaged(block, place, error.to_string())),
        }
        Ok(())
    }
}

fn damaged(block: BlockNo, place: IndexedMeter, reason: String) -> DamagedMeter {
    let IndexedMeter { meter_id, system_title } = place;
    DamagedMeter { meter_id, system_title, block, reason }
}
