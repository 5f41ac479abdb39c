//! `meter check-keys`: the keys of an import file against frames that their meters sent, before they are imported. Offline:
//! no key leaves this machine, and no plaintext is shown.

use std::collections::HashMap;
use std::fs::File;
use std::io;

use kms_client::{ImportRecords, MeterRecord};
use kms_core::triage::{Cause, Finding};
use serde_json::json;

use crate::failure::{Exit, Failure};
use crate::format_arg::format_of;
use crate::key_trials::{Checked, Line, Tally};
use crate::recorded::{self, Recorded};
use crate::text::{say, say_json};
use crate::triage_args::CheckKeys;

/// Frames of one meter that are tried; more tell nothing new.
const FRAMES_OF_METER: usize = 1_000;

pub(crate) fn run(what: CheckKeys, json: bool) -> Result<Exit, Failure> {
    let format = format_of(what.format, &what.file)?;
    let failed =
        |error: io::Error| Failure::files(format!("reading {}: {error}", what.file.display()));
    let mut lines = Vec::new();
    for line in ImportRecords::new(File::open(&what.file).map_err(failed)?, format) {
        let MeterRecord { meter, .. } =
            line.map_err(|bad| Failure::files(format!("{}: {bad}", what.file.display())))?;
        lines.push(Line::of(meter));
    }
    let frames = recorded::of_file(&what.frames)?;
    let (of_lines, strangers) = shared_out(&lines, &frames, &what);
    let mut total = Tally::default();
    let mut checked = 0_usize;
    for (line, frames) in lines.iter().zip(&of_lines) {
        if frames.is_empty() {
            continue;
        }
        let its = line.check(frames);
        checked += 1;
        total.add(&its.tally);
        if json { say_json(&as_json(line, &its))? } else { say(&for_people(line, &its))? }
    }
    let without = lines.len() - checked;
    if json {
        say_json(&json!({
            "summary": true, "meters": lines.len(), "meters_with_frames": checked, "frames": total.frames,
            "fit": total.fit, "exchanged": total.exchanged, "wrong": total.wrong,
            "undecidable": total.undecidable, "frames_of_no_meter": strangers,
        }))?;
    } else {
        say(&format!(
            "{checked} meters with frames, {without} without; {}; {strangers} frames are of no meter in the file",
            total.sentence()
        ))?;
    }
    Ok(Exit::good_if(total.frames > 0 && total.fit == total.frames))
}

/// The frames of each line, and how many are nobody's.
fn shared_out<'f>(
    lines: &[Line],
    frames: &'f [Recorded],
    what: &CheckKeys,
) -> (Vec<Vec<&'f Recorded>>, usize) {
    let by_id: HashMap<&str, usize> =
        lines.iter().enumerate().map(|(place, line)| (line.id(), place)).collect();
    let by_title: HashMap<_, usize> = lines
        .iter()
        .enumerate()
        .flat_map(|(place, line)| line.titles().map(move |title| (title, place)))
        .collect();
    let of_nameless = match &what.meter {
        Some(id) => by_id.get(id.as_str()).copied(),
        None => (lines.len() == 1).then_some(0),
    };
    let mut of_lines: Vec<Vec<&Recorded>> = lines.iter().map(|_| Vec::new()).collect();
    let mut strangers = 0;
    for frame in frames {
        let carried = Line::title_in(&frame.bytes);
        let place = match (&frame.meter, frame.system_title.or(carried)) {
            (Some(id), _) => by_id.get(id.as_str()).copied(),
            (None, Some(title)) => by_title.get(&title).copied(),
            (None, None) => of_nameless,
        };
        match place.and_then(|place| of_lines.get_mut(place)) {
            Some(its) if its.len() < FRAMES_OF_METER => its.push(frame),
            Some(_) => {}
            None => strangers += 1,
        }
    }
    (of_lines, strangers)
}

fn as_json(line: &Line, checked: &Checked) -> serde_json::Value {
    let Tally { frames, fit, exchanged, wrong, undecidable } = checked.tally;
    let finding = |finding: &Finding| {
        json!({
            "cause": finding.cause.word(), "confidence": finding.confidence.word(),
            "frames": finding.frames, "detail": finding.detail,
            "meaning": finding.cause.meaning(),
        })
    };
    let findings: Vec<_> = checked.findings.iter().map(finding).collect();
    json!({
        "meter": line.id(), "frames": frames, "fit": fit, "exchanged": exchanged, "wrong": wrong,
        "undecidable": undecidable, "findings": findings,
    })
}

fn for_people(line: &Line, checked: &Checked) -> String {
    let mut said = vec![format!("{}: {}", line.id(), checked.tally.sentence())];
    for finding in checked.findings.iter().filter(|finding| finding.cause != Cause::NothingWrong) {
        let (cause, confidence) = (finding.cause.word(), finding.confidence.word());
        let count = finding.frames.len();
        said.push(format!("    {cause} {confidence}, {count} frames: {}", finding.cause.meaning()));
        if !finding.detail.is_empty() {
            said.push(format!("        {}", finding.detail));
        }
    }
    said.join("\n")
}
