//! A game against somebody who may write the database, of a running and of a stopped service, and does
//! so at random: he never gets a wrong plaintext, nor an old state into use, and what he takes out of
//! service is named. `make adversary MOVES=2000 SEED=1` plays long ones; here they are short.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

#[path = "../common/mod.rs"]
mod common;
mod database;
mod moves;
#[path = "../../../kms-server/tests/postgres_common/mod.rs"]
mod postgres_common;
mod truth;
mod world;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use common::{Home, Numbers, blank_home};
use database::{Database, Dump};
use moves::Mover;
use postgres_common::{Cluster, USER};
use softhsm_tests::settings::quoted;
use world::World;

/// Moves of a short game.
const FEW: u64 = 12;
/// Within which one server's change counts at the others, and a little for a machine that is busy.
const HEARD: Duration = Duration::from_millis(1_500);
/// Of what was found, shown at the most.
const SHOWN: usize = 6;
/// Moves at the most before everything is put back.
const ROUND: u64 = 4;

#[expect(clippy::disallowed_methods, reason = "how long a game is to be played, and which")]
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What the game found.
#[derive(Default)]
struct Score {
    moves: u64,
    /// Moves that took a meter out of service, or kept a server from starting.
    mattered: u64,
    refused_starts: u64,
    probes: u64,
    in_window: u64,
    faults: Vec<String>,
}

struct Game {
    world: World,
    numbers: Numbers,
    score: Score,
    /// Of this round.
    history: Vec<String>,
    /// What was out at the last look, and what its server said.
    out: Vec<String>,
    /// The log was taken back in it, and the servers ran.
    log_went_back: bool,
    past: Vec<Dump>,
}

impl Game {
    async fn snapshot(&mut self) {
        let dump = self.world.database.dump(&self.world.tables).await;
        self.past.push(dump);
    }

    fn wrong(&mut self, what: String) {
        let history = self.history.join("\n    ");
        self.score.faults.push(format!("{what}\n  after:\n    {history}"));
    }

    /// Asks every server everything; whether all that ought to open does. What one server changed counts at
    /// the others within [`HEARD`]: what is wrong there is asked again after that.
    async fn probe(&mut self, window: bool) -> bool {
        let (mut whole, mut wrong) = self.look(window).await;
        if !wrong.is_empty() && self.world.nodes.len() > 1 {
            tokio::time::sleep(HEARD).await;
            (whole, wrong) = self.look(window).await;
        }
        for wrong in wrong {
            self.wrong(wrong);
        }
        whole
    }

    async fn look(&mut self, window: bool) -> (bool, Vec<String>) {
        let mut whole = true;
        let mut wrong = Vec::new();
        self.out.clear();
        for (number, node) in self.world.nodes.iter().enumerate() {
            let Some(client) = &node.client else {
                whole = false;
                self.out.push(format!("node {number}: {:?}", node.refused));
                if node
                    .refused
                    .as_deref()
                    .is_none_or(|said| !said.contains("ERROR") && said.len() < 40)
                {
                    wrong.push(format!("node {number} does not start and does not say why"));
                }
                continue;
            };
            let probes = self.world.truth.probes();
            let apdus = probes.iter().map(|probe| probe.apdu.clone()).collect::<Vec<_>>();
            let opened = client.decrypt_batch(apdus).await.unwrap();
            let mut missing = Vec::new();
            for (probe, opened) in probes.iter().zip(&opened) {
                self.score.probes += 1;
                if opened.verdict() != probe.expected {
                    missing.push(probe.meter);
                }
                if probe.is_right(opened) {
                    continue;
                }
                if window {
                    self.score.in_window += 1;
                } else {
                    let (what, expected) = (&probe.what, probe.expected);
                    wrong.push(format!("node {number}: {what}: {opened:?}, due {expected:?}"));
                }
            }
            if !missing.is_empty() {
                whole = false;
                missing.dedup();
                let faults = node.faults().await;
                self.out.push(format!("node {number}: {missing:?}, {faults:?}"));
                if !window && faults.is_empty() {
                    wrong.push(format!(
                        "node {number}: meters {missing:?} are out, no fault says so"
                    ));
                }
                if !window && node.alarms().is_empty() {
                    wrong.push(format!(
                        "node {number}: meters {missing:?} are out, no metric says so"
                    ));
                }
            }
        }
        (whole, wrong)
    }

    async fn round(&mut self, moves: u64) {
        self.world.reset().await;
        self.past.clear();
        self.history.clear();
        self.log_went_back = false;
        self.snapshot().await;
        self.world.start().await;
        for _ in 0..2 + self.numbers.below(3) {
            self.world.honest(&mut self.numbers, None).await;
            self.snapshot().await;
        }
        let whole = self.probe(false).await;
        assert!(whole, "an untouched site: {:?} {:?}", self.out, self.score.faults);
        for _ in 0..moves {
            let went_on = self.turn().await;
            if !went_on || !self.score.faults.is_empty() {
                return;
            }
        }
    }

    /// False: nothing can be said of the site any more until everything is put back.
    async fn turn(&mut self) -> bool {
        let now = self.world.database.dump(&self.world.tables).await;
        let past = self.past.clone();
        let mut mover = Mover {
            database: &self.world.database,
            tables: &self.world.tables,
            now: &now,
            past: &past,
            numbers: &mut self.numbers,
        };
        let Some(made) = mover.next() else { return true };
        let stopped = self.numbers.below(2) == 0;
        let kindly = self.numbers.below(2) == 0;
        if stopped {
            self.world.stop(kindly);
        }
        if self.world.database.write(&made.statements).await.is_err() {
            // The schema does not let him: no move.
            if stopped {
                self.world.start().await;
            }
            return true;
        }
        self.score.moves += 1;
        let state = match (stopped, kindly) {
            (false, _) => "running",
            (true, true) => "stopped",
            (true, false) => "killed",
        };
        self.history.push(format!("{} ({state})", made.what));
        // DESIGN §3, Freshness: what one server alone has witnessed, the others can't know once they were
        // all down.
        self.log_went_back |= made.whole;
        let window = stopped && self.log_went_back && self.world.nodes.len() > 1;
        if stopped {
            self.world.start().await;
        } else if self.numbers.below(2) == 0 {
            // The others of a shared database look by themselves.
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        let mut whole = self.probe(window).await;
        self.world.honest(&mut self.numbers, Some(&made.blocks)).await;
        whole &= self.probe(window).await;
        if !whole {
            self.score.mattered += 1;
            let refused = self.world.nodes.iter().filter(|node| node.refused.is_some()).count();
            self.score.refused_starts += refused as u64;
        }
        !window
    }
}

async fn play(world: World) {
    let moves = number("MOVES").unwrap_or(FEW);
    let seed = number("SEED").unwrap_or(1);
    let began = std::time::Instant::now();
    let mut game = Game {
        world,
        numbers: Numbers(seed),
        score: Score::default(),
        history: Vec::new(),
        out: Vec::new(),
        log_went_back: false,
        past: Vec::new(),
    };
    let mut rounds = 0;
    while game.score.moves < moves && game.score.faults.is_empty() {
        let length = (1 + game.numbers.below(ROUND)).min(moves - game.score.moves);
        game.round(length).await;
        rounds += 1;
        if rounds % 25 == 0 {
            println!("{} moves", game.score.moves);
        }
    }
    let (asked, score) = (moves, game.score);
    let Score { moves, mattered, refused_starts, probes, in_window, faults } = score;
    println!(
        "seed {seed}: {moves} moves in {rounds} rounds, {mattered} mattered ({refused_starts} starts \
         refused), {probes} frames, {} wrong, {in_window} in the window of a rolled-back log; {:.0} s",
        faults.len(),
        began.elapsed().as_secs_f64()
    );
    let shown = faults[..faults.len().min(SHOWN)].join("\n");
    assert!(
        faults.is_empty(),
        "MOVES={asked} SEED={seed}: {} wrong, such as\n{shown}",
        faults.len()
    );
    assert!(mattered > 0, "no move did anything: that was no game");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_of_sqlite_gets_no_wrong_plaintext_and_no_old_state() {
    let (metrics, listen) = watched();
    let home = common::home_with(&[("metrics", "listen", &listen)]);
    let database = Database::sqlite(&home.places().data);
    play(World::make(vec![(home, metrics)], database).await).await;
}

/// Where metrics will be, and the setting for it.
fn watched() -> (SocketAddr, String) {
    let address = common::free_address();
    (address, quoted(&address.to_string()))
}

fn over(cluster: &Cluster, tokens: Option<&Home>) -> (Home, SocketAddr) {
    let (metrics, listen) = watched();
    let sockets = quoted(&cluster.sockets().display().to_string());
    let (port, user) = (cluster.port().to_string(), quoted(USER));
    let mut settings = vec![
        ("store", "kind", "\"postgresql\""),
        ("store", "path", ""),
        ("store", "host", &*sockets),
        ("store", "port", &*port),
        ("store", "database", "\"ami\""),
        ("store", "user", &*user),
        ("store", "allow_no_tls", "true"),
        ("metrics", "listen", &*listen),
    ];
    let token_dir = tokens.map(|first| quoted(&first.places().tokens.display().to_string()));
    if let Some(token_dir) = &token_dir {
        settings.push(("hsm", "token_dir", token_dir));
    }
    let home = blank_home(&settings);
    if let Some(first) = tokens {
        for part in ["secrets", "certificates"] {
            let target = home.places().dir.join(part);
            std::fs::remove_dir_all(&target).unwrap();
            common::copy(&first.places().dir.join(part), &target);
        }
        std::fs::copy(&first.places().softhsm_conf, &home.places().softhsm_conf).unwrap();
    } else {
        home.init().unwrap();
    }
    (home, metrics)
}

async fn play_on_postgresql(nodes: usize) {
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    let mut homes = vec![over(&cluster, None)];
    for _ in 1..nodes {
        homes.push(over(&cluster, homes.first().map(|(home, _)| home)));
    }
    play(World::make(homes, Database::Postgres(Arc::new(cluster))).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_of_postgresql_gets_no_wrong_plaintext_and_no_old_state() {
    play_on_postgresql(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_below_three_servers_gets_no_wrong_plaintext_and_no_old_state() {
    play_on_postgresql(3).await;
}
