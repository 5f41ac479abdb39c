//! A small head-end and service that change GUEK and GAK as they should, and three ways to do it wrong.

use crate::common::{CHALLENGE, CLIENT, MANAGES, METER, keys, one_setup, order};
use simulated_meter::{
    Dialect, HeadEnd, KeyId, Keys, Ledger, Meter, acse,
    cuts::{Cut, Drive, Step},
    service::Request,
    wrap,
};

/// What is done wrong on purpose.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mistake {
    None,
    /// The counter is stored behind its use.
    CounterStoredLate,
    /// The staged keys are at the site that made them alone.
    Unreplicated,
    /// Who starts anew makes new keys.
    MakesOthers,
}

/// What a site has on disk.
#[derive(Clone)]
struct Stored {
    staged: Option<Keys>,
    counter: u32,
    transfers: u32,
}

/// What is gone with the process.
#[derive(Clone, Copy)]
enum Now {
    Open,
    Answer,
    Opened,
    Release,
}

const TRANSFERS_MAX: u32 = 3;

pub(crate) struct Careful {
    mistake: Mistake,
    meter: Meter,
    sites: [Stored; 2],
    writes: usize,
    ledger: Ledger,
    made: u8,
    now: Now,
    /// Which of the four pairs is tried, or was found.
    pair: usize,
    accepted: Vec<u8>,
    counter: u32,
}

/// Old and new of GUEK and GAK, those first that are likely.
const PAIRS: [(bool, bool); 4] = [(true, true), (false, false), (true, false), (false, true)];

impl Careful {
    pub(crate) fn new(mistake: Mistake) -> Self {
        let stored = Stored { staged: None, counter: 1, transfers: 0 };
        Self {
            mistake,
            meter: Meter::new(order(Dialect::BY_THE_BOOK, one_setup(0, keys(0, 0)))),
            sites: [stored.clone(), stored],
            writes: 0,
            ledger: Ledger::default(),
            made: 0,
            now: Now::Open,
            pair: 1,
            accepted: Vec::new(),
            counter: 1,
        }
    }

    /// Whether the meter has both new keys.
    pub(crate) fn has_changed(&self) -> bool {
        let (has, staged) = (self.meter.keys(0).unwrap(), self.stored().staged.as_ref().unwrap());
        has.unicast == staged.unicast && has.authentication == staged.authentication
    }

    fn stored(&self) -> &Stored {
        &self.sites[self.writes]
    }

    fn store(&mut self, change: impl Fn(&mut Stored)) {
        self.sites.iter_mut().for_each(change);
    }

    /// Keys are made once, and are at both sites before a meter hears of them.
    fn stage(&mut self) {
        if self.stored().staged.is_some() && self.mistake != Mistake::MakesOthers {
            return;
        }
        self.made += 1;
        let mut made = keys(0, 0x80);
        made.unicast[0] = self.made;
        made.authentication[0] = self.made;
        self.ledger.learn_encryption(METER, &made.unicast);
        self.ledger.learn_authentication(METER, &made.authentication);
        if self.mistake == Mistake::Unreplicated {
            let writes = self.writes;
            self.sites[writes].staged = Some(made);
        } else {
            self.store(|it| it.staged = Some(made.clone()));
        }
    }

    fn start_anew(&mut self) {
        self.now = Now::Open;
        self.pair = 0;
        self.counter = self.stored().counter;
        self.stage();
    }

    fn keys_of(&self, pair: usize) -> Keys {
        let mut of = keys(0, 0);
        if let Some(staged) = &self.stored().staged {
            let (unicast, authentication) = PAIRS[pair];
            if unicast {
                of.unicast.clone_from(&staged.unicast);
            }
            if authentication {
                of.authentication.clone_from(&staged.authentication);
            }
        }
        of
    }

    fn head_end(&self) -> HeadEnd {
        let mut head_end = HeadEnd::new(CLIENT, METER, 0, self.keys_of(self.pair));
        head_end.counter = self.counter;
        head_end
    }

    /// One line for all keys: whether the meter begins again or goes on need not be known.
    fn counted(&mut self, head_end: &HeadEnd) {
        self.counter = head_end.counter;
        if self.mistake != Mistake::CounterStoredLate {
            let counter = self.counter;
            self.store(|it| it.counter = counter);
        }
    }

    /// A message to the meter and back, and what befalls it.
    fn exchange(&mut self, asked: &[u8], cut: Option<Cut>) -> Option<Vec<u8>> {
        self.ledger.read(METER, CLIENT, asked);
        if matches!(cut, Some(Cut::RequestLost | Cut::ServerKilled)) {
            return None;
        }
        let said = self.meter.receive(MANAGES, asked);
        if let Some(said) = &said {
            self.ledger.read(METER, METER, said);
        }
        match cut {
            Some(Cut::PowerLost) => self.meter.lose_power(),
            Some(Cut::Rebooted) => self.meter.reboot(),
            Some(_) => return None,
            None => {}
        }
        said
    }

    /// The keys of the staged pair that the meter did not yet show.
    fn missing(&self) -> Vec<KeyId> {
        let (unicast, authentication) = PAIRS[self.pair];
        let ids = [(unicast, KeyId::Unicast), (authentication, KeyId::Authentication)];
        ids.into_iter().filter(|(has, _)| !has).map(|(_, id)| id).collect()
    }

    fn transfer(&self) -> Request {
        let staged = self.stored().staged.as_ref().unwrap();
        let kek = keys(0, 0).kek;
        let wrapped = |id: KeyId| (id, wrap::wrap(&kek, staged.key(id)).unwrap());
        Request::transfer(0, &self.missing().into_iter().map(wrapped).collect::<Vec<_>>())
    }

    fn open(&mut self, cut: Option<Cut>) {
        let asked = self.head_end().associate(CHALLENGE);
        let said = self.exchange(&asked, cut);
        match said.as_deref().and_then(acse::Opening::read) {
            Some(opening) if opening.result == Some(0) => {
                self.accepted = said.unwrap_or_default();
                self.now = Now::Answer;
            }
            // Locked: it is waited for.
            _ => self.meter.pass(u64::from(Dialect::LOCK.seconds)),
        }
    }

    fn answer(&mut self, cut: Option<Cut>) {
        let mut head_end = self.head_end();
        let asked = head_end.answer(&self.accepted).unwrap();
        self.counted(&head_end);
        let said = self.exchange(&asked, cut);
        if said.is_some_and(|it| head_end.confirmed(CHALLENGE, &it)) {
            self.now = Now::Opened;
        } else {
            self.now = Now::Open;
            self.pair = (self.pair + 1) % PAIRS.len();
        }
    }

    /// The pair is proved. All that is due is there, or was sent as often as it is sent; else it is sent.
    fn opened(&mut self, cut: Option<Cut>) -> Step {
        if self.missing().is_empty() || self.stored().transfers == TRANSFERS_MAX {
            return Step::Done;
        }
        let mut head_end = self.head_end();
        let asked = head_end.ask(&self.transfer()).unwrap();
        self.counted(&head_end);
        self.store(|it| it.transfers += 1);
        // What it says is a hint: the next association tells.
        self.exchange(&asked, cut);
        self.now = Now::Release;
        Step::More
    }
}

impl Drive for Careful {
    type Trouble = std::convert::Infallible;

    fn begin(&mut self, dialect: &Dialect) -> Result<(), Self::Trouble> {
        *self = Self::new(self.mistake);
        self.meter = Meter::new(order(*dialect, one_setup(0, keys(0, 0))));
        let old = keys(0, 0);
        self.ledger.learn_encryption(METER, &old.unicast);
        self.ledger.learn_authentication(METER, &old.authentication);
        self.stage();
        Ok(())
    }

    fn step(&mut self, cut: Option<Cut>) -> Result<Step, Self::Trouble> {
        let mut step = Step::More;
        match self.now {
            Now::Open => self.open(cut),
            Now::Answer => self.answer(cut),
            Now::Opened => step = self.opened(cut),
            Now::Release => {
                self.exchange(&acse::RELEASE, cut);
                self.now = Now::Open;
                self.pair = 0;
            }
        }
        if matches!(cut, Some(Cut::HeadEndKilled | Cut::ServerKilled | Cut::Failover)) {
            self.writes = if cut == Some(Cut::Failover) { 1 } else { self.writes };
            self.start_anew();
            step = Step::More;
        }
        Ok(step)
    }

    fn judge(&mut self) -> Result<Vec<String>, Self::Trouble> {
        let mut complaints = Vec::new();
        self.meter.reboot();
        self.counter = self.stored().counter.max(self.counter);
        let mut reached = false;
        for pair in 0..PAIRS.len() {
            self.meter.pass(u64::from(Dialect::LOCK.seconds));
            self.pair = pair;
            self.now = Now::Open;
            self.open(None);
            self.answer(None);
            reached |= matches!(self.now, Now::Opened);
        }
        if !reached {
            complaints.push("no pair of keys that is held reaches the meter".to_owned());
        }
        let (has, old) = (self.meter.keys(0).unwrap(), keys(0, 0));
        let held = |id: KeyId| {
            let staged = self.stored().staged.as_ref().is_some_and(|it| it.key(id) == has.key(id));
            staged || old.key(id) == has.key(id)
        };
        if !held(KeyId::Unicast) || !held(KeyId::Authentication) {
            complaints.push("the meter has a key that nobody holds".to_owned());
        }
        if self.ledger.reused() > 0 {
            complaints.push(format!("{} nonces were used twice", self.ledger.reused()));
        }
        if self.ledger.unread() > 0 || self.ledger.pairs() == 0 {
            complaints.push("the ledger could not read what was sent".to_owned());
        }
        Ok(complaints)
    }
}
