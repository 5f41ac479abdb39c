//! `site plan`, and `site status --readiness`: what a promotion would cost, and what was proved.

use kms_client::{KmsClient, PlanBlock, PromotionPlan, SignedReport, SigningKey, SiteReadiness};
use kms_core::date::date;
use serde_json::json;

use crate::failure::{Exit, Failure};
use crate::roles::meant;
use crate::site::standing;
use crate::site_args::{Plan, SiteStatusArgs};
use crate::text::{block, say, say_json};

/// Shows what a promotion would cost. The exit code says whether it would be taken.
pub(crate) async fn plan(client: &KmsClient, what: Plan, json: bool) -> Result<Exit, Failure> {
    let (client, _) = meant(client, what.name.as_ref())?;
    let plan = client.plan_promotion(what.open_blocks).await?;
    if json {
        say_json(&plan)?;
    } else {
        say(&block(&rows(&plan)))?;
        for (blocks, count, what) in [
            (&plan.behind, plan.behind_count, "behind"),
            (&plan.unopened, plan.unopened_count, "not opened"),
        ] {
            costs(blocks, count, what)?;
        }
        for what in &plan.token_unmet {
            say(&format!("the token has a limit: {what}"))?;
        }
    }
    Ok(Exit::good_if(plan.refusal.is_empty()))
}

/// After a demotion, until its signed record has come here; or that site was put back, and ended nothing.
const NOT_HEARD_YET: &str = "without --primary-is-lost, once the site has taken in that the other one, which does not write, \
    ended its epoch: seconds. If this stays so, the other one was put back: its `site status` says so";

/// Whether it would write, and what has to be said or done for that.
fn answer(plan: &PromotionPlan) -> String {
    let PromotionPlan { refusal, refusal_reason, next_epoch, .. } = plan;
    if !refusal.is_empty() {
        return format!("REFUSED, {refusal}: {refusal_reason}");
    }
    let after = match (plan.needs_primary_is_lost, plan.peer_answers, plan.peer_writes) {
        (false, _, _) => return format!("would write in epoch {next_epoch}"),
        // Two that write at once is what that flag makes of a primary that lives.
        (true, _, true) => "after a `site switchover`",
        (true, true, false) => NOT_HEARD_YET,
        (true, false, false) => "with --primary-is-lost",
    };
    format!("would write in epoch {next_epoch}, {after}")
}

fn rows(plan: &PromotionPlan) -> [(&'static str, String); 9] {
    let peer = match (plan.peer_answers, plan.peer_writes, plan.peer_heard_ms) {
        (true, true, _) => "answers, and WRITES: a switchover loses nothing".to_owned(),
        (true, false, _) => "answers, and does not write".to_owned(),
        (false, _, Some(ms)) => {
            format!("does NOT answer; heard {:.1} s ago", ms as f64 / 1_000.0)
        }
        (false, _, None) => "does NOT answer; not heard of since this server started".to_owned(),
    };
    let known = match plan.known_from.as_str() {
        "PEER" => "from the other site, now".to_owned(),
        "HEAD_TABLE" => format!(
            "from its signed head table of {}; what it wrote later and did not send is lost, too",
            date(plan.known_ms)
        ),
        _ => "NOTHING is known of what the other site has".to_owned(),
    };
    let missing = match plan.behind_count {
        0 => "nothing that is known of".to_owned(),
        blocks => format!("{} changes in {blocks} blocks", plan.changes_missing),
    };
    let opened = match (plan.unopened_count, plan.blocks_were_opened) {
        (0, true) => "all blocks were opened now".to_owned(),
        (0, false) => {
            "none known that does not open; --open-blocks has all of them opened".to_owned()
        }
        (blocks, _) => format!("{blocks} blocks do NOT open here"),
    };
    let token = match plan.token_fault.as_str() {
        "" => "passes the check of all of its KEKs".to_owned(),
        fault => format!("FAILS: {fault}"),
    };
    [
        ("site", format!("{}, {}", plan.site, standing(&plan.standing))),
        ("promoted", answer(plan)),
        ("people", if plan.needs_two_people { "two" } else { "one" }.to_owned()),
        ("peer", format!("{} {peer}", plan.peer)),
        ("known", known),
        ("lost", missing),
        ("opens", opened),
        ("token", token),
        ("ready", readiness_word(&plan.colour, &plan.differences, plan.unknown_records)),
    ]
}

/// After a start or a change of role.
const NOT_PROVED_YET: &str = "nothing was proved yet: that takes one `peer.prove_interval_s` (60 s unless set); ask again then";

fn readiness_word(colour: &str, differences: &[String], unknown: u32) -> String {
    let mut text = if colour.is_empty() { NOT_PROVED_YET } else { colour }.to_owned();
    if !differences.is_empty() {
        text.push_str(&format!(", the sites differ in {}", differences.join(", ")));
    }
    if differences.iter().any(|it| it == "SIGNERS") {
        text.push_str(
            "; a sealed file of a signer whom only the other site knows is refused here before he is entered in \
             [[import.signers]]",
        );
    }
    if unknown > 0 {
        text.push_str(&format!(", {unknown} records of a newer release"));
    }
    text
}

fn costs(blocks: &[PlanBlock], count: u32, what: &str) -> Result<(), Failure> {
    for PlanBlock { block, reason, meter_ids, .. } in blocks {
        let meters = match meter_ids.as_slice() {
            [] => String::new(),
            ids => format!("; meters {}", ids.join(", ")),
        };
        say(&format!("block {block} {what}: {reason}{meters}"))?;
    }
    let unnamed = count as usize - blocks.len().min(count as usize);
    if unnamed > 0 {
        say(&format!("and {unnamed} blocks more {what}"))?;
    }
    Ok(())
}

/// Shows the signed reports of readiness, and verifies them if that is asked for.
pub(crate) async fn readiness(
    client: &KmsClient,
    what: SiteStatusArgs,
    json: bool,
) -> Result<Exit, Failure> {
    let names = client.site_names();
    let (mut all_good, mut answered, mut last) = (true, false, None);
    for name in &names {
        let Some(at) = client.at_site(name) else { continue };
        let readiness = match at.site_readiness().await {
            Ok(readiness) => readiness,
            Err(error) => {
                say(&format!("site {name} does not say: {error}"))?;
                last = Some(error);
                continue;
            }
        };
        answered = true;
        let verified = what.verify.then(|| verify(&readiness, &what.signing_key));
        all_good &= verified.as_ref().is_none_or(Result::is_ok);
        if json {
            let said = verified.map(|it| it.err().unwrap_or_else(|| "GOOD".to_owned()));
            say_json(&json!({ "site": name, "readiness": readiness, "verified": said }))?;
        } else {
            show(name, &readiness, verified)?;
        }
    }
    match last {
        Some(error) if !answered => Err(error.into()),
        _ => Ok(Exit::good_if(all_good)),
    }
}

/// What was verified, as a sentence; `Err`: why it does not hold.
fn verify(readiness: &SiteReadiness, pinned: &[String]) -> Result<String, String> {
    let Some(newest) = &readiness.newest else { return Err("there is no report".to_owned()) };
    let mut said = Vec::new();
    for report in [newest].into_iter().chain(&readiness.last_complete) {
        let is_meant = |key: &&SigningKey| match pinned {
            [] => true,
            pinned => pinned.iter().any(|it| key.fingerprint.eq_ignore_ascii_case(it)),
        };
        let is_meant = |key: &&SigningKey| key.site == report.by && is_meant(key);
        let meant: Vec<&SigningKey> = readiness.keys.iter().filter(is_meant).collect();
        let key = meant.first().ok_or_else(|| "no key of that fingerprint is shown".to_owned())?;
        // A site may have two tokens, and either signs for it.
        let Some(key) = meant.iter().find(|key| report.is_signed_by(&key.key)) else {
            return Err(format!(
                "the report of {} is NOT signed by the key {} of site {}",
                date(report.at_ms),
                key.fingerprint,
                key.site
            ));
        };
        said.push(format!("signed by {} of site {}", key.fingerprint, key.site));
    }
    said.dedup();
    Ok(said.join("; "))
}

fn show(
    name: &str,
    readiness: &SiteReadiness,
    verified: Option<Result<String, String>>,
) -> Result<(), Failure> {
    let none = || "none".to_owned();
    let complete = readiness.last_complete.as_ref();
    let colour = if readiness.colour.is_empty() { "-" } else { &readiness.colour };
    say(&block(&[
        ("as site", format!("{name} knows it: {colour}")),
        ("newest", readiness.newest.as_ref().map_or_else(none, told)),
        ("last complete", complete.map_or_else(none, told)),
        (
            "verified",
            match verified {
                None => "not asked for (--verify)".to_owned(),
                Some(Ok(said)) => said,
                Some(Err(why)) => format!("NOT GOOD: {why}"),
            },
        ),
    ]))
}

fn told(report: &SignedReport) -> String {
    let SignedReport { site, by, blocks, proved, failed, at_ms, keks, heads, .. } = report;
    let keks = if *keks { "all KEKs passed" } else { "KEKs NOT heard to pass in the last round" };
    let differs = match report.differences.as_slice() {
        [] => String::new(),
        all => format!(", differs in {}", all.join(", ")),
    };
    format!(
        "site {site} by site {by} in epoch {}, at {}: {proved} of {blocks} proved, {failed} failed, {keks}, heads \
         {}{differs}",
        report.epoch,
        date(*at_ms),
        &heads[..16]
    )
}

#[cfg(test)]
mod tests {
    use kms_client::{SiteRole, SiteStanding};

    use super::*;

    /// Of a site that follows and is ready.
    fn plan() -> PromotionPlan {
        PromotionPlan {
            site: "south".into(),
            standing: SiteStanding { role: SiteRole::Secondary, epoch: 6, writes: false },
            next_epoch: 7,
            refusal: String::new(),
            refusal_reason: String::new(),
            needs_primary_is_lost: false,
            needs_two_people: false,
            peer: "north".into(),
            peer_answers: true,
            peer_writes: false,
            peer_heard_ms: Some(10),
            known_from: "PEER".into(),
            known_ms: 0,
            behind: Vec::new(),
            behind_count: 0,
            changes_missing: 0,
            unopened: Vec::new(),
            unopened_count: 0,
            blocks_were_opened: false,
            colour: "GREEN".into(),
            differences: Vec::new(),
            unknown_records: 0,
            token_fault: String::new(),
            token_unmet: Vec::new(),
        }
    }

    #[test]
    fn only_a_primary_that_does_not_answer_is_to_be_called_lost() {
        let of = |needs_primary_is_lost, peer_answers, peer_writes| {
            answer(&PromotionPlan { needs_primary_is_lost, peer_answers, peer_writes, ..plan() })
        };
        assert_eq!(of(false, true, false), "would write in epoch 7");
        assert!(of(true, true, true).ends_with("after a `site switchover`"));
        assert!(of(true, false, false).ends_with("with --primary-is-lost"));
        // In a planned switchover, in the seconds before the demotion is known here.
        let demoted = of(true, true, false);
        assert!(demoted.contains("without --primary-is-lost") && !demoted.contains("with --"));
        let refused = PromotionPlan { refusal: "NOT_READY".into(), ..plan() };
        assert!(answer(&refused).starts_with("REFUSED, NOT_READY"));
    }
}
