//! One APDU in, one or none out.

use crate::{
    acse::{Opening, RELEASED},
    dialect::{AfterTransfer, Answer, Policy},
    frame::{Envelope, Frame, Under, control, seal},
    keys::Keys,
    meter::{
        objects::{Served, date_time},
        setup::Changes,
        state::{Association, Mechanism, Meter, Phase},
    },
    service::{Exception, REPLY_TO_HLS, Request},
    value::Value,
};

const AARQ: u8 = 0x60;
const RLRQ: u8 = 0x62;
const DATA_NOTIFICATION: u8 = 0x0f;

impl Meter {
    /// Takes one APDU from a client's address. An address that is nobody's, and what is broadcast, are not answered.
    pub fn receive(&mut self, client: u16, apdu: &[u8]) -> Option<Vec<u8>> {
        let with = *self.associations.iter().find(|it| it.client == client)?;
        match *apdu.first()? {
            RLRQ => {
                self.end(client);
                Some(RELEASED.to_vec())
            }
            AARQ if with.mechanism == Mechanism::PreEstablished => None,
            AARQ => Some(self.associate(with, &Opening::read(apdu)?)),
            _ => match Frame::read(apdu) {
                Some(frame) if frame.control & control::BROADCAST != 0 => {
                    self.broadcast(with, &frame);
                    None
                }
                Some(frame) => self.ciphered(with, &frame),
                None => Some(self.plain(with, apdu)),
            },
        }
    }

    fn broadcast(&mut self, with: Association, frame: &Frame) {
        let Ok(unlocked) = self.unlock(with, frame) else { return };
        // Keys come to one meter and are answered for.
        if let Some(request @ Request::Set { .. }) = Request::read(&unlocked.plain) {
            self.serve(with, unlocked.floor, request);
        }
    }

    fn ciphered(&mut self, with: Association, frame: &Frame) -> Option<Vec<u8>> {
        let Some(session) = self.sessions.get(&with.client) else {
            return Some(Exception::NotAllowed.write());
        };
        let challenged = matches!(session.phase, Phase::Challenged { .. });
        let unlocked = match self.unlock(with, frame) {
            Ok(unlocked) => unlocked,
            Err(exception) => {
                if challenged {
                    self.failed();
                    self.end(with.client);
                }
                return Some(exception.write());
            }
        };
        let keys = self.setup(with.setup?)?.keys().clone();
        let plain = match Request::read(&unlocked.plain) {
            None => Exception::NotSupported.write(),
            Some(request) if challenged && !is_reply_to_hls(&request) => {
                return Some(Exception::NotAllowed.write());
            }
            Some(request) => {
                let Served { response, transfer } = self.serve(with, unlocked.floor, request);
                let plain = response.write();
                match transfer {
                    Some((setup, changes)) => {
                        return self.transferred(with, frame, (setup, changes), &plain);
                    }
                    None => plain,
                }
            }
        };
        self.protect(with, frame, &keys, &plain)
    }

    /// Answers a transfer, and lets the keys count.
    fn transferred(
        &mut self,
        with: Association,
        asked: &Frame,
        (instance, changes): (u8, Changes),
        plain: &[u8],
    ) -> Option<Vec<u8>> {
        let keys = self.answering(with, instance, &changes)?;
        let answer = match self.dialect.answer {
            Answer::Plain => Some(plain.to_vec()),
            Answer::Old | Answer::New => self.protect(with, asked, &keys, plain),
        };
        self.settle(with, instance, changes);
        if self.dialect.after_transfer == AfterTransfer::Drops {
            self.end(with.client);
        }
        answer
    }

    /// The keys of the answer to a transfer. What it did to another setup changes nothing here.
    fn answering(&self, with: Association, instance: u8, changes: &Changes) -> Option<Keys> {
        let own = self.setup(with.setup?)?;
        let new = self.dialect.answer == Answer::New && own.instance == instance;
        Some(if new { own.changed(changes) } else { own.keys().clone() })
    }

    /// A plain service: of a client without a setup, under a policy that asks for nothing, and pass 3.
    fn plain(&mut self, with: Association, apdu: &[u8]) -> Vec<u8> {
        let (Some(session), Some(request)) = (self.sessions.get(&with.client), Request::read(apdu))
        else {
            return Exception::NotAllowed.write();
        };
        let challenged = matches!(session.phase, Phase::Challenged { .. });
        let free = with.setup.is_none() || self.dialect.policy == Policy::Nothing;
        let pass_three = challenged && is_reply_to_hls(&request);
        if !pass_three && (challenged || !free) {
            return Exception::NotAllowed.write();
        }
        let floor =
            with.setup.and_then(|it| self.setup_mut(it)).map_or(0, |it| it.line().expected());
        let Served { response, transfer } = self.serve(with, floor, request);
        if let Some((instance, changes)) = transfer {
            self.settle(with, instance, changes);
            if self.dialect.after_transfer == AfterTransfer::Drops {
                self.end(with.client);
            }
        }
        response.write()
    }

    /// A DataNotification that the meter sends by itself, protected as its policy has it.
    pub fn push(&mut self, setup: u8) -> Option<Vec<u8>> {
        let (title, policy) = (self.title, self.dialect.policy);
        self.pushes += 1;
        let mut plain = vec![DATA_NOTIFICATION];
        plain.extend((self.pushes & 0x00ff_ffff).to_be_bytes());
        plain.push(0);
        let body = vec![Value::Octets(date_time(self.clock)), Value::U32(self.pushes)];
        Value::Structure(body).write(&mut plain);
        if policy == Policy::Nothing {
            return Some(plain);
        }
        let setup = self.setup_mut(setup)?;
        let keys = setup.keys().clone();
        let head = (policy.bits() | setup.suite, setup.line().next()?);
        let under = Under {
            encryption: &keys.unicast,
            authentication: &keys.authentication,
            originator: title,
        };
        seal(&Envelope::GeneralGlo, head, under, title, &plain)
    }
}

fn is_reply_to_hls(request: &Request) -> bool {
    matches!(request, Request::Act { at, .. } if *at == REPLY_TO_HLS)
}
