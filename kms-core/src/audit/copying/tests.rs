use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};

use super::*;
use crate::audit::{AuditOutcome, AuditedCall, Subject};

const NODE: NodeId = NodeId([3; 16]);

/// The other site: its chain, and the token that signs it.
struct Other {
    pair: EcdsaKeyPair,
    random: SystemRandom,
    events: Vec<StoredEvent>,
}

impl Other {
    fn with(count: u64) -> Self {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        let (mut tip, mut events) = (ChainTip::empty(NODE), Vec::new());
        for n in 0..count {
            let call = AuditedCall::new("ann", "Meters/DeleteMeter");
            let (next, event) = tip.append(call.entry(n, Subject::NONE, AuditOutcome::Done));
            tip = next;
            events.push(event);
        }
        Self { pair, random, events }
    }

    fn key(&self) -> PublicKey {
        self.pair.public_key().as_ref().try_into().unwrap()
    }

    fn tip(&self, sequence: u64) -> ChainTip {
        let hash = self.events[sequence as usize - 1].hash;
        ChainTip { node: NODE, sequence, hash }
    }

    fn head(&self, tip: ChainTip) -> Checkpoint {
        let signature = self.pair.sign(&self.random, &Checkpoint::message(&tip, 1)).unwrap();
        Checkpoint { tip, at_ms: 1, signature: signature.as_ref().try_into().unwrap() }
    }

    fn piece(&self, events: std::ops::Range<usize>, heads: &[u64]) -> Piece {
        let heads = heads.iter().map(|sequence| self.head(self.tip(*sequence))).collect();
        Piece { events: self.events[events].to_vec(), heads }
    }
}

fn what(outcome: Result<Copied, Broken>) -> (u64, What) {
    let broken = outcome.unwrap_err();
    (broken.sequence, broken.what)
}

#[test]
fn a_copy_goes_on_piece_by_piece_and_takes_heads_that_were_signed_later() {
    let other = Other::with(9);
    let start = Copied::nothing_of(NODE);
    let first = start.with(&other.piece(0..5, &[3]), &[], &other.key()).unwrap();
    assert_eq!((first.tip, first.signed), (other.tip(5), 3));
    assert_eq!(first.held_against(Some(&other.tip(9))), Ok(true));
    // Of an event that is there already, of the last one, and of one that comes with it.
    let copied = [other.events[3].clone()];
    let next = first.with(&other.piece(5..9, &[4, 5, 8]), &copied, &other.key()).unwrap();
    assert_eq!((next.tip, next.signed), (other.tip(9), 8));
    assert_eq!(next.held_against(Some(&other.tip(9))), Ok(false));
    let last = next.with(&other.piece(9..9, &[9]), &[], &other.key()).unwrap();
    assert_eq!(last.signed, 9);
}

#[test]
fn a_chain_that_was_cut_or_has_gone_is_told_from_its_end_alone() {
    let other = Other::with(9);
    let copy = Copied { tip: other.tip(7), ..Copied::nothing_of(NODE) };
    let told = |tip: Option<ChainTip>| copy.held_against(tip.as_ref()).unwrap_err();
    assert_eq!(
        (told(Some(other.tip(4))).sequence, told(Some(other.tip(4))).what),
        (5, What::TailCut)
    );
    assert_eq!((told(None).sequence, told(None).what), (1, What::TailCut));
    let rewritten = ChainTip { hash: [1; 32], ..other.tip(7) };
    assert_eq!(told(Some(rewritten)).what, What::OtherThanSigned);
    assert_eq!(Copied::nothing_of(NODE).held_against(None), Ok(false));
}

#[test]
fn nothing_of_a_piece_that_was_changed_is_copied() {
    let other = Other::with(9);
    let copy = Copied::nothing_of(NODE).with(&other.piece(0..5, &[5]), &[], &other.key()).unwrap();
    let with = |piece: &Piece, copied: &[StoredEvent]| what(copy.with(piece, copied, &other.key()));
    let good = || other.piece(5..9, &[8]);

    let mut changed = good();
    let end = changed.events[1].body.len() - 1;
    changed.events[1].body[end] ^= 1;
    assert!(matches!(with(&changed, &[]), (7, What::Changed | What::NotAnEvent)));
    // Written anew from there on, with right hashes: the head says otherwise.
    let other_writer = Other::with(9);
    let mut anew = good();
    let (mut tip, call) = (other.tip(5), AuditedCall::new("eve", "Meters/DeleteMeter"));
    for event in &mut anew.events {
        let (next, written) = tip.append(call.entry(1, Subject::NONE, AuditOutcome::Done));
        (tip, *event) = (next, written);
    }
    assert_eq!(with(&anew, &[]), (8, What::OtherThanSigned));
    // A head of another token, of an event that is not what was copied, of none, beyond the end, or twice.
    let mut foreign = good();
    foreign.heads = vec![other_writer.head(other.tip(8))];
    assert_eq!(with(&foreign, &[]), (8, What::BadSignature));
    let behind = Copied { signed: 2, ..copy };
    let late =
        |copied: &[StoredEvent]| what(behind.with(&other.piece(5..9, &[3]), copied, &other.key()));
    let mut not_that = other.events[2].clone();
    not_that.hash[0] ^= 1;
    assert_eq!(late(&[not_that]), (3, What::OtherThanSigned));
    assert_eq!(late(&[]), (3, What::OutOfOrder));
    assert_eq!(with(&other.piece(5..7, &[8]), &[]), (8, What::TailCut));
    assert_eq!(with(&other.piece(5..9, &[5]), &[]), (5, What::OutOfOrder));
    // A gap, and the chain from its beginning.
    assert_eq!(with(&other.piece(6..9, &[]), &[]), (6, What::OutOfOrder));
    assert_eq!(with(&other.piece(0..3, &[]), &[]), (6, What::OutOfOrder));
}

fn end(node: u8, sequence: u64) -> ChainTip {
    ChainTip { node: NodeId([node; 16]), sequence, hash: [0; 32] }
}

#[test]
fn a_signed_end_that_is_never_given_is_withheld() {
    let copy = |sequence| [Copied { tip: end(1, sequence), signed: 0, broken_in: None }];
    let withheld = |signed, copied| [Withheld { signed, copied }];
    let mut ends = Ends::default();
    // A chain that is behind, and one that was never shown.
    let signed = [end(1, 9), end(2, 4)];
    for _ in 1..Ends::GRACE {
        assert_eq!(ends.looked(&copy(7), (1, &signed), Look::Whole), []);
    }
    // While more is given than one look takes, and while the site is away, nothing is said of it.
    assert_eq!(ends.looked(&copy(7), (1, &signed), Look::More), []);
    assert_eq!(ends.looked(&copy(7), (1, &signed), Look::Unanswered), []);
    // One of them comes after all.
    assert_eq!(ends.looked(&copy(9), (1, &signed), Look::Whole), withheld(end(2, 4), 0));
    let again = [end(1, 12)];
    assert_eq!(ends.looked(&copy(9), (2, &again), Look::Whole), []);
    // Whoever shows tables and no events is no site that is away.
    for table in 3..5 {
        assert_eq!(ends.looked(&copy(9), (table, &again), Look::Unanswered), []);
    }
    assert_eq!(ends.looked(&copy(9), (5, &again), Look::Unanswered), withheld(end(1, 12), 9));
    assert_eq!(ends.looked(&copy(12), (5, &again), Look::Whole), []);
}

#[test]
fn who_lets_events_drip_withholds_them_after_half_an_hour() {
    let copy = |sequence| [Copied { tip: end(1, sequence), signed: 0, broken_in: None }];
    let mut ends = Ends::default();
    // More comes at each look, and more is signed meanwhile; what was signed first is not reached.
    for look in 0..Ends::REACHED - 1 {
        let signed = [end(1, 1_000_000 + u64::from(look))];
        assert_eq!(ends.looked(&copy(u64::from(look)), (1, &signed), Look::More), [], "{look}");
    }
    let signed = [end(1, 2_000_000)];
    let told = ends.looked(&copy(999_999), (2, &signed), Look::More);
    assert_eq!(told, [Withheld { signed: signed[0], copied: 999_999 }]);
    // Once it is reached, another half hour begins for what was signed by then.
    assert_eq!(ends.looked(&copy(1_000_000), (2, &signed), Look::More), []);
    for look in 1..Ends::REACHED {
        assert_eq!(ends.looked(&copy(1_000_001), (2, &signed), Look::More), [], "{look}");
    }
    assert_eq!(ends.looked(&copy(1_000_001), (2, &signed), Look::More).len(), 1);
}

#[test]
fn a_chain_that_goes_on_and_that_no_token_signs_is_named() {
    let copy = |sequence, signed| [Copied { tip: end(1, sequence), signed, broken_in: None }];
    let mut ends = Ends::default();
    let none: [Unproved; 0] = [];
    for look in 0..=u64::from(Ends::SIGNED) + 9 {
        // A head, or a table, begins anew; a site that is away does not count.
        assert_eq!(ends.unproved(&copy(look + 2, look + 1), &[], Look::Whole), none);
        let table = [end(1, look + 1)];
        assert_eq!(ends.unproved(&copy(look + 2, 1), &table, Look::More), none);
        assert_eq!(ends.unproved(&copy(look + 2, 1), &table, Look::Unanswered), none);
    }
    for look in 0..u64::from(Ends::SIGNED) {
        assert_eq!(ends.unproved(&copy(9 + look, 5), &[], Look::Whole), none, "{look}");
    }
    let told = ends.unproved(&copy(9_000, 5), &[], Look::Whole);
    assert_eq!(told, [Unproved { copied: end(1, 9_000), signed: 5 }]);
    assert_eq!(ends.unproved(&copy(9_000, 9_000), &[], Look::Whole), none);
}

#[test]
fn the_key_of_a_chain_is_the_one_that_signed_its_heads() {
    let (first, second) = (Other::with(2), Other::with(2));
    let head = first.head(first.tip(2));
    assert_eq!(signer_of(&head, &[second.key(), first.key()]), Some(first.key()));
    assert_eq!(signer_of(&head, &[second.key()]), None);
}
