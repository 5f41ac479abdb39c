//! HLS secrets of resident meters. They stay sealed in memory as they are in the database, and are opened for the length
//! of a call: they are rarely asked for, and a meter that has one keeps its plain entry.

use zeroize::Zeroizing;

use kms_core::{
    KeyId, KeyKind, KeyState, MeterRecord, SecuritySetup, SystemTitle, block::keys::BlockKeys,
};

/// One version of an HLS secret, sealed under its block's `seal` key.
#[derive(Clone)]
pub struct SealedHlsSecret {
    /// The security setup.
    pub setup: SecuritySetup,
    /// Display order.
    pub version: u16,
    /// Whether it answers challenges, and does not only verify answers.
    pub protects: bool,
    /// It is not known to others.
    pub vouches: bool,
    id: KeyId,
    sealed: Box<[u8]>,
}

impl SealedHlsSecret {
    pub(super) fn open(&self, keys: &BlockKeys, title: &SystemTitle) -> Option<Zeroizing<Vec<u8>>> {
        let secret = keys.open_secret(title, &self.id, &self.sealed).ok()?;
        Some(Zeroizing::new(secret.expose_clear_key_bytes().to_vec()))
    }
}

/// Those of a meter that are of use: active ones first, then the newest.
pub(super) fn of(meter: &MeterRecord) -> Box<[SealedHlsSecret]> {
    let is_one =
        |key: &&kms_core::KeyRecord| key.kind == KeyKind::HlsSecret && key.state.may_open();
    let mut keys: Vec<_> = meter.keys.iter().filter(is_one).collect();
    keys.sort_by_key(|key| {
        (key.setup, key.state != KeyState::Active, std::cmp::Reverse(key.version))
    });
    let secret = |key: &kms_core::KeyRecord| SealedHlsSecret {
        setup: key.setup,
        version: key.version,
        protects: key.state.may_protect(),
        vouches: key.state.vouches(),
        id: key.id,
        sealed: key.wrapped.clone().into(),
    };
    keys.into_iter().map(secret).collect()
}
