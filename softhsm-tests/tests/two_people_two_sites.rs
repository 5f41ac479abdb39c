//! Calls that need two people, between two sites by the real programs: where they wait, what becomes of them when the
//! other site writes, and a switchover that takes two people itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use common::{
    client, client_of, eventually,
    fleet::{add, id, line},
    programs,
    up::sql,
    wire::{call, channel_as, reason},
};
use kms_client::MeterName;
use kms_proto::Method;
use serde_json::Value;
use softhsm_tests::{AmiTool, Pair, Role, Running, Setting, Site, SiteOptions};
use tempfile::TempDir;
use tonic::Code;

/// Two sites, enrolled and serving, in memory; both ask two people for these calls.
fn pair_of(dual_control: &str) -> (TempDir, Pair, (Running, Running)) {
    let dir = tempfile::Builder::new().prefix("kms-pair-").tempdir_in("/dev/shm").unwrap();
    let set = |section, key, value: &str| Setting { section, key, value: value.to_owned() };
    let settings = vec![
        set("peer", "heartbeat_ms", "300"),
        set("peer", "write_wait_ms", "5000"),
        set("peer", "compare_interval_s", "5"),
        set("rpc", "dual_control", dual_control),
    ];
    let options = SiteOptions { settings, ..SiteOptions::default() };
    let pair = Pair::make(dir.path(), &programs(), &options).unwrap();
    let running = pair.start().unwrap();
    (dir, pair, running)
}

/// The tool of one who knows both sites, the first one preferred.
fn of_both(pair: &Pair, role: Role) -> AmiTool {
    AmiTool::new(&pair.a.programs().ami_tool, &pair.client_toml(role).unwrap())
}

/// Exit code, and all that was said.
fn said(tool: &AmiTool, arguments: &[&str]) -> (Option<i32>, String) {
    let output = tool.run(arguments, "").unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), said + &String::from_utf8_lossy(&output.stderr))
}

/// Asks, and hears under which number it waits, and that it does at this site.
#[track_caller]
fn waits_at(site: &str, tool: &AmiTool, arguments: &[&str]) -> String {
    let (code, said) = said(tool, arguments);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!(" at site {site} (ami-tool approvals approve ")), "{said}");
    let (_, rest) = said.split_once("ami-tool approvals approve ").unwrap();
    rest.chars().take_while(char::is_ascii_digit).collect()
}

/// What waits, by site.
fn waiting(tool: &AmiTool, arguments: &[&str]) -> Vec<Value> {
    let arguments = [arguments, &["approvals", "list", "--json"]].concat();
    let output = tool.run(&arguments, "").unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The events of a site's log that have this in them.
fn events(site: &Site, what: &str) -> Vec<Value> {
    let (_, listed) = said(&site.ami_tool(Role::Auditor), &["audit", "list", "--json"]);
    let events = listed.lines().filter(|line| line.contains(what));
    events.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A site's policy asks two people for these calls from its next start on.
fn ask_two_for(site: &Site, calls: &str) {
    let path = &site.places().kms_toml;
    let text = fs::read_to_string(path).unwrap();
    assert_eq!(text.matches("dual_control = [\"Meters/DeleteMeter\"]").count(), 1, "{text}");
    let named = format!("dual_control = [{calls}]");
    fs::write(path, text.replace("dual_control = [\"Meters/DeleteMeter\"]", &named)).unwrap();
}

/// Calls that two people are asked for, and whether a site that does not write refuses them before that.
const CALLS: &[(Method, bool)] = &[
    (Method::MetersCreateMeter, true),
    (Method::MetersDeleteMeter, true),
    (Method::MetersBuryDamagedMeter, true),
    (Method::MetersReadmitMeter, true),
    (Method::MetersSetPolicy, true),
    (Method::MetersDeclareCounter, true),
    (Method::RotationStageKey, true),
    (Method::RotationNextTransfer, true),
    (Method::RotationConfirmKey, true),
    (Method::RotationRollBackKey, true),
    (Method::RotationReviveKey, true),
    (Method::RotationCompromiseKey, true),
    (Method::RotationDestroyKey, true),
    (Method::RotationRestoreKey, true),
    (Method::RotationSetLegalHold, true),
    (Method::RotationStartCampaign, true),
    (Method::RotationPauseCampaign, true),
    (Method::RotationResumeCampaign, true),
    (Method::RotationCancelCampaign, true),
    (Method::RotationGetCampaign, false),
    (Method::RotationListCampaigns, false),
    (Method::RotationListCampaignMembers, false),
    (Method::RotationGetMeterRotation, false),
    (Method::SiteForgetRevocationList, true),
    (Method::SiteRotateBlockSecrets, true),
    (Method::SiteGetBlockSecretRotation, false),
    (Method::SiteRotateSiteKek, false),
    (Method::SiteGetSiteKekRotation, false),
    (Method::SiteDestroySiteKek, false),
    // No request of a second token of that site.
    (Method::SiteEnrolPeer, true),
    (Method::MetersGetMeter, false),
    (Method::MetersListMeters, false),
    (Method::MetersGetImportKey, false),
    (Method::SiteGetStatus, false),
    (Method::SitePlanPromotion, false),
    (Method::SiteGetReadiness, false),
    (Method::SitePromote, false),
    (Method::SiteDemote, false),
    (Method::SiteAdmitEpoch, false),
    (Method::SiteListDivergence, false),
    (Method::SiteResolveDivergence, false),
];

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_asked_to_approve_what_only_the_other_site_can_carry_out() {
    let (_dir, pair, (a, b)) = pair_of("[\"Meters/DeleteMeter\"]");
    let second = &pair.b;
    pair.until_it_is(second, "SECONDARY", 2).unwrap();
    b.stop().unwrap();
    let names: Vec<_> = CALLS.iter().map(|(method, _)| format!("\"{}\"", method.name())).collect();
    ask_two_for(second, &[&names[..], &["\"Meters/ImportMeters\"".to_owned()]].concat().join(", "));
    let b = second.start().unwrap();
    let channel = channel_as(second, Role::Dev);
    for (method, is_elsewhere) in CALLS {
        let answer = call(&channel, &format!("/ami.kms.v1.{}", method.name())).await;
        let word = if *is_elsewhere { "NOT_PRIMARY" } else { "SECOND_PERSON_NEEDED" };
        let due = (Code::FailedPrecondition, word.to_owned());
        assert_eq!(reason(&answer), due, "{}", method.name());
    }
    // Lines of an import, too, and not the question whether any would be taken.
    let admin = second.ami_tool(Role::AmiAdmin);
    let import = ["meter", "import", "-", "--format", "jsonl"];
    let output = admin.run(&import, &line(1)).unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("site-b does not write now"), "{text}");
    assert!(!text.contains("needs a second person"), "{text}");
    let rows = waiting(&second.ami_tool(Role::Approver), &[]);
    let due = CALLS.iter().filter(|(_, is_elsewhere)| !is_elsewhere).count();
    assert_eq!(rows.len(), due, "{rows:?}");
    // Who asked is in the log all the same.
    let refused = events(second, "NOT_PRIMARY");
    assert_eq!(refused.len(), CALLS.len() - due + 1, "{refused:?}");
    assert!(refused.iter().any(|event| event["verb"] == "Meters/ReadmitMeter"), "{refused:?}");
    assert!(events(second, "Approvals/Use").is_empty());
    b.stop().unwrap();
    a.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_approved_where_it_is_made_and_what_waits_at_a_site_that_writes_no_more_is_not() {
    let (_dir, pair, (a, b)) = pair_of("[\"Meters/DeleteMeter\"]");
    let (first, second) = (&pair.a, &pair.b);
    let at_a = client(first, Role::Dev).await;
    add(&at_a, &[line(1), line(2)]).await;
    pair.until_proved(first).unwrap();
    let [admin, approver] = [Role::AmiAdmin, Role::Approver].map(|role| of_both(&pair, role));
    let meters = [id(1), id(2)];
    let delete = |n: usize| ["meter", "delete", &*meters[n], "--yes"];
    let approved = waits_at("site-a", &admin, &delete(0));
    let (code, text) = said(&approver, &["approvals", "approve", &approved, "--yes"]);
    assert!(code == Some(0) && text.contains("site-a"), "{text}");
    let late = waits_at("site-a", &admin, &delete(1));

    // The other site writes before the first person comes back, and before the second one has looked at all.
    let (code, text) = said(&admin, &["site", "switchover", "site-b", "--yes"]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = said(&approver, &["approvals", "approve", &late, "--yes"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("site site-a does not write now"), "{text}");
    assert!(text.contains("let the call be made at the site that writes"), "{text}");
    let anew = waits_at("site-b", &admin, &delete(0));
    assert_ne!(anew, approved);
    // Nothing of the first approval was used, and nobody can use it there.
    let rows = waiting(&approver, &["--site", "site-a"]);
    let of = |number: &str| {
        let row = rows.iter().find(|row| row["approval_id"] == number);
        row.unwrap_or_else(|| panic!("{rows:?}"))["approved_by"].clone()
    };
    assert_eq!((of(&approved), of(&late)), (Role::Approver.caller().into(), "".into()));
    assert!(events(first, "Approvals/Use").is_empty());
    let (code, text) = said(&first.ami_tool(Role::AmiAdmin), &delete(0));
    assert!(
        code == Some(1) && text.contains("NOT_PRIMARY") | text.contains("does not write"),
        "{text}"
    );
    assert!(at_a.meters().get(&MeterName::Id(id(1).parse().unwrap())).await.is_ok());

    // Both persons name no site, and the former primary is gone by now.
    a.kill_9().unwrap();
    let (code, text) = said(&approver, &["approvals", "list"]);
    assert!(code != Some(0) && text.contains("NONE") && text.contains(&anew), "{text}");
    let rows = waiting(&approver, &[]);
    assert!(
        rows.iter().any(|row| row["approval_id"] == *anew && row["site"] == "site-b"),
        "{rows:?}"
    );
    let (code, text) = said(&approver, &["approvals", "approve", &anew, "--yes"]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = said(&admin, &delete(0));
    assert_eq!(code, Some(0), "{text}");
    let at_b = client(second, Role::Dev).await;
    assert!(at_b.meters().get(&MeterName::Id(id(1).parse().unwrap())).await.is_err());
    assert_eq!(events(second, "Approvals/Use").len(), 1);
    b.stop().unwrap();
}

/// A switchover under way, as an administrator who knows both.
fn switchover(pair: &Pair, more: &[&str]) -> Child {
    switchover_to("site-b", pair, more)
}

fn switchover_to(to: &str, pair: &Pair, more: &[&str]) -> Child {
    Command::new(&pair.a.programs().ami_tool)
        .arg("--config")
        .arg(pair.client_toml(Role::AmiAdmin).unwrap())
        .args(["site", "switchover", to, "--yes", "--json"])
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_has_its_second_people_before_anybody_is_demoted() {
    let (_dir, pair, (a, b)) = pair_of("[\"Site/Promote\", \"Site/Demote\"]");
    let (first, second) = (&pair.a, &pair.b);
    let at_a = client(first, Role::Dev).await;
    add(&at_a, &[line(1)]).await;
    pair.until_proved(first).unwrap();
    let approver = of_both(&pair, Role::Approver);
    let steps = || {
        let rows = waiting(&approver, &[]);
        let mut steps: Vec<(String, String)> = rows
            .iter()
            .map(|row| ["site", "verb"].map(|key| row[key].as_str().unwrap().to_owned()).into())
            .collect();
        steps.sort();
        steps
    };
    let due: Vec<(String, String)> = [("site-a", "Site/Demote"), ("site-b", "Site/Promote")]
        .map(|(site, verb)| (site.to_owned(), verb.to_owned()))
        .into();
    let mut stopped = switchover(&pair, &[]);
    eventually("both steps wait for somebody", async || steps() == due).await;
    // One of two is not enough.
    let number = |site: &str| {
        let row = waiting(&approver, &[]).into_iter().find(|row| row["site"] == site).unwrap();
        row["approval_id"].as_str().unwrap().to_owned()
    };
    let (code, text) = said(&approver, &["approvals", "approve", &number("site-b"), "--yes"]);
    assert_eq!(code, Some(0), "{text}");
    add(&at_a, &[line(2)]).await;
    assert!(stopped.try_wait().unwrap().is_none());
    // Broken off in the wait, it has changed nothing: no role, and no approval was used.
    stopped.kill().unwrap();
    stopped.wait().unwrap();
    add(&at_a, &[line(3)]).await;
    pair.until_it_is(first, "PRIMARY", 2).unwrap();
    assert_eq!(steps(), due);
    assert!(events(first, "Site/Demote").is_empty() && events(second, "Site/Promote").is_empty());

    let again = switchover(&pair, &[]);
    let (code, text) = said(&approver, &["approvals", "approve", &number("site-a"), "--yes"]);
    assert_eq!(code, Some(0), "{text}");
    let output = again.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["standing"]["epoch"], 3, "{answer}");
    // Each was used once: the tries before the other site had heard of the demotion used none.
    for site in [first, second] {
        assert_eq!(events(site, "Approvals/Use").len(), 1);
    }
    let both = client_of(&pair.client_toml(Role::Dev).unwrap()).await;
    add(&both, &[line(4)]).await;
    b.stop().unwrap();
    a.stop().unwrap();
}

/// Lets a switchover go on that waits for the second person of its promotion behind the demotion.
async fn goes_on(pair: &Pair, to: &str) {
    let approver = of_both(pair, Role::Approver);
    let going_on = switchover_to(to, pair, &[]);
    let promotion = || {
        let mut rows = waiting(&approver, &[]).into_iter();
        rows.find(|row| row["verb"] == "Site/Promote" && row["site"] == to)
    };
    eventually("its second step waits for somebody", async || promotion().is_some()).await;
    let number = promotion().unwrap()["approval_id"].as_str().unwrap().to_owned();
    let (code, text) = said(&approver, &["approvals", "approve", &number, "--yes"]);
    assert_eq!(code, Some(0), "{text}");
    let output = going_on.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let waits = format!("nobody writes until then: Site/Promote at site {to}");
    assert!(text.contains(&waits), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_5_what_was_approved_before_a_switchover_is_used_neither_after_it_nor_after_the_way_back()
 {
    let (_dir, pair, (a, b)) = pair_of("[\"Site/Promote\", \"Meters/DeleteMeter\"]");
    let (first, second) = (&pair.a, &pair.b);
    add(&client(first, Role::Dev).await, &[line(1)]).await;
    pair.until_proved(first).unwrap();
    let (admin, approver) = (of_both(&pair, Role::AmiAdmin), of_both(&pair, Role::Approver));
    let deletion = ["meter", "delete", &id(1), "--yes"];
    let number = waits_at("site-a", &admin, &deletion);
    let (code, text) = said(&approver, &["approvals", "approve", &number, "--yes"]);
    assert_eq!(code, Some(0), "{text}");
    sql(first, "CREATE TABLE kept AS SELECT * FROM approvals").await;
    client(first, Role::AmiAdmin).await.demote_site(2).await.unwrap();
    goes_on(&pair, "site-b").await;
    let both = client_of(&pair.client_toml(Role::Dev).unwrap()).await;
    add(&both, &[line(2)]).await;
    assert_ne!(waits_at("site-b", &admin, &deletion), number, "it is asked anew");

    pair.until_proved(second).unwrap();
    client(second, Role::AmiAdmin).await.demote_site(3).await.unwrap();
    goes_on(&pair, "site-a").await;
    let at_first = first.ami_tool(Role::AmiAdmin);
    let again = waits_at("site-a", &at_first, &deletion);
    assert_ne!(again, number, "the promotion took what was approved with it");
    // Nor is it used where somebody puts it back.
    sql(first, "DELETE FROM approvals; INSERT INTO approvals SELECT * FROM kept").await;
    let (code, text) = said(&at_first, &deletion);
    assert!(code == Some(1) && text.contains("or the site was promoted since"), "{text}");
    assert!(
        client(first, Role::Dev)
            .await
            .meters()
            .get(&MeterName::Id(id(1).parse().unwrap()))
            .await
            .is_ok()
    );
    b.stop().unwrap();
    a.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_far_above_the_known_epochs_has_its_second_person_whatever_the_policy_says() {
    let (_dir, pair, (a, b)) = pair_of("[\"Meters/DeleteMeter\"]");
    pair.until_proved(&pair.a).unwrap();
    let approver = of_both(&pair, Role::Approver);
    let mut under_way = switchover(&pair, &["--above-epoch", "200"]);
    let is_asked = || {
        let rows = waiting(&approver, &[]);
        rows.len() == 1 && rows[0]["verb"] == "Site/Promote" && rows[0]["site"] == "site-b"
    };
    eventually("the promotion waits for somebody", async || is_asked()).await;
    under_way.kill().unwrap();
    under_way.wait().unwrap();
    pair.until_it_is(&pair.a, "PRIMARY", 2).unwrap();
    add(&client(&pair.a, Role::Dev).await, &[line(1)]).await;
    b.stop().unwrap();
    a.stop().unwrap();
}
