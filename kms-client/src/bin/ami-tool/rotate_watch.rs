//! `rotate watch`: a campaign, live, to its end.

use std::io::{self, IsTerminal as _};

use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kms_client::{CallError, Campaign, CampaignProgress, CampaignStatus, KmsClient};
use kms_core::date::date;

use crate::failure::{Exit, Failure};
use crate::rotate_args::Watch;
use crate::rotate_text::{campaign, counts, status};
use crate::text::{say, show};

pub(crate) async fn watch(client: &KmsClient, what: Watch, json: bool) -> Result<Exit, Failure> {
    let mut looks = client.rotation().watch_campaign(&what.name, what.every);
    let mut display = Display::new(json);
    while let Some(now) = looks.next().await {
        display.look(now.map_err(cut_off)?)?;
    }
    let last = display.end()?;
    if !json {
        say(&campaign(&last))?;
    }
    Ok(Exit::good_if(is_good(&last)))
}

fn cut_off(error: CallError) -> Failure {
    Failure::from(error).after("the campaign goes on; run it again to go on watching")
}

/// Where looks go: to a terminal as figures that move, elsewhere as lines.
struct Display {
    json: bool,
    is_live: bool,
    bar: ProgressBar,
    last: Option<Campaign>,
}

impl Display {
    fn new(json: bool) -> Self {
        let is_live = !json && io::stderr().is_terminal();
        Self { json, is_live, bar: bar(is_live), last: None }
    }

    fn look(&mut self, now: Campaign) -> Result<(), Failure> {
        if !self.is_live {
            show(self.json, &now, || line(&now))?;
        } else if self.last.as_ref().is_none_or(|last| status(last) != status(&now)) {
            self.bar.suspend(|| say(&format!("{} is {}", now.name, status(&now))))?;
        }
        self.bar.set_length(now.progress.members);
        self.bar.set_position(now.progress.over());
        self.bar.set_message(figures(&now));
        self.last = Some(now);
        Ok(())
    }

    /// The last look, which has to say that it is over.
    fn end(self) -> Result<Campaign, Failure> {
        self.bar.finish_and_clear();
        let over = self.last.filter(|last| last.status.is_over());
        over.ok_or_else(|| Failure::refused("FAULT", "the server ended without saying how it went"))
    }
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
    use crate::rotate_samples_tests::spring;

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
