//! What is taken from the wire, and how an answer is protected.

use crate::{
    dialect::Policy,
    frame::{Envelope, Frame, Under, control, seal},
    keys::Keys,
    meter::{
        line::Unexpected,
        state::{Association, Meter},
    },
    service::Exception,
};

/// What came in, opened.
pub(super) struct Unlocked {
    pub(super) plain: Vec<u8>,
    /// The lowest counter that was taken before this one.
    pub(super) floor: u32,
}

impl Policy {
    /// Bits of the security control byte that have to be there.
    pub(super) fn bits(self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::Authenticated => control::AUTHENTICATED,
            Self::Encrypted => control::ENCRYPTED,
            Self::Both => control::AUTHENTICATED | control::ENCRYPTED,
        }
    }
}

impl Meter {
    /// Opens a ciphered APDU of a client. A counter counts as taken only once the rest is right.
    pub(super) fn unlock(
        &mut self,
        with: Association,
        frame: &Frame,
    ) -> Result<Unlocked, Exception> {
        let (title, step) = (with.title, self.dialect.largest_step);
        let due = self.dialect.policy.bits();
        let setup = with.setup.and_then(|it| self.setup(it)).ok_or(Exception::NotAllowed)?;
        if frame.control & control::SUITE != setup.suite
            || frame.originator.is_some_and(|it| it != title)
        {
            return Err(Exception::Deciphering);
        }
        if frame.control & due != due {
            return Err(Exception::NotAllowed);
        }
        let keys = setup.keys().clone();
        let encryption = self.encryption(with, frame, &keys).ok_or(Exception::Deciphering)?;
        let line = self.line(with, frame).ok_or(Exception::Deciphering)?;
        let floor = line.expected();
        line.check(frame.counter, step)
            .map_err(|Unexpected(counter)| Exception::Counter(counter))?;
        let under = Under {
            encryption: &encryption,
            authentication: &keys.authentication,
            originator: title,
        };
        let plain = frame.open(under).ok_or(Exception::Deciphering)?;
        // Without a tag a wrong key shows by nonsense alone.
        if !frame.is_authenticated() && !is_service(&plain) {
            return Err(Exception::Deciphering);
        }
        line.taken(frame.counter);
        Ok(Unlocked { plain, floor })
    }

    fn encryption(&self, with: Association, frame: &Frame, keys: &Keys) -> Option<Vec<u8>> {
        let broadcast = frame.control & control::BROADCAST != 0;
        match frame.envelope {
            Envelope::Ded if broadcast => None,
            Envelope::Ded => {
                self.sessions.get(&with.client)?.dedicated.as_ref().map(|it| it.0.clone())
            }
            _ if broadcast => Some(keys.broadcast.clone()),
            _ => Some(keys.unicast.clone()),
        }
    }

    fn line(&mut self, with: Association, frame: &Frame) -> Option<&mut super::line::Line> {
        if frame.envelope == Envelope::Ded {
            return self.sessions.get_mut(&with.client)?.dedicated.as_mut().map(|it| &mut it.1);
        }
        let setup = self.setup_mut(with.setup?)?;
        let broadcast = frame.control & control::BROADCAST != 0;
        Some(if broadcast { setup.broadcast_line() } else { setup.line() })
    }

    /// An answer in the form of what asked for it. Silence where no counter is left.
    pub(super) fn protect(
        &mut self,
        with: Association,
        asked: &Frame,
        keys: &Keys,
        plain: &[u8],
    ) -> Option<Vec<u8>> {
        let originator = self.title;
        let (encryption, counter) = if asked.envelope == Envelope::Ded {
            let dedicated = self.sessions.get_mut(&with.client)?.dedicated.as_mut()?;
            (dedicated.0.clone(), dedicated.1.next()?)
        } else {
            let setup = self.setup_mut(with.setup?)?;
            (keys.unicast.clone(), setup.line_of(&keys.unicast).next()?)
        };
        let under =
            Under { encryption: &encryption, authentication: &keys.authentication, originator };
        seal(
            &asked.envelope,
            (asked.control & !control::BROADCAST, counter),
            under,
            with.title,
            plain,
        )
    }
}

/// Whether an APDU begins as a service that a client asks for.
fn is_service(plain: &[u8]) -> bool {
    matches!(plain, [0x01, ..] | [0xc0 | 0xc1 | 0xc3, 1, ..])
}
