//! Keys' lives: meters come, bring keys, and go.

use crate::domain::{
    BlockNo, ClearKey, KeyKind, MeterId, MeterPolicy, MeterRecord, Protection, SecuritySetup,
    SystemTitle,
};

/// What `lifecycle` may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Accept key bytes in clear. Off but in demonstrations and development.
    pub allow_clear: bool,
}

/// A meter as it comes in.
#[derive(Debug)]
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
#[derive(Debug)]
pub struct NewKey {
    /// What it is for.
    pub kind: KeyKind,
    /// Whose security setup.
    pub setup: SecuritySetup,
    /// `None`: the kind's default.
    pub protection: Option<Protection>,
    /// Its bytes.
    pub value: ClearKey,
}

/// What an import lets through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportRules {
    /// Accept all-zero and published test keys.
    pub allow_test_keys: bool,
    /// A value that the meter does not know becomes a new version.
    pub add_versions: bool,
    /// Check everything, change nothing.
    pub dry_run: bool,
}

/// What an accepted line did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imported {
    /// The meter is new.
    Created,
    /// The meter was known; keys or policy changed.
    Updated,
    /// Nothing in the line was news.
    Unchanged,
}

/// Why a line was refused. `code` is for machines, `reason` says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// A word as in `google.rpc.ErrorInfo`, such as `TEST_KEY`.
    pub code: &'static str,
    /// One sentence with the way out.
    pub reason: String,
}

/// One line's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportResult {
    /// Accepted or refused.
    pub outcome: Result<Imported, Refusal>,
    /// Things worth a look.
    pub warnings: Vec<String>,
}

/// A meter as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterView {
    /// Its record.
    pub record: MeterRecord,
    /// The block that holds it.
    pub block: BlockNo,
}

/// Why a call about meters failed as a whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LifecycleError {
    /// No such meter.
    #[error("there is no meter {0}")]
    NotFound(String),
    /// The meter is there already.
    #[error("meter {0} exists already; use `import` to add to it")]
    AlreadyExists(String),
    /// The input is at fault.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Other writers were faster too many times.
    #[error("the block is busy; try again")]
    Busy,
    /// Token or database can't be reached.
    #[error("{reason}")]
    Unavailable {
        /// What is not reachable.
        reason: String,
    },
    /// Stored data failed its authentication.
    #[error("{reason}")]
    Damaged {
        /// What was found where.
        reason: String,
    },
}

/// The verbs.
pub struct Lifecycle {
    config: Config,
}

impl Lifecycle {
    /// Creates one meter; the warnings are worth a look. Refused if it exists.
    pub async fn create(
        &self,
        meter: NewMeter,
        _rules: ImportRules,
    ) -> Result<(MeterView, Vec<String>), LifecycleError> {
        let _ = self.config;
        Err(LifecycleError::NotFound(meter.meter_id.to_string()))
    }

    /// The meter with this id.
    pub async fn get(&self, id: &MeterId) -> Result<MeterView, LifecycleError> {
        Err(LifecycleError::NotFound(id.to_string()))
    }

    /// The meter with this title.
    pub async fn get_by_title(&self, title: &SystemTitle) -> Result<MeterView, LifecycleError> {
        Err(LifecycleError::NotFound(format!("{title:?}")))
    }

    /// Meters in order of id after `after`, at most `limit`.
    pub async fn list(
        &self,
        _after: Option<&MeterId>,
        _limit: u32,
    ) -> Result<Vec<MeterView>, LifecycleError> {
        Ok(Vec::new())
    }

    /// Deletes a meter; a tombstone stays.
    pub async fn delete(&self, id: &MeterId) -> Result<(), LifecycleError> {
        Err(LifecycleError::NotFound(id.to_string()))
    }

    /// Imports lines: one result each, in order. A line's refusal leaves the others alone.
    pub async fn import(
        &self,
        _meters: Vec<NewMeter>,
        _rules: ImportRules,
    ) -> Result<Vec<ImportResult>, LifecycleError> {
        Ok(Vec::new())
    }
}
