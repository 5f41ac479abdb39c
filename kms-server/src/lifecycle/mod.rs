//! Keys' lives: meters come, bring keys, and go.
//!
//! An import is checked line by line ([`checks`]), laid beside what is known of the meter
//! ([`merging`]) and of its key values ([`values`]), and committed for all of its blocks at once
//! ([`importing`]). What a sealed file must show before the token takes its keys is in [`sealed`], what
//! people decide about one meter in [`standing`].

mod burying;
mod checks;
mod importing;
mod listing;
mod merging;
mod sealed;
mod standing;
mod value;
mod values;

use std::{sync::Arc, time::Duration};

use tokio::sync::OnceCell;

pub use checks::{KEYS_MAX, LOGICAL_DEVICE_NAME_MAX};
pub use listing::{DamagedMeter, Page};
pub use sealed::{BadSigner, SealedChunk, SealedFile, SealedHeader, Signers};
pub use standing::Readmitted;
pub use value::{KeyValue, TakenValue};

use crate::{
    hsm::ImportKey,
    keyring::{Doubt, Found, Keyring, KeyringError},
    store::{ReadStore, StoreError},
};
use kms_core::{
    BlockNo, FormerKey, KeyKind, MeterId, MeterPolicy, MeterRecord, Protection, Record,
    SecuritySetup, SystemTitle,
    audit::{AuditOutcome, AuditedCall, Subject},
    ports::{Clock, Randomness},
    record::Tombstone,
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
    /// Its bytes, or what they are wrapped in.
    pub value: KeyValue,
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
    /// A known meter gets the policy of its line.
    pub change_policy: bool,
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
    /// There is nothing to bury.
    #[error(
        "the record of the meter with system title {title} in block {block} is not damaged: if a fault names \
         another block, bury it there (`ami-tool meter bury --system-title {title} --block …`)"
    )]
    NotDamaged {
        /// Whose.
        title: SystemTitle,
        /// Where it was looked for.
        block: BlockNo,
    },
    /// The input is at fault.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Other writers were faster too many times.
    #[error("the block is busy; try again")]
    Busy,
    /// The database is a standby.
    #[error(
        "this server's database is a standby and takes no changes: call a server at its primary"
    )]
    ReadOnly,
    /// The database is not the newest that is known, so that no block is used.
    #[error("{reason}")]
    NotNewest {
        /// What is missing, and what to do.
        reason: String,
    },
    /// No room for the meter's block.
    #[error("{reason}")]
    ArenaFull {
        /// Which setting to raise.
        reason: String,
    },
    /// A meter is not known, and not all blocks are open yet.
    #[error("{reason}")]
    NotAllOpen {
        /// Which meter.
        reason: String,
    },
    /// Token or database can't be reached.
    #[error("{reason}")]
    Unavailable {
        /// What is not reachable.
        reason: String,
    },
    /// The audit log can't be written: then nothing is done.
    #[error("the audit log can't be written: {reason}")]
    AuditNotWritable {
        /// Why not.
        reason: String,
    },
    /// Stored data failed its authentication.
    #[error("{reason}")]
    Damaged {
        /// What was found where.
        reason: String,
    },
}

impl From<KeyringError> for LifecycleError {
    fn from(error: KeyringError) -> Self {
        let reason = error.to_string();
        match error {
            KeyringError::Store(StoreError::Conflict(_)) => Self::Busy,
            KeyringError::Store(StoreError::ReadOnly) => Self::ReadOnly,
            KeyringError::Store(StoreError::AuditNotWritten { .. } | StoreError::AuditMoved(_)) => {
                Self::AuditNotWritable { reason }
            }
            KeyringError::RolledBack(_) => Self::NotNewest { reason },
            KeyringError::ArenaFull { .. } => Self::ArenaFull { reason },
            error if error.is_transient() => Self::Unavailable { reason },
            KeyringError::Store(StoreError::Taken { .. }) => Self::Busy,
            _ => Self::Damaged { reason },
        }
    }
}

impl From<StoreError> for LifecycleError {
    fn from(error: StoreError) -> Self {
        KeyringError::Store(error).into()
    }
}

/// How often a change is decided anew after another writer was first.
const TRIES: u32 = 8;
/// The longest pause before the second try; each further one may be twice as long.
const PAUSE: Duration = Duration::from_millis(2);

/// The verbs.
pub struct Lifecycle {
    config: Config,
    keyring: Arc<Keyring>,
    store: Arc<dyn ReadStore>,
    clock: Arc<dyn Clock>,
    randomness: Arc<dyn Randomness>,
    signers: Signers,
    import_key: OnceCell<ImportKey>,
    known_kinds: values::KnownKinds,
}

impl Lifecycle {
    /// Puts the verbs on top of their parts. `store` finds meters; all that is read or written of
    /// them goes through the keyring, which verifies it.
    pub fn new(
        config: Config,
        keyring: Arc<Keyring>,
        store: Arc<dyn ReadStore>,
        clock: Arc<dyn Clock>,
        randomness: Arc<dyn Randomness>,
    ) -> Self {
        Self {
            config,
            keyring,
            store,
            clock,
            randomness,
            signers: Signers::default(),
            import_key: OnceCell::new(),
            known_kinds: values::KnownKinds::default(),
        }
    }

    /// Takes sealed files of these signers. Without, none is taken.
    #[must_use]
    pub fn with_signers(mut self, signers: Signers) -> Self {
        self.signers = signers;
        self
    }

    /// Creates one meter; the warnings are worth a look. Refused if it exists. What is done or
    /// [`LifecycleError::Refused`] is in the audit log as `call` when this returns; what failed
    /// otherwise is for the caller to record.
    pub async fn create(
        &self,
        call: &AuditedCall,
        meter: NewMeter,
        rules: ImportRules,
    ) -> Result<(MeterView, Vec<String>), LifecycleError> {
        let (id, title) = (meter.meter_id.clone(), meter.system_title);
        match self.keyring.find(&id).await? {
            Found::At(_) => return Err(LifecycleError::AlreadyExists(id.to_string())),
            Found::Unsure(reason) => return Err(LifecycleError::Damaged { reason }),
            Found::Nowhere { .. } => {}
        }
        // An index that has lost the meter must not let it be made a second time.
        if let Some(Record::Meter(known)) = self.keyring.read(&title).await? {
            return Err(LifecycleError::AlreadyExists(known.meter_id.to_string()));
        }
        let results = self.import(call, vec![meter], rules).await?;
        let Some(ImportResult { outcome, warnings }) = results.into_iter().next() else {
            return Err(LifecycleError::Busy);
        };
        outcome?;
        if rules.dry_run {
            return Err(LifecycleError::Refused(Refusal {
                code: "DRY_RUN",
                reason: "the meter could be created; nothing was changed".to_owned(),
            }));
        }
        Ok((self.get_by_title(&title).await?, warnings))
    }

    /// The meter with this id.
    pub async fn get(&self, id: &MeterId) -> Result<MeterView, LifecycleError> {
        let title = self.title_of(id).await?;
        let view = self.get_by_title(&title).await?;
        // Deleted, and made anew under another id, between the two.
        if view.record.meter_id == *id {
            Ok(view)
        } else {
            Err(LifecycleError::NotFound(id.to_string()))
        }
    }

    /// What the index says of a meter that its record does not, if so: a change of the meter can't be
    /// written beside it. Named as a fault.
    async fn index_lie(
        &self,
        id: &MeterId,
        title: &SystemTitle,
    ) -> Result<Option<String>, LifecycleError> {
        let by_id = self.store.find_meter(id).await?.map(|place| (id.clone(), place.system_title));
        let by_title = self.store.find_title(title).await?;
        let by_title = by_title.map(|place| (place.meter_id, *title));
        for (known, at) in by_id.into_iter().chain(by_title) {
            if (&known, &at) != (id, title)
                && let Found::Unsure(reason) = self.keyring.confirm(&known, at).await?
            {
                return Ok(Some(reason));
            }
        }
        Ok(None)
    }

    /// Its record has said so: an index only says where to look.
    async fn title_of(&self, id: &MeterId) -> Result<SystemTitle, LifecycleError> {
        match self.keyring.find(id).await? {
            Found::At(title) => Ok(title),
            Found::Unsure(reason) => Err(LifecycleError::Damaged { reason }),
            Found::Nowhere { but: None } => Err(LifecycleError::NotFound(id.to_string())),
            Found::Nowhere { but: Some(doubt) } => {
                let reason = format!("no meter {id} is known, {doubt}");
                Err(match doubt {
                    Doubt::NotNewest => LifecycleError::NotNewest { reason },
                    Doubt::Damage => LifecycleError::Damaged { reason },
                    Doubt::NotAllOpen => LifecycleError::NotAllOpen { reason },
                    Doubt::NoRoom => LifecycleError::ArenaFull { reason },
                })
            }
        }
    }

    /// The meter with this title.
    pub async fn get_by_title(&self, title: &SystemTitle) -> Result<MeterView, LifecycleError> {
        match self.keyring.read(title).await? {
            Some(Record::Meter(record)) => {
                Ok(MeterView { record, block: self.keyring.block_of(title) })
            }
            Some(Record::Tombstone(_)) | None => {
                Err(LifecycleError::NotFound(format!("with system title {title}")))
            }
        }
    }

    /// Deletes a meter; a tombstone with its keys' fingerprints stays. A deletion is in the audit log as
    /// `call` when this returns; a failure is for the caller to record.
    pub async fn delete(&self, call: &AuditedCall, id: &MeterId) -> Result<(), LifecycleError> {
        for attempt in 0..TRIES {
            match self.delete_once(call, id).await {
                Err(LifecycleError::Busy) => self.step_back(attempt).await,
                done => return done,
            }
        }
        Err(LifecycleError::Busy)
    }

    /// Lets the other writer get on. Two servers in each other's way come back at different times.
    async fn step_back(&self, attempt: u32) {
        let mut part = [u8::MAX];
        // Without randomness the pause is the longest one.
        let _ = self.randomness.fill(&mut part);
        tokio::time::sleep(PAUSE * 2u32.saturating_pow(attempt) * u32::from(part[0]) / 255).await;
    }

    async fn delete_once(&self, call: &AuditedCall, id: &MeterId) -> Result<(), LifecycleError> {
        let not_found = || LifecycleError::NotFound(id.to_string());
        let title = self.title_of(id).await?;
        let mut changes = self.keyring.change(&[self.keyring.block_of(&title)]).await?;
        let change = changes.first_mut().ok_or_else(not_found)?;
        let Some(Record::Meter(meter)) = change.record(&title)? else {
            return Err(not_found());
        };
        if meter.meter_id != *id {
            return Err(not_found());
        }
        let now_ms = self.clock.unix_ms();
        let block = Some(change.block());
        let subject = Subject { system_title: Some(title), block, ..Subject::meter(id) };
        let entry = call.entry(now_ms, subject, AuditOutcome::Done);
        change.put(Record::Tombstone(Tombstone {
            keys: FormerKey::of(&meter),
            meter_id: Some(meter.meter_id),
            system_title: title,
            deleted_ms: now_ms,
            changed_by: meter.changed_by,
            readmitted_ms: None,
        }));
        Ok(self.keyring.commit(changes, vec![entry]).await?)
    }
}
