//! What can be seen from outside: figures, readiness, request ids, log lines.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod hsm_common;
#[allow(dead_code, reason = "each test file uses a part")]
mod rpc_support;
mod site_common;
#[path = "observability/slow.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod slow;

use std::{
    collections::BTreeSet,
    fs, io,
    sync::{Arc, Mutex},
    time::Duration,
};

use hsm_common::Home;
use kms_proto::v1::{
    ApduBatch, CreateMeterRequest, DecryptRequest, GetMeterRequest, GetStatusRequest, KeyKind,
    NewKey, NewMeter, VerifyChainRequest, VerifyMicRequest, audit_client::AuditClient,
    ciphering_client::CipheringClient, meters_client::MetersClient, site_client::SiteClient,
};
use kms_server::{
    hsm::Token,
    rpc::{Limits, Parts, Role},
    telemetry::{self, Format, Level, catalogue::CATALOGUE},
};
use rpc_support::{HEALTH, Site, call, eventually, holder_of, http, reason, watch};
use site_common::{GAK, GUEK, Options, id, push, run, title, value};
use slow::{DELAY, Slow};
use tonic::{Code, Request, transport::Channel};
use tonic_types::StatusExt as _;

const PLAIN: &[u8] = b"\x0F\x00\x00\x00\x01data notification";

async fn serve(inner: site_common::Site, limits: Limits) -> (Site, kms_server::hsm::Hsm) {
    let transmitting = Arc::new(inner.transmitting(true, None));
    let associations = Arc::new(inner.associations(Arc::clone(&transmitting), Arc::default()));
    let kek = inner.kek_rotation();
    let site_common::Site { store, measured, hsm, keyring, ciphering, lifecycle, audit, .. } =
        inner;
    let domain = store.domain().await.unwrap().unwrap();
    let (token, source) = (hsm.clone(), hsm.clone());
    let parts = move |clock| Parts {
        ciphering: Arc::new(ciphering),
        transmitting,
        associations,
        lifecycle: Arc::new(lifecycle),
        rotation: site_common::rotation_of(&keyring, &clock, None),
        kek,
        keyring: Arc::clone(&keyring.overview),
        roles: Arc::clone(&keyring.roles),
        hsm: token.clone(),
        token_status: Arc::new(move || token.status()),
        store: measured.clone(),
        audit,
        domain,
        single_site: true,
        replication: None,
        clock,
        sources: vec![Arc::new(source), measured, Arc::new(telemetry::Log::to_stderr().unwrap())],
    };
    (Site::start_parts(limits, parts).await, hsm)
}

async fn site(home: &Home) -> Site {
    serve(site_common::Site::new(home).await, Limits::default()).await.0
}

async fn admin(site: &Site) -> MetersClient<Channel> {
    MetersClient::new(site.caller(&holder_of(Role::AmiAdmin)).await)
}

async fn hes(site: &Site) -> CipheringClient<Channel> {
    CipheringClient::new(site.caller(&holder_of(Role::Hes)).await)
}

async fn create(admin: &mut MetersClient<Channel>, n: u64) {
    let key = |kind: KeyKind, value: Vec<u8>| NewKey {
        kind: kind as i32,
        security_setup: 0,
        protection: 0,
        clear_value: value.into(),
        wrapped_value: Vec::new().into(),
    };
    let meter = NewMeter {
        meter_id: id(n),
        system_title: title(n).as_bytes().to_vec().into(),
        logical_device_name: String::new(),
        keys: vec![key(KeyKind::Guek, value(n, GUEK)), key(KeyKind::Gak, value(n, GAK))],
        policy: None,
    };
    let request = CreateMeterRequest { meter: Some(meter), rules: None };
    admin.create_meter(request).await.unwrap();
}

fn batch(apdus: &[Vec<u8>]) -> ApduBatch {
    ApduBatch {
        apdus: apdus.concat().into(),
        lengths: apdus.iter().map(|apdu| apdu.len() as u32).collect(),
        ..ApduBatch::default()
    }
}

fn forged(n: u64) -> Vec<u8> {
    let mut apdu = push(n, PLAIN);
    *apdu.last_mut().unwrap() ^= 1;
    apdu
}

/// Three meters; six APDUs to decrypt (three good, one forged, one of a stranger, one that is none),
/// one to verify; one call that is not granted; the audit log signed.
async fn known_traffic(site: &Site) {
    let mut admin = admin(site).await;
    for n in 1..=3 {
        create(&mut admin, n).await;
    }
    let mut hes = hes(site).await;
    let request = DecryptRequest { apdu: push(1, PLAIN).into(), ..Default::default() };
    hes.decrypt(request).await.unwrap();
    let apdus = [push(2, PLAIN), push(3, PLAIN), forged(2), push(77, PLAIN), vec![0xFF]];
    hes.decrypt_batch(batch(&apdus)).await.unwrap();
    let request = VerifyMicRequest { apdu: push(2, PLAIN).into(), ..Default::default() };
    hes.verify_mic(request).await.unwrap();
    let mut refused = MetersClient::new(site.caller(&holder_of(Role::Hes)).await);
    refused.get_meter(GetMeterRequest::default()).await.unwrap_err();
    let mut auditor = SiteClient::new(site.caller(&holder_of(Role::Auditor)).await);
    auditor.get_status(GetStatusRequest {}).await.unwrap();
    let mut audit = AuditClient::new(site.caller(&holder_of(Role::Auditor)).await);
    audit.verify_chain(VerifyChainRequest::default()).await.unwrap();
}

async fn scrape(site: &Site) -> String {
    let (status, page) = watch(site, "/metrics").await;
    assert_eq!(status, 200);
    page
}

/// A call is counted once its last byte has gone, which its caller may hear before we count.
async fn scrape_with(site: &Site, line: &str) -> String {
    let has = || async { scrape(site).await.lines().any(|it| it == line) };
    eventually(line, has).await;
    scrape(site).await
}

fn number(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} is missing in\n{page}")).parse().unwrap()
}

on_a_token! {
    fn a_scrape_after_known_traffic_gives_exact_counts_and_names_nobody(home) {
        run(async {
            let site = site(home).await;
            known_traffic(&site).await;
            assert_eq!(watch(&site, "/readyz").await, (200, "ready\n".to_owned()));
            let last = r#"kms_rpc_requests_total{verb="Site/GetStatus",code="OK"} 1"#;
            let page = scrape_with(&site, last).await;
            for (series, count) in [
                (r#"kms_rpc_requests_total{verb="Meters/CreateMeter",code="OK"}"#, 3.0),
                (r#"kms_rpc_requests_total{verb="Ciphering/Decrypt",code="OK"}"#, 1.0),
                (r#"kms_rpc_requests_total{verb="Ciphering/DecryptBatch",code="OK"}"#, 1.0),
                (r#"kms_rpc_requests_total{verb="Ciphering/VerifyMic",code="OK"}"#, 1.0),
                (r#"kms_rpc_requests_total{verb="Meters/GetMeter",code="PERMISSION_DENIED"}"#, 1.0),
                (r#"kms_rpc_execution_seconds_count{verb="Meters/CreateMeter"}"#, 3.0),
                (r#"kms_rpc_queue_seconds_count{verb="Ciphering/DecryptBatch"}"#, 1.0),
                (r#"kms_ciphering_verdicts_total{operation="decrypt",verdict="OK"}"#, 3.0),
                (r#"kms_ciphering_verdicts_total{operation="decrypt",verdict="MIC_FAILURE"}"#, 1.0),
                (r#"kms_ciphering_verdicts_total{operation="decrypt",verdict="UNKNOWN_METER"}"#, 1.0),
                (r#"kms_ciphering_verdicts_total{operation="decrypt",verdict="MALFORMED"}"#, 1.0),
                (r#"kms_ciphering_verdicts_total{operation="verify",verdict="OK"}"#, 1.0),
                ("kms_keyring_resident_meters", 3.0),
                ("kms_keyring_blocks_failed", 0.0),
                ("kms_rpc_in_flight_items", 0.0),
                ("kms_ready", 1.0),
                (r#"kms_hsm_healthy{token="ami-test"}"#, 1.0),
                (r#"kms_hsm_places_in_use{token="ami-test"}"#, 0.0),
                (r#"kms_store_operation_seconds_count{operation="commit",outcome="ok"}"#, 6.0),
                (r#"kms_store_operation_seconds_count{operation="audit_head",outcome="ok"}"#, 1.0),
                // The start, three meters, one refusal, the check.
                ("kms_audit_events", 6.0),
                ("kms_audit_unsigned_events", 0.0),
                ("kms_audit_fault", 0.0),
            ] {
                assert_eq!(number(&page, series), count, "{series}");
            }
            assert!(number(&page, r#"kms_hsm_sessions_open{token="ami-test"}"#) >= 1.0);
            assert!(number(&page, r#"kms_rpc_certificate_left_days{certificate="server"}"#) > 1.0);

            let told: BTreeSet<&str> = page
                .lines()
                .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
                .collect();
            let listed: BTreeSet<&str> = CATALOGUE.iter().map(|metric| metric.name).collect();
            // This site has no peer, nobody follows it, and no backup of it was made.
            let absent = [
                "kms_peer_",
                "kms_followe",
                "kms_site_",
                "kms_divergence_",
                "kms_backup_",
            ];
            let is_told = |name: &&str| !absent.iter().any(|of| name.starts_with(of));
            let listed: BTreeSet<&str> = listed.into_iter().filter(is_told).collect();
            assert_eq!(told, listed, "what is told is what is listed");
            names_nobody(&page);
        });
    }

    fn waiting_and_working_are_told_apart_when_the_token_is_slow(home) {
        run(async {
            let inner = site_common::Site::new(home).await;
            let mut meters = vec![site_common::meter(1)];
            let block = inner.keyring.reader.block_of(&title(1));
            let other = (2..).find(|n| inner.keyring.reader.block_of(&title(*n)) != block).unwrap();
            meters.push(site_common::meter(other));
            inner.import(meters, Default::default()).await;
            let database = inner.database.clone();
            drop(inner);
            // Nothing is resident here: the first APDU of each block waits for the token.
            let slow: Arc<dyn Token> = Arc::new(Slow::new(home.token()));
            let canaries = home.canaries().encode();
            let cold = site_common::Site::on(slow, canaries, &database, Options::default()).await;
            // Room for one batch: the second has to wait for the first.
            let limits = Limits { batch_items_max: 1, in_flight_items_max: 1, ..Limits::default() };
            let (site, _) = serve(cold, limits).await;
            let ask = |n: u64| {
                let site = &site;
                async move {
                    let batches = tokio_stream::iter([batch(&[push(n, PLAIN)])]);
                    let mut answers =
                        hes(site).await.decrypt_stream(batches).await.unwrap().into_inner();
                    let answer = answers.message().await.unwrap().unwrap();
                    assert_eq!(answer.verdicts[..], [1]);
                }
            };
            tokio::join!(ask(1), ask(other));
            let page = scrape(&site).await;
            let of = |name: &str| number(&page, &format!(r#"{name}{{verb="Ciphering/DecryptStream"}}"#));
            assert_eq!(of("kms_rpc_queue_seconds_count"), 2.0);
            assert_eq!(of("kms_rpc_execution_seconds_count"), 2.0);
            let (queue, execution) = (of("kms_rpc_queue_seconds_sum"), of("kms_rpc_execution_seconds_sum"));
            let delay = DELAY.as_secs_f64();
            // One waited for the other, not for itself.
            assert!((0.5 * delay..1.9 * delay).contains(&queue), "{queue}");
            assert!(execution >= 2.0 * delay, "{execution}");
            let hsm = r#"{token="ami-test",operation="open"}"#;
            assert!(number(&page, &format!("kms_hsm_execution_seconds_sum{hsm}")) >= 2.0 * delay);
            assert!(number(&page, &format!("kms_hsm_wait_seconds_sum{hsm}")) < 0.5 * delay);
        });
    }

    fn a_node_whose_token_is_away_is_ready_if_it_has_keys_and_says_what_is_wrong(home) {
        run(async {
            let (site, hsm) = serve(site_common::Site::new(home).await, Limits::default()).await;
            assert_eq!(watch(&site, "/readyz").await.0, 200);
            let away = home.tokens().with_file_name("away");
            fs::rename(home.tokens(), &away).unwrap();
            hsm.check().await.unwrap_err();
            let (status, sentences) = watch(&site, "/readyz").await;
            let wrong = "not ready\nthe token did not pass its last check\n";
            assert_eq!((status, sentences.as_str()), (503, wrong), "it has no keys yet");
            assert_eq!(watch(&site, "/healthz").await, (200, "alive\n".to_owned()));
            assert_eq!(number(&scrape(&site).await, "kms_ready"), 0.0);
            assert_eq!(number(&scrape(&site).await, r#"kms_hsm_healthy{token="ami-test"}"#), 0.0);

            fs::rename(&away, home.tokens()).unwrap();
            eventually("the token is back", || async { hsm.check().await.is_ok() }).await;
            assert_eq!(watch(&site, "/readyz").await.0, 200);
            let page = scrape(&site).await;
            assert!(number(&page, r#"kms_hsm_connection_epoch{token="ami-test"}"#) >= 2.0);

            create(&mut admin(&site).await, 1).await;
            fs::rename(home.tokens(), &away).unwrap();
            hsm.check().await.unwrap_err();
            let (status, sentences) = watch(&site, "/readyz").await;
            let wrong = "ready\nthe token did not pass its last check\n";
            assert_eq!((status, sentences.as_str()), (200, wrong));
            let request = DecryptRequest { apdu: push(1, PLAIN).into(), ..Default::default() };
            hes(&site).await.decrypt(request).await.unwrap();
            fs::rename(&away, home.tokens()).unwrap();
        });
    }

    fn json_lines_carry_the_request_and_no_secret(home) {
        run(async {
            let log = Log::default();
            let config = telemetry::Config { format: Format::Json, level: Level::Debug };
            telemetry::start_to(&config, log.clone()).unwrap();
            let site = site(home).await;
            known_traffic(&site).await;
            let mut admin = admin(&site).await;
            let request = GetMeterRequest { meter_id: id(1), ..Default::default() };
            admin.get_meter(with_id(request, "spring-7")).await.unwrap();
            let answered = |line: &&serde_json::Value| line["message"] == "answered";
            let of = |line: &serde_json::Value, field: &str| line["spans"][0][field].clone();
            eventually("an access line", || async { log.lines().iter().any(|line| of(line, "request_id") == "spring-7") }).await;
            let lines = log.lines();
            let access: Vec<_> = lines.iter().filter(answered).collect();
            // One a call: three of creation, three about APDUs, a status, a check, a look; the refused one aside.
            assert_eq!(access.len(), 9, "{access:#?}");
            for line in &access {
                let verb = of(line, "verb");
                let privileged = !verb.as_str().unwrap().starts_with("Ciphering/");
                assert_eq!(line["level"], if privileged { "INFO" } else { "DEBUG" }, "{line}");
                assert!(line["duration_us"].is_u64() && line["code"] == "Ok", "{line}");
                let id = of(line, "request_id");
                assert!(id == "spring-7" || id.as_str().unwrap().len() == 16, "{line}");
            }
            no_secrets(&log.text());
        });
    }

    fn text_lines_carry_the_request_and_no_secret(home) {
        run(async {
            let log = Log::default();
            let config = telemetry::Config { format: Format::Text, level: Level::Info };
            telemetry::start_to(&config, log.clone()).unwrap();
            let site = site(home).await;
            known_traffic(&site).await;
            let mut admin = admin(&site).await;
            let request = GetMeterRequest { meter_id: id(1), ..Default::default() };
            admin.get_meter(with_id(request, "spring-7")).await.unwrap();
            eventually("an access line", || async { log.text().contains("spring-7") }).await;
            let text = log.text();
            let line = text.lines().find(|line| line.contains("spring-7")).unwrap();
            for part in ["INFO call{request_id=\"spring-7\" verb=\"Meters/GetMeter\"", "answered", "code=Ok"] {
                assert!(line.contains(part), "{part} is missing in {line}");
            }
            assert!(!text.contains("verb=\"Ciphering/"), "no line a crypto call at info: {text}");
            no_secrets(&text);
        });
    }

    fn what_the_token_says_carries_the_request_that_asked_it(home) {
        run(async {
            let log = Log::default();
            let config = telemetry::Config { format: Format::Json, level: Level::Warn };
            telemetry::start_to(&config, log.clone()).unwrap();
            let site = site(home).await;
            fs::rename(home.tokens(), home.tokens().with_file_name("away")).unwrap();
            let request = CreateMeterRequest {
                meter: Some(NewMeter {
                    meter_id: id(1),
                    system_title: title(1).as_bytes().to_vec().into(),
                    ..NewMeter::default()
                }),
                rules: None,
            };
            admin(&site).await.create_meter(with_id(request, "spring-8")).await.unwrap_err();
            let of_ours = |line: &serde_json::Value| line["spans"][0]["request_id"] == "spring-8";
            let lines = log.lines();
            assert!(
                lines.iter().any(|line| of_ours(line) && line["message"] == "token connection lost"),
                "{lines:#?}"
            );
        });
    }
}

#[tokio::test]
async fn a_request_id_comes_back_in_metadata_and_in_the_error() {
    let site = Site::start().await;
    let channel = site.caller("everyone").await;
    let ask = async |id: Option<&str>| {
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.unwrap();
        let mut request = Request::new(());
        if let Some(id) = id {
            request.metadata_mut().insert("x-request-id", id.parse().unwrap());
        }
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let path = HEALTH.parse().unwrap();
        let answer = client.unary::<(), (), _>(request, path, codec).await.unwrap();
        answer.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned()
    };
    assert_eq!(ask(Some("hes-1:2026.11")).await, "hes-1:2026.11");
    for bad in [None, Some("two words"), Some("{\"a\":1}"), Some(&*"x".repeat(65))] {
        let made = ask(bad).await;
        assert!(made.len() == 16 && made.bytes().all(|byte| byte.is_ascii_hexdigit()), "{made}");
    }

    let mut meters = MetersClient::new(site.caller(&holder_of(Role::Hes)).await);
    let refused = meters.get_meter(with_id(GetMeterRequest::default(), "spring-9")).await;
    assert_eq!(reason(&refused), (Code::PermissionDenied, "NOT_GRANTED".into()));
    let status = refused.unwrap_err();
    assert_eq!(status.metadata().get("x-request-id").unwrap(), "spring-9");
    let details = status.get_error_details();
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!(
        (metadata["request_id"].as_str(), metadata["verb"].as_str()),
        ("spring-9", "Meters/GetMeter")
    );
}

#[tokio::test]
async fn the_listener_for_metrics_is_bounded_and_answers_nothing_else() {
    let site = Site::start().await;
    assert_eq!(watch(&site, "/").await.0, 404);
    assert_eq!(watch(&site, "/metrics/../etc").await.0, 404);
    let post = "POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc";
    assert_eq!(http(&site, post).await.0, 405);
    let long = format!("GET /metrics HTTP/1.1\r\nhost: {}\r\n\r\n", "x".repeat(20_000));
    assert_eq!(http(&site, &long).await.0, 431);
    assert_eq!(http(&site, "\u{16}\u{3}\u{1} not HTTP\r\n\r\n").await.0, 400);

    // Those who say nothing take no more than their places, and not for ever.
    let address = site.bound.metrics.unwrap();
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(watch(&site, "/healthz").await.0, 0);
    drop(silent);
    eventually("room again", || async { watch(&site, "/healthz").await.0 == 200 }).await;
}

#[tokio::test]
async fn handshakes_that_fail_are_counted_by_their_reason() {
    let site = Site::start().await;
    let versions = [&rustls::version::TLS13];
    let nobody = rpc_support::client_config(&site.ca.pem(), None, &versions);
    rpc_support::shake_hands(site.address(), nobody).await.unwrap_err();
    let stranger = rpc_support::Ca::new().client(&rpc_support::Name::Dns("everyone"));
    let stranger = rpc_support::client_config(&site.ca.pem(), Some(&stranger), &versions);
    rpc_support::shake_hands(site.address(), stranger).await.unwrap_err();
    let old = rpc_support::client_config(&site.ca.pem(), None, &[&rustls::version::TLS12]);
    rpc_support::shake_hands(site.address(), old).await.unwrap_err();
    for why in ["no_certificate", "bad_certificate", "incompatible"] {
        scrape_with(&site, &format!(r#"kms_rpc_handshake_failures_total{{reason="{why}"}} 1"#))
            .await;
    }
    let channel = site.caller("everyone").await;
    call(&channel, HEALTH).await.ok();
    call(&channel, "/ami.kms.v1.Nothing/At").await.unwrap_err();
    let unknown = r#"kms_rpc_requests_total{verb="Unknown",code="UNIMPLEMENTED"} 1"#;
    let page = scrape_with(&site, unknown).await;
    assert!(!page.contains("Nothing"), "a path is a caller's text");
    assert_eq!(number(&page, "kms_rpc_connections"), 1.0);
    drop(channel);
    scrape_with(&site, "kms_rpc_connections 0").await;
}

fn with_id<T>(message: T, id: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-request-id", id.parse().unwrap());
    request
}

/// Neither meters nor callers are among the labels.
fn names_nobody(page: &str) {
    let page = page.to_lowercase();
    for n in [1, 2, 3, 77] {
        for name in [id(n), hex::encode(title(n).as_bytes()), hex::encode(value(n, GUEK))] {
            assert!(!page.contains(&name), "{name} is on the page");
        }
    }
    for name in ["utility", "hes-1", "127.0.0.1", "request_id"] {
        assert!(!page.contains(name), "{name} is on the page");
    }
}

/// Neither keys nor plaintexts, raw or in hexadecimal or in Rust's way to print bytes.
fn no_secrets(text: &str) {
    let lower = text.to_lowercase();
    for n in 1..=3 {
        for secret in [value(n, GUEK), value(n, GAK), PLAIN.to_vec()] {
            let decimal = format!("{secret:?}");
            for form in [hex::encode(&secret), decimal.trim_matches(['[', ']']).to_owned()] {
                assert!(!lower.contains(&form), "a secret is in the log");
            }
        }
    }
    assert!(!text.contains("data notification"), "a plaintext is in the log");
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Every line is one JSON object.
    fn lines(&self) -> Vec<serde_json::Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
