//! Mechanism 5: the answer to a challenge is a GMAC.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::challenge::{check_challenge, check_len};
use super::error::HlsError;
use super::lengths::CHALLENGE_LEN_MAX;
use crate::gcm::Gcm;
use crate::{FreshCounter, Keys, SecurityControl, Suite, SystemTitle, TAG_LEN};

/// Length of f(challenge), in bytes: SC (1), IC (4), tag (12).
pub const ANSWER_LEN: usize = 17;

/// Computes f(challenge) = SC ‖ IC ‖ GMAC(SC ‖ AK ‖ challenge), to answer the other side.
///
/// `originator` is who answers: the client for StoC, the server for CtoS. The encryption key is the
/// GUEK even if the association has a dedicated key. The APDU that carries the answer needs a
/// counter of its own: two tags under one nonce give away the key of GHASH.
pub fn compute(
    suite: Suite,
    originator: &SystemTitle,
    counter: FreshCounter,
    keys: &Keys<'_>,
    challenge: &[u8],
) -> Result<[u8; ANSWER_LEN], HlsError> {
    check_challenge(challenge)?;
    f(suite, originator, counter.spend(), keys, challenge)
}

/// Verifies f(challenge) as it came from `originator`, in constant time over all 17 bytes. `challenge`
/// is the one that was sent, from the local record. Answers with the invocation counter in it.
///
/// That counter is usually one below the carrying APDU's: hold it against the floor as it stood before
/// that APDU was opened.
pub fn verify(
    suite: Suite,
    originator: &SystemTitle,
    keys: &Keys<'_>,
    challenge: &[u8],
    answer: &[u8],
) -> Result<u32, HlsError> {
    let length = HlsError::AnswerLength { expected: ANSWER_LEN, actual: answer.len() };
    let answer: &[u8; ANSWER_LEN] = answer.try_into().map_err(|_| length)?;
    let [_control, counter @ .., _, _, _, _, _, _, _, _, _, _, _, _] = *answer;
    let counter = u32::from_be_bytes(counter);
    let expected = Zeroizing::new(f(suite, originator, counter, keys, challenge)?);
    if bool::from(expected.ct_eq(answer)) { Ok(counter) } else { Err(HlsError::NotAuthentic) }
}

//= Green Book, mechanism 5
//# f(challenge) = SC ‖ IC ‖ GMAC(SC ‖ AK ‖ challenge), SC = 10 | suite, IV = system title ‖ IC
fn f(
    suite: Suite,
    originator: &SystemTitle,
    counter: u32,
    keys: &Keys<'_>,
    challenge: &[u8],
) -> Result<[u8; ANSWER_LEN], HlsError> {
    check_len(challenge)?;
    if let Some((role, actual)) = keys.unfit_for(suite) {
        return Err(HlsError::KeyLength { role, expected: suite.key_len(), actual });
    }
    let control = SecurityControl::authentication_only(suite).to_byte();
    let gcm = Gcm::new(keys.encryption).map_err(|_| HlsError::NotAuthentic)?;
    let mut additional = Zeroizing::new([0; ADDITIONAL_LEN_MAX]);
    let additional = join(&[&[control], keys.authentication, challenge], &mut additional[..]);
    let tag = gcm
        .seal(&originator.nonce(counter), additional, &[], &mut [])
        .map_err(|_| HlsError::NotAuthentic)?;
    let mut answer = [0; ANSWER_LEN];
    join(&[&[control], &counter.to_be_bytes(), &tag], &mut answer);
    Ok(answer)
}

/// SC, the longest AK, the longest challenge.
const ADDITIONAL_LEN_MAX: usize = 1 + 32 + CHALLENGE_LEN_MAX;

/// Writes `parts` one after the other to the front of `buffer`, whose length the callers made enough.
fn join<'b>(parts: &[&[u8]], buffer: &'b mut [u8]) -> &'b [u8] {
    let mut len = 0;
    for (to, from) in buffer.iter_mut().zip(parts.iter().copied().flatten()) {
        *to = *from;
        len += 1;
    }
    buffer.get(..len).unwrap_or_default()
}

const _: () = assert!(ANSWER_LEN == 1 + 4 + TAG_LEN);
