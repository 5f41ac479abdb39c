//! How an association is opened: passes 1 to 4, and the lock-out of who fails too often.

use crate::{
    acse::{INITIATED, Opening, dedicated_key},
    frame::{Envelope, Frame, Under, seal},
    hls,
    meter::{
        line::Line,
        state::{Association, Mechanism, Meter, Phase, Session},
    },
    service::result,
    value::Value,
};

/// Result of an AARE: never with these values.
const REJECTED: u8 = 1;
const CHALLENGE: usize = 16;

impl Meter {
    /// AARQ: passes 1 and 2 where the mechanism has them.
    pub(super) fn associate(&mut self, with: Association, asked: &Opening) -> Vec<u8> {
        // An association that is there is given up by whoever asks anew.
        self.end(with.client);
        let rejected =
            Opening { result: Some(REJECTED), ciphered: asked.ciphered, ..Opening::default() };
        if self.clock < self.locked_until {
            return rejected.write();
        }
        self.opened(with, asked).unwrap_or(rejected).write()
    }

    fn opened(&mut self, with: Association, asked: &Opening) -> Option<Opening> {
        let right_title = asked.title.is_none_or(|title| title == with.title);
        let gmac = with.mechanism == Mechanism::Gmac;
        let due = if gmac {
            asked.mechanism == Some(5)
        } else {
            asked.mechanism.is_none_or(|it| it == 0)
        };
        if !right_title || !due || (gmac && !(8..=64).contains(&asked.challenge.len())) {
            return None;
        }
        let (dedicated, user) = self.initiate(with, &asked.user)?;
        let mut answer = Opening {
            result: Some(0),
            ciphered: asked.ciphered,
            title: Some(self.title),
            user,
            ..Opening::default()
        };
        let mut session = Session::new(Phase::Open);
        if gmac {
            let server = self.challenge(&asked.challenge);
            answer.mechanism = Some(5);
            answer.challenge.clone_from(&server);
            session.phase = Phase::Challenged { client: asked.challenge.clone(), server };
        }
        session.dedicated = dedicated.map(|key| (key, Line::default()));
        self.sessions.insert(with.client, session);
        Some(answer)
    }

    /// The dedicated key, if one came, and InitiateResponse in the form of the request.
    fn initiate(&mut self, with: Association, user: &[u8]) -> Option<(Option<Vec<u8>>, Vec<u8>)> {
        let Some(frame) = Frame::read(user) else {
            // A dedicated key in the clear is one that everybody has.
            return dedicated_key(user).is_none().then(|| (None, INITIATED.to_vec()));
        };
        let opened = self.unlock(with, &frame);
        let Ok(opened) = opened else {
            self.failed();
            return None;
        };
        let setup = self.setup_mut(with.setup?)?;
        let keys = setup.keys().clone();
        let counter = setup.line().next()?;
        let under = Under {
            encryption: &keys.unicast,
            authentication: &keys.authentication,
            originator: self.title,
        };
        let sealed = seal(&Envelope::Glo, (frame.control, counter), under, with.title, &INITIATED)?;
        Some((dedicated_key(&opened.plain), sealed))
    }

    fn challenge(&mut self, other_than: &[u8]) -> Vec<u8> {
        let ordered = self.next_challenge.take();
        let mut challenge = ordered.unwrap_or_else(|| self.chance.bytes(CHALLENGE));
        while challenge == other_than {
            challenge = self.chance.bytes(CHALLENGE);
        }
        challenge
    }

    /// Passes 3 and 4. `floor` is the lowest counter that was taken before the APDU around the answer: its own
    /// counter is usually lower than that one's.
    pub(super) fn reply_to_hls(
        &mut self,
        with: Association,
        floor: u32,
        answer: Option<&Value>,
    ) -> (u8, Option<Value>) {
        let given = if let Some(Value::Octets(given)) = answer { given.as_slice() } else { &[] };
        let confirmed = self.confirmed(with, floor, given);
        match confirmed {
            Some(ours) => {
                self.failures = 0;
                (result::SUCCESS, Some(Value::Octets(ours)))
            }
            None => {
                self.failed();
                self.end(with.client);
                (result::OTHER, None)
            }
        }
    }

    fn confirmed(&mut self, with: Association, floor: u32, given: &[u8]) -> Option<Vec<u8>> {
        let title = self.title;
        let session = self.sessions.get(&with.client)?;
        let Phase::Challenged { client, server } = session.phase.clone() else { return None };
        let setup = self.setup_mut(with.setup?)?;
        let (keys, suite) = (setup.keys().clone(), setup.suite);
        let under = Under {
            encryption: &keys.unicast,
            authentication: &keys.authentication,
            originator: with.title,
        };
        let counter = hls::counter_in(given)?;
        if counter < floor || !hls::answers(under, suite, &server, given) {
            return None;
        }
        // Pass 3 may come in plain: then its counter is the newest.
        let line = setup.line();
        line.taken(counter.max(line.expected().saturating_sub(1)));
        let ours = hls::answer(Under { originator: title, ..under }, suite, line.next()?, &client);
        if let Some(session) = self.sessions.get_mut(&with.client) {
            session.phase = Phase::Open;
        }
        ours
    }

    /// One failed authentication more.
    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        if let Some(lock) = self.dialect.lock
            && self.failures >= lock.failures
        {
            self.failures = 0;
            self.locked_until = self.clock + u64::from(lock.seconds);
        }
    }
}
