//! One caller can't take all: shares, time limits, and what a message may unfold to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

#[allow(dead_code, reason = "each test file uses a part")]
#[path = "rpc_support/held.rs"]
mod held;
#[allow(dead_code, reason = "each test file uses a part")]
mod rpc_support;

use std::time::Duration;

use held::{answer, decrypt, held_site, raw, retry_after};
use kms_proto::v1::{ApduBatch, ciphering_client::CipheringClient};
use kms_server::rpc::Limits;
use rpc_support::{Name, SOON, Site, client_config, eventually, reason, shake_hands};
use rustls::version::TLS13;
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, service::Routes};

const UNARY: &str = "/ami.kms.v1.Ciphering/Decrypt";
const STREAM: &str = "/ami.kms.v1.Ciphering/DecryptStream";

#[tokio::test]
async fn a_message_that_does_not_go_on_ends_its_call() {
    let limits = Limits { message_timeout: Duration::from_millis(100), ..Limits::default() };
    let (site, _held) = held_site(limits).await;
    let channel = site.caller("everyone").await;
    // A part of a prefix; a prefix; a part of a message after a whole one.
    for half in [&b"\0\0"[..], b"\0\0\0\x01\0", b"\0\0\0\0\0\0\0\0\x01\0\x0A\x02"] {
        for path in [UNARY, STREAM] {
            let ended: Result<(), Status> =
                Err(raw(channel.clone(), path, vec![half.to_vec()]).await);
            let said = reason(&ended);
            assert_eq!(said, (Code::DeadlineExceeded, "MESSAGE_TOO_SLOW".into()), "{path}");
        }
    }
    // A stream between two messages is no message that does not go on.
    let (batches, outgoing) = tokio::sync::mpsc::channel(4);
    let mut client = CipheringClient::new(channel);
    batches.send(ApduBatch::default()).await.unwrap();
    let mut answers =
        client.decrypt_stream(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    batches.send(ApduBatch { tag: 2, ..ApduBatch::default() }).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().tag, 2);
}

#[tokio::test]
async fn what_unfolds_is_refused_while_it_arrives() {
    let (site, _held) = held_site(Limits::default()).await;
    let channel = site.caller("everyone").await;
    // 16 MiB are announced, a hundred kibibytes of empty strings are enough.
    let mut ids = vec![0];
    ids.extend_from_slice(&(16u32 << 20).to_be_bytes());
    ids.extend([0x22, 0].repeat(50_000));
    let status = raw(channel, STREAM, vec![ids]).await;
    let ended: Result<(), Status> = Err(status.clone());
    assert_eq!(reason(&ended), (Code::ResourceExhausted, "BATCH_TOO_LARGE".into()));
    assert_eq!(retry_after(&ended), None);
    assert!(status.message().contains("more than 16384 meter ids"), "{status:?}");
}

#[tokio::test]
async fn one_caller_leaves_bytes_and_calls_to_the_others() {
    let limits = Limits {
        message_bytes_max: 1 << 20,
        in_flight_bytes_max: 8 << 20,
        calls_max: 10,
        ..Limits::default()
    };
    let (site, held) = held_site(limits).await;
    let greedy = site.caller("everyone").await;
    let mut half = vec![0];
    half.extend_from_slice(&(1_000u32 << 10).to_be_bytes());
    half.resize(64 << 10, 0);
    let halves: Vec<_> =
        (0..5).map(|_| tokio::spawn(raw(greedy.clone(), UNARY, vec![half.clone()]))).collect();
    // A message costs four times its length: one fits into half of what there is.
    let refused = || halves.iter().filter(|half| half.is_finished()).count();
    eventually("the share is not kept", async || refused() == 4).await;
    // Others have what is left, whoever waits.
    let honest = site.caller("hes-1.utility.example").await;
    held.let_go.add_permits(1);
    answer(decrypt(&honest)).await.unwrap();
    // Calls have a share too, over all connections.
    let more: Vec<_> = {
        let another = site.caller("everyone").await;
        (0..5).map(|_| decrypt(&another)).collect()
    };
    held.has_begun(5).await;
    eventually("calls have no share", async || more.iter().any(|call| call.is_finished())).await;
    held.let_go.add_permits(20);
    let mut said = Vec::new();
    for call in more {
        said.push(reason(&call.await.unwrap().map(drop)));
    }
    let full = (Code::ResourceExhausted, "TOO_MANY_CALLS".to_owned());
    assert!(said.contains(&full), "{said:?}");
    answer(decrypt(&honest)).await.unwrap();
}

#[tokio::test]
async fn one_caller_leaves_connections_to_the_others() {
    let limits = Limits { connections_max: 4, ..Limits::default() };
    let site = Site::start_with(limits, Routes::default()).await;
    let config =
        |name| client_config(&site.ca.pem(), Some(&site.ca.client(&Name::Dns(name))), &[&TLS13]);
    let mut open = Vec::new();
    while let Ok(stream) = shake_hands(site.address(), config("everyone")).await {
        open.push(stream);
    }
    assert_eq!(open.len(), 2);
    shake_hands(site.address(), config("hes-1.utility.example")).await.unwrap();
    let (_, page) = rpc_support::watch(&site, "/metrics").await;
    assert!(
        page.contains(r#"kms_rpc_handshake_failures_total{reason="caller_limit"} 1"#),
        "{page}"
    );
}

#[tokio::test]
async fn a_connection_without_http2_is_closed_and_a_crowd_of_strangers_keeps_nobody_out() {
    let limits = Limits {
        handshake_timeout: Duration::from_millis(300),
        handshakes_max: 4,
        ..Limits::default()
    };
    let site = Site::start_with(limits, Routes::default()).await;
    let identity = site.ca.client(&Name::Dns("everyone"));
    let config = client_config(&site.ca.pem(), Some(&identity), &[&TLS13]);
    let stream = TcpStream::connect(site.address()).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let connector = tokio_rustls::TlsConnector::from(config.clone());
    let mut silent = connector.connect(name, stream).await.unwrap();
    let read = timeout(SOON, silent.read(&mut [0; 1])).await.expect("it stays open");
    assert!(matches!(read, Ok(0) | Err(_)));
    // Ten times as many as have a place.
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(TcpStream::connect(site.address()).await.unwrap());
    }
    shake_hands(site.address(), config).await.unwrap();
    let (_, page) = rpc_support::watch(&site, "/metrics").await;
    for cause in ["no_preface", "crowded"] {
        let count = page.lines().find_map(|line| {
            line.strip_prefix(&format!("kms_rpc_handshake_failures_total{{reason=\"{cause}\"}} "))
        });
        assert!(count.unwrap().parse::<u64>().unwrap() > 0, "{cause}: {page}");
    }
}

#[tokio::test]
async fn a_stream_on_an_old_connection_is_answered_and_told_to_go_on_elsewhere() {
    let limits =
        Limits { connection_age_max: Some(Duration::from_millis(300)), ..Limits::default() };
    let (site, _held) = held_site(limits).await;
    let mut client = CipheringClient::new(site.caller("everyone").await);
    let (batches, outgoing) = tokio::sync::mpsc::channel(4);
    let mut answers =
        client.decrypt_stream(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let (mut sent, mut answered) = (0, 0);
    let ended = timeout(SOON, async {
        loop {
            if batches.send(ApduBatch { tag: sent, ..ApduBatch::default() }).await.is_ok() {
                sent += 1;
            }
            match answers.message().await {
                Ok(Some(answer)) => {
                    assert_eq!(answer.tag, answered, "in order");
                    answered += 1;
                }
                Ok(None) => panic!("the stream ended as if it were over"),
                Err(status) => break status,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the stream did not end");
    let ended: Result<(), Status> = Err(ended);
    assert_eq!(reason(&ended), (Code::Unavailable, "CONNECTION_AGE".into()));
    assert_eq!(retry_after(&ended), Some(Duration::ZERO));
    assert!(answered > 5 && sent - answered <= 1, "{sent} sent, {answered} answered");
    // One that only waits is told as well.
    let mut idle = CipheringClient::new(site.caller("everyone").await);
    let (_batches, outgoing) = tokio::sync::mpsc::channel::<ApduBatch>(1);
    let mut answers =
        idle.decrypt_stream(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let ended = timeout(SOON, answers.message()).await.expect("it waits for ever");
    assert_eq!(reason(&ended), (Code::Unavailable, "CONNECTION_AGE".into()));
}

#[tokio::test]
async fn a_stream_whose_client_has_all_answers_is_no_cancelled_one() {
    let (site, held) = held_site(Limits::default()).await;
    let count = async |verb: &str, code: &str| {
        let (_, page) = rpc_support::watch(&site, "/metrics").await;
        let line = format!("kms_rpc_requests_total{{verb=\"{verb}\",code=\"{code}\"}} ");
        let count = page.lines().find_map(|found| found.strip_prefix(&line));
        count.map_or(0, |count| count.parse::<u64>().unwrap())
    };
    for half_close in [true, false] {
        let mut client = CipheringClient::new(site.caller("everyone").await);
        let (batches, outgoing) = tokio::sync::mpsc::channel(4);
        batches.send(ApduBatch::default()).await.unwrap();
        let mut answers =
            client.decrypt_stream(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap();
        if half_close {
            drop(batches);
            drop(answers);
        } else {
            drop(answers);
            drop(batches);
        }
    }
    let stream = "Ciphering/DecryptStream";
    eventually("the streams are not counted", async || count(stream, "OK").await == 2).await;
    assert_eq!(count(stream, "CANCELLED").await, 0);
    // One that goes before its answer is.
    let call = decrypt(&site.caller("everyone").await);
    held.has_begun(1).await;
    call.abort();
    eventually("the call is not counted", async || {
        count("Ciphering/Decrypt", "CANCELLED").await == 1
    })
    .await;
}
