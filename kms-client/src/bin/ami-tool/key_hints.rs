//! The way out of refusals about the life of keys.

pub(crate) const STAGE: &str =
    "`key stage` has one made; `meter get` shows whether it was proved already, or given up";
pub(crate) const NO_KEK: &str = "bring the KEK in (`meter import --add-versions`), or name another of its versions: \
    `--kek-version`";
pub(crate) const CLASS_VERSION: &str = "where the meter's class 64 has version 1, say `--class-version 1`; a meter with \
    version 0 keeps its KEK for life";
pub(crate) const LOOK: &str = "`meter get` shows the meter's keys, their versions and states";
pub(crate) const TOO_MANY_LIVE: &str = "`meter get` shows them; `key destroy` gives up one that the meter can't hold any \
    more. A DEACTIVATED one makes room by itself once it is old enough";
pub(crate) const KEK_COMPROMISED: &str = "change the KEK by other means, or the meter; where neither can be, two people may \
    say `--under-compromised-kek`, and whoever has the KEK reads the new key";
pub(crate) const UNDER_ITSELF: &str = "name the versions that the meter held before: `--encryption-version`, \
    `--authentication-version`";
pub(crate) const LEGAL_HOLD: &str =
    "`key hold ID --lift` lifts it, where whoever asked for the hold agrees";
pub(crate) const LAST_WAY: &str = "`meter get` shows what else there is; `--last-way` says that it is meant, and takes a second person";
pub(crate) const NOT_PROVED: &str = "run it again when the other site is there (`site status` says why it proves nothing): it \
    goes on with the same key. `key stage --allow-unreplicated` goes on without: if this site is lost then, so is the meter";
pub(crate) const NO_CARRIER_TITLE: &str = "give that client a title of its own (`meter set-policy`, `client_titles`); a key \
    that was staged over the wrong client is given up by `key destroy` and staged anew with `--carrier-setup`, `--carrier-client`";
