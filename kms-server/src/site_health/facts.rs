//! The parts' own answers about themselves, each within its time.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use crate::{
    audit::Audit,
    hsm::TokenStatus,
    keyring::{KeyringStatus, Overview},
    store::{ReadStore, StandbyLag, StoreError},
};

/// The longest time for one answer of the database. Short: somebody asks because something hangs.
const STORE_PATIENCE: Duration = Duration::from_millis(500);

/// The source of the token's status: gives what is known without asking the device.
pub type TokenStatusSource = Arc<dyn Fn() -> TokenStatus + Send + Sync>;

/// The parts that are asked.
#[derive(Clone)]
pub struct Looks {
    /// Of the token.
    pub token: TokenStatusSource,
    /// The database.
    pub store: Arc<dyn ReadStore>,
    /// Open blocks.
    pub keyring: Arc<Overview>,
    /// The audit log.
    pub audit: Arc<Audit>,
}

/// Their answers.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Of the token.
    pub token: TokenStatus,
    /// Of the database.
    pub store: StoreFacts,
    /// Of the keyring.
    pub keyring: KeyringStatus,
    /// The fault of the audit log.
    pub audit_fault: Option<String>,
    /// The faults, now or soon, of this server's certificate and of its clients' revocation lists.
    pub certificate_faults: Vec<String>,
    /// What is wrong between this site and the other one.
    pub replication_faults: Vec<String>,
    /// What is wrong with receive floors.
    pub floor_faults: Vec<String>,
    /// What is wrong with transmit counters.
    pub counter_faults: Vec<String>,
}

/// Of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFacts {
    /// `sqlite` or `postgresql`.
    pub kind: &'static str,
    /// The number of its meters; 0 where it was not counted.
    pub meters: u64,
    /// Why it is of no use now, or of half.
    pub fault: Option<StoreFault>,
    /// It follows another one.
    pub standby: Option<StandbyLag>,
}

/// A fault of the database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreFault {
    /// It answered with a failure.
    #[error("{0}")]
    Failed(String),
    /// It did not answer.
    #[error("the database did not answer within {} ms", STORE_PATIENCE.as_millis())]
    Silent,
    /// It reads and takes no changes, although it is nobody's standby.
    #[error("{0}")]
    ReadOnly(String),
}

impl StoreFault {
    /// Whether it answers all the same.
    pub fn answers(&self) -> bool {
        match self {
            Self::Failed(_) | Self::Silent => false,
            Self::ReadOnly(_) => true,
        }
    }
}

impl Looks {
    /// All that can be known. The meters are counted, which takes a large database a moment.
    pub async fn all(&self) -> Facts {
        self.with(StoreFacts::all(self.store.as_ref()).await)
    }

    /// The same, without what takes time: for who asks again and again.
    pub async fn short(&self) -> Facts {
        self.with(StoreFacts::short(self.store.as_ref()).await)
    }

    fn with(&self, store: StoreFacts) -> Facts {
        Facts {
            token: (self.token)(),
            store,
            keyring: self.keyring.status(),
            audit_fault: self.audit.status().fault,
            certificate_faults: Vec::new(),
            replication_faults: Vec::new(),
            floor_faults: Vec::new(),
            counter_faults: Vec::new(),
        }
    }
}

impl StoreFacts {
    async fn all(store: &dyn ReadStore) -> Self {
        let counted = in_time(store.count_meters()).await;
        let (meters, fault) = match counted {
            Ok(meters) => (meters, None),
            Err(fault) => (0, Some(fault)),
        };
        let mut facts = Self { kind: store.kind(), meters, fault, standby: None };
        if facts.fault.is_some() {
            return facts;
        }
        let lag = timeout(STORE_PATIENCE, store.standby_lag()).await;
        if let Ok(Ok(None)) = lag
            && let Ok(Err(error @ StoreError::ReadOnlyPrimary)) =
                timeout(STORE_PATIENCE, store.takes_changes()).await
        {
            facts.fault = Some(StoreFault::ReadOnly(error.to_string()));
        }
        facts.standby = lag.ok().and_then(Result::ok).flatten();
        facts
    }

    async fn short(store: &dyn ReadStore) -> Self {
        let fault = match in_time(store.domain()).await {
            Ok(Some(_)) => None,
            Ok(None) => Some(StoreFault::Failed("the database has no key domain".to_owned())),
            Err(fault) => Some(fault),
        };
        Self { kind: store.kind(), meters: 0, fault, standby: None }
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreFault> {
    match timeout(STORE_PATIENCE, answer).await {
        Ok(answer) => answer.map_err(|error| StoreFault::Failed(error.to_string())),
        Err(_) => Err(StoreFault::Silent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        Holder, IndexedMeter, StoredBlock,
        keks::KekRows,
        papers::Strange,
        sites::{AloneLock, BlockChanges, DivergenceAsked, Divergent, FollowerLock, RoleRow},
        whole::RestoreState,
    };
    use async_trait::async_trait;
    use kms_core::{
        BlockNo, DomainRecord, Epoch, Fingerprint, Head, MeterId, Position, SystemTitle,
        site::{keks::SignedSiteKeks, peer::SignedPeer, role::SignedRoleRecord},
    };

    /// A database that only counts, in its way.
    enum Store {
        Well,
        Broken,
        Hanging,
    }

    #[async_trait]
    impl KekRows for Store {
        async fn site_keks(&self) -> Result<Vec<SignedSiteKeks>, StoreError> {
            Ok(Vec::new())
        }
    }

    #[async_trait]
    impl ReadStore for Store {
        fn kind(&self) -> &'static str {
            "sqlite"
        }

        async fn count_meters(&self) -> Result<u64, StoreError> {
            match self {
                Self::Well => Ok(7),
                Self::Broken => Err(StoreError::Unreachable { reason: "no disk".into() }),
                Self::Hanging => std::future::pending().await,
            }
        }

        async fn domain(&self) -> Result<Option<DomainRecord>, StoreError> {
            self.count_meters().await.map(|_| None)
        }

        async fn heads(&self) -> Result<Vec<Head>, StoreError> {
            Ok(Vec::new())
        }

        async fn block(&self, _: BlockNo) -> Result<Option<StoredBlock>, StoreError> {
            Ok(None)
        }

        async fn find_meter(&self, _: &MeterId) -> Result<Option<IndexedMeter>, StoreError> {
            Ok(None)
        }

        async fn find_title(&self, _: &SystemTitle) -> Result<Option<IndexedMeter>, StoreError> {
            Ok(None)
        }

        async fn list_meters(
            &self,
            _: Option<&MeterId>,
            _: u32,
        ) -> Result<Vec<IndexedMeter>, StoreError> {
            Ok(Vec::new())
        }

        async fn holders_of(&self, _: &[Fingerprint], _: u32) -> Result<Vec<Holder>, StoreError> {
            Ok(Vec::new())
        }

        async fn role(&self) -> Result<RoleRow, StoreError> {
            Ok(RoleRow { epoch: Epoch(2), writes: true })
        }

        async fn restore_state(&self) -> Result<RestoreState, StoreError> {
            Ok(RestoreState::Nothing)
        }

        async fn role_records(&self) -> Result<Vec<SignedRoleRecord>, StoreError> {
            Ok(Vec::new())
        }

        async fn peers(&self) -> Result<Vec<SignedPeer>, StoreError> {
            Ok(Vec::new())
        }

        async fn changes_after(
            &self,
            _: BlockNo,
            _: Position,
        ) -> Result<Option<BlockChanges>, StoreError> {
            Ok(None)
        }

        async fn divergence(&self, _: DivergenceAsked) -> Result<Vec<Divergent>, StoreError> {
            Ok(Vec::new())
        }

        async fn count_undecided(&self) -> Result<u64, StoreError> {
            Ok(0)
        }

        async fn count_undecided_of(&self, _: &str) -> Result<u64, StoreError> {
            Ok(0)
        }

        async fn strange_records(&self, _: &[[u8; 2]], _: u32) -> Result<Strange, StoreError> {
            Ok(Strange::default())
        }

        async fn follower_lock(&self) -> Result<Option<Box<dyn FollowerLock>>, StoreError> {
            Ok(Some(Box::new(AloneLock)))
        }

        async fn followed_lock(&self) -> Result<Option<Box<dyn FollowerLock>>, StoreError> {
            Ok(Some(Box::new(AloneLock)))
        }

        async fn is_followed(&self) -> Result<bool, StoreError> {
            Ok(false)
        }
    }

    #[tokio::test]
    async fn a_database_that_hangs_does_not_hang_the_look() {
        let all = StoreFacts::all(&Store::Hanging).await;
        assert_eq!(all.fault, Some(StoreFault::Silent));
        let said = StoreFault::Silent.to_string();
        assert!(said.contains("did not answer within 500 ms"), "{said}");
        assert_eq!(StoreFacts::short(&Store::Hanging).await.fault, Some(StoreFault::Silent));
    }

    #[tokio::test]
    async fn what_a_database_says_is_what_is_known_of_it() {
        let well = StoreFacts::all(&Store::Well).await;
        assert_eq!((well.meters, well.fault), (7, None));
        for facts in
            [StoreFacts::all(&Store::Broken).await, StoreFacts::short(&Store::Broken).await]
        {
            let fault = facts.fault.unwrap();
            assert_eq!(fault.to_string(), "the database is not reachable: no disk");
            assert!(!fault.answers());
        }
        // It answers, and is nobody's.
        let empty = StoreFacts::short(&Store::Well).await.fault;
        assert!(matches!(empty, Some(StoreFault::Failed(_))), "{empty:?}");
    }
}
