//! What is too much is refused by name, and a shutdown lets running calls end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

#[allow(dead_code, reason = "each test file uses a part")]
#[path = "rpc_support/held.rs"]
mod held;
#[allow(dead_code, reason = "each test file uses a part")]
mod rpc_support;

use std::time::Duration;

use held::{Frames, answer, decrypt, held_site, retry_after};
use kms_proto::v1::{ApduBatch, DecryptRequest, ciphering_client::CipheringClient};
use kms_server::rpc::Limits;
use rpc_support::{
    HEALTH, Name, SOON, Site, call, client_config, connect, eventually, reason, shake_hands,
};
use rustls::version::TLS13;
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Status, service::Routes};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

#[tokio::test]
async fn a_client_that_does_not_shake_hands_is_cut() {
    let limits = Limits { handshake_timeout: Duration::from_millis(50), ..Limits::default() };
    let site = Site::start_with(limits, Routes::default()).await;
    let mut silent = TcpStream::connect(site.address()).await.unwrap();
    let read = timeout(SOON, silent.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)));
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_until_one_ends() {
    let limits = Limits { connections_max: 2, caller_share_percent: 100, ..Limits::default() };
    let site = Site::start_with(limits, Routes::default()).await;
    let identity = site.ca.client(&Name::Dns("everyone"));
    let config = client_config(&site.ca.pem(), Some(&identity), &[&TLS13]);
    let first = shake_hands(site.address(), config.clone()).await.unwrap();
    let _second = shake_hands(site.address(), config.clone()).await.unwrap();
    assert!(shake_hands(site.address(), config.clone()).await.is_err());
    drop(first);
    eventually("the place is not given back", async || {
        shake_hands(site.address(), config.clone()).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn calls_beyond_the_limit_of_a_connection_are_told_to_come_back() {
    let (site, held) =
        held_site(Limits { streams_per_connection_max: 2, ..Limits::default() }).await;
    let channel = site.caller("everyone").await;
    let running = [decrypt(&channel), decrypt(&channel)];
    held.has_begun(2).await;
    let refused = answer(decrypt(&channel)).await;
    assert_eq!(reason(&refused), (Code::ResourceExhausted, "TOO_MANY_CALLS".into()));
    assert!(retry_after(&refused).is_some());
    // The limit is the connection's, not the server's.
    call(&site.caller("everyone").await, HEALTH).await.unwrap();
    held.let_go.add_permits(3);
    for running in running {
        answer(running).await.unwrap();
    }
    eventually("the places are not given back", async || answer(decrypt(&channel)).await.is_ok())
        .await;
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_refused_before_it_is_read() {
    let (site, held) = held_site(Limits { message_bytes_max: 4_096, ..Limits::default() }).await;
    let mut client = CipheringClient::new(site.caller("everyone").await);
    let long = DecryptRequest { apdu: vec![0; 4_200].into(), ..DecryptRequest::default() };
    let refused = client.decrypt(long).await;
    assert_eq!(reason(&refused), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".into()));
    // It will be as long when it comes again.
    assert_eq!(retry_after(&refused), None);
    let limit =
        refused.unwrap_err().get_error_details().error_info().unwrap().metadata["limit"].clone();
    assert_eq!(limit, "4096");
    held.let_go.add_permits(1);
    let short = DecryptRequest { apdu: vec![0; 4_000].into(), ..DecryptRequest::default() };
    client.decrypt(short).await.unwrap();
}

#[tokio::test]
async fn half_sent_messages_cannot_fill_the_memory() {
    let limits =
        Limits { message_bytes_max: 1 << 20, in_flight_bytes_max: 1 << 20, ..Limits::default() };
    let (site, held) = held_site(limits).await;
    let channel = site.caller("everyone").await;
    let send = |payload: Vec<u8>| {
        let frames: Vec<Result<http_body::Frame<bytes::Bytes>, Status>> =
            vec![Ok(http_body::Frame::data(payload.into()))];
        let rest = futures_util::stream::pending();
        let frames = futures_util::stream::iter(frames);
        let body = tonic::body::Body::new(Frames(Box::pin(frames.chain(rest))));
        let request = http::Request::post("/ami.kms.v1.Ciphering/Decrypt")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .unwrap();
        let mut channel = channel.clone();
        tokio::spawn(async move {
            let response = tower::ServiceExt::ready(&mut channel).await.unwrap();
            let answer = tower::Service::call(response, request).await.unwrap();
            Status::from_header_map(answer.headers())
        })
    };
    // 900 KiB of a message of 1,000 KiB: there is no room for two of them.
    let mut half = vec![0];
    half.extend_from_slice(&(1_000u32 << 10).to_be_bytes());
    half.resize(900 << 10, 0);
    let mut both = [send(half.clone()), send(half)];
    let (first, _) = tokio::time::timeout(SOON, async {
        let [a, b] = &mut both;
        tokio::select! { first = a => (first, 0), first = b => (first, 1) }
    })
    .await
    .expect("both half messages were taken");
    let refused: Result<(), Status> = Err(first.unwrap().unwrap());
    assert_eq!(reason(&refused), (Code::ResourceExhausted, "BUSY".into()));
    assert!(retry_after(&refused).is_some());
    for half in both {
        half.abort();
    }
    held.let_go.add_permits(1);
    eventually("the room is not given back", async || {
        held.let_go.add_permits(1);
        let long = DecryptRequest { apdu: vec![0; 900 << 10].into(), ..DecryptRequest::default() };
        CipheringClient::new(channel.clone()).decrypt(long).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_call_that_takes_too_long_is_given_up() {
    let limits = Limits { call_timeout: Duration::from_millis(50), ..Limits::default() };
    let (site, _held) = held_site(limits).await;
    let refused = answer(decrypt(&site.caller("everyone").await)).await;
    assert_eq!(reason(&refused), (Code::DeadlineExceeded, "TOOK_TOO_LONG".into()));
}

#[tokio::test]
async fn a_fault_in_a_service_leaves_the_server_standing() {
    let (site, _held) = held_site(Limits::default()).await;
    let mut client = CipheringClient::new(site.caller("everyone").await);
    assert!(client.decrypt_batch(ApduBatch::default()).await.is_err());
    call(&site.caller("everyone").await, HEALTH).await.unwrap();
}

#[tokio::test]
async fn a_connection_is_asked_to_end_at_its_age_and_its_running_call_is_not() {
    let limits =
        Limits { connection_age_max: Some(Duration::from_millis(200)), ..Limits::default() };
    let (site, held) = held_site(limits).await;
    let channel = site.caller("everyone").await;
    let running = decrypt(&channel);
    held.has_begun(1).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    held.let_go.add_permits(1);
    answer(running).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_does_not_end_at_its_age_is_cut() {
    let limits = Limits {
        connection_age_max: Some(Duration::from_millis(100)),
        drain_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let (site, held) = held_site(limits).await;
    let running = decrypt(&site.caller("everyone").await);
    held.has_begun(1).await;
    assert!(answer(running).await.is_err());
}

#[tokio::test]
async fn a_drain_lets_a_running_call_end_and_begins_no_other() {
    let (mut site, held) = held_site(Limits::default()).await;
    let running = decrypt(&site.caller("everyone").await);
    held.has_begun(1).await;
    let watched = site.caller("everyone").await;
    let mut health = HealthClient::new(watched);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 1);
    site.stop();
    // Whoever watches is told first, and then let go.
    assert_eq!(watch.message().await.unwrap().unwrap().status, 2);
    assert_eq!(reason(&watch.message().await), (Code::Unavailable, "SHUTTING_DOWN".into()));
    eventually("new connections are accepted", async || {
        TcpStream::connect(site.address()).await.is_err()
    })
    .await;
    site.bound.control.set_serving(true).await;
    assert!(!site.task.is_finished());
    held.let_go.add_permits(1);
    answer(running).await.unwrap();
    timeout(SOON, &mut site.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_drain_tells_an_open_stream_to_go_elsewhere() {
    let limits = Limits { drain_timeout: Duration::from_millis(400), ..Limits::default() };
    let (mut site, _held) = held_site(limits).await;
    let mut client = CipheringClient::new(site.caller("everyone").await);
    let (batches, outgoing) = tokio::sync::mpsc::channel(4);
    batches.send(ApduBatch { tag: 1, ..ApduBatch::default() }).await.unwrap();
    let mut answers =
        client.decrypt_stream(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().tag, 1);
    site.stop();
    tokio::time::sleep(Duration::from_millis(50)).await;
    batches.send(ApduBatch { tag: 2, ..ApduBatch::default() }).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().tag, 2);
    let ended = answers.message().await;
    assert_eq!(reason(&ended), (Code::Unavailable, "SHUTTING_DOWN".into()));
    assert!(retry_after(&ended).is_some());
    timeout(SOON, &mut site.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_drain_cuts_what_does_not_end() {
    let limits = Limits { drain_timeout: Duration::from_millis(100), ..Limits::default() };
    let (mut site, held) = held_site(limits).await;
    let running = decrypt(&site.caller("everyone").await);
    held.has_begun(1).await;
    site.stop();
    assert!(answer(running).await.is_err());
    timeout(SOON, &mut site.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_stream_does_not_outlive_its_certificate() {
    let (site, _held) = held_site(Limits::default()).await;
    let identity = site.ca.client_of_years(&Name::Dns("everyone"), 2020, 2099);
    let channel = connect(site.address(), &site.ca.pem(), Some(&identity)).await.unwrap();
    let (batches, outgoing) = tokio::sync::mpsc::channel(4);
    batches.send(ApduBatch::default()).await.unwrap();
    let mut client = CipheringClient::new(channel);
    let mut answers =
        client.decrypt_stream(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    site.clock.advance_years(100);
    batches.send(ApduBatch::default()).await.unwrap();
    let ended = answers.message().await;
    assert_eq!(reason(&ended), (Code::Unauthenticated, "CERTIFICATE_EXPIRED".into()));
}

#[tokio::test]
async fn health_says_what_it_is_told() {
    let site = Site::start().await;
    let mut health = HealthClient::new(site.caller("everyone").await);
    for (serving, status) in [(false, 2), (true, 1)] {
        site.bound.control.set_serving(serving).await;
        for service in ["", "ami.kms.v1.Ciphering", "ami.kms.v1.Meters", "ami.kms.v1.Site"] {
            let request = HealthCheckRequest { service: service.into() };
            let answer = health.check(request).await.unwrap().into_inner();
            assert_eq!(answer.status, status, "{service}");
        }
    }
}

#[tokio::test]
async fn reflection_lists_every_service() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let site = Site::start().await;
    let mut client = ServerReflectionClient::new(site.caller("everyone").await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers =
        client.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "ami.kms.v1.Approvals",
            "ami.kms.v1.Audit",
            "ami.kms.v1.Ciphering",
            "ami.kms.v1.Groups",
            "ami.kms.v1.Meters",
            "ami.kms.v1.Nodes",
            "ami.kms.v1.Replication",
            "ami.kms.v1.Rotation",
            "ami.kms.v1.Site",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection"
        ]
    );
}
