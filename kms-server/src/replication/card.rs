//! What a site says of itself in each message.

use std::sync::Arc;

use super::makeup::OwnMakeup;
use crate::store::{ReadStore, StoreError};
use kms_core::{
    BlockCount, DomainId, DomainRecord, Epoch,
    record::SCHEMA,
    replication::following::PeerCard,
    site::{
        makeup::{Difference, Makeup},
        peer::PeerKind,
        tokens::TokenId,
    },
};

/// A site, as it says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteCard {
    /// The operator's name for it.
    pub site: String,
    /// Its key domain.
    pub domain: DomainId,
    /// The number of the domain's blocks.
    pub blocks: u32,
    /// The service's version.
    pub release: String,
    /// The newest schema of records that it reads.
    pub record_schema: u32,
    /// The highest epoch that it knows of.
    pub epoch: Epoch,
    /// It writes, in this epoch.
    pub writes: bool,
    /// What it is made of; `None`: its release does not say.
    pub makeup: Option<Makeup>,
    /// The token of the server that says it; `None`: it does not know its name yet, or its release does not say.
    pub token: Option<TokenId>,
}

impl SiteCard {
    /// The part of it that the rules of `kms-core` look at.
    pub(super) const fn of_who_writes(&self) -> PeerCard {
        PeerCard { epoch: self.epoch, writes: self.writes }
    }
}

/// Makes this site's cards: its role is read from the database each time, since another server may have changed it.
#[derive(Clone)]
pub struct Cards {
    store: Arc<dyn ReadStore>,
    site: String,
    domain: DomainId,
    blocks: BlockCount,
    kind: PeerKind,
    makeup: Arc<OwnMakeup>,
}

impl Cards {
    /// Of the site of `domain`, which is made of this.
    pub fn new(store: Arc<dyn ReadStore>, domain: &DomainRecord, makeup: Arc<OwnMakeup>) -> Self {
        let (site, blocks) = (domain.site.clone(), domain.blocks);
        Self { store, site, domain: domain.domain, blocks, kind: domain.kind, makeup }
    }

    /// Whether this site follows for ever.
    pub fn is_replica(&self) -> bool {
        self.kind == PeerKind::Replica
    }

    /// What this site is made of.
    pub fn makeup(&self) -> &Arc<OwnMakeup> {
        &self.makeup
    }

    /// The card as of now.
    pub async fn now(&self) -> Result<SiteCard, StoreError> {
        let role = self.store.role().await?;
        Ok(SiteCard {
            site: self.site.clone(),
            domain: self.domain,
            blocks: self.blocks.get(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            record_schema: u32::from(SCHEMA),
            epoch: role.epoch,
            writes: role.writes,
            makeup: Some(self.makeup.now()),
            token: self.makeup.token(),
        })
    }

    /// Whether this is a card of another site of our domain.
    pub fn is_of_domain(&self, theirs: &SiteCard) -> bool {
        theirs.domain == self.domain
            && theirs.blocks == self.blocks.get()
            && theirs.site != self.site
    }
}

/// In what the site of this card differs from one that is made of `ours`.
pub(super) fn differences(ours: &Makeup, theirs: &SiteCard) -> Vec<Difference> {
    ours.differences(u32::from(SCHEMA), theirs.makeup.as_ref(), theirs.record_schema)
}
