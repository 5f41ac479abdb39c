//! Authorities out of files, held against each other: by whom another server is believed, as a server and as a caller.
//! Said is what these files alone show, whatever certificates there are elsewhere.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate, extensions::ParsedExtension, prelude::FromDer as _,
    x509::X509Version,
};

use super::{
    certificate::{load_authorities, load_chain, read},
    error::TlsError,
};
use crate::rpc::config::TlsConfig;

/// Holders that are named: a file may have a whole system's authorities.
const SUBJECTS_NAMED_MAX: usize = 3;

/// The fault of the authorities in the file at `path`, by whom another server is believed.
pub fn check_ca(path: &Path) -> Option<TlsError> {
    let certificates = match authorities(path) {
        Ok(certificates) => certificates,
        Err(error) => return Some(error),
    };
    let parsed = parsed(&certificates);
    let none = !parsed.is_empty() && parsed.iter().all(is_no_authority);
    none.then(|| TlsError::NoAuthority { path: path.to_owned(), subjects: subjects(&parsed) })
}

/// The fault of two files that don't go together: whoever is believed as the other site by the authorities in `ca` is no
/// caller by `client_ca`. Nothing where either can't be read, which is said elsewhere.
pub fn check_peer_as_caller(tls: &TlsConfig, ca: &Path) -> Option<TlsError> {
    let (theirs, ours) = (authorities(ca).ok()?, authorities(&tls.client_ca).ok()?);
    let (theirs, ours) = (parsed(&theirs), parsed(&ours));
    let is_ours = |it: &X509Certificate<'_>| {
        ours.iter().any(|our| our.public_key().raw == it.public_key().raw)
    };
    // Above one that somebody else issued there are authorities that stand in neither file, and may join the two.
    let is_known_whole = theirs.iter().chain(&ours).all(is_root);
    let (ca, subjects, client_ca) = (ca.to_owned(), subjects(&theirs), tls.client_ca.clone());
    let is_sure =
        is_known_whole && !theirs.iter().any(is_ours) && !theirs.is_empty() && !ours.is_empty();
    is_sure.then_some(TlsError::PeerTurnedAway { ca, subjects, client_ca })
}

fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    load_authorities(path, &pem)?;
    load_chain(path, &pem)
}

/// None of them, where one can't be parsed: of the others alone nothing could be said of all.
fn parsed<'a>(certificates: &'a [CertificateDer<'_>]) -> Vec<X509Certificate<'a>> {
    let parsed = |der: &'a CertificateDer<'_>| Some(X509Certificate::from_der(der).ok()?.1);
    certificates.iter().map(parsed).collect::<Option<_>>().unwrap_or_default()
}

/// Whether a certificate is that of somebody who issues none. One that its holder made himself is believed as it is, and
/// before version 3 certificates say nothing of it.
fn is_no_authority(certificate: &X509Certificate<'_>) -> bool {
    let may_issue = match certificate.basic_constraints() {
        Ok(said) => said.is_some_and(|basic| basic.value.ca),
        Err(_) => true,
    };
    certificate.version() == X509Version::V3 && !is_of_itself(certificate) && !may_issue
}

/// Whether nobody stands above it. A new key that the former one vouches for has one name with it, and says whose key
/// signed it.
fn is_root(certificate: &X509Certificate<'_>) -> bool {
    let (mut own, mut signer) = (None, None);
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(key) => own = Some(key.0),
            ParsedExtension::AuthorityKeyIdentifier(by) => {
                signer = by.key_identifier.as_ref().map(|key| key.0);
            }
            _ => {}
        }
    }
    is_of_itself(certificate) && signer.is_none_or(|signer| own == Some(signer))
}

fn is_of_itself(certificate: &X509Certificate<'_>) -> bool {
    certificate.subject().as_raw() == certificate.issuer().as_raw()
}

fn subjects(certificates: &[X509Certificate<'_>]) -> String {
    let named = certificates.iter().take(SUBJECTS_NAMED_MAX).map(|it| it.subject().to_string());
    let mut named: Vec<String> = named.collect();
    if certificates.len() > SUBJECTS_NAMED_MAX {
        named.push("…".to_owned());
    }
    named.join("; ")
}
