//! Faults of the server's own certificate that the clients of this service will refuse. Clients are on rustls, too,
//! and judge by RFC 5280: what is found here would otherwise show at each of them as a failed handshake.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use rustls::{crypto::ring, pki_types::CertificateDer};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer as _,
};

use super::{
    certificate::{load_chain, read, validity_ms},
    error::TlsError,
};
use crate::rpc::config::TlsConfig;

/// Everything that clients will refuse of the certificate, and who else can read its key; each with its
/// setting. What keeps the server itself from using them is for
/// [`check_certificates`](super::checking::check_certificates).
pub fn check_presented(tls: &TlsConfig, now_ms: u64) -> Vec<(&'static str, TlsError)> {
    let path = &tls.certificate;
    // Not readable or no certificate: said by the other check.
    let chain = read(path).and_then(|pem| load_chain(path, &pem)).unwrap_or_default();
    let refused = refusals(&chain, now_ms).into_iter().map(|reason| {
        ("rpc.tls.certificate", TlsError::RefusedByClients { path: path.clone(), reason })
    });
    let exposed = exposed(&tls.private_key).map(|error| ("rpc.tls.private_key", error));
    refused.chain(exposed).collect()
}

/// The fault of the certificate for which other servers refuse it, where this one is their client.
pub fn check_as_client(tls: &TlsConfig) -> Option<(&'static str, TlsError)> {
    let path = &tls.certificate;
    let chain = read(path).and_then(|pem| load_chain(path, &pem)).ok()?;
    let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
    let usage = leaf.extended_key_usage().ok().flatten()?;
    let error = TlsError::NotForClients { path: path.clone() };
    (!usage.value.client_auth).then_some(("rpc.tls.certificate", error))
}

fn exposed(path: &Path) -> Option<TlsError> {
    let mode = fs::metadata(path).ok()?.mode() & 0o777;
    // The group may read it: it is how a key of root's reaches the service's account.
    (mode & 0o007 != 0).then(|| TlsError::KeyExposed { path: path.to_owned(), mode })
}

/// The faults for which clients refuse this chain, each as the end of a sentence.
fn refusals(chain: &[CertificateDer<'_>], now_ms: u64) -> Vec<String> {
    let mut refusals = Vec::new();
    let Some((leaf, others)) = chain.split_first() else { return refusals };
    if let Ok((_, leaf)) = X509Certificate::from_der(leaf) {
        refusals.extend(refusals_of_leaf(&leaf));
    }
    for (number, certificate) in (1..).zip(chain) {
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { continue };
        if !can_be_verified(&parsed) {
            refusals.push(format!(
                "certificate {number} of the file is signed with an algorithm that they don't verify \
                 ({}): have it signed with ECDSA and SHA-256, or RSA of 2,048 bits or more and SHA-256",
                parsed.signature_algorithm.algorithm
            ));
        }
    }
    for (number, intermediate) in (2..).zip(others) {
        let valid = validity_ms(intermediate);
        if valid.is_some_and(|(from, to)| now_ms < from || now_ms > to) {
            refusals.push(format!(
                "certificate {number} of the file, an intermediate, has expired or is not valid yet: put \
                 the authority's present one there"
            ));
        }
    }
    refusals
}

fn refusals_of_leaf(leaf: &X509Certificate<'_>) -> Vec<String> {
    let mut refusals = Vec::new();
    let names = leaf.subject_alternative_name().ok().flatten();
    let names_a_host = names.is_some_and(|names| {
        let mut names = names.value.general_names.iter();
        names.any(|name| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_)))
    });
    if !names_a_host {
        refusals.push(
            "it names no host: they look for the name that they connect to among the subject \
             alternative names (DNS or IP) and nowhere else, so issue it again with one"
                .to_owned(),
        );
    }
    let usage = leaf.extended_key_usage().ok().flatten();
    if usage.is_some_and(|usage| !usage.value.server_auth) {
        refusals.push(
            "it is not for servers: issue it again with the extended key usage serverAuth"
                .to_owned(),
        );
    }
    if leaf.basic_constraints().ok().flatten().is_some_and(|basic| basic.value.ca) {
        refusals.push(
            "it is an authority's (CA:TRUE): let that authority issue one for this server"
                .to_owned(),
        );
    }
    let signs = leaf.key_usage().ok().flatten().is_none_or(|usage| usage.value.digital_signature());
    if !signs {
        refusals.push(
            "its key may not sign, and in TLS 1.3 it has to: issue it again with the key usage \
             digitalSignature"
                .to_owned(),
        );
    }
    let unknown = leaf.extensions().iter().find(|extension| {
        let is_known = matches!(
            extension.parsed_extension(),
            ParsedExtension::SubjectAlternativeName(_)
                | ParsedExtension::BasicConstraints(_)
                | ParsedExtension::KeyUsage(_)
                | ParsedExtension::ExtendedKeyUsage(_)
                | ParsedExtension::NameConstraints(_)
                | ParsedExtension::CRLDistributionPoints(_)
        );
        extension.critical && !is_known
    });
    refusals.extend(unknown.map(|extension| {
        format!(
            "it has a critical extension that they don't know ({}): issue it again without that",
            extension.oid
        )
    }));
    refusals
}

/// Whether there is an algorithm for this certificate's signature among those that clients have.
fn can_be_verified(certificate: &X509Certificate<'_>) -> bool {
    let oid = certificate.signature_algorithm.algorithm.as_bytes();
    ring::default_provider().signature_verification_algorithms.all.iter().any(|algorithm| {
        // An AlgorithmIdentifier's contents: the identifier first, as 06 len bytes.
        let identifier = algorithm.signature_alg_id();
        matches!(identifier.split_first_chunk(), Some(([0x06, len], rest))
            if usize::from(*len) == oid.len() && rest.starts_with(oid))
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa,
        KeyPair, KeyUsagePurpose,
    };

    use super::*;

    fn said(params: &CertificateParams) -> Vec<String> {
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        refusals(&[certificate.der().clone()], 1_700_000_000_000)
    }

    fn good() -> CertificateParams {
        let mut params = CertificateParams::new(vec!["kms.example.org".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params
    }

    #[track_caller]
    fn says(params: &CertificateParams, words: &str) {
        let said = said(params);
        assert!(said.len() == 1 && said[0].contains(words), "{words}: {said:?}");
    }

    #[test]
    fn what_clients_refuse_is_found_by_name() {
        assert_eq!(said(&good()), Vec::<String>::new());
        let mut without_usages = good();
        without_usages.extended_key_usages.clear();
        assert_eq!(said(&without_usages), Vec::<String>::new());

        let mut nameless = good();
        nameless.subject_alt_names.clear();
        says(&nameless, "names no host");
        let mut for_clients = good();
        for_clients.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        says(&for_clients, "not for servers");
        let mut authority = good();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        says(&authority, "CA:TRUE");
        let mut silent = good();
        silent.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
        says(&silent, "may not sign");
        let mut odd = good();
        let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        extension.set_criticality(true);
        odd.custom_extensions = vec![extension];
        says(&odd, "critical extension that they don't know (1.2.3.4)");
    }

    #[test]
    fn an_algorithm_that_clients_do_not_verify_is_found() {
        let certificate = good().self_signed(&KeyPair::generate().unwrap()).unwrap();
        let mut der = certificate.der().to_vec();
        let with_sha256 = [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 0x02];
        let mut places: Vec<usize> = Vec::new();
        for at in 0..der.len() - with_sha256.len() {
            if der[at..].starts_with(&with_sha256) {
                places.push(at);
            }
        }
        assert_eq!(places.len(), 2);
        for at in places {
            der[at + 7] = 0x04; // ecdsa-with-SHA512
        }
        let said = refusals(&[der.into()], 1_700_000_000_000);
        assert!(said.len() == 1 && said[0].contains("1.2.840.10045.4.3.4"), "{said:?}");
    }

    #[test]
    fn an_intermediate_that_has_expired_is_found() {
        let leaf = good().self_signed(&KeyPair::generate().unwrap()).unwrap();
        let mut old = good();
        old.not_after = rcgen::date_time_ymd(2001, 1, 1);
        let old = old.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let said = refusals(&[leaf.der().clone(), old.der().clone()], 1_700_000_000_000);
        assert!(said.len() == 1 && said[0].starts_with("certificate 2"), "{said:?}");
    }
}
