//! Whether this site's token can hand its sealed KEKs on, as it is noted in `data_dir`: only the security officer can find
//! out, and he is there when the token is made and when another site is to be trusted. Servers beside the note tell it.

use std::{fs, io, os::unix::fs::DirBuilderExt as _, path::Path};

use super::node::replace;
use crate::{
    config::Config,
    hsm::{
        Pin,
        pkcs11::{self, TrustError},
    },
};

const FILE: &str = "hands-no-keks-on";

/// Said of it where a site tells of its token.
const UNMET: &str =
    "its sealed KEKs can never be handed on to another site: nobody can make a trusted key";

/// Tries it, and notes what comes of it.
pub(super) fn try_it(config: &Config, so_pin: &Pin) -> Result<(), TrustError> {
    let tried = pkcs11::can_trust(&config.hsm, so_pin);
    if let Err(error) = note(&config.site.data_dir, &tried) {
        // What was found out is said here and now in any case.
        tracing::warn!(%error, "it is not noted in data_dir: servers will not tell it");
    }
    tried
}

/// Notes whether it can be done, if that is known now.
fn note(data_dir: &Path, tried: &Result<(), TrustError>) -> io::Result<()> {
    let file = data_dir.join(FILE);
    match tried {
        Ok(()) if file.exists() => fs::remove_file(&file),
        Err(error @ TrustError::Nobody(_)) => {
            fs::DirBuilder::new().recursive(true).mode(0o750).create(data_dir)?;
            replace(&file, format!("{error}\n").as_bytes())
        }
        // A wrong PIN, a token that is away: nothing was found out.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What a site on this token has to tell of it; `None`: nothing was found against it.
pub(super) fn noted(data_dir: &Path) -> Option<String> {
    data_dir.join(FILE).exists().then(|| UNMET.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_out_is_noted_and_what_was_not_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let nobody = || Err(TrustError::Nobody("CKR_ATTRIBUTE_READ_ONLY".to_owned()));
        let not_tried = || Err(TrustError::Pin("ami".to_owned()));
        note(&data, &Ok(())).unwrap();
        note(&data, &not_tried()).unwrap();
        assert_eq!(noted(&data), None);
        note(&data, &nobody()).unwrap();
        note(&data, &not_tried()).unwrap();
        assert!(noted(&data).unwrap().contains("can never be handed on"));
        // Another token, or another release of it.
        note(&data, &Ok(())).unwrap();
        assert_eq!(noted(&data), None);
    }
}
