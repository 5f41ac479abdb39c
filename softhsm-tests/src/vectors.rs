//! The published telegrams of `vectors/vectors.json`.

use std::collections::BTreeMap;

use serde::Deserialize;

/// One published telegram, as `vectors/README.md` describes it.
#[derive(Clone, Debug, Deserialize)]
pub struct Vector {
    /// Its name.
    pub id: String,
    /// The class of telegram; begins with a digit.
    pub class: String,
    /// Where it was published.
    pub source: String,
    /// `tag`, `plaintext` or `fails`: how much of it could be checked.
    pub verified: String,
    /// Where the meter stands or what it is, as far as the publication says.
    #[serde(default)]
    pub country_meter: String,
    /// DLMS security suite.
    pub suite: u8,
    /// Name of the key (`guek`, `ak`, `dedicated`, `agreed`, …) → hexadecimal.
    pub keys: BTreeMap<String, String>,
    /// Title of the originator.
    pub system_title: String,
    /// Security control byte, in hexadecimal.
    pub sc: String,
    /// The ciphered APDU.
    pub apdu_hex: String,
    /// The plaintext; empty if it must not open.
    #[serde(default)]
    pub plaintext_hex: String,
}

/// All of them, in the order of the file.
pub fn published() -> Result<Vec<Vector>, serde_json::Error> {
    serde_json::from_str(include_str!("../vectors/vectors.json"))
}

impl Vector {
    /// The APDU's first byte.
    pub fn tag(&self) -> u8 {
        byte_at(&self.apdu_hex, 0)
    }

    /// The security control byte.
    pub fn security_control(&self) -> u8 {
        byte_at(&self.sc, 0)
    }

    /// Whether its key was agreed for this one message (ECDH): no key of the meter opens it.
    pub fn has_agreed_key(&self) -> bool {
        self.keys.contains_key("agreed")
    }
}

/// The byte at `index` of a hexadecimal text; 0 if there is none.
pub(crate) fn byte_at(hex: &str, index: usize) -> u8 {
    hex.get(2 * index..2 * index + 2).and_then(|two| u8::from_str_radix(two, 16).ok()).unwrap_or(0)
}

/// The name of a ciphered APDU by its tag (Green Book, "COSEMpdu").
pub const fn form(tag: u8) -> &'static str {
    match tag {
        0x21 => "glo-initiateRequest",
        0x28 => "glo-initiateResponse",
        0x2E => "glo-confirmedServiceErr",
        0xC8 => "glo-get-request",
        0xC9 => "glo-set-request",
        0xCB => "glo-action-request",
        0xCC => "glo-get-response",
        0xCD => "glo-set-response",
        0xCF => "glo-action-response",
        0xD0 => "ded-get-request",
        0xD1 => "ded-set-request",
        0xD3 => "ded-action-request",
        0xD4 => "ded-get-response",
        0xD5 => "ded-set-response",
        0xD7 => "ded-action-response",
        0xDB => "general-glo-ciphering",
        0xDC => "general-ded-ciphering",
        0xDD => "general-ciphering",
        _ => "other",
    }
}

/// Whether an APDU with this tag says itself who sent it.
pub const fn carries_title(tag: u8) -> bool {
    matches!(tag, 0xDB..=0xDD)
}

/// Whether an APDU with this tag comes from the utility's side. The tags of `glo-` and `ded-`
/// services are those of the plain ones, moved.
pub const fn is_request(tag: u8) -> bool {
    matches!(
        tag,
        0x21 | 0x25
            | 0x26
            | 0x36
            | 0x41
            | 0x45
            | 0x46
            | 0x56
            | 0xC8
            | 0xC9
            | 0xCB
            | 0xD0
            | 0xD1
            | 0xD3
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vector_says_where_it_was_published_and_has_a_known_form() {
        let vectors = published().unwrap();
        assert_eq!(vectors.len(), 37);
        for vector in vectors {
            assert!(!vector.source.is_empty(), "{}", vector.id);
            assert_ne!(form(vector.tag()), "other", "{}", vector.id);
            assert!(matches!(vector.verified.as_str(), "tag" | "plaintext" | "fails"));
        }
    }
}
