//! Files of all forms, whose keys then live: staged, shown, compromised, destroyed, deleted with their meters. Then every
//! file comes again.

use std::collections::BTreeSet;

use kms_client::shipment::{ShipmentFormat, Supplier, open};
use kms_core::{
    AssociationForm, Carrier, StoredRecord, TransferResult,
    audit::{AuditOutcome, Subject},
    life::{choosing::Place, evidence::Shown, staging::Wish},
};
use kms_server::{keyring, store::StoredBlock};

use super::{story::Dice, *};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Keys of a meter, as an import has them.
const ALL: [(&str, u8); 3] = [("KEK", 9), ("GUEK", GUEK), ("GAK", GAK)];
const KINDS: [KeyKind; 3] = [KeyKind::Guek, KeyKind::Gak, KeyKind::Kek];

/// What is sent.
#[derive(Clone)]
enum Sent {
    /// Sealed by the signer of this number.
    Sealed(usize, File),
    /// In clear, without a policy: what has no time of its own says nothing of policies.
    Clear(Vec<NewMeter>),
}

impl Sent {
    fn lines(&self) -> usize {
        match self {
            Self::Sealed(_, file) => file.lines.len(),
            Self::Clear(meters) => meters.len(),
        }
    }

    /// One line of it.
    fn line(&self, at: usize) -> Self {
        match self {
            Self::Sealed(signer, file) => {
                Self::Sealed(*signer, File { lines: vec![file.lines[at].clone()], ..file.clone() })
            }
            Self::Clear(meters) => Self::Clear(vec![meters[at].clone()]),
        }
    }

    fn names(&self) -> Vec<(MeterId, SystemTitle)> {
        match self {
            Self::Sealed(_, file) => {
                let meters = file.lines.iter().map(sealed_meter);
                meters.map(|meter| (meter.meter_id, meter.system_title)).collect()
            }
            Self::Clear(meters) => {
                meters.iter().map(|meter| (meter.meter_id.clone(), meter.system_title)).collect()
            }
        }
    }
}

fn whole(n: u64, salt: u8, policy: Option<&str>) -> String {
    let keys = ALL.map(|(kind, of)| (kind, value(n, of + salt)));
    line(n, &keys, policy)
}

/// The meters of a supplier's file, as the sealing machine reads it.
fn delivered(name: &str, format: ShipmentFormat, settings: &str) -> Vec<kms_client::NewMeter> {
    let there =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../kms-client/tests/shipments");
    let dir = tempfile::tempdir().unwrap();
    for name in ["anchor.pem", "unwrap.key"] {
        std::fs::copy(there.join(name), dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join("password"), "customer-4711\n").unwrap();
    let titles = "meter_id;title\n68000001;4B414D0000000001\n68000002;4B414D0000000002\n";
    std::fs::write(dir.path().join("titles.csv"), titles).unwrap();
    let settings_file = dir.path().join("supplier.toml");
    std::fs::write(&settings_file, settings).unwrap();
    let supplier = Supplier::load(&settings_file).unwrap();
    let bytes = std::fs::read(there.join(name)).unwrap();
    let consignment = open(bytes.into(), format, supplier).unwrap();
    let meters: Vec<_> =
        consignment.deliveries().filter_map(|it| Some(it.ok()?.record.meter)).collect();
    assert!(!meters.is_empty(), "{name}");
    meters
}

const XML: &str = "trust_anchor = \"anchor.pem\"\nunwrap_key = \"unwrap.key\"\nsystem_title = \"MAC\"\n\
    [keys.GUEK_MC]\nkind = \"GUEK\"\n[keys.GAK_MC]\nkind = \"GAK\"\n[keys.MK]\nkind = \"KEK\"\n";
const KEM: &str = "password_file = \"password\"\nsystem_title = \"SystemTitle\"\ntitles = \"titles.csv\"\n\
    [keys.DEK]\nkind = \"GUEK\"\n[keys.GPK60]\nkind = \"GUEK\"\n[keys.GPK61]\nkind = \"GAK\"\n";

/// A world in which files live.
struct Lives {
    world: World,
    files: Vec<Sent>,
    meters: Vec<(MeterId, SystemTitle)>,
    /// Those that a newer file may bring back.
    readmitted: BTreeSet<MeterId>,
}

impl Lives {
    /// Takes all files once, the oldest first.
    async fn new(home: &Home) -> Self {
        let world = World::new(home, true).await;
        let first: Vec<_> = (1..=5).map(|n| whole(n, 0, Some(WEAK))).collect();
        let second: Vec<_> =
            (1..=3).map(|n| line(n, &[("GUEK", value(n, 50))], Some(STRONG))).collect();
        let third: Vec<_> = (11..=13).map(|n| whole(n, 0, None)).collect();
        let mut files = Vec::new();
        for (signer, lines) in [(0, first), (0, second), (1, third)] {
            world.pass(1000);
            files.push(Sent::Sealed(signer, world.seal_by(signer, &lines, world.now())));
        }
        let of_makers = [
            ("inclusive.xml", ShipmentFormat::Shipment, XML),
            ("meters.kem", ShipmentFormat::Kem, KEM),
        ];
        for (name, format, settings) in of_makers {
            world.pass(1000);
            let meters = delivered(name, format, settings);
            files.push(Sent::Sealed(1, world.seal_meters(1, meters, world.now())));
        }
        let clear = |n| NewMeter {
            keys: [(KeyKind::Kek, 9), (KeyKind::Guek, GUEK), (KeyKind::Gak, GAK)]
                .map(|(kind, salt)| key(kind, value(n, salt)))
                .into(),
            ..meter(n)
        };
        files.push(Sent::Clear((21..=22).map(clear).collect()));
        let meters: BTreeSet<_> = files.iter().flat_map(Sent::names).collect();
        let meters = meters.into_iter().collect();
        let this = Self { world, files, meters, readmitted: BTreeSet::new() };
        for file in &this.files {
            let words = this.send(file, EVERYTHING).await;
            let is_news = |word: &&str| ["CREATED", "UPDATED"].contains(word);
            assert!(words.iter().all(is_news), "{words:?}");
        }
        this.world.site.keyring.refresher.warm_up().await;
        this
    }

    async fn send(&self, sent: &Sent, rules: ImportRules) -> Vec<&'static str> {
        match sent {
            Sent::Sealed(_, file) => self.world.outcomes(file, rules).await,
            Sent::Clear(meters) => self.world.add(meters.clone(), rules).await,
        }
    }

    async fn meter_of(&self, title: &SystemTitle) -> Option<MeterRecord> {
        match self.world.site.keyring.records.read(title).await.unwrap() {
            Some(Record::Meter(meter)) => Some(meter),
            _ => None,
        }
    }

    /// All that is stored.
    async fn stored(&self) -> Vec<StoredBlock> {
        let mut blocks = Vec::new();
        for head in self.world.site.store.heads().await.unwrap() {
            blocks.push(self.world.site.store.block(head.block).await.unwrap().unwrap());
        }
        blocks
    }

    /// The meters' records, without what is known of files.
    async fn records(&self) -> Vec<StoredRecord> {
        let all = self.stored().await.into_iter().flat_map(|block| block.records);
        all.filter(|record| record.key.is_meter()).collect()
    }

    /// The meter shows all that is staged.
    async fn show(&self, title: &SystemTitle) {
        let Some(meter) = self.meter_of(title).await else { return };
        let staged = |kind| Some(place(kind).staged(&meter)?.id);
        let (encryption, authentication) = (staged(KeyKind::Guek), staged(KeyKind::Gak));
        let shown = Shown { setup: SecuritySetup(0), encryption, authentication };
        self.world.site.lifecycle.take_shown(&[(*title, shown)]).await.unwrap();
    }

    async fn pass(&self, ms: u64) {
        self.world.pass(ms);
        self.world.site.lifecycle.pass_dates().await.unwrap();
    }

    /// Something that somebody decides, or that time brings. What is refused changes nothing.
    async fn step(&mut self, dice: &mut Dice) {
        let (id, title) = self.meters[dice.below(self.meters.len() as u64) as usize].clone();
        let kind = KINDS[dice.below(3) as usize];
        let version = 1 + dice.below(3) as u16;
        let key = (place(kind), version);
        let on = &self.world.site.lifecycle;
        match dice.below(16) {
            0..=2 => {
                let wanted: Vec<_> =
                    self.meters.iter().map(|(id, _)| (id.clone(), wish(kind))).collect();
                on.stage_keys(&call("Rotation/StageKey"), &wanted).await;
            }
            3 => drop(on.stage_key(&call("Rotation/StageKey"), &id, &wish(kind)).await),
            4..=7 => self.show(&title).await,
            8 => drop(on.compromise_key(&call("Rotation/CompromiseKey"), &id, key).await),
            9 => drop(on.destroy_key(&call("Rotation/DestroyKey"), &id, key, true).await),
            10 => drop(on.roll_back_key(&call("Rotation/RollBackKey"), &id, key).await),
            11 => {
                let result = TransferResult::Success;
                drop(on.confirm_key(&call("Rotation/ConfirmKey"), &id, key.0, result).await);
            }
            12 => {
                let policy = [weak(), strong(), MeterPolicy::default()];
                let policy = &policy[dice.below(3) as usize];
                drop(on.set_policy(&call("Meters/SetPolicy"), &id, policy).await);
            }
            13 => drop(on.delete(&call("Meters/DeleteMeter"), &id).await),
            14 => {
                let is_sealed = title != super::title(21) && title != super::title(22);
                let readmit = call("Meters/ReadmitMeter");
                if is_sealed && on.readmit(&readmit, &id, &title).await.is_ok() {
                    self.readmitted.insert(id);
                }
            }
            _ => self.pass(dice.below(40) * DAY_MS).await,
        }
    }

    /// Every file again: whole, line by line in between each other, at one time; by any rules.
    async fn again(&self, dice: &mut Dice, seed: u64) {
        let before = self.stored().await;
        for round in 0..12 {
            let rules = if dice.below(3) == 0 { ImportRules::default() } else { EVERYTHING };
            let mut sent = match round % 3 {
                0 => self.files.clone(),
                _ => {
                    let lines = |file: &Sent| (0..file.lines()).map(|at| file.line(at)).collect();
                    self.files.iter().flat_map(|file| -> Vec<Sent> { lines(file) }).collect()
                }
            };
            for at in (1..sent.len()).rev() {
                sent.swap(at, dice.below(at as u64 + 1) as usize);
            }
            for some in sent.chunks(if round % 3 == 2 { 2 } else { 1 }) {
                self.world.pass(dice.below(1000));
                match some {
                    [one, other] => {
                        tokio::join!(self.send(one, rules), self.send(other, rules));
                    }
                    _ => drop(self.send(&some[0], rules).await),
                }
                assert!(self.stored().await == before, "seed {seed}, round {round}");
            }
        }
    }

    /// The same contents, sealed anew: no news for any meter that was not readmitted.
    async fn sealed_anew(&self, seed: u64) {
        let before = self.records().await;
        for file in &self.files {
            let Sent::Sealed(signer, file) = file else { continue };
            let names = file.lines.iter().map(sealed_meter);
            let names: Vec<_> = names.map(|meter| meter.meter_id).collect();
            let meters = self.contents(file);
            let stay = meters.into_iter().zip(names);
            let stay = stay.filter(|(_, id)| !self.readmitted.contains(id));
            let meters: Vec<_> = stay.map(|(meter, _)| meter).collect();
            if meters.is_empty() {
                continue;
            }
            self.world.pass(1000);
            let again = self.world.seal_meters(*signer, meters, self.world.now());
            let _ = self.world.outcomes(&again, EVERYTHING).await;
            assert!(self.records().await == before, "seed {seed}: sealed anew");
        }
    }

    /// What was in a file, without policies.
    fn contents(&self, file: &File) -> Vec<kms_client::NewMeter> {
        let of_makers = [
            delivered("inclusive.xml", ShipmentFormat::Shipment, XML),
            delivered("meters.kem", ShipmentFormat::Kem, KEM),
        ];
        let names: Vec<_> = file.lines.iter().map(sealed_meter).collect();
        for meters in of_makers {
            if meters.iter().any(|it| it.meter_id.as_str() == names[0].meter_id.as_str()) {
                return meters;
            }
        }
        let line = |meter: &NewMeter| {
            let n: u64 = meter.meter_id.as_str().strip_prefix("meter-").unwrap().parse().unwrap();
            match meter.keys.len() {
                1 => line(n, &[("GUEK", value(n, 50))], None),
                _ => whole(n, 0, None),
            }
        };
        let json = names.iter().map(line);
        json.map(|json| kms_client::NewMeter::from_json(json.as_bytes()).unwrap()).collect()
    }
}

fn place(kind: KeyKind) -> Place {
    Place { setup: SecuritySetup(0), kind }
}

fn wish(kind: KeyKind) -> Wish {
    Wish {
        place: place(kind),
        class_version: 1,
        carrier: Carrier { setup: SecuritySetup(0), client: 1, form: AssociationForm::GeneralGlo },
        kek: None,
        protection: None,
        request: "r-1".into(),
        allow_unreplicated: false,
        under_compromised_kek: false,
    }
}

/// Takes the files, lets their keys live by this seed, and sends all again; then once more after a promotion.
async fn play(home: &Home, seed: u64) {
    let mut dice = Dice(seed);
    let mut lives = Lives::new(home).await;
    for _ in 0..60 {
        lives.step(&mut dice).await;
    }
    lives.again(&mut dice, seed).await;
    promote(&lives.world.site).await;
    lives.again(&mut dice, seed).await;
    lives.sealed_anew(seed).await;
}

/// It lays its role down, and takes it up again in a higher epoch: all blocks come into that.
async fn promote(site: &Site) {
    let entry = |verb| call(verb).entry(1, Subject::NONE, AuditOutcome::Done);
    let expected = site.store.role().await.unwrap().epoch;
    site.keyring.roles.demote(expected, entry("Site/Demote"), 5).await.unwrap();
    let wish = keyring::Wish { expected, is_lost: true, above: None };
    let promoted = site.keyring.roles.promote(wish, entry("Site/Promote"), 5).await.unwrap();
    assert!(promoted.standing.epoch > expected && promoted.left.is_empty(), "{promoted:?}");
}

pub(super) async fn play_all(home: &Home) {
    for seed in 0..4 {
        let database = home.tokens().join("../kms.db");
        let _ = std::fs::remove_file(&database);
        play(home, seed).await;
    }
}

/// A record is full after so many rotations, and knows its first keys by their values alone.
pub(super) async fn rotate_often(home: &Home) {
    let lives = Lives::new(home).await;
    for _ in 0..20 {
        let ids = lives.meters.iter().map(|(id, _)| (id.clone(), wish(KeyKind::Guek)));
        let wanted: Vec<_> = ids.collect();
        lives.world.site.lifecycle.stage_keys(&call("Rotation/StageKey"), &wanted).await;
        for (_, title) in &lives.meters {
            lives.show(title).await;
        }
        for _ in 0..3 {
            lives.pass(40 * DAY_MS).await;
        }
    }
    let rotated = lives.meter_of(&title(4)).await.unwrap();
    assert!(rotated.keys.iter().any(|key| key.version == 21), "{rotated:?}");
    let is_there = |key: &kms_core::KeyRecord| key.kind == KeyKind::Guek && key.version == 1;
    assert!(!rotated.former.is_empty() && !rotated.keys.iter().any(is_there), "{rotated:?}");
    lives.again(&mut Dice(1), 1).await;
    lives.sealed_anew(1).await;
}
