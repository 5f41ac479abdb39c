//! `meter seal`: a file with keys in clear becomes one that only the site's HSM opens. Offline.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write as _};
use std::path::Path;

use kms_client::{
    BadRecord, ImportKey, ImportRecords, ManifestSigner, MeterRecord, SealError, SealedPart, Sealer,
};
use serde_json::json;
use zeroize::Zeroizing;

use crate::args::Seal;
use crate::failure::{Exit, Failure};
use crate::text::{say, say_json};

/// Bad lines that are named before the rest is only counted.
const NAMED_MAX: u64 = 20;

/// Lines that are put in order together: enough for meters of one block to come side by side, few enough
/// to be held in memory.
const WINDOW: usize = 100_000;

pub(crate) fn run(what: Seal, json: bool) -> Result<Exit, Failure> {
    let format = what.format()?;
    let import_key: ImportKey =
        serde_json::from_slice(&read(&what.import_key)?).map_err(|error| {
            Failure::files(format!("{} is no import key: {error}", what.import_key.display()))
        })?;
    let site = import_key.site.clone();
    let to = import_key.pinned(what.import_key_fingerprint).map_err(refused)?;
    let pem = Zeroizing::new(String::from_utf8(read(&what.signing_key)?).unwrap_or_default());
    let signer = ManifestSigner::from_pem(&what.signer, &pem).map_err(refused)?;
    let lines = || -> Result<_, Failure> {
        let failed =
            |error: io::Error| Failure::files(format!("reading {}: {error}", what.file.display()));
        Ok(ImportRecords::new(File::open(&what.file).map_err(failed)?, format))
    };

    // The header says how many lines there are, and a file with a bad line is not sealed at all.
    let count = count_good(lines()?)?;
    let mut sealer = Sealer::new(&to, signer, count).map_err(refused)?;
    let file = sealer.audit_number();
    let failed = |error: io::Error| {
        let out = what.out.display();
        Failure::files(match error.kind() {
            ErrorKind::AlreadyExists => format!(
                "{out} exists already, and nothing is overwritten: choose another name, or remove it"
            ),
            _ => format!("writing {out}: {error}"),
        })
    };
    let out = OpenOptions::new().write(true).create_new(true).open(&what.out).map_err(failed)?;
    let mut out = BufWriter::new(out);
    let sealed = seal_all(&mut sealer, lines()?, &mut out).and_then(|chunks| {
        let last = sealer.finish().map_err(refused)?;
        write(&last, chunks == 0, &mut out).map_err(failed)?;
        out.flush().and_then(|()| out.get_ref().sync_all()).map_err(failed)?;
        Ok(chunks + 1)
    });
    if sealed.is_err() {
        // Half a file is none.
        let _ = fs::remove_file(&what.out);
    }
    let chunks = sealed?;
    if json {
        say_json(&json!({
            "sealed": count, "chunks": chunks, "site": site,
            "import_key_fingerprint": to.fingerprint().to_string(),
            "sealed_file": file,
        }))?;
    } else {
        say(&format!(
            "{count} meters sealed for {site}, in {chunks} chunks; sealed_file={file} in its audit log"
        ))?;
    }
    Ok(Exit::Good)
}

/// The number of lines, if none is bad; the first bad ones are named.
fn count_good(lines: ImportRecords<File>) -> Result<u64, Failure> {
    let (mut count, mut bad) = (0, 0);
    for line in lines {
        match line {
            Ok(_) => count += 1,
            Err(line) => {
                bad += 1;
                if bad <= NAMED_MAX {
                    let _ = writeln!(io::stderr(), "{line}");
                }
            }
        }
    }
    match (bad, count) {
        (0, 0) => Err(Failure::files("there is no meter in the file: nothing was sealed")),
        (0, count) => Ok(count),
        (bad, count) => {
            let reason = format!("{bad} bad lines, {count} good ones: nothing was sealed");
            Err(Failure::refused("NOTHING_SEALED", reason))
        }
    }
}

/// Seals all lines, those of a window in the order in which a site stores their meters: then a chunk
/// concerns a few blocks of the site's, and not one for nearly each line.
fn seal_all(
    sealer: &mut Sealer,
    mut lines: impl Iterator<Item = Result<MeterRecord, BadRecord>>,
    out: &mut BufWriter<File>,
) -> Result<u64, Failure> {
    let mut chunks = 0;
    loop {
        let window = lines.by_ref().take(WINDOW).collect::<Result<Vec<_>, _>>();
        let mut window = window.map_err(|bad| Failure::refused(bad.code, bad.to_string()))?;
        if window.is_empty() {
            return Ok(chunks);
        }
        // Stable: lines about one meter stay in their order.
        window.sort_by_key(|line| line.meter.storage_order());
        for MeterRecord { place, meter } in window {
            let sealed =
                sealer.push(meter).map_err(|error| refused(error.at_line(place.number())))?;
            if let Some(part) = sealed {
                write(&part, chunks == 0, out)
                    .map_err(|error| Failure::files(format!("writing the sealed file: {error}")))?;
                chunks += 1;
            }
        }
    }
}

fn write(part: &SealedPart, first: bool, out: &mut BufWriter<File>) -> io::Result<()> {
    if first {
        part.write_header_to(out)?;
    }
    part.write_to(out)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| Failure::files(format!("reading {}: {error}", path.display())))
}

fn refused(error: SealError) -> Failure {
    let code = match &error {
        SealError::Fingerprint { .. } => "WRONG_FINGERPRINT",
        SealError::Secret { .. } => "SECRET_NOT_SEALABLE",
        SealError::Length { .. } => "KEY_LENGTH",
        SealError::SigningKey => "SIGNING_KEY",
        _ => "NOT_SEALED",
    };
    Failure::refused(code, error.to_string())
}
