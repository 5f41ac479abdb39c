//! The table of a trial, and what people are told of it.

use std::{collections::BTreeMap, fmt};

use crate::hsm::{OaepHash, pkcs11::calls::oaep};

/// The kind of question that a row answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RowKind {
    /// Can it do this, and rightly?
    Ability,
    /// The same thing done as it should be, so that the refusals beside it are not by accident.
    Control,
    /// Done by somebody with the user PIN: must be refused.
    Attack,
    /// Known and accepted: PKCS #11 has no means against it.
    Limit,
}

/// One row of the table.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ProbeRow {
    /// Ability, control, attack or limit.
    pub kind: RowKind,
    /// The thing that was tried.
    pub what: String,
    /// The outcome, with the CKR code of a refusal.
    pub outcome: String,
    /// The path that this service takes, given the outcome.
    pub path: String,
    /// The reason why it matters.
    pub why: String,
    /// Whether the server can't do without it.
    pub required: bool,
    /// Whether it is as it must be.
    pub ok: bool,
}

/// Everything that was tried.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ProbeReport {
    /// CKA label.
    pub token_label: String,
    /// Maker's model name.
    pub model: String,
    /// The rows, in the order of trying.
    pub rows: Vec<ProbeRow>,
    /// The time that it took.
    pub elapsed_ms: u64,
}

impl ProbeReport {
    /// `Ok` if this token can be trusted with the site's keys; else every required row that failed.
    pub fn verdict(&self) -> Result<(), Vec<&ProbeRow>> {
        let failed: Vec<_> = self.rows.iter().filter(|row| row.required && !row.ok).collect();
        if failed.is_empty() { Ok(()) } else { Err(failed) }
    }

    /// What it does not do and what that costs. The OAEP hash that is not the chosen one costs nothing: nothing asks
    /// for it.
    pub fn unmet(&self) -> impl Iterator<Item = String> {
        let is_oaep = |row: &ProbeRow| {
            [OaepHash::Sha1, OaepHash::Sha256].iter().any(|hash| row.what == oaep::name(*hash))
        };
        let costly = self.rows.iter().filter(move |row| !row.ok && (row.required || !is_oaep(row)));
        costly.map(|row| match row.path.as_str() {
            "" => row.what.clone(),
            price => format!("{}: {price}", row.what),
        })
    }

    /// The security officer has found out that nobody can make a trusted key (`Quirk::NobodyTrusts`): no reason to
    /// refuse the token, and one not to found a domain on it.
    pub fn hands_no_keks_on(&mut self, told: String) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.what == HANDING_ON) {
            (row.ok, row.outcome) = (false, told);
        }
    }

    /// The reason why this token is refused, in one sentence: the setting that it can't follow
    /// (`Quirk::OaepSha1Only`), else the first rows that failed. `None` if it can be trusted.
    pub fn refusal(&self) -> Option<String> {
        let failed = self.verdict().err()?;
        let can = |hash| self.rows.iter().any(|row| row.ok && row.what == oaep::name(hash));
        let cannot = |hash| failed.iter().any(|row| row.what == oaep::name(hash));
        for (hash, other, setting) in [
            (OaepHash::Sha256, OaepHash::Sha1, "sha1"),
            (OaepHash::Sha1, OaepHash::Sha256, "sha256"),
        ] {
            if cannot(hash) && can(other) {
                return Some(format!(
                    "the token can't do {}, which hsm.oaep_hash asks for: set \
                     hsm.oaep_hash = \"{setting}\"",
                    oaep::name(hash)
                ));
            }
        }
        let (told, rest) = failed.split_at(failed.len().min(TOLD_MAX));
        let mut rows: Vec<String> =
            told.iter().map(|row| format!("{}: {}", row.what, row.outcome)).collect();
        if !rest.is_empty() {
            rows.push(format!("and {} more", rest.len()));
        }
        Some(format!(
            "the token does not withstand what it must; run `kms-server probe-hsm` for the whole \
             table: {}",
            rows.join("; ")
        ))
    }
}

/// The row about a thing that the user's PIN can't find out.
pub(crate) const HANDING_ON: &str = "the sealed KEKs can be handed on to another site";

/// Failed rows that a refusal tells; the table has them all.
const TOLD_MAX: usize = 5;

/// For people: abilities, limits and failures row by row, controls and attacks counted by what they
/// were tried on. `{:#}` prints every row.
impl fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token_label, model, rows, elapsed_ms } = self;
        writeln!(f, "token {token_label} ({model}), {} rows, {elapsed_ms} ms", rows.len())?;
        let told: Vec<&ProbeRow> =
            rows.iter().filter(|row| f.alternate() || !row.ok || row.is_told_alone()).collect();
        let width = told.iter().map(|row| row.what.chars().count()).max().unwrap_or_default();
        told.iter().try_for_each(|row| row.write(f, width))?;
        if !f.alternate() {
            self.write_counts(f)?;
        }
        match self.verdict() {
            Ok(()) => writeln!(f, "this token can be trusted with the site's keys"),
            Err(failed) => writeln!(f, "NOT TO BE TRUSTED: {} required rows failed", failed.len()),
        }
    }
}

impl ProbeReport {
    /// One line for each thing that was attacked.
    fn write_counts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts: BTreeMap<&str, (usize, usize, usize)> = BTreeMap::new();
        for row in self.rows.iter().filter(|row| !row.is_told_alone()) {
            let on = row.what.split_once(':').map_or("others", |(on, _)| on);
            let (refused, attacks, controls) = counts.entry(on).or_default();
            match row.kind {
                RowKind::Attack => {
                    *attacks += 1;
                    *refused += usize::from(row.ok);
                }
                RowKind::Ability | RowKind::Control | RowKind::Limit => *controls += 1,
            }
        }
        writeln!(f, "attacks by somebody who holds the user PIN, refused of tried (--all: each):")?;
        counts.iter().try_for_each(|(on, (refused, attacks, controls))| {
            writeln!(f, "     {on:<40} {refused:>4} of {attacks:<4} beside {controls} controls")
        })
    }
}

impl ProbeRow {
    fn is_told_alone(&self) -> bool {
        matches!(self.kind, RowKind::Ability | RowKind::Limit)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, width: usize) -> fmt::Result {
        let mark = match (self.ok, self.required) {
            (true, _) => "ok  ",
            (false, true) => "FAIL",
            (false, false) => "-   ",
        };
        let kind = format!("{:?}", self.kind).to_lowercase();
        write!(f, "{mark} {kind:<7} {:<width$}  {}", self.what, self.outcome)?;
        if self.path.is_empty() { writeln!(f) } else { writeln!(f, " -> {}", self.path) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(what: &str, path: &str, (required, ok): (bool, bool)) -> ProbeRow {
        let (kind, outcome, why) = (RowKind::Ability, String::new(), String::new());
        ProbeRow { kind, what: what.to_owned(), outcome, path: path.to_owned(), why, required, ok }
    }

    #[test]
    fn a_limit_is_told_where_it_costs_something_and_with_its_price() {
        let (sha1, sha256) = (oaep::name(OaepHash::Sha1), oaep::name(OaepHash::Sha256));
        let rows = vec![
            row("AES-CMAC", "fingerprints come with the key", (false, false)),
            row("random bytes", "C_GenerateRandom", (true, true)),
            row(sha1, "with oaep_hash", (true, true)),
            row(sha256, "not needed", (false, false)),
        ];
        let (token_label, model) = (String::new(), String::new());
        let report = ProbeReport { token_label, model, rows, elapsed_ms: 0 };
        let unmet: Vec<_> = report.unmet().collect();
        assert_eq!(unmet, ["AES-CMAC: fingerprints come with the key"]);
    }
}
