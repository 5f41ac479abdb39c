//! A disk that fails a read: once, it costs a second try; for good, the database is unreachable, and never
//! damaged. A test binary of its own, since system calls of the whole process fail.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod store_contract;

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kms_core::BlockNo;
use kms_server::store::{
    ReadStore as _, StoreError, WriteStore as _,
    sqlite::{Config, SqliteStore},
};
use store_contract::{Said, Scene};

/// Fails `pread64` of this process: `when` as strace says it. `None` where this process may not be traced.
fn failing_reads(when: &str) -> Option<Child> {
    let inject = format!("inject=pread64:error=EIO:when={when}");
    let child = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=pread64", "-e", &inject, "-p"])
        .arg(std::process::id().to_string())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.unwrap_or_else(|error| panic!("strace: run `make bootstrap`: {error}"));
    let began = Instant::now();
    loop {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).unwrap();
        if tracer.trim() != "0" {
            // All threads, not only the first.
            std::thread::sleep(Duration::from_millis(300));
            return Some(child);
        }
        if child.try_wait().unwrap().is_some() || began.elapsed() > Duration::from_secs(20) {
            println!("skipped: this process may not be traced");
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn end(mut tracer: Child) {
    tracer.kill().unwrap();
    tracer.wait().unwrap();
}

#[tokio::test]
async fn one_read_that_fails_is_done_again_and_no_read_that_fails_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.db");
    let store = SqliteStore::open(Config { path: path.clone(), create: true }).await.unwrap();
    let mut scene = Scene::default();
    let changes: Vec<_> = (0..200).map(|n| scene.change(n as u32, n).unwrap()).collect();
    store.commit(&changes, Said::new().link()).await.unwrap();
    drop(store);

    let config = || Config { path: path.clone(), create: false };
    let store = SqliteStore::open(config()).await.unwrap();
    let Some(tracer) = failing_reads("1") else { return };
    let block = store.block(BlockNo(7)).await;
    end(tracer);
    assert_eq!(block.unwrap().unwrap().records.len(), 1);

    let store = SqliteStore::open(config()).await.unwrap();
    let tracer = failing_reads("1+").unwrap();
    let block = store.block(BlockNo(7)).await;
    end(tracer);
    assert!(matches!(block, Err(StoreError::Unreachable { .. })), "{block:?}");
    // It was the disk: the same store reads on.
    assert_eq!(store.block(BlockNo(7)).await.unwrap().unwrap().records.len(), 1);
}
