//! The other end, as small as it can be: protects requests under keys that it is told, opens answers.
//!
//! What the meter is tried with where the service is not there. It counts in memory and remembers nothing.

use crate::{
    acse::{INITIATE, Opening},
    frame::{Envelope, Frame, Under, control, seal},
    hls,
    keys::{Keys, Title},
    service::{REPLY_TO_HLS, Request, Response},
    value::Value,
};

/// A client of one association.
#[derive(Clone, Debug)]
pub struct HeadEnd {
    /// Its title.
    pub title: Title,
    /// The meter's.
    pub meter: Title,
    /// Security control byte of what it sends.
    pub control: u8,
    /// Form of what it sends.
    pub envelope: Envelope,
    /// The keys that it believes the meter to have.
    pub keys: Keys,
    /// The next counter.
    pub counter: u32,
}

impl HeadEnd {
    /// A client that authenticates and encrypts in `glo-` forms.
    pub fn new(title: Title, meter: Title, suite: u8, keys: Keys) -> Self {
        let control = control::AUTHENTICATED | control::ENCRYPTED | suite;
        Self { title, meter, control, envelope: Envelope::Glo, keys, counter: 1 }
    }

    fn under(&self, originator: Title) -> Under<'_> {
        let encryption = if self.control & control::BROADCAST == 0 {
            &self.keys.unicast
        } else {
            &self.keys.broadcast
        };
        Under { encryption, authentication: &self.keys.authentication, originator }
    }

    /// The last counter is left alone, so that none comes twice.
    fn next(&mut self) -> Option<u32> {
        let counter = self.counter;
        self.counter = counter.checked_add(1)?;
        Some(counter)
    }

    /// A request, protected under a counter of its own.
    pub fn ask(&mut self, request: &Request) -> Option<Vec<u8>> {
        let counter = self.next()?;
        let head = (self.control, counter);
        seal(&self.envelope, head, self.under(self.title), self.meter, &request.write())
    }

    /// What the meter says, if it is under the keys that this client believes in; or plain.
    pub fn hear(&self, apdu: &[u8]) -> Option<Response> {
        let Some(frame) = Frame::read(apdu) else { return Response::read(apdu) };
        Response::read(&frame.open(self.under(self.meter))?)
    }

    /// Whether a push, or whatever the meter made by itself, is under the keys that this client believes in.
    pub fn opens(&self, apdu: &[u8]) -> Option<Vec<u8>> {
        Frame::read(apdu)?.open(self.under(self.meter))
    }

    /// AARQ with mechanism 5.
    pub fn associate(&self, challenge: &[u8]) -> Vec<u8> {
        Opening {
            ciphered: true,
            title: Some(self.title),
            mechanism: Some(5),
            challenge: challenge.to_vec(),
            user: INITIATE.to_vec(),
            ..Opening::default()
        }
        .write()
    }

    /// Pass 3: the answer to the challenge of an AARE, in an action of a counter of its own.
    pub fn answer(&mut self, accepted: &[u8]) -> Option<Vec<u8>> {
        let opening = Opening::read(accepted).filter(|it| it.result == Some(0))?;
        let counter = self.next()?;
        let suite = self.control & control::SUITE;
        let answer = hls::answer(self.under(self.title), suite, counter, &opening.challenge)?;
        self.ask(&Request::Act {
            id: 0xc1,
            at: REPLY_TO_HLS,
            argument: Some(Value::Octets(answer)),
        })
    }

    /// Pass 4: whether the meter answered our challenge.
    pub fn confirmed(&self, challenge: &[u8], answer: &[u8]) -> bool {
        let Some(Response::Acted { result: 0, returned: Some(Value::Octets(given)), .. }) =
            self.hear(answer)
        else {
            return false;
        };
        let suite = self.control & control::SUITE;
        hls::answers(self.under(self.meter), suite, challenge, &given)
    }
}
