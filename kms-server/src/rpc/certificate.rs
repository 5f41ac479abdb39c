//! Certificate files: our identity and the authorities that vouch for callers, checked before they
//! are used. A server that starts with an expired certificate is found by its callers first.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    Error as TlsError, InconsistentKeys, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    sign::CertifiedKey,
};
use x509_parser::parse_x509_certificate;

/// Why certificate files are refused. Each sentence names the file and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// The file is not there, or the service account can't read it.
    #[error("cannot read {path}: put the file there, readable by the service account")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file has none of what it should have.
    #[error("{path} holds no {wanted}: write it there in PEM")]
    Missing {
        /// The file.
        path: PathBuf,
        /// "certificate" or "private key".
        wanted: &'static str,
    },
    /// The file has something that can't be used.
    #[error("{path} holds something that cannot be used as {wanted}: {reason}; make it anew")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// "certificate", "private key" or "authority".
        wanted: &'static str,
        /// What is wrong with it; never its content.
        reason: String,
    },
    /// The key is another certificate's.
    #[error(
        "the key in {private_key} is not the one of the certificate in {certificate}: install the pair"
    )]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        private_key: PathBuf,
    },
    /// Its time is over.
    #[error("the certificate in {path} expired at {not_after}: renew it")]
    Expired {
        /// The file.
        path: PathBuf,
        /// Its end.
        not_after: String,
    },
    /// Its time has not come.
    #[error("the certificate in {path} is valid from {not_before} only: check the clock, or wait")]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// Its beginning.
        not_before: String,
    },
}

/// A certificate with its chain and its key, which belong together.
#[derive(Clone, Debug)]
pub struct Identity {
    /// For the handshake.
    pub certified: Arc<CertifiedKey>,
    /// First second of its validity, since 1970.
    pub not_before_s: i64,
    /// Last second of its validity, since 1970.
    pub not_after_s: i64,
    certificate: PathBuf,
    dates: (String, String),
}

impl Identity {
    /// Whether the certificate is valid at `now_s`, seconds since 1970.
    pub fn check_dates(&self, now_s: i64) -> Result<(), CertificateError> {
        let (not_before, not_after) = self.dates.clone();
        let path = self.certificate.clone();
        if now_s < self.not_before_s {
            return Err(CertificateError::NotYetValid { path, not_before });
        }
        if now_s > self.not_after_s {
            return Err(CertificateError::Expired { path, not_after });
        }
        Ok(())
    }
}

/// Reads our certificate and its key, and checks that they belong together. Dates are asked for with
/// [`Identity::check_dates`], for they pass.
pub fn load_identity(certificate: &Path, private_key: &Path) -> Result<Identity, CertificateError> {
    let chain = certificates(certificate)?;
    let key = private_key_in(private_key)?;
    let unusable = |path: &Path, wanted, reason: String| CertificateError::Unusable {
        path: path.to_owned(),
        wanted,
        reason,
    };
    let key = provider()
        .key_provider
        .load_private_key(key)
        .map_err(|error| unusable(private_key, "private key", error.to_string()))?;
    let first = chain.first().map(CertificateDer::as_ref).unwrap_or_default();
    let (_, parsed) = parse_x509_certificate(first)
        .map_err(|error| unusable(certificate, "certificate", error.to_string()))?;
    let validity = parsed.validity();
    let (not_before_s, not_after_s) =
        (validity.not_before.timestamp(), validity.not_after.timestamp());
    let dates = (validity.not_before.to_string(), validity.not_after.to_string());

    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        // A key that can't tell its public half is given the benefit of the doubt: the first handshake
        // would show it. Those of our provider can.
        Ok(()) | Err(TlsError::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(Identity {
            certified: Arc::new(certified),
            not_before_s,
            not_after_s,
            certificate: certificate.to_owned(),
            dates,
        }),
        Err(TlsError::InconsistentKeys(_)) => Err(CertificateError::KeyMismatch {
            certificate: certificate.to_owned(),
            private_key: private_key.to_owned(),
        }),
        Err(error) => Err(unusable(certificate, "certificate", error.to_string())),
    }
}

/// Reads the authorities that vouch for callers; at least one.
pub fn load_authorities(path: &Path) -> Result<RootCertStore, CertificateError> {
    let mut authorities = RootCertStore::empty();
    for certificate in certificates(path)? {
        authorities.add(certificate).map_err(|error| CertificateError::Unusable {
            path: path.to_owned(),
            wanted: "authority",
            reason: error.to_string(),
        })?;
    }
    Ok(authorities)
}

/// The one cryptographic provider of our TLS.
fn provider() -> CryptoProvider {
    ring::default_provider()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let refusal = |error| refusal(path, "certificate", error);
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(refusal)?
        .collect::<Result<_, _>>()
        .map_err(refusal)?;
    if chain.is_empty() { Err(refusal(pem::Error::NoItemsFound)) } else { Ok(chain) }
}

fn private_key_in(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| refusal(path, "private key", error))
}

fn refusal(path: &Path, wanted: &'static str, error: pem::Error) -> CertificateError {
    let path = path.to_owned();
    match error {
        pem::Error::Io(source) => CertificateError::Unreadable { path, source },
        pem::Error::NoItemsFound => CertificateError::Missing { path, wanted },
        // Its `Display` can quote lines of the file, which may be the key's.
        _ => CertificateError::Unusable { path, wanted, reason: "it is not PEM".into() },
    }
}
