//! A site KEK that is replaced: every key opens at all times, at every server, wherever it is interrupted; the former one
//! stays until nothing needs it; at the end nothing is under it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kms_core::{
    BlockNo, BlockSecret, Verdict,
    audit::AuditedCall,
    block::keys::SecretBinding,
    moment::Moment,
    ports::Clock,
    site::keks::{KekId, KekStage, SiteKeks},
};

use super::{
    home::{Home, NoCanaries, at_home, at_two_homes, profiles},
    pair::{BLOCKS, Network, Running, again, in_step, sites},
    site_common::{GAK, GUEK, Options, Site, call, in_hsm, key, meter_with, push, value},
};
use crate::{
    app::SystemClock,
    lifecycle::{ImportRules, NewMeter},
    site_keys::{KekProgress, SiteKekRotation, Sweeping},
    store::{
        SealedSecret, StoreError,
        keks::{KekStep, SealsThen, Twins},
    },
};
use kms_core::KeyKind;

const PLAIN: &[u8] = b"\x0f\x00";
const METERS: u64 = 40;

fn by() -> AuditedCall {
    call("Site/RotateSiteKek")
}

/// The system's clock, so much later.
struct Later(SystemClock, AtomicU64);

impl Clock for Later {
    fn now(&self) -> Moment {
        self.0.now() + std::time::Duration::from_millis(self.1.load(Ordering::SeqCst))
    }
    fn unix_ms(&self) -> u64 {
        self.0.unix_ms() + self.1.load(Ordering::SeqCst)
    }
}

/// A site and the token that its servers share.
struct World<'a> {
    home: &'a Home,
    founded_with: KekId,
    clock: Arc<Later>,
}

impl<'a> World<'a> {
    fn of(home: &'a Home) -> Self {
        let founded_with = home.token.has_site_keks()[0];
        Self { home, founded_with, clock: Arc::new(Later(SystemClock::new(), AtomicU64::new(0))) }
    }

    /// A server that starts now.
    async fn server(&self) -> Site {
        let token = Arc::new(self.home.token.again(self.founded_with));
        let clock: Arc<dyn Clock> = self.clock.clone();
        let options = Options {
            blocks: BLOCKS,
            profiles: profiles(),
            clock: Some(clock),
            ..Options::default()
        };
        let database = self.home.tokens().join("../kms.db");
        let site = Site::on(token, NoCanaries.encode(), &database, options).await;
        site.keyring.keks.learn().await.unwrap();
        site
    }

    /// Who was to make the new KEK is given up by now.
    fn wait_for_the_maker(&self) {
        self.clock.1.fetch_add(SiteKeks::MAKER_PATIENCE_MS, Ordering::SeqCst);
    }
}

fn fleet() -> Vec<NewMeter> {
    let keys = |n| vec![key(KeyKind::Guek, value(n, GUEK)), key(KeyKind::Gak, value(n, GAK))];
    let mut fleet: Vec<NewMeter> = (0..METERS).map(super::site_common::meter).collect();
    let mut sealed = keys(METERS);
    sealed[0] = in_hsm(key(KeyKind::Guek, value(METERS, GUEK)));
    fleet.push(meter_with(METERS, sealed, kms_core::MeterPolicy::default()));
    fleet
}

async fn all_open(site: &Site, meters: u64) {
    for n in 0..meters {
        assert_eq!(site.verdict(&push(n, PLAIN)).await, Verdict::Ok, "meter {n}");
    }
}

/// The KEKs that there are seals under, and how many under each.
async fn seals(site: &Site) -> BTreeMap<KekId, usize> {
    let mut under = BTreeMap::new();
    for block in (0..BLOCKS).map(BlockNo) {
        for seal in site.store.block(block).await.unwrap().unwrap().seals {
            *under.entry(seal.kek_id).or_default() += 1;
        }
    }
    under
}

async fn until(rotation: &SiteKekRotation, stage: KekStage) -> KekProgress {
    for _ in 0..50 {
        let now = rotation.look().await.unwrap();
        if now.stage == Some(stage) {
            return now;
        }
        rotation.step().await.unwrap();
    }
    panic!("{:?}", rotation.look().await);
}

#[test]
fn block_secrets_come_under_a_new_site_kek_and_every_key_opens_at_every_server_meanwhile() {
    at_home(async |home| {
        let world = World::of(home);
        let site = world.server().await;
        site.import(fleet(), ImportRules::default()).await;
        let first = world.founded_with;
        let rotation = site.kek_rotation();
        assert_eq!(rotation.look().await.unwrap().stage, None);
        // One that runs all along, and hears of nothing but what it stumbles over.
        let deaf = world.server().await;
        let begun = rotation.begin(&by()).await.unwrap();
        assert_eq!((begun.generation, begun.stage), (1, Some(KekStage::Asked)));
        for stage in [KekStage::Made, KekStage::Moved, KekStage::Closed, KekStage::Retired] {
            let now = until(&rotation, stage).await;
            let fresh = world.server().await;
            for server in [&site, &deaf, &fresh] {
                for block in (0..BLOCKS).map(BlockNo) {
                    // Its keys go, and come back from the seal that is there now.
                    server.keyring.prover.prove(block, &challenge()).await.unwrap().unwrap();
                }
                all_open(server, METERS + 1).await;
            }
            let under = seals(&site).await;
            match stage {
                KekStage::Made => assert_eq!(under[&first], BLOCKS as usize),
                KekStage::Retired => assert_eq!(under.len(), 1),
                _ => assert_eq!((under.len(), under[&now.in_use]), (2, BLOCKS as usize)),
            }
            assert!(now.waiting.is_empty(), "{now:?}");
        }
        let over = rotation.look().await.unwrap();
        assert!(over.is_over() && over.in_use != first);
        assert_eq!(over.former, [first]);
        assert_eq!(seals(&site).await, BTreeMap::from([(over.in_use, BLOCKS as usize)]));
        // The former one is kept until people say that it is to go, and goes by its name only.
        assert_eq!(home.token.has_site_keks().len(), 2);
        assert!(rotation.destroy(&by(), &over.in_use).await.is_err());
        rotation.destroy(&by(), &first).await.unwrap();
        until(&rotation, KekStage::Destroyed).await;
        assert_eq!(home.token.has_site_keks(), [over.in_use]);
        let fresh = world.server().await;
        for server in [&site, &deaf, &fresh] {
            all_open(server, METERS + 1).await;
        }
        // And once more.
        let rotation = fresh.kek_rotation();
        assert_eq!(rotation.begin(&by()).await.unwrap().generation, 2);
        let over = until(&rotation, KekStage::Retired).await;
        assert_eq!(seals(&fresh).await.keys().copied().collect::<Vec<_>>(), [over.in_use]);
        all_open(&fresh, METERS + 1).await;
    });
}

fn challenge() -> kms_core::block::proof::Challenge<'static> {
    let (prover, verifier) = ("test", "test");
    kms_core::block::proof::Challenge {
        prover,
        verifier,
        nonce: [7; 32],
        epoch: kms_core::Epoch(0),
    }
}

#[test]
fn a_rotation_that_is_killed_after_any_step_goes_on_at_another_server() {
    at_home(async |home| {
        let world = World::of(home);
        let site = world.server().await;
        site.import(fleet(), ImportRules::default()).await;
        site.kek_rotation().begin(&by()).await.unwrap();
        drop(site);
        for run in 0.. {
            let site = world.server().await;
            all_open(&site, METERS + 1).await;
            world.wait_for_the_maker();
            let rotation = site.kek_rotation();
            rotation.step().await.unwrap();
            all_open(&site, METERS + 1).await;
            let mut now = rotation.look().await.unwrap();
            if run > 1 && now.stage == Some(KekStage::Asked) {
                // Who takes over has a moment to make it.
                rotation.step().await.unwrap();
                now = rotation.look().await.unwrap();
            }
            assert!(run < 30, "{now:?}");
            if now.is_over() {
                assert_eq!(seals(&site).await.len(), 1);
                // Those that the first processes were to make were never made, and are known by name.
                assert_eq!(now.former.len(), 4);
                break;
            }
        }
    });
}

#[test]
fn a_rotation_that_is_killed_anywhere_goes_on_and_every_key_opens_in_between() {
    at_home(async |home| {
        let world = World::of(home);
        let site = world.server().await;
        site.import(fleet(), ImportRules::default()).await;
        site.kek_rotation().begin(&by()).await.unwrap();
        drop(site);
        // Each run does a little, ends wherever it is, and leaves a server that has to know all from the database.
        let mut late_ms = 1;
        for run in 0_u64.. {
            let site = world.server().await;
            world.wait_for_the_maker();
            let rotation = site.kek_rotation();
            let pass = tokio::spawn({
                let rotation = Arc::clone(&rotation);
                async move { rotation.pass().await }
            });
            tokio::time::sleep(std::time::Duration::from_millis(late_ms)).await;
            pass.abort();
            let _ = pass.await;
            all_open(&site, METERS + 1).await;
            let now = rotation.look().await.unwrap();
            assert!(run < 300, "{now:?}");
            assert!(home.token.has_site_keks().contains(&world.founded_with));
            if now.is_over() {
                assert_eq!(seals(&site).await.keys().copied().collect::<Vec<_>>(), [now.in_use]);
                break;
            }
            // A process that never gets to make the new one would leave one name after the other.
            late_ms += if run.is_multiple_of(4) { 3 } else { 0 };
        }
        all_open(&world.server().await, METERS + 1).await;
    });
}

#[test]
fn the_former_kek_stays_while_one_secret_has_another_twin_and_the_database_refuses_to_let_its_seals_go()
 {
    at_home(async |home| {
        let world = World::of(home);
        let site = world.server().await;
        site.import(fleet(), ImportRules::default()).await;
        let rotation = site.kek_rotation();
        rotation.begin(&by()).await.unwrap();
        until(&rotation, KekStage::Made).await;
        // Somebody with the token's PIN seals another secret for one block.
        let row = site.keyring.keks.learn().await.unwrap().unwrap();
        let (new, former) = (row.keks.other.id, row.keks.current.id);
        let block = BlockNo(3);
        let binding = SecretBinding { domain: &site.domain.domain, block, secret_version: 1 };
        let wrong = BlockSecret::fill_with(|bytes| {
            bytes.fill(9);
            Ok::<_, StoreError>(())
        });
        let sealed = site.hsm.seal_under(new, binding.seal_aad(&new), wrong.unwrap()).await;
        let twin = SealedSecret { secret_version: 1, kek_id: new, sealed: sealed.unwrap().1 };
        assert!(site.store.add_twin(block, &former, &twin).await.unwrap());
        for _ in 0..5 {
            assert!(!rotation.step().await.unwrap());
        }
        let waits = rotation.look().await.unwrap();
        assert_eq!(waits.stage, Some(KekStage::Made));
        assert_eq!(waits.looked.proved, u64::from(BLOCKS) - 1);
        let [(of, why)] = &waits.waiting[..] else { panic!("{waits:?}") };
        assert!(*of == block && why.contains("another secret"), "{why}");
        all_open(&site, METERS + 1).await;
        assert!(rotation.destroy(&by(), &former).await.is_err());
        assert!(home.token.has_site_keks().contains(&former));
    });
}

#[test]
fn no_step_is_taken_by_which_a_secret_would_be_left_without_a_seal() {
    at_home(async |home| {
        let world = World::of(home);
        let site = world.server().await;
        let rotation = site.kek_rotation();
        rotation.begin(&by()).await.unwrap();
        until(&rotation, KekStage::Made).await;
        let row = site.keyring.keks.learn().await.unwrap().unwrap();
        let twins = Twins { new: row.keks.other.id, former: row.keks.current.id };
        // No twin is there yet: whatever a server believes, the database does not let it.
        for seals_then in
            [SealsThen::HaveTwins(twins), SealsThen::Closed(twins), SealsThen::Gone(twins)]
        {
            let step =
                KekStep { expected: Some(row.signature), now: row.clone(), seals: seals_then };
            let entry = super::pair::entry("SiteKeys/RetireKek");
            let refused = site.commits.put_site_keks(step, vec![entry]).await;
            assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
        }
        assert_eq!(seals(&site).await, BTreeMap::from([(twins.former, BLOCKS as usize)]));
        // Nor is a step taken twice, or by two.
        until(&rotation, KekStage::Moved).await;
        let step = KekStep { expected: Some(row.signature), now: row, seals: SealsThen::Stay };
        let entry = super::pair::entry("SiteKeys/MoveToKek");
        let taken = site.commits.put_site_keks(step, vec![entry]).await;
        assert!(matches!(taken, Err(StoreError::Taken { .. })), "{taken:?}");
    });
}

#[test]
fn a_server_that_comes_late_with_a_seal_under_the_former_kek_is_refused_and_learns() {
    at_home(async |home| {
        let world = World::of(home);
        let site = world.server().await;
        site.import(fleet(), ImportRules::default()).await;
        let late = world.server().await;
        let rotation = site.kek_rotation();
        rotation.begin(&by()).await.unwrap();
        until(&rotation, KekStage::Closed).await;
        let former = world.founded_with;
        assert_eq!(late.hsm.kek_in_use().id, former);
        let secrets = late.rotation(None);
        secrets.begin(&call("Site/RotateBlockSecrets")).await.unwrap();
        // The seals of new block secrets that it makes are under the former site KEK: none is taken.
        secrets.pass().await.unwrap();
        let waits = secrets.progress();
        assert_eq!((waits.staged, waits.waiting.len()), (0, BLOCKS as usize), "{waits:?}");
        assert_eq!(seals(&site).await[&former], BLOCKS as usize);
        until(&rotation, KekStage::Retired).await;
        late.keyring.keks.learn().await.unwrap();
        for _ in 0..20 {
            secrets.pass().await.unwrap();
        }
        assert!(secrets.progress().is_over(), "{:?}", secrets.progress());
        let in_use = rotation.look().await.unwrap().in_use;
        assert_eq!(seals(&site).await.keys().copied().collect::<Vec<_>>(), [in_use]);
        for server in [&site, &late, &world.server().await] {
            all_open(server, METERS + 1).await;
        }
    });
}

#[test]
fn block_secrets_and_the_site_kek_are_rotated_at_once_and_nothing_is_left_of_either_former_one() {
    at_home(async |home| {
        let world = World::of(home);
        let site = world.server().await;
        site.import(fleet(), ImportRules::default()).await;
        let (secrets, keks) = (site.rotation(None), site.kek_rotation());
        secrets.begin(&call("Site/RotateBlockSecrets")).await.unwrap();
        keks.begin(&by()).await.unwrap();
        for _ in 0..60 {
            let _ = keks.step().await.unwrap();
            all_open(&site, METERS + 1).await;
            // A part of the blocks each time.
            let pass = secrets.pass();
            let _ = tokio::time::timeout(std::time::Duration::from_millis(30), pass).await;
            if secrets.progress().is_over() && keks.look().await.unwrap().is_over() {
                break;
            }
        }
        let (secrets, over) = (secrets.progress(), keks.look().await.unwrap());
        assert!(secrets.is_over() && over.is_over(), "{secrets:?} {over:?}");
        let (rotator, clock) = (Arc::clone(&site.keyring.rotator), Arc::clone(&site.clock));
        let sweeping = Sweeping::new(rotator, Arc::clone(&site.store), clock).at_once();
        sweeping.once(&mut BTreeMap::new()).await.unwrap();
        assert_eq!(seals(&site).await, BTreeMap::from([(over.in_use, BLOCKS as usize)]));
        keks.destroy(&by(), &world.founded_with).await.unwrap();
        until(&keks, KekStage::Destroyed).await;
        let fresh = world.server().await;
        all_open(&fresh, METERS + 1).await;
    });
}

#[test]
fn two_servers_that_rotate_at_once_make_one_kek_that_is_used() {
    at_home(async |home| {
        let world = World::of(home);
        let (one, other) = (world.server().await, world.server().await);
        one.import(fleet(), ImportRules::default()).await;
        let (first, second) = (one.kek_rotation(), other.kek_rotation());
        let (one_asks, other_asks) = (by(), by());
        let (a, b) = tokio::join!(first.begin(&one_asks), second.begin(&other_asks));
        assert_eq!((a.unwrap().generation, b.unwrap().generation), (1, 1));
        for _ in 0..30 {
            let (a, b) = tokio::join!(first.step(), second.step());
            let _ = (a.unwrap(), b.unwrap());
            all_open(&one, METERS + 1).await;
            all_open(&other, METERS + 1).await;
        }
        let over = first.look().await.unwrap();
        assert!(over.is_over(), "{over:?}");
        assert_eq!(
            over,
            second.look().await.map(|it| KekProgress { looked: over.looked, ..it }).unwrap()
        );
        assert_eq!(home.token.has_site_keks().len(), 2);
        assert_eq!(seals(&one).await.keys().copied().collect::<Vec<_>>(), [over.in_use]);
    });
}

#[test]
fn each_site_rotates_its_own_and_the_other_one_notices_nothing() {
    at_two_homes(async |north_home, south_home| {
        let (a, b) = sites(north_home, south_home).await;
        let network = Network::new();
        let mut meters = fleet();
        meters.pop();
        a.import(meters, ImportRules::default()).await;
        let north = Running::start(a, &network).await;
        let south = Running::start(b, &network).await;
        in_step(&north.site, &south.site).await;
        let before = seals(&north.site).await;
        // The one that follows: it changes no block, so it need not write.
        let rotation = south.site.kek_rotation();
        rotation.begin(&by()).await.unwrap();
        // The other one's new block secrets come while it is on the way.
        until(&rotation, KekStage::Moved).await;
        north.rotation.begin(&call("Site/RotateBlockSecrets")).await.unwrap();
        for _ in 0..100 {
            north.rotation.pass().await.unwrap();
            let _ = rotation.step().await.unwrap();
            if north.rotation.progress().is_over() {
                break;
            }
        }
        assert!(north.rotation.progress().is_over(), "{:?}", north.rotation.progress());
        let over = until(&rotation, KekStage::Retired).await;
        in_step(&north.site, &south.site).await;
        assert_eq!(seals(&south.site).await.keys().copied().collect::<Vec<_>>(), [over.in_use]);
        assert_eq!(
            seals(&north.site).await.keys().collect::<Vec<_>>(),
            before.keys().collect::<Vec<_>>()
        );
        rotation.destroy(&by(), &south_home.token.has_site_keks()[0]).await.unwrap();
        until(&rotation, KekStage::Destroyed).await;
        all_open(&south.site, METERS).await;
        all_open(&north.site, METERS).await;
        south.cut().await;
        let site = again(south_home, "south", None).await;
        site.keyring.keks.learn().await.unwrap();
        all_open(&site, METERS).await;
        north.cut().await;
    });
}
