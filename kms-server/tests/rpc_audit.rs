//! The audit log over the wire: what each call leaves in it, who may read it, what is refused without
//! it, and that nothing secret stands in it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod hsm_common;
#[allow(dead_code, reason = "each test file uses a part")]
mod rpc_support;
mod site_common;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hsm_common::Home;
use kms_proto::v1::{
    AuditEvent, AuditOutcome, CreateMeterRequest, DecryptRequest, DeleteMeterRequest,
    FollowEventsRequest, GetMeterRequest, GetStatusRequest, KeyKind, ListEventsRequest,
    ListMetersRequest, NewKey, NewMeter, VerifyChainRequest, audit_client::AuditClient,
    ciphering_client::CipheringClient, meters_client::MetersClient, site_client::SiteClient,
};
use kms_server::{
    audit::Audit,
    rpc::{Limits, Parts, Role},
};
use rpc_support::{Site, holder_of, reason};
use site_common::{GAK, GUEK, id, push, run, title, value};
use sqlx::Connection as _;
use tonic::{Code, Request};

async fn site(home: &Home) -> (Site, Arc<Audit>, PathBuf) {
    let site = site_common::Site::new(home).await;
    let transmitting = Arc::new(site.transmitting(true, None));
    let associations = Arc::new(site.associations(Arc::clone(&transmitting), Arc::default()));
    let kek = site.kek_rotation();
    let site_common::Site { store, hsm, keyring, ciphering, lifecycle, audit, database, .. } = site;
    keyring.refresher.warm_up().await;
    let domain = store.domain().await.unwrap().unwrap();
    let log = Arc::clone(&audit);
    let site = Site::start_parts(Limits::default(), move |clock| Parts {
        ciphering: Arc::new(ciphering),
        transmitting,
        associations,
        lifecycle: Arc::new(lifecycle),
        rotation: site_common::rotation_of(&keyring, &clock, None),
        kek,
        keyring: Arc::clone(&keyring.overview),
        roles: Arc::clone(&keyring.roles),
        hsm: hsm.clone(),
        token_status: Arc::new(move || hsm.status()),
        store,
        audit,
        domain,
        single_site: true,
        replication: None,
        clock,
        sources: Vec::new(),
    })
    .await;
    (site, log, database)
}

fn meter(n: u64) -> NewMeter {
    let key = |kind: KeyKind, value: Vec<u8>| NewKey {
        kind: kind as i32,
        security_setup: 0,
        protection: 0,
        clear_value: value.into(),
        wrapped_value: Vec::new().into(),
    };
    NewMeter {
        meter_id: id(n),
        system_title: title(n).as_bytes().to_vec().into(),
        logical_device_name: String::new(),
        keys: vec![key(KeyKind::Guek, value(n, GUEK)), key(KeyKind::Gak, value(n, GAK))],
        policy: None,
    }
}

async fn tamper(database: &Path, statement: &'static str) {
    let url = format!("sqlite://{}", database.display());
    let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn all_events(site: &Site) -> Vec<AuditEvent> {
    let mut auditor = AuditClient::new(site.caller(&holder_of(Role::Auditor)).await);
    auditor.list_events(ListEventsRequest::default()).await.unwrap().into_inner().events
}

/// Verb, outcome, reason and meter of each event.
fn told(events: &[AuditEvent]) -> Vec<(&str, AuditOutcome, &str, &str)> {
    let tell = |event: &AuditEvent| event.outcome();
    events.iter().map(|e| (&*e.verb, tell(e), &*e.reason, &*e.meter_id)).collect()
}

on_a_token! {
    fn invariant_10_each_privileged_call_leaves_its_event_and_nothing_secret(home) {
        run(async {
            let (site, audit, database) = site(home).await;
            let mut admin = MetersClient::new(site.caller(&holder_of(Role::AmiAdmin)).await);
            let create = |n| CreateMeterRequest { meter: Some(meter(n)), rules: None };
            let mut named = Request::new(create(1));
            named.metadata_mut().insert("x-request-id", "ticket-17".parse().unwrap());
            admin.create_meter(named).await.unwrap();
            assert_eq!(admin.create_meter(create(1)).await.unwrap_err().code(), Code::AlreadyExists);
            let mut bare = meter(2);
            bare.keys[0].clear_value = vec![0; 16].into();
            let bare = CreateMeterRequest { meter: Some(bare), rules: None };
            assert_eq!(admin.create_meter(bare).await.unwrap_err().code(), Code::InvalidArgument);
            let get = |id: String| GetMeterRequest { meter_id: id, ..Default::default() };
            admin.get_meter(get(id(1))).await.unwrap();
            assert!(admin.get_meter(get("nobody".into())).await.is_err());
            admin.list_meters(ListMetersRequest::default()).await.unwrap();
            let channel = site.caller(&holder_of(Role::Hes)).await;
            let mut hes = CipheringClient::new(channel.clone());
            for _ in 0..5 {
                let apdu = push(1, b"the plaintext of a push");
                hes.decrypt(DecryptRequest { apdu: apdu.into(), ..Default::default() }).await.unwrap();
            }
            let delete = DeleteMeterRequest { meter_id: id(1) };
            let mut forbidden = MetersClient::new(channel);
            for _ in 0..3 {
                let refused = forbidden.delete_meter(delete.clone()).await;
                assert_eq!(reason(&refused), (Code::PermissionDenied, "NOT_GRANTED".into()));
            }
            admin.delete_meter(delete).await.unwrap();
            audit.sum_up(Duration::from_secs(60)).await;

            let events = all_events(&site).await;
            use AuditOutcome::{Done, Refused};
            let mut wanted = vec![
                ("Server/Start", Done, "", ""),
                ("Meters/CreateMeter", Done, "", "meter-1"),
                ("Meters/CreateMeter", Refused, "METER_EXISTS", "meter-1"),
                ("Meters/CreateMeter", Refused, "TEST_KEY", "meter-2"),
                ("Meters/GetMeter", Done, "", "meter-1"),
                ("Meters/GetMeter", Refused, "METER_NOT_FOUND", "nobody"),
                ("Meters/ListMeters", Done, "", ""),
                ("Meters/DeleteMeter", Refused, "NOT_GRANTED", ""),
                ("Meters/DeleteMeter", Done, "", "meter-1"),
                ("Ciphering/Decrypt", Done, "", ""),
                ("Meters/DeleteMeter", Refused, "NOT_GRANTED", ""),
            ];
            assert_eq!(told(&events), wanted);
            assert_eq!((events[1].request_id.as_str(), &*events[1].caller), ("ticket-17", &*holder_of(Role::AmiAdmin)));
            assert_eq!(events[9].details[0].number, 5);
            assert_eq!(events[9].blocks.len(), 1);
            assert_eq!(events[10].details[0].number, 2);
            // Reading the log stands in it, too.
            wanted.push(("Audit/ListEvents", Done, "", ""));
            assert_eq!(told(&all_events(&site).await), wanted);

            // Neither key nor plaintext nor APDU, wrapped or not, in events and database.
            let body: Vec<u8> = events.iter().flat_map(prost::Message::encode_to_vec).collect();
            let mut files = std::fs::read(&database).unwrap();
            files.extend(std::fs::read(database.with_extension("db-wal")).unwrap_or_default());
            for secret in [value(1, GUEK), value(1, GAK), b"plaintext".to_vec()] {
                for bytes in [&body, &files] {
                    assert!(!bytes.windows(8).any(|window| window == &secret[..8]));
                }
            }
        });
    }

    fn invariant_10_without_a_log_that_can_be_written_privileged_calls_are_refused(home) {
        run(async {
            let (site, _audit, database) = site(home).await;
            let mut admin = MetersClient::new(site.caller(&holder_of(Role::AmiAdmin)).await);
            let create = |n| CreateMeterRequest { meter: Some(meter(n)), rules: None };
            admin.create_meter(create(1)).await.unwrap();
            tamper(&database, "CREATE TRIGGER full BEFORE INSERT ON audit_events BEGIN SELECT RAISE(ABORT, 'no room'); END").await;
            let refused = (Code::Unavailable, "AUDIT_NOT_WRITABLE".to_owned());
            assert_eq!(reason(&admin.create_meter(create(2)).await), refused);
            let delete = DeleteMeterRequest { meter_id: id(1) };
            assert_eq!(reason(&admin.delete_meter(delete).await), refused);
            let get = GetMeterRequest { meter_id: id(1), ..Default::default() };
            assert_eq!(reason(&admin.get_meter(get.clone()).await), refused);
            assert_eq!(reason(&admin.list_meters(ListMetersRequest::default()).await), refused);
            // Deciphering goes on, and the log can be read.
            let mut hes = CipheringClient::new(site.caller(&holder_of(Role::Hes)).await);
            let apdu = push(1, b"x").into();
            hes.decrypt(DecryptRequest { apdu, ..Default::default() }).await.unwrap();
            assert_eq!(all_events(&site).await.len(), 2);
            tamper(&database, "DROP TRIGGER full").await;
            admin.get_meter(get).await.unwrap();
            let missing = GetMeterRequest { meter_id: id(2), ..Default::default() };
            assert_eq!(admin.get_meter(missing).await.unwrap_err().code(), Code::NotFound);
        });
    }

    fn a_follower_sees_events_as_they_come_and_a_check_names_the_first_bad_one(home) {
        run(async {
            let (site, _audit, database) = site(home).await;
            let mut auditor = AuditClient::new(site.caller(&holder_of(Role::Auditor)).await);
            let mut admin = MetersClient::new(site.caller(&holder_of(Role::AmiAdmin)).await);
            let followed = auditor.follow_events(FollowEventsRequest::default()).await.unwrap();
            let mut followed = followed.into_inner();
            for n in 1..=5 {
                let create = CreateMeterRequest { meter: Some(meter(n)), rules: None };
                admin.create_meter(create).await.unwrap();
            }
            let mut seen: Vec<AuditEvent> = Vec::new();
            while seen.len() < 7 {
                let more = tokio::time::timeout(rpc_support::SOON, followed.message()).await;
                seen.extend(more.unwrap().unwrap().unwrap().events);
            }
            let numbers: Vec<u64> = seen.iter().map(|event| event.sequence).collect();
            assert_eq!(numbers, (1..=7).collect::<Vec<_>>());
            let check = VerifyChainRequest::default();
            let good = auditor.verify_chain(check.clone()).await.unwrap().into_inner();
            assert!(good.intact && good.checkpoints == 1, "{good:?}");
            assert_eq!((good.public_key.len(), good.public_key[0]), (65, 4));

            tamper(&database, "UPDATE audit_events SET hash = zeroblob(32) WHERE sequence = 4").await;
            let bad = auditor.verify_chain(check).await.unwrap().into_inner();
            assert_eq!((bad.intact, bad.first_bad_sequence), (false, 4));
            let other = ListEventsRequest { node_id: vec![9; 16].into(), ..Default::default() };
            let none = auditor.list_events(other).await;
            assert_eq!(reason(&none), (Code::NotFound, "NO_AUDIT_CHAIN".into()));
            // Somebody moves the end: then nothing more is recorded, and that is told.
            tamper(&database, "UPDATE audit_chains SET hash = zeroblob(32)").await;
            let refused = admin.list_meters(ListMetersRequest::default()).await;
            assert_eq!(reason(&refused), (Code::Unavailable, "AUDIT_NOT_WRITABLE".into()));
            let mut operator = SiteClient::new(site.caller(&holder_of(Role::AmiAdmin)).await);
            let status = operator.get_status(GetStatusRequest {}).await.unwrap().into_inner();
            assert!(status.faults.iter().any(|fault| fault.starts_with("audit: ")), "{status:?}");
        });
    }
}
