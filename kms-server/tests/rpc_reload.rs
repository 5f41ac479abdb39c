//! New certificates are taken into use while the server runs; bad ones never are.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

#[allow(dead_code, reason = "each test file uses a part")]
mod rpc_support;

use std::{error::Error as _, fs};

use kms_server::rpc::{self, GateParts, Limits, Reloaded, RpcError, TlsError};
use rpc_support::{
    Ca, HEALTH, Name, SOON, Site, TestClock, audit_log, call, client_config, config, eventually,
    reason, shake_hands, write_files,
};
use rustls::version::TLS13;
use tonic::{Code, service::Routes};

async fn server_certificate(site: &Site, ca: &Ca, client_ca: &Ca) -> Option<Vec<u8>> {
    let identity = client_ca.client(&Name::Dns("everyone"));
    let config = client_config(&ca.pem(), Some(&identity), &[&TLS13]);
    let stream = shake_hands(site.address(), config).await.ok()?;
    Some(stream.get_ref().1.peer_certificates()?.first()?.to_vec())
}

#[tokio::test]
async fn a_new_server_certificate_is_picked_up_without_a_restart() {
    let site = Site::start().await;
    let old = server_certificate(&site, &site.ca, &site.ca).await.unwrap();
    let running = site.caller("everyone").await;
    write_files(site.files.path(), &site.ca.server(), &site.ca.pem());
    eventually("the new certificate is not in use", async || {
        server_certificate(&site, &site.ca, &site.ca).await.unwrap() != old
    })
    .await;
    // Whoever was connected notices nothing.
    call(&running, HEALTH).await.unwrap();
}

#[tokio::test]
async fn a_new_authority_replaces_the_old_one_for_running_connections_too() {
    let site = Site::start().await;
    let running = site.caller("everyone").await;
    call(&running, HEALTH).await.unwrap();
    let new = Ca::new();
    fs::write(site.files.path().join("ca.pem"), new.pem()).unwrap();
    eventually("the new authority is not in use", async || {
        server_certificate(&site, &site.ca, &new).await.is_some()
    })
    .await;
    assert!(server_certificate(&site, &site.ca, &site.ca).await.is_none());
    let refused = reason(&call(&running, HEALTH).await);
    assert_eq!(refused, (Code::Unauthenticated, "CERTIFICATE_NOT_TRUSTED".into()));
}

#[tokio::test]
async fn a_running_connection_goes_on_while_its_authority_stays() {
    let site = Site::start().await;
    let running = site.caller("everyone").await;
    let both = format!("{}{}", site.ca.pem(), Ca::new().pem());
    fs::write(site.files.path().join("ca.pem"), both).unwrap();
    assert!(site.bound.control.reload().await.is_ok());
    call(&running, HEALTH).await.unwrap();
    call(&running, HEALTH).await.unwrap();
}

#[tokio::test]
async fn bad_files_change_nothing_and_are_reported_until_they_are_mended() {
    let site = Site::start().await;
    let good = server_certificate(&site, &site.ca, &site.ca).await.unwrap();
    let (server, other) = (site.ca.server(), site.ca.server());
    let path = |name: &str| site.files.path().join(name);
    let ways: [(&str, &dyn Fn()); 6] = [
        ("is not that of the certificate", &|| {
            fs::write(path("server.pem"), &server.certificate).unwrap();
            fs::write(path("server.key"), &other.key).unwrap();
        }),
        ("holds no PEM private key", &|| fs::write(path("server.key"), "nonsense").unwrap()),
        ("holds no PEM certificate", &|| fs::write(path("server.pem"), "").unwrap()),
        ("can't be used", &|| {
            let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
            fs::write(path("server.pem"), broken).unwrap();
        }),
        ("holds no PEM certificate", &|| fs::write(path("ca.pem"), "").unwrap()),
        ("can't be read", &|| fs::remove_file(path("ca.pem")).unwrap()),
    ];
    for (sentence, break_it) in ways {
        write_files(site.files.path(), &site.ca.server(), &site.ca.pem());
        break_it();
        let refused = site.bound.control.reload().await.unwrap_err();
        assert!(refused.to_string().contains(sentence), "{refused}");
        assert!(site.bound.control.tls_fault().unwrap().contains(sentence));
        let running = server_certificate(&site, &site.ca, &site.ca).await.unwrap();
        // The poll may have seen the good files between two ways; never the broken ones.
        assert!(!running.is_empty());
        call(&site.caller("everyone").await, HEALTH).await.unwrap();
    }
    write_files(site.files.path(), &server, &site.ca.pem());
    eventually("the fault stays", async || site.bound.control.tls_fault().is_none()).await;
    assert_ne!(server_certificate(&site, &site.ca, &site.ca).await.unwrap(), good);
    assert!(matches!(site.bound.control.reload().await, Ok(Reloaded::Unchanged)));
}

#[tokio::test]
async fn a_key_that_is_not_the_certificates_is_no_start_and_says_what_to_do() {
    let ca = Ca::new();
    let files = tempfile::TempDir::new().unwrap();
    write_files(files.path(), &ca.server(), &ca.pem());
    fs::write(files.path().join("server.key"), ca.server().key).unwrap();
    let (ready, _bound) = tokio::sync::oneshot::channel();
    let (_log, audit) = audit_log().await;
    let parts = GateParts { services: Routes::default(), audit, clock: TestClock::new() };
    let config = config(files.path(), Limits::default());
    let serving = rpc::serve_services(config, parts, std::future::pending(), ready);
    let refused = tokio::time::timeout(SOON, serving).await.unwrap().unwrap_err();
    assert!(matches!(&refused, RpcError::Tls(TlsError::Mismatch { .. })), "{refused:?}");
    assert!(refused.to_string().contains("server.key is not that of the certificate"), "{refused}");
    assert!(refused.to_string().contains("install the two that were issued together"), "{refused}");
    assert!(refused.source().is_none());
}
