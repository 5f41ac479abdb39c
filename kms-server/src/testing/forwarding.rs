//! Two nodes over one database: what one of them holds the counters of is protected by it, wherever it was asked for.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use kms_core::{
    Verdict,
    audit::NodeId,
    counters::{allocator::RANGE, refusal::Refusal},
    moment::Moment,
    ports::Clock,
};

use super::{
    home::{Home, at_home},
    pair::eventually,
    site_common::{Site, title},
    transmitting::{declare, plain, send, talking},
};
use crate::transmitting::{
    NotForwarded, Origin, OtherNodes, Outcome, Plain, ProtectedBatch, Transmitting, Whose,
};

/// The way to another node of this process; it can be cut before the call, and after it.
#[derive(Default)]
struct Way {
    to: Mutex<BTreeMap<NodeId, Arc<Transmitting>>>,
    calls: AtomicUsize,
    cut: Mutex<Option<(bool, NotForwarded)>>,
    /// Whoever is asked never answers.
    hangs: AtomicBool,
    /// So long he takes for each answer.
    slow: Mutex<Duration>,
}

/// Moved by the test.
#[derive(Default)]
struct Time(AtomicU64);

impl Clock for Time {
    fn unix_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn now(&self) -> Moment {
        Moment::from_ms(self.unix_ms())
    }
}

impl Time {
    fn pass(&self, seconds: u64) {
        self.0.fetch_add(seconds * 1_000, Ordering::SeqCst);
    }
}

#[async_trait::async_trait]
impl OtherNodes for Way {
    async fn protect(
        &self,
        node: NodeId,
        origin: &Origin<'_>,
        items: &[Plain<'_>],
    ) -> Result<ProtectedBatch, NotForwarded> {
        assert_eq!((origin.caller, origin.call), ("hes-1", "Ciphering/EncryptBatch"));
        self.calls.fetch_add(1, Ordering::SeqCst);
        let to = self.to.lock().unwrap().get(&node).cloned().ok_or(NotForwarded::NoAddress)?;
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let slow = *self.slow.lock().unwrap();
        tokio::time::sleep(slow).await;
        let cut = self.cut.lock().unwrap().clone();
        match cut {
            Some((false, why)) => Err(why),
            cut => {
                let batch = to.protect_batch(items).await;
                cut.map_or(Ok(batch), |(_, why)| Err(why))
            }
        }
    }
}

const ORIGIN: Origin<'static> = Origin {
    caller: "hes-1",
    roles: Vec::new(),
    call: "Ciphering/EncryptBatch",
    request_id: "",
    until: None,
};

/// The counters of meters `ns`, asked for by a caller of this node.
async fn asked(sending: &Transmitting, ns: &[u64]) -> Vec<Outcome> {
    let items: Vec<_> = ns.iter().map(|n| plain(*n)).collect();
    let batch = sending.protect_for(&ORIGIN, &items).await;
    let sum: usize = batch.lengths.iter().map(|len| *len as usize).sum();
    assert_eq!(sum, batch.apdus.len());
    for (len, outcome) in batch.lengths.iter().zip(&batch.outcomes) {
        assert_eq!(*len > 0, outcome.verdict == Verdict::Ok, "{outcome:?}");
    }
    batch.outcomes
}

fn counters(outcomes: &[Outcome]) -> Vec<u32> {
    outcomes.iter().map(|outcome| outcome.invocation_counter).collect()
}

#[test]
fn invariant_3_what_another_node_holds_is_forwarded_in_one_call_and_rises_wherever_it_is_asked_for()
{
    at_home(async |home| {
        let (site, other) = (Site::new(home).await, Site::new(home).await);
        for n in 1..=12 {
            site.add(talking(n)).await;
        }
        let (to_one, to_two) = (Arc::<Way>::default(), Arc::<Way>::default());
        let one = Arc::new(site.transmitting(true, None).with_nodes(to_two.clone()));
        let two = Arc::new(other.transmitting(true, None).with_nodes(to_one.clone()));
        to_one.to.lock().unwrap().insert(site.node, Arc::clone(&one));
        to_two.to.lock().unwrap().insert(other.node, Arc::clone(&two));
        for n in 1..=12 {
            declare(&one, n, None).await.unwrap();
        }
        // Each node takes the blocks that it is asked for first.
        let (low, high): (Vec<u64>, Vec<u64>) = ((1..=6).collect(), (7..=12).collect());
        let mut seen: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        let mut note = |ns: &[u64], outcomes: &[Outcome]| {
            for (n, outcome) in ns.iter().zip(outcomes) {
                assert_eq!(outcome.verdict, Verdict::Ok, "{n}: {outcome:?}");
                assert_eq!(outcome.system_title, Some(title(*n)));
                seen.entry(*n).or_default().push(outcome.invocation_counter);
            }
        };
        note(&low, &asked(&one, &low).await);
        note(&high, &asked(&two, &high).await);
        let before = (to_one.calls.load(Ordering::SeqCst), to_two.calls.load(Ordering::SeqCst));
        let all: Vec<u64> = (1..=12).rev().chain(1..=12).collect();
        for _ in 0..3 {
            for node in [&one, &two] {
                let outcomes = asked(node, &all).await;
                assert!(outcomes.iter().any(|outcome| outcome.by_another));
                note(&all, &outcomes);
            }
        }
        let after = (to_one.calls.load(Ordering::SeqCst), to_two.calls.load(Ordering::SeqCst));
        assert_eq!((after.0 - before.0, after.1 - before.1), (3, 3), "one call for each holder");
        for (n, counters) in seen {
            assert_eq!(counters, (1..=13).collect::<Vec<_>>(), "meter {n}, without a gap");
        }
        // A bad item in the middle stays where it is, and costs nobody else anything.
        let items =
            [plain(1), Plain { whose: Whose::Id("nobody"), ..plain(1) }, plain(12), plain(1)];
        let batch = two.protect_for(&ORIGIN, &items).await;
        assert_eq!(counters(&batch.outcomes), [14, 0, 14, 15]);
        assert_eq!(batch.lengths[1], 0);
    });
}

#[test]
fn a_holder_that_does_not_answer_is_named_and_nothing_is_forwarded_twice_or_further() {
    at_home(async |home| {
        let (site, other) = (Site::new(home).await, Site::new(home).await);
        site.add(talking(1)).await;
        let way = Arc::<Way>::default();
        let one = Arc::new(site.transmitting(true, None));
        let two = Arc::new(other.transmitting(true, None).with_nodes(way.clone()));
        declare(&one, 1, None).await.unwrap();
        assert_eq!(counters(&asked(&one, &[1]).await), [1]);
        let refused = async |why: &str| {
            let outcome = asked(&two, &[1]).await.remove(0);
            assert_eq!(outcome.refusal, Some(Refusal::HeldByAnotherNode), "{outcome:?}");
            let reason = outcome.reason.unwrap();
            assert!(reason.contains(&site.node.to_string()) && reason.contains(why), "{reason}");
            assert!(!outcome.by_another, "it is this node's to count");
        };
        refused("its address does not stand in [[nodes]]").await;
        way.to.lock().unwrap().insert(site.node, Arc::clone(&one));
        let cut = |then: bool, why| *way.cut.lock().unwrap() = Some((then, why));
        cut(false, NotForwarded::NotReached("no route".into()));
        refused("can't be reached: no route").await;
        assert_eq!(counters(&asked(&one, &[1]).await), [2], "nothing arrived");
        // The answer is lost: the counter is spent, and the call is not made again.
        let calls = way.calls.load(Ordering::SeqCst);
        cut(true, NotForwarded::NoAnswer("reset".into()));
        refused("gave no answer: reset").await;
        assert_eq!(way.calls.load(Ordering::SeqCst), calls + 1);
        *way.cut.lock().unwrap() = None;
        assert_eq!(counters(&asked(&two, &[1]).await), [4]);
        // One hop: what was forwarded to a node that does not hold the block goes no further.
        let calls = way.calls.load(Ordering::SeqCst);
        let (outcome, _) = send(&two, plain(1)).await;
        assert_eq!(outcome.refusal, Some(Refusal::HeldByAnotherNode));
        assert_eq!(way.calls.load(Ordering::SeqCst), calls);
    });
}

/// Two nodes at this clock, the first of which holds meter 1's counters and has given out the first.
async fn holder_and_other(home: &Home, time: &Arc<Time>) -> (Site, Arc<Way>, Arc<Transmitting>) {
    let (mut site, mut other) = (Site::new(home).await, Site::new(home).await);
    for node in [&mut site, &mut other] {
        node.clock = time.clone();
    }
    site.add(talking(1)).await;
    let way = Arc::<Way>::default();
    let one = Arc::new(site.transmitting(true, None));
    let two = Arc::new(other.transmitting(true, None).with_nodes(way.clone()));
    declare(&one, 1, None).await.unwrap();
    assert_eq!(counters(&asked(&one, &[1]).await), [1]);
    way.to.lock().unwrap().insert(site.node, one);
    (site, way, two)
}

#[test]
fn a_holder_that_serves_is_not_taken_over_from_however_seldom_it_is_asked() {
    at_home(async |home| {
        let time = Arc::<Time>::default();
        let (_site, _way, two) = holder_and_other(home, &time).await;
        for counter in 2..6 {
            let outcome = asked(&two, &[1]).await.remove(0);
            assert_eq!((outcome.invocation_counter, outcome.by_another), (counter, true));
            time.pass(100);
        }
    });
}

/// A caller of this node who waits for so long.
async fn asked_within(sending: &Transmitting, patience: Duration) -> Outcome {
    let origin = Origin { until: Some(Instant::now() + patience), ..ORIGIN };
    sending.protect_for(&origin, &[plain(1)]).await.outcomes.remove(0)
}

const HURRY: Duration = Duration::from_millis(40);

#[test]
fn a_holder_that_hangs_is_taken_over_from_though_no_caller_waits_for_its_answer() {
    at_home(async |home| {
        let time = Arc::<Time>::default();
        let (_site, way, two) = holder_and_other(home, &time).await;
        assert_eq!(counters(&asked(&two, &[1]).await), [2]);
        way.hangs.store(true, Ordering::SeqCst);
        let taken = Mutex::new(None);
        eventually("it is silent for a time of its own, and then taken over from", async || {
            let outcome = asked_within(&two, HURRY).await;
            time.pass(16);
            let is_taken = outcome.verdict == Verdict::Ok;
            assert!(is_taken || outcome.refusal == Some(Refusal::HeldByAnotherNode), "{outcome:?}");
            *taken.lock().unwrap() = Some(outcome);
            is_taken
        })
        .await;
        let outcome = taken.into_inner().unwrap().unwrap();
        let seen = (outcome.invocation_counter, outcome.by_another);
        assert_eq!(seen, (RANGE, false), "behind all that was reserved");
    });
}

#[test]
fn a_holder_whose_callers_do_not_wait_is_not_taken_over_from() {
    at_home(async |home| {
        let time = Arc::<Time>::default();
        let (_site, way, two) = holder_and_other(home, &time).await;
        *way.slow.lock().unwrap() = 8 * HURRY;
        for round in 0..6 {
            // Gone by himself, or cut off by his client: both say nothing of the holder.
            if round % 2 == 0 {
                let outcome = asked_within(&two, HURRY).await;
                assert_eq!(outcome.refusal, Some(Refusal::HeldByAnotherNode), "{outcome:?}");
                assert!(outcome.reason.unwrap().contains("gave no answer"));
            } else {
                let cut_off = tokio::time::timeout(HURRY, asked(&two, &[1])).await;
                assert!(cut_off.is_err(), "{cut_off:?}");
            }
            time.pass(16);
        }
        let outcome = asked(&two, &[1]).await.remove(0);
        assert!(outcome.by_another && outcome.verdict == Verdict::Ok, "{outcome:?}");
        assert!(outcome.invocation_counter < RANGE, "{outcome:?}");
    });
}

#[test]
fn a_caller_who_comes_too_late_says_nothing_of_the_holder() {
    at_home(async |home| {
        let time = Arc::<Time>::default();
        let (_site, way, two) = holder_and_other(home, &time).await;
        let calls = way.calls.load(Ordering::SeqCst);
        for _ in 0..4 {
            let outcome = asked_within(&two, Duration::ZERO).await;
            assert_eq!(outcome.refusal, Some(Refusal::HeldByAnotherNode), "{outcome:?}");
            assert!(outcome.reason.unwrap().contains("no time was left to ask it"));
        }
        assert_eq!(way.calls.load(Ordering::SeqCst), calls, "nobody was asked");
        // One that serves is late for nobody.
        assert_eq!(counters(&asked(&two, &[1]).await), [2]);
        for _ in 0..4 {
            time.pass(16);
            let outcome = asked_within(&two, Duration::ZERO).await;
            assert_eq!(outcome.refusal, Some(Refusal::HeldByAnotherNode), "{outcome:?}");
        }
        let outcome = asked(&two, &[1]).await.remove(0);
        assert_eq!((outcome.invocation_counter, outcome.by_another), (3, true));
    });
}

#[test]
fn a_holder_that_answers_and_can_not_give_counters_is_taken_over_from() {
    at_home(async |home| {
        let time = Arc::<Time>::default();
        let (site, way, two) = holder_and_other(home, &time).await;
        assert_eq!(counters(&asked(&two, &[1]).await), [2]);
        // It was started again, and nobody tells it what it has reserved.
        let again = Arc::new(site.transmitting(false, None));
        way.to.lock().unwrap().insert(site.node, again);
        for seconds in [14, 1] {
            let outcome = asked(&two, &[1]).await.remove(0);
            assert_eq!(outcome.refusal, Some(Refusal::LineNotReplicated), "{outcome:?}");
            time.pass(seconds);
        }
        assert_eq!(counters(&asked(&two, &[1]).await), [RANGE]);
    });
}
