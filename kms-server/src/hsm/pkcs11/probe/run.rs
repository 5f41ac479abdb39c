//! What this token can do, and that it does not do what our keys forbid.
//!
//! A token's list of mechanisms says little: tags of no bits are taken, templates ignored, values
//! padded. So everything needed is tried with known answers, and everything feared is tried too: the
//! attacks of somebody who holds the user PIN, on the very keys that `init` made.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use cryptoki::{
    error::{Error, RvError},
    session::Session,
    slot::Slot,
};

use super::{
    abilities::{self, oaep_name},
    attacks::Attacks,
};
use crate::hsm::{
    Config, OaepHash, TokenError,
    pkcs11::{
        connection::{
            library::{Library, step},
            token::{Pkcs11Token, not_connected},
        },
        fault::{Fault, ckr},
        keys::canary::Canaries,
    },
};

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeDepth {
    /// At each start: what needs no new RSA key, where `init` has made the site's. Well under two
    /// seconds in SoftHSM.
    Start,
    /// Also makes a ceremony key, attacks it, and destroys it.
    Full,
}

/// What kind of question a row answers.
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
    /// What was tried.
    pub what: String,
    /// What came of it, with the CKR code of a refusal.
    pub outcome: String,
    /// The path that this service takes, given the outcome.
    pub path: String,
    /// Why it matters.
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
    /// In the order of trying.
    pub rows: Vec<ProbeRow>,
    /// How long it took.
    pub elapsed_ms: u64,
}

impl ProbeReport {
    /// `Ok` if this token can be trusted with the site's keys; else every required row that failed.
    pub fn verdict(&self) -> Result<(), Vec<&ProbeRow>> {
        let failed: Vec<_> = self.rows.iter().filter(|row| row.required && !row.ok).collect();
        if failed.is_empty() { Ok(()) } else { Err(failed) }
    }

    /// Why this token is refused, in one sentence: the setting that it can't follow, if it is that,
    /// else the first rows that failed. `None` if it can be trusted.
    pub fn refusal(&self) -> Option<String> {
        let failed = self.verdict().err()?;
        let can = |hash| self.rows.iter().any(|row| row.ok && row.what == oaep_name(hash));
        let cannot = |hash| failed.iter().any(|row| row.what == oaep_name(hash));
        for (hash, other, setting) in [
            (OaepHash::Sha256, OaepHash::Sha1, "sha1"),
            (OaepHash::Sha1, OaepHash::Sha256, "sha256"),
        ] {
            if cannot(hash) && can(other) {
                return Some(format!(
                    "the token can't do {}, which hsm.oaep_hash asks for: set \
                     hsm.oaep_hash = \"{setting}\"",
                    oaep_name(hash)
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

/// Probes the token of `config`. With `canaries` the KEKs are those of that database; without, those
/// with our labels. A key that is not there before `init` is made for a trial, in the session only.
///
/// Leaves no objects behind. Not while the token serves heavily: it opens a session for each row.
pub fn probe(
    config: &Config,
    canaries: Option<&Canaries>,
    depth: ProbeDepth,
) -> Result<ProbeReport, TokenError> {
    let library = Library::load(&config.module).map_err(|fault| not_connected(&fault))?;
    library.start().map_err(|fault| not_connected(&fault))?;
    let probed = library.whole(|| run(&library, config, canaries, depth));
    probed.map_err(|fault| not_connected(&fault))
}

impl Pkcs11Token {
    /// [`probe`] of this token, with its own canaries.
    pub fn probe(&self, depth: ProbeDepth) -> Result<ProbeReport, TokenError> {
        probe(&self.config, Some(&self.canaries), depth)
    }
}

fn run(
    library: &Library,
    config: &Config,
    canaries: Option<&Canaries>,
    depth: ProbeDepth,
) -> Result<ProbeReport, Fault> {
    let _gate = library.enter();
    let slot = library.slot(&config.token_label)?;
    // Its sessions are closed on drop, within the gate. This one keeps the user logged in.
    let session = library.pkcs11().open_rw_session(slot)?;
    library.login(&session, config)?;
    within(library, slot, &session, config, canaries, depth)
}

/// The whole table, in a session that is logged in. What a token lacks is a row, and no end.
pub(crate) fn within(
    library: &Library,
    slot: Slot,
    session: &Session,
    config: &Config,
    canaries: Option<&Canaries>,
    depth: ProbeDepth,
) -> Result<ProbeReport, Fault> {
    let begun = Instant::now();
    let info = library.our_token(slot, config)?;
    let mut table = Table::default();
    abilities::try_all(&mut table, session, &info, config);
    Attacks::new(library, slot, config, canaries, &mut table).run(session, depth);
    Ok(ProbeReport {
        token_label: config.token_label.clone(),
        model: info.model().to_owned(),
        rows: table.0,
        elapsed_ms: millis(begun.elapsed()),
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The table while it is filled.
#[derive(Default)]
pub(super) struct Table(Vec<ProbeRow>);

impl Table {
    fn push(&mut self, row: ProbeRow) {
        step();
        self.0.push(row);
    }

    /// An ability: works, or why not. `otherwise` is the path if it does not work.
    pub(super) fn ability(
        &mut self,
        what: &str,
        why: &str,
        required: bool,
        outcome: Result<String, Fault>,
        [path, otherwise]: [&str; 2],
    ) {
        let ok = outcome.is_ok();
        self.push(ProbeRow {
            kind: RowKind::Ability,
            what: what.to_owned(),
            outcome: match outcome {
                Ok(told) if told.is_empty() => "works".to_owned(),
                Ok(told) => told,
                Err(fault) => format!("does not: {}", fault.reason()),
            },
            path: if ok { path } else { otherwise }.to_owned(),
            why: why.to_owned(),
            required,
            ok,
        });
    }

    /// The right way, which must work.
    pub(super) fn control<T>(&mut self, what: String, outcome: Result<T, Fault>) {
        self.push(ProbeRow {
            kind: RowKind::Control,
            what,
            ok: outcome.is_ok(),
            outcome: outcome.map_or_else(|fault| fault.reason(), |_| "works".to_owned()),
            path: String::new(),
            why: "shows that the refusals beside it are not by accident".to_owned(),
            required: true,
        });
    }

    /// What a key without our attributes does: told, not judged.
    pub(crate) fn told(&mut self, what: String, why: &str, outcome: String) {
        self.push(ProbeRow {
            kind: RowKind::Control,
            what,
            outcome,
            path: String::new(),
            why: why.to_owned(),
            required: false,
            ok: true,
        });
    }

    /// An attack: the outer error says that it could not even be tried.
    pub(crate) fn attack<T>(
        &mut self,
        what: String,
        why: &str,
        strict: Strict,
        tried: Result<Result<T, Error>, Fault>,
    ) {
        let tried = tried.map(|outcome| outcome.map(|_| false));
        self.attack_unless(what, why, strict, tried);
    }

    /// An attack whose success is harmless if it says `true`: the token took it, and did not obey.
    pub(super) fn attack_unless(
        &mut self,
        what: String,
        why: &str,
        strict: Strict,
        tried: Result<Result<bool, Error>, Fault>,
    ) {
        let (ok, outcome) = match tried {
            Err(fault) => (false, format!("could not be tried: {}", fault.reason())),
            Ok(Ok(true)) => (true, "taken, but the key is as demanded".to_owned()),
            Ok(Ok(false)) => (false, "SUCCEEDED".to_owned()),
            Ok(Err(error)) if by_accident(&error, strict) => {
                (false, format!("inconclusive: {}", ckr(&error)))
            }
            Ok(Err(error)) => (true, format!("refused, {}", ckr(&error))),
        };
        self.push(ProbeRow {
            kind: RowKind::Attack,
            what,
            outcome,
            path: String::new(),
            why: why.to_owned(),
            required: true,
            ok,
        });
    }

    /// A known weakness, told as it is.
    pub(super) fn limit(&mut self, what: &str, why: &str, path: &str, outcome: String) {
        self.push(ProbeRow {
            kind: RowKind::Limit,
            what: what.to_owned(),
            outcome,
            path: path.to_owned(),
            why: why.to_owned(),
            required: false,
            ok: true,
        });
    }
}

/// Whether a general error counts as a refusal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Strict {
    /// The attack is against a rule, and rules have codes of their own.
    Rule,
    /// The attack is against the mathematics: a damaged blob is all that the token can see.
    Maths,
}

/// Errors that say that the attack was not understood, or met a fault, rather than a rule.
fn by_accident(error: &Error, strict: Strict) -> bool {
    let Error::Pkcs11(code, _) = error else { return true };
    match code {
        RvError::GeneralError | RvError::FunctionFailed | RvError::DeviceError => {
            strict == Strict::Rule
        }
        // Not CKR_ARGUMENTS_BAD: some tokens refuse a class or an attribute so. Not
        // CKR_USER_NOT_LOGGED_IN: so they refuse what only the officer may; see `answered`.
        RvError::MechanismParamInvalid
        | RvError::CryptokiNotInitialized
        | RvError::SessionHandleInvalid
        | RvError::SessionClosed
        | RvError::SessionReadOnly
        | RvError::OperationActive
        | RvError::ObjectHandleInvalid
        | RvError::TokenNotPresent
        | RvError::DeviceRemoved
        | RvError::DeviceMemory
        | RvError::HostMemory => true,
        _ => false,
    }
}
