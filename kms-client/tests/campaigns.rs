//! Campaigns, by the library, against a service in the same process: what is asked again and what never, pages, a watch that
//! outlives its connections, answers that can't be right.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod fake;

use std::sync::{Arc, atomic::Ordering};

use fake::campaigns::{campaign, member, work};
use fake::{Script, World};
use futures_util::{StreamExt as _, TryStreamExt as _};
use kms_client::{
    CallError, CampaignMemberState, CampaignPolicy, CampaignStart, CampaignStatus, ClientConfig,
    KeyKind, KeyPair, KmsClient, MembersOf, MeterId, MeterSelection, TransportOutcome, WorkAction,
    WorkReport,
};
use kms_proto::v1;
use tonic::Code;

async fn client(script: &Arc<Script>) -> (World, KmsClient) {
    let world = World::new();
    let address = world.serve(Arc::clone(script)).await;
    let config = ClientConfig::load(&world.config(&[address], "")).unwrap();
    (world, KmsClient::connect(config).await.unwrap())
}

fn start() -> CampaignStart {
    let policy = CampaignPolicy { kinds: vec![KeyKind::Guek], ..CampaignPolicy::default() };
    CampaignStart { name: "spring".into(), policy, ..CampaignStart::default() }
}

fn report(lease: u64) -> WorkReport {
    WorkReport {
        meter_id: MeterId::new("m-1").unwrap(),
        lease,
        outcome: TransportOutcome::Answered,
        apdus: vec![vec![0xDB, 8].into()],
        pairs_tried: vec![KeyPair { encryption_key_version: 2, authentication_key_version: 1 }],
        end: false,
    }
}

/// A call, by its name.
async fn ask(client: &KmsClient, call: &str) -> Result<(), CallError> {
    let rotation = client.rotation();
    match call {
        "start" => rotation.start_campaign(&start()).await.map(drop),
        "more" => rotation.start_campaign(&CampaignStart { more: true, ..start() }).await.map(drop),
        "dry" => {
            rotation.start_campaign(&CampaignStart { dry_run: true, ..start() }).await.map(drop)
        }
        "get" => rotation.campaign("spring").await.map(drop),
        "list" => rotation.campaigns().await.map(drop),
        "members" => {
            let members = rotation.campaign_members(MembersOf::default());
            members.try_collect::<Vec<_>>().await.map(drop)
        }
        "pause" => rotation.pause_campaign("spring", "why").await.map(drop),
        "resume" => rotation.resume_campaign("spring", true).await.map(drop),
        "cancel" => rotation.cancel_campaign("spring", "why").await.map(drop),
        "take" => rotation.take_work(None, "hes-1", 16).await.map(drop),
        "report" => rotation.report_work(&[report(7)]).await.map(drop),
        "meter" => rotation.meter_rotation(&MeterId::new("m-1").unwrap()).await.map(drop),
        other => panic!("{other}"),
    }
}

const SAFE: [&str; 9] =
    ["more", "dry", "get", "list", "members", "pause", "resume", "cancel", "meter"];
const ONCE: [&str; 3] = ["start", "take", "report"];

#[tokio::test]
async fn what_says_the_same_twice_is_asked_again_and_work_and_reports_never_are() {
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
    for call in ["start", "pause", "resume", "cancel", "take", "report"] {
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
async fn a_start_goes_out_as_it_was_said_and_comes_back_with_those_left_out() {
    let script = Arc::new(Script::default());
    let left =
        v1::LeftOut { meter_id: "m-9".into(), code: "NO_KEK".into(), reason: "it has none".into() };
    script.campaigns.left_out.lock().unwrap().push(left);
    let (_world, client) = client(&script).await;
    let meter_ids = ["m-1", "m-2"].map(|id| MeterId::new(id).unwrap()).to_vec();
    let selection = MeterSelection {
        meter_ids,
        title_prefix: vec![0x4D],
        compromised: true,
        ..MeterSelection::default()
    };
    let wanted = CampaignStart { selection, more: true, ..start() };
    let started = client.rotation().start_campaign(&wanted).await.unwrap();
    assert_eq!((started.added, started.already, started.left_out_total), (2, 0, 1));
    assert_eq!(started.left_out[0].code, "NO_KEK");
    assert_eq!(started.campaign.status, CampaignStatus::Running);
    assert_eq!(started.campaign.policy.canaries, Some(1));
    let asked = script.campaigns.starts.lock().unwrap();
    let selection = asked[0].selection.as_ref().unwrap();
    assert_eq!(selection.meter_ids, ["m-1", "m-2"]);
    assert!(asked[0].more && !asked[0].dry_run && selection.compromised);
    assert_eq!(asked[0].policy.as_ref().unwrap().kinds, [v1::KeyKind::Guek as i32]);
}

#[tokio::test]
async fn members_come_page_by_page_and_no_more_than_are_wanted() {
    let script = Arc::new(Script::default());
    *script.campaigns.members.lock().unwrap() = (1..=5).map(member).collect();
    let (_world, client) = client(&script).await;
    let which = MembersOf {
        name: "spring".into(),
        state: Some(CampaignMemberState::Failed),
        exposed: true,
        limit: None,
    };
    let rotation = client.rotation();
    let all: Vec<_> = rotation.campaign_members(which.clone()).try_collect().await.unwrap();
    let ids: Vec<&str> = all.iter().map(|it| it.meter_id.as_str()).collect();
    assert_eq!(ids, ["m-1", "m-2", "m-3", "m-4", "m-5"]);
    assert_eq!(all[0].last_outcome, Some(TransportOutcome::NoAnswer));
    assert_eq!((all[0].until_ms, all[0].tried[0].frame.as_str()), (None, "DB08"));
    let few = rotation.campaign_members(MembersOf { limit: Some(3), ..which });
    assert_eq!(few.try_collect::<Vec<_>>().await.unwrap().len(), 3);
    let asked = script.campaigns.asked_members.lock().unwrap();
    assert_eq!(asked.len(), 5);
    assert!(asked.iter().all(|it| it.exposed && it.state == v1::MemberState::Failed as i32));
    assert_eq!((&asked[1].after[..], asked[3].limit, asked[4].limit), (&[2; 8][..], 3, 1));
}

#[tokio::test]
async fn a_watch_outlives_its_connections_and_ends_with_the_campaign() {
    let script = Arc::new(Script::default());
    script.break_after.store(2, Ordering::SeqCst);
    let running = || campaign(v1::CampaignStatus::Running);
    let finished = campaign(v1::CampaignStatus::Finished);
    let said = vec![running(), running(), running(), finished, running()];
    *script.campaigns.watched.lock().unwrap() = said;
    let (_world, client) = client(&script).await;
    let watched: Vec<_> =
        client.rotation().watch_campaign("spring", 1).try_collect().await.unwrap();
    let status: Vec<&str> = watched.iter().map(|it| it.status.word()).collect();
    assert_eq!(status, ["RUNNING", "RUNNING", "RUNNING", "FINISHED"]);
    assert_eq!(script.calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_watch_of_no_campaign_ends_with_the_refusal() {
    let script = Arc::new(Script::default());
    *script.rotation.refuses.lock().unwrap() = Some("NO_SUCH_CAMPAIGN");
    let (_world, client) = client(&script).await;
    let mut watched = client.rotation().watch_campaign("none", 0);
    let refused = watched.next().await.unwrap().unwrap_err();
    assert!(matches!(refused, CallError::Refused { ref code, .. } if code == "NO_SUCH_CAMPAIGN"));
    assert!(watched.next().await.is_none());
}

#[tokio::test]
async fn work_is_taken_under_a_lease_and_reported_under_it() {
    let script = Arc::new(Script::default());
    let (_world, client) = client(&script).await;
    let rotation = client.rotation();
    let none = rotation.take_work(Some("spring"), "hes-1", 4).await.unwrap();
    assert_eq!((none.work.len(), none.retry_after_ms), (0, 5_000));
    assert_eq!(none.reason.as_deref(), Some("none is left"));
    *script.campaigns.work.lock().unwrap() = vec![work("m-1")];
    let taken = rotation.take_work(None, "hes-1", 0).await.unwrap();
    let first = &taken.work[0];
    assert_eq!(
        (first.action, first.kind, first.version),
        (WorkAction::Transfer, Some(KeyKind::Guek), 2)
    );
    assert_eq!((first.carrier.client, first.pairs[0].to_string()), (1, "1/1".to_owned()));
    let text = serde_json::to_string(first).unwrap();
    assert!(text.contains(r#""lease":"216172782113783809""#), "{text}");
    let verdicts = rotation.report_work(&[report(first.lease), report(1)]).await.unwrap();
    assert_eq!(verdicts[0].state, Some(CampaignMemberState::Sent));
    assert_eq!(verdicts[0].next.as_ref().unwrap().action, WorkAction::Probe);
    assert_eq!((verdicts[1].state, verdicts[1].code.as_deref()), (None, Some("LEASE_OVER")));
    let reported = script.campaigns.reports.lock().unwrap();
    assert_eq!((reported[0].outcome, reported[0].apdus[0].as_ref()), (1, &[0xDB, 8][..]));
    assert_eq!(reported[0].pairs_tried[0].encryption_key_version, 2);
    let taken = script.campaigns.taken.lock().unwrap();
    assert_eq!((taken[0].campaign.as_str(), taken[0].most), ("spring", 4));
    assert_eq!((taken[1].campaign.as_str(), taken[1].worker.as_str()), ("", "hes-1"));
}

#[tokio::test]
async fn an_answer_with_an_unknown_number_or_without_a_part_is_none() {
    let script = Arc::new(Script::default());
    let (_world, client) = client(&script).await;
    let running = campaign(v1::CampaignStatus::Running);
    for broken in [
        v1::Campaign { status: 77, ..running.clone() },
        v1::Campaign { status: 0, ..running.clone() },
        v1::Campaign { progress: None, ..running.clone() },
        v1::Campaign { policy: None, ..running },
    ] {
        *script.campaigns.shown.lock().unwrap() = Some(broken.clone());
        let error = client.rotation().campaign("spring").await.unwrap_err();
        assert!(matches!(error, CallError::Protocol(_)), "{broken:?}: {error:?}");
    }
    for (state, outcome) in [(0, 0), (99, 0), (1, 99)] {
        let wire = v1::CampaignMember { state, last_outcome: outcome, ..member(1) };
        *script.campaigns.members.lock().unwrap() = vec![wire];
        assert!(ask(&client, "members").await.is_err(), "{state} {outcome}");
    }
    *script.campaigns.work.lock().unwrap() = vec![v1::Work { action: 0, ..work("m-1") }];
    assert!(matches!(ask(&client, "take").await, Err(CallError::Protocol(_))));
}
