//! Opening blocks: once however many ask, verified or not at all, within the arena.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod hsm_common;
mod site_common;

use std::{fs, sync::Arc};

use kms_core::{KeyKind, MeterId, RefusalCode, Verdict};
use kms_server::{ciphering::Named, keyring::KeyringError, lifecycle::NewMeter};
use site_common::*;
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

const PLAIN: &[u8] = b"\x0F\x00\x00\x00\x01data notification";

/// Works on the database as somebody would who can write to it and has no key.
async fn tamper(site: &Site, statement: &'static str) -> u64 {
    // Foreign keys bind only who asks for them.
    let options = SqliteConnectOptions::new().filename(&site.database).foreign_keys(false);
    let mut database = SqliteConnection::connect_with(&options).await.unwrap();
    let done = sqlx::query(statement).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
    done.rows_affected()
}

on_a_token! {
    fn a_cold_block_is_opened_once_however_many_ask(home) {
        run(async {
            Site::new(home).await.add(meter(1)).await;
            let site = Arc::new(Site::new(home).await);
            let before = site.hsm.status().calls;
            let tasks: Vec<_> = (0..64).map(|_| {
                let site = Arc::clone(&site);
                tokio::spawn(async move { site.verdict(&push(1, PLAIN)).await })
            }).collect();
            for task in tasks {
                assert_eq!(task.await.unwrap(), Verdict::Ok);
            }
            assert_eq!(site.hsm.status().calls - before, 1, "one HSM call for 64 who asked");
        });
    }

    fn the_warm_up_makes_one_hsm_call_a_block(home) {
        run(async {
            let options = || Options { blocks: 64, ..Options::default() };
            let site = Site::with(home, options()).await;
            site.import((0..500).map(meter).collect(), Default::default()).await;
            let fresh = Site::with(home, options()).await;
            let before = fresh.hsm.status().calls;
            fresh.keyring.refresher.warm_up().await;
            let status = fresh.keyring.overview.status();
            assert!(status.warm_up_done);
            assert_eq!(status.resident_meters, 500);
            assert_eq!(u64::from(status.blocks_total), fresh.hsm.status().calls - before);
            assert!(status.arena_bytes_used / 500 <= 128, "{} bytes", status.arena_bytes_used);
            for n in 0..500 {
                assert_eq!(fresh.verdict(&push(n, PLAIN)).await, Verdict::Ok);
            }
            assert_eq!(u64::from(status.blocks_total), fresh.hsm.status().calls - before);
        });
    }

    fn invariant_5_a_record_changed_in_the_database_takes_its_meter_out_and_no_other(home) {
        run(async {
            let options = || Options { blocks: 1, ..Options::default() };
            let site = Site::with(home, options()).await;
            site.import((0..4).map(meter).collect(), Default::default()).await;
            let len = site.store.block(kms_core::BlockNo(0)).await.unwrap().unwrap().records[1].body.len();
            let good = fs::read(&site.database).unwrap();
            site.store.close().await;
            let original = fs::read(&site.database).unwrap();
            assert!(!good.is_empty());
            for at in (0..len).step_by(7) {
                let fresh = Site::with(home, options()).await;
                let url = format!("sqlite://{}", fresh.database.display());
                let mut database = SqliteConnection::connect(&url).await.unwrap();
                let body: Vec<u8> = sqlx::query_scalar("SELECT body FROM records ORDER BY key LIMIT 1 OFFSET 1")
                    .fetch_one(&mut database).await.unwrap();
                let mut forged = body.clone();
                forged[at] ^= 1;
                sqlx::query("UPDATE records SET body = ? WHERE body = ?").bind(&forged).bind(&body)
                    .execute(&mut database).await.unwrap();
                database.close().await.unwrap();
                let verdicts: Vec<_> = [
                    fresh.verdict(&push(0, PLAIN)).await, fresh.verdict(&push(1, PLAIN)).await,
                    fresh.verdict(&push(2, PLAIN)).await, fresh.verdict(&push(3, PLAIN)).await,
                ].into();
                assert_eq!(verdicts, [Verdict::Ok, Verdict::Unavailable, Verdict::Ok, Verdict::Ok], "byte {at}");
                assert!(fresh.lifecycle.get(&MeterId::new("meter-1").unwrap()).await.is_err());
                fresh.store.close().await;
                fs::write(&fresh.database, &original).unwrap();
            }
        });
    }

    fn invariant_5_swapped_removed_and_rewritten_records_are_found(home) {
        run(async {
            let options = || Options { blocks: 1, ..Options::default() };
            let site = Site::with(home, options()).await;
            site.import((0..4).map(meter).collect(), Default::default()).await;
            site.store.close().await;
            let original = fs::read(&site.database).unwrap();
            for (what, statement) in [
                ("bodies swapped", "UPDATE records SET body = CASE key WHEN (SELECT min(key) FROM records) \
                    THEN (SELECT body FROM records ORDER BY key DESC LIMIT 1) ELSE body END"),
                ("bodies and MACs swapped", "UPDATE records SET (body, mac) = \
                    (SELECT body, mac FROM records r WHERE r.key != records.key ORDER BY r.key LIMIT 1)"),
                ("a record removed", "DELETE FROM records WHERE key = (SELECT min(key) FROM records)"),
                ("the head's count changed", "UPDATE blocks SET count = count + 1"),
                ("the head's sequence changed", "UPDATE blocks SET sequence = sequence + 1"),
                ("the head's digest changed", "UPDATE blocks SET digest = zeroblob(32)"),
                ("a MAC changed", "UPDATE records SET mac = zeroblob(16) WHERE key = (SELECT min(key) FROM records)"),
                ("the seal changed", "UPDATE block_seals SET sealed = zeroblob(60)"),
            ] {
                let fresh = Site::with(home, options()).await;
                assert!(tamper(&fresh, statement).await > 0, "{what}");
                let mut opened = 0;
                for n in 0..4 {
                    let (outcome, plaintext) = fresh.open(&push(n, PLAIN), Named::InApdu).await;
                    match outcome.verdict {
                        Verdict::Ok => opened += 1,
                        Verdict::Unavailable => assert!(plaintext.is_empty() && outcome.reason.is_some()),
                        other => panic!("{what}: {other:?}"),
                    }
                }
                // Only a damaged body under an intact digest leaves the others in service.
                assert!(opened == 0 || (what == "bodies swapped" && opened == 3), "{what}: {opened} opened");
                let id = MeterId::new("meter-0").unwrap();
                assert!(fresh.lifecycle.delete(&call("Meters/DeleteMeter"), &id).await.is_err() || what == "bodies swapped", "{what}: built upon");
                fresh.store.close().await;
                fs::write(&fresh.database, &original).unwrap();
            }
        });
    }

    fn invariant_5_a_block_rolled_back_under_a_running_server_is_refused(home) {
        run(async {
            let options = || Options { blocks: 1, arena_bytes: 1 << 16, ..Options::default() };
            let site = Site::with(home, options()).await;
            site.add(meter(1)).await;
            // What an attacker keeps: the block as it was.
            for copy in ["CREATE TABLE old_blocks AS SELECT * FROM blocks", "CREATE TABLE old_records AS SELECT * FROM records"] {
                tamper(&site, copy).await;
            }
            site.add(meter(2)).await;
            for back in [
                "DELETE FROM records", "INSERT INTO records SELECT * FROM old_records",
                "DELETE FROM blocks", "INSERT INTO blocks SELECT * FROM old_blocks",
            ] {
                assert!(tamper(&site, back).await > 0, "{back}");
            }
            match site.keyring.records.read(&title(1)).await {
                Err(KeyringError::Stale { .. }) => {}
                other => panic!("{other:?}"),
            }
            let id = MeterId::new("meter-1").unwrap();
            assert!(site.lifecycle.delete(&call("Meters/DeleteMeter"), &id).await.is_err(), "nothing is built on a stale block");
        });
    }

    fn a_change_beside_others_keeps_what_the_block_has_besides(home) {
        run(async {
            let options = || Options { blocks: 1, ..Options::default() };
            let site = Site::with(home, options()).await;
            // In turn those that fit an entry and those that have keys beside it.
            let old = |n| push_with(n, 0x30, &value(n, GUEK), &value(n, GAK), PLAIN);
            let new = |n| push_with(n, 0x30, &value(n, 0x77), &value(n, GAK), PLAIN);
            for n in 0..12 {
                site.add(meter(n)).await;
                if n % 3 == 0 {
                    let second = vec![key(KeyKind::Guek, value(n, 0x77))];
                    site.add_versions(NewMeter { keys: second, ..meter(n) }).await;
                }
            }
            let id = MeterId::new("meter-4").unwrap();
            site.lifecycle.delete(&call("Meters/DeleteMeter"), &id).await.unwrap();
            let fresh = Site::with(home, options()).await;
            for of in [&site, &fresh] {
                for n in 0..12 {
                    let wanted = if n == 4 { Verdict::UnknownMeter } else { Verdict::Ok };
                    assert_eq!(of.verdict(&old(n)).await, wanted, "meter {n}");
                    let id = format!("meter-{n}");
                    let found = of.open(&old(n), Named::Id(&id)).await.0.verdict;
                    assert_eq!(found == Verdict::Ok, n != 4, "meter {n} by its id: {found:?}");
                    if n % 3 == 0 {
                        assert_eq!(of.verdict(&new(n)).await, Verdict::Ok, "second key of meter {n}");
                    }
                }
            }
        });
    }

    fn invariant_5_a_record_tampered_with_between_two_changes_is_not_signed_over(home) {
        run(async {
            let options = || Options { blocks: 1, ..Options::default() };
            let site = Site::with(home, options()).await;
            for n in 0..4 {
                site.add(meter(n)).await;
            }
            let first = "key = (SELECT min(key) FROM records)";
            let spoil = format!("UPDATE records SET body = zeroblob(length(body)) WHERE {first}");
            assert_eq!(tamper(&site, spoil.leak()).await, 1);
            site.add(meter(4)).await;
            let fresh = Site::with(home, options()).await;
            let mut out = Vec::new();
            for n in 0..5 {
                match fresh.verdict(&push(n, PLAIN)).await {
                    Verdict::Ok => {}
                    Verdict::Unavailable => out.push(n),
                    other => panic!("meter {n}: {other:?}"),
                }
            }
            assert_eq!(out.len(), 1, "the damaged one alone is out, and nobody signed for it: {out:?}");
            // Whoever asks for it is told, and from then on all of the block is read.
            let id = MeterId::new(&format!("meter-{}", out[0])).unwrap();
            assert!(site.lifecycle.delete(&call("Meters/DeleteMeter"), &id).await.is_err());
            assert!(site.lifecycle.get(&id).await.is_err());
            let import = async |n| {
                site.lifecycle.import(&call("Meters/ImportMeters"), vec![meter(n)], Default::default()).await
            };
            let refused = import(5).await.unwrap().results.remove(0).outcome.unwrap_err();
            assert_eq!(refused.code, RefusalCode::MeterDamaged);

            let forge = format!("UPDATE records SET mac = zeroblob(16) WHERE {first}");
            assert_eq!(tamper(&site, forge.leak()).await, 1);
            assert!(import(6).await.is_err(), "nothing is built on a block that is not its head's");
        });
    }

    fn a_change_beside_another_servers_commit_builds_on_that(home) {
        run(async {
            let options = || Options { blocks: 1, ..Options::default() };
            let (one, other) = (Site::with(home, options()).await, Site::with(home, options()).await);
            for n in 0..3 {
                one.add(meter(3 * n)).await;
                other.add(meter(3 * n + 1)).await;
                one.add(meter(3 * n + 2)).await;
                for known in 0..3 * n + 3 {
                    assert_eq!(one.verdict(&push(known, PLAIN)).await, Verdict::Ok, "meter {known}");
                }
            }
            let fresh = Site::with(home, options()).await;
            for n in 0..9 {
                assert_eq!(fresh.verdict(&push(n, PLAIN)).await, Verdict::Ok, "meter {n}");
            }
        });
    }

    fn a_full_arena_closes_other_blocks_and_goes_on(home) {
        run(async {
            let options = || Options { blocks: 64, arena_bytes: 16 << 10, ..Options::default() };
            let site = Site::with(home, options()).await;
            for n in 0..200 {
                site.add(meter(n)).await;
            }
            let fresh = Site::with(home, options()).await;
            fresh.keyring.refresher.warm_up().await;
            let status = fresh.keyring.overview.status();
            assert!(status.resident_meters < 200, "the arena was meant to be too small");
            assert!(status.faults.iter().any(|fault| fault.contains("keyring.arena_mib")));
            // Nor can anybody say which ids there are in what is closed.
            let (outcome, _) = fresh.open(&push(7, PLAIN), Named::Id("nobody")).await;
            let reason = outcome.reason.unwrap_or_default();
            assert_eq!(outcome.verdict, Verdict::Unavailable, "{reason}");
            assert!(reason.contains("no room for all blocks"), "{reason}");
            for round in 0..2 {
                for n in 0..200 {
                    assert_eq!(fresh.verdict(&push(n, PLAIN)).await, Verdict::Ok, "{round}: meter {n}");
                }
            }
            let status = fresh.keyring.overview.status();
            assert!(status.arena_bytes_used <= status.arena_bytes_total);
        });
    }

    fn what_was_committed_opens_in_the_next_process(home) {
        run(async {
            let site = Site::new(home).await;
            site.import((0..50).map(meter).collect(), Default::default()).await;
            site.store.close().await;
            drop(site);
            let next = Site::new(home).await;
            for n in 0..50 {
                assert_eq!(next.verdict(&push(n, PLAIN)).await, Verdict::Ok);
            }
        });
    }

    fn a_token_that_went_away_leaves_resident_keys_and_comes_back(home) {
        run(async {
            let options = || Options { blocks: 16, ..Options::default() };
            let site = Site::with(home, options()).await;
            site.import((0..64).map(meter).collect(), Default::default()).await;
            let fresh = Site::with(home, options()).await;
            let (resident, other) = (0, (1..64).find(|n| fresh.keyring.reader.block_of(&title(*n)) != fresh.keyring.reader.block_of(&title(0))).unwrap());
            assert_eq!(fresh.verdict(&push(resident, PLAIN)).await, Verdict::Ok);
            let away = home.tokens().with_file_name("away");
            fs::rename(home.tokens(), &away).unwrap();
            let (outcome, _) = fresh.open(&push(other, PLAIN), Named::InApdu).await;
            assert_eq!(outcome.verdict, Verdict::Unavailable);
            assert!(outcome.reason.unwrap().contains("token"), "the reason names the token");
            assert_eq!(fresh.verdict(&push(resident, PLAIN)).await, Verdict::Ok);
            fs::rename(&away, home.tokens()).unwrap();
            let mut verdict = Verdict::Unavailable;
            for _ in 0..50 {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                verdict = fresh.verdict(&push(other, PLAIN)).await;
                if verdict == Verdict::Ok { break; }
            }
            assert_eq!(verdict, Verdict::Ok, "recovered without a restart");
        });
    }
}
