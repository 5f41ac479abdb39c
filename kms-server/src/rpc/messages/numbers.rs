//! Our enumerations and the wire's: the same items at the same numbers, or this does not compile. An item that
//! is new on one side is asked for on the other.

use kms_core::{
    AssociationForm, KeyKind, KeyState, MinimumProtection, Protection, StateReason, TransferResult,
    Verdict,
    audit::Detail,
    block::reconciling::{Decision, Parting},
    fact::ValueStage,
    life::grouping::MemberState,
    site::role::Role,
    triage::{Cause, Confidence},
};
use kms_proto::v1;

/// Both directions are a `match` without a `_` arm; then the numbers are compared.
macro_rules! same_as {
    ($ours:ident, $wire:ident: $($item:ident)+) => {
        const _: () = {
            const fn to_wire(item: $ours) -> v1::$wire {
                match item { $($ours::$item => v1::$wire::$item,)+ }
            }
            const fn from_wire(item: v1::$wire) -> Option<$ours> {
                match item {
                    v1::$wire::Unspecified => None,
                    $(v1::$wire::$item => Some($ours::$item),)+
                }
            }
            $(
                assert!(to_wire($ours::$item) as i32 == $ours::$item as i32);
                assert!(matches!(from_wire(v1::$wire::$item), Some($ours::$item)));
            )+
        };
    };
}

same_as!(Verdict, Verdict:
    Ok OkUnauthenticated MicFailure Replayed UnknownMeter NoUsableKey PolicyRefused Malformed Unsupported
    Unavailable CompromisedKey);
same_as!(KeyKind, KeyKind: Guek Gbek Gak Kek Dedicated HlsSecret LlsPassword);
same_as!(KeyState, KeyState: PreActive Active Deactivated Compromised Destroyed);
same_as!(StateReason, KeyStateReason:
    Imported Staged Evidence ConfirmedByResult TransferProved Superseded Revived ReportedCompromised Withdrawn
    WipedAfterSuccessor DestroyedOnDemand MadeRoom GoesOnAsAnother Reconciled);
same_as!(AssociationForm, AssociationForm: Glo Ded GeneralGlo GeneralCiphering);
same_as!(TransferResult, TransferResult: Success Refused NoAnswer);
same_as!(Protection, ProtectionLevel: Hsm Memory);
same_as!(Role, SiteRole: Primary Secondary Fenced Replica);
same_as!(MinimumProtection, MinimumProtection: AuthenticatedEncrypted Authenticated);
same_as!(Detail, AuditDetailName:
    Created Updated Unchanged RefusedLines KeysAdded Items After IntervalMs DryRun ItemsInOtherBlocks
    ItemsWithoutBlock Verdict Approval SealedFile SealedSigner SealedChunk
    CounterAtLeast SetAside Resolution AsideDigest Epoch PeerKey KeyKind SecuritySetup KeyVersion StateReason
    WithoutProof Group);
same_as!(ValueStage, GroupValueStage: Rotating Settled Former);
same_as!(MemberState, GroupMemberState:
    NotStaged Staged Sent Failed Unknown ConfirmedByResult Confirmed FellBack Compromised Gone);
same_as!(Parting, Parting:
    NothingNew NewMeter Keys Details Deleted DeletedThere Line Unreadable Fact);
same_as!(Decision, Decision: Accept Discard);
same_as!(Cause, TriageCause:
    NothingWrong OtherVersionFits OtherSetupFits OtherSiteFits CompromisedFits KeysExchanged GakWrong GakMissing
    GuekWrong Replay CounterReset Overtaken Framed FrameDamaged SeveralApdus Truncated NotCiphered Malformed
    Unsupported WrongTitle OtherMetersFrame ClientTitleMissing HeaderRule SuiteMismatch NoKey PolicyRefuses
    SuspectedTamper UnknownMeter Unavailable Unexplained);
same_as!(Confidence, TriageConfidence: Certain Likely Possible);

#[cfg(test)]
mod tests {
    use super::*;
    use kms_core::Numbered;

    /// Words stand in files, in JSON and in the audit log: they are the wire's.
    fn check<T: Numbered>(name_on_the_wire: impl Fn(i32) -> &'static str) {
        for item in T::ALL {
            assert_eq!(item.word(), name_on_the_wire(item.number().into()));
        }
    }

    #[test]
    fn words_are_the_names_of_the_wire() {
        check::<Verdict>(|number| v1::Verdict::try_from(number).unwrap().as_str_name());
        check::<KeyKind>(|number| v1::KeyKind::try_from(number).unwrap().as_str_name());
        check::<KeyState>(|number| v1::KeyState::try_from(number).unwrap().as_str_name());
        check::<Protection>(|number| v1::ProtectionLevel::try_from(number).unwrap().as_str_name());
        check::<Role>(|number| v1::SiteRole::try_from(number).unwrap().as_str_name());
        check::<MinimumProtection>(|number| {
            v1::MinimumProtection::try_from(number).unwrap().as_str_name()
        });
    }
}
