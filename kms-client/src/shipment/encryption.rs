//! XML-Encryption as key files use it: a key wrapped by RSA, values under it by AES-CBC, AES-GCM or AES key wrap.
//!
//! Whatever does not open, does not open: one answer, and for RSA 1.5 none at all ([`WrapKeys::unwrap`]). This runs
//! offline, once a file, for an operator; still nobody who makes files is told more than that.

use aes::{Aes128, Aes256};
use aes_gcm::{Aes128Gcm, Aes256Gcm, KeyInit as _, aead::AeadInOut as _};
use cbc::cipher::{BlockModeDecrypt as _, KeyIvInit as _};
use getrandom::{SysRng, rand_core::UnwrapErr};
use rsa::{
    Oaep, Pkcs1v15Encrypt, RsaPrivateKey, pkcs8::DecodePrivateKey as _, traits::PublicKeyParts as _,
};
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use zeroize::Zeroizing;

use super::error::ShipmentError;

/// Of AES.
const BLOCK: usize = 16;
const GCM_IV: usize = 12;
const GCM_TAG: usize = 16;
/// NIST SP 800-57: what is below has less than 112 bits of strength.
const RSA_BITS_MIN: u32 = 2048;

/// It does not open, and there is no more to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DoesNotOpen;

/// Key bytes that were opened.
pub(super) type Clear = Zeroizing<Vec<u8>>;

/// How a value is encrypted under its wrap key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValueMethod {
    /// IV, then AES-CBC with padding: nothing is authenticated.
    Cbc(Option<usize>),
    /// IV, then AES-GCM.
    Gcm(usize),
    /// RFC 3394.
    KeyWrap(usize),
}

impl ValueMethod {
    /// By its identifier, with the length of key that it says; the schema's default is CBC.
    pub(super) fn of(algorithm: Option<&str>) -> Result<Self, ShipmentError> {
        Ok(match algorithm {
            None => Self::Cbc(None),
            Some("http://www.w3.org/2001/04/xmlenc#aes128-cbc") => Self::Cbc(Some(16)),
            Some("http://www.w3.org/2001/04/xmlenc#aes256-cbc") => Self::Cbc(Some(32)),
            Some("http://www.w3.org/2009/xmlenc11#aes128-gcm") => Self::Gcm(16),
            Some("http://www.w3.org/2009/xmlenc11#aes256-gcm") => Self::Gcm(32),
            Some("http://www.w3.org/2001/04/xmlenc#kw-aes128") => Self::KeyWrap(16),
            Some("http://www.w3.org/2001/04/xmlenc#kw-aes256") => Self::KeyWrap(32),
            Some(_) => {
                return Err(ShipmentError::Algorithm {
                    what: "an algorithm of its values",
                    instead: "ask for kw-aes256, aes256-gcm or aes256-cbc (or 128)",
                });
            }
        })
    }

    /// Whether a changed value would be noticed.
    pub(super) fn is_authenticated(self) -> bool {
        !matches!(self, Self::Cbc(_))
    }

    /// The value: a key of 16 or 32 bytes.
    pub(super) fn open(self, key: &[u8], encrypted: &[u8]) -> Result<Clear, DoesNotOpen> {
        let due = match self {
            Self::Cbc(due) => due,
            Self::Gcm(due) | Self::KeyWrap(due) => Some(due),
        };
        if due.is_some_and(|due| due != key.len()) {
            return Err(DoesNotOpen);
        }
        let opened = match self {
            Self::Cbc(_) => {
                let (iv, rest) = encrypted.split_first_chunk::<BLOCK>().ok_or(DoesNotOpen)?;
                unpadded(cbc(key, iv, rest)?)?
            }
            Self::Gcm(_) => gcm(key, encrypted)?,
            Self::KeyWrap(_) => {
                let len = encrypted.len().checked_sub(dlms::key_wrap::OVERHEAD_LEN);
                let mut out = Zeroizing::new(vec![0; len.ok_or(DoesNotOpen)?]);
                dlms::key_wrap::unwrap(key, encrypted, &mut out).map_err(|_| DoesNotOpen)?;
                out
            }
        };
        if matches!(opened.len(), 16 | 32) { Ok(opened) } else { Err(DoesNotOpen) }
    }
}

/// AES-CBC without padding.
pub(super) fn cbc(key: &[u8], iv: &[u8; BLOCK], encrypted: &[u8]) -> Result<Clear, DoesNotOpen> {
    let mut out = Zeroizing::new(encrypted.to_vec());
    let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
    if blocks.is_empty() || !rest.is_empty() {
        return Err(DoesNotOpen);
    }
    let blocks = aes::cipher::Array::cast_slice_from_core_mut(blocks);
    match key.len() {
        16 => cbc::Decryptor::<Aes128>::new_from_slices(key, iv)
            .map_err(|_| DoesNotOpen)?
            .decrypt_blocks(blocks),
        _ => cbc::Decryptor::<Aes256>::new_from_slices(key, iv)
            .map_err(|_| DoesNotOpen)?
            .decrypt_blocks(blocks),
    }
    Ok(out)
}

/// Without its padding: of XML-Encryption's only the last byte says anything.
fn unpadded(mut padded: Clear) -> Result<Clear, DoesNotOpen> {
    let last = padded.last().map_or(0, |last| usize::from(*last));
    let len = padded.len().checked_sub(last).filter(|_| (1..=BLOCK).contains(&last));
    padded.truncate(len.ok_or(DoesNotOpen)?);
    Ok(padded)
}

fn gcm(key: &[u8], encrypted: &[u8]) -> Result<Clear, DoesNotOpen> {
    let (iv, rest) = encrypted.split_first_chunk::<GCM_IV>().ok_or(DoesNotOpen)?;
    let (rest, tag) = rest.split_last_chunk::<GCM_TAG>().ok_or(DoesNotOpen)?;
    let mut out = Zeroizing::new(rest.to_vec());
    let (iv, tag) = (iv.into(), tag.into());
    let opened = if key.len() == 16 {
        let cipher = Aes128Gcm::new_from_slice(key).map_err(|_| DoesNotOpen)?;
        cipher.decrypt_inout_detached(iv, &[], out.as_mut_slice().into(), tag)
    } else {
        let cipher = Aes256Gcm::new_from_slice(key).map_err(|_| DoesNotOpen)?;
        cipher.decrypt_inout_detached(iv, &[], out.as_mut_slice().into(), tag)
    };
    opened.map(|()| out).map_err(|_| DoesNotOpen)
}

/// How a wrap key is encrypted to its recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyMethod {
    /// RSA-OAEP, hash and mask generation.
    Oaep(Hash, Hash),
    /// PKCS #1 v1.5.
    Rsa15,
}

/// Hashes of OAEP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha1,
    Sha256,
    Sha512,
}

const KEY_METHOD: ShipmentError = ShipmentError::Algorithm {
    what: "the algorithm of its wrap key",
    instead: "ask for RSA-OAEP with SHA-256 (or SHA-1, or SHA-512)",
};

impl KeyMethod {
    /// By its identifiers; the schema's default is 1.5. Without a mask generation it is MGF1 with SHA-1, whatever the
    /// digest, as all take it.
    pub(super) fn of(
        algorithm: Option<&str>,
        digest: Option<&str>,
        mask: Option<&str>,
    ) -> Result<Self, ShipmentError> {
        let digest = digest.map_or(Ok(Hash::Sha1), Hash::of_digest);
        match (algorithm, mask) {
            (None | Some("http://www.w3.org/2001/04/xmlenc#rsa-1_5"), None) => Ok(Self::Rsa15),
            (Some("http://www.w3.org/2001/04/xmlenc#rsa-oaep-mgf1p"), None)
            | (Some("http://www.w3.org/2009/xmlenc11#rsa-oaep"), None) => {
                Ok(Self::Oaep(digest?, Hash::Sha1))
            }
            (Some("http://www.w3.org/2009/xmlenc11#rsa-oaep"), Some(mask)) => {
                Ok(Self::Oaep(digest?, Hash::of_mask(mask)?))
            }
            _ => Err(KEY_METHOD),
        }
    }
}

impl Hash {
    fn of_digest(algorithm: &str) -> Result<Self, ShipmentError> {
        match algorithm {
            "http://www.w3.org/2000/09/xmldsig#sha1" => Ok(Self::Sha1),
            "http://www.w3.org/2001/04/xmlenc#sha256" => Ok(Self::Sha256),
            "http://www.w3.org/2001/04/xmlenc#sha512" => Ok(Self::Sha512),
            _ => Err(KEY_METHOD),
        }
    }

    fn of_mask(algorithm: &str) -> Result<Self, ShipmentError> {
        match algorithm {
            "http://www.w3.org/2009/xmlenc11#mgf1sha1" => Ok(Self::Sha1),
            "http://www.w3.org/2009/xmlenc11#mgf1sha256" => Ok(Self::Sha256),
            "http://www.w3.org/2009/xmlenc11#mgf1sha512" => Ok(Self::Sha512),
            _ => Err(KEY_METHOD),
        }
    }
}

/// The private keys that wrap keys are encrypted to: one for OAEP, and where 1.5 is permitted another one for it. One
/// key pair for both would let a 1.5 oracle open what OAEP protects.
#[derive(Default)]
pub(super) struct WrapKeys {
    oaep: Option<RsaPrivateKey>,
    rsa_1_5: Option<RsaPrivateKey>,
}

impl WrapKeys {
    /// Reads PKCS #8 private keys in PEM.
    pub(super) fn from_pem(
        oaep: Option<&str>,
        rsa_1_5: Option<&str>,
    ) -> Result<Self, ShipmentError> {
        let bad = |what: &str| ShipmentError::Settings { what: what.to_owned() };
        let read = |pem: &str| {
            let key = RsaPrivateKey::from_pkcs8_pem(pem)
                .map_err(|_| bad("a key is no RSA private key in PEM (PKCS #8, not encrypted)"))?;
            let long = key.n().bits() >= RSA_BITS_MIN;
            long.then_some(key).ok_or_else(|| bad("an RSA key has less than 2048 bits"))
        };
        let (oaep, rsa_1_5) = (oaep.map(read).transpose()?, rsa_1_5.map(read).transpose()?);
        if let (Some(a), Some(b)) = (&oaep, &rsa_1_5)
            && a.n_bytes() == b.n_bytes()
        {
            return Err(bad(
                "unwrap_key and rsa_1_5_key are one key pair: RSA 1.5 takes one of its own, which opens nothing \
                 else",
            ));
        }
        Ok(Self { oaep, rsa_1_5 })
    }

    /// The key that was wrapped. By 1.5 there always is one: where nothing opens, a random one, under which nothing
    /// opens either. So whoever makes up files learns nothing of their padding.
    pub(super) fn unwrap(&self, method: KeyMethod, wrapped: &[u8]) -> Result<Clear, ShipmentError> {
        let missing = |what: &str| ShipmentError::Settings { what: what.to_owned() };
        match method {
            KeyMethod::Oaep(digest, mask) => {
                let key = self.oaep.as_ref().ok_or_else(|| {
                    missing(
                        "unwrap_key is missing: the RSA private key that the file is encrypted to",
                    )
                })?;
                let opened =
                    oaep(key, digest, mask, wrapped).filter(|it| matches!(it.len(), 16 | 32));
                opened.ok_or(ShipmentError::DoesNotOpen)
            }
            KeyMethod::Rsa15 => {
                let key = self.rsa_1_5.as_ref().ok_or_else(|| {
                    missing(
                        "the file's key is wrapped by RSA 1.5, which is permitted by rsa_1_5_key, a key pair of its \
                         own: ask the supplier for RSA-OAEP first",
                    )
                })?;
                let mut random = Zeroizing::new(vec![0; 32]);
                getrandom::fill(&mut random).map_err(|_| ShipmentError::DoesNotOpen)?;
                let opened = key.decrypt_blinded(&mut UnwrapErr(SysRng), Pkcs1v15Encrypt, wrapped);
                let opened = opened.map(Zeroizing::new).ok();
                Ok(opened.filter(|it| matches!(it.len(), 16 | 32)).unwrap_or(random))
            }
        }
    }
}

fn oaep(key: &RsaPrivateKey, digest: Hash, mask: Hash, wrapped: &[u8]) -> Option<Clear> {
    macro_rules! open {
        ($digest:ty, $mask:ty) => {
            key.decrypt_blinded(
                &mut UnwrapErr(SysRng),
                Oaep::<$digest, $mask>::new_with_mgf_hash(),
                wrapped,
            )
        };
    }
    let opened = match (digest, mask) {
        (Hash::Sha1, Hash::Sha1) => open!(Sha1, Sha1),
        (Hash::Sha1, Hash::Sha256) => open!(Sha1, Sha256),
        (Hash::Sha1, Hash::Sha512) => open!(Sha1, Sha512),
        (Hash::Sha256, Hash::Sha1) => open!(Sha256, Sha1),
        (Hash::Sha256, Hash::Sha256) => open!(Sha256, Sha256),
        (Hash::Sha256, Hash::Sha512) => open!(Sha256, Sha512),
        (Hash::Sha512, Hash::Sha1) => open!(Sha512, Sha1),
        (Hash::Sha512, Hash::Sha256) => open!(Sha512, Sha256),
        (Hash::Sha512, Hash::Sha512) => open!(Sha512, Sha512),
    };
    opened.ok().map(Zeroizing::new)
}
