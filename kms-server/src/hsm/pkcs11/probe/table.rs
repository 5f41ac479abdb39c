//! The table while it is filled: each kind of row is judged in one way.

use cryptoki::error::{Error, RvError};

use super::report::{ProbeRow, RowKind};
use crate::hsm::pkcs11::{
    connection::library::step,
    failure::{Failure, ckr},
};

/// The table while it is filled.
#[derive(Default)]
pub(crate) struct Table(Vec<ProbeRow>);

impl Table {
    /// All rows, in the order of trying.
    pub(crate) fn into_rows(self) -> Vec<ProbeRow> {
        self.0
    }

    fn push(&mut self, row: ProbeRow) {
        step();
        self.0.push(row);
    }

    /// An ability: works, or why not. `otherwise` is the path if it does not work.
    pub(crate) fn ability(
        &mut self,
        what: &str,
        why: &str,
        required: bool,
        outcome: Result<String, Failure>,
        [path, otherwise]: [&str; 2],
    ) {
        let ok = outcome.is_ok();
        self.push(ProbeRow {
            kind: RowKind::Ability,
            what: what.to_owned(),
            outcome: match outcome {
                Ok(told) if told.is_empty() => "works".to_owned(),
                Ok(told) => told,
                Err(failure) => format!("does not: {}", failure.reason()),
            },
            path: if ok { path } else { otherwise }.to_owned(),
            why: why.to_owned(),
            required,
            ok,
        });
    }

    /// The right way, which must work.
    pub(crate) fn control<T>(&mut self, what: String, outcome: Result<T, Failure>) {
        self.push(ProbeRow {
            kind: RowKind::Control,
            what,
            ok: outcome.is_ok(),
            outcome: outcome.map_or_else(|failure| failure.reason(), |_| "works".to_owned()),
            path: String::new(),
            why: "shows that the refusals beside it are not by accident".to_owned(),
            required: true,
        });
    }

    /// The behaviour of a key without our attributes: told, not judged.
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
        tried: Result<Result<T, Error>, Failure>,
    ) {
        let tried = tried.map(|outcome| outcome.map(|_| false));
        self.attack_unless(what, why, strict, tried);
    }

    /// An attack whose success is harmless if it says `true`: the token took it, and did not obey.
    pub(crate) fn attack_unless(
        &mut self,
        what: String,
        why: &str,
        strict: Strict,
        tried: Result<Result<bool, Error>, Failure>,
    ) {
        let (ok, outcome) = match tried {
            Err(failure) => (false, format!("could not be tried: {}", failure.reason())),
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
    pub(crate) fn limit(&mut self, what: &str, why: &str, path: &str, outcome: String) {
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
pub(crate) enum Strict {
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
        // Not CKR_ARGUMENTS_BAD: `Quirk::OtherRefusals`. Not
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
