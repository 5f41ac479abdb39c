//! A site whose database was put back: who may say what it forgot, and what each server of it goes by.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::sync::Arc;

use kms_core::{
    BlockNo, Epoch,
    audit::{AuditOutcome, Subject},
    counters::{allocator::Witnessed, refusal::Refusal},
    freshness::HeadTable,
    ports::{CounterWitness, WitnessSaid},
    site::{
        peer::EnrolledIn,
        restored::{RestoreMark, RolledBackBy},
        role::SignedRoleRecord,
    },
};

use super::{
    forks::{put_back, try_add},
    home::{Home, at_home, at_two_homes, profiles},
    lying::{Lies, beside_a_liar},
    pair::{
        BLOCKS, Network, Running, again, beside, enrol_in, entry, eventually, in_step, opened,
        promote, sites, whole as every,
    },
    site_common::{Options, Site, call, meter},
    transmitting::{counter, declare, refusal, refusal_or, remembers, settled, talking},
    two_sites::fence,
};
use crate::{
    app::PeersFile,
    backup::roll_back,
    keyring::{NotChanged, Wish},
    lifecycle::LifecycleError,
    replication::{
        Grounds, HeadsSaid, MarksAsked, NotServed, PeersMemory, Remembered, Remembering,
    },
    store::{
        AuditStore as _,
        sites::PeerStep,
        sqlite::{self, SqliteStore},
        whole::WholeStore as _,
    },
    transmitting::NotDeclared,
};

/// The site takes an epoch above all that it knows of, as one that was restored does.
pub(super) async fn above(site: &Site) -> Epoch {
    let expected = site.store.role().await.unwrap().epoch;
    let wish = Wish { expected, is_lost: true, above: Some(expected) };
    let entry = call("Site/Promote").entry(0, Subject::NONE, AuditOutcome::Done);
    site.keyring.roles.promote(wish, entry, 0).await.unwrap().standing.epoch
}

pub(super) const fn met(first: u64, last: u64) -> EnrolledIn {
    EnrolledIn { first: Epoch(first), last: Epoch(last) }
}

async fn mark(site: &Site) -> RestoreMark {
    RestoreMark {
        domain: site.domain.domain,
        site: site.domain.site.clone(),
        id: [3; 16],
        by: RolledBackBy::Backup,
        at_ms: 5,
        epoch: site.store.role().await.unwrap().epoch,
        from: "backup of yesterday".to_owned(),
    }
}

/// Marks the site's database as a restore does.
pub(super) async fn bear_a_mark(site: &Site) {
    bear_a_mark_by(site, RolledBackBy::Backup).await;
}

pub(super) async fn bear_a_mark_by(site: &Site, by: RolledBackBy) {
    let mark = RestoreMark { by, ..mark(site).await };
    let rolled_back = roll_back(&site.hsm, &site.domain, mark).await.unwrap();
    whole(site).await.mark_rolled_back(&rolled_back).await.unwrap();
}

pub(super) async fn whole(site: &Site) -> SqliteStore {
    let config = sqlite::Config { path: site.database.clone(), create: false };
    SqliteStore::open_as_it_is(config).await.unwrap()
}

#[test]
fn invariant_3_a_peer_that_was_enrolled_after_the_restore_is_no_witness_of_what_it_forgot() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        a.add(talking(1)).await;
        let alone = a.transmitting(true, None);
        declare(&alone, 1, Some(0x0300_0005)).await.unwrap();
        let before = counter(&alone, 1).await;
        // The line may have been raised behind the backup, and the second site came when that was forgotten.
        assert_eq!(above(&a).await, Epoch(4));
        enrol_in(&a, &b, met(4, 4)).await;
        let network = Network::new();
        let north = Running::start(a, &network).await;
        let south = Running::start(b, &network).await;
        in_step(&north.site, &south.site).await;
        assert_eq!(refusal(&north.transmitting, 1).await, Some(Refusal::CounterUndeclared));
        let refused = declare(&north.transmitting, 1, None).await;
        assert!(matches!(refused, Err(NotDeclared::Restored)), "{refused:?}");
        declare(&north.transmitting, 1, Some(before)).await.unwrap();
        eventually("what was declared since is sent on", async || {
            refusal_or(&north.transmitting, 1).await.is_none()
        })
        .await;
        let after = counter(&north.transmitting, 1).await;
        assert!(after >> 24 > before >> 24, "{after:08X} after {before:08X}");
        for running in [north, south] {
            running.cut().await;
        }
    });
}

#[test]
fn invariant_3_what_a_peer_told_counts_when_another_one_is_enrolled_in_its_place() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let alone = a.transmitting(true, None);
        // Two lines, in two blocks.
        let mut blocks = Vec::new();
        for n in 1.. {
            a.add(talking(n)).await;
            let declared = declare(&alone, n, Some(0x0300_0005)).await.unwrap();
            blocks.push(declared.states[0].block);
            if blocks[0] != blocks[blocks.len() - 1] {
                break;
            }
        }
        let untold = blocks.len() as u64;
        above(&a).await;
        let network = Network::new();
        let north = Running::start(a, &network).await;
        let south = Running::start(b, &network).await;
        eventually("the peer that was there tells what it knows", async || {
            refusal_or(&north.transmitting, 1).await.is_none()
        })
        .await;
        let before = counter(&north.transmitting, 1).await;
        let (a, b) = (Arc::clone(&north.site), Arc::clone(&south.site));
        in_step(&a, &b).await;
        north.cut().await;
        south.cut().await;
        enrol_in(&a, &b, met(2, 4)).await;
        let sending = Arc::new(a.transmitting(false, Some(remembers(2, 0))));
        assert_eq!(settled(&sending, 1).await, None);
        assert!(counter(&sending, 1).await > before);
        assert_eq!(refusal(&sending, untold).await, Some(Refusal::CounterUndeclared));
    });
}

pub(super) fn remembering_of(site: &Site, grounds: &Grounds) -> Remembering {
    Remembering::new(grounds, site.measured.clone(), Arc::clone(&site.keyring.roles))
}

/// A site that has all that the other one has, and tells what it set aside.
struct Tells(Remembering);

#[async_trait::async_trait]
impl CounterWitness for Tells {
    async fn ask(
        &self,
        marks: Vec<(BlockNo, Witnessed)>,
        lines_of: Option<BlockNo>,
    ) -> Option<WitnessSaid> {
        let asked = MarksAsked { marks, lines_of };
        let Remembered { marks, set_aside, since } = self.0.exchange("north", asked).await.ok()?;
        Some(WitnessSaid { marks, set_aside, remembers_since: since })
    }
}

#[test]
fn invariant_3_what_a_restore_forgot_is_asked_for_in_later_epochs_too() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        a.add(talking(1)).await;
        let declared = declare(&a.transmitting(true, None), 1, Some(0x0300_0005)).await.unwrap();
        let of_line = declared.states[0].block;
        let database = a.database.clone();
        a.store.close().await;
        let before = std::fs::read(&database).unwrap();
        drop(a);
        // Raised by two, used, and known to the other site; then the database is put back.
        let a = again(north, "north", None).await;
        let sending = a.transmitting(true, None);
        declare(&sending, 1, Some(counter(&sending, 1).await)).await.unwrap();
        declare(&sending, 1, Some(counter(&sending, 1).await)).await.unwrap();
        let used = counter(&sending, 1).await;
        move_all(&a, &b, &[]).await;
        drop(sending);
        put_back(a, &before).await;
        let a = again(north, "north", None).await;
        assert_eq!(above(&a).await, Epoch(4));
        // Nothing was sent before the other site is promoted, and this one again.
        let records = a.store.role_records().await.unwrap();
        fence(&b, records[0].clone()).await;
        move_all(&a, &b, &records).await;
        let record = promote(&b).await;
        fence(&a, record.clone()).await;
        move_all(&b, &a, &[record]).await;
        let record = promote(&a).await;
        assert_eq!(record.record.epoch, Epoch(6));
        fence(&b, record.clone()).await;
        let network = Network::new();
        let (grounds, _) = beside(&b, &network, network.north);
        let tells = Arc::new(Tells(remembering_of(&b, &grounds)));
        let (gate, _) = remembers(2, 0);
        let sending = Arc::new(a.transmitting(false, Some((gate, tells))));
        let _ = settled(&sending, 1).await;
        let after = counter(&sending, 1).await;
        assert!(after >> 24 > used >> 24, "{after:08X} after {used:08X} in block {of_line}");
    });
}

/// All blocks as one site has them become the other one's.
pub(super) async fn move_all(from: &Site, to: &Arc<Site>, records: &[SignedRoleRecord]) {
    let mut sent = Vec::new();
    for block in 0..BLOCKS {
        sent.push(every(from, BlockNo(block)).await);
    }
    let adopter = Arc::clone(&to.keyring.adopter);
    adopter.adopt(sent, records, entry("Replication/Adopt")).await.unwrap();
}

#[test]
fn invariant_3_a_server_that_read_its_role_late_asks_the_witness() {
    at_two_homes(async |north, south| {
        let (a, _b) = sites(north, south).await;
        a.add(talking(1)).await;
        let alone = a.transmitting(true, None);
        declare(&alone, 1, Some(0x0300_0005)).await.unwrap();
        above(&a).await;
        // As one that starts while its database is away: it goes by the founding epoch, and hears of this one.
        let options =
            Options { blocks: BLOCKS, name: "north", profiles: profiles(), ..Options::default() };
        let late = Site::with(north, options).await;
        let sending = late.transmitting(false, Some(remembers(4, 5_000)));
        assert_eq!(refusal(&sending, 1).await, Some(Refusal::CountersNotWitnessed));
    });
}

#[test]
fn a_site_that_was_put_back_does_not_say_what_it_knew_of_counters() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        let (grounds, _) = beside(&b, &network, network.north);
        let remembering = remembering_of(&b, &grounds);
        let asked = || MarksAsked { marks: Vec::new(), lines_of: Some(BlockNo(0)) };
        assert!(remembering.exchange("north", asked()).await.is_ok());
        bear_a_mark(&b).await;
        let refused = remembering.exchange("north", asked()).await;
        assert!(matches!(refused, Err(NotServed::PutBack)), "{refused:?}");
        // Its marks it tells: they only rise.
        let marks = MarksAsked { marks: Vec::new(), lines_of: None };
        assert!(remembering.exchange("north", marks).await.is_ok());
        // On the wire, too: nothing was said.
        let b = again(south, "south", None).await;
        let running = Running::start(b, &network).await;
        let (grounds, _) = beside(&a, &network, network.south);
        let memory = PeersMemory::new(&grounds, Arc::clone(&a.keyring.roles));
        let said = memory.ask(Vec::new(), Some(BlockNo(0))).await;
        assert_eq!(said, None);
        running.cut().await;
    });
}

#[test]
fn invariant_5_a_peer_that_was_enrolled_anew_is_not_taken_as_it_was_before() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let kept = tempfile::tempdir().unwrap();
        let memory = || Box::new(PeersFile::of(kept.path()));
        a.keyring.roles.remember_peers_in(memory()).unwrap();
        a.keyring.roles.look().await.unwrap();
        let before = a.store.peers().await.unwrap().remove(0);
        enrol_in(&a, &b, met(2, 4)).await;
        a.keyring.roles.look().await.unwrap();
        let entry = || call("x/y").entry(0, Subject::NONE, AuditOutcome::Done);
        let now = a.store.peers().await.unwrap().remove(0);
        let back = PeerStep { expected: Some(now.signature), now: before };
        a.commits.put_peer(back, vec![entry()]).await.unwrap();
        let refused = a.keyring.roles.look().await.unwrap_err();
        assert!(matches!(refused, NotChanged::OldPeer(_)), "{refused}");
        assert!(!a.keyring.roles.standing().writes());
        // After a restart, too.
        let again = again(north, "north", None).await;
        again.keyring.roles.remember_peers_in(memory()).unwrap();
        assert!(again.keyring.roles.look().await.is_err());
        enrol_in(&a, &b, met(2, 4)).await;
        again.keyring.roles.look().await.unwrap();
    });
}

#[test]
fn invariant_4_a_site_that_its_peer_found_out_writes_nothing_after_a_restart_without_the_peer() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.add(meter(1)).await;
        let database = a.database.clone();
        a.store.close().await;
        let before = std::fs::read(&database).unwrap();
        drop(a);
        let running = Running::start(again(north, "north", None).await, &network).await;
        let other = Running::start(b, &network).await;
        running.site.add(meter(2)).await;
        in_step(&running.site, &other.site).await;
        witnessed(&running.site, &other).await;
        let site = Arc::clone(&running.site);
        running.cut().await;
        put_back(site, &before).await;
        // Another server of the site, which meets nobody.
        let beside = again(north, "north", None).await;
        assert!(beside.keyring.roles.standing().writes());
        let found = again(north, "north", None).await;
        found.keyring.roles.keep_marks_in(Arc::new(whole(&found).await));
        let running = Running::start(Arc::clone(&found), &network).await;
        eventually("what the peer showed is stored", async || {
            found.store.restore_state().await.unwrap().mark().is_some()
        })
        .await;
        let refused = try_add(&found, 3).await.unwrap_err();
        assert!(matches!(refused, LifecycleError::RolledBack { .. }), "{refused}");
        running.cut().await;
        other.cut().await;
        let refused = try_add(&beside, 3).await.unwrap_err();
        assert!(matches!(refused, LifecycleError::NotPrimary { .. }), "{refused}");
        let alone = again(north, "north", None).await;
        assert!(!alone.keyring.roles.standing().writes());
        let mark = alone.keyring.roles.known_mark().unwrap();
        assert_eq!((mark.by, mark.epoch), (RolledBackBy::Copy, Epoch(2)));
        assert!(mark.from.contains("this database has it at"), "{}", mark.from);
        assert_eq!(above(&alone).await, Epoch(4));
        try_add(&alone, 3).await.unwrap();
        // What was found out of an epoch that is over marks nothing.
        let table = found.measured.head_table().await.unwrap().unwrap();
        found.keyring.roles.store_rolled_back(&table).await.unwrap();
        assert_eq!(alone.store.restore_state().await.unwrap().mark(), None);
    });
}

/// The other site has the newest head table of `site`.
async fn witnessed(site: &Site, other: &Running) {
    site.audit.sign_table(true).await;
    let own = site.measured.head_table().await.unwrap().unwrap();
    let own = HeadTable::decode(&own.body).unwrap();
    eventually("it is witnessed", async || other.status.all().witnessed_ms == Some(own.at_ms))
        .await;
}

#[test]
fn a_head_that_the_peer_made_up_marks_nothing_and_is_forgotten_with_the_process() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.add(meter(1)).await;
        let other = Running::start(Arc::clone(&b), &network).await;
        let running = Running::start(Arc::clone(&a), &network).await;
        in_step(&a, &b).await;
        witnessed(&a, &other).await;
        running.cut().await;
        // The peer has every block's keys, and so the MAC of any head.
        let (keys, _) = opened(&a, BlockNo(0)).await;
        let heads = Box::new(move |mut said: HeadsSaid| {
            for head in said.heads.iter_mut().filter(|head| head.block == BlockNo(0)) {
                head.position.sequence.0 += 100;
                head.mac = keys.head_mac(head);
            }
            said
        });
        let found = again(north, "north", None).await;
        found.keyring.roles.keep_marks_in(Arc::new(whole(&found).await));
        let lies = Lies { heads, ..Lies::default() };
        let (grounds, liar) = beside_a_liar(&found, &network, lies);
        liar.following.meet_first().await;
        let refused = try_add(&found, 3).await.unwrap_err();
        assert!(matches!(refused, LifecycleError::RolledBack { .. }), "{refused}");
        let faults = grounds.status.all().faults;
        let told = faults.iter().find(|fault| fault.contains("put back")).unwrap();
        assert!(told.contains("Nothing that this site's token signed says so"), "{told}");
        assert_eq!(found.store.restore_state().await.unwrap().mark(), None);
        assert!(found.store.role().await.unwrap().writes);
        let next = again(north, "north", None).await;
        try_add(&next, 3).await.unwrap();
        other.cut().await;
    });
}

#[test]
fn invariant_3_a_peer_that_was_rebuilt_after_the_backup_is_no_witness_whatever_our_row_says() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        a.add(talking(1)).await;
        let alone = a.transmitting(true, None);
        declare(&alone, 1, Some(0x0300_0005)).await.unwrap();
        let before = counter(&alone, 1).await;
        assert_eq!(above(&a).await, Epoch(4));
        // Our row of the peer is that of the backup: it was there all the time. Its own database began in this epoch.
        enrol_in(&b, &a, met(4, 4)).await;
        let network = Network::new();
        let north = Running::start(a, &network).await;
        let south = Running::start(b, &network).await;
        // Before anything was asked of the line, too.
        let refused = declare(&north.transmitting, 1, None).await;
        assert!(matches!(refused, Err(NotDeclared::Restored)), "{refused:?}");
        in_step(&north.site, &south.site).await;
        eventually("the peer has said since when it remembers", async || {
            refusal_or(&north.transmitting, 1).await == Some(Refusal::CounterUndeclared)
        })
        .await;
        declare(&north.transmitting, 1, Some(before)).await.unwrap();
        eventually("what was declared since is sent on", async || {
            refusal_or(&north.transmitting, 1).await.is_none()
        })
        .await;
        for running in [north, south] {
            running.cut().await;
        }
    });
}

#[test]
fn invariant_3_a_line_that_nobody_remembers_does_not_count_because_its_block_was_asked_for() {
    at_two_homes(async |north, south| {
        let (a, _b) = sites(north, south).await;
        let alone = a.transmitting(true, None);
        // Two lines of one block.
        let mut blocks = Vec::new();
        let first = loop {
            let n = blocks.len() as u64 + 1;
            a.add(talking(n)).await;
            let declared = declare(&alone, n, Some(0x0300_0005)).await.unwrap();
            let block = declared.states[0].block;
            if let Some(first) = blocks.iter().position(|known| *known == block) {
                break first as u64 + 1;
            }
            blocks.push(block);
        };
        let second = blocks.len() as u64 + 1;
        // The database was put back when there was no peer; since then one line was declared; it was put back once more.
        above(&a).await;
        let alone = a.transmitting(true, None);
        declare(&alone, second, Some(0x0500_0005)).await.unwrap();
        above(&a).await;
        let (gate, _) = remembers(6, 0);
        let since_four = Arc::new(RemembersSince(Epoch(4)));
        let sending = Arc::new(a.transmitting(false, Some((gate, since_four))));
        assert_eq!(settled(&sending, second).await, None);
        assert_eq!(refusal(&sending, first).await, Some(Refusal::CounterUndeclared));
        // Neither after a restart.
        let (gate, _) = remembers(6, 0);
        let since_four = Arc::new(RemembersSince(Epoch(4)));
        let sending = Arc::new(a.transmitting(false, Some((gate, since_four))));
        let _ = settled(&sending, second).await;
        assert_eq!(refusal(&sending, first).await, Some(Refusal::CounterUndeclared));
    });
}

/// A site that has lost nothing since this epoch, and set nothing aside.
struct RemembersSince(Epoch);

#[async_trait::async_trait]
impl CounterWitness for RemembersSince {
    async fn ask(
        &self,
        marks: Vec<(BlockNo, Witnessed)>,
        lines_of: Option<BlockNo>,
    ) -> Option<WitnessSaid> {
        let remembers_since = lines_of.map(|_| self.0);
        Some(WitnessSaid { marks, set_aside: Vec::new(), remembers_since })
    }
}

fn site_of(home: &Home) -> impl Future<Output = Site> {
    let options = Options { profiles: profiles(), blocks: 1, ..Options::default() };
    Site::with(home, options)
}

#[test]
fn floors_that_a_restore_took_back_are_told() {
    at_home(async |home| {
        let site = site_of(home).await;
        let floors = site.ciphering.floors();
        floors.begin(None).await;
        assert_eq!(floors.faults(), Vec::<String>::new());
        floors.begin(Some(&mark(&site).await)).await;
        let faults = floors.faults();
        let told = faults.last().unwrap();
        assert!(told.contains("rolled back (backup of yesterday)"), "{faults:?}");
    });
}
