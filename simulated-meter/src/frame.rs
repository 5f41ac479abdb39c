//! Ciphered APDUs: `glo-…`, `ded-…`, general-glo and general-ciphering with an identified key.

use crate::{
    gcm::{Gcm, TAG},
    keys::Title,
    octets::{Octets, put_counted, put_length},
};

/// Bits of the security control byte.
pub mod control {
    /// Authenticated: there is a tag.
    pub const AUTHENTICATED: u8 = 0x10;
    /// Encrypted.
    pub const ENCRYPTED: u8 = 0x20;
    /// Under the broadcast key.
    pub const BROADCAST: u8 = 0x40;
    /// The suite's number.
    pub const SUITE: u8 = 0x0f;
    pub(super) const COMPRESSED: u8 = 0x80;
}

/// The form around a ciphered APDU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Envelope {
    /// `glo-get-request` and the like, under a global key.
    Glo,
    /// `ded-get-request` and the like, under the association's dedicated key.
    Ded,
    /// general-glo-ciphering: names its originator.
    GeneralGlo,
    /// general-ciphering with an identified global key.
    GeneralCiphering {
        /// Echoed by the answer.
        transaction: Vec<u8>,
    },
}

/// Plain and ciphered tags of the services that have a form of their own.
const GLO: &[(u8, u8)] = &[
    (0x01, 0x21),
    (0x08, 0x28),
    (0xc0, 0xc8),
    (0xc1, 0xc9),
    (0xc3, 0xcb),
    (0xc4, 0xcc),
    (0xc5, 0xcd),
    (0xc7, 0xcf),
];
const DED: &[(u8, u8)] = &[
    (0x01, 0x41),
    (0x08, 0x48),
    (0xc0, 0xd0),
    (0xc1, 0xd1),
    (0xc3, 0xd3),
    (0xc4, 0xd4),
    (0xc5, 0xd5),
    (0xc7, 0xd7),
];

/// A ciphered APDU taken apart; nothing of it is checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The form around it.
    pub envelope: Envelope,
    /// The plain tag that its own tag promises; general forms promise none.
    pub promised: Option<u8>,
    /// Originator, where the form names him.
    pub originator: Option<Title>,
    /// Security control byte.
    pub control: u8,
    /// Invocation counter.
    pub counter: u32,
    /// Behind the counter, with the tag.
    pub body: Vec<u8>,
    /// What general-ciphering has before key-info: a part of what is authenticated.
    header: Vec<u8>,
}

/// Keys and nonce of one sealing or opening.
#[derive(Clone, Copy, Debug)]
pub struct Under<'a> {
    /// Encryption key.
    pub encryption: &'a [u8],
    /// Authentication key.
    pub authentication: &'a [u8],
    /// Title of whoever sends.
    pub originator: Title,
}

impl Under<'_> {
    fn nonce(&self, counter: u32) -> [u8; 12] {
        let counter = counter.to_be_bytes();
        std::array::from_fn(|at| if at < 8 { self.originator[at] } else { counter[at - 8] })
    }

    /// `control ‖ counter ‖ body ‖ tag`, the part behind the length. `header` is general-ciphering's.
    fn seal(&self, (control, counter): (u8, u32), header: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        let gcm = Gcm::new(self.encryption)?;
        let nonce = self.nonce(counter);
        let mut out = vec![control];
        out.extend(counter.to_be_bytes());
        let mut aad = [&[control], self.authentication, header].concat();
        match (control & control::AUTHENTICATED != 0, control & control::ENCRYPTED != 0) {
            (true, true) => {
                let (body, tag) = gcm.seal(nonce, &aad, plain)?;
                out.extend(body);
                out.extend(tag);
            }
            (true, false) => {
                aad.extend(plain);
                out.extend(plain);
                out.extend(gcm.seal(nonce, &aad, &[])?.1);
            }
            (false, true) => out.extend(gcm.stream(nonce, plain)?),
            (false, false) => return None,
        }
        Some(out)
    }
}

/// The tag over a challenge, as mechanism 5 wants it: 17 bytes.
pub(crate) fn gmac(
    under: Under<'_>,
    (suite, counter): (u8, u32),
    challenge: &[u8],
) -> Option<Vec<u8>> {
    let control = control::AUTHENTICATED | suite;
    let mut sealed = under.seal((control, counter), &[], challenge)?;
    sealed.drain(5..5 + challenge.len());
    Some(sealed)
}

impl Frame {
    /// Takes a ciphered APDU apart; nothing may follow it.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut octets = Octets(bytes);
        let tag = octets.byte()?;
        let plain = |table: &[(u8, u8)]| table.iter().find(|row| row.1 == tag).map(|row| row.0);
        let frame = if let Some(promised) = plain(GLO) {
            Self::content(Envelope::Glo, Some(promised), octets.counted()?)?
        } else if let Some(promised) = plain(DED) {
            Self::content(Envelope::Ded, Some(promised), octets.counted()?)?
        } else if tag == 0xdb {
            let title = octets.counted()?;
            let mut frame = Self::content(Envelope::GeneralGlo, None, octets.counted()?)?;
            frame.originator = title_of(title)?;
            frame
        } else if tag == 0xdd {
            Self::general_ciphering(&mut octets)?
        } else {
            return None;
        };
        octets.end()?;
        Some(frame)
    }

    fn content(envelope: Envelope, promised: Option<u8>, content: &[u8]) -> Option<Self> {
        let mut octets = Octets(content);
        let (control, counter) = (octets.byte()?, octets.number()?);
        let body = octets.0.to_vec();
        Some(Self {
            envelope,
            promised,
            originator: None,
            control,
            counter,
            body,
            header: Vec::new(),
        })
    }

    fn general_ciphering(octets: &mut Octets<'_>) -> Option<Self> {
        let start = octets.0;
        let transaction = octets.counted()?.to_vec();
        let originator = octets.counted()?;
        let (_recipient, _time, _other) = (octets.counted()?, octets.counted()?, octets.counted()?);
        let header = start[..start.len() - octets.0.len()].to_vec();
        // Without key-info it is the GUEK that is meant: so do most.
        let key = match octets.byte()? {
            0 => 0,
            _ => match octets.array::<2>()? {
                [0, key] => key,
                _ => return None,
            },
        };
        let envelope = Envelope::GeneralCiphering { transaction };
        let mut frame = Self::content(envelope, None, octets.counted()?)?;
        frame.originator = title_of(originator)?;
        frame.header = header;
        // Here the key is named, and the bit must not be set; one bit for all that follows.
        let named = [0, control::BROADCAST].get(usize::from(key))?;
        (frame.control & control::BROADCAST == 0).then_some(())?;
        frame.control |= named;
        Some(frame)
    }

    /// Whether it has a tag.
    pub fn is_authenticated(&self) -> bool {
        self.control & control::AUTHENTICATED != 0
    }

    /// The plain APDU. Without a tag that is whatever comes out; where the form promises a service, that one.
    pub fn open(&self, under: Under<'_>) -> Option<Vec<u8>> {
        let plain = self.opened(under)?;
        let kept = self.promised.is_none_or(|tag| plain.first() == Some(&tag));
        kept.then_some(plain)
    }

    fn opened(&self, under: Under<'_>) -> Option<Vec<u8>> {
        if self.control & control::COMPRESSED != 0 {
            return None;
        }
        let gcm = Gcm::new(under.encryption)?;
        let nonce = under.nonce(self.counter);
        let (authenticated, encrypted) =
            (self.is_authenticated(), self.control & control::ENCRYPTED != 0);
        if !authenticated {
            return if encrypted { gcm.stream(nonce, &self.body) } else { None };
        }
        let (body, tag) = self.body.split_at_checked(self.body.len().checked_sub(TAG)?)?;
        let mut aad = [&[self.wire_control()], under.authentication, &self.header].concat();
        if encrypted {
            return gcm.open(nonce, &aad, body, tag);
        }
        aad.extend(body);
        gcm.open(nonce, &aad, &[], tag).map(|_| body.to_vec())
    }

    /// The byte as it was sent: general-ciphering names a broadcast key elsewhere.
    fn wire_control(&self) -> u8 {
        match self.envelope {
            Envelope::GeneralCiphering { .. } => self.control & !control::BROADCAST,
            _ => self.control,
        }
    }
}

fn title_of(bytes: &[u8]) -> Option<Option<Title>> {
    match bytes {
        [] => Some(None),
        _ => bytes.try_into().ok().map(Some),
    }
}

/// A plain APDU, protected. `head` is security control and counter; `recipient` is said by general-ciphering alone.
pub fn seal(
    envelope: &Envelope,
    head: (u8, u32),
    under: Under<'_>,
    recipient: Title,
    plain: &[u8],
) -> Option<Vec<u8>> {
    let (control, counter) = head;
    let tag = |table: &[(u8, u8)]| {
        table.iter().find(|row| Some(&row.0) == plain.first()).map(|row| row.1)
    };
    let mut out = Vec::new();
    match envelope {
        Envelope::Glo => out.push(tag(GLO)?),
        Envelope::Ded => out.push(tag(DED)?),
        Envelope::GeneralGlo => {
            out.push(0xdb);
            put_counted(&mut out, &under.originator);
        }
        Envelope::GeneralCiphering { transaction } => {
            let mut header = Vec::new();
            put_counted(&mut header, transaction);
            put_counted(&mut header, &under.originator);
            put_counted(&mut header, &recipient);
            header.extend([0, 0]);
            let content = under.seal((control & !control::BROADCAST, counter), &header, plain)?;
            out.push(0xdd);
            out.extend(header);
            out.extend([1, 0, u8::from(control & control::BROADCAST != 0)]);
            put_counted(&mut out, &content);
            return Some(out);
        }
    }
    let content = under.seal((control, counter), &[], plain)?;
    put_length(&mut out, content.len());
    out.extend(content);
    Some(out)
}
