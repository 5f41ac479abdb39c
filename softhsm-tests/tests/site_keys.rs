//! Block secrets, and the site KEK that they are sealed under, are rotated while the server is killed, again and again:
//! every key opens whenever a server runs, and in the end nothing is under a former one.
//!
//! `SITE_KEYS_KEYS` and `SITE_KEYS_KILLS` make it larger: `make site-keys-drill KEYS=100000 KILLS=100`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;
#[path = "../../kms-server/tests/postgres_common/mod.rs"]
mod postgres_common;
mod several_nodes;

use std::{ffi::OsStr, path::Path, time::Duration};

use common::{
    Home, Numbers, client,
    fleet::{PLAIN, add, apdu, line, line_in_hsm, push},
    home,
};
use kms_client::{BlockSecretRotation, KmsClient, SiteKekRotation, Verdict};
use several_nodes::{cluster, first_node, further_node};
use softhsm_tests::{Role, ServerError};
use sqlx::{Connection as _, SqliteConnection};

/// Meters in one call: the most that a batch takes is more.
const LOT: u64 = 2_000;
/// Longer than a rotation of these few blocks takes.
const PATIENCE: Duration = Duration::from_secs(600);

#[expect(clippy::disallowed_methods, reason = "a test is told how long to go on")]
fn asked_for(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

fn some_line(n: u64) -> String {
    if n.is_multiple_of(50) { line_in_hsm(n) } else { line(n) }
}

async fn all_open(hes: &KmsClient, meters: u64, what: &str) {
    for lot in (1..=meters).collect::<Vec<_>>().chunks(LOT as usize) {
        let apdus: Vec<_> = lot.iter().map(|n| apdu(push(*n))).collect();
        for (n, opened) in lot.iter().zip(hes.decrypt_batch(apdus).await.unwrap()) {
            assert_eq!(opened.verdict(), Verdict::Ok, "{what}: meter {n}: {opened:?}");
            assert_eq!(opened.plaintext.as_deref(), Some(PLAIN));
        }
    }
}

/// How many blocks, records and seals there are under the first secret; nobody else has the file open.
async fn under_the_first(home: &Home) -> [i64; 3] {
    let url = format!("sqlite://{}", home.places().data.join("kms.db").display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    let mut counts = [0; 3];
    for (count, query) in counts.iter_mut().zip([
        "SELECT count(*) FROM blocks WHERE secret_version = 1",
        "SELECT count(*) FROM records WHERE secret_version = 1",
        "SELECT count(*) FROM block_seals WHERE secret_version = 1",
    ]) {
        *count = sqlx::query_scalar(query).fetch_one(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
    counts
}

async fn until(admin: &KmsClient, is_so: impl Fn(&BlockSecretRotation) -> bool) {
    let began = tokio::time::Instant::now();
    loop {
        let rotation = admin.block_secret_rotation().await.unwrap();
        if is_so(&rotation) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{rotation:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_opens_while_block_secrets_are_rotated_and_the_server_is_killed() {
    let (meters, kills) = (asked_for("SITE_KEYS_KEYS", 500), asked_for("SITE_KEYS_KILLS", 6));
    let home = home();
    let mut numbers = Numbers::fresh();
    println!("seed {:#018x}", numbers.0);
    let running = home.start().unwrap();
    let admin = client(&home, Role::AmiAdmin).await;
    add(&admin, &(1..=meters).map(some_line).collect::<Vec<_>>()).await;
    let begun = admin.rotate_block_secrets().await.unwrap();
    assert_eq!((begun.generation, begun.retired), (1, 0));
    let mut running = Some(running);
    for kill in 0..kills {
        tokio::time::sleep(Duration::from_millis(100 + numbers.below(900))).await;
        running.take().unwrap().kill_9().unwrap();
        let again = home.start().unwrap();
        let hes = client(&home, Role::Hes).await;
        all_open(&hes, meters, &format!("after {} kills", kill + 1)).await;
        running = Some(again);
    }
    let (admin, hes) = (client(&home, Role::AmiAdmin).await, client(&home, Role::Hes).await);
    until(&admin, BlockSecretRotation::is_over).await;
    all_open(&hes, meters, "at the end").await;
    let status = admin.site_status().await.unwrap();
    assert!(status.faults.is_empty(), "{:?}", status.faults);
    running.take().unwrap().stop().unwrap();
    let [blocks, records, _] = under_the_first(&home).await;
    assert_eq!((blocks, records), (0, 0));
    println!("{meters} meters, {kills} kills: all opened each time");
}

/// The site KEKs that there are seals under; nobody else has the file open.
async fn keks(home: &Home) -> Vec<String> {
    let url = format!("sqlite://{}", home.places().data.join("kms.db").display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    let query = "SELECT DISTINCT lower(hex(kek_id)) FROM block_seals";
    let keks = sqlx::query_scalar(query).fetch_all(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    keks
}

/// Ends one rotation and begins the next one, where one is over.
async fn go_on(admin: &KmsClient) -> SiteKekRotation {
    let now = admin.site_kek_rotation().await.unwrap();
    if !now.is_over() {
        return now;
    }
    // Sooner than half a minute it is refused, and goes with a later one.
    if let Some(former) = now.former.last() {
        let _ = admin.destroy_site_kek(&hex::decode(former).unwrap()).await;
    }
    // Where too many are kept, nothing begins before they may go.
    admin.rotate_site_kek().await.unwrap_or(now)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_opens_while_the_site_kek_is_replaced_and_the_server_is_killed() {
    let (meters, kills) = (asked_for("SITE_KEYS_KEYS", 500), asked_for("SITE_KEYS_KILLS", 6));
    let home = home();
    let mut numbers = Numbers::fresh();
    println!("seed {:#018x}", numbers.0);
    let running = home.start().unwrap();
    let admin = client(&home, Role::AmiAdmin).await;
    add(&admin, &(1..=meters).map(some_line).collect::<Vec<_>>()).await;
    let begun = admin.rotate_site_kek().await.unwrap();
    assert_eq!((begun.generation, begun.is_over()), (1, false));
    let first = begun.in_use.clone();
    let (mut running, mut at) = (Some(running), std::collections::BTreeMap::new());
    for kill in 0..kills {
        tokio::time::sleep(Duration::from_millis(numbers.below(900))).await;
        running.take().unwrap().kill_9().unwrap();
        let again = home.start().unwrap();
        let hes = client(&home, Role::Hes).await;
        all_open(&hes, meters, &format!("after {} kills", kill + 1)).await;
        let now = go_on(&client(&home, Role::AmiAdmin).await).await;
        *at.entry(now.stage).or_insert(0) += 1;
        running = Some(again);
    }
    let (admin, hes) = (client(&home, Role::AmiAdmin).await, client(&home, Role::Hes).await);
    let began = tokio::time::Instant::now();
    let over = loop {
        let now = admin.site_kek_rotation().await.unwrap();
        if now.is_over() {
            break now;
        }
        assert!(began.elapsed() < PATIENCE, "{now:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_ne!(over.in_use, first);
    all_open(&hes, meters, "at the end").await;
    // The former ones go, once nobody can have one for his any more; and everything opens without them.
    let named = hex::decode(over.former.last().unwrap()).unwrap();
    while let Err(refused) = admin.destroy_site_kek(&named).await {
        assert!(refused.to_string().contains("half a minute"), "{refused}");
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    while admin.site_kek_rotation().await.unwrap().stage != "DESTROYED" {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    all_open(&hes, meters, "without the former ones").await;
    let status = admin.site_status().await.unwrap();
    assert!(status.faults.is_empty(), "{:?}", status.faults);
    running.take().unwrap().stop().unwrap();
    assert_eq!(keks(&home).await, [over.in_use.clone()]);
    // A server that starts now knows no other one.
    let running = home.start().unwrap();
    all_open(&client(&home, Role::Hes).await, meters, "after a start without the former ones")
        .await;
    running.stop().unwrap();
    println!(
        "{meters} meters, {kills} kills, {} rotations, found at {at:?}: all opened each time",
        over.generation
    );
}

async fn until_over(admin: &KmsClient) -> SiteKekRotation {
    let began = tokio::time::Instant::now();
    loop {
        let now = admin.site_kek_rotation().await.unwrap();
        if now.is_over() {
            return now;
        }
        assert!(began.elapsed() < PATIENCE, "{now:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Asks until it is not too soon.
async fn destroy(admin: &KmsClient, id: &str) {
    let (id, began) = (hex::decode(id).unwrap(), tokio::time::Instant::now());
    while let Err(refused) = admin.destroy_site_kek(&id).await {
        assert!(refused.to_string().contains("half a minute"), "{refused}");
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    while admin.site_kek_rotation().await.unwrap().stage != "DESTROYED" {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_over_one_postgresql_go_on_with_one_rotation_and_none_needs_the_former_site_kek() {
    let meters = 100;
    let cluster = cluster();
    let first = first_node(&cluster);
    let second = further_node(&first, &cluster);
    let (mut one, other) = (Some(first.start().unwrap()), second.start().unwrap());
    add(&client(&first, Role::AmiAdmin).await, &(1..=meters).map(some_line).collect::<Vec<_>>())
        .await;
    let (hes, elsewhere) = (client(&first, Role::Hes).await, client(&second, Role::Hes).await);
    all_open(&hes, meters, "before, here").await;
    all_open(&elsewhere, meters, "before, there").await;
    let begun = client(&first, Role::AmiAdmin).await.rotate_site_kek().await.unwrap();
    // Who was asked is killed, wherever it is: the other one goes on.
    tokio::time::sleep(Duration::from_millis(300)).await;
    one.take().unwrap().kill_9().unwrap();
    let admin = client(&second, Role::AmiAdmin).await;
    let over = until_over(&admin).await;
    assert_ne!(over.in_use, begun.in_use);
    all_open(&elsewhere, meters, "after, there").await;
    let one = first.start().unwrap();
    let hes = client(&first, Role::Hes).await;
    all_open(&hes, meters, "after, here").await;
    // Both run, and each hears of the next one, whichever was asked.
    let again = client(&first, Role::AmiAdmin).await.rotate_site_kek().await.unwrap();
    assert_eq!(again.generation, 2);
    for _ in 0..20 {
        all_open(&hes, meters, "meanwhile, here").await;
        all_open(&elsewhere, meters, "meanwhile, there").await;
    }
    let over = until_over(&admin).await;
    add(&client(&second, Role::AmiAdmin).await, &[line(meters + 1)]).await;
    destroy(&admin, over.former.last().unwrap()).await;
    for node in [&first, &second] {
        let admin = client(node, Role::AmiAdmin).await;
        assert_eq!(admin.site_kek_rotation().await.unwrap().in_use, over.in_use);
        all_open(&client(node, Role::Hes).await, meters + 1, "without the former ones").await;
        let status = admin.site_status().await.unwrap();
        assert!(status.faults.is_empty(), "{:?}", status.faults);
    }
    one.stop().unwrap();
    other.stop().unwrap();
}

fn tried(home: &Home, from: &Path) -> Result<String, ServerError> {
    let arguments = ["--from".as_ref(), from.as_os_str(), "--verify-only".as_ref()];
    home.run("restore", &arguments as &[&OsStr])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_opens_with_the_site_kek_that_it_was_made_under_and_with_no_other_one() {
    let home = home();
    let running = home.start().unwrap();
    let admin = client(&home, Role::AmiAdmin).await;
    add(&admin, &(1..=50).map(some_line).collect::<Vec<_>>()).await;
    let backup = |name: &str| {
        let out = home.dir.path().join(name);
        let arguments = ["--out".as_ref(), out.as_os_str(), "--drill".as_ref()];
        let said = home.run("backup", &arguments as &[&OsStr]).unwrap();
        assert!(said.contains("records"), "{said}");
        out
    };
    let before = backup("before");
    admin.rotate_site_kek().await.unwrap();
    let meanwhile = backup("meanwhile");
    let over = until_over(&admin).await;
    let after = backup("after");
    for from in [&before, &meanwhile, &after] {
        tried(&home, from).unwrap();
    }
    destroy(&admin, over.former.last().unwrap()).await;
    tried(&home, &after).unwrap();
    let Err(ServerError::Failed { output, .. }) = tried(&home, &before) else { panic!() };
    assert!(output.contains("0 keys ami-site-kek"), "{output}");
    running.stop().unwrap();
}
