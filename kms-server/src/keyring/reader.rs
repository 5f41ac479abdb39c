//! The keyring as decryption sees it: resident tables, and a way to ask for a block. Nothing here can
//! change a block, nor reach the token or the database past the opener.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::{
    error::{KeyringError, SharedError},
    opening::Opener,
    records::{Found, Records},
    renewing::Renewer,
    resident::{
        BlockTable, Directory, ResidentMeter, SealedHlsSecret, Snapshot,
        arena::Segment as LockedMemory,
    },
    unused::UnusedKeys,
};
use kms_core::{BlockNo, MeterId, Position, SystemTitle};

/// Reads resident tables, and asks for blocks.
#[derive(Clone)]
pub struct Reader {
    opener: Arc<Opener>,
    records: Arc<Records>,
    renewer: Arc<Renewer>,
    /// Whether other processes write to the store.
    shared: bool,
}

impl Reader {
    /// Over the same blocks as `opener`.
    pub(super) fn new(
        opener: Arc<Opener>,
        records: Arc<Records>,
        renewer: Arc<Renewer>,
        shared: bool,
    ) -> Self {
        Self { opener, records, renewer, shared }
    }

    /// The directory now. One atomic increment; hold it for a batch.
    #[inline]
    pub fn snapshot(&self) -> Snapshot {
        self.opener.resident.snapshot()
    }

    /// The block that a title belongs to.
    #[inline]
    pub fn block_of(&self, title: &SystemTitle) -> BlockNo {
        self.opener.resident.blocks().block_of(title)
    }

    /// The title of the meter with this id, if its block is open in `snapshot`. Its record has said so.
    #[inline]
    pub fn title_of(&self, snapshot: &Directory, id: &str) -> Option<SystemTitle> {
        self.opener.resident.title_of(snapshot, id)
    }

    /// Whether this is the meter with this id: its record says so.
    pub fn has_id(&self, meter: &ResidentMeter<'_>, id: &str) -> bool {
        self.opener.resident.has_id(meter, id)
    }

    /// Whether other processes write to the store.
    #[inline]
    pub fn has_other_writers(&self) -> bool {
        self.shared
    }

    /// An HLS secret of a meter, for the length of a call; `None`: it does not open.
    pub fn open_secret(
        &self,
        meter: &ResidentMeter<'_>,
        secret: &SealedHlsSecret,
    ) -> Option<Zeroizing<Vec<u8>>> {
        meter.open_secret(self.opener.domain.domain, secret)
    }

    /// Room in the locked memory for so many bytes; `None`: it is full.
    pub fn locked_memory(&self, bytes: usize) -> Option<LockedMemory> {
        self.opener.resident.allocate(bytes)
    }

    /// The block's table, opening it if need be: once, however many ask. A failure is shared by all
    /// who waited and not tried again for 100 ms.
    pub async fn open(&self, block: BlockNo) -> Result<Arc<BlockTable>, SharedError> {
        self.opener.open(block).await
    }

    /// The block's table, if it is newer than `seen` by now: an APDU did not open that perhaps would have
    /// with what another server wrote. Read anew at most once in 100 ms.
    pub async fn doubt(&self, block: BlockNo, seen: Position) -> Option<Arc<BlockTable>> {
        self.renewer.doubt(block, seen).await
    }

    /// See [`Records::look_up`].
    pub async fn look_up(&self, id: &MeterId) -> Result<Option<SystemTitle>, KeyringError> {
        self.records.look_up(id).await
    }

    /// See [`Records::nowhere`].
    pub fn nowhere(&self, id: &str) -> Found {
        self.records.nowhere(id)
    }

    /// See [`Records::confirm`].
    pub async fn confirm(&self, id: &MeterId, hint: SystemTitle) -> Result<Found, KeyringError> {
        self.records.confirm(id, hint).await
    }

    /// Keys of the meter that no APDU is opened with, to be tried where its frames don't open.
    pub async fn unused_keys(&self, title: &SystemTitle) -> Result<UnusedKeys, KeyringError> {
        UnusedKeys::read(&self.opener, title).await
    }
}
