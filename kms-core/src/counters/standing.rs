//! Whether the other site knows a line, so that it would go on above what is used of it here.

use std::borrow::Borrow;

use crate::{
    BlockNo, DomainRecord, Epoch, Position,
    block::BlockMark,
    site::{
        admission::lineage,
        peer::EnrolledIn,
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
    promotion.is_some_and(|record| may_forget(record, block))
}

/// The newest of our own promotions with which lines of a block may have been forgotten. What was written of a line before
/// it counts once the peer has told what it set aside, in whatever later epoch it is asked.
pub fn forgotten<R: Borrow<RoleRecord>>(
    domain: &DomainRecord,
    known: &[R],
    block: BlockNo,
) -> Option<Epoch> {
    let is_ours = |record: &&RoleRecord| {
        domain.kind.owns(record.epoch) && record.change == RoleChange::Promotion
    };
    let ours = known.iter().map(Borrow::borrow).filter(is_ours);
    ours.filter(|record| may_forget(record, block)).map(|record| record.epoch).max()
}

fn may_forget(promotion: &RoleRecord, block: BlockNo) -> bool {
    let (epoch, after) = (promotion.epoch, promotion.after);
    let even = epoch.is_even();
    let found = promotion.found(block).map(|mark| mark.position.epoch);
    after.is_even() == even || epoch != after.next_of(even) || found != Some(after)
}

/// The epoch since which a site's database has lost nothing of a block, as it says itself: the one in which it met the
/// asker, or its newest promotion with which it may have forgotten lines. `None`: the two have not met.
pub fn remembers_since<R: Borrow<RoleRecord>>(
    domain: &DomainRecord,
    known: &[R],
    block: BlockNo,
    met: Option<EnrolledIn>,
) -> Option<Epoch> {
    let met = match met {
        Some(met) => met.is_met().then_some(met.first)?,
        None => domain.epoch,
    };
    Some(forgotten(domain, known, block).map_or(met, |epoch| epoch.max(met)))
}

/// The epoch of the newest promotion with which a site may have forgotten lines of a block, and of which nobody who is
/// there now can tell which: of ours, the peer was enrolled in that epoch or later; of the peer's, the two did not know
/// each other yet. What was written of a line in a lower epoch says nothing: its counter is declared anew. `None`: there
/// is none.
///
/// `remembers` is what the peer says of its own database: our row of it may be one from before it was enrolled anew, as a
/// database has it that was put back once more. Then the peer remembers from there on, and who was put back to a time
/// before that has lost what nobody remembers.
pub fn unwitnessed<R: Borrow<RoleRecord>>(
    domain: &DomainRecord,
    known: &[R],
    block: BlockNo,
    met: Option<EnrolledIn>,
    remembers: Option<Epoch>,
) -> Option<Epoch> {
    let (first, last) = match met {
        // Whatever was forgotten, nobody has told of it yet.
        Some(met) if !met.is_met() => (Epoch(u64::MAX), Epoch(u64::MAX)),
        Some(EnrolledIn { first, last }) => (first, last.max(remembers.unwrap_or(last))),
        None => (domain.epoch, remembers?),
    };
    let promotions =
        known.iter().map(Borrow::borrow).filter(|record| record.change == RoleChange::Promotion);
    let since = |record: &RoleRecord| match domain.kind.owns(record.epoch) {
        true if record.epoch <= last => Some(record.epoch),
        true => (record.after < last).then_some(last),
        false => (record.epoch <= first).then_some(record.epoch),
    };
    promotions.filter(|record| may_forget(record, block)).filter_map(since).max()
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

    fn domain(even: bool) -> DomainRecord {
        DomainRecord {
            domain: DomainId([1; 16]),
            blocks: crate::BlockCount::new(1).unwrap(),
            site: "north".to_owned(),
            epoch: Epoch(2),
            kind: PeerKind::of_epochs(even),
            canaries: Vec::new(),
            created_ms: 0,
            signature: None,
        }
    }

    #[test]
    fn invariant_3_who_was_enrolled_after_a_restore_can_not_say_what_was_forgotten() {
        // The first site was restored in 6, the second one in 11; 13 is of a block that was left behind.
        let records = [
            promotion(3, 2, (2, 1)),
            promotion(4, 3, (3, 1)),
            promotion(6, 4, (4, 1)),
            promotion(7, 6, (6, 1)),
            promotion(11, 7, (7, 1)),
            promotion(12, 11, (11, 1)),
        ];
        let since = |even, first, last| {
            let met = EnrolledIn { first: Epoch(first), last: Epoch(last) };
            unwitnessed(&domain(even), &records, BlockNo(0), Some(met), None).map(|epoch| epoch.0)
        };
        // The first site, whose peer was there all the time; was enrolled after; was enrolled anew after, twice.
        assert_eq!((since(true, 2, 2), since(true, 2, 4)), (None, None));
        assert_eq!((since(true, 6, 6), since(true, 2, 6)), (Some(6), Some(6)));
        assert_eq!((since(true, 2, 12), since(true, 12, 12)), (Some(6), Some(11)));
        // The second one, which was there; which joined after the first one's restore; whose peer is a new one.
        assert_eq!((since(false, 2, 2), since(false, 6, 6)), (None, Some(6)));
        assert_eq!((since(false, 2, 7), since(false, 2, 12)), (None, Some(11)));
        assert_eq!(unwitnessed(&domain(true), &records, BlockNo(0), None, None), None);
    }

    #[test]
    fn invariant_3_a_peer_that_was_rebuilt_after_the_backup_says_itself_that_it_is_no_witness() {
        // Put back in 6, when the peer was enrolled anew; put back once more to the same backup, which knows neither.
        let records = [promotion(3, 2, (2, 1)), promotion(4, 3, (3, 1)), promotion(8, 4, (4, 1))];
        let met = Some(EnrolledIn { first: Epoch(2), last: Epoch(2) });
        let since = |records: &[RoleRecord], remembers: Option<u64>| {
            let remembers = remembers.map(Epoch);
            unwitnessed(&domain(true), records, BlockNo(0), met, remembers).map(|epoch| epoch.0)
        };
        assert_eq!(since(&records, None), None);
        assert_eq!(since(&records, Some(2)), None);
        assert_eq!(since(&records, Some(6)), Some(6));
        // One that was there when the database had all: what it lost since is remembered.
        assert_eq!(since(&records, Some(4)), None);
        assert_eq!(since(&records, Some(9)), Some(8));
        // The promotion between the two is known again.
        let between = promotion(6, 4, (4, 1));
        let told = [records[0].clone(), records[1].clone(), between, promotion(8, 6, (4, 1))];
        assert_eq!((since(&told, Some(6)), since(&told, Some(3))), (Some(6), None));
        // A row of a release that noted no epochs.
        let unnoted = unwitnessed(&domain(true), &records, BlockNo(0), None, Some(Epoch(6)));
        assert_eq!(unnoted, Some(Epoch(6)));
    }

    #[test]
    fn invariant_3_a_site_remembers_since_it_met_the_other_one_or_was_put_back_itself() {
        let records = [promotion(3, 2, (2, 1)), promotion(6, 2, (2, 1)), promotion(7, 6, (6, 1))];
        let met = |first| Some(EnrolledIn { first: Epoch(first), last: Epoch(9) });
        let since = |even, met| {
            remembers_since(&domain(even), &records, BlockNo(0), met).map(|epoch| epoch.0)
        };
        let (six, eight) = (Some(6), Some(8));
        assert_eq!(
            (since(true, met(2)), since(true, None), since(true, met(8))),
            (six, six, eight)
        );
        assert_eq!((since(false, met(3)), since(false, None)), (Some(3), Some(2)));
    }

    #[test]
    fn invariant_3_a_site_that_has_not_met_the_other_one_remembers_nothing_and_believes_nothing() {
        // It joined with a bundle of epoch 2, and the other one was put back since.
        let records = [promotion(4, 2, (2, 1)), promotion(7, 4, (4, 1)), promotion(9, 7, (7, 1))];
        let met = EnrolledIn { first: Epoch(2), last: Epoch(2) };
        let said = |even, met| {
            let (domain, met) = (domain(even), Some(met));
            let since = unwitnessed(&domain, &records, BlockNo(0), met, None).map(|epoch| epoch.0);
            (remembers_since(&domain, &records, BlockNo(0), met).map(|epoch| epoch.0), since)
        };
        assert_eq!(said(false, met.not_met()), (None, Some(9)));
        assert_eq!(said(true, met.not_met()), (None, Some(9)));
        let met = EnrolledIn { first: Epoch(4), last: Epoch(4) };
        assert_eq!((said(false, met).1, said(true, met).1), (Some(4), Some(4)));
    }

    #[test]
    fn invariant_3_a_restore_is_not_over_with_the_epoch_that_it_took() {
        let records = [
            promotion(3, 2, (2, 1)),
            promotion(6, 2, (2, 1)),
            promotion(7, 6, (6, 1)),
            promotion(8, 7, (7, 1)),
        ];
        let of = |even| forgotten(&domain(even), &records, BlockNo(0));
        assert_eq!((of(true), of(false)), (Some(Epoch(6)), None));
        assert_eq!(forgotten(&domain(true), &records[..1], BlockNo(0)), None);
    }

    #[test]
    fn the_peer_had_what_it_wrote_and_what_it_was_promoted_with() {
        let domain = domain(true);
        let records = [promotion(3, 2, (2, 5)), promotion(4, 3, (3, 7))];
        let at = |epoch, sequence| Position { epoch: Epoch(epoch), sequence: Sequence(sequence) };
        let head = BlockMark { block: BlockNo(0), position: at(4, 9), digest: [0; 32] };
        let had = |epoch, sequence| peer_had(&domain, &records, &head, at(epoch, sequence));
        assert!(had(3, 6) && had(2, 5));
        assert!(!had(4, 8) && !had(2, 6) && !had(3, 8));
    }
}
