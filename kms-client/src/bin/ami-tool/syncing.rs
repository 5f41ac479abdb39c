//! A site brought in step with the primary: progress, differences, the end. Shared with `sync-keys`.

use std::io::{self, IsTerminal as _};

use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kms_client::{KmsClient, SyncDifference, SyncOptions, SyncProgress};

use crate::failure::{Exit, Failure};
use crate::text::{say, say_json};

/// Differences that are shown one by one; with `--json` all are.
const SHOWN_MAX: u64 = 100;

/// Runs until the target is proved, or can't be.
pub(crate) async fn run(
    client: &KmsClient,
    options: SyncOptions,
    json: bool,
) -> Result<Exit, Failure> {
    let dry_run = options.dry_run;
    let mut progress = client.sync_site(options).await?;
    let bar = bar(json);
    let (mut differing, mut last) = (0, SyncProgress::default());
    while let Some(now) = progress.next().await {
        let now = now.map_err(|error| {
            let SyncProgress { proved, blocks, .. } = last;
            Failure::from(error).after(format!(
                "{proved} of {blocks} blocks were proved; run it again, what is there is not sent again"
            ))
        })?;
        if json {
            say_json(&now)?;
        }
        for difference in &now.differences {
            differing += 1;
            if !json && differing <= SHOWN_MAX {
                bar.suspend(|| say(&shown(difference)))?;
            }
        }
        bar.set_length(now.blocks.into());
        bar.set_position(if dry_run { now.in_step } else { now.proved }.into());
        bar.set_message(figures(&now));
        last = now;
    }
    bar.finish_and_clear();
    if !last.done {
        return Err(Failure::refused("FAULT", "the server ended without saying how it went"));
    }
    if !json {
        if differing > SHOWN_MAX {
            say(&format!("… and {} more blocks differ", differing - SHOWN_MAX))?;
        }
        for failure in &last.failures {
            say(&format!("block {}: {}", failure.block, failure.reason))?;
        }
        say(&summary(&last, dry_run, differing))?;
    }
    Ok(Exit::good_if(is_good(&last, dry_run)))
}

/// A dry run is good if nothing differs; another one if all is proved.
fn is_good(last: &SyncProgress, dry_run: bool) -> bool {
    let counted = if dry_run { last.in_step } else { last.proved };
    last.failures.is_empty() && last.in_step == last.blocks && counted == last.blocks
}

fn bar(json: bool) -> ProgressBar {
    if json || !io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{bar:30} {pos} of {len} blocks, {msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn figures(now: &SyncProgress) -> String {
    let SyncProgress { in_step, records_written, bytes_written, .. } = now;
    format!("{in_step} in step, {records_written} records, {bytes_written} bytes written")
}

fn shown(difference: &SyncDifference) -> String {
    let SyncDifference { block, reason, records, bytes, system_titles } = difference;
    let mut text = format!("block {block} differs: {reason}");
    if *records > 0 {
        text.push_str(&format!("; {records} records, {bytes} bytes"));
    }
    if !system_titles.is_empty() {
        text.push_str(&format!("; meters {}", system_titles.join(" ")));
    }
    text
}

fn summary(last: &SyncProgress, dry_run: bool, differing: u64) -> String {
    let SyncProgress { source, target, blocks, in_step, proved, .. } = last;
    if dry_run {
        return match differing {
            0 => format!("{target} is in step with {source}: {in_step} of {blocks} blocks"),
            _ => format!(
                "{differing} of {blocks} blocks of {target} differ from {source}'s; nothing was changed"
            ),
        };
    }
    let written = match last.blocks_written {
        0 => "nothing was written".to_owned(),
        written => format!(
            "{written} blocks, {} records, {} bytes were written",
            last.records_written, last.bytes_written
        ),
    };
    let outcome = if is_good(last, false) { "proved equal to" } else { "NOT proved equal to" };
    format!(
        "{target} is {outcome} {source}: {in_step} of {blocks} blocks in step, {proved} opened by \
         {target}'s token; {written}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(blocks_written: u32) -> SyncProgress {
        SyncProgress {
            source: "north".into(),
            target: "south".into(),
            blocks: 64,
            in_step: 64,
            proved: 64,
            blocks_written,
            done: true,
            ..SyncProgress::default()
        }
    }

    #[test]
    fn a_second_run_says_that_it_wrote_nothing() {
        let text = summary(&all(0), false, 0);
        assert!(text.contains("proved equal to north") && text.ends_with("nothing was written"));
        assert!(summary(&all(3), false, 3).contains("3 blocks, 0 records"));
    }

    #[test]
    fn what_is_in_step_and_not_proved_is_not_good() {
        let unproved = SyncProgress { proved: 63, ..all(0) };
        assert!(!is_good(&unproved, false) && is_good(&unproved, true));
        assert!(summary(&unproved, false, 0).contains("NOT proved"));
        let behind = SyncProgress { in_step: 63, ..all(0) };
        assert!(!is_good(&behind, false) && !is_good(&behind, true));
    }
}
