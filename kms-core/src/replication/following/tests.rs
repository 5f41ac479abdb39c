//! A connection of a follower, event by event.

use super::*;
use crate::{Position, Sequence, SystemTitle, record::RecordKey, site::role::Role};

const OURS: Epoch = Epoch(2);

fn ms(ms: u64) -> Moment {
    Moment::from_ms(ms)
}

fn standing(role: Role, epoch: u64) -> Standing {
    Standing { role, epoch: Epoch(epoch), open: true }
}

fn head_of(block: u32, epoch: u64, sequence: u64) -> Head {
    let position = Position { epoch: Epoch(epoch), sequence: Sequence(sequence) };
    Head {
        block: BlockNo(block),
        secret_version: 1,
        position,
        count: 1,
        digest: [7; 32],
        mac: [7; 16],
    }
}

fn mark(block: u32, sequence: u64) -> BlockMark {
    let Head { block, position, digest, .. } = head_of(block, 2, sequence);
    BlockMark { block, position, digest }
}

fn record(len: usize) -> StoredRecord {
    StoredRecord {
        key: RecordKey::meter(&SystemTitle::new([1; 8])),
        position: Position::default(),
        secret_version: 1,
        body: vec![0; len],
        mac: [0; 16],
    }
}

fn piece(block: u32, sequence: u64) -> Input {
    Input::Piece { head: head_of(block, 2, sequence), records: Vec::new(), more: false }
}

fn update(block: u32, sequence: u64) -> Update {
    Update { head: head_of(block, 2, sequence), records: Vec::new(), whole: false }
}

fn whole(block: u32, sequence: u64) -> Update {
    Update { whole: true, ..update(block, sequence) }
}

fn adopts(outputs: &[Output]) -> Vec<u32> {
    let block = |output: &Output| match output {
        Output::Adopt(update) => Some(update.head.block.0),
        _ => None,
    };
    outputs.iter().filter_map(block).collect()
}

fn refused(block: u32, remedy: Remedy) -> Input {
    Input::Refused { block: BlockNo(block), remedy, reason: "why".to_owned() }
}

/// A secondary whose connection stands.
fn following() -> Follower {
    let mut follower = Follower::default();
    let outputs = follower.step(ms(0), Input::Role(standing(Role::Secondary, OURS.0)));
    assert_eq!(outputs, [Output::Connect]);
    assert_eq!(follower.step(ms(0), Input::Connected), [Output::Hello]);
    let card = PeerCard { epoch: OURS, writes: true };
    assert_eq!(follower.step(ms(0), Input::Card(card)), []);
    assert!(follower.may_read());
    follower
}

#[test]
fn a_site_that_writes_follows_nobody_and_one_that_was_promoted_stops() {
    let mut follower = Follower::default();
    assert_eq!(follower.step(ms(0), Input::Role(standing(Role::Primary, 2))), []);
    assert_eq!(follower.step(ms(9), Input::Tick), []);
    let mut follower = following();
    follower.step(ms(1), piece(1, 5));
    let outputs = follower.step(ms(2), Input::Role(standing(Role::Primary, 3)));
    assert_eq!(outputs, [Output::Disconnect]);
    assert_eq!((follower.link(), follower.may_read()), (Link::Idle, false));
    // What was under way still comes to its end, and is nobody's to know.
    assert_eq!(follower.step(ms(3), Input::Stored(mark(1, 5))), []);
    // Demoted, or fenced, it follows again.
    let outputs = follower.step(ms(4), Input::Role(standing(Role::Secondary, 4)));
    assert_eq!(outputs, [Output::Connect]);
}

#[test]
fn an_update_is_taken_over_and_acknowledged_once_it_is_stored() {
    let mut follower = following();
    assert_eq!(follower.step(ms(1), piece(1, 5)), [Output::Adopt(update(1, 5))]);
    let outputs = follower.step(ms(2), Input::Stored(mark(1, 5)));
    assert_eq!(outputs, [Output::Acknowledge(mark(1, 5))]);
    assert_eq!(follower.under_way(), 0);
}

#[test]
fn updates_of_one_block_are_taken_over_one_after_the_other_and_others_beside_them() {
    let mut follower = following();
    assert_eq!(adopts(&follower.step(ms(1), piece(1, 5))), [1]);
    assert_eq!(adopts(&follower.step(ms(1), piece(1, 6))), []);
    assert_eq!(adopts(&follower.step(ms(1), piece(2, 3))), [2]);
    let outputs = follower.step(ms(2), Input::Stored(mark(1, 5)));
    assert_eq!(outputs, [Output::Acknowledge(mark(1, 5)), Output::Adopt(update(1, 6))]);
}

#[test]
fn the_pieces_of_a_block_become_one_update() {
    let mut follower = following();
    let part = |more| Input::Piece { head: head_of(1, 2, 5), records: vec![record(3)], more };
    assert_eq!(follower.step(ms(1), part(true)), []);
    assert_eq!(follower.step(ms(1), part(true)), []);
    let all = Update { records: vec![record(3); 3], ..update(1, 5) };
    assert_eq!(follower.step(ms(1), part(false)), [Output::Adopt(all)]);
    // A block that is left in its middle is asked for.
    follower.step(ms(2), Input::Stored(mark(1, 5)));
    assert_eq!(follower.step(ms(3), part(true)), []);
    let outputs = follower.step(ms(3), piece(2, 9));
    assert_eq!(outputs, [Output::AskWhole(BlockNo(1)), Output::Adopt(update(2, 9))]);
}

#[test]
fn nothing_more_is_read_while_enough_is_under_way() {
    let mut follower = following();
    for n in 0..WINDOW as u32 {
        assert!(follower.may_read(), "{n}");
        follower.step(ms(1), piece(n, 5));
    }
    assert!(!follower.may_read());
    assert_eq!(follower.under_way(), WINDOW);
    follower.step(ms(2), Input::Stored(mark(0, 5)));
    assert!(follower.may_read());
    // The peer is not silent while nobody reads.
    follower.step(ms(2), piece(WINDOW as u32 + 7, 5));
    assert_eq!(follower.step(ms(1_000_000), Input::Tick), []);
    let mut follower = following();
    assert!(follower.may_read());
    let records = vec![record(WINDOW_BYTES)];
    follower.step(ms(1), Input::Piece { head: head_of(0, 2, 5), records, more: false });
    assert!(!follower.may_read(), "one is being taken over, and it is large");
}

#[test]
fn invariant_12_large_blocks_are_taken_over_few_at_a_time() {
    let mut follower = following();
    let large = |n| {
        let records = vec![record(BYTES_AT_ONCE / 2)];
        Input::Piece { head: head_of(n, 2, 5), records, more: false }
    };
    for n in 0..3 {
        let outputs = follower.step(ms(1), large(n));
        assert_eq!(adopts(&outputs).len(), usize::from(n < 2), "{n}");
    }
    let outputs = follower.step(ms(2), Input::Stored(mark(0, 5)));
    assert_eq!(adopts(&outputs), [2]);
}

#[test]
fn invariant_12_what_is_read_without_room_is_not_kept_but_asked_for() {
    let mut follower = following();
    for n in 0..(WINDOW + AT_ONCE) as u32 {
        follower.step(ms(1), piece(n, 5));
    }
    assert_eq!(follower.under_way(), WINDOW + AT_ONCE);
    let outputs = follower.step(ms(1), piece(999, 5));
    assert_eq!(outputs, [Output::AskWhole(BlockNo(999))]);
}

#[test]
fn invariant_7_a_higher_epoch_is_looked_into_before_anything_else() {
    let mut follower = following();
    let higher = Input::Card(PeerCard { epoch: Epoch(3), writes: true });
    let outputs = follower.step(ms(1), higher.clone());
    assert_eq!(outputs, [Output::AskRoleRecords(OURS)]);
    assert!(!follower.may_read());
    assert_eq!(follower.step(ms(1), higher), [], "once");
    assert_eq!(follower.step(ms(1), piece(1, 5)), []);
    let outputs = follower.step(ms(2), Input::RoleRecords(standing(Role::Secondary, 3)));
    assert_eq!(outputs, [Output::Adopt(update(1, 5))]);
    // A head of a higher epoch says the same as a card.
    let head = head_of(2, 5, 9);
    let outputs = follower.step(ms(3), Input::Piece { head, records: Vec::new(), more: false });
    assert_eq!(outputs, [Output::AskRoleRecords(Epoch(3))]);
    let outputs = follower.step(ms(4), Input::NoRoleRecords("not signed".to_owned()));
    let wait = Output::Wait(BACK_OFF_FIRST, "not signed".to_owned());
    assert_eq!(outputs, [Output::Disconnect, wait]);
}

#[test]
fn a_peer_that_writes_no_more_is_asked_for_its_demotion_once_and_followed_on() {
    let mut follower = following();
    let ended = Input::Card(PeerCard { epoch: OURS, writes: false });
    assert_eq!(follower.step(ms(1), ended.clone()), [Output::AskRoleRecords(OURS)]);
    let closed = Standing { open: false, ..standing(Role::Secondary, OURS.0) };
    assert_eq!(follower.step(ms(2), Input::RoleRecords(closed)), []);
    assert_eq!(follower.step(ms(3), ended.clone()), []);
    assert_eq!(follower.step(ms(4), piece(1, 5)), [Output::Adopt(update(1, 5))]);
    // One that can show none is followed, too.
    let mut follower = following();
    follower.step(ms(1), ended.clone());
    follower.step(ms(2), Input::RoleRecords(standing(Role::Secondary, OURS.0)));
    assert_eq!(follower.step(ms(3), ended), []);
}

#[test]
fn a_peer_of_a_lower_epoch_has_nothing_for_us() {
    let mut follower = following();
    let outputs = follower.step(ms(1), Input::Card(PeerCard { epoch: Epoch(1), writes: true }));
    assert!(matches!(outputs[..], [Output::Disconnect, Output::Wait(..)]), "{outputs:?}");
    assert_eq!(follower.step(ms(1), piece(1, 5)), []);
}

#[test]
fn a_refused_update_is_asked_for_as_a_whole_and_keeps_no_other_block_waiting() {
    let mut follower = following();
    follower.step(ms(1), piece(1, 5));
    follower.step(ms(1), piece(1, 6));
    let outputs = follower.step(ms(2), refused(1, Remedy::Whole));
    let let_go = Output::LetGo(BlockNo(1));
    let ask = Output::AskWhole(BlockNo(1));
    assert_eq!(outputs, [let_go, ask], "and the next one of it is of no use");
    assert_eq!(adopts(&follower.step(ms(2), piece(2, 5))), [2]);
    assert_eq!(adopts(&follower.step(ms(2), piece(1, 7))), []);
    let outputs = follower.step(ms(3), Input::Whole(head_of(1, 2, 7), Vec::new()));
    assert_eq!(outputs, [Output::Adopt(whole(1, 7))]);
    // Nobody asked for another one.
    assert_eq!(follower.step(ms(3), Input::Whole(head_of(4, 2, 7), Vec::new())), []);
}

#[test]
fn a_block_that_is_refused_as_a_whole_is_reported_and_tried_again_less_and_less_often() {
    let mut follower = following();
    follower.step(ms(0), piece(1, 5));
    follower.step(ms(0), refused(1, Remedy::Whole));
    let mut now = 0;
    for wait in [1_000, 2_000, 4_000] {
        follower.step(ms(now), Input::Card(PeerCard { epoch: OURS, writes: true }));
        let outputs = follower.step(ms(now), Input::Whole(head_of(1, 2, 7), Vec::new()));
        assert_eq!(outputs, [Output::Adopt(whole(1, 7))]);
        let outputs = follower.step(ms(now), refused(1, Remedy::Whole));
        let report = Output::Report(BlockNo(1), "why".to_owned());
        assert_eq!(outputs, [report, Output::LetGo(BlockNo(1))]);
        assert_eq!(follower.refused().collect::<Vec<_>>(), [(BlockNo(1), "why")]);
        assert_eq!(follower.step(ms(now + wait - 1), Input::Tick), []);
        now += wait;
        assert_eq!(follower.step(ms(now), Input::Tick), [Output::AskWhole(BlockNo(1))]);
        assert_eq!(follower.step(ms(now), Input::Tick), []);
    }
    follower.step(ms(now), Input::Whole(head_of(1, 2, 7), Vec::new()));
    follower.step(ms(now), Input::Stored(mark(1, 7)));
    assert_eq!(follower.refused().count(), 0);
}

/// A peer waits for each block that it has sent: who never answers of some keeps it from sending the others.
#[test]
fn each_update_of_a_refused_block_is_answered_and_none_is_said_to_be_stored() {
    let mut follower = following();
    // As the peer counts: blocks that were sent and not answered.
    let mut ahead = std::collections::BTreeSet::new();
    let note = |ahead: &mut std::collections::BTreeSet<u32>, outputs: Vec<Output>| {
        for output in outputs {
            match output {
                Output::LetGo(block) => drop(ahead.remove(&block.0)),
                Output::Acknowledge(mark) => panic!("{mark:?} is not stored"),
                _ => {}
            }
        }
    };
    let blocks = 0..600;
    for sequence in 5..8 {
        for block in blocks.clone() {
            assert!(ahead.insert(block), "block {block} is on its way still");
            let outputs = follower.step(ms(1), piece(block, sequence));
            let adopting = adopts(&outputs);
            note(&mut ahead, outputs);
            for block in adopting {
                note(&mut ahead, follower.step(ms(1), refused(block, Remedy::Whole)));
            }
            // What was asked for as a whole is damaged, too, or does not come.
            let asked: Vec<BlockNo> = follower.asked.iter().copied().collect();
            for block in asked {
                let lost = Input::NoWhole(block, "cut".to_owned());
                let whole = Input::Whole(head_of(block.0, 2, sequence), Vec::new());
                let input = if block.0 % 2 == 0 { lost } else { whole };
                for block in adopts(&follower.step(ms(1), input)) {
                    note(&mut ahead, follower.step(ms(1), refused(block, Remedy::Whole)));
                }
            }
        }
        assert_eq!(ahead.len(), 0, "after {sequence}");
    }
    assert_eq!(follower.refused().count(), 600);
    assert_eq!(adopts(&follower.step(ms(2), piece(900, 5))), [900]);
}

#[test]
fn a_whole_block_that_does_not_come_is_tried_again() {
    let mut follower = following();
    follower.step(ms(0), piece(1, 5));
    follower.step(ms(0), Input::Conflict(BlockNo(1)));
    let outputs = follower.step(ms(1), Input::NoWhole(BlockNo(1), "cut".to_owned()));
    let report = Output::Report(BlockNo(1), "cut".to_owned());
    assert_eq!(outputs, [report, Output::LetGo(BlockNo(1))]);
    assert_eq!(follower.step(ms(1_001), Input::Tick), [Output::AskWhole(BlockNo(1))]);
}

#[test]
fn few_whole_blocks_are_asked_for_at_once_and_none_is_forgotten() {
    let mut follower = following();
    let mut asked = Vec::new();
    let mut note = |outputs: Vec<Output>| {
        for output in outputs {
            if let Output::AskWhole(block) = output {
                asked.push(block.0);
            }
        }
    };
    for n in 0..8 {
        follower.step(ms(1), piece(n, 5));
    }
    for n in 0..8 {
        note(follower.step(ms(1), refused(n, Remedy::Whole)));
    }
    for n in 0..8 {
        note(follower.step(ms(2), Input::Whole(head_of(n, 2, 6), Vec::new())));
    }
    assert_eq!(asked, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn an_update_without_its_promotion_waits_for_the_role_records() {
    let mut follower = following();
    follower.step(ms(1), piece(1, 5));
    let outputs = follower.step(ms(1), refused(1, Remedy::RoleRecords));
    let let_go = || Output::LetGo(BlockNo(1));
    assert_eq!(outputs, [Output::AskRoleRecords(OURS), let_go()]);
    let outputs = follower.step(ms(2), Input::RoleRecords(standing(Role::Secondary, 3)));
    assert_eq!(outputs, [Output::AskWhole(BlockNo(1))]);
    // If it still has none, it is not asked for in a circle.
    follower.step(ms(2), Input::Whole(head_of(1, 2, 6), Vec::new()));
    let outputs = follower.step(ms(2), refused(1, Remedy::RoleRecords));
    let report = Output::Report(BlockNo(1), "why".to_owned());
    assert_eq!(outputs, [Output::AskRoleRecords(Epoch(3)), report, let_go()]);
}

#[test]
fn an_update_that_is_refused_after_its_connection_was_lost_leaves_the_next_one_free() {
    let mut follower = following();
    assert_eq!(adopts(&follower.step(ms(1), piece(1, 5))), [1]);
    follower.step(ms(2), Input::Disconnected("lost".to_owned()));
    // There is nobody to ask.
    assert_eq!(follower.step(ms(3), refused(1, Remedy::RoleRecords)), []);
    assert_eq!(follower.step(ms(2_000), Input::Tick), [Output::Connect]);
    assert_eq!(follower.step(ms(2_001), Input::Connected), [Output::Hello]);
    assert_eq!(adopts(&follower.step(ms(2_002), piece(1, 5))), [1]);
}

#[test]
fn an_update_of_the_past_is_left_alone() {
    let mut follower = following();
    follower.step(ms(1), piece(1, 5));
    let outputs = follower.step(ms(1), refused(1, Remedy::Leave));
    assert_eq!(outputs, [Output::LetGo(BlockNo(1))]);
}

#[test]
fn a_lost_connection_comes_back_later_and_later_until_it_is_of_use() {
    let mut follower = following();
    let mut now = 0;
    for wait in [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000] {
        let outputs = follower.step(ms(now), Input::Disconnected("cut".to_owned()));
        let wait = Duration::from_millis(wait);
        assert_eq!(outputs, [Output::Wait(wait, "cut".to_owned())]);
        now += wait.as_millis() as u64;
        assert_eq!(follower.step(ms(now - 1), Input::Tick), []);
        assert_eq!(follower.step(ms(now), Input::Tick), [Output::Connect]);
    }
    follower.step(ms(now), Input::Connected);
    follower.step(ms(now), Input::Card(PeerCard { epoch: OURS, writes: true }));
    let outputs = follower.step(ms(now), Input::Disconnected("cut".to_owned()));
    assert_eq!(outputs, [Output::Wait(BACK_OFF_FIRST, "cut".to_owned())]);
}

#[test]
fn what_was_read_of_a_lost_connection_is_forgotten_and_what_is_being_stored_is_not() {
    let mut follower = following();
    for n in 0..AT_ONCE as u32 + 3 {
        follower.step(ms(1), piece(n, 5));
    }
    follower.step(ms(1), Input::Disconnected("cut".to_owned()));
    assert_eq!(follower.under_way(), AT_ONCE);
    follower.step(ms(101), Input::Tick);
    follower.step(ms(101), Input::Connected);
    // Sent anew while the first one is still being stored.
    assert_eq!(adopts(&follower.step(ms(102), piece(0, 5))), []);
    let outputs = follower.step(ms(103), Input::Stored(mark(0, 5)));
    assert_eq!(outputs, [Output::Acknowledge(mark(0, 5)), Output::Adopt(update(0, 5))]);
}

#[test]
fn a_silent_peer_is_left() {
    let mut follower = following();
    let silence = SILENCE_MAX.as_millis() as u64;
    assert_eq!(follower.step(ms(silence), Input::Tick), []);
    let outputs = follower.step(ms(silence + 1), Input::Tick);
    assert!(matches!(outputs[..], [Output::Disconnect, Output::Wait(..)]), "{outputs:?}");
}

#[test]
fn each_refusal_has_its_remedy() {
    let at = Position::default();
    let behind = NotAccepted::Behind { ours: at, theirs: at };
    assert_eq!(Remedy::of(&behind), Remedy::Leave);
    assert_eq!(Remedy::of(&NotAccepted::NotPromoted { theirs: Epoch(3) }), Remedy::RoleRecords);
    assert_eq!(Remedy::of(&NotAccepted::Forked(at)), Remedy::Whole);
    assert_eq!(Remedy::of(&NotAccepted::Incomplete(at)), Remedy::Whole);
}
