//! From an import line to an opened APDU, on a real token and a real database.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod hsm_common;
mod site_common;

use kms_core::{KeyKind, MeterId, MeterPolicy, MinimumProtection, SecuritySetup, Verdict};
use kms_server::{
    ciphering::{Item, Named, Want},
    lifecycle::{ImportRules, Imported, LifecycleError},
};
use site_common::*;

const PLAIN: &[u8] = b"\x0F\x00\x00\x00\x01data notification";

fn outcomes(results: &[kms_server::lifecycle::ImportResult]) -> Vec<Result<Imported, &str>> {
    results
        .iter()
        .map(|r| r.outcome.as_ref().copied().map_err(|refusal| refusal.code.word()))
        .collect()
}

on_a_token! {
    fn a_push_of_an_imported_meter_opens(home) {
        run(async {
            let site = Site::new(home).await;
            site.add(meter(1)).await;
            let apdu = push(1, PLAIN);
            for named in [Named::InApdu, Named::Title(title(1)), Named::Id("meter-1")] {
                let (outcome, plaintext) = site.open(&apdu, named).await;
                assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:?}");
                assert_eq!(plaintext, PLAIN);
                assert_eq!(outcome.system_title, Some(title(1)));
                assert_eq!((outcome.encryption_key_version, outcome.authentication_key_version), (1, 1));
            }
        });
    }

    fn invariant_8_a_push_with_any_bit_flipped_does_not_open(home) {
        run(async {
            let site = Site::new(home).await;
            site.add(meter(1)).await;
            let apdu = push(1, PLAIN);
            for bit in 8..apdu.len() * 8 {
                let mut forged = apdu.clone();
                forged[bit / 8] ^= 1 << (bit % 8);
                let (outcome, plaintext) = site.open(&forged, Named::InApdu).await;
                let expected: &[Verdict] = match bit / 8 {
                    1 => &[Verdict::Malformed, Verdict::Unsupported],
                    2..=9 => &[Verdict::UnknownMeter],
                    10 => &[Verdict::Malformed],
                    11 => match bit % 8 {
                        4 => &[Verdict::PolicyRefused],
                        // Compression in general-glo; the broadcast key; another suite.
                        7 => &[Verdict::Unsupported],
                        6 => &[Verdict::NoUsableKey],
                        5 => &[Verdict::MicFailure],
                        0 => &[Verdict::MicFailure],
                        1 => &[Verdict::NoUsableKey],
                        _ => &[Verdict::Unsupported],
                    },
                    _ => &[Verdict::MicFailure],
                };
                assert!(expected.contains(&outcome.verdict), "bit {bit}: {outcome:?}");
                assert!(plaintext.is_empty());
            }
        });
    }

    fn invariant_8_a_shortened_tag_of_any_length_does_not_open(home) {
        run(async {
            let site = Site::new(home).await;
            site.add(meter(1)).await;
            let apdu = push(1, PLAIN);
            for cut in 1..=12usize {
                let mut short = apdu[..apdu.len() - cut].to_vec();
                short[10] -= cut as u8; // LEN
                let (outcome, plaintext) = site.open(&short, Named::InApdu).await;
                assert_eq!(outcome.verdict, Verdict::MicFailure, "{} bytes", 12 - cut);
                assert!(plaintext.is_empty());
            }
        });
    }

    fn a_key_of_protection_hsm_opens_and_refuses_as_one_in_memory(home) {
        run(async {
            let site = Site::new(home).await;
            let keys = vec![
                in_hsm(key(KeyKind::Guek, value(1, GUEK))),
                key(KeyKind::Gak, value(1, GAK)),
            ];
            site.add(meter_with(1, keys, MeterPolicy { allow_encryption_only: true, ..MeterPolicy::default() })).await;
            for (sc, verdict) in [(0x30, Verdict::Ok), (0x10, Verdict::Ok), (0x20, Verdict::OkUnauthenticated)] {
                let apdu = push_with(1, sc, &value(1, GUEK), &value(1, GAK), PLAIN);
                let (outcome, plaintext) = site.open(&apdu, Named::InApdu).await;
                assert_eq!(outcome.verdict, verdict, "SC {sc:02X} {outcome:?}");
                assert_eq!(plaintext, PLAIN);
                if sc != 0x20 {
                    let mut forged = apdu.clone();
                    *forged.last_mut().unwrap() ^= 1;
                    let (outcome, plaintext) = site.open(&forged, Named::InApdu).await;
                    assert_eq!(outcome.verdict, Verdict::MicFailure, "SC {sc:02X}");
                    assert!(plaintext.is_empty());
                }
            }
        });
    }

    fn all_live_versions_are_tried_in_all_pairs(home) {
        run(async {
            let site = Site::new(home).await;
            let (old, new) = (10, 20);
            let keys = |first: u8, second: u8| vec![
                key(KeyKind::Guek, value(1, first)), key(KeyKind::Guek, value(1, first + 1)),
                key(KeyKind::Gak, value(1, second)), key(KeyKind::Gak, value(1, second + 1)),
            ];
            site.add_versions(meter_with(1, keys(old, new), MeterPolicy::default())).await;
            for (guek, gak) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let apdu = push_with(1, 0x30, &value(1, old + guek), &value(1, new + gak), PLAIN);
                let (outcome, _) = site.open(&apdu, Named::InApdu).await;
                assert_eq!(outcome.verdict, Verdict::Ok);
                assert_eq!(outcome.encryption_key_version, u16::from(guek) + 1);
                assert_eq!(outcome.authentication_key_version, u16::from(gak) + 1);
            }
            let stranger = push_with(1, 0x30, &value(1, 99), &value(1, new), PLAIN);
            assert_eq!(site.verdict(&stranger).await, Verdict::MicFailure);
        });
    }

    fn versions_in_the_token_and_in_memory_are_tried_together(home) {
        run(async {
            let site = Site::new(home).await;
            let keys = vec![
                in_hsm(key(KeyKind::Guek, value(1, 10))), in_hsm(key(KeyKind::Guek, value(1, 11))),
                key(KeyKind::Guek, value(1, 12)), key(KeyKind::Gak, value(1, GAK)),
            ];
            site.add_versions(meter_with(1, keys, MeterPolicy::default())).await;
            for (version, salt) in [(1, 10), (2, 11), (3, 12)] {
                let apdu = push_with(1, 0x30, &value(1, salt), &value(1, GAK), PLAIN);
                let (outcome, plaintext) = site.open(&apdu, Named::InApdu).await;
                assert_eq!((outcome.verdict, outcome.encryption_key_version), (Verdict::Ok, version));
                assert_eq!(plaintext, PLAIN);
            }
        });
    }

    fn a_meters_setups_have_keys_of_their_own(home) {
        run(async {
            let site = Site::new(home).await;
            let of = |setup: u8, mut key: kms_server::lifecycle::NewKey| { key.setup = SecuritySetup(setup); key };
            let keys = [0u8, 1].into_iter().flat_map(|setup| [
                of(setup, key(KeyKind::Guek, value(1, 10 + setup))),
                of(setup, key(KeyKind::Gak, value(1, 20 + setup))),
            ]).collect();
            site.add(meter_with(1, keys, MeterPolicy::default())).await;
            for setup in [0u8, 1] {
                let apdu = push_with(1, 0x30, &value(1, 10 + setup), &value(1, 20 + setup), PLAIN);
                let (found, _) = site.open(&apdu, Named::InApdu).await;
                assert_eq!((found.verdict, found.setup), (Verdict::Ok, SecuritySetup(setup)));
                let (other, _) = site.open_with(&apdu, Named::InApdu, Some(SecuritySetup(1 - setup))).await;
                assert_eq!(other.verdict, Verdict::MicFailure);
                let (none, _) = site.open_with(&apdu, Named::InApdu, Some(SecuritySetup(7))).await;
                assert_eq!(none.verdict, Verdict::NoUsableKey);
            }
            // The GUEK of one setup never goes with the GAK of another.
            let crossed = push_with(1, 0x30, &value(1, 10), &value(1, 21), PLAIN);
            assert_eq!(site.verdict(&crossed).await, Verdict::MicFailure);
        });
    }

    fn a_meters_policy_decides_what_is_accepted(home) {
        run(async {
            let site = Site::new(home).await;
            let both = MeterPolicy { minimum_protection: MinimumProtection::AuthenticatedEncrypted, ..MeterPolicy::default() };
            let encryption_only = MeterPolicy { allow_encryption_only: true, ..MeterPolicy::default() };
            let withheld = MeterPolicy { allow_withheld_authentication_key: true, ..MeterPolicy::default() };
            let guek = |n| vec![key(KeyKind::Guek, value(n, GUEK))];
            site.add(meter(1)).await;
            site.add(meter_with(2, meter(2).keys, both)).await;
            site.add(meter_with(3, guek(3), encryption_only)).await;
            site.add(meter_with(4, guek(4), withheld.clone())).await;
            site.add(meter_with(5, guek(5), MeterPolicy::default())).await;
            site.add(meter_with(6, meter(6).keys, withheld)).await;
            for (n, sc, expected) in [
                (1, 0x10, Verdict::Ok), (1, 0x20, Verdict::PolicyRefused), (1, 0x30, Verdict::Ok),
                (2, 0x10, Verdict::PolicyRefused), (2, 0x20, Verdict::PolicyRefused), (2, 0x30, Verdict::Ok),
                (3, 0x20, Verdict::OkUnauthenticated), (3, 0x30, Verdict::NoUsableKey),
                (4, 0x30, Verdict::OkUnauthenticated), (4, 0x20, Verdict::PolicyRefused),
                (5, 0x30, Verdict::NoUsableKey),
                (6, 0x30, Verdict::Ok),
            ] {
                let apdu = push_with(n, sc, &value(n, GUEK), &value(n, GAK), PLAIN);
                let (outcome, plaintext) = site.open(&apdu, Named::InApdu).await;
                assert_eq!(outcome.verdict, expected, "meter {n}, SC {sc:02X}: {outcome:?}");
                assert_eq!(plaintext == PLAIN, expected.opened());
            }
            // Withheld is for a meter without a GAK: one that has it must verify.
            let forged = push_with(6, 0x30, &value(6, GUEK), &value(6, 77), PLAIN);
            assert_eq!(site.verdict(&forged).await, Verdict::MicFailure);
        });
    }

    fn invariant_9_bad_items_leave_their_batch_alone(home) {
        run(async {
            let site = Site::new(home).await;
            let hsm_keys = |n| vec![in_hsm(key(KeyKind::Guek, value(n, GUEK))), key(KeyKind::Gak, value(n, GAK))];
            for n in 1..40 {
                site.add(if n % 5 == 0 { meter_with(n, hsm_keys(n), MeterPolicy::default()) } else { meter(n) }).await;
            }
            let fresh = Site::with(home, Options::default()).await;
            let apdus: Vec<(Vec<u8>, Verdict)> = (1..400u64).map(|i| {
                let n = i % 39 + 1;
                let plain = format!("plaintext {i}").into_bytes();
                match i % 7 {
                    0 => (vec![0xDB, 0x08], Verdict::Malformed),
                    1 => (push(1_000 + n, &plain), Verdict::UnknownMeter),
                    2 => { let mut a = push(n, &plain); *a.last_mut().unwrap() ^= 1; (a, Verdict::MicFailure) }
                    3 => (vec![0xDD; 3], Verdict::Malformed),
                    _ => (push(n, &plain), Verdict::Ok),
                }
            }).collect();
            let items: Vec<Item<'_>> = apdus.iter()
                .map(|(apdu, _)| Item { apdu, named: Named::InApdu, setup: None }).collect();
            // Cold and warm: in any order of opening the columns stand in the order of the items.
            for site in [&fresh, &fresh, &site] {
                let opened = site.ciphering.open_batch(&items, Want::Plaintext).await;
                let mut at = 0;
                for (i, ((_, expected), (outcome, len))) in
                    (1u64..).zip(apdus.iter().zip(opened.outcomes.iter().zip(&opened.lengths)))
                {
                    assert_eq!(outcome.verdict, *expected, "item {i}: {outcome:?}");
                    let plaintext = &opened.plaintexts[at..at + *len as usize];
                    at += *len as usize;
                    if expected.opened() {
                        assert_eq!(plaintext, format!("plaintext {i}").as_bytes());
                    } else {
                        assert!(plaintext.is_empty());
                    }
                }
                assert_eq!(at, opened.plaintexts.len());
                let verified = site.ciphering.open_batch(&items, Want::Verdict).await;
                assert!(verified.plaintexts.is_empty() && verified.lengths.iter().all(|len| *len == 0));
                assert_eq!(verified.outcomes, opened.outcomes);
            }
        });
    }

    fn importing_the_same_lines_again_changes_nothing(home) {
        run(async {
            let site = Site::new(home).await;
            let lines = || (1..50).map(meter).collect::<Vec<_>>();
            let first = site.import(lines(), ImportRules::default()).await;
            assert!(first.iter().all(|r| r.outcome == Ok(Imported::Created)), "{first:?}");
            let before = site.store.heads().await.unwrap();
            let second = site.import(lines(), ImportRules::default()).await;
            assert!(second.iter().all(|r| r.outcome == Ok(Imported::Unchanged)), "{second:?}");
            assert_eq!(site.store.heads().await.unwrap(), before);
        });
    }

    fn an_old_file_never_brings_an_old_key_back(home) {
        run(async {
            let site = Site::new(home).await;
            site.add(meter(1)).await;
            let newer = || meter_with(1, vec![key(KeyKind::Guek, value(1, 50))], MeterPolicy::default());
            let refused = site.import(vec![newer()], ImportRules::default()).await;
            assert_eq!(outcomes(&refused), [Err("KEY_DIFFERS")]);
            let add = ImportRules { add_versions: true, ..ImportRules::default() };
            assert_eq!(outcomes(&site.import(vec![newer()], add).await), [Ok(Imported::Updated)]);
            let again = site.import(vec![meter(1)], add).await;
            assert_eq!(outcomes(&again), [Ok(Imported::Unchanged)]);
            let view = site.lifecycle.get(&MeterId::new("meter-1").unwrap()).await.unwrap();
            let active: Vec<_> = view.record.keys.iter()
                .filter(|k| k.kind == KeyKind::Guek && k.state == kms_core::KeyState::Active)
                .map(|k| k.version).collect();
            assert_eq!(active, [2]);
            // Both open what meters still send.
            for salt in [GUEK, 50] {
                let apdu = push_with(1, 0x30, &value(1, salt), &value(1, GAK), PLAIN);
                assert_eq!(site.verdict(&apdu).await, Verdict::Ok);
            }
        });
    }

    fn lines_are_refused_by_code_and_the_others_go_on(home) {
        run(async {
            let site = Site::new(home).await;
            site.add(meter(1)).await;
            let with_key = |n, k| meter_with(n, vec![k], MeterPolicy::default());
            let mut taken_id = meter(2);
            taken_id.meter_id = MeterId::new("meter-1").unwrap();
            let mut taken_title = meter(3);
            taken_title.system_title = title(1);
            let mut id_twice = meter(5);
            id_twice.meter_id = MeterId::new("meter-4").unwrap();
            let results = site.import(vec![
                taken_id, taken_title, meter(4), id_twice,
                with_key(6, key(KeyKind::Guek, vec![0; 16])),
                with_key(7, key(KeyKind::Guek, (0..16).collect())),
                with_key(8, key(KeyKind::Guek, vec![1, 2, 3])),
                with_key(9, in_hsm(key(KeyKind::Gak, value(9, GAK)))),
                with_key(10, key(KeyKind::HlsSecret, vec![7; 65])),
                meter(11),
            ], ImportRules::default()).await;
            assert_eq!(outcomes(&results), [
                Err("METER_ID_TAKEN"), Err("SYSTEM_TITLE_TAKEN"), Ok(Imported::Created), Err("METER_ID_TAKEN"),
                Err("TEST_KEY"), Err("TEST_KEY"), Err("KEY_LENGTH"), Err("PROTECTION"), Err("KEY_LENGTH"),
                Ok(Imported::Created),
            ]);
            let test_keys = ImportRules { allow_test_keys: true, ..ImportRules::default() };
            let allowed = site.import(vec![with_key(6, key(KeyKind::Guek, vec![0; 16]))], test_keys).await;
            assert_eq!(outcomes(&allowed), [Ok(Imported::Created)]);
        });
    }

    fn clear_keys_are_refused_where_the_configuration_does_not_allow_them(home) {
        run(async {
            let site = Site::with(home, Options { allow_clear: false, ..Options::default() }).await;
            let results = site.import(vec![meter(1)], ImportRules::default()).await;
            assert_eq!(outcomes(&results), [Err("CLEAR_IMPORT_OFF")]);
        });
    }

    fn a_guek_that_another_meter_has_is_reported_and_a_shared_gak_is_not(home) {
        run(async {
            let site = Site::new(home).await;
            let same = |n| meter_with(n, vec![
                key(KeyKind::Guek, value(1, GUEK)), key(KeyKind::Gak, value(1, GAK)),
            ], MeterPolicy::default());
            site.add(meter(1)).await;
            let results = site.import(vec![same(2), same(3)], ImportRules::default()).await;
            assert_eq!(results[0].warnings, ["the GUEK is also that of meter-1"]);
            assert_eq!(results[1].warnings, ["the GUEK is also that of meter-1, meter-2"]);
        });
    }

    fn a_dry_run_says_what_would_be_and_changes_nothing(home) {
        run(async {
            let site = Site::new(home).await;
            site.keyring.refresher.warm_up().await;
            let dry = ImportRules { dry_run: true, ..ImportRules::default() };
            assert_eq!(outcomes(&site.import(vec![meter(1)], dry).await), [Ok(Imported::Created)]);
            let found = site.lifecycle.get(&MeterId::new("meter-1").unwrap()).await;
            assert!(matches!(found, Err(LifecycleError::NotFound(_))));
        });
    }

    fn a_deleted_meter_opens_nothing_and_comes_back_readmitted_only(home) {
        run(async {
            let site = Site::new(home).await;
            site.keyring.refresher.warm_up().await;
            site.add(meter(1)).await;
            site.add(meter(2)).await;
            let apdu = push(1, PLAIN);
            assert_eq!(site.verdict(&apdu).await, Verdict::Ok);
            let id = MeterId::new("meter-1").unwrap();
            site.lifecycle.delete(&call("Meters/DeleteMeter"), &id).await.unwrap();
            assert_eq!(site.verdict(&apdu).await, Verdict::UnknownMeter);
            let (by_id, _) = site.open(&apdu, Named::Id("meter-1")).await;
            assert_eq!(by_id.verdict, Verdict::UnknownMeter);
            assert!(matches!(site.lifecycle.delete(&call("Meters/DeleteMeter"), &id).await, Err(LifecycleError::NotFound(_))));
            assert!(matches!(site.lifecycle.get(&id).await, Err(LifecycleError::NotFound(_))));
            assert_eq!(site.verdict(&push(2, PLAIN)).await, Verdict::Ok);
            let refused = site.import(vec![meter(1)], ImportRules::default()).await;
            assert_eq!(outcomes(&refused), [Err("METER_DELETED")]);
            let said = refused[0].outcome.clone().unwrap_err().reason;
            assert!(!said.contains("meter-1"), "{said}");
            // Under another id than it had, the line says by which one it is readmitted.
            let mut renamed = meter(1);
            renamed.meter_id = MeterId::new("renamed").unwrap();
            let refused = site.import(vec![renamed], ImportRules::default()).await;
            assert_eq!(outcomes(&refused), [Err("METER_DELETED")]);
            let said = refused[0].outcome.clone().unwrap_err().reason;
            assert!(said.contains("was deleted as meter-1,") && said.contains("readmit it by that id"), "{said}");
            assert_eq!(site.verdict(&apdu).await, Verdict::UnknownMeter);
            site.lifecycle.readmit(&call("Meters/ReadmitMeter"), &id, &title(1)).await.unwrap();
            site.add(meter(1)).await;
            assert_eq!(site.verdict(&apdu).await, Verdict::Ok);
        });
    }

    fn secrets_of_free_length_are_kept_and_known_again(home) {
        run(async {
            let site = Site::new(home).await;
            let line = |secret: &[u8]| meter_with(1, vec![key(KeyKind::HlsSecret, secret.to_vec())], MeterPolicy::default());
            site.add(line(b"a secret")).await;
            assert_eq!(outcomes(&site.import(vec![line(b"a secret")], ImportRules::default()).await), [Ok(Imported::Unchanged)]);
            assert_eq!(outcomes(&site.import(vec![line(b"another")], ImportRules::default()).await), [Err("KEY_DIFFERS")]);
        });
    }

    fn many_writers_of_one_block_lose_nothing(home) {
        run(async {
            let site = std::sync::Arc::new(Site::with(home, Options { blocks: 1, ..Options::default() }).await);
            let writers: Vec<_> = (0..8u64).map(|w| {
                let site = std::sync::Arc::clone(&site);
                tokio::spawn(async move {
                    for n in 0..10 {
                        site.add(meter(w * 100 + n)).await;
                    }
                })
            }).collect();
            for writer in writers {
                writer.await.unwrap();
            }
            for n in (0..8u64).flat_map(|w| (0..10).map(move |n| w * 100 + n)) {
                assert_eq!(site.verdict(&push(n, PLAIN)).await, Verdict::Ok, "meter {n}");
            }
            let fresh = Site::with(home, Options { blocks: 1, ..Options::default() }).await;
            fresh.keyring.refresher.warm_up().await;
            assert_eq!(fresh.keyring.overview.status().resident_meters, 80);
        });
    }
}
