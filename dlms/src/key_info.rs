//! key-info of general-ciphering: how the receiver finds the key.

use crate::KeySet;
use crate::axdr::{Fault, Reader};

/// The content of key-info. Only the identified key can be opened here; the others are read to the
/// end all the same, so that what is unsupported is told from what is garbage.
pub(crate) enum KeyInfo {
    /// A global key, by its number.
    Identified(KeySet),
    /// A key wrapped under the master key.
    Wrapped,
    /// A key that both ends agree on.
    Agreed,
    /// The key last exchanged.
    Absent,
}

impl KeyInfo {
    //= Green Book, COSEMpdu, Key-Info ::= CHOICE { identified-key, wrapped-key, agreed-key }, OPTIONAL
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Fault> {
        const USAGE: &str = "presence of key-info";
        const CHOICE: &str = "choice of key-info";
        let at_usage = *reader;
        match reader.byte(USAGE)? {
            0x00 => return Ok(Self::Absent),
            0x01 => {}
            _ => return Err(at_usage.fault(USAGE)),
        }
        let at_choice = *reader;
        match reader.byte(CHOICE)? {
            0x00 => identified(reader).map(Self::Identified),
            0x01 => wrapped(reader).map(|()| Self::Wrapped),
            0x02 => agreed(reader).map(|()| Self::Agreed),
            _ => Err(at_choice.fault(CHOICE)),
        }
    }
}

//# key-id: 00 global-unicast-encryption-key, 01 global-broadcast-encryption-key
fn identified(reader: &mut Reader<'_>) -> Result<KeySet, Fault> {
    const KEY_ID: &str = "key-id";
    let at = *reader;
    match reader.byte(KEY_ID)? {
        0x00 => Ok(KeySet::Unicast),
        0x01 => Ok(KeySet::Broadcast),
        _ => Err(at.fault(KEY_ID)),
    }
}

//# kek-id: 00 master-key; key-ciphered-data: 24 bytes, in suite 2 40 (RFC 3394)
fn wrapped(reader: &mut Reader<'_>) -> Result<(), Fault> {
    const KEK_ID: &str = "kek-id";
    const DATA: &str = "wrapped key";
    let at = *reader;
    if reader.byte(KEK_ID)? != 0x00 {
        return Err(at.fault(KEK_ID));
    }
    let at = *reader;
    match reader.octet_string(DATA)?.len() {
        24 | 40 => Ok(()),
        _ => Err(at.fault(DATA)),
    }
}

//# key-parameters: 01 C(1e, 1s), with ephemeral public key and signature (P-256 128 bytes, P-384 192);
//# 02 C(0e, 2s), with nothing
fn agreed(reader: &mut Reader<'_>) -> Result<(), Fault> {
    const PARAMETERS: &str = "key-parameters";
    const DATA: &str = "key-ciphered-data";
    let at = *reader;
    let parameters = reader.octet_string(PARAMETERS)?;
    if !matches!(parameters, [0x01 | 0x02]) {
        return Err(at.fault(PARAMETERS));
    }
    let at = *reader;
    match (parameters, reader.octet_string(DATA)?.len()) {
        ([0x01], 128 | 192) | ([0x02], 0) => Ok(()),
        _ => Err(at.fault(DATA)),
    }
}
