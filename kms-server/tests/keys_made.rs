//! Keys that the keyring has made for meters of many blocks, and a token that answers wrongly for what it made.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod hsm_common;
mod site_common;
#[path = "observability/slow.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod slow;

use std::sync::Arc;

use hsm_common::Home;
use kms_core::{ClearKey, SealedKek, block::keys};
use kms_server::{
    hsm::{Hsm, KeyLen, NotMade, TokenError},
    keyring::{Change, KeyToMake, KeysOfBlock, MadeValue, TakeError},
};
use site_common::{Options, Site, meter, run, title};
use slow::Slow;

/// As many as need two calls of the token.
const METERS: u64 = 130;

async fn site(home: &Home, lies: u64) -> Site {
    let token = Arc::new(Slow::lying(home.token(), lies));
    let database = home.tokens().join("../kms.db");
    let site = Site::on(token, home.canaries().encode(), &database, Options::default()).await;
    let meters = (1..=METERS).map(meter).collect();
    let results = site.import(meters, Default::default()).await;
    assert!(results.iter().all(|result| result.outcome.is_ok()));
    site
}

fn kek(n: u64) -> [u8; 16] {
    let mut kek = [0x4B; 16];
    kek[..8].copy_from_slice(&n.to_be_bytes());
    kek
}

async fn wrapped(hsm: &Hsm, n: u64) -> Vec<u8> {
    hsm.wrap(SealedKek::MeterKek, ClearKey::new(kek(n).to_vec())).await.unwrap()
}

/// Where the key of this meter goes.
fn under(n: u64) -> Option<SealedKek> {
    [None, Some(SealedKek::Use), Some(SealedKek::MeterKek), None][n as usize % 4]
}

async fn changes(site: &Site) -> Vec<Change> {
    let blocks: Vec<_> = (1..=METERS).map(|n| site.keyring.reader.block_of(&title(n))).collect();
    site.keyring.writer.change(&blocks).await.unwrap()
}

async fn make(site: &Site, keks: &[Vec<u8>]) -> Result<Vec<Result<MadeValue, NotMade>>, TakeError> {
    let blocks: Vec<KeysOfBlock> = changes(site).await.into_iter().map(Change::into_keys).collect();
    let wanted: Vec<KeyToMake<'_>> = (1..=METERS)
        .zip(keks)
        .map(|(n, kek)| {
            let block = site.keyring.reader.block_of(&title(n));
            let block = blocks.iter().find(|keys| keys.block() == block).unwrap();
            KeyToMake { block: block.into(), under: under(n), len: KeyLen::Aes128, kek }
        })
        .collect();
    site.keyring.taker.make_keys(&wanted).await
}

/// The key that this meter has now is the one that is stored.
fn is_sound(site: &Site, n: u64, made: &MadeValue) {
    let mut key = vec![0; 16];
    dlms::key_wrap::unwrap(&kek(n), &made.for_meter, &mut key).unwrap();
    let domain = site.keyring.taker.domain().domain;
    let (fingerprint, kcv) = keys::identify(&domain, &ClearKey::new(key)).unwrap();
    assert_eq!((made.stored.fingerprint, made.stored.kcv), (fingerprint, Some(kcv)), "meter {n}");
    assert_eq!(made.stored.wrapped.len(), 24);
    assert_ne!(made.stored.wrapped, made.for_meter);
}

on_a_token! {
    fn keys_are_made_for_meters_of_many_blocks_and_a_bad_kek_fails_its_own(home) {
        run(async {
            let site = site(home, 0).await;
            let mut keks = Vec::new();
            for n in 1..=METERS {
                keks.push(wrapped(&site.hsm, n).await);
            }
            keks[99][3] ^= 1;
            let made = make(&site, &keks).await.unwrap();
            assert_eq!(made.len() as u64, METERS);
            for (n, made) in (1..=METERS).zip(&made) {
                match made {
                    Err(NotMade::KekRefused) => assert_eq!(n, 100),
                    Ok(made) => is_sound(&site, n, made),
                }
            }
        });
    }

    fn what_the_token_says_of_a_new_key_is_held_against_what_opens(home) {
        run(async {
            let site = site(home, 2).await;
            let mut keks = Vec::new();
            for n in 1..=METERS {
                keks.push(wrapped(&site.hsm, n).await);
            }
            // Two wrong answers, then right ones.
            for (n, made) in (1..=METERS).zip(&make(&site, &keks).await.unwrap()) {
                is_sound(&site, n, made.as_ref().unwrap());
            }
            drop(site);
            std::fs::remove_file(home.tokens().join("../kms.db")).unwrap();
            let site = self::site(home, u64::MAX).await;
            let outcome = make(&site, &keks).await;
            assert!(matches!(outcome, Err(TakeError::Token(TokenError::Unreachable { .. }))), "{outcome:?}");
        });
    }
}
