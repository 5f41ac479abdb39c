//! Records and indexes that somebody else wrote: what a record says counts, what is damaged is named, and
//! takes nothing else with it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod hsm_common;
mod postgres_common;
mod site_common;

use std::sync::Arc;

use dlms::{Envelope, FreshCounter, GeneralCipheringAad, Keys, Protection as Seal, SystemTitle};
use hsm_common::Home;
use kms_core::{
    BlockNo, ChangeMark, Fingerprint, KeyId, KeyKind, KeyLife, KeyRecord, KeyState, MeterId,
    MeterPolicy, MeterRecord, Protection, Record, SecuritySetup, Verdict,
    audit::{AuditOutcome, Subject},
    block::extending::TooLong,
};
use kms_server::{
    ciphering::Named,
    keyring::{DamagedRecord, KeyringError},
    lifecycle::{ImportRules, Imported, LifecycleError},
    store::WriteStore,
};
use postgres_common::Cluster;
use site_common::*;
use sqlx::{Connection as _, SqliteConnection};

const PLAIN: &[u8] = b"\x0F\x00\x00\x00\x01data notification";

/// Somebody who can write to the database and has no key.
enum Database {
    Sqlite(std::path::PathBuf),
    Postgres(Cluster),
}

impl Database {
    fn sqlite(home: &Home) -> Self {
        Self::Sqlite(home.tokens().join("../kms.db"))
    }

    fn postgres() -> Self {
        let mut cluster = Cluster::new(&[]);
        cluster.start();
        cluster.database("ami");
        Self::Postgres(cluster)
    }

    async fn site(&self, home: &Home, options: Options) -> Site {
        let (token, canaries) = (Arc::new(home.token()), home.canaries().encode());
        match self {
            Self::Sqlite(path) => Site::on(token, canaries, path, options).await,
            Self::Postgres(cluster) => {
                let store: Arc<dyn WriteStore> = Arc::new(cluster.open("ami").await);
                Site::over(token, canaries, store, options).await
            }
        }
    }

    /// A literal of bytes.
    fn bytes(&self, bytes: &[u8]) -> String {
        match self {
            Self::Sqlite(_) => format!("X'{}'", hex::encode(bytes)),
            Self::Postgres(_) => format!("'\\x{}'", hex::encode(bytes)),
        }
    }

    fn key(&self, title: &SystemTitle) -> String {
        self.bytes(&[&[1], &title.as_bytes()[..]].concat())
    }

    async fn write(&self, statement: String) {
        match self {
            Self::Sqlite(path) => {
                let url = format!("sqlite://{}", path.display());
                let mut database = SqliteConnection::connect(&url).await.unwrap();
                let statement = sqlx::AssertSqlSafe(statement);
                let done = sqlx::query(statement).execute(&mut database).await.unwrap();
                database.close().await.unwrap();
                assert!(done.rows_affected() > 0, "nothing was changed");
            }
            Self::Postgres(cluster) => {
                let statement = format!("SET search_path TO ami_kms; {statement}");
                cluster.tamper("ami", &statement).await;
            }
        }
    }

    /// Changes the body of this meter's record.
    async fn damage(&self, title: &SystemTitle) {
        let body = self.bytes(&[0; 150]);
        let key = self.key(title);
        self.write(format!("UPDATE records SET body = {body} WHERE key = {key}")).await;
    }
}

fn one_block() -> Options {
    Options { blocks: 1, ..Options::default() }
}

fn id(n: u64) -> MeterId {
    MeterId::new(&site_common::id(n)).unwrap()
}

/// A push of meter `n` that carries no title.
fn untitled(n: u64) -> Vec<u8> {
    let protection = Seal {
        envelope: Envelope::GeneralGlo(None),
        security_control: control(0x30),
        originator: title(n),
        keys: Keys { encryption: &value(n, GUEK), authentication: &value(n, GAK) },
        gc_aad: GeneralCipheringAad::Spec,
    };
    let counter = FreshCounter::promise_never_used_under_this_key_and_title(7);
    let mut out = Vec::new();
    dlms::protect(&protection, counter, PLAIN, &mut out).unwrap();
    out
}

async fn code(site: &Site, n: u64) -> Result<Imported, &'static str> {
    let results = site.import(vec![meter(n)], ImportRules::default()).await;
    results[0].outcome.clone().map_err(|refusal| refusal.code.word())
}

/// Meter 2's frames under meter 1's id: the index has the id at meter 2's title.
async fn a_lying_index(home: &Home, database: &Database) {
    let options = || Options { blocks: 8, ..Options::default() };
    let site = database.site(home, options()).await;
    site.import((1..6).map(meter).collect(), ImportRules::default()).await;
    site.store.close().await;
    database.write("DELETE FROM meters WHERE meter_id = 'meter-1'".into()).await;
    database
        .write("UPDATE meters SET meter_id = 'meter-1' WHERE meter_id = 'meter-2'".into())
        .await;
    for damaged in [false, true] {
        if damaged {
            database.damage(&title(1)).await;
        }
        // Nothing is open yet, so the index is asked.
        let site = database.site(home, options()).await;
        let (outcome, plaintext) = site.open(&untitled(2), Named::Id("meter-1")).await;
        assert_eq!(outcome.verdict, Verdict::Unavailable, "damaged: {damaged}, {outcome:?}");
        assert!(plaintext.is_empty());
        let reason = outcome.reason.unwrap();
        assert!(reason.contains("the index of meter ids says that meter-1"), "{reason}");
        let lies = site.keyring.overview.status().damage.lies;
        assert_eq!((lies.len(), &lies[0].meter_id), (1, &id(1)));
        assert!(matches!(site.lifecycle.get(&id(1)).await, Err(LifecycleError::Damaged { .. })));
        let delete = site.lifecycle.delete(&call("Meters/DeleteMeter"), &id(1)).await;
        assert!(matches!(delete, Err(LifecycleError::Damaged { .. })), "{delete:?}");
        // Not a second meter either, under a title of its own.
        let mut second = meter(9);
        second.meter_id = id(1);
        let refused = site.import(vec![second], ImportRules::default()).await.remove(0);
        assert_eq!(refused.outcome.unwrap_err().code.word(), "METER_DAMAGED");
        // Once all is open the records alone say whose is what.
        site.keyring.refresher.warm_up().await;
        let (second, _) = site.open(&untitled(2), Named::Id("meter-2")).await;
        assert_eq!(second.verdict, Verdict::Ok);
        let (wrong, _) = site.open(&untitled(2), Named::Id("meter-1")).await;
        let (right, _) = site.open(&untitled(1), Named::Id("meter-1")).await;
        let due = if damaged {
            (Verdict::Unavailable, Verdict::Unavailable)
        } else {
            (Verdict::MicFailure, Verdict::Ok)
        };
        assert_eq!((wrong.verdict, right.verdict), due, "damaged: {damaged}");
        site.store.close().await;
    }
}

/// The index has lost meter 1.
async fn a_hidden_meter(home: &Home, database: &Database) {
    let options = || Options { blocks: 8, ..Options::default() };
    let site = database.site(home, options()).await;
    site.import((1..6).map(meter).collect(), ImportRules::default()).await;
    database.write("DELETE FROM meters WHERE meter_id = 'meter-1'".into()).await;
    // Resident: memory knows it from its record.
    assert_eq!(site.open(&untitled(1), Named::Id("meter-1")).await.0.verdict, Verdict::Ok);
    assert_eq!(site.lifecycle.get(&id(1)).await.unwrap().record.system_title, title(1));
    let create = call("Meters/CreateMeter");
    let made = site.lifecycle.create(&create, meter(1), ImportRules::default());
    assert!(matches!(made.await, Err(LifecycleError::AlreadyExists(_))));
    assert_eq!(code(&site, 1).await, Ok(Imported::Unchanged));
    site.store.close().await;
    // Cold, and nothing is damaged: that an index has no row says nothing while blocks are closed.
    let site = database.site(home, options()).await;
    for n in [1, 9] {
        let name = format!("meter-{n}");
        let (outcome, _) = site.open(&untitled(n), Named::Id(&name)).await;
        assert_eq!(outcome.verdict, Verdict::Unavailable, "{outcome:?}");
        let get = site.lifecycle.get(&id(n)).await;
        assert!(matches!(get, Err(LifecycleError::NotAllOpen { .. })), "{get:?}");
    }
    site.keyring.refresher.warm_up().await;
    assert_eq!(site.open(&untitled(1), Named::Id("meter-1")).await.0.verdict, Verdict::Ok);
    assert_eq!(
        site.open(&untitled(9), Named::Id("meter-9")).await.0.verdict,
        Verdict::UnknownMeter
    );
    let get = site.lifecycle.get(&id(9)).await;
    assert!(matches!(get, Err(LifecycleError::NotFound(_))), "{get:?}");
    site.store.close().await;
    // With damage about, nobody can say that there is no such meter.
    database.damage(&title(1)).await;
    let site = database.site(home, options()).await;
    site.keyring.refresher.warm_up().await;
    let (outcome, _) = site.open(&untitled(1), Named::Id("meter-1")).await;
    assert_eq!(outcome.verdict, Verdict::Unavailable, "{outcome:?}");
    site.store.close().await;
}

/// The index has meter 1 under another id, then its id under another title: a change of the meter is refused
/// by name, and its neighbours' are not.
async fn a_lie_in_the_way_of_a_change(home: &Home, database: &Database) {
    let options = || Options { blocks: 8, ..Options::default() };
    let site = database.site(home, options()).await;
    site.import((1..4).map(meter).collect(), ImportRules::default()).await;
    let renamed = "UPDATE meters SET meter_id = 'x' WHERE meter_id = 'meter-1'".to_owned();
    let moved = format!(
        "UPDATE meters SET meter_id = 'meter-1', system_title = {} WHERE meter_id = 'x'",
        database.bytes(title(9).as_bytes())
    );
    let rules = ImportRules { add_versions: true, ..ImportRules::default() };
    for (salt, lie) in [(1, renamed), (2, moved)] {
        database.write(lie).await;
        let new_key = |n| {
            let keys = vec![key(KeyKind::Guek, value(n, 100 + salt))];
            meter_with(n, keys, MeterPolicy::default())
        };
        let results = site.import(vec![new_key(1), new_key(2)], rules).await;
        let codes: Vec<_> = results
            .into_iter()
            .map(|result| result.outcome.map_err(|error| error.code.word()))
            .collect();
        assert_eq!(codes, [Err("METER_DAMAGED"), Ok(Imported::Updated)]);
        assert_eq!(site.keyring.overview.status().damage.lies.len(), usize::from(salt));
        let policy = MeterPolicy { allow_encryption_only: true, ..MeterPolicy::default() };
        let set = site.lifecycle.set_policy(&call("Meters/SetPolicy"), &id(1), &policy).await;
        assert!(matches!(set, Err(LifecycleError::Damaged { .. })), "{set:?}");
        assert_eq!(site.open(&untitled(1), Named::Id("meter-1")).await.0.verdict, Verdict::Ok);
    }
    // A row that is only gone hinders nobody who finds the meter in memory.
    database.write("DELETE FROM meters WHERE meter_id = 'meter-1'".into()).await;
    let policy = MeterPolicy { allow_encryption_only: true, ..MeterPolicy::default() };
    let set = site.lifecycle.set_policy(&call("Meters/SetPolicy"), &id(1), &policy).await;
    assert_eq!(set.unwrap().0.record.policy, policy);
    site.store.close().await;
}

/// A key record of which nothing opens.
fn useless(n: u8) -> KeyRecord {
    KeyRecord {
        id: KeyId([n; 16]),
        setup: SecuritySetup(0),
        kind: KeyKind::Guek,
        version: 1,
        state: KeyState::Active,
        protection: Protection::Memory,
        wrapped: vec![n; 24],
        value_len: 16,
        created_ms: 1,
        changed_ms: 1,
        kcv: None,
        fingerprint: Fingerprint([n; 16]),
        life: KeyLife::default(),
    }
}

fn record_with(n: u64, keys: Vec<KeyRecord>) -> Record {
    Record::Meter(MeterRecord {
        meter_id: id(n),
        system_title: title(n),
        logical_device_name: String::new(),
        policy: MeterPolicy::default(),
        keys,
        created_ms: 1,
        former: Vec::new(),
        changed_by: ChangeMark::default(),
        legal_hold_ms: None,
    })
}

async fn commit(site: &Site, record: Record) -> Result<(), KeyringError> {
    let mut changes = site.keyring.writer.change(&[BlockNo(0)]).await.unwrap();
    changes[0].put(record);
    let entry = call("Meters/ImportMeters").entry(0, Subject::NONE, AuditOutcome::Done);
    site.keyring.writer.commit(changes, vec![entry]).await.map(|_| ())
}

on_a_token! {
    fn invariant_5_an_index_that_lies_opens_no_frame_under_another_meters_keys(home) {
        run(async { a_lying_index(home, &Database::sqlite(home)).await });
    }

    fn invariant_5_an_index_that_lies_opens_no_frame_under_another_meters_keys_on_postgresql(home) {
        run(async { a_lying_index(home, &Database::postgres()).await });
    }

    fn an_index_that_lies_refuses_a_change_of_that_meter_by_name_and_of_no_other(home) {
        run(async { a_lie_in_the_way_of_a_change(home, &Database::sqlite(home)).await });
    }

    fn an_index_that_lies_refuses_a_change_of_that_meter_by_name_and_of_no_other_on_postgresql(home) {
        run(async { a_lie_in_the_way_of_a_change(home, &Database::postgres()).await });
    }

    fn a_meter_that_the_index_has_lost_is_found_in_memory_and_not_made_twice(home) {
        run(async { a_hidden_meter(home, &Database::sqlite(home)).await });
    }

    fn a_meter_that_the_index_has_lost_is_found_in_memory_and_not_made_twice_on_postgresql(home) {
        run(async { a_hidden_meter(home, &Database::postgres()).await });
    }

    fn a_key_that_does_not_open_takes_out_its_own_meter_only(home) {
        run(async {
            let site = Site::with(home, one_block()).await;
            site.import((1..4).map(meter).collect(), ImportRules::default()).await;
            commit(&site, record_with(2, vec![useless(1)])).await.unwrap();
            for site in [&site, &Site::with(home, one_block()).await] {
                assert_eq!(site.verdict(&push(1, PLAIN)).await, Verdict::Ok);
                assert_eq!(site.verdict(&push(2, PLAIN)).await, Verdict::Unavailable);
                assert_eq!(site.verdict(&push(3, PLAIN)).await, Verdict::Ok);
                // Its title is sure: a miss in the same block is a miss.
                assert_eq!(site.verdict(&push(9, PLAIN)).await, Verdict::UnknownMeter);
                let damage = site.keyring.overview.status().damage;
                let due = DamagedRecord { block: BlockNo(0), system_title: title(2) };
                assert_eq!((damage.records, damage.named), (1, vec![due]));
            }
        });
    }

    fn a_record_that_is_too_long_is_not_written_and_its_block_goes_on(home) {
        run(async {
            let site = Site::with(home, one_block()).await;
            site.import((1..4).map(meter).collect(), ImportRules::default()).await;
            let refused = commit(&site, record_with(2, vec![useless(1); 65_536])).await;
            let Err(KeyringError::TooLong(TooLong { why, .. })) = refused else {
                panic!("{refused:?}")
            };
            assert_eq!(why.what, "key versions");
            let again = Site::with(home, one_block()).await;
            for n in 1..4 {
                assert_eq!(site.verdict(&push(n, PLAIN)).await, Verdict::Ok);
                assert_eq!(again.verdict(&push(n, PLAIN)).await, Verdict::Ok);
            }
        });
    }

    fn a_meters_key_versions_are_bounded_and_its_neighbours_are_not_told(home) {
        run(async {
            let site = Site::with(home, one_block()).await;
            site.add(meter(1)).await;
            let rules = ImportRules { add_versions: true, ..ImportRules::default() };
            let mut codes = Vec::new();
            for salt in 0..20u8 {
                let keys = vec![key(KeyKind::Guek, value(2, 100 + salt))];
                let lines = vec![meter_with(2, keys, MeterPolicy::default()), meter(3)];
                let results = site.import(lines, rules).await;
                assert!(results[1].outcome.is_ok());
                codes.push(results[0].outcome.clone().map_err(|refusal| refusal.code.word()));
            }
            assert!(codes[..4].iter().all(Result::is_ok), "{codes:?}");
            let full = |code| code == Err("TOO_MANY_LIVE_VERSIONS");
            assert!(codes[4..].iter().copied().all(full), "{codes:?}");
            // Over all keys of the meter, too.
            let many = |setup: u8| -> Vec<_> {
                let kinds = [KeyKind::Guek, KeyKind::Gak, KeyKind::Gbek, KeyKind::Kek];
                let key_of = |salt: u8| {
                    let value = value(1_000 + u64::from(setup), salt);
                    let mut key = key(kinds[usize::from(salt % 4)], value);
                    key.setup = SecuritySetup(setup);
                    key
                };
                (0..16).map(key_of).collect()
            };
            for setup in 1..6u8 {
                let line = meter_with(4, many(setup), MeterPolicy::default());
                let outcome = site.import(vec![line], rules).await.remove(0).outcome;
                let code = outcome.map_err(|refusal| refusal.code.word()).err();
                assert_eq!(code, (setup == 5).then_some("TOO_MANY_VERSIONS"), "{setup}");
            }
            assert_eq!(site.lifecycle.get(&id(4)).await.unwrap().record.keys.len(), 64);
        });
    }

    fn a_changed_title_leaves_its_meter_missing_and_not_unknown_and_can_be_buried(home) {
        run(async {
            let database = Database::sqlite(home);
            let site = database.site(home, one_block()).await;
            // Far apart, so that the order of the records stays.
            let meters = [0x100u64, 0x200, 0x300];
            site.import(meters.iter().copied().map(meter).collect(), ImportRules::default()).await;
            site.store.close().await;
            let (old, new) = (title(0x200), title(0x201));
            let (from, to) = (database.key(&old), database.key(&new));
            database.write(format!("UPDATE records SET key = {to} WHERE key = {from}")).await;
            let site = database.site(home, one_block()).await;
            assert_eq!(site.verdict(&push(0x100, PLAIN)).await, Verdict::Ok);
            assert_eq!(site.verdict(&push(0x300, PLAIN)).await, Verdict::Ok);
            let (missing, _) = site.open(&push(0x200, PLAIN), Named::InApdu).await;
            assert_eq!(missing.verdict, Verdict::Unavailable);
            assert!(missing.reason.unwrap().contains("it may be one of them"));
            let by_id = site.open(&untitled(0x200), Named::Id("meter-512")).await.0.verdict;
            assert_eq!(by_id, Verdict::Unavailable);
            let damaged = DamagedRecord { block: BlockNo(0), system_title: new };
            assert_eq!(site.keyring.overview.status().damage.named, [damaged]);
            // No second meter past the first one's keys; those beside it go on.
            let lines = vec![meter(0x200), meter(0x400), meter(0x100)];
            let results = site.import(lines, ImportRules::default()).await;
            let codes: Vec<_> =
                results.iter().map(|r| r.outcome.clone().map_err(|refusal| refusal.code.word())).collect();
            assert_eq!(codes, [Err("METER_DAMAGED"), Err("METER_DAMAGED"), Ok(Imported::Unchanged)]);
            assert!(matches!(site.lifecycle.get_by_title(&old).await, Err(LifecycleError::Damaged { .. })));

            let bury = call("Meters/BuryDamagedMeter");
            let whole = site.lifecycle.bury(&bury, &title(0x100), None).await;
            assert!(matches!(whole, Err(LifecycleError::NotDamaged { .. })), "{whole:?}");
            site.lifecycle.bury(&bury, &new, None).await.unwrap();
            assert_eq!(site.keyring.overview.status().damage.records, 0);
            assert_eq!(site.verdict(&push(0x100, PLAIN)).await, Verdict::Ok);
            assert_eq!(site.verdict(&push(0x200, PLAIN)).await, Verdict::UnknownMeter);
            // Whoever buried it brings it in anew.
            assert_eq!(code(&site, 0x200).await, Ok(Imported::Created));
            assert_eq!(site.verdict(&push(0x200, PLAIN)).await, Verdict::Ok);
            let again = database.site(home, one_block()).await;
            again.keyring.refresher.warm_up().await;
            assert_eq!(again.verdict(&push(0x200, PLAIN)).await, Verdict::Ok);
            assert_eq!(again.keyring.overview.status().damage.records, 0);
        });
    }

    fn a_damaged_meter_is_buried_and_its_block_is_whole_again(home) {
        run(async {
            let database = Database::sqlite(home);
            let site = database.site(home, one_block()).await;
            site.import((1..4).map(meter).collect(), ImportRules::default()).await;
            database.damage(&title(2)).await;
            let delete = site.lifecycle.delete(&call("Meters/DeleteMeter"), &id(2)).await;
            assert!(matches!(delete, Err(LifecycleError::Damaged { .. })), "{delete:?}");
            let bury = call("Meters/BuryDamagedMeter");
            site.lifecycle.bury(&bury, &title(2), None).await.unwrap();
            let Some(Record::Tombstone(tombstone)) = site.keyring.records.read(&title(2)).await.unwrap()
            else { panic!("no tombstone") };
            assert!(tombstone.meter_id.is_none() && tombstone.keys.is_empty());
            assert_eq!(site.keyring.overview.status().damage.records, 0);
            assert_eq!(site.verdict(&push(2, PLAIN)).await, Verdict::UnknownMeter);
            let twice = site.lifecycle.bury(&bury, &title(2), None).await;
            assert!(matches!(twice, Err(LifecycleError::NotDamaged { .. })), "{twice:?}");
            assert_eq!(site.store.find_meter(&id(2)).await.unwrap(), None);
        });
    }

    fn damaged_records_are_known_at_every_start_whatever_the_arena(home) {
        run(async {
            let options = |arena_bytes| Options { blocks: 16, arena_bytes, ..Options::default() };
            let database = Database::sqlite(home);
            let site = database.site(home, options(1 << 20)).await;
            site.import((0..800).map(meter).collect(), ImportRules::default()).await;
            site.store.close().await;
            for n in [3u64, 77, 401, 799] {
                database.damage(&title(n)).await;
            }
            for arena_bytes in [1 << 20, 32 << 10] {
                let site = database.site(home, options(arena_bytes)).await;
                site.keyring.refresher.warm_up().await;
                let status = site.keyring.overview.status();
                assert_eq!(status.damage.records, 4, "{status:?}");
                // Closing and opening blocks changes nothing of what is known.
                for n in 0..200 {
                    site.verdict(&push(n, PLAIN)).await;
                }
                assert_eq!(site.keyring.overview.status().damage, status.damage);
                site.store.close().await;
            }
        });
    }

    fn a_damaged_row_has_nothing_of_another_meters(home) {
        run(async {
            let database = Database::sqlite(home);
            let site = database.site(home, one_block()).await;
            let policy = MeterPolicy { client_title: Some(title(99)), ..MeterPolicy::default() };
            let keys = vec![key(KeyKind::Guek, value(1, GUEK)), key(KeyKind::Gak, value(1, GAK))];
            site.add(meter_with(1, keys, policy)).await;
            site.add(meter(2)).await;
            site.store.close().await;
            database.damage(&title(2)).await;
            let site = database.site(home, one_block()).await;
            let table = site.keyring.reader.open(BlockNo(0)).await.unwrap();
            let damaged = table.find(&title(2)).unwrap();
            assert!(damaged.is_damaged());
            assert_eq!(damaged.client_title(), None);
            assert_eq!(damaged.candidates(KeyKind::Guek, None).count(), 0);
        });
    }

    fn a_page_of_a_list_names_what_is_damaged_and_reads_each_block_once(home) {
        run(async {
            let options = || Options { blocks: 4, ..Options::default() };
            let database = Database::sqlite(home);
            let site = database.site(home, options()).await;
            site.import((0..200).map(meter).collect(), ImportRules::default()).await;
            site.store.close().await;
            database.damage(&title(7)).await;
            database.write("UPDATE meters SET meter_id = 'spaced out' WHERE meter_id = 'meter-9'".into()).await;
            let site = database.site(home, options()).await;
            let before = blocks_read(&site);
            let page = site.lifecycle.list(None, 100).await.unwrap();
            assert_eq!(blocks_read(&site) - before, 4);
            let mut ids: Vec<String> = (0..200).filter(|n| *n != 9).map(site_common::id).collect();
            ids.sort();
            let listed = |page: &kms_server::lifecycle::Page| {
                let meters = page.meters.iter().map(|view| view.record.meter_id.to_string());
                let damaged = page.damaged.iter().map(|damaged| damaged.meter_id.to_string());
                meters.chain(damaged).collect::<Vec<_>>()
            };
            let mut first = listed(&page);
            first.sort();
            assert_eq!(first, ids[..100]);
            assert_eq!(page.next.as_ref().map(MeterId::as_str), Some(ids[99].as_str()));
            let rest = site.lifecycle.list(page.next.as_ref(), 100).await.unwrap();
            let mut second = listed(&rest);
            second.sort();
            assert_eq!(second, ids[100..]);
            assert_eq!(rest.next, None);
            let damaged: Vec<_> = page.damaged.iter().chain(&rest.damaged).collect();
            assert_eq!(damaged.len(), 1);
            assert_eq!((damaged[0].system_title, &damaged[0].meter_id), (title(7), &id(7)));
            assert!(damaged[0].reason.contains("changed outside this service"));
        });
    }
}

on_a_token! {
    #[ignore = "a measurement: 25,000 meters"]
    fn how_long_a_page_of_a_list_takes(home) {
        run(async {
            let options = Options { blocks: 100, arena_bytes: 8 << 20, ..Options::default() };
            let site = Database::sqlite(home).site(home, options).await;
            for some in (0..25_000u64).collect::<Vec<_>>().chunks(2_500) {
                site.import(some.iter().copied().map(meter).collect(), ImportRules::default()).await;
            }
            for limit in [10, 500] {
                let started = std::time::Instant::now();
                let page = site.lifecycle.list(None, limit).await.unwrap();
                let (page_took, started) = (started.elapsed(), std::time::Instant::now());
                assert_eq!(page.meters.len(), limit as usize);
                // As it was: each meter reads and verifies its block.
                for view in &page.meters {
                    site.lifecycle.get_by_title(&view.record.system_title).await.unwrap();
                }
                println!("{limit} meters: {page_took:?}, each by itself: {:?}", started.elapsed());
            }
        });
    }
}

/// Blocks that were read from the store so far.
fn blocks_read(site: &Site) -> u64 {
    use kms_server::telemetry::metrics::{Page, Source};
    let text = Page::of([site.measured.as_ref() as &dyn Source]).render();
    let series = r#"kms_store_operation_seconds_count{operation="block",outcome="ok"} "#;
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0, |count| count.trim().parse().unwrap())
}
