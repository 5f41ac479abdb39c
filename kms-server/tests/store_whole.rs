//! All of a database at once: out of SQLite into PostgreSQL and back, a restore that was broken off, and the mark that a
//! restored database bears.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod postgres_common;
mod store_contract;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use kms_core::{
    BlockNo, DomainId, Epoch,
    audit::{ChainTip, Checkpoint, NodeId},
    backup::part::{Cell, Part, Rows, Table},
    site::{
        restored::{RestoreMark, RolledBackBy, SignedRestoreMark},
        role::RoleChange,
        tokens::{SignedSiteTokens, SiteTokens},
    },
};
use kms_server::store::{
    SealedSecret, StoreError,
    sites::{Divergent, PeerStep, Released, RoleRow, RoleStep},
    sqlite::{Config, SqliteStore},
    tokens::FurtherToken,
    whole::{RestoreState, RollBack, WholeStore},
};
use postgres_common::Cluster;
use store_contract::{
    Said, Scene,
    made_up::meter,
    site_scene::{self, FOUNDED, Store, learnt, peer, promotion},
};
use tokio::sync::mpsc;

async fn sqlite(dir: &Path, name: &str) -> Arc<SqliteStore> {
    Arc::new(SqliteStore::open(Config { path: dir.join(name), create: true }).await.unwrap())
}

/// Something of each kind that a database has.
async fn filled(store: Arc<dyn WholeStore>) {
    let store: Store = store;
    let mut scene: Scene = site_scene::found(&store, true).await.unwrap();
    for (block, meters) in [(1, [("a", 7), ("b", 8)]), (2, [("c", 9), ("d", 9)])] {
        let meters: Vec<_> = meters
            .iter()
            .enumerate()
            .map(|(n, (id, fingerprint))| meter(block as u64 * 10 + n as u64, id, &[*fingerprint]))
            .collect();
        let change = scene.steps(block, FOUNDED, &meters);
        store.commit(&[change], Said::new().link()).await.unwrap();
    }
    let south = PeerStep { expected: None, now: peer("south", 3) };
    store.put_peer(&south, Said::new().link()).await.unwrap();
    let record = store.block(BlockNo(1)).await.unwrap().unwrap().records.remove(0);
    let divergent =
        Divergent { block: BlockNo(1), record, site: "süd".to_owned(), at_ms: 5, decided: None };
    store.put_divergence(&[divergent], Said::new().link()).await.unwrap();
    let fence = learnt(&store, RoleChange::Promotion, 3).await.unwrap();
    store.change_role(&fence, Said::new().link()).await.unwrap();
    let tip = ChainTip { node: NodeId([1; 16]), sequence: 4, hash: [2; 32] };
    store.add_audit_checkpoint(&Checkpoint { tip, at_ms: 5, signature: [3; 64] }).await.unwrap();
}

async fn out(store: &Arc<dyn WholeStore>) -> Vec<Part> {
    let (to, mut parts) = mpsc::channel(1);
    let copying = tokio::spawn({
        let store = Arc::clone(store);
        async move { store.copy_out(to).await }
    });
    let mut all = Vec::new();
    while let Some(part) = parts.recv().await {
        all.push(part);
    }
    copying.await.unwrap().unwrap();
    all
}

/// Rows by table.
fn tables(parts: &[Part]) -> BTreeMap<String, (Table, Vec<Vec<Cell>>)> {
    let (mut all, mut last) = (BTreeMap::new(), String::new());
    for part in parts {
        match part {
            Part::Table(table) => {
                last = table.name.clone();
                all.insert(last.clone(), (table.clone(), Vec::new()));
            }
            Part::Rows(rows) => {
                let (table, all) = all.get_mut(&last).unwrap();
                all.extend(rows.rows(table.columns.len()).unwrap());
            }
        }
    }
    all
}

fn roll_back(id: u8) -> RollBack {
    let mark = RestoreMark {
        domain: DomainId([0xD0; 16]),
        site: "north".to_owned(),
        id: [id; 16],
        by: RolledBackBy::Backup,
        at_ms: 9,
        epoch: Epoch(3),
        from: "a backup".to_owned(),
    };
    RollBack { mark: SignedRestoreMark { mark, signature: [7; 64] }, domain: [8; 64] }
}

/// Loads parts as a restore does.
async fn load(store: &dyn WholeStore, parts: &[Part]) -> Result<(), StoreError> {
    store.begin_copy_in("a backup").await?;
    let (mut last, mut kept) = (None, Vec::new());
    for part in parts {
        match (part, &last) {
            (Part::Table(table), _) => last = Some(table.clone()),
            (Part::Rows(rows), Some(table)) if ["domain", "role"].contains(&&*table.name) => {
                kept.push((table.clone(), rows.clone()));
            }
            (Part::Rows(rows), Some(table)) => {
                store.copy_in(table, std::slice::from_ref(rows)).await?;
            }
            (Part::Rows(_), None) => panic!("rows without a table"),
        }
    }
    store.end_copy_in(&kept, &roll_back(1)).await
}

/// What a restored database has besides what was loaded: the role, and the domain's signature.
fn without_the_mark(parts: &[Part]) -> BTreeMap<String, (Table, Vec<Vec<Cell>>)> {
    let mut all = tables(parts);
    for (name, column) in [("domain", "signature"), ("role", "writes")] {
        let (table, rows) = all.get_mut(name).unwrap();
        let at = table.columns.iter().position(|other| other == column).unwrap();
        rows[0][at] = Cell::Null;
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_goes_from_sqlite_to_postgresql_and_back_row_by_row() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    let first: Arc<dyn WholeStore> = sqlite(dir.path(), "first.db").await;
    filled(Arc::clone(&first)).await;
    let there = out(&first).await;
    for (name, (_, rows)) in tables(&there) {
        let may_be_empty = ["block_seals"].contains(&name.as_str());
        let is_known = [
            "audit_chains",
            "audit_checkpoints",
            "audit_events",
            "blocks",
            "divergence",
            "domain",
            "head_table",
            "key_fingerprints",
            "meters",
            "peers",
            "records",
            "role",
            "role_records",
        ]
        .contains(&name.as_str());
        assert!(
            !is_known || may_be_empty || !rows.is_empty(),
            "{name} has no row: it is not tried"
        );
    }
    let second: Arc<dyn WholeStore> = Arc::new(cluster.open("ami").await);
    load(second.as_ref(), &there).await.unwrap();
    let back = out(&second).await;
    assert_eq!(without_the_mark(&back), without_the_mark(&there));
    let third: Arc<dyn WholeStore> = sqlite(dir.path(), "third.db").await;
    load(third.as_ref(), &back).await.unwrap();
    assert_eq!(tables(&out(&third).await), tables(&back));
    for store in [second, third] {
        assert_eq!(store.role().await.unwrap(), RoleRow { epoch: Epoch(3), writes: false });
        assert_eq!(store.restore_state().await.unwrap(), RestoreState::Marked(roll_back(1).mark));
        // What was loaded is a database like any other: its index finds meters.
        assert_eq!(store.count_meters().await.unwrap(), 4);
    }
}

async fn broken_off(store: Arc<dyn WholeStore>, there: &[Part]) {
    store.begin_copy_in("yesterday's").await.unwrap();
    let Part::Table(table) = &there[0] else { panic!("{:?}", there[0]) };
    let Part::Rows(rows) = &there[1] else { panic!("{:?}", there[1]) };
    store.copy_in(table, std::slice::from_ref(rows)).await.unwrap();
    // Here the process is killed: the part of it says what it is, and is nobody's database.
    let loading = RestoreState::Loading { from: "yesterday's".to_owned() };
    assert_eq!(store.restore_state().await.unwrap(), loading);
    assert_eq!(store.domain().await.unwrap(), None);
    // The next one begins anew.
    load(store.as_ref(), there).await.unwrap();
    assert_eq!(without_the_mark(&out(&store).await), without_the_mark(there));
    let refused = store.begin_copy_in("another").await;
    assert!(
        matches!(&refused, Err(StoreError::NotLoaded(why)) if why.contains("not empty")),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_was_broken_off_is_told_and_begun_anew_and_a_database_in_use_is_not_loaded()
{
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    let first: Arc<dyn WholeStore> = sqlite(dir.path(), "first.db").await;
    filled(Arc::clone(&first)).await;
    let there = out(&first).await;
    broken_off(sqlite(dir.path(), "second.db").await, &there).await;
    broken_off(Arc::new(cluster.open("ami").await), &there).await;
    let refused = load(first.as_ref(), &there).await;
    assert!(matches!(refused, Err(StoreError::NotLoaded(_))), "{refused:?}");
    // Columns that this database has not: nothing of it is guessed.
    let fresh = sqlite(dir.path(), "third.db").await;
    fresh.begin_copy_in("x").await.unwrap();
    let table = Table { name: "blocks".to_owned(), columns: vec!["block".to_owned()] };
    let refused = fresh.copy_in(&table, &[Rows::default()]).await;
    assert!(matches!(refused, Err(StoreError::NotLoaded(_))), "{refused:?}");
}

async fn marked_and_released(store: Arc<dyn WholeStore>) {
    filled(Arc::clone(&store)).await;
    let domain = store.domain().await.unwrap().unwrap();
    // What was found out of another epoch is over.
    let role = store.role().await.unwrap();
    let mut late = roll_back(2);
    (late.mark.mark.by, late.mark.mark.epoch) = (RolledBackBy::Copy, Epoch(1));
    let refused = store.mark_rolled_back(&late).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    assert_eq!(store.restore_state().await.unwrap(), RestoreState::Nothing);
    assert_eq!(store.role().await.unwrap(), role);
    store.mark_rolled_back(&roll_back(2)).await.unwrap();
    assert_eq!(store.role().await.unwrap(), RoleRow { epoch: Epoch(3), writes: false });
    assert_eq!(store.domain().await.unwrap().unwrap().signature, Some([8; 64]));
    let store: Store = store;
    let step = promotion(&store, 6).await.unwrap();
    // Whoever decided on another mark, or on none, decides anew.
    let (mark, domain_signature) = (roll_back(2).mark.signature, domain.signature.unwrap());
    let of = |mark| Released { mark, domain: domain_signature };
    for stale in [None, Some(of([1; 64]))] {
        let step = RoleStep { released: stale, ..step.clone() };
        let refused = store.change_role(&step, Said::new().link()).await;
        assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
        assert_ne!(store.restore_state().await.unwrap(), RestoreState::Nothing);
    }
    let step = RoleStep { released: Some(of(mark)), ..step };
    store.change_role(&step, Said::new().link()).await.unwrap();
    assert_eq!(store.restore_state().await.unwrap(), RestoreState::Nothing);
    assert_eq!(store.domain().await.unwrap(), Some(domain));
    assert_eq!(store.role().await.unwrap(), RoleRow { epoch: Epoch(6), writes: true });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mark_of_a_roll_back_comes_with_the_end_of_writing_and_goes_with_the_promotion() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    marked_and_released(sqlite(dir.path(), "first.db").await).await;
    marked_and_released(Arc::new(cluster.open("ami").await)).await;
}

async fn with_a_second_token(store: Arc<dyn WholeStore>) {
    filled(Arc::clone(&store)).await;
    assert_eq!(store.site_tokens().await.unwrap(), []);
    let list = |canary| {
        let (site, signing) = ("north".to_owned(), vec![[4; 65], [5; 65]]);
        let (domain, canaries) = (DomainId([0xD0; 16]), vec![canary; 3]);
        let tokens = SiteTokens { domain, site, number: SiteTokens::OF_TWO, signing, canaries };
        SignedSiteTokens { tokens, signature: [canary; 64] }
    };
    let seal = |block, kek| {
        let sealed = SealedSecret { secret_version: 1, kek_id: [kek; 16], sealed: vec![kek; 5] };
        (BlockNo(block), vec![sealed])
    };
    let (expected, seals) = (Vec::new(), vec![seal(1, 77), seal(2, 77)]);
    let token = FurtherToken { expected, lists: vec![list(1), list(2)], seals };
    store.add_token(&token).await.unwrap();
    assert_eq!(store.site_tokens().await.unwrap(), token.lists);
    for block in [1, 2] {
        let seals = store.block(BlockNo(block)).await.unwrap().unwrap().seals;
        assert_eq!((seals.len(), seals.iter().filter(|it| it.kek_id == [77; 16]).count()), (2, 1));
    }
    // A seal that is there stays, and then nothing else is written either.
    let expected: Vec<_> = token.lists.iter().map(|list| list.signature).collect();
    let seals = vec![seal(1, 78), seal(2, 77)];
    let other = FurtherToken { expected: expected.clone(), lists: vec![list(3)], seals };
    let refused = store.add_token(&other).await;
    assert!(matches!(refused, Err(StoreError::Rule { .. })), "{refused:?}");
    assert_eq!(store.site_tokens().await.unwrap(), token.lists);
    assert_eq!(store.block(BlockNo(1)).await.unwrap().unwrap().seals.len(), 2);
    // Who was made from other lists is not the first.
    for expected in [Vec::new(), vec![[1; 64], [9; 64]], vec![expected[0]]] {
        let late = FurtherToken { expected, lists: vec![list(3), list(4)], seals: Vec::new() };
        let refused = store.add_token(&late).await;
        assert!(matches!(refused, Err(StoreError::Taken { .. })), "{refused:?}");
        assert_eq!(store.site_tokens().await.unwrap(), token.lists);
    }
    let next = FurtherToken { expected, lists: vec![list(3)], seals: Vec::new() };
    store.add_token(&next).await.unwrap();
    assert_eq!(store.site_tokens().await.unwrap(), next.lists);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_seals_and_lists_of_a_second_token_come_at_once_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    with_a_second_token(sqlite(dir.path(), "first.db").await).await;
    with_a_second_token(Arc::new(cluster.open("ami").await)).await;
}
