//! `rotate watch`: a campaign, live, to its end.

use std::io::{self, IsTerminal as _};

use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kms_client::{Campaign, CampaignProgress, CampaignStatus, KmsClient};
use kms_core::date::date;

use crate::failure::{Exit, Failure};
use crate::rotate_args::Watch;
use crate::rotate_text::{campaign, counts, status};
use crate::text::{say, say_json};

pub(crate) async fn watch(client: &KmsClient, what: Watch, json: bool) -> Result<Exit, Failure> {
    let Watch { name, every } = what;
    let mut looks = client.rotation().watch_campaign(&name, every);
    let is_live = !json && io::stderr().is_terminal();
    let bar = bar(is_live);
    let mut last: Option<Campaign> = None;
    while let Some(now) = looks.next().await {
        let now = now.map_err(|error| {
            Failure::from(error).after("the campaign goes on; run it again to go on watching")
        })?;
        if json {
            say_json(&now)?;
        } else if !is_live {
            say(&line(&now))?;
        } else if last.as_ref().is_none_or(|last| status(last) != status(&now)) {
            bar.suspend(|| say(&format!("{} is {}", now.name, status(&now))))?;
        }
        bar.set_length(now.progress.members);
        bar.set_position(now.progress.over());
        bar.set_message(figures(&now));
        last = Some(now);
    }
    bar.finish_and_clear();
    let Some(last) = last.filter(|last| last.status.is_over()) else {
        return Err(Failure::refused("FAULT", "the server ended without saying how it went"));
    };
    if !json {
        say(&campaign(&last))?;
    }
    Ok(Exit::good_if(is_good(&last)))
}

/// All members have their keys.
fn is_good(last: &Campaign) -> bool {
    let CampaignProgress { failed, skipped, .. } = last.progress;
    last.status == CampaignStatus::Finished && failed == 0 && skipped == 0
}

fn bar(is_live: bool) -> ProgressBar {
    if !is_live {
        return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{bar:30} {pos} of {len} meters, {msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn figures(now: &Campaign) -> String {
    let CampaignProgress { failed, exposed, done_last_hour, forecast_ms, .. } = &now.progress;
    let forecast = forecast_ms.map(|at| format!(", over at {}", date(at))).unwrap_or_default();
    format!("{failed} failed, {exposed} exposed, {done_last_hour} done in the last hour{forecast}")
}

fn line(now: &Campaign) -> String {
    format!("{} {}  {}; {}", now.name, status(now), counts(&now.progress), figures(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotate_text::tests::spring;

    #[test]
    fn a_watch_is_good_if_all_members_have_their_keys() {
        let mut over = spring(CampaignStatus::Finished);
        assert!(!is_good(&over));
        over.progress.failed = 0;
        assert!(is_good(&over));
        over.progress.skipped = 1;
        assert!(!is_good(&over));
        over.progress.skipped = 0;
        over.status = CampaignStatus::Cancelled;
        assert!(!is_good(&over));
    }

    #[test]
    fn a_look_is_one_line() {
        let mut now = spring(CampaignStatus::Running);
        now.progress.forecast_ms = Some(0);
        let text = line(&now);
        assert!(text.starts_with("spring RUNNING  10: 5 waiting"), "{text}");
        assert!(text.ends_with("0 done in the last hour, over at 1970-01-01T00:00:00Z"), "{text}");
    }
}
