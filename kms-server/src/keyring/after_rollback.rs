//! When a site that was put back may go on without being told an epoch.

use kms_core::site::{
    restored::RestoreMark,
    role::{Role, RoleChange, SignedRoleRecord, Standing},
};

/// Whether the other site ended its epoch after the rollback: then that epoch is the highest one. If it ended it before,
/// this site may have taken the next one already, and has forgotten it.
pub(super) fn is_since(
    mark: &RestoreMark,
    records: &[SignedRoleRecord],
    standing: &Standing,
) -> bool {
    let end = (standing.epoch, RoleChange::Demotion);
    let ends = records.iter().map(|signed| &signed.record).filter(|record| record.place() == end);
    let ended_ms = ends.map(|record| record.at_ms).max();
    standing.role == Role::Secondary && ended_ms.is_some_and(|at_ms| at_ms > mark.at_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kms_core::{
        DomainId, Epoch,
        site::{restored::RolledBackBy, role::RoleRecord},
    };

    #[test]
    fn only_an_end_after_the_rollback_says_that_its_epoch_is_the_highest() {
        let mark = RestoreMark {
            domain: DomainId([7; 16]),
            site: "north".to_owned(),
            id: [3; 16],
            by: RolledBackBy::Backup,
            at_ms: 50,
            epoch: Epoch(3),
            from: "backup of yesterday".to_owned(),
        };
        let end = |change, epoch, at_ms| SignedRoleRecord {
            record: RoleRecord {
                domain: DomainId([7; 16]),
                site: "south".to_owned(),
                change,
                epoch: Epoch(epoch),
                after: Epoch(epoch),
                at_ms,
                heads: Vec::new(),
            },
            signature: [0; 64],
        };
        let standing = Standing { role: Role::Secondary, epoch: Epoch(3), open: false };
        let is = |records: &[SignedRoleRecord]| is_since(&mark, records, &standing);
        assert!(is(&[end(RoleChange::Demotion, 3, 51)]));
        assert!(!is(&[end(RoleChange::Demotion, 3, 50)]), "before: epoch 4 may have been taken");
        assert!(!is(&[end(RoleChange::Promotion, 3, 51), end(RoleChange::Demotion, 1, 51)]));
        assert!(!is(&[]));
    }
}
