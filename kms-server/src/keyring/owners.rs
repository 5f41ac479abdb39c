//! The keyring's owners, put together: each can do its own, and hands nothing on.

use std::sync::Arc;

use super::{
    adopting::Adopter,
    config::Config,
    counting::Counting,
    dates::Dates,
    following::Following,
    identities::Identities,
    known_states::KnownStates,
    local::LocalKeys,
    mending::Mending,
    opening::{Below, Opener},
    overview::Overview,
    patrol::Patrol,
    proving::Prover,
    reader::Reader,
    records::Records,
    renewing::Renewer,
    resident::{Resident, arena::ArenaError},
    roles::Roles,
    rotator::SecretRotator,
    site_keks::SiteKekKeeper,
    taking::Taker,
    warm_up::WarmUp,
    writing::Writer,
};
use crate::store::AuditedStore;
use kms_core::DomainRecord;

/// All open blocks, by what may be done with them.
pub struct Keyring {
    /// For decryption.
    pub reader: Reader,
    /// Meters' records, verified.
    pub records: Arc<Records>,
    /// Changes.
    pub writer: Arc<Writer>,
    /// A peer's blocks, taken over.
    pub adopter: Arc<Adopter>,
    /// Proofs that blocks open here.
    pub prover: Arc<Prover>,
    /// Keys of sealed import files.
    pub taker: Arc<Taker>,
    /// Keys of rows that are no records.
    pub local: Arc<LocalKeys>,
    /// The identities of keys.
    pub identities: Arc<Identities>,
    /// Who writes.
    pub roles: Arc<Roles>,
    /// What is due of meters' keys.
    pub dates: Arc<Dates>,
    /// Rotates blocks' secrets.
    pub rotator: Arc<SecretRotator>,
    /// Which site KEKs are in use.
    pub keks: Arc<SiteKekKeeper>,
    /// Counter lines, and marks.
    pub counting: Arc<Counting>,
    /// For the status.
    pub overview: Arc<Overview>,
    /// Keeps what is resident at what is stored.
    pub refresher: Arc<Refresher>,
}

impl Keyring {
    /// An empty keyring: no block is open yet. Blocks are read from `below`; they change only through
    /// `commits`, together with what the audit log says of it.
    pub fn new(
        config: Config,
        domain: DomainRecord,
        below: Below,
        commits: Arc<dyn AuditedStore>,
    ) -> Result<Self, ArenaError> {
        let shared = below.store.follow().is_some();
        let resident = Resident::new(domain.blocks, config.arena_bytes, config.allow_unlocked)?;
        let identities = Arc::new(Identities::new(domain.domain));
        let states = KnownStates::new(config.block_states_bytes);
        let opener = Arc::new(Opener::new(domain, resident, states, below));
        let renewer = Arc::new(Renewer::new(Arc::clone(&opener)));
        let records = Arc::new(Records::new(Arc::clone(&opener)));
        let patrol = Arc::new(Patrol::new(Arc::clone(&opener), shared));
        let warm_up = Arc::new(WarmUp::new(Arc::clone(&opener), config.warm_up_parallelism));
        let refresher = Refresher {
            following: Following::new(
                Arc::clone(&opener),
                Arc::clone(&renewer),
                Arc::clone(&patrol),
            ),
            mending: Mending::new(Arc::clone(&opener), Arc::clone(&warm_up), patrol),
            warm_up: Arc::clone(&warm_up),
        };
        let reader =
            Reader::new(Arc::clone(&opener), Arc::clone(&records), Arc::clone(&renewer), shared);
        let adopter = Adopter::new(Arc::clone(&opener), Arc::clone(&commits));
        let prover = Prover::new(Arc::clone(&opener));
        let roles = Arc::new(Roles::new(Arc::clone(&opener), Arc::clone(&commits)));
        let writer = Writer::new(Arc::clone(&opener), commits, Arc::clone(&identities));
        let writer = Arc::new(writer);
        let rotator =
            SecretRotator::new(Arc::clone(&opener), Arc::clone(&writer), Arc::clone(&roles));
        Ok(Self {
            reader,
            records,
            writer,
            rotator: Arc::new(rotator),
            adopter: Arc::new(adopter),
            prover: Arc::new(prover),
            taker: Arc::new(Taker::new(Arc::clone(&opener))),
            local: Arc::new(LocalKeys::new(Arc::clone(&opener))),
            identities,
            roles,
            dates: Arc::new(Dates::new(Arc::clone(&opener))),
            counting: Arc::new(Counting::new(Arc::clone(&opener))),
            keks: Arc::clone(&opener.keks),
            overview: Arc::new(Overview::new(opener, renewer, warm_up)),
            refresher: Arc::new(refresher),
        })
    }
}

/// Keeps what is resident at what is stored, in the background.
pub struct Refresher {
    warm_up: Arc<WarmUp>,
    following: Following,
    mending: Mending,
}

impl Refresher {
    /// Opens every block once. When the arena is full, the others are verified only. Waits for as long as
    /// the database is refused as not the newest.
    pub async fn warm_up(&self) {
        self.warm_up.run().await;
    }

    /// Runs until the process ends: keeps resident blocks at what other servers write. Ends at once where
    /// there can't be any.
    pub async fn follow(&self) {
        self.following.run().await;
    }

    /// Runs until the process ends: tries again what failed for a passing reason, and reads again the
    /// blocks whose last commit ended unknown.
    pub async fn mend(&self) {
        self.mending.run().await;
    }
}
