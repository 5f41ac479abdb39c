//! A meter as it comes in, and what becomes of it.

use super::value::KeyValue;
use crate::lifecycle::refusal::Refusal;
use kms_core::{KeyKind, MeterId, MeterPolicy, Protection, SecuritySetup, SystemTitle};

/// A meter as it comes in.
#[derive(Clone, Debug)]
pub struct NewMeter {
    /// The operator's name.
    pub meter_id: MeterId,
    /// Its name on the wire.
    pub system_title: SystemTitle,
    /// COSEM logical device name; may be empty; at most 64 bytes.
    pub logical_device_name: String,
    /// In order: several of one (setup, kind) become versions, the last one active.
    pub keys: Vec<NewKey>,
    /// `None`: the default for a new meter, no change for a known one.
    pub policy: Option<MeterPolicy>,
}

/// A key as it comes in.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The kind of key.
    pub kind: KeyKind,
    /// The security setup that it belongs to.
    pub setup: SecuritySetup,
    /// `None`: the kind's default.
    pub protection: Option<Protection>,
    /// Its bytes, or what they are wrapped in.
    pub value: KeyValue,
}

/// The rules of an import.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportRules {
    /// Accept all-zero and published test keys.
    pub allow_test_keys: bool,
    /// A value that the meter does not know becomes a new version.
    pub add_versions: bool,
    /// Check everything, change nothing.
    pub dry_run: bool,
    /// A known meter gets the policy of its line.
    pub change_policy: bool,
}

/// The effect of an accepted line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imported {
    /// The meter is new.
    Created,
    /// The meter was known; keys or policy changed.
    Updated,
    /// Nothing in the line was news.
    Unchanged,
}

/// One line's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportResult {
    /// Accepted or refused.
    pub outcome: Result<Imported, Refusal>,
    /// Things worth a look.
    pub warnings: Vec<String>,
}

impl NewKey {
    /// The protection that it is to have.
    pub(in crate::lifecycle) fn wanted_protection(&self) -> Protection {
        self.protection.unwrap_or_else(|| self.kind.default_protection())
    }
}

impl ImportResult {
    /// A line that was accepted.
    pub(super) fn accepted(outcome: Imported, warnings: Vec<String>) -> Self {
        Self { outcome: Ok(outcome), warnings }
    }

    /// A line that was refused.
    pub(super) fn refused(refusal: Refusal) -> Self {
        Self { outcome: Err(refusal), warnings: Vec::new() }
    }
}
