//! A token that hangs: the server starts not and says so, ends when it is told to, and says which token.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use common::{
    Home, client,
    fleet::{add, apdu, line_in_hsm, push},
    home_with,
};
use rustix::process::{Pid, Signal, kill_process};
use softhsm_tests::{Role, server::was_killed};

/// As short as a busy machine allows.
const CALL_TIMEOUT_MS: &str = "1000";
/// What a start may take that hangs, four calls, with room for a busy machine.
const GIVEN_UP: Duration = Duration::from_secs(25);
/// What the end may take beside the drain of two seconds: the last entry, the database, and that room.
const ENDED: Duration = Duration::from_secs(18);

/// A site whose token is reached through the module that makes faults.
fn faulty(call_timeout_ms: &str) -> Home {
    let module = format!("{:?}", fault_module::library());
    home_with(&[
        ("hsm", "module", &module),
        ("hsm", "call_timeout_ms", call_timeout_ms),
        ("rpc.limits", "drain_timeout_ms", "2000"),
    ])
}

/// Runs a verb to its end, or kills it when it has taken too long.
fn run(command: &mut Command, at_most: Duration) -> (Output, Duration) {
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() && begun.elapsed() < at_most {
        std::thread::sleep(Duration::from_millis(20));
    }
    let took = begun.elapsed();
    let _ = child.kill();
    (child.wait_with_output().unwrap(), took)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_token_hangs_ends_within_its_drain_time() {
    let home = faulty(CALL_TIMEOUT_MS);
    let running = home.start().unwrap();
    add(&client(&home, Role::AmiAdmin).await, &[line_in_hsm(1)]).await;
    let hes = client(&home, Role::Hes).await;
    home.faults().set("* hang").unwrap();
    // More than there are sessions: each takes a place and its thread, for ever.
    let hanging: Vec<_> = (0..6)
        .map(|_| {
            let hes = hes.clone();
            tokio::spawn(async move { hes.decrypt(&apdu(push(1))).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let begun = Instant::now();
    let stopping = std::thread::spawn(|| running.stop());
    while !stopping.is_finished() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let status = stopping.join().unwrap().unwrap();
    let took = begun.elapsed();
    assert!(!was_killed(status), "it had to be killed: {status}");
    assert!(status.success() && took < ENDED, "{status} after {took:?}");
    for call in hanging {
        let _ = call.await.unwrap();
    }
}

#[test]
fn a_start_at_a_token_that_hangs_ends_and_names_the_token() {
    for hangs in [
        "C_Initialize hang",
        "C_GetTokenInfo hang",
        "C_Login hang",
        "C_Decrypt hang",
        "C_CreateObject hang",
    ] {
        let home = faulty(CALL_TIMEOUT_MS);
        home.faults().set(hangs).unwrap();
        let (output, took) = run(&mut home.command("serve"), GIVEN_UP);
        let told = String::from_utf8_lossy(&output.stderr);
        // The code that the unit starts again from: a token may come back.
        assert_eq!(output.status.code(), Some(6), "{hangs}, {took:?}: {told}");
        let line = told.lines().last().unwrap();
        assert!(
            line.contains("token `ami-site-a`") && line.contains("libfault_module.so"),
            "{line}"
        );
        assert!(line.contains("has not answered for 4 s"), "{line}");
    }
}

#[test]
fn a_start_that_hangs_can_be_told_to_stop() {
    let home = faulty("600000");
    home.faults().set("log\nC_Login hang").unwrap();
    let begun = Instant::now();
    let mut child = home.command("serve").stderr(Stdio::null()).spawn().unwrap();
    while !home.faults().calls().iter().any(|call| call.starts_with("C_OpenSession")) {
        assert!(begun.elapsed() < GIVEN_UP, "it never came to the token");
        std::thread::sleep(Duration::from_millis(20));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let told = Instant::now();
    while child.try_wait().unwrap().is_none() && told.elapsed() < ENDED {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    assert!(child.wait().unwrap().success());
}

#[test]
fn check_config_names_a_token_that_hangs() {
    let home = faulty(CALL_TIMEOUT_MS);
    home.faults().set("C_Login hang").unwrap();
    let (output, took) = run(&mut home.command("check-config"), GIVEN_UP);
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{took:?}: {told}");
    assert!(told.contains("token `ami-site-a`") && told.contains("has not answered"), "{told}");
}
