//! Revocation lists between this node and the domain: what was used here is remembered by the domain, and what the
//! domain remembers is not fallen back behind here.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::timeout};

use crate::{
    lifecycle::{Lifecycle, LifecycleError},
    rpc::tls::{error::TlsError, in_use::Tls},
};

/// The longest wait for what the domain remembers, at the start: a database or a token that hangs keeps no server from
/// serving. What the node remembers itself holds all the same.
const FIRST_LOOK: Duration = Duration::from_secs(10);

/// The node's lists, and the domain's.
#[derive(Clone)]
pub(super) struct Lists {
    pub(super) tls: Arc<Tls>,
    pub(super) lifecycle: Arc<Lifecycle>,
}

impl Lists {
    /// Refuses to begin with a list that is older than one that the domain remembers: whoever put it there may want
    /// just that. Where nothing can be learnt now, the server begins, and learns it later.
    pub(super) async fn look_first(&self) -> Result<(), TlsError> {
        match timeout(FIRST_LOOK, self.learn()).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(behind))) => Err(TlsError::CrlOlderThanDomains(behind)),
            Ok(Err(error)) => {
                tracing::warn!(%error, "not known: the revocation lists that the domain remembers");
                Ok(())
            }
            Err(_) => {
                tracing::warn!("not known in time: the revocation lists that the domain remembers");
                Ok(())
            }
        }
    }

    /// Keeps both at the newest, until what is returned is dropped.
    pub(super) fn keep(&self, interval: Duration) -> JoinSet<()> {
        let (this, mut keeping) = (self.clone(), JoinSet::new());
        keeping.spawn(async move {
            loop {
                if let Err(error) = this.step().await {
                    tracing::debug!(%error, "revocation lists and what the domain remembers of them");
                }
                tokio::time::sleep(interval).await;
            }
        });
        keeping
    }

    async fn step(&self) -> Result<(), LifecycleError> {
        self.learn().await?;
        self.lifecycle.remember_lists(&self.tls.newest_lists().await).await?;
        Ok(())
    }

    async fn learn(&self) -> Result<Option<String>, LifecycleError> {
        let authorities: Vec<[u8; 32]> =
            self.tls.newest_lists().await.iter().map(|list| list.authority).collect();
        let domains = self.lifecycle.known_lists(&authorities).await?;
        Ok(self.tls.learn_lists(&domains).await)
    }
}
