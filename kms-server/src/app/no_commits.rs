//! A database that is only looked at.

use crate::store::{
    AuditedStore, BlockChange, StoreError,
    keks::KekStep,
    sites::{BlockAdoption, Divergent, PeerStep, RoleStep},
};
use kms_core::audit::AuditEntry;

/// Nothing is changed while a domain is migrated or tried.
pub(super) struct NoCommits;

#[async_trait::async_trait]
impl AuditedStore for NoCommits {
    async fn commit(&self, _: Vec<BlockChange>, _: Vec<AuditEntry>) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly)
    }

    async fn adopt(&self, _: Vec<BlockAdoption>, _: Vec<AuditEntry>) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly)
    }

    async fn change_role(&self, _: RoleStep, _: Vec<AuditEntry>) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly)
    }

    async fn put_peer(&self, _: PeerStep, _: Vec<AuditEntry>) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly)
    }

    async fn put_divergence(
        &self,
        _: Vec<Divergent>,
        _: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly)
    }

    async fn put_site_keks(&self, _: KekStep, _: Vec<AuditEntry>) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly)
    }
}
