//! Frames as they were recorded: hex digits, or files with one a line.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use kms_client::{MeterId, SystemTitle, WipedLines, parse_system_title};
use serde::Deserialize;

use crate::failure::Failure;
use crate::hex_digits::parse_hex;

/// Frames that are read at most: far more than any question about one delivery needs.
const FRAMES_MAX: usize = 1_000_000;

/// One frame, and its meter, where its line says so.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) bytes: Vec<u8>,
    pub(crate) meter: Option<MeterId>,
    pub(crate) system_title: Option<SystemTitle>,
}

/// A line in JSON. Others' fields are passed over: it may be a line of a collector's log.
#[derive(Deserialize)]
struct FrameLine {
    meter: Option<String>,
    system_title: Option<String>,
    apdu: String,
}

/// The frames of an argument: hex digits, or a file of this name.
pub(crate) fn of_argument(text: &str) -> Result<Vec<Recorded>, Failure> {
    if text == "-" || Path::new(text).is_file() {
        return of_file(Path::new(text));
    }
    let bad = |error| Failure::usage(format!("{text:.40} is neither a file nor a frame: {error}"));
    Ok(vec![Recorded { bytes: parse_hex(text).map_err(bad)?, meter: None, system_title: None }])
}

/// The frames of a file, one a line; what is behind `#` is passed over.
pub(crate) fn of_file(path: &Path) -> Result<Vec<Recorded>, Failure> {
    let failed = |error: io::Error| Failure::files(format!("reading {}: {error}", path.display()));
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).map_err(failed)?)
    };
    let mut frames = Vec::new();
    for line in WipedLines::new(source) {
        let line = line.map_err(|bad| Failure::files(format!("{}: {bad}", path.display())))?;
        if line.is_blank() || line.bytes.trim_ascii_start().starts_with(b"#") {
            continue;
        }
        if frames.len() >= FRAMES_MAX {
            return Err(Failure::files(format!(
                "{}: more than {FRAMES_MAX} frames",
                path.display()
            )));
        }
        let frame = of_line(&line.bytes).map_err(|reason| {
            Failure::files(format!("{}, line {}: {reason}", path.display(), line.number))
        })?;
        frames.push(frame);
    }
    Ok(frames)
}

fn of_line(line: &[u8]) -> Result<Recorded, String> {
    if line.trim_ascii_start().starts_with(b"{") {
        let line: FrameLine = serde_json::from_slice(line)
            .map_err(|error| format!("not a line such as {{\"apdu\":\"HEX\"}}: {error}"))?;
        let meter = line.meter.map(|id| MeterId::new(&id)).transpose();
        let title = line.system_title.map(|title| parse_system_title(&title)).transpose();
        return Ok(Recorded {
            bytes: parse_hex(&line.apdu)?,
            meter: meter.map_err(|error| error.to_string())?,
            system_title: title.map_err(|error| error.to_string())?,
        });
    }
    let text = std::str::from_utf8(line).map_err(|_| "neither hex digits nor JSON".to_owned())?;
    Ok(Recorded { bytes: parse_hex(text)?, meter: None, system_title: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_hex_or_json_and_says_its_meter_if_it_can() {
        let plain = of_line(b" db 08:4D ").unwrap();
        assert_eq!((&plain.bytes[..], plain.meter), (&[0xDB, 8, 0x4D][..], None));
        let named = of_line(br#"{"meter":"m-1","apdu":"DB08","received":"10:00"}"#).unwrap();
        assert_eq!(named.meter, Some(MeterId::new("m-1").unwrap()));
        for bad in [&b"{\"apdu\":1}"[..], b"DB0", b"\xFF", br#"{"apdu":"DB","system_title":"1"}"#] {
            assert!(of_line(bad).is_err());
        }
    }

    #[test]
    fn what_is_neither_a_file_nor_digits_is_the_command_lines_fault() {
        assert!(of_argument("no-such-file.txt").is_err());
        assert_eq!(of_argument("DB08").unwrap().len(), 1);
    }
}
