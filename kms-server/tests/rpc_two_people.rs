//! Calls that need two people: refused to one, passed once to two, and to nobody else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

#[allow(dead_code, reason = "each test file uses a part")]
mod rpc_support;

use std::time::Duration;

use kms_proto::v1::{
    Approval, ApproveCallRequest, ApproveCallResponse, AskAheadRequest, AskAheadResponse,
    DeleteMeterRequest, ImportLine, ImportMetersRequest, ImportMetersResponse, ImportRules,
    KeyKind, ListApprovalsRequest, ListApprovalsResponse, MeterPolicy, NewKey, NewMeter,
    ReadmitMeterRequest, SealedChunk, SealedHeader, SealedHeaderBody, SealedPart,
};
use kms_server::rpc::{CallerName, Policy, Role};
use prost::Message;
use rpc_support::{SOON, Site, reason};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

const DELETE: &str = "/ami.kms.v1.Meters/DeleteMeter";
const LIFE: Duration = Duration::from_secs(15 * 60);

/// What the gate lets through: no service is behind it here, and that is what is answered.
const PASSED: (Code, &str) = (Code::Unimplemented, "");
const NEEDED: (Code, &str) = (Code::FailedPrecondition, "SECOND_PERSON_NEEDED");

/// `ann` and `bob` may do both, `cid` only ask, `dora` only approve; and some who fill the table.
fn policy() -> Policy {
    use Role::{AmiAdmin, Approver};
    let caller = |name: &str, roles: &[Role]| (CallerName::new(name).unwrap(), roles.to_vec());
    let many = (0..9).map(|n| caller(&format!("admin-{n}"), &[AmiAdmin]));
    let callers = [
        caller("ann", &[AmiAdmin, Approver]),
        caller("bob", &[AmiAdmin, Approver]),
        caller("cid", &[AmiAdmin]),
        caller("dora", &[Approver]),
    ];
    let policy = Policy::new(callers.into_iter().chain(many));
    policy.with_dual_control(["Meters/DeleteMeter", "Meters/ImportMeters"]).unwrap()
}

async fn site() -> Site {
    Site::start_changed(|_, config| config.policy = policy()).await
}

async fn send<Q, A>(channel: &Channel, path: &str, message: Q) -> Result<A, Status>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
{
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    let call = client.unary(tonic::Request::new(message), path.parse().unwrap(), codec);
    let answer = tokio::time::timeout(SOON, call).await.expect("no answer")?;
    Ok(answer.into_inner())
}

async fn delete(channel: &Channel, meter_id: &str) -> Result<(), Status> {
    send(channel, DELETE, DeleteMeterRequest { meter_id: meter_id.to_owned() }).await
}

/// As somebody who was shown what waits under this number now.
async fn approve(channel: &Channel, id: &str) -> Result<Approval, Status> {
    let shown = try_list(channel).await.unwrap_or_default();
    let shown = shown.into_iter().find(|one| one.approval_id == id);
    approve_shown(channel, id, &shown.map_or_else(|| vec![0; 32], |one| one.digest.to_vec())).await
}

async fn approve_shown(channel: &Channel, id: &str, digest: &[u8]) -> Result<Approval, Status> {
    let digest = digest.to_vec().into();
    let request = ApproveCallRequest { approval_id: id.to_owned(), digest };
    let answer: ApproveCallResponse =
        send(channel, "/ami.kms.v1.Approvals/ApproveCall", request).await?;
    Ok(answer.approval.unwrap())
}

async fn list(channel: &Channel) -> Vec<Approval> {
    try_list(channel).await.unwrap()
}

async fn try_list(channel: &Channel) -> Result<Vec<Approval>, Status> {
    let path = "/ami.kms.v1.Approvals/ListApprovals";
    let answer: ListApprovalsResponse = send(channel, path, ListApprovalsRequest {}).await?;
    Ok(answer.approvals)
}

/// The number under which a refused call waits.
#[track_caller]
fn number(answer: Result<(), Status>) -> String {
    is(&answer, NEEDED);
    let details = answer.unwrap_err().get_error_details();
    details.error_info().unwrap().metadata["approval_id"].clone()
}

#[track_caller]
fn is<T: std::fmt::Debug>(answer: &Result<T, Status>, (code, word): (Code, &str)) {
    assert_eq!(reason(answer), (code, word.to_owned()), "{answer:?}");
}

#[tokio::test]
async fn one_person_asks_another_approves_and_the_first_passes_once() {
    let site = site().await;
    let (ann, dora) = (site.caller("ann").await, site.caller("dora").await);
    let refused = delete(&ann, "m-1").await;
    let sentence = refused.as_ref().unwrap_err().message().to_owned();
    let details = refused.as_ref().unwrap_err().get_error_details();
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!(metadata["verb"], "Meters/DeleteMeter");
    let in_15_minutes = 1_767_225_600_000 + LIFE.as_millis() as u64;
    assert_eq!(metadata["expires"], in_15_minutes.to_string());
    let id = number(refused);
    assert!(sentence.contains(&format!("approvals approve {id}")), "{sentence}");
    // To ask again changes nothing, and gains no time.
    site.clock.advance(Duration::from_secs(60));
    assert_eq!(number(delete(&ann, "m-1").await), id);
    let waiting = list(&dora).await;
    let due = Approval {
        approval_id: id.clone(),
        verb: "Meters/DeleteMeter".into(),
        requester: "ann".into(),
        summary: "meter \"m-1\"".into(),
        age_ms: 60_000,
        expires_in_ms: 14 * 60_000,
        approved_by: String::new(),
        digest: waiting[0].digest.clone(),
    };
    assert_eq!(due.digest.len(), 32);
    assert_eq!(waiting, std::slice::from_ref(&due));
    let approved = approve(&dora, &id).await.unwrap();
    assert_eq!(approved, Approval { approved_by: "dora".into(), ..due });
    is(&delete(&ann, "m-1").await, PASSED);
    assert!(list(&dora).await.is_empty());
    assert_ne!(number(delete(&ann, "m-1").await), id);
}

const ASK_AHEAD: &str = "/ami.kms.v1.Approvals/AskAhead";

async fn ask_ahead(channel: &Channel, verb: &str, meter: &str) -> Result<Option<Approval>, Status> {
    let request = DeleteMeterRequest { meter_id: meter.to_owned() }.encode_to_vec().into();
    let request = AskAheadRequest { verb: verb.to_owned(), request };
    let answer: AskAheadResponse = send(channel, ASK_AHEAD, request).await?;
    Ok(answer.approval)
}

#[tokio::test]
async fn a_second_person_is_asked_ahead_and_what_was_approved_is_used_by_the_call_alone() {
    let site = site().await;
    let (ann, cid) = (site.caller("ann").await, site.caller("cid").await);
    let dora = site.caller("dora").await;
    let ahead = async |meter| ask_ahead(&cid, "Meters/DeleteMeter", meter).await;
    let id = number(ahead("m-1").await.map(drop));
    // It is the call itself that waits, once, for the same person.
    assert_eq!(number(delete(&cid, "m-1").await), id);
    assert_eq!(number(ahead("m-1").await.map(drop)), id);
    let waiting = list(&dora).await;
    assert_eq!((waiting.len(), &*waiting[0].verb), (1, "Meters/DeleteMeter"));
    approve(&dora, &id).await.unwrap();
    for _ in 0..3 {
        let approved = ahead("m-1").await.unwrap().unwrap();
        assert_eq!((&*approved.approval_id, &*approved.approved_by), (&*id, "dora"));
    }
    assert_ne!(number(ahead("m-2").await.map(drop)), id);
    let anns = ask_ahead(&ann, "Meters/DeleteMeter", "m-1").await;
    assert_ne!(number(anns.map(drop)), id);
    is(&delete(&cid, "m-1").await, PASSED);
    assert_ne!(number(ahead("m-1").await.map(drop)), id);
}

#[tokio::test]
async fn nothing_is_asked_ahead_that_the_caller_may_not_do_or_that_takes_one_person() {
    let site = site().await;
    let (cid, dora) = (site.caller("cid").await, site.caller("dora").await);
    assert_eq!(ask_ahead(&cid, "Meters/BuryDamagedMeter", "m-1").await.unwrap(), None);
    for verb in
        ["", "Meters/Delete", "Meters/ImportMeters", "Ciphering/Decrypt", "Approvals/ApproveCall"]
    {
        let refused = ask_ahead(&cid, verb, "m-1").await;
        is(&refused, (Code::InvalidArgument, "BAD_FIELD"));
    }
    // An administrator may ask, and may not follow the log.
    let refused = ask_ahead(&cid, "Audit/VerifyChain", "m-1").await;
    is(&refused, (Code::PermissionDenied, "NOT_GRANTED"));
    let refused = ask_ahead(&dora, "Meters/DeleteMeter", "m-1").await;
    is(&refused, (Code::PermissionDenied, "NOT_GRANTED"));
    assert!(list(&dora).await.is_empty());
}

#[tokio::test]
async fn nobody_approves_his_own_call_and_nobody_without_the_grant_any() {
    let site = site().await;
    let (ann, cid) = (site.caller("ann").await, site.caller("cid").await);
    let id = number(delete(&ann, "m-1").await);
    is(&approve(&ann, &id).await, (Code::PermissionDenied, "OWN_CALL"));
    // The same person on another connection is the same person.
    is(&approve(&site.caller("ann").await, &id).await, (Code::PermissionDenied, "OWN_CALL"));
    is(&approve(&cid, &id).await, (Code::PermissionDenied, "NOT_GRANTED"));
    is(&delete(&ann, "m-1").await, NEEDED);
    // Who may approve need not be one who may ask, and may not ask by that.
    is(&delete(&site.caller("dora").await, "m-1").await, (Code::PermissionDenied, "NOT_GRANTED"));
    approve(&site.caller("bob").await, &id).await.unwrap();
    is(&delete(&ann, "m-1").await, PASSED);
}

#[tokio::test]
async fn an_approval_is_for_one_request_of_one_person() {
    let site = site().await;
    let [ann, bob, cid] =
        [site.caller("ann").await, site.caller("bob").await, site.caller("cid").await];
    let id = number(delete(&cid, "m-1").await);
    approve(&bob, &id).await.unwrap();
    // Another meter, another asker: calls of their own.
    let other_meter = number(delete(&cid, "m-2").await);
    let other_asker = number(delete(&ann, "m-1").await);
    let approvers_own = number(delete(&bob, "m-1").await);
    assert_eq!(list(&ann).await.len(), 4);
    for other in [other_meter, other_asker, approvers_own] {
        assert_ne!(other, id);
    }
    is(&delete(&cid, "m-1").await, PASSED);
}

#[tokio::test]
async fn what_is_older_than_15_minutes_is_forgotten_approved_or_not() {
    let site = site().await;
    let (cid, dora) = (site.caller("cid").await, site.caller("dora").await);
    let approved = number(delete(&cid, "m-1").await);
    let waiting = number(delete(&cid, "m-2").await);
    approve(&dora, &approved).await.unwrap();
    site.clock.advance(LIFE - Duration::from_millis(1));
    assert_eq!(list(&dora).await.len(), 2);
    site.clock.advance(Duration::from_millis(1));
    assert!(list(&dora).await.is_empty());
    for id in [&approved, &waiting] {
        is(&approve(&dora, id).await, (Code::NotFound, "NOTHING_WAITS"));
    }
    assert_ne!(number(delete(&cid, "m-1").await), approved);
}

#[tokio::test]
async fn to_approve_twice_is_to_approve_once() {
    let site = site().await;
    let (cid, dora) = (site.caller("cid").await, site.caller("dora").await);
    let id = number(delete(&cid, "m-1").await);
    approve(&dora, &id).await.unwrap();
    let again = approve(&site.caller("bob").await, &id).await.unwrap();
    assert_eq!(again.approved_by, "dora");
    is(&delete(&cid, "m-1").await, PASSED);
    is(&delete(&cid, "m-1").await, NEEDED);
    is(&approve(&dora, &id).await, (Code::NotFound, "NOTHING_WAITS"));
    is(&approve(&dora, "first").await, (Code::InvalidArgument, "BAD_FIELD"));
}

#[tokio::test]
async fn of_many_repetitions_at_once_one_passes() {
    const AT_ONCE: usize = 16;
    let site = site().await;
    let (cid, dora) = (site.caller("cid").await, site.caller("dora").await);
    let id = number(delete(&cid, "m-1").await);
    approve(&dora, &id).await.unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let cid = cid.clone();
        calls.spawn(async move { reason(&delete(&cid, "m-1").await) });
    }
    let answers = calls.join_all().await;
    let count = |(code, word): (Code, &str)| {
        answers.iter().filter(|answer| **answer == (code, word.to_owned())).count()
    };
    assert_eq!((count(PASSED), count(NEEDED)), (1, AT_ONCE - 1), "{answers:?}");
    // The others wait together, as one call.
    assert_eq!(list(&dora).await.len(), 1);
}

#[tokio::test]
async fn what_waits_is_bounded_for_each_and_for_all() {
    let site = site().await;
    let full = (Code::ResourceExhausted, "TOO_MANY_WAITING");
    let ask = async |caller: &str, calls: usize| {
        let channel = site.caller(caller).await;
        for n in 0..calls {
            is(&delete(&channel, &format!("m-{n}")).await, NEEDED);
        }
        channel
    };
    let first = ask("admin-0", 32).await;
    is(&delete(&first, "m-one-more").await, full);
    // What waits already may be asked for again, and may be approved.
    let id = number(delete(&first, "m-0").await);
    for n in 1..8 {
        ask(&format!("admin-{n}"), 32).await;
    }
    let (late, dora) = (site.caller("admin-8").await, site.caller("dora").await);
    is(&delete(&late, "m-0").await, full);
    assert_eq!(list(&dora).await.len(), 256);
    approve(&dora, &id).await.unwrap();
    is(&delete(&first, "m-0").await, PASSED);
    is(&delete(&late, "m-0").await, NEEDED);
    is(&delete(&late, "m-1").await, full);
    site.clock.advance(LIFE);
    is(&delete(&late, "m-1").await, NEEDED);
}

#[tokio::test]
async fn a_number_finds_a_call_and_only_its_digest_approves_it() {
    let site = site().await;
    let (cid, dora) = (site.caller("cid").await, site.caller("dora").await);
    let [shown, meant] = [number(delete(&cid, "m-1").await), number(delete(&cid, "m-2").await)];
    let waiting = list(&dora).await;
    let digest_of =
        |id: &String| waiting.iter().find(|one| one.approval_id == *id).unwrap().digest.to_vec();
    assert_ne!(digest_of(&shown), digest_of(&meant));
    // As if the number had come again for another call than the one that was shown.
    let other = (Code::FailedPrecondition, "OTHER_CALL");
    is(&approve_shown(&dora, &meant, &digest_of(&shown)).await, other);
    // A client that says none approves none.
    let none = approve_shown(&dora, &meant, &[]).await;
    is(&none, (Code::InvalidArgument, "BAD_FIELD"));
    let details = none.unwrap_err().get_error_details();
    assert_eq!(details.error_info().unwrap().metadata["field"], "digest");
    is(&delete(&cid, "m-2").await, NEEDED);
    assert!(list(&dora).await.iter().all(|one| one.approved_by.is_empty()));
    approve_shown(&dora, &meant, &digest_of(&meant)).await.unwrap();
    is(&delete(&cid, "m-2").await, PASSED);
    is(&delete(&cid, "m-1").await, NEEDED);
}

#[tokio::test]
async fn who_asks_for_very_many_calls_is_told_when_he_may_ask_again() {
    let site = site().await;
    let (cid, ann, dora) =
        (site.caller("cid").await, site.caller("ann").await, site.caller("dora").await);
    // Each is approved and made at once, so that none waits.
    for n in 0..32 {
        let id = number(delete(&cid, &format!("m-{n}")).await);
        approve(&dora, &id).await.unwrap();
        is(&delete(&cid, &format!("m-{n}")).await, PASSED);
        site.clock.advance(Duration::from_secs(1));
    }
    let full = delete(&cid, "m-33").await;
    is(&full, (Code::ResourceExhausted, "TOO_MANY_ASKED"));
    let details = full.unwrap_err().get_error_details();
    let delay = details.retry_info().unwrap().retry_delay.unwrap();
    assert_eq!(delay, Duration::from_secs(60 - 32));
    // It is his own bound, and ends when it said.
    is(&delete(&ann, "m-33").await, NEEDED);
    site.clock.advance(delay - Duration::from_millis(1));
    is(&delete(&cid, "m-33").await, (Code::ResourceExhausted, "TOO_MANY_ASKED"));
    site.clock.advance(Duration::from_millis(1));
    is(&delete(&cid, "m-33").await, NEEDED);
}

#[tokio::test]
async fn another_site_knows_of_nothing() {
    let (here, there) = (site().await, site().await);
    let id = number(delete(&here.caller("cid").await, "m-1").await);
    let answer = approve(&there.caller("dora").await, &id).await;
    is(&answer, (Code::NotFound, "NOTHING_WAITS"));
    let sentence = answer.unwrap_err().message().to_owned();
    assert!(sentence.contains("asked of another site"), "{sentence}");
    is(&delete(&here.caller("cid").await, "m-1").await, NEEDED);
}

#[tokio::test]
async fn calls_that_need_one_person_pass_as_before() {
    let site = site().await;
    let ann = site.caller("ann").await;
    for path in ["/ami.kms.v1.Meters/GetMeter", "/ami.kms.v1.Meters/CreateMeter"] {
        is(&rpc_support::call(&ann, path).await, PASSED);
    }
}

/// One import, message by message; `open`: its end does not come.
async fn import(
    channel: &Channel,
    messages: Vec<ImportMetersRequest>,
    open: bool,
) -> Result<(), Status> {
    use futures_util::StreamExt as _;
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let codec = tonic_prost::ProstCodec::<ImportMetersRequest, ImportMetersResponse>::default();
    let rest = if open {
        futures_util::stream::pending().left_stream()
    } else {
        futures_util::stream::empty().right_stream()
    };
    let messages = tokio_stream::iter(messages).chain(rest);
    let path = "/ami.kms.v1.Meters/ImportMeters".parse().unwrap();
    let call = client.streaming(tonic::Request::new(messages), path, codec);
    let answer = tokio::time::timeout(SOON, call).await.expect("no answer")?;
    answer.into_inner().message().await.map(drop)
}

const RULES: ImportRules = ImportRules {
    allow_test_keys: false,
    add_versions: true,
    dry_run: false,
    change_policy: false,
};

fn lines(numbers: std::ops::Range<u64>) -> Vec<ImportLine> {
    let guek = NewKey {
        kind: KeyKind::Guek as i32,
        clear_value: b"SECRET-KEY-BYTES"[..].into(),
        ..Default::default()
    };
    let policy = MeterPolicy { allow_encryption_only: true, ..Default::default() };
    let meter = |n: u64| NewMeter {
        meter_id: format!("m-{n}"),
        system_title: n.to_be_bytes().to_vec().into(),
        keys: vec![guek.clone()],
        policy: Some(policy.clone()),
        ..Default::default()
    };
    numbers.map(|n| ImportLine { line: n, meter: Some(meter(n)) }).collect()
}

fn clear(lines: Vec<ImportLine>) -> ImportMetersRequest {
    ImportMetersRequest { rules: Some(RULES), lines, sealed: None }
}

fn sealed(file_id: u8, number: u32) -> ImportMetersRequest {
    let body = SealedHeaderBody {
        file_id: vec![file_id; 16].into(),
        signer: "maker".into(),
        count: 900,
        sealed_ms: 1_767_225_600_000,
        ..Default::default()
    };
    let header = SealedHeader { body: body.encode_to_vec().into(), signature: vec![1; 64].into() };
    let chunk = SealedChunk { number, ..Default::default() };
    let sealed = Some(SealedPart { header: Some(header), chunk: Some(chunk) });
    ImportMetersRequest { rules: Some(RULES), lines: Vec::new(), sealed }
}

#[tokio::test]
async fn an_import_in_clear_waits_for_all_of_its_lines_and_its_rules() {
    let site = site().await;
    let (ann, dora) = (site.caller("ann").await, site.caller("dora").await);
    let id = number(import(&ann, vec![clear(lines(1..4))], false).await);
    let shown = list(&dora).await.remove(0);
    assert_eq!(
        shown.summary,
        "3 lines in clear, meters [\"m-1\", \"m-2\", \"m-3\"], keys: 3 GUEK, \
         policy AUTHENTICATED + allow_encryption_only, rules: add_versions"
    );
    approve(&dora, &id).await.unwrap();
    // Another line, other rules, lines changed over: another import.
    let mut other = lines(1..4);
    other[2].meter.as_mut().unwrap().keys[0].clear_value = b"ANOTHER-KEYBYTES"[..].into();
    let mut turned = lines(1..4);
    turned.swap(0, 1);
    let rules = ImportRules { change_policy: true, ..RULES };
    for different in [
        clear(lines(1..3)),
        clear(other),
        clear(turned),
        ImportMetersRequest { rules: Some(rules), ..clear(lines(1..4)) },
    ] {
        assert_ne!(number(import(&ann, vec![different], false).await), id);
    }
    // However the lines are spread over messages; and once.
    let spread = || vec![clear(lines(1..2)), clear(lines(2..4))];
    is(&import(&ann, spread(), false).await, PASSED);
    assert_ne!(number(import(&ann, spread(), false).await), id);
}

#[tokio::test]
async fn an_import_in_clear_that_is_too_long_to_be_approved_says_so() {
    let site = site().await;
    let ann = site.caller("ann").await;
    let too_long = (Code::InvalidArgument, "IMPORT_TOO_LONG");
    let many = (0..3).map(|n| clear(lines(n * 400..n * 400 + 400))).collect();
    is(&import(&ann, many, false).await, too_long);
    // A client that keeps its stream open until it has results asks for what it has sent.
    is(&import(&ann, vec![clear(lines(0..9))], true).await, NEEDED);
    let mixed = vec![clear(lines(0..1)), sealed(1, 0)];
    is(&import(&ann, mixed, false).await, (Code::InvalidArgument, "BAD_FIELD"));
    is(&import(&ann, Vec::new(), false).await, (Code::InvalidArgument, "BAD_FIELD"));
}

#[tokio::test]
async fn an_import_of_a_sealed_file_waits_for_its_header_and_goes_on_where_it_broke_off() {
    let site = site().await;
    let (ann, bob, dora) =
        (site.caller("ann").await, site.caller("bob").await, site.caller("dora").await);
    // Nobody waits for the end of the file.
    let id = number(import(&ann, vec![sealed(1, 0)], true).await);
    let shown = list(&dora).await.remove(0);
    let file = "01".repeat(16);
    assert_eq!(
        shown.summary,
        format!(
            "sealed file {file} of signer \"maker\", sealed at 2026-01-01T00:00:00Z, 900 lines, \
             rules: add_versions, which keys and policies is not said (an older release sealed it)"
        )
    );
    approve(&dora, &id).await.unwrap();
    is(&import(&ann, vec![sealed(1, 0), sealed(1, 1)], false).await, PASSED);
    is(&import(&ann, vec![sealed(1, 1)], false).await, PASSED);
    // Another file, other rules, somebody else, or too late.
    assert_ne!(number(import(&ann, vec![sealed(2, 0)], false).await), id);
    let rules = Some(ImportRules { change_policy: true, ..RULES });
    let other = ImportMetersRequest { rules, ..sealed(1, 1) };
    assert_ne!(number(import(&ann, vec![other], false).await), id);
    assert_ne!(number(import(&bob, vec![sealed(1, 1)], false).await), id);
    site.clock.advance(LIFE);
    assert_ne!(number(import(&ann, vec![sealed(1, 1)], false).await), id);
}

#[tokio::test]
async fn a_meter_is_readmitted_by_two_people_whatever_the_policy_says() {
    let policy = Policy::new([
        (CallerName::new("ann").unwrap(), vec![Role::AmiAdmin, Role::Approver]),
        (CallerName::new("dora").unwrap(), vec![Role::Approver]),
    ]);
    assert!(policy.dual_control().is_empty());
    let site = Site::start_changed(|_, config| config.policy = policy).await;
    let (ann, dora) = (site.caller("ann").await, site.caller("dora").await);
    let readmit = async || -> Result<(), Status> {
        let request =
            ReadmitMeterRequest { meter_id: "m-1".into(), system_title: vec![7; 8].into() };
        send(&ann, "/ami.kms.v1.Meters/ReadmitMeter", request).await
    };
    let id = number(readmit().await);
    assert_eq!(list(&dora).await[0].summary, "deleted meter \"m-1\", title 0707070707070707");
    is(&approve(&ann, &id).await, (Code::PermissionDenied, "OWN_CALL"));
    approve(&dora, &id).await.unwrap();
    is(&readmit().await, PASSED);
    is(&readmit().await, NEEDED);
    is(&delete(&ann, "m-1").await, PASSED);
}
