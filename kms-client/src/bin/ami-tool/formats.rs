//! Formats of import files, as they are said or told by a file's name.

use std::path::Path;

use clap::ValueEnum;
use kms_client::ImportFormat;

use crate::failure::Failure;

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    Jsonl,
    Csv,
}

pub(crate) fn format_of(said: Option<Format>, file: &Path) -> Result<ImportFormat, Failure> {
    match said {
        Some(Format::Jsonl) => Ok(ImportFormat::JsonLines),
        Some(Format::Csv) => Ok(ImportFormat::Csv),
        None => ImportFormat::of_path(file).ok_or_else(|| {
            let file = file.display();
            Failure::usage(format!(
                "{file} does not end in .jsonl, .ndjson, .csv or .tsv; say --format jsonl or --format csv"
            ))
        }),
    }
}
