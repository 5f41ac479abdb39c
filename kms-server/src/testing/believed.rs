//! Who is believed, and how much: a caller is the site of its certificate, what a site names and does not prove is told no
//! longer than it names it, and nobody keeps the blocks or the reports of others from being taken.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::sync::Arc;

use kms_core::{BlockNo, Epoch, Record, StoredRecord, audit::AuditEntry, block::BlockMark};

use super::{
    home::at_two_homes,
    pair::{Network, Running, beside, entry, news, nowhere, promote, sites, with_replica},
    site_common::{Site, call, id, meter, title},
    transmitting::{declare, talking},
};
use crate::{
    keyring::{Arrived, Outcome, Taken},
    replication::{Peer, PeerError, SiteCard},
    store::{
        AuditedStore, BlockChange, StoreError,
        keks::KekStep,
        sites::{BlockAdoption, Divergent, PeerStep, RoleStep},
    },
};

fn word(outcome: Result<(), PeerError>) -> String {
    match outcome {
        Err(PeerError::Refused { word, .. }) => word,
        outcome => format!("{outcome:?}"),
    }
}

/// What calls with this card come to.
async fn answers(client: &dyn Peer, card: &SiteCard) -> Vec<String> {
    let asked = crate::replication::HeadsAsked { blocks: vec![BlockNo(0)], ..Default::default() };
    let cursors: Vec<BlockMark> = Vec::new();
    vec![
        word(client.list_heads(card.clone(), asked).await.map(drop)),
        word(client.role_records(card.clone(), Epoch(2)).await.map(drop)),
        word(client.fetch_blocks(card.clone(), vec![BlockNo(0)]).await.map(drop)),
        word(client.report_divergence(card.clone(), Vec::new()).await.map(drop)),
        word(client.head_tables(card.clone()).await.map(drop)),
        word(client.follow(card.clone(), cursors).await.map(drop)),
    ]
}

#[test]
fn a_replica_that_names_the_other_site_is_not_taken_for_it_by_any_call() {
    at_two_homes(async |north, east| {
        let (a, c) = with_replica(north, east).await;
        let network = Network::new();
        let running = Running::start(Arc::clone(&a), &network).await;
        let (grounds, _) = beside(&c, &network, network.north);
        let own = grounds.cards.now().await.unwrap();
        for site in ["south", "west"] {
            let card = SiteCard { site: site.to_owned(), epoch: Epoch(9), ..own.clone() };
            let said = answers(grounds.peer.as_ref(), &card).await;
            assert!(said.iter().all(|word| word == "ANOTHER_SITE"), "{site}: {said:?}");
        }
        let status = running.status.all();
        assert!(status.heard.is_none() && status.replicas.is_empty(), "{status:?}");
        // By its own name it is answered: what it lacks here are cursors, and a site that takes reports.
        let said = answers(grounds.peer.as_ref(), &own).await;
        assert!(said.iter().all(|word| word == "Ok(())" || word == "BAD_FIELD"), "{said:?}");
        let all = running.status.all();
        assert_eq!(all.replicas.first().map(|it| it.card.site.as_str()), Some("east"));
        // The other site's certificate is no replica's either.
        let south = network.client("south", network.north);
        let said = answers(&south, &own).await;
        assert!(said.iter().all(|word| word == "ANOTHER_SITE"), "{said:?}");
        running.cut().await;
    });
}

#[test]
fn an_epoch_that_is_not_proved_is_a_fault_for_as_long_as_it_is_named() {
    at_two_homes(async |north, east| {
        let (a, c) = with_replica(north, east).await;
        let network = Network::new();
        let east = Running::start(Arc::clone(&c), &network).await;
        let north = Running::start_towards(Arc::clone(&a), &network, network.south).await;
        let (grounds, _) = beside(&c, &network, network.north);
        let own = grounds.cards.now().await.unwrap();
        let named = SiteCard { epoch: Epoch(9), ..own.clone() };
        let told = || north.status.all().faults.iter().any(|it| it.contains("names epoch 9"));
        let refused = grounds.peer.head_tables(named).await.map(drop);
        assert_eq!(word(refused), "EPOCH_NOT_PROVED");
        assert!(told(), "{:?}", north.status.all().faults);
        grounds.peer.head_tables(own).await.unwrap();
        assert!(!told(), "{:?}", north.status.all().faults);
        east.cut().await;
        north.cut().await;
    });
}

#[test]
fn a_replica_makes_the_writer_take_in_nothing_of_the_past() {
    at_two_homes(async |north, east| {
        let (a, c) = with_replica(north, east).await;
        let network = Network::new();
        a.add(meter(1)).await;
        let block = a.keyring.records.block_of(&title(1));
        let record = a.store.block(block).await.unwrap().unwrap().records.remove(0);
        assert!(matches!(Record::decode(&record.body).unwrap(), Record::Meter(_)));
        let meter_id = kms_core::MeterId::new(&id(1)).unwrap();
        a.lifecycle.delete(&call("Meters/DeleteMeter"), &meter_id).await.unwrap();
        let running = Running::start(Arc::clone(&a), &network).await;
        let (grounds, _) = beside(&c, &network, network.north);
        let own = grounds.cards.now().await.unwrap();
        let row = Divergent { block, record, site: "x".into(), at_ms: 1, decided: None };
        let before = a.store.heads().await.unwrap();
        let told = grounds.peer.report_divergence(own.clone(), vec![row.clone()]).await.unwrap().1;
        assert!(told[0].as_ref().unwrap_err().contains("the block's past"), "{told:?}");
        assert_eq!(a.store.count_undecided().await.unwrap(), 0);
        assert_eq!(a.store.heads().await.unwrap(), before);
        // What the other site has at such a place may be its own: its database may have been put back.
        let south = network.client("south", network.north);
        let card = SiteCard { site: "south".to_owned(), ..own };
        let told = south.report_divergence(card, vec![row]).await.unwrap().1;
        assert_eq!(told, [Ok(None)]);
        running.cut().await;
    });
}

#[test]
fn invariant_12_what_one_replica_reports_has_a_bound_and_takes_no_room_from_others() {
    at_two_homes(async |north, south| {
        let (a, _b) = sites(north, south).await;
        a.add(meter(1)).await;
        let block = a.keyring.records.block_of(&title(1));
        let record = a.store.block(block).await.unwrap().unwrap().records.remove(0);
        let meter_id = kms_core::MeterId::new(&id(1)).unwrap();
        a.lifecycle.delete(&call("Meters/DeleteMeter"), &meter_id).await.unwrap();
        let row = |record: StoredRecord, site: &str| {
            let site = site.to_owned();
            Divergent { block, record, site, at_ms: 1, decided: None }
        };
        let waiting = (0..10_000u64).map(|n| {
            let mut other = record.clone();
            other.mac[..8].copy_from_slice(&n.to_be_bytes());
            row(other, "east")
        });
        let waiting: Vec<Divergent> = waiting.collect();
        for rows in waiting.chunks(1_000) {
            a.commits.put_divergence(rows.to_vec(), vec![entry("x/y")]).await.unwrap();
        }
        let by = call("Replication/ReportDivergence");
        let told = a.lifecycle.take_report(&by, vec![row(record.clone(), "east")], true).await;
        let said = told.unwrap().remove(0).unwrap_err();
        assert!(said.contains("10000 records of site east wait"), "{said}");
        assert_eq!(a.store.count_undecided().await.unwrap(), 10_000);
        // Another replica has room of its own.
        let told = a.lifecycle.take_report(&by, vec![row(record, "west")], true).await;
        assert_eq!(told.unwrap(), [Ok(None)]);
    });
}

#[test]
fn invariant_5_what_nobody_can_have_written_raises_no_counter_line() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        // The other site has the keys of all blocks: what it makes up is authentic. Here it makes up an epoch with it.
        let record = promote(&b).await;
        b.add(talking(1)).await;
        let sending = b.transmitting(true, None);
        let declared = declare(&sending, 1, Some(0x0300_0005)).await.unwrap();
        let block = declared.states[0].block;
        let mut lines = b.store.block(block).await.unwrap().unwrap().records.into_iter();
        let is_line = |it: &StoredRecord| matches!(Record::decode(&it.body), Ok(Record::Line(_)));
        let line = lines.rfind(is_line).unwrap();
        assert_eq!(line.position.epoch, record.record.epoch);
        let running = Running::start(Arc::clone(&a), &network).await;
        let (grounds, _) = beside(&a, &network, network.south);
        let theirs = grounds.cards.now().await.unwrap();
        let card = SiteCard { site: "south".to_owned(), writes: false, ..theirs };
        let row = Divergent { block, record: line, site: "x".into(), at_ms: 1, decided: None };
        let before = a.store.heads().await.unwrap();
        let client = network.client("south", network.north);
        let told = client.report_divergence(card, vec![row]).await.unwrap().1;
        assert!(told[0].as_ref().unwrap_err().contains("epoch 3 is proved by no"), "{told:?}");
        assert_eq!(a.store.heads().await.unwrap(), before, "no line rises");
        assert_eq!(a.store.count_undecided().await.unwrap(), 0);
        running.cut().await;
    });
}

/// The site's own commits, but that another server is always first at one block.
struct FirstAt {
    block: BlockNo,
    commits: Arc<dyn AuditedStore>,
}

#[async_trait::async_trait]
impl AuditedStore for FirstAt {
    async fn commit(&self, _: Vec<BlockChange>, _: Vec<AuditEntry>) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly)
    }

    async fn adopt(
        &self,
        adoptions: Vec<BlockAdoption>,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        if adoptions.iter().any(|adoption| adoption.head.block == self.block) {
            return Err(StoreError::Conflict(self.block));
        }
        self.commits.adopt(adoptions, entries).await
    }

    async fn change_role(&self, _: RoleStep, _: Vec<AuditEntry>) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly)
    }

    async fn put_peer(&self, _: PeerStep, _: Vec<AuditEntry>) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly)
    }

    async fn put_divergence(
        &self,
        _: Vec<Divergent>,
        _: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly)
    }

    async fn put_site_keks(&self, _: KekStep, _: Vec<AuditEntry>) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly)
    }
}

/// All blocks of `from` as they changed.
async fn all_of(from: &Site) -> Vec<Arrived> {
    let mut arrived = Vec::new();
    for head in from.store.heads().await.unwrap() {
        arrived.push(news(from, head.block, nowhere()).await);
    }
    arrived.retain(|block| !block.records.is_empty());
    arrived
}

#[test]
fn a_block_that_another_server_changed_meanwhile_keeps_none_that_came_with_it_waiting() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        for n in 1..40 {
            a.add(meter(n)).await;
        }
        let arrived = all_of(&a).await;
        let contested = arrived[2].head.block;
        let first = FirstAt { block: contested, commits: b.commits.clone() };
        let adopter = b.keyring.adopter.through(Arc::new(first));
        let entry = || entry("Replication/Adopt");
        let outcomes = adopter.adopt(arrived.clone(), &[], entry()).await.unwrap();
        assert_eq!(outcomes.len(), arrived.len());
        let is_taken = |it: &Outcome| match it.taken {
            Taken::Adopted { .. } => it.block != contested,
            Taken::Conflict => it.block == contested,
            _ => false,
        };
        assert!(outcomes.iter().all(is_taken), "{outcomes:?}");
        for block in &arrived {
            let stands = b.store.position(block.head.block).await.unwrap().unwrap();
            let is_there = stands == block.head.position;
            assert_eq!(is_there, block.head.block != contested, "{}", block.head.block.0);
        }
        // It has an outcome too where all that came with it stands here already, and nothing else is to be written.
        let outcomes = adopter.adopt(arrived.clone(), &[], entry()).await.unwrap();
        let of_it = outcomes.iter().find(|it| it.block == contested);
        assert_eq!(of_it.map(|it| &it.taken), Some(&Taken::Conflict), "{outcomes:?}");
        assert_eq!(outcomes.len(), arrived.len());
        // Alone it is an error, and with nobody before it, it is taken.
        let one = vec![arrived[2].clone()];
        assert!(adopter.adopt(one.clone(), &[], entry()).await.is_err());
        let outcome = b.keyring.adopter.adopt(one, &[], entry()).await.unwrap().remove(0);
        assert!(matches!(outcome.taken, Taken::Adopted { .. }), "{outcome:?}");
    });
}
