//! Certificates and keys in PEM, and what a certificate says of its holder.

use std::path::{Path, PathBuf};

use rustls::{
    Error as RustlsError, InconsistentKeys, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use super::{newest::Newest, revocation};
use crate::rpc::{access::policy::CallerName, config::TlsConfig};

/// Why a certificate or key can't be used: one sentence, with the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file can't be read.
    #[error("{} can't be read: give its path and let this service read it", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file holds no certificate.
    #[error("{} holds no PEM certificate: put a CERTIFICATE section into it", path.display())]
    NoCertificate {
        /// Which file.
        path: PathBuf,
    },
    /// A file holds no private key.
    #[error("{} holds no PEM private key: put a PRIVATE KEY section into it", path.display())]
    NoPrivateKey {
        /// Which file.
        path: PathBuf,
    },
    /// A private key with a passphrase.
    #[error(
        "{} is protected by a passphrase, and nobody is there to type it: write it without one \
         (openssl pkey -in OLD -out NEW), mode 640",
        path.display()
    )]
    Passphrase {
        /// Which file.
        path: PathBuf,
    },
    /// Binary where text is due.
    #[error(
        "{} is DER, not PEM: convert it (openssl x509 -inform DER, or openssl pkey -inform DER)",
        path.display()
    )]
    Der {
        /// Which file.
        path: PathBuf,
    },
    /// A text of another encoding.
    #[error(
        "{} begins with a byte order mark, as some editors write it: save it as plain text without one",
        path.display()
    )]
    ByteOrderMark {
        /// Which file.
        path: PathBuf,
    },
    /// The server's certificate is of no use to its clients.
    #[error("the certificate in {} is refused by clients: {reason}", path.display())]
    RefusedByClients {
        /// Which file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// A private key that others can read.
    #[error(
        "{} holds a private key that other accounts can read (mode {mode:03o}): run `chmod o= {}`",
        path.display(),
        path.display()
    )]
    KeyExposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file holds something that can't be used.
    #[error("{} can't be used: issue it again", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The private key is not the certificate's.
    #[error(
        "the private key {} is not that of the certificate {}: install the two that were issued \
         together",
        private_key.display(),
        certificate.display()
    )]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        private_key: PathBuf,
    },
    /// The certificate's time is over.
    #[error("the certificate in {} has expired: renew it", path.display())]
    Expired {
        /// Which file.
        path: PathBuf,
    },
    /// The certificate's time has not come.
    #[error("the certificate in {} is not valid yet: check the clock, or wait", path.display())]
    NotYetValid {
        /// Which file.
        path: PathBuf,
    },
    /// A file holds no revocation list.
    #[error("{} holds no revocation list: put a CRL into it, in PEM (X509 CRL) or DER", path.display())]
    NoCrl {
        /// Which file.
        path: PathBuf,
    },
    /// A file holds a revocation list that can't be used.
    #[error(
        "{} can't be used as a revocation list: have the authority issue it again, as a full CRL of \
         version 2 with a next update",
        path.display()
    )]
    CrlUnusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A revocation list is past its next update.
    #[error(
        "the revocation list of {issuer} in {} has expired: install the one that the authority has \
         issued since",
        path.display()
    )]
    CrlExpired {
        /// Which file.
        path: PathBuf,
        /// Whose list.
        issuer: String,
    },
    /// Somebody else signed a revocation list in an authority's name.
    #[error(
        "the revocation list of {issuer} in {} is not signed by that authority: fetch it from there \
         again",
        path.display()
    )]
    CrlForged {
        /// Which file.
        path: PathBuf,
        /// Whose list it says that it is.
        issuer: String,
    },
    /// Two revocation lists of one authority, of which one would be ignored.
    #[error(
        "{} holds a second revocation list of {issuer}: keep the newest and remove the other",
        path.display()
    )]
    CrlTwice {
        /// The file of the second one.
        path: PathBuf,
        /// Whose list.
        issuer: String,
    },
    /// A revocation list that is older than one that was used already.
    #[error(
        "the revocation list of {issuer} in {} is an older one: {why}. What was revoked since would be let \
         in again; install the newest that the authority has issued",
        path.display()
    )]
    CrlOlder {
        /// Which file.
        path: PathBuf,
        /// Whose list.
        issuer: String,
        /// In what it goes back.
        why: String,
    },
    /// The file that remembers the newest lists can't be read.
    #[error(
        "{} is damaged, so that nobody can tell whether a revocation list is an older one: fetch the newest \
         lists from their authorities, then remove this file",
        path.display()
    )]
    CrlMemory {
        /// Which file.
        path: PathBuf,
    },
    /// An authority without a revocation list: none of its clients could be let in.
    #[error(
        "there is no revocation list of {issuer}, an authority in {}: name its CRL in \
         rpc.tls.client_crl too, or remove the authority",
        path.display()
    )]
    CrlMissing {
        /// The authorities' file.
        path: PathBuf,
        /// Which of them.
        issuer: String,
    },
    /// The TLS library refused its settings.
    #[error("TLS can't be set up")]
    SetUp(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Everything that is wrong with the certificate files at `now_ms`, milliseconds since 1970, each with
/// its setting: for `check-config`, before a server uses them.
pub fn check_certificates(tls: &TlsConfig, now_ms: u64) -> Vec<(&'static str, TlsError)> {
    let identity = check_identity(tls, now_ms).err().map(|error| ("rpc.tls.certificate", error));
    let wrong_callers = match check_authorities(tls) {
        // Lists are held against the authorities, so without these there is nothing to say of them.
        Err(error) => Some(("rpc.tls.client_ca", error)),
        Ok(authorities) => {
            check_lists(tls, &authorities, now_ms).err().map(|error| ("rpc.tls.client_crl", error))
        }
    };
    identity.into_iter().chain(wrong_callers).collect()
}

fn check_authorities(tls: &TlsConfig) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(&tls.client_ca)?;
    load_authorities(&tls.client_ca, &pem)?;
    load_chain(&tls.client_ca, &pem)
}

fn check_lists(
    tls: &TlsConfig,
    authorities: &[CertificateDer<'_>],
    now_ms: u64,
) -> Result<(), TlsError> {
    let files = tls
        .client_crls
        .iter()
        .map(|path| Ok((path.clone(), read(path)?)))
        .collect::<Result<Vec<_>, TlsError>>()?;
    let newest = Newest::read(tls.client_crl_memory.as_ref())?;
    let in_time = (now_ms, tls.client_crl_grace);
    revocation::load(&files, (&tls.client_ca, authorities), in_time, &newest).map(drop)
}

fn check_identity(tls: &TlsConfig, now_ms: u64) -> Result<(), TlsError> {
    let (certificate, private_key) = (&tls.certificate, &tls.private_key);
    let (chain, key) = (read(certificate)?, zeroize::Zeroizing::new(read(private_key)?));
    let provider = rustls::crypto::ring::default_provider();
    let identity = load_identity((certificate, &chain), (private_key, &key), &provider)?;
    if now_ms > identity.not_after_ms {
        return Err(TlsError::Expired { path: certificate.clone() });
    }
    if now_ms < identity.not_before_ms {
        return Err(TlsError::NotYetValid { path: certificate.clone() });
    }
    Ok(())
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// A certificate chain and its key, proved to belong together.
pub(crate) struct Identity {
    pub(crate) key: CertifiedKey,
    /// From when the leaf is valid; milliseconds since 1970.
    pub(crate) not_before_ms: u64,
    /// When the leaf expires; milliseconds since 1970.
    pub(crate) not_after_ms: u64,
}

/// Reads a chain and its key out of PEM text.
pub(crate) fn load_identity(
    (certificate, certificate_pem): (&Path, &[u8]),
    (private_key, private_key_pem): (&Path, &[u8]),
    provider: &CryptoProvider,
) -> Result<Identity, TlsError> {
    let chain = load_chain(certificate, certificate_pem)?;
    let key = PrivateKeyDer::from_pem_slice(private_key_pem)
        .map_err(|_| no_private_key(private_key, private_key_pem))?;
    let (not_before_ms, not_after_ms) = chain
        .first()
        .and_then(|leaf| validity_ms(leaf))
        .ok_or_else(|| unusable(certificate, "it is not an X.509 certificate"))?;
    let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        RustlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::Mismatch {
            certificate: certificate.to_owned(),
            private_key: private_key.to_owned(),
        },
        error => unusable(private_key, error),
    })?;
    Ok(Identity { key, not_before_ms, not_after_ms })
}

/// Why there is no private key in `bytes`.
fn no_private_key(path: &Path, bytes: &[u8]) -> TlsError {
    let has = |words: &[u8]| bytes.windows(words.len()).any(|window| window == words);
    // PKCS #8 says it in its label, the older form in a header.
    if has(b"BEGIN ENCRYPTED PRIVATE KEY") || has(b"Proc-Type: 4,ENCRYPTED") {
        return TlsError::Passphrase { path: path.to_owned() };
    }
    not_pem(path, bytes).unwrap_or_else(|| TlsError::NoPrivateKey { path: path.to_owned() })
}

/// What a file is that should be PEM and is not, where that can be told.
fn not_pem(path: &Path, bytes: &[u8]) -> Option<TlsError> {
    const MARKS: [&[u8]; 3] = [b"\xEF\xBB\xBF", b"\xFF\xFE", b"\xFE\xFF"];
    let path = path.to_owned();
    if MARKS.iter().any(|mark| bytes.starts_with(mark)) {
        Some(TlsError::ByteOrderMark { path })
    } else if is_der(bytes) {
        Some(TlsError::Der { path })
    } else {
        None
    }
}

/// One SEQUENCE of DER that is as long as it says.
fn is_der(bytes: &[u8]) -> bool {
    match bytes {
        [0x30, short @ ..=0x7F, rest @ ..] => rest.len() == usize::from(*short),
        [0x30, 0x81, length, rest @ ..] => rest.len() == usize::from(*length),
        [0x30, 0x82, high, low, rest @ ..] => {
            rest.len() == usize::from(u16::from_be_bytes([*high, *low]))
        }
        _ => false,
    }
}

/// Reads the authorities out of PEM text.
pub(crate) fn load_authorities(path: &Path, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in load_chain(path, pem)? {
        roots.add(authority).map_err(|error| unusable(path, error))?;
    }
    Ok(roots)
}

/// When the first of the certificates in PEM text expires; milliseconds since 1970.
pub(crate) fn first_expiry_ms(path: &Path, pem: &[u8]) -> Result<u64, TlsError> {
    let chain = load_chain(path, pem)?;
    let ends = chain.iter().filter_map(|it| validity_ms(it).map(|(_, not_after_ms)| not_after_ms));
    Ok(ends.min().unwrap_or(u64::MAX))
}

pub(crate) fn load_chain(
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(path, error))?;
    if chain.is_empty() {
        let other = not_pem(path, pem);
        return Err(other.unwrap_or_else(|| TlsError::NoCertificate { path: path.to_owned() }));
    }
    Ok(chain)
}

fn unusable(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> TlsError {
    TlsError::Unusable { path: path.to_owned(), source: source.into() }
}

/// What a certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// The first URI or DNS name among the alternative names; without one, the only common name.
    /// `None` if there is neither, or if it can't be a caller's name.
    pub(crate) name: Option<CallerName>,
    /// Milliseconds since 1970.
    pub(crate) not_after_ms: u64,
}

/// Reads a client's certificate. `None` if it is not an X.509 certificate.
pub(crate) fn holder_of(certificate: &CertificateDer<'_>) -> Option<Holder> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(Holder { name: name_of(&parsed), not_after_ms: expiry_of(&parsed)? })
}

fn name_of(certificate: &X509Certificate<'_>) -> Option<CallerName> {
    // An extension that is there twice or can't be read is no reason to believe the subject instead.
    let alternatives = certificate.subject_alternative_name().ok()?;
    let alternative = alternatives.iter().flat_map(|names| &names.value.general_names).find_map(
        |name| match name {
            GeneralName::URI(name) | GeneralName::DNSName(name) => Some(*name),
            _ => None,
        },
    );
    let name = match alternative {
        Some(name) => name,
        None => {
            let mut common_names = certificate.subject().iter_common_name();
            let name = common_names.next()?;
            if common_names.next().is_some() {
                return None;
            }
            name.as_str().ok()?
        }
    };
    CallerName::new(name).ok()
}

pub(crate) fn validity_ms(certificate: &CertificateDer<'_>) -> Option<(u64, u64)> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    // A certificate from before 1970 is valid since the beginning of our time.
    let not_before = u64::try_from(parsed.validity().not_before.timestamp()).unwrap_or(0);
    Some((not_before.checked_mul(1_000)?, expiry_of(&parsed)?))
}

fn expiry_of(certificate: &X509Certificate<'_>) -> Option<u64> {
    u64::try_from(certificate.validity().not_after.timestamp()).ok()?.checked_mul(1_000)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType, string::Ia5String};

    use super::*;

    fn holder(common_names: &[&str], alternatives: Vec<SanType>) -> Holder {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for name in common_names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.subject_alt_names = alternatives;
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        holder_of(certificate.der()).unwrap()
    }

    fn ia5(name: &str) -> Ia5String {
        Ia5String::try_from(name).unwrap()
    }

    fn name(holder: &Holder) -> Option<&str> {
        holder.name.as_ref().map(CallerName::as_str)
    }

    #[test]
    fn the_first_uri_or_dns_name_is_the_callers() {
        let ip = SanType::IpAddress([127, 0, 0, 1].into());
        let uri = SanType::URI(ia5("spiffe://utility/hes"));
        let dns = SanType::DnsName(ia5("hes-1"));
        let both = holder(&["cn"], vec![ip.clone(), uri.clone(), dns.clone()]);
        assert_eq!(name(&both), Some("spiffe://utility/hes"));
        assert_eq!(name(&holder(&["cn"], vec![dns, uri])), Some("hes-1"));
        assert_eq!(name(&holder(&["cn"], vec![ip])), Some("cn"));
        assert_eq!(name(&holder(&["cn"], vec![])), Some("cn"));
    }

    #[test]
    fn no_name_is_made_up() {
        assert_eq!(name(&holder(&[], vec![])), None);
        assert_eq!(name(&holder(&["two words"], vec![])), None);
        assert_eq!(name(&holder(&["line\nbreak"], vec![])), None);
        // A name that can't be used does not fall back to one that its holder may have chosen.
        assert_eq!(name(&holder(&["admin"], vec![SanType::DnsName(ia5("a b"))])), None);
    }

    #[test]
    fn what_is_no_certificate_has_no_holder() {
        assert_eq!(holder_of(&CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])), None);
    }
}
