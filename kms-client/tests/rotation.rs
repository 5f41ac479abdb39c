//! The life of keys, by library and tool, against a service in the same process: what is asked again and what never, what
//! the tool sends, what it says of the answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod fake;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, atomic::Ordering};

use fake::{Script, World};
use kms_client::{
    CallError, ClientConfig, KeyKind, KeyPlace, KeyState, KmsClient, MeterId, StageOptions,
    TransferOptions, TransferResult, Verdict,
};
use kms_proto::v1;
use serde_json::{Value, json};
use tonic::Code;

fn guek() -> KeyPlace {
    let meter_id = MeterId::new("m-1").unwrap();
    KeyPlace { meter_id, kind: KeyKind::Guek, security_setup: 3 }
}

async fn serve(script: &Arc<Script>) -> (World, PathBuf) {
    let world = World::new();
    let address = world.serve(Arc::clone(script)).await;
    let config = world.config(&[address], "");
    (world, config)
}

async fn client(script: &Arc<Script>) -> (World, KmsClient) {
    let (world, config) = serve(script).await;
    let config = ClientConfig::load(&config).unwrap();
    (world, KmsClient::connect(config).await.unwrap())
}

async fn tool(config: &Path, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ami-tool"));
    command.arg("--config").arg(config).args(arguments.split_whitespace()).stdin(Stdio::null());
    tokio::task::spawn(async move { command.output().unwrap() }).await.unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn object(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(output)))
}

/// A call, by its name.
async fn ask(client: &KmsClient, call: &str) -> Result<(), CallError> {
    let (rotation, place) = (client.rotation(), guek());
    match call {
        "stage" => rotation.stage(&place, StageOptions::default()).await.map(drop),
        "next-transfer" => {
            rotation.next_transfer(&place, TransferOptions::default()).await.map(drop)
        }
        "confirm" => rotation.confirm(&place, TransferResult::Success).await.map(drop),
        "rollback" => rotation.roll_back(&place, 1).await.map(drop),
        "revive" => rotation.revive(&place, 1).await.map(drop),
        "compromise" => rotation.compromise(&place, 1).await.map(drop),
        "destroy" => rotation.destroy(&place, 1, false).await.map(drop),
        "restore" => rotation.restore(&place, 1).await.map(drop),
        "hold" => rotation.set_legal_hold(&place.meter_id, true).await.map(drop),
        other => panic!("{other}"),
    }
}

const SAFE: [&str; 7] =
    ["stage", "confirm", "rollback", "compromise", "destroy", "restore", "hold"];
const ONCE: [&str; 2] = ["next-transfer", "revive"];

#[tokio::test]
async fn what_changes_nothing_twice_is_asked_again_and_what_spends_something_never_is() {
    for (calls, again) in [(&SAFE[..], true), (&ONCE[..], false)] {
        for call in calls {
            let script = Script::failing(Code::Unavailable, 1);
            let (_world, client) = client(&script).await;
            let done = ask(&client, call).await;
            assert_eq!(done.is_ok(), again, "{call}: {done:?}");
            assert_eq!(script.calls.load(Ordering::SeqCst), 1 + u32::from(again), "{call}");
        }
    }
}

#[tokio::test]
async fn a_site_that_does_not_write_leads_to_the_one_that_does() {
    for call in SAFE.into_iter().chain(ONCE) {
        let (north, south) = (Arc::new(Script::default()), Arc::new(Script::default()));
        north.not_primary.store(true, Ordering::SeqCst);
        let world = World::new();
        let at = [world.serve(Arc::clone(&north)).await, world.serve(Arc::clone(&south)).await];
        let config = ClientConfig::load(&world.two_sites(at[0], at[1], "")).unwrap();
        let client = KmsClient::connect(config).await.unwrap();
        ask(&client, call).await.unwrap_or_else(|error| panic!("{call}: {error}"));
        let asked = |script: &Script| script.calls.load(Ordering::SeqCst);
        assert_eq!((asked(&north), asked(&south)), (1, 1), "{call}");
    }
}

#[tokio::test]
async fn each_step_of_a_transfer_has_a_counter_of_its_own_and_a_refused_one_has_no_apdu() {
    let script = Arc::new(Script::default());
    let (_world, client) = client(&script).await;
    let rotation = client.rotation();
    for counter in 0..2 {
        let next = rotation.next_transfer(&guek(), TransferOptions::default()).await.unwrap();
        assert_eq!((next.version, next.protected.verdict), (2, Verdict::Ok));
        assert_eq!(next.protected.invocation_counter, Some(counter));
        assert_eq!(next.protected.apdu.as_deref(), Some(&[0xDB, 8][..]));
    }
    *script.rotation.verdict.lock().unwrap() = v1::Verdict::Unavailable as i32;
    let next = rotation.next_transfer(&guek(), TransferOptions::default()).await.unwrap();
    assert_eq!((next.protected.apdu, next.protected.invocation_counter), (None, None));
    assert_eq!(next.protected.reason.as_deref(), Some("declare it first"));
}

#[tokio::test]
async fn an_answer_without_its_key_or_with_an_unknown_state_is_none() {
    let script = Arc::new(Script::default());
    *script.rotation.compromised.lock().unwrap() = 77;
    let (_world, client) = client(&script).await;
    let broken = client.rotation().compromise(&guek(), 1).await.unwrap_err();
    assert!(matches!(broken, CallError::Protocol(_)), "{broken:?}");
    *script.rotation.compromised.lock().unwrap() = v1::KeyState::Destroyed as i32;
    let done = client.rotation().compromise(&guek(), 1).await.unwrap();
    assert_eq!(done.state, KeyState::Destroyed);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tool_stages_as_it_is_told_and_says_what_comes_next() {
    let script = Arc::new(Script::default());
    let (_world, config) = serve(&script).await;
    let stage = "key stage m-1 guek --security-setup 3 --class-version 1 --carrier-client 16";
    let output = tool(&config, stage).await;
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("GUEK v2 of m-1, security setup 3\n"), "{text}");
    assert!(text.contains("under the meter's KEK, over client 16 of setup 3 (GENERAL_GLO)"));
    assert!(text.contains("proved, or there is none"), "{text}");
    assert!(text.contains("`ami-tool key next-transfer m-1 GUEK --security-setup 3`"), "{text}");
    // Asked for over another client it stays as it is.
    let output = tool(&config, &format!("{stage} --allow-unreplicated").replace("16", "1")).await;
    let text = said(&output);
    assert!(text.contains("which was staged before") && text.contains("as it was asked for then"));
    let output = tool(&config, &format!("{stage} --json")).await;
    let result = object(&output);
    assert_eq!((&result["already"], &result["proved"]), (&json!(true), &json!(true)));
    assert_eq!(result["key"]["transfer"]["carrier_client"], 16);
    let staged = script.rotation.staged.lock().unwrap();
    let (first, second) = (&staged[0], &staged[1]);
    let place = v1::KeyPlace { meter_id: "m-1".into(), kind: 1, security_setup: 3 };
    let carrier = v1::KeyCarrier { security_setup: 3, client: 16, form: 3 };
    let asked = v1::StageKeyRequest {
        place: Some(place),
        class_version: 1,
        carrier: Some(carrier),
        ..v1::StageKeyRequest::default()
    };
    assert_eq!(first, &asked);
    assert!(second.allow_unreplicated && second.carrier.unwrap().client == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_no_other_site_has_is_said_to_be_lost_with_this_one() {
    let script = Arc::new(Script::default());
    *script.rotation.unproved.lock().unwrap() = "site-b is silent".into();
    let (_world, config) = serve(&script).await;
    let text = said(&tool(&config, "key stage m-1 kek --allow-unreplicated").await);
    assert!(text.contains("NOT proved (site-b is silent): if this site is lost"), "{text}");
    *script.rotation.refuses.lock().unwrap() = Some("NOT_PROVED");
    let output = tool(&config, "key stage m-1 kek").await;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("--allow-unreplicated"), "{}", said(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tool_prints_what_is_to_be_sent_and_what_to_do_with_the_answer() {
    let script = Arc::new(Script::default());
    let (_world, config) = serve(&script).await;
    let next =
        "key next-transfer m-1 GAK --encryption-version 1 --authentication-version 4 --form glo";
    let output = tool(&config, &format!("{next} --invoke-id 0x42")).await;
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("GAK v2 of m-1") && text.contains("apdu") && text.contains("DB08"));
    assert!(text.contains("`ami-tool key confirm m-1 GAK --result success|refused|no-answer`"));
    {
        let sent = script.rotation.sent.lock().unwrap();
        let v1::NextTransferRequest { encryption_key_version, form, .. } = &sent[0];
        assert_eq!((*encryption_key_version, *form), (1, v1::AssociationForm::Glo as i32));
        assert_eq!((sent[0].authentication_key_version, sent[0].invoke_id_and_priority), (4, 0x42));
    }
    let result = object(&tool(&config, &format!("{next} --json")).await);
    assert_eq!((&result["apdu"], &result["version"]), (&json!("DB08"), &json!(2)));
    assert_eq!(result["invocation_counter"], 1);
    *script.rotation.verdict.lock().unwrap() = v1::Verdict::Unavailable as i32;
    let output = tool(&config, next).await;
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("COUNTER_UNDECLARED") && text.contains("declare it first"), "{text}");
    assert!(!text.contains("key confirm"), "nothing was sent: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_taken_for_no_more_than_a_hint() {
    let script = Arc::new(Script::default());
    let (_world, config) = serve(&script).await;
    for (kind, answer, hint) in [
        ("guek", "success", "nothing is proved by that"),
        ("guek", "refused", "the meter may hold it all the same"),
        ("guek", "no-answer", "the meter may hold it or not"),
        ("gbek", "success", "nothing but this answer will show it"),
    ] {
        let output = tool(&config, &format!("key confirm m-1 {kind} --result {answer}")).await;
        let text = said(&output);
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(text.contains(hint), "{kind} {answer}: {text}");
    }
    let answers: Vec<i32> =
        script.rotation.answers.lock().unwrap().iter().map(|it| it.result).collect();
    assert_eq!(answers, [1, 2, 3, 1]);
    assert_eq!(tool(&config, "key confirm m-1 guek").await.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_decide_reaches_the_service_and_is_said() {
    let script = Arc::new(Script::default());
    script.replicated.store(v1::Replicated::Unreplicated as i32, Ordering::SeqCst);
    let (_world, config) = serve(&script).await;
    for (command, hint) in [
        ("rollback m-1 guek 1", "GUEK v1 of m-1, security setup 0 is preferred"),
        ("rollback m-1 guek 2", "was preferred already"),
        ("revive m-1 gak 1", "v1 goes on as GAK v3"),
        ("compromise m-1 kek 1 --yes", "still carries the transfer of its successor"),
        ("destroy m-1 guek 1", "will be destroyed at 1970-01-02T00:00:00Z"),
        ("restore m-1 guek 1", "will not be destroyed"),
        ("hold m-1", "is under a legal hold"),
        ("hold m-1 --lift", "is under no legal hold"),
    ] {
        let output = tool(&config, &format!("key {command}")).await;
        let text = said(&output);
        assert_eq!(output.status.code(), Some(0), "{command}: {text}");
        assert!(text.contains(hint) && text.contains("changes are here and"), "{command}: {text}");
        let json = said(&tool(&config, &format!("key {command} --json")).await);
        assert!(json.contains(r#""replicated":"UNREPLICATED""#), "{command}: {json}");
    }
    let rotated = &script.rotation;
    let asked = rotated.versions.lock().unwrap();
    let calls: Vec<_> =
        asked.iter().step_by(2).map(|(call, _, version)| (*call, *version)).collect();
    let due = [("rollback", 1), ("rollback", 2), ("revive", 1), ("compromise", 1), ("destroy", 1)];
    assert_eq!(calls[..5], due);
    let holds: Vec<bool> = rotated.holds.lock().unwrap().iter().map(|it| it.hold).collect();
    assert_eq!(holds, [true, true, false, false]);
    assert_eq!(*rotated.last_ways.lock().unwrap(), [false, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gives_up_a_key_by_a_slip() {
    let script = Arc::new(Script::default());
    let (_world, config) = serve(&script).await;
    for command in ["compromise m-1 guek 1", "destroy m-1 guek 1 --last-way"] {
        let output = tool(&config, &format!("key {command}")).await;
        assert_eq!(output.status.code(), Some(2), "{command}");
        assert!(said(&output).contains("--yes"), "{}", said(&output));
        assert_eq!(script.calls.load(Ordering::SeqCst), 0, "{command}");
        let output = tool(&config, &format!("key {command} --yes")).await;
        assert_eq!(output.status.code(), Some(0), "{command}: {}", said(&output));
        script.calls.store(0, Ordering::SeqCst);
    }
    assert_eq!(*script.rotation.last_ways.lock().unwrap(), [true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_names_the_flag_or_the_command_that_leads_on() {
    let script = Arc::new(Script::default());
    let (_world, config) = serve(&script).await;
    for (command, word, hint) in [
        ("stage m kek", "NO_KEK_CHANGE", "--class-version 1"),
        ("stage m guek", "KEK_COMPROMISED", "--under-compromised-kek"),
        ("stage m guek", "NO_KEK", "meter import --add-versions"),
        ("stage m guek", "TOO_MANY_LIVE_VERSIONS", "key destroy"),
        ("next-transfer m guek", "NOTHING_STAGED", "key stage"),
        ("next-transfer m guek", "TRANSFER_UNDER_ITSELF", "--encryption-version"),
        ("next-transfer m guek", "NO_CARRIER_TITLE", "meter set-policy"),
        ("next-transfer m guek", "NOT_PROVED", "--allow-unreplicated"),
        ("rollback m guek 9", "NO_SUCH_KEY_VERSION", "meter get"),
        ("destroy m guek 1", "LEGAL_HOLD", "key hold ID --lift"),
        ("destroy m guek 1", "LAST_WAY", "--last-way"),
    ] {
        *script.rotation.refuses.lock().unwrap() = Some(word);
        let output = tool(&config, &format!("key {command} --json")).await;
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{word}");
        let next = error["error"]["next_step"].as_str().unwrap();
        assert!(error["error"]["code"] == word && next.contains(hint), "{word}: {next}");
    }
}
