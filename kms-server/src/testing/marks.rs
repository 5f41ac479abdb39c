//! Marks of counters that were put back, and a site that says what it can't know of them.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use kms_core::{
    BlockNo, Epoch, Verdict,
    block::BlockMark,
    counters::{
        allocator::{RANGE, Witnessed},
        line::SEQUENCES,
        refusal::Refusal,
    },
    moment::Moment,
    ports::{Clock, CounterWitness, Replicated, ReplicationGate, WitnessSaid},
};

use super::{
    home::{Home, at_home, at_two_homes},
    lying::{Lies, beside_a_liar},
    pair::{BLOCKS, Network, Running, beside, sites},
    restored::remembering_of,
    site_common::Site,
    transmitting::{counter, declare, plain, refusal_or, send, settled, talking},
};
use crate::{
    replication::{MarksAsked, MarksSaid, NotServed, PeersMemory},
    transmitting::{OtherSite, Transmitting},
};

/// The other site: what it knows of each block's mark; `None`: it is away.
#[derive(Default)]
struct Witness {
    knows: Mutex<Option<u32>>,
    calls: AtomicU64,
}

impl Witness {
    fn knows(&self, end: impl Into<Option<u32>>) {
        *self.knows.lock().unwrap() = end.into();
    }
}

#[async_trait::async_trait]
impl CounterWitness for Witness {
    async fn ask(
        &self,
        told: Vec<(BlockNo, Witnessed)>,
        _: Option<BlockNo>,
    ) -> Option<WitnessSaid> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let mut known = self.knows.lock().unwrap();
        let end = told.iter().map(|(_, mark)| mark.end).max().max(*known);
        // It keeps what it is told.
        *known = Some((*known)?.max(end?));
        let mark = Witnessed { epoch: Epoch(2), end: (*known)? };
        let marks = (0..BLOCKS).map(|block| (BlockNo(block), mark)).collect();
        Some(WitnessSaid { marks, set_aside: Vec::new(), remembers_since: Some(Epoch(2)) })
    }
}

#[async_trait::async_trait]
impl ReplicationGate for Witness {
    async fn replicated(&self, _: &[BlockMark]) -> Replicated {
        Replicated::Yes
    }
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

/// A server of a site that has others, which has asked the witness at its start.
async fn started(
    home: &Home,
    time: &Arc<Time>,
    witness: &Arc<Witness>,
) -> (Site, Arc<Transmitting>) {
    let mut site = Site::new(home).await;
    site.clock = time.clone();
    let peer: OtherSite = (witness.clone(), witness.clone());
    let sending = Arc::new(site.transmitting_among(false, Some(peer), true));
    (site, sending)
}

#[test]
fn invariant_3_a_mark_that_was_put_back_is_held_against_the_other_site_before_it_is_built_on() {
    at_home(async |home| {
        let (time, witness) = (Arc::<Time>::default(), Arc::<Witness>::default());
        witness.knows(0);
        let (site, one) = started(home, &time, &witness).await;
        site.add(talking(1)).await;
        declare(&one, 1, None).await.unwrap();
        assert_eq!(settled(&one, 1).await, None);
        assert_eq!(*witness.knows.lock().unwrap(), Some(RANGE), "told before it is used");
        one.close().await;
        // The other server has asked at its start, before more was reserved; then the row was put back.
        let (_other, two) = started(home, &time, &witness).await;
        witness.knows(0);
        let began = witness.calls.load(Ordering::SeqCst);
        let asking = Arc::clone(&two);
        let asking = tokio::spawn(async move { asking.keep_witness().await });
        while witness.calls.load(Ordering::SeqCst) == began {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        asking.abort();
        witness.knows(4 * RANGE);
        assert_eq!(refusal_or(&two, 1).await, Some(Refusal::CountersRolledBack));
    });
}

#[test]
fn a_server_that_can_remember_no_mark_burns_one_range_and_not_one_a_try_and_says_so() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let sending = site.transmitting_among(true, None, false);
        site.add(talking(1)).await;
        declare(&sending, 1, None).await.unwrap();
        assert_eq!(refusal_or(&sending, 1).await, None);
        let end = async || {
            let marks = site.store.counter_marks().await.unwrap();
            marks.iter().map(|stored| stored.mark.end).max().unwrap()
        };
        site.counters.is_full.store(true, Ordering::SeqCst);
        let mut sent = 1;
        while send(&sending, plain(1)).await.0.verdict == Verdict::Ok {
            sent += 1;
            assert!(sent < RANGE, "it goes on without a memory");
        }
        assert_eq!((sent + 1, end().await), (RANGE, 2 * RANGE));
        for _ in 0..5 {
            assert_ne!(send(&sending, plain(1)).await.0.verdict, Verdict::Ok);
        }
        assert_eq!(end().await, 2 * RANGE, "nothing more is burnt");
        assert!(sending.faults().iter().any(|fault| fault.contains("the disk is full")));
        site.counters.is_full.store(false, Ordering::SeqCst);
        assert_eq!(send(&sending, plain(1)).await.0.verdict, Verdict::Ok);
        assert_eq!((end().await, sending.faults()), (3 * RANGE, Vec::new()));
    });
}

#[test]
fn invariant_3_a_server_beside_others_builds_on_no_mark_of_theirs_while_the_other_site_is_away() {
    at_home(async |home| {
        let (time, witness) = (Arc::<Time>::default(), Arc::<Witness>::default());
        witness.knows(0);
        let (site, one) = started(home, &time, &witness).await;
        site.add(talking(1)).await;
        declare(&one, 1, None).await.unwrap();
        assert_eq!(settled(&one, 1).await, None);
        let (_other, two) = started(home, &time, &witness).await;
        assert_eq!(settled(&two, 1).await, Some(Refusal::HeldByAnotherNode));
        witness.knows(None);
        // What it wrote itself it goes on with, whenever it is asked.
        time.pass(600);
        let before = counter(&one, 1).await;
        one.close().await;
        assert_eq!(refusal_or(&two, 1).await, Some(Refusal::CountersNotWitnessed));
        time.pass(6);
        assert_eq!(refusal_or(&two, 1).await, Some(Refusal::CountersNotWitnessed));
        witness.knows(RANGE);
        time.pass(6);
        let after = counter(&two, 1).await;
        assert!(after >= RANGE && after > before, "{after} after {before}");
    });
}

#[test]
fn a_server_alone_goes_by_its_own_memory_while_the_other_site_is_away() {
    at_home(async |home| {
        let witness = Arc::<Witness>::default();
        witness.knows(0);
        let site = Site::new(home).await;
        site.add(talking(1)).await;
        let start = || -> Arc<Transmitting> {
            let peer: OtherSite = (witness.clone(), witness.clone());
            Arc::new(site.transmitting(false, Some(peer)))
        };
        let sending = start();
        declare(&sending, 1, None).await.unwrap();
        assert_eq!(settled(&sending, 1).await, None);
        // It was asked at the start, and of this one block once: its own mark it remembers.
        let again = start();
        assert_eq!(settled(&again, 1).await, None);
        witness.knows(None);
        assert!(counter(&again, 1).await > RANGE);
    });
}

fn told(block: u32, epoch: u64, end: u32) -> (BlockNo, Witnessed) {
    (BlockNo(block), Witnessed { epoch: Epoch(epoch), end })
}

#[test]
fn invariant_3_what_the_other_site_says_of_counters_beyond_what_records_prove_is_no_answer() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        let running = Running::start(Arc::clone(&b), &network).await;
        let said = async |lie: fn(MarksSaid) -> MarksSaid| {
            let lies = Lies { marks: Box::new(lie), ..Lies::default() };
            let (grounds, _) = beside_a_liar(&a, &network, lies);
            let memory = PeersMemory::new(&grounds, Arc::clone(&a.keyring.roles));
            let said = memory.ask(Vec::new(), Some(BlockNo(0))).await;
            (said, grounds.status.all().faults.join("; "))
        };
        let (honest, faults) = said(|said| said).await;
        assert!(honest.is_some() && !faults.contains("counters"), "{faults}");
        let in_bounds = |said| MarksSaid { marks: vec![told(1, 2, SEQUENCES)], ..said };
        assert!(said(in_bounds).await.0.is_some());
        let lies: [fn(MarksSaid) -> MarksSaid; 5] = [
            |said| MarksSaid { marks: vec![told(1, 1 << 62, 1)], ..said },
            |said| MarksSaid { marks: vec![told(1, 1, 1)], ..said },
            |said| MarksSaid { marks: vec![told(1, 2, SEQUENCES + 1)], ..said },
            |said| MarksSaid { marks: vec![told(BLOCKS, 2, 1)], ..said },
            |said| MarksSaid { remembers_since: Some(Epoch(1 << 62)), ..said },
        ];
        for lie in lies {
            let (said, faults) = said(lie).await;
            assert_eq!(said, None, "{faults}");
            let is_named =
                faults.contains("site south says") && faults.contains("no signed record");
            assert!(is_named, "{faults}");
        }
        running.cut().await;
    });
}

#[test]
fn a_mark_that_its_site_can_not_have_reserved_is_not_remembered_for_it() {
    at_two_homes(async |north, south| {
        let (_a, b) = sites(north, south).await;
        let network = Network::new();
        let (grounds, _) = beside(&b, &network, network.north);
        let remembering = remembering_of(&b, &grounds);
        for wrong in [told(0, 3, 1), told(0, 4, 1), told(0, 1 << 62, 1), told(0, 2, SEQUENCES + 1)]
        {
            let marks = vec![told(1, 2, 1_024), wrong];
            let refused = remembering.exchange("north", MarksAsked { marks, lines_of: None }).await;
            assert!(matches!(refused, Err(NotServed::Mark(BlockNo(0)))), "{refused:?}");
        }
        assert!(b.store.witnessed_marks("north").await.unwrap().is_empty(), "told again later");
        let marks = vec![told(1, 2, 1_024)];
        let asked = MarksAsked { marks: marks.clone(), lines_of: None };
        assert_eq!(remembering.exchange("north", asked).await.unwrap().marks, marks);
    });
}
