//! `meter import`: a progress bar for people, plain lines for logs, objects for machines.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kms_client::{
    BadRecord, ImportCounts, ImportFormat, ImportRecords, ImportResult, ImportRules, KmsClient,
    MeterRecord, Outcome, Replicated, SealedPart, SealedParts, sealed::is_sealed_file,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::args::Import;
use crate::duplicates::SeenValues;
use crate::failure::{Exit, Failure};
use crate::refusals::Refusals;
use crate::text::{UNREPLICATED, say, say_json};

/// Lines read ahead of their results.
const READ_AHEAD: usize = 2_048;
/// Chunks of a sealed file read ahead of their results.
const CHUNKS_AHEAD: usize = 8;
/// Without a terminal, one line of progress each.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// A line whose result is due.
struct Due {
    /// Bytes of the file up to its end.
    position: u64,
    sent: Result<Sent, BadRecord>,
}

/// A line that was sent.
struct Sent {
    warnings: Vec<String>,
    has_keys: bool,
}

pub(crate) async fn run(client: &KmsClient, what: Import, json: bool) -> Result<Exit, Failure> {
    let (path, format) = what.source()?;
    let (source, len) = open(path)?;
    let rules = ImportRules {
        allow_test_keys: what.allow_test_keys,
        add_versions: what.add_versions,
        change_policy: what.change_policy,
        dry_run: what.dry_run,
    };
    // Standard input can't be looked at and then read from the start.
    if len.is_some() && format == ImportFormat::JsonLines && is_sealed_file(open(path)?.0) {
        return run_sealed(client, source, rules, Report::new(json, what.dry_run, len)).await;
    }
    let (due_sender, mut due) = mpsc::channel(READ_AHEAD);
    let (line_sender, lines) = mpsc::channel(READ_AHEAD);
    // A thread of its own, since files block, and standard input is not waited for at the end.
    std::thread::spawn(move || read_lines(source, format, &due_sender, &line_sender));
    let mut lines = Some(lines);
    let mut results = None;
    let mut report = Report::new(json, what.dry_run, len);
    while let Some(Due { position, sent }) = due.recv().await {
        let sent = match sent {
            Err(bad) => {
                report.take(&refused_here(bad), position)?;
                continue;
            }
            Ok(sent) => sent,
        };
        if let Some(lines) = lines.take() {
            // A refusal that would meet all lines is said once, and before a key has left.
            if sent.has_keys
                && let Err(error) = client.meters().may_import().await
            {
                return Err(report.not_begun(Failure::from(error)));
            }
            results = Some(client.meters().import(ReceiverStream::new(lines), rules));
        }
        let result = match &mut results {
            Some(results) => results.next().await,
            None => None,
        };
        match result {
            Some(Ok(mut result)) => {
                result.warnings.extend(sent.warnings);
                report.take(&result, position)?;
            }
            Some(Err(error)) => return Err(report.broken_off(Failure::from(error))),
            None => return Err(report.broken_off(Failure::files("the results ended early"))),
        }
    }
    report.finish()
}

/// Chunk by chunk; the service's answers are still line by line.
async fn run_sealed(
    client: &KmsClient,
    source: Box<dyn Read + Send>,
    rules: ImportRules,
    mut report: Report,
) -> Result<Exit, Failure> {
    report.is_sealed = true;
    let (due_sender, mut due) = mpsc::channel(CHUNKS_AHEAD);
    let (part_sender, parts) = mpsc::channel(CHUNKS_AHEAD);
    std::thread::spawn(move || {
        let mut read = SealedParts::new(source);
        while let Some(part) = read.next() {
            let position = read.position();
            let lines = part.as_ref().map(SealedPart::lines).map_err(Clone::clone);
            let told = due_sender.blocking_send((position, lines)).is_ok();
            if !told || part.is_ok_and(|part| part_sender.blocking_send(part).is_err()) {
                return;
            }
        }
    });
    let mut results = client.meters().import_sealed(ReceiverStream::new(parts), rules);
    while let Some((position, lines)) = due.recv().await {
        let lines = match lines {
            Ok(lines) => lines,
            Err(bad) => {
                return Err(report.broken_off(Failure::refused(bad.code, bad.to_string())));
            }
        };
        for _ in 0..lines {
            match results.next().await {
                Some(Ok(result)) => report.take(&result, position)?,
                Some(Err(error)) => return Err(report.broken_off(Failure::from(error))),
                None => return Err(report.broken_off(Failure::files("the results ended early"))),
            }
        }
    }
    report.finish()
}

fn open(path: &Path) -> Result<(Box<dyn Read + Send>, Option<u64>), Failure> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let failed = |error: io::Error| Failure::files(format!("reading {}: {error}", path.display()));
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let len = metadata.is_file().then_some(metadata.len());
    Ok((Box::new(file), len))
}

fn read_lines(
    source: Box<dyn Read + Send>,
    format: ImportFormat,
    due: &mpsc::Sender<Due>,
    lines: &mpsc::Sender<MeterRecord>,
) {
    let mut parsed = ImportRecords::new(source, format);
    let mut seen = SeenValues::new();
    while let Some(line) = parsed.next() {
        let position = parsed.position();
        let was_full = seen.is_full();
        let (sent, line) = match line {
            Err(bad) => (Err(bad), None),
            Ok(line) => {
                let warnings = seen.warnings(line.place.number(), &line.meter);
                (Ok(Sent { warnings, has_keys: !line.meter.keys.is_empty() }), Some(line))
            }
        };
        if seen.is_full() && !was_full {
            let _ = writeln!(
                io::stderr(),
                "more values than are compared: from here on, only the service reports duplicates"
            );
        }
        // First what is due, then the line: so a result always finds what it belongs to.
        let told = due.blocking_send(Due { position, sent }).is_ok();
        if !told || line.is_some_and(|line| lines.blocking_send(line).is_err()) {
            return;
        }
    }
}

/// The result of a line that never left.
fn refused_here(bad: BadRecord) -> ImportResult {
    let BadRecord { place, code, reason } = bad;
    ImportResult {
        line: place.number(),
        outcome: Outcome::Refused,
        meter_id: String::new(),
        code: code.to_owned(),
        reason,
        warnings: Vec::new(),
        replicated: Replicated::default(),
    }
}

/// The report of an import: said while it runs, and at the end.
struct Report {
    json: bool,
    dry_run: bool,
    counts: ImportCounts,
    /// Lines with at least one warning. JSON calls them `duplicates`.
    with_warnings: u64,
    started: Instant,
    last_said: Instant,
    bar: ProgressBar,
    on_terminal: bool,
    /// Of a sealed file.
    is_sealed: bool,
    refusals: Refusals,
}

impl Report {
    fn new(json: bool, dry_run: bool, len: Option<u64>) -> Self {
        let on_terminal = io::stderr().is_terminal();
        let bar = match len {
            Some(len) => ProgressBar::new(len)
                .with_style(style("{bar:32} {percent:>3} %  {msg}  {eta} left")),
            None => ProgressBar::no_length().with_style(style("{spinner}  {msg}")),
        };
        let target =
            if on_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        bar.set_draw_target(target);
        let now = Instant::now();
        Self {
            json,
            dry_run,
            counts: ImportCounts::default(),
            with_warnings: 0,
            started: now,
            last_said: now,
            bar,
            on_terminal,
            is_sealed: false,
            refusals: Refusals::default(),
        }
    }

    fn take(&mut self, result: &ImportResult, position: u64) -> Result<(), Failure> {
        self.counts.count(result);
        self.with_warnings += u64::from(!result.warnings.is_empty());
        self.bar.set_position(position);
        self.bar.set_message(progress(&self.counts));
        if self.json {
            return self.bar.suspend(|| say_json(result));
        }
        let ImportResult { line, meter_id, code, reason, warnings, .. } = result;
        let whose = if meter_id.is_empty() { String::new() } else { format!(" ({meter_id})") };
        let refused = result.outcome == Outcome::Refused;
        if refused && self.refusals.take(code, *line, meter_id, reason) {
            self.complain(&format!("line {line}{whose}: {code}: {reason}"));
        }
        for warning in warnings {
            if !self.refusals.take("warning", *line, meter_id, warning) {
                continue;
            }
            self.complain(&format!("line {line}{whose}: warning: {warning}"));
        }
        if !self.on_terminal && self.last_said.elapsed() >= PLAIN_EVERY {
            self.last_said = Instant::now();
            self.complain(&progress(&self.counts));
        }
        Ok(())
    }

    fn complain(&self, line: &str) {
        // If standard error is gone, the exit code still tells.
        self.bar.suspend(|| drop(writeln!(io::stderr(), "{line}")));
    }

    fn not_begun(&self, failure: Failure) -> Failure {
        self.bar.finish_and_clear();
        failure.after("no line was imported, and no key was sent".to_owned())
    }

    fn broken_off(&self, failure: Failure) -> Failure {
        self.bar.finish_and_clear();
        self.sum_up();
        failure.after(format!(
            "{}; run it again: lines that arrived stay as they are",
            progress(&self.counts)
        ))
    }

    fn sum_up(&self) {
        for line in self.refusals.summed_up() {
            self.complain(&line);
        }
    }

    fn finish(self) -> Result<Exit, Failure> {
        self.bar.finish_and_clear();
        if self.counts.lines() == 0 {
            return Err(Failure::files("there is no meter in the file: nothing was imported"));
        }
        self.sum_up();
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = self.counts.lines() as f64 / seconds.max(0.001);
        let ImportCounts { created, updated, unchanged, refused, unreplicated, .. } = self.counts;
        let nothing_changed = created == 0 && updated == 0;
        if self.json {
            say_json(&json!({
                "summary": true,
                "created": created,
                "updated": updated,
                "unchanged": unchanged,
                "unreplicated": unreplicated,
                "refused": refused,
                "duplicates": self.with_warnings,
                "nothing_changed": nothing_changed || self.dry_run,
                "dry_run": self.dry_run,
                "sealed": self.is_sealed,
                "seconds": seconds,
                "meters_per_s": rate,
            }))?;
        } else {
            say(&format!(
                "{created} created, {updated} updated, {unchanged} unchanged, {refused} refused, {} with warnings; {seconds:.1} s, {rate:.0} meters/s",
                self.with_warnings
            ))?;
            if unreplicated > 0 {
                say(&format!("{unreplicated} meters are here and {UNREPLICATED}"))?;
            }
            if self.is_sealed && unchanged > 0 {
                say(&format!("{unchanged} of {} meters were already there", self.counts.lines()))?;
            }
            if self.dry_run {
                say("dry run: nothing changed")?;
            } else if nothing_changed {
                say("nothing changed")?;
            }
        }
        Ok(Exit::good_if(refused == 0))
    }
}

fn progress(counts: &ImportCounts) -> String {
    let ImportCounts { created, updated, unchanged, refused, .. } = counts;
    format!("{created} created, {updated} updated, {unchanged} unchanged, {refused} refused")
}

/// The template is ours; were it wrong, the plain style would do.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
