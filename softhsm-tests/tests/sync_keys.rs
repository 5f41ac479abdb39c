//! `sync-keys` and the runbook's flag with two real sites: what was missed is brought in step and proved, a second
//! run writes nothing, an unknown target is refused by name.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::process::Command;

use common::{
    client,
    fleet::{add, id, line},
    programs,
};
use softhsm_tests::{Pair, Role, Setting, Site, SiteOptions};

/// A program of the client's with the certificate of an administrator of `site`: exit code, and what it said.
fn run(program: &str, site: &Site, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(programs().ami_tool.with_file_name(program));
    command.arg("--config").arg(site.client_toml(Role::AmiAdmin)).args(arguments);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), said.into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_missed_changes_is_brought_in_step_and_proved_and_then_nothing_is_written() {
    let dir = tempfile::Builder::new().prefix("kms-pair-").tempdir_in("/dev/shm").unwrap();
    let set = |key, value: &str| Setting { section: "peer", key, value: value.to_owned() };
    let settings = vec![set("heartbeat_ms", "300"), set("write_wait_ms", "500")];
    let options = SiteOptions { settings, ..SiteOptions::default() };
    let pair = Pair::make(dir.path(), &programs(), &options).unwrap();
    let (first, second) = (&pair.a, &pair.b);
    let (a, b) = pair.start().unwrap();
    let at_a = client(first, Role::Dev).await;
    let (ours, theirs) = (
        at_a.site_status().await.unwrap().site,
        client(second, Role::Dev).await.site_status().await,
    );
    let target = format!("--target={}", theirs.unwrap().site);
    add(&at_a, &(1..=20).map(line).collect::<Vec<_>>()).await;
    b.kill_9().unwrap();
    add(&at_a, &(21..=60).map(line).collect::<Vec<_>>()).await;
    let (code, said) = run("sync-keys", first, &["--mode=secure", &target]);
    assert_eq!(code, 4, "the other site is away: {said}");
    let _b = second.start().unwrap();
    let (code, said) = run("sync-keys", first, &["--mode=secure", &target]);
    println!("after a kill: {said}");
    assert!(code == 0 && said.contains("proved equal"), "{said}");
    let (code, said) = run("sync-keys", first, &["--mode=secure", &target]);
    println!("second run: {said}");
    assert!(code == 0 && said.contains("nothing was written"), "{said}");
    let (code, said) = run("sync-keys", second, &["--mode=secure", &target, "--force"]);
    println!("--force at the target: {said}");
    assert!(code == 0 && said.contains("nothing was written"), "{said}");
    let (code, said) = run("sync-keys", first, &["--mode=secure", &target, "--dry-run"]);
    assert!(code == 0 && said.contains("is in step"), "{said}");
    let (code, said) = run("ami-tool", first, &["--sync-meter", &id(7)]);
    println!("one meter: {said}");
    assert!(code == 0 && said.contains("1 of 1 blocks in step"), "{said}");
    let (code, said) = run("sync-keys", first, &["--mode=secure", "--target=nowhere"]);
    println!("unknown target: {said}");
    assert!(code == 2 && said.contains(&ours) && said.contains(&target[9..]), "{said}");
    assert!(a.stop().unwrap().success());
}
