//! Refusals of a line of an import, a file or a meter's change: one code for each reason, for
//! server and tools.

crate::numbered! {
    /// The code of a refusal. Its word goes over the wire, as in `google.rpc.ErrorInfo`.
    pub enum RefusalCode "refusal code" {
        /// The id is another title's.
        MeterIdTaken = 1 "METER_ID_TAKEN",
        /// The title is another id's.
        SystemTitleTaken = 2 "SYSTEM_TITLE_TAKEN",
        /// The logical device name is too long.
        NameTooLong = 3 "NAME_TOO_LONG",
        /// The line has more keys than a meter.
        TooManyKeys = 4 "TOO_MANY_KEYS",
        /// Keys in clear where wrapped ones belong, or the other way round.
        WrongForm = 5 "WRONG_FORM",
        /// Not a length that a key of its kind has.
        KeyLength = 6 "KEY_LENGTH",
        /// A protection that makes no sense for the kind.
        Protection = 7 "PROTECTION",
        /// A key that everybody knows.
        TestKey = 8 "TEST_KEY",
        /// A secret of free length in a sealed file.
        SecretNotSealable = 9 "SECRET_NOT_SEALABLE",
        /// Keys of one setup that are not of one security suite.
        SuitesMixed = 10 "SUITES_MIXED",
        /// Keys in clear, where the site takes none.
        ClearImportOff = 11 "CLEAR_IMPORT_OFF",
        /// Another value than the one that is known.
        KeyDiffers = 12 "KEY_DIFFERS",
        /// A value that a newer one has replaced.
        KeySuperseded = 13 "KEY_SUPERSEDED",
        /// A value that is known as a key of another kind.
        KeyOfAnotherKind = 14 "KEY_OF_ANOTHER_KIND",
        /// More versions than a key may have.
        TooManyVersions = 15 "TOO_MANY_VERSIONS",
        /// The meter had more keys than a record remembers.
        TooManyFormerKeys = 16 "TOO_MANY_FORMER_KEYS",
        /// Another policy than the one that is known.
        PolicyDiffers = 17 "POLICY_DIFFERS",
        /// The meter was deleted.
        MeterDeleted = 18 "METER_DELETED",
        /// There is nothing to readmit.
        MeterNotDeleted = 19 "METER_NOT_DELETED",
        /// The meter's record can't be read.
        MeterDamaged = 20 "METER_DAMAGED",
        /// The line is older than what changed the meter last.
        FileOlder = 21 "FILE_OLDER",
        /// The token has not taken the key.
        NotTaken = 22 "NOT_TAKEN",
        /// No random bytes for an id.
        NoRandomness = 23 "NO_RANDOMNESS",
        /// It would have been done.
        DryRun = 24 "DRY_RUN",
        /// A field can't be read.
        BadField = 25 "BAD_FIELD",
        /// The signature is not the signer's.
        BadSignature = 26 "BAD_SIGNATURE",
        /// The signer is nobody whose files are taken.
        UnknownSigner = 27 "UNKNOWN_SIGNER",
        /// The file is sealed for another key domain.
        WrongSite = 28 "WRONG_SITE",
        /// The file is sealed to another key.
        WrongImportKey = 29 "WRONG_IMPORT_KEY",
        /// The file has another number of lines than it says.
        WrongCount = 30 "WRONG_COUNT",
        /// Lines are not in the order of their numbers.
        LinesOutOfOrder = 31 "LINES_OUT_OF_ORDER",
        /// The signer does not know the file's key.
        FileKeyOfAnother = 32 "FILE_KEY_OF_ANOTHER",
        /// The file's own key does not open.
        FileKeyRefused = 33 "FILE_KEY_REFUSED",
        /// A key does not open under the file's key.
        KeyUnwrapRefused = 34 "KEY_UNWRAP_REFUSED",
        /// An older release sealed the file.
        FileVersion = 35 "FILE_VERSION",
        /// The file is from the future.
        SealedInFuture = 36 "SEALED_IN_FUTURE",
        /// A chunk of another file.
        AnotherFile = 37 "ANOTHER_FILE",
        /// A chunk that does not follow.
        ChunkOutOfOrder = 38 "CHUNK_OUT_OF_ORDER",
        /// The end is missing.
        FileCut = 39 "FILE_CUT",
        /// A device profile that the site does not have.
        UnknownProfile = 40 "UNKNOWN_PROFILE",
        /// No record of this id was set aside.
        NotSetAside = 41 "NOT_SET_ASIDE",
        /// The record that was set aside can't be read.
        NotReadable = 42 "NOT_READABLE",
        /// Another file of this signer has the number.
        FileIdTaken = 43 "FILE_ID_TAKEN",
        /// No further file can be remembered where this one belongs.
        FilesFull = 44 "FILES_FULL",
        /// The domain remembers another number of the revocation list, or it can't be forgotten so.
        ListMoved = 45 "LIST_MOVED",
        /// The meter has no KEK that a key could travel under.
        NoKek = 46 "NO_KEK",
        /// The KEK is known to others: what travels under it is, too.
        KekCompromised = 47 "KEK_COMPROMISED",
        /// The meter's class 64 has no change of the KEK.
        NoKekChange = 48 "NO_KEK_CHANGE",
        /// Keys of this kind do not travel by key_transfer.
        NotTransferable = 49 "NOT_TRANSFERABLE",
        /// Nothing is staged there.
        NothingStaged = 50 "NOTHING_STAGED",
        /// Four versions are tried on what a meter sends, and it has four.
        TooManyLiveVersions = 51 "TOO_MANY_LIVE_VERSIONS",
        /// There is no such version of the key.
        NoSuchVersion = 52 "NO_SUCH_KEY_VERSION",
        /// The key's state does not allow it.
        KeyState = 53 "KEY_STATE",
        /// A key does not travel under itself.
        UnderItself = 54 "TRANSFER_UNDER_ITSELF",
        /// Nothing of the meter may be destroyed.
        LegalHold = 55 "LEGAL_HOLD",
        /// It would take the last way to reach the meter.
        LastWay = 56 "LAST_WAY",
        /// The other site has not proved that it has the key.
        NotProved = 57 "NOT_PROVED",
        /// The carrier has no client title, or the meter's own.
        NoCarrierTitle = 58 "NO_CARRIER_TITLE",
        /// The meter is in another signer's range, or out of this one's.
        NotSignersMeter = 59 "NOT_SIGNERS_METER",
        /// Another signer's file changed the meter last.
        SignerDiffers = 60 "SIGNER_DIFFERS",
        /// A line has what the file's header does not name.
        ContentsDiffer = 61 "CONTENTS_DIFFER",
        /// There is no such campaign.
        NoSuchCampaign = 62 "NO_SUCH_CAMPAIGN",
        /// The campaign does not stand so that this can be done.
        CampaignState = 63 "CAMPAIGN_STATE",
        /// As many campaigns are live as a domain has place for.
        TooManyCampaigns = 64 "TOO_MANY_CAMPAIGNS",
        /// The meter is a member of another live campaign.
        InAnotherCampaign = 65 "IN_ANOTHER_CAMPAIGN",
        /// The lease is over, or is another meter's.
        LeaseOver = 66 "LEASE_OVER",
        /// Another node of the site drives the campaign.
        DrivenElsewhere = 67 "DRIVEN_ELSEWHERE",
        /// A campaign has no place for so many members.
        TooManyMembers = 68 "TOO_MANY_MEMBERS",
        /// There is no such meter.
        MeterUnknown = 69 "METER_UNKNOWN",
        /// A GAK of one meter alone would end the authenticated broadcasts of its group.
        BreaksBroadcast = 70 "BREAKS_BROADCAST",
        /// The key belongs to a broadcast group, and is rotated with it.
        GroupKey = 71 "GROUP_KEY",
        /// The meter is a member of a broadcast group.
        GroupMember = 72 "GROUP_MEMBER",
        /// The meter can't be a member of this group.
        UnfitForGroup = 73 "UNFIT_FOR_GROUP",
        /// There is no such group.
        NoSuchGroup = 74 "NO_SUCH_GROUP",
        /// The group is not such that it could be done.
        GroupState = 75 "GROUP_STATE",
        /// Members would be left out that nobody has named.
        MembersNotNamed = 76 "MEMBERS_NOT_NAMED",
    }
}
