//! A token whose answer is wrong once: what was acknowledged is there after a restart, a genuine key is
//! not called forged, and what was made wrongly is made again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod hsm_common;
mod site_common;

use std::sync::Arc;

use hsm_common::Home;
use kms_client::{ImportKey, ManifestSigner, NewMeter, Sealer, sealed::OaepHash};
use kms_core::{BlockSecret, ClearKey, KeyId, KeyKind, SealedKek, Verdict};
use kms_proto::v1;
use kms_server::{
    hsm::{
        BlockSeals as _, Device as _, GcmOpen, SealedKeys as _, TokenError, WrappedKey,
        pkcs11::Pkcs11Token,
    },
    keyring::{SealedKey, TakeError, WrappedValue},
};
use prost::Message as _;
use rcgen::KeyPair;
use site_common::{GAK, GUEK, Options, Site, id, in_hsm, key, meter, push, run, title, value};

/// CKR_DEVICE_ERROR, CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED: what a token says of its own breakage and of
/// forged data alike.
const DOUBTFUL: [&str; 3] = ["0x30", "0x5", "0x6"];

fn faulty(home: &Home) -> Pkcs11Token {
    Pkcs11Token::connect(home.faulty(), home.canaries()).unwrap()
}

async fn site(home: &Home) -> Site {
    let (canaries, database) = (home.canaries().encode(), home.tokens().join("../kms.db"));
    Site::on(Arc::new(faulty(home)), canaries, &database, Options::default()).await
}

fn secret(byte: u8) -> BlockSecret {
    BlockSecret::fill_with(|bytes| {
        bytes.fill(byte);
        Ok::<(), ()>(())
    })
    .unwrap()
}

/// What a file of these meters holds: its key, and each GUEK, GAK and KEK.
struct File {
    key: Vec<u8>,
    values: Vec<(u64, Option<SealedKek>, Vec<u8>)>,
}

async fn file(site: &Site, meters: std::ops::Range<u64>) -> File {
    // Their blocks are there: what is wrapped comes out the same each time.
    for n in meters.clone() {
        site.add(meter(n)).await;
    }
    let public_key = site.keyring.taker.import_key().await.unwrap().to_der();
    let domain_id = site.keyring.taker.domain().domain.0.to_vec();
    let key = ImportKey { site: "test".into(), domain_id, public_key, oaep_hash: OaepHash::Sha1 };
    let fingerprint = key.fingerprint().unwrap();
    let to = key.pinned(fingerprint).unwrap();
    let pair = KeyPair::generate().unwrap();
    let signer = ManifestSigner::from_pem("nobody", &pair.serialize_pem()).unwrap();
    let count = meters.end - meters.start;
    let mut sealer = Sealer::new(&to, signer, count).unwrap().with_chunk_lines(500);
    for n in meters.clone() {
        let title = hex::encode_upper(title(n).as_bytes());
        let keys: Vec<String> = [
            ("GUEK", "MEMORY", GUEK),
            ("GAK", "MEMORY", GAK),
            ("KEK", "HSM", 9),
            ("GBEK", "HSM", 8),
        ]
        .map(|(kind, protection, salt)| {
            let value = hex::encode(value(n, salt));
            format!(r#"{{"kind":"{kind}","protection":"{protection}","value":"{value}"}}"#)
        })
        .into();
        let line = format!(
            r#"{{"meter_id":"{}","system_title":"{title}","keys":[{}]}}"#,
            id(n),
            keys.join(",")
        );
        assert!(sealer.push(NewMeter::from_json(line.as_bytes()).unwrap()).unwrap().is_none());
    }
    let part = sealer.finish().unwrap().to_wire();
    let header = v1::SealedHeaderBody::decode(part.header.unwrap().body).unwrap();
    let lines = v1::SealedBody::decode(part.chunk.unwrap().body).unwrap().lines;
    let under = [None, None, Some(SealedKek::MeterKek), Some(SealedKek::Use)];
    let values = meters.zip(lines).flat_map(|(n, line)| {
        let keys = line.meter.unwrap().keys;
        assert_eq!(keys.len(), under.len());
        keys.into_iter().zip(under).map(move |(key, under)| (n, under, key.wrapped_value.to_vec()))
    });
    File { key: header.wrapped_file_key.to_vec(), values: values.collect() }
}

/// As an import takes them; `None` for what is called no key.
async fn take(site: &Site, file: &File) -> Result<Vec<Option<WrappedValue>>, TakeError> {
    let block = |n: &u64| site.keyring.reader.block_of(&title(*n));
    let blocks: Vec<_> = file.values.iter().map(|(n, ..)| block(n)).collect();
    let changes = site.keyring.writer.change(&blocks).await.unwrap();
    let keys: Vec<SealedKey<'_>> = file
        .values
        .iter()
        .map(|(n, under, wrapped)| SealedKey {
            change: changes.iter().find(|change| change.block() == block(n)).unwrap(),
            under: *under,
            wrapped,
        })
        .collect();
    site.keyring.taker.take_keys(&file.key, &keys).await
}

/// What a key is, in all that is stored of it.
fn told(taken: &[Option<WrappedValue>]) -> Vec<String> {
    taken.iter().map(|value| format!("{value:?}")).collect()
}

fn apdu(key: &[u8], n: u64) -> GcmOpen {
    let whole = site_common::push_with(n, 0x30, key, &value(n, GAK), b"a reading");
    // general-glo: tag, length, title; then length, SC, counter.
    let body = &whole[11..];
    let (counter, rest) = body[1..].split_at(4);
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(title(n).as_bytes());
    nonce[8..].copy_from_slice(counter);
    let (ciphertext, tag) = rest.split_at(rest.len() - 12);
    GcmOpen {
        nonce,
        additional_data: [&[0x30][..], &value(n, GAK)].concat().into(),
        ciphertext: ciphertext.to_vec(),
        tag: Some(tag.try_into().unwrap()),
    }
}

on_a_token! {
    fn a_seal_that_the_token_garbled_is_made_again(home) {
        let token = faulty(home);
        token.seal(b"p", &secret(1)).unwrap();
        for form in ["flip", "zero", "repeat", "cut"] {
            home.faults().set(&format!("C_Encrypt garble={form} times=1")).unwrap();
            let sealed = token.seal(b"p", &secret(7)).unwrap();
            home.faults().clear().unwrap();
            let opened = token.open(b"p", &sealed).unwrap();
            assert_eq!(opened.expose_block_secret_bytes(), &[7; 32], "{form}");
        }
        // A token that always does it seals nothing at all.
        home.faults().set("C_Encrypt garble=flip").unwrap();
        let outcome = token.seal(b"p", &secret(7));
        assert!(matches!(outcome, Err(TokenError::Unreachable { .. })), "{outcome:?}");
    }

    fn a_key_that_the_token_wrapped_wrongly_is_wrapped_again(home) {
        let token = faulty(home);
        for kek in [SealedKek::MeterKek, SealedKek::Use] {
            for len in [16, 32] {
                let key = || ClearKey::new(vec![9; len]);
                let right = token.wrap(kek, &key()).unwrap();
                for form in ["flip", "zero", "cut"] {
                    home.faults().set(&format!("C_WrapKey garble={form} times=1")).unwrap();
                    assert_eq!(token.wrap(kek, &key()).unwrap(), right, "{form}");
                }
                // Another key's, which opens well.
                home.faults().clear().unwrap();
                token.wrap(kek, &ClearKey::new(vec![8; len])).unwrap();
                home.faults().set("C_WrapKey garble=repeat times=1").unwrap();
                assert_eq!(token.wrap(kek, &key()).unwrap(), right);
                home.faults().set("C_WrapKey garble=flip").unwrap();
                let outcome = token.wrap(kek, &key());
                assert!(matches!(outcome, Err(TokenError::Unreachable { .. })), "{outcome:?}");
                home.faults().clear().unwrap();
                while token.check().is_err() {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
            }
        }
    }

    fn invariant_4_keys_acknowledged_while_the_token_garbled_an_answer_open_after_a_restart(home) {
        run(async {
            home.faults().set("C_Encrypt garble=flip times=1").unwrap();
            let before = site(home).await;
            home.faults().set("C_Encrypt garble=flip times=1 after=1\nC_WrapKey garble=flip times=1").unwrap();
            for n in 1..=10 {
                before.add(meter(n)).await;
            }
            let mut sealed = meter(11);
            sealed.keys = vec![in_hsm(key(KeyKind::Guek, value(11, GUEK))), key(KeyKind::Gak, value(11, GAK))];
            before.add(sealed).await;
            drop(before);
            home.faults().clear().unwrap();
            let after = site(home).await;
            for n in 1..=11 {
                assert_eq!(after.verdict(&push(n, b"a reading")).await, Verdict::Ok, "meter {n}");
            }
        });
    }

    fn a_seal_that_the_token_opens_wrongly_once_is_no_damaged_block(home) {
        run(async {
            let before = site(home).await;
            before.add(meter(1)).await;
            drop(before);
            let after = site(home).await;
            home.faults().set("C_Decrypt garble=flip times=1").unwrap();
            assert_eq!(after.verdict(&push(1, b"a reading")).await, Verdict::Ok);
            home.faults().clear().unwrap();
        });
    }

    fn one_garbled_answer_of_an_import_changes_no_key_whichever_it_is(home) {
        run(async {
            let site = site(home).await;
            let file = file(&site, 1..4).await;
            let right = told(&take(&site, &file).await.unwrap());
            assert!(right.iter().all(|value| value.starts_with("Some")), "{right:?}");
            for fault in ["C_WrapKey garble=flip", "C_WrapKey garble=repeat", "C_WrapKey garble=cut", "C_Sign garble=flip", "C_Sign garble=repeat"] {
                for after in 0..12 {
                    home.faults().set(&format!("{fault} times=1 after={after}")).unwrap();
                    let taken = told(&take(&site, &file).await.unwrap());
                    assert_eq!(taken, right, "{fault} after={after}");
                }
            }
            // A token that always does it takes nothing, and the import hears why.
            home.faults().set("C_WrapKey garble=flip").unwrap();
            let outcome = take(&site, &file).await;
            assert!(matches!(outcome, Err(TakeError::Token(TokenError::Unreachable { .. }))), "{outcome:?}");
        });
    }

    fn one_device_error_at_a_sealed_blob_refuses_no_genuine_key(home) {
        run(async {
            let site = site(home).await;
            let file = file(&site, 1..4).await;
            let right = told(&take(&site, &file).await.unwrap());
            for code in DOUBTFUL {
                // The first is the file's own key.
                for (after, how) in (0..14).flat_map(|after| [(after, "return"), (after, "answer")]) {
                    home.faults().set(&format!("C_UnwrapKey {how}={code} times=1 after={after}")).unwrap();
                    let taken = told(&take(&site, &file).await.unwrap());
                    assert_eq!(taken, right, "{how}={code} after={after}");
                }
            }
        });
    }

    fn a_forged_blob_is_refused_alone_and_by_the_second_try(home) {
        run(async {
            let site = site(home).await;
            let mut file = file(&site, 1..4).await;
            let right = told(&take(&site, &file).await.unwrap());
            file.values[5].2[7] ^= 1;
            let taken = told(&take(&site, &file).await.unwrap());
            for (at, (got, right)) in taken.iter().zip(&right).enumerate() {
                if at == 5 { assert_eq!(got, "None") } else { assert_eq!(got, right, "{at}") }
            }
            assert_eq!(site.hsm.status().connection_epoch, 1);
        });
    }

    fn one_device_error_fails_no_genuine_apdu_and_no_seal(home) {
        let token = faulty(home);
        let sealed = token.seal(b"p", &secret(7)).unwrap();
        let wrapped = token.wrap(SealedKek::Use, &ClearKey::new(value(1, GUEK))).unwrap();
        let key = WrappedKey { id: KeyId([1; 16]), wrapped };
        let genuine = || vec![apdu(&value(1, GUEK), 1), apdu(&value(1, GUEK), 1)];
        assert!(token.open_apdus(&key, &genuine()).unwrap().iter().all(Result::is_ok));
        for code in DOUBTFUL {
            for how in ["return", "answer"] {
                for after in 0..2 {
                    home.faults().set(&format!("C_Decrypt {how}={code} times=1 after={after}")).unwrap();
                    let opened = token.open_apdus(&key, &genuine()).unwrap();
                    assert_eq!(opened, vec![Ok(b"a reading".to_vec()); 2], "{how}={code} after={after}");
                }
                home.faults().set(&format!("C_Decrypt {how}={code} times=1")).unwrap();
                assert_eq!(token.open(b"p", &sealed).unwrap().expose_block_secret_bytes(), &[7; 32]);
            }
        }
        home.faults().clear().unwrap();
        let mut forged = genuine();
        forged[1].ciphertext[0] ^= 1;
        let opened = token.open_apdus(&key, &forged).unwrap();
        assert!(opened[0].is_ok() && opened[1].is_err());
        assert_eq!(token.status().connection_epoch, 1);
    }

    fn random_bytes_that_are_none_are_asked_for_again(home) {
        let token = faulty(home);
        let mut first = [0; 32];
        token.random(&mut first).unwrap();
        for form in ["zero", "repeat"] {
            home.faults().set(&format!("C_GenerateRandom garble={form} times=1")).unwrap();
            let mut bytes = [0; 32];
            token.random(&mut bytes).unwrap();
            assert!(bytes != [0; 32] && bytes != first, "{form}");
            first = bytes;
            home.faults().set(&format!("C_GenerateRandom garble={form}")).unwrap();
            let outcome = token.random(&mut bytes);
            assert!(matches!(outcome, Err(TokenError::Unreachable { .. })), "{form} {outcome:?}");
            home.faults().clear().unwrap();
            while token.random(&mut first).is_err() {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
    }
}
