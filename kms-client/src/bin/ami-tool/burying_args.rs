//! The arguments of `meter bury` and `meter readmit`.

use clap::Args;
use kms_client::{MeterId, SystemTitle, parse_system_title};

#[derive(Args)]
pub(crate) struct Bury {
    /// The meter's system title: 16 hex digits
    #[arg(long, value_name = "HEX", value_parser = parse_system_title)]
    pub(crate) system_title: SystemTitle,
    /// The block that `site status` names, if it is not the title's own
    #[arg(long, value_name = "N")]
    pub(crate) block: Option<u32>,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Args)]
pub(crate) struct Readmit {
    /// The operator's name that the deleted meter had
    #[arg(value_name = "ID")]
    pub(crate) meter_id: MeterId,
    /// The name on the wire that it had, 16 hex digits
    #[arg(long, value_name = "HEX", value_parser = parse_system_title)]
    pub(crate) system_title: SystemTitle,
}
