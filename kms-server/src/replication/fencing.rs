//! Meeting a peer that names a higher epoch than ours: its signed role records are asked for and verified, and this
//! site writes no more, before anything else goes on.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::{
    card::{Cards, SiteCard},
    peer::{Peer, PeerError},
    status::Status,
};
use crate::{
    hsm::{Hsm, TokenError},
    store::{
        AuditedStore, ReadStore, StoreError,
        sites::{RoleRow, RoleStep},
    },
};
use kms_core::{
    DomainRecord, Epoch,
    audit::{AuditOutcome, AuditedCall, Subject},
    ports::Clock,
    site::{
        admission::{Admitted, NotAdmitted, View, Writers, admit},
        peer::Peer as Enrolled,
        role::{RoleRecord, SignedRoleRecord, Standing},
    },
};

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
    /// Its record does not count.
    #[error("a role record of site {site} does not count: {why}")]
    NotAdmitted {
        /// The peer.
        site: String,
        /// The reason.
        why: NotAdmitted,
    },
    /// Its records can't be had.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The database can't be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The token does not say which key is ours.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Parts that fencing stands on.
pub struct Fencing {
    domain: DomainRecord,
    store: Arc<dyn ReadStore>,
    commits: Arc<dyn AuditedStore>,
    hsm: Hsm,
    peer: Arc<dyn Peer>,
    cards: Cards,
    clock: Arc<dyn Clock>,
    status: Arc<Status>,
    /// One at a time: two who learn of one promotion are one.
    one: Mutex<()>,
}

/// What fencing is made of.
pub struct Grounds {
    /// Our domain.
    pub domain: DomainRecord,
    /// Our database.
    pub store: Arc<dyn ReadStore>,
    /// The way to change the role.
    pub commits: Arc<dyn AuditedStore>,
    /// Whose key signs for our epochs.
    pub hsm: Hsm,
    /// The other site.
    pub peer: Arc<dyn Peer>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where it is told.
    pub status: Arc<Status>,
}

impl Fencing {
    /// Over these parts.
    pub fn new(grounds: Grounds) -> Self {
        let Grounds { domain, store, commits, hsm, peer, clock, status } = grounds;
        let cards = Cards::new(Arc::clone(&store), &domain);
        Self { domain, store, commits, hsm, peer, cards, clock, status, one: Mutex::default() }
    }

    /// Meets a peer. If it names a higher epoch than ours, this site is fenced when this returns, or an error is.
    pub async fn meet(&self, theirs: &SiteCard) -> Result<RoleRow, NotFenced> {
        let row = self.store.role().await?;
        if theirs.epoch <= row.epoch {
            return Ok(row);
        }
        let _one = self.one.lock().await;
        let outcome = self.learn(theirs).await;
        self.status.unproved_epoch(outcome.as_ref().err().map(ToString::to_string));
        outcome
    }

    async fn learn(&self, theirs: &SiteCard) -> Result<RoleRow, NotFenced> {
        let row = self.store.role().await?;
        if theirs.epoch <= row.epoch {
            return Ok(row);
        }
        let ours = self.cards.now().await?;
        let records = self.peer.role_records(ours, row.epoch).await?;
        for record in records {
            self.take(theirs, record).await?;
        }
        let row = self.store.role().await?;
        if row.epoch < theirs.epoch {
            return Err(NotFenced::NoRecord { site: theirs.site.clone(), epoch: theirs.epoch });
        }
        Ok(row)
    }

    /// Takes one record in, if it counts: kept for ever, with the role that follows from it.
    async fn take(&self, theirs: &SiteCard, record: SignedRoleRecord) -> Result<(), NotFenced> {
        let known = self.verified_records().await?;
        let own = self.hsm.public_key().await?;
        let writers = self.writers(own).await?;
        let view = View { domain: &self.domain, known: &known, writers: &writers };
        let admitted = admit(&view, &record, false);
        let admitted =
            admitted.map_err(|why| NotFenced::NotAdmitted { site: theirs.site.clone(), why })?;
        let expected = self.store.role().await?;
        let now = match admitted {
            Admitted::Known => return Ok(()),
            // Of a time that is over: who writes has no use for it.
            Admitted::Past if expected.writes => return Ok(()),
            Admitted::Past => expected,
            Admitted::News(Standing { epoch, .. }) => RoleRow { epoch, writes: false },
        };
        let call = AuditedCall::new(OURSELVES, "Replication/Fence");
        let entry = call.entry(self.clock.unix_ms(), Subject::NONE, AuditOutcome::Done);
        if now != expected {
            tracing::warn!(
                site = theirs.site,
                epoch = now.epoch.0,
                "the peer was promoted: this site writes no more"
            );
        }
        let step = RoleStep { expected, now, record, blocks: Vec::new(), table: None };
        match self.commits.change_role(step, vec![entry]).await {
            // Another server of this site has learnt it, too.
            Err(StoreError::NotWriter(row)) if row.epoch >= now.epoch => Ok(()),
            done => Ok(done?),
        }
    }

    /// The role records that are kept here, as far as their signatures hold.
    pub async fn verified_records(&self) -> Result<Vec<RoleRecord>, NotFenced> {
        let own = self.hsm.public_key().await?;
        let writers = self.writers(own).await?;
        let stored = self.store.role_records().await?;
        let key = |even: bool| if even { writers.even } else { writers.odd };
        let holds = |signed: &SignedRoleRecord| {
            key(signed.record.epoch.is_even()).is_some_and(|key| signed.is_signed_by(&key))
        };
        Ok(stored.into_iter().filter(holds).map(|signed| signed.record).collect())
    }

    async fn writers(&self, own: kms_core::audit::PublicKey) -> Result<Writers, NotFenced> {
        let peers = self.store.peers().await?;
        let ours = peers.iter().filter(|peer| peer.is_signed_by(&own)).map(|signed| &signed.peer);
        let ours: Vec<&Enrolled> = ours.filter(|it| it.domain == self.domain.domain).collect();
        Ok(Writers::of_peers(ours).with_own(&self.domain, own))
    }
}
