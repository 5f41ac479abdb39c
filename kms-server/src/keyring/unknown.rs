//! Records that are authentic and that this release can't read: kept byte for byte, found by no index. A site that has
//! some is not promoted: what they say would be lost on its clients.

use std::collections::BTreeSet;

use super::opening::Opener;
use crate::store::StoreError;
use kms_core::{BlockNo, Record, RecordKey, record::BEGINNINGS};

/// Records that are named, and blocks that are opened to find them.
const NAMED_MAX: u32 = 64;

/// The first ones. What only looks like one, since its bytes were changed outside this service, is none: that is
/// damage, and is told as such.
pub(super) async fn unknown_records(
    opener: &Opener,
) -> Result<Vec<(BlockNo, RecordKey)>, StoreError> {
    let strange = opener.store.strange_records(&BEGINNINGS, NAMED_MAX).await?;
    let blocks: BTreeSet<BlockNo> = strange.some.iter().map(|(block, _)| *block).collect();
    let mut unknown = Vec::new();
    for block in blocks {
        // One that does not open is told by who opens blocks.
        let Ok((_, verified)) = opener.reopened(block).await else { continue };
        let unread = verified.authentic().filter(|record| Record::decode(&record.body).is_err());
        unknown.extend(unread.map(|record| (block, record.key)));
    }
    Ok(unknown)
}
