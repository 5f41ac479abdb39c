//! Helpers of several tests: the published vectors, and ciphered APDUs taken apart by hand.
#![allow(dead_code, reason = "no test uses all of it")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that can't read its vectors has failed"
)]

use dlms::{CipheredApdu, Form, GeneralCipheringAad, Keys, OpenError, SystemTitle};
use serde::Deserialize;

pub(crate) const SPEC: GeneralCipheringAad = GeneralCipheringAad::Spec;

/// One entry of `vectors.json`; the fields of other kinds are left out.
#[derive(Deserialize, Clone)]
pub(crate) struct Vector {
    pub(crate) id: String,
    class: String,
    pub(crate) kind: String,
    expect: String,
    pub(crate) verified: String,
    keys: KeyTexts,
    system_title: Option<String>,
    pub(crate) invocation_counter: Option<u32>,
    apdu_hex: Option<String>,
    plaintext_hex: Option<String>,
    challenge_hex: Option<String>,
    f_challenge_hex: Option<String>,
    wrapped_hex: Option<String>,
    aad_hex: Option<String>,
    ciphertext_hex: Option<String>,
    tag_hex: Option<String>,
    input_hex: Option<String>,
    recipient_system_title: Option<String>,
    transaction_id: Option<String>,
    pub(crate) transport: Option<Transport>,
}

/// The transport that carried the APDU.
#[derive(Deserialize, Clone)]
pub(crate) struct Transport {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    frame_hex: Option<String>,
}

impl Transport {
    /// The bytes as they were recorded.
    pub(crate) fn frame(&self) -> Option<Vec<u8>> {
        self.frame_hex.as_deref().map(|digits| bytes(Some(digits)))
    }
}

#[derive(Deserialize, Clone)]
struct KeyTexts {
    guek: Option<String>,
    dedicated: Option<String>,
    agreed: Option<String>,
    ak: Option<String>,
    kek: Option<String>,
    key: Option<String>,
}

/// The vectors of one class (the number before the dash) and one kind.
pub(crate) fn vectors(class: &str, kind: &str) -> Vec<Vector> {
    let all: Vec<Vector> = serde_json::from_str(include_str!("../vectors/vectors.json")).unwrap();
    all.into_iter()
        .filter(|vector| vector.class.split('-').next() == Some(class) && vector.kind == kind)
        .collect()
}

/// Every vector whose tag verifies under its own keys: classes 1, 2, 3.
pub(crate) fn authenticated_vectors() -> Vec<Vector> {
    let found: Vec<_> = ["1", "2", "3"]
        .into_iter()
        .flat_map(|class| vectors(class, "dlms-apdu"))
        .filter(|vector| vector.verified == "tag")
        .collect();
    assert_eq!(found.len(), 26);
    found
}

impl Vector {
    pub(crate) fn expects_success(&self) -> bool {
        match self.expect.as_str() {
            "ok" => true,
            "fail" => false,
            other => panic!("{}: expects {other}", self.id),
        }
    }

    pub(crate) fn apdu(&self) -> Vec<u8> {
        bytes(self.apdu_hex.as_deref())
    }

    pub(crate) fn plaintext(&self) -> Vec<u8> {
        bytes(self.plaintext_hex.as_deref())
    }

    pub(crate) fn challenge(&self) -> Vec<u8> {
        bytes(self.challenge_hex.as_deref())
    }

    pub(crate) fn answer(&self) -> Vec<u8> {
        bytes(self.f_challenge_hex.as_deref())
    }

    pub(crate) fn wrapped(&self) -> Vec<u8> {
        bytes(self.wrapped_hex.as_deref())
    }

    pub(crate) fn additional_data(&self) -> Vec<u8> {
        bytes(self.aad_hex.as_deref())
    }

    pub(crate) fn ciphertext(&self) -> Vec<u8> {
        bytes(self.ciphertext_hex.as_deref())
    }

    pub(crate) fn tag(&self) -> Vec<u8> {
        bytes(self.tag_hex.as_deref())
    }

    pub(crate) fn message(&self) -> Vec<u8> {
        bytes(self.input_hex.as_deref())
    }

    pub(crate) fn transaction_id(&self) -> Vec<u8> {
        bytes(self.transaction_id.as_deref())
    }

    pub(crate) fn title(&self) -> SystemTitle {
        self.system_title.as_deref().unwrap().parse().unwrap()
    }

    pub(crate) fn recipient(&self) -> SystemTitle {
        self.recipient_system_title.as_deref().unwrap().parse().unwrap()
    }

    /// The key that opens it, whatever its name.
    pub(crate) fn encryption_key(&self) -> Vec<u8> {
        let KeyTexts { guek, dedicated, agreed, ak: _, kek, key } = &self.keys;
        let named: Vec<_> = [guek, dedicated, agreed, kek, key].into_iter().flatten().collect();
        assert_eq!(named.len(), 1, "{}", self.id);
        hex::decode(named.first().unwrap()).unwrap()
    }

    pub(crate) fn authentication_key(&self) -> Option<Vec<u8>> {
        self.keys.ak.as_deref().map(|text| hex::decode(text).unwrap())
    }
}

fn bytes(text: Option<&str>) -> Vec<u8> {
    hex::decode(text.unwrap()).unwrap()
}

/// The bytes that stand in the output buffer before a call.
pub(crate) const EARLIER: &[u8] = b"what an earlier call left";

/// Opens behind [`EARLIER`], and on the way proves the invariant *a failure leaves no trace*.
pub(crate) fn open(
    apdu: &CipheredApdu<'_>,
    keys: &Keys<'_>,
    originator: &SystemTitle,
) -> Result<Vec<u8>, OpenError> {
    let mut out = EARLIER.to_vec();
    let opened = apdu.open(keys, originator, SPEC, &mut out);
    finish(opened, &out)
}

/// As [`open`], without authentication.
pub(crate) fn decrypt(
    apdu: &CipheredApdu<'_>,
    key: &[u8],
    originator: &SystemTitle,
) -> Result<Vec<u8>, OpenError> {
    let mut out = EARLIER.to_vec();
    let opened = apdu.decrypt_without_authentication(key, originator, &mut out);
    finish(opened, &out)
}

fn finish(opened: Result<(), OpenError>, out: &[u8]) -> Result<Vec<u8>, OpenError> {
    let plaintext = out.strip_prefix(EARLIER).unwrap();
    if opened.is_err() {
        assert!(plaintext.is_empty(), "a failure leaves no trace");
    }
    opened.map(|()| plaintext.to_vec())
}

/// The bytes before LEN, and those from SC on, of an APDU whose LEN is minimal.
pub(crate) fn split_at_length(apdu: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let parsed = CipheredApdu::parse(apdu).unwrap();
    let content =
        5 + parsed.payload().len() + parsed.authentication_tag().map_or(0, |tag| tag.len());
    let length = length_by_hand(content).len();
    let prefix = apdu.len() - content - length;
    match parsed.form() {
        Form::Glo | Form::Ded => assert_eq!(prefix, 1),
        Form::GeneralGlo | Form::GeneralDed => assert!(prefix == 10 || prefix == 2),
        Form::GeneralCiphering => {}
    }
    (apdu[..prefix].to_vec(), apdu[prefix + length..].to_vec())
}

/// The shortest A-XDR length, written down once more, apart from the crate.
pub(crate) fn length_by_hand(len: usize) -> Vec<u8> {
    let all = u32::try_from(len).unwrap().to_be_bytes();
    let significant: Vec<u8> = all.into_iter().skip_while(|octet| *octet == 0).collect();
    match significant[..] {
        [] => vec![0],
        [short] if short < 0x80 => vec![short],
        _ => [&[0x80 | significant.len() as u8][..], &significant].concat(),
    }
}

/// Puts LEN between prefix and content.
pub(crate) fn join_with_length(prefix: &[u8], content: &[u8]) -> Vec<u8> {
    [prefix, &length_by_hand(content.len()), content].concat()
}
