//! A line of an import that is under way.

use super::meter::{ImportResult, NewMeter};
use kms_core::{Fingerprint, KeyKind, audit::Subject};

/// A line that is under way.
pub(super) struct Line {
    pub(super) meter: Option<NewMeter>,
    pub(super) result: Option<ImportResult>,
    pub(super) subject: Subject,
    pub(super) keys_added: usize,
    /// GUEK and KEK values that it added, for the search for other meters that have them.
    pub(super) added: Vec<(KeyKind, Fingerprint)>,
}

impl Line {
    /// A line that is to be staged.
    pub(super) fn of(meter: NewMeter, subject: Subject) -> Self {
        Self { meter: Some(meter), result: None, subject, keys_added: 0, added: Vec::new() }
    }

    /// A line that has its result.
    pub(super) fn done(result: ImportResult, subject: Subject) -> Self {
        Self { meter: None, result: Some(result), subject, keys_added: 0, added: Vec::new() }
    }
}
