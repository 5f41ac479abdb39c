//! A log that nobody reads, or that can't be written, costs its lines and nothing else: the server
//! starts, serves and ends as if somebody read it, and counts what it dropped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::OpenOptionsExt as _,
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use common::{
    Home, SOON, client, eventually, fleet, free_address, home, home_with, metric, metrics_of, warm,
};
use kms_client::{KmsClient, Verdict};
use rustix::process::{Pid, Signal, kill_process};
use softhsm_tests::Role;

/// A server that a test gave its standard error.
struct Served(Child);

impl Served {
    fn start(home: &Home, stderr: impl Into<Stdio>) -> Self {
        Self(command(home, "serve").stderr(stderr).spawn().unwrap())
    }

    /// How it ended; killed if it does not within 20 s, which no assertion here takes for an end.
    fn wait(&mut self) -> ExitStatus {
        let began = Instant::now();
        while began.elapsed() < SOON {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.0.kill().unwrap();
        self.0.wait().unwrap()
    }

    fn stop(&mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        self.wait()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(home: &Home, verb: &str) -> Command {
    let mut command = home.command(verb);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// A home whose metrics can be asked for.
fn measured() -> (Home, SocketAddr) {
    let address = free_address();
    let listen = softhsm_tests::settings::quoted(&address.to_string());
    let home = home_with(&[("metrics", "listen", &listen), ("log", "level", "\"debug\"")]);
    (home, address)
}

fn dropped(metrics: SocketAddr) -> u64 {
    metric(&metrics_of(metrics), "kms_log_lines_dropped_total") as u64
}

async fn ready(home: &Home) -> KmsClient {
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", home.port())).is_err() {
        assert!(began.elapsed() < SOON, "it does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client(home, Role::Dev).await
}

/// Says many lines: a call of a meter's is one at `debug`.
async fn chatter(client: &KmsClient) {
    let apdu = fleet::apdu(fleet::push(1));
    for _ in 0..10_000 {
        let item = client.decrypt(&apdu).await.unwrap();
        assert_eq!(item.verdict(), Verdict::Ok);
    }
}

/// A pipe that is full from the beginning: its reader is there and takes nothing.
fn full_pipe(home: &Home) -> (Served, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    let writer = std::os::fd::OwnedFd::from(writer);
    let filled = File::options()
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer)))
        .unwrap();
    while (&filled).write(&[b'.'; 4096]).is_ok() {}
    let served = Served::start(home, writer);
    (served, File::from(std::os::fd::OwnedFd::from(reader)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipe_that_nobody_reads_stops_neither_start_nor_calls_nor_end() {
    let (home, metrics) = measured();
    let (mut served, mut reader) = full_pipe(&home);
    let client = ready(&home).await;
    warm(&client).await;
    fleet::add(&client, &[fleet::line(1)]).await;
    chatter(&client).await;
    // New connections, too.
    client.site_status().await.unwrap();
    drop(self::client(&home, Role::Hes).await);
    assert!(dropped(metrics) > 0, "nothing was dropped: the test shows nothing");

    // Whoever reads again is told that there is a gap.
    let log = std::thread::spawn(move || {
        let mut log = Vec::new();
        reader.read_to_end(&mut log).unwrap();
        String::from_utf8(log).unwrap()
    });
    eventually("the gap is said", async || client.site_status().await.is_ok()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let status = served.stop();
    assert_eq!(status.code(), Some(0), "{status}");
    let log = log.join().unwrap();
    let said = log.lines().filter(|line| line.contains("log lines were dropped")).count();
    assert!(said >= 1, "{}", log.len());
    assert!(log.contains("stopping"), "the end of the log is there again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_does_not_wait_for_a_reader() {
    let (home, _) = measured();
    let (mut served, _reader) = full_pipe(&home);
    let client = ready(&home).await;
    client.site_status().await.unwrap();
    let status = served.stop();
    assert_eq!(status.code(), Some(0), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_takes_nothing_costs_the_lines_and_no_more() {
    let (home, metrics) = measured();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut served = Served::start(&home, full);
    let client = ready(&home).await;
    client.site_status().await.unwrap();
    assert!(dropped(metrics) > 0);
    assert_eq!(served.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_away_costs_the_lines_and_no_more() {
    let (home, metrics) = measured();
    let mut served = Served::start(&home, Stdio::piped());
    let reader: ChildStderr = served.0.stderr.take().unwrap();
    let client = ready(&home).await;
    client.site_status().await.unwrap();
    drop(reader);
    eventually("a line is dropped", async || {
        client.site_status().await.unwrap();
        dropped(metrics) > 0
    })
    .await;
    assert_eq!(served.stop().code(), Some(0));
}

#[test]
fn a_refusal_ends_with_its_code_whatever_becomes_of_its_sentence() {
    let home = home();
    std::fs::write(&home.places().pin, "00000000").unwrap();
    for verb in ["serve", "probe-hsm"] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut refused = Served(command(&home, verb).stderr(full).spawn().unwrap());
        assert_eq!(refused.wait().code(), Some(4), "/dev/full, {verb}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut refused = Served(command(&home, verb).stderr(writer).spawn().unwrap());
        assert_eq!(refused.wait().code(), Some(4), "a closed pipe, {verb}");
    }
    let (mut refused, _reader) = full_pipe(&home);
    assert_eq!(refused.wait().code(), Some(4), "a full pipe");
}
