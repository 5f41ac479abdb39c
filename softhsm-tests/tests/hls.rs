//! HLS with a meter that has taken a key which the service only staged, by the real programs over SoftHSM and from the
//! command line: it is authenticated, and that proves its key.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use common::{
    client, eventually,
    fleet::{GAK, GUEK, add, id, title, value},
    home,
};
use dlms::{CipheredApdu, FreshCounter, GeneralCipheringAad, Keys, Suite, SystemTitle, hls};
use kms_client::{
    CounterDeclaration, KeyKind, KeyPlace, MeterName, StageOptions, StateReason, TransferOptions,
};
use softhsm_tests::{Role, Site};

const CLIENT: SystemTitle = SystemTitle::new(*b"AMIHES\x00\x01");
const KEK: u8 = 3;
const N: u64 = 7;

fn line() -> String {
    let hex = |bytes: &[u8]| hex::encode_upper(bytes);
    let (own, guek, gak) = (hex(title(N).as_bytes()), hex(&value(N, GUEK)), hex(&value(N, GAK)));
    let (kek, client) = (hex(&value(N, KEK)), hex(CLIENT.as_bytes()));
    format!(
        r#"{{"meter_id":"{}","system_title":"{own}","keys":[{{"kind":"GUEK","value":"{guek}"}},{{"kind":"GAK","value":"{gak}"}},{{"kind":"KEK","value":"{kek}"}}],"policy":{{"client_title":"{client}"}}}}"#,
        id(N)
    )
}

fn said(site: &Site, arguments: &[&str]) -> serde_json::Value {
    let said = site.ami_tool(Role::Dev).succeed(arguments).unwrap();
    serde_json::from_str(&said).unwrap()
}

fn bytes(said: &serde_json::Value, name: &str) -> Vec<u8> {
    hex::decode(said[name].as_str().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_meter_is_authenticated_under_a_key_that_was_staged_and_proves_it_so() {
    let home = home();
    let running = home.start().unwrap();
    let dev = client(&home, Role::Dev).await;
    add(&dev, &[line()]).await;
    let declaration = CounterDeclaration {
        meter: MeterName::Title(title(N)),
        security_setup: 0,
        client: 0,
        broadcast: false,
        last_invocation_counter: None,
    };
    dev.meters().declare_counter(&declaration).await.unwrap();
    let place =
        KeyPlace { meter_id: id(N).parse().unwrap(), kind: KeyKind::Guek, security_setup: 0 };
    dev.rotation().stage(&place, StageOptions::default()).await.unwrap();
    let next = dev.rotation().next_transfer(&place, TransferOptions::default()).await.unwrap();
    let (guek, gak) = (value(N, GUEK), value(N, GAK));
    let mut plain = Vec::new();
    let apdu = next.protected.apdu.unwrap();
    let apdu = CipheredApdu::parse(&apdu).unwrap();
    let old = Keys { encryption: &guek, authentication: &gak };
    apdu.open(&old, &CLIENT, GeneralCipheringAad::Spec, &mut plain).unwrap();
    let mut new = [0; 16];
    dlms::key_wrap::unwrap(&value(N, KEK), &plain[plain.len() - 24..], &mut new).unwrap();
    let new = Keys { encryption: &new, authentication: &gak };

    let meter = id(N);
    let pair = ["--encryption-version", "2", "--authentication-version", "1", "--json"];
    let begin = [&["hls", "challenge", "--meter", &meter][..], &pair].concat();
    let begun = said(&home, &begin);
    let handle = begun["association"].as_str().unwrap();
    let answered = said(&home, &["hls", "answer", handle, &hex::encode(b"P6wRJ21F"), "--json"]);
    let answer = bytes(&answered, "answer");
    hls::verify(Suite::Suite0, &CLIENT, &new, b"P6wRJ21F", &answer).unwrap();
    let counter = FreshCounter::promise_never_used_under_this_key_and_title(1);
    let challenge = bytes(&begun, "challenge");
    let meters = hls::compute(Suite::Suite0, &title(N), counter, &new, &challenge).unwrap();
    let verify = ["hls", "verify", handle, "--answer", &hex::encode(meters), "--json"];
    let verified = said(&home, &verify);
    assert_eq!(
        (&verified["verdict"], &verified["encryption_key_version"]),
        (&"OK".into(), &2.into())
    );
    // A recorded answer is worth nothing.
    assert!(home.ami_tool(Role::Dev).succeed(&verify).is_err());
    eventually("the answer proves the key", || async {
        let meter = dev.meters().get(&MeterName::Title(title(N))).await.unwrap();
        let newer = |key: &&kms_client::KeyInfo| key.kind == KeyKind::Guek && key.version == 2;
        let key = meter.keys.iter().find(newer).unwrap();
        key.reason == StateReason::Evidence && key.preferred
    })
    .await;
    running.stop().unwrap();
}
