//! One block's counters at several nodes over one database: nothing is given out twice, whatever is lost between.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::{Fingerprint, SystemTitle};

const BLOCK: BlockNo = BlockNo(7);
const EPOCH: Epoch = Epoch(2);

fn ms(ms: u64) -> Moment {
    Moment::from_ms(ms)
}

fn name(n: u8) -> LineName {
    LineName { fingerprint: Fingerprint([n; 16]), originator: SystemTitle::new([9; 8]) }
}

fn line(n: u8, offset: i64) -> Line {
    Line { name: name(n), offset: Offset::new(offset) }
}

fn traffic(line: &Line) -> Wish<'_> {
    Wish { line, proved: true, purpose: Purpose::Traffic }
}

fn node(n: u8) -> Allocator {
    let mut allocator = Allocator::new(BLOCK, NodeId([n; 16]));
    allocator.stand(Some(EPOCH));
    allocator.witness(None);
    allocator
}

/// The mark that a block has from the beginning of an epoch on.
fn first() -> Option<Mark> {
    Some(Mark::first(BLOCK, EPOCH))
}

/// A reservation that is written.
fn reserve(
    allocator: &mut Allocator,
    now: u64,
    stored: &mut Option<Mark>,
) -> Result<u32, NotReserved> {
    let mark = allocator.reserve(ms(now), stored.as_ref())?;
    *stored = Some(mark);
    allocator.reserved(&mark);
    Ok(mark.end)
}

fn take(allocator: &mut Allocator, now: u64, line: &Line) -> Result<u32, NotAllocated> {
    allocator.allocate(ms(now), &traffic(line))
}

#[test]
fn invariant_3_nothing_is_given_out_before_a_range_is_reserved_and_nothing_beyond_it() {
    let (mut one, mut stored) = (node(1), first());
    let line = line(1, 0);
    assert_eq!(take(&mut one, 0, &line), Err(NotAllocated::Reserve));
    assert_eq!(reserve(&mut one, 0, &mut stored), Ok(RANGE));
    for n in FIRST..RANGE {
        assert_eq!(take(&mut one, 1, &line), Ok(0x0200_0000 | n));
    }
    assert_eq!(take(&mut one, 1, &line), Err(NotAllocated::Reserve));
    // Another line of the block has its own sequence below the same mark.
    assert_eq!(take(&mut one, 1, &self::line(2, 4)), Ok(0x0600_0001));
    assert_eq!(reserve(&mut one, 1, &mut stored), Ok(2 * RANGE));
    assert_eq!(take(&mut one, 2, &line), Ok(0x0200_0000 | RANGE));
    assert_eq!(take(&mut one, 2, &self::line(2, 4)), Ok(0x0600_0002));
    assert_eq!(one.left(&line.name), SEQUENCES - RANGE - 1);
}

#[test]
fn a_range_that_expired_is_renewed_and_not_burnt() {
    let (mut one, mut stored) = (node(1), first());
    reserve(&mut one, 0, &mut stored).unwrap();
    assert_eq!(take(&mut one, 9_999, &line(1, 0)), Ok(0x0200_0001));
    assert_eq!(take(&mut one, 10_000, &line(1, 0)), Err(NotAllocated::Reserve));
    assert!(!one.holds(ms(10_000)));
    assert_eq!(reserve(&mut one, 10_000, &mut stored), Ok(RANGE));
    assert_eq!(take(&mut one, 10_001, &line(1, 0)), Ok(0x0200_0002));
}

#[test]
fn invariant_3_after_a_crash_or_an_outcome_that_is_not_known_what_was_reserved_is_burnt() {
    let (mut one, mut stored) = (node(1), first());
    reserve(&mut one, 0, &mut stored).unwrap();
    take(&mut one, 1, &line(1, 0)).unwrap();
    let mut again = node(1);
    assert_eq!(reserve(&mut again, 2, &mut stored), Ok(2 * RANGE), "nobody else is waited for");
    assert_eq!(take(&mut again, 2, &line(1, 0)), Ok(0x0200_0000 | RANGE));
    // The answer of the database is lost; the mark was written.
    stored = Some(again.reserve(ms(3), stored.as_ref()).unwrap());
    again.let_go();
    assert_eq!(take(&mut again, 3, &line(1, 0)), Err(NotAllocated::Reserve));
    reserve(&mut again, 4, &mut stored).unwrap();
    assert_eq!(take(&mut again, 4, &line(1, 0)), Ok(0x0200_0000 + 2 * RANGE));
}

#[test]
fn invariant_3_an_answer_that_is_not_to_the_last_question_reserves_nothing() {
    let (mut one, stored) = (node(1), first());
    let first = one.reserve(ms(0), stored.as_ref()).unwrap();
    one.let_go();
    one.reserved(&first);
    assert_eq!(take(&mut one, 1, &line(1, 0)), Err(NotAllocated::Reserve));
}

#[test]
fn one_node_transmits_for_a_block_and_another_takes_over_behind_its_mark() {
    let (mut one, mut two, mut stored) = (node(1), node(2), first());
    reserve(&mut one, 0, &mut stored).unwrap();
    let held = Err(NotReserved::Held { holder: NodeId([1; 16]) });
    assert_eq!(reserve(&mut two, 1_000, &mut stored), held);
    reserve(&mut one, 9_000, &mut stored).unwrap();
    // It was seen to change: the time begins anew.
    assert_eq!(reserve(&mut two, 15_999, &mut stored), held);
    assert_eq!(reserve(&mut two, 30_998, &mut stored), held);
    assert_eq!(reserve(&mut two, 30_999, &mut stored), Ok(2 * RANGE));
    assert_eq!(take(&mut two, 31_000, &line(1, 0)), Ok(0x0200_0000 | RANGE));
    // The first one has not used its hold for so long, and can't renew it.
    assert_eq!(take(&mut one, 31_000, &line(1, 0)), Err(NotAllocated::Reserve));
    let held = Err(NotReserved::Held { holder: NodeId([2; 16]) });
    assert_eq!(reserve(&mut one, 31_000, &mut stored), held);
}

#[test]
fn a_holder_that_answers_is_not_taken_over_from_until_it_was_silent_for_long_enough() {
    let (mut one, mut two, mut stored) = (node(1), node(2), first());
    let holder = NodeId([1; 16]);
    assert_eq!(reserve(&mut one, 0, &mut stored), Ok(RANGE));
    let held = Err(NotReserved::Held { holder });
    assert_eq!(reserve(&mut two, 0, &mut stored), held);
    two.heard(ms(0), holder, true);
    // It is asked so seldom that its reservation does not change.
    assert_eq!(reserve(&mut two, 100_000, &mut stored), held);
    // What was forwarded to somebody else says nothing of it.
    two.heard(ms(100_000), NodeId([3; 16]), false);
    assert_eq!(reserve(&mut two, 120_000, &mut stored), held);
    two.heard(ms(120_000), holder, false);
    assert_eq!(reserve(&mut two, 134_999, &mut stored), held);
    // Still silent: the wait goes on, and does not begin anew.
    two.heard(ms(134_999), holder, false);
    assert_eq!(reserve(&mut two, 135_000, &mut stored), Ok(2 * RANGE));
}

#[test]
fn a_block_that_was_given_back_is_nobodys_to_wait_for() {
    let (mut one, mut two, mut stored) = (node(1), node(2), first());
    reserve(&mut one, 0, &mut stored).unwrap();
    stored = one.give_back(&stored.unwrap());
    assert_eq!(take(&mut one, 1, &line(1, 0)), Err(NotAllocated::Reserve));
    assert_eq!(reserve(&mut two, 1, &mut stored), Ok(2 * RANGE));
}

#[test]
fn invariant_3_a_node_that_started_transmits_once_a_witness_was_asked_and_not_below_what_it_knows()
{
    let mut stored = first();
    let mut one = Allocator::new(BLOCK, NodeId([1; 16]));
    one.stand(Some(EPOCH));
    assert_eq!(reserve(&mut one, 0, &mut stored), Err(NotReserved::NotWitnessed));
    let known = Witnessed { epoch: EPOCH, end: 3 * RANGE };
    one.witness(Some(known));
    let found = Some(Witnessed { epoch: EPOCH, end: FIRST });
    let rolled_back = Err(NotReserved::RolledBack { found, known });
    assert_eq!(reserve(&mut one, 0, &mut stored), rolled_back);
    // An epoch above it ends that.
    one.stand(Some(Epoch(4)));
    let mut stored = Some(Mark::first(BLOCK, Epoch(4)));
    assert_eq!(reserve(&mut one, 0, &mut stored), Ok(RANGE));
    // Not 0: a meter that begins with 0 takes what is above it.
    assert_eq!(take(&mut one, 0, &line(1, 0)), Ok(0x0400_0001));
}

#[test]
fn invariant_3_a_block_without_a_mark_of_the_epoch_begins_nowhere() {
    let gone = Err(NotReserved::MarkGone { block: BLOCK, epoch: Epoch(4) });
    for stored in [None, first(), Some(Mark { end: 9 * RANGE, term: 9, ..first().unwrap() })] {
        let mut one = node(1);
        one.stand(Some(Epoch(4)));
        assert_eq!(one.reserve(ms(0), stored.as_ref()), gone);
    }
    // Nor while it holds a range of it.
    let (mut one, mut stored) = (node(1), first());
    reserve(&mut one, 0, &mut stored).unwrap();
    let gone = NotReserved::MarkGone { block: BLOCK, epoch: EPOCH };
    assert_eq!(one.reserve(ms(1), None), Err(gone));
    assert_eq!(take(&mut one, 1, &line(1, 0)), Err(NotAllocated::Reserve));
}

#[test]
fn invariant_3_a_database_that_lost_its_tail_is_noticed_by_the_process_that_remembers() {
    let (mut one, mut stored) = (node(1), first());
    reserve(&mut one, 0, &mut stored).unwrap();
    let lost = stored;
    while take(&mut one, 1, &line(1, 0)).is_ok() {}
    reserve(&mut one, 1, &mut stored).unwrap();
    let mut stored = lost;
    let refused = reserve(&mut one, 20_000, &mut stored).unwrap_err();
    assert!(matches!(refused, NotReserved::RolledBack { .. }), "{refused}");
    assert_eq!(take(&mut one, 20_000, &line(1, 0)), Err(NotAllocated::Reserve));
    // A witness that knows more than this process takes its range away at once.
    let (mut one, mut stored) = (node(1), first());
    reserve(&mut one, 0, &mut stored).unwrap();
    one.witness(Some(Witnessed { epoch: EPOCH, end: RANGE }));
    assert!(one.holds(ms(1)));
    one.witness(Some(Witnessed { epoch: EPOCH, end: RANGE + 1 }));
    assert!(!one.holds(ms(1)));
}

#[test]
fn invariant_7_who_does_not_write_transmits_nothing() {
    let (mut one, mut stored) = (node(1), first());
    reserve(&mut one, 0, &mut stored).unwrap();
    one.stand(None);
    assert_eq!(take(&mut one, 1, &line(1, 0)), Err(NotAllocated::DoesNotWrite));
    assert_eq!(reserve(&mut one, 1, &mut stored), Err(NotReserved::DoesNotWrite));
    // What was reserved in the epoch before is not used on when it writes again.
    one.stand(Some(EPOCH));
    assert_eq!(take(&mut one, 1, &line(1, 0)), Err(NotAllocated::Reserve));
    let higher = Some(Mark { epoch: Epoch(4), ..stored.unwrap() });
    let refused = one.reserve(ms(1), higher.as_ref());
    assert_eq!(refused, Err(NotReserved::HigherEpoch(Epoch(4))));
}

#[test]
fn a_line_transmits_once_it_is_declared_and_proved() {
    let (mut one, mut stored) = (node(1), first());
    reserve(&mut one, 0, &mut stored).unwrap();
    let undeclared = Line::undeclared(name(1));
    assert_eq!(take(&mut one, 1, &undeclared), Err(NotAllocated::Undeclared));
    let line = undeclared.declared(0x0001_2345, EPOCH).unwrap();
    let unproved = Wish { proved: false, ..traffic(&line) };
    assert_eq!(one.allocate(ms(1), &unproved), Err(NotAllocated::Unproved));
    assert_eq!(take(&mut one, 1, &line), Ok(0x0200_0001));
    let used_up = take(&mut one, 1, &self::line(1, 254)).unwrap_err();
    assert!(matches!(used_up, NotAllocated::CounterEpoch(_)), "{used_up}");
}

/// A block whose sequences are used up to here.
fn used(end: u32) -> Option<Mark> {
    Some(Mark { block: BLOCK, epoch: EPOCH, end, holder: None, term: 1 })
}

#[test]
fn the_last_values_serve_key_transfer_and_a_raised_line_has_all_of_the_next_ones() {
    let (mut one, mut stored) = (node(1), used(SEQUENCES - FOR_TRANSFER - 1));
    assert_eq!(reserve(&mut one, 0, &mut stored), Ok(SEQUENCES));
    let low = line(1, 0);
    assert_eq!(take(&mut one, 1, &low), Ok(0x0200_0000 | (SEQUENCES - FOR_TRANSFER - 1)));
    assert_eq!(take(&mut one, 1, &low), Err(NotAllocated::ForTransfer));
    let transfer = Wish { purpose: Purpose::KeyTransfer, ..traffic(&low) };
    for n in SEQUENCES - FOR_TRANSFER..SEQUENCES {
        assert_eq!(one.allocate(ms(1), &transfer), Ok(0x0200_0000 | n));
    }
    assert_eq!(one.allocate(ms(1), &transfer), Err(NotAllocated::NoneLeft));
    assert_eq!(one.left(&low.name), 0);
    let raised = line(1, 2);
    assert!(take(&mut one, 1, &raised).unwrap() >= 0x0400_0000);
    // Whoever still has the line as it was goes on where it is.
    let next = 0x0400_0000 | (SEQUENCES - FOR_TRANSFER);
    assert_eq!(one.allocate(ms(1), &transfer), Ok(next));
}

#[test]
fn invariant_3_the_end_of_a_blocks_sequences_is_an_end() {
    let (mut one, mut stored) = (node(1), used(SEQUENCES - 100));
    assert_eq!(reserve(&mut one, 0, &mut stored), Ok(SEQUENCES));
    let line = line(1, 0);
    let transfer = Wish { purpose: Purpose::KeyTransfer, ..traffic(&line) };
    assert_eq!(one.allocate(ms(1), &transfer), Ok(0x0200_0000 | (SEQUENCES - 100)));
    let mut again = node(1);
    assert_eq!(reserve(&mut again, 2, &mut stored), Err(NotReserved::NoneLeft));
    // Who still holds it may renew it.
    assert_eq!(reserve(&mut one, 2, &mut stored), Ok(SEQUENCES));
}

/// One of two sites: its database, its nodes, its epoch.
struct Site {
    epoch: Epoch,
    writes: bool,
    stored: Option<Mark>,
    nodes: [Allocator; 2],
    offset: Offset,
}

/// A step of a world in which everything gets lost.
#[derive(Clone, Debug)]
enum Step {
    Use { site: usize, node: usize, times: u16 },
    UseUp { site: usize, node: usize },
    Reserve { site: usize, node: usize, lost: bool },
    Crash { site: usize, node: usize },
    Promote { site: usize, known: bool },
    Raise { site: usize },
    Sync,
    RollBack { site: usize },
    Wait { ms: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0usize..2, 0usize..2);
    prop_oneof![
        8 => (place(), 1u16..1_500).prop_map(|((site, node), times)| Step::Use { site, node, times }),
        2 => place().prop_map(|(site, node)| Step::UseUp { site, node }),
        6 => (place(), any::<bool>()).prop_map(|((site, node), lost)| Step::Reserve { site, node, lost }),
        2 => place().prop_map(|(site, node)| Step::Crash { site, node }),
        2 => (0usize..2, any::<bool>()).prop_map(|(site, known)| Step::Promote { site, known }),
        1 => (0usize..2).prop_map(|site| Step::Raise { site }),
        2 => Just(Step::Sync),
        1 => (0usize..2).prop_map(|site| Step::RollBack { site }),
        2 => (1u64..20_000).prop_map(|ms| Step::Wait { ms }),
    ]
}

struct World {
    now: u64,
    sites: [Site; 2],
    backup: [Option<Mark>; 2],
    used: BTreeSet<u32>,
    /// The highest counter of each epoch, and the order in which they were given out within one.
    highest: u32,
    highest_epoch: Epoch,
}

impl World {
    fn new() -> Self {
        let site = |even: usize| Site {
            epoch: Epoch(2),
            writes: even == 0,
            stored: first(),
            nodes: [node(1), node(2)],
            offset: Offset::new(0).unwrap(),
        };
        let sites = [site(0), site(1)];
        let backup = [first(), first()];
        let mut world =
            Self { now: 0, sites, backup, used: BTreeSet::new(), highest: 0, highest_epoch: EPOCH };
        (0..2).for_each(|site| world.stand(site));
        world
    }

    fn stand(&mut self, site: usize) {
        let Site { epoch, writes, nodes, .. } = &mut self.sites[site];
        nodes.iter_mut().for_each(|node| node.stand(writes.then_some(*epoch)));
    }

    fn promote(&mut self, site: usize, above: Epoch) {
        let at = &mut self.sites[site];
        at.epoch = above.max(at.epoch).next_of(site == 0);
        at.writes = true;
        at.stored = Some(Mark::first(BLOCK, at.epoch));
        self.stand(site);
    }

    /// A counter, for which a range is reserved if need be.
    fn use_one(&mut self, site: usize, node: usize) {
        let Site { stored, nodes, offset, .. } = &mut self.sites[site];
        let line = Line { name: name(1), offset: Some(*offset) };
        if take(&mut nodes[node], self.now, &line).err() == Some(NotAllocated::Reserve) {
            let _ = reserve(&mut nodes[node], self.now, stored);
        }
        self.take_one(site, node);
    }

    /// A counter of what is reserved; `false`: none is.
    fn take_one(&mut self, site: usize, node: usize) -> bool {
        let Site { nodes, offset, epoch, .. } = &mut self.sites[site];
        let line = Line { name: name(1), offset: Some(*offset) };
        let Ok(counter) = take(&mut nodes[node], self.now, &line) else { return false };
        assert!(self.used.insert(counter), "{counter:08X} was given out twice");
        // As the meter sees it: who is of the newest epoch is never refused.
        if *epoch >= self.highest_epoch {
            assert!(counter >= self.highest, "{counter:08X} after {:08X}", self.highest);
            (self.highest, self.highest_epoch) = (counter, *epoch);
        }
        true
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Use { site, node, times } => (0..times).for_each(|_| self.use_one(site, node)),
            Step::UseUp { site, node } => while self.take_one(site, node) {},
            Step::Reserve { site, node, lost } => {
                let Site { stored, nodes, .. } = &mut self.sites[site];
                let Ok(mark) = nodes[node].reserve(ms(self.now), stored.as_ref()) else { return };
                *stored = Some(mark);
                if lost { nodes[node].let_go() } else { nodes[node].reserved(&mark) }
            }
            Step::Crash { site, node } => {
                let at = &mut self.sites[site];
                at.nodes[node] = self::node(node as u8 + 1);
                self.stand(site);
            }
            // A promotion over a peer that answers fences it; over one that does not, both go on.
            Step::Promote { site, known } => {
                let other = &mut self.sites[1 - site];
                let peer = other.epoch;
                if known {
                    other.writes = false;
                    self.stand(1 - site);
                }
                self.promote(site, peer);
            }
            Step::Raise { site } => {
                let raised = self.sites[site].offset.next();
                // First proved by the peer.
                self.sites.iter_mut().for_each(|site| site.offset = site.offset.max(raised));
            }
            Step::Sync => self.backup = [self.sites[0].stored, self.sites[1].stored],
            Step::RollBack { site } => {
                let peer = self.sites[1 - site].epoch;
                let at = &mut self.sites[site];
                at.stored = self.backup[site];
                at.nodes = [node(1), node(2)];
                match at.writes {
                    true => self.promote(site, peer),
                    false => self.stand(site),
                }
            }
            Step::Wait { ms } => self.now += ms,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn invariant_3_no_counter_is_given_out_twice_and_the_newest_epoch_only_rises(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
    }
}
