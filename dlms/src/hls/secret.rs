//! Mechanisms 2, 3, 4 and 6: answers made with a secret of free length. They have no counter, so nothing but the
//! challenge makes an answer new.

use core::fmt;

use aes::Aes128Enc;
use aes::cipher::{BlockCipherEncrypt as _, KeyInit as _};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::challenge::{check_challenge, check_len};
use super::error::HlsError;
use super::lengths::CHALLENGE_LEN_MAX;
use crate::{Side, SystemTitle};

/// Bytes of an AES block, and of mechanism 2's key.
const BLOCK: usize = 16;

/// Longest secret of mechanisms 3, 4 and 6, in bytes.
const SECRET_LEN_MAX: usize = 64;

/// A mechanism whose answers are made with a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SecretMechanism {
    /// Mechanism 2, the dialect of most: AES-128 of each block of the challenge on its own.
    Aes128Ecb,
    /// Mechanism 2, the other dialect: AES-128 in CBC mode, initialization vector zero.
    Aes128Cbc,
    /// Mechanism 3.
    Md5,
    /// Mechanism 4.
    Sha1,
    /// Mechanism 6.
    Sha256,
}

impl SecretMechanism {
    /// The number in HLS_authentication_mechanism_id.
    pub const fn number(self) -> u8 {
        match self {
            Self::Aes128Ecb | Self::Aes128Cbc => 2,
            Self::Md5 => 3,
            Self::Sha1 => 4,
            Self::Sha256 => 6,
        }
    }

    /// The longest secret that it takes, in bytes.
    pub const fn secret_len_max(self) -> usize {
        match self {
            Self::Aes128Ecb | Self::Aes128Cbc => BLOCK,
            Self::Md5 | Self::Sha1 | Self::Sha256 => SECRET_LEN_MAX,
        }
    }
}

/// The challenges and titles of one association.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    /// The utility's title.
    pub client: SystemTitle,
    /// The meter's.
    pub server: SystemTitle,
    /// CtoS: the utility's challenge.
    pub client_challenge: &'a [u8],
    /// StoC: the meter's challenge.
    pub server_challenge: &'a [u8],
}

/// An answer to a challenge.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    bytes: [u8; CHALLENGE_LEN_MAX],
    len: usize,
}

impl Answer {
    /// The bytes that go on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn of(digest: &[u8]) -> Self {
        let mut answer = Self { bytes: [0; CHALLENGE_LEN_MAX], len: digest.len() };
        for (to, from) in answer.bytes.iter_mut().zip(digest) {
            *to = *from;
        }
        answer
    }
}

/// Before it goes out an answer is worth as much as a password.
impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Whether the mechanism takes a secret of this length.
pub fn check_secret(mechanism: SecretMechanism, secret: &[u8]) -> Result<(), HlsError> {
    let (most, actual) = (mechanism.secret_len_max(), secret.len());
    if (1..=most).contains(&actual) { Ok(()) } else { Err(HlsError::SecretLength { most, actual }) }
}

/// The answer that `side` gives to the other one's challenge: f(StoC) of the client, f(CtoS) of the server.
pub fn compute_with_secret(
    mechanism: SecretMechanism,
    secret: &[u8],
    exchange: &Exchange<'_>,
    side: Side,
) -> Result<Answer, HlsError> {
    let (own, other) = match side {
        Side::Client => (exchange.client_challenge, exchange.server_challenge),
        Side::Server => (exchange.server_challenge, exchange.client_challenge),
    };
    check_len(own)?;
    check_challenge(other)?;
    f(mechanism, secret, exchange, side)
}

/// Verifies f(CtoS) as it came from the meter, in constant time over its whole length. Both challenges are those of
/// the local record.
pub fn verify_with_secret(
    mechanism: SecretMechanism,
    secret: &[u8],
    exchange: &Exchange<'_>,
    answer: &[u8],
) -> Result<(), HlsError> {
    check_len(exchange.client_challenge)?;
    check_len(exchange.server_challenge)?;
    let expected = f(mechanism, secret, exchange, Side::Server)?;
    if expected.len != answer.len() {
        return Err(HlsError::AnswerLength { expected: expected.len, actual: answer.len() });
    }
    let is_equal = bool::from(expected.as_bytes().ct_eq(answer));
    if is_equal { Ok(()) } else { Err(HlsError::NotAuthentic) }
}

//= Green Book, mechanisms 3, 4 and 6
//# 3, 4: hash(challenge ‖ secret); 6: SHA-256(secret ‖ own title ‖ other title ‖ other's challenge ‖ own challenge)
fn f(
    mechanism: SecretMechanism,
    secret: &[u8],
    exchange: &Exchange<'_>,
    side: Side,
) -> Result<Answer, HlsError> {
    check_secret(mechanism, secret)?;
    let Exchange { client, server, client_challenge, server_challenge } = *exchange;
    if client_challenge == server_challenge {
        return Err(HlsError::SameChallenge);
    }
    let (title, other_title, own, challenge) = match side {
        Side::Client => (client, server, client_challenge, server_challenge),
        Side::Server => (server, client, server_challenge, client_challenge),
    };
    Ok(match mechanism {
        SecretMechanism::Aes128Ecb => enciphered(secret, challenge, false),
        SecretMechanism::Aes128Cbc => enciphered(secret, challenge, true),
        SecretMechanism::Md5 => {
            Answer::of(&Md5::new().chain_update(challenge).chain_update(secret).finalize())
        }
        SecretMechanism::Sha1 => {
            Answer::of(&Sha1::new().chain_update(challenge).chain_update(secret).finalize())
        }
        SecretMechanism::Sha256 => {
            let hash = Sha256::new().chain_update(secret);
            let hash = hash.chain_update(title.as_bytes()).chain_update(other_title.as_bytes());
            Answer::of(&hash.chain_update(challenge).chain_update(own).finalize())
        }
    })
}

/// Mechanism 2: secret and challenge filled up with zeros to whole blocks, as two of the field's libraries have it.
/// `chained`: each block is combined with the answer's block before it.
fn enciphered(secret: &[u8], challenge: &[u8], chained: bool) -> Answer {
    let mut key = Zeroizing::new([0; BLOCK]);
    for (to, from) in key.iter_mut().zip(secret) {
        *to = *from;
    }
    let cipher = Aes128Enc::new((&*key).into());
    let mut answer = Answer::of(challenge);
    answer.len = challenge.len().next_multiple_of(BLOCK);
    let mut before = [0; BLOCK];
    for block in answer.bytes.as_chunks_mut::<BLOCK>().0.iter_mut().take(answer.len / BLOCK) {
        if chained {
            block.iter_mut().zip(before).for_each(|(byte, before)| *byte ^= before);
        }
        cipher.encrypt_block(block.into());
        before = *block;
    }
    answer
}
