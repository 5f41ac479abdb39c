//! What can be asked of `meter seal`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kms_client::{ImportFormat, ImportKeyFingerprint, shipment::ShipmentFormat};

use crate::failure::Failure;
use crate::format_arg::{Format, format_of};

#[derive(Args)]
pub(crate) struct Seal {
    /// The file: JSON Lines or CSV with keys in clear, which is read twice; or a supplier's key file
    pub(crate) file: PathBuf,
    /// Where the sealed file goes; it must not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// The site's import key, as `site import-key --out` wrote it
    #[arg(long, value_name = "FILE")]
    pub(crate) import_key: PathBuf,
    /// Its fingerprint, from the report of `kms-server init`: 64 hex digits
    #[arg(long, value_name = "HEX")]
    pub(crate) import_key_fingerprint: ImportKeyFingerprint,
    /// The name that the site's configuration knows the signing key by
    #[arg(long, value_name = "NAME")]
    pub(crate) signer: String,
    /// A P-256 private key in PEM (PKCS #8)
    #[arg(long, value_name = "FILE")]
    pub(crate) signing_key: PathBuf,
    /// How the file is written; told by its extension (.jsonl, .ndjson, .csv, .tsv; .xml; .kem, .kem2, .zip) otherwise
    #[arg(long)]
    pub(crate) format: Option<SealFormat>,
    /// What is known of the supplier of a key file: whose signature counts, what opens it, what its names mean
    #[arg(long, value_name = "FILE")]
    pub(crate) supplier: Option<PathBuf>,
    /// Write what became of each line, as JSON Lines; bad lines are then left out and stand there, and the others are
    /// sealed. It must not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) receipt: Option<PathBuf>,
    /// The same as a table for people
    #[arg(long, value_name = "FILE", requires = "receipt")]
    pub(crate) receipt_table: Option<PathBuf>,
    /// Open a supplier's key file although this process's memory can't be locked against swap: for trials
    #[arg(long)]
    pub(crate) allow_unlocked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SealFormat {
    Jsonl,
    Csv,
    Shipment,
    Kem,
}

/// The form of the file.
pub(crate) enum Form {
    /// Lines of meters.
    Lines(ImportFormat),
    /// A supplier's key file, and his settings.
    Delivery(ShipmentFormat, PathBuf),
}

impl Seal {
    pub(crate) fn form(&self) -> Result<Form, Failure> {
        let format = match self.format {
            Some(SealFormat::Jsonl) => return self.lines(Some(Format::Jsonl)),
            Some(SealFormat::Csv) => return self.lines(Some(Format::Csv)),
            Some(SealFormat::Shipment) => Some(ShipmentFormat::Shipment),
            Some(SealFormat::Kem) => Some(ShipmentFormat::Kem),
            None => ShipmentFormat::of_path(&self.file),
        };
        let Some(format) = format else { return self.lines(None) };
        let settings = self.supplier.clone().ok_or_else(|| {
            Failure::usage("a supplier's key file takes --supplier FILE: whose signature counts, what opens it")
        })?;
        if self.receipt.is_none() {
            return Err(Failure::usage(
                "a supplier's key file takes --receipt FILE: what of it was left out stands nowhere else",
            ));
        }
        Ok(Form::Delivery(format, settings))
    }

    fn lines(&self, said: Option<Format>) -> Result<Form, Failure> {
        let problem = "--supplier is for a supplier's key file (.xml, .kem, .zip)";
        if self.supplier.is_some() {
            return Err(Failure::usage(problem));
        }
        Ok(Form::Lines(format_of(said, &self.file)?))
    }
}
