//! COSEM class 64, security setup: the action that brings a meter a new key, and what it answers.
//!
//! Blue Book, class_id 64, method 2 `key_transfer`; Green Book, `action-request-normal` and `action-response-normal`.

use alloc::vec::Vec;

use crate::axdr;

/// key_id of class 64: which key is transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferredKey {
    /// Global unicast encryption key.
    GlobalUnicastEncryption = 0,
    /// Global broadcast encryption key.
    GlobalBroadcastEncryption = 1,
    /// Global authentication key.
    Authentication = 2,
    /// Master key (KEK); from version 1 of the class on.
    Master = 3,
}

/// Class 64, in the OBIS code `0.0.43.0.e.255`; method 2.
const CLASS: [u8; 2] = [0, 64];
const KEY_TRANSFER: u8 = 2;

/// action-request: choice action-request-normal.
const ACTION_REQUEST_NORMAL: [u8; 2] = [0xC3, 0x01];
/// action-response: choice action-response-normal.
const ACTION_RESPONSE_NORMAL: [u8; 2] = [0xC7, 0x01];

/// Bytes of a key of 16 or 32 bytes under its KEK, RFC 3394.
const WRAPPED_LENS: [usize; 2] = [24, 40];

// Tags of Data.
const ARRAY: u8 = 1;
const STRUCTURE: u8 = 2;
const OCTET_STRING: u8 = 9;
const ENUM: u8 = 22;

/// Appends the plain action-request that transfers one key, wrapped under the meter's KEK. `setup` is e of its security
/// setup.
pub fn key_transfer(
    invoke_id_and_priority: u8,
    setup: u8,
    (key, wrapped): (TransferredKey, &[u8]),
    out: &mut Vec<u8>,
) {
    let [class_high, class_low] = CLASS;
    out.extend_from_slice(&ACTION_REQUEST_NORMAL);
    out.push(invoke_id_and_priority);
    out.extend_from_slice(&[class_high, class_low]);
    out.extend_from_slice(&[0, 0, 43, 0, setup, 255, KEY_TRANSFER]);
    // method-invocation-parameters OPTIONAL: there are some.
    out.push(1);
    out.extend_from_slice(&[ARRAY, 1, STRUCTURE, 2, ENUM, key as u8, OCTET_STRING]);
    axdr::write_length(wrapped.len() as u32, out); // 24 or 40.
    out.extend_from_slice(wrapped);
}

/// Whether a plain APDU is, whole, an action-request that transfers one key, as [`key_transfer`] builds it.
pub fn is_key_transfer(plain: &[u8]) -> bool {
    let [_, _, invoke, _, _, _, _, _, _, setup, _, _, _, _, _, _, _, _, key, ..] = *plain else {
        return false;
    };
    let key = match key {
        0 => TransferredKey::GlobalUnicastEncryption,
        1 => TransferredKey::GlobalBroadcastEncryption,
        2 => TransferredKey::Authentication,
        3 => TransferredKey::Master,
        _ => return false,
    };
    WRAPPED_LENS.iter().any(|len| {
        let Some(wrapped) = plain.len().checked_sub(*len).and_then(|at| plain.get(at..)) else {
            return false;
        };
        let mut built = Vec::with_capacity(plain.len());
        key_transfer(invoke, setup, (key, wrapped), &mut built);
        built == plain
    })
}

/// The invoke-id and the action-result (0: success) of a plain action-response; `None`: it is none.
pub fn action_result(plain: &[u8]) -> Option<(u8, u8)> {
    let [tag, choice, invoke, result, ..] = plain else { return None };
    ([*tag, *choice] == ACTION_RESPONSE_NORMAL).then_some((*invoke, *result))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex
            .bytes()
            .filter(|byte| *byte != b' ')
            .map(|byte| (byte as char).to_digit(16).unwrap() as u8)
            .collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    /// Green Book, key transfer: KEK 000102…0F, key 00112233…FF.
    #[test]
    fn the_books_transfer_of_a_guek_byte_for_byte() {
        let (kek, key) =
            (bytes("000102030405060708090A0B0C0D0E0F"), bytes("00112233445566778899AABBCCDDEEFF"));
        let mut wrapped = [0; 24];
        crate::key_wrap::wrap(&kek, &key, &mut wrapped).unwrap();
        let mut out = Vec::new();
        let what = (TransferredKey::GlobalUnicastEncryption, &wrapped[..]);
        key_transfer(0xC1, 0, what, &mut out);
        assert_eq!(
            out,
            bytes(
                "C301C1 0040 00002B0000FF 02 01 0101 0202 1600 0918 \
                 1FA68B0A8112B447AEF34BD8FB5A7B829D3E862371D2CFE5"
            )
        );
        assert_eq!(out.len(), 45);
    }

    #[test]
    fn a_key_of_suite_2_and_of_another_setup() {
        let mut out = Vec::new();
        key_transfer(0x41, 7, (TransferredKey::Master, &[9; 40]), &mut out);
        assert_eq!(&out[..21], bytes("C30141 0040 00002B0007FF 02 01 0101 0202 1603 0928"));
        assert_eq!(&out[21..], [9; 40]);
    }

    #[test]
    fn a_transfer_of_one_key_is_told_from_all_else() {
        for (key, len) in
            [(TransferredKey::GlobalUnicastEncryption, 24), (TransferredKey::Master, 40)]
        {
            let mut good = Vec::new();
            key_transfer(0x41, 7, (key, &[9; 40][..len]), &mut good);
            assert!(is_key_transfer(&good));
            // The invoke-id, e of the setup and the wrapped key are anybody's.
            let free = |at: usize| at == 2 || at == 9 || at >= good.len() - len;
            for at in 0..good.len() {
                let mut other = good.clone();
                other[at] ^= 0x40;
                assert_eq!(is_key_transfer(&other), free(at), "{at}");
                assert!(!is_key_transfer(&good[..at]), "{at}");
            }
            assert!(!is_key_transfer(&[&good[..], &[0]].concat()));
        }
        let mut short = Vec::new();
        key_transfer(0x41, 7, (TransferredKey::Master, &[9; 32]), &mut short);
        assert!(!is_key_transfer(&short));
    }

    #[test]
    fn an_answer_says_its_result_and_nothing_else_is_one() {
        assert_eq!(action_result(&bytes("C701C10000")), Some((0xC1, 0)));
        assert_eq!(action_result(&bytes("C70141 0B 00")), Some((0x41, 11)));
        for other in ["", "C7", "C701C1", "C702C10000", "C401C10000", "D80106"] {
            assert_eq!(action_result(&bytes(other)), None, "{other}");
        }
    }
}
