//! Who is let in, and how that changes: through the real process and its files. Every call by everybody
//! is in `matrix.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::fs;

use common::{
    client, eventually,
    fleet::{PLAIN, add, apdu, line, push},
    home, home_with,
    wire::{self, call, channel, channel_as, identity_of, methods, reason, shake_hands},
};
use kms_client::Verdict;
use rustix::process::Signal;
use softhsm_tests::{Authority, Identity, Role, Site};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tonic::Code;

/// The same caller's name in certificates that are wrong in one way each, and what TLS says to each.
fn strangers(site: &Site) -> Vec<(&'static str, Option<Identity>, &'static str)> {
    let ours = site.authority().unwrap();
    let foreign = Authority::make("development CA").unwrap();
    let name = Role::Dev.caller();
    vec![
        ("no certificate", None, "CertificateRequired"),
        (
            "a foreign authority of our authority's name",
            Some(foreign.client(name).unwrap()),
            "DecryptError|UnknownCA|BadCertificate",
        ),
        ("an expired certificate", Some(ours.expired_client(name).unwrap()), "CertificateExpired"),
        (
            "a certificate of the future",
            Some(ours.not_yet_valid_client(name).unwrap()),
            "CertificateExpired|BadCertificate|CertificateUnknown",
        ),
        (
            "a certificate for servers only",
            Some(ours.client_with_server_usage(name).unwrap()),
            "UnsupportedCertificate|BadCertificate|CertificateUnknown|AccessDenied",
        ),
        (
            "a self-signed certificate",
            Some(Authority::self_signed_client(name).unwrap()),
            "UnknownCA|DecryptError",
        ),
    ]
}

fn says_one_of(text: &str, words: &str) -> bool {
    words.split('|').any(|word| text.contains(word))
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_a_good_certificate_shakes_hands_and_the_tool_says_so() {
    let home = home();
    let _running = home.start().unwrap();
    let dev = identity_of(&home, Role::Dev);
    shake_hands(&home, Some(&dev), &[&TLS13]).await.unwrap();
    for (what, identity, alert) in strangers(&home) {
        let error = shake_hands(&home, identity.as_ref(), &[&TLS13]).await.unwrap_err();
        let said = wire::chain(&error);
        println!("{what}: {said}");
        assert!(says_one_of(&said, alert), "{what}: {said}");
        if let Some(identity) = identity {
            let tool = home.ami_tool_as("stranger", &identity).unwrap();
            let output = tool.run(&["meter", "list"], "").unwrap();
            assert!(!output.status.success() && output.stdout.is_empty(), "{what}: {output:?}");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.starts_with("ami-tool: ") && !said.contains("panicked"), "{what}: {said}");
        }
    }
    call(&channel(&home, Some(&dev)), "/ami.kms.v1.Site/GetStatus").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_speaks_no_tls_1_3_is_not_let_in() {
    let home = home();
    let _running = home.start().unwrap();
    let dev = identity_of(&home, Role::Dev);
    let error = shake_hands(&home, Some(&dev), &[&TLS12]).await.unwrap_err();
    assert!(wire::chain(&error).contains("ProtocolVersion"), "{error}");
    shake_hands(&home, Some(&dev), &[&TLS12, &TLS13]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_was_taken_out_of_the_policy_makes_no_call() {
    let home = home();
    let running = home.start().unwrap();
    let verify = "/ami.kms.v1.Ciphering/DecryptBatch";
    call(&channel_as(&home, Role::Hes), verify).await.unwrap();
    assert!(running.stop().unwrap().success());
    let text = fs::read_to_string(&home.places().kms_toml).unwrap();
    let entry = format!("[[rpc.callers]]\nname = \"{}\"\nroles = [\"hes\"]\n", Role::Hes.caller());
    assert!(text.contains(&entry), "{text}");
    fs::write(&home.places().kms_toml, text.replace(&entry, "")).unwrap();
    let _running = home.start().unwrap();
    let removed = channel_as(&home, Role::Hes);
    for (_, _, path) in methods() {
        let refused = reason(&call(&removed, &path).await);
        assert_eq!(refused, (Code::PermissionDenied, "UNKNOWN_CALLER".into()), "{path}");
    }
    for open in ["/grpc.health.v1.Health/Check", "/ami.kms.v1.Site/NoSuchCall"] {
        let refused = reason(&call(&removed, open).await);
        assert_eq!(refused, (Code::PermissionDenied, "UNKNOWN_CALLER".into()), "{open}");
    }
    let error = client(&home, Role::Hes).await.decrypt(&apdu(push(1))).await.unwrap_err();
    assert!(matches!(&error, kms_client::CallError::PermissionDenied { .. }), "{error}");
    let output = home.ami_tool(Role::Hes).run(&["decrypt", "--apdu", "DB08"], "").unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    call(&channel_as(&home, Role::Dev), verify).await.unwrap();
}

/// New certificates of a new authority in the place of the old ones, as an operator installs them.
fn renew(site: &Site) {
    let authority = Authority::make("the next CA").unwrap();
    let write = |name: &str, identity: &Identity| {
        fs::write(site.places().private_key(name), &identity.private_key_pem).unwrap();
        fs::write(site.places().certificate(name), &identity.certificate_pem).unwrap();
    };
    for role in Role::ALL {
        write(role.caller(), &authority.client(role.caller()).unwrap());
    }
    write("server", &authority.server().unwrap());
    write("ca", &authority.identity());
}

async fn renewed_without_a_restart(home: &common::Home, tell: impl FnOnce()) {
    let (admin, hes) = (client(home, Role::AmiAdmin).await, client(home, Role::Hes).await);
    add(&admin, &[line(1)]).await;
    let old = identity_of(home, Role::Hes);
    renew(home);
    tell();
    // The file `ca.pem` that clients read is the new one: they accept the server's new certificate.
    eventually("the new certificate", async || {
        let identity = identity_of(home, Role::Hes);
        shake_hands(home, Some(&identity), &[&TLS13]).await.is_ok()
    })
    .await;
    let renewed = client(home, Role::Hes).await;
    let opened = renewed.decrypt(&apdu(push(1))).await.unwrap();
    assert_eq!((opened.verdict(), opened.plaintext.as_deref()), (Verdict::Ok, Some(PLAIN)));
    // The old authority's certificates are refused: on a new connection, and on the one that was open.
    assert!(shake_hands(home, Some(&old), &[&TLS13]).await.is_err());
    let error = hes.decrypt(&apdu(push(1))).await.unwrap_err();
    assert!(matches!(error, kms_client::CallError::CertificateRefused { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_on_sighup_without_a_restart() {
    let home = home_with(&[("rpc", "reload_poll_s", "3600")]);
    let running = home.start().unwrap();
    renewed_without_a_restart(&home, || running.signal(Signal::HUP).unwrap()).await;
    assert!(running.stop().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_by_looking_at_the_files_without_a_restart() {
    let home = home_with(&[("rpc", "reload_poll_s", "1")]);
    let running = home.start().unwrap();
    renewed_without_a_restart(&home, || {}).await;
    assert!(running.stop().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_revoked_on_sighup_and_its_open_connection_with_it() {
    let home = home_with(&[("rpc", "reload_poll_s", "3600")]);
    let authority = home.authority().unwrap();
    let (identity, list) = authority.revoked_client(Role::Hes.caller()).unwrap();
    let crl = home.places().dir.join("certificates/clients.crl");
    fs::write(&crl, authority.empty_revocation_list().unwrap()).unwrap();
    let text = fs::read_to_string(&home.places().kms_toml).unwrap();
    let named = format!("[rpc.tls]\nclient_crl = \"{}\"\n", crl.display());
    fs::write(&home.places().kms_toml, text.replace("[rpc.tls]\n", &named)).unwrap();
    let running = home.start().unwrap();
    let path = "/ami.kms.v1.Ciphering/DecryptBatch";
    let open = channel(&home, Some(&identity));
    call(&open, path).await.unwrap();
    fs::write(&crl, list).unwrap();
    running.signal(Signal::HUP).unwrap();
    let revoked = (Code::Unauthenticated, "CERTIFICATE_REVOKED".to_owned());
    eventually("the revocation", async || reason(&call(&open, path).await) == revoked).await;
    let error = shake_hands(&home, Some(&identity), &[&TLS13]).await.unwrap_err();
    assert!(wire::chain(&error).contains("CertificateRevoked"), "{error}");
    // The same caller with the certificate that was not revoked.
    call(&channel_as(&home, Role::Hes), path).await.unwrap();
    assert!(running.stop().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_used_leaves_the_one_in_use_and_is_reported() {
    let home = home_with(&[("rpc", "reload_poll_s", "3600")]);
    let running = home.start().unwrap();
    let admin = client(&home, Role::AmiAdmin).await;
    let good = fs::read(home.places().certificate("server")).unwrap();
    fs::write(home.places().certificate("server"), "no certificate").unwrap();
    running.signal(Signal::HUP).unwrap();
    eventually("the fault", async || {
        let faults = admin.site_status().await.unwrap().faults;
        faults.iter().any(|fault| fault.contains("certificate"))
    })
    .await;
    shake_hands(&home, Some(&identity_of(&home, Role::Hes)), &[&TLS13]).await.unwrap();
    fs::write(home.places().certificate("server"), good).unwrap();
    running.signal(Signal::HUP).unwrap();
    eventually("its end", async || admin.site_status().await.unwrap().faults.is_empty()).await;
}
