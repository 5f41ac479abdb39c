//! `decrypt -` and `verify -`: JSON lines in, JSON lines out, in order.

use std::io::{self, Write as _};

use futures_util::StreamExt as _;
use kms_client::{Apdu, LINE_LEN_MAX, MeterId, Results, WipedLines, parse_system_title};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::failure::{Exit, Failure};
use crate::item_args::Items;
use crate::items::{Answer, Telegram};
use crate::text::say_json;

/// Lines read ahead of their answers.
const READ_AHEAD: usize = 8_192;

/// One line on standard input.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedLine {
    meter: Option<String>,
    system_title: Option<String>,
    security_setup: Option<u8>,
    apdu: String,
    id: Option<Value>,
}

/// A line whose answer is due.
enum Due {
    /// It was asked about.
    Asked { id: Option<Value>, telegram: Telegram },
    /// It could not be read.
    Bad { line: u64, id: Option<Value>, reason: String },
}

/// Answers each line by what `ask` makes of the APDUs. Bad lines get an answer of their own.
pub(crate) async fn answer<A: Answer>(
    defaults: Items,
    ask: impl FnOnce(ReceiverStream<Apdu>) -> Results<A>,
) -> Result<Exit, Failure> {
    let (due_sender, mut due) = mpsc::channel(READ_AHEAD);
    let (apdu_sender, apdus) = mpsc::channel(READ_AHEAD);
    // A thread of its own, since standard input blocks, and is not waited for at the end.
    std::thread::spawn(move || read_lines(&defaults, &due_sender, &apdu_sender));
    let mut answers = ask(ReceiverStream::new(apdus));
    let (mut all_good, mut answered, mut doubtful) = (true, 0_u64, 0_u64);
    while let Some(line) = due.recv().await {
        match line {
            Due::Bad { line, id, reason } => {
                all_good = false;
                let mut object =
                    json!({ "line": line, "verdict": "MALFORMED_LINE", "reason": reason });
                echo(&mut object, id);
                say_json(&object)?;
            }
            Due::Asked { id, telegram } => {
                let progress = format!("{answered} answered before");
                let answer = match answers.next().await {
                    Some(Ok(answer)) => answer,
                    Some(Err(error)) => return Err(Failure::from(error).after(progress)),
                    None => return Err(Failure::files("the answers ended early").after(progress)),
                };
                all_good &= answer.verdict().opened();
                doubtful += u64::from(answer.warning().is_some());
                let mut object = answer.to_json(&telegram);
                echo(&mut object, id);
                say_json(&object)?;
            }
        }
        answered += 1;
    }
    if doubtful > 0 {
        // Whoever closed standard error does not want to know.
        let _ = writeln!(
            io::stderr(),
            "warning: {doubtful} of {answered} plaintexts were not authenticated and begin as neither an \
             APDU nor a P1 telegram: they may have been opened with wrong keys"
        );
    }
    Ok(Exit::good_if(all_good))
}

fn echo(object: &mut Value, id: Option<Value>) {
    if let Some(id) = id {
        object["id"] = id;
    }
}

fn read_lines(defaults: &Items, due: &mpsc::Sender<Due>, apdus: &mpsc::Sender<Apdu>) {
    for line in WipedLines::new(io::stdin()) {
        let parsed = match line {
            Ok(line) if line.is_blank() => continue,
            Ok(line) => parse(defaults, line.number, &line.bytes),
            Err(bad) => Due::Bad { line: bad.place.number(), id: None, reason: bad.reason },
        };
        // First what is due, then the question: so an answer always finds what it belongs to.
        let apdu = match &parsed {
            Due::Asked { telegram, .. } => Some(telegram.apdu.clone()),
            Due::Bad { .. } => None,
        };
        let sent = due.blocking_send(parsed).is_ok();
        if !sent || apdu.is_some_and(|apdu| apdus.blocking_send(apdu).is_err()) {
            return;
        }
    }
}

fn parse(defaults: &Items, line: u64, text: &[u8]) -> Due {
    debug_assert!(text.len() <= LINE_LEN_MAX);
    let asked: AskedLine = match serde_json::from_slice(text) {
        Ok(asked) => asked,
        Err(error) => {
            let reason = format!("not a line such as {{\"apdu\":\"HEX\"}}: {error}");
            return Due::Bad { line, id: None, reason };
        }
    };
    let id = asked.id.clone();
    match to_telegram(defaults, asked) {
        Ok(telegram) => Due::Asked { id, telegram },
        Err(reason) => Due::Bad { line, id, reason },
    }
}

/// The line's own words come first; the command line fills in what it leaves out.
fn to_telegram(defaults: &Items, asked: AskedLine) -> Result<Telegram, String> {
    let AskedLine { meter, system_title, security_setup, apdu, id: _ } = asked;
    let Telegram { mut apdu, frames } = Telegram::parse(&apdu, defaults.frame)?;
    let names_its_meter = meter.is_some() || system_title.is_some();
    let meter = meter.map(|meter| MeterId::new(&meter)).transpose();
    let title = system_title.map(|title| parse_system_title(&title)).transpose();
    let (mut meter, mut title) =
        (meter.map_err(|error| error.to_string())?, title.map_err(|error| error.to_string())?);
    if !names_its_meter {
        (meter, title) = (defaults.meter.clone(), defaults.system_title);
    }
    if let Some(meter) = meter {
        apdu = apdu.of_meter(meter);
    }
    if let Some(title) = title {
        apdu = apdu.of_system_title(title);
    }
    if let Some(setup) = security_setup.or(defaults.security_setup) {
        apdu = apdu.under_setup(setup);
    }
    Ok(Telegram { apdu, frames })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Items {
        Items { security_setup: Some(1), ..Items::default() }
    }

    #[test]
    fn a_bad_line_keeps_its_number_and_its_id() {
        let Due::Bad { line, id, .. } = parse(&defaults(), 7, br#"{"apdu":"0","id":[1]}"#) else {
            panic!("odd hex was taken");
        };
        assert_eq!((line, id), (7, Some(json!([1]))));
        assert!(matches!(parse(&defaults(), 1, b"{"), Due::Bad { .. }));
        assert!(matches!(parse(&defaults(), 1, br#"{"apdu":"00","x":1}"#), Due::Bad { .. }));
    }

    #[test]
    fn the_line_comes_before_the_command_line() {
        let line = br#"{"meter":"m","apdu":"DB 08","security_setup":2}"#;
        let Due::Asked { telegram, .. } = parse(&defaults(), 1, line) else {
            panic!("a good line was refused");
        };
        let expected = Apdu::new(vec![0xDB, 8]).unwrap().of_meter(MeterId::new("m").unwrap());
        assert_eq!(telegram.apdu, expected.under_setup(2));
    }
}
