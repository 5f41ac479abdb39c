//! The development certificates before the verifiers that the server and its clients use: each wrong
//! leaf is refused, and for its own fault.

#![expect(clippy::expect_used, reason = "helpers of tests may")]

use std::sync::Arc;

use softhsm_tests::{Authority, Identity};
use tokio_rustls::rustls::{
    CertificateError, Error, ExtendedKeyPurpose, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

type Checked = Result<(), Error>;

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM of our own making")
}

fn roots(authority: &Authority) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(der(authority.certificate_pem())).expect("a CA certificate");
    Arc::new(roots)
}

fn as_client(authority: &Authority, leaf: &Identity) -> Checked {
    let verifier = WebPkiClientVerifier::builder(roots(authority)).build().expect("one root");
    verifier.verify_client_cert(&der(&leaf.certificate_pem), &[], UnixTime::now()).map(drop)
}

fn as_server(authority: &Authority, leaf: &Identity, name: &'static str) -> Checked {
    let verifier = WebPkiServerVerifier::builder(roots(authority)).build().expect("one root");
    let name = ServerName::try_from(name).expect("a name");
    let leaf = der(&leaf.certificate_pem);
    verifier.verify_server_cert(&leaf, &[], &name, &[], UnixTime::now()).map(drop)
}

#[test]
fn a_callers_leaf_is_accepted() {
    let authority = Authority::make("ours").unwrap();
    assert_eq!(as_client(&authority, &authority.client("hes-1").unwrap()), Ok(()));
}

#[test]
fn a_leaf_of_an_authority_that_was_kept_is_accepted() {
    let made = Authority::make("ours").unwrap();
    let loaded = Authority::load("ours", &made.identity()).unwrap();
    assert_eq!(as_client(&made, &loaded.client("hes-1").unwrap()), Ok(()));
}

#[test]
fn the_servers_leaf_is_accepted_for_its_names_and_not_for_others() {
    let authority = Authority::make("ours").unwrap();
    let server = authority.server().unwrap();
    assert_eq!(as_server(&authority, &server, "localhost"), Ok(()));
    assert_eq!(as_server(&authority, &server, "127.0.0.1"), Ok(()));
    assert!(as_server(&authority, &server, "example.org").is_err());
}

#[test]
fn a_foreign_authoritys_leaf_is_not_accepted_even_under_our_authoritys_name() {
    let (ours, foreign) = (Authority::make("ours").unwrap(), Authority::make("ours").unwrap());
    assert!(as_client(&ours, &foreign.client("hes-1").unwrap()).is_err());
}

#[test]
fn an_expired_leaf_is_not_accepted() {
    let authority = Authority::make("ours").unwrap();
    let refused = as_client(&authority, &authority.expired_client("hes-1").unwrap());
    assert!(
        matches!(
            refused,
            Err(Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            ))
        ),
        "{refused:?}"
    );
}

#[test]
fn a_leaf_for_servers_is_not_accepted_from_a_client_nor_the_other_way_round() {
    let authority = Authority::make("ours").unwrap();
    let refused = as_client(&authority, &authority.client_with_server_usage("hes-1").unwrap());
    let wanted = |refused: &Checked, purpose: ExtendedKeyPurpose| {
        matches!(refused, Err(Error::InvalidCertificate(
            CertificateError::InvalidPurposeContext { required, .. })) if *required == purpose)
    };
    assert!(wanted(&refused, ExtendedKeyPurpose::ClientAuth), "{refused:?}");
    let refused = as_server(&authority, &authority.client("localhost").unwrap(), "localhost");
    assert!(wanted(&refused, ExtendedKeyPurpose::ServerAuth), "{refused:?}");
}
