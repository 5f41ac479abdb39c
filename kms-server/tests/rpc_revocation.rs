//! Who stands in a revocation list is not let in, and is not let go on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

#[allow(dead_code, reason = "each test file uses a part")]
mod rpc_support;

use std::{fs, path::Path, time::Duration};

use kms_server::rpc::{
    self, Config, GateParts, Limits, Reloaded, RpcError, TlsError, check_certificates,
};
use rpc_support::{
    Ca, HEALTH, Identity, Name, SOON, Site, TestClock, audit_log, call, client_config, config,
    connect, eventually, reason, shake_hands, watch, write_files,
};
use rustls::version::TLS13;
use tonic::{Code, service::Routes};

/// Longer than these tests live.
const VALID: (i32, i32) = (2020, 2090);
/// Over for long.
const EXPIRED: (i32, i32) = (2020, 2021);

fn use_list(config: &mut Config, list: &[u8]) {
    let path = config.tls.client_ca.with_file_name("clients.crl");
    fs::write(&path, list).unwrap();
    config.tls.client_crls = vec![path];
}

/// A site whose list names nobody yet.
async fn site() -> Site {
    Site::start_changed(|ca, config| {
        use_list(config, ca.crl(&[], VALID).pem().unwrap().as_bytes());
    })
    .await
}

fn write_list(site: &Site, list: &[u8]) {
    fs::write(site.files.path().join("clients.crl"), list).unwrap();
}

async fn refusal(site: &Site, identity: &Identity) -> Option<String> {
    let config = client_config(&site.ca.pem(), Some(identity), &[&TLS13]);
    shake_hands(site.address(), config).await.err().map(|error| error.to_string())
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_at_the_handshake_and_no_other_is() {
    for pem in [true, false] {
        let site = site().await;
        let [revoked, other] = [(), ()].map(|()| site.ca.client(&Name::Dns("everyone")));
        assert_eq!(refusal(&site, &revoked).await, None);
        let list = site.ca.crl(&[&revoked], VALID);
        if pem {
            write_list(&site, list.pem().unwrap().as_bytes());
        } else {
            write_list(&site, list.der());
        }
        eventually("the list is not in use", async || refusal(&site, &revoked).await.is_some())
            .await;
        let said = refusal(&site, &revoked).await.unwrap();
        assert!(said.contains("CertificateRevoked"), "{said}");
        assert_eq!(refusal(&site, &other).await, None);
        let (_, page) = watch(&site, "/metrics").await;
        assert!(
            page.contains("kms_rpc_certificate_left_days{certificate=\"client_crl\"}"),
            "{page}"
        );
        let counted = page
            .lines()
            .find_map(|line| {
                line.strip_prefix("kms_rpc_handshake_failures_total{reason=\"revoked\"} ")
            })
            .unwrap();
        assert!(counted.parse::<u64>().unwrap() >= 2, "{counted}");
    }
}

#[tokio::test]
async fn an_open_connection_ends_with_the_revocation_of_its_certificate() {
    let site = site().await;
    let identities = [(), ()].map(|()| site.ca.client(&Name::Dns("everyone")));
    let ca = site.ca.pem();
    let revoked = connect(site.address(), &ca, Some(&identities[0])).await.unwrap();
    let other = connect(site.address(), &ca, Some(&identities[1])).await.unwrap();
    call(&revoked, HEALTH).await.unwrap();
    write_list(&site, site.ca.crl(&[&identities[0]], VALID).der());
    site.bound.control.reload().await.unwrap();
    for _ in 0..2 {
        let answer = reason(&call(&revoked, HEALTH).await);
        assert_eq!(answer, (Code::Unauthenticated, "CERTIFICATE_REVOKED".into()));
        call(&other, HEALTH).await.unwrap();
    }
    // An authority may take a revocation back (reason: certificateHold).
    write_list(&site, site.ca.crl(&[], VALID).der());
    site.bound.control.reload().await.unwrap();
    call(&revoked, HEALTH).await.unwrap();
}

#[tokio::test]
async fn a_list_that_cannot_be_used_leaves_the_one_in_use() {
    let site = site().await;
    let revoked = site.ca.client(&Name::Dns("everyone"));
    let good = site.ca.crl(&[&revoked], VALID);
    let forged = Ca::new().crl(&[], VALID);
    let expired = site.ca.crl(&[], EXPIRED);
    let twice = [good.pem().unwrap(), site.ca.crl(&[], VALID).pem().unwrap()].concat();
    let ways: [(&str, &[u8]); 6] = [
        ("has expired: install the one", expired.der()),
        ("is not signed by that authority", forged.der()),
        ("holds a second revocation list of CN=Utility CA", twice.as_bytes()),
        ("holds no revocation list: put a CRL into it", b"nothing"),
        ("holds no revocation list: put a CRL into it", b""),
        ("can't be used as a revocation list", b"\x30\x03abc"),
    ];
    write_list(&site, good.der());
    site.bound.control.reload().await.unwrap();
    for (sentence, list) in ways {
        write_list(&site, list);
        let refused = site.bound.control.reload().await.unwrap_err();
        assert!(refused.to_string().contains(sentence), "{refused}");
        assert!(site.bound.control.tls_fault().unwrap().contains(sentence));
        assert!(refusal(&site, &revoked).await.unwrap().contains("CertificateRevoked"));
    }
    write_list(&site, good.der());
    assert_eq!(site.bound.control.reload().await.unwrap(), Reloaded::Unchanged);
    assert_eq!(site.bound.control.tls_fault(), None);
}

#[tokio::test]
async fn a_new_authority_needs_a_list_of_its_own() {
    let site = site().await;
    // Of another name: lists are told apart by that.
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "Next CA");
    let next = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
    fs::write(site.files.path().join("ca.pem"), format!("{}{next}", site.ca.pem())).unwrap();
    let refused = site.bound.control.reload().await.unwrap_err();
    assert!(matches!(refused, TlsError::CrlMissing { .. }), "{refused:?}");
    assert!(refused.to_string().contains("no revocation list of CN=Next CA"), "{refused}");
    call(&site.caller("everyone").await, HEALTH).await.unwrap();
}

#[tokio::test]
async fn a_list_that_expires_while_it_is_in_use_ends_all_calls_until_there_is_a_new_one() {
    let site = site().await;
    let running = site.caller("everyone").await;
    call(&running, HEALTH).await.unwrap();
    site.clock.advance_years(70);
    let channel = connect(
        site.address(),
        &site.ca.pem(),
        Some(&site.ca.client_of_years(&Name::Dns("everyone"), 2020, 2200)),
    )
    .await
    .unwrap();
    let answer = reason(&call(&channel, HEALTH).await);
    assert_eq!(answer, (Code::Unavailable, "REVOCATION_LIST_EXPIRED".into()));
    write_list(&site, site.ca.crl(&[], (2020, 2190)).der());
    site.bound.control.reload().await.unwrap();
    call(&channel, HEALTH).await.unwrap();
}

#[tokio::test]
async fn a_list_past_its_next_update_holds_until_its_grace_is_over() {
    const YEAR: Duration = Duration::from_secs(366 * 24 * 3_600);
    let site = Site::start_changed(|ca, config| {
        use_list(config, ca.crl(&[], EXPIRED).der());
        config.tls.client_crl_grace = 50 * YEAR;
    })
    .await;
    let [revoked, other] =
        [(), ()].map(|()| site.ca.client_of_years(&Name::Dns("everyone"), 2020, 2200));
    let channel = connect(site.address(), &site.ca.pem(), Some(&other)).await.unwrap();
    call(&channel, HEALTH).await.unwrap();
    // It still says who is not let in.
    write_list(&site, site.ca.crl(&[&revoked], EXPIRED).der());
    site.bound.control.reload().await.unwrap();
    assert!(refusal(&site, &revoked).await.unwrap().contains("CertificateRevoked"));
    call(&channel, HEALTH).await.unwrap();
    let (_, page) = watch(&site, "/metrics").await;
    assert!(page.contains("left_days{certificate=\"client_crl\"} -"), "{page}");
    site.clock.advance_years(60);
    let answer = reason(&call(&channel, HEALTH).await);
    assert_eq!(answer, (Code::Unavailable, "REVOCATION_LIST_EXPIRED".into()));
}

/// What a start with these files says.
async fn start(files: &Path, list: &[u8]) -> RpcError {
    let mut config = config(files, Limits::default());
    use_list(&mut config, list);
    let (ready, _bound) = tokio::sync::oneshot::channel();
    let (_log, audit) = audit_log().await;
    let parts = GateParts { services: Routes::default(), audit, clock: TestClock::new() };
    let serving = rpc::serve_services(config, parts, std::future::pending(), ready);
    tokio::time::timeout(SOON, serving).await.unwrap().unwrap_err()
}

#[tokio::test]
async fn a_server_does_not_start_with_a_list_that_it_cannot_use() {
    let ca = Ca::new();
    let files = tempfile::TempDir::new().unwrap();
    write_files(files.path(), &ca.server(), &ca.pem());
    let refused = start(files.path(), ca.crl(&[], EXPIRED).der()).await;
    assert!(matches!(refused, RpcError::Tls(TlsError::CrlExpired { .. })), "{refused:?}");
    let said = refused.to_string();
    assert!(said.contains("the revocation list of CN=Utility CA in") && said.contains("install"));
    let refused = start(files.path(), Ca::new().crl(&[], VALID).der()).await;
    assert!(matches!(refused, RpcError::Tls(TlsError::CrlForged { .. })), "{refused:?}");
}

#[test]
fn check_config_names_the_setting_and_what_to_do() {
    const IN_2026_MS: u64 = 1_767_225_600_000;
    let ca = Ca::new();
    let files = tempfile::TempDir::new().unwrap();
    write_files(files.path(), &ca.server(), &ca.pem());
    let mut config = config(files.path(), Limits::default());
    let mut check = |list: &[u8]| {
        use_list(&mut config, list);
        check_certificates(&config.tls, IN_2026_MS)
    };
    assert!(check(ca.crl(&[], VALID).der()).is_empty());
    for (list, sentence) in [
        (ca.crl(&[], EXPIRED).der().to_vec(), "has expired: install the one"),
        (Ca::new().crl(&[], VALID).der().to_vec(), "is not signed by that authority: fetch it"),
        (b"PEM".to_vec(), "holds no revocation list: put a CRL into it"),
    ] {
        let found = check(&list);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, "rpc.tls.client_crl");
        assert!(found[0].1.to_string().contains(sentence), "{}", found[0].1);
    }
    config.tls.client_crls = vec![files.path().join("nowhere.crl")];
    let found = check_certificates(&config.tls, IN_2026_MS);
    assert!(found[0].1.to_string().contains("nowhere.crl can't be read"), "{found:?}");
}

#[tokio::test]
async fn a_list_never_goes_backwards() {
    let memory = tempfile::tempdir().unwrap();
    let remembered = memory.path().join("newest-client-crls");
    let ca = Ca::new();
    let [old, new] = [(), ()].map(|()| ca.client(&Name::Dns("everyone")));
    let (first, second) = (ca.crl(&[], VALID), ca.crl(&[&old], VALID));
    let files = tempfile::tempdir().unwrap();
    write_files(files.path(), &ca.server(), &ca.pem());
    let serve = async |list: &[u8]| {
        let mut config = config(files.path(), Limits::default());
        use_list(&mut config, list);
        config.tls.client_crl_memory = Some(remembered.clone());
        let checked = check_certificates(&config.tls, rpc_support::NOW_MS);
        let (ready, bound) = tokio::sync::oneshot::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let stopped = async { drop(stopped.await) };
        let (log, audit) = audit_log().await;
        let parts = GateParts { services: Routes::default(), audit, clock: TestClock::new() };
        let serving = rpc::serve_services(config, parts, stopped, ready);
        let task = tokio::spawn(async move {
            let _log = log;
            serving.await
        });
        (checked, bound.await.ok(), stop, task)
    };
    let let_in = async |bound: &rpc::Bound, identity: &Identity| {
        let config = client_config(&ca.pem(), Some(identity), &[&TLS13]);
        shake_hands(bound.address, config).await.is_ok()
    };
    let (_, bound, stop, task) = serve(second.der()).await;
    let bound = bound.unwrap();
    assert!(!let_in(&bound, &old).await && let_in(&bound, &new).await);
    // Put back while the server runs: the newer one stays, and the fault is named.
    fs::write(files.path().join("clients.crl"), first.der()).unwrap();
    let refused = bound.control.reload().await.unwrap_err();
    assert!(matches!(refused, TlsError::CrlOlder { .. }), "{refused}");
    assert!(!let_in(&bound, &old).await && let_in(&bound, &new).await);
    let fault = bound.control.tls_fault().unwrap();
    assert!(fault.contains("clients.crl is an older one: its number is"), "{fault}");
    stop.send(()).unwrap();
    timeout_of(task).await.unwrap();
    // Put back while none runs: nobody is let in by it.
    let (checked, bound, _stop, task) = serve(first.der()).await;
    assert!(bound.is_none());
    let refused = timeout_of(task).await.unwrap_err();
    assert!(matches!(refused, RpcError::Tls(TlsError::CrlOlder { .. })), "{refused}");
    assert!(matches!(checked[..], [("rpc.tls.client_crl", TlsError::CrlOlder { .. })]));
    // A memory that was damaged says so; a newer list is taken.
    let good = fs::read(&remembered).unwrap();
    fs::write(&remembered, &good[..good.len() - 5]).unwrap();
    let (_, _, _stop, task) = serve(second.der()).await;
    let refused = timeout_of(task).await.unwrap_err();
    assert!(refused.to_string().contains("is damaged"), "{refused}");
    fs::write(&remembered, &good).unwrap();
    let (_, bound, _stop, _task) = serve(ca.crl(&[&old, &new], VALID).der()).await;
    assert!(!let_in(&bound.unwrap(), &new).await);
}

async fn timeout_of(task: tokio::task::JoinHandle<Result<(), RpcError>>) -> Result<(), RpcError> {
    tokio::time::timeout(SOON, task).await.expect("it does not end").unwrap()
}
