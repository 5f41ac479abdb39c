//! The receipt of a run of `meter seal`: what became of each line of the source, and of which file. No key; of each
//! taken key its check value by CMAC, which the service shows too.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use kms_client::shipment::{Delivered, Origin};
use kms_client::{BadRecord, KeyKind, Place, Protection, title_text};
use serde_json::{Value, json};

use crate::failure::Failure;

/// The version of this form.
const VERSION: u32 = 1;

/// A receipt under way. What is not finished is removed: half a receipt is none.
pub(crate) struct Receipt {
    lines: Out,
    table: Option<Out>,
    counts: Counts,
    finished: bool,
}

/// The sums of a run.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) taken: u64,
    pub(crate) refused: u64,
    pub(crate) keys_left_out: u64,
    kinds: BTreeMap<KeyKind, u64>,
}

struct Out {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Out {
    fn create(path: &Path) -> Result<Self, Failure> {
        let failed = |error| Failure::files(format!("writing {}: {error}", path.display()));
        let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file) })
    }

    fn line(&mut self, line: &str) -> Result<(), Failure> {
        writeln!(self.file, "{line}").map_err(|error| self.failed(&error))
    }

    fn end(&mut self) -> Result<(), Failure> {
        let ended = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        ended.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &std::io::Error) -> Failure {
        Failure::files(format!("writing {}: {error}", self.path.display()))
    }
}

/// The file that a receipt is about.
pub(crate) struct Source<'a> {
    pub(crate) file: &'a Path,
    /// Hexadecimal.
    pub(crate) sha256: String,
    pub(crate) format: &'static str,
    pub(crate) origin: Origin,
    pub(crate) memory_locked: bool,
}

impl Receipt {
    /// Begins with what the receipt is about. `table`: written besides.
    pub(crate) fn begin(
        path: &Path,
        table: Option<&Path>,
        source: &Source<'_>,
    ) -> Result<Self, Failure> {
        let lines = Out::create(path)?;
        let table = table.map(Out::create).transpose();
        if table.is_err() {
            let _ = fs::remove_file(path);
        }
        let mut receipt = Self { lines, table: table?, counts: Counts::default(), finished: false };
        let Source { file, sha256, format, origin, memory_locked } = source;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        receipt.lines.line(
            &json!({
                "receipt": VERSION, "source": name, "sha256": sha256, "format": format,
                "signed_by": origin.signed_by, "manufacturer": origin.manufacturer, "batch": origin.batch,
                "warnings": origin.warnings, "memory_locked": memory_locked,
            })
            .to_string(),
        )?;
        if let Some(table) = &mut receipt.table {
            table.line(&format!("{name}  sha256 {sha256}  {format}"))?;
            let by = origin.signed_by.as_deref().unwrap_or("nobody that could be told");
            table.line(&format!("signed by  {by}"))?;
            for warning in &origin.warnings {
                table.line(&format!("warning: {warning}"))?;
            }
        }
        Ok(receipt)
    }

    /// A line of the source that was taken.
    pub(crate) fn taken(&mut self, delivered: &Delivered) -> Result<(), Failure> {
        let Delivered { record, left_out } = delivered;
        let meter = &record.meter;
        let title = title_text(&meter.system_title);
        let (mut keys, mut cells) = (Vec::new(), Vec::new());
        for key in &meter.keys {
            let kcv = key.value.check_value().unwrap_or_default();
            *self.counts.kinds.entry(key.kind).or_default() += 1;
            cells.push(format!("{}/{} {kcv}", key.kind, key.security_setup));
            keys.push(json!({
                "kind": key.kind.to_string(), "security_setup": key.security_setup, "kcv": kcv,
                "protection": key.protection.map(protection),
            }));
        }
        let left: Vec<Value> = left_out
            .iter()
            .map(|it| json!({ "name": it.name, "kind": it.kind.map(|kind| kind.to_string()), "reason": it.reason }))
            .collect();
        cells.extend(left_out.iter().map(|it| format!("{} left out ({})", it.name, it.reason)));
        self.counts.taken += 1;
        self.counts.keys_left_out += left_out.len() as u64;
        let mut line = placed(record.place);
        line["outcome"] = "TAKEN".into();
        line["meter_id"] = meter.meter_id.as_str().into();
        line["system_title"] = title.clone().into();
        line["keys"] = keys.into();
        line["left_out"] = left.into();
        self.lines.line(&line.to_string())?;
        self.row(
            record.place,
            "TAKEN",
            &format!("{}  {title}  {}", meter.meter_id, cells.join("; ")),
        )
    }

    /// A line that was refused.
    pub(crate) fn refused(&mut self, bad: &BadRecord) -> Result<(), Failure> {
        self.counts.refused += 1;
        let mut line = placed(bad.place);
        line["outcome"] = "REFUSED".into();
        line["code"] = bad.code.into();
        line["reason"] = bad.reason.as_str().into();
        self.lines.line(&line.to_string())?;
        self.row(bad.place, "REFUSED", &format!("{}: {}", bad.code, bad.reason))
    }

    fn row(&mut self, place: Place, outcome: &str, rest: &str) -> Result<(), Failure> {
        let place = place.to_string();
        self.table
            .as_mut()
            .map_or(Ok(()), |it| it.line(&format!("{place:14}  {outcome:7}  {rest}")))
    }

    /// Ends with what came of it: the sealed file by its number in the site's audit log, and its signer.
    pub(crate) fn finish(mut self, sealed: &Value) -> Result<Counts, Failure> {
        let counts = std::mem::take(&mut self.counts);
        let kinds: BTreeMap<String, u64> =
            counts.kinds.iter().map(|(kind, n)| (kind.to_string(), *n)).collect();
        let mut sum = json!({
            "summary": true, "taken": counts.taken, "refused": counts.refused,
            "keys": kinds, "keys_left_out": counts.keys_left_out,
        });
        if let (Some(sum), Some(sealed)) = (sum.as_object_mut(), sealed.as_object()) {
            sum.extend(sealed.clone());
        }
        self.lines.line(&sum.to_string())?;
        self.lines.end()?;
        if let Some(table) = &mut self.table {
            table.line(&format!(
                "{} taken, {} refused, {} keys left out",
                counts.taken, counts.refused, counts.keys_left_out
            ))?;
            table.line(&format!("sealed file  {sealed}"))?;
            table.end()?;
        }
        self.finished = true;
        Ok(counts)
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        for out in [Some(&self.lines), self.table.as_ref()].into_iter().flatten() {
            let _ = fs::remove_file(&out.path);
        }
    }
}

fn placed(place: Place) -> Value {
    let unit = match place {
        Place::Line(_) => "line",
        Place::Row(_) => "row",
        Place::Element(_) => "element",
    };
    json!({ unit: place.number() })
}

fn protection(protection: Protection) -> &'static str {
    match protection {
        Protection::Hsm => "HSM",
        Protection::Memory => "MEMORY",
    }
}
