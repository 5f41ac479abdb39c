//! Certificates and keys in PEM, and what a certificate says of its holder.

use std::path::Path;

use rustls::{
    Error as RustlsError, InconsistentKeys, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use super::error::TlsError;
use crate::rpc::access::policy::CallerName;

/// Reads a file of certificates or of a key.
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

/// A file that was read.
#[derive(Clone, Copy)]
pub(crate) struct Pem<'a> {
    /// Its path, for what is said of it.
    pub(crate) path: &'a Path,
    /// Its content.
    pub(crate) content: &'a [u8],
}

/// Reads a chain and its key out of PEM text.
pub(crate) fn load_identity(
    certificate: Pem<'_>,
    private_key: Pem<'_>,
    provider: &CryptoProvider,
) -> Result<Identity, TlsError> {
    let chain = load_chain(certificate.path, certificate.content)?;
    let key = PrivateKeyDer::from_pem_slice(private_key.content)
        .map_err(|_| no_private_key(private_key.path, private_key.content))?;
    let (certificate, private_key) = (certificate.path, private_key.path);
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

/// The reason why there is no private key in `bytes`.
fn no_private_key(path: &Path, bytes: &[u8]) -> TlsError {
    let has = |words: &[u8]| bytes.windows(words.len()).any(|window| window == words);
    // PKCS #8 says it in its label, the older form in a header.
    if has(b"BEGIN ENCRYPTED PRIVATE KEY") || has(b"Proc-Type: 4,ENCRYPTED") {
        return TlsError::Passphrase { path: path.to_owned() };
    }
    not_pem(path, bytes).unwrap_or_else(|| TlsError::NoPrivateKey { path: path.to_owned() })
}

/// The fault of a file that should be PEM and is not, where that can be told.
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

/// Reads certificates out of PEM text.
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

/// The holder of a certificate, as that says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// The first URI or DNS name among the alternative names; without one, the only common name.
    /// `None` if there is neither, or if it can't be a caller's name.
    pub(crate) name: Option<CallerName>,
    /// Milliseconds since 1970.
    pub(crate) not_after_ms: u64,
}

/// The holder of a client's certificate. `None` if it is not an X.509 certificate.
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

/// From when to when a certificate is valid; milliseconds since 1970.
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
