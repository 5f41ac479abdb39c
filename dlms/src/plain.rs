//! Whether bytes that came out of a decipherment look like what meters encipher. Where nothing is
//! authenticated, that is all that tells a right key from a wrong one, and it proves nothing.

use crate::axdr;

/// The beginning of a plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// An APDU of DLMS/COSEM.
    Apdu,
    /// A P1 telegram (IEC 62056-21, DSMR P1): `/`, three letters, and text.
    P1,
    /// Neither.
    Neither,
}

/// Bytes of a P1 telegram's first line that are looked at.
const P1_LOOK: usize = 16;

/// Looks at the first bytes. Of random bytes about one in fifty passes.
pub fn beginning(plaintext: &[u8]) -> Beginning {
    match plaintext {
        [b'/', text @ ..] if is_p1(text) => Beginning::P1,
        [tag, rest @ ..] if is_apdu(*tag, rest) => Beginning::Apdu,
        _ => Beginning::Neither,
    }
}

fn is_p1(text: &[u8]) -> bool {
    let look = text.get(..P1_LOOK.min(text.len())).unwrap_or_default();
    let named =
        look.first_chunk::<3>().is_some_and(|maker| maker.iter().all(u8::is_ascii_alphabetic));
    named && look.iter().all(|byte| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\r' | b'\n'))
}

/// Whether the byte behind `tag` may follow it.
//= Green Book, COSEMpdu: each choice of a service, the presence of an OPTIONAL, the count of a SEQUENCE OF
fn is_apdu(tag: u8, rest: &[u8]) -> bool {
    let second = rest.first().copied();
    let within = |least, most| second.is_some_and(|second| (least..=most).contains(&second));
    match tag {
        // initiate: dedicated-key OPTIONAL, negotiated-quality-of-service OPTIONAL
        0x01 | 0x08 => within(0, 1),
        // read, write, their answers, unconfirmedWrite, informationReport
        0x05 | 0x06 | 0x0C | 0x0D | 0x16 | 0x18 => within(0, 0x20),
        // confirmedServiceError
        0x0E => within(1, 6),
        // data-notification: long-invoke-id-and-priority, then date-time, empty or of 12 bytes
        0x0F => matches!(rest.get(4), Some(0x00 | 0x09 | 0x0C)),
        // AARQ, AARE, RLRQ, RLRE: their length is that of the rest
        0x60..=0x63 => axdr::read_length(rest)
            .is_ok_and(|(len, octets)| rest.len().checked_sub(octets) == Some(len)),
        // get
        0xC0 | 0xC4 => within(1, 3),
        // set
        0xC1 | 0xC5 => within(1, 5),
        // event-notification: time OPTIONAL
        0xC2 => within(0, 1),
        // action
        0xC3 | 0xC7 => within(1, 6),
        // exception-response: state-error
        0xD8 => within(1, 2),
        // access: long-invoke-id-and-priority, then date-time
        0xD9 | 0xDA => matches!(rest.get(4), Some(0x00 | 0x0C)),
        // general-signing: an octet string first
        0xDF => axdr::read_length(rest).is_ok_and(|(len, octets)| len + octets < rest.len()),
        // general-block-transfer
        0xE0 => rest.len() > 5,
        _ => false,
    }
}
