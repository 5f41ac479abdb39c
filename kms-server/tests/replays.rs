//! A replay is harmless, for every file in every order; a meter that was deleted comes back by two people
//! and not by a file; and a file's keys are its signer's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod hsm_common;
#[path = "replays/lives.rs"]
mod lives;
#[path = "replays/owners.rs"]
mod owners;
mod site_common;
#[path = "replays/story.rs"]
mod story;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use hsm_common::Home;
use kms_client::{ImportKey, ManifestSigner, Sealer, sealed::OaepHash};
use kms_core::{
    KeyKind, KeyState, MeterId, MeterPolicy, MeterRecord, MinimumProtection, Numbered as _,
    Protection, Record, SecuritySetup, SystemTitle, ports::Clock,
};
use kms_proto::v1;
use kms_server::{
    hsm,
    lifecycle::{
        ImportResult, ImportRules, Imported, KeyValue, LifecycleError, NewKey, NewMeter, Ranges,
        SealedHeader, Signer, Signers,
    },
};
use p256::{
    ecdsa::{Signature, SigningKey, signature::Signer as _},
    pkcs8::DecodePrivateKey as _,
};
use prost::Message as _;
use rcgen::KeyPair;
use site_common::{GAK, GUEK, Options, Site, call, id, key, meter, meter_with, run, title, value};

const START_MS: u64 = 1_800_000_000_000;
const EVERYTHING: ImportRules =
    ImportRules { allow_test_keys: false, add_versions: true, dry_run: false, change_policy: true };

/// Moved by the test; a moment each time it is read.
struct Time(AtomicU64);

impl Clock for Time {
    fn unix_ms(&self) -> u64 {
        self.0.fetch_add(1, Relaxed)
    }
    fn now(&self) -> kms_core::moment::Moment {
        kms_core::moment::Moment::from_ms(self.0.load(Relaxed))
    }
}

struct World {
    site: Site,
    time: Arc<Time>,
    import_key: ImportKey,
    signers: Vec<(&'static str, KeyPair)>,
}

/// One chunk of a sealed file, as it goes over the wire.
#[derive(Clone)]
struct File {
    header: v1::SealedHeader,
    lines: Vec<v1::ImportLine>,
    sealed_ms: u64,
}

impl World {
    async fn new(home: &Home, allow_clear: bool) -> Self {
        Self::with(home, allow_clear, |_| Ranges::default()).await
    }

    /// With what each signer owns.
    async fn with(home: &Home, allow_clear: bool, ranges: impl Fn(&str) -> Ranges) -> Self {
        let time = Arc::new(Time(AtomicU64::new(START_MS)));
        let signers =
            vec![("ann", KeyPair::generate().unwrap()), ("bob", KeyPair::generate().unwrap())];
        let trusted = signers.iter().map(|(name, key)| {
            let signer = Signer::from_pem(&key.public_key_pem(), ranges(name)).unwrap();
            ((*name).to_owned(), signer)
        });
        let options = Options {
            allow_clear,
            signers: Signers::of(trusted.collect()),
            clock: Some(time.clone()),
            ..Options::default()
        };
        let site = Site::with(home, options).await;
        let key = site.lifecycle.import_key().await.unwrap();
        assert_eq!(key.oaep_hash, hsm::OaepHash::Sha1);
        let import_key = ImportKey {
            site: "test".into(),
            domain_id: site.lifecycle.import_site().0.to_vec(),
            public_key: key.to_der(),
            oaep_hash: OaepHash::Sha1,
        };
        Self { site, time, import_key, signers }
    }

    fn pass(&self, ms: u64) {
        self.time.0.fetch_add(ms, Relaxed);
    }

    fn now(&self) -> u64 {
        self.time.0.fetch_add(1, Relaxed)
    }

    /// Sealed now, by the first signer.
    fn seal(&self, lines: &[String]) -> File {
        self.seal_at(lines, self.now())
    }

    fn seal_at(&self, lines: &[String], sealed_ms: u64) -> File {
        self.seal_by(0, lines, sealed_ms)
    }

    /// Sealed by one of the signers.
    fn seal_by(&self, signer: usize, lines: &[String], sealed_ms: u64) -> File {
        let meter = |line: &String| kms_client::NewMeter::from_json(line.as_bytes()).unwrap();
        self.seal_meters(signer, lines.iter().map(meter).collect(), sealed_ms)
    }

    fn seal_meters(
        &self,
        signer: usize,
        meters: Vec<kms_client::NewMeter>,
        sealed_ms: u64,
    ) -> File {
        let (name, key) = &self.signers[signer];
        let signer = ManifestSigner::from_pem(name, &key.serialize_pem()).unwrap();
        let to = self.import_key.clone();
        let fingerprint = to.fingerprint().unwrap();
        let to = to.pinned(fingerprint).unwrap();
        let mut sealer = Sealer::new_at(&to, signer, meters.len() as u64, sealed_ms).unwrap();
        for meter in meters {
            assert!(sealer.push(meter).unwrap().is_none());
        }
        let part = sealer.finish().unwrap().to_wire();
        let body = v1::SealedBody::decode(part.chunk.unwrap().body).unwrap();
        File { header: part.header.unwrap(), lines: body.lines, sealed_ms }
    }

    async fn import(
        &self,
        file: &File,
        rules: ImportRules,
    ) -> Result<Vec<ImportResult>, LifecycleError> {
        let open = self.site.lifecycle.open_sealed(&header(&file.header)).await?;
        let meters = file.lines.iter().map(sealed_meter).collect();
        let call = call("Meters/ImportMeters");
        let chunk = kms_server::lifecycle::ChunkOf { file: &open, number: 0 };
        let imports = self.site.lifecycle.import_sealed(&call, chunk, meters, rules).await?;
        Ok(imports.results)
    }

    /// What becomes of each line, in words.
    async fn outcomes(&self, file: &File, rules: ImportRules) -> Vec<&'static str> {
        words(&self.import(file, rules).await.unwrap())
    }

    async fn record(&self, n: u64) -> Option<Record> {
        self.site.keyring.records.read(&title(n)).await.unwrap()
    }

    async fn meter(&self, n: u64) -> Option<MeterRecord> {
        match self.record(n).await {
            Some(Record::Meter(meter)) => Some(meter),
            _ => None,
        }
    }

    async fn delete(&self, n: u64) {
        let id = MeterId::new(&id(n)).unwrap();
        self.site.lifecycle.delete(&call("Meters/DeleteMeter"), &id).await.unwrap();
    }

    async fn readmit(&self, n: u64) -> Result<kms_server::lifecycle::Readmitted, LifecycleError> {
        let id = MeterId::new(&id(n)).unwrap();
        let call = call("Meters/ReadmitMeter");
        self.site.lifecycle.readmit(&call, &id, &title(n)).await.map(|(readmitted, _)| readmitted)
    }

    async fn set_policy(&self, n: u64, policy: MeterPolicy) {
        let id = MeterId::new(&id(n)).unwrap();
        self.site.lifecycle.set_policy(&call("Meters/SetPolicy"), &id, &policy).await.unwrap();
    }

    async fn add(&self, meters: Vec<NewMeter>, rules: ImportRules) -> Vec<&'static str> {
        words(&self.site.import(meters, rules).await)
    }
}

fn words(results: &[ImportResult]) -> Vec<&'static str> {
    let word = |result: &ImportResult| match &result.outcome {
        Ok(Imported::Created) => "CREATED",
        Ok(Imported::Updated) => "UPDATED",
        Ok(Imported::Unchanged) => "UNCHANGED",
        Err(refusal) => refusal.code.word(),
    };
    results.iter().map(word).collect()
}

/// As the wire's side reads it.
fn header(header: &v1::SealedHeader) -> SealedHeader {
    let body = v1::SealedHeaderBody::decode(header.body.clone()).unwrap();
    let unproved = v1::SealedHeaderBody { proof: Default::default(), ..body.clone() };
    SealedHeader {
        body: header.body.to_vec(),
        unproved: unproved.encode_to_vec(),
        signature: header.signature.to_vec(),
        file_id: body.file_id[..].try_into().unwrap(),
        domain_id: body.domain_id.to_vec(),
        import_key_fingerprint: body.import_key_fingerprint.to_vec(),
        oaep_hash: Some(hsm::OaepHash::Sha1),
        wrapped_file_key: body.wrapped_file_key.to_vec(),
        signer: body.signer,
        count: body.count,
        sealed_ms: body.sealed_ms,
        proof: body.proof.to_vec(),
    }
}

fn sealed_meter(line: &v1::ImportLine) -> NewMeter {
    let meter = line.meter.as_ref().unwrap();
    let key = |key: &v1::NewKey| NewKey {
        kind: KeyKind::from_number(key.kind as u8).unwrap(),
        setup: SecuritySetup(key.security_setup as u8),
        protection: match key.protection {
            1 => Some(Protection::Hsm),
            2 => Some(Protection::Memory),
            _ => None,
        },
        value: KeyValue::Sealed(key.wrapped_value[..].into()),
    };
    let policy = |policy: &v1::MeterPolicy| MeterPolicy {
        minimum_protection: match policy.minimum_protection {
            1 => MinimumProtection::AuthenticatedEncrypted,
            _ => MinimumProtection::Authenticated,
        },
        allow_encryption_only: policy.allow_encryption_only,
        ..MeterPolicy::default()
    };
    NewMeter {
        meter_id: MeterId::new(&meter.meter_id).unwrap(),
        system_title: SystemTitle::new(meter.system_title[..].try_into().unwrap()),
        logical_device_name: meter.logical_device_name.clone(),
        keys: meter.keys.iter().map(key).collect(),
        policy: meter.policy.as_ref().map(policy),
    }
}

fn weak() -> MeterPolicy {
    MeterPolicy { allow_encryption_only: true, ..MeterPolicy::default() }
}

fn strong() -> MeterPolicy {
    let minimum_protection = MinimumProtection::AuthenticatedEncrypted;
    MeterPolicy { minimum_protection, ..MeterPolicy::default() }
}

const WEAK: &str = r#"{"allow_encryption_only":true}"#;
const STRONG: &str = r#"{"minimum_protection":"AUTHENTICATED_ENCRYPTED"}"#;

/// An import line: kinds and values, a policy if there is one.
fn line(n: u64, keys: &[(&str, Vec<u8>)], policy: Option<&str>) -> String {
    let keys: Vec<String> = keys
        .iter()
        .map(|(kind, value)| format!(r#"{{"kind":"{kind}","value":"{}"}}"#, hex::encode(value)))
        .collect();
    let policy = policy.map_or(String::new(), |policy| format!(r#","policy":{policy}"#));
    let (id, title) = (id(n), hex::encode_upper(title(n).as_bytes()));
    format!(r#"{{"meter_id":"{id}","system_title":"{title}","keys":[{}]{policy}}}"#, keys.join(","))
}

fn usual(n: u64, policy: Option<&str>) -> String {
    line(n, &[("GUEK", value(n, GUEK)), ("GAK", value(n, GAK))], policy)
}

on_a_token! {
    fn invariant_6_every_file_replayed_in_every_order_changes_nothing(home) {
        run(async {
            let world = World::new(home, false).await;
            for seed in 0..8 {
                story::play(&world, seed).await;
            }
        });
    }

    fn invariant_6_files_of_all_forms_change_nothing_after_what_their_keys_lived_through(home) {
        run(lives::play_all(home));
    }

    fn a_key_whose_row_is_gone_after_many_rotations_does_not_come_back_by_its_file(home) {
        run(lives::rotate_often(home));
    }

    fn what_one_signer_brought_no_other_one_takes_over_relabels_or_changes_in_kind(home) {
        run(owners::keep_apart(home));
    }

    fn a_signers_range_is_his_and_he_has_no_other(home) {
        run(owners::keep_their_ranges(home));
    }

    fn a_signer_changes_another_ones_meters_where_the_settings_say_so(home) {
        run(owners::share_by_name(home));
    }

    fn an_older_file_changes_neither_keys_nor_policy_nor_name(home) {
        run(async {
            let world = World::new(home, true).await;
            let old = world.seal(&[usual(1, Some(WEAK))]);
            world.pass(10);
            let new = world.seal(&[line(1, &[("GUEK", value(1, 50))], Some(STRONG))]);
            assert_eq!(world.outcomes(&new, ImportRules::default()).await, ["CREATED"]);
            assert_eq!(world.outcomes(&old, EVERYTHING).await, ["FILE_OLDER"]);
            let mut named = old.clone();
            named.lines[0].meter.as_mut().unwrap().policy = None;
            named.lines[0].meter.as_mut().unwrap().keys.clear();
            assert_eq!(world.outcomes(&named, EVERYTHING).await, ["UNCHANGED"]);
            named.lines[0].meter.as_mut().unwrap().logical_device_name = "LDN".into();
            assert_eq!(world.outcomes(&named, EVERYTHING).await, ["FILE_OLDER"]);
            let meter = world.meter(1).await.unwrap();
            assert_eq!((meter.policy, meter.keys.len()), (strong(), 1));
            // The same file again, whatever the rules: no news.
            assert_eq!(world.outcomes(&new, EVERYTHING).await, ["UNCHANGED"]);
            // What a person sets is newer than every file before.
            world.set_policy(1, MeterPolicy::default()).await;
            assert_eq!(world.outcomes(&new, EVERYTHING).await, ["FILE_OLDER"]);
            assert_eq!(world.meter(1).await.unwrap().policy, MeterPolicy::default());
            // And a file of now may change it: only when that is asked for.
            world.pass(10);
            let newest = world.seal(&[line(1, &[], Some(STRONG))]);
            assert_eq!(world.outcomes(&newest, ImportRules::default()).await, ["POLICY_DIFFERS"]);
            assert_eq!(world.outcomes(&newest, EVERYTHING).await, ["UPDATED"]);
            // In clear as well.
            let clear = || vec![meter_with(1, Vec::new(), weak())];
            assert_eq!(world.add(clear(), ImportRules::default()).await, ["POLICY_DIFFERS"]);
            assert_eq!(world.add(clear(), EVERYTHING).await, ["UPDATED"]);
            assert_eq!(world.outcomes(&newest, EVERYTHING).await, ["FILE_OLDER"]);
        });
    }

    fn a_file_of_the_future_or_of_an_older_release_is_refused_by_name(home) {
        run(async {
            let world = World::new(home, false).await;
            let refused = async |file: &File| match world.import(file, EVERYTHING).await {
                Err(LifecycleError::Refused(refusal)) => refusal.code.word(),
                other => panic!("{other:?}"),
            };
            let far = world.seal_at(&[usual(1, None)], world.now() + 11 * 60_000);
            assert_eq!(refused(&far).await, "SEALED_IN_FUTURE");
            let near = world.seal_at(&[usual(1, None)], world.now() + 9 * 60_000);
            assert_eq!(world.outcomes(&near, EVERYTHING).await, ["CREATED"]);
            // Nothing that comes now is older than it by a sealer's clock alone: a person's word counts.
            world.set_policy(1, strong()).await;
            assert_eq!(world.meter(1).await.unwrap().policy, strong());
            assert_eq!(world.outcomes(&near, EVERYTHING).await, ["UNCHANGED"]);
            world.pass(11 * 60_000);
            assert_eq!(world.outcomes(&far, EVERYTHING).await, ["UNCHANGED"]);
            let mut first = near.clone();
            let mut body = v1::SealedHeaderBody::decode(first.header.body.clone()).unwrap();
            (body.sealed_ms, body.proof) = (0, Default::default());
            first.header.body = body.encode_to_vec().into();
            assert_eq!(refused(&first).await, "FILE_VERSION");
        });
    }

    fn a_deleted_meter_comes_back_readmitted_and_by_what_is_newer_and_without_what_it_gave_up(home) {
        run(async {
            let world = World::new(home, true).await;
            let first = world.seal(&[usual(1, Some(WEAK))]);
            assert_eq!(world.outcomes(&first, ImportRules::default()).await, ["CREATED"]);
            world.pass(10);
            let second = world.seal(&[line(1, &[("GUEK", value(1, 50))], Some(STRONG))]);
            assert_eq!(world.outcomes(&second, EVERYTHING).await, ["UPDATED"]);
            assert!(matches!(world.readmit(1).await, Err(LifecycleError::Refused(r)) if r.code.word() == "METER_NOT_DELETED"));
            world.delete(1).await;
            // No file and no line makes it again.
            for file in [&first, &second, &world.seal(&[usual(1, None)])] {
                assert_eq!(world.outcomes(file, EVERYTHING).await, ["METER_DELETED"]);
            }
            assert_eq!(world.add(vec![meter(1)], EVERYTHING).await, ["METER_DELETED"]);
            let created = world.site.lifecycle.create(&call("Meters/CreateMeter"), meter(1), EVERYTHING).await;
            assert!(matches!(created, Err(LifecycleError::Refused(r)) if r.code.word() == "METER_DELETED"));
            assert!(matches!(world.readmit(2).await, Err(LifecycleError::NotFound(_))));
            let readmitted = world.readmit(1).await.unwrap();
            // GUEK 1 was superseded; GUEK 50 and the GAK were active.
            assert_eq!((readmitted.keys_known, readmitted.keys_that_may_come_back), (3, 2));
            assert!(world.meter(1).await.is_none(), "it brings nothing back by itself");
            for file in [&first, &second] {
                assert_eq!(world.outcomes(file, EVERYTHING).await, ["FILE_OLDER"]);
            }
            assert_eq!(world.readmit(1).await.unwrap(), readmitted, "twice changes nothing");
            world.pass(10);
            let old_key = world.seal(&[usual(1, None)]);
            assert_eq!(world.outcomes(&old_key, EVERYTHING).await, ["KEY_SUPERSEDED"]);
            let good = world.seal(&[line(1, &[("GUEK", value(1, 50)), ("GAK", value(1, GAK))], None)]);
            assert_eq!(world.outcomes(&good, ImportRules::default()).await, ["CREATED"]);
            assert_eq!(world.outcomes(&good, EVERYTHING).await, ["UNCHANGED"]);
            let again = world.seal(&[usual(1, None)]);
            assert_eq!(world.outcomes(&again, EVERYTHING).await, ["KEY_SUPERSEDED"]);
            assert_eq!(world.add(vec![meter(1)], EVERYTHING).await, ["KEY_SUPERSEDED"]);
            // Deleted once more: what it gave up in its first life stays given up in its third.
            world.delete(1).await;
            assert_eq!(world.outcomes(&good, EVERYTHING).await, ["METER_DELETED"]);
            world.readmit(1).await.unwrap();
            world.pass(10);
            assert_eq!(world.add(vec![meter(1)], EVERYTHING).await, ["KEY_SUPERSEDED"]);
            let new = meter_with(1, vec![key(KeyKind::Guek, value(1, 60))], strong());
            assert_eq!(world.add(vec![new], ImportRules::default()).await, ["CREATED"]);
            // GUEK 50 was active when the meter was deleted; now another one is in its place.
            let late = world.seal(&[line(1, &[("GUEK", value(1, 50))], None)]);
            assert_eq!(world.outcomes(&late, EVERYTHING).await, ["KEY_SUPERSEDED"]);
        });
    }

    fn another_signers_file_key_and_blobs_are_nobody_elses(home) {
        run(async {
            let world = World::new(home, false).await;
            let kek = line(1, &[("KEK", value(1, 9)), ("GUEK", value(1, GUEK))], None);
            let anns = world.seal(&[kek]);
            let (bob, key) = &world.signers[1];
            let key = SigningKey::from_pkcs8_pem(&key.serialize_pem()).unwrap();
            // Ann's wrapped file key and blobs under bob's name; ann's KEK as the GUEK of a meter of his.
            let stolen = |proof: Option<&[u8]>| {
                let mut body = v1::SealedHeaderBody::decode(anns.header.body.clone()).unwrap();
                (body.signer, body.count, body.file_id) = ((*bob).to_owned(), 1, vec![7; 16].into());
                if let Some(proof) = proof {
                    body.proof = proof.to_vec().into();
                }
                let body = body.encode_to_vec();
                let message = [b"ami.kms/sealed-import/2/header", &body[..]].concat();
                let signature: Signature = key.sign(&message);
                let signature = signature.to_bytes().to_vec().into();
                let mut lines = anns.lines.clone();
                let meter = lines[0].meter.as_mut().unwrap();
                (meter.meter_id, meter.system_title) = (id(2), title(2).as_bytes().to_vec().into());
                meter.keys.truncate(1);
                meter.keys[0].kind = v1::KeyKind::Guek as i32;
                meter.keys[0].protection = v1::ProtectionLevel::Memory as i32;
                let header = v1::SealedHeader { body: body.into(), signature };
                File { header, lines, sealed_ms: anns.sealed_ms }
            };
            // Before and after ann's own file came, with her proof, a blob of hers, or bytes of his own.
            for _ in 0..2 {
                let blob = anns.lines[0].meter.as_ref().unwrap().keys[0].wrapped_value.to_vec();
                for proof in [None, Some(&blob[..]), Some(&[5; 40][..])] {
                    match world.import(&stolen(proof), EVERYTHING).await {
                        Err(LifecycleError::Refused(refusal)) => assert_eq!(refusal.code.word(), "FILE_KEY_OF_ANOTHER"),
                        other => panic!("{other:?}"),
                    }
                    assert!(world.record(2).await.is_none());
                }
                world.import(&anns, ImportRules::default()).await.unwrap();
                assert!(world.meter(1).await.is_some());
            }
        });
    }

    fn a_value_of_one_kind_is_refused_as_any_other_and_shared_ones_are_told(home) {
        run(async {
            let world = World::new(home, true).await;
            let shared = value(1, GUEK);
            let one = |n, kind, value: Vec<u8>| meter_with(n, vec![key(kind, value)], MeterPolicy::default());
            let import = async |line| world.add(vec![line], EVERYTHING).await;
            // In one line, and in one message.
            let both = vec![key(KeyKind::Guek, shared.clone()), key(KeyKind::Gak, shared.clone())];
            assert_eq!(import(meter_with(1, both, MeterPolicy::default())).await, ["KEY_OF_ANOTHER_KIND"]);
            let lines = vec![one(2, KeyKind::Kek, value(2, 9)), one(3, KeyKind::Guek, value(2, 9))];
            assert_eq!(world.add(lines, EVERYTHING).await, ["CREATED", "KEY_OF_ANOTHER_KIND"]);
            // At another meter, whatever its block, and at its own.
            for n in 4..12 {
                assert_eq!(import(one(n, KeyKind::Guek, value(2, 9))).await, ["KEY_OF_ANOTHER_KIND"]);
            }
            assert_eq!(import(one(2, KeyKind::Gak, value(2, 9))).await, ["KEY_OF_ANOTHER_KIND"]);
            // Sealed: nobody but the token sees it.
            let sealed = world.seal(&[line(4, &[("GUEK", value(2, 9))], None)]);
            assert_eq!(world.outcomes(&sealed, EVERYTHING).await, ["KEY_OF_ANOTHER_KIND"]);
            // A deleted meter's are known as well, by another process too.
            world.delete(2).await;
            assert_eq!(import(one(4, KeyKind::Guek, value(2, 9))).await, ["KEY_OF_ANOTHER_KIND"]);
            let fresh = World::new(home, true).await;
            assert_eq!(fresh.add(vec![one(4, KeyKind::Guek, value(2, 9))], EVERYTHING).await, ["KEY_OF_ANOTHER_KIND"]);
            // One value of one kind stays accepted.
            for n in [20, 21] {
                assert_eq!(import(one(n, KeyKind::Guek, shared.clone())).await, ["CREATED"]);
            }
            let third = world.site.import(vec![one(22, KeyKind::Guek, shared)], EVERYTHING).await;
            assert_eq!(third[0].warnings, ["the GUEK is also that of meter-20, meter-21"]);
        });
    }

    fn lines_without_keys_change_nothing_where_clear_imports_are_off(home) {
        run(async {
            let world = World::new(home, false).await;
            let file = world.seal(&[usual(1, Some(STRONG))]);
            assert_eq!(world.outcomes(&file, ImportRules::default()).await, ["CREATED"]);
            let bare = |n, policy| meter_with(n, Vec::new(), policy);
            assert_eq!(world.add(vec![bare(1, weak()), bare(2, weak()), bare(1, strong())], EVERYTHING).await,
                ["CLEAR_IMPORT_OFF", "CLEAR_IMPORT_OFF", "UNCHANGED"]);
            let named = NewMeter { logical_device_name: "LDN".into(), policy: None, ..bare(1, strong()) };
            assert_eq!(world.add(vec![named], EVERYTHING).await, ["CLEAR_IMPORT_OFF"]);
            assert_eq!(world.meter(1).await.unwrap().policy, strong());
            assert!(world.record(2).await.is_none());
            // The way that the refusal names.
            world.set_policy(1, weak()).await;
            assert_eq!(world.meter(1).await.unwrap().policy, weak());
            let id = MeterId::new("nobody").unwrap();
            world.site.keyring.refresher.warm_up().await;
            let none = world.site.lifecycle.set_policy(&call("Meters/SetPolicy"), &id, &weak()).await;
            assert!(matches!(none, Err(LifecycleError::NotFound(_))));
        });
    }

    fn two_values_for_one_key_in_a_line_are_refused_as_they_are_in_two(home) {
        run(async {
            let world = World::new(home, true).await;
            let two = || vec![key(KeyKind::Guek, value(1, 10)), key(KeyKind::Guek, value(1, 11))];
            let line = |keys| vec![meter_with(1, keys, MeterPolicy::default())];
            assert_eq!(world.add(line(two()), ImportRules::default()).await, ["KEY_DIFFERS"]);
            assert!(world.record(1).await.is_none());
            let [first, second] = two().try_into().unwrap_or_else(|_| panic!());
            let apart = [line(vec![first]), line(vec![second])].into_iter().flatten().collect();
            assert_eq!(world.add(apart, ImportRules::default()).await, ["CREATED", "KEY_DIFFERS"]);
            // The same one twice is one; another security setup is another key; versions, if asked for.
            let twice = vec![key(KeyKind::Guek, value(1, 10)), key(KeyKind::Guek, value(1, 10))];
            assert_eq!(world.add(line(twice), ImportRules::default()).await, ["UNCHANGED"]);
            let mut other = key(KeyKind::Guek, value(1, 12));
            other.setup = SecuritySetup(1);
            assert_eq!(world.add(line(vec![other]), ImportRules::default()).await, ["UPDATED"]);
            assert_eq!(world.add(line(two()), EVERYTHING).await, ["UPDATED"]);
        });
    }

    fn keys_that_do_not_go_together_are_refused_or_told(home) {
        run(async {
            let world = World::new(home, true).await;
            let long = || key(KeyKind::Guek, [value(1, 10), value(1, 11)].concat());
            let short = || key(KeyKind::Gak, value(1, GAK));
            let line = |keys| vec![meter_with(1, keys, MeterPolicy::default())];
            assert_eq!(world.add(line(vec![long(), short()]), EVERYTHING).await, ["SUITES_MIXED"]);
            assert_eq!(world.add(line(vec![short(), long()]), EVERYTHING).await, ["SUITES_MIXED"]);
            let empty = vec![key(KeyKind::Guek, Vec::new()), short()];
            assert_eq!(world.add(line(empty), EVERYTHING).await, ["KEY_LENGTH"]);
            let alone = world.site.import(line(vec![short()]), EVERYTHING).await;
            assert_eq!(words(&alone), ["CREATED"]);
            assert!(alone[0].warnings[0].contains("has a GAK and no GUEK"), "{alone:?}");
            let beside = world.site.import(line(vec![long()]), EVERYTHING).await;
            assert_eq!(words(&beside), ["UPDATED"]);
            assert!(beside[0].warnings[0].contains("the GUEK has 32 bytes and the GAK 16"), "{beside:?}");
            // A protection that is asked for later.
            let again = world.site.import(line(vec![site_common::in_hsm(long())]), EVERYTHING).await;
            assert_eq!(words(&again), ["UNCHANGED"]);
            assert!(again[0].warnings[0].contains("stays of protection MEMORY"), "{again:?}");
        });
    }
}
