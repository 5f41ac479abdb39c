//! Somebody who can write to the database deletes blocks, or puts back what they were.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod hsm_common;
mod site_common;

use kms_core::{
    BlockNo, Epoch, MeterId, Position, Sequence, Verdict,
    audit::{AuditEvent, AuditOutcome, AuditedCall, ChainTip, NodeId, Subject},
    block::BlockMark,
    freshness::HeadTable,
};
use kms_server::{
    ciphering::Named,
    keyring::{NotChanged, Wish},
    lifecycle::LifecycleError,
    store::ChainLink,
};
use site_common::*;
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

const PLAIN: &[u8] = b"\x0F\x00\x00\x00\x01data notification";

/// Works on the database as somebody would who can write to it and has no key.
async fn tamper(site: &Site, statement: &str) -> u64 {
    // Foreign keys bind only who asks for them.
    let options = SqliteConnectOptions::new().filename(&site.database).foreign_keys(false);
    let mut database = SqliteConnection::connect_with(&options).await.unwrap();
    let statement = sqlx::AssertSqlSafe(statement);
    let done = sqlx::raw_sql(statement).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
    done.rows_affected()
}

/// Two meters of one block, and one of another.
fn neighbours(site: &Site) -> (u64, u64, u64) {
    let block = |n| site.keyring.reader.block_of(&title(n));
    let second = (2..).find(|n| block(*n) == block(1)).unwrap();
    let other = (2..).find(|n| block(*n) != block(1)).unwrap();
    (1, second, other)
}

fn meter_id(n: u64) -> MeterId {
    MeterId::new(&id(n)).unwrap()
}

async fn delete(site: &Site, n: u64) -> bool {
    site.lifecycle.delete(&call("Meters/DeleteMeter"), &meter_id(n)).await.is_ok()
}

/// What is said of the block, by everything that can be asked of it.
async fn refused_by_name(site: &Site, n: u64, says: &str, what: &str) {
    let (outcome, plain) = site.open(&push(n, PLAIN), Named::InApdu).await;
    assert_eq!((outcome.verdict, plain.len()), (Verdict::Unavailable, 0), "{what}: {outcome:?}");
    let reason = outcome.reason.unwrap_or_default();
    assert!(reason.contains(says), "{what}: {reason}");
    assert!(!delete(site, n).await, "{what}: deleted from");
    let call = call("Meters/ImportMeters");
    let results = site.lifecycle.import(&call, vec![meter(n)], Default::default()).await;
    let built = results.is_ok_and(|results| results.results.iter().all(|r| r.outcome.is_ok()));
    assert!(!built, "{what}: built upon");
    let status = site.keyring.overview.status();
    assert!(status.faults.iter().any(|fault| fault.contains(says)), "{what}: {:?}", status.faults);
    assert!(status.blocks_failed > 0, "{what}");
}

on_a_token! {
    fn invariant_5_a_block_that_is_missing_is_a_fault_by_name_in_a_stopped_and_a_running_server(home) {
        run(async {
            let first = Site::new(home).await;
            let (one, two, other) = neighbours(&first);
            for n in [one, two, other] {
                first.add(meter(n)).await;
            }
            let block = first.keyring.reader.block_of(&title(one)).0;
            first.store.close().await;
            let original = std::fs::read(&first.database).unwrap();
            let rows = |table| format!("DELETE FROM {table} WHERE block = {block};");
            let all = rows("records") + &rows("block_seals") + &rows("meters") + &rows("blocks");
            for (what, statement, says) in [
                ("the row", rows("blocks"), "it is missing"),
                ("the seal", rows("block_seals"), "the seal of its secret"),
                ("all rows", all, "it is missing"),
                ("its sequence", format!("UPDATE blocks SET sequence = -5 WHERE block = {block}"), "out of range"),
                ("its number", format!("UPDATE blocks SET block = -1 WHERE block = {block}"), "it is missing"),
                ("its number, too high", format!("UPDATE blocks SET block = 70000 WHERE block = {block}"), "it is missing"),
            ] {
                // Stopped: found when the block is opened.
                let fresh = Site::new(home).await;
                assert!(tamper(&fresh, &statement).await > 0, "{what}");
                refused_by_name(&fresh, one, says, what).await;
                assert_eq!(fresh.verdict(&push(other, PLAIN)).await, Verdict::Ok, "{what}: the others");
                fresh.keyring.refresher.warm_up().await;
                assert_eq!(fresh.keyring.overview.status().blocks_open, 15, "{what}");
                fresh.store.close().await;
                std::fs::write(&fresh.database, &original).unwrap();
                // Running: what is resident stays, nothing is built on what is not there.
                let running = Site::new(home).await;
                assert_eq!(running.verdict(&push(one, PLAIN)).await, Verdict::Ok, "{what}");
                let seen = running.store.block(BlockNo(block)).await.unwrap().unwrap().head.position;
                assert!(tamper(&running, &statement).await > 0, "{what}");
                assert!(!delete(&running, two).await, "{what}: deleted from");
                assert!(running.keyring.records.read(&title(two)).await.is_err(), "{what}: read");
                let results = running.lifecycle
                    .import(&call("Meters/ImportMeters"), vec![meter(two + 1000), meter(two)], Default::default()).await;
                let made_anew = running.store.block(BlockNo(block)).await.ok().flatten()
                    .is_some_and(|now| now.head.position != seen);
                assert!(!made_anew, "{what}: {results:?}");
                let faults = running.keyring.overview.status().faults;
                assert!(faults.iter().any(|fault| fault.contains(says)), "{what}: {faults:?}");
                assert_eq!(running.verdict(&push(other, PLAIN)).await, Verdict::Ok, "{what}: the others");
                running.store.close().await;
                std::fs::write(&running.database, &original).unwrap();
            }
        });
    }

    fn a_block_at_fault_is_named_without_being_asked_for_and_well_again_when_it_is_put_back(home) {
        run(async {
            let site = Site::new(home).await;
            site.add(meter(1)).await;
            let refresher = std::sync::Arc::clone(&site.keyring.refresher);
            let care = tokio::spawn(async move { refresher.mend().await });
            tamper(&site, "CREATE TABLE kept AS SELECT * FROM blocks").await;
            tamper(&site, "DELETE FROM blocks WHERE block IN (3, 4)").await;
            let until = async |says: Option<&str>| {
                for _ in 0..200 {
                    let faults = site.keyring.overview.status().faults;
                    let named = says.is_some_and(|says| faults.iter().any(|fault| fault.contains(says)));
                    if named || (says.is_none() && faults.is_empty()) { return true; }
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
                false
            };
            assert!(until(Some("block 3 is damaged: it is missing")).await);
            assert_eq!(site.keyring.overview.status().blocks_failed, 2);
            tamper(&site, "INSERT INTO blocks SELECT * FROM kept WHERE block IN (3, 4)").await;
            assert!(until(None).await, "{:?}", site.keyring.overview.status().faults);
            care.abort();
        });
    }

    fn a_made_up_event_takes_a_block_out_while_it_is_there_and_is_never_signed_for(home) {
        run(async {
            let site = Site::new(home).await;
            let (one, _, other) = neighbours(&site);
            site.add(meter(one)).await;
            site.audit.close().await;
            // Chains have no key: anybody can write one.
            let node = NodeId([0xF0; 16]);
            let call = AuditedCall::new("somebody", "Meters/DeleteMeter");
            let mut entry = call.entry(1, Subject::NONE, AuditOutcome::Done);
            let position = Position { epoch: Epoch(2), sequence: Sequence(1 << 40) };
            let block = site.keyring.reader.block_of(&title(one));
            entry.heads = vec![BlockMark { block, position, digest: [1; 32] }];
            let behind = ChainTip::empty(node);
            let events = [behind.append(entry).1];
            site.store.commit(&[], ChainLink { behind, events: &events }).await.unwrap();
            let second = Site::new(home).await;
            refused_by_name(&second, one, "went back", "a made-up event").await;
            second.add(meter(other)).await;
            second.audit.sign_table(true).await;
            let table = second.store.head_table().await.unwrap().unwrap();
            let table = HeadTable::decode(&table.body).unwrap();
            assert!(table.tips.iter().all(|tip| tip.node != node), "signed for: {:?}", table.tips);
            let own = second.audit.status();
            assert_eq!(table.tip_of(own.node).sequence, own.sequence, "the own chain is");
            tamper(&second, "DELETE FROM audit_events WHERE node = x'F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0'; \
                DELETE FROM audit_chains WHERE node = x'F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0'").await;
            let third = Site::new(home).await;
            for n in [one, other] {
                assert_eq!(third.verdict(&push(n, PLAIN)).await, Verdict::Ok);
            }
            assert_eq!(third.keyring.overview.status().faults, [""; 0]);
        });
    }

    fn invariant_5_a_running_node_hears_of_what_the_others_wrote_and_uses_nothing_older(home) {
        run(async {
            let site = Site::new(home).await;
            let (one, _, other) = neighbours(&site);
            site.add(meter(one)).await;
            site.add(meter(other)).await;
            let block = site.keyring.reader.block_of(&title(one));
            // Another process over the same rows: it has the block resident as it is now.
            let beside = Site::new(home).await;
            assert_eq!(beside.verdict(&push(one, PLAIN)).await, Verdict::Ok);
            assert_eq!(beside.verdict(&push(other, PLAIN)).await, Verdict::Ok);
            tamper(&site, "CREATE TABLE kept AS SELECT * FROM blocks; \
                CREATE TABLE kept_records AS SELECT * FROM records").await;
            assert!(delete(&site, one).await);
            site.audit.sign_table(true).await;
            tamper(&site, &format!("DELETE FROM records WHERE block = {block}; DELETE FROM blocks WHERE block = {block}; \
                INSERT INTO blocks SELECT * FROM kept WHERE block = {block}; \
                INSERT INTO records SELECT * FROM kept_records WHERE block = {block}")).await;
            // It takes in what was signed although it has written nothing itself, and closes what is older.
            beside.audit.sign_table(false).await;
            let refresher = std::sync::Arc::clone(&beside.keyring.refresher);
            let care = tokio::spawn(async move { refresher.mend().await });
            let mut verdict = Verdict::Ok;
            for _ in 0..200 {
                verdict = beside.verdict(&push(one, PLAIN)).await;
                if verdict != Verdict::Ok { break; }
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            care.abort();
            assert_eq!(verdict, Verdict::Unavailable);
            refused_by_name(&beside, one, "went back", "put back under a running node").await;
            assert_eq!(beside.verdict(&push(other, PLAIN)).await, Verdict::Ok);
        });
    }

    fn while_the_database_is_not_the_newest_nobody_says_that_a_meter_is_unknown(home) {
        run(async {
            let site = Site::new(home).await;
            site.add(meter(1)).await;
            site.store.close().await;
            assert!(tamper(&site, "DELETE FROM meters; DELETE FROM head_table").await > 0);
            let next = Site::new(home).await;
            let (outcome, _) = next.open(&push(1, PLAIN), Named::Id("meter-1")).await;
            assert_eq!(outcome.verdict, Verdict::Unavailable, "{outcome:?}");
            let get = next.lifecycle.get(&meter_id(1)).await;
            assert!(matches!(get, Err(LifecycleError::NotNewest { .. })), "{get:?}");
        });
    }

    fn an_older_end_is_not_taken_for_the_chains_when_the_database_flaps(home) {
        run(async {
            let node = (NodeId([0xA0; 16]), std::sync::Arc::new(Witness::default()));
            let again = || Options { node: Some(node.clone()), ..Options::default() };
            let site = Site::with(home, again()).await;
            site.add(meter(1)).await;
            site.audit.close().await;
            site.store.close().await;
            let older = site.database.with_extension("older");
            std::fs::copy(&site.database, &older).unwrap();
            // What it writes now it notes, and is killed before it signs.
            let site = Site::with(home, again()).await;
            site.add(meter(2)).await;
            site.store.close().await;
            let newest = site.database.with_extension("newest");
            std::fs::rename(&site.database, &newest).unwrap();
            std::fs::copy(&older, &site.database).unwrap();
            let late = Site::with(home, again()).await;
            assert_eq!(late.verdict(&push(1, PLAIN)).await, Verdict::Unavailable);
            let put = async |from: &std::path::Path, and: &str| {
                let tables = ["blocks", "block_seals", "records", "meters", "key_fingerprints",
                    "audit_chains", "audit_events", "head_table"];
                let rows = tables.map(|table| format!(
                    "DELETE FROM main.{table}; INSERT INTO main.{table} SELECT * FROM from_there.{table};"));
                let put = format!("ATTACH '{}' AS from_there; BEGIN; {}; {and}; COMMIT", from.display(), rows.concat());
                tamper(&late, &put).await;
            };
            // As once a second; a database that was refused is looked at again after five.
            let looked = async |seconds: u64| {
                tokio::time::sleep(std::time::Duration::from_millis(seconds * 1_050)).await;
                late.audit.sign_table(false).await;
            };
            // The newest is there, but the signed heads can't be read.
            put(&newest, "ALTER TABLE audit_checkpoints RENAME TO away").await;
            looked(5).await;
            assert_eq!(late.verdict(&push(1, PLAIN)).await, Verdict::Ok, "the refusal is lifted");
            assert!(late.audit.status().fault.is_some());
            // The older end is no place to write behind, although its signed head fits.
            put(&older, "ALTER TABLE away RENAME TO audit_checkpoints").await;
            looked(0).await;
            assert!(late.audit.status().fault.is_some());
            let import = call("Meters/ImportMeters");
            let results = late.lifecycle.import(&import, vec![meter(3)], Default::default()).await;
            assert!(results.is_err(), "{results:?}");
            put(&newest, "SELECT 1").await;
            looked(0).await;
            assert_eq!(late.audit.status().fault, None);
            late.add(meter(3)).await;
        });
    }

    fn what_another_node_signed_is_known_after_all_have_stopped(home) {
        run(async {
            let node = (NodeId([0xA0; 16]), std::sync::Arc::new(Witness::default()));
            let again = || Options { node: Some(node.clone()), ..Options::default() };
            let idle = Site::with(home, again()).await;
            let busy = Site::new(home).await;
            busy.add(meter(1)).await;
            busy.audit.close().await;
            let signed = busy.audit.status();
            idle.audit.sign_table(false).await;
            let known = node.1.1.lock().unwrap().clone();
            let tip = known.tips.iter().find(|tip| tip.node == signed.node);
            assert_eq!(tip.map(|tip| tip.sequence), Some(signed.sequence), "{known:?}");
        });
    }

    fn a_read_that_a_change_overtakes_is_no_rolled_back_database(home) {
        run(async {
            let site = std::sync::Arc::new(Site::with(home, Options { blocks: 1, ..Options::default() }).await);
            site.import((0..200).map(meter).collect(), Default::default()).await;
            let writer = tokio::spawn({
                let site = std::sync::Arc::clone(&site);
                async move {
                    for n in 200..300 {
                        site.add(meter(n)).await;
                    }
                }
            });
            let mut reads = 0;
            while !writer.is_finished() {
                let read = site.lifecycle.get(&meter_id(reads % 200)).await;
                assert!(read.is_ok(), "{reads}: {read:?}");
                reads += 1;
            }
            writer.await.unwrap();
            assert!(reads > 20, "{reads}");
            assert_eq!(site.keyring.overview.status().faults, Vec::<String>::new());
        });
    }

    fn nothing_is_written_behind_an_event_in_the_own_chain_that_never_was(home) {
        run(async {
            let node = (NodeId([0xA0; 16]), std::sync::Arc::new(Witness::default()));
            let again = || Options { node: Some(node.clone()), ..Options::default() };
            let site = Site::with(home, again()).await;
            site.add(meter(1)).await;
            let block = site.keyring.reader.block_of(&title(1));
            let position = site.store.block(block).await.unwrap().unwrap().head.position;
            site.audit.close().await;
            let ends = site.store.audit_chains().await.unwrap();
            let behind = ends.into_iter().find(|end| end.node == node.0).unwrap();
            let mut entry =
                AuditedCall::new("somebody", "X").entry(1, Subject::NONE, AuditOutcome::Done);
            entry.heads = vec![BlockMark { block: BlockNo(0xFFFF_FFFF), position, digest: [1; 32] }];
            let events = [behind.append(entry).1];
            site.store.commit(&[], ChainLink { behind, events: &events }).await.unwrap();
            site.store.close().await;
            let site = Site::with(home, again()).await;
            let fault = site.audit.status().fault.unwrap_or_default();
            assert!(fault.contains("that never was"), "{fault}");
            assert_eq!(site.verdict(&push(1, PLAIN)).await, Verdict::Ok);
            let import = call("Meters/ImportMeters");
            let results = site.lifecycle.import(&import, vec![meter(2)], Default::default()).await;
            assert!(results.is_err(), "{results:?}");
            // A new node goes on.
            Site::new(home).await.add(meter(2)).await;
        });
    }

    fn an_event_of_what_never_was_is_named_and_hides_nothing(home) {
        run(async {
            let site = Site::new(home).await;
            let (one, _, _) = neighbours(&site);
            site.add(meter(one)).await;
            let block = site.keyring.reader.block_of(&title(one));
            let position = site.store.block(block).await.unwrap().unwrap().head.position;
            let no_block = BlockMark { block: BlockNo(0xFFFF_FFFF), position, digest: [1; 32] };
            let other_state = BlockMark { block, position, digest: [1; 32] };
            for (n, mark) in [(0xF0, no_block), (0xF1, other_state)] {
                let mut entry =
                    AuditedCall::new("somebody", "X").entry(1, Subject::NONE, AuditOutcome::Done);
                entry.heads = vec![mark];
                let behind = ChainTip::empty(NodeId([n; 16]));
                let events = [behind.append(entry).1];
                site.store.commit(&[], ChainLink { behind, events: &events }).await.unwrap();
                site.add(meter(100 + u64::from(n))).await;
                site.audit.sign_table(true).await;
                let fault = site.audit.status().fault.unwrap_or_default();
                let node = format!("event 1 of node {}", NodeId([n; 16]));
                assert!(fault.contains(&node) && fault.contains("that never was"), "{fault}");
                // It stops nobody who starts, nor the signing of what the others wrote.
                let beside = Site::new(home).await;
                assert_eq!(beside.verdict(&push(100 + u64::from(n), PLAIN)).await, Verdict::Ok);
                beside.add(meter(300 + u64::from(n))).await;
                beside.audit.sign_table(true).await;
                let stored = site.store.head_table().await.unwrap().unwrap();
                let table = HeadTable::decode(&stored.body).unwrap();
                let signed = table.tip_of(beside.audit.status().node).sequence;
                assert_eq!(signed, beside.audit.status().sequence);
                assert_eq!(table.tip_of(NodeId([n; 16])).sequence, 0);
                let node = hex::encode([n; 16]);
                tamper(&site, &format!("DELETE FROM audit_events WHERE node = x'{node}'; \
                    DELETE FROM audit_chains WHERE node = x'{node}'")).await;
                site.add(meter(200 + u64::from(n))).await;
                site.audit.sign_table(true).await;
                assert_eq!(site.audit.status().fault, None);
            }
        });
    }

    fn each_block_of_a_commit_stands_in_its_events_and_no_start_reads_what_was_signed_for(home) {
        run(async {
            let site = Site::new(home).await;
            site.import((0..300).map(meter).collect(), Default::default()).await;
            let node = site.audit.status().node;
            let events = site.store.audit_events(&node, 0, 1_000).await.unwrap();
            let mut marked: Vec<BlockNo> = events
                .iter()
                .flat_map(|event| AuditEvent::decode(&event.body).unwrap().entry.heads)
                .map(|mark| mark.block)
                .collect();
            marked.sort_unstable();
            assert_eq!(marked, (0..16).map(BlockNo).collect::<Vec<_>>(), "once each");
            site.audit.close().await;
            // The bodies of what was signed for are not looked at.
            let signed = site.audit.status().sequence;
            tamper(&site, "UPDATE audit_events SET body = x'00'").await;
            let next = Site::new(home).await;
            assert_eq!(next.keyring.overview.status().faults, [""; 0]);
            assert_eq!(next.verdict(&push(7, PLAIN)).await, Verdict::Ok);
            let table = next.store.head_table().await.unwrap().unwrap();
            assert_eq!(HeadTable::decode(&table.body).unwrap().tip_of(node).sequence, signed);
        });
    }

    fn invariant_7_a_role_that_goes_back_in_the_database_gives_a_running_server_no_right(home) {
        run(async {
            let entry = |verb: &str| call(verb).entry(1, Subject::NONE, AuditOutcome::Done);
            let site = Site::new(home).await;
            let roles = &site.keyring.roles;
            roles.demote(Epoch(2), entry("Site/Demote"), 5).await.unwrap();
            let wish = Wish { expected: Epoch(2), is_lost: false, above: None };
            roles.promote(wish, entry("Site/Promote"), 6).await.unwrap();
            let row = |epoch, writes| format!("UPDATE role SET epoch = {epoch}, writes = {writes};");
            let records = "DELETE FROM role_records;";
            // The row alone; both, as they were before.
            for statement in [row(6, 1), records.to_owned() + &row(2, 1)] {
                tamper(&site, &statement).await;
                let refused = roles.look().await.unwrap_err();
                assert!(matches!(refused, NotChanged::Row(_)), "{statement}: {refused}");
                assert!(!roles.standing().writes(), "{statement}");
                let by = call("Meters/ImportMeters");
                let changed = site.lifecycle.import(&by, vec![meter(1)], Default::default()).await;
                let refused = changed.unwrap_err();
                assert!(matches!(refused, LifecycleError::NotPrimary { .. }), "{refused}");
            }
        });
    }

    fn invariant_5_of_a_block_whose_head_was_changed_nothing_is_signed_and_it_stops_no_promotion(home) {
        run(async {
            let entry = |verb: &str| call(verb).entry(1, Subject::NONE, AuditOutcome::Done);
            let site = Site::new(home).await;
            site.add(meter(1)).await;
            let good = site.store.heads().await.unwrap();
            let roles = &site.keyring.roles;
            roles.demote(Epoch(2), entry("Site/Demote"), 5).await.unwrap();
            // One that is not authentic, one that can't be read, and one of an epoch beyond.
            for statement in [
                "UPDATE blocks SET sequence = 77 WHERE block = 3;",
                "UPDATE blocks SET epoch = -1 WHERE block = 4;",
                "UPDATE blocks SET epoch = 99 WHERE block = 5;",
            ] {
                tamper(&site, statement).await;
            }
            let wish = |is_lost| Wish { expected: Epoch(2), is_lost, above: None };
            let refused = roles.promote(wish(false), entry("Site/Promote"), 6).await;
            assert!(refused.is_err(), "in order, nothing is left");
            let promoted = roles.promote(wish(true), entry("Site/Promote"), 6).await.unwrap();
            let left: Vec<u32> = promoted.left.iter().map(|(block, _)| block.0).collect();
            assert_eq!(left, [3, 4, 5]);
            let signed = site.store.role_records().await.unwrap().pop().unwrap();
            for head in &good {
                let found = signed.record.found(head.block).unwrap();
                assert_eq!((found.position, found.digest), (head.position, head.digest));
            }
            let block_of = |n: &u64| site.keyring.records.block_of(&title(*n)).0;
            let elsewhere = (1_000..).find(|n| !left.contains(&block_of(n))).unwrap();
            site.add(meter(elsewhere)).await;
        });
    }
}
