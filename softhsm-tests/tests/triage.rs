//! Triage of a real service: each cause is named for frames that have it, and for no others; no plaintext comes back, no
//! floor rises, and nobody asks at will.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{collections::BTreeMap, fs};

use common::{
    Home, client,
    fleet::{
        GAK, GUEK, add, apdu, counter, id, import_with, line, line_in_hsm, push_with, title, value,
    },
    home, home_with, warm,
    wire::channel_as,
};
use dlms::{
    Envelope, FreshCounter, GeneralCipheringAad, KeySet, Keys, Protection, SecurityControl,
    SystemTitle, protect,
};
use kms_client::{
    CallError, ImportRules, KmsClient, MeterId, MeterName, Triage, TriageFinding, Verdict,
};
use kms_proto::v1::{TriageRequest, ciphering_client::CipheringClient};
use prost::Message as _;
use softhsm_tests::{
    Role, Running,
    vectors::{Vector, published},
};

/// A data-notification, as far as its beginning.
const PLAIN: &[u8] = b"\x0F\x00\x00\x00\x01\x00data notification";

/// A push of meter `n`.
fn push(n: u64) -> Vec<u8> {
    push_with(n, 0x30, &value(n, GUEK), &value(n, GAK), PLAIN)
}

/// Cause, confidence, sample.
type Named = (&'static str, &'static str, usize);

async fn ask(client: &KmsClient, n: u64, frames: &[Vec<u8>]) -> Triage {
    asked(client, n, frames, None).await.unwrap()
}

async fn asked(
    client: &KmsClient,
    n: u64,
    frames: &[Vec<u8>],
    setup: Option<u8>,
) -> Result<Triage, CallError> {
    let name = MeterName::Id(id(n).parse::<MeterId>().unwrap());
    let triage = client.triage(&name, frames.to_vec(), setup).await?;
    has_no_plaintext(&triage);
    Ok(triage)
}

/// Neither in bytes nor in digits, whole or in part.
fn has_no_plaintext(triage: &Triage) {
    let said = format!("{triage:?} {}", serde_json::to_string(triage).unwrap()).to_lowercase();
    for part in PLAIN.windows(6) {
        assert!(!said.contains(&hex::encode(part)), "{said}");
    }
    assert!(!said.contains("data notif"), "{said}");
}

fn named(triage: &Triage) -> Vec<Named> {
    let named = |finding: &TriageFinding| {
        assert!(!finding.meaning.is_empty() && !finding.next_step.is_empty(), "{finding:?}");
        (finding.cause, finding.confidence, finding.frames.len())
    };
    triage.findings.iter().map(named).collect()
}

fn with_keys(n: u64, keys: &[(&str, u8, &[u8])]) -> String {
    let key = |(kind, setup, value): &(&str, u8, &[u8])| {
        let value = hex::encode_upper(value);
        format!(r#"{{"kind":"{kind}","security_setup":{setup},"value":"{value}"}}"#)
    };
    let keys: Vec<String> = keys.iter().map(key).collect();
    let title = hex::encode_upper(title(n).as_bytes());
    format!(r#"{{"meter_id":"{}","system_title":"{title}","keys":[{}]}}"#, id(n), keys.join(","))
}

fn pushes(n: u64, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|_| push(n)).collect()
}

fn protected(
    envelope: Envelope,
    originator: SystemTitle,
    (guek, gak): (&[u8], &[u8]),
    gc_aad: GeneralCipheringAad,
) -> Vec<u8> {
    let security_control = SecurityControl::from_byte(0x30).unwrap();
    let keys = Keys { encryption: guek, authentication: gak };
    let protection = Protection { envelope, security_control, originator, keys, gc_aad };
    let counter = FreshCounter::promise_never_used_under_this_key_and_title(counter());
    let mut out = Vec::new();
    protect(&protection, counter, PLAIN, &mut out).unwrap();
    out
}

/// In one long frame of the wired M-Bus, whose checksum is right.
fn in_mbus(apdu: &[u8]) -> Vec<u8> {
    let body = [&[0x53, 0xFF, 0x10, 0x01, 0x67], apdu].concat();
    let len = u8::try_from(body.len()).unwrap();
    let sum = body.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    [&[0x68, len, len, 0x68], &body[..], &[sum, 0x16]].concat()
}

fn in_wrapper(apdu: &[u8]) -> Vec<u8> {
    [&[0, 1, 0, 1, 0, 0x10, 0, u8::try_from(apdu.len()).unwrap()][..], apdu].concat()
}

fn flipped(mut apdu: Vec<u8>, from_the_end: usize) -> Vec<u8> {
    let at = apdu.len() - from_the_end;
    apdu[at] ^= 1;
    apdu
}

async fn world(
    settings: &[(&'static str, &'static str, &str)],
) -> (Home, Running, KmsClient, KmsClient) {
    let home = if settings.is_empty() { home() } else { home_with(settings) };
    let running = home.start().unwrap();
    let (admin, hes) = (client(&home, Role::AmiAdmin).await, client(&home, Role::Hes).await);
    warm(&admin).await;
    (home, running, admin, hes)
}

/// The n-th meter's right keys.
fn right(n: u64) -> ([u8; 16], [u8; 16]) {
    (value(n, GUEK), value(n, GAK))
}

#[tokio::test]
async fn keys_that_are_not_the_meters_are_told_apart() {
    let (_home, _running, admin, hes) = world(&[]).await;
    let wrong = value(99, GUEK);
    let of = |n, guek: &[u8], gak: &[u8]| with_keys(n, &[("GUEK", 0, guek), ("GAK", 0, gak)]);
    let ((g2, a2), (g3, _), (_, a4), (g5, _)) = (right(2), right(3), right(4), right(5));
    let lines = [
        line(1),
        of(2, &a2, &g2),
        of(3, &g3, &wrong),
        of(4, &value(98, GUEK), &a4),
        with_keys(5, &[("GUEK", 0, &g5)]),
        line_in_hsm(6),
    ];
    add(&admin, &lines).await;
    let ask = async |n: u64, frames: &[Vec<u8>]| named(&ask(&hes, n, frames).await);
    assert_eq!(ask(1, &pushes(1, 3)).await, [("NOTHING_WRONG", "CERTAIN", 3)]);
    assert_eq!(ask(2, &pushes(2, 2)).await, [("KEYS_EXCHANGED", "CERTAIN", 2)]);
    assert_eq!(ask(3, &pushes(3, 3)).await, [("GAK_WRONG", "LIKELY", 3)]);
    assert_eq!(ask(3, &pushes(3, 2)).await, [("UNEXPLAINED", "POSSIBLE", 2)]);
    let thrice = vec![push(3); 3];
    assert_eq!(ask(3, &thrice).await, [("UNEXPLAINED", "POSSIBLE", 3)]);
    assert_eq!(ask(4, &pushes(4, 3)).await, [("GUEK_WRONG", "LIKELY", 3)]);
    assert_eq!(ask(5, &pushes(5, 3)).await, [("GAK_MISSING", "CERTAIN", 3)]);
    // A key in the token: what it verifies is known, and nothing is deciphered without a tag.
    assert_eq!(ask(6, &pushes(6, 2)).await, [("NOTHING_WRONG", "CERTAIN", 2)]);
    let forged: Vec<_> = pushes(6, 3).into_iter().map(|apdu| flipped(apdu, 1)).collect();
    assert_eq!(ask(6, &forged).await, [("UNEXPLAINED", "POSSIBLE", 3)]);
    // Some verify, and one does not.
    let mut some = pushes(1, 2);
    some.push(flipped(push(1), 20));
    let tampered = [("NOTHING_WRONG", "CERTAIN", 2), ("SUSPECTED_TAMPER", "POSSIBLE", 1)];
    assert_eq!(ask(1, &some).await, tampered);
    some[2] = in_mbus(&some[2]);
    let tampered = [
        ("NOTHING_WRONG", "CERTAIN", 2),
        ("SUSPECTED_TAMPER", "LIKELY", 1),
        ("FRAMED", "CERTAIN", 1),
    ];
    assert_eq!(ask(1, &some).await, tampered);
}

#[tokio::test]
async fn versions_setups_and_titles_that_fit_are_named() {
    let (_home, _running, admin, hes) = world(&[]).await;
    let (old, (_, gak)) = (value(77, GUEK), right(1));
    add(&admin, &[with_keys(1, &[("GUEK", 0, &old), ("GAK", 0, &gak)])]).await;
    let add_versions = ImportRules { add_versions: true, ..ImportRules::default() };
    import_with(&admin, &[line(1)], add_versions).await;
    let ((g2, a2), (other, other_gak)) = (right(2), (value(78, GUEK), value(78, GAK)));
    let two = [("GUEK", 0, &g2[..]), ("GAK", 0, &a2), ("GUEK", 1, &other), ("GAK", 1, &other_gak)];
    add(&admin, &[with_keys(2, &two), line(3), line(4)]).await;
    // The meter still has the version before.
    let with_old = push_with(1, 0x30, &old, &gak, PLAIN);
    let triage = ask(&hes, 1, &[with_old, push(1), push(1)]).await;
    let expected = [("NOTHING_WRONG", "CERTAIN", 2), ("OTHER_VERSION_FITS", "CERTAIN", 1)];
    assert_eq!(named(&triage), expected);
    let versions = triage.findings.iter().map(|finding| finding.encryption_key_version);
    assert_eq!(versions.collect::<Vec<_>>(), [Some(2), Some(1)]);
    let versions = triage.frames.iter().map(|it| (it.verdict, it.encryption_key_version));
    let opened = |version| (Verdict::Ok, Some(version));
    assert_eq!(versions.collect::<Vec<_>>(), [opened(1), opened(2), opened(2)]);
    // Another setup than the named one.
    let of_setup_1 = push_with(2, 0x30, &other, &other_gak, PLAIN);
    let frames = [of_setup_1.clone()];
    let triage = asked(&hes, 2, &frames, Some(0)).await.unwrap();
    assert_eq!(named(&triage), [("OTHER_SETUP_FITS", "CERTAIN", 1)]);
    assert_eq!(triage.findings[0].security_setup, 1);
    assert_eq!(named(&ask(&hes, 2, &frames).await), [("NOTHING_WRONG", "CERTAIN", 1)]);
    // Another meter's frame, a stranger's, and one whose title alone is wrong.
    let triage = ask(&hes, 3, &[push(4)]).await;
    assert_eq!(named(&triage), [("OTHER_METERS_FRAME", "CERTAIN", 1)]);
    assert_eq!(triage.findings[0].system_title, Some(title(4)));
    let forged = push_with(4, 0x30, &old, &gak, PLAIN);
    assert_eq!(named(&ask(&hes, 3, &[forged]).await), [("OTHER_METERS_FRAME", "LIKELY", 1)]);
    assert_eq!(named(&ask(&hes, 3, &[push(99)]).await), [("OTHER_METERS_FRAME", "POSSIBLE", 1)]);
    let (g3, a3) = right(3);
    let under_99 = push_with(99, 0x30, &g3, &a3, PLAIN);
    let triage = ask(&hes, 3, &[under_99]).await;
    assert_eq!(named(&triage), [("WRONG_TITLE", "CERTAIN", 1)]);
    assert_eq!(triage.findings[0].system_title, Some(title(99)));
    // A request of a client whose title nobody has said; and the meter's own answer beside it.
    let glo = |tag, of| {
        let envelope = Envelope::Service(tag);
        protected(envelope, of, (&g3, &a3), GeneralCipheringAad::Spec)
    };
    let request = glo(dlms::ServiceTag::try_from(0xC8).unwrap(), title(500));
    let answer = glo(dlms::ServiceTag::try_from(0xCC).unwrap(), title(3));
    let triage = ask(&hes, 3, std::slice::from_ref(&request)).await;
    assert_eq!(named(&triage), [("CLIENT_TITLE_MISSING", "POSSIBLE", 1)]);
    let both = named(&ask(&hes, 3, &[request, answer]).await);
    assert!(both.contains(&("CLIENT_TITLE_MISSING", "LIKELY", 1)), "{both:?}");
    assert_eq!(both.len(), 2, "{both:?}");
}

#[tokio::test]
async fn frames_suites_and_policies_are_named() {
    let (_home, _running, admin, hes) = world(&[]).await;
    add(&admin, &(1..6).map(line).collect::<Vec<_>>()).await;
    let ask = async |n: u64, frames: &[Vec<u8>]| named(&ask(&hes, n, frames).await);
    let one = |cause| vec![(cause, "CERTAIN", 1)];
    let (g1, a1) = right(1);
    // What carries it.
    assert_eq!(ask(1, &[in_wrapper(&push(1))]).await, one("FRAMED"));
    assert_eq!(ask(1, &[in_mbus(&push(1))]).await, one("FRAMED"));
    let mut damaged = in_mbus(&push(1));
    damaged[30] ^= 1;
    assert_eq!(ask(1, &[damaged]).await, one("FRAME_DAMAGED"));
    let glued = [push(1), push(1)].concat();
    assert_eq!(ask(1, &[glued]).await, one("SEVERAL_APDUS"));
    let whole = push(1);
    assert_eq!(ask(1, &[whole[..whole.len() - 3].to_vec()]).await, one("TRUNCATED"));
    assert_eq!(ask(2, &[PLAIN.to_vec()]).await, one("NOT_CIPHERED"));
    assert_eq!(ask(2, &[vec![0xAA; 40]]).await, one("MALFORMED"));
    let mut compressed = push(2);
    compressed[11] |= 0x80;
    assert_eq!(ask(2, &[compressed]).await, one("UNSUPPORTED"));
    // Keys of another length, of a kind that the meter has not, and no tag.
    let long = [&g1[..], &g1].concat();
    let suite_2 = push_with(3, 0x32, &long, &long, PLAIN);
    assert_eq!(ask(3, &[suite_2]).await, one("SUITE_MISMATCH"));
    assert_eq!(ask(3, &[push_with(3, 0x70, &g1, &a1, PLAIN)]).await, one("NO_KEY"));
    let (g3, a3) = right(3);
    assert_eq!(ask(3, &[push_with(3, 0x20, &g3, &a3, PLAIN)]).await, one("POLICY_REFUSES"));
    // The other rule about the header.
    let envelope = Envelope::GeneralCiphering(dlms::GeneralCipheringHeader {
        transaction_id: &[1],
        originator: Some(title(4)),
        recipient: None,
        date_time: &[],
        other_information: &[],
        identified_key: KeySet::Unicast,
    });
    let (g4, a4) = right(4);
    for (rule, cause) in [
        (GeneralCipheringAad::Spec, "NOTHING_WRONG"),
        (GeneralCipheringAad::OmitHeader, "HEADER_RULE"),
    ] {
        let frame = protected(envelope, title(4), (&g4, &a4), rule);
        assert_eq!(ask(4, &[frame]).await, one(cause));
    }
    // Nobody; and causes beside each other.
    assert_eq!(ask(900, &pushes(1, 2)).await, [("UNKNOWN_METER", "CERTAIN", 2)]);
    let mixed = [push(5), PLAIN.to_vec(), push(1), push(5)];
    let all = ask(5, &mixed).await;
    let expected = [
        ("NOTHING_WRONG", "CERTAIN", 2),
        ("NOT_CIPHERED", "CERTAIN", 1),
        ("OTHER_METERS_FRAME", "CERTAIN", 1),
    ];
    assert_eq!(all, expected);
}

fn bytes(digits: &str) -> Vec<u8> {
    hex::decode(digits).unwrap()
}

/// Published telegrams of one meter, pushed by itself and authenticated.
fn of_real_meters() -> BTreeMap<(String, String, String), Vec<Vector>> {
    let mut meters: BTreeMap<_, Vec<Vector>> = BTreeMap::new();
    for vector in published().unwrap() {
        let is_pushed = vector.tag() == 0xDB;
        let both = vector.security_control() == 0x30 && vector.verified == "tag";
        let keys = (vector.keys.get("guek").cloned(), vector.keys.get("ak").cloned());
        if let (true, (Some(guek), Some(ak))) = (is_pushed && both, keys) {
            meters.entry((vector.system_title.clone(), guek, ak)).or_default().push(vector);
        }
    }
    meters
}

#[tokio::test]
async fn telegrams_of_real_meters_show_which_key_was_imported_wrong() {
    let meters = of_real_meters();
    assert!(meters.len() >= 4, "{}", meters.len());
    let real = |n: u64, title: &str, guek: &str, gak: &str| {
        format!(
            r#"{{"meter_id":"{}","system_title":"{title}","keys":[{{"kind":"GUEK","value":"{guek}"}},{{"kind":"GAK","value":"{gak}"}}]}}"#,
            id(n)
        )
    };
    let wrong = hex::encode_upper(value(1_000, GUEK));
    let rules = ImportRules { allow_test_keys: true, ..ImportRules::default() };
    let mut judged = 0;
    // One site for each mistake: a title has one meter.
    for mistake in ["none", "exchanged", "gak", "guek"] {
        let (home, running, admin, _) = world(&[]).await;
        let dev = client(&home, Role::Dev).await;
        for (n, ((title, guek, ak), vectors)) in (1..).zip(&meters) {
            let (g, a) = match mistake {
                "exchanged" => (ak, guek),
                "gak" => (guek, &wrong),
                "guek" => (&wrong, ak),
                _ => (guek, ak),
            };
            let results = import_with(&admin, &[real(n, title, g, a)], rules).await;
            assert!(results[0].code.is_empty(), "{results:?}");
            let frames: Vec<_> = vectors.iter().map(|vector| bytes(&vector.apdu_hex)).collect();
            let triage = ask(&dev, n, &frames).await;
            for vector in vectors.iter().filter(|vector| vector.plaintext_hex.len() > 16) {
                let said = format!("{triage:?}").to_uppercase();
                assert!(!said.contains(&vector.plaintext_hex[..16].to_uppercase()), "{said}");
            }
            let enough = vectors.len() >= 3;
            let expected = match mistake {
                "none" => ("NOTHING_WRONG", "CERTAIN", frames.len()),
                // The same value twice can't be exchanged.
                "exchanged" if guek == ak => ("NOTHING_WRONG", "CERTAIN", frames.len()),
                "exchanged" => ("KEYS_EXCHANGED", "CERTAIN", frames.len()),
                "gak" if enough => ("GAK_WRONG", "LIKELY", frames.len()),
                "guek" if enough => ("GUEK_WRONG", "LIKELY", frames.len()),
                _ => ("UNEXPLAINED", "POSSIBLE", frames.len()),
            };
            judged += usize::from(expected.1 == "LIKELY");
            assert_eq!(named(&triage), [expected], "{mistake} {title}");
        }
        // Its clients are still connected: an orderly end would wait for them.
        running.kill_9().unwrap();
    }
    assert!(judged >= 2, "no real meter has three frames");
}

#[tokio::test]
async fn a_replay_a_new_count_and_an_overtaken_frame_are_told_apart_and_no_floor_rises() {
    let profiles = tempfile::tempdir().unwrap();
    let deployed = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/profiles");
    fs::copy(format!("{deployed}/dlms.toml"), profiles.path().join("dlms.toml")).unwrap();
    let dir = format!("{:?}", profiles.path().to_str().unwrap());
    let (_home, _running, admin, hes) = world(&[("profiles", "dir", dir.as_str())]).await;
    let lines: Vec<String> =
        (1..3).map(|n| line(n).replacen("{", r#"{"policy":{"profile":"dlms"},"#, 1)).collect();
    add(&admin, &lines).await;
    let old = push(1);
    for _ in 0..100 {
        counter();
    }
    let (taken, late, new) = (push(1), push(1), push(1));
    let open = async |bytes: &Vec<u8>| hes.decrypt(&apdu(bytes.clone())).await.unwrap();
    assert_eq!(open(&taken).await.verdict(), Verdict::Ok);
    // Asked of before it is taken, and it is as new as it was.
    let ask = async |frames: &[Vec<u8>]| named(&ask(&hes, 1, frames).await);
    assert_eq!(ask(std::slice::from_ref(&new)).await, [("NOTHING_WRONG", "CERTAIN", 1)]);
    let opened = open(&new).await;
    assert_eq!((opened.verdict(), opened.checked.duplicate), (Verdict::Ok, false));
    assert_eq!(ask(std::slice::from_ref(&new)).await, [("REPLAY", "CERTAIN", 1)]);
    assert_eq!(ask(std::slice::from_ref(&late)).await, [("OVERTAKEN", "LIKELY", 1)]);
    let far = ask(std::slice::from_ref(&old)).await;
    assert_eq!(far, [("REPLAY", "POSSIBLE", 1), ("COUNTER_RESET", "POSSIBLE", 1)]);
    assert_eq!(open(&old).await.verdict(), Verdict::Replayed);
    // Another message under a counter that was used.
    let (guek, gak) = right(2);
    let first = push(2);
    assert_eq!(open(&first).await.verdict(), Verdict::Ok);
    let protection = Protection {
        envelope: Envelope::GeneralGlo(Some(title(2))),
        security_control: SecurityControl::from_byte(0x30).unwrap(),
        originator: title(2),
        keys: Keys { encryption: &guek, authentication: &gak },
        gc_aad: GeneralCipheringAad::Spec,
    };
    let again = u32::from_be_bytes(first[12..16].try_into().unwrap());
    let again = FreshCounter::promise_never_used_under_this_key_and_title(again);
    let mut other = Vec::new();
    protect(&protection, again, b"\x0F\0\0\0\x02another", &mut other).unwrap();
    let triage = asked(&hes, 2, &[other], None).await.unwrap();
    assert_eq!(named(&triage), [("COUNTER_RESET", "CERTAIN", 1)]);
}

fn word(error: CallError) -> String {
    format!("{error:?}")
}

#[tokio::test]
async fn nobody_asks_at_will_or_without_the_right_to_decrypt_and_the_log_has_each_call() {
    let grants = [("rpc.grants", "rotator", r#"["Ciphering/Triage", "Meters/GetMeter"]"#)];
    let (home, _running, admin, hes) = world(&grants).await;
    add(&admin, &[line(1), line(2)]).await;
    // Triage alone is not enough.
    let rotator = client(&home, Role::Rotator).await;
    let refused = word(asked(&rotator, 1, &pushes(1, 1), None).await.unwrap_err());
    assert!(refused.contains("NOT_GRANTED") && refused.contains("Ciphering/Decrypt"), "{refused}");
    // A share of each meter's.
    for _ in 0..6 {
        ask(&hes, 1, &pushes(1, 2)).await;
    }
    let refused = word(asked(&hes, 1, &pushes(1, 2), None).await.unwrap_err());
    assert!(refused.contains("TOO_MANY_TRIAGES"), "{refused}");
    let dev = client(&home, Role::Dev).await;
    ask(&dev, 1, &pushes(1, 1)).await;
    // And of all of them together, before anything is looked up.
    for n in 0..23 {
        ask(&hes, 1_000 + n, &pushes(1, 1)).await;
    }
    let mut raw = CipheringClient::new(channel_as(&home, Role::Hes));
    let frames = vec![push(2).into()];
    let request = TriageRequest { meter_id: id(2), frames, ..TriageRequest::default() };
    let status = raw.triage(request.clone()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    let details = tonic_types::StatusExt::get_error_details(&status);
    let after = details.retry_info().unwrap().retry_delay.unwrap();
    assert!(after.as_secs() <= 60 && !after.is_zero(), "{after:?}");
    // Bounds; and nothing but a meter's name says whose frames they are.
    let mut raw = CipheringClient::new(channel_as(&home, Role::Dev));
    let code =
        async |raw: &mut CipheringClient<_>, request| raw.triage(request).await.unwrap_err().code();
    let many = TriageRequest { frames: vec![push(2).into(); 65], ..request.clone() };
    assert_eq!(code(&mut raw, many).await, tonic::Code::ResourceExhausted);
    let long = TriageRequest { frames: vec![vec![0; 270_000].into()], ..request.clone() };
    assert_eq!(code(&mut raw, long).await, tonic::Code::InvalidArgument);
    let nobody = TriageRequest { meter_id: String::new(), ..request.clone() };
    assert_eq!(code(&mut raw, nobody).await, tonic::Code::InvalidArgument);
    // The answer as it is on the wire.
    let answer = raw.triage(request).await.unwrap().into_inner().encode_to_vec();
    assert!(!answer.windows(8).any(|part| PLAIN.windows(8).any(|plain| part == plain)));

    let auditor = home.ami_tool(Role::Auditor);
    let log = auditor.succeed(&["audit", "list", "--json"]).unwrap();
    let events: Vec<serde_json::Value> =
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of = |caller: &str, outcome: &str| {
        let events = events.iter().filter(|event| event["verb"] == "Ciphering/Triage");
        let events = events.filter(|event| event["caller"].to_string().contains(caller));
        events.filter(|event| event["outcome"] == outcome).count()
    };
    assert_eq!((of("hes", "DONE"), of("rotator", "DONE")), (29, 0), "{log}");
    assert!(of("hes", "REFUSED") >= 1 && of("rotator", "REFUSED") == 1, "{log}");
    let first = events
        .iter()
        .find(|event| event["verb"] == "Ciphering/Triage" && event["outcome"] == "DONE");
    let first = first.unwrap().to_string();
    assert!(first.contains(&id(1)) && first.contains("\"items\""), "{first}");
}
