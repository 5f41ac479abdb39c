//! A test's own process, run once more as a child that is killed in the middle of its writes.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "helpers of tests may")]
#![allow(unreachable_pub, reason = "not a library")]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// Runs the test `child` of this binary with the variable `names_database` set, kills it `delay` after
/// its first `acknowledged N`, and returns the last N that it printed.
pub fn run_and_kill(child: &str, names_database: &str, path: &Path, delay: Duration) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", child, "--nocapture"])
        .env(names_database, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (first_came, wait_for_first) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut last = 0;
        for line in output.lines() {
            if let Some(number) = line.unwrap().strip_prefix("acknowledged ") {
                last = number.parse().unwrap();
                let _ = first_came.send(());
            }
        }
        last
    });
    wait_for_first.recv_timeout(Duration::from_secs(60)).expect("the child commits");
    std::thread::sleep(delay);
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    reader.join().unwrap()
}
