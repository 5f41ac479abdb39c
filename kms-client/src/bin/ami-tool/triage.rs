//! `triage`: why frames of a meter don't open.

use kms_client::{KmsClient, MeterName, Triage as Answer, TriageFinding, TriagedFrame, title_text};
use serde_json::json;

use crate::failure::{Exit, Failure};
use crate::recorded;
use crate::text::{say, say_json};
use crate::triage_args::Triage;

/// Frames of one call; the service takes no more.
const FRAMES_MAX: usize = 64;

pub(crate) async fn run(client: &KmsClient, what: Triage, json: bool) -> Result<Exit, Failure> {
    let meter = match (&what.meter, what.system_title) {
        (Some(id), None) => MeterName::Id(id.clone()),
        (None, Some(title)) => MeterName::Title(title),
        _ => return Err(Failure::usage("name the meter: --meter ID, or --system-title HEX")),
    };
    let mut frames = Vec::new();
    for argument in &what.frames {
        let recorded = recorded::of_argument(argument)?.into_iter();
        // A line that names another meter is no frame of this one.
        let its = recorded.filter(|frame| {
            frame
                .meter
                .as_ref()
                .is_none_or(|id| what.meter.as_ref().is_none_or(|asked| asked == id))
        });
        frames.extend(its.map(|frame| frame.bytes));
    }
    if frames.is_empty() || frames.len() > FRAMES_MAX {
        let count = frames.len();
        return Err(Failure::usage(format!("give 1 to {FRAMES_MAX} frames, not {count}")));
    }
    let answer = client.triage(&meter, frames, what.security_setup).await?;
    if json {
        let mut object = json!(answer);
        object["meter"] = what.meter.map(|id| id.to_string()).into();
        say_json(&object)?;
    } else {
        say(&for_people(&answer))?;
    }
    let good = answer.findings.iter().all(|finding| finding.cause == "NOTHING_WRONG");
    Ok(Exit::good_if(good))
}

fn for_people(answer: &Answer) -> String {
    let mut lines = Vec::new();
    let [cause, confidence] = ["CAUSE", "CONFIDENCE"];
    lines.push(format!("{cause:22} {confidence:11} FRAMES"));
    for finding in &answer.findings {
        lines.extend(of_finding(finding, answer.frames.len()));
    }
    lines.push(String::new());
    let [frame, verdict, counter] = ["FRAME", "VERDICT", "COUNTER"];
    lines.push(format!("{frame:>5}  {verdict:18} {counter:>10}  TITLE             KEYS  IN"));
    lines.extend(answer.frames.iter().enumerate().map(|(place, frame)| of_frame(place, frame)));
    lines.join("\n")
}

fn of_finding(finding: &TriageFinding, of: usize) -> Vec<String> {
    let TriageFinding { cause, confidence, frames, detail, meaning, next_step, .. } = finding;
    let places: Vec<String> = frames.iter().map(|place| (place + 1).to_string()).collect();
    let count = frames.len();
    let which = if count == of { String::new() } else { format!(" ({})", places.join(", ")) };
    let mut lines = vec![format!("{cause:22} {confidence:11} {count} of {of}{which}")];
    let mut line = |text: String| lines.push(format!("    {text}"));
    line(meaning.clone());
    if !detail.is_empty() {
        line(detail.clone());
    }
    if let Some(title) = &finding.system_title {
        line(format!("system title {}", title_text(title)));
    }
    if let Some(version) = finding.encryption_key_version {
        let gak = finding.authentication_key_version;
        let gak = gak.map_or(String::new(), |version| format!(", GAK version {version}"));
        let setup = finding.security_setup;
        line(format!("setup {setup}: encryption key version {version}{gak}"));
    }
    line(format!("-> {next_step}"));
    lines
}

fn of_frame(place: usize, frame: &TriagedFrame) -> String {
    let version = |version: Option<u32>| version.map_or("-".to_owned(), |it| it.to_string());
    let keys = [frame.encryption_key_version, frame.authentication_key_version].map(version);
    let title = frame.carries.as_ref().map_or("-".to_owned(), title_text);
    let layers = if frame.layers.is_empty() { "-".to_owned() } else { frame.layers.join(", ") };
    let (place, counter) = (place + 1, frame.invocation_counter);
    let (verdict, keys) = (frame.verdict, keys.join("/"));
    format!("{place:>5}  {verdict:18} {counter:>10}  {title:16}  {keys:4}  {layers}")
}
