//! Sealed import files over the wire, on a real token and a real database.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod hsm_common;
#[allow(dead_code, reason = "each test file uses a part")]
mod rpc_support;
mod site_common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hsm_common::Home;
use kms_client::{ImportKey, ManifestSigner, NewMeter, Sealer, sealed::OaepHash};
use kms_core::{ClearKey, DomainId, KeyKind, Record, SealedKek};
use kms_proto::v1::{
    self, AuditDetailName, AuditEvent, AuditOutcome, DecryptRequest, GetImportKeyRequest,
    GetMeterRequest, ImportMetersRequest, ImportRules, ListEventsRequest, Verdict,
    audit_client::AuditClient, ciphering_client::CipheringClient, import_result::Outcome,
    meters_client::MetersClient,
};
use kms_server::{
    hsm::{Hsm, KEYS_PER_CALL_MAX, LockedKey, SealedValue, StoreUnder, TakeKeys, TokenError},
    keyring::Keyring,
    lifecycle::Signers,
    rpc::{Limits, Parts, Role},
};
use p256::{
    ecdsa::{Signature, SigningKey, signature::Signer as _},
    pkcs8::DecodePrivateKey as _,
};
use prost::Message as _;
use rcgen::{KeyPair, PublicKeyData as _};
use rpc_support::{holder_of, reason};
use sha2::{Digest as _, Sha256};
use site_common::{GAK, GUEK, Options, push, push_with, run, title, value};
use tonic::{Code, Status, transport::Channel};

const PLAIN: &[u8] = b"\x0F\x00\x00\x00\x01data notification";
const SIGNER: &str = "provisioning";

struct Site {
    server: rpc_support::Site,
    meters: MetersClient<Channel>,
    signer: KeyPair,
    hsm: Hsm,
    keyring: Arc<Keyring>,
}

impl Site {
    async fn new(home: &Home, allow_clear: bool) -> Self {
        let options = Options { allow_clear, ..Options::default() };
        let site = site_common::Site::with(home, options).await;
        let transmitting = Arc::new(site.transmitting(true, None));
        let associations = Arc::new(site.associations(Arc::clone(&transmitting), Arc::default()));
        let kek = site.kek_rotation();
        let site_common::Site { store, hsm, keyring, ciphering, lifecycle, audit, .. } = site;
        let domain = store.domain().await.unwrap().unwrap();
        let signer = KeyPair::generate().unwrap();
        let signers = Signers::new([(SIGNER.to_owned(), signer.public_key_pem())]).unwrap();
        let (door, ring) = (hsm.clone(), Arc::clone(&keyring));
        let server = rpc_support::Site::start_parts(Limits::default(), move |clock| Parts {
            ciphering: Arc::new(ciphering),
            transmitting,
            associations,
            lifecycle: Arc::new(lifecycle.with_signers(signers)),
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
        let meters = MetersClient::new(server.caller(&holder_of(Role::AmiAdmin)).await);
        Self { server, meters, signer, hsm: door, keyring: ring }
    }

    async fn import_key(&self) -> ImportKey {
        let answer = self.meters.clone().get_import_key(GetImportKeyRequest {}).await;
        let v1::GetImportKeyResponse { site, domain_id, public_key, fingerprint, oaep_hash } =
            answer.unwrap().into_inner();
        assert_eq!((site.as_str(), oaep_hash), ("test", v1::OaepHash::OaepSha1 as i32));
        let key = ImportKey {
            site,
            domain_id: domain_id.to_vec(),
            public_key: public_key.to_vec(),
            oaep_hash: OaepHash::Sha1,
        };
        assert_eq!(key.fingerprint().unwrap().0, fingerprint[..]);
        key
    }

    async fn seal(&self, lines: &[String], a_chunk: usize) -> Vec<v1::SealedPart> {
        seal_to(self.import_key().await, SIGNER, &self.signer, lines, a_chunk)
    }

    async fn import(
        &self,
        parts: Vec<v1::SealedPart>,
        rules: ImportRules,
    ) -> Result<Vec<v1::ImportResult>, Status> {
        let messages: Vec<_> = parts
            .into_iter()
            .map(|part| ImportMetersRequest {
                rules: Some(rules),
                lines: Vec::new(),
                sealed: Some(part),
            })
            .collect();
        let mut meters = self.meters.clone();
        let mut answers = meters.import_meters(tokio_stream::iter(messages)).await?.into_inner();
        let mut results = Vec::new();
        while let Some(answer) = answers.message().await? {
            results.extend(answer.results);
        }
        Ok(results)
    }

    async fn refused(&self, parts: Vec<v1::SealedPart>) -> String {
        let answer = self.import(parts, ImportRules::default()).await;
        let (code, word) = reason(&answer);
        assert_eq!(code, Code::InvalidArgument, "{answer:?}");
        word
    }

    async fn verdict(&self, apdu: Vec<u8>) -> Verdict {
        let hes = self.server.caller(&holder_of(Role::Hes)).await;
        let request = DecryptRequest { apdu: apdu.into(), ..Default::default() };
        CipheringClient::new(hes).decrypt(request).await.unwrap().into_inner().verdict()
    }

    /// The audit log without its first event, the start.
    async fn events(&self) -> Vec<AuditEvent> {
        let mut auditor = AuditClient::new(self.server.caller(&holder_of(Role::Auditor)).await);
        let all = auditor.list_events(ListEventsRequest::default()).await.unwrap();
        all.into_inner().events.split_off(1)
    }

    async fn keys(&self, n: u64) -> Vec<v1::Key> {
        let request = GetMeterRequest { meter_id: site_common::id(n), ..Default::default() };
        self.meters.clone().get_meter(request).await.unwrap().into_inner().meter.unwrap().keys
    }
}

fn seal_to(
    key: ImportKey,
    name: &str,
    signer: &KeyPair,
    lines: &[String],
    a_chunk: usize,
) -> Vec<v1::SealedPart> {
    let fingerprint = key.fingerprint().unwrap();
    let to = key.pinned(fingerprint).unwrap();
    let signer = ManifestSigner::from_pem(name, &signer.serialize_pem()).unwrap();
    let mut sealer =
        Sealer::new(&to, signer, lines.len() as u64).unwrap().with_chunk_lines(a_chunk);
    let mut parts = Vec::new();
    for line in lines {
        let meter = NewMeter::from_json(line.as_bytes()).unwrap();
        parts.extend(sealer.push(meter).unwrap());
    }
    parts.push(sealer.finish().unwrap());
    parts.iter().map(|part| part.to_wire()).collect()
}

/// An import line: kinds, protections and values.
fn line(n: u64, keys: &[(&str, &str, Vec<u8>)]) -> String {
    let keys: Vec<String> = keys
        .iter()
        .map(|(kind, protection, value)| {
            let value = hex::encode(value);
            format!(r#"{{"kind":"{kind}","protection":"{protection}","value":"{value}"}}"#)
        })
        .collect();
    let title = hex::encode_upper(title(n).as_bytes());
    let id = site_common::id(n);
    format!(r#"{{"meter_id":"{id}","system_title":"{title}","keys":[{}]}}"#, keys.join(","))
}

fn usual(n: u64) -> String {
    line(n, &[("GUEK", "MEMORY", value(n, GUEK)), ("GAK", "MEMORY", value(n, GAK))])
}

fn told(results: &[v1::ImportResult]) -> Vec<(u64, Outcome, &str)> {
    results.iter().map(|r| (r.line, r.outcome(), r.code.as_str())).collect()
}

fn chunk(part: &mut v1::SealedPart) -> &mut v1::SealedChunk {
    part.chunk.as_mut().unwrap()
}

fn flip(bytes: &bytes::Bytes, bit: usize) -> bytes::Bytes {
    let mut other = bytes.to_vec();
    other[bit / 8] ^= 1 << (bit % 8);
    other.into()
}

/// What the signer would have signed, had it been so: faults of the sealer, not of an attacker.
fn resigned(
    signer: &KeyPair,
    mut part: v1::SealedPart,
    header: impl FnOnce(&mut v1::SealedHeaderBody),
    lines: impl FnOnce(&mut Vec<v1::ImportLine>),
) -> v1::SealedPart {
    let key = SigningKey::from_pkcs8_pem(&signer.serialize_pem()).unwrap();
    let sign = |message: Vec<u8>| {
        let signature: Signature = key.sign(&message);
        bytes::Bytes::from(signature.to_bytes().to_vec())
    };
    let whole = part.header.as_mut().unwrap();
    let mut body = v1::SealedHeaderBody::decode(whole.body.clone()).unwrap();
    header(&mut body);
    whole.body = body.encode_to_vec().into();
    whole.signature = sign([b"ami.kms/sealed-import/2/header", &whole.body[..]].concat());
    let hash = Sha256::digest(&whole.body);
    let chunk = chunk(&mut part);
    let mut body = v1::SealedBody::decode(chunk.body.clone()).unwrap();
    lines(&mut body.lines);
    chunk.body = body.encode_to_vec().into();
    chunk.signature = sign(
        [
            b"ami.kms/sealed-import/2/chunk",
            &hash[..],
            &chunk.number.to_be_bytes(),
            &[u8::from(chunk.last)],
            &chunk.first_line.to_be_bytes(),
            &chunk.body,
        ]
        .concat(),
    );
    part
}

fn wrapped(lines: &mut [v1::ImportLine], line: usize, key: usize) -> &mut bytes::Bytes {
    &mut lines[line].meter.as_mut().unwrap().keys[key].wrapped_value
}

on_a_token! {
    fn keys_of_every_protection_and_length_come_through_sealed_with_clear_import_off(home) {
        run(async {
            let site = Site::new(home, false).await;
            let long = |salt| [value(3, salt), value(4, salt)].concat();
            let lines = [
                usual(1),
                line(2, &[("GUEK", "HSM", value(2, GUEK)), ("GAK", "MEMORY", value(2, GAK)), ("KEK", "HSM", value(2, 9))]),
                line(3, &[("GUEK", "MEMORY", long(GUEK)), ("GAK", "MEMORY", long(GAK)), ("KEK", "HSM", long(9))]),
            ];
            let results = site.import(site.seal(&lines, 500).await, ImportRules::default()).await.unwrap();
            assert!(results.iter().all(|r| r.outcome() == Outcome::Created), "{results:?}");
            for n in [1, 2] {
                assert_eq!(site.verdict(push(n, PLAIN)).await, Verdict::Ok, "meter {n}");
                let stranger = push_with(n, 0x30, &value(n, 99), &value(n, GAK), PLAIN);
                assert_eq!(site.verdict(stranger).await, Verdict::MicFailure);
            }
            // Identities are those that a key in clear has; RFC 3394 is deterministic, so the KEK is
            // the very one that was sealed.
            for (n, kek) in [(2, value(2, 9)), (3, long(9))] {
                let Some(Record::Meter(record)) = site.keyring.records.read(&title(n)).await.unwrap() else {
                    panic!("meter {n} is not there")
                };
                let stored = record.keys.iter().find(|key| key.kind == KeyKind::Kek).unwrap();
                let (fingerprint, kcv) = site.keyring.identities.identify(&ClearKey::new(kek.clone())).unwrap();
                assert_eq!((stored.fingerprint, stored.kcv), (fingerprint, Some(kcv)));
                assert_eq!(usize::from(stored.value_len), kek.len());
                let again = site.hsm.wrap(SealedKek::MeterKek, ClearKey::new(kek)).await.unwrap();
                assert_eq!(stored.wrapped, again);
            }
            assert_eq!(site.keys(3).await.len(), 3);
        });
    }

    fn a_file_for_another_site_key_or_signer_is_refused_by_name(home) {
        run(async {
            let site = Site::new(home, false).await;
            let lines = [usual(1)];
            let ours = site.seal(&lines, 500).await;
            let stranger = KeyPair::generate().unwrap();
            let key = site.import_key().await;
            let by = |key: ImportKey, name, signer| seal_to(key, name, signer, &lines, 500);
            assert_eq!(site.refused(by(key.clone(), "nobody", &site.signer)).await, "UNKNOWN_SIGNER");
            assert_eq!(site.refused(by(key.clone(), SIGNER, &stranger)).await, "BAD_SIGNATURE");
            let elsewhere = ImportKey { domain_id: DomainId([9; 16]).0.to_vec(), ..key.clone() };
            assert_eq!(site.refused(by(elsewhere, SIGNER, &site.signer)).await, "WRONG_SITE");
            let hash = ImportKey { oaep_hash: OaepHash::Sha256, ..key.clone() };
            assert_eq!(site.refused(by(hash, SIGNER, &site.signer)).await, "WRONG_IMPORT_KEY");
            let other_key = resigned(&site.signer, ours[0].clone(), |h| h.import_key_fingerprint = vec![7; 32].into(), |_| {});
            assert_eq!(site.refused(vec![other_key]).await, "WRONG_IMPORT_KEY");
            // Pinned wrongly, nothing is sealed at all.
            assert!(key.pinned("00".repeat(32).parse().unwrap()).is_err());
            // The file's key does not open: tampered with by who may sign, or of a wrong length.
            for change in [|key: &mut Vec<u8>| key[100] ^= 1, |key: &mut Vec<u8>| key.truncate(100)] {
                let part = resigned(&site.signer, ours[0].clone(), |h| {
                    let mut key = h.wrapped_file_key.to_vec();
                    change(&mut key);
                    h.wrapped_file_key = key.into();
                }, |_| {});
                assert_eq!(site.refused(vec![part]).await, "FILE_KEY_REFUSED");
            }
            // And the connection is as well as before.
            assert_eq!(site.import(ours, ImportRules::default()).await.unwrap()[0].outcome(), Outcome::Created);
            assert_eq!(site.hsm.status().connection_epoch, 1);
        });
    }

    fn invariant_5_whatever_is_changed_after_signing_is_refused(home) {
        run(async {
            let site = Site::new(home, false).await;
            let parts = site.seal(&[usual(1), usual(2), usual(3)], 2).await;
            assert_eq!(parts.len(), 2);
            let one = || vec![parts[0].clone(), parts[1].clone()];
            let body = parts[0].chunk.as_ref().unwrap().body.len();
            for bit in (0..body * 8).step_by(37) {
                let mut forged = one();
                let chunk = chunk(&mut forged[0]);
                chunk.body = flip(&chunk.body, bit);
                assert_eq!(site.refused(forged).await, "BAD_SIGNATURE", "bit {bit} of the body");
            }
            for bit in (0..64 * 8).step_by(41) {
                let mut forged = one();
                let chunk = chunk(&mut forged[0]);
                chunk.signature = flip(&chunk.signature, bit);
                assert_eq!(site.refused(forged).await, "BAD_SIGNATURE", "bit {bit} of the signature");
            }
            // The header holds the file's wrapped key and everything else.
            let header = parts[0].header.as_ref().unwrap().body.len();
            for bit in (0..header * 8).step_by(97) {
                let mut forged = one();
                for part in &mut forged {
                    let header = part.header.as_mut().unwrap();
                    header.body = flip(&header.body, bit);
                }
                let word = site.refused(forged).await;
                assert!(["BAD_SIGNATURE", "UNKNOWN_SIGNER", "BAD_FIELD"].contains(&word.as_str()), "{word}");
            }
            // Of another meter, of another line, lines changed over.
            let moved: [fn(&mut Vec<v1::ImportLine>); 3] = [
                |lines| lines[0].meter.as_mut().unwrap().meter_id = "meter-7".into(),
                |lines| {
                    let first = wrapped(lines, 0, 0).clone();
                    let second = std::mem::replace(wrapped(lines, 1, 0), first);
                    *wrapped(lines, 0, 0) = second;
                },
                |lines| lines.swap(0, 1),
            ];
            for change in moved {
                let mut forged = one();
                let chunk = chunk(&mut forged[0]);
                let mut body = v1::SealedBody::decode(chunk.body.clone()).unwrap();
                change(&mut body.lines);
                chunk.body = body.encode_to_vec().into();
                assert_eq!(site.refused(forged).await, "BAD_SIGNATURE");
            }
            // Places of chunks.
            let renumbered = |change: fn(&mut v1::SealedChunk)| {
                let mut forged = one();
                change(chunk(&mut forged[0]));
                forged
            };
            for forged in [renumbered(|c| c.number = 5), renumbered(|c| c.last = true), renumbered(|c| c.first_line = 9)] {
                assert_eq!(site.refused(forged).await, "BAD_SIGNATURE");
            }
            let (first, last) = (parts[0].clone(), parts[1].clone());
            assert_eq!(site.refused(vec![last.clone(), first.clone()]).await, "CHUNK_OUT_OF_ORDER");
            assert_eq!(site.refused(vec![first.clone(), first.clone()]).await, "CHUNK_OUT_OF_ORDER");
            assert_eq!(site.refused(vec![first.clone()]).await, "FILE_CUT");
            // A chunk of another file by the same signer: with its own header or with ours.
            let other = site.seal(&[usual(1), usual(2), usual(3)], 2).await;
            assert_eq!(site.refused(vec![first.clone(), other[1].clone()]).await, "ANOTHER_FILE");
            let grafted = v1::SealedPart { header: first.header.clone(), ..other[1].clone() };
            assert_eq!(site.refused(vec![first, grafted]).await, "BAD_SIGNATURE");
            // Signed, but not what a sealer makes.
            let sign = |part: &v1::SealedPart, change: fn(&mut Vec<v1::ImportLine>)| {
                vec![resigned(&site.signer, part.clone(), |_| {}, change)]
            };
            assert_eq!(site.refused(sign(&last, |lines| lines[0].line = 2)).await, "LINES_OUT_OF_ORDER");
            assert_eq!(site.refused(sign(&last, |lines| lines.clear())).await, "LINES_OUT_OF_ORDER");
            assert_eq!(site.refused(sign(&parts[0], |lines| lines.truncate(1)).into_iter().chain([last.clone()]).collect()).await, "CHUNK_OUT_OF_ORDER");
            let grown = resigned(&site.signer, last, |h| h.count = 9, |_| {});
            assert_eq!(site.refused(vec![grown]).await, "WRONG_COUNT");
        });
    }

    fn invariant_9_a_blob_that_does_not_open_leaves_the_other_lines_alone(home) {
        run(async {
            let site = Site::new(home, false).await;
            let lines: Vec<String> = (1..=6).map(usual).collect();
            let part = site.seal(&lines, 500).await.remove(0);
            let part = resigned(&site.signer, part, |_| {}, |lines| {
                *wrapped(lines, 0, 0) = flip(wrapped(lines, 0, 0), 70);
                *wrapped(lines, 1, 1) = vec![1; 23].into();
                *wrapped(lines, 2, 0) = vec![1; 16].into();
                lines[3].meter.as_mut().unwrap().keys[0].kind = v1::KeyKind::HlsSecret as i32;
                lines[4].meter.as_mut().unwrap().keys[0].clear_value = vec![5; 16].into();
            });
            let results = site.import(vec![part], ImportRules::default()).await.unwrap();
            assert_eq!(told(&results), [
                (1, Outcome::Refused, "KEY_UNWRAP_REFUSED"),
                (2, Outcome::Refused, "KEY_LENGTH"),
                (3, Outcome::Refused, "KEY_LENGTH"),
                (4, Outcome::Refused, "SECRET_NOT_SEALABLE"),
                (5, Outcome::Refused, "BAD_FIELD"),
                (6, Outcome::Created, ""),
            ]);
            assert_eq!(site.verdict(push(6, PLAIN)).await, Verdict::Ok);
            assert_eq!(site.verdict(push(1, PLAIN)).await, Verdict::UnknownMeter);
            assert_eq!(site.hsm.status().connection_epoch, 1, "tampering is not a broken token");
        });
    }

    fn invariant_6_an_import_that_was_cut_goes_on_and_a_second_one_changes_nothing(home) {
        run(async {
            let site = Site::new(home, false).await;
            let lines: Vec<String> = (1..=9).map(usual).collect();
            let parts = site.seal(&lines, 2).await;
            assert_eq!(parts.len(), 5);
            // Two chunks arrive, then nothing: what arrived is there.
            let cut = site.import(parts[..2].to_vec(), ImportRules::default()).await;
            assert_eq!(reason(&cut).1, "FILE_CUT");
            assert_eq!(site.verdict(push(4, PLAIN)).await, Verdict::Ok);
            assert_eq!(site.verdict(push(5, PLAIN)).await, Verdict::UnknownMeter);
            // From the next chunk on, and the whole again.
            let rest = site.import(parts[2..].to_vec(), ImportRules::default()).await.unwrap();
            assert!(rest.iter().all(|r| r.outcome() == Outcome::Created) && rest.len() == 5);
            let again = site.import(parts, ImportRules::default()).await.unwrap();
            assert!(again.iter().all(|r| r.outcome() == Outcome::Unchanged) && again.len() == 9);
            // Sealed anew, it is still the same keys.
            let anew = site.seal(&lines, 500).await;
            let anew = site.import(anew, ImportRules::default()).await.unwrap();
            assert!(anew.iter().all(|r| r.outcome() == Outcome::Unchanged));
        });
    }

    fn invariant_10_a_sealed_import_and_each_refused_manifest_stand_in_the_log(home) {
        run(async {
            use AuditDetailName::{Created, KeysAdded, RefusedLines, SealedChunk, SealedFile, SealedSigner, Unchanged, Updated};
            use AuditOutcome::{Done, Refused};
            let site = Site::new(home, false).await;
            let parts = site.seal(&[usual(1), usual(2), usual(3)], 2).await;
            let number = |bytes: &[u8]| u64::from_be_bytes(Sha256::digest(bytes)[..8].try_into().unwrap());
            let file = number(&parts[0].header.as_ref().unwrap().body);
            // As `openssl pkey -pubout -outform DER | sha256sum` has it.
            let signer = number(&site.signer.subject_public_key_info());
            site.import(parts.clone(), ImportRules::default()).await.unwrap();
            let mut forged = parts.clone();
            let body = chunk(&mut forged[0]);
            body.body = flip(&body.body, 99);
            assert_eq!(site.refused(forged).await, "BAD_SIGNATURE");
            let replayed = vec![parts[0].clone(), parts[0].clone()];
            assert_eq!(site.refused(replayed).await, "CHUNK_OUT_OF_ORDER");
            assert_eq!(site.refused(parts[..1].to_vec()).await, "FILE_CUT");
            let by_stranger = seal_to(site.import_key().await, SIGNER, &KeyPair::generate().unwrap(), &[usual(9)], 1);
            assert_eq!(site.refused(by_stranger.clone()).await, "BAD_SIGNATURE");
            let other_key = resigned(&site.signer, parts[0].clone(), |h| h.import_key_fingerprint = vec![7; 32].into(), |_| {});
            assert_eq!(site.refused(vec![other_key.clone()]).await, "WRONG_IMPORT_KEY");
            let headless = v1::SealedPart { header: None, ..parts[0].clone() };
            assert_eq!(site.refused(vec![headless]).await, "BAD_FIELD");

            let sum = |[created, updated, unchanged]: [u64; 3], chunk| vec![
                (Created, created), (Updated, updated), (Unchanged, unchanged), (RefusedLines, 0),
                (SealedFile, file), (SealedSigner, signer), (SealedChunk, chunk),
            ];
            let meter = vec![(Created, 1), (KeysAdded, 2), (SealedFile, file)];
            // Of a chunk with a single line one event says it all.
            let single = vec![(Created, 1), (KeysAdded, 2), (SealedFile, file), (SealedSigner, signer), (SealedChunk, 1)];
            let of = |part: &v1::SealedPart| vec![(SealedFile, number(&part.header.as_ref().unwrap().body))];
            let import = "Meters/ImportMeters";
            let wanted = [
                ("Meters/GetImportKey", Done, "", "", vec![]),
                (import, Done, "", "meter-1", meter.clone()),
                (import, Done, "", "meter-2", meter),
                (import, Done, "", "", sum([2, 0, 0], 0)),
                (import, Done, "", "meter-3", single),
                (import, Refused, "BAD_SIGNATURE", "", of(&parts[0])),
                (import, Done, "", "", sum([0, 0, 2], 0)),
                (import, Refused, "CHUNK_OUT_OF_ORDER", "", of(&parts[0])),
                (import, Done, "", "", sum([0, 0, 2], 0)),
                (import, Refused, "FILE_CUT", "", of(&parts[0])),
                ("Meters/GetImportKey", Done, "", "", vec![]),
                (import, Refused, "BAD_SIGNATURE", "", of(&by_stranger[0])),
                (import, Refused, "WRONG_IMPORT_KEY", "", of(&other_key)),
                (import, Refused, "BAD_FIELD", "", vec![]),
            ];
            let events = site.events().await;
            assert_eq!(events.len(), wanted.len(), "{events:?}");
            for (event, (verb, outcome, reason, meter_id, details)) in events.iter().zip(wanted) {
                let told = (&*event.verb, event.outcome(), &*event.reason, &*event.meter_id);
                assert_eq!(told, (verb, outcome, reason, meter_id));
                let wanted: Vec<(u32, u64)> = details.into_iter().map(|(name, number)| (name as u32, number)).collect();
                let told: Vec<(u32, u64)> = event.details.iter().map(|detail| (detail.name, detail.number)).collect();
                assert_eq!(told, wanted, "{event:?}");
            }
        });
    }

    fn what_the_token_alone_takes_for_a_key_is_told(home) {
        run(async {
            let site = Site::new(home, false).await;
            let lines: Vec<String> = (1..=500).map(usual).collect();
            let part = site.seal(&lines, 500).await.remove(0);
            let header = v1::SealedHeaderBody::decode(part.header.unwrap().body).unwrap();
            let lines = v1::SealedBody::decode(part.chunk.unwrap().body).unwrap().lines;
            let keys: Vec<SealedValue> = lines
                .into_iter()
                .flat_map(|line| line.meter.unwrap().keys)
                .enumerate()
                .map(|(at, key)| SealedValue {
                    wrapped: key.wrapped_value.to_vec(),
                    under: StoreUnder::Block(at / 2 % 128),
                })
                .collect();
            let job = |keys: &[SealedValue]| TakeKeys {
                wrapped_file_key: header.wrapped_file_key.to_vec(),
                fingerprint_label: b"label".to_vec(),
                wrap_keys: (0..128u8).map(|at| Arc::new([at; 32]) as LockedKey).collect(),
                keys: keys.to_vec(),
            };
            let (mut count, mut longest) = (0, Duration::ZERO);
            let started = Instant::now();
            for _ in 0..5 {
                for group in keys.chunks(KEYS_PER_CALL_MAX) {
                    let call = Instant::now();
                    let taken = site.hsm.take_keys(job(group)).await.unwrap();
                    longest = longest.max(call.elapsed());
                    assert!(taken.iter().all(Result::is_ok));
                    count += taken.len();
                }
            }
            let seconds = started.elapsed().as_secs_f64();
            println!("{count} keys, {:.0} keys/s, the longest call {longest:?}", count as f64 / seconds);
            // More at once than keeps a session for a moment is refused.
            let refused = site.hsm.take_keys(job(&keys[..KEYS_PER_CALL_MAX + 1])).await;
            assert!(matches!(refused, Err(TokenError::Refused { .. })));
        });
    }

    fn test_keys_and_duplicates_are_found_by_fingerprint(home) {
        run(async {
            let site = Site::new(home, true).await;
            let guek = |n, value: Vec<u8>| line(n, &[("GUEK", "MEMORY", value)]);
            // As the Green Book and NIST print them; nobody but the token sees them here.
            let lines = [
                guek(1, vec![0; 16]),
                guek(2, (0..32).collect()),
                guek(3, value(3, GUEK)),
                guek(4, value(3, GUEK)),
                guek(5, (0..16).collect()),
            ];
            let parts = site.seal(&lines, 500).await;
            let results = site.import(parts.clone(), ImportRules::default()).await.unwrap();
            assert_eq!(told(&results), [
                (1, Outcome::Refused, "TEST_KEY"),
                (2, Outcome::Refused, "TEST_KEY"),
                (3, Outcome::Created, ""),
                (4, Outcome::Created, ""),
                (5, Outcome::Refused, "TEST_KEY"),
            ]);
            assert_eq!(results[3].warnings, ["the GUEK is also that of meter-3"]);
            let allowed = ImportRules { allow_test_keys: true, ..ImportRules::default() };
            let results = site.import(parts, allowed).await.unwrap();
            assert_eq!(told(&results)[..2], [(1, Outcome::Created, ""), (2, Outcome::Created, "")]);
            // A key that came in clear is known again when it comes sealed, and the other way round.
            let in_clear = v1::ImportLine {
                line: 1,
                meter: Some(v1::NewMeter {
                    meter_id: "clear".into(),
                    system_title: title(77).as_bytes().to_vec().into(),
                    keys: vec![v1::NewKey {
                        kind: v1::KeyKind::Guek as i32,
                        clear_value: value(3, GUEK).into(),
                        ..Default::default()
                    }],
                    ..Default::default()
                }),
            };
            let message = ImportMetersRequest { lines: vec![in_clear.clone()], ..Default::default() };
            let mut answers = site.meters.clone().import_meters(tokio_stream::iter([message])).await.unwrap().into_inner();
            let result = answers.message().await.unwrap().unwrap().results.remove(0);
            assert_eq!(result.warnings, ["the GUEK is also that of meter-3, meter-4"]);
            // A sealed value does not come as a line of its own, nor both at once.
            let mut bare = in_clear;
            bare.meter.as_mut().unwrap().keys[0].wrapped_value = vec![1; 24].into();
            let message = ImportMetersRequest { lines: vec![bare], ..Default::default() };
            let mut answers = site.meters.clone().import_meters(tokio_stream::iter([message])).await.unwrap().into_inner();
            let result = answers.message().await.unwrap().unwrap().results.remove(0);
            assert_eq!(result.code, "BAD_FIELD");
        });
    }
}
