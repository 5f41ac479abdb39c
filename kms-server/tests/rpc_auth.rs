//! Every call is refused without a certificate, with a foreign authority's, with an expired one, and
//! with a role that lacks it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "helpers of tests"
)]

#[allow(dead_code, reason = "each test file uses a part")]
mod rpc_support;

use std::collections::BTreeSet;

use kms_server::rpc::{Role, Verb};
use rpc_support::{
    Ca, HEALTH, Identity, Name, Site, call, client_config, connect, holder_of, paths, reason,
    shake_hands,
};
use rustls::version::{TLS12, TLS13};
use tonic::Code;

const UNKNOWN_PATHS: [&str; 4] =
    ["/ami.kms.v1.Ciphering/Guess", "/ami.kms.v1.Nothing/At", "/grpc.health.v1.X/Check", "/"];

async fn refusal(site: &Site, identity: Option<&Identity>) -> String {
    let config = client_config(&site.ca.pem(), identity, &[&TLS13]);
    match shake_hands(site.address(), config).await {
        Ok(_) => panic!("the server accepted the client"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_at_the_handshake() {
    let site = Site::start().await;
    let refusal = refusal(&site, None).await;
    assert!(refusal.contains("CertificateRequired"), "{refusal}");
}

#[tokio::test]
async fn a_certificate_of_a_foreign_authority_is_refused_at_the_handshake() {
    let site = Site::start().await;
    // Same issuer name, other key.
    let foreign = Ca::new().client(&Name::Dns("everyone"));
    let refusal = refusal(&site, Some(&foreign)).await;
    assert!(
        refusal.contains("BadCertificate")
            || refusal.contains("UnknownCA")
            || refusal.contains("DecryptError"),
        "{refusal}"
    );
}

#[tokio::test]
async fn a_self_signed_certificate_is_refused_at_the_handshake() {
    let site = Site::start().await;
    let refusal = refusal(&site, Some(&Identity::self_signed(&Name::Dns("everyone")))).await;
    assert!(refusal.contains("UnknownCA"), "{refusal}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_at_the_handshake() {
    let site = Site::start().await;
    let expired = site.ca.client_of_years(&Name::Dns("everyone"), 2000, 2001);
    let refusal = refusal(&site, Some(&expired)).await;
    assert!(refusal.contains("CertificateExpired"), "{refusal}");
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_is_refused_at_the_handshake() {
    let site = Site::start().await;
    let early = site.ca.client_of_years(&Name::Dns("everyone"), 3000, 3001);
    let refusal = refusal(&site, Some(&early)).await;
    assert!(refusal.contains("received fatal alert"), "{refusal}");
}

#[tokio::test]
async fn a_servers_certificate_is_no_clients() {
    let site = Site::start().await;
    let refusal = refusal(&site, Some(&site.ca.server())).await;
    assert!(refusal.contains("received fatal alert"), "{refusal}");
}

#[tokio::test]
async fn tls_1_2_is_refused_at_the_handshake() {
    let site = Site::start().await;
    let identity = site.ca.client(&Name::Dns("everyone"));
    let config = client_config(&site.ca.pem(), Some(&identity), &[&TLS12]);
    let refused = shake_hands(site.address(), config).await.unwrap_err();
    assert!(refused.to_string().contains("ProtocolVersion"), "{refused}");
    let config = client_config(&site.ca.pem(), Some(&identity), &[&TLS12, &TLS13]);
    let stream = shake_hands(site.address(), config).await.unwrap();
    let session = stream.get_ref().1;
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    // Nothing to resume with: each connection shows its certificate.
    assert_eq!(session.tls13_tickets_received(), 0);
}

#[tokio::test]
async fn a_client_that_does_not_speak_http_2_is_refused() {
    let site = Site::start().await;
    let identity = site.ca.client(&Name::Dns("everyone"));
    for protocols in [vec![], vec![b"http/1.1".to_vec()]] {
        let config = client_config(&site.ca.pem(), Some(&identity), &[&TLS13]);
        let mut config = config.as_ref().clone();
        config.alpn_protocols = protocols;
        assert!(shake_hands(site.address(), config.into()).await.is_err());
    }
}

#[tokio::test]
async fn a_caller_whom_the_policy_does_not_know_learns_nothing() {
    let site = Site::start().await;
    let stranger = site.caller("stranger").await;
    for path in paths().iter().map(String::as_str).chain(UNKNOWN_PATHS).chain([HEALTH]) {
        let answer = call(&stranger, path).await;
        assert_eq!(reason(&answer), (Code::PermissionDenied, "UNKNOWN_CALLER".into()), "{path}");
    }
}

#[tokio::test]
async fn a_certificate_without_a_name_is_no_caller() {
    let site = Site::start().await;
    let nameless = site.ca.client(&Name::Nothing);
    let channel = connect(site.address(), &site.ca.pem(), Some(&nameless)).await.unwrap();
    for path in [HEALTH, "/ami.kms.v1.Site/GetStatus", UNKNOWN_PATHS[0]] {
        let answer = call(&channel, path).await;
        let expected = (Code::Unauthenticated, "CERTIFICATE_WITHOUT_NAME".into());
        assert_eq!(reason(&answer), expected, "{path}");
    }
}

#[tokio::test]
async fn a_caller_is_known_by_uri_dns_name_or_common_name() {
    let site = Site::start().await;
    for name in [Name::Uri("spiffe://utility/hes"), Name::Dns("everyone"), Name::Common("everyone")]
    {
        let identity = site.ca.client(&name);
        let channel = connect(site.address(), &site.ca.pem(), Some(&identity)).await.unwrap();
        call(&channel, HEALTH).await.unwrap();
    }
}

#[tokio::test]
async fn every_role_is_refused_exactly_the_calls_it_lacks() {
    let site = Site::start().await;
    for role in Role::ALL {
        let channel = site.caller(&holder_of(role)).await;
        for path in paths() {
            let verb = Verb::of_path(&path).unwrap();
            let answer = reason(&call(&channel, &path).await);
            // No service is behind this gate: what passes it is unimplemented, without a word of ours.
            // Approvals stand on no part and are there.
            let expected = if role.may_by_default(verb) {
                match verb {
                    Verb::ListApprovals => (Code::Ok, String::new()),
                    Verb::ApproveCall | Verb::AskAhead => {
                        (Code::InvalidArgument, "BAD_FIELD".to_owned())
                    }
                    // Never by one person alone.
                    Verb::ReadmitMeter
                    | Verb::AdmitEpoch
                    | Verb::ForgetRevocationList
                    | Verb::ReviveKey => {
                        (Code::FailedPrecondition, "SECOND_PERSON_NEEDED".to_owned())
                    }
                    _ => (Code::Unimplemented, String::new()),
                }
            } else {
                (Code::PermissionDenied, "NOT_GRANTED".to_owned())
            };
            assert_eq!(answer, expected, "{role} {path}");
        }
        call(&channel, HEALTH).await.unwrap();
        for path in UNKNOWN_PATHS {
            let expected = (Code::Unimplemented, "UNKNOWN_METHOD".to_owned());
            assert_eq!(reason(&call(&channel, path).await), expected, "{role} {path}");
        }
    }
}

#[test]
fn every_method_of_the_package_has_its_verb_and_every_verb_its_method() {
    let of_methods: BTreeSet<Verb> = paths()
        .iter()
        .map(|path| Verb::of_path(path).unwrap_or_else(|| panic!("{path} has no verb")))
        .collect();
    assert_eq!(of_methods.len(), paths().len());
    assert_eq!(of_methods, Verb::GRANTABLE.iter().copied().collect());
}

#[tokio::test]
async fn a_connection_does_not_outlive_its_certificate() {
    let site = Site::start().await;
    let identity = site.ca.client_of_years(&Name::Dns("everyone"), 2020, 2099);
    let channel = connect(site.address(), &site.ca.pem(), Some(&identity)).await.unwrap();
    call(&channel, HEALTH).await.unwrap();
    site.clock.advance_years(100);
    for path in paths().iter().map(String::as_str).chain([HEALTH]) {
        let answer = call(&channel, path).await;
        let expected = (Code::Unauthenticated, "CERTIFICATE_EXPIRED".into());
        assert_eq!(reason(&answer), expected, "{path}");
    }
}
