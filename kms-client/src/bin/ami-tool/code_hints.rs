//! The way out of refusals that have a code: of a line, a file, a change, or a step in the life of a key.

use kms_core::RefusalCode;

const LINE: &str = "mend the line in its file, then import it again: the others stay as they are";
const FILE: &str = "have the file sealed again for this site (`site import-key`, `meter seal`)";

/// Those about broadcast groups, as a pattern.
macro_rules! of_groups {
    () => {
        RefusalCode::BreaksBroadcast
            | RefusalCode::GroupKey
            | RefusalCode::GroupMember
            | RefusalCode::UnfitForGroup
            | RefusalCode::NoSuchGroup
            | RefusalCode::GroupState
            | RefusalCode::MembersNotNamed
    };
}

/// The codes of what becomes of campaigns.
macro_rules! of_campaigns {
    () => {
        RefusalCode::NoSuchCampaign
            | RefusalCode::CampaignState
            | RefusalCode::TooManyCampaigns
            | RefusalCode::InAnotherCampaign
            | RefusalCode::LeaseOver
            | RefusalCode::DrivenElsewhere
            | RefusalCode::TooManyMembers
            | RefusalCode::MeterUnknown
    };
}

/// The way out of a refusal: a code without one does not compile.
pub(crate) fn next_after(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::MeterIdTaken
        | RefusalCode::SystemTitleTaken
        | RefusalCode::NameTooLong
        | RefusalCode::TooManyKeys
        | RefusalCode::WrongForm
        | RefusalCode::KeyLength
        | RefusalCode::Protection
        | RefusalCode::SuitesMixed
        | RefusalCode::KeySuperseded
        | RefusalCode::KeyOfAnotherKind
        | RefusalCode::NotTaken
        | RefusalCode::TestKey
        | RefusalCode::SecretNotSealable
        | RefusalCode::TooManyVersions
        | RefusalCode::TooManyFormerKeys
        | RefusalCode::PolicyDiffers
        | RefusalCode::UnknownProfile
        | RefusalCode::MeterDeleted
        | RefusalCode::DryRun
        | RefusalCode::BadField
        | RefusalCode::ClearImportOff
        | RefusalCode::KeyDiffers
        | RefusalCode::MeterNotDeleted
        | RefusalCode::NotSetAside
        | RefusalCode::ListMoved
        | RefusalCode::NotReadable
        | RefusalCode::MeterDamaged
        | RefusalCode::NoRandomness => after_line(code),
        RefusalCode::FileOlder
        | RefusalCode::BadSignature
        | RefusalCode::WrongSite
        | RefusalCode::WrongImportKey
        | RefusalCode::WrongCount
        | RefusalCode::LinesOutOfOrder
        | RefusalCode::FileKeyOfAnother
        | RefusalCode::FileKeyRefused
        | RefusalCode::KeyUnwrapRefused
        | RefusalCode::FileVersion
        | RefusalCode::FileIdTaken
        | RefusalCode::FilesFull
        | RefusalCode::ContentsDiffer
        | RefusalCode::SealedInFuture
        | RefusalCode::UnknownSigner
        | RefusalCode::NotSignersMeter
        | RefusalCode::SignerDiffers
        | RefusalCode::AnotherFile
        | RefusalCode::ChunkOutOfOrder
        | RefusalCode::FileCut => after_file(code),
        RefusalCode::NoKek
        | RefusalCode::KekCompromised
        | RefusalCode::NoKekChange
        | RefusalCode::NotTransferable
        | RefusalCode::NothingStaged
        | RefusalCode::TooManyLiveVersions
        | RefusalCode::NoSuchVersion
        | RefusalCode::KeyState
        | RefusalCode::UnderItself
        | RefusalCode::LegalHold
        | RefusalCode::LastWay
        | RefusalCode::NotProved
        | RefusalCode::NoCarrierTitle => after_key(code),
        of_groups!() => after_group(code),
        of_campaigns!() => after_campaign(code),
    }
}

fn after_line(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::TestKey => {
            "have the right key delivered; `--allow-test-keys` takes it all the same"
        }
        RefusalCode::SecretNotSealable
        | RefusalCode::TooManyVersions
        | RefusalCode::TooManyFormerKeys
        | RefusalCode::PolicyDiffers
        | RefusalCode::UnknownProfile
        | RefusalCode::MeterDeleted
        | RefusalCode::DryRun
        | RefusalCode::BadField => "",
        RefusalCode::ClearImportOff => {
            "have the file sealed for this site (`site import-key`, `meter seal`), then import that"
        }
        RefusalCode::KeyDiffers => {
            "compare with `meter get`; `--add-versions` takes the value as a new version"
        }
        RefusalCode::MeterNotDeleted => "`meter get` shows it",
        RefusalCode::NotSetAside => "`site divergence list` shows what was set aside",
        RefusalCode::ListMoved => {
            "the log of the server that refuses the list says authority and number"
        }
        RefusalCode::NotReadable => "`site divergence show` says what is known of it",
        RefusalCode::MeterDamaged => "`site status` names what is damaged",
        RefusalCode::NoRandomness => {
            "the server's machine gives no random bytes: its operator must look at its log"
        }
        _ => LINE,
    }
}

fn after_file(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::UnknownSigner => {
            "have the signer entered in the server's `import.signers`, or the file signed by one who is"
        }
        RefusalCode::NotSignersMeter => {
            "have the file signed by the one whose range the meter is in, or the ranges of the server's `import.signers` \
             mended"
        }
        RefusalCode::SignerDiffers => {
            "have the signer who brought the meter seal it, or name him in `may_change` of the other one in the \
             server's `import.signers`"
        }
        RefusalCode::AnotherFile => "import one file at a time",
        RefusalCode::ChunkOutOfOrder => "import the file whole, from its beginning",
        RefusalCode::FileCut => "the file's end is missing: copy it again",
        _ => FILE,
    }
}

fn after_group(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::BreaksBroadcast => {
            "`group rotate NAME GAK` changes it at all members; `group remove` takes the meter out first"
        }
        RefusalCode::GroupKey => "`group rotate NAME` makes one value for all members",
        RefusalCode::GroupMember => "`group remove` takes the meter out of its group",
        RefusalCode::UnfitForGroup => {
            "mend what the reason names (`meter get`, `meter set-policy`), then add it again"
        }
        RefusalCode::NoSuchGroup => "`group list` shows all groups",
        RefusalCode::MembersNotNamed => {
            "`group show` says how far members are; name those that are to be left out: `--left-out`"
        }
        _ => "`group show` says how the group stands",
    }
}

fn after_key(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::NothingStaged => {
            "`key stage` has one made; `meter get` shows whether it was proved already, or given up"
        }
        RefusalCode::NoKek => {
            "bring the KEK in (`meter import --add-versions`), or name another of its versions: `--kek-version`"
        }
        RefusalCode::NoKekChange => {
            "where the meter's class 64 has version 1, say `--class-version 1`; a meter with version 0 keeps its KEK for life"
        }
        RefusalCode::NotTransferable => "",
        RefusalCode::TooManyLiveVersions => {
            "`meter get` shows them; `key destroy` gives up one that the meter can't hold any more. A DEACTIVATED one makes \
             room by itself once it is old enough"
        }
        RefusalCode::KekCompromised => {
            "change the KEK by other means, or the meter; where neither can be, two people may say \
             `--under-compromised-kek`, and whoever has the KEK reads the new key"
        }
        RefusalCode::UnderItself => {
            "name the versions that the meter held before: `--encryption-version`, `--authentication-version`"
        }
        RefusalCode::LegalHold => {
            "`key hold ID --lift` lifts it, where whoever asked for the hold agrees"
        }
        RefusalCode::LastWay => {
            "`meter get` shows what else there is; `--last-way` says that it is meant, and takes a second person"
        }
        RefusalCode::NotProved => {
            "run it again when the other site is there (`site status` says why it proves nothing): it goes on with the same \
             key. `key stage --allow-unreplicated` goes on without: if this site is lost then, so is the meter"
        }
        RefusalCode::NoCarrierTitle => {
            "give that client a title of its own (`meter set-policy`, `client_title` or `client_titles`), then run it again"
        }
        _ => "`meter get` shows the meter's keys, their versions and states",
    }
}

fn after_campaign(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::NoSuchCampaign => "`rotate list` shows those that are remembered",
        RefusalCode::CampaignState => {
            "`rotate status NAME` says how it stands; one that is over is not begun again: give a new one another name"
        }
        RefusalCode::TooManyCampaigns => {
            "`rotate list` shows them: let one come to its end, or `rotate cancel NAME`"
        }
        RefusalCode::InAnotherCampaign => {
            "`rotate meter ID` names it: wait until it is over, or `rotate cancel` it"
        }
        RefusalCode::LeaseOver => {
            "nothing was sent: take work anew (TakeWork); a longer `--lease` gives slow meters more time"
        }
        RefusalCode::DrivenElsewhere => {
            "run it again within a minute or two, or name the server that drives it in `endpoints`"
        }
        RefusalCode::TooManyMembers => {
            "make several campaigns of it: `--where profile=…`, `--where title=…`"
        }
        _ => "`meter list` shows what there is",
    }
}
