//! Challenges that may be answered.
//!
//! The answer of mechanism 5 is a GMAC over SC ‖ AK ‖ challenge under the GUEK: exactly the tag of an APDU that is
//! only authenticated and reads as the challenge does. Whoever sends a command as his challenge would be handed its
//! tag. So nothing is answered that could be read as an APDU by somebody who ignores what trails, as most meters do;
//! in doubt it is taken for one. Of random challenges fewer than one in five hundred is, and a meter sends another one.

use super::error::HlsError;
use super::lengths::{CHALLENGE_LEN_MAX, CHALLENGE_LEN_MIN};
use crate::axdr;

/// Octet strings that general-ciphering and general-signing begin with: transaction-id, two titles, date-time, other
/// information.
const HEADER_FIELDS: usize = 5;

/// Whether this challenge may be answered at all. To be asked before a key is touched.
pub fn check_challenge(challenge: &[u8]) -> Result<(), HlsError> {
    check_len(challenge)?;
    if reads_as_apdu(challenge) { Err(HlsError::ChallengeIsApdu) } else { Ok(()) }
}

/// Whether it has the length of a challenge.
pub(super) fn check_len(challenge: &[u8]) -> Result<(), HlsError> {
    if (CHALLENGE_LEN_MIN..=CHALLENGE_LEN_MAX).contains(&challenge.len()) {
        Ok(())
    } else {
        Err(HlsError::ChallengeLength { actual: challenge.len() })
    }
}

/// Whether `bytes` could be read as an APDU that stands in authentication-only form, whatever trails behind it: a plain
/// one, or one behind the header that general-ciphering authenticates with it.
pub fn reads_as_apdu(bytes: &[u8]) -> bool {
    begins_as_apdu(bytes) || behind_header(bytes).is_some_and(begins_as_apdu)
}

/// The bytes behind general-ciphering's header, if they begin with one.
fn behind_header(bytes: &[u8]) -> Option<&[u8]> {
    (0..HEADER_FIELDS).try_fold(bytes, |rest, _| {
        let (len, octets) = axdr::read_length(rest).ok()?;
        rest.get(octets.checked_add(len)?..)
    })
}

//= Green Book, COSEMpdu: the tag of each unciphered xDLMS APDU, and the choices and OPTIONALs behind it
fn begins_as_apdu(bytes: &[u8]) -> bool {
    let [tag, rest @ ..] = bytes else { return false };
    match (*tag, rest) {
        // initiate: dedicated-key OPTIONAL; in the response negotiated-quality-of-service OPTIONAL
        (0x01 | 0x08, [0 | 1, ..])
        // confirmedServiceError
        | (0x0E, [1..=6, ..])
        // informationReport, event-notification: time OPTIONAL
        | (0x18 | 0xC2, [0 | 1, ..])
        // get, set, action
        | (0xC0 | 0xC4, [1..=3, ..])
        | (0xC1, [1..=5, ..])
        | (0xC5, [1..=6, ..])
        | (0xC3, [1..=6, ..])
        | (0xC7, [1..=4, ..])
        // exception-response
        | (0xD8, [1 | 2, ..])
        // data-notification, access: long-invoke-id-and-priority, then date-time
        | (0x0F, [_, _, _, _, 0 | 9 | 12, ..])
        | (0xD9 | 0xDA, [_, _, _, _, 0 | 12, ..]) => true,
        // read, write, unconfirmedWrite and the answers: a SEQUENCE OF choices
        (0x05 | 0x06 | 0x0C | 0x0D | 0x16, [0, ..]) => true,
        (0x05 | 0x06 | 0x0C | 0x0D | 0x16, [1..=0x20, choice, ..]) => *choice <= 10,
        // general-signing: the header, and more behind it
        (0xDF, header) => behind_header(header).is_some_and(|rest| !rest.is_empty()),
        // general-block-transfer: control, two block numbers, data
        (0xE0, [_, _, _, _, _, data @ ..]) => {
            axdr::read_length(data).is_ok_and(|(len, octets)| octets + len <= data.len())
        }
        _ => false,
    }
}
