//! Campaigns and their members, for people.

use kms_client::{
    Campaign, CampaignLabel, CampaignMember, CampaignPolicy, CampaignProgress, CampaignStatus,
    KeyCarrier, KeyTried, title_text,
};
use kms_core::date::date;

use crate::rotate_words::{seconds_text, window_text};
use crate::text::block;

/// All of it.
pub(crate) fn campaign(shown: &Campaign) -> String {
    let mut lines = vec![block(&rows(shown))];
    lines.extend(shown.labels.iter().map(of_label));
    lines.extend(next(shown).map(|next| format!("next: {next}")));
    lines.join("\n")
}

fn rows(shown: &Campaign) -> Vec<(&'static str, String)> {
    let driver = shown.driver.as_deref().unwrap_or("nobody now");
    let mut rows = vec![
        ("campaign", shown.name.clone()),
        ("status", status(shown)),
        ("policy", policy(&shown.policy)),
        ("begun", format!("{}, asked for by {}", date(shown.started_ms), shown.asked_by)),
        ("driven by", driver.to_owned()),
        ("members", counts(&shown.progress)),
        ("exposed", exposed(&shown.progress)),
        ("pace", pace(shown)),
    ];
    rows.extend(shown.ended_ms.map(|ended| ("ended", date(ended))));
    rows
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
    let way = policy.carrier.as_ref().map(over).unwrap_or_default();
    format!("{}{way}; {}; {}; {}", what(policy), when(policy), bounds(policy), tries(policy))
}

fn what(policy: &CampaignPolicy) -> String {
    let CampaignPolicy { kinds, security_setup, class_version, .. } = policy;
    let kinds: Vec<&str> = kinds.iter().map(|kind| kind.word()).collect();
    let kinds = kinds.join(", then ");
    format!("{kinds} of security setup {security_setup}, class 64 version {class_version}")
}

/// The way that keys take.
fn over(carrier: &KeyCarrier) -> String {
    let KeyCarrier { security_setup, client, form } = carrier;
    match client {
        0 => format!(", over each meter's default client of setup {security_setup} ({form})"),
        client => format!(", over client {client} of setup {security_setup} ({form})"),
    }
}

fn when(policy: &CampaignPolicy) -> String {
    let windows: Vec<String> = policy.windows.iter().map(window_text).collect();
    let windows = if windows.is_empty() { "at any time".to_owned() } else { windows.join(" ") };
    match policy.rate_per_hour {
        0 => windows,
        rate => format!("{windows}, {rate} an hour"),
    }
}

fn bounds(policy: &CampaignPolicy) -> String {
    let CampaignPolicy { exposure_cap, canaries, error_budget_permille, .. } = policy;
    let (canaries, budget) =
        (canaries.unwrap_or_default(), error_budget_permille.unwrap_or_default());
    format!("exposure cap {exposure_cap}, canaries {canaries}, error budget {budget} of 1,000")
}

fn tries(policy: &CampaignPolicy) -> String {
    let CampaignPolicy { tries_max, hls_failures_max, .. } = policy;
    let [retry, lease, lock] =
        [policy.retry_s, policy.lease_s, policy.hls_lock_s].map(seconds_text);
    format!(
        "{tries_max} tries, retry {retry}, lease {lease}, lock after {hls_failures_max} failures for {lock}"
    )
}

/// Members by state: those states that some are in.
pub(crate) fn counts(progress: &CampaignProgress) -> String {
    let all = by_state(progress);
    let some: Vec<String> = all.into_iter().filter_map(some_of).collect();
    let more = [(progress.unreachable, "not reached"), (progress.leased, "under a lease")];
    let more = more.into_iter().filter_map(some_of).map(|it| format!("; {it}"));
    format!("{}: {}{}", progress.members, some.join(", "), more.collect::<String>())
}

fn some_of((count, word): (u64, &str)) -> Option<String> {
    (count > 0).then(|| format!("{count} {word}"))
}

fn by_state(progress: &CampaignProgress) -> [(u64, &'static str); 8] {
    [
        (progress.waiting, "waiting"),
        (progress.staged, "staged"),
        (progress.sent, "sent"),
        (progress.proved, "proved"),
        (progress.done, "done"),
        (progress.failed, "failed"),
        (progress.skipped, "skipped"),
        (progress.left, "left"),
    ]
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

/// One line of a list.
pub(crate) fn member(one: &CampaignMember) -> String {
    let id = if one.meter_id.is_empty() { "(not readable)" } else { &one.meter_id };
    let CampaignMember { label, state, .. } = one;
    let mut words = vec![format!("{id}  {}  {label}  {state}", title_text(&one.system_title))];
    words.extend(flags(one).map(str::to_owned));
    words.extend((one.failures > 0).then(|| format!("{} failures", one.failures)));
    words.extend(one.last_outcome.map(|outcome| format!("last {outcome}")));
    words.extend(one.reason.clone());
    words.extend(one.until_ms.map(|until| due(one.leased, until)));
    words.join(", ")
}

fn flags(one: &CampaignMember) -> impl Iterator<Item = &'static str> + use<> {
    let all = [(one.canary, "canary"), (one.exposed, "exposed"), (one.unreachable, "not reached")];
    all.into_iter().filter_map(|(is, word)| is.then_some(word))
}

fn due(leased: bool, until_ms: u64) -> String {
    let word = if leased { "under a lease until" } else { "tried again from" };
    format!("{word} {}", date(until_ms))
}

/// A pair that was tried: when, how that went, and how the answer began.
pub(crate) fn tried(one: &KeyTried) -> String {
    let frame = if one.frame.is_empty() { String::new() } else { format!("  {}…", one.frame) };
    format!("tried  {}  {}  {}{frame}", date(one.at_ms), one.pair, one.outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotate_samples_tests::{member_of, spring};

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
