//! Two servers of one site over one PostgreSQL, as real processes: what is sent to a meter is protected by the node that
//! holds its counters, whichever of them is asked. Every counter is read off the APDUs that came back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;
#[path = "../../kms-server/tests/postgres_common/mod.rs"]
mod postgres_common;
mod several_nodes;

use std::{
    collections::BTreeMap,
    fs,
    sync::Mutex,
    time::{Duration, Instant},
};

use common::{
    Home, client, eventually,
    fleet::{GAK, GUEK, add, id, title, value},
    warm,
    wire::channel_as,
};
use dlms::{CipheredApdu, GeneralCipheringAad, Keys, SystemTitle};
use kms_client::{
    AuditEvent, CounterDeclaration, KmsClient, MeterName, PlainApdu, Protected, Protecting,
    TransmitRefusal, Verdict,
};
use kms_proto::v1::{
    PlainBatch, ProtectRequest, ciphering_client::CipheringClient, nodes_client::NodesClient,
};
use postgres_common::Cluster;
use rustix::process::Signal;
use several_nodes::{cluster, first_node, further_node};
use softhsm_tests::{Role, Running, settings::quoted};
use tokio_stream::StreamExt as _;
use tonic::{Code, Request};

const FLEET: u64 = 20;
const CLIENT: SystemTitle = SystemTitle::new(*b"AMIHES\x00\x01");
const GET: &[u8] = b"\xC0\x01\xC1\x00\x08\x00\x00\x01\x00\x00\xFF\x02\x00";

fn line(n: u64) -> String {
    let hex = |bytes: &[u8]| hex::encode_upper(bytes);
    let (own, guek, gak) = (hex(title(n).as_bytes()), hex(&value(n, GUEK)), hex(&value(n, GAK)));
    format!(
        r#"{{"meter_id":"{}","system_title":"{own}","keys":[{{"kind":"GUEK","value":"{guek}"}},{{"kind":"GAK","value":"{gak}"}}],"policy":{{"client_title":"{}"}}}}"#,
        id(n),
        hex(CLIENT.as_bytes())
    )
}

fn node_id(n: u8) -> String {
    hex::encode([n; 16])
}

/// Makes `home` node `n`, which knows the way to node `other` at this port.
fn name_node(home: &Home, (n, authority): (u8, &Home), other: (u8, u16)) {
    let places = home.places();
    fs::create_dir_all(&places.data).unwrap();
    fs::write(places.data.join("node-id"), format!("{}\n", node_id(n))).unwrap();
    let identity = authority.authority().unwrap().site(&format!("kms-{n}")).unwrap();
    fs::write(places.certificate("server"), identity.certificate_pem).unwrap();
    fs::write(places.private_key("server"), identity.private_key_pem).unwrap();
    let ca = quoted(&places.certificate("ca").display().to_string());
    let text = fs::read_to_string(&places.kms_toml).unwrap();
    let (its, port) = other;
    let more = format!(
        "\n[[nodes]]\nnode = \"{}\"\nendpoint = \"https://localhost:{port}\"\nca = {ca}\n\n\
         [[rpc.callers]]\nname = \"kms-{its}\"\nroles = [\"node\"]\n\n\
         [audit]\ntraffic_interval_s = 1\n",
        node_id(its)
    );
    fs::write(&places.kms_toml, text + &more).unwrap();
}

/// Grants `hes-1` what a transmitter may, at this node alone.
fn let_hes_transmit(home: &Home) {
    let text = fs::read_to_string(&home.places().kms_toml).unwrap();
    let (hes, both) = ("roles = [\"hes\"]", "roles = [\"hes\", \"transmitter\"]");
    assert_eq!(text.matches(hes).count(), 1);
    fs::write(&home.places().kms_toml, text.replace(hes, both)).unwrap();
}

struct Node {
    home: Home,
    running: Running,
    client: KmsClient,
}

impl Node {
    async fn start(home: Home) -> Self {
        let running = home.start().unwrap();
        let client = client(&home, Role::Dev).await;
        warm(&client).await;
        Self { home, running, client }
    }
}

/// Two nodes, the first of which has been asked for each meter first: it holds all counters.
async fn two_nodes(cluster: &Cluster, change: impl Fn(&Home)) -> (Node, Node, Seen) {
    let first = first_node(cluster);
    let second = further_node(&first, cluster);
    name_node(&first, (1, &first), (2, second.port()));
    name_node(&second, (2, &first), (1, first.port()));
    change(&second);
    let first = Node::start(first).await;
    add(&first.client, &(1..=FLEET).map(line).collect::<Vec<_>>()).await;
    for n in 1..=FLEET {
        let declaration = CounterDeclaration {
            meter: MeterName::Title(title(n)),
            security_setup: 0,
            client: 0,
            broadcast: false,
            last_invocation_counter: None,
        };
        first.client.meters().declare_counter(&declaration).await.unwrap();
    }
    let seen = Seen::default();
    seen.send(&first.client).await;
    (first, Node::start(second).await, seen)
}

/// The highest counter that each meter has seen.
#[derive(Default)]
struct Seen(Mutex<BTreeMap<u64, u32>>);

impl Seen {
    /// Sends to every meter twice, in one call, and each takes what came.
    async fn send(&self, client: &KmsClient) {
        let meters: Vec<u64> = (1..=FLEET).chain(1..=FLEET).collect();
        let apdus: Vec<PlainApdu> = meters.iter().map(|n| plain(*n)).collect();
        let all = client.encrypt_batch(&apdus, Protecting::default()).await.unwrap();
        for (n, protected) in meters.into_iter().zip(&all) {
            self.take(n, protected);
        }
    }

    fn take(&self, n: u64, protected: &Protected) {
        assert_eq!(protected.verdict, Verdict::Ok, "{protected:?}");
        let counter = counter_of(n, protected.apdu.as_ref().unwrap());
        assert_eq!(protected.invocation_counter, Some(counter));
        let before = self.0.lock().unwrap().insert(n, counter).unwrap_or_default();
        assert!(before < counter, "{} sees {counter} after {before}", id(n));
    }
}

fn plain(n: u64) -> PlainApdu {
    PlainApdu { bytes: GET.into(), meter: MeterName::Title(title(n)) }
}

/// The counter that an APDU bears, once the meter has opened it.
fn counter_of(n: u64, apdu: &[u8]) -> u32 {
    let apdu = CipheredApdu::parse(apdu).unwrap();
    let (guek, gak) = (value(n, GUEK), value(n, GAK));
    let keys = Keys { encryption: &guek, authentication: &gak };
    let mut out = Vec::new();
    apdu.open(&keys, &CLIENT, GeneralCipheringAad::Spec, &mut out).unwrap();
    assert_eq!(out, GET);
    apdu.invocation_counter()
}

async fn encrypt(client: &KmsClient, n: u64) -> Protected {
    client.encrypt(&plain(n), Protecting::default()).await.unwrap()
}

/// The reason why nothing was protected for meter `n`, which node 1 holds.
async fn refused(client: &KmsClient, n: u64) -> String {
    let protected = encrypt(client, n).await;
    assert_eq!(protected.refusal, Some(TransmitRefusal::HeldByAnotherNode), "{protected:?}");
    let reason = protected.reason.unwrap();
    println!("{reason}");
    assert!(reason.contains(&node_id(1)), "{reason}");
    reason
}

fn forwarded(caller: &str, n: u64) -> ProtectRequest {
    let batch = PlainBatch {
        apdus: GET.into(),
        lengths: vec![GET.len() as u32],
        system_titles: title(n).as_bytes().to_vec().into(),
        ..PlainBatch::default()
    };
    ProtectRequest {
        caller: caller.to_owned(),
        roles: Vec::new(),
        call: "Ciphering/Encrypt".to_owned(),
        node_id: vec![1; 16].into(),
        batch: Some(batch),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_3_counters_rise_without_a_repeat_at_either_node_and_a_holder_that_dies_is_named()
{
    let cluster = cluster();
    let (first, second, seen) = two_nodes(&cluster, |_| {}).await;
    for _ in 0..5 {
        seen.send(&second.client).await;
        seen.send(&first.client).await;
    }
    seen.take(7, &encrypt(&second.client, 7).await);
    // Every counter was node 1's, one after the other.
    let highest = seen.0.lock().unwrap().clone();
    let due = |n: u64| 2 * 11 + u32::from(n == 7);
    assert!(highest.iter().all(|(n, counter)| *counter == due(*n)), "{highest:?}");

    // One that does not answer is named, before the caller is gone; what it was asked once, it does once.
    first.running.signal(Signal::STOP).unwrap();
    let reason = refused(&second.client, 3).await;
    assert!(reason.contains("gave no answer"), "{reason}");
    first.running.signal(Signal::CONT).unwrap();
    let next = Mutex::new(None);
    eventually("the holder is asked again", async || {
        let apdu = encrypt(&second.client, 3).await.apdu;
        let counter = apdu.map(|apdu| counter_of(3, &apdu));
        *next.lock().unwrap() = counter;
        counter.is_some()
    })
    .await;
    let spent = next.into_inner().unwrap().unwrap() - highest[&3] - 1;
    println!("spent by a call without an answer: {spent}");
    assert!(spent <= 1, "it was sent once");

    first.running.kill_9().unwrap();
    let reason = refused(&second.client, 5).await;
    assert!(reason.contains("can't be reached"), "{reason}");
    eventually("the block is taken over", async || {
        encrypt(&second.client, 5).await.verdict == Verdict::Ok
    })
    .await;
    seen.take(5, &encrypt(&second.client, 5).await);
    drop(first.home);
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_do_not_wait_do_not_have_a_healthy_holder_taken_over_from() {
    let cluster = cluster();
    let (first, second, seen) = two_nodes(&cluster, |_| {}).await;
    let mut hurried = CipheringClient::new(channel_as(&second.home, Role::Dev));
    let batch = forwarded("dev", 3).batch.unwrap();
    // For longer than a silent holder is waited for.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        let mut request = Request::new(batch.clone());
        request.set_timeout(Duration::from_millis(2));
        let _ = hurried.encrypt_batch(request).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    seen.send(&second.client).await;
    // A take-over goes on behind all that the holder had reserved.
    let highest = seen.0.lock().unwrap().clone();
    assert!(highest.values().all(|counter| *counter < 1_000), "{highest:?}");
    drop((first.home, first.running));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_protects_for_another_one_what_its_own_policy_grants_the_caller_and_goes_one_hop() {
    let cluster = cluster();
    let (first, second, seen) = two_nodes(&cluster, let_hes_transmit).await;
    let before = seen.0.lock().unwrap()[&4];

    // At the second node he may, and the first one does not let him.
    let hes = client(&second.home, Role::Hes).await;
    let reason = refused(&hes, 4).await;
    assert!(reason.contains("no role of hes-1 grants Ciphering/Encrypt"), "{reason}");

    // A node whose own certificate says so, and nobody else, forwards; and what, is checked.
    let node = |home: &Home| NodesClient::new(channel_as(home, Role::Node));
    let mut to_first = node(&first.home);
    for (request, code) in [
        (forwarded("hes-1", 4), Code::PermissionDenied),
        (forwarded("nobody", 4), Code::PermissionDenied),
        (forwarded("a b", 4), Code::InvalidArgument),
        (
            ProtectRequest { call: "Meters/DeleteMeter".into(), ..forwarded("dev", 4) },
            Code::InvalidArgument,
        ),
        (
            ProtectRequest { node_id: vec![2; 16].into(), ..forwarded("dev", 4) },
            Code::InvalidArgument,
        ),
    ] {
        let status = to_first.protect(request.clone()).await.unwrap_err();
        assert_eq!(status.code(), code, "{request:?}: {status:?}");
    }
    let mut as_dev = NodesClient::new(channel_as(&first.home, Role::Dev));
    let status = as_dev.protect(forwarded("dev", 4)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);

    // None of them cost a counter.
    let answer = to_first.protect(forwarded("dev", 4)).await.unwrap().into_inner();
    assert_eq!(counter_of(4, &answer.apdus), before + 1);

    // One hop: the second node knows the way to the first, and does not go on.
    let request = ProtectRequest { node_id: vec![2; 16].into(), ..forwarded("dev", 4) };
    let answer = node(&second.home).protect(request).await.unwrap().into_inner();
    assert_eq!(answer.refusals[..], [TransmitRefusal::HeldByAnotherNode as u8]);
    assert!(answer.reasons[0].reason.contains(&node_id(1)), "{answer:?}");

    // The audit log counts each under the caller's own name, once, where it was protected; and has who was refused there.
    seen.send(&second.client).await;
    let auditor = client(&second.home, Role::Auditor).await;
    eventually("all that was protected is counted", async || {
        items(&events(&auditor, 1).await, "dev") == 4 * FLEET
    })
    .await;
    assert_eq!(items(&events(&auditor, 2).await, "dev"), 0);
    let of_first = events(&auditor, 1).await;
    let is_refused = |event: &AuditEvent| {
        let what = (event.caller.as_str(), event.verb.as_str(), event.reason.as_str());
        what == ("hes-1", "Ciphering/Encrypt", "NOT_GRANTED")
    };
    assert!(of_first.iter().any(is_refused), "{of_first:?}");
    // A name that the policy does not know is the node's making, and stands for the node.
    assert!(of_first.iter().all(|event| event.caller != "nobody"), "{of_first:?}");
    let by_node = (Role::Node.caller(), "Ciphering/Encrypt");
    let of_node = |event: &AuditEvent| (event.caller.as_str(), event.verb.as_str()) == by_node;
    assert!(of_first.iter().any(of_node), "{of_first:?}");
    for node in [first.running, second.running] {
        assert!(node.stop().unwrap().success());
    }
}

async fn events(auditor: &KmsClient, node: u8) -> Vec<AuditEvent> {
    auditor.audit().list(Some([node; 16]), 0).map(Result::unwrap).collect().await
}

/// The APDUs of batches that are counted under this caller's name.
fn items(events: &[AuditEvent], caller: &str) -> u64 {
    let counted = events.iter().filter(|event| event.caller == caller);
    let counted = counted.filter(|event| event.verb == "Ciphering/EncryptBatch");
    counted.flat_map(|event| &event.blocks).map(|block| block.items).sum()
}
