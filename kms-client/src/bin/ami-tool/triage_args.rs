//! The arguments of `triage` and `meter check-keys`.

use std::path::PathBuf;

use clap::Args;
use kms_client::{MeterId, SystemTitle, parse_system_title};

use crate::format_arg::Format;

pub(crate) const TRIAGE_EXIT_CODES: &str = "\
Exit codes:
  0  nothing is wrong with any of the frames
  1  a cause was found, or none could be told
  2  the command line is wrong
  3  the configuration or a file cannot be used
  4  the service is unreachable or failing, or the caller's share of triages is used up for a minute
  5  the certificate does not grant the call, or not Decrypt
  6  the certificate, or the server's, is not accepted";

pub(crate) const CHECK_EXIT_CODES: &str = "\
Exit codes:
  0  every frame of the file's meters verifies under the keys of its line, and there is one at least
  1  a frame does not, or can't be decided, or none belongs to a meter of the file
  2  the command line is wrong
  3  a file cannot be used, or has a bad line";

#[derive(Args)]
pub(crate) struct Triage {
    /// The meter, by the operator's name
    #[arg(long, value_name = "ID", conflicts_with = "system_title")]
    pub(crate) meter: Option<MeterId>,
    /// The meter, by its name on the wire, 16 hex digits
    #[arg(long, value_name = "HEX", value_parser = parse_system_title)]
    pub(crate) system_title: Option<SystemTitle>,
    /// e in 0.0.43.0.e.255; each in turn otherwise
    #[arg(long, value_name = "N")]
    pub(crate) security_setup: Option<u8>,
    /// Frames as they were recorded: hex digits, or a file with one frame a line, in hex or as JSON such as
    /// {"apdu":"HEX"}; `-` for standard input. At most 64 frames; three with different counters tell more than one
    #[arg(value_name = "FILE|HEX", required = true)]
    pub(crate) frames: Vec<String>,
}

#[derive(Args)]
pub(crate) struct CheckKeys {
    /// The file with the new keys, as `meter import` reads it: JSON Lines or CSV. No key leaves this machine
    pub(crate) file: PathBuf,
    /// Frames that the meters sent: a file with one a line, in hex or as JSON such as {"meter":"…","apdu":"HEX"};
    /// `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) frames: PathBuf,
    /// The meter of frames that name none and carry no title; else the file's only one
    #[arg(long, value_name = "ID")]
    pub(crate) meter: Option<MeterId>,
    /// How the file is written; told by its extension (.jsonl, .ndjson, .csv, .tsv) otherwise
    #[arg(long)]
    pub(crate) format: Option<Format>,
}
