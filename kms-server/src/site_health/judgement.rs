//! The faults, and whether this node is to be given work. No IO and no clock: facts in, a judgement out.

use super::facts::{Facts, StoreFault};
use crate::{
    keyring::{DamageStatus, KeyringStatus},
    store::StandbyLag,
};

/// A standby that is further behind is a fault: the runbook's alarm.
const LAG_ALARM_BYTES: u64 = 500_000_000;

kms_core::numbered! {
    /// The cause of a fault: the part that it is of.
    pub enum Cause "cause" {
        /// The token did not pass its last check.
        Token = 1 "token",
        /// The database fails.
        StoreFailed = 2 "store_failed",
        /// The database does not answer.
        StoreSilent = 3 "store_silent",
        /// The database takes no changes.
        StoreReadOnly = 4 "store_read_only",
        /// The database is a standby that is behind, or receives nothing.
        Standby = 5 "standby",
        /// Other servers' changes are not heard, or can't be taken in.
        Following = 6 "following",
        /// Blocks can't be opened, or not wholly.
        Blocks = 7 "blocks",
        /// There is no room for all keys.
        Room = 8 "room",
        /// Records are not what was written.
        Damage = 9 "damage",
        /// The index of meter ids is wrong.
        Index = 10 "index",
        /// The audit log can't be written, signed or believed.
        Audit = 11 "audit",
        /// A certificate or a revocation list is due.
        Certificate = 12 "certificate",
        /// The other site is not in step, not ready, or not believed.
        Replication = 13 "replication",
        /// Meters name device profiles that this site does not have.
        Profiles = 14 "profiles",
        /// Receive floors can't be stored, or are not what was written.
        Floors = 15 "floors",
        /// Marks of transmit counters are not what was written.
        Counters = 16 "counters",
    }
}

impl Cause {
    /// The reason why a node that has nothing open can't work, as a sentence for whoever asks without saying who
    /// he is; `None`: it can.
    pub const fn keeps_from_work(self) -> Option<&'static str> {
        match self {
            Self::Token => Some("the token did not pass its last check"),
            Self::StoreFailed => Some("the database has failed"),
            Self::StoreSilent => Some("the database does not answer"),
            Self::Blocks => Some("blocks of meters can't be opened"),
            Self::Room => Some("the memory for keys is too small"),
            Self::StoreReadOnly
            | Self::Standby
            | Self::Following
            | Self::Damage
            | Self::Index
            | Self::Audit
            | Self::Certificate
            | Self::Replication
            | Self::Profiles
            | Self::Floors
            | Self::Counters => None,
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteFault {
    /// Of what.
    pub cause: Cause,
    /// For an operator, with what to do.
    pub sentence: String,
}

/// The judgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteHealth {
    /// All that is wrong, by part.
    pub faults: Vec<SiteFault>,
    blocks_open: bool,
}

impl SiteHealth {
    /// Judges.
    pub fn of(facts: &Facts) -> Self {
        let mut faults = Vec::new();
        let mut add = |cause, sentence| faults.push(SiteFault { cause, sentence });
        if let Some(fault) = &facts.token.fault {
            add(Cause::Token, format!("token: {fault}"));
        }
        if let Some(fault) = &facts.store.fault {
            let cause = match fault {
                StoreFault::Failed(_) => Cause::StoreFailed,
                StoreFault::Silent => Cause::StoreSilent,
                StoreFault::ReadOnly(_) => Cause::StoreReadOnly,
            };
            add(cause, fault.to_string());
        }
        for fault in facts.store.standby.iter().flat_map(standby_faults) {
            add(Cause::Standby, fault);
        }
        keyring_faults(&facts.keyring, &mut add);
        damage_faults(&facts.keyring.damage, &mut add);
        for name in &facts.keyring.unknown_profiles {
            add(
                Cause::Profiles,
                format!(
                    "meters name the device profile {name}, which this site does not have: the strictest rules hold for \
                     them; put its file {name}.toml into profiles.dir and start again, or give them another profile"
                ),
            );
        }
        for fault in &facts.floor_faults {
            add(Cause::Floors, fault.clone());
        }
        for fault in &facts.counter_faults {
            add(Cause::Counters, fault.clone());
        }
        if let Some(fault) = &facts.audit_fault {
            add(Cause::Audit, format!("audit: {fault}"));
        }
        for fault in &facts.certificate_faults {
            add(Cause::Certificate, fault.clone());
        }
        for fault in &facts.replication_faults {
            add(Cause::Replication, fault.clone());
        }
        Self { faults, blocks_open: facts.keyring.blocks_open > 0 }
    }

    /// Whether this node is to be given work. A token or a database is one for all nodes: a node that lost it
    /// and has open blocks goes on being given work. Else the load balancer would end what the loss itself
    /// does not.
    pub fn is_ready(&self) -> bool {
        self.blocks_open || self.keeps_from_work().is_empty()
    }

    /// The reasons why a node that has nothing open can't work, each once.
    pub fn keeps_from_work(&self) -> Vec<&'static str> {
        let mut sentences: Vec<_> =
            self.faults.iter().filter_map(|fault| fault.cause.keeps_from_work()).collect();
        sentences.dedup();
        sentences
    }
}

/// The faults of a standby.
fn standby_faults(standby: &StandbyLag) -> Vec<String> {
    let StandbyLag { bytes, ms, receiving } = standby;
    let mut faults = Vec::new();
    if !receiving {
        let seconds = ms.unwrap_or(0) as f64 / 1_000.0;
        faults.push(format!(
            "the database is a standby that receives nothing from its primary; the last commit that \
             it replayed is {seconds:.0} s old"
        ));
    }
    if *bytes > LAG_ALARM_BYTES {
        faults.push(format!(
            "the database is a standby {} MB behind its primary (alarm at {} MB)",
            bytes / 1_000_000,
            LAG_ALARM_BYTES / 1_000_000
        ));
    }
    faults
}

fn keyring_faults(keyring: &KeyringStatus, add: &mut impl FnMut(Cause, String)) {
    if let Some(silence) = &keyring.not_following {
        let reason = &silence.reason;
        let sentence = match silence.since_ms {
            0 => format!("keyring: {reason}"),
            ms => {
                format!("not following the other servers since {} s: {reason}", ms.div_ceil(1_000))
            }
        };
        add(Cause::Following, sentence);
    }
    let cause = if keyring.blocks_failed > 0 { Cause::Blocks } else { Cause::Room };
    for fault in &keyring.faults {
        add(cause, format!("keyring: {fault}"));
    }
    if keyring.blocks_failed > 0 {
        let sentence = format!(
            "keyring: {} of {} blocks can't be used, or not wholly; the log says why",
            keyring.blocks_failed, keyring.blocks_total
        );
        add(Cause::Blocks, sentence);
    }
}

/// Each damaged record by name, as far as the status names them, and each id that the index has wrong.
fn damage_faults(damage: &DamageStatus, add: &mut impl FnMut(Cause, String)) {
    let DamageStatus { records, named, lies, lies_met: _ } = damage;
    for record in named {
        add(Cause::Damage, format!("keyring: {record}"));
    }
    let further = records.saturating_sub(named.len() as u64);
    if further > 0 {
        let sentence = format!(
            "keyring: {further} further records were changed outside this service; the log names them"
        );
        add(Cause::Damage, sentence);
    }
    for lie in lies {
        add(Cause::Index, format!("store: {lie}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hsm::TokenStatus,
        keyring::{DamagedRecord, IndexLie, NotFollowing},
        site_health::StoreFacts,
    };
    use kms_core::{BlockNo, MeterId, SystemTitle};

    fn well() -> Facts {
        Facts {
            token: TokenStatus {
                label: "ami".into(),
                model: "m".into(),
                site_kek_id: [0; 16],
                connection_epoch: 1,
                calls: 2,
                fault: None,
            },
            store: StoreFacts { kind: "sqlite", meters: 7, fault: None, standby: None },
            keyring: KeyringStatus { blocks_total: 9, ..KeyringStatus::default() },
            audit_fault: None,
            certificate_faults: Vec::new(),
            replication_faults: Vec::new(),
            floor_faults: Vec::new(),
            counter_faults: Vec::new(),
        }
    }

    fn sentences(facts: &Facts) -> Vec<String> {
        SiteHealth::of(facts).faults.into_iter().map(|fault| fault.sentence).collect()
    }

    #[test]
    fn what_is_wrong_is_said_in_sentences_and_nothing_else_is() {
        assert_eq!(sentences(&well()), [""; 0]);
        assert!(SiteHealth::of(&well()).is_ready());
        let mut facts = well();
        facts.token.fault = Some("no slot".into());
        facts.store.fault = Some(StoreFault::Failed("the database is not reachable".into()));
        facts.keyring.blocks_failed = 2;
        facts.keyring.faults = vec!["no memory".into()];
        facts.keyring.damage = DamageStatus {
            records: 3,
            named: vec![DamagedRecord {
                block: BlockNo(7),
                system_title: SystemTitle::new(*b"KFM\0\0\0\0\x01"),
            }],
            lies: vec![IndexLie {
                meter_id: MeterId::new("m-1").unwrap(),
                system_title: SystemTitle::new(*b"KFM\0\0\0\0\x02"),
            }],
            lies_met: 9,
        };
        facts.audit_fault = Some("not signed".into());
        facts.certificate_faults = vec!["it has expired".into()];
        assert_eq!(
            sentences(&facts),
            [
                "token: no slot",
                "the database is not reachable",
                "keyring: no memory",
                "keyring: 2 of 9 blocks can't be used, or not wholly; the log says why",
                "keyring: the record of meter 4B464D0000000001 in block 7 was changed outside this \
                 service: restore the database, or bury the meter (`ami-tool meter bury --system-title \
                 4B464D0000000001 --block 7`)",
                "keyring: 2 further records were changed outside this service; the log names them",
                "store: the index of meter ids says that m-1 has system title 4B464D0000000002, and the \
                 record there says otherwise: the database was changed outside this service",
                "audit: not signed",
                "it has expired",
            ]
        );
    }

    #[test]
    fn a_standby_that_is_behind_or_hears_nothing_is_a_fault() {
        let mut facts = well();
        facts.store.standby = Some(StandbyLag { bytes: 1, ms: Some(2), receiving: true });
        assert_eq!(sentences(&facts), [""; 0]);
        let bytes = LAG_ALARM_BYTES + 1_000_000;
        facts.store.standby = Some(StandbyLag { bytes, ms: Some(9_000), receiving: false });
        let said = sentences(&facts);
        assert!(said[0].contains("receives nothing") && said[0].ends_with("9 s old"), "{said:?}");
        assert!(said[1].contains("501 MB behind"), "{said:?}");
    }

    #[test]
    fn who_does_not_hear_of_the_others_says_since_when() {
        let mut facts = well();
        let mut said = |since_ms| {
            let reason = "the database is away".to_owned();
            facts.keyring.not_following = Some(NotFollowing { since_ms, reason });
            sentences(&facts).remove(0)
        };
        assert_eq!(said(0), "keyring: the database is away");
        let expected = "not following the other servers since 2 s: the database is away";
        assert_eq!(said(1_500), expected);
    }

    #[test]
    fn a_node_that_has_keys_open_works_on_whatever_it_has_lost() {
        let mut facts = well();
        facts.token.fault = Some("no slot".into());
        facts.store.fault = Some(StoreFault::Silent);
        facts.keyring.blocks_failed = 1;
        facts.keyring.faults = vec!["one".into(), "two".into()];
        let health = SiteHealth::of(&facts);
        assert!(!health.is_ready());
        assert_eq!(
            health.keeps_from_work(),
            [
                "the token did not pass its last check",
                "the database does not answer",
                "blocks of meters can't be opened",
            ]
        );
        facts.keyring.blocks_open = 1;
        assert!(SiteHealth::of(&facts).is_ready());
    }

    #[test]
    fn what_does_not_keep_from_work_does_not_make_a_node_unready() {
        let mut facts = well();
        facts.store.fault = Some(StoreFault::ReadOnly("it takes no changes".into()));
        facts.audit_fault = Some("not signed".into());
        facts.certificate_faults = vec!["due".into()];
        let health = SiteHealth::of(&facts);
        assert!(health.is_ready() && health.faults.len() == 3, "{health:?}");
    }
}
