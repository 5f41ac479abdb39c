//! What belongs to the domain and is no meter's: files that were taken and revocation lists that were used are known at
//! both sites, survive a fork, and merge by rule.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use std::sync::Arc;

use kms_core::{
    BlockCount, BlockSecret, Record, RefusalCode,
    fact::{AcceptedFile, FILES_A_BLOCK, Fact, FactName, NewestList},
    wire::sealed::{HEADER_LABEL, PROOF_LABEL},
};
use p256::{
    ecdsa::{Signature, SigningKey, signature::Signer as _},
    pkcs8::{EncodePublicKey as _, LineEnding},
};
use sha2::{Digest as _, Sha256};

use super::{
    home::{at_home, at_two_homes},
    pair::{BLOCKS, Network, Running, entry, eventually, in_step, promote, sites},
    site_common::{Site, call, meter_with},
};
use crate::{
    app::OperatingSystem,
    hsm::RsaKey,
    lifecycle::{
        self, ChunkOf, ForgetList, ImportRules, Imported, Lifecycle, LifecycleError, SealedHeader,
        Signers,
    },
    store::sites::{DivergenceAsked, Divergent},
};

/// Somebody who seals files.
struct Sealer {
    name: &'static str,
    key: SigningKey,
}

impl Sealer {
    fn new(name: &'static str, secret: u8) -> Self {
        Self { name, key: SigningKey::from_slice(&[secret; 32]).unwrap() }
    }

    fn public(&self) -> (String, String) {
        let pem = self.key.verifying_key().to_public_key_pem(LineEnding::LF).unwrap();
        (self.name.to_owned(), pem)
    }

    fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.key.verifying_key().to_public_key_der().unwrap().as_bytes()).into()
    }

    fn fact(&self, file_id: [u8; 16]) -> FactName {
        FactName::of_file(&self.hash(), &file_id)
    }

    /// A header of this number; two of other times are two files.
    async fn header(&self, verbs: &Lifecycle, file_id: [u8; 16], sealed_ms: u64) -> SealedHeader {
        let to = verbs.import_key().await.unwrap();
        let key = RsaKey { modulus: to.modulus.clone(), exponent: to.exponent.clone() };
        let file_key = [5; 32];
        let secret = BlockSecret::fill_with(|bytes| {
            *bytes = file_key;
            Ok::<(), ()>(())
        });
        let wrapped = key.wrap_secret(to.oaep_hash, &secret.unwrap());
        let unproved = [&file_id[..], &sealed_ms.to_be_bytes()].concat();
        let der = self.key.verifying_key().to_public_key_der().unwrap();
        let statement = Sha256::new().chain_update(PROOF_LABEL).chain_update(der.as_bytes());
        let statement = statement.chain_update(&unproved).finalize();
        let mut proof = vec![0; statement.len() + dlms::key_wrap::OVERHEAD_LEN];
        dlms::key_wrap::wrap(&file_key, &statement, &mut proof).unwrap();
        let body = [&unproved[..], &proof].concat();
        let signature: Signature = self.key.sign(&[HEADER_LABEL, &body].concat());
        SealedHeader {
            body,
            unproved,
            signature: signature.to_bytes().to_vec(),
            file_id,
            domain_id: verbs.import_site().0.to_vec(),
            import_key_fingerprint: to.fingerprint().to_vec(),
            oaep_hash: Some(to.oaep_hash),
            wrapped_file_key: wrapped.unwrap(),
            signer: self.name.to_owned(),
            count: 1,
            sealed_ms,
            proof,
        }
    }
}

/// Verbs of a site that takes files of these.
fn verbs(site: &Site, sealers: &[&Sealer]) -> Lifecycle {
    let config = lifecycle::Config { allow_clear: true, times: kms_core::life::Times::default() };
    let (clock, randomness) = (Arc::clone(&site.clock), Arc::new(OperatingSystem));
    Lifecycle::new(config, &site.keyring, site.measured.clone(), clock, randomness)
        .with_signers(Signers::new(sealers.iter().map(|it| it.public())).unwrap())
}

/// Imports a file whose one line names a meter without keys.
async fn take(verbs: &Lifecycle, header: &SealedHeader, n: u64) -> Result<Imported, RefusalCode> {
    let file = verbs.open_sealed(header).await.unwrap();
    let chunk = ChunkOf { file: &file, number: 0 };
    let lines = vec![meter_with(n, Vec::new(), Default::default())];
    let by = call("Meters/ImportMeters");
    match verbs.import_sealed(&by, chunk, lines, ImportRules::default()).await {
        Ok(done) => Ok(done.results[0].outcome.clone().unwrap()),
        Err(LifecycleError::Refused(refusal)) => Err(refusal.code),
        Err(other) => panic!("{other:?}"),
    }
}

fn list(number: u8, this_update_ms: u64) -> NewestList {
    NewestList { authority: [7; 32], number: Some(vec![number]), this_update_ms, resets: 0 }
}

async fn fact(site: &Site, name: &FactName) -> Option<Fact> {
    site.keyring.records.fact(name).await.unwrap()
}

#[test]
fn a_file_that_one_site_took_is_known_to_the_other_when_it_goes_on() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        let (ann, bob) = (Sealer::new("ann", 3), Sealer::new("bob", 4));
        let (at_a, at_b) = (verbs(&a, &[&ann, &bob]), verbs(&b, &[&ann, &bob]));
        let runs = (
            Running::start(Arc::clone(&a), &network).await,
            Running::start(Arc::clone(&b), &network).await,
        );
        let (first, other) = ([1; 16], [2; 16]);
        let file = ann.header(&at_a, first, 1_000).await;
        assert_eq!(take(&at_a, &file, 1).await, Ok(Imported::Created));
        // Sent again, it changes nothing, not even what is known of it.
        let known = fact(&a, &ann.fact(first)).await.unwrap();
        assert_eq!(take(&at_a, &file, 1).await, Ok(Imported::Unchanged));
        assert_eq!(fact(&a, &ann.fact(first)).await, Some(known.clone()));
        let again = ann.header(&at_a, first, 2_000).await;
        assert_eq!(take(&at_a, &again, 2).await, Err(RefusalCode::FileIdTaken));
        in_step(&a, &b).await;
        assert_eq!(fact(&b, &ann.fact(first)).await, Some(known));
        runs.0.cut().await;
        promote(&b).await;
        let again = ann.header(&at_b, first, 2_000).await;
        assert_eq!(take(&at_b, &again, 2).await, Err(RefusalCode::FileIdTaken));
        let file = ann.header(&at_b, other, 3_000).await;
        assert_eq!(take(&at_b, &file, 2).await, Ok(Imported::Created));
        // A number is its signer's own: nobody can take it away from him.
        let file = bob.header(&at_b, first, 3_000).await;
        assert_eq!(take(&at_b, &file, 3).await, Ok(Imported::Created));
        runs.1.cut().await;
    });
}

#[test]
fn facts_that_a_fenced_site_wrote_alone_are_merged_at_contact_and_nobody_has_to_decide() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        let ann = Sealer::new("ann", 3);
        let (at_a, at_b) = (verbs(&a, &[&ann]), verbs(&b, &[&ann]));
        let runs = (
            Running::start(Arc::clone(&a), &network).await,
            Running::start(Arc::clone(&b), &network).await,
        );
        assert!(at_a.remember_lists(&[list(3, 30)]).await.unwrap());
        in_step(&a, &b).await;
        runs.0.cut().await;
        // Cut off, it writes on: a file, and a list of a higher number and an earlier date than the other one's.
        let alone = [9; 16];
        take(&at_a, &ann.header(&at_a, alone, 1_000).await, 1).await.unwrap();
        assert!(at_a.remember_lists(&[list(9, 50)]).await.unwrap());
        promote(&b).await;
        assert!(at_b.remember_lists(&[list(7, 70)]).await.unwrap());
        assert_eq!(fact(&b, &ann.fact(alone)).await, None);
        let north_runs = Running::start(Arc::clone(&a), &network).await;
        let both = [list(9, 70)];
        eventually("what was known at either site is known at both", async || {
            fact(&b, &ann.fact(alone)).await.is_some()
                && at_b.known_lists(&[[7; 32]]).await.unwrap() == both
        })
        .await;
        in_step(&a, &b).await;
        // The meter alone waits for people, at both.
        eventually("facts are decided", async || {
            let waits = [&a, &b].map(|site| site.store.count_undecided());
            let [at_a, at_b] = waits;
            (at_a.await.unwrap(), at_b.await.unwrap()) == (1, 1)
        })
        .await;
        assert_eq!(at_a.known_lists(&[[7; 32]]).await.unwrap(), both);
        let other = ann.header(&at_b, alone, 2_000).await;
        assert_eq!(take(&at_b, &other, 2).await, Err(RefusalCode::FileIdTaken));
        north_runs.cut().await;
        runs.1.cut().await;
    });
}

#[test]
fn a_list_is_remembered_by_the_site_that_writes_and_never_goes_back() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let (at_a, at_b) = (verbs(&a, &[]), verbs(&b, &[]));
        assert!(!at_b.remember_lists(&[list(8, 80)]).await.unwrap(), "it does not write");
        assert!(at_a.remember_lists(&[list(8, 80)]).await.unwrap());
        let heads = a.store.heads().await.unwrap();
        for older in [list(8, 80), list(7, 80), list(8, 79), list(1, 1)] {
            assert!(!at_a.remember_lists(&[older]).await.unwrap());
        }
        assert_eq!(a.store.heads().await.unwrap(), heads);
        assert!(at_a.remember_lists(&[list(9, 1)]).await.unwrap());
        assert_eq!(at_a.known_lists(&[[7; 32], [6; 32]]).await.unwrap(), [list(9, 80)]);
    });
}

#[test]
fn a_list_that_two_people_had_forgotten_is_forgotten_at_both_sites_and_not_by_a_fork() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let (at_a, at_b) = (verbs(&a, &[]), verbs(&b, &[]));
        let network = Network::new();
        let runs = (
            Running::start(Arc::clone(&a), &network).await,
            Running::start(Arc::clone(&b), &network).await,
        );
        assert!(at_a.remember_lists(&[list(0xFF, 80)]).await.unwrap());
        let by = call("Site/ForgetRevocationList");
        let forget = |number: u8, from: u8| ForgetList {
            authority: [7; 32],
            number: vec![number],
            from: vec![from],
        };
        // Only what is remembered, downwards, and where changes are made.
        for wrong in [forget(0xFE, 3), forget(0xFF, 0xFF)] {
            match at_a.forget_list(&by, &wrong).await {
                Err(LifecycleError::Refused(refusal)) => {
                    assert_eq!(refusal.code, RefusalCode::ListMoved);
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(at_b.forget_list(&by, &forget(0xFF, 3)).await.is_err());
        assert_eq!(at_a.forget_list(&by, &forget(0xFF, 3)).await.unwrap().0, 1);
        in_step(&a, &b).await;
        let forgotten = NewestList { resets: 1, ..list(3, 0) };
        assert_eq!(at_b.known_lists(&[[7; 32]]).await.unwrap(), std::slice::from_ref(&forgotten));
        // A node that has not heard of it says nothing against it.
        assert!(!at_a.remember_lists(&[list(0xFF, 80)]).await.unwrap());
        let used = NewestList { resets: 1, ..list(4, 20) };
        assert!(at_a.remember_lists(std::slice::from_ref(&used)).await.unwrap());
        in_step(&a, &b).await;
        runs.0.cut().await;
        // Cut off, the site has it forgotten once more; the other one writes on, and takes only what is newer.
        at_a.forget_list(&by, &forget(4, 1)).await.unwrap();
        promote(&b).await;
        let north_runs = Running::start(Arc::clone(&a), &network).await;
        in_step(&a, &b).await;
        eventually("the fact is decided", async || a.store.count_undecided().await.unwrap() == 0)
            .await;
        assert_eq!(at_b.known_lists(&[[7; 32]]).await.unwrap(), std::slice::from_ref(&used));
        assert_eq!(at_a.known_lists(&[[7; 32]]).await.unwrap(), [used]);
        north_runs.cut().await;
        runs.1.cut().await;
    });
}

#[test]
fn a_block_remembers_so_many_files_and_refuses_the_next_one_by_name() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let ann = Sealer::new("ann", 3);
        let verbs = verbs(&site, &[&ann]);
        let block = site.keyring.records.block_of_fact(&ann.fact([1; 16]));
        let blocks = BlockCount::new(BLOCKS).unwrap();
        let ids = (0u64..).map(|n| [[0; 8], n.to_be_bytes()].concat().try_into().unwrap());
        let ids = ids.filter(|id| ann.fact(*id).block(blocks) == block);
        let mut changes = site.keyring.writer.change(&[block]).await.unwrap();
        for file_id in ids.take(FILES_A_BLOCK) {
            let (signer, header) = (ann.hash(), [1; 32]);
            let file = AcceptedFile { signer, file_id, header, sealed_ms: 1, taken_ms: 1 };
            changes[0].put(Record::Fact(Fact::File(file)));
        }
        site.keyring.writer.commit(changes, vec![entry("x/y")]).await.unwrap();
        let header = ann.header(&verbs, [1; 16], 1_000).await;
        assert_eq!(take(&verbs, &header, 1).await, Err(RefusalCode::FilesFull));
        // Lists have a room of their own.
        assert!(verbs.remember_lists(&[list(1, 1)]).await.unwrap());
    });
}

#[test]
fn a_site_that_reports_facts_can_fill_no_block_beyond_what_it_may_remember() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let ann = Sealer::new("ann", 3);
        let block = a.keyring.records.block_of_fact(&ann.fact([1; 16]));
        let blocks = BlockCount::new(BLOCKS).unwrap();
        let ids = (0u64..).map(|n| [[0; 8], n.to_be_bytes()].concat().try_into().unwrap());
        let mut ids = ids.filter(|id| ann.fact(*id).block(blocks) == block);
        let fact = |file_id| {
            let (signer, header) = (ann.hash(), [1; 32]);
            let file = AcceptedFile { signer, file_id, header, sealed_ms: 1, taken_ms: 1 };
            Record::Fact(Fact::File(file))
        };
        promote(&b).await;
        let mut changes = b.keyring.writer.change(&[block]).await.unwrap();
        (0..2).for_each(|_| changes[0].put(fact(ids.next().unwrap())));
        b.keyring.writer.commit(changes, vec![entry("x/y")]).await.unwrap();
        let mut changes = a.keyring.writer.change(&[block]).await.unwrap();
        (1..FILES_A_BLOCK).for_each(|_| changes[0].put(fact(ids.next().unwrap())));
        a.keyring.writer.commit(changes, vec![entry("x/y")]).await.unwrap();

        let theirs = b.store.block(block).await.unwrap().unwrap().records;
        let row =
            |record| Divergent { block, record, site: "south".into(), at_ms: 1, decided: None };
        let rows: Vec<_> = theirs.into_iter().map(row).collect();
        let told = a.lifecycle.take_report(&call("x/y"), rows, false).await.unwrap();
        assert!(matches!(&told[0], Ok(Some(_))), "{told:?}");
        assert!(told[1].as_ref().unwrap_err().contains("that is the most"), "{told:?}");
        let changes = a.keyring.writer.change(&[block]).await.unwrap();
        assert_eq!(changes[0].facts(FactName::FILE), FILES_A_BLOCK);
    });
}

#[test]
fn invariant_12_facts_that_a_site_reports_leave_no_row_however_many_states_of_one_it_tells() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let ann = Sealer::new("ann", 3);
        let block = a.keyring.records.block_of_fact(&ann.fact([1; 16]));
        promote(&b).await;
        let mut rows = Vec::new();
        for taken_ms in (1..=5).rev() {
            let (signer, file_id, header) = (ann.hash(), [1; 16], [1; 32]);
            let file = AcceptedFile { signer, file_id, header, sealed_ms: 1, taken_ms };
            let mut changes = b.keyring.writer.change(&[block]).await.unwrap();
            changes[0].put(Record::Fact(Fact::File(file)));
            b.keyring.writer.commit(changes, vec![entry("x/y")]).await.unwrap();
            let record = b.store.block(block).await.unwrap().unwrap().records.remove(0);
            let site = "south".to_owned();
            rows.push(Divergent { block, record, site, at_ms: 1, decided: None });
        }
        let mut heads = Vec::new();
        for _ in 0..2 {
            let told = a.lifecycle.take_report(&call("x/y"), rows.clone(), false).await.unwrap();
            assert!(told.iter().all(|known| matches!(known, Ok(Some(_)))), "{told:?}");
            heads.push(a.store.heads().await.unwrap());
        }
        assert_eq!(heads[0], heads[1], "told again it changes nothing");
        let merged = fact(&a, &ann.fact([1; 16])).await.unwrap();
        assert!(matches!(merged, Fact::File(file) if file.taken_ms == 1), "{merged:?}");
        let all = DivergenceAsked { undecided: false, ..DivergenceAsked::first(10) };
        assert_eq!(a.store.divergence(all).await.unwrap(), []);
    });
}
