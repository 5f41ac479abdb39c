//! Site KEKs.

use async_trait::async_trait;

use super::{Measured, Operation};
use crate::store::{
    ChainLink, SealedSecret, StoreError,
    keks::{KekRows, KekStep, KekStore, Pair, Twins},
};
use kms_core::{
    BlockNo,
    site::keks::{KekId, Looked, SignedSiteKeks},
};

#[async_trait]
impl<S: KekRows + ?Sized> KekRows for Measured<S> {
    async fn site_keks(&self) -> Result<Vec<SignedSiteKeks>, StoreError> {
        self.measure(Operation::SiteKeks, self.inner.site_keks()).await
    }
}

#[async_trait]
impl<S: KekStore + ?Sized> KekStore for Measured<S> {
    async fn pairs(
        &self,
        twins: Twins,
        after: Option<(BlockNo, u32)>,
        limit: u32,
    ) -> Result<Vec<Pair>, StoreError> {
        self.measure(Operation::KekPairs, self.inner.pairs(twins, after, limit)).await
    }

    async fn count_pairs(&self, twins: Twins) -> Result<Looked, StoreError> {
        self.measure(Operation::KekPairs, self.inner.count_pairs(twins)).await
    }

    async fn add_twin(
        &self,
        block: BlockNo,
        former: &KekId,
        twin: &SealedSecret,
    ) -> Result<bool, StoreError> {
        self.measure(Operation::AddTwin, self.inner.add_twin(block, former, twin)).await
    }

    async fn put_site_keks(&self, step: &KekStep, audit: ChainLink<'_>) -> Result<(), StoreError> {
        self.measure(Operation::PutSiteKeks, self.inner.put_site_keks(step, audit)).await
    }
}
