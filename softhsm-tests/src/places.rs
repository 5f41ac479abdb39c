//! Where a site's files are.

use std::path::{Path, PathBuf};

/// Where everything is within a site's directory.
#[derive(Clone, Debug)]
pub struct Places {
    /// The directory itself, absolute.
    pub dir: PathBuf,
    /// The server's data directory; the database is in it.
    pub data: PathBuf,
    /// The token's files.
    pub tokens: PathBuf,
    /// The user PIN.
    pub pin: PathBuf,
    /// The security officer's PIN.
    pub so_pin: PathBuf,
    /// The server's standard error.
    pub log: PathBuf,
    /// The server's configuration.
    pub kms_toml: PathBuf,
    /// SoftHSM's configuration.
    pub softhsm_conf: PathBuf,
    /// Kryoptic's.
    pub kryoptic_conf: PathBuf,
}

impl Places {
    pub(crate) fn of(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            data: dir.join("data"),
            tokens: dir.join("tokens"),
            pin: dir.join("secrets/pin"),
            so_pin: dir.join("secrets/so-pin"),
            log: dir.join("server.log"),
            kms_toml: dir.join("kms.toml"),
            softhsm_conf: dir.join("softhsm2.conf"),
            kryoptic_conf: dir.join("kryoptic.toml"),
        }
    }

    /// The certificate of `name`: "ca", "server", or a caller.
    pub fn certificate(&self, name: &str) -> PathBuf {
        self.dir.join("certificates").join(format!("{name}.pem"))
    }

    /// The private key of `name`.
    pub fn private_key(&self, name: &str) -> PathBuf {
        self.dir.join("certificates").join(format!("{name}.key"))
    }

    /// Written last by [`Site::init`](crate::Site::init).
    pub(crate) fn init_mark(&self) -> PathBuf {
        self.dir.join("initialised")
    }

    /// Has the port; written last by [`Site::make`](crate::Site::make).
    pub(crate) fn port(&self) -> PathBuf {
        self.dir.join("port")
    }
}
