//! The world of one history: sites, the network, time and chance. Here what it is made of; what its nodes do stands in
//! `acting`, `replicating`, `roles` and `counting`, what befalls it in `events`.

use std::rc::Rc;

use kms_core::{
    BlockNo, DomainRecord,
    freshness::Freshness,
    replication::following::{Input, Output, PeerCard},
    site::role::Standing,
};

use crate::{
    chance::Chance,
    evidence::Proving,
    fault::{Fault, Hit, Hits},
    mutation::Mutation,
    net::{Body, Message},
    realm::Realm,
    site::{Database, NODES, Node, Place, REPLICA, SITES, Task},
    truth::{Broken, Truth},
};

/// Messages that may come once more.
const REMEMBERED: usize = 48;

/// The world of one history.
pub(crate) struct World<'a> {
    pub(crate) realm: &'a Realm,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) chance: Chance,
    /// Of 100 faults that were drawn so many do not happen: histories are of all weathers.
    pub(crate) calm: usize,
    /// It begins with sites that are in step and have sent to all meters, and much is sent.
    pub(crate) busy: bool,
    /// Thousands of counters go out at a time, and most reservations are made at once.
    pub(crate) many: bool,
    /// Milliseconds since it began.
    pub(crate) ms: u64,
    /// Milliseconds by which the wall clock jumped.
    pub(crate) jumped_ms: u64,
    pub(crate) domains: Vec<DomainRecord>,
    pub(crate) sites: Vec<Database>,
    pub(crate) backups: Vec<Database>,
    pub(crate) standbys: Vec<Database>,
    pub(crate) nodes: Vec<Vec<Node>>,
    pub(crate) net: Vec<Message>,
    pub(crate) remembered: Vec<Message>,
    /// Sites that don't reach each other.
    pub(crate) cut: [[bool; SITES]; SITES],
    pub(crate) numbers: u64,
    pub(crate) truth: Truth,
    pub(crate) hits: Hits,
    /// What happened, in words; `None`: nobody wants to read it.
    pub(crate) story: Option<Vec<String>>,
    /// The site whose database this step rolled back.
    pub(crate) rolled_back: Option<usize>,
    /// Lines that the base of the older form is kept for, at each site.
    pub(crate) bases: Vec<std::collections::BTreeMap<kms_core::counters::LineName, u64>>,
    /// Proofs of readiness.
    pub(crate) proving: Proving,
}

impl<'a> World<'a> {
    /// The world at its beginning.
    pub(crate) fn new(realm: &'a Realm, seed: u64, mutation: Option<Mutation>) -> Self {
        let domains: Vec<DomainRecord> = (0..SITES).map(|site| realm.domain(site)).collect();
        let sites: Vec<Database> = (0..SITES).map(|site| Database::new(site, realm)).collect();
        let mut truth = Truth::default();
        truth.epoch = crate::realm::FOUNDING;
        sites.iter().flat_map(|site| &site.blocks).for_each(|state| truth.found(state));
        let mut chance = Chance::new(seed);
        let calm = [0, 60, 85, 95][chance.below(4)];
        let busy = chance.percent(50);
        let mut world = Self {
            realm,
            mutation,
            chance,
            calm,
            busy,
            many: false,
            ms: 1_000,
            jumped_ms: 0,
            domains,
            backups: sites.clone(),
            standbys: sites.clone(),
            sites,
            nodes: Vec::new(),
            net: Vec::new(),
            remembered: Vec::new(),
            cut: [[false; SITES]; SITES],
            numbers: 0,
            truth,
            hits: Hits::default(),
            story: None,
            rolled_back: None,
            bases: vec![Default::default(); SITES],
            proving: Proving::new(seed),
        };
        for site in 0..SITES {
            let start = |node| Node::start(Place { site, node }, world.standing(site));
            let nodes = (0..NODES).map(start).collect();
            world.nodes.push(nodes);
        }
        world.all_places().for_each(|place| world.start(place));
        world
    }

    pub(crate) fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    pub(crate) fn all_places(&self) -> impl Iterator<Item = Place> + use<> {
        (0..SITES).flat_map(|site| (0..NODES).map(move |node| Place { site, node }))
    }

    pub(crate) fn node(&mut self, place: Place) -> &mut Node {
        &mut self.nodes[place.site][place.node]
    }

    pub(crate) fn any_place(&mut self) -> Place {
        Place { site: self.chance.below(SITES), node: self.chance.below(NODES) }
    }

    /// A node of those that this holds for, if there is one.
    pub(crate) fn any_that(&mut self, holds: impl Fn(&Node) -> bool) -> Option<Place> {
        let all = self.all_places();
        let found: Vec<Place> =
            all.filter(|place| holds(&self.nodes[place.site][place.node])).collect();
        found.get(self.chance.below(found.len())).copied()
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// The standing of a site according to its database.
    pub(crate) fn standing(&self, site: usize) -> Standing {
        let db = &self.sites[site];
        let standing = Standing::of(&self.domains[site], &db.roles);
        let standing = if site == REPLICA { standing.of_replica() } else { standing };
        // What the row says counts, too: a site that was rolled back does not write.
        let open = standing.open && (db.admits(standing.epoch) || !standing.writes());
        Standing { open, ..standing }
    }

    /// Tells what happened, if somebody wants to read it.
    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        let ms = self.ms;
        if let Some(story) = &mut self.story {
            story.push(format!("{ms:>8} {}", what()));
        }
    }

    /// What befalls a site is counted by the state that it is in.
    pub(crate) fn hit(&mut self, fault: Fault, site: usize) {
        let db = &self.sites[site];
        let hit = match db {
            _ if site == REPLICA => Hit::Replica,
            db if db.restored => Hit::Restored,
            db if db.writes && db.epoch < self.truth.epoch => Hit::Replaced,
            db if db.writes => Hit::Primary,
            _ => Hit::Secondary,
        };
        self.hits.count(fault, hit);
        self.note(|| format!("{fault} hits site {site}, {hit}"));
    }

    /// A node starts, and sees its role.
    pub(crate) fn start(&mut self, place: Place) {
        let standing = self.standing(place.site);
        *self.node(place) = Node::start(place, standing);
        self.look(place);
    }

    /// A node looks at the role in its database.
    pub(crate) fn look(&mut self, place: Place) {
        let standing = self.standing(place.site);
        let transmits = standing.writes().then_some(standing.epoch);
        let timeline = self.truth.rollbacks[place.site];
        let node = self.node(place);
        node.standing = standing;
        // On another timeline what it remembers of blocks is of a past that is not.
        if node.timeline != timeline {
            node.timeline = timeline;
            node.freshness = Freshness::default();
            node.acknowledged.iter_mut().for_each(|known| *known = None);
            // The lock under which it follows was lost with its connection to the database, and what followers were sent
            // may never have been: both begin anew.
            let followers = node.followers.iter().map(|(number, _, _)| *number);
            let lost: Vec<u64> =
                node.connection.iter().map(|(number, _)| *number).chain(followers).collect();
            lost.into_iter().for_each(|number| self.break_connection(number));
        }
        let node = self.node(place);
        node.allocators.iter_mut().for_each(|allocator| allocator.stand(transmits));
        self.feed(place, Input::Role(standing));
    }

    pub(crate) fn card(&self, site: usize) -> PeerCard {
        PeerCard { epoch: self.sites[site].epoch, writes: self.sites[site].writes }
    }

    pub(crate) fn send(&mut self, from: Place, to: Place, connection: Option<u64>, body: Body) {
        let card = self.card(from.site);
        let message = Message { from, to, connection, card, body, tampered: false };
        if self.cut[from.site][to.site] {
            self.lose(&message);
            return;
        }
        if self.remembered.len() == REMEMBERED {
            self.remembered.remove(0);
        }
        self.remembered.push(message.clone());
        self.net.push(message);
    }

    /// A message is lost: so is its connection, and a call ends with an error.
    pub(crate) fn lose(&mut self, message: &Message) {
        if let Some(number) = message.connection {
            self.break_connection(number);
        }
        if let Body::AskWhole(block) = message.body {
            self.node(message.from).tasks.push(Task::NoWhole(block));
        }
        if let Body::Whole(head, _) = &message.body {
            let block: BlockNo = head.block;
            self.node(message.to).tasks.push(Task::NoWhole(block));
        }
    }

    /// Both ends of a connection will learn that it is lost, the follower's in its own time.
    pub(crate) fn break_connection(&mut self, number: u64) {
        for nodes in &mut self.nodes {
            for node in nodes {
                node.followers.retain(|(of, _, _)| *of != number);
                if node.connection.is_some_and(|(of, _)| of == number) {
                    node.connection = None;
                    node.tasks.push(Task::Lost);
                }
            }
        }
    }

    /// A process ends: all that it had in memory is gone.
    pub(crate) fn stop(&mut self, place: Place) {
        let node = self.node(place);
        node.up = false;
        node.tasks.clear();
        let mut lost: Vec<u64> = node.followers.drain(..).map(|(number, _, _)| number).collect();
        lost.extend(node.connection.take().map(|(number, _)| number));
        lost.into_iter().for_each(|number| self.break_connection(number));
    }

    /// Has the follower of a node take what happened, and does what it asks for.
    pub(crate) fn feed(&mut self, place: Place, input: Input) {
        let ms = self.ms;
        let node = self.node(place);
        let now = node.now(ms);
        for output in node.follower.step(now, input) {
            self.obey(place, output);
        }
    }

    fn obey(&mut self, place: Place, output: Output) {
        let connection = self.node(place).connection;
        let tell = |world: &mut Self, body| {
            if let Some((number, peer)) = connection {
                world.send(place, peer, Some(number), body);
            }
        };
        match output {
            Output::Connect => self.node(place).tasks.push(Task::Connect),
            Output::Hello => {
                let db = &self.sites[place.site];
                let hello = Body::Hello(db.heads(), db.raised.clone());
                tell(self, hello);
            }
            Output::AskRoleRecords(_) => tell(self, Body::AskRoles),
            Output::Adopt(update) => self.node(place).tasks.push(Task::Adopt(Box::new(update))),
            Output::AskWhole(block) => tell(self, Body::AskWhole(block)),
            Output::Acknowledge(mark) => {
                let raised = self.sites[place.site].raised.clone();
                tell(self, Body::Stored(mark, raised));
            }
            Output::Disconnect => {
                if let Some((number, _)) = self.node(place).connection.take() {
                    self.break_connection(number);
                }
            }
            // Nobody has to wait for room in a history.
            Output::Wait(..) | Output::Report(..) | Output::LetGo(_) => {}
        }
    }

    /// What must hold after each step.
    pub(crate) fn check(&mut self) -> Result<(), Broken> {
        self.check_ready()?;
        let writers: Vec<&Database> = self.sites.iter().take(2).collect();
        self.truth.nothing_is_lost(&writers, self.rolled_back.take())
    }

    /// Changes a site's block, in a transaction that has been decided on.
    pub(crate) fn put_block(&mut self, site: usize, state: Rc<crate::site::State>) {
        let block = state.head.block.0 as usize;
        self.sites[site].blocks[block] = state;
    }
}
