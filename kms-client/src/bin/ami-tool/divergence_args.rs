//! The arguments of `site divergence`, `site admit-epoch` and `site forget-list`.

use clap::{Args, Subcommand};
use kms_client::{DivergenceRule, Parting};
use kms_core::Numbered as _;

#[derive(Subcommand)]
pub(crate) enum DivergenceCommand {
    /// List what one site wrote alone and the other never had, beside what stands now
    List(List),
    /// Show one record, and what differs
    Show {
        /// As `list` shows it
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Bring the keys of a record, or of all that a rule names, into the records that stand
    Accept(Decide),
    /// Use nothing of a record, or of all that a rule names. Keys that may be in a meter stay as DEACTIVATED
    /// versions, and compromised ones are withdrawn
    Discard(Decide),
}

#[derive(Args)]
pub(crate) struct List {
    /// Show those, too, about which something was decided
    #[arg(long)]
    pub(crate) decided: bool,
}

#[derive(Args)]
pub(crate) struct Decide {
    /// One record, as `list` shows it
    #[arg(value_name = "ID", required_unless_present = "rule", conflicts_with = "rule")]
    pub(crate) id: Option<String>,
    /// All records that are this, as `list` says in PARTING: `nothing_new`, `new_meter`, `keys`, `details`, `deleted`,
    /// `deleted_there`, `line`, `unreadable`; or `all`
    #[arg(long, value_name = "PARTING", value_parser = rule)]
    pub(crate) rule: Option<DivergenceRule>,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Args)]
pub(crate) struct AdmitEpoch {
    /// The epoch of the other site, as its status says it
    #[arg(value_name = "N")]
    pub(crate) epoch: u64,
}

#[derive(Args)]
pub(crate) struct ForgetList {
    /// The authority, as the refusal of its list names it
    #[arg(long, value_name = "HEX", value_parser = digits)]
    pub(crate) authority: std::sync::Arc<[u8]>,
    /// The number that is remembered, and is to be forgotten
    #[arg(long, value_name = "HEX", value_parser = digits)]
    pub(crate) number: std::sync::Arc<[u8]>,
    /// Lists from this number on count again
    #[arg(long, value_name = "HEX", value_parser = digits)]
    pub(crate) from: std::sync::Arc<[u8]>,
}

fn digits(text: &str) -> Result<std::sync::Arc<[u8]>, String> {
    hex::decode(text).map(Into::into).map_err(|error| format!("not hexadecimal digits: {error}"))
}

fn rule(text: &str) -> Result<DivergenceRule, String> {
    if text.eq_ignore_ascii_case("all") {
        return Ok(DivergenceRule::All);
    }
    let parting = Parting::from_word(&text.to_uppercase().replace('-', "_"));
    parting.map(DivergenceRule::Parting).ok_or_else(|| {
        let words: Vec<String> = Parting::ALL.iter().map(|it| it.word().to_lowercase()).collect();
        format!("the rules are {} and all", words.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_parting_is_a_rule_by_its_word_and_nothing_else_is() {
        for parting in Parting::ALL {
            let known = rule(&parting.word().to_lowercase().replace('_', "-"));
            assert_eq!(known, Ok(DivergenceRule::Parting(*parting)));
        }
        assert_eq!(rule("ALL"), Ok(DivergenceRule::All));
        assert!(rule("newest").unwrap_err().contains("nothing_new"));
    }
}
