//! Passes 3 and 4 with logical names: the method that carries an answer, and its result.

use alloc::vec::Vec;

use super::lengths::CHALLENGE_LEN_MAX;

/// Action-request normal up to the answer: invoke-id, class 15, 0.0.40.0.0.255, method 1, a parameter, octet-string.
//= Green Book, ACTION.request of reply_to_HLS_authentication (Blue Book, class 15, method 1)
const REPLY: [u8; 2] = [0xC3, 0x01];
const METHOD: [u8; 11] = [0x00, 0x0F, 0x00, 0x00, 0x28, 0x00, 0x00, 0xFF, 0x01, 0x01, 0x09];
/// Where e of its instance is.
const INSTANCE_E: usize = 6;

/// The plain ACTION request that carries f(StoC) to the meter: at most 64 bytes of it.
pub fn reply(invoke_id_and_priority: u8, answer: &[u8]) -> Vec<u8> {
    let answer = answer.get(..CHALLENGE_LEN_MAX).unwrap_or(answer);
    let mut apdu = Vec::with_capacity(REPLY.len() + 1 + METHOD.len() + 1 + answer.len());
    apdu.extend_from_slice(&REPLY);
    apdu.push(invoke_id_and_priority);
    apdu.extend_from_slice(&METHOD);
    apdu.push(answer.len() as u8);
    apdu.extend_from_slice(answer);
    apdu
}

/// Whether a plain APDU is, whole, the ACTION request that carries an answer: reply_to_HLS_authentication of a class 15
/// object, 0.0.40.0.e.255.
pub fn is_reply(apdu: &[u8]) -> bool {
    let Some(rest) = apdu.strip_prefix(&REPLY) else { return false };
    let Some((_, rest)) = rest.split_first() else { return false };
    let Some((method, [len, answer @ ..])) = rest.split_first_chunk::<{ METHOD.len() }>() else {
        return false;
    };
    let mut current = *method;
    // e: of the current association, or of one by its name.
    current[INSTANCE_E] = METHOD[INSTANCE_E];
    let len = usize::from(*len);
    current == METHOD && len == answer.len() && (1..=CHALLENGE_LEN_MAX).contains(&len)
}

/// f(CtoS) in a meter's plain ACTION response, or in the read response that stands for it with short names; `None`:
/// none is there, for the method has failed, or it is another APDU.
pub fn answer_in(response: &[u8]) -> Option<&[u8]> {
    let value = match response {
        // action-response normal: invoke-id, success, return parameters, data
        [0xC7, 0x01, _, 0x00, 0x01, 0x00, value @ ..]
        // read response: one, data
        | [0x0C, 0x01, 0x00, value @ ..] => value,
        _ => return None,
    };
    match value {
        [0x09, len, answer @ ..] if usize::from(*len) == answer.len() && *len < 0x80 => {
            Some(answer)
        }
        _ => None,
    }
}
