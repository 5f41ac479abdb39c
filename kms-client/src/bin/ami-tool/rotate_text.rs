//! Campaigns and their members, for people.

use kms_client::{
    Campaign, CampaignLabel, CampaignMember, CampaignPolicy, CampaignProgress, CampaignStatus,
    KeyTried, title_text,
};
use kms_core::date::date;

use crate::rotate_words::{seconds_text, window_text};
use crate::text::block;

/// All of it.
pub(crate) fn campaign(shown: &Campaign) -> String {
    let mut rows = vec![
        ("campaign", shown.name.clone()),
        ("status", status(shown)),
        ("policy", policy(&shown.policy)),
        ("begun", format!("{}, asked for by {}", date(shown.started_ms), shown.asked_by)),
    ];
    rows.extend(shown.ended_ms.map(|ended| ("ended", date(ended))));
    let driver = shown.driver.as_deref().unwrap_or("nobody now");
    rows.push(("driven by", driver.to_owned()));
    rows.push(("members", counts(&shown.progress)));
    rows.push(("exposed", exposed(&shown.progress)));
    rows.push(("pace", pace(shown)));
    let mut text = block(&rows);
    for label in &shown.labels {
        text.push('\n');
        text.push_str(&of_label(label));
    }
    if let Some(next) = next(shown) {
        text.push_str("\nnext: ");
        text.push_str(&next);
    }
    text
}

/// How it stands, and why.
pub(crate) fn status(shown: &Campaign) -> String {
    let reason = shown.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{}{reason}", shown.status)
}

/// One line of a list.
pub(crate) fn line(shown: &Campaign) -> String {
    let Campaign { name, progress, started_ms, .. } = shown;
    let CampaignProgress { members, done, failed, exposed, orphans, .. } = progress;
    let orphans = if *orphans > 0 { format!(", {orphans} orphans") } else { String::new() };
    format!(
        "{name}  {}  {done} of {members} done, {failed} failed, {exposed} exposed{orphans}  begun {}",
        shown.status,
        date(*started_ms)
    )
}

/// After a decision.
pub(crate) fn summary(shown: &Campaign) -> String {
    let next = next(shown).map(|next| format!("\nnext: {next}")).unwrap_or_default();
    format!("{} is {}: {}{next}", shown.name, status(shown), counts(&shown.progress))
}

fn policy(policy: &CampaignPolicy) -> String {
    let kinds: Vec<&str> = policy.kinds.iter().map(|kind| kind.word()).collect();
    let mut text = format!("{} of security setup {}", kinds.join(", then "), policy.security_setup);
    text.push_str(&format!(", class 64 version {}", policy.class_version));
    if let Some(carrier) = &policy.carrier {
        let client = match carrier.client {
            0 => "each meter's default client".to_owned(),
            client => format!("client {client}"),
        };
        text.push_str(&format!(
            ", over {client} of setup {} ({})",
            carrier.security_setup, carrier.form
        ));
    }
    let windows: Vec<String> = policy.windows.iter().map(window_text).collect();
    let windows = if windows.is_empty() { "at any time".to_owned() } else { windows.join(" ") };
    let rate = match policy.rate_per_hour {
        0 => "no bound".to_owned(),
        rate => rate.to_string(),
    };
    text.push_str(&format!(
        "; {windows}, {rate} an hour, exposure cap {}, canaries {}, error budget {} of 1,000, {} tries, retry {}, lease {}, \
         lock after {} failures for {}",
        policy.exposure_cap,
        policy.canaries.unwrap_or_default(),
        policy.error_budget_permille.unwrap_or_default(),
        policy.tries_max,
        seconds_text(policy.retry_s),
        seconds_text(policy.lease_s),
        policy.hls_failures_max,
        seconds_text(policy.hls_lock_s),
    ));
    text
}

/// Members by state: those states that some are in.
pub(crate) fn counts(progress: &CampaignProgress) -> String {
    let all = [
        (progress.waiting, "waiting"),
        (progress.staged, "staged"),
        (progress.sent, "sent"),
        (progress.proved, "proved"),
        (progress.done, "done"),
        (progress.failed, "failed"),
        (progress.skipped, "skipped"),
        (progress.left, "left"),
    ];
    let some = all.iter().filter(|(count, _)| *count > 0);
    let some: Vec<String> = some.map(|(count, word)| format!("{count} {word}")).collect();
    let mut text = format!("{}: {}", progress.members, some.join(", "));
    if progress.unreachable > 0 {
        text.push_str(&format!("; {} not reached", progress.unreachable));
    }
    if progress.leased > 0 {
        text.push_str(&format!("; {} under a lease", progress.leased));
    }
    text
}

fn exposed(progress: &CampaignProgress) -> String {
    let CampaignProgress { exposed, orphans, .. } = progress;
    match orphans {
        0 => exposed.to_string(),
        orphans => format!("{exposed}, of which {orphans} are orphans: nobody goes on with them"),
    }
}

fn pace(shown: &Campaign) -> String {
    let CampaignProgress { done_last_hour, forecast_ms, .. } = &shown.progress;
    let forecast = match forecast_ms {
        Some(at) => format!("at that pace the rest is done at {}", date(*at)),
        None if shown.status.is_over() => "it is over".to_owned(),
        None => "nobody can say when the rest is done".to_owned(),
    };
    format!("{done_last_hour} done in the last hour; {forecast}")
}

fn of_label(label: &CampaignLabel) -> String {
    let canaries = if label.canaries_done { "canaries through" } else { "waits for its canaries" };
    let exposed = label.progress.exposed;
    format!("label {}  {}; {exposed} exposed; {canaries}", label.label, counts(&label.progress))
}

/// What somebody may do about it.
fn next(shown: &Campaign) -> Option<String> {
    let name = &shown.name;
    match shown.status {
        CampaignStatus::Paused => Some(format!(
            "`rotate members {name} --state failed` and `rotate meter ID` say what is wrong; then `rotate resume {name}`, with \
             --retry-failed to try these anew"
        )),
        CampaignStatus::Filling => {
            Some("repeat the start that was cut off, or `rotate cancel` it".to_owned())
        }
        _ if shown.progress.orphans > 0 => Some(format!(
            "`rotate members {name} --exposed` names them, `rotate meter ID` says what may be done about each"
        )),
        _ => None,
    }
}

/// One line of a list, and the pairs that were tried below it.
pub(crate) fn member(one: &CampaignMember) -> String {
    let id = if one.meter_id.is_empty() { "(not readable)" } else { &one.meter_id };
    let mut text = format!("{id}  {}  {}  {}", title_text(&one.system_title), one.label, one.state);
    let flags =
        [(one.canary, "canary"), (one.exposed, "exposed"), (one.unreachable, "not reached")];
    for (_, word) in flags.iter().filter(|(is, _)| *is) {
        text.push_str(", ");
        text.push_str(word);
    }
    if one.failures > 0 {
        text.push_str(&format!(", {} failures", one.failures));
    }
    if let Some(outcome) = one.last_outcome {
        text.push_str(&format!(", last {outcome}"));
    }
    if let Some(reason) = &one.reason {
        text.push_str(&format!(", {reason}"));
    }
    if let Some(until) = one.until_ms {
        let word = if one.leased { "under a lease until" } else { "tried again from" };
        text.push_str(&format!(", {word} {}", date(until)));
    }
    text
}

/// A pair that was tried: when, how that went, and how the answer began.
pub(crate) fn tried(one: &KeyTried) -> String {
    let frame = if one.frame.is_empty() { String::new() } else { format!("  {}…", one.frame) };
    format!("tried  {}  {}  {}{frame}", date(one.at_ms), one.pair, one.outcome)
}

#[cfg(test)]
pub(crate) mod tests {
    use kms_client::{CampaignMemberState, KeyKind, SystemTitle, TransportOutcome};

    use super::*;

    pub(crate) fn spring(status: CampaignStatus) -> Campaign {
        let progress = CampaignProgress {
            members: 10,
            waiting: 5,
            sent: 2,
            done: 2,
            failed: 1,
            exposed: 3,
            orphans: 1,
            ..CampaignProgress::default()
        };
        Campaign {
            name: "spring".into(),
            status,
            reason: None,
            policy: CampaignPolicy { kinds: vec![KeyKind::Guek], ..CampaignPolicy::default() },
            started_ms: 0,
            ended_ms: None,
            asked_by: "alice".into(),
            driver: None,
            progress,
            labels: vec![CampaignLabel { label: "MMM".into(), progress, canaries_done: false }],
        }
    }

    #[test]
    fn a_campaign_says_how_it_stands_and_what_to_do() {
        let mut shown = spring(CampaignStatus::Paused);
        shown.reason = Some("2 meters have failed".into());
        let text = campaign(&shown);
        assert!(text.contains("PAUSED: 2 meters have failed"), "{text}");
        assert!(text.contains("10: 5 waiting, 2 sent, 2 done, 1 failed"), "{text}");
        assert!(text.contains("3, of which 1 are orphans"), "{text}");
        assert!(text.contains("nobody can say when the rest is done"), "{text}");
        assert!(text.contains("label MMM  10: ") && text.contains("waits for its canaries"));
        assert!(text.contains("next: `rotate members spring --state failed`"), "{text}");
        let over = Campaign { ended_ms: Some(1_000), ..spring(CampaignStatus::Finished) };
        let text = campaign(&over);
        assert!(text.contains("ended      1970-01-01T00:00:01Z") && text.contains("it is over"));
        assert!(text.contains("`rotate members spring --exposed` names them"), "{text}");
        assert!(line(&over).contains("2 of 10 done, 1 failed, 3 exposed, 1 orphans"));
        assert!(summary(&spring(CampaignStatus::Filling)).contains("repeat the start"));
    }

    pub(crate) fn member_of() -> CampaignMember {
        let pair = kms_client::KeyPair { encryption_key_version: 2, authentication_key_version: 1 };
        CampaignMember {
            meter_id: "m-1".into(),
            system_title: SystemTitle::new([0x4D; 8]),
            label: "MMM".into(),
            state: CampaignMemberState::Failed,
            canary: true,
            exposed: true,
            unreachable: false,
            failures: 5,
            until_ms: Some(60_000),
            leased: false,
            last_outcome: Some(TransportOutcome::NoAnswer),
            reason: None,
            tried: vec![KeyTried {
                at_ms: 0,
                pair,
                outcome: TransportOutcome::Answered,
                frame: "DB08".into(),
            }],
        }
    }

    #[test]
    fn a_member_says_how_far_it_is() {
        let one = member_of();
        let text = member(&one);
        assert_eq!(
            text,
            "m-1  4D4D4D4D4D4D4D4D  MMM  FAILED, canary, exposed, 5 failures, last NO_ANSWER, tried again from \
             1970-01-01T00:01:00Z"
        );
        let leased = CampaignMember { leased: true, meter_id: String::new(), ..one.clone() };
        assert!(member(&leased).starts_with("(not readable)"));
        assert!(member(&leased).contains("under a lease until"));
        assert_eq!(tried(&one.tried[0]), "tried  1970-01-01T00:00:00Z  2/1  ANSWERED  DB08…");
    }
}
