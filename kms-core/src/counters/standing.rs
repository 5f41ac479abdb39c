//! Whether the other site knows a line, so that it would go on above what is used of it here.

use std::borrow::Borrow;

use crate::{
    BlockNo, DomainRecord, Epoch, Position,
    block::BlockMark,
    site::{
        admission::lineage,
        role::{RoleChange, RoleRecord},
    },
};

/// Whether the peer had the record that was written at this position of a block, which stands at `head`: it wrote it, or
/// was promoted with it. Then it need not be asked, and can't be if it is lost.
pub fn peer_had<R: Borrow<RoleRecord>>(
    domain: &DomainRecord,
    known: &[R],
    head: &BlockMark,
    position: Position,
) -> bool {
    // A replica has no peer of this kind, and no lines.
    let Some(even) = domain.kind.parity() else { return false };
    lineage(known, head.block, head.position.epoch).was_at(!even, position)
}

/// Whether the site that writes a block in `epoch` may have forgotten lines that it raised, since its database was put back
/// before it was promoted: then it transmits nothing on a line before the peer's block is in this epoch, and the peer has
/// told which lines it set aside. Told by the promotion itself: it followed an epoch of the site's own, or one that leaves
/// out epochs of it, or found the block in another epoch than the one that it followed. A site that only was demoted in
/// between asks in vain.
pub fn may_have_forgotten<R: Borrow<RoleRecord>>(
    known: &[R],
    block: BlockNo,
    epoch: Epoch,
) -> bool {
    let promotion = (epoch, RoleChange::Promotion);
    let promotion = known.iter().map(Borrow::borrow).find(|record| record.place() == promotion);
    promotion.is_some_and(|record| {
        let (after, even) = (record.after, epoch.is_even());
        let found = record.found(block).map(|mark| mark.position.epoch);
        after.is_even() == even || epoch != after.next_of(even) || found != Some(after)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DomainId, Sequence, site::peer::PeerKind};

    fn promotion(epoch: u64, after: u64, found: (u64, u64)) -> RoleRecord {
        let at = Position { epoch: Epoch(found.0), sequence: Sequence(found.1) };
        RoleRecord {
            domain: DomainId([1; 16]),
            site: "x".to_owned(),
            change: RoleChange::Promotion,
            epoch: Epoch(epoch),
            after: Epoch(after),
            at_ms: 0,
            heads: vec![(at, [0; 32])],
        }
    }

    #[test]
    fn only_a_promotion_that_follows_the_other_sites_epoch_at_once_has_forgotten_nothing() {
        let records = [
            promotion(3, 2, (2, 1)),
            promotion(4, 3, (3, 1)),
            promotion(6, 4, (4, 1)),
            promotion(11, 6, (6, 1)),
            promotion(13, 12, (11, 1)),
        ];
        let forgotten = |epoch| may_have_forgotten(&records, BlockNo(0), Epoch(epoch));
        assert_eq!([2, 3, 4, 6, 11, 13].map(forgotten), [false, false, false, true, true, true]);
    }

    #[test]
    fn the_peer_had_what_it_wrote_and_what_it_was_promoted_with() {
        let domain = DomainRecord {
            domain: DomainId([1; 16]),
            blocks: crate::BlockCount::new(1).unwrap(),
            site: "north".to_owned(),
            epoch: Epoch(2),
            kind: PeerKind::Even,
            canaries: Vec::new(),
            created_ms: 0,
            signature: None,
        };
        let records = [promotion(3, 2, (2, 5)), promotion(4, 3, (3, 7))];
        let at = |epoch, sequence| Position { epoch: Epoch(epoch), sequence: Sequence(sequence) };
        let head = BlockMark { block: BlockNo(0), position: at(4, 9), digest: [0; 32] };
        let had = |epoch, sequence| peer_had(&domain, &records, &head, at(epoch, sequence));
        assert!(had(3, 6) && had(2, 5));
        assert!(!had(4, 8) && !had(2, 6) && !had(3, 8));
    }
}
