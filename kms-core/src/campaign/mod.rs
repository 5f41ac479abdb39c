//! Campaigns: the keys of many meters are rotated under one policy. Rules without IO: which meter is begun when, what is
//! to be done with it next, and what its answers come to.
//!
//! A campaign and its members are facts of the domain, so they reach the other site with the keys that they speak of, and
//! whichever site writes goes on. What a meter holds is never decided here: that stands in its own record, by evidence
//! ([`crate::life`]); a member's row says how far somebody has come with it.

pub mod advice;
pub mod driving;
mod encoding;
pub mod policy;
pub mod progress;
pub mod row;
pub mod stepping;

use dlms::SystemTitle;

use crate::{BlockCount, BlockNo};
use policy::Policy;
use row::Row;

/// Campaigns that a domain remembers, those that are over included.
pub const SLOTS: u8 = 16;
/// Parts that the members of one block are spread over: a row that changes has few others written with it.
pub const CHUNKS: u8 = 16;
/// Members of one part.
pub const ROWS_MAX: usize = 4_096;
/// Members of one campaign: the node that drives it keeps a row of each in memory, some 120 bytes.
pub const MEMBERS_MAX: usize = 2_000_000;
/// Labels of one campaign; meters of further ones share the last.
pub const LABELS_MAX: usize = 64;
/// Bytes of a campaign's name, of a label, of who drives it.
pub const NAME_MAX: usize = 64;
/// Bytes of a reason.
pub const REASON_MAX: usize = 255;

crate::numbered! {
    /// How a campaign stands.
    pub enum Status "campaign status" {
        /// Its meters are still coming in.
        Filling = 1 "FILLING",
        /// Meters are begun.
        Running = 2 "RUNNING",
        /// None is begun; what is under way may come to its end.
        Paused = 3 "PAUSED",
        /// No meter is left to do.
        Finished = 4 "FINISHED",
        /// Somebody ended it.
        Cancelled = 5 "CANCELLED",
    }
}

impl Status {
    /// Whether it is over.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Cancelled)
    }
}

/// The name of a campaign that never comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CampaignId(pub [u8; 16]);

/// A campaign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Campaign {
    /// Its place among those that are remembered.
    pub slot: u8,
    /// Its identity: a place has another one later.
    pub id: CampaignId,
    /// For people.
    pub name: String,
    /// Who asked for it.
    pub asked_by: String,
    /// How it goes about it.
    pub policy: Policy,
    /// How it stands.
    pub status: Status,
    /// Why it is paused or cancelled.
    pub reason: String,
    /// Milliseconds since 1970.
    pub started_ms: u64,
    /// When it was over; milliseconds since 1970.
    pub ended_ms: Option<u64>,
    /// Models, by which exposure is capped.
    pub labels: Vec<String>,
    /// Failures that somebody has seen and let it go on after.
    pub forgiven: u32,
    /// The time that the pace is used up to; milliseconds since 1970.
    pub paced_ms: u64,
    /// The node that drives it.
    pub driver: String,
    /// The epoch in which that took it: with a promotion it is nobody's.
    pub driver_epoch: u64,
    /// Until then; milliseconds since 1970.
    pub driver_until_ms: u64,
    /// Counts its changes: of two states of one campaign the later one has more.
    pub changes: u64,
}

impl Campaign {
    /// Both in one, at whichever site: of one campaign the later state, of two in one place the newer campaign.
    #[must_use]
    pub fn merged(&self, other: &Self) -> Self {
        let order = |it: &Self| (it.started_ms, it.id, it.status.is_over(), it.changes);
        let newer = if order(other) > order(self) { other } else { self };
        newer.clone()
    }
}

/// Some members of a campaign: those of one block that spread into one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The block of its members, and of its record.
    pub block: BlockNo,
    /// The blocks of the domain.
    pub blocks: BlockCount,
    /// The campaign's place.
    pub slot: u8,
    /// The chunk.
    pub chunk: u8,
    /// The campaign.
    pub campaign: CampaignId,
    /// When that was started: of two campaigns in one place the newer one counts.
    pub started_ms: u64,
    /// In the order of their titles.
    pub rows: Vec<Row>,
}

impl Part {
    /// The chunk of a meter within its block.
    pub fn chunk_of(title: &SystemTitle) -> u8 {
        // FNV-1a: whatever order titles were given out in, they spread.
        let spread = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        let hash = title.as_bytes().iter().fold(0x811C_9DC5, spread);
        ((hash ^ (hash >> 16)) % u32::from(CHUNKS)) as u8 // Less than 16.
    }

    /// A member's row.
    pub fn row(&self, title: &SystemTitle) -> Option<&Row> {
        let at = self.rows.binary_search_by_key(title, |row| row.title).ok()?;
        self.rows.get(at)
    }

    /// Puts a row in its place.
    pub fn put_row(&mut self, row: Row) {
        match self.rows.binary_search_by_key(&row.title, |row| row.title) {
            Ok(at) => {
                if let Some(old) = self.rows.get_mut(at) {
                    *old = row;
                }
            }
            Err(at) => self.rows.insert(at, row),
        }
    }

    /// Both in one, at whichever site: of one campaign the members of both, each as far as it came; of two the newer one.
    #[must_use]
    pub fn merged(&self, other: &Self) -> Self {
        if self.campaign != other.campaign {
            let order = |it: &Self| (it.started_ms, it.campaign);
            return if order(other) > order(self) { other.clone() } else { self.clone() };
        }
        let mut both = self.clone();
        for row in &other.rows {
            let merged = both.row(&row.title).map_or_else(|| row.clone(), |ours| ours.merged(row));
            both.put_row(merged);
        }
        both
    }
}

/// What names a campaign: letters, digits, dots and dashes.
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain)
}

#[cfg(test)]
mod tests;
