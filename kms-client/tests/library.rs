//! The library against a service in the same process: deadlines, retries, order, resending of what the server
//! ended. Connections that break are in `softhsm-tests/tests/{breaks,broken_links}.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod fake;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake::{Script, World};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kms_client::{
    Apdu, ApduProtection, CallError, CipheringForm, ClientConfig, HlsAction, HlsBegin,
    HlsChallenge, HlsGiven, HlsVersions, ImportFormat, ImportRecords, ImportRules, KmsClient,
    Listed, MeterId, MeterName, NewMeter, Outcome, PlainApdu, Protecting, RequestId, StreamOptions,
    Verdict,
};
use tonic::Code;

const GUEK: &str = "D491470F47126332B07D1923B3504188";

async fn client(world: &World, endpoints: &[SocketAddr], more: &str) -> KmsClient {
    let config = ClientConfig::load(&world.config(endpoints, more)).unwrap();
    KmsClient::connect(config).await.unwrap()
}

async fn alone(script: Arc<Script>, more: &str) -> KmsClient {
    let world = World::new();
    let address = world.serve(script).await;
    client(&world, &[address], more).await
}

fn apdu(number: u32) -> Apdu {
    Apdu::new(number.to_be_bytes().to_vec()).unwrap()
}

fn line(id: &str) -> String {
    format!(
        r#"{{"meter_id":"{id}","system_title":"4D4D4D0000BC614E","keys":[{{"kind":"GUEK","value":"{GUEK}"}}]}}"#
    )
}

#[tokio::test]
async fn an_apdu_is_opened_over_mutual_tls_and_the_call_carries_its_deadline() {
    let script = Arc::new(Script::default());
    let client = alone(Arc::clone(&script), "deadline_ms = 5000").await;
    let opened = client.decrypt(&apdu(1)).await.unwrap();
    assert_eq!(opened.verdict(), Verdict::Ok);
    assert_eq!(opened.plaintext.as_deref(), Some(&[0, 0, 0, 1][..]));
    assert_eq!(script.timeouts.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_busy_service_is_asked_again_no_sooner_than_it_said() {
    let script = Script::failing(Code::ResourceExhausted, 2);
    let client = alone(Arc::clone(&script), "").await;
    let start = Instant::now();
    client.site_status().await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(240));
    assert_eq!(script.calls.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn retries_are_bounded() {
    let script = Script::failing(Code::Unavailable, 100);
    let client = alone(Arc::clone(&script), "retries = 2").await;
    let error = client.decrypt(&apdu(1)).await.unwrap_err();
    assert!(matches!(error, CallError::Unavailable { .. }), "{error}");
    assert_eq!(script.calls.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_write_that_arrived_is_not_sent_again() {
    let script = Script::failing(Code::Unavailable, 1);
    let client = alone(Arc::clone(&script), "").await;
    let error = client.meters().delete(&MeterId::new("m").unwrap()).await.unwrap_err();
    assert!(matches!(error, CallError::Unavailable { .. }), "{error}");
    let meter = NewMeter::from_json(line("m").as_bytes()).unwrap();
    client.meters().create(meter, ImportRules::default()).await.unwrap();
    assert_eq!(script.calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_goes_out_to_a_meter_is_asked_for_once() {
    let script = Script::failing(Code::Unavailable, 1);
    let client = alone(Arc::clone(&script), "").await;
    let meter = MeterName::Id(MeterId::new("m").unwrap());
    let plain = PlainApdu { bytes: vec![0xC0, 1].into(), meter };
    let error = client.encrypt(&plain, Protecting::default()).await.unwrap_err();
    assert!(matches!(error, CallError::Unavailable { .. }), "{error}");
    assert_eq!(script.calls.load(Ordering::SeqCst), 1);
    for counter in 0..2 {
        let sent = client.encrypt(&plain, Protecting::default()).await.unwrap();
        assert_eq!((sent.verdict, sent.invocation_counter), (Verdict::Ok, Some(counter)));
        assert_eq!(sent.apdu.as_deref(), Some(&[0xC0, 1][..]));
    }
    // An answer without its columns is none.
    let broken = client.encrypt_batch(&[plain], Protecting::default()).await.unwrap_err();
    assert!(matches!(broken, CallError::Protocol(_)), "{broken:?}");
}

#[tokio::test]
async fn no_step_of_an_association_is_sent_twice_and_an_answer_that_was_not_asked_for_is_none() {
    let script = Script::failing(Code::Unavailable, 1);
    let client = alone(Arc::clone(&script), "").await;
    let begin = HlsBegin {
        meter: MeterName::Id(MeterId::new("m").unwrap()),
        security_setup: 0,
        client: 0,
        mechanism: 5,
        challenge_length: 9,
        security_suite: None,
        versions: None,
    };
    let error = client.begin_hls(&begin).await.unwrap_err();
    assert!(matches!(error, CallError::Unavailable { .. }), "{error}");
    assert_eq!(script.calls.load(Ordering::SeqCst), 1);
    let begun = client.begin_hls(&begin).await.unwrap();
    assert_eq!((begun.verdict, &begun.challenge[..]), (Verdict::Ok, &[b'c'; 9][..]));
    let open = begun.association.unwrap();
    let versions = Some(HlsVersions { encryption: 2, authentication: 1 });
    let asked = HlsChallenge { challenge: (&b"StoC"[..]).into(), action: None, versions };
    let answer = client.answer_hls_challenge(&open, asked.clone()).await.unwrap();
    assert_eq!(answer.bytes.as_deref(), Some(&b"StoC"[..]));
    assert_eq!((answer.encryption_key_version, answer.authentication_key_version), (2, 1));
    let (form, protection) = (CipheringForm::Glo, ApduProtection::AuthenticatedEncrypted);
    let action = HlsAction { invoke_id_and_priority: 0xC1, form, protection };
    let asked = HlsChallenge { action: Some(action), ..asked };
    let bare = client.answer_hls_challenge(&open, asked).await;
    assert!(matches!(bare, Err(CallError::Protocol(_))), "{bare:?}");
    for (given, verdict) in [
        (HlsGiven::Bare((&b"good"[..]).into()), Verdict::Ok),
        (HlsGiven::Carried((&b"good"[..]).into()), Verdict::Ok),
        (HlsGiven::Bare((&b"bad"[..]).into()), Verdict::MicFailure),
    ] {
        assert_eq!(
            client.verify_hls_answer(&open, given, versions).await.unwrap().verdict,
            verdict
        );
    }
    let nameless = client.begin_hls(&HlsBegin { mechanism: 3, ..begin }).await;
    assert!(matches!(nameless, Err(CallError::Protocol(_))), "{nameless:?}");
    assert!(!format!("{open:?}").contains('7'));
}

#[tokio::test]
async fn no_other_failure_is_tried_again() {
    for code in [Code::InvalidArgument, Code::Internal, Code::PermissionDenied, Code::Aborted] {
        let script = Script::failing(code, 1);
        let client = alone(Arc::clone(&script), "").await;
        client.decrypt(&apdu(1)).await.unwrap_err();
        assert_eq!(script.calls.load(Ordering::SeqCst), 1, "{code:?}");
    }
}

#[tokio::test]
async fn a_service_that_does_not_answer_is_not_waited_for_beyond_the_deadline() {
    let script = Arc::new(Script::default());
    *script.delay.lock().unwrap() = Duration::from_secs(30);
    let client = alone(script, "deadline_ms = 200").await;
    let start = Instant::now();
    assert_eq!(client.decrypt(&apdu(1)).await.unwrap_err(), CallError::DeadlineExceeded);
    let stuck = client.decrypt_stream(stream::iter([apdu(1)])).next().await.unwrap();
    assert_eq!(stuck.unwrap_err(), CallError::DeadlineExceeded);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn the_next_endpoint_serves_when_the_first_is_gone_or_going() {
    let world = World::new();
    let gone = "127.0.0.1:1".parse().unwrap();
    let (going, good) = (Script::failing(Code::Unavailable, 9), Arc::new(Script::default()));
    let first = world.serve(Arc::clone(&going)).await;
    let second = world.serve(Arc::clone(&good)).await;
    let client = client(&world, &[gone, first, second], "retries = 0").await;
    client.decrypt(&apdu(1)).await.unwrap();
    client.meters().delete(&MeterId::new("m").unwrap()).await.unwrap();
    assert_eq!(going.calls.load(Ordering::SeqCst), 1);
    assert_eq!(good.calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_write_that_cannot_be_sent_goes_to_the_next_endpoint() {
    let world = World::new();
    let good = world.serve(Arc::new(Script::default())).await;
    let gone = "127.0.0.1:1".parse().unwrap();
    let config = ClientConfig::load(&world.config(&[gone, good], "retries = 0")).unwrap();
    let client = KmsClient::connect_lazy(config).unwrap();
    client.meters().delete(&MeterId::new("m").unwrap()).await.unwrap();
}

#[tokio::test]
async fn nothing_listening_is_said_at_once() {
    let world = World::new();
    let config = ClientConfig::load(&world.config(&["127.0.0.1:1".parse().unwrap()], "")).unwrap();
    let error = KmsClient::connect(config).await.unwrap_err().to_string();
    assert!(error.contains("cannot be reached"), "{error}");
}

#[tokio::test]
async fn a_batch_of_any_size_is_cut_and_comes_back_in_order() {
    let script = Arc::new(Script::default());
    let client = alone(Arc::clone(&script), "").await;
    let opened = client.decrypt_batch((0..2_500).map(apdu)).await.unwrap();
    for (number, opened) in (0_u32..).zip(&opened) {
        assert_eq!(opened.plaintext.as_deref(), Some(&number.to_be_bytes()[..]));
    }
    assert_eq!(opened.len(), 2_500);
    let mut batches = script.batches.lock().unwrap().clone();
    batches.sort_unstable();
    assert_eq!(batches, [452, 1_024, 1_024]);
}

#[tokio::test]
async fn a_forged_item_does_not_fail_its_batch() {
    let client = alone(Arc::new(Script::default()), "").await;
    let forged = Apdu::new(vec![0xFF]).unwrap();
    let opened = client.decrypt_batch([apdu(1), forged, apdu(2)]).await.unwrap();
    let verdicts: Vec<_> = opened.iter().map(kms_client::Opened::verdict).collect();
    assert_eq!(verdicts, [Verdict::Ok, Verdict::MicFailure, Verdict::Ok]);
    assert_eq!(opened[1].plaintext, None);
}

#[tokio::test]
async fn a_stream_that_the_server_ends_in_order_is_resumed_without_loss_or_repeat() {
    let script = Script::failing(Code::Unavailable, 3);
    *script.code.lock().unwrap() = None;
    script.break_after.store(2, Ordering::SeqCst);
    let client = alone(Arc::clone(&script), "").await;
    let options = StreamOptions { batch_size: 10, ..StreamOptions::default() };
    let apdus = stream::iter((0..200).map(apdu));
    let opened: Vec<_> =
        client.with_options(options).decrypt_stream(apdus).try_collect().await.unwrap();
    assert_eq!(opened.len(), 200);
    for (number, opened) in (0_u32..).zip(&opened) {
        assert_eq!(opened.plaintext.as_deref(), Some(&number.to_be_bytes()[..]));
    }
    assert_eq!(script.calls.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn an_item_does_not_wait_for_its_batch_to_fill_up() {
    let client = alone(Arc::new(Script::default()), "").await;
    let endless = stream::iter([apdu(1)]).chain(stream::pending());
    let mut opened = client.decrypt_stream(endless);
    let first = tokio::time::timeout(Duration::from_secs(5), opened.next()).await.unwrap();
    assert_eq!(first.unwrap().unwrap().verdict(), Verdict::Ok);
}

#[tokio::test]
async fn an_answer_with_too_few_verdicts_is_a_protocol_error() {
    let client = alone(Arc::new(Script::default()), "").await;
    let error = client.verify_mic_batch([apdu(1)]).await.unwrap_err();
    assert!(matches!(error, CallError::Protocol(_)), "{error}");
}

#[tokio::test]
async fn a_stream_without_permission_says_so_once_and_ends() {
    let client = alone(Arc::new(Script::default()), "").await;
    let mut checked = client.verify_mic_stream(stream::iter([apdu(1)]));
    let error = checked.next().await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::PermissionDenied { .. }), "{error}");
    assert!(checked.next().await.is_none());
}

#[tokio::test]
async fn an_import_that_the_server_ends_in_the_middle_of_a_message_loses_and_repeats_no_line() {
    let script = Script::failing(Code::Unavailable, 2);
    *script.code.lock().unwrap() = None;
    script.break_after.store(300, Ordering::SeqCst);
    let client = alone(Arc::clone(&script), "").await;
    let text: String = (0..1_200).map(|number| line(&format!("m-{number}")) + "\n").collect();
    let lines: Vec<_> = ImportRecords::new(text.as_bytes(), ImportFormat::JsonLines)
        .collect::<Result<_, _>>()
        .unwrap();
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let results: Vec<_> = client
        .meters()
        .import(stream::iter(lines), ImportRules::default())
        .on_progress(move |counts| told.send(counts.lines()).unwrap())
        .try_collect()
        .await
        .unwrap();
    let numbers: Vec<_> = results.iter().map(|result| result.line).collect();
    assert_eq!(numbers, (1..=1_200).collect::<Vec<_>>());
    assert!(results.iter().all(|result| result.outcome == Outcome::Created));
    let mut last = 0;
    while let Ok(lines) = heard.try_recv() {
        last = lines;
    }
    assert_eq!(last, 1_200);
}

#[tokio::test]
async fn a_list_goes_through_all_pages() {
    let client = alone(Arc::new(Script::default()), "").await;
    let meters: Vec<_> = client.meters().list(None, None).try_collect().await.unwrap();
    assert_eq!(ids(&meters), ["a", "b", "c"]);
}

fn ids(listed: &[Listed]) -> Vec<&str> {
    fn id(listed: &Listed) -> &str {
        match listed {
            Listed::Meter(meter) => &meter.meter_id,
            Listed::Damaged(damaged) => &damaged.meter_id,
        }
    }
    listed.iter().map(id).collect()
}

#[tokio::test]
async fn a_list_asks_for_no_more_than_is_wanted() {
    let script = Arc::new(Script::default());
    let client = alone(Arc::clone(&script), "").await;
    let meters: Vec<_> = client.meters().list(None, Some(3)).try_collect().await.unwrap();
    assert_eq!(ids(&meters), ["a", "b", "c"]);
    assert_eq!(*script.page_sizes.lock().unwrap(), [3, 1]);
}

#[tokio::test]
async fn packed_batches_go_through_as_they_are() {
    let client = alone(Arc::new(Script::default()), "").await;
    let apdus: Vec<_> = (0..8).map(apdu).collect();
    let batch = kms_client::PackedBatch::new(&apdus, 3);
    let reply = client.decrypt_packed(&batch).await.unwrap();
    assert_eq!((reply.tag(), reply.len(), reply.opened()), (3, 8, 8));
    let batches = stream::iter(vec![batch; 5]);
    let mut replies = client.decrypt_packed_stream(batches).await.unwrap();
    let mut opened = 0;
    while let Some(reply) = replies.next().await {
        opened += reply.unwrap().unpack(&apdus).unwrap().len();
    }
    assert_eq!(opened, 40);
}

#[tokio::test]
async fn every_call_has_a_name_of_its_own_and_its_tries_share_it() {
    let script = Script::failing(Code::Unavailable, 2);
    let client = alone(Arc::clone(&script), "").await;
    client.decrypt(&apdu(1)).await.unwrap();
    client.decrypt_stream(stream::iter([apdu(1)])).try_collect::<Vec<_>>().await.unwrap();
    let ids = script.request_ids.lock().unwrap().clone();
    assert_eq!(ids.len(), 4);
    assert!(ids[0] == ids[1] && ids[1] == ids[2] && ids[2] != ids[3], "{ids:?}");
    let is_hex = |id: &String| id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(ids.iter().all(is_hex), "{ids:?}");
}

#[tokio::test]
async fn the_callers_own_name_goes_with_all_of_its_calls() {
    let script = Arc::new(Script::default());
    let client = alone(Arc::clone(&script), "").await;
    let named = client.with_request_id(RequestId::new("spring-7").unwrap());
    named.decrypt(&apdu(1)).await.unwrap();
    named.decrypt_stream(stream::iter([apdu(1)])).try_collect::<Vec<_>>().await.unwrap();
    client.site_status().await.unwrap();
    let ids = script.request_ids.lock().unwrap().clone();
    assert_eq!(ids[..2], ["spring-7", "spring-7"]);
    assert_ne!(ids[2], "spring-7");
}
