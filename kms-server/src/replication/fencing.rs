//! Meeting a peer that names a higher epoch than ours: its signed role records are asked for and verified, and this
//! site writes no more, before anything else goes on.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex as StdMutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::BoxStream};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::{
    card::{Cards, SiteCard},
    failure::PeerError,
    grounds::Grounds,
    peer::Peer,
    status::Status,
};
use crate::{
    keyring::{NotChanged, Roles},
    store::{ReadStore, StoreError, sites::RoleRow},
};
use kms_core::{
    Epoch,
    audit::{AuditEntry, AuditOutcome, AuditedCall, Subject},
    ports::Clock,
    site::admission::NotAdmitted,
    site::peer::PeerKind,
    site::role::{SignedRoleRecord, Standing},
};

/// Role records that are taken from one answer: a promotion and a demotion each week of a life.
const ROLE_RECORDS_MAX: usize = 4_096;

/// The time in which a peer shows its role records, all of them. Those that came are taken in, and the next contact goes on
/// behind them.
const PATIENCE: Duration = Duration::from_secs(30);

/// The caller's name in events of replication.
pub(super) const OURSELVES: &str = "kms-server";

/// The reason why a peer's higher epoch does not count. Until it does, nothing is taken from that peer, and nothing
/// given to it.
#[derive(Debug, thiserror::Error)]
pub enum NotFenced {
    /// It shows no record that leads there.
    #[error("site {site} names epoch {}, and shows no signed promotion to it", epoch.0)]
    NoRecord {
        /// The peer.
        site: String,
        /// The epoch that it names.
        epoch: Epoch,
    },
    /// Its records do not count, or can't be kept.
    #[error("what site {site} says of its epoch {} is not taken in: {why}", epoch.0)]
    NotLearnt {
        /// The peer.
        site: String,
        /// The epoch that it names.
        epoch: Epoch,
        /// The reason.
        why: Box<NotChanged>,
    },
    /// Two people named an epoch that this site has gone through, or is in.
    #[error(
        "this site is in epoch {} by verified records, so that there is nothing to take in of epoch {}: name the epoch in \
         which the other site says that it is, if that is a higher one", now.0, epoch.0
    )]
    KnownAlready {
        /// The epoch that was named.
        epoch: Epoch,
        /// The highest one that is known.
        now: Epoch,
    },
    /// The records that are kept here don't verify.
    #[error("the role records of this site: {0}")]
    Records(Box<NotChanged>),
    /// Its records can't be had.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The database can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Role records, as they come.
type Records = BoxStream<'static, Result<SignedRoleRecord, PeerError>>;

/// Where role records are shown, and until when.
struct Shown<'a> {
    at: &'a dyn Peer,
    until: Instant,
}

impl Shown<'_> {
    async fn records(&self, ours: SiteCard, from: Epoch) -> Result<Records, PeerError> {
        timeout_at(self.until, self.at.role_records(ours, from)).await.map_err(|_| late())?
    }

    async fn next(&self, records: &mut Records) -> Result<Option<SignedRoleRecord>, PeerError> {
        timeout_at(self.until, records.next()).await.map_err(|_| late())?.transpose()
    }
}

fn late() -> PeerError {
    PeerError::Broken("its role records did not come in time".to_owned())
}

/// Meets peers.
pub struct Fencing {
    roles: Arc<Roles>,
    store: Arc<dyn ReadStore>,
    peer: Arc<dyn Peer>,
    cards: Cards,
    clock: Arc<dyn Clock>,
    status: Arc<Status>,
    peer_name: String,
    /// One at a time: two who learn of one promotion are one.
    one: Mutex<()>,
    /// Role records as they were verified in this standing: they are large, each block that is taken over asks.
    verified: StdMutex<Option<(Standing, Arc<[SignedRoleRecord]>)>>,
    /// The peer was met, and that is stored.
    has_met: OnceLock<()>,
}

impl Fencing {
    /// Learns by `roles` what the peer shows.
    pub fn new(grounds: &Grounds, roles: Arc<Roles>) -> Self {
        let Grounds { config, peer, store, cards, clock, status, .. } = grounds.clone();
        let (one, verified) = (Mutex::default(), StdMutex::default());
        let (peer_name, has_met) = (config.peer, OnceLock::new());
        Self { roles, store, peer, cards, clock, status, peer_name, one, verified, has_met }
    }

    /// Meets a peer. If it names a higher epoch than ours, this site is fenced when this returns, or an error is.
    pub async fn meet(&self, theirs: &SiteCard) -> Result<RoleRow, NotFenced> {
        self.meet_at(theirs, self.peer.as_ref()).await
    }

    /// Meets a peer that shows its records there. What it does from then on is known here.
    pub(super) async fn meet_at(
        &self,
        theirs: &SiteCard,
        at: &dyn Peer,
    ) -> Result<RoleRow, NotFenced> {
        let row = self.fence(theirs, at).await?;
        if theirs.site == self.peer_name && self.has_met.get().is_none() {
            let met = self.roles.meet(&theirs.site, row.epoch).await;
            met.map_err(|why| NotFenced::Records(Box::new(why)))?;
            let _ = self.has_met.set(());
        }
        Ok(row)
    }

    async fn fence(&self, theirs: &SiteCard, at: &dyn Peer) -> Result<RoleRow, NotFenced> {
        let row = self.store.role().await?;
        if theirs.epoch <= row.epoch && !self.has_ended(theirs, row) {
            self.status.proved_epoch(&theirs.site, row.epoch);
            return Ok(row);
        }
        let _one = self.one.lock().await;
        let outcome = self.learn(theirs, at).await;
        match &outcome {
            Ok(row) => self.status.proved_epoch(&theirs.site, row.epoch),
            Err(error) => self.status.unproved_epoch(theirs, error.to_string()),
        }
        outcome
    }

    async fn learn(&self, theirs: &SiteCard, at: &dyn Peer) -> Result<RoleRow, NotFenced> {
        let row = self.store.role().await?;
        if theirs.epoch <= row.epoch && !self.has_ended(theirs, row) {
            return Ok(row);
        }
        let call = AuditedCall::new(OURSELVES, "Replication/Fence");
        let entry = call.entry(self.clock.unix_ms(), Subject::NONE, AuditOutcome::Done);
        let shown = Shown { at, until: Instant::now() + PATIENCE };
        let mut learnt = self.take_in(&shown, row.epoch, None, &entry).await?;
        // It follows one that we know nothing of: then all of them, from the first one on.
        if matches!(learnt, Err(NotChanged::NotAdmitted(NotAdmitted::Gap { .. }))) {
            learnt = self.take_in(&shown, self.roles.founded(), None, &entry).await?;
        }
        *self.verified() = None;
        let row = self.store.role().await?;
        let (site, epoch) = (theirs.site.clone(), theirs.epoch);
        match learnt {
            // Another server of this site may have learnt it beside us.
            _ if row.epoch >= epoch => Ok(row),
            Ok(()) => Err(NotFenced::NoRecord { site, epoch }),
            Err(why) => Err(NotFenced::NotLearnt { site, epoch, why: Box::new(why) }),
        }
    }

    /// Takes in the promotions of the other site up to this epoch, although they are more than one step ahead: two people
    /// have said so.
    pub async fn admit(&self, epoch: Epoch, entry: AuditEntry) -> Result<Standing, NotFenced> {
        let _one = self.one.lock().await;
        let now = self.store.role().await?.epoch;
        if now >= epoch {
            return Err(NotFenced::KnownAlready { epoch, now });
        }
        let shown = Shown { at: self.peer.as_ref(), until: Instant::now() + PATIENCE };
        let learnt = self.take_in(&shown, self.roles.founded(), Some(epoch), &entry).await?;
        *self.verified() = None;
        let row = self.store.role().await?;
        let site = self.peer_name.clone();
        match learnt {
            _ if row.epoch >= epoch => {
                self.status.proved_epoch(&site, row.epoch);
                Ok(self.roles.standing())
            }
            Ok(()) => Err(NotFenced::NoRecord { site, epoch }),
            Err(why) => Err(NotFenced::NotLearnt { site, epoch, why: Box::new(why) }),
        }
    }

    /// Takes in the records that the peer shows from this epoch on, one by one: each is verified before the next one is
    /// taken, and the first that does not hold ends it. `admitted`: up to this epoch any step is right.
    async fn take_in(
        &self,
        shown: &Shown<'_>,
        from: Epoch,
        admitted: Option<Epoch>,
        entry: &AuditEntry,
    ) -> Result<Result<(), NotChanged>, NotFenced> {
        let mut records = shown.records(self.cards.now().await?, from).await?;
        let mut count = 0;
        while let Some(signed) = shown.next(&mut records).await? {
            count += 1;
            if count > ROLE_RECORDS_MAX {
                return Err(PeerError::Unreadable("role records do not end").into());
            }
            let two_people = admitted.is_some_and(|epoch| signed.record.epoch <= epoch);
            if let Err(why) = self.roles.learn_one(signed, entry.clone(), two_people).await {
                return Ok(Err(why));
            }
        }
        Ok(self.roles.look().await.map(drop))
    }

    /// What the sites are that may write; nothing where that can't be said now.
    pub(super) async fn kinds(&self) -> BTreeMap<String, PeerKind> {
        let peers = self.roles.peers().await.inspect_err(|error| {
            tracing::debug!(%error, "not known: what the other sites are");
        });
        peers.unwrap_or_default().into_iter().map(|peer| (peer.site, peer.kind)).collect()
    }

    /// Whether the peer says that it writes no more in an epoch in which we think that it does: it was demoted.
    fn has_ended(&self, theirs: &SiteCard, row: RoleRow) -> bool {
        let standing = self.roles.standing();
        let expected = standing.open && !standing.writes() && !row.writes;
        expected && theirs.epoch == row.epoch && !theirs.writes
    }

    /// The role records that are kept here, verified.
    pub async fn records(&self) -> Result<Arc<[SignedRoleRecord]>, NotFenced> {
        let standing = self.roles.standing();
        let known = self.verified().clone().filter(|(of, _)| *of == standing);
        if let Some((_, records)) = known {
            return Ok(records);
        }
        let records = self.roles.records().await;
        let records: Arc<[_]> = records.map_err(|why| NotFenced::Records(Box::new(why)))?.into();
        *self.verified() = Some((standing, Arc::clone(&records)));
        Ok(records)
    }

    fn verified(&self) -> MutexGuard<'_, Option<(Standing, Arc<[SignedRoleRecord]>)>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
