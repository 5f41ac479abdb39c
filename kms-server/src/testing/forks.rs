//! What a fork leaves: told to the site that writes, decided there, and known at both; a site that was put back; and many
//! promotions in a row, with the old primary alive.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests may, and are told how long to go on"
)]

use std::{collections::BTreeSet, sync::Arc};

use kms_core::{
    BlockNo, Epoch, KeyState, MeterId, Record, RecordKey, RefusalCode, Verdict,
    audit::AuditedCall,
    block::reconciling::{Decision, Parting},
};

use super::{
    home::{Home, at_two_homes},
    pair::{
        BLOCKS, Network, Running, again, contents, entry, eventually, in_step, promote, sites,
        whole,
    },
    site_common::{Site, call, id, meter, push, title},
    two_sites::fence,
};
use crate::{
    keyring::{Taken, Wish},
    lifecycle::{Aside, ImportRules, LifecycleError, Reconciled, Which},
    store::sites::{DivergenceAsked, Divergent, Resolution, RoleRow},
};

const PLAIN: &[u8] = b"\x0f\x00";

fn by() -> AuditedCall {
    call("Site/ResolveDivergence")
}

pub(super) async fn try_add(site: &Site, n: u64) -> Result<(), LifecycleError> {
    let lines = vec![meter(n)];
    let by = call("Meters/ImportMeters");
    let done = site.lifecycle.import(&by, lines, ImportRules::default()).await?;
    assert!(done.results.iter().all(|result| result.outcome.is_ok()), "{:?}", done.results);
    Ok(())
}

async fn all_aside(site: &Site) -> Vec<Divergent> {
    site.store.divergence(DivergenceAsked::first(10_000)).await.unwrap()
}

async fn decide(site: &Site, which: Which, decision: Decision) -> Reconciled {
    site.lifecycle.reconcile(&by(), which, decision).await.unwrap()
}

/// Brings a key of a meter into a state, as no call of this release does.
async fn bring(site: &Site, n: u64, state: KeyState) {
    let block = site.keyring.records.block_of(&title(n));
    let mut changes = site.keyring.writer.change(&[block]).await.unwrap();
    let Some(Record::Meter(mut record)) = changes[0].record(&title(n)).unwrap() else { panic!() };
    record.keys[0].state = state;
    changes[0].put(Record::Meter(record));
    site.keyring.writer.commit(changes, vec![entry("Rotation/x")]).await.unwrap();
}

async fn states(site: &Site, n: u64) -> Vec<KeyState> {
    let known = site.lifecycle.get(&MeterId::new(&id(n)).unwrap()).await.unwrap();
    known.record.keys.iter().map(|key| key.state).collect()
}

#[test]
fn what_a_fenced_site_wrote_alone_is_decided_where_writes_are_allowed_and_known_at_both() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        let runs = (
            Running::start(Arc::clone(&a), &network).await,
            Running::start(Arc::clone(&b), &network).await,
        );
        a.add(meter(1)).await;
        in_step(&a, &b).await;
        runs.0.cut().await;
        // Cut off, it writes on: meters that the other one never had, and a key that is known to be compromised.
        for n in [2, 3] {
            a.add(meter(n)).await;
        }
        bring(&a, 1, KeyState::Compromised).await;
        promote(&b).await;
        assert_eq!(b.verdict(&push(1, PLAIN)).await, Verdict::Ok);
        let north_runs = Running::start(Arc::clone(&a), &network).await;
        eventually("all of it is told to the site that writes", async || {
            b.store.count_undecided().await.unwrap() == 3
        })
        .await;
        assert_eq!(states(&b, 1).await[0], KeyState::Compromised, "withdrawn at contact");
        let faults = north_runs.status.all().faults.join("; ");
        assert!(faults.contains("3 records") && faults.contains("divergence list"), "{faults}");
        let page = b.lifecycle.divergence(DivergenceAsked::open(None, 10)).await.unwrap();
        let mut partings: Vec<Parting> =
            page.rows.iter().map(|row| row.differences.parting).collect();
        partings.sort_by_key(|parting| *parting as u8);
        assert_eq!(partings, [Parting::NothingNew, Parting::NewMeter, Parting::NewMeter]);
        assert!(page.rows.iter().all(|row| row.divergent.site == "north"));
        // Nothing is decided where nothing may be written.
        let refused = a.lifecycle.reconcile(&by(), Which::Rule(None), Decision::Accept).await;
        assert!(matches!(refused, Err(LifecycleError::NotPrimary { .. })), "{refused:?}");
        let of_two = |row: &&Aside| row.divergent.record.key == RecordKey::meter(&title(2));
        let one = page.rows.iter().find(of_two).unwrap().divergent.id();
        let done = decide(&b, Which::One(one), Decision::Accept).await;
        assert_eq!((done.decided, done.changed, done.left.len()), (1, 1, 0));
        assert_eq!(b.verdict(&push(2, PLAIN)).await, Verdict::Ok);
        // The other one is discarded: its keys open what was protected with them, and protect nothing.
        let done = decide(&b, Which::Rule(Some(Parting::NewMeter)), Decision::Discard).await;
        assert_eq!((done.decided, done.changed), (1, 1));
        assert!(states(&b, 3).await.iter().all(|state| *state == KeyState::Deactivated));
        assert_eq!(b.verdict(&push(3, PLAIN)).await, Verdict::Ok);
        let done = decide(&b, Which::Rule(None), Decision::Discard).await;
        assert_eq!((done.decided, done.changed), (1, 0));
        // To ask again changes nothing.
        let again = decide(&b, Which::Rule(None), Decision::Accept).await;
        assert_eq!(again, Reconciled::default());
        assert_eq!(decide(&b, Which::One(one), Decision::Discard).await.decided, 0);
        let kept = all_aside(&b).await;
        let decided: Vec<Resolution> =
            kept.iter().map(|row| row.decided.as_ref().unwrap().resolution).collect();
        assert_eq!(decided.iter().filter(|it| **it == Resolution::Merged).count(), 1);
        assert!(kept.iter().all(|row| row.decided.as_ref().unwrap().by == "operator"));
        eventually("the site that wrote it knows what was decided", async || {
            a.store.count_undecided().await.unwrap() == 0
        })
        .await;
        in_step(&a, &b).await;
        assert_eq!(a.verdict(&push(2, PLAIN)).await, Verdict::Ok);
        north_runs.cut().await;
        runs.1.cut().await;
    });
}

#[test]
fn what_is_not_authentic_is_reported_in_vain_and_decided_where_it_lies() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        a.add(meter(1)).await;
        let block = a.keyring.records.block_of(&title(1));
        let stored = a.store.block(block).await.unwrap().unwrap().records.remove(0);
        let row = |record| Divergent { block, record, site: "x".into(), at_ms: 1, decided: None };
        let mut changed = stored.clone();
        changed.body[20] ^= 1;
        let mut moved = row(stored.clone());
        moved.block = BlockNo(block.0 ^ 1);
        let reported = vec![row(stored), row(changed.clone()), moved];
        let by_peer = call("Replication/ReportDivergence");
        let told = a.lifecycle.take_report(&by_peer, reported, false).await;
        let told: Vec<String> = told.unwrap().into_iter().map(Result::unwrap_err).collect();
        assert!(told[0].contains("stands here"), "{told:?}");
        assert!(told[1..].iter().all(|said| said.contains("not what a site")), "{told:?}");
        assert_eq!(a.store.count_undecided().await.unwrap(), 0);
        let refused = b.lifecycle.take_report(&call("x/y"), Vec::new(), false).await;
        assert!(refused.is_err(), "a site that does not write takes none");
        // A damaged one that was set aside can't be accepted anywhere, and its discarding needs no right to write.
        b.commits.put_divergence(vec![row(changed)], vec![entry("x/y")]).await.unwrap();
        let refused = decide(&b, Which::Rule(None), Decision::Accept).await;
        assert_eq!((refused.decided, refused.left[0].1.code), (0, RefusalCode::NotReadable));
        let rule = Which::Rule(Some(Parting::Unreadable));
        assert_eq!(decide(&b, rule, Decision::Discard).await.decided, 1);
        assert_eq!(b.store.count_undecided().await.unwrap(), 0);
    });
}

/// Whether this process has the file open.
fn is_open(file: &std::path::Path) -> bool {
    let file = file.canonicalize().unwrap();
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    open.filter_map(|it| std::fs::read_link(it.path()).ok()).any(|it| it == file)
}

/// Puts the database back as it was, under a site that was stopped.
pub(super) async fn put_back(site: Arc<Site>, before: &[u8]) {
    let database = site.database.clone();
    site.store.close().await;
    drop(site);
    // A write that runs to its end, whoever went away, has a connection of its own, and the last one copies the log.
    eventually("nobody has the database open", async || !is_open(&database)).await;
    std::fs::write(&database, before).unwrap();
    for beside in ["db-wal", "db-shm"] {
        let _ = std::fs::remove_file(database.with_extension(beside));
    }
}

#[test]
fn invariant_4_a_primary_that_was_put_back_finds_it_out_from_its_peer_and_writes_nothing_more() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.add(meter(1)).await;
        let block = a.keyring.records.block_of(&title(1));
        let in_block = (2..).filter(|n| a.keyring.records.block_of(&title(*n)) == block);
        let [second, third, late] = in_block.take(3).collect::<Vec<u64>>()[..] else { panic!() };
        let database = a.database.clone();
        a.store.close().await;
        let before = std::fs::read(&database).unwrap();
        drop(a);
        let first = Running::start(again(north, "north", None).await, &network).await;
        let other = Running::start(Arc::clone(&b), &network).await;
        for n in [second, third] {
            first.site.add(meter(n)).await;
        }
        in_step(&first.site, &other.site).await;
        let site = Arc::clone(&first.site);
        first.cut().await;
        other.cut().await;
        put_back(site, &before).await;
        // Nobody is there to ask: it writes, at a place that the other site has long had.
        let alone = again(north, "north", None).await;
        let rolled_back = Running::start(Arc::clone(&alone), &network).await;
        alone.add(meter(late)).await;
        let other = Running::start(Arc::clone(&b), &network).await;
        eventually("it finds it out at the first contact", async || {
            rolled_back.status.all().faults.iter().any(|fault| fault.contains("was put back"))
        })
        .await;
        let refused = try_add(&alone, 9_000).await.unwrap_err();
        assert!(matches!(refused, LifecycleError::RolledBack { .. }), "{refused}");
        assert!(refused.to_string().contains("--above-epoch 2"), "{refused}");
        assert!(!alone.keyring.roles.standing().writes());
        assert_eq!(alone.verdict(&push(late, PLAIN)).await, Verdict::Ok, "it reads on");
        rolled_back.cut().await;
        drop(alone);
        // The next one finds it out before it writes anything.
        let alone = again(north, "north", None).await;
        let rolled_back = Running::start(Arc::clone(&alone), &network).await;
        let refused = try_add(&alone, 9_000).await.unwrap_err();
        assert!(matches!(refused, LifecycleError::RolledBack { .. }), "{refused}");
        let refused = alone.keyring.roles.demote(Epoch(2), entry("x/y"), 1).await;
        assert!(refused.unwrap_err().to_string().contains("was put back"));
        // The peer has what is missing here: once it is promoted, all comes back, and what was written alone is kept.
        promote(&b).await;
        in_step(&alone, &b).await;
        let aside = all_aside(&alone).await;
        let keys: BTreeSet<_> =
            aside.iter().filter_map(|row| row.record.key.system_title()).collect();
        assert!(keys.contains(&title(late)), "{aside:?}");
        assert_eq!(alone.verdict(&push(third, PLAIN)).await, Verdict::Ok);
        eventually("nothing of it is left in the faults", async || {
            !rolled_back.status.all().faults.iter().any(|fault| fault.contains("was put back"))
        })
        .await;
        rolled_back.cut().await;
        other.cut().await;
    });
}

async fn promote_above(site: &Site, above: u64) -> Epoch {
    let expected = site.store.role().await.unwrap().epoch;
    let wish = Wish { expected, is_lost: true, above: Some(Epoch(above)) };
    site.keyring.roles.promote(wish, entry("Site/Promote"), 5).await.unwrap().standing.epoch
}

#[test]
fn a_site_that_was_promoted_blind_to_the_other_one_takes_in_what_it_missed_and_follows() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        // Neither hears of the other's: 3 there, 4 here, and 5 there, which follows 3.
        promote(&b).await;
        b.add(meter(1)).await;
        assert_eq!(promote_above(&a, 2).await, Epoch(4));
        a.add(meter(2)).await;
        assert_eq!(promote_above(&b, 4).await, Epoch(5));
        let runs = (
            Running::start(Arc::clone(&a), &network).await,
            Running::start(Arc::clone(&b), &network).await,
        );
        in_step(&a, &b).await;
        assert_eq!(a.store.role().await.unwrap(), RoleRow { epoch: Epoch(5), writes: false });
        let epochs: Vec<u64> =
            a.keyring.roles.records().await.unwrap().iter().map(|it| it.record.epoch.0).collect();
        assert_eq!(epochs, [3, 4, 5]);
        let aside = all_aside(&a).await;
        assert_eq!(aside.len(), 1);
        assert_eq!(aside[0].record.key, RecordKey::meter(&title(2)));
        runs.0.cut().await;
        runs.1.cut().await;
    });
}

#[test]
fn invariant_7_an_epoch_that_is_more_than_one_step_ahead_is_taken_in_once_two_people_say_so() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        assert_eq!(promote_above(&b, 20).await, Epoch(21));
        let runs = (
            Running::start(Arc::clone(&a), &network).await,
            Running::start(Arc::clone(&b), &network).await,
        );
        eventually("it is said", async || {
            runs.0.status.all().faults.iter().any(|fault| fault.contains("more than one step"))
        })
        .await;
        assert_eq!(a.store.role().await.unwrap(), RoleRow { epoch: Epoch(2), writes: true });
        // Of another epoch than the peer's they have not spoken.
        let refused = runs.0.fencing.admit(Epoch(19), entry("Site/AdmitEpoch")).await;
        assert!(refused.is_err(), "{refused:?}");
        let now = runs.0.fencing.admit(Epoch(21), entry("Site/AdmitEpoch")).await.unwrap();
        assert!(!now.writes() && now.epoch == Epoch(21), "{now:?}");
        // It is there by now: of that epoch, and of those before, nothing is taken in, and that is said.
        let before = a.store.role_records().await.unwrap();
        for epoch in [21, 20, 3, 0] {
            let refused = runs.0.fencing.admit(Epoch(epoch), entry("Site/AdmitEpoch")).await;
            let said = refused.unwrap_err().to_string();
            assert!(said.contains("this site is in epoch 21"), "{said}");
        }
        assert_eq!(a.store.role_records().await.unwrap(), before);
        in_step(&a, &b).await;
        runs.0.cut().await;
        runs.1.cut().await;
    });
}

/// A site over one database, by two of its servers.
struct Nodes {
    home: &'static str,
    all: [Arc<Site>; 2],
}

impl Nodes {
    async fn of(home: &Home, name: &'static str, first: Arc<Site>) -> Self {
        Self { home: name, all: [first, again(home, name, None).await] }
    }

    fn first(&self) -> &Site {
        &self.all[0]
    }

    async fn look(&self) {
        for node in &self.all {
            node.keyring.roles.look().await.unwrap();
        }
    }
}

/// All blocks of one site, taken over by another.
async fn take_over(from: &Site, to: &Site) -> usize {
    let roles = to.store.role_records().await.unwrap();
    let mut all = Vec::new();
    for block in 0..BLOCKS {
        all.push(whole(from, BlockNo(block)).await);
    }
    let adopter = &to.keyring.adopter;
    let outcomes = adopter.adopt(all, &roles, entry("Replication/Adopt")).await.unwrap();
    let aside = |taken: &Taken| match taken {
        Taken::Adopted { set_aside, .. } => *set_aside,
        Taken::Nothing => 0,
        other => panic!("{other:?}"),
    };
    outcomes.iter().map(|outcome| aside(&outcome.taken)).sum()
}

/// What happened in many promotions.
#[derive(Debug, Default)]
struct Table {
    promotions: usize,
    alive: usize,
    before_it_knew: usize,
    listed: usize,
    decided: u32,
    refused_by_the_one_that_knew: usize,
    refused_by_the_other_one: usize,
    accepted_by_a_fenced_site: usize,
}

/// One promotion. In two of five the old primary goes on, and learns of it late.
async fn one_promotion(old: &Nodes, new: &Nodes, n: u64, table: &mut Table) {
    let alive = n % 5 < 2;
    let (first, second) = (&old.all[0], &old.all[1]);
    try_add(&old.all[(n % 2) as usize], n * 10).await.unwrap();
    take_over(first, new.first()).await;
    let record = promote(new.first()).await;
    new.look().await;
    table.promotions += 1;
    let mut alone = BTreeSet::new();
    if alive {
        table.alive += 1;
        for (at, node) in old.all.iter().enumerate() {
            let late = n * 10 + 1 + at as u64;
            try_add(node, late).await.unwrap();
            alone.insert(title(late));
        }
        table.before_it_knew += alone.len();
    }
    try_add(&new.all[(n % 2) as usize], n * 10 + 5).await.unwrap();
    // First contact, at one server; the other one has not heard of it.
    fence(first, record).await;
    for (node, refused) in [
        (first, &mut table.refused_by_the_one_that_knew),
        (second, &mut table.refused_by_the_other_one),
    ] {
        match try_add(node, n * 10 + 7).await {
            Err(LifecycleError::NotPrimary { .. }) => *refused += 1,
            Err(error) => panic!("{error}"),
            Ok(()) => table.accepted_by_a_fenced_site += 1,
        }
    }
    old.look().await;
    let before = all_aside(first).await.len();
    let set_aside = take_over(new.first(), first).await;
    assert_eq!(contents(first).await, contents(new.first()).await, "byte for byte");
    let listed: Vec<Divergent> = all_aside(first).await;
    assert_eq!(listed.len(), before + set_aside);
    let waits = first.store.divergence(DivergenceAsked::open(None, 1_000)).await.unwrap();
    let keys: BTreeSet<_> = waits.iter().filter_map(|row| row.record.key.system_title()).collect();
    assert_eq!(keys, alone, "site {}, promotion {n}", old.home);
    table.listed += waits.len();
    // Told to the site that writes, decided there, and known here.
    let by_peer = call("Replication/ReportDivergence");
    let told = new.first().lifecycle.take_report(&by_peer, waits.clone(), false);
    assert!(told.await.unwrap().iter().all(|known| *known == Ok(None)));
    let done = decide(new.first(), Which::Rule(None), Decision::Accept).await;
    assert_eq!((done.left.len(), done.decided as usize), (0, alone.len()));
    table.decided += done.decided;
    let known =
        new.first().lifecycle.take_report(&call("x/y"), waits.clone(), false).await.unwrap();
    let decided = waits.into_iter().zip(known);
    let decided = decided.map(|(row, known)| Divergent { decided: known.unwrap(), ..row });
    let decided: Vec<Divergent> = decided.collect();
    if !decided.is_empty() {
        first.keyring.adopter.keep_decided(decided, entry("x/y")).await.unwrap();
    }
    take_over(new.first(), first).await;
    assert_eq!(first.store.count_undecided().await.unwrap(), 0);
}

#[test]
fn invariant_7_of_many_promotions_none_lets_a_fenced_site_write_and_every_divergent_write_is_listed()
 {
    let promotions =
        std::env::var("AMI_PROMOTIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(20u64);
    at_two_homes(async |north_home, south_home| {
        let (a, b) = sites(north_home, south_home).await;
        let north = Nodes::of(north_home, "north", a).await;
        let south = Nodes::of(south_home, "south", b).await;
        let mut table = Table::default();
        for n in 0..promotions {
            let (old, new) = if n % 2 == 0 { (&north, &south) } else { (&south, &north) };
            one_promotion(old, new, n, &mut table).await;
        }
        println!("{table:#?}");
        let alive = table.alive;
        assert_eq!(
            (table.promotions as u64, alive as u64),
            (promotions, promotions.div_ceil(5) * 2)
        );
        assert_eq!(table.accepted_by_a_fenced_site, 0);
        assert_eq!((table.before_it_knew, table.listed), (2 * alive, 2 * alive));
        assert_eq!(table.decided as usize, 2 * alive);
        let both = table.refused_by_the_one_that_knew + table.refused_by_the_other_one;
        assert_eq!(both as u64, 2 * promotions);
        // All that was ever acknowledged opens at both sites, by a server that knows what is stored.
        for (home, name) in [(north_home, "north"), (south_home, "south")] {
            let fresh = again(home, name, None).await;
            for n in 0..promotions {
                let alone = if n % 5 < 2 { &[n * 10 + 1, n * 10 + 2][..] } else { &[] };
                for n in [n * 10, n * 10 + 5].iter().chain(alone) {
                    let opened = fresh.verdict(&push(*n, PLAIN)).await;
                    assert_eq!(opened, Verdict::Ok, "meter {n} at {name}");
                }
            }
        }
    });
}
