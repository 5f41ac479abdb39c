//! `meter seal`: a file with keys in clear, or a supplier's key file, becomes one that only the site's HSM opens.
//! Offline.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Read as _, Write as _};
use std::path::Path;

use kms_client::{
    BadRecord, ImportFormat, ImportKey, ImportRecords, ManifestSigner, MeterRecord, SealError,
    SealedPart, Sealer,
    sealed::{Contents, PinnedImportKey, may_be_sealed},
    shipment::{Consignment, Delivered, Origin, ShipmentError, Supplier, open},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::failure::{Exit, Failure};
use crate::memory;
use crate::receipt::{Receipt, Source};
use crate::seal_args::{Form, Seal};
use crate::text::{say, say_json};

/// Bad lines that are named before the rest is only counted.
const NAMED_MAX: u64 = 20;

/// Lines that are put in order together: enough for meters of one block to come side by side, few enough
/// to be held in memory.
const WINDOW: usize = 100_000;

pub(crate) fn run(what: Seal, json: bool) -> Result<Exit, Failure> {
    let form = what.form()?;
    // Lines in clear stand on a disk as they are: there the lock is worth having, and not worth stopping for.
    let locked = memory::lock(what.allow_unlocked || matches!(form, Form::Lines(_)))?;
    let (to, site) = recipient(&what)?;
    let pem = Zeroizing::new(String::from_utf8(read(&what.signing_key)?).unwrap_or_default());
    let signer = ManifestSigner::from_pem(&what.signer, &pem).map_err(refused)?;
    let delivery = Delivery::open(&what, form)?;
    let mut receipt = delivery.receipt(&what, locked)?;

    // The header says how many lines there are and which keys they have; without a receipt, which names what is left
    // out, a file with a bad line is not sealed at all.
    let contents = survey(&delivery, receipt.as_mut())?;
    let count = contents.lines();
    let mut sealer = Sealer::new(&to, signer, contents).map_err(refused)?;
    let number = sealer.audit_number();
    let chunks = write_out(&what.out, |out| {
        let good = delivery.lines()?.filter(|line| receipt.is_none() || is_taken(line));
        let chunks = seal_all(&mut sealer, good.map(|line| line.map(|it| it.record)), out)?;
        let last = sealer.finish().map_err(refused)?;
        write(&last, chunks == 0, out).map_err(|error| not_written(&what.out, &error))?;
        delivery.is_unchanged().map(|()| chunks + 1)
    })?;
    let sealed = json!({
        "sealed": count, "chunks": chunks, "site": site, "signer": what.signer,
        "import_key_fingerprint": to.fingerprint().to_string(), "sealed_file": number,
    });
    let bad = match receipt.map(|it| it.finish(&sealed)).transpose() {
        Ok(counts) => counts.map_or(0, |counts| {
            let (refused, left) = (counts.refused, counts.keys_left_out);
            if refused + left > 0 {
                let _ = writeln!(
                    io::stderr(),
                    "{refused} lines refused, {left} keys left out: see the receipt"
                );
            }
            refused
        }),
        Err(failure) => {
            // A sealed file whose receipt is missing would say nothing of what it lacks.
            let _ = fs::remove_file(&what.out);
            return Err(failure);
        }
    };
    if json {
        say_json(&sealed)?;
    } else {
        say(&format!(
            "{count} meters sealed for {site}, in {chunks} chunks; sealed_file={number} in its audit log"
        ))?;
    }
    Ok(Exit::good_if(bad == 0))
}

fn recipient(what: &Seal) -> Result<(PinnedImportKey, String), Failure> {
    let path = what.import_key.display();
    let bad = |error| Failure::files(format!("{path} is no import key: {error}"));
    let import_key: ImportKey = serde_json::from_slice(&read(&what.import_key)?).map_err(bad)?;
    let site = import_key.site.clone();
    Ok((import_key.pinned(what.import_key_fingerprint).map_err(refused)?, site))
}

/// The file that is sealed.
enum Delivery<'a> {
    Lines { file: &'a Path, format: ImportFormat, sha256: String },
    Opened { file: &'a Path, format: &'static str, sha256: String, consignment: Box<Consignment> },
}

type Lines<'a> = Box<dyn Iterator<Item = Result<Delivered, BadRecord>> + 'a>;

impl<'a> Delivery<'a> {
    fn open(what: &'a Seal, form: Form) -> Result<Self, Failure> {
        let file = what.file.as_path();
        match form {
            Form::Lines(format) => Ok(Self::Lines { file, format, sha256: hash_of(file)? }),
            Form::Delivery(format, settings) => {
                let not_taken =
                    |error: ShipmentError| Failure::refused(error.code(), error.to_string());
                let supplier = Supplier::load(&settings).map_err(not_taken)?;
                let bytes = Zeroizing::new(read(file)?);
                let sha256 = hex::encode(Sha256::digest(&bytes));
                let consignment = Box::new(open(bytes, format, supplier).map_err(not_taken)?);
                for warning in &consignment.origin().warnings {
                    let _ = writeln!(io::stderr(), "warning: {warning}");
                }
                Ok(Self::Opened { file, format: format.word(), sha256, consignment })
            }
        }
    }

    /// Its meters, from the beginning.
    fn lines(&self) -> Result<Lines<'_>, Failure> {
        match self {
            Self::Lines { file, format, .. } => {
                let opened = File::open(file).map_err(|error| unread(file, &error))?;
                let whole = |record| Delivered { record, left_out: Vec::new() };
                let lines = ImportRecords::new(opened, *format);
                Ok(Box::new(lines.map(move |line| line.map(whole))))
            }
            Self::Opened { consignment, .. } => Ok(Box::new(consignment.deliveries())),
        }
    }

    fn receipt(&self, what: &Seal, memory_locked: bool) -> Result<Option<Receipt>, Failure> {
        let Some(path) = &what.receipt else { return Ok(None) };
        let (file, sha256, format, origin) = match self {
            Self::Lines { file, format, sha256 } => {
                let format = match format {
                    ImportFormat::JsonLines => "jsonl",
                    ImportFormat::Csv => "csv",
                };
                (file, sha256, format, Origin::default())
            }
            Self::Opened { file, format, sha256, consignment } => {
                (file, sha256, *format, consignment.origin().clone())
            }
        };
        let source = Source { file, sha256: sha256.clone(), format, origin, memory_locked };
        Receipt::begin(path, what.receipt_table.as_deref(), &source).map(Some)
    }

    /// Lines are read twice: as they were sealed, so they have to be as the receipt says.
    fn is_unchanged(&self) -> Result<(), Failure> {
        match self {
            Self::Lines { file, sha256, .. } if hash_of(file)? != *sha256 => {
                Err(Failure::files("the file changed while it was sealed: nothing was"))
            }
            _ => Ok(()),
        }
    }
}

fn hash_of(file: &Path) -> Result<String, Failure> {
    let mut opened = File::open(file).map_err(|error| unread(file, &error))?;
    let (mut hash, mut chunk) = (Sha256::new(), Zeroizing::new(vec![0; 64 << 10]));
    loop {
        match opened.read(&mut chunk).map_err(|error| unread(file, &error))? {
            0 => return Ok(hex::encode(hash.finalize())),
            len => hash.update(chunk.get(..len).unwrap_or_default()),
        }
    }
}

fn is_taken(line: &Result<Delivered, BadRecord>) -> bool {
    line.as_ref().is_ok_and(|it| may_be_sealed(&it.record.meter).is_ok())
}

/// What the file holds, if all of it can be sealed; with a receipt, what of it can.
fn survey(delivery: &Delivery<'_>, mut receipt: Option<&mut Receipt>) -> Result<Contents, Failure> {
    let (mut contents, mut bad) = (Contents::default(), 0);
    for line in delivery.lines()? {
        let line = match (line, &receipt) {
            (Ok(it), Some(_)) => match may_be_sealed(&it.record.meter) {
                Ok(()) => Ok(it),
                Err(error) => Err(unsealable(&it.record, error)),
            },
            (line, _) => line,
        };
        match line {
            Ok(it) => {
                contents.add(&it.record.meter);
                if let Some(receipt) = &mut receipt {
                    receipt.taken(&it)?;
                }
            }
            Err(line) => {
                bad += 1;
                if bad <= NAMED_MAX {
                    let _ = writeln!(io::stderr(), "{line}");
                }
                if let Some(receipt) = &mut receipt {
                    receipt.refused(&line)?;
                }
            }
        }
    }
    match (bad, contents.lines()) {
        (0, 0) => Err(Failure::files("there is no meter in the file: nothing was sealed")),
        (0, _) => Ok(contents),
        (_, 1..) if receipt.is_some() => Ok(contents),
        (bad, count) => {
            let reason = format!(
                "{bad} bad lines, {count} good ones: nothing was sealed (with --receipt the good ones are)"
            );
            Err(Failure::refused("NOTHING_SEALED", reason))
        }
    }
}

fn unsealable(record: &MeterRecord, error: SealError) -> BadRecord {
    let (code, place) = (code_of(&error), record.place);
    BadRecord { place, code, reason: error.at_line(place.number()).to_string() }
}

/// Has the sealed file written; removes it if that fails: half a file is none.
fn write_out(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<u64, Failure>,
) -> Result<u64, Failure> {
    let out = OpenOptions::new().write(true).create_new(true).open(path);
    let mut out = BufWriter::new(out.map_err(|error| not_written(path, &error))?);
    let sealed = write(&mut out).and_then(|chunks| {
        out.flush()
            .and_then(|()| out.get_ref().sync_all())
            .map_err(|error| not_written(path, &error))?;
        Ok(chunks)
    });
    if sealed.is_err() {
        let _ = fs::remove_file(path);
    }
    sealed
}

fn not_written(path: &Path, error: &io::Error) -> Failure {
    let out = path.display();
    Failure::files(match error.kind() {
        ErrorKind::AlreadyExists => format!(
            "{out} exists already, and nothing is overwritten: choose another name, or remove it"
        ),
        _ => format!("writing {out}: {error}"),
    })
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
    fs::read(path).map_err(|error| unread(path, &error))
}

fn unread(path: &Path, error: &io::Error) -> Failure {
    Failure::files(format!("reading {}: {error}", path.display()))
}

fn refused(error: SealError) -> Failure {
    Failure::refused(code_of(&error), error.to_string())
}

fn code_of(error: &SealError) -> &'static str {
    match error {
        SealError::Fingerprint { .. } => "WRONG_FINGERPRINT",
        SealError::Secret { .. } => "SECRET_NOT_SEALABLE",
        SealError::Length { .. } => "KEY_LENGTH",
        SealError::SigningKey => "SIGNING_KEY",
        _ => "NOT_SEALED",
    }
}
