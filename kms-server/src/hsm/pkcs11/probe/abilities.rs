//! Known answers: what the service needs of a token, tried with published vectors.

use cryptoki::{
    mechanism::Mechanism,
    object::ObjectHandle,
    session::Session,
    slot::{Limit, TokenInfo},
};

use super::{free_key::own_key, new_keys, table::Table};
use crate::hsm::{
    Config, OaepHash,
    pkcs11::{
        calls::{
            gcm::{Gcm, Tag},
            oaep,
        },
        failure::Failure,
    },
};

/// Sessions beside the pool's: the anchor and the holder of keys.
const EXTRA_SESSIONS: u64 = 2;

/// DLMS Green Book, example of authenticated encryption (suite 0): EK, nonce, additional data, text,
/// ciphertext ‖ tag.
const DLMS_EK: [u8; 16] = 0x0001_0203_0405_0607_0809_0A0B_0C0D_0E0F_u128.to_be_bytes();
const DLMS_NONCE: [u8; 12] = *b"MMM\x00\x00\xBC\x61\x4E\x01\x23\x45\x67";
const DLMS_AAD: [u8; 17] = *b"\x30\xD0\xD1\xD2\xD3\xD4\xD5\xD6\xD7\xD8\xD9\xDA\xDB\xDC\xDD\xDE\xDF";
const DLMS_GCM: Gcm<'_> = Gcm { nonce: &DLMS_NONCE, additional: &DLMS_AAD, tag: Tag::Dlms };
const DLMS_TEXT: [u8; 13] = *b"\xC0\x01\x00\x00\x08\x00\x00\x01\x00\x00\xFF\x02\x00";
const DLMS_SEALED: [u8; 25] = *b"\x41\x13\x12\xFF\x93\x5A\x47\x56\x68\x27\xC4\x67\xBC\
    \x7D\x82\x5C\x3B\xE4\xA7\x7C\x3F\xCC\x05\x6B\x6B";

/// RFC 3394, 4.1: 128 bits of key data under a 128-bit KEK.
const WRAP_KEK: [u8; 16] = DLMS_EK;
const WRAP_KEY: [u8; 16] = 0x0011_2233_4455_6677_8899_AABB_CCDD_EEFF_u128.to_be_bytes();
const WRAPPED: [u8; 24] = *b"\x1F\xA6\x8B\x0A\x81\x12\xB4\x47\xAE\xF3\x4B\xD8\xFB\x5A\x7B\x82\
    \x9D\x3E\x86\x23\x71\xD2\xCF\xE5";

/// RFC 4493, section 4, example 2.
const CMAC_KEY: [u8; 16] = 0x2B7E_1516_28AE_D2A6_ABF7_1588_09CF_4F3C_u128.to_be_bytes();
const CMAC_TEXT: [u8; 16] = 0x6BC1_BEE2_2E40_9F96_E93D_7E11_7393_172A_u128.to_be_bytes();
const CMAC: [u8; 16] = 0x070A_16B4_6B4D_4144_F79B_DD9D_D04A_287C_u128.to_be_bytes();

/// Fills the rows of abilities.
pub(crate) fn try_all(table: &mut Table, session: &Session, info: &TokenInfo, config: &Config) {
    table.ability(
        "AES-GCM, caller's 96-bit nonce, additional data, 96-bit tag (Green Book)",
        "APDUs of protection HSM",
        true,
        gcm_of_dlms(session),
        ["C_Decrypt in the token", "none: protection HSM and block seals need it"],
    );
    table.ability(
        "AES-GCM refuses a forged tag",
        "nothing unauthenticated may come out",
        true,
        gcm_refuses(session),
        ["a failed tag is NotAuthentic once the canary is well", "none"],
    );
    table.ability(
        "AES key wrap (RFC 3394, 4.1)",
        "keys of protection HSM at rest",
        true,
        key_wrap(session),
        ["CKM_AES_KEY_WRAP, lengths checked by us", "none"],
    );
    table.ability(
        "AES-CMAC (RFC 4493)",
        "fingerprints of keys that stay in the token",
        false,
        cmac(session),
        ["fingerprints in the token", "fingerprints of protection HSM come with the key"],
    );
    table.ability(
        "new session keys of 16 and 32 bytes: identified, wrapped, and as wrapped the same",
        "keys of meters are made in the token",
        false,
        new_keys::can_be_made(session),
        [
            "a meter's next key is made and wrapped in the token",
            "keys of meters can't be rotated here",
        ],
    );
    table.ability(
        "random bytes",
        "every key begins here",
        true,
        random(session),
        ["C_GenerateRandom", "none"],
    );
    let needed = config.sessions_max as u64 + EXTRA_SESSIONS;
    table.ability(
        "sessions",
        "the pool, the anchor and the holder of keys",
        true,
        enough_sessions(info.max_session_count(), needed),
        ["as configured", "lower sessions_max"],
    );
    let memory = info.free_private_memory();
    table.ability(
        "room for objects",
        "three KEKs and a cache of session objects",
        false,
        Ok(memory.map_or("the token does not say".to_owned(), |free| format!("{free} bytes free"))),
        ["unwrapped_keys_max bounds it", ""],
    );
}

/// OAEP with each hash, by a pair whose private half may decrypt.
pub(crate) fn try_oaep(
    table: &mut Table,
    session: &Session,
    config: &Config,
    public: ObjectHandle,
    private: ObjectHandle,
) {
    for hash in [OaepHash::Sha1, OaepHash::Sha256] {
        let chosen = config.oaep_hash == hash;
        let path = if chosen { "chosen for transport" } else { "not chosen" };
        table.ability(
            oaep::name(hash),
            "block secrets and import keys cross under it",
            chosen,
            round_trip(session, hash, public, private),
            [path, if chosen { "set oaep_hash to the other" } else { "not needed" }],
        );
    }
}

fn gcm_of_dlms(session: &Session) -> Result<String, Failure> {
    let key = own_key(session, &DLMS_EK)?;
    let sealed = DLMS_GCM.encrypt(session, key, &DLMS_TEXT)?;
    let opened = DLMS_GCM.decrypt(session, key, &DLMS_SEALED)?;
    session.destroy_object(key)?;
    known(&sealed, &DLMS_SEALED).and(known(&opened, &DLMS_TEXT))
}

fn gcm_refuses(session: &Session) -> Result<String, Failure> {
    let key = own_key(session, &DLMS_EK)?;
    let mut forged = DLMS_SEALED;
    forged[24] ^= 1;
    let opened = DLMS_GCM.decrypt(session, key, &forged);
    // Also that the session is well afterwards: a dirty one would refuse everything.
    let good = DLMS_GCM.decrypt(session, key, &DLMS_SEALED);
    session.destroy_object(key)?;
    good?;
    match opened {
        Err(failure @ (Failure::Data(_) | Failure::Doubtful(_))) => Ok(failure.reason()),
        Err(failure) => Err(failure),
        Ok(_) => Err(Failure::Broken("a forged tag was taken".to_owned())),
    }
}

fn key_wrap(session: &Session) -> Result<String, Failure> {
    let kek = own_key(session, &WRAP_KEK)?;
    let key = own_key(session, &WRAP_KEY)?;
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, kek, key)?;
    session.destroy_object(key)?;
    session.destroy_object(kek)?;
    known(&wrapped, &WRAPPED)
}

fn cmac(session: &Session) -> Result<String, Failure> {
    let key = own_key(session, &CMAC_KEY)?;
    let mac = session.sign(&Mechanism::AesCMac, key, &CMAC_TEXT)?;
    session.destroy_object(key)?;
    known(&mac, &CMAC)
}

/// Not a test of randomness: that something is written, and not the same twice.
fn random(session: &Session) -> Result<String, Failure> {
    let (mut one, mut two) = ([0; 32], [0; 32]);
    session.generate_random_slice(&mut one)?;
    session.generate_random_slice(&mut two)?;
    if one == two || one == [0; 32] {
        return Err(Failure::Broken("the generator repeats itself".to_owned()));
    }
    Ok(String::new())
}

fn enough_sessions(limit: Limit, needed: u64) -> Result<String, Failure> {
    match limit {
        Limit::Max(max) if max < needed => {
            Err(Failure::Broken(format!("{max} sessions, {needed} are needed")))
        }
        Limit::Max(max) => Ok(format!("{max} sessions, {needed} are needed")),
        Limit::Infinite => Ok(format!("no limit, {needed} are needed")),
        Limit::Unavailable => Ok(format!("the token does not say, {needed} are needed")),
    }
}

fn round_trip(
    session: &Session,
    hash: OaepHash,
    public: ObjectHandle,
    private: ObjectHandle,
) -> Result<String, Failure> {
    let sealed = session.encrypt(&oaep::mechanism(hash), public, &CMAC_TEXT)?;
    known(&session.decrypt(&oaep::mechanism(hash), private, &sealed)?, &CMAC_TEXT)
}

fn known(got: &[u8], answer: &[u8]) -> Result<String, Failure> {
    if got == answer {
        return Ok(String::new());
    }
    Err(Failure::Broken("another answer than the known one".to_owned()))
}
