//! The HLS secrets of a resident meter.

use zeroize::Zeroizing;

use super::{secrets::SealedHlsSecret, table::ResidentMeter};
use kms_core::{DomainId, SecuritySetup, block::keys::BlockKeys};

impl<'a> ResidentMeter<'a> {
    /// Those of a setup, in the order to try them.
    pub fn hls_secrets(&self, setup: SecuritySetup) -> impl Iterator<Item = &'a SealedHlsSecret> {
        let all = self.extra().map_or(&[][..], |extra| &extra.secrets);
        all.iter().filter(move |secret| secret.setup == setup)
    }

    /// Opens one of them for the length of a call.
    pub(in crate::keyring) fn open_secret(
        &self,
        domain: DomainId,
        secret: &SealedHlsSecret,
    ) -> Option<Zeroizing<Vec<u8>>> {
        secret.open(&BlockKeys::new(domain, self.subkeys()?)?, &self.title())
    }
}
