//! The verbs' common ground: what they stand on, and how a meter is found.

use std::{sync::Arc, time::Duration};

use tokio::sync::OnceCell;

use super::{
    campaigns::{Campaigns, Schedule},
    config::Config,
    error::LifecycleError,
    import::{known_kinds::KnownKinds, signers::Signers},
    rotation::ProvedKeys,
    view::MeterView,
};
use crate::{
    hsm::ImportKey,
    keyring::{Counting, Dates, Doubt, Found, Identities, Keyring, Records, Taker, Writer},
    store::ReadStore,
};
use kms_core::{
    MeterId, Record, SystemTitle,
    block::BlockMark,
    ports::{Clock, NoOtherSite, ProofGate, Randomness, Replicated, ReplicationGate},
    profile::Profiles,
};

/// The most tries of a change: it is decided anew after another writer was first.
pub(super) const TRIES: u32 = 8;
/// The longest pause before the second try; each further one may be twice as long.
const PAUSE: Duration = Duration::from_millis(2);

/// The verbs.
pub struct Lifecycle {
    pub(super) config: Config,
    pub(super) records: Arc<Records>,
    pub(super) writer: Arc<Writer>,
    pub(super) taker: Arc<Taker>,
    pub(super) identities: Arc<Identities>,
    pub(super) store: Arc<dyn ReadStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) randomness: Arc<dyn Randomness>,
    pub(super) signers: Signers,
    pub(super) import_key: OnceCell<ImportKey>,
    pub(super) known_kinds: KnownKinds,
    pub(super) profiles: Arc<Profiles>,
    gate: Arc<dyn ReplicationGate>,
    pub(super) counting: Arc<Counting>,
    pub(super) dates: Arc<Dates>,
    pub(super) proofs: Arc<dyn ProofGate>,
    pub(super) proved: ProvedKeys,
    pub(super) campaigns: Campaigns,
    pub(super) schedules: Arc<[Schedule]>,
}

impl Lifecycle {
    /// Puts the verbs on top of their parts. `store` finds meters; all that is read or written of
    /// them goes through the keyring, which verifies it.
    pub fn new(
        config: Config,
        keyring: &Keyring,
        store: Arc<dyn ReadStore>,
        clock: Arc<dyn Clock>,
        randomness: Arc<dyn Randomness>,
    ) -> Self {
        Self {
            config,
            records: Arc::clone(&keyring.records),
            writer: Arc::clone(&keyring.writer),
            taker: Arc::clone(&keyring.taker),
            identities: Arc::clone(&keyring.identities),
            store,
            clock,
            randomness,
            signers: Signers::default(),
            import_key: OnceCell::new(),
            known_kinds: KnownKinds::default(),
            profiles: Arc::default(),
            gate: Arc::new(NoOtherSite),
            counting: Arc::clone(&keyring.counting),
            dates: Arc::clone(&keyring.dates),
            proofs: Arc::new(NoOtherSite),
            proved: ProvedKeys::default(),
            campaigns: Campaigns::default(),
            schedules: Arc::default(),
        }
    }

    /// Has this one prove that the other site has what is staged. Without, there is no other site.
    #[must_use]
    pub fn with_proofs(mut self, proofs: Arc<dyn ProofGate>) -> Self {
        self.proofs = proofs;
        self
    }

    /// Campaigns are driven under this node's name; these begin by themselves.
    #[must_use]
    pub fn with_campaigns(mut self, node: String, schedules: Vec<Schedule>) -> Self {
        self.campaigns = Campaigns::of_node(node);
        self.schedules = schedules.into();
        self
    }

    /// Meters may name these device profiles. Without, none.
    #[must_use]
    pub fn with_profiles(mut self, profiles: Arc<Profiles>) -> Self {
        self.profiles = profiles;
        self
    }

    /// Asks this gate whether the other site has what was changed. Without, there is no other site.
    #[must_use]
    pub fn with_gate(mut self, gate: Arc<dyn ReplicationGate>) -> Self {
        self.gate = gate;
        self
    }

    /// Whether the other site has these states, which a verb of ours led to. For when it is done: nothing is held
    /// while the other site is asked.
    pub async fn replicated(&self, states: &[BlockMark]) -> Replicated {
        self.gate.replicated(states).await
    }

    /// Whether this site changes blocks now; the error of every change, else.
    pub fn check_writes(&self) -> Result<(), LifecycleError> {
        Ok(self.writer.check_writes()?)
    }

    /// Takes sealed files of these signers. Without, none is taken.
    #[must_use]
    pub fn with_signers(mut self, signers: Signers) -> Self {
        self.signers = signers;
        self
    }

    /// The index's contradiction of a meter's record, as a sentence, if there is one: a change of the meter can't be
    /// written beside it. Named as a fault.
    pub(super) async fn index_lie(
        &self,
        id: &MeterId,
        title: &SystemTitle,
    ) -> Result<Option<String>, LifecycleError> {
        let by_id = self.store.find_meter(id).await?.map(|place| (id.clone(), place.system_title));
        let by_title = self.store.find_title(title).await?;
        let by_title = by_title.map(|place| (place.meter_id, *title));
        for (known, at) in by_id.into_iter().chain(by_title) {
            if (&known, &at) != (id, title)
                && let Found::Unsure(reason) = self.records.confirm(&known, at).await?
            {
                return Ok(Some(reason));
            }
        }
        Ok(None)
    }

    /// Its record has said so: an index only says where to look.
    pub(super) async fn title_of(&self, id: &MeterId) -> Result<SystemTitle, LifecycleError> {
        match self.records.find(id).await? {
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
        match self.records.read(title).await? {
            Some(Record::Meter(record)) => {
                Ok(MeterView { record, block: self.records.block_of(title) })
            }
            Some(Record::Tombstone(_) | Record::Line(_) | Record::Fact(_)) | None => {
                Err(LifecycleError::NotFound(format!("with system title {title}")))
            }
        }
    }

    /// Lets the other writer get on. Two servers in each other's way come back at different times.
    pub(super) async fn step_back(&self, attempt: u32) {
        let mut part = [u8::MAX];
        // Without randomness the pause is the longest one.
        let _ = self.randomness.fill(&mut part);
        tokio::time::sleep(PAUSE * 2u32.saturating_pow(attempt) * u32::from(part[0]) / 255).await;
    }
}
