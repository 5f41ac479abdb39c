//! A PostgreSQL that fails over within its site, under a real server: to a standby that has everything, and to one that
//! has not what was acknowledged last.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;
#[path = "../../kms-server/tests/postgres_common/mod.rs"]
mod postgres_common;

use std::{os::unix::fs::symlink, path::Path};

use common::{
    Home, blank_home, client, copy, eventually,
    fleet::{add, apdu, id, import, line, push},
    warm,
};
use kms_client::{KmsClient, MeterId, Verdict};
use postgres_common::{Cluster, USER};
use softhsm_tests::{Role, pair::said_by, settings::quoted};
use tokio_stream::StreamExt as _;

/// A server that reaches its database by a name that moves with it.
fn home(name: &Path) -> Home {
    let host = quoted(&name.display().to_string());
    blank_home(&[
        ("store", "kind", &quoted("postgresql")),
        ("store", "path", ""),
        ("store", "host", &host),
        ("store", "port", "5432"),
        ("store", "database", &quoted("ami")),
        ("store", "user", &quoted(USER)),
        ("store", "allow_no_tls", "true"),
    ])
}

fn point(name: &Path, at: &Cluster) {
    let _ = std::fs::remove_file(name);
    symlink(at.sockets(), name).unwrap();
}

async fn opens(client: &KmsClient, n: u64) -> Option<Verdict> {
    client.decrypt(&apdu(push(n))).await.ok().map(|opened| opened.verdict())
}

/// How the import of a meter ends; empty: well.
async fn outcome_of_import(client: &KmsClient, n: u64) -> String {
    let lines = tokio_stream::iter(common::fleet::parsed(&line(n)));
    let results = client.meters().import(lines, kms_client::ImportRules::default());
    let mut results = std::pin::pin!(results);
    match results.next().await.unwrap() {
        Ok(result) => result.code,
        Err(error) => format!("{error:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_4_a_failover_that_lost_what_was_acknowledged_is_a_restore_and_one_that_did_not_is_nothing()
 {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("database");
    let mut first = Cluster::new(&[]);
    first.database("ami");
    point(&name, &first);
    let home = home(&name);
    home.init().unwrap();
    let mut running = home.start().unwrap();
    let serving = client(&home, Role::Dev).await;
    warm(&serving).await;
    add(&serving, &[line(1)]).await;

    // A standby that has everything: the server goes on by itself.
    let mut second = first.standby();
    add(&serving, &[line(2)]).await;
    second.until_it_has_all_of(&first).await;
    first.kill();
    second.promote();
    point(&name, &second);
    eventually("changes are taken", async || outcome_of_import(&serving, 3).await.is_empty()).await;
    assert!(running.ended().unwrap().is_none(), "{}", running.log_tail());

    // One that lacks the last commit.
    let mut third = second.standby();
    third.until_it_has_all_of(&second).await;
    third.stop();
    add(&serving, &[line(4)]).await;
    let away = dir.path().join("away");
    copy(&home.places().data, &away);
    second.kill();
    third.start();
    third.promote();
    point(&name, &third);
    eventually("the server begins anew", || {
        let ended = running.ended().unwrap().is_some();
        async move { ended }
    })
    .await;
    let says = async || running.log_tail().contains("lost what was acknowledged");
    eventually("it says why", says).await;
    let running = home.start().unwrap();
    let restored = client(&home, Role::Dev).await;
    warm(&restored).await;
    for (n, verdict) in [(1, Verdict::Ok), (3, Verdict::Ok), (4, Verdict::UnknownMeter)] {
        assert_eq!(opens(&restored, n).await, Some(verdict), "{n}");
    }
    let refused = outcome_of_import(&restored, 5).await;
    assert!(refused.contains("NOT_PRIMARY"), "{refused}");
    let promote = |more: &[&str]| {
        said_by(&home, "promote", &[&["site", "promote", "--yes"][..], more].concat())
    };
    let refused = promote(&[]).unwrap_err().to_string();
    assert!(
        refused.contains("ROLLED_BACK") && refused.contains("failover to timeline 3"),
        "{refused}"
    );
    promote(&["--above-epoch", "2"]).unwrap();
    for result in import(&restored, &[line(4), line(5)]).await {
        assert!(result.code.is_empty(), "{result:?}");
    }
    assert_eq!(opens(&restored, 4).await, Some(Verdict::Ok));

    // A server that was away through all of it: what it misses was dealt with.
    running.stop().unwrap();
    std::fs::remove_dir_all(&home.places().data).unwrap();
    copy(&away, &home.places().data);
    let _running = home.start().unwrap();
    let returned = client(&home, Role::Dev).await;
    warm(&returned).await;
    for result in import(&returned, &[line(6)]).await {
        assert!(result.code.is_empty(), "{result:?}");
    }
    let faults = returned.site_status().await.unwrap().faults;
    assert_eq!(faults, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_4_a_tail_that_is_lost_right_after_a_promotion_was_not_dealt_with_by_it() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("database");
    let mut first = Cluster::new(&[]);
    first.database("ami");
    point(&name, &first);
    let home = home(&name);
    home.init().unwrap();
    let running = home.start().unwrap();
    let serving = client(&home, Role::Dev).await;
    warm(&serving).await;
    add(&serving, &[line(1)]).await;
    let noted = || {
        let line = std::fs::read_to_string(home.places().data.join("database-timeline")).unwrap();
        line.split_whitespace().nth(2).map(str::to_owned)
    };
    eventually("the epoch is noted", async || noted().as_deref() == Some("2")).await;
    let site = |what: &str| said_by(&home, "role", &["site", what, "--yes"]).unwrap();
    site("demote");
    site("promote");
    // Not a second later: whatever is acknowledged from now on is acknowledged in this epoch.
    assert_eq!(noted().as_deref(), Some("4"));
    let mut second = first.standby();
    second.until_it_has_all_of(&first).await;
    second.stop();
    add(&serving, &[line(2)]).await;
    running.kill_9().unwrap();
    first.kill();
    second.start();
    second.promote();
    point(&name, &second);
    // The promotion is in the database, and what came behind it is not: that is a restore.
    let _running = home.start().unwrap();
    let restored = client(&home, Role::Dev).await;
    warm(&restored).await;
    let refused = outcome_of_import(&restored, 3).await;
    assert!(refused.contains("NOT_PRIMARY"), "{refused}");
    let faults = restored.site_status().await.unwrap().faults.join("; ");
    assert!(faults.contains("failover to timeline 2"), "{faults}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_4_what_waits_for_a_frozen_standby_is_unknown_and_settled_before_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("database");
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    point(&name, &cluster);
    let home = home(&name);
    home.init().unwrap();
    let standby = cluster.standby();
    cluster.set(&["synchronous_standby_names = '*'"]);
    cluster.reload();
    let _running = home.start().unwrap();
    let serving = client(&home, Role::Dev).await;
    warm(&serving).await;
    add(&serving, &[line(1), line(2)]).await;

    // An import asks first whether it would be taken, which is recorded: that waits, and nothing else was done.
    standby.freeze(true);
    let unknown = outcome_of_import(&serving, 3).await;
    assert!(unknown.contains("OUTCOME_UNKNOWN"), "{unknown}");
    assert_eq!(opens(&serving, 1).await, Some(Verdict::Ok), "reads go on");
    standby.freeze(false);
    eventually("changes are taken", async || outcome_of_import(&serving, 3).await.is_empty()).await;

    // A change that waits: what is not known to be there is not used, and it becomes true.
    standby.freeze(true);
    let unknown = serving.meters().delete(&MeterId::new(&id(2)).unwrap()).await.unwrap_err();
    assert!(format!("{unknown:?}").contains("OUTCOME_UNKNOWN"), "{unknown:?}");
    assert_eq!(opens(&serving, 2).await, Some(Verdict::Ok));
    standby.freeze(false);
    eventually("changes are taken", async || outcome_of_import(&serving, 4).await.is_empty()).await;
    let gone = Some(Verdict::UnknownMeter);
    eventually("it became true", async || opens(&serving, 2).await == gone).await;
    let verified = home.ami_tool(Role::Auditor).succeed(&["audit", "verify"]).unwrap();
    assert!(!verified.contains("broken"), "{verified}");
}
