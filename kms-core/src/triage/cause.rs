//! Causes, what each means, and what to do about it.

crate::numbered! {
    /// A reason why frames of a meter don't open. The numbers are those of the wire.
    pub enum Cause "cause" {
        /// Nothing is wrong with them.
        NothingWrong = 1 "NOTHING_WRONG",
        /// Another version of the meter's keys fits than the newest that protects.
        OtherVersionFits = 2 "OTHER_VERSION_FITS",
        /// Keys of another security setup fit than the one that was named.
        OtherSetupFits = 3 "OTHER_SETUP_FITS",
        /// A key fits that only the other site had: its record was set aside.
        OtherSiteFits = 4 "OTHER_SITE_FITS",
        /// A key fits that was declared compromised.
        CompromisedFits = 5 "COMPROMISED_FITS",
        /// Encryption key and GAK fit in each other's place.
        KeysExchanged = 6 "KEYS_EXCHANGED",
        /// The encryption key seems right, and no GAK fits.
        GakWrong = 7 "GAK_WRONG",
        /// The meter has no GAK here.
        GakMissing = 8 "GAK_MISSING",
        /// No encryption key of the meter seems right.
        GuekWrong = 9 "GUEK_WRONG",
        /// The message was taken before.
        Replay = 10 "REPLAY",
        /// The meter counts anew under the same key.
        CounterReset = 11 "COUNTER_RESET",
        /// Later messages came before it.
        Overtaken = 12 "OVERTAKEN",
        /// What carries it on its line is still around it.
        Framed = 13 "FRAMED",
        /// What carries it was damaged.
        FrameDamaged = 14 "FRAME_DAMAGED",
        /// Several APDUs stand one after the other.
        SeveralApdus = 15 "SEVERAL_APDUS",
        /// Its end is missing.
        Truncated = 16 "TRUNCATED",
        /// It is not ciphered.
        NotCiphered = 17 "NOT_CIPHERED",
        /// It is no APDU.
        Malformed = 18 "MALFORMED",
        /// It is of a kind that is not opened here.
        Unsupported = 19 "UNSUPPORTED",
        /// The meter's keys fit under another system title than its record has.
        WrongTitle = 20 "WRONG_TITLE",
        /// It is another meter's.
        OtherMetersFrame = 21 "OTHER_METERS_FRAME",
        /// The meter's policy lacks the title of the utility's client.
        ClientTitleMissing = 22 "CLIENT_TITLE_MISSING",
        /// The header of general-ciphering is to be left out of what the tag covers, or taken in.
        HeaderRule = 23 "HEADER_RULE",
        /// The meter's keys have another length than the frame's security suite.
        SuiteMismatch = 24 "SUITE_MISMATCH",
        /// The meter has no key of the kind that the frame asks for.
        NoKey = 25 "NO_KEY",
        /// The meter's policy demands more protection.
        PolicyRefuses = 26 "POLICY_REFUSES",
        /// It was changed on its way: some of the meter's frames verify and this one does not.
        SuspectedTamper = 27 "SUSPECTED_TAMPER",
        /// There is no such meter.
        UnknownMeter = 28 "UNKNOWN_METER",
        /// The meter's keys or floors can't be reached now.
        Unavailable = 29 "UNAVAILABLE",
        /// None of the above could be told.
        Unexplained = 30 "UNEXPLAINED",
    }
}

crate::numbered! {
    /// The worth of a cause. `docs/design/triage.md` says what each is measured by.
    pub enum Confidence "confidence" {
        /// A tag verified that shows it, or it stands in the bytes or in the record.
        Certain = 1 "CERTAIN",
        /// By statistics over several frames, or because nothing else that is known explains it.
        Likely = 2 "LIKELY",
        /// It fits, and something else fits as well.
        Possible = 3 "POSSIBLE",
    }
}

// The longer ones of what to do.
const NOTHING_WRONG: &str = "look at the caller: which bytes did it send, and for which meter?";
const OTHER_VERSION_FITS: &str = "leave the older version in place; see why the meter has not taken the newer one, or has it already";
const OTHER_SITE_FITS: &str =
    "`ami-tool site divergence list`, then accept the record: its keys come in as newer versions";
const COMPROMISED_FITS: &str = "rotate the meter's key: until then what it sends stays closed";
const KEYS_EXCHANGED: &str = "no import mends it, since one value has one use: the meter needs new keys; try the rest of the delivery \
    with `meter check-keys` before it is imported";
const GAK_WRONG: &str = "ask the supplier for the meter's GAK, try it with `meter check-keys`, import it with --add-versions";
const GAK_MISSING: &str = "import the meter's GAK; if nobody gives it out, the policy's allow_withheld_authentication_key lets its \
    frames through, marked as unauthenticated";
const GUEK_WRONG: &str = "ask the supplier for the meter's encryption key, try it with `meter check-keys`, import it with \
    --add-versions; or the frames are of a meter that was exchanged";
const REPLAY: &str =
    "find out who sends it again; a collector that sends again is harmless within a minute";
const COUNTER_RESET: &str = "find out whether the meter was exchanged or reset; give it a new key, since its counters may not be \
    used twice, or a profile without floors";
const FRAMED: &str = "take the frame off before Decrypt is called; `ami-tool` and `dlms::frame` do";
const NOT_CIPHERED: &str =
    "do not send it to Decrypt; if the meter should cipher, look at its security policy";
const WRONG_TITLE: &str = "compare the nameplate; correct the title by importing the meter under it, or set the policy's \
    default_system_title";
const OTHER_METERS_FRAME: &str = "look at the collector's table of meters: it names the wrong one";
const CLIENT_TITLE_MISSING: &str =
    "set the policy's client_title, or client_titles for that client";
const HEADER_RULE: &str =
    "change the policy's general_ciphering_omit_header for meters of this make";
const SUITE_MISMATCH: &str =
    "compare the meter's security suite with the delivery: the keys are of another suite";
const POLICY_REFUSES: &str = "find out whether the meter is set up rightly; a weaker policy is a decision of its own (`meter set-policy`)";
const SUSPECTED_TAMPER: &str = "compare with the same frame at another place of the line; where its checksum held, it was not the line";
const UNEXPLAINED: &str = "give at least three frames with different counters; ask the other site too (--site); then the delivery";

impl Cause {
    /// One sentence for people.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::NothingWrong => "nothing is wrong with these frames: Decrypt opens them",
            Self::OtherVersionFits => {
                "the meter uses another version of its keys than the newest active one; Decrypt opens it"
            }
            Self::OtherSetupFits => "keys of another security setup than the named one fit",
            Self::OtherSiteFits => {
                "a key fits that only the other site had: the record with it was set aside after a failover"
            }
            Self::CompromisedFits => "the meter still uses a key that was declared compromised",
            Self::KeysExchanged => "the meter's encryption key and GAK stand in each other's place",
            Self::GakWrong => {
                "the encryption key seems to be the meter's, and the GAK is not: a wrong one was imported, or the right \
                 one is withheld"
            }
            Self::GakMissing => "the meter has no live GAK here to verify its tags with",
            Self::GuekWrong => "no encryption key that the meter has here seems to be its own",
            Self::Replay => "the message was taken before",
            Self::CounterReset => {
                "the meter counts anew under the same key, as after an exchange of its board"
            }
            Self::Overtaken => "later messages of the meter came before this one",
            Self::Framed => "what carried the APDU on its line is still around it",
            Self::FrameDamaged => "what carries the APDU on its line is damaged",
            Self::SeveralApdus => "several APDUs stand one after the other",
            Self::Truncated => "the end of the frame is missing",
            Self::NotCiphered => "the APDU is not ciphered: there is nothing to open",
            Self::Malformed => "this is no APDU",
            Self::Unsupported => "the service does not open APDUs of this kind",
            Self::WrongTitle => {
                "the meter's keys fit under another system title than the one that is taken for it"
            }
            Self::OtherMetersFrame => "the frame carries another system title",
            Self::ClientTitleMissing => {
                "the utility's side sent this, and the meter's policy does not have that client's title"
            }
            Self::HeaderRule => {
                "the tag verifies with the other rule about the header of general-ciphering"
            }
            Self::SuiteMismatch => {
                "the meter's keys have another length than the security suite in the frame"
            }
            Self::NoKey => "the meter has no live key of the kind that the frame asks for",
            Self::PolicyRefuses => "the frame is protected less than the meter's policy demands",
            Self::SuspectedTamper => {
                "other frames of this meter verify and this one does not: it was changed on its way"
            }
            Self::UnknownMeter => "there is no such meter here",
            Self::Unavailable => "the meter's keys or floors can't be reached now",
            Self::Unexplained => "the tag verifies under no key that is known here",
        }
    }

    /// The next thing to do.
    pub const fn next_step(self) -> &'static str {
        match self {
            Self::NothingWrong => NOTHING_WRONG,
            Self::OtherVersionFits => OTHER_VERSION_FITS,
            Self::OtherSetupFits => "name that security setup, or none",
            Self::OtherSiteFits => OTHER_SITE_FITS,
            Self::CompromisedFits => COMPROMISED_FITS,
            Self::KeysExchanged => KEYS_EXCHANGED,
            Self::GakWrong => GAK_WRONG,
            Self::GakMissing => GAK_MISSING,
            Self::GuekWrong => GUEK_WRONG,
            Self::Replay => REPLAY,
            Self::CounterReset => COUNTER_RESET,
            Self::Overtaken => "if the line reorders, give the meter a profile with a window",
            Self::Framed => FRAMED,
            Self::FrameDamaged => "read it from the line again; look at the modem or concentrator",
            Self::SeveralApdus => "send each APDU as an item of its own",
            Self::Truncated => "read it whole: look at the collector's longest message",
            Self::NotCiphered => NOT_CIPHERED,
            Self::Malformed => "look at what the collector recorded: it may be another protocol",
            Self::Unsupported => "see docs/design/decryption.md for what is opened",
            Self::WrongTitle => WRONG_TITLE,
            Self::OtherMetersFrame => OTHER_METERS_FRAME,
            Self::ClientTitleMissing => CLIENT_TITLE_MISSING,
            Self::HeaderRule => HEADER_RULE,
            Self::SuiteMismatch => SUITE_MISMATCH,
            Self::NoKey => "import that key, or name another security setup",
            Self::PolicyRefuses => POLICY_REFUSES,
            Self::SuspectedTamper => SUSPECTED_TAMPER,
            Self::UnknownMeter => "import the meter, or name the right one",
            Self::Unavailable => "try again; see `site status`",
            Self::Unexplained => UNEXPLAINED,
        }
    }
}
