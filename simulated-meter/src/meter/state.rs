//! A meter: what lasts through a restart, and what does not.

use std::collections::BTreeMap;

use crate::{
    chance::Chance,
    dialect::Dialect,
    keys::{KeyId, Keys, Title},
    meter::{
        line::Line,
        setup::{Changes, Setup, SetupOf},
    },
};

/// How a client shows who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// The association is always there: pre-established.
    PreEstablished,
    /// It is opened without any proof.
    Lowest,
    /// Mechanism 5, GMAC.
    Gmac,
}

/// Who may talk to a meter, and in what manner.
#[derive(Clone, Copy, Debug)]
pub struct Association {
    /// The client's address.
    pub client: u16,
    /// Its title, as the meter knows it: that of glo- and ded- forms.
    pub title: Title,
    /// Instance of its security setup. Without one it reads counters and clock, in plain.
    pub setup: Option<u8>,
    /// How it authenticates.
    pub mechanism: Mechanism,
    /// Whether it may change keys of other setups than its own.
    pub manages: bool,
}

/// What a meter is told to be.
#[derive(Clone, Debug)]
pub struct Ordered {
    /// Its title.
    pub title: Title,
    /// Its ways.
    pub dialect: Dialect,
    /// Its security setups.
    pub setups: Vec<SetupOf>,
    /// Its associations.
    pub associations: Vec<Association>,
    /// What its challenges come from.
    pub seed: u64,
    /// What its clock shows, in seconds since 1970.
    pub clock: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// Passes 1 and 2 were made; the challenges of client and server.
    Challenged {
        client: Vec<u8>,
        server: Vec<u8>,
    },
    Open,
}

#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) phase: Phase,
    pub(super) dedicated: Option<(Vec<u8>, Line)>,
    /// Keys that count when it ends, by setup.
    pub(super) at_release: Vec<(u8, Changes)>,
}

impl Session {
    pub(super) fn new(phase: Phase) -> Self {
        Self { phase, dedicated: None, at_release: Vec::new() }
    }
}

/// A simulated meter. A clone of it is a second meter with the same past.
#[derive(Clone, Debug)]
pub struct Meter {
    pub(super) title: Title,
    pub(super) dialect: Dialect,
    pub(super) setups: Vec<Setup>,
    pub(super) associations: Vec<Association>,
    pub(super) chance: Chance,
    pub(super) clock: u64,
    pub(super) label: Vec<u8>,
    pub(super) failures: u8,
    pub(super) locked_until: u64,
    pub(super) pushes: u32,
    pub(super) next_challenge: Option<Vec<u8>>,
    // Gone with a restart.
    pub(super) sessions: BTreeMap<u16, Session>,
}

impl Meter {
    /// A meter as it leaves the factory.
    pub fn new(order: Ordered) -> Self {
        let setups = order.setups.into_iter().map(|it| Setup::new(it, &order.dialect)).collect();
        let mut meter = Self {
            title: order.title,
            dialect: order.dialect,
            setups,
            associations: order.associations,
            chance: Chance::new(order.seed),
            clock: order.clock,
            label: b"as delivered".to_vec(),
            failures: 0,
            locked_until: 0,
            pushes: 0,
            next_challenge: None,
            sessions: BTreeMap::new(),
        };
        meter.pre_establish();
        meter
    }

    fn pre_establish(&mut self) {
        let always =
            self.associations.iter().filter(|it| it.mechanism == Mechanism::PreEstablished);
        self.sessions = always.map(|it| (it.client, Session::new(Phase::Open))).collect();
    }

    /// An orderly restart: keys in use are what the next power loss finds.
    pub fn reboot(&mut self) {
        self.restart(true);
    }

    /// Power goes and comes back.
    pub fn lose_power(&mut self) {
        self.restart(false);
    }

    fn restart(&mut self, orderly: bool) {
        self.pre_establish();
        self.setups.iter_mut().for_each(|setup| setup.restart(orderly));
    }

    /// Time passes.
    pub fn pass(&mut self, seconds: u64) {
        self.clock += seconds;
    }

    /// What the clock shows, in seconds since 1970.
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// The label: the object that SET is tried on.
    pub fn label(&self) -> &[u8] {
        &self.label
    }

    /// The title.
    pub fn title(&self) -> Title {
        self.title
    }

    /// The keys that a setup uses now. What a check holds against what the service believes.
    pub fn keys(&self, setup: u8) -> Option<&Keys> {
        self.setup(setup).map(Setup::keys)
    }

    /// Keys of a setup that were taken and do not count yet: at an association's end, or after a restart.
    pub fn waiting(&self, setup: u8) -> Vec<(KeyId, Vec<u8>)> {
        let at_release = self.sessions.values().flat_map(|it| &it.at_release);
        let mut found: Changes = at_release
            .filter(|(its, _)| *its == setup)
            .flat_map(|(_, changes)| changes.clone())
            .collect();
        found.extend(self.setup(setup).into_iter().flat_map(|it| it.waiting().clone()));
        found
    }

    /// Whether a client's association is open.
    pub fn is_open(&self, client: u16) -> bool {
        self.sessions.get(&client).is_some_and(|it| matches!(it.phase, Phase::Open))
    }

    /// Until when no association is opened, in seconds since 1970.
    pub fn locked_until(&self) -> u64 {
        self.locked_until
    }

    /// Makes the next challenge this one: for published examples.
    pub fn challenge_next(&mut self, challenge: &[u8]) {
        self.next_challenge = Some(challenge.to_vec());
    }

    pub(super) fn setup(&self, instance: u8) -> Option<&Setup> {
        self.setups.iter().find(|it| it.instance == instance)
    }

    pub(super) fn setup_mut(&mut self, instance: u8) -> Option<&mut Setup> {
        self.setups.iter_mut().find(|it| it.instance == instance)
    }

    /// The association of a client ends, however it does: what was to count then counts now.
    pub(super) fn end(&mut self, client: u16) {
        let Some(session) = self.sessions.remove(&client) else { return };
        for (instance, changes) in session.at_release {
            let dialect = self.dialect;
            if let Some(setup) = self.setup_mut(instance) {
                setup.apply(&changes, &dialect);
            }
        }
        let always = |it: &&Association| it.client == client;
        let kept = self.associations.iter().find(always).map(|it| it.mechanism);
        if kept == Some(Mechanism::PreEstablished) {
            self.sessions.insert(client, Session::new(Phase::Open));
        }
    }
}
