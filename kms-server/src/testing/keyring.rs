//! Opening, finding, changing.

#![allow(clippy::unwrap_used, reason = "tests may")]

use kms_core::{
    BlockNo, MeterId, Record, Verdict,
    audit::{AuditOutcome, Subject},
    record::Tombstone,
};

use super::{
    home::{at_home, site_of},
    site_common::{Options, Site, call, id, meter, push, title},
};
use crate::{
    keyring::{Doubt, Found, KeyringError},
    store::StoreError,
};

const PLAIN: &[u8] = b"\x0f\x00";

#[test]
fn a_cold_block_is_opened_once_however_many_ask() {
    at_home(async |home| {
        Site::new(home).await.add(meter(1)).await;
        let site = Site::new(home).await;
        let block = site.keyring.reader.block_of(&title(1));
        let before = site.hsm.status().calls;
        let asked = (0..32).map(|_| site.keyring.reader.open(block));
        for table in futures_util::future::join_all(asked).await {
            assert!(table.unwrap().find(&title(1)).is_some());
        }
        assert_eq!(site.hsm.status().calls, before + 1);
    });
}

#[test]
fn a_token_that_is_away_is_not_asked_again_at_once_and_resident_keys_go_on() {
    at_home(async |home| {
        let site = Site::new(home).await;
        site.add(meter(1)).await;
        site.add(meter(2)).await;
        let cold = Site::new(home).await;
        let (one, two) = (push(1, PLAIN), push(2, PLAIN));
        home.token.go_away("pulled out");
        assert_eq!(site.verdict(&one).await, Verdict::Ok);
        assert_eq!(cold.verdict(&two).await, Verdict::Unavailable);
        let before = cold.hsm.status().calls;
        let error = cold.keyring.reader.open(cold.keyring.reader.block_of(&title(2))).await;
        assert!(error.err().unwrap().to_string().contains("pulled out"));
        assert_eq!(cold.hsm.status().calls, before, "a flood must not reach the token");
        assert_eq!(cold.keyring.overview.status().blocks_failed, 1);
        home.token.come_back();
        tokio::time::sleep(std::time::Duration::from_millis(110)).await;
        assert_eq!(cold.verdict(&two).await, Verdict::Ok);
        assert_eq!(cold.keyring.overview.status().blocks_failed, 0);
    });
}

#[test]
fn without_room_one_block_closes_for_another_and_nothing_is_lost() {
    at_home(async |home| {
        let wide = site_of(home, 64, 1 << 20).await;
        for n in 0..64 {
            wide.add(meter(n)).await;
        }
        let narrow = site_of(home, 64, 4 << 10).await;
        for n in (0..64).chain(0..64) {
            assert_eq!(narrow.verdict(&push(n, PLAIN)).await, Verdict::Ok, "{n}");
        }
        let status = narrow.keyring.overview.status();
        assert!(status.blocks_open < 64 && status.arena_bytes_used <= 4 << 10, "{status:?}");
        assert!(status.faults.iter().any(|fault| fault.contains("arena")), "{:?}", status.faults);
        let unknown = narrow.keyring.records.nowhere("nobody");
        assert_eq!(unknown, Found::Nowhere { but: Some(Doubt::NoRoom) });
    });
}

#[test]
fn a_change_that_is_dropped_leaves_no_trace_and_the_block_to_the_next() {
    at_home(async |home| {
        let site = Site::new(home).await;
        site.add(meter(1)).await;
        let (writer, block) = (&site.keyring.writer, site.keyring.records.block_of(&title(1)));
        let buried = || {
            Record::Tombstone(Tombstone {
                keys: Vec::new(),
                meter_id: None,
                system_title: title(1),
                deleted_ms: 1,
                changed_by: Default::default(),
                readmitted_ms: None,
            })
        };
        let mut dropped = writer.change(&[block]).await.unwrap();
        dropped[0].put(buried());
        drop(dropped);
        assert_eq!(site.verdict(&push(1, PLAIN)).await, Verdict::Ok);
        let mut changes = writer.change(&[block, block]).await.unwrap();
        assert_eq!(changes.len(), 1, "a block is taken once");
        changes[0].put(buried());
        let subject = Subject { system_title: Some(title(1)), ..Subject::NONE };
        let entry = call("Meters/DeleteMeter").entry(1, subject, AuditOutcome::Done);
        writer.commit(changes, vec![entry]).await.unwrap();
        assert_eq!(site.verdict(&push(1, PLAIN)).await, Verdict::UnknownMeter);
    });
}

#[test]
fn the_second_of_two_writers_conflicts_and_builds_on_what_the_first_wrote() {
    at_home(async |home| {
        let (one, other) = (Site::new(home).await, Site::new(home).await);
        one.add(meter(1)).await;
        assert_eq!(other.verdict(&push(1, PLAIN)).await, Verdict::Ok);
        let block = one.keyring.records.block_of(&title(1));
        let mut late = other.keyring.writer.change(&[block]).await.unwrap();
        let read = late[0].record(&title(1)).unwrap().unwrap();
        let id = MeterId::new(&id(1)).unwrap();
        one.lifecycle.delete(&call("Meters/DeleteMeter"), &id).await.unwrap();
        late[0].put(read);
        let entry = call("Meters/ImportMeters").entry(1, Subject::NONE, AuditOutcome::Done);
        let refused = other.keyring.writer.commit(late, vec![entry]).await.unwrap_err();
        let conflict =
            matches!(refused, KeyringError::Store(StoreError::Conflict(it)) if it == block);
        assert!(conflict, "{refused}");
        let again = other.keyring.writer.change(&[block]).await.unwrap();
        let record = again[0].record(&title(1)).unwrap();
        assert!(matches!(record, Some(Record::Tombstone(_))), "{record:?}");
    });
}

#[test]
fn an_id_is_found_in_memory_by_the_index_or_nowhere_with_its_doubt() {
    at_home(async |home| {
        Site::new(home).await.add(meter(1)).await;
        let site = Site::new(home).await;
        let (records, known) = (&site.keyring.records, MeterId::new(&id(1)).unwrap());
        assert_eq!(records.resident_title(&id(1)), None, "its block is closed");
        assert_eq!(records.find(&known).await.unwrap(), Found::At(title(1)));
        let nobody = MeterId::new("nobody").unwrap();
        let doubtful = Found::Nowhere { but: Some(Doubt::NotAllOpen) };
        assert_eq!(records.find(&nobody).await.unwrap(), doubtful);
        site.keyring.refresher.warm_up().await;
        assert_eq!(records.resident_title(&id(1)), Some(title(1)));
        assert_eq!(records.find(&nobody).await.unwrap(), Found::Nowhere { but: None });
        assert_eq!(records.confirm(&nobody, title(1)).await.unwrap(), Found::Nowhere { but: None });
        assert!(records.has_block(BlockNo(15)) && !records.has_block(BlockNo(16)));
    });
}

#[test]
fn the_warm_up_asks_the_token_once_a_block() {
    at_home(async |home| {
        Site::new(home).await.add(meter(1)).await;
        let site = Site::with(home, Options::default()).await;
        let before = site.hsm.status().calls;
        site.keyring.refresher.warm_up().await;
        let status = site.keyring.overview.status();
        assert_eq!((site.hsm.status().calls - before, status.blocks_open), (16, 16));
        assert!(status.warm_up_done && status.faults.is_empty(), "{status:?}");
    });
}
