//! The check of the certificate files before a server uses them.

use rustls::pki_types::CertificateDer;

use super::{
    certificate::{Pem, load_authorities, load_chain, load_identity, read},
    error::TlsError,
    newest::Newest,
    revocation::{self, Demands},
};
use crate::rpc::config::TlsConfig;

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
    let demands = Demands {
        client_ca: &tls.client_ca,
        authorities,
        newest: &newest,
        now_ms,
        grace: tls.client_crl_grace,
    };
    revocation::load(&files, &demands).map(drop)
}

fn check_identity(tls: &TlsConfig, now_ms: u64) -> Result<(), TlsError> {
    let (certificate, private_key) = (&tls.certificate, &tls.private_key);
    let (chain, key) = (read(certificate)?, zeroize::Zeroizing::new(read(private_key)?));
    let provider = rustls::crypto::ring::default_provider();
    let identity = load_identity(
        Pem { path: certificate, content: &chain },
        Pem { path: private_key, content: &key },
        &provider,
    )?;
    if now_ms > identity.not_after_ms {
        return Err(TlsError::Expired { path: certificate.clone() });
    }
    if now_ms < identity.not_before_ms {
        return Err(TlsError::NotYetValid { path: certificate.clone() });
    }
    Ok(())
}
