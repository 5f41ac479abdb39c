//! Block secrets that are rotated: every key opens at all times, at both sites, wherever it is interrupted; at the end
//! nothing is under a former one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use std::{collections::BTreeMap, sync::Arc};

use kms_core::{
    BlockNo, KeyKind, MeterPolicy, ProfileName, Verdict, audit::AuditedCall, fact::SecretStage,
};

use super::{
    home::{Home, at_home, at_two_homes, profiles},
    pair::{BLOCKS, Network, Running, again, entry, in_step, promote, sites},
    site_common::{
        GAK, GUEK, Options, Site, call, in_hsm, key, meter, meter_with, push, title, value,
    },
    transmitting::{counter, declare, talking},
    two_sites::fence,
};
use crate::{
    keyring::SecretsOfBlock,
    lifecycle::{ImportRules, NewMeter},
    site_keys::{BlockSecretRotation, Progress, Sweeping},
    store::sites::DivergenceAsked,
};

const PLAIN: &[u8] = b"\x0f\x00";
const METERS: u64 = 60;

fn by() -> AuditedCall {
    call("Site/RotateBlockSecrets")
}

/// Meters of every kind of protection, and one with a receive floor.
fn fleet() -> Vec<NewMeter> {
    let floored = |n| {
        let profile = Some(ProfileName::new("strict").unwrap());
        let keys = vec![key(KeyKind::Guek, value(n, GUEK)), key(KeyKind::Gak, value(n, GAK))];
        meter_with(n, keys, MeterPolicy { profile, ..MeterPolicy::default() })
    };
    let sealed = |n| {
        let keys =
            vec![in_hsm(key(KeyKind::Guek, value(n, GUEK))), key(KeyKind::Gak, value(n, GAK))];
        meter_with(n, keys, MeterPolicy::default())
    };
    let mut fleet: Vec<NewMeter> = (0..METERS - 2).map(talking).collect();
    fleet.extend([floored(METERS - 2), sealed(METERS - 1)]);
    fleet
}

/// The same for two sites: the tokens of these tests have no sealed KEK in common.
fn fleet_of_two() -> Vec<NewMeter> {
    let mut fleet = fleet();
    fleet.pop();
    fleet
}

/// Each meter's next message opens here.
async fn all_open(site: &Site) {
    let sealed = site.store.find_title(&title(METERS - 1)).await.unwrap();
    for n in 0..METERS - u64::from(sealed.is_none()) {
        assert_eq!(site.verdict(&push(n, PLAIN)).await, Verdict::Ok, "meter {n}");
    }
}

async fn to_its_end(rotation: &BlockSecretRotation) -> Progress {
    for _ in 0..200 {
        rotation.pass().await.unwrap();
        let progress = rotation.progress();
        if progress.is_over() {
            return progress;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{:?}", rotation.progress());
}

async fn looked(site: &Site, block: BlockNo) -> SecretsOfBlock {
    site.keyring.rotator.look(block).await.unwrap()
}

/// The versions of the secrets that there are seals of.
async fn versions(site: &Site) -> Vec<u32> {
    let mut versions = Vec::new();
    for block in (0..BLOCKS).map(BlockNo) {
        let stored = site.store.block(block).await.unwrap().unwrap();
        assert!(stored.records.iter().all(|it| it.secret_version == stored.head.secret_version));
        versions.extend(stored.seals.iter().map(|seal| seal.secret_version));
    }
    versions.sort_unstable();
    versions.dedup();
    versions
}

async fn sweep(site: &Site) {
    let (rotator, clock) = (Arc::clone(&site.keyring.rotator), Arc::clone(&site.clock));
    let sweeping = Sweeping::new(rotator, Arc::clone(&site.store), clock).at_once();
    sweeping.once(&mut BTreeMap::new()).await.unwrap();
}

async fn alone(home: &Home) -> Site {
    let options = Options { blocks: BLOCKS, profiles: profiles(), ..Options::default() };
    Site::with(home, options).await
}

#[test]
fn all_blocks_come_under_new_secrets_one_after_the_other_and_nothing_is_left_under_the_former_ones()
{
    at_home(async |home| {
        let site = alone(home).await;
        site.import(fleet(), ImportRules::default()).await;
        let sending = site.transmitting(true, None);
        declare(&sending, 1, Some(7)).await.unwrap();
        let before = counter(&sending, 1).await;
        let replayed = push(METERS - 2, PLAIN);
        assert_eq!(site.verdict(&push(METERS - 2, PLAIN)).await, Verdict::Ok);
        site.ciphering.floors().flush(false).await;
        let running = site.rotation(None);
        assert_eq!(running.look().await.unwrap().generation, 0);
        let begun = running.begin(&by()).await.unwrap();
        assert_eq!((begun.generation, begun.blocks, begun.retired), (1, BLOCKS, 0));
        to_its_end(&running).await;
        all_open(&site).await;
        assert_eq!(versions(&site).await, [1, 2]);
        // A mark and a floor that were written under the former secret count under it.
        assert!(counter(&sending, 1).await > before);
        sweep(&site).await;
        assert_eq!(versions(&site).await, [2]);
        assert_eq!(site.store.former_seals().await.unwrap(), []);
        // A server that starts now finds all of it under the new one.
        sending.close().await;
        drop((running, sending));
        let site = alone(home).await;
        all_open(&site).await;
        assert_eq!(site.ciphering.floors().faults(), Vec::<String>::new());
        assert_eq!(site.verdict(&replayed).await, Verdict::Replayed);
        let sending = site.transmitting(true, None);
        assert!(counter(&sending, 1).await > before);
        // And once more.
        let running = site.rotation(None);
        let told = running.begin(&by()).await.unwrap();
        assert_eq!(told.generation, 2);
        to_its_end(&running).await;
        sweep(&site).await;
        assert_eq!(versions(&site).await, [4]);
        all_open(&site).await;
    });
}

#[test]
fn a_rotation_that_is_killed_anywhere_goes_on_and_every_key_opens_in_between() {
    at_home(async |home| {
        let site = alone(home).await;
        site.import(fleet(), ImportRules::default()).await;
        site.rotation(None).begin(&by()).await.unwrap();
        drop(site);
        // Each run does a little, ends wherever it is, and leaves a server that has to know all from the database.
        for run in 0.. {
            let site = Arc::new(alone(home).await);
            let running = site.rotation(None);
            let pass = tokio::spawn({
                let running = Arc::clone(&running);
                async move { running.pass().await }
            });
            tokio::time::sleep(std::time::Duration::from_millis(20 + run * 7)).await;
            pass.abort();
            let _ = pass.await;
            all_open(&site).await;
            let now = running.look().await.unwrap();
            assert!(run < 200, "{now:?}");
            if now.is_over() {
                break;
            }
        }
        let site = alone(home).await;
        sweep(&site).await;
        assert_eq!(versions(&site).await, [2]);
        all_open(&site).await;
    });
}

#[test]
fn both_sites_rotate_and_no_block_comes_under_a_secret_before_the_other_one_has_proved_it() {
    at_two_homes(async |north_home, south_home| {
        let (a, b) = sites(north_home, south_home).await;
        let network = Network::new();
        a.import(fleet_of_two(), ImportRules::default()).await;
        let north = Running::start(a, &network).await;
        // The other site is away: secrets are staged, and wait.
        north.rotation.begin(&by()).await.unwrap();
        for _ in 0..3 {
            let _ = north.rotation.pass().await;
        }
        let waits = north.rotation.progress();
        assert_eq!((waits.staged, waits.rewritten, waits.retired), (BLOCKS, 0, 0), "{waits:?}");
        assert!(waits.waiting.iter().all(|(_, why)| why.contains("the other site")), "{waits:?}");
        all_open(&north.site).await;
        let south = Running::start(b, &network).await;
        in_step(&north.site, &south.site).await;
        all_open(&south.site).await;
        to_its_end(&north.rotation).await;
        in_step(&north.site, &south.site).await;
        for site in [&north.site, &south.site] {
            all_open(site).await;
            assert_eq!(versions(site).await, [1, 2]);
            sweep(site).await;
            assert_eq!(versions(site).await, [2]);
            all_open(site).await;
        }
        // What is written now is under it at both.
        north.site.add(meter(900)).await;
        in_step(&north.site, &south.site).await;
        assert_eq!(south.site.verdict(&push(900, PLAIN)).await, Verdict::Ok);
        south.cut().await;
        let south = Running::start(again(south_home, "south", None).await, &network).await;
        all_open(&south.site).await;
        south.cut().await;
        north.cut().await;
    });
}

#[test]
fn a_failover_in_the_middle_is_gone_on_with_at_the_other_site_and_nothing_that_was_only_rewritten_is_set_aside()
 {
    at_two_homes(async |north_home, south_home| {
        let (a, b) = sites(north_home, south_home).await;
        let network = Network::new();
        a.import(fleet_of_two(), ImportRules::default()).await;
        let north = Running::start(a, &network).await;
        north.rotation.begin(&by()).await.unwrap();
        let _ = north.rotation.pass().await;
        let south = Running::start(b, &network).await;
        in_step(&north.site, &south.site).await;
        south.cut().await;
        // Half of the blocks are rewritten at the first site alone, before anybody else has them.
        for block in (0..BLOCKS / 2).map(BlockNo) {
            let entry = entry("SiteKeys/RewriteBlock");
            north.site.keyring.rotator.rewrite(block, entry).await.unwrap();
        }
        north.site.add(meter(901)).await;
        north.cut().await;
        let b = again(south_home, "south", None).await;
        let promotion = promote(&b).await;
        let south = Running::start(b, &network).await;
        all_open(&south.site).await;
        south.site.add(meter(902)).await;
        let a = again(north_home, "north", None).await;
        all_open(&a).await;
        fence(&a, promotion).await;
        let north = Running::start(a, &network).await;
        in_step(&south.site, &north.site).await;
        let aside = north.site.store.divergence(DivergenceAsked::first(1_000)).await.unwrap();
        let keys: Vec<_> = aside.iter().map(|it| it.record.key.system_title()).collect();
        assert_eq!(keys, [Some(title(901))]);
        // The new primary goes on by itself, with what was staged or with secrets of its own.
        to_its_end(&south.rotation).await;
        in_step(&south.site, &north.site).await;
        for site in [&north.site, &south.site] {
            all_open(site).await;
            for block in (0..BLOCKS).map(BlockNo) {
                let looked = looked(site, block).await;
                assert_eq!(looked.secrets.map(|it| it.stage), Some(SecretStage::Retired));
                assert!(looked.version > 1);
            }
        }
        south.cut().await;
        north.cut().await;
    });
}

#[test]
fn a_site_that_was_away_while_a_block_was_staged_gets_the_secret_with_the_block() {
    at_two_homes(async |north_home, south_home| {
        let (a, b) = sites(north_home, south_home).await;
        let network = Network::new();
        a.import(fleet_of_two(), ImportRules::default()).await;
        // As for a replica: nobody waits for it.
        let running = a.rotation(None);
        running.begin(&by()).await.unwrap();
        to_its_end(&running).await;
        sweep(&a).await;
        let north = Running::start(a, &network).await;
        let south = Running::start(b, &network).await;
        in_step(&north.site, &south.site).await;
        all_open(&south.site).await;
        sweep(&south.site).await;
        assert_eq!(versions(&south.site).await, [2]);
        all_open(&south.site).await;
        south.cut().await;
        north.cut().await;
    });
}
