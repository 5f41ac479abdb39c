//! The services over the wire, on a real token and a real database.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod hsm_common;
#[allow(dead_code, reason = "each test file uses a part")]
mod rpc_support;
mod site_common;

use std::sync::Arc;

use hsm_common::Home;
use kms_core::Epoch;
use kms_proto::v1::{
    ApduBatch, CreateMeterRequest, DecryptRequest, DeleteMeterRequest, GetMeterRequest,
    GetStatusRequest, ImportLine, ImportMetersRequest, ImportRules, KeyKind, ListMetersRequest,
    NewKey, NewMeter, Verdict, VerifyMicRequest, ciphering_client::CipheringClient,
    import_result::Outcome, meters_client::MetersClient, site_client::SiteClient,
};
use kms_server::rpc::{Limits, Parts, Role};
use rpc_support::{Site, holder_of, reason};
use site_common::{GAK, GUEK, id, push, run, title, value};
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt as _;

const PLAIN: &[u8] = b"\x0F\x00\x00\x00\x01data notification";

async fn site(home: &Home, limits: Limits) -> Site {
    let site = site_common::Site::new(home).await;
    let transmitting = Arc::new(site.transmitting(true, None));
    let associations = Arc::new(site.associations(Arc::clone(&transmitting), Arc::default()));
    let kek = site.kek_rotation();
    let site_common::Site { store, hsm, keyring, ciphering, lifecycle, audit, .. } = site;
    keyring.refresher.warm_up().await;
    let domain = store.domain().await.unwrap().unwrap();
    Site::start_parts(limits, move |clock| Parts {
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
    .await
}

fn key(kind: KeyKind, value: Vec<u8>) -> NewKey {
    NewKey { kind: kind as i32, clear_value: value.into(), ..NewKey::default() }
}

fn meter(n: u64) -> NewMeter {
    NewMeter {
        meter_id: id(n),
        system_title: title(n).as_bytes().to_vec().into(),
        logical_device_name: String::new(),
        keys: vec![key(KeyKind::Guek, value(n, GUEK)), key(KeyKind::Gak, value(n, GAK))],
        policy: None,
    }
}

async fn admin(site: &Site) -> MetersClient<Channel> {
    MetersClient::new(site.caller(&holder_of(Role::AmiAdmin)).await)
}

async fn hes(site: &Site) -> CipheringClient<Channel> {
    CipheringClient::new(site.caller(&holder_of(Role::Hes)).await)
}

async fn create(admin: &mut MetersClient<Channel>, n: u64) {
    let request = CreateMeterRequest { meter: Some(meter(n)), rules: None };
    let answer = admin.create_meter(request).await.unwrap().into_inner();
    assert_eq!(answer.meter.unwrap().meter_id, id(n));
}

fn batch(tag: u64, apdus: &[Vec<u8>]) -> ApduBatch {
    ApduBatch {
        apdus: apdus.concat().into(),
        lengths: apdus.iter().map(|apdu| apdu.len() as u32).collect(),
        tag,
        ..ApduBatch::default()
    }
}

on_a_token! {
    fn a_push_opens_one_by_one_in_a_batch_and_in_a_stream(home) {
        run(async {
            let site = site(home, Limits::default()).await;
            let mut admin = admin(&site).await;
            create(&mut admin, 1).await;
            create(&mut admin, 2).await;
            let mut hes = hes(&site).await;
            let request = DecryptRequest { apdu: push(1, PLAIN).into(), ..Default::default() };
            let answer = hes.decrypt(request).await.unwrap().into_inner();
            assert_eq!((answer.verdict(), &answer.plaintext[..]), (Verdict::Ok, PLAIN));
            assert_eq!(answer.system_title, title(1).as_bytes()[..]);
            assert!(answer.authenticated);
            let request = VerifyMicRequest {
                apdu: push(2, PLAIN).into(),
                meter_id: id(2),
                ..Default::default()
            };
            let answer = hes.verify_mic(request).await.unwrap().into_inner();
            assert_eq!((answer.verdict(), answer.encryption_key_version), (Verdict::Ok, 1));

            // One bad item, one of a meter that nobody knows: the others open.
            let mut forged = push(2, PLAIN);
            *forged.last_mut().unwrap() ^= 1;
            let apdus = [push(1, PLAIN), forged, push(3, PLAIN), push(2, b""), push(2, PLAIN)];
            let verdicts = [1u8, 3, 5, 1, 1];
            let lengths = [PLAIN.len() as u32, 0, 0, 0, PLAIN.len() as u32];
            let answer = hes.decrypt_batch(batch(7, &apdus)).await.unwrap().into_inner();
            assert_eq!((answer.tag, &answer.verdicts[..]), (7, &verdicts[..]));
            assert_eq!(answer.lengths, lengths);
            assert_eq!(answer.plaintexts, [PLAIN, PLAIN].concat());
            assert_eq!(&answer.flags[..], [1, 0, 0, 1, 1]);
            let answer = hes.verify_mic_batch(batch(8, &apdus)).await.unwrap().into_inner();
            assert_eq!((answer.tag, &answer.verdicts[..]), (8, &verdicts[..]));

            let batches: Vec<_> = (0..20).map(|tag| batch(tag, &apdus)).collect();
            let mut answers =
                hes.decrypt_stream(tokio_stream::iter(batches.clone())).await.unwrap().into_inner();
            for tag in 0..20 {
                let answer = answers.message().await.unwrap().unwrap();
                assert_eq!((answer.tag, &answer.verdicts[..]), (tag, &verdicts[..]));
            }
            assert!(answers.message().await.unwrap().is_none());
            let mut answers =
                hes.verify_mic_stream(tokio_stream::iter(batches)).await.unwrap().into_inner();
            for tag in 0..20 {
                assert_eq!(answers.message().await.unwrap().unwrap().tag, tag);
            }
        });
    }

    fn exchanged_keys_are_named_in_single_calls_and_a_flood_is_not_looked_at(home) {
        run(async {
            let site = site(home, Limits::default()).await;
            let mut admin = admin(&site).await;
            let exchanged = NewMeter {
                keys: vec![key(KeyKind::Guek, value(1, GAK)), key(KeyKind::Gak, value(1, GUEK))],
                ..meter(1)
            };
            let request = CreateMeterRequest { meter: Some(exchanged), rules: None };
            admin.create_meter(request).await.unwrap();
            create(&mut admin, 2).await;
            let mut hes = hes(&site).await;
            let mut forged = push(2, PLAIN);
            *forged.last_mut().unwrap() ^= 1;
            let request = |apdu: &[u8]| DecryptRequest { apdu: apdu.to_vec().into(), ..Default::default() };
            let answer = hes.decrypt(request(&forged)).await.unwrap().into_inner();
            assert_eq!((answer.verdict(), answer.reason.as_str()), (Verdict::MicFailure, ""));
            let mut named = 0;
            let begun = std::time::Instant::now();
            for _ in 0..50 {
                let answer = hes.decrypt(request(&push(1, PLAIN))).await.unwrap().into_inner();
                assert_eq!((answer.verdict(), &answer.plaintext[..]), (Verdict::MicFailure, &b""[..]));
                named += u64::from(answer.reason.contains("in each other's place"));
            }
            // The forged one took one of five; each further second allows five more.
            let most = 4 + 5 * (begun.elapsed().as_secs() + 1);
            assert!((4..=most).contains(&named) && named < 50, "{named} of 50, at most {most}");
            let answer = hes.decrypt_batch(batch(1, &[push(1, PLAIN)])).await.unwrap().into_inner();
            assert_eq!((&answer.verdicts[..], answer.plaintexts.len()), (&[3u8][..], 0));
        });
    }

    fn a_batch_whose_columns_do_not_fit_is_refused_and_ends_its_stream(home) {
        run(async {
            let site = site(home, Limits::default()).await;
            let mut hes = hes(&site).await;
            let mut bad = batch(2, &[push(1, PLAIN)]);
            bad.lengths[0] += 1;
            let refused = hes.decrypt_batch(bad.clone()).await;
            assert_eq!(reason(&refused), (Code::InvalidArgument, "BAD_COLUMN".into()));
            let details = refused.unwrap_err().get_error_details();
            assert_eq!(details.error_info().unwrap().metadata["column"], "lengths");
            let refused = hes.verify_mic_batch(bad.clone()).await;
            assert_eq!(reason(&refused).0, Code::InvalidArgument);
            let batches = [batch(1, &[push(1, PLAIN)]), bad, batch(3, &[])];
            let mut answers =
                hes.decrypt_stream(tokio_stream::iter(batches)).await.unwrap().into_inner();
            assert_eq!(answers.message().await.unwrap().unwrap().tag, 1);
            let refused = answers.message().await;
            assert_eq!(reason(&refused), (Code::InvalidArgument, "BAD_COLUMN".into()));
        });
    }

    fn a_batch_beyond_the_limit_is_refused_by_name(home) {
        run(async {
            let site = site(home, Limits { batch_items_max: 2, ..Limits::default() }).await;
            let mut hes = hes(&site).await;
            let apdus = [push(1, PLAIN), push(1, PLAIN), push(1, PLAIN)];
            let stream = tokio_stream::iter([batch(1, &apdus)]);
            let mut answers = hes.decrypt_stream(stream).await.unwrap().into_inner();
            let refusals = [
                hes.decrypt_batch(batch(1, &apdus)).await.map(drop),
                hes.verify_mic_batch(batch(1, &apdus)).await.map(drop),
                answers.message().await.map(drop),
            ];
            for refused in refusals {
                assert_eq!(reason(&refused), (Code::ResourceExhausted, "BATCH_TOO_LARGE".into()));
                let details = refused.unwrap_err().get_error_details();
                // The same batch would be refused for ever.
                assert!(details.retry_info().is_none());
                assert_eq!(details.error_info().unwrap().metadata["limit"], "2");
            }
            hes.decrypt_batch(batch(1, &apdus[..2])).await.unwrap();
        });
    }

    fn a_message_beyond_the_limit_ends_its_stream(home) {
        run(async {
            let site = site(home, Limits { message_bytes_max: 1_024, ..Limits::default() }).await;
            let mut hes = hes(&site).await;
            let batches = tokio_stream::iter([batch(1, &[]), batch(2, &[vec![0; 2_000]])]);
            let mut answers = hes.decrypt_stream(batches).await.unwrap().into_inner();
            assert_eq!(answers.message().await.unwrap().unwrap().tag, 1);
            let refused = answers.message().await;
            assert_eq!(reason(&refused), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".into()));
        });
    }

    fn meters_come_are_looked_at_and_go(home) {
        run(async {
            let site = site(home, Limits::default()).await;
            let mut admin = admin(&site).await;
            let line = |line, meter| ImportLine { line, meter: Some(meter) };
            let unreadable = NewMeter { system_title: vec![1].into(), ..meter(9) };
            let rules = Some(ImportRules::default());
            let messages = [
                ImportMetersRequest {
                    rules,
                    lines: vec![line(1, meter(1)), line(2, unreadable), line(3, meter(3))],
                    sealed: None,
                },
                ImportMetersRequest {
                    rules: None,
                    lines: vec![line(4, meter(1))],
                    sealed: None,
                },
            ];
            let mut answers =
                admin.import_meters(tokio_stream::iter(messages)).await.unwrap().into_inner();
            let mut told = Vec::new();
            while let Some(answer) = answers.message().await.unwrap() {
                told.extend(answer.results.iter().map(|result| (result.line, result.outcome())));
            }
            let expected = [
                (1, Outcome::Created),
                (2, Outcome::Refused),
                (3, Outcome::Created),
                (4, Outcome::Unchanged),
            ];
            assert_eq!(told, expected);

            let page = ListMetersRequest { after: String::new(), page_size: 1 };
            let page = admin.list_meters(page).await.unwrap().into_inner();
            assert_eq!((page.meters.len(), page.next.as_str()), (1, "meter-1"));
            let rest = ListMetersRequest { after: page.next, page_size: 1 };
            let rest = admin.list_meters(rest).await.unwrap().into_inner();
            assert_eq!((rest.meters[0].meter_id.as_str(), rest.next.as_str()), ("meter-3", ""));

            let by_title = GetMeterRequest {
                meter_id: String::new(),
                system_title: title(3).as_bytes().to_vec().into(),
            };
            let found = admin.get_meter(by_title).await.unwrap().into_inner().meter.unwrap();
            assert_eq!((found.meter_id, found.keys.len()), (id(3), 2));

            let mut operator = SiteClient::new(site.caller(&holder_of(Role::Auditor)).await);
            let status = operator.get_status(GetStatusRequest {}).await.unwrap().into_inner();
            assert_eq!(status.faults, [""; 0]);
            assert_eq!((status.site.as_str(), Epoch(status.epoch)), ("test", Epoch(2)));
            let store = status.store.unwrap();
            assert_eq!((store.kind.as_str(), store.reachable, store.meters), ("sqlite", true, 2));
            assert!(status.token.unwrap().reachable && status.single_site);

            admin.delete_meter(DeleteMeterRequest { meter_id: id(3) }).await.unwrap();
            let gone = GetMeterRequest { meter_id: id(3), ..Default::default() };
            let gone = admin.get_meter(gone).await;
            assert_eq!(reason(&gone), (Code::NotFound, "METER_NOT_FOUND".into()));
            let request = CreateMeterRequest { meter: Some(meter(1)), rules: None };
            let again = admin.create_meter(request).await;
            assert_eq!(reason(&again), (Code::AlreadyExists, "METER_EXISTS".into()));
        });
    }
}
