//! The token's settings, checked. The file's section is `config`'s business.

use std::{fmt, path::PathBuf, time::Duration};

use zeroize::Zeroizing;

/// A PIN. Silent in `Debug`, wiped on drop, not `Clone`.
pub struct Pin(Zeroizing<String>);

impl Pin {
    /// Takes the text over.
    pub fn new(pin: String) -> Self {
        Self(Zeroizing::new(pin))
    }

    /// The only way to the text.
    pub fn expose_pin(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin(..)")
    }
}

/// Hash and mask generation of RSA-OAEP (PKCS #1 v2.2, 7.1). Both sides of a transfer need the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OaepHash {
    /// All that some tokens can do (`Quirk::OaepSha1Only`). Not broken in this use: OAEP needs no collision
    /// resistance.
    Sha1,
    /// The one to choose where the token can.
    Sha256,
}

/// A token's settings, checked by [`Config::check`] before anything is loaded.
#[derive(Debug)]
pub struct Config {
    /// The vendor's PKCS #11 library.
    pub module: PathBuf,
    /// CKA label of the token: 1 to 32 bytes. Slots are found by it each time, since slot numbers change.
    pub token_label: String,
    /// The user PIN. Tried once; a refused PIN is not tried again in this process.
    pub pin: Pin,
    /// Sessions that work at once; 1 to 64. Two more are open: the anchor and the holder of keys.
    pub sessions_max: usize,
    /// The time that one call may take before its caller is told so.
    pub call_timeout: Duration,
    /// The time that a caller waits for a session before it is told `Busy`.
    pub patience: Duration,
    /// Unwrapped keys of protection `HSM` kept in the token; at least `sessions_max`. They may
    /// weigh: `Quirk::HeavyObjects`.
    pub unwrapped_keys_max: usize,
    /// The hash of the transport keys' OAEP.
    pub oaep_hash: OaepHash,
    /// The directory where a software token keeps its files: synced after a key is made. `None` for a device.
    pub sync_dir: Option<PathBuf>,
}

/// A setting outside its bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadConfig {
    /// Sessions outside 1 to 64.
    #[error("sessions_max is 1 to 64, not {0}")]
    SessionsMax(usize),
    /// A key in use may not be evicted, so each session needs room for one.
    #[error("unwrapped_keys_max is {sessions_max} (sessions_max) to 1000000, not {keys_max}")]
    UnwrappedKeysMax {
        /// The number that was configured.
        keys_max: usize,
        /// The lower bound.
        sessions_max: usize,
    },
    /// PKCS #11 labels have 32 bytes.
    #[error("a token label has 1 to 32 bytes, not {0}")]
    TokenLabel(usize),
}

/// One session per caller; a token gains nothing from more than this.
const SESSIONS_MAX: usize = 64;
/// 8 GB at the worst that was measured; a bound for the sake of having one.
const UNWRAPPED_KEYS_MAX: usize = 1_000_000;
/// `CK_TOKEN_INFO.label`.
const LABEL_LEN: usize = 32;

impl Config {
    /// The same once more, for who uses a token twice. The PIN's copy is wiped as the PIN is.
    pub fn again(&self) -> Self {
        Self {
            module: self.module.clone(),
            token_label: self.token_label.clone(),
            pin: Pin::new(self.pin.expose_pin().to_owned()),
            sync_dir: self.sync_dir.clone(),
            ..*self
        }
    }

    /// Checks every bound.
    pub fn check(&self) -> Result<(), BadConfig> {
        let Self { token_label, sessions_max, unwrapped_keys_max, .. } = self;
        if !(1..=LABEL_LEN).contains(&token_label.len()) {
            return Err(BadConfig::TokenLabel(token_label.len()));
        }
        if !(1..=SESSIONS_MAX).contains(sessions_max) {
            return Err(BadConfig::SessionsMax(*sessions_max));
        }
        if !(*sessions_max..=UNWRAPPED_KEYS_MAX).contains(unwrapped_keys_max) {
            return Err(BadConfig::UnwrappedKeysMax {
                keys_max: *unwrapped_keys_max,
                sessions_max: *sessions_max,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A configuration within all bounds, of a device.
    pub(crate) fn config() -> Config {
        Config {
            module: "/none.so".into(),
            token_label: "ami".into(),
            pin: Pin::new("1234".into()),
            sessions_max: 2,
            call_timeout: Duration::from_secs(1),
            patience: Duration::from_secs(1),
            unwrapped_keys_max: 2,
            oaep_hash: OaepHash::Sha1,
            sync_dir: None,
        }
    }

    #[test]
    fn debug_shows_no_pin() {
        assert!(!format!("{:?}", config()).contains("1234"));
    }

    #[test]
    fn a_setting_outside_its_bounds_is_refused_by_name() {
        assert_eq!(config().check(), Ok(()));
        let bad = Config { sessions_max: 65, ..config() };
        assert_eq!(bad.check(), Err(BadConfig::SessionsMax(65)));
        let bad = Config { unwrapped_keys_max: 1, ..config() };
        assert!(matches!(bad.check(), Err(BadConfig::UnwrappedKeysMax { .. })));
        let bad = Config { token_label: String::new(), ..config() };
        assert_eq!(bad.check(), Err(BadConfig::TokenLabel(0)));
    }
}
