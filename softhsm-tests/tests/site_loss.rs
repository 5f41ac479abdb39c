//! Two sites as operators run them: real servers, each with a SoftHSM token and a SQLite database of its own,
//! joined by the ceremony. One is killed, frozen, promoted and taken back; nothing is lost without being told, and
//! their blocks end byte for byte the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::time::Duration;

use common::{
    eventually,
    fleet::{
        GAK, GUEK, PLAIN, add, apdu, id, import_with, line, line_in_hsm, parsed, push, push_with,
        value,
    },
};
use kms_client::{CallError, ClientConfig, ImportRules, KmsClient, MeterId, MeterName, Verdict};
use rustix::process::Signal;
use softhsm_tests::{Pair, Programs, Role, Running, Site, SiteOptions, pair::said_by};
use sqlx::{Connection as _, Row as _, SqliteConnection};
use tempfile::TempDir;
use tokio_stream::StreamExt as _;

/// Two sites that serve.
struct World {
    pair: Pair,
    a: Option<Running>,
    b: Option<Running>,
    _dir: TempDir,
}

impl World {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("kms-pair-").tempdir_in("/dev/shm").unwrap();
        let pair =
            Pair::make(dir.path(), &Programs::find().unwrap(), &SiteOptions::default()).unwrap();
        let (a, b) = pair.start().unwrap();
        Self { pair, a: Some(a), b: Some(b), _dir: dir }
    }

    fn kill_a(&mut self) {
        self.a.take().unwrap().kill_9().unwrap();
    }

    fn kill_b(&mut self) {
        self.b.take().unwrap().kill_9().unwrap();
    }

    fn start_a(&mut self) {
        self.a = Some(self.pair.a.start().unwrap());
    }

    fn start_b(&mut self) {
        self.b = Some(self.pair.b.start().unwrap());
    }

    /// Waits until both databases have the same blocks, byte for byte.
    async fn until_the_same(&self) {
        eventually("both sites have the same blocks", async || {
            contents(&self.pair.a).await == contents(&self.pair.b).await
        })
        .await;
    }
}

async fn client(site: &Site) -> KmsClient {
    let config = ClientConfig::load(&site.client_toml(Role::Dev)).unwrap();
    KmsClient::connect(config).await.unwrap()
}

async fn rows(site: &Site, query: &'static str) -> Vec<String> {
    let url = format!("sqlite://{}", site.places().data.join("kms.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let rows = sqlx::query(query).fetch_all(&mut database).await.unwrap();
    database.close().await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// All heads and all records of a site.
async fn contents(site: &Site) -> (Vec<String>, Vec<String>) {
    let heads = rows(
        site,
        "SELECT block || '/' || secret_version || '/' || epoch || '/' || sequence || '/' || count || '/' || \
         hex(digest) || '/' || hex(mac) FROM blocks ORDER BY block",
    );
    let records = rows(
        site,
        "SELECT block || '/' || hex(key) || '/' || epoch || '/' || sequence || '/' || hex(mac) || '/' || hex(body) \
         FROM records ORDER BY block, key",
    );
    (heads.await, records.await)
}

/// Who was set aside at a site, by the title in the record's key.
async fn set_aside(site: &Site) -> Vec<String> {
    rows(site, "SELECT hex(key) FROM divergence ORDER BY key").await
}

async fn opens(site: &Site, n: u64) -> Verdict {
    opened(site, push(n)).await
}

async fn opened(site: &Site, pushed: Vec<u8>) -> Verdict {
    client(site).await.decrypt(&apdu(pushed)).await.unwrap().verdict()
}

fn promote_lost(site: &Site) -> String {
    said_by(site, "promote", &["site", "promote", "--primary-is-lost", "--yes"]).unwrap()
}

/// The reason word of an import that was refused; `None`: it was done.
async fn refusal_of(client: &KmsClient, n: u64) -> Option<String> {
    let lines = tokio_stream::iter(parsed(&line(n)));
    let mut results = client.meters().import(lines, ImportRules::default());
    match results.next().await.unwrap() {
        Ok(result) => Some(result.code).filter(|code| !code.is_empty()),
        Err(CallError::Refused { code, .. }) => Some(code),
        Err(error) => panic!("{error}"),
    }
}

/// The reason word of a call that was refused.
fn word<T: std::fmt::Debug>(outcome: Result<T, CallError>) -> String {
    format!("{:?}", outcome.unwrap_err())
}

#[tokio::test]
async fn the_second_site_opens_the_next_push_when_the_first_one_is_gone_and_takes_it_back() {
    let mut world = World::start();
    let fleet: Vec<String> = (0..30).map(line).chain([line_in_hsm(30)]).collect();
    add(&client(&world.pair.a).await, &fleet).await;
    world.pair.until_proved(&world.pair.a).unwrap();
    world.until_the_same().await;

    // What is proved is on paper, at both.
    for site in [&world.pair.a, &world.pair.b] {
        let verified = ["site", "status", "--readiness", "--verify", "--json"];
        let said = said_by(site, "site status --readiness", &verified).unwrap();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        let newest = &said["readiness"]["newest"];
        let told = [&said["verified"], &newest["site"], &newest["colour"]];
        assert_eq!(told, ["GOOD", "site-b", "GREEN"], "{newest}");
        // The one that asks signs; or, where that takes long, the one that follows for itself.
        assert!(newest["by"] == "site-a" || newest["by"] == "site-b", "{newest}");
    }
    world.kill_a();
    for n in [0, 17, 30] {
        assert_eq!(opens(&world.pair.b, n).await, Verdict::Ok, "{n}");
    }
    let plan = ["site", "plan", "--open-blocks", "--json"];
    let plan = said_by(&world.pair.b, "site plan", &plan).unwrap();
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["refusal"], "", "{plan}");
    assert_eq!(
        (&plan["peer_answers"], &plan["needs_primary_is_lost"]),
        (&false.into(), &true.into()),
        "{plan}"
    );
    assert_eq!(
        (&plan["known_from"], &plan["behind_count"]),
        (&"HEAD_TABLE".into(), &0.into()),
        "{plan}"
    );
    assert_eq!((&plan["unopened_count"], &plan["colour"]), (&0.into(), &"GREEN".into()), "{plan}");
    // It follows: changes are for the other one.
    let b = client(&world.pair.b).await;
    let name: MeterId = id(1).parse().unwrap();
    let refused = word(b.meters().delete(&name).await);
    assert!(refused.contains("NOT_PRIMARY"), "{refused}");

    assert!(promote_lost(&world.pair.b).contains("PRIMARY"));
    add(&b, &[line(40)]).await;
    b.meters().delete(&name).await.unwrap();
    world.start_a();
    world.pair.until_it_is(&world.pair.a, "SECONDARY", 3).unwrap();
    world.pair.until_proved(&world.pair.b).unwrap();
    world.until_the_same().await;
    assert_eq!(opens(&world.pair.a, 40).await, Verdict::Ok);
    assert_eq!(opens(&world.pair.a, 1).await, Verdict::UnknownMeter);
    assert_eq!(set_aside(&world.pair.a).await, Vec::<String>::new());
}

#[tokio::test]
async fn invariant_4_what_the_lost_site_alone_wrote_is_set_aside_when_it_comes_back() {
    let mut world = World::start();
    add(&client(&world.pair.a).await, &[line(1), line(2)]).await;
    world.pair.until_proved(&world.pair.a).unwrap();
    world.kill_b();
    // Acknowledged by A alone: a meter that is new, and one that is gone.
    let a = client(&world.pair.a).await;
    add(&a, &[line(3)]).await;
    a.meters().delete(&id(2).parse::<MeterId>().unwrap()).await.unwrap();
    world.kill_a();
    world.start_b();
    promote_lost(&world.pair.b);
    add(&client(&world.pair.b).await, &[line(4)]).await;
    world.start_a();
    world.pair.until_it_is(&world.pair.a, "SECONDARY", 3).unwrap();
    world.until_the_same().await;
    for (n, verdict) in
        [(1, Verdict::Ok), (2, Verdict::Ok), (3, Verdict::UnknownMeter), (4, Verdict::Ok)]
    {
        assert_eq!(opens(&world.pair.a, n).await, verdict, "{n}");
        assert_eq!(opens(&world.pair.b, n).await, verdict, "{n}");
    }
    let key = |n| format!("01{}", hex::encode_upper(common::fleet::title(n).as_bytes()));
    assert_eq!(set_aside(&world.pair.a).await, [key(2), key(3)]);
    // Told to the site that writes, where people decide: the meter is taken, the deletion is not.
    let divergence = |site: &Site, more: &[&str]| {
        said_by(site, "divergence", &[&["site", "divergence"], more].concat()).unwrap()
    };
    eventually("B has heard of both", async || set_aside(&world.pair.b).await == [key(2), key(3)])
        .await;
    let told = divergence(&world.pair.b, &["list"]);
    let all = ["NEW_METER", "DELETED", "2 wait for a decision", "by site-a"];
    assert!(all.iter().all(|part| told.contains(part)), "{told}");
    let tool = world.pair.b.ami_tool(Role::AmiAdmin);
    let one = |verb, id: &str| tool.succeed(&["site", "divergence", verb, id, "--yes"]);
    for id in ["00".repeat(20), "ff".repeat(20)] {
        let refused = one("discard", &id).unwrap_err().to_string();
        assert!(refused.contains("no record of this id"), "{refused}");
    }
    let said = divergence(&world.pair.b, &["accept", "--rule", "new_meter", "--yes"]);
    assert!(said.contains("1 decided, 1 records changed"), "{said}");
    let said = divergence(&world.pair.b, &["discard", "--rule", "all", "--yes"]);
    assert!(said.contains("1 decided, 0 records changed"), "{said}");
    let told = divergence(&world.pair.b, &["list", "--decided"]);
    let id = told.lines().find(|line| line.contains("ACCEPT")).and_then(|it| it.split(' ').next());
    let (again, other) = (one("accept", id.unwrap()), one("discard", id.unwrap()));
    assert!(again.unwrap().contains("decided about it"), "the same is no fault");
    assert!(other.unwrap_err().to_string().contains("ACCEPT. That stays"), "another is");
    let decided =
        "SELECT count(*) || '' FROM divergence WHERE resolution IS NOT NULL AND decided_by <> ''";
    eventually("A knows what was decided", async || rows(&world.pair.a, decided).await == ["2"])
        .await;
    world.until_the_same().await;
    for site in [&world.pair.a, &world.pair.b] {
        assert_eq!((opens(site, 2).await, opens(site, 3).await), (Verdict::Ok, Verdict::Ok));
    }
}

#[tokio::test]
async fn triage_names_a_key_that_only_the_lost_site_wrote() {
    let mut world = World::start();
    add(&client(&world.pair.a).await, &[line(1)]).await;
    world.pair.until_proved(&world.pair.a).unwrap();
    world.until_the_same().await;
    world.kill_b();
    // A key that the meter may have got, and that B never hears of.
    let (guek, gak) = (value(71, GUEK), value(1, GAK));
    let with_new = line(1).replace(&hex::encode_upper(value(1, GUEK)), &hex::encode_upper(guek));
    let rules = ImportRules { add_versions: true, ..ImportRules::default() };
    import_with(&client(&world.pair.a).await, &[with_new], rules).await;
    let pushed = |guek: &[u8]| push_with(1, 0x30, guek, &gak, PLAIN);
    assert_eq!(opened(&world.pair.a, pushed(&guek)).await, Verdict::Ok);
    world.kill_a();
    world.start_b();
    promote_lost(&world.pair.b);
    world.start_a();
    world.pair.until_it_is(&world.pair.a, "SECONDARY", 3).unwrap();
    world.until_the_same().await;
    let key = format!("01{}", hex::encode_upper(common::fleet::title(1).as_bytes()));
    eventually("B has heard of it", async || set_aside(&world.pair.b).await == [key.clone()]).await;
    let meter = MeterName::Id(id(1).parse::<MeterId>().unwrap());
    for site in [&world.pair.a, &world.pair.b] {
        assert_eq!(opened(site, pushed(&guek)).await, Verdict::MicFailure);
        let client = client(site).await;
        let ask = async |frames| client.triage(&meter, frames, None).await.unwrap();
        let triage = ask(vec![pushed(&guek), pushed(&guek)]).await;
        let [finding] = &triage.findings[..] else { panic!("{triage:?}") };
        assert_eq!((finding.cause, finding.confidence), ("OTHER_SITE_FITS", "CERTAIN"));
        let version = finding.encryption_key_version;
        assert_eq!((finding.frames.len(), version), (2, Some(2)), "as the record set aside has it");
        // Of a key that nobody wrote nothing is said.
        let triage = ask(vec![pushed(&value(72, GUEK))]).await;
        assert_eq!(triage.findings[0].cause, "UNEXPLAINED", "{triage:?}");
    }
}

#[tokio::test]
async fn invariant_7_a_primary_that_was_frozen_through_a_promotion_is_fenced_before_it_is_believed()
{
    let world = World::start();
    add(&client(&world.pair.a).await, &[line(1)]).await;
    world.pair.until_proved(&world.pair.a).unwrap();
    let (a, b) = (world.a.as_ref().unwrap(), client(&world.pair.b).await);
    a.signal(Signal::STOP).unwrap();
    promote_lost(&world.pair.b);
    add(&b, &[line(2)]).await;
    a.signal(Signal::CONT).unwrap();
    // Its first change may be in time to be committed in its old epoch: then it is set aside.
    let thawed = client(&world.pair.a).await;
    let late = tokio::time::timeout(Duration::from_secs(20), refusal_of(&thawed, 3)).await.unwrap();
    world.pair.until_it_is(&world.pair.a, "SECONDARY", 3).unwrap();
    world.until_the_same().await;
    let is_set_aside = set_aside(&world.pair.a).await.len() == 1;
    assert!(late.is_some() != is_set_aside, "{late:?}");
    assert_eq!(opens(&world.pair.b, 3).await, Verdict::UnknownMeter);
    assert_eq!(refusal_of(&thawed, 5).await.as_deref(), Some("NOT_PRIMARY"));
}

#[tokio::test]
async fn invariant_4_a_switchover_and_back_loses_nothing() {
    let world = World::start();
    add(&client(&world.pair.a).await, &[line(1)]).await;
    let both = world.pair.client_toml(Role::AmiAdmin).unwrap();
    let tool = softhsm_tests::AmiTool::new(&world.pair.a.programs().ami_tool, &both);
    for (to, n, site) in [("site-b", 2, &world.pair.b), ("site-a", 3, &world.pair.a)] {
        tool.succeed(&["site", "switchover", to, "--yes"]).unwrap();
        add(&client(site).await, &[line(n)]).await;
    }
    world.until_the_same().await;
    for site in [&world.pair.a, &world.pair.b] {
        for n in 1..4 {
            assert_eq!(opens(site, n).await, Verdict::Ok, "{n}");
        }
        assert_eq!(set_aside(site).await, Vec::<String>::new());
    }
}
