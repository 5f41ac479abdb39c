//! The quirks of tokens: what they do otherwise than one would expect of PKCS #11, each with its cure and
//! the test that holds the cure. Other files name the quirk; the product that has it is named here alone.

use crate::hsm::Config;

/// What to look at where a library can't be initialised, and says no more than that.
pub(crate) const NEEDED: &str =
    "With SoftHSM that is SOFTHSM2_CONF and the directory of tokens that it names (hsm.token_dir)";

kms_core::numbered! {
    /// The ways in which tokens do otherwise than one would expect.
    pub enum Quirk "quirk" {
        /// Some bytes of each session object are kept until C_Finalize, destroyed or not (242 of them).
        LeaksObjects = 1 "leaks-objects",
        /// C_GenerateKey fails at random while another thread looks for objects.
        CreateMeetsFind = 2 "create-meets-find",
        /// Without CKF_OS_LOCKING_OK it crashes within seconds of use by several threads.
        NeedsLocking = 3 "needs-locking",
        /// Slot numbers change when the library is initialised anew.
        SlotsRenumber = 4 "slots-renumber",
        /// A token that came, or came back, is not seen before the library is initialised anew.
        BlindUntilRestart = 5 "blind-until-restart",
        /// Asked while another process writes the token's files (as a login does), it says
        /// CKR_GENERAL_ERROR for a moment.
        StumblesOverWriter = 6 "stumbles-over-writer",
        /// A token that was read while its files were written stays so: it seems to have no user PIN, or
        /// none of its information can be read.
        ReadsByHalf = 7 "reads-by-half",
        /// In a template for C_UnwrapKey whatever follows CKA_MODIFIABLE=false is refused.
        ModifiableLast = 8 "modifiable-last",
        /// A usage attribute that a template does not say is *true*.
        GrantsTheUnsaid = 9 "grants-the-unsaid",
        /// Keys are acknowledged that a power cut then takes: files are never synced.
        NeverSyncs = 10 "never-syncs",
        /// A forged tag, a damaged blob and a dead disk are one CKR_GENERAL_ERROR; elsewhere tampering is
        /// CKR_DEVICE_ERROR.
        OneCodeForAll = 11 "one-code-for-all",
        /// A key of a length that AES does not have is padded with zeros, silently.
        PadsKeys = 12 "pads-keys",
        /// AES-GCM takes tags of no bits, and cuts long nonces.
        AnyGcmLength = 13 "any-gcm-length",
        /// RSA-OAEP is done with SHA-1 only.
        OaepSha1Only = 14 "oaep-sha1-only",
        /// An unwrapped key takes 8 kB, and all calls slow down from some thousands of them on.
        HeavyObjects = 15 "heavy-objects",
        /// A damaged key file is another key, or one with other attributes, under the old check value.
        DamagedKeysServe = 16 "damaged-keys-serve",
        /// A token that vanished has no keys: C_FindObjects finds none and says CKR_OK.
        GoneLooksEmpty = 17 "gone-looks-empty",
        /// A process that is killed while it makes a key leaves half of one, under the right label.
        LeavesHalfKeys = 18 "leaves-half-keys",
        /// C_Initialize wants a string of parameters of its own.
        WantsParameters = 19 "wants-parameters",
        /// C_Finalize of what was not initialised ends the process.
        AbortsOnFinalize = 20 "aborts-on-finalize",
        /// Once its server is lost every call fails, until the library is initialised anew.
        NeverReconnects = 21 "never-reconnects",
        /// C_GetTokenInfo gives a clock that can't be read, and so nothing.
        UnreadableClock = 22 "unreadable-clock",
        /// Refusals have other codes: CKR_USER_NOT_LOGGED_IN for what only the officer may, and
        /// CKR_ARGUMENTS_BAD for a class or an attribute.
        OtherRefusals = 23 "other-refusals",
        /// Nobody can set CKA_TRUSTED, not even the security officer: sealed KEKs can come to such a token, and
        /// never leave it.
        NobodyTrusts = 24 "nobody-trusts",
        /// Of a key that came by C_UnwrapKey it does not say whether it ever was extractable.
        SilentOnBirth = 25 "silent-on-birth",
    }
}

/// On which tokens a quirk is reckoned with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reckoned {
    /// On each: the cure costs a token without the quirk nothing, and nothing tells the tokens apart.
    Everywhere,
    /// On a token in software, whose files lie in `hsm.token_dir`: a device has no files of ours.
    OnFiles,
}

/// A test that fails when a cure is taken away.
#[derive(Clone, Copy, Debug)]
pub struct HeldBy {
    /// The file, from the workspace's root on.
    pub file: &'static str,
    /// The test function.
    pub test: &'static str,
}

/// The row of one quirk.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The quirk.
    pub quirk: Quirk,
    /// Product and version that it was measured on.
    pub seen_on: &'static str,
    /// The tokens that the cure is for.
    pub reckoned: Reckoned,
    /// The files with the cure, below `src/hsm`; each names the quirk.
    pub handled_in: &'static [&'static str],
    /// The tests of the cure.
    pub held_by: &'static [HeldBy],
}

const SOFTHSM: &str = "SoftHSM 2.6.1";
const EPOCH: &str = "pkcs11/connection/epoch.rs";
const LIBRARY: &str = "pkcs11/connection/library.rs";
const TOKEN: &str = "pkcs11/connection/token.rs";
const CANARY: &str = "pkcs11/keys/canary.rs";
const FINDING: &str = "pkcs11/keys/finding.rs";
const MAKING: &str = "pkcs11/keys/making.rs";
const TEMPLATE: &str = "pkcs11/keys/template.rs";
const SEALED_FILE: &str = "pkcs11/calls/sealed_file.rs";
const WRAPPED_KEYS: &str = "pkcs11/calls/wrapped_keys.rs";
const INIT: &str = "pkcs11/init.rs";

/// All quirks, in the order of their numbers.
pub const TABLE: &[Known] = &[
    Known {
        quirk: Quirk::LeaksObjects,
        seen_on: "SoftHSM 2.6.1; mended in 2.7.0",
        reckoned: Reckoned::Everywhere,
        handled_in: &[TOKEN, EPOCH, "pkcs11/connection/holder.rs", CANARY],
        held_by: &[beside(TOKEN_RS, "an_epoch_ends_before_its_library_has_leaked_128_mib")],
    },
    Known {
        quirk: Quirk::CreateMeetsFind,
        seen_on: "SoftHSM 2.6.1; mended in 2.7.0",
        reckoned: Reckoned::Everywhere,
        handled_in: &[LIBRARY, MAKING, FINDING, "pkcs11/ceremony/receiving.rs"],
        held_by: &[token("a_key_is_made_while_others_look_for_keys")],
    },
    Known {
        quirk: Quirk::NeedsLocking,
        seen_on: SOFTHSM,
        reckoned: Reckoned::Everywhere,
        handled_in: &[LIBRARY],
        held_by: &[contract(
            "many_more_keys_than_the_cache_holds_each_open_their_own_from_many_threads",
        )],
    },
    Known {
        quirk: Quirk::SlotsRenumber,
        seen_on: SOFTHSM,
        reckoned: Reckoned::Everywhere,
        handled_in: &[LIBRARY, INIT],
        held_by: &[goes(COMES_BACK), goes(MADE_OF_BLANK)],
    },
    Known {
        quirk: Quirk::BlindUntilRestart,
        seen_on: SOFTHSM,
        reckoned: Reckoned::Everywhere,
        handled_in: &[LIBRARY, TOKEN],
        held_by: &[goes(COMES_BACK), token("a_token_is_found_while_another_process_logs_in_to_it")],
    },
    Known {
        quirk: Quirk::StumblesOverWriter,
        seen_on: SOFTHSM,
        reckoned: Reckoned::Everywhere,
        handled_in: &[LIBRARY],
        held_by: &[goes("a_token_that_was_read_by_half_is_read_again")],
    },
    Known {
        quirk: Quirk::ReadsByHalf,
        seen_on: SOFTHSM,
        reckoned: Reckoned::OnFiles,
        handled_in: &["pkcs11/failure.rs", LIBRARY],
        held_by: &[
            goes("a_token_that_was_read_by_half_is_read_again"),
            token("a_token_is_found_while_another_process_logs_in_to_it"),
        ],
    },
    Known {
        quirk: Quirk::ModifiableLast,
        seen_on: "SoftHSM 2.6.1; mended in 2.7.0",
        reckoned: Reckoned::Everywhere,
        handled_in: &[TEMPLATE],
        held_by: &[beside(TEMPLATE_RS, "modifiable_stands_last_in_every_template")],
    },
    Known {
        quirk: Quirk::GrantsTheUnsaid,
        seen_on: SOFTHSM,
        reckoned: Reckoned::Everywhere,
        handled_in: &[TEMPLATE],
        held_by: &[beside(TEMPLATE_RS, "a_template_says_every_usage_and_grants_only_its_own")],
    },
    Known {
        quirk: Quirk::NeverSyncs,
        seen_on: SOFTHSM,
        reckoned: Reckoned::OnFiles,
        handled_in: &[INIT],
        held_by: &[goes("init_whose_keys_cannot_be_synced_says_so")],
    },
    Known {
        quirk: Quirk::OneCodeForAll,
        seen_on: "SoftHSM 2.6.1; CKR_DEVICE_ERROR: Kryoptic 1.5.4",
        reckoned: Reckoned::Everywhere,
        handled_in: &["pkcs11/failure.rs", TOKEN, SEALED_FILE, WRAPPED_KEYS],
        held_by: &[
            beside(
                "kms-server/src/hsm/pkcs11/failure.rs",
                "a_general_error_is_not_taken_for_tampering",
            ),
            goes("a_wrapped_key_is_not_called_forged_because_the_token_is_gone"),
        ],
    },
    Known {
        quirk: Quirk::PadsKeys,
        seen_on: SOFTHSM,
        reckoned: Reckoned::Everywhere,
        handled_in: &["lengths.rs"],
        held_by: &[
            contract("a_clear_key_that_is_no_aes_key_is_not_wrapped"),
            contract("a_wrapped_key_of_a_wrong_length_or_with_any_bit_flipped_is_refused"),
        ],
    },
    Known {
        quirk: Quirk::AnyGcmLength,
        seen_on: SOFTHSM,
        reckoned: Reckoned::Everywhere,
        handled_in: &["pkcs11/calls/gcm.rs"],
        held_by: &[contract("a_seal_with_any_bit_flipped_or_of_any_other_length_does_not_open")],
    },
    Known {
        quirk: Quirk::OaepSha1Only,
        seen_on: SOFTHSM,
        reckoned: Reckoned::Everywhere,
        handled_in: &["config.rs", "pkcs11/probe/report.rs"],
        held_by: &[refuses(
            "an_oaep_hash_that_the_token_lacks_is_one_sentence_that_names_the_setting",
        )],
    },
    Known {
        quirk: Quirk::HeavyObjects,
        seen_on: SOFTHSM,
        reckoned: Reckoned::Everywhere,
        handled_in: &["config.rs", "pkcs11/connection/holder.rs"],
        held_by: &[
            beside(
                "kms-server/src/hsm/config.rs",
                "a_setting_outside_its_bounds_is_refused_by_name",
            ),
            contract("many_more_keys_than_the_cache_holds_each_open_their_own_from_many_threads"),
        ],
    },
    Known {
        quirk: Quirk::DamagedKeysServe,
        seen_on: SOFTHSM,
        reckoned: Reckoned::Everywhere,
        handled_in: &[CANARY, EPOCH],
        held_by: &[goes("canaries_of_other_keys_are_refused_and_name_the_kek")],
    },
    Known {
        quirk: Quirk::GoneLooksEmpty,
        seen_on: SOFTHSM,
        reckoned: Reckoned::Everywhere,
        handled_in: &[EPOCH, "pkcs11/calls/signing.rs"],
        held_by: &[goes("a_kek_that_went_is_a_fault_of_the_device_and_names_the_kek")],
    },
    Known {
        quirk: Quirk::LeavesHalfKeys,
        seen_on: SOFTHSM,
        reckoned: Reckoned::Everywhere,
        handled_in: &[CANARY],
        held_by: &[
            goes("a_second_key_with_the_name_and_id_of_a_kek_is_refused_by_name"),
            beside(
                "softhsm-tests/tests/check_config.rs",
                "an_init_that_was_killed_is_begun_again_as_the_handbook_says",
            ),
        ],
    },
    Known {
        quirk: Quirk::WantsParameters,
        seen_on: "NSS softokn 3.87.1 and 3.110",
        reckoned: Reckoned::Everywhere,
        handled_in: &[LIBRARY],
        held_by: &[refuses("nothing_is_finalised_that_was_not_initialised")],
    },
    Known {
        quirk: Quirk::AbortsOnFinalize,
        seen_on: "p11-kit 0.25.5, strict",
        reckoned: Reckoned::Everywhere,
        handled_in: &[LIBRARY],
        held_by: &[refuses("nothing_is_finalised_that_was_not_initialised")],
    },
    Known {
        quirk: Quirk::NeverReconnects,
        seen_on: "p11-kit remoting 0.24.1 to 0.26.5",
        reckoned: Reckoned::Everywhere,
        handled_in: &[TOKEN],
        held_by: &[refuses(
            "a_library_whose_server_went_and_came_back_is_taken_up_without_a_restart",
        )],
    },
    Known {
        quirk: Quirk::UnreadableClock,
        seen_on: "openCryptoki 3.8.1",
        reckoned: Reckoned::Everywhere,
        handled_in: &[LIBRARY],
        held_by: &[refuses("a_token_whose_information_cannot_be_read_is_not_called_missing")],
    },
    Known {
        quirk: Quirk::OtherRefusals,
        seen_on: "Kryoptic 1.5.4",
        reckoned: Reckoned::Everywhere,
        handled_in: &["pkcs11/probe/attacks.rs", "pkcs11/probe/table.rs"],
        held_by: &[refuses("a_refusal_in_other_words_is_a_refusal")],
    },
    Known {
        quirk: Quirk::NobodyTrusts,
        seen_on: "Kryoptic 1.5.4",
        reckoned: Reckoned::Everywhere,
        handled_in: &[
            "pkcs11/ceremony/trusting.rs",
            "pkcs11/probe/attacks.rs",
            "pkcs11/probe/report.rs",
        ],
        held_by: &[HeldBy {
            file: "kms-server/tests/hsm_ceremony.rs",
            test: "a_token_that_lets_nobody_trust_a_key_is_said_never_to_hand_its_keks_on",
        }],
    },
    Known {
        quirk: Quirk::SilentOnBirth,
        seen_on: "Kryoptic 1.5.4",
        reckoned: Reckoned::Everywhere,
        handled_in: &[TEMPLATE],
        held_by: &[
            beside(
                TEMPLATE_RS,
                "a_token_may_be_silent_on_where_a_received_key_was_and_may_not_say_otherwise",
            ),
            beside(
                "softhsm-tests/tests/other_tokens.rs",
                "a_site_on_another_vendors_token_joins_one_on_softhsm_takes_over_and_is_followed",
            ),
        ],
    },
];

const _: () = {
    assert!(TABLE.len() == Quirk::ALL.len(), "each quirk has a row");
    let mut at = 0;
    while at < TABLE.len() {
        assert!(TABLE[at].quirk as usize == at + 1, "the table is in the order of the quirks");
        at += 1;
    }
};

const TOKEN_RS: &str = "kms-server/src/hsm/pkcs11/connection/token.rs";
const TEMPLATE_RS: &str = "kms-server/src/hsm/pkcs11/keys/template.rs";
const COMES_BACK: &str = "a_token_directory_that_goes_and_comes_back_is_used_again_in_a_new_epoch";
const MADE_OF_BLANK: &str = "init_makes_a_token_of_a_blank_one_and_says_the_fingerprints";

const fn beside(file: &'static str, test: &'static str) -> HeldBy {
    HeldBy { file, test }
}

/// A test on every token that there is.
const fn contract(test: &'static str) -> HeldBy {
    beside("kms-server/tests/hsm_contract/mod.rs", test)
}

/// A test on a token that does what it should.
const fn token(test: &'static str) -> HeldBy {
    beside("kms-server/tests/hsm_token.rs", test)
}

/// A test on a token that goes, comes back, or is not what it was.
const fn goes(test: &'static str) -> HeldBy {
    beside("kms-server/tests/hsm_faults.rs", test)
}

/// A test on a token that refuses.
const fn refuses(test: &'static str) -> HeldBy {
    beside("kms-server/tests/token_refused.rs", test)
}

impl Quirk {
    /// The quirk's row.
    pub const fn known(self) -> &'static Known {
        &TABLE[self as usize - 1]
    }

    /// Whether the token of `config` is taken to have it: decided here and nowhere else.
    pub fn is_reckoned_with(self, config: &Config) -> bool {
        match self.known().reckoned {
            Reckoned::Everywhere => true,
            Reckoned::OnFiles => config.sync_dir.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    use super::*;
    use crate::hsm::config::tests::config;

    /// Where somebody has to be told of the product by its name, and why.
    const NAMED_ELSEWHERE: &[(&str, &str)] = &[];

    fn workspace() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else {
                found.push(path);
            }
        }
    }

    #[test]
    fn every_quirk_is_handled_where_the_table_says() {
        for known in TABLE {
            assert!(!known.handled_in.is_empty(), "{:?}", known.quirk);
            for file in known.handled_in {
                let path = workspace().join("kms-server/src/hsm").join(file);
                let text = fs::read_to_string(&path).unwrap_or_default();
                let name = format!("Quirk::{:?}", known.quirk);
                assert!(text.contains(&name), "{file} does not name {name}");
            }
        }
    }

    #[test]
    fn every_file_that_names_a_quirk_stands_in_its_row() {
        let home = workspace().join("kms-server/src/hsm");
        let mut files = Vec::new();
        sources(&home, &mut files);
        for file in files.iter().filter(|file| !file.ends_with("quirks.rs")) {
            let text = fs::read_to_string(file).unwrap();
            for known in TABLE {
                let named = text.contains(&format!("Quirk::{:?}", known.quirk));
                let listed = known.handled_in.iter().any(|it| home.join(it) == *file);
                assert_eq!(named, listed, "{:?} in {}", known.quirk, file.display());
            }
        }
    }

    #[test]
    fn every_cure_is_held_by_a_test_that_there_is() {
        for known in TABLE {
            assert!(!known.held_by.is_empty(), "{:?}", known.quirk);
            for HeldBy { file, test } in known.held_by {
                let text = fs::read_to_string(workspace().join(file)).unwrap_or_default();
                assert!(text.contains(&format!("fn {test}(")), "{file} has no test {test}");
            }
        }
    }

    #[test]
    fn no_other_file_of_hsm_names_the_product() {
        let home = workspace().join("kms-server/src/hsm");
        let mut files = Vec::new();
        sources(&home, &mut files);
        assert!(files.len() > 30, "only {} files were found: the walk is broken", files.len());
        for file in files {
            let text = fs::read_to_string(&file).unwrap().to_lowercase();
            let path = file.strip_prefix(&home).unwrap().to_string_lossy().into_owned();
            let allowed =
                path == "pkcs11/quirks.rs" || NAMED_ELSEWHERE.iter().any(|(file, _)| *file == path);
            assert_eq!(text.contains("softhsm"), allowed, "{path}");
        }
    }

    #[test]
    fn a_device_is_not_taken_for_a_token_in_files() {
        let (device, files) = (config(), Config { sync_dir: Some("/t".into()), ..config() });
        for quirk in Quirk::ALL {
            let on_files = quirk.known().reckoned == Reckoned::OnFiles;
            assert!(quirk.is_reckoned_with(&files), "{quirk}");
            assert_eq!(quirk.is_reckoned_with(&device), !on_files, "{quirk}");
        }
    }
}
