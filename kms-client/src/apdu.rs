//! One ciphered APDU on its way in, and what became of it.

use std::fmt;

use bytes::Bytes;
use dlms::SystemTitle;
use kms_core::Numbered as _;

use crate::names::MeterId;

/// One whole ciphered APDU, from its tag byte on, and what the caller knows of its meter.
///
/// With neither id nor title, the service goes by the system title that the APDU carries.
#[derive(Clone, PartialEq, Eq)]
pub struct Apdu {
    pub(crate) bytes: Bytes,
    pub(crate) meter_id: Option<MeterId>,
    pub(crate) system_title: Option<SystemTitle>,
    pub(crate) security_setup: Option<u8>,
}

/// Longer than any APDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes are more than an APDU may have ({max})", max = Apdu::LEN_MAX)]
pub struct ApduTooLong(pub usize);

impl Apdu {
    /// In bytes. DLMS negotiates at most 65,535; the rest is room for the header and the tag.
    pub const LEN_MAX: usize = 65_535 + 1_024;

    /// Checks the length, and nothing else: the verdict on the contents is the service's.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, ApduTooLong> {
        let bytes = bytes.into();
        if bytes.len() > Self::LEN_MAX {
            return Err(ApduTooLong(bytes.len()));
        }
        Ok(Self { bytes, meter_id: None, system_title: None, security_setup: None })
    }

    /// Names the meter by the operator's name.
    pub fn of_meter(mut self, meter_id: MeterId) -> Self {
        self.meter_id = Some(meter_id);
        self
    }

    /// Names the meter by its system title.
    pub fn of_system_title(mut self, title: SystemTitle) -> Self {
        self.system_title = Some(title);
        self
    }

    /// Names the security setup: e in `0.0.43.0.e.255`. Without it each is tried in turn.
    pub fn under_setup(mut self, setup: u8) -> Self {
        self.security_setup = Some(setup);
        self
    }

    /// The bytes as they stand on the wire.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The meter id, if one was given.
    pub fn meter_id(&self) -> Option<&MeterId> {
        self.meter_id.as_ref()
    }

    /// The system title, if one was given.
    pub fn system_title(&self) -> Option<SystemTitle> {
        self.system_title
    }

    /// Whether the caller named the meter, in either way.
    pub fn names_its_meter(&self) -> bool {
        self.meter_id.is_some() || self.system_title.is_some()
    }

    /// Whether it carries the system title of its originator.
    pub fn carries_title(&self) -> bool {
        self.header().originator.is_some()
    }

    /// The part of the APDU that can be read without a key.
    pub(crate) fn header(&self) -> Header {
        Header::peek(&self.bytes).unwrap_or_default()
    }
}

impl fmt::Debug for Apdu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, meter_id, system_title, security_setup } = self;
        f.debug_struct("Apdu")
            .field("len", &bytes.len())
            .field("meter_id", meter_id)
            .field("system_title", system_title)
            .field("security_setup", security_setup)
            .finish()
    }
}

/// The fields that the batch calls do not send back, since the caller's own APDU has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) originator: Option<SystemTitle>,
    pub(crate) invocation_counter: Option<u32>,
}

impl Header {
    //= Green Book, "Structure of ciphered APDUs"
    //# glo- and ded-: tag, length, SC, IC; general-glo/ded-ciphering (DB, DC): system title first;
    //# general-ciphering (DD): transaction id, originator, recipient, date, other, key info first
    fn peek(apdu: &[u8]) -> Option<Self> {
        let (&tag, mut rest) = apdu.split_first()?;
        let mut originator = None;
        match tag {
            0xDB | 0xDC => originator = octets(&mut rest)?.try_into().ok().map(SystemTitle::new),
            0xDD => {
                octets(&mut rest)?;
                originator = octets(&mut rest)?.try_into().ok().map(SystemTitle::new);
                for _recipient_date_other in 0..3 {
                    octets(&mut rest)?;
                }
                let (&key_info, after) = rest.split_first()?;
                if key_info != 0 {
                    return Some(Self { originator, invocation_counter: None });
                }
                rest = after;
            }
            _ => {}
        }
        let secured = octets(&mut rest);
        let counter = secured.and_then(|secured| secured.get(1..5)?.try_into().ok());
        Some(Self { originator, invocation_counter: counter.map(u32::from_be_bytes) })
    }
}

/// Takes one octet string with its A-XDR length off the front.
fn octets<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (&first, mut tail) = rest.split_first()?;
    let len = if first < 0x80 {
        usize::from(first)
    } else {
        let (digits, after) = tail.split_at_checked(usize::from(first & 0x7F))?;
        if digits.len() > 4 {
            return None;
        }
        tail = after;
        digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit))
    };
    let (octets, after) = tail.split_at_checked(len)?;
    *rest = after;
    Some(octets)
}

/// The outcome of one APDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// The tag verified.
    Ok,
    /// Opened under the meter's policy, but nothing was authenticated: the plaintext may be anything.
    OkUnauthenticated,
    /// The tag did not verify under any live key version of the meter.
    MicFailure,
    /// The invocation counter was seen before or lies below the receive floor.
    Replayed,
    /// No such meter, or the system title is not this meter's.
    UnknownMeter,
    /// The meter has no key that this APDU may be opened with.
    NoUsableKey,
    /// The APDU is protected less than the meter's policy demands.
    PolicyRefused,
    /// Not a ciphered APDU.
    Malformed,
    /// A ciphered APDU of a kind that the service does not open.
    Unsupported,
    /// The key could not be reached; try again.
    Unavailable,
    /// Opened under a key that is known to others: anybody may have made it.
    CompromisedKey,
    /// A verdict that this version of the client does not know; never one that opens.
    Unrecognised,
}

impl From<kms_core::Verdict> for Verdict {
    fn from(verdict: kms_core::Verdict) -> Self {
        use kms_core::Verdict as Known;
        match verdict {
            Known::Ok => Self::Ok,
            Known::OkUnauthenticated => Self::OkUnauthenticated,
            Known::MicFailure => Self::MicFailure,
            Known::Replayed => Self::Replayed,
            Known::UnknownMeter => Self::UnknownMeter,
            Known::NoUsableKey => Self::NoUsableKey,
            Known::PolicyRefused => Self::PolicyRefused,
            Known::Malformed => Self::Malformed,
            Known::Unsupported => Self::Unsupported,
            Known::Unavailable => Self::Unavailable,
            Known::CompromisedKey => Self::CompromisedKey,
        }
    }
}

impl Verdict {
    /// The verdict with this number on the wire, from 1 on.
    pub(crate) fn from_number(number: i32) -> Self {
        let known = u8::try_from(number).ok().and_then(kms_core::Verdict::from_number);
        known.map_or(Self::Unrecognised, Self::from)
    }

    /// The service's own verdict for it; `None`: it is none that we know.
    fn known(self) -> Option<kms_core::Verdict> {
        kms_core::Verdict::ALL.iter().copied().find(|known| Self::from(*known) == self)
    }

    /// Whether plaintext may come with it: with what opened, and with what opened under a compromised key. Nothing vouches
    /// for that one.
    pub const fn may_have_plaintext(self) -> bool {
        self.opened() || matches!(self, Self::CompromisedKey)
    }

    /// Whether it opened, and plaintext comes with it.
    pub const fn opened(self) -> bool {
        match self {
            Self::Ok | Self::OkUnauthenticated => true,
            Self::MicFailure
            | Self::Replayed
            | Self::UnknownMeter
            | Self::NoUsableKey
            | Self::PolicyRefused
            | Self::Malformed
            | Self::Unsupported
            | Self::Unavailable
            | Self::CompromisedKey
            | Self::Unrecognised => false,
        }
    }

    /// The word of the wire.
    pub fn word(self) -> &'static str {
        self.known().map_or("UNRECOGNISED", kms_core::Verdict::word)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// The service's answer to one APDU, whichever call it went through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Its verdict.
    pub verdict: Verdict,
    /// The tag verified. The same as [`Verdict::Ok`].
    pub authenticated: bool,
    /// The title of the meter whose keys were used. Batches and streams know it only when the
    /// meter was named by its title, or by nothing but the title in the APDU.
    pub system_title: Option<SystemTitle>,
    /// The security setup whose keys were tried or used. Batches and streams know it only when it
    /// was asked for.
    pub security_setup: Option<u32>,
    /// The version of the encryption key that took part.
    pub encryption_key_version: Option<u32>,
    /// The version of the authentication key that took part.
    pub authentication_key_version: Option<u32>,
    /// The counter half of the nonce, where the APDU has one.
    pub invocation_counter: Option<u32>,
    /// The same message was opened before: a call that was sent again. Only of meters with receive floors.
    pub duplicate: bool,
    /// One sentence for people, where the verdict alone does not say enough.
    pub reason: Option<String>,
}

/// An APDU that was opened, or why it was not.
#[derive(Clone, PartialEq, Eq)]
pub struct Opened {
    /// Everything but the plaintext.
    pub checked: Checked,
    /// The plaintext of the APDU; `None` unless the verdict is one that opens.
    pub plaintext: Option<Bytes>,
}

impl Opened {
    /// The verdict on the APDU.
    pub fn verdict(&self) -> Verdict {
        self.checked.verdict
    }
}

impl std::ops::Deref for Opened {
    type Target = Checked;

    fn deref(&self) -> &Checked {
        &self.checked
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { checked, plaintext } = self;
        f.debug_struct("Opened")
            .field("checked", checked)
            .field("plaintext_len", &plaintext.as_ref().map(Bytes::len))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(digits: &str) -> Header {
        Apdu::new(hex::decode(digits).unwrap()).unwrap().header()
    }

    #[test]
    fn title_and_counter_are_read_off_a_general_glo_ciphering() {
        let header = header("DB084D4D4D0000BC614E0A300123456701020304AA");
        assert_eq!(
            header.originator.unwrap().as_bytes(),
            &hex::decode("4D4D4D0000BC614E").unwrap()[..]
        );
        assert_eq!(header.invocation_counter, Some(0x0123_4567));
    }

    #[test]
    fn a_glo_get_request_has_a_counter_and_no_title() {
        let header = header("C80730000000010102");
        assert_eq!(header, Header { originator: None, invocation_counter: Some(1) });
    }

    #[test]
    fn a_verdict_that_we_do_not_know_does_not_open() {
        for number in [-1, 0, 12, 255, i32::MAX, i32::MIN] {
            assert!(!Verdict::from_number(number).opened(), "{number}");
        }
        assert_eq!(Verdict::from_number(1), Verdict::Ok);
        assert_eq!(Verdict::from_number(10), Verdict::Unavailable);
    }

    #[test]
    fn verdicts_are_those_of_the_service() {
        for known in kms_core::Verdict::ALL {
            let ours = Verdict::from(*known);
            assert_eq!((ours.word(), ours.opened()), (known.word(), known.opened()));
        }
    }

    #[test]
    fn more_bytes_than_an_apdu_has_are_not_an_apdu() {
        assert_eq!(Apdu::new(vec![0; Apdu::LEN_MAX + 1]), Err(ApduTooLong(Apdu::LEN_MAX + 1)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_peek_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Header::peek(&bytes);
        }
    }
}
