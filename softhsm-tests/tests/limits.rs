//! What is too much is refused by name, and a server that is told to stop ends what it began.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::time::Duration;

use common::{
    client, eventually,
    fleet::{PLAIN, add, apdu, line, push},
    home, home_with, wire,
};
use kms_client::{StreamOptions, Verdict};
use kms_proto::v1::{
    ApduBatch, DecryptBatchResponse, DecryptRequest, ciphering_client::CipheringClient,
};
use rustix::process::Signal;
use softhsm_tests::Role;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;

fn batch(apdus: &[Vec<u8>]) -> ApduBatch {
    ApduBatch {
        apdus: apdus.concat().into(),
        lengths: apdus.iter().map(|apdu| apdu.len() as u32).collect(),
        ..ApduBatch::default()
    }
}

/// Exhausted, for this reason, at this limit; when to come back, if coming back helps.
fn exhausted<T: std::fmt::Debug>(answer: Result<T, Status>, word: &str, limit: &str) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.domain.as_str()), (word, "ami.kms.v1"));
    assert_eq!(info.metadata["limit"], limit);
    let retry = details.retry_info().and_then(|info| info.retry_delay);
    assert_eq!(retry.is_some_and(|delay| delay > Duration::ZERO), word == "BUSY", "{word}");
}

fn all_ok(answer: &DecryptBatchResponse, items: usize) {
    assert_eq!(answer.verdicts.len(), items);
    assert!(answer.verdicts.iter().all(|verdict| *verdict == Verdict::OK), "{answer:?}");
    assert_eq!(answer.plaintexts.len(), items * PLAIN.len());
}

trait VerdictByte {
    const OK: u8;
}

impl VerdictByte for Verdict {
    const OK: u8 = kms_proto::v1::Verdict::Ok as u8;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_or_a_message_over_the_limit_is_refused_and_one_at_it_is_not() {
    let home = home_with(&[
        ("rpc.limits", "batch_items_max", "100"),
        ("rpc.limits", "message_bytes_max", "65536"),
    ]);
    let _running = home.start().unwrap();
    add(&client(&home, Role::AmiAdmin).await, &[line(1)]).await;
    let mut raw = CipheringClient::new(wire::channel_as(&home, Role::Hes));
    let pushes: Vec<Vec<u8>> = (0..101).map(|_| push(1)).collect();
    all_ok(&raw.decrypt_batch(batch(&pushes[..100])).await.unwrap().into_inner(), 100);
    exhausted(raw.decrypt_batch(batch(&pushes)).await, "BATCH_TOO_LARGE", "100");
    exhausted(raw.verify_mic_batch(batch(&pushes)).await, "BATCH_TOO_LARGE", "100");
    // In a stream it ends the stream; the batches before it were answered.
    let batches = tokio_stream::iter([batch(&pushes[..100]), batch(&pushes)]);
    let mut answers = raw.decrypt_stream(batches).await.unwrap().into_inner();
    all_ok(&answers.message().await.unwrap().unwrap(), 100);
    exhausted(answers.message().await, "BATCH_TOO_LARGE", "100");

    let of_len = |len: usize| DecryptRequest { apdu: vec![0; len].into(), ..Default::default() };
    let fits = raw.decrypt(of_len(65_000)).await.map(Response::into_inner).unwrap();
    assert_eq!(fits.verdict(), kms_proto::v1::Verdict::Malformed);
    exhausted(raw.decrypt(of_len(65_536)).await, "MESSAGE_TOO_LARGE", "65536");
    let long = batch(&vec![vec![0xDB; 1_000]; 70]);
    exhausted(raw.decrypt_batch(long.clone()).await, "MESSAGE_TOO_LARGE", "65536");
    let mut answers = raw.decrypt_stream(tokio_stream::iter([long])).await.unwrap().into_inner();
    exhausted(answers.message().await, "MESSAGE_TOO_LARGE", "65536");
    // Nothing of it stays behind.
    all_ok(&raw.decrypt_batch(batch(&pushes[..100])).await.unwrap().into_inner(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_is_bounded_and_a_patient_client_gets_everything() {
    let home = home_with(&[
        ("rpc.limits", "batch_items_max", "2000"),
        ("rpc.limits", "in_flight_items_max", "2000"),
    ]);
    let _running = home.start().unwrap();
    add(&client(&home, Role::AmiAdmin).await, &[line(1)]).await;
    let one = push(1);
    let full = batch(&vec![one.clone(); 2_000]);
    let calls: Vec<_> = (0..24)
        .map(|_| {
            let mut raw = CipheringClient::new(wire::channel_as(&home, Role::Hes));
            let full = full.clone();
            tokio::spawn(async move { raw.decrypt_batch(full).await.map(Response::into_inner) })
        })
        .collect();
    let (mut answered, mut refused) = (0, 0);
    for call in calls {
        match call.await.unwrap() {
            Ok(answer) => {
                all_ok(&answer, 2_000);
                answered += 1;
            }
            Err(status) => {
                exhausted::<()>(Err(status), "BUSY", "2000");
                refused += 1;
            }
        }
    }
    println!("24 full batches at once: {answered} answered, {refused} told to come back");
    assert!(answered > 0 && refused > 0);
    // The library waits as it is told, and tries again.
    let config = kms_client::ClientConfig::load(&home.client_toml(Role::Hes)).unwrap();
    let patient = kms_client::KmsClient::connect(config).await.unwrap();
    let patient = patient.with_options(StreamOptions {
        batch_size: 1_500,
        batches_in_flight: 2,
        ..StreamOptions::default()
    });
    let opened = patient.decrypt_batch((0..9_000).map(|_| apdu(one.clone()))).await.unwrap();
    assert!(opened.len() == 9_000 && opened.iter().all(|one| one.verdict() == Verdict::Ok));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_a_running_stream_finish_its_batches_and_refuses_new_calls() {
    let home = home();
    let running = home.start().unwrap();
    add(&client(&home, Role::AmiAdmin).await, &[line(1)]).await;
    let channel = wire::channel_as(&home, Role::Hes);
    let mut raw = CipheringClient::new(channel.clone());
    let pushes: Vec<Vec<u8>> = (0..50).map(|_| push(1)).collect();
    let (batches, outgoing) = tokio::sync::mpsc::channel(64);
    batches.send(ApduBatch { tag: 0, ..batch(&pushes) }).await.unwrap();
    let mut answers = raw.decrypt_stream(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    all_ok(&answers.message().await.unwrap().unwrap(), 50);

    running.signal(Signal::TERM).unwrap();
    eventually("new connections are refused", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", home.port())).await.is_err()
    })
    .await;
    let mut stranger = CipheringClient::new(wire::channel_as(&home, Role::Hes));
    let refused = stranger.decrypt_batch(batch(&pushes)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    // What was begun is finished, however much of it there is.
    for tag in 1..=20 {
        batches.send(ApduBatch { tag, ..batch(&pushes) }).await.unwrap();
    }
    drop(batches);
    for tag in 1..=20 {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.tag, tag);
        all_ok(&answer, 50);
    }
    assert!(answers.message().await.unwrap().is_none());
    drop((answers, raw, channel));
    let status = running.stop().unwrap();
    assert!(status.success(), "{status}");
    // And it starts again from what it left.
    let running = home.start().unwrap();
    let hes = client(&home, Role::Hes).await;
    let opened: Vec<_> = hes
        .decrypt_stream(tokio_stream::iter(pushes.into_iter().map(apdu)))
        .map(|opened| opened.unwrap().verdict())
        .collect()
        .await;
    assert!(opened.len() == 50 && opened.iter().all(|verdict| *verdict == Verdict::Ok));
    assert!(running.stop().unwrap().success());
}
