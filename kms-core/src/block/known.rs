//! The records of a block that was verified as a whole: so that a change of some of them need not read all the others.
//!
//! Keys and MACs are what a digest is made over, and no secrets. They are believed while the stored head is the very one
//! that they were verified under; each record that is used is read, and verified, all the same. What somebody does to a
//! record that is not read is not seen, and not signed over either: the next digest has the MAC that its writer made.

use crate::{Head, RecordKey, RecordMac, StoredRecord, freshness::Freshness};

use super::{
    keys::BlockKeys,
    verified::{Leaf, Verified},
};

/// A head, and what its digest is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    head: Head,
    /// MAC and key of each record in key order, side by side: 25 bytes a meter.
    leaves: Box<[u8]>,
}

/// Some records of a block as they are stored now.
#[derive(Clone, Debug)]
pub struct InPart<'a> {
    /// The block's head, of the same moment.
    pub head: Head,
    /// The keys that were asked for.
    pub asked: &'a [RecordKey],
    /// The records that there are under these.
    pub records: Vec<StoredRecord>,
}

const MAC_LEN: usize = size_of::<RecordMac>();

impl Known {
    /// `None`: something of it is damaged. Then all of it is read each time.
    pub fn of(verified: &Verified) -> Option<Self> {
        let leaves = verified.leaves();
        let fits = |leaf: &Leaf| leaf.key.is_well_formed();
        if !verified.damaged().is_empty() || !leaves.iter().all(fits) {
            return None;
        }
        let bytes: usize = leaves.iter().map(|leaf| MAC_LEN + leaf.key.as_bytes().len()).sum();
        let mut packed = Vec::with_capacity(bytes);
        for Leaf { key, mac } in &leaves {
            packed.extend_from_slice(mac);
            packed.extend_from_slice(key.as_bytes());
        }
        Some(Self { head: verified.head().clone(), leaves: packed.into() })
    }

    /// The head that it is known under.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The memory that it takes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.leaves.len()
    }

    /// The block as it is stored now, if it is the one that is known and the records that were read are its own; what is
    /// wrong else is for who reads all of it to say.
    pub fn verified(
        &self,
        InPart { head, asked, mut records }: InPart<'_>,
        keys: &BlockKeys,
        freshness: &Freshness,
    ) -> Option<Verified> {
        if head != self.head {
            return None;
        }
        records.sort_unstable_by_key(|record| record.key);
        let (read, unread): (Vec<Leaf>, Vec<Leaf>) =
            self.leaves().partition(|leaf| asked.contains(&leaf.key));
        let mut scratch = Vec::with_capacity(512);
        let mut is_its_own = |(record, leaf): (&StoredRecord, &Leaf)| {
            Leaf::of(record) == *leaf
                && record.position <= head.position
                && record.secret_version == head.secret_version
                && keys.record_is_authentic(head.block, record, &mut scratch)
        };
        if records.len() != read.len() || !records.iter().zip(&read).all(&mut is_its_own) {
            return None;
        }
        let verified = Verified::in_part(head, records, unread);
        freshness.admit(&verified.mark()).ok()?;
        Some(verified)
    }

    fn leaves(&self) -> impl Iterator<Item = Leaf> {
        let mut rest = &self.leaves[..];
        std::iter::from_fn(move || {
            let (mac, behind) = rest.split_first_chunk::<MAC_LEN>()?;
            let (key, behind) = RecordKey::first_of(behind)?;
            rest = behind;
            Some(Leaf { key, mac: *mac })
        })
    }
}
