//! A whole block, put together from its pieces.

use futures_util::{StreamExt as _, stream::BoxStream};

use super::{failure::PeerError, messages::BlockUpdate};
use kms_core::{
    BlockNo, Head, StoredRecord,
    replication::following::{BLOCK_BYTES_MAX, RECORD_BYTES},
};

/// The pieces of one block that was asked for, all of one state, and no more of them than a block has bytes. Nothing of
/// it is verified.
pub(super) async fn whole_of(
    block: BlockNo,
    mut pieces: BoxStream<'static, Result<BlockUpdate, PeerError>>,
) -> Result<(Head, Vec<StoredRecord>), PeerError> {
    let mut whole: Option<(Head, Vec<StoredRecord>)> = None;
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await {
        let BlockUpdate { head, records, more } = piece?;
        bytes += records.iter().map(|it| it.body.len() + RECORD_BYTES).sum::<usize>();
        let leads_nowhere = more && records.is_empty();
        if bytes > BLOCK_BYTES_MAX || leads_nowhere || head.block != block {
            let what = "a block that is another one, or does not end";
            return Err(PeerError::Unreadable(what));
        }
        match &mut whole {
            Some((first, all)) if *first == head => all.extend(records),
            Some(_) => {
                let what = "the pieces of a block are of two states of it";
                return Err(PeerError::Unreadable(what));
            }
            None => whole = Some((head, records)),
        }
        if !more {
            break;
        }
    }
    whole.ok_or(PeerError::Unreadable("a block that was asked for did not come"))
}
