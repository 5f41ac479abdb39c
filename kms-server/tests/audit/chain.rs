//! 100,000 records: any deletion, change or reordering is found, tail included.

use kms_core::audit::{
    AuditEvent, AuditOutcome, AuditText, Broken, ChainTip, Checkpoint, Detail, NodeId, StoredEvent,
    Verifier, What, chain_hash,
};

use super::support::{NODE, Signer, entry, title};

const EVENTS: u64 = 100_000;
const SIGNED_EACH: u64 = 200;

struct Log {
    signer: std::sync::Arc<Signer>,
    events: Vec<StoredEvent>,
    heads: Vec<Checkpoint>,
    tip: ChainTip,
}

/// 100,000 events, the last 100 of them behind the last signed head.
fn log() -> Log {
    let signer = Signer::new();
    let mut tip = ChainTip::empty(NODE);
    let (mut events, mut heads) = (Vec::new(), Vec::new());
    for n in 1..=EVENTS {
        let (next, event) = tip.append(entry(n).with(Detail::Items, n));
        tip = next;
        events.push(event);
        if n % SIGNED_EACH == SIGNED_EACH / 2 {
            heads.push(signer.head(tip));
        }
    }
    Log { signer, events, heads, tip }
}

/// Events of a piece.
const PIECE: usize = 700;

struct Piece {
    verifier: Verifier,
    events: Vec<StoredEvent>,
    known: Option<ChainTip>,
    /// Of the place in question.
    at: usize,
}

impl Piece {
    fn verify(&self, events: &[StoredEvent]) -> Result<(), Broken> {
        let mut verifier = self.verifier.clone();
        events.iter().try_for_each(|event| verifier.event(event).map(drop))?;
        verifier.finish(self.known)
    }
}

impl Log {
    fn verify(
        &self,
        events: &[StoredEvent],
        heads: &[Checkpoint],
        known: Option<ChainTip>,
    ) -> Result<ChainTip, Broken> {
        let mut verifier = Verifier::new(ChainTip::empty(NODE), self.signer.key());
        heads.iter().try_for_each(|head| verifier.head(head.clone()))?;
        events.iter().try_for_each(|event| verifier.event(event).map(drop))?;
        verifier.finish(known)?;
        Ok(verifier.tip())
    }

    /// The piece of the log around `place`, from a signed head before it: trials on a piece are quick,
    /// and what lies before it is as it was.
    fn piece(&self, place: usize) -> Piece {
        let before = |head: &&Checkpoint| head.tip.sequence as usize + 2 < place;
        let from = self.heads.iter().rev().find(before);
        let from = from.map_or(ChainTip::empty(NODE), |head| head.tip);
        let start = from.sequence as usize;
        let end = self.events.len().min(start + PIECE);
        let mut verifier = Verifier::new(from, self.signer.key());
        let heads = self
            .heads
            .iter()
            .filter(|head| (start + 1..=end).contains(&(head.tip.sequence as usize)));
        heads.for_each(|head| verifier.head(head.clone()).unwrap());
        let known = Some(self.tip).filter(|_| end == self.events.len());
        Piece { verifier, events: self.events[start..end].to_vec(), known, at: place - start }
    }

    /// First, last, both sides of signed heads, and a spread in between; indexes from 0.
    fn places(&self) -> Vec<usize> {
        let mut places = vec![0, 1, 98, 99, 100, 101];
        places.extend((0..EVENTS as usize).step_by(4_999));
        places.extend((99_700..100_000).step_by(29));
        places.extend([99_898, 99_899, 99_900, 99_998, 99_999]);
        places
    }
}

fn resealed(event: &AuditEvent, hash: [u8; 32]) -> StoredEvent {
    let AuditEvent { node, sequence, .. } = event;
    StoredEvent { node: *node, sequence: *sequence, hash, body: event.encode() }
}

/// Each field changed, as an event would be by somebody who has no key.
fn changed_fields(event: &AuditEvent) -> Vec<AuditEvent> {
    let changes: [fn(&mut AuditEvent); 14] = [
        |event| event.node = NodeId([0xA2; 16]),
        |event| event.sequence += 1,
        |event| event.entry.at_ms += 1,
        |event| event.entry.call.caller = AuditText::new("somebody"),
        |event| event.entry.call.verb = AuditText::new("Meters/ListMeters"),
        |event| event.entry.call.request_id = AuditText::new("r"),
        |event| event.entry.subject.meter_id = kms_core::MeterId::new("m").ok(),
        |event| event.entry.subject.system_title = None,
        |event| event.entry.subject.system_title = Some(title(u64::MAX)),
        |event| event.entry.subject.block = Some(kms_core::BlockNo(0)),
        |event| event.entry.outcome = AuditOutcome::refused(""),
        |event| event.entry.outcome = AuditOutcome::failed("X"),
        |event| event.entry.details[0].1 += 1,
        |event| event.entry.blocks.push((kms_core::BlockNo(0), 1)),
    ];
    changes
        .iter()
        .map(|change| {
            let mut changed = event.clone();
            change(&mut changed);
            changed
        })
        .collect()
}

#[test]
fn invariant_10_any_deletion_change_or_reordering_of_100_000_events_is_found() {
    let log = log();
    let (events, heads) = (&log.events, &log.heads);
    let intact = log.verify(events, heads, Some(log.tip));
    assert_eq!(intact, Ok(log.tip));
    assert_eq!(events.len(), 100_000);

    let mut trials = 0;
    for place in log.places() {
        let piece = log.piece(place);
        assert_eq!(piece.verify(&piece.events), Ok(()), "the piece around {place} is good");
        let (at, number) = (piece.at, place as u64 + 1);
        let mut must_fail =
            |what: &str, first: Option<u64>, alter: &dyn Fn(&mut Vec<StoredEvent>)| {
                let mut altered = piece.events.clone();
                alter(&mut altered);
                let broken = piece.verify(&altered);
                let broken = broken.expect_err(&format!("{what} at {number} was not found"));
                if let Some(first) = first {
                    assert_eq!(broken.sequence, first, "{what} at {number}: {broken}");
                }
                trials += 1;
            };
        let event = AuditEvent::decode(&events[place].body).unwrap();
        let before = place.checked_sub(1).map_or(ChainTip::empty(NODE).hash, |b| events[b].hash);
        // Each field, with the hash left as it was and with a hash made to fit.
        for changed in changed_fields(&event) {
            let old = events[place].hash;
            must_fail("a changed field", Some(number), &|all| all[at] = resealed(&changed, old));
            let new = chain_hash(&before, &changed.encode());
            must_fail("a changed field and hash", None, &|all| all[at] = resealed(&changed, new));
        }
        must_fail("a changed hash", Some(number), &|all| all[at].hash[31] ^= 1);
        must_fail("a deletion", Some(number), &|all| drop(all.remove(at)));
        must_fail("a repetition", Some(number + 1), &|all| all.insert(at, all[at].clone()));
        for other in [at + 1, at + 2, at + 300] {
            if other >= piece.events.len() {
                continue;
            }
            must_fail("two swapped", Some(number), &|all| all.swap(at, other));
            must_fail("two swapped under their old numbers", Some(number), &|all| {
                all.swap(at, other);
                let (a, b) = (all[at].sequence, all[other].sequence);
                (all[at].sequence, all[other].sequence) = (b, a);
            });
        }
    }
    assert!(trials > 1_000, "{trials} trials");
}

#[test]
fn invariant_10_events_swapped_over_the_whole_log_are_found() {
    let log = log();
    for (a, b) in [(0, 99_999), (0, 50_000), (99, 99_899), (25_000, 75_000)] {
        let mut altered = log.events.clone();
        altered.swap(a, b);
        let broken = log.verify(&altered, &log.heads, Some(log.tip)).unwrap_err();
        assert_eq!(broken.sequence, a as u64 + 1);
    }
}

#[test]
fn invariant_10_every_cut_of_the_tail_is_found() {
    let log = log();
    // Walked once; at each event it is asked what a log that ends here would give.
    let mut verifier = Verifier::new(ChainTip::empty(NODE), log.signer.key());
    let last_signed = log.heads.last().unwrap().tip.sequence;
    for head in &log.heads {
        verifier.head(head.clone()).unwrap();
    }
    for kept in 0..EVENTS {
        // Whoever knows the end finds every cut; the signed heads alone find each that cuts one off.
        let cut = verifier.finish(Some(log.tip)).unwrap_err();
        assert_eq!((cut.sequence, cut.what), (kept + 1, What::TailCut));
        assert_eq!(verifier.finish(None).is_err(), kept < last_signed, "{kept} kept");
        verifier.event(&log.events[kept as usize]).unwrap();
    }
    assert_eq!(verifier.finish(Some(log.tip)), Ok(()));
    assert_eq!(verifier.heads_seen(), log.heads.len() as u64);
}

#[test]
fn invariant_10_a_log_written_anew_by_who_has_no_key_is_found() {
    let log = log();
    // From event 60,000 on everything is written again, every hash fits.
    let keep = 59_999;
    let mut tip = log.heads[299].tip;
    let mut forged: Vec<StoredEvent> = log.events[..tip.sequence as usize].to_vec();
    for event in &log.events[tip.sequence as usize..] {
        let mut event = AuditEvent::decode(&event.body).unwrap();
        if event.sequence > keep {
            event.entry.call.caller = AuditText::new("nobody");
        }
        let (next, event) = tip.append(event.entry);
        tip = next;
        forged.push(event);
    }
    let broken = log.verify(&forged, &log.heads, None).unwrap_err();
    assert_eq!((broken.sequence, broken.what), (60_100, What::OtherThanSigned));
    // His own heads are not the token's.
    let forger = Signer::new();
    let mut heads = log.heads[..300].to_vec();
    heads.push(forger.head(tip));
    let broken = log.verify(&forged, &heads, None).unwrap_err();
    assert_eq!(broken.what, What::BadSignature);
    // A head of another place or another node does not fit either.
    let mut moved = log.heads.clone();
    moved[10].tip.sequence += 1;
    assert!(log.verify(&log.events, &moved, None).is_err());
}
